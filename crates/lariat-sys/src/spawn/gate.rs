//! Lets the caller of a spawn leave its session between the child's birth and its program (HAZARD(keeper-in-reach)).
//!
//! A session and a group are inherited at the clone, and a vfork(2)ed child keeps its parent asleep until it executes. So
//! it is a second thread of the parent that leaves, when the child has come to the gate with all its preparations done;
//! the child waits there until that is so.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, Builder};

use rustix::thread::futex::{self, Flags, Timespec};

/// The child has not come yet.
const CLOSED: u32 = 0;
/// It waits.
const KNOCKED: u32 = 1;
/// It may go on; or there was none.
const OPEN: u32 = 2;

/// How long a child waits at most, in seconds. The thread that opens does so at once, on a machine that gives it a turn.
const WAITS_AT_MOST: i64 = 5;
/// The thread makes a few system calls.
const STACK: usize = 64 << 10;

/// A word that parent and child share.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(super) struct Gate(AtomicU32);

impl Gate {
    /// Waits until the parent has left its session. For the child: allocates nothing, and has no thread-local errno.
    pub(super) fn pass(&self) {
        self.set(KNOCKED);
        let most = Timespec { tv_sec: WAITS_AT_MOST, tv_nsec: 0 };
        while self.0.load(Ordering::Acquire) == KNOCKED {
            match futex::wait(&self.0, Flags::empty(), KNOCKED, Some(&most)) {
                // Woken, or the word was another by then, or a signal came.
                Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // It is better started than not.
                Err(_) => return,
            }
        }
    }

    /// Leaves the session when the child has come, on a thread of the parent's.
    fn attend(&self) {
        while self.0.load(Ordering::Acquire) == CLOSED {
            // Whatever it returns, the word tells.
            let _ = futex::wait(&self.0, Flags::empty(), CLOSED, None);
        }
        if self.0.load(Ordering::Acquire) == KNOCKED {
            // It fails for who leads a group: such a one stays where it is.
            let _ = crate::process::setsid();
            self.set(OPEN);
        }
    }

    fn set(&self, state: u32) {
        self.0.store(state, Ordering::Release);
        // Nobody may be waiting.
        let _ = futex::wake(&self.0, Flags::empty(), u32::MAX);
    }
}

/// Runs `body`, which makes a child that goes through the gate, or none. `body` is told whether there is somebody to open.
pub(super) fn attended<T>(gate: &Gate, body: impl FnOnce(bool) -> T) -> T {
    thread::scope(|scope| {
        // The scope waits for the attendant, however `body` comes back.
        let _dismissal = Dismissal(gate);
        let attendant = Builder::new().stack_size(STACK).spawn_scoped(scope, || gate.attend());
        body(attendant.is_ok())
    })
}

/// Lets the attendant go that no child has come to.
struct Dismissal<'a>(&'a Gate);

impl Drop for Dismissal<'_> {
    fn drop(&mut self) {
        if self.0.0.load(Ordering::Acquire) == CLOSED {
            self.0.set(OPEN);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// More than a thread takes that only has to be woken.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Runs it beside the test, which fails where it does not come back.
    #[track_caller]
    fn comes_back<T: Send + 'static>(what: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
        let (say, hear) = mpsc::channel();
        thread::spawn(move || say.send(body()));
        hear.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what} has not come back within {PATIENCE:?}"))
    }

    #[test]
    fn nobody_waits_for_a_child_that_never_comes() {
        assert!(comes_back("a body without a child", || attended(&Gate::default(), |is_attended| {
            is_attended
        })));
        let failed = comes_back("a body that panics", || {
            std::panic::catch_unwind(|| attended(&Gate::default(), |_| panic!("no child"))).is_err()
        });
        assert!(failed);
    }
}
