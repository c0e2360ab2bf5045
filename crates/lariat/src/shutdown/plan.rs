//! Decides how a stack stops: what each signal means, who is told when, when it is over whatever happens.
//!
//! Pure: no clock, no process. How one service is told and killed is its keeper's business; what the phases found is
//! put together in [`super::report`].
//!
//! A service is told as soon as everything that comes after it has ended, and its keeper kills it at its own deadline.
//! The phases name the work in the report; between services they are no barriers. One deadline covers the stack:
//! grace periods are cut to it, and who has not been told by then is killed.
//!
//! | signal | while up | stopping | killing |
//! |---|---|---|---|
//! | first | the plan | nothing: the plan is under way for another reason | nothing |
//! | second | – | kill | nothing |
//! | third | – | – | leave: keepers finish, the ledger stays |
//!
//! HUP is never a second or third. A typed signal counts at once; a sent one counts one second after the last that
//! counted at the earliest: a terminal that closes, `timeout` and nested runs send two at once.

use std::time::{Duration, Instant};

use lariat_keeper::clock::later;
use lariat_sys::signal::Signal;

use crate::service::graph::{Graph, Place};

/// A sent signal counts this long after the last that counted at the earliest.
pub const SENT_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long members that do not die of KILL are tried again, after the deadline of the stack.
pub const KILL_WITHIN: Duration = Duration::from_secs(5);
/// The same when everything is killed at once. With what follows it stays within five seconds.
pub const FORCE_WITHIN: Duration = Duration::from_millis(3_500);
/// How long orphans have until they are killed.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// How long the phase of the orphans has at least.
pub const ORPHANS_MIN: Duration = Duration::from_secs(1);
/// How long the last look may take.
pub const VERIFY_WITHIN: Duration = Duration::from_millis(500);

/// A step of a shutdown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Services in reverse dependency order, independent ones side by side.
    Graceful,
    /// Whoever outlived its grace period.
    Force,
    /// What carries the run's marker and hangs on no keeper.
    Orphans,
    /// Containers of the stack.
    Containers,
    /// Proof that nothing is left.
    Verify,
}

impl Phase {
    /// All five, in order.
    pub const ALL: [Self; 5] = [Self::Graceful, Self::Force, Self::Orphans, Self::Containers, Self::Verify];

    /// Returns its number, 1 to 5.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Graceful => 1,
            Self::Force => 2,
            Self::Orphans => 3,
            Self::Containers => 4,
            Self::Verify => 5,
        }
    }

    /// Returns the word that people and programs are shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Graceful => "graceful",
            Self::Force => "force",
            Self::Orphans => "orphans",
            Self::Containers => "containers",
            Self::Verify => "verify",
        }
    }
}

/// Why a stack stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// This signal came.
    Signal(Signal),
    /// The terminal closed.
    TerminalClosed,
    /// Nobody reads the output any more.
    OutputClosed,
    /// The output could not be written.
    OutputFailed,
    /// Somebody asked for it through the socket or a handle.
    Asked,
    /// A service did not start, or was not ready in time.
    StartupFailed,
    /// All services ended by themselves.
    AllEnded,
}

impl Why {
    /// Returns the reason in words, to follow "stopping: ".
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Signal(signal) => format!("received {signal}"),
            Self::TerminalClosed => "the terminal closed".into(),
            Self::OutputClosed => "nobody reads the output any more".into(),
            Self::OutputFailed => "the output could not be written".into(),
            Self::Asked => "asked to".into(),
            Self::StartupFailed => "start-up failed".into(),
            Self::AllEnded => "all services ended".into(),
        }
    }
}

