//! Stores what a service says after its supervisor died.
//!
//! A thread of its own, and only then: a disk that does not answer holds up whoever writes to it, and the keeper's one
//! thread has a service to end within its grace period. While the supervisor lives its pump drains, and this does not
//! begin before the supervisor's death is proven by its pidfd: a closed conversation alone may be a handle that was
//! dropped.
//!
//! Hazards: `HAZARD(stuck-disk)`.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use lariat_sys::files;
use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{self, PollFd, PollFlags};

use crate::store::Drain;

/// Output moved between two looks at the order to finish, in bytes.
const STEP: usize = 1 << 20;
/// Output moved at the very end, when nobody writes any more, in bytes: the largest pipe and its stage.
const END: usize = 2 << 20;
/// How long bytes may gather, so that many small writes cost few wake-ups.
const GATHER: Duration = Duration::from_millis(1);
/// How long a supervisor may take from closing its descriptors to its death: hardly anything, on a machine that is not
/// overloaded. Only where a handle was dropped by one who lives on is it waited for in vain.
const DYING_WITHIN: Duration = Duration::from_millis(500);
/// The thread calls little and keeps nothing on its stack.
const STACK_BYTES: usize = 64 * 1024;

/// A drain at work. Dropping it lets the thread finish by itself.
#[derive(Debug)]
pub struct LastWords {
    /// Closed to say that nobody writes any more.
    finish: OwnedFd,
    /// Bytes that could not be stored.
    dropped: Receiver<u64>,
}

impl LastWords {
    /// Begins. `supervisor` is absent where its death is certain already. Returns nothing if no pipe or thread could be
    /// had: nobody reads the output then, and once the supervisor is dead too, a service that writes gets SIGPIPE.
    #[must_use]
    pub fn begin(drain: Drain, supervisor: Option<PidFd>) -> Option<Self> {
        let (finished, finish) = files::pipe(4096).ok()?;
        let (tell, dropped) = channel();
        let work = move || {
            // Whoever asked may have left without waiting for the answer.
            let _ = tell.send(drain_until(drain, supervisor.as_ref(), &finished));
        };
        thread::Builder::new().name("drain".into()).stack_size(STACK_BYTES).spawn(work).ok()?;
        Some(Self { finish, dropped })
    }

    /// Lets the thread store what is in the pipe and returns how many bytes could not be stored in all. Blocks until
    /// `deadline` at most; nothing is known then, and the answer is `None`.
    #[must_use]
    pub fn finish(self, deadline: Instant) -> Option<u64> {
        drop(self.finish);
        self.dropped.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }
}

/// The service may be over before a supervisor that lets go of its conversation by dying is dead.
fn is_dead_by(deadline: Instant, supervisor: &PidFd) -> bool {
    poll::poll(&mut [PollFd::new(supervisor, PollFlags::IN)], Some(deadline)).is_ok_and(|ready| ready > 0)
}

fn drain_until(mut drain: Drain, supervisor: Option<&PidFd>, finished: &OwnedFd) -> u64 {
    if let Some(supervisor) = supervisor {
        let mut fds = [PollFd::new(supervisor, PollFlags::IN), PollFd::new(finished, PollFlags::IN)];
        let _ = poll::poll(&mut fds, None);
        if fds[0].revents().is_empty() && !is_dead_by(Instant::now() + DYING_WITHIN, supervisor) {
            // The service is over and the supervisor lives: what is in the pipe is its pump's to store.
            return 0;
        }
    }
    let mut dropped = 0;
    loop {
        let (has_output, is_finished) = {
            let mut fds =
                [PollFd::new(finished, PollFlags::IN), PollFd::from_borrowed_fd(drain.pipe(), PollFlags::IN)];
            let _ = poll::poll(&mut fds, None);
            (!fds[1].revents().is_empty(), !fds[0].revents().is_empty())
        };
        if is_finished {
            dropped += drain.drain_to_empty(END).dropped as u64;
            drain.settle();
            return dropped;
        }
        if has_output {
            let drained = drain.drain(STEP);
            dropped += drained.dropped as u64;
            if drained.is_closed {
                drain.settle();
                return dropped;
            }
            let mut fds = [PollFd::new(finished, PollFlags::IN)];
            let _ = poll::poll(&mut fds, Some(Instant::now() + GATHER));
        }
    }
}
