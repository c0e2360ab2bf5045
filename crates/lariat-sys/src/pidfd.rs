//! A descriptor that refers to one process and never to a later one with its number (`pidfd_open(2)`).
//!
//! Responsible for signalling safely, and for saying which process it is. Does not wait and does not reap. Handles HAZARD(pid-reuse).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
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
        // HAZARD(pid-reuse): the order matters. The descriptor fixes some process; what is read afterwards says which
        // one. The other way round, the number could change hands between the look and the open.
        let opened = PidFd::open_pid(identity.pid)?;
        let is_it = match (identity.inode(), opened.inode()) {
            // Exact, and ten times as fast as a look into /proc.
            (Some(wanted), Some(found)) => wanted == found,
            // KERNEL(6.9): without pidfs the start is all that tells. It says nothing about a number that came back
            // within one tick. This branch may go when no kernel before 6.9 is supported.
            _ => Identity::of(identity.pid)? == Some(identity),
        };
        if is_it { Ok(opened) } else { Err(Errno::SRCH) }
    }

    /// Opens whatever process has this number now, and says who that is, its inode included: for one that was just
    /// found in a list and is to be remembered. `None` if there is none.
    pub fn of(pid: i32) -> Result<Option<(PidFd, Identity)>> {
        let opened = match PidFd::open_pid(pid) {
            Err(Errno::SRCH) => return Ok(None),
            opened => opened?,
        };
        let found = Identity::of(pid)?;
        // HAZARD(pid-reuse): what was read between the open and this look was read of the process that was opened, if
        // that still has its number.
        let found = found.filter(|_| opened.has_number());
        let inode = opened.inode();
        Ok(found.map(|identity| (opened, identity.with_inode(inode))))
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

    /// Takes a pidfd that the kernel or another process gave us.
    pub fn from_owned(descriptor: OwnedFd) -> PidFd {
        PidFd(descriptor)
    }

    /// Sends a signal to exactly this process (`pidfd_send_signal(2)`). A zombie accepts it without effect.
    ///
    /// # Errors
    /// [`Errno::SRCH`] once it was reaped, [`Errno::PERM`] if it belongs to a user whom we may not signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.send_number(signal.number(), 0)
    }

    fn send_number(&self, signal: libc::c_int, flags: libc::c_uint) -> Result<()> {
        let no_info: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: the descriptor is open for the call; a null `info` asks the kernel for what kill(2) would send.
        let sent =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, no_info, flags) };
        call::check(sent).map(drop)
    }

    /// Returns the process's number in pidfs, which no other process of this boot ever had or will have; `None` where
    /// the kernel has none.
    ///
    /// KERNEL(6.9): before, or without `CONFIG_FS_PID`, all pidfds share one anonymous inode, which names nobody.
    #[must_use]
    pub fn inode(&self) -> Option<u64> {
        /// What statfs(2) says of a pidfd in pidfs, of linux/magic.h.
        const PIDFS_MAGIC: u64 = 0x5049_4446;
        // A property of the kernel, so one look is enough.
        static HAS_PIDFS: OnceLock<bool> = OnceLock::new();
        let has_pidfs = HAS_PIDFS.get_or_init(|| {
            // Other systems have other types for it; compared as unsigned, none loses a bit of this constant.
            rustix::fs::fstatfs(&self.0).is_ok_and(|found| found.f_type as u64 == PIDFS_MAGIC)
        });
        if !has_pidfs {
            return None;
        }
        rustix::fs::fstat(&self.0).ok().map(|found| found.st_ino)
    }

    /// Says whether the process still has its number: it lives, or is a zombie that nobody has reaped.
    #[must_use]
    pub fn has_number(&self) -> bool {
        // EPERM comes after the look for the process.
        self.signal_nobody() != Err(Errno::SRCH)
    }

    /// Sends the signal 0, which is checked for and not delivered.
    pub(crate) fn signal_nobody(&self) -> Result<()> {
        self.send_number(0, 0)
    }

    /// Sends a signal to the process group that has this process's number; who is in it cannot fork past it.
    ///
    /// # Errors
    /// [`Errno::SRCH`] if there is no such group, [`Errno::INVAL`] before Linux 6.9.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        // KERNEL(6.9): PIDFD_SIGNAL_PROCESS_GROUP, of linux/pidfd.h. Nothing else names a group without a bare number.
        const PROCESS_GROUP: libc::c_uint = 1 << 2;
        self.send_number(signal.number(), PROCESS_GROUP)
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
/// A process that `/proc` hides from us (`hidepid`) and whose inode nobody knows cannot be told from another one with its
/// number; it is not surely gone while something that lives has that.
pub fn is_surely_gone(process: Identity) -> bool {
    let opened = match PidFd::open_pid(process.pid) {
        Err(Errno::SRCH) => return true,
        // No descriptor to spare: what /proc says has to do.
        opened => opened.ok(),
    };
    let found = opened.as_ref().and_then(PidFd::inode);
    if process.inode().zip(found).is_some_and(|(wanted, found)| wanted != found) {
        return true;
    }
    match procfs::read_stat(process.pid) {
        Ok(Some(stat)) => stat.identity() != process || !stat.is_alive(),
        _ => opened.is_some_and(|opened| opened.has_exited().unwrap_or(false)),
    }
}

impl From<PidFd> for OwnedFd {
    /// Gives up the descriptor.
    fn from(process: PidFd) -> OwnedFd {
        process.0
    }
}

impl AsFd for PidFd {
    /// Borrows the descriptor: it becomes readable when the process ends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