/// What the plan is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Processes of a service may be alive from now on.
    Spawned(Place),
    /// A service's end is proven, or its keeper gave up on what is left.
    Ended(Place),
    /// A reason to stop that is no signal.
    Begin(Why),
    /// A signal.
    Signal {
        /// Which.
        signal: Signal,
        /// It was typed at a terminal, not sent by a process.
        is_typed: bool,
    },
    /// Kill everything now, and begin to stop if that is not so yet.
    Force,
    /// Orphans were looked for, and ended as far as possible.
    OrphansEnded,
    /// The last look was taken.
    Verified,
    /// The time of [`Plan::wake_at`] has come.
    Woke,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// From now on nothing starts.
    Begin(Why),
    /// Stop a service.
    Stop {
        /// Which.
        place: Place,
        /// Time until its members are killed; never zero.
        grace: Duration,
    },
    /// Kill a service.
    Kill(Place),
    /// Nothing more is awaited of a service that did not end. It is reported.
    GiveUp(Place),
    /// A phase begins.
    PhaseBegan(Phase),
    /// A phase is over after this long.
    PhaseEnded(Phase, Duration),
    /// Look for orphans and end them; [`Event::OrphansEnded`] answers.
    EndOrphans {
        /// Time until they are killed.
        grace: Duration,
        /// When to answer whatever is left.
        give_up_at: Instant,
    },
    /// Kill those orphans now.
    HurryOrphans,
    /// Take the last look; [`Event::Verified`] answers.
    Verify {
        /// When to answer whatever was seen.
        deadline: Instant,
    },
    /// Leave at once. Keepers finish the work, the ledger stays.
    Leave,
    /// All phases are over.
    Finish,
}

/// A service, as far as a shutdown is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Node {
    /// Nothing of it is alive.
    Gone,
    /// It is alive and was not told.
    Live,
    /// It was told; its keeper kills at this instant.
    Told { kill_at: Instant },
    /// It is being killed.
    Killing,
    /// It did not end, and nothing more is awaited.
    GivenUp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The stack is up.
    Quiet,
    /// Services are being stopped.
    Services,
    /// Orphans are being ended, until this instant.
    Orphans { give_up_at: Instant },
    /// The last look is being taken, until this instant.
    Verify { deadline: Instant },
    /// Finished, or left.
    Over,
}

/// The plan of one stack's shutdown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    graph: Graph,
    grace: Vec<Duration>,
    budget: Duration,
    nodes: Vec<Node>,
    stage: Stage,
    is_forced: bool,
    counted: u8,
    counted_at: Option<Instant>,
    began_at: Option<Instant>,
    /// INVARIANT: set when the stop begins, moved only towards the present.
    deadline: Option<Instant>,
    /// When services are given up; the same.
    hard_end: Option<Instant>,
    /// When the last service ended that heeded its stop.
    graceful_end: Option<Instant>,
    force_began: Option<Instant>,
    stage_began: Option<Instant>,
}

impl Plan {
    /// Makes the plan of a stack: the grace period of each service, and the time for all of them together.
    #[must_use]
    pub fn new(graph: Graph, grace: Vec<Duration>, deadline: Duration) -> Self {
        Self {
            nodes: vec![Node::Gone; graph.len()],
            graph,
            grace,
            budget: deadline,
            stage: Stage::Quiet,
            is_forced: false,
            counted: 0,
            counted_at: None,
            began_at: None,
            deadline: None,
            hard_end: None,
            graceful_end: None,
            force_began: None,
            stage_began: None,
        }
    }

