//! Collecting the dead: the only place in a test process that waits for children.
//!
//! The test process is a subreaper, so it gets the orphans of everything it started. They are collected along with
//! its own children, because only then can the kernel's answer ECHILD prove that nobody is left: a walk of `/proc` is
//! no snapshot, and a storm of forks can pass between any two looks.

use std::collections::{BTreeMap, VecDeque};
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

/// What waits for the tracer: the pid of a thread that it follows, and what waitpid(2) gave. Absent while nobody traces.
static TRACED: Mutex<Option<VecDeque<Change>>> = Mutex::new(None);

/// A thread's number and its status as waitpid(2) gives it.
pub(crate) type Change = (i32, i32);

fn with_traced<T>(act: impl FnOnce(&mut Option<VecDeque<Change>>) -> T) -> T {
    act(&mut TRACED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Says that from now on, or no longer, stops and ends are of use to a tracer.
pub(crate) fn set_traced(is_on: bool) {
    with_traced(|queue| *queue = is_on.then(VecDeque::new));
}

/// Collects every child that has ended, and returns what the kernel says about the rest.
pub fn reap() -> Proof {
    loop {
        match collect(libc::WNOHANG) {
            Collected::Change(change) => {
                with_traced(|queue| queue.iter_mut().for_each(|q| q.push_back(change)))
            }
            Collected::Nothing => return Proof::Alive,
            Collected::Nobody => return Proof::Empty,
            Collected::Interrupted => {}
        }
    }
}

/// Waits for the next stop or end of a traced thread, or for a signal, which gives nothing.
pub(crate) fn wait_change() -> Option<Change> {
    if let Some(change) = with_traced(|queue| queue.as_mut().and_then(VecDeque::pop_front)) {
        return Some(change);
    }
    match collect(0) {
        Collected::Change(change) => Some(change),
        Collected::Nothing | Collected::Nobody | Collected::Interrupted => None,
    }
}

enum Collected {
    Change(Change),
    Nothing,
    Nobody,
    Interrupted,
}

fn collect(options: libc::c_int) -> Collected {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, options | libc::__WALL) };
    match pid {
        1.. => {
            if !libc::WIFSTOPPED(status) {
                with_known(|known| {
                    if let Some(entry) = known.get_mut(&pid) {
                        entry.get_or_insert(ExitStatus::from_raw(status));
                    }
                });
            }
            Collected::Change((pid, status))
        }
        0 => Collected::Nothing,
        _ if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => Collected::Interrupted,
        _ => Collected::Nobody,
    }
}
