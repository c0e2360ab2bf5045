//! The lock that says whether any lariat process of a run is alive.
//!
//! One open file description with flock(2) on it is shared by the supervisor and every keeper: the lock is free when the
//! last of them is gone, however it went. Nobody ever unlocks it explicitly, because LOCK_UN unlocks for all who share
//! the description (HAZARD(shared-lock)).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use lariat_sys::Errno;
use lariat_sys::files::lock_exclusive;
use lariat_sys::poll::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, OFlags};

use super::index::RuntimeDir;
use super::{LedgerError, StateDir};

pub(crate) const LOCK_FILE: &str = "lock";
/// The longest pause between two tries; the kernel does not tell when a lock becomes free.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// The lock, held. Dropping it closes this descriptor; the lock stays held for as long as any keeper has another.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl AsFd for RunLock {
    /// Borrows the descriptor, to be handed to keepers.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The lock of a directory of the user's, held: one at a time does something about runs that have no project. Dropping it
/// frees it.
#[derive(Debug)]
pub struct DirectoryLock {
    _directory: OwnedFd,
}

impl DirectoryLock {
    /// Waits until the lock is ours, the deadline has passed, or `cancel` is readable.
    ///
    /// # Errors
    /// When the directory cannot be locked, or the kernel cannot wait for lack of memory.
    pub fn wait_until(
        directory: &RuntimeDir,
        deadline: Instant,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<LockWait<Self>, LedgerError> {
        let failed = |errno: Errno| super::index::error("lock", &directory.path, errno.into());
        let try_it = || {
            // A description of its own: that of `directory` may be shared.
            let opened = rustix::fs::openat(
                directory.as_fd(),
                c".",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .map_err(failed)?;
            let is_ours = lock_exclusive(&opened).map_err(failed)?;
            Ok(is_ours.then_some(Self { _directory: opened }))
        };
        repeat_until(try_it, failed, deadline, cancel)
    }
}

/// How waiting for a lock ended.
#[derive(Debug)]
pub enum LockWait<T = RunLock> {
    /// It is ours.
    Acquired(T),
    /// Somebody held it until the deadline.
    TimedOut,
    /// The cancel descriptor became readable.
    Cancelled,
}

/// Takes the lock if nobody holds it. Does not block.
///
/// # Errors
/// When the lock file cannot be opened or locked.
pub fn try_acquire(state: &StateDir) -> Result<Option<RunLock>, LedgerError> {
    let file = state.open_file(LOCK_FILE, OFlags::RDWR | OFlags::CREATE)?;
    match lock_exclusive(&file) {
        Ok(true) => Ok(Some(RunLock { file })),
        Ok(false) => Ok(None),
        Err(errno) => Err(state.error("lock", LOCK_FILE, errno.into())),
    }
}

/// Says whether somebody holds the lock.
///
/// The look itself holds a shared lock for a moment: any number may look at once, but [`try_acquire`] in that moment
/// finds the lock taken. Who wants the lock to keep therefore waits for it a little ([`wait_until`]).
///
/// # Errors
/// As [`try_acquire`]; a lock file that is not there is held by nobody.
pub fn is_held(state: &StateDir) -> Result<bool, LedgerError> {
    let Some(file) = state.open_existing(LOCK_FILE)? else { return Ok(false) };
    match rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(state.error("lock", LOCK_FILE, errno.into())),
    }
}

/// Waits until the lock is ours, the deadline has passed, or `cancel` is readable.
///
/// # Errors
/// As [`try_acquire`], and when the kernel cannot wait for lack of memory.
pub fn wait_until(
    state: &StateDir,
    deadline: Instant,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<LockWait, LedgerError> {
    let failed = |errno: Errno| state.error("wait for", LOCK_FILE, errno.into());
    repeat_until(|| try_acquire(state), failed, deadline, cancel)
}

fn repeat_until<T>(
    try_it: impl Fn() -> Result<Option<T>, LedgerError>,
    failed: impl Fn(Errno) -> LedgerError,
    deadline: Instant,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<LockWait<T>, LedgerError> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(lock) = try_it()? {
            return Ok(LockWait::Acquired(lock));
        }
        let now = Instant::now();
        if now >= deadline {
            return Ok(LockWait::TimedOut);
        }
        let mut polled = Vec::with_capacity(1);
        polled.extend(cancel.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let ready = poll(&mut polled, Some(deadline.min(now + pause)));
        match ready.map_err(&failed)? {
            0 => pause = (pause * 2).min(TRY_EVERY),
            _ => return Ok(LockWait::Cancelled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_at_a_time_and_copies_hold_it_too() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path()).unwrap();
        let lock = try_acquire(&state).unwrap().unwrap();
        assert!(try_acquire(&state).unwrap().is_none());
        let keepers = lock.as_fd().try_clone_to_owned().unwrap();
        drop(lock);
        assert!(is_held(&state).unwrap());
        drop(keepers);
        assert!(!is_held(&state).unwrap());
        assert!(try_acquire(&state).unwrap().is_some());
    }

    #[test]
    fn waiting_ends_by_the_deadline_by_cancelling_and_by_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path()).unwrap();
        let lock = try_acquire(&state).unwrap().unwrap();
        let soon = || Instant::now() + Duration::from_millis(30);
        let late = || Instant::now() + Duration::from_secs(60);
        assert!(matches!(wait_until(&state, soon(), None), Ok(LockWait::TimedOut)));
        let (read, write) = lariat_sys::files::pipe(4096).unwrap();
        drop(write);
        assert!(matches!(wait_until(&state, late(), Some(read.as_fd())), Ok(LockWait::Cancelled)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait_until(&state, late(), None));
            drop(lock);
            assert!(matches!(waiting.join().unwrap(), Ok(LockWait::Acquired(_))));
        });
    }
}
