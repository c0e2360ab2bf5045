//! Message sockets between processes of one machine, and who is at the other end.
//!
//! Responsible for sending and receiving whole messages without SIGPIPE. Does not know what they mean.
//! Handles HAZARD(reset-before-data).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::{Errno, Result, call};

/// Who connected a unix socket, as the kernel saw it at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cred {
    /// The pid it had then; by now it may be gone. 0 if it lives in a pid namespace that we cannot see.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Returns two connected unix sockets that keep message borders (`SOCK_SEQPACKET`), blocking and close-on-exec.
pub fn seqpacket_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one message. Blocks while the peer's queue is full, unless the socket is non-blocking: [`Errno::AGAIN`] then.
///
/// # Errors
/// [`Errno::PIPE`] once the peer is closed (never SIGPIPE), [`Errno::MSGSIZE`] for what cannot go in one message,
/// [`Errno::INVAL`] for an empty message, which the peer could not tell from the end.
pub fn send(socket: impl AsFd, message: &[u8]) -> Result<()> {
    if message.is_empty() {
        return Err(Errno::INVAL);
    }
    let socket = socket.as_fd();
    // A sequenced-packet socket takes a message whole or not at all, so the count says nothing.
    rustix::io::retry_on_intr(|| rustix::net::send(socket, message, SendFlags::NOSIGNAL)).map(drop)
}

/// Receives one message into `buffer` and returns its length; 0 means that the peer is closed and all was read.
///
/// Blocks until there is a message, unless the socket is non-blocking: [`Errno::AGAIN`] then.
///
/// # Errors
/// [`Errno::MSGSIZE`] for a message longer than `buffer`; it is lost.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> Result<usize> {
    let socket = socket.as_fd();
    loop {
        // With MSG_TRUNC the kernel answers the message's full length, also where it did not fit.
        match rustix::net::recv(socket, &mut *buffer, RecvFlags::TRUNC) {
            // HAZARD(reset-before-data): a peer that closed with our messages unread leaves ECONNRESET, which is
            // reported once and before the messages that it had sent. They are the last words; ask again.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Ok((_, length)) if length > buffer.len() => return Err(Errno::MSGSIZE),
            Ok((_, length)) => return Ok(length),
            Err(errno) => return Err(errno),
        }
    }
}

/// Returns who is at the other end of a connected unix socket (`SO_PEERCRED`): for a pair, who made it.
pub fn peer_cred(socket: impl AsFd) -> Result<Cred> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cred`, which is that long.
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut length,
        )
    };
    call::check(got)?;
    Ok(Cred { pid: cred.pid, uid: cred.uid, gid: cred.gid })
}
