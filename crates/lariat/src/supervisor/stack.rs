//! Decides for the stack as a whole: who may start, when the start-up has succeeded or failed, when it is over.
//!
//! Pure. It owns the services' machines and the plan of the shutdown and passes between them what each has to know of
//! the others; the driver talks to nobody else.
//!
//! INVARIANT: once the shutdown has begun, no action starts anything.

use std::time::Instant;

use crate::service::graph::{Graph, Place};
use crate::service::machine::{self, Cause, Machine, Policy, State, Wanted};
use crate::service::restart::Outcome;
use crate::service::spec::StackSpec;
use crate::shutdown::plan::{self, Plan, Why};

/// What the stack is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Something about one service.
    Service(Place, machine::Event),
    /// Something about the stop of the stack.
    Shutdown(plan::Event),
    /// The time of [`Stack::wake_at`] has come.
    Woke,
}

/// What the driver does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Something for one service.
    Service(Place, machine::Action),
    /// Something for the stop of the stack. Never [`plan::Action::Stop`] or [`plan::Action::Kill`]: those have become
    /// actions of the services by now.
    Shutdown(plan::Action),
    /// All services that were to start are up and ready, or completed.
    StartupFinished,
    /// This service did not come up. The stack stops.
    StartupFailed(Place),
}

/// How far the start-up is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Startup {
    Going,
    Finished,
    Failed(Place),
}

/// The machines of one stack.
#[derive(Clone, Debug)]
pub struct Stack {
    graph: Graph,
    services: Vec<Machine>,
    plan: Plan,
    startup: Startup,
    chance: u64,
}

impl Stack {
    /// Makes the machines of `spec`, all down. `graph` is its graph; `seed` is any random value.
    #[must_use]
    pub fn new(spec: &StackSpec, graph: Graph, seed: u64) -> Self {
        let policy = |service: &crate::service::spec::ServiceSpec| Policy {
            stop: service.stop,
            restart: service.restart,
            has_ready_check: service.ready.is_some(),
            is_daemon: service.daemon,
        };
        let grace = spec.services.iter().map(|service| service.stop.grace).collect();
        Self {
            services: spec.services.iter().map(|service| Machine::new(policy(service))).collect(),
            plan: Plan::new(graph.clone(), grace, spec.deadline),
            graph,
            startup: Startup::Going,
            chance: seed,
        }
    }

    /// Returns the machine of a service.
    #[must_use]
    pub fn service(&self, place: Place) -> &Machine {
        &self.services[place]
    }

