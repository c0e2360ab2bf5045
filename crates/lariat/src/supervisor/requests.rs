//! Answers what is asked over the run's own socket.

use std::time::Instant;

use lariat_sys::procfs::{self, Stat};
use lariat_sys::tree;

use super::driver::Driver;
use super::server::{ClientId, refused};
use super::stack;
use crate::api::{Answer, ProcessStatus, Refusal, Request, RunStatus, ServiceStatus};
use crate::process::command_of;
use crate::service::graph::Place;
use crate::service::machine::{self, Cause, Machine, State, Wanted};
use crate::service::restart::Outcome;
use crate::service::spec::Condition;
use crate::shutdown::plan::{self, Why};

/// Somebody who is answered when services have come to where they were sent.
#[derive(Debug)]
pub(super) struct Wait {
    client: ClientId,
    places: Vec<Place>,
    wanted: Wanted,
}

impl Driver {
    pub(super) fn request(&mut self, now: Instant, client: ClientId, request: Request) {
        match request {
            Request::Ps { processes } => {
                let status = self.status(now, processes);
                self.server.send(client, &Answer::Status(status), &mut self.poller);
            }
            Request::Events => {
                self.server.send(client, &Answer::Accepted, &mut self.poller);
                self.server.subscribe(client);
            }
            Request::Down { force } => {
                self.server.send(client, &Answer::Accepted, &mut self.poller);
                self.server.subscribe(client);
                self.shutdown(if force { plan::Event::Force } else { plan::Event::Begin(Why::Asked) });
            }
            Request::Stop { services } => self.move_services(now, client, &services, Move::Stop),
            Request::Start { services } => self.move_services(now, client, &services, Move::Start),
            Request::Restart { services } => self.move_services(now, client, &services, Move::Restart),
        }
    }

    fn move_services(&mut self, now: Instant, client: ClientId, names: &[String], to: Move) {
        let places = match self.places(names) {
            Ok(places) => places,
            Err(message) => {
                let answer = refused(Refusal::UnknownService, message);
                return self.server.send(client, &answer, &mut self.poller);
            }
        };
        if self.stack.is_stopping() && to != Move::Stop {
            let answer = shutting_down();
            return self.server.send(client, &answer, &mut self.poller);
        }
        match to {
            Move::Stop => {
                for place in &places {
                    let grace = self.spec.services[*place].stop.grace;
                    self.tell(*place, machine::Event::Stop { grace });
                }
            }
            Move::Start | Move::Restart => {
                if let Err(message) = self.claim_ports(&self.stack.graph().closure(&places)) {
                    let answer = refused(Refusal::PortInUse, message);
                    return self.server.send(client, &answer, &mut self.poller);
                }
                if to == Move::Restart {
                    for place in &places {
                        self.queue.push_back(stack::Event::Service(*place, machine::Event::Restart));
                    }
                    self.settle();
                }
                let (_, actions) = self.stack.start(now, &places);
                self.carry_out(now, actions);
            }
        }
        let wanted = if to == Move::Stop { Wanted::Down } else { Wanted::Up };
        self.waits.push(Wait { client, places, wanted });
    }

    /// Finds the services of these names. No name at all is nobody.
    fn places(&self, names: &[String]) -> Result<Vec<Place>, String> {
        names
            .iter()
            .map(|name| {
                self.units.iter().position(|unit| unit.name == *name).ok_or_else(|| {
                    let known: Vec<&str> = self.units.iter().map(|unit| unit.name.as_str()).collect();
                    let known = known.join(", ");
                    format!("no service of this stack is named `{name}`; there are: {known}")
                })
            })
            .collect()
    }

    /// Answers everybody whose services have come to where they were sent, or cannot.
    pub(super) fn answer_waits(&mut self) {
        if self.waits.is_empty() {
            return;
        }
        let now = Instant::now();
        // One who went away is owed nothing, and what waits is bounded by who is there.
        self.waits.retain(|wait| self.server.has(wait.client));
        for wait in std::mem::take(&mut self.waits) {
            match self.outcome(now, &wait) {
                Some(answer) => self.server.send(wait.client, &answer, &mut self.poller),
                None => self.waits.push(wait),
            }
        }
    }

    fn outcome(&self, now: Instant, wait: &Wait) -> Option<Answer> {
        let mut is_done = true;
        for place in &wait.places {
            let machine = self.stack.service(*place);
            let name = &self.units[*place].name;
            let is_over = matches!(machine.state(), State::Down | State::GaveUp);
            if wait.wanted == Wanted::Down {
                if machine.wanted() == Wanted::Up {
                    return Some(refused(Refusal::ServiceFailed, format!("`{name}` was started again")));
                }
                is_done &= is_over;
                continue;
            }
            if self.stack.is_stopping() {
                return Some(shutting_down());
            }
            if machine.wanted() == Wanted::Down {
                return Some(refused(Refusal::ServiceFailed, format!("`{name}` was stopped")));
            }
            if is_over && !machine.has_completed() {
                let cause = machine.last_end().map(|end| self.cause_in_words(*place, end.cause));
                let message = format!("`{name}` did not come up: {}", cause.unwrap_or_default());
                return Some(refused(Refusal::ServiceFailed, message));
            }
            is_done &= machine.is_ready() || machine.has_completed();
        }
        if !is_done {
            return None;
        }
        if let Some(place) = wait.places.iter().find(|place| self.units[**place].has_left_members) {
            let name = &self.units[*place].name;
            return Some(refused(Refusal::NotEnded, format!("something of `{name}` could not be ended")));
        }
        let services = wait.places.iter().map(|place| self.service_status(now, *place, false)).collect();
        Some(Answer::Done { services })
    }

