//! A descriptor that refers to one process and never to a later one with its number (`pidfd_open(2)`).
//!
//! Responsible for signalling safely. Does not wait and does not reap. Handles HAZARD(pid-reuse).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags};

use crate::identity::Identity;
use crate::poll::{PollFd, PollFlags, poll};
use crate::signal::Signal;
use crate::{Errno, Result, call, procfs};

/// A reference to one process. Dropping it closes the descriptor and leaves the process alone.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process with this identity, be it alive or a zombie.
    ///
    /// # Errors
    /// [`Errno::SRCH`] if it is gone, even if another process has its number by now.
    pub fn open(identity: Identity) -> Result<PidFd> {
        // HAZARD(pid-reuse): the order matters. The descriptor fixes some process; reading the start afterwards says
        // which one. The other way round, the number could change hands between the look and the open.
        let opened = PidFd::open_pid(identity.pid)?;
        match Identity::of(identity.pid)? {
            Some(found) if found == identity => Ok(opened),
            _ => Err(Errno::SRCH),
        }
    }

    /// Opens whatever process has this number now: right only for own unreaped children, whose number cannot change
    /// hands, and for the parent when `getppid` is asked again afterwards.
    pub fn open_pid(pid: i32) -> Result<PidFd> {
        let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(Errno::SRCH)?;
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(PidFd(descriptor)),
            // KERNEL(6.9): a thread that leads no group answers ENOENT (EINVAL before); it is no process.
            Err(Errno::NOENT | Errno::INVAL) => Err(Errno::SRCH),
            Err(errno) => Err(errno),
        }
    }

    /// Takes a descriptor that `clone` filled in.
    pub(crate) fn from_owned(descriptor: OwnedFd) -> PidFd {
        PidFd(descriptor)
    }

    /// Sends a signal to exactly this process (`pidfd_send_signal(2)`). A zombie accepts it without effect.
    ///
    /// # Errors
    /// [`Errno::SRCH`] once it was reaped, [`Errno::PERM`] if it belongs to a user whom we may not signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.send(signal, 0)
    }

    fn send(&self, signal: Signal, flags: libc::c_uint) -> Result<()> {
        let no_info: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: the descriptor is open for the call; a null `info` asks the kernel for what kill(2) would send.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal.number(), no_info, flags)
        };
        call::check(sent).map(drop)
    }

    /// Sends a signal to the process group that has this process's number; who is in it cannot fork past it.
    ///
    /// # Errors
    /// [`Errno::SRCH`] if there is no such group, [`Errno::INVAL`] before Linux 6.9.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        // KERNEL(6.9): PIDFD_SIGNAL_PROCESS_GROUP, of linux/pidfd.h. Nothing else names a group without a bare number.
        const PROCESS_GROUP: libc::c_uint = 1 << 2;
        self.send(signal, PROCESS_GROUP)
    }

    /// Says whether the process has ended; it may be a zombie still. Does not block.
    pub fn has_exited(&self) -> Result<bool> {
        self.wait_exit(Some(Instant::now()))
    }

    /// Blocks until the process has ended, or until the deadline; says whether it has ended. Reaps nothing.
    pub fn wait_exit(&self, deadline: Option<Instant>) -> Result<bool> {
        let mut watched = [PollFd::new(&self.0, PollFlags::IN)];
        Ok(poll(&mut watched, deadline)? > 0)
    }
}

/// Says whether this process is surely gone: dead, or its number another's.
///
/// A process that `/proc` hides from us (`hidepid`) cannot be asked for its start; it is not surely gone while something
/// that lives has its number.
pub fn is_surely_gone(process: Identity) -> bool {
    if let Ok(Some(stat)) = procfs::read_stat(process.pid) {
        return stat.identity() != process || !stat.is_alive();
    }
    match PidFd::open_pid(process.pid) {
        Ok(pidfd) => pidfd.has_exited().unwrap_or(false),
        Err(errno) => errno == Errno::SRCH,
    }
}

impl AsFd for PidFd {
    /// Borrows the descriptor: it becomes readable when the process ends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