    /// Returns the dependencies.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns whether the stop has begun: nothing starts any more.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.plan.has_begun()
    }

    /// Returns whether everything is to be killed at once.
    #[must_use]
    pub fn is_forced(&self) -> bool {
        self.plan.is_forced()
    }

    /// Returns whether all is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.plan.is_over()
    }

    /// Returns whether all services of the start-up came up.
    #[must_use]
    pub fn has_started_up(&self) -> bool {
        self.startup == Startup::Finished
    }

    /// Returns the service because of which the start-up failed.
    #[must_use]
    pub fn startup_failure(&self) -> Option<Place> {
        match self.startup {
            Startup::Failed(place) => Some(place),
            Startup::Going | Startup::Finished => None,
        }
    }

    /// Returns when to come back with [`Event::Woke`], if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.services.iter().filter_map(Machine::wake_at).chain(self.plan.wake_at()).min()
    }

    /// Asks for the chosen services and all they come after. Refused (false) once the stop has begun.
    pub fn start(&mut self, now: Instant, chosen: &[Place]) -> (bool, Vec<Action>) {
        let mut actions = Vec::new();
        if self.is_stopping() {
            return (false, actions);
        }
        for place in self.graph.closure(chosen) {
            let machine = &self.services[place];
            // What was a task for its dependents and is done stays done, unless it was named itself.
            let is_done = machine.has_completed() && !chosen.contains(&place);
            if !is_done {
                self.tell(now, place, machine::Event::Start, &mut actions);
            }
        }
        self.settle(now, &mut actions);
        (true, actions)
    }

    /// Takes one event and returns what to do, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Service(place, event) => self.tell(now, place, event, &mut actions),
            Event::Shutdown(event) => self.plan_step(now, event, &mut actions),
            Event::Woke => {
                for place in 0..self.services.len() {
                    if self.services[place].wake_at().is_some_and(|at| now >= at) {
                        self.tell(now, place, machine::Event::Woke, &mut actions);
                    }
                }
                if self.plan.wake_at().is_some_and(|at| now >= at) {
                    self.plan_step(now, plan::Event::Woke, &mut actions);
                }
            }
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Tells one machine, and the plan what it has to know of the answer.
    fn tell(&mut self, now: Instant, place: Place, event: machine::Event, actions: &mut Vec<Action>) {
        let chance = self.next_chance();
        let was_live = self.services[place].state().is_live();
        let answers = self.services[place].step(now, event, chance);
        let is_live = self.services[place].state().is_live();
        actions.extend(answers.into_iter().map(|action| Action::Service(place, action)));
        if was_live != is_live {
            let event = if is_live { plan::Event::Spawned(place) } else { plan::Event::Ended(place) };
            self.plan_step(now, event, actions);
        }
    }

    fn plan_step(&mut self, now: Instant, event: plan::Event, actions: &mut Vec<Action>) {
        for action in self.plan.step(now, event) {
            match action {
                plan::Action::Begin(_) => {
                    actions.push(Action::Shutdown(action));
                    for place in 0..self.services.len() {
                        self.tell(now, place, machine::Event::ShutdownBegan, actions);
                    }
                }
                plan::Action::Stop { place, grace } => {
                    self.tell(now, place, machine::Event::Stop { grace }, actions);
                }
                plan::Action::Kill(place) => self.tell(now, place, machine::Event::Kill, actions),
                _ => actions.push(Action::Shutdown(action)),
            }
        }
    }

    /// Draws the conclusions from what has changed, until nothing follows any more.
    fn settle(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        // In start order one pass is enough for what was met; what was lost is passed on down the same way.
        for index in 0..self.graph.len() {
            let place = self.graph.start_order()[index];
            if self.services[place].state() != State::Waiting {
                continue;
            }
            match self.dependencies(place) {
                Some(true) => self.tell(now, place, machine::Event::DependenciesMet, actions),
                Some(false) => {}
                None => self.tell(now, place, machine::Event::DependencyLost, actions),
            }
        }
        self.judge(now, actions);
    }

    /// Whether all conditions hold; `None` if one of them never will.
    fn dependencies(&self, place: Place) -> Option<bool> {
        let mut all_hold = true;
        for (other, condition) in self.graph.dependencies(place) {
            let other = &self.services[*other];
            let holds = other.holds(*condition);
            if !holds && matches!(other.state(), State::Down | State::GaveUp) {
                return None;
            }
            all_hold &= holds;
        }
        Some(all_hold)
    }

    /// Decides whether the start-up is over, and whether the stack is.
    fn judge(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.startup == Startup::Going {
            let order = self.graph.start_order();
            if let Some(place) = order.iter().copied().find(|place| has_failed(&self.services[*place])) {
                self.startup = Startup::Failed(place);
                actions.push(Action::StartupFailed(place));
                self.plan_step(now, plan::Event::Begin(Why::StartupFailed), actions);
                return;
            }
            if self.services.iter().all(is_settled) {
                self.startup = Startup::Finished;
                actions.push(Action::StartupFinished);
            }
        }
        if self.startup == Startup::Finished && self.is_finished() {
            self.plan_step(now, plan::Event::Begin(Why::AllEnded), actions);
        }
    }

    /// Whether every service that is wanted has ended by itself. Where a person stopped one, the stack stays up for
    /// them to start it again.
    fn is_finished(&self) -> bool {
        let is_wanted = |machine: &&Machine| machine.wanted() == Wanted::Up;
        let was_stopped =
            |machine: &Machine| machine.last_end().is_some_and(|end| end.cause == Cause::Stopped);
        let is_anything_left = self.services.iter().any(|machine| {
            let is_over = matches!(machine.state(), State::Down | State::GaveUp);
            !is_over || (machine.wanted() == Wanted::Down && was_stopped(machine))
        });
        !is_anything_left && self.services.iter().any(|machine| is_wanted(&machine))
    }

    /// Moves the generator (splitmix64): enough chance for the wait before a restart.
    fn next_chance(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.chance ^ (self.chance >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    }
}

/// Whether a wanted service ended and stays ended, and that is a failure.
fn has_failed(machine: &Machine) -> bool {
    let is_over = matches!(machine.state(), State::Down | State::GaveUp);
    let ended_badly = machine.last_end().is_some_and(|end| end.cause.outcome() == Outcome::Failure);
    machine.wanted() == Wanted::Up && is_over && (ended_badly || machine.state() == State::GaveUp)
}

/// Whether the start-up has nothing to wait for any more.
fn is_settled(machine: &Machine) -> bool {
    match machine.wanted() {
        Wanted::Down => true,
        Wanted::Up => machine.is_ready() || machine.has_completed(),
    }
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
