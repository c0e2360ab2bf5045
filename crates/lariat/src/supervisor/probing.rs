//! Carries out what the probe machines decide, for the services of one loop.

use std::fs::File;
use std::time::{Duration, Instant};

use super::driver::{Driver, Owner};
use super::poller::{Interest, Key};
use super::readiness::{Attempt, Search, Seen};
use super::stack;
use crate::event::EventKind;
use crate::service::graph::Place;
use crate::service::machine;
use crate::service::probe::{ProbeAction, ProbeEvent, ProbeMachine};
use crate::service::spec::ReadyCheck;

/// The wait for one start of a service to become ready.
#[derive(Debug)]
pub(super) struct Probe {
    machine: ProbeMachine,
    began: Instant,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// The attempt that is being made, and its registration.
    Network(Option<(Attempt, Key)>),
    Output(Search),
}

impl Probe {
    /// Returns when it wants to be woken.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.machine.wake_at()
    }

    /// Returns whether it waits for output.
    pub(super) fn listens(&self) -> bool {
        matches!(self.way, Way::Output(_))
    }
}

impl Driver {
    /// Begins to look whether a service that has started is ready.
    pub(super) fn watch_readiness(&mut self, now: Instant, place: Place) {
        let Some(ready) = self.spec.services[place].ready.clone() else { return };
        let unit = &mut self.units[place];
        let Some(life) = &unit.life else { return };
        let probe = match &ready.check {
            ReadyCheck::Log(pattern) => match File::open(unit.store.files().log()) {
                Ok(store) => {
                    let from = life.flow.end().saturating_sub(life.flow.moved());
                    let search = Search::begin(store, pattern.clone(), from);
                    Probe {
                        machine: ProbeMachine::listening(&ready, now),
                        began: now,
                        way: Way::Output(search),
                    }
                }
                Err(error) => {
                    // Readiness can never be seen then. To wait for it until the timeout would only hide why.
                    let reason = format!("could not read its output: {error}");
                    return self.never_ready(place, Duration::ZERO, reason);
                }
            },
            ReadyCheck::Tcp(_) | ReadyCheck::Http { .. } => {
                Probe { machine: ProbeMachine::attempting(&ready, now), began: now, way: Way::Network(None) }
            }
        };
        unit.trouble = None;
        unit.probe = Some(probe);
        self.listen_if_wanted();
        self.probe(now, place, ProbeEvent::Woke);
        self.search_output(now);
    }

    /// Ends the look.
    pub(super) fn drop_readiness(&mut self, place: Place) {
        if let Some(Probe { way: Way::Network(Some((attempt, key))), .. }) = self.units[place].probe.take() {
            self.poller.remove(&attempt, key);
        }
        self.listen_if_wanted();
    }

    /// Wakes every probe that is due.
    pub(super) fn wake_probes(&mut self, now: Instant) {
        for place in 0..self.units.len() {
            let due = self.units[place].probe.as_ref().and_then(Probe::wake_at);
            if due.is_some_and(|at| now >= at) {
                self.probe(now, place, ProbeEvent::Woke);
            }
        }
    }

    /// Goes on with an attempt whose descriptor is ready.
    pub(super) fn turn_attempt(&mut self, now: Instant, place: Place) {
        let Some(Probe { way: Way::Network(running), .. }) = &mut self.units[place].probe else { return };
        let Some((mut attempt, key)) = running.take() else { return };
        // The turn may go on to another address and close this descriptor.
        self.poller.remove(&attempt, key);
        let seen = attempt.turn();
        self.attempt_seen(now, place, attempt, seen);
    }

    fn attempt_seen(&mut self, now: Instant, place: Place, attempt: Attempt, seen: Seen) {
        let interest = match seen {
            Seen::Passed => return self.probe(now, place, ProbeEvent::Passed),
            Seen::Failed(reason) => return self.attempt_failed(now, place, reason),
            Seen::WantsRead => Interest::Read,
            Seen::WantsWrite => Interest::Write,
        };
        match self.poller.add(&attempt, interest, Owner::Probe(place)) {
            Ok(key) => {
                if let Some(probe) = &mut self.units[place].probe {
                    probe.way = Way::Network(Some((attempt, key)));
                }
            }
            Err(errno) => self.attempt_failed(now, place, format!("could not wait: {errno}")),
        }
    }

    fn attempt_failed(&mut self, now: Instant, place: Place, reason: String) {
        self.units[place].trouble = Some(reason);
        self.probe(now, place, ProbeEvent::Failed);
    }

    /// Looks at the output of every service that is waited for by a pattern. Asks to be called again at once where
    /// there is more than one look takes.
    pub(super) fn search_output(&mut self, now: Instant) {
        self.has_more_output = false;
        for place in 0..self.units.len() {
            let Some(Probe { way: Way::Output(search), .. }) = &mut self.units[place].probe else { continue };
            match search.turn() {
                Ok(Some(true)) => self.probe(now, place, ProbeEvent::Passed),
                Ok(Some(false)) => {}
                Ok(None) => self.has_more_output = true,
                Err(error) => {
                    self.units[place].trouble = Some(format!("could not read the output: {error}"));
                }
            }
        }
    }

    /// The bell of the pump is rung only for those who wait for output.
    fn listen_if_wanted(&self) {
        let is_wanted = self.units.iter().any(|unit| unit.probe.as_ref().is_some_and(Probe::listens));
        self.bell.set_wanted(is_wanted);
    }

    fn probe(&mut self, now: Instant, place: Place, event: ProbeEvent) {
        let Some(probe) = &mut self.units[place].probe else { return };
        let began = probe.began;
        for action in probe.machine.step(now, event) {
            match action {
                ProbeAction::Attempt { .. } => self.attempt(now, place),
                ProbeAction::Abandon => {
                    let unit = &mut self.units[place];
                    unit.trouble = Some("no answer in time".into());
                    if let Some(Probe { way: Way::Network(running), .. }) = &mut unit.probe
                        && let Some((attempt, key)) = running.take()
                    {
                        self.poller.remove(&attempt, key);
                    }
                }
                ProbeAction::Ready => {
                    self.units[place].trouble = None;
                    self.tell(place, machine::Event::ReadySeen);
                }
                ProbeAction::TimedOut => {
                    let listens = self.units[place].probe.as_ref().is_some_and(Probe::listens);
                    let none = if listens { "no line of its output matched" } else { "no attempt was made" };
                    let reason = self.units[place].trouble.take().unwrap_or_else(|| none.into());
                    self.never_ready(place, now.saturating_duration_since(began), reason);
                }
            }
        }
    }

    fn never_ready(&mut self, place: Place, after: Duration, reason: String) {
        let unit = &mut self.units[place];
        unit.trouble = Some(reason.clone());
        let service = unit.name.clone();
        self.publish(EventKind::ServiceNotReady { service, after, reason });
        self.tell(place, machine::Event::ReadyTimedOut);
    }

    fn attempt(&mut self, now: Instant, place: Place) {
        let Some(ready) = &self.spec.services[place].ready else { return };
        match Attempt::begin(&ready.check, self.units[place].port) {
            Ok(mut attempt) => {
                let seen = attempt.turn();
                self.attempt_seen(now, place, attempt, seen);
            }
            Err(reason) => self.attempt_failed(now, place, reason),
        }
    }

    /// Queues an event of a service for the machines.
    pub(super) fn tell(&mut self, place: Place, event: machine::Event) {
        self.queue.push_back(stack::Event::Service(place, event));
    }
}
