//! Hands the descriptor of questions to whoever answers them: the test (`lariat_testkit::kernel`).

use std::ffi::OsStr;
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Connects to the listener.
pub(crate) fn connect(path: &OsStr) -> Result<UnixStream, String> {
    UnixStream::connect(path).map_err(|error| format!("could not connect to {}: {error}", path.display()))
}

/// Sends it the descriptor, and waits until it answers questions.
pub(crate) fn hand_over(mut socket: UnixStream, asked: OwnedFd) -> Result<(), String> {
    let descriptors = [asked.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&socket, &[IoSlice::new(b"!")], &mut ancillary, SendFlags::empty())
        .map_err(|errno| format!("could not hand over the questions: {errno}"))?;
    drop(asked);
    let mut answer = [0];
    socket.read_exact(&mut answer).map_err(|error| format!("nobody answers: {error}"))
}
