//! Collecting the dead: the only place in a test process that waits for children.
//!
//! The test process is a subreaper, so it gets the orphans of everything it started. They are collected along with
//! its own children, because only then can the kernel's answer ECHILD prove that nobody is left: a walk of `/proc` is
//! no snapshot, and a storm of forks can pass between any two looks.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};

/// The children somebody asks about, and how they ended once they have.
static KNOWN: Mutex<BTreeMap<i32, Option<ExitStatus>>> = Mutex::new(BTreeMap::new());

/// What the kernel says about descendants of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// There is none (ECHILD).
    Empty,
    /// There is at least one that has not ended.
    Alive,
}

fn with_known<T>(act: impl FnOnce(&mut BTreeMap<i32, Option<ExitStatus>>) -> T) -> T {
    act(&mut KNOWN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Remembers a child, so that its status is kept when it is collected. A number that is used again starts anew.
pub(crate) fn know(pid: i32) {
    with_known(|known| known.insert(pid, None));
}

/// Returns how a known child ended, if it was collected.
pub(crate) fn status(pid: i32) -> Option<ExitStatus> {
    with_known(|known| known.get(&pid).copied().flatten())
}

/// Returns whether a known child was collected: its number means nothing any more.
pub(crate) fn has_ended(pid: i32) -> bool {
    status(pid).is_some()
}

/// Collects every child that has ended, and returns what the kernel says about the rest.
pub fn reap() -> Proof {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        match pid {
            1.. => with_known(|known| {
                if let Some(entry) = known.get_mut(&pid) {
                    entry.get_or_insert(ExitStatus::from_raw(status));
                }
            }),
            0 => return Proof::Alive,
            _ if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            _ => return Proof::Empty,
        }
    }
}
