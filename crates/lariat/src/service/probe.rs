//! Decides when a readiness probe is due, and when waiting for readiness is over.
//!
//! Pure: connecting and asking is the driver's ([`crate::supervisor`]). There is never more than one attempt at a
//! time. The time for becoming ready is fixed at the start and moved by nothing: a service that answers with errors
//! for ever is not kept waiting for ever.

use std::time::{Duration, Instant};

use lariat_keeper::clock::later;

use super::spec::ReadySpec;

/// One attempt lasts no longer than this; a server that compiles on its first request needs more than a moment.
pub const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// The pause between two attempts is never shorter.
pub const EVERY_MIN: Duration = Duration::from_millis(5);

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeEvent {
    /// The time that was asked for has come.
    Woke,
    /// The attempt, or the output of the service, showed readiness.
    Passed,
    /// The attempt showed that it is not ready yet.
    Failed,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeAction {
    /// Make an attempt; it counts as failed at this instant.
    Attempt {
        /// When it ends at the latest.
        deadline: Instant,
    },
    /// Forget the attempt that is being made.
    Abandon,
    /// The service is ready. Nothing follows.
    Ready,
    /// The service was not ready in time. Nothing follows.
    TimedOut,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No attempt before this instant.
    Pause {
        until: Instant,
    },
    /// An attempt is being made.
    Attempt {
        deadline: Instant,
    },
    /// Readiness is looked for in the output; there is nothing to attempt.
    Listen,
    Over,
}

/// Waits for one start of a service to become ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbeMachine {
    every: Duration,
    /// INVARIANT: set once, at the start.
    give_up_at: Instant,
    state: State,
}

impl ProbeMachine {
    /// Begins at `now` with an attempt that is due at once.
    #[must_use]
    pub fn attempting(spec: &ReadySpec, now: Instant) -> Self {
        Self::new(spec, now, State::Pause { until: now })
    }

    /// Begins at `now` to wait for [`ProbeEvent::Passed`], without attempts.
    #[must_use]
    pub fn listening(spec: &ReadySpec, now: Instant) -> Self {
        Self::new(spec, now, State::Listen)
    }

    fn new(spec: &ReadySpec, now: Instant, state: State) -> Self {
        Self { every: spec.every.max(EVERY_MIN), give_up_at: later(now, spec.timeout), state }
    }

    /// Returns when to come back with [`ProbeEvent::Woke`]; `None` when it is over.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        match self.state {
            State::Pause { until } => Some(until.min(self.give_up_at)),
            State::Attempt { deadline } => Some(deadline),
            State::Listen => Some(self.give_up_at),
            State::Over => None,
        }
    }

    /// Returns whether readiness was seen or the time is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Takes one event and returns what to do, in order. Answers of attempts that were abandoned are ignored.
    pub fn step(&mut self, now: Instant, event: ProbeEvent) -> Vec<ProbeAction> {
        let mut actions = Vec::new();
        match (self.state, event) {
            (State::Over, _) | (State::Pause { .. } | State::Listen, ProbeEvent::Failed) => {}
            // A pass that comes together with the end of the time is a pass: the service is there.
            (State::Attempt { .. } | State::Listen, ProbeEvent::Passed) => {
                self.state = State::Over;
                actions.push(ProbeAction::Ready);
            }
            (State::Pause { .. }, ProbeEvent::Passed) => {}
            (State::Attempt { .. }, ProbeEvent::Failed) => self.pause(now),
            (State::Attempt { deadline }, ProbeEvent::Woke) => {
                if now >= deadline {
                    actions.push(ProbeAction::Abandon);
                    self.pause(now);
                }
            }
            (State::Pause { .. } | State::Listen, ProbeEvent::Woke) => {}
        }
        self.advance(now, &mut actions);
        actions
    }

    fn pause(&mut self, now: Instant) {
        self.state = State::Pause { until: later(now, self.every) };
    }

    /// Does what has become due with the time alone.
    fn advance(&mut self, now: Instant, actions: &mut Vec<ProbeAction>) {
        match self.state {
            State::Pause { .. } | State::Listen if now >= self.give_up_at => {
                self.state = State::Over;
                actions.push(ProbeAction::TimedOut);
            }
            State::Pause { until } if now >= until => {
                let deadline = (now + ATTEMPT_MAX).min(self.give_up_at);
                self.state = State::Attempt { deadline };
                actions.push(ProbeAction::Attempt { deadline });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
