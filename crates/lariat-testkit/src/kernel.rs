//! Older kernels: programs run without something that this kernel has (the fixture `without`).
//!
//! What the kernel decides by the number and flags of a system call is refused by a filter alone. A *file* that an older
//! kernel lacks takes somebody who reads paths: a thread of the test answers them.

use std::io::{IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::arena::Arena;
use crate::command::Command;
use crate::fixture;

/// A kernel without some features, for the programs of one arena.
#[derive(Debug)]
pub struct Kernel {
    features: Vec<String>,
    listener: Option<PathBuf>,
}

impl Kernel {
    /// Describes a kernel without these features, by the names that `without` knows, each with `=ERRNO` if wanted.
    ///
    /// # Panics
    /// When the socket of a feature that is a file cannot be made.
    #[must_use]
    pub fn without(arena: &Arena, features: &[&str]) -> Self {
        let listener = features.contains(&"children-lists").then(|| serve(&arena.dir().join("questions")));
        Self { features: features.iter().map(|feature| (*feature).to_owned()).collect(), listener }
    }

    /// Prepares a program under this kernel: as [`Arena::command`].
    #[must_use]
    pub fn command(&self, arena: &Arena, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = arena.command(fixture::without());
        if let Some(listener) = &self.listener {
            command = command.arg("--listener").arg(listener);
        }
        command.args(&self.features).arg("--").arg(program)
    }
}

/// Answers the questions of everybody who connects, each on a thread that ends with the processes that ask.
fn serve(path: &Path) -> PathBuf {
    let listener = UnixListener::bind(path).expect("the arena is writable");
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || answer_all(socket));
        }
    });
    path.to_owned()
}

fn answer_all(mut socket: UnixStream) -> Option<()> {
    let asked = receive(&socket)?;
    socket.write_all(b"!").ok()?;
    while has_question(&asked) {
        // SAFETY: all zeroes is a valid question, and what the kernel demands of it.
        let mut question: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and the structure is the kernel's.
        if unsafe { libc::ioctl(asked.as_raw_fd(), RECEIVE, &raw mut question) } < 0 {
            // Whoever asked was killed meanwhile.
            continue;
        }
        let is_hidden = path_of(&question).is_some_and(|path| path.ends_with(b"/children"));
        let mut answer = libc::seccomp_notif_resp { id: question.id, val: 0, error: 0, flags: 0 };
        match is_hidden {
            true => answer.error = -libc::ENOENT,
            false => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        }
        // The result is ignored: whoever asked may be dead.
        // SAFETY: as above.
        let _ = unsafe { libc::ioctl(asked.as_raw_fd(), SEND, &raw mut answer) };
    }
    Some(())
}

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` of linux/seccomp.h.
const RECEIVE: libc::Ioctl = read_write(0, size_of::<libc::seccomp_notif>());
const SEND: libc::Ioctl = read_write(1, size_of::<libc::seccomp_notif_resp>());

/// `_IOWR('!', number, size)` of asm-generic/ioctl.h.
const fn read_write(number: u64, size: usize) -> libc::Ioctl {
    (3 << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number) as libc::Ioctl
}

/// Waits for a question; returns false when nobody is left who could ask one.
fn has_question(asked: &OwnedFd) -> bool {
    loop {
        let mut fds = [PollFd::new(asked, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => return !fds[0].revents().contains(PollFlags::HUP),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Returns the path that openat(2) was called with; `None` for an asker who is gone, or may not be looked into.
fn path_of(question: &libc::seccomp_notif) -> Option<Vec<u8>> {
    let memory = std::fs::File::open(format!("/proc/{}/mem", question.pid)).ok()?;
    let mut path = vec![0; 128];
    let count = memory.read_at(&mut path, question.data.args[1]).ok()?;
    path.truncate(count);
    let end = path.iter().position(|byte| *byte == 0)?;
    path.truncate(end);
    Some(path)
}

fn receive(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    let first = ancillary.drain().next()?;
    match first {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }
}
