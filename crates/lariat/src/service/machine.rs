//! Decides what happens to one service: from the wish that it be up to the proof that it is gone, over and over.
//!
//! Pure: no clock, no process. What the user wants, what is there, whether it is ready and how it last ended are
//! separate facts. How members are told and killed is its keeper's business; when dependencies hold and in which
//! order a stack stops is the [stack's](crate::supervisor::stack).
//!
//! | state | meaning | what leads on |
//! |---|---|---|
//! | `Down` | nothing of it is there | start |
//! | `Waiting` | wanted, its dependencies do not hold yet | dependencies met or out of reach |
//! | `Starting` | its keeper was asked to spawn it | started, spawn failed |
//! | `Up` | its leader, or the daemon it left, is alive | leader exits, stop, not ready in time |
//! | `Closing` | it ended by itself, its keeper ends the stragglers | keeper ended |
//! | `Stopping` | it was asked to end | keeper ended |
//! | `Sweeping` | its keeper died, the supervisor ends its orphans | orphans ended |
//! | `Backoff` | it ended by itself and will be started again | the time |
//! | `GaveUp` | it ended too often, or somebody of it cannot be ended | start |
//!
//! INVARIANT: a service leaves `Starting` … `Sweeping` only by [`Event::KeeperEnded`], [`Event::OrphansEnded`] or
//! [`Event::NotSpawned`]: an end is never reported, and a restart never allowed, before it is proven.

use std::time::{Duration, Instant};

use lariat_keeper::clock::later;
use lariat_sys::reap::Exit;

use super::restart::{self, History, Outcome, Verdict};
use super::spec::{Condition, RestartSpec, StopSpec};

/// How long after the end of the grace period a keeper may stay silent until it is killed and its work taken over:
/// the longest that it kills by its own rules, and some time for the answer.
pub const KEEPER_SILENCE_MAX: Duration =
    lariat_keeper::stop::KILL_LIMIT.saturating_add(Duration::from_secs(2));

/// How long a keeper may take to say that the service has started, or why it could not be: a program on a file system
/// that does not answer would be awaited for ever.
pub const START_WITHIN: Duration = Duration::from_secs(60);

/// What the user wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// That it runs.
    Up,
    /// That it does not.
    Down,
}

/// What is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Nothing; see [`Machine::last_end`] for why.
    Down,
    /// Nothing yet: its dependencies do not hold.
    Waiting,
    /// A keeper that was asked to spawn it.
    Starting,
    /// Its leader, or the daemon that it left by design.
    Up,
    /// What its leader left behind.
    Closing,
    /// What has not heeded the stop yet.
    Stopping,
    /// What its dead keeper left behind.
    Sweeping,
    /// Nothing; it is started again at this instant.
    Backoff {
        /// When.
        until: Instant,
    },
    /// It is not started again: it was restarted too often, or something of it could not be ended.
    GaveUp,
}

impl State {
    /// Returns whether processes of the service may be alive.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Up | Self::Closing | Self::Stopping | Self::Sweeping)
    }
}

/// Why a service ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// By itself, so.
    Exited(Exit),
    /// Somebody asked for it.
    Stopped,
    /// Its program, or its keeper, could not be started.
    NotSpawned,
    /// It was not ready in time, and was stopped.
    NotReady,
    /// Its keeper died, and it was stopped.
    KeeperLost,
    /// The daemon that it left by design ended by itself. Nobody could see how.
    DaemonEnded,
    /// It never started: something it comes after ended without fulfilling the condition.
    DependencyLost,
}

impl Cause {
    /// Returns whether this counts as a failure of the service.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Exited(exit) if exit.is_success() => Outcome::Success,
            Self::Stopped => Outcome::Success,
            _ => Outcome::Failure,
        }
    }
}

/// What the machine is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// What it comes after is as it has to be.
    DependenciesMet,
    /// What it comes after ended, and will not become as it has to be.
    DependencyLost,
    /// The keeper spawned the leader.
    Started,
    /// No keeper could be started at all.
    NotSpawned,
    /// The keeper could not spawn the leader; its end follows.
    SpawnFailed,
    /// Readiness was seen.
    ReadySeen,
    /// Readiness was not seen in time.
    ReadyTimedOut,
    /// The leader exited; members may be alive.
    LeaderExited(Exit),
    /// The leader left a daemon by design.
    Daemonized,
    /// The keeper's proof that nothing is left, or its word that it could not do more.
    KeeperEnded {
        /// How the leader exited, if it did.
        exit: Option<Exit>,
        /// Nothing is left. Otherwise somebody could not be ended.
        is_empty: bool,
    },
    /// The keeper is dead and never said that nothing is left.
    KeeperGone,
    /// The orphans of the dead keeper were ended as far as possible.
    OrphansEnded {
        /// Nothing is left. Otherwise somebody could not be ended.
        is_empty: bool,
    },
    /// The user wants it up.
    Start,
    /// The user, or the plan of a shutdown, wants it down, with this grace period.
    Stop {
        /// Time until members are killed.
        grace: Duration,
    },
    /// It is to be killed now.
    Kill,
    /// The user wants it ended and started again.
    Restart,
    /// The whole stack begins to stop. Nothing starts from here on.
    ShutdownBegan,
    /// The time of [`Machine::wake_at`] has come.
    Woke,
}

