//! Decides which cleanup is next, when it is given up, and when all is done.
//!
//! Pure: no clock, no thread. What a cleanup does is a *job* that is kept here and handed out, whole and once: to
//! whoever starts it, or to whoever unregisters it.
//!
//! Higher priorities come first; within one, the last registered comes first, so that a cleanup finds what was there
//! before it still alive. One runs after the other.
//!
//! | event | open | cleaning | done |
//! |---|---|---|---|
//! | register | waits | waits, next in its order; refused after [`LATE_MAX`] | refused |
//! | unregister one that waits | handed back | handed back | – |
//! | unregister one that was started | – | nothing | nothing |
//! | begin | the first starts; none: finish | nothing | nothing |
//! | the running one finished | – | recorded; the next starts; none: finish | – |
//! | another one finished | nothing | nothing: it was given up | nothing: it was given up |
//! | woke before the limit | nothing | nothing | nothing |
//! | woke at the limit or later | – | recorded as timed out; the next starts; none: finish | – |
//!
//! A dash is what cannot be; told of it all the same, the machine does nothing.
//!
//! INVARIANT: in `cleaning` exactly one is running. Whatever ends it starts the next or leads to `done`, so one trigger
//! is enough and a second changes nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::report::{Ended, Outcome, Report};

/// The time limit of a cleanup for which none was asked.
pub const LIMIT_DEFAULT: Duration = Duration::from_secs(5);
/// The shortest limit. With less, a cleanup would be given up before its thread had a chance to run.
pub const LIMIT_MIN: Duration = Duration::from_millis(1);
/// The longest limit. Every wait ends; who wants longer wants a program, not a cleanup.
pub const LIMIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How many may be registered while the cleaning is under way. Without a limit, a cleanup that registers itself again
/// would keep everybody waiting for ever.
pub const LATE_MAX: usize = 1_000;

/// What is registered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Spec {
    /// For the report; need not be unique.
    pub(super) name: String,
    /// Higher is earlier.
    pub(super) priority: i32,
    /// Cut to [`LIMIT_MIN`] … [`LIMIT_MAX`].
    pub(super) limit: Duration,
}

/// Which registration. Its order is the order of the cleaning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Id {
    priority: Reverse<i32>,
    number: Reverse<u64>,
}

/// Why a registration is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// All cleanups are done: nobody would end it.
    Done,
    /// [`LATE_MAX`] were registered since the cleaning began.
    TooManyLate,
}

/// What the machine is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// Somebody wants everything ended.
    Begin,
    /// A job returned, panicked, or gave up by itself.
    Finished {
        /// Which.
        id: Id,
        /// How.
        outcome: Outcome,
        /// It ran on the thread that called for the cleaning.
        is_on_callers_thread: bool,
    },
    /// Time has passed.
    Woke,
}

/// What to do.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Action<J> {
    /// Start a job; [`Event::Finished`] answers, or [`Event::Woke`] at the deadline.
    Start {
        /// Which.
        id: Id,
        /// Its name.
        name: String,
        /// When it is given up.
        deadline: Instant,
        /// What to do.
        job: J,
    },
    /// All is done: tell everybody who waits.
    Finish,
}

#[derive(Debug)]
struct Waiting<J> {
    spec: Spec,
    job: J,
}

#[derive(Debug)]
struct Running {
    id: Id,
    spec: Spec,
    since: Instant,
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    Open,
    Cleaning { since: Instant, running: Running },
    Done { took: Duration },
}

/// The machine.
#[derive(Debug)]
pub(super) struct Stack<J> {
    state: State,
    /// In the order of the cleaning. Dropped unrun, the jobs go in this order too.
    waiting: BTreeMap<Id, Waiting<J>>,
    registered: u64,
    late: usize,
    ended: Vec<Ended>,
}

impl<J> Stack<J> {
    pub(super) fn new() -> Self {
        Self { state: State::Open, waiting: BTreeMap::new(), registered: 0, late: 0, ended: Vec::new() }
    }

    /// Takes a job, or hands it back with the reason.
    pub(super) fn register(&mut self, mut spec: Spec, job: J) -> Result<Id, (Reason, J)> {
        match self.state {
            State::Open => {}
            State::Cleaning { .. } if self.late < LATE_MAX => self.late += 1,
            State::Cleaning { .. } => return Err((Reason::TooManyLate, job)),
            State::Done { .. } => return Err((Reason::Done, job)),
        }
        spec.limit = spec.limit.clamp(LIMIT_MIN, LIMIT_MAX);
        self.registered += 1;
        let id = Id { priority: Reverse(spec.priority), number: Reverse(self.registered) };
        self.waiting.insert(id, Waiting { spec, job });
        Ok(id)
    }

    /// Hands back the job of one that was not started.
    pub(super) fn unregister(&mut self, id: Id) -> Option<J> {
        self.waiting.remove(&id).map(|waiting| waiting.job)
    }

    /// Takes in what happened at `now` and says what to do.
    pub(super) fn step(&mut self, now: Instant, event: Event) -> Option<Action<J>> {
        match (&self.state, event) {
            (State::Open, Event::Begin) => Some(self.next(now, now)),
            (State::Cleaning { running, .. }, Event::Finished { id, outcome, is_on_callers_thread })
                if id == running.id =>
            {
                self.end(now, outcome, is_on_callers_thread)
            }
            (State::Cleaning { running, .. }, Event::Woke) if now >= running.deadline => {
                self.end(now, Outcome::TimedOut, false)
            }
            (State::Open | State::Cleaning { .. } | State::Done { .. }, _) => None,
        }
    }

    /// Returns the instant at which to come back with [`Event::Woke`].
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Cleaning { running, .. } => Some(running.deadline),
            State::Open | State::Done { .. } => None,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done { .. })
    }

    /// Returns what was done until `now`.
    pub(super) fn report(&self, now: Instant) -> Report {
        let took = match self.state {
            State::Open => Duration::ZERO,
            State::Cleaning { since, .. } => now.saturating_duration_since(since),
            State::Done { took } => took,
        };
        Report { ended: self.ended.clone(), took, is_complete: self.is_done() }
    }

    fn end(&mut self, now: Instant, outcome: Outcome, is_on_callers_thread: bool) -> Option<Action<J>> {
        let State::Cleaning { since, running } = &mut self.state else { return None };
        let (since, took) = (*since, now.saturating_duration_since(running.since));
        let Spec { priority, limit, .. } = running.spec;
        let name = std::mem::take(&mut running.spec.name);
        self.ended.push(Ended { name, priority, limit, outcome, took, is_on_callers_thread });
        Some(self.next(now, since))
    }

    fn next(&mut self, now: Instant, since: Instant) -> Action<J> {
        let Some((id, Waiting { spec, job })) = self.waiting.pop_first() else {
            self.state = State::Done { took: now.saturating_duration_since(since) };
            return Action::Finish;
        };
        let (name, deadline) = (spec.name.clone(), now + spec.limit);
        self.state = State::Cleaning { since, running: Running { id, spec, since: now, deadline } };
        Action::Start { id, name, deadline, job }
    }
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