    fn status(&self, now: Instant, with_processes: bool) -> RunStatus {
        let state = match (self.stack.is_stopping(), self.stack.has_started_up()) {
            (true, _) => "stopping",
            (false, false) => "starting",
            (false, true) => "up",
        };
        let places = 0..self.units.len();
        RunStatus {
            run: self.books.run().to_owned(),
            stack: self.spec.name.clone(),
            root: self.spec.root.display().to_string(),
            pid: lariat_sys::process::pid(),
            state: state.into(),
            age: now.saturating_duration_since(self.began),
            services: places.map(|place| self.service_status(now, place, with_processes)).collect(),
        }
    }

    fn service_status(&self, now: Instant, place: Place, with_processes: bool) -> ServiceStatus {
        let (unit, machine) = (&self.units[place], self.stack.service(place));
        let life = unit.life.as_ref();
        let leader = life.and_then(|life| life.leader);
        let members = life.map(|life| members(life.keeper.identity().pid)).unwrap_or_default();
        let status: Vec<ProcessStatus> = members.iter().map(process_status).collect();
        let end = machine.last_end();
        ServiceStatus {
            service: unit.name.clone(),
            state: state_in_words(machine).into(),
            wanted: if machine.wanted() == Wanted::Up { "up".into() } else { "down".into() },
            is_ready: machine.is_ready(),
            pid: leader.filter(lariat_sys::identity::Identity::is_alive).map(|leader| leader.pid),
            keeper: life.map(|life| life.keeper.identity().pid),
            port: unit.port,
            command: self.spec.services[place].command.display(),
            age: life.map(|life| now.saturating_duration_since(life.began).as_secs_f64()),
            restarts: machine.history().total,
            last_end: end.map(|end| self.cause_in_words(place, end.cause)),
            has_failed: end.is_some_and(|end| end.cause.outcome() == Outcome::Failure),
            needed_by: self.needed_by(place),
            members: u32::try_from(members.len()).unwrap_or(u32::MAX),
            memory_kib: status.iter().map(|process| process.memory_kib).sum(),
            // An empty sum of floats is -0.0.
            cpu_seconds: status.iter().map(|process| process.cpu_seconds).sum::<f64>() + 0.0,
            processes: if with_processes { status } else { Vec::new() },
        }
    }

    /// Returns who comes after a service and is not over.
    fn needed_by(&self, place: Place) -> Vec<String> {
        let graph = self.stack.graph();
        let needs = |other: Place| {
            let mut after = graph.dependencies(other).iter();
            after.any(|(on, condition)| *on == place && *condition != Condition::Completed)
        };
        let is_up = |other: Place| {
            let machine = self.stack.service(other);
            machine.wanted() == Wanted::Up && !matches!(machine.state(), State::Down | State::GaveUp)
        };
        let others = graph.dependents(place).iter().filter(|other| needs(**other) && is_up(**other));
        others.map(|other| self.units[*other].name.clone()).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Move {
    Start,
    Stop,
    Restart,
}

/// One word for people and programs.
fn state_in_words(machine: &Machine) -> &'static str {
    let cause = machine.last_end().map(|end| end.cause);
    match machine.state() {
        State::Waiting => "waiting",
        State::Up if machine.is_ready() => "ready",
        State::Starting | State::Up => "starting",
        State::Closing | State::Stopping | State::Sweeping => "stopping",
        State::Backoff { .. } => "backoff",
        State::GaveUp => "gave-up",
        State::Down if machine.has_completed() => "completed",
        State::Down => match cause {
            None => "down",
            Some(Cause::Stopped) => "stopped",
            Some(_) => "failed",
        },
    }
}

fn shutting_down() -> Answer {
    refused(Refusal::ShuttingDown, "the stack is shutting down: nothing is started any more".into())
}

/// Everything alive below a keeper, breadth first.
fn members(keeper: i32) -> Vec<Stat> {
    let mut all = Vec::new();
    // A walk that failed half-way still found somebody, and a table for people is no proof of anything.
    let _ = tree::walk(keeper, &[], &mut all);
    all.retain(Stat::is_alive);
    all
}

fn process_status(stat: &Stat) -> ProcessStatus {
    let ticks = stat.utime.saturating_add(stat.stime);
    ProcessStatus {
        pid: stat.pid,
        ppid: stat.ppid,
        state: stat.state.letter(),
        command: command_of(stat.pid, &stat.comm.to_string()),
        memory_kib: stat.rss_pages.saturating_mul(page_kib()),
        cpu_seconds: ticks as f64 / procfs::ticks_per_second() as f64,
    }
}

/// The size of a page of memory in KiB.
fn page_kib() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096) / 1024
}