    /// Returns whether the stop has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.stage != Stage::Quiet
    }

    /// Returns whether all phases are over, or it was left early.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Returns whether everything is to be killed at once.
    #[must_use]
    pub fn is_forced(&self) -> bool {
        self.is_forced
    }

    /// Returns when to come back with [`Event::Woke`], if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        match self.stage {
            Stage::Quiet | Stage::Over => None,
            Stage::Orphans { give_up_at } => Some(give_up_at),
            Stage::Verify { deadline } => Some(deadline),
            Stage::Services => {
                let kills = self.nodes.iter().filter_map(|node| match node {
                    Node::Told { kill_at } => Some(*kill_at),
                    _ => None,
                });
                let is_somebody_untold = self.nodes.contains(&Node::Live);
                let deadline = self.deadline.filter(|_| is_somebody_untold);
                kills.chain(deadline).chain(self.hard_end).min()
            }
        }
    }

    /// Takes one event and returns what to do, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Spawned(place) => self.nodes[place] = Node::Live,
            Event::Ended(place) => {
                if matches!(self.nodes[place], Node::Told { kill_at } if now < kill_at) {
                    self.graceful_end = Some(now);
                }
                self.nodes[place] = Node::Gone;
            }
            Event::Begin(why) => self.begin_for(now, why, &mut actions),
            Event::Signal { signal, is_typed } => self.signal(now, signal, is_typed, &mut actions),
            Event::Force => {
                self.begin(now, Why::Asked, &mut actions);
                self.force(now, &mut actions);
            }
            Event::OrphansEnded => {
                if matches!(self.stage, Stage::Orphans { .. }) {
                    self.verify(now, &mut actions);
                }
            }
            Event::Verified => {
                if matches!(self.stage, Stage::Verify { .. }) {
                    self.finish(now, &mut actions);
                }
            }
            Event::Woke => {}
        }
        self.advance(now, &mut actions);
        actions
    }

    fn begin_for(&mut self, now: Instant, why: Why, actions: &mut Vec<Action>) {
        // A closing terminal is the hang-up, whether or not the kernel sent the signal as well.
        if why == Why::TerminalClosed && self.counted == 0 {
            self.counted = 1;
            self.counted_at = Some(now);
        }
        self.begin(now, why, actions);
    }

    fn signal(&mut self, now: Instant, signal: Signal, is_typed: bool, actions: &mut Vec<Action>) {
        if self.counted > 0 {
            let is_too_soon =
                self.counted_at.is_some_and(|at| now.saturating_duration_since(at) < SENT_AGAIN_AFTER);
            if signal == Signal::HUP || (!is_typed && is_too_soon) {
                return;
            }
        }
        self.counted = self.counted.saturating_add(1);
        self.counted_at = Some(now);
        match self.counted {
            1 => self.begin(now, Why::Signal(signal), actions),
            2 => self.force(now, actions),
            _ => {
                if self.stage != Stage::Over {
                    self.stage = Stage::Over;
                    actions.push(Action::Leave);
                }
            }
        }
    }

    fn begin(&mut self, now: Instant, why: Why, actions: &mut Vec<Action>) {
        if self.stage != Stage::Quiet {
            return;
        }
        self.stage = Stage::Services;
        self.began_at = Some(now);
        let deadline = later(now, self.budget);
        self.deadline = Some(deadline);
        self.hard_end = Some(deadline + KILL_WITHIN);
        actions.extend([Action::Begin(why), Action::PhaseBegan(Phase::Graceful)]);
    }

    /// Ends all grace periods.
    fn force(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if std::mem::replace(&mut self.is_forced, true) {
            return;
        }
        let sooner = |at: Option<Instant>, by: Instant| Some(at.map_or(by, |at| at.min(by)));
        self.deadline = sooner(self.deadline, now);
        self.hard_end = sooner(self.hard_end, now + FORCE_WITHIN);
        match &mut self.stage {
            Stage::Services => {
                let places: Vec<Place> = self.graph.stop_order().collect();
                for place in places {
                    if matches!(self.nodes[place], Node::Live | Node::Told { .. }) {
                        self.kill(now, place, actions);
                    }
                }
            }
            Stage::Orphans { give_up_at } => {
                *give_up_at = (*give_up_at).min(now + FORCE_WITHIN);
                actions.push(Action::HurryOrphans);
            }
            Stage::Quiet | Stage::Verify { .. } | Stage::Over => {}
        }
    }

    /// Does what has become due or possible.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match self.stage {
            Stage::Services => {
                self.stop_services(now, actions);
                if self.hard_end.is_some_and(|at| now >= at) {
                    self.give_up_services(actions);
                }
                if self.nodes.iter().all(|node| matches!(node, Node::Gone | Node::GivenUp)) {
                    self.end_orphans(now, actions);
                }
            }
            // The driver was to answer by then. It may be late, the shutdown may not.
            Stage::Orphans { give_up_at } if now >= give_up_at => self.verify(now, actions),
            Stage::Verify { deadline } if now >= deadline => self.finish(now, actions),
            _ => {}
        }
    }

    fn stop_services(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let left = self.deadline.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let places: Vec<Place> = self.graph.stop_order().collect();
        for place in places {
            match self.nodes[place] {
                Node::Live if left.is_zero() => self.kill(now, place, actions),
                Node::Live if self.is_alone(place) => {
                    let grace = self.grace[place].min(left);
                    if grace.is_zero() {
                        self.kill(now, place, actions);
                    } else {
                        self.nodes[place] = Node::Told { kill_at: later(now, grace) };
                        actions.push(Action::Stop { place, grace });
                    }
                }
                // Its keeper kills by itself; it only has to be told apart in the report.
                Node::Told { kill_at } if now >= kill_at => {
                    self.nodes[place] = Node::Killing;
                    self.note_force(now, actions);
                }
                _ => {}
            }
        }
    }

    /// Returns whether everything that comes after `place` has ended.
    fn is_alone(&self, place: Place) -> bool {
        self.graph.dependents(place).iter().all(|other| self.nodes[*other] == Node::Gone)
    }

    fn kill(&mut self, now: Instant, place: Place, actions: &mut Vec<Action>) {
        self.nodes[place] = Node::Killing;
        self.note_force(now, actions);
        actions.push(Action::Kill(place));
    }

    fn note_force(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.force_began.is_none() {
            self.force_began = Some(now);
            actions.push(Action::PhaseBegan(Phase::Force));
        }
    }

    fn give_up_services(&mut self, actions: &mut Vec<Action>) {
        for place in self.graph.stop_order() {
            let node = &mut self.nodes[place];
            if !matches!(node, Node::Gone | Node::GivenUp) {
                *node = Node::GivenUp;
                actions.push(Action::GiveUp(place));
            }
        }
    }

    fn end_orphans(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let began = self.began_at.unwrap_or(now);
        // Politeness took until the last that heeded it, or until force began if none did.
        let polite = self.graceful_end.or(self.force_began).unwrap_or(now);
        actions.push(Action::PhaseEnded(Phase::Graceful, polite.saturating_duration_since(began)));
        if self.force_began.is_none() {
            actions.push(Action::PhaseBegan(Phase::Force));
        }
        let forced = self.force_began.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        actions.push(Action::PhaseEnded(Phase::Force, forced));

        let left = self.deadline.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let grace = ORPHAN_GRACE.min(left);
        let give_up_at = self.hard_end.unwrap_or(now).max(now + ORPHANS_MIN);
        self.stage = Stage::Orphans { give_up_at };
        self.stage_began = Some(now);
        actions.extend([Action::PhaseBegan(Phase::Orphans), Action::EndOrphans { grace, give_up_at }]);
    }

    fn verify(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let took = self.stage_took(now);
        let deadline = now + VERIFY_WITHIN;
        self.stage = Stage::Verify { deadline };
        self.stage_began = Some(now);
        actions.extend([
            Action::PhaseEnded(Phase::Orphans, took),
            Action::PhaseBegan(Phase::Containers),
            Action::PhaseEnded(Phase::Containers, Duration::ZERO),
            Action::PhaseBegan(Phase::Verify),
            Action::Verify { deadline },
        ]);
    }

    fn finish(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let took = self.stage_took(now);
        self.stage = Stage::Over;
        actions.extend([Action::PhaseEnded(Phase::Verify, took), Action::Finish]);
    }

    fn stage_took(&self, now: Instant) -> Duration {
        self.stage_began.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }
}

#[cfg(test)]
#[path = "plan_simulation.rs"]
mod simulation;
#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