/// What the driver does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Start a keeper with the service.
    Spawn,
    /// Begin to look for readiness.
    WatchReadiness,
    /// Stop looking for readiness.
    DropReadiness,
    /// Order the keeper to stop the service.
    OrderStop {
        /// Time until members are killed.
        grace: Duration,
    },
    /// Order the keeper to kill.
    OrderKill,
    /// Kill the keeper, which has been silent for too long; [`Event::KeeperGone`] follows.
    KillKeeper,
    /// End the orphans of the dead keeper.
    EndOrphans {
        /// Time until they are killed.
        grace: Duration,
    },
    /// Cut the grace period of those orphans; zero kills them now.
    CutOrphans {
        /// Time until they are killed.
        grace: Duration,
    },
    /// The service became ready.
    Ready,
    /// This life is over, proven. The state says what follows.
    Ended(End),
}

/// How a life of a service ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Why.
    pub cause: Cause,
    /// From the leader's start to the proof; zero if it never started.
    pub life: Duration,
}

/// What a machine is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// How it is stopped.
    pub stop: StopSpec,
    /// What follows its end.
    pub restart: RestartSpec,
    /// Whether readiness is looked for; otherwise it is ready when it has started.
    pub has_ready_check: bool,
    /// The leader may exit with code 0 and leave a daemon.
    pub is_daemon: bool,
}

/// One service's machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    policy: Policy,
    wanted: Wanted,
    state: State,
    is_ready: bool,
    /// The leader was spawned at least once since the service was last asked for.
    has_started: bool,
    is_shutting_down: bool,
    /// Why the present life ends, as soon as it is known.
    cause: Option<Cause>,
    /// When the present life is over, another begins, whatever the policy says.
    comes_again: bool,
    is_daemonized: bool,
    started_at: Option<Instant>,
    /// When a keeper that was asked to spawn it has to have answered.
    answer_by: Option<Instant>,
    /// When the grace period of the stop that is under way ends. It only ever becomes sooner.
    grace_end: Option<Instant>,
    /// The keeper was silent for too long and was killed.
    has_given_up_keeper: bool,
    history: History,
    last_end: Option<End>,
}

