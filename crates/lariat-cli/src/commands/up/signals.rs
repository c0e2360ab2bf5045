//! The signals of a command that stays: taken from a queue instead of by handlers.

use lariat_sys::signal::{self, Signal, SignalFd, SignalSet};

use super::own_trouble;
use crate::output::Failure;

/// The queue, and what was in force before.
#[derive(Debug)]
pub(crate) struct Signals {
    pub(crate) queue: SignalFd,
    /// The mask that the user's shell gave us: services start with it.
    pub(crate) mask: SignalSet,
    /// What was ignored then: the same.
    pub(crate) ignored: SignalSet,
}

impl Signals {
    /// Begins to queue INT, TERM, HUP and QUIT, those left out that were ignored before (a background job of a script,
    /// `nohup`), and CHLD.
    ///
    /// SIGPIPE is ignored from here on, so that a reader that goes away is an error of a write and not our death.
    pub(crate) fn take() -> Result<Self, Failure> {
        let ignored = signal::ignored();
        let mut queued = SignalSet::empty().with(Signal::CHLD);
        for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
            if !ignored.contains(signal) {
                queued = queued.with(signal);
            }
        }
        // A process that ignores CHLD cannot wait for its children.
        let failed = |errno| own_trouble("could not prepare signals", errno);
        signal::set_default(Signal::CHLD).map_err(failed)?;
        signal::set_ignored(Signal::PIPE).map_err(failed)?;
        let mask = signal::block(queued);
        let queue = SignalFd::new(queued).map_err(failed)?;
        Ok(Self { queue, mask, ignored })
    }

    /// Returns whether one came that asks for the end. Those that came after it are for the next question.
    pub(crate) fn asks_to_end(&self) -> bool {
        self.next_end().is_some()
    }

    /// Returns the next that came and asks for the end.
    pub(crate) fn next_end(&self) -> Option<Signal> {
        while let Ok(Some(received)) = self.queue.read() {
            if received.signal != Signal::CHLD {
                return Some(received.signal);
            }
        }
        None
    }
}