impl Machine {
    /// Begins with a service that nobody has asked for.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            wanted: Wanted::Down,
            state: State::Down,
            is_ready: false,
            has_started: false,
            is_shutting_down: false,
            cause: None,
            comes_again: false,
            is_daemonized: false,
            started_at: None,
            answer_by: None,
            grace_end: None,
            has_given_up_keeper: false,
            history: History::default(),
            last_end: None,
        }
    }

    /// Returns what the user wants.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Returns what is there.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns whether it is up and its readiness was seen in this life.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_ready && self.state == State::Up
    }

    /// Returns how its last life ended; absent before the first end.
    #[must_use]
    pub fn last_end(&self) -> Option<End> {
        self.last_end
    }

    /// Returns its restarts since it was last asked for.
    #[must_use]
    pub fn history(&self) -> History {
        self.history
    }

    /// Returns whether it ended by itself with exit code 0 and stays so.
    #[must_use]
    pub fn has_completed(&self) -> bool {
        let success = |end: End| matches!(end.cause, Cause::Exited(exit) if exit.is_success());
        self.state == State::Down && self.last_end.is_some_and(success)
    }

    /// Returns whether this holds of it now. Without a check of its own, ready means started.
    #[must_use]
    pub fn holds(&self, condition: Condition) -> bool {
        match condition {
            Condition::Ready if self.policy.has_ready_check => self.is_ready(),
            Condition::Ready | Condition::Started => self.has_started,
            Condition::Completed => self.has_completed(),
        }
    }

    /// Returns when to come back with [`Event::Woke`], if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        match self.state {
            State::Backoff { until } => Some(until),
            State::Starting if !self.has_given_up_keeper => self.answer_by,
            _ => self.silent_at(),
        }
    }

    /// When a keeper whose service is ending has been silent for too long.
    fn silent_at(&self) -> Option<Instant> {
        if self.has_given_up_keeper { None } else { self.grace_end.map(|at| at + KEEPER_SILENCE_MAX) }
    }

    /// Takes one event and returns what to do, in order. `chance` is a fresh random value; only the wait before a
    /// restart depends on it.
    pub fn step(&mut self, now: Instant, event: Event, chance: u64) -> Vec<Action> {
        match event {
            Event::Start => self.start(),
            Event::Restart => self.restart(now),
            Event::Stop { grace } => self.stop(now, grace),
            Event::Kill => self.kill(now),
            Event::ShutdownBegan => self.begin_shutdown(),
            Event::DependenciesMet if self.state == State::Waiting => self.spawn(now),
            Event::DependencyLost if self.state == State::Waiting => {
                self.state = State::Down;
                let end = End { cause: Cause::DependencyLost, life: Duration::ZERO };
                self.last_end = Some(end);
                vec![Action::Ended(end)]
            }
            Event::Started => self.started(now),
            Event::ReadySeen if self.state == State::Up && !self.is_ready => {
                self.is_ready = true;
                vec![Action::DropReadiness, Action::Ready]
            }
            Event::ReadyTimedOut if self.state == State::Up && !self.is_ready => {
                self.cause = Some(Cause::NotReady);
                self.order_stop(now, self.policy.stop.grace)
            }
            Event::LeaderExited(exit) => self.leader_exited(now, exit),
            Event::Daemonized if self.state == State::Up => {
                self.is_daemonized = true;
                Vec::new()
            }
            Event::SpawnFailed if self.state == State::Starting => {
                self.cause = Some(Cause::NotSpawned);
                self.state = State::Closing;
                self.end_grace_by(now);
                Vec::new()
            }
            Event::NotSpawned if self.state == State::Starting => {
                self.cause = Some(Cause::NotSpawned);
                self.finish(now, chance, true)
            }
            Event::KeeperEnded { exit, is_empty }
                if self.state.is_live() && self.state != State::Sweeping =>
            {
                let by_itself = match exit {
                    Some(_) if self.is_daemonized => Cause::DaemonEnded,
                    Some(exit) => Cause::Exited(exit),
                    None => Cause::NotSpawned,
                };
                self.cause = self.cause.or(Some(by_itself));
                self.finish(now, chance, is_empty)
            }
            Event::KeeperGone => self.keeper_gone(now),
            Event::OrphansEnded { is_empty } if self.state == State::Sweeping => {
                self.finish(now, chance, is_empty)
            }
            Event::Woke => self.woke(now),
            // Everything else comes too late, or twice, and changes nothing.
            Event::DependenciesMet
            | Event::DependencyLost
            | Event::ReadySeen
            | Event::ReadyTimedOut
            | Event::SpawnFailed
            | Event::NotSpawned
            | Event::KeeperEnded { .. }
            | Event::Daemonized
            | Event::OrphansEnded { .. } => Vec::new(),
        }
    }

    fn spawn(&mut self, now: Instant) -> Vec<Action> {
        self.state = State::Starting;
        self.answer_by = Some(later(now, START_WITHIN));
        self.cause = None;
        vec![Action::Spawn]
    }

    fn start(&mut self) -> Vec<Action> {
        if self.is_shutting_down {
            return Vec::new();
        }
        self.wanted = Wanted::Up;
        match self.state {
            State::Down | State::GaveUp | State::Backoff { .. } => {
                self.history = History::default();
                self.has_started = false;
                self.state = State::Waiting;
            }
            State::Closing | State::Stopping | State::Sweeping => self.comes_again = true,
            State::Waiting | State::Starting | State::Up => {}
        }
        Vec::new()
    }

    fn restart(&mut self, now: Instant) -> Vec<Action> {
        if self.is_shutting_down {
            return Vec::new();
        }
        match self.state {
            State::Starting | State::Up | State::Closing => {
                let actions = self.stop(now, self.policy.stop.grace);
                self.wanted = Wanted::Up;
                self.comes_again = true;
                actions
            }
            _ => self.start(),
        }
    }

    fn stop(&mut self, now: Instant, grace: Duration) -> Vec<Action> {
        self.wanted = Wanted::Down;
        self.comes_again = false;
        match self.state {
            State::Starting | State::Up | State::Stopping => {
                self.cause = self.cause.or(Some(Cause::Stopped));
                self.order_stop(now, grace)
            }
            // It ended by itself already; that stays the cause.
            State::Closing => self.order_stop(now, grace),
            State::Sweeping => vec![Action::CutOrphans { grace }],
            State::Waiting | State::Backoff { .. } => {
                self.state = State::Down;
                Vec::new()
            }
            State::Down | State::GaveUp => Vec::new(),
        }
    }

    fn kill(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.stop(now, Duration::ZERO);
        for action in &mut actions {
            if matches!(action, Action::OrderStop { .. }) {
                *action = Action::OrderKill;
            }
        }
        actions
    }

    /// Orders the keeper to stop. A later order can only make the time shorter, here as in the keeper.
    fn order_stop(&mut self, now: Instant, grace: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.state == State::Up && !self.is_ready {
            actions.push(Action::DropReadiness);
        }
        self.state = State::Stopping;
        self.end_grace_by(later(now, grace));
        actions.push(Action::OrderStop { grace });
        actions
    }

    fn end_grace_by(&mut self, at: Instant) {
        self.grace_end = Some(self.grace_end.map_or(at, |sooner| sooner.min(at)));
    }

    fn begin_shutdown(&mut self) -> Vec<Action> {
        self.is_shutting_down = true;
        self.wanted = Wanted::Down;
        self.comes_again = false;
        if matches!(self.state, State::Waiting | State::Backoff { .. }) {
            self.state = State::Down;
        }
        Vec::new()
    }

    fn started(&mut self, now: Instant) -> Vec<Action> {
        if !self.state.is_live() || self.started_at.is_some() {
            return Vec::new();
        }
        self.has_started = true;
        self.started_at = Some(now);
        if self.state != State::Starting {
            return Vec::new();
        }
        self.state = State::Up;
        if self.policy.has_ready_check {
            return vec![Action::WatchReadiness];
        }
        self.is_ready = true;
        vec![Action::Ready]
    }

    fn leader_exited(&mut self, now: Instant, exit: Exit) -> Vec<Action> {
        let was_up = self.state == State::Up;
        let may_leave_daemon = self.policy.is_daemon && exit.is_success();
        if may_leave_daemon || (!was_up && self.state != State::Starting) {
            return Vec::new();
        }
        self.cause = Some(Cause::Exited(exit));
        self.state = State::Closing;
        // The keeper begins to stop the stragglers by itself, with the service's own grace period.
        self.end_grace_by(later(now, self.policy.stop.grace));
        if was_up && !self.is_ready { vec![Action::DropReadiness] } else { Vec::new() }
    }

    fn keeper_gone(&mut self, now: Instant) -> Vec<Action> {
        if !self.state.is_live() || self.state == State::Sweeping {
            return Vec::new();
        }
        let mut actions = Vec::new();
        if self.state == State::Up && !self.is_ready {
            actions.push(Action::DropReadiness);
        }
        // A stop that is under way gets no new grace period from its keeper's death.
        let rest = |at: Instant| at.saturating_duration_since(now);
        let grace = self.grace_end.map_or(self.policy.stop.grace, rest);
        self.cause = self.cause.or(Some(Cause::KeeperLost));
        self.state = State::Sweeping;
        self.grace_end = None;
        actions.push(Action::EndOrphans { grace });
        actions
    }

    fn woke(&mut self, now: Instant) -> Vec<Action> {
        if let State::Backoff { until } = self.state {
            if now >= until {
                self.state = State::Waiting;
            }
        } else if self.wake_at().is_some_and(|at| now >= at) {
            if self.state == State::Starting {
                self.cause = Some(Cause::NotSpawned);
            }
            self.has_given_up_keeper = true;
            return vec![Action::KillKeeper];
        }
        Vec::new()
    }

    /// Closes a life, and decides what follows. Beside somebody who could not be ended nothing is started unasked.
    fn finish(&mut self, now: Instant, chance: u64, is_empty: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.state == State::Up && !self.is_ready {
            actions.push(Action::DropReadiness);
        }
        let life = self.started_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let cause = self.cause.take().unwrap_or(Cause::Stopped);
        let end = End { cause, life };
        self.last_end = Some(end);
        let was_ready = std::mem::take(&mut self.is_ready);
        self.is_daemonized = false;
        self.started_at = None;
        self.grace_end = None;
        self.has_given_up_keeper = false;
        let comes_again = std::mem::take(&mut self.comes_again);
        self.state = if self.wanted == Wanted::Down || self.is_shutting_down {
            State::Down
        } else if !is_empty {
            State::GaveUp
        } else if comes_again {
            self.history = History::default();
            State::Waiting
        } else {
            // A life that never came to readiness was not a long one, however long it was waited for.
            let lived = if was_ready { life } else { Duration::ZERO };
            match restart::decide(self.policy.restart, cause.outcome(), lived, &mut self.history, chance) {
                Verdict::Restart { after } => State::Backoff { until: now + after },
                Verdict::Stop => State::Down,
                Verdict::GaveUp => State::GaveUp,
            }
        };
        actions.push(Action::Ended(end));
        actions
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
