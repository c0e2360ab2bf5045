//! The loop: one thread that owns all live state of a run, waits for everything at once, and carries out what the
//! machines decide.
//!
//! It takes no decision that would be worth a test of its own. Nothing in it blocks but the disk under the ledger;
//! what could be slow (output, terminals) is other threads'.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lariat_keeper::client::{Keeper, Received};
use lariat_keeper::wire::{End, Named, Notice, Order};
use lariat_sys::Errno;
use lariat_sys::poll::{self, PollFd, PollFlags};
use lariat_sys::signal::Signal;

use super::Options;
use super::books::Books;
use super::feed::Feed;
use super::handle::Handle;
use super::poller::{Interest, Key, Poller};
use super::requests::Wait;
use super::server::{ClientId, Server};
use super::stack::{self, Stack};
use super::sweeping::{Hunt, Sweep};
use super::unit::{Life, Start, Unit};
use crate::api::Answer;
use crate::event::{self, EventKind};
use crate::logs::pump::{Bell, Flow, Pump};
use crate::service::graph::Place;
use crate::service::machine::{self, Cause, State};
use crate::service::restart::Outcome;
use crate::service::spec::StackSpec;
use crate::shutdown::plan::{self, Phase, Why};
use crate::shutdown::report::{Head, LeftProcess, Report, ServiceCounts, Tally};

/// How long what is in a pipe may take to reach the store once its service is gone.
const LAST_OUTPUT_WITHIN: Duration = Duration::from_secs(1);

/// How long clients have to read the report.
const GOODBYE_WITHIN: Duration = Duration::from_millis(500);

/// Whose descriptor it is that something happened on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// The embedder's signal descriptor.
    Signals,
    /// The terminal, watched for its closing.
    Terminal,
    /// A handle.
    Handle,
    /// The pump's bell.
    Bell,
    /// The door of the run's socket.
    Door,
    /// Somebody connected to it.
    Client(ClientId),
    /// A keeper that says something.
    Keeper(Place),
    /// A keeper that died.
    KeeperDeath(Place),
    /// A keeper that said its last word, and is about to exit.
    Leaving(i32),
    /// A readiness probe.
    Probe(Place),
}

/// All live state of a run.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) spec: StackSpec,
    pub(super) options: Options,
    pub(super) books: Books,
    pub(super) stack: Stack,
    /// What the machines are still to be told.
    pub(super) queue: VecDeque<stack::Event>,
    pub(super) poller: Poller<Owner>,
    pub(super) units: Vec<Unit>,
    /// Keepers that said their last word and are not reaped yet.
    pub(super) leaving: Vec<(Keeper, Key)>,
    pub(super) pump: Pump,
    pub(super) bell: Arc<Bell>,
    pub(super) has_more_output: bool,
    /// Output of lives that are over, on its last way into the store.
    pub(super) flows: Vec<Arc<Flow>>,
    pub(super) server: Server,
    pub(super) waits: Vec<Wait>,
    pub(super) handle: Handle,
    pub(super) feed: Feed,
    pub(super) tally: Tally,
    pub(super) sweep: Option<Sweep>,
    pub(super) hunt: Option<Hunt>,
    /// The last look, until when, and when it is taken again.
    pub(super) verify: Option<(Instant, Instant)>,
    pub(super) terminal_key: Option<Key>,
    pub(super) began: Instant,
    pub(super) stop: Option<(Instant, Why)>,
    pub(super) has_left: bool,
    pub(super) has_finished: bool,
}

impl Driver {
    /// Runs until the stack has stopped, or was left.
    pub(super) fn run(mut self, chosen: &[Place]) -> Report {
        let (_, actions) = self.stack.start(Instant::now(), chosen);
        self.carry_out(Instant::now(), actions);
        self.settle();
        let mut owners = Vec::new();
        while !self.has_left && !self.has_finished {
            let deadline = self.wake_at();
            if let Err(errno) = self.poller.wait(deadline, &mut owners) {
                self.trouble(format!("could not wait for events: {errno}"));
                self.has_left = true;
            }
            for owner in owners.drain(..) {
                self.serve(owner);
                self.settle();
            }
            self.wake();
            self.settle();
            self.keep_books();
        }
        self.finish()
    }

    fn wake_at(&self) -> Option<Instant> {
        let now = self.has_more_output.then(Instant::now);
        let probes = self.units.iter().filter_map(|unit| unit.probe.as_ref()?.wake_at());
        let verify = self.verify.map(|(_, again)| again);
        let sweeps = [
            self.stack.wake_at(),
            self.books.flush_at(),
            self.sweep.as_ref().and_then(Sweep::wake_at),
            self.hunt.as_ref().and_then(Hunt::wake_at),
            verify,
            now,
        ];
        probes.chain(sweeps.into_iter().flatten()).min()
    }

    /// Does what is due by the clock.
    fn wake(&mut self) {
        let now = Instant::now();
        if self.has_more_output {
            self.search_output(now);
        }
        self.wake_probes(now);
        if self.sweep.as_ref().and_then(Sweep::wake_at).is_some_and(|at| now >= at) {
            self.turn_sweep(now);
        }
        if self.hunt.as_ref().and_then(Hunt::wake_at).is_some_and(|at| now >= at) {
            self.turn_hunt(now);
        }
        if self.verify.is_some_and(|(_, again)| now >= again) {
            self.look_again(now);
        }
        if self.stack.wake_at().is_some_and(|at| now >= at) {
            self.queue.push_back(stack::Event::Woke);
        }
    }

    fn serve(&mut self, owner: Owner) {
        let now = Instant::now();
        match owner {
            Owner::Signals => self.take_signals(now),
            Owner::Terminal => {
                if let (Some(key), Some(terminal)) = (self.terminal_key.take(), &self.options.terminal) {
                    self.poller.remove(terminal, key);
                }
                self.shutdown(plan::Event::Begin(Why::TerminalClosed));
            }
            Owner::Handle => {
                for event in self.handle.take() {
                    self.shutdown(event);
                }
            }
            Owner::Bell => {
                self.bell.clear();
                self.search_output(now);
            }
            Owner::Door => self.server.accept(&mut self.poller, Owner::Client),
            Owner::Client(id) => {
                for request in self.server.turn(id, &mut self.poller) {
                    self.request(now, id, request);
                    self.settle();
                }
            }
            Owner::Keeper(place) => self.hear(place),
            Owner::KeeperDeath(place) => self.keeper_died(place),
            Owner::Leaving(pid) => self.reap_leaving(pid),
            Owner::Probe(place) => self.turn_attempt(now, place),
        }
    }

    fn take_signals(&mut self, now: Instant) {
        let mut has_child_changed = false;
        let mut all = Vec::new();
        if let Some(signals) = &self.options.signals {
            while let Ok(Some(received)) = signals.read() {
                match received.signal {
                    Signal::CHLD => has_child_changed = true,
                    signal @ (Signal::INT | Signal::TERM | Signal::HUP | Signal::QUIT) => {
                        all.push(plan::Event::Signal { signal, is_typed: received.is_typed });
                    }
                    _ => {}
                }
            }
        }
        for event in all {
            self.shutdown(event);
        }
        if has_child_changed {
            self.children_changed(now);
        }
    }

    /// Queues an event of the shutdown for the machines.
    pub(super) fn shutdown(&mut self, event: plan::Event) {
        self.queue.push_back(stack::Event::Shutdown(event));
    }

    /// Tells the machines everything that waits for them, and carries out what follows, until nothing does.
    pub(super) fn settle(&mut self) {
        while let Some(event) = self.queue.pop_front() {
            let now = Instant::now();
            let was_forced = self.stack.is_forced();
            let actions = self.stack.step(now, event);
            if self.stack.is_forced() && !was_forced {
                self.publish(EventKind::ShutdownForced);
            }
            self.carry_out(now, actions);
        }
        self.answer_waits();
    }

    pub(super) fn carry_out(&mut self, now: Instant, actions: Vec<stack::Action>) {
        for action in actions {
            match action {
                stack::Action::Service(place, action) => self.act_on_service(now, place, action),
                stack::Action::Shutdown(action) => self.act_on_shutdown(now, action),
                stack::Action::StartupFinished => {
                    let after = now.saturating_duration_since(self.began);
                    self.publish(EventKind::StartupFinished { after });
                }
                stack::Action::StartupFailed(place) => {
                    let service = self.units[place].name.clone();
                    let reason = self.why_failed(place);
                    self.publish(EventKind::StartupFailed { service, reason });
                }
            }
        }
    }

    fn act_on_service(&mut self, now: Instant, place: Place, action: machine::Action) {
        match action {
            machine::Action::Spawn => self.spawn(now, place),
            machine::Action::WatchReadiness => self.watch_readiness(now, place),
            machine::Action::DropReadiness => self.drop_readiness(place),
            machine::Action::OrderStop { grace } => {
                let service = self.units[place].name.clone();
                if let Some(life) = &mut self.units[place].life {
                    life.stop_began.get_or_insert(now);
                    life.order(&Order::Stop { grace });
                }
                self.publish(EventKind::ServiceStopping { service, grace });
                self.note(place);
            }
            machine::Action::OrderKill => {
                let service = self.units[place].name.clone();
                if let Some(life) = &mut self.units[place].life {
                    life.stop_began.get_or_insert(now);
                    life.order(&Order::Kill);
                }
                self.publish(EventKind::ServiceKilled { service });
                self.note(place);
            }
            machine::Action::KillKeeper => {
                if let Some(life) = &self.units[place].life {
                    // A keeper that is gone in this moment needs no killing.
                    let _ = life.keeper.pidfd().signal(Signal::KILL);
                }
            }
            machine::Action::EndOrphans { grace } => self.begin_sweep(now, place, grace),
            machine::Action::CutOrphans { grace } => self.cut_sweep(now, grace),
            machine::Action::Ready => {
                let unit = &self.units[place];
                let began = unit.life.as_ref().map_or(now, |life| life.began);
                let service = unit.name.clone();
                let after = now.saturating_duration_since(began);
                self.publish(EventKind::ServiceReady { service, after });
                self.note(place);
            }
            machine::Action::Ended(end) => self.life_ended(now, place, end),
        }
    }

    fn spawn(&mut self, now: Instant, place: Place) {
        let ports = super::unit::port_variables(&self.spec, &self.units);
        let start = Start {
            spec: &self.spec.services[place],
            options: &self.options,
            run: self.books.run(),
            ports: &ports,
            pump: &self.pump,
            lock: self.books.lock(),
            ends: self.books.ends(),
        };
        let begun = self.units[place].begin(&start);
        let watched = begun.and_then(|begun| {
            let talk = self.poller.add(&begun.keeper, Interest::Read, Owner::Keeper(place));
            let death = self.poller.add(begun.keeper.pidfd(), Interest::Read, Owner::KeeperDeath(place));
            match (talk, death) {
                (Ok(talk), Ok(death)) => Ok((begun, talk, death)),
                // Dropping the keeper is its order to stop; it is a stranger to be reaped by then.
                (Err(errno), _) | (_, Err(errno)) => Err(format!("could not watch the keeper: {errno}")),
            }
        });
        let service = self.units[place].name.clone();
        match watched {
            Ok((begun, talk, death)) => {
                let keeper = begun.keeper.identity().pid;
                self.units[place].trouble = None;
                self.units[place].life = Some(Life {
                    keeper: begun.keeper,
                    talk: Some(talk),
                    death,
                    leader: None,
                    began: now,
                    flow: begun.flow,
                    end: None,
                    has_failed_to_spawn: false,
                    stop_began: None,
                });
                self.update_exceptions();
                self.publish(EventKind::ServiceStarting { service, keeper });
            }
            Err(reason) => {
                self.units[place].trouble = Some(reason.clone());
                self.publish(EventKind::ServiceNotStarted { service, reason });
                self.tell(place, machine::Event::NotSpawned);
            }
        }
        self.note(place);
    }

    /// Takes everything that a keeper has said.
    fn hear(&mut self, place: Place) {
        loop {
            let Some(life) = &mut self.units[place].life else { return };
            match life.keeper.receive() {
                Received::Notice(notice) => self.notice(place, notice),
                Received::Nothing => return,
                Received::Closed => {
                    if let Some(key) = life.talk.take() {
                        self.poller.remove(&life.keeper, key);
                    }
                    return;
                }
            }
            // The last word ends the life: what comes after it is another one's.
            self.settle();
        }
    }

    fn notice(&mut self, place: Place, notice: Notice) {
        let service = self.units[place].name.clone();
        match notice {
            Notice::Started { leader } => {
                let unit = &mut self.units[place];
                unit.leaders.push(leader);
                let port = unit.port;
                if let Some(life) = &mut unit.life {
                    life.leader = Some(leader);
                }
                self.publish(EventKind::ServiceStarted { service, pid: leader.pid, port });
                self.tell(place, machine::Event::Started);
                self.note(place);
            }
            Notice::SpawnFailed { step, errno } => {
                let reason = format!("could not {step}: {}", Errno::from_raw_os_error(errno));
                let unit = &mut self.units[place];
                unit.trouble = Some(reason.clone());
                if let Some(life) = &mut unit.life {
                    life.has_failed_to_spawn = true;
                }
                self.publish(EventKind::ServiceNotStarted { service, reason });
                self.tell(place, machine::Event::SpawnFailed);
            }
            // A leader that is stopped by a debugger or a shell goes on living.
            Notice::LeaderStopped { .. } | Notice::LeaderContinued => {}
            Notice::LeaderExited { exit } => {
                self.publish(EventKind::LeaderExited { service, exit: exit.into() });
                self.tell(place, machine::Event::LeaderExited(exit));
            }
            Notice::Daemonized { members } => {
                self.publish(EventKind::ServiceDaemonized { service, members });
                self.tell(place, machine::Event::Daemonized);
                self.note(place);
            }
            Notice::Stragglers { alive } => self.publish(EventKind::StragglersFound { service, alive }),
            Notice::Straggler { named } => {
                let (pid, name) = (named.identity.pid, name_of(&named));
                self.publish(EventKind::StragglerNamed { service, pid, name });
            }
            Notice::Left { named } => self.member_left(Some(service), &named),
            Notice::Ended(end) => {
                self.units[place].has_left_members = end.left > 0;
                if let Some(life) = &mut self.units[place].life {
                    life.end = Some(end);
                }
                let event = machine::Event::KeeperEnded { exit: end.exit, is_empty: end.left == 0 };
                self.tell(place, event);
            }
        }
    }

    pub(super) fn member_left(&mut self, service: Option<String>, named: &Named) {
        let reason = match named.errno {
            0 => "does not die of KILL".to_owned(),
            errno => format!("could not be signalled: {}", Errno::from_raw_os_error(errno)),
        };
        self.tally.left(LeftProcess {
            service: service.clone(),
            pid: named.identity.pid,
            start: named.identity.start,
            command: name_of(named),
            age: Duration::ZERO,
            parents: Vec::new(),
            reason: reason.clone(),
        });
        let (pid, name) = (named.identity.pid, name_of(named));
        self.publish(EventKind::MemberLeft { service, pid, name, reason });
    }

    fn keeper_died(&mut self, place: Place) {
        // What it said before it died comes first: its last word makes this an exit like any other.
        self.hear(place);
        self.settle();
        let Some(life) = &mut self.units[place].life else { return };
        if !life.keeper.reap() {
            return;
        }
        self.poller.remove(life.keeper.pidfd(), life.death);
        if let Some(key) = life.talk.take() {
            self.poller.remove(&life.keeper, key);
        }
        let has_failed_to_spawn = life.has_failed_to_spawn;
        self.update_exceptions();
        if has_failed_to_spawn {
            self.tell(place, machine::Event::KeeperEnded { exit: None, is_empty: true });
        } else {
            let service = self.units[place].name.clone();
            self.publish(EventKind::KeeperLost { service });
            self.tell(place, machine::Event::KeeperGone);
        }
    }

    pub(super) fn reap_leaving(&mut self, pid: i32) {
        let is_it = |(keeper, _): &(Keeper, Key)| keeper.identity().pid == pid;
        let Some(index) = self.leaving.iter().position(is_it) else { return };
        if self.leaving[index].0.reap() {
            let (keeper, key) = self.leaving.swap_remove(index);
            self.poller.remove(keeper.pidfd(), key);
            self.update_exceptions();
        }
    }

    /// Closes the books on one life.
    fn life_ended(&mut self, now: Instant, place: Place, end: machine::End) {
        let Some(life) = self.units[place].life.take() else {
            return self.publish_end(place, end, &End::default(), Duration::ZERO, 0);
        };
        let counts = life.end.or_else(|| self.units[place].swept.take()).unwrap_or_default();
        let dropped = life.flow.dropped().saturating_add(counts.dropped_bytes);
        self.pump.finish(&life.flow, now + LAST_OUTPUT_WITHIN);
        self.flows.retain(|flow| !flow.is_done());
        self.flows.push(Arc::clone(&life.flow));
        let own_time = life.stop_began.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.let_go(place, life);
        self.publish_end(place, end, &counts, own_time.max(counts.stop_time), dropped);
        self.note(place);
    }

    /// Keeps a keeper that has nothing more to say until it has exited.
    fn let_go(&mut self, place: Place, mut life: Life) {
        if let Some(key) = life.talk.take() {
            self.poller.remove(&life.keeper, key);
        }
        self.poller.remove(life.keeper.pidfd(), life.death);
        let pid = life.keeper.identity().pid;
        if life.keeper.reap() {
            return self.update_exceptions();
        }
        match self.poller.add(life.keeper.pidfd(), Interest::Read, Owner::Leaving(pid)) {
            Ok(key) => self.leaving.push((life.keeper, key)),
            Err(errno) => {
                let name = &self.units[place].name;
                self.trouble(format!("could not wait for the keeper of {name} to exit: {errno}"));
            }
        }
    }

    fn publish_end(&mut self, place: Place, end: machine::End, counts: &End, took: Duration, dropped: u64) {
        let service = self.units[place].name.clone();
        let is_failure = end.cause.outcome() == Outcome::Failure;
        let exit = counts.exit.map(event::Exit::from);
        let cause = self.cause_in_words(place, end.cause);
        let tallied = ServiceCounts {
            cause: cause.clone(),
            is_failure,
            exit: exit.clone(),
            took,
            told: counts.told,
            killed: counts.killed,
            left: counts.left,
            dropped_bytes: dropped,
        };
        if end.cause != Cause::DependencyLost {
            self.tally.service_ended(place, tallied, self.stop.is_some());
        }
        self.publish(EventKind::ServiceEnded(event::ServiceEnded {
            service: service.clone(),
            cause,
            is_failure,
            exit,
            life: end.life,
            stop_time: took,
            told: counts.told,
            killed: counts.killed,
            stragglers: counts.stragglers,
            left: counts.left,
            dropped_bytes: dropped,
        }));
        let machine = self.stack.service(place);
        let restarts = machine.history().in_a_row;
        match machine.state() {
            State::Backoff { until } => {
                let after = until.saturating_duration_since(Instant::now());
                self.publish(EventKind::RestartScheduled { service, after, restarts });
            }
            State::GaveUp => self.publish(EventKind::ServiceGaveUp { service, restarts }),
            _ => {}
        }
    }

    /// Why a service ended, for people.
    pub(super) fn cause_in_words(&self, place: Place, cause: Cause) -> String {
        let trouble = || self.units[place].trouble.clone().unwrap_or_default();
        match cause {
            Cause::Exited(exit) => event::Exit::from(exit).to_string(),
            Cause::Stopped => "stopped".into(),
            Cause::NotSpawned => trouble(),
            Cause::NotReady => format!("not ready in time: {}", trouble()),
            Cause::KeeperLost => "its keeper was killed".into(),
            Cause::DaemonEnded => "its daemon ended".into(),
            Cause::DependencyLost => "something it comes after ended".into(),
        }
    }

    fn why_failed(&self, place: Place) -> String {
        let machine = self.stack.service(place);
        let cause = machine.last_end().map(|end| self.cause_in_words(place, end.cause));
        match (machine.state(), cause) {
            (State::GaveUp, Some(cause)) => format!("{cause}, after {} restarts", machine.history().in_a_row),
            (_, Some(cause)) => cause,
            (_, None) => "it did not start".into(),
        }
    }

    fn act_on_shutdown(&mut self, now: Instant, action: plan::Action) {
        match action {
            plan::Action::Begin(why) => {
                self.stop = Some((now, why));
                let deadline = self.spec.deadline;
                self.publish(EventKind::ShutdownStarted { why: why.describe(), deadline });
            }
            plan::Action::Stop { .. } | plan::Action::Kill(_) => {}
            plan::Action::GiveUp(place) => self.tally.service_given_up(place),
            plan::Action::PhaseBegan(phase) => {
                self.publish(EventKind::PhaseStarted {
                    number: phase.number(),
                    phase: phase.as_str().into(),
                });
            }
            plan::Action::PhaseEnded(phase, took) => {
                if phase == Phase::Containers {
                    self.tally.phase_note(phase, "the stack has no containers");
                }
                let report = self.tally.phase_ended(phase, took).clone();
                self.publish(EventKind::PhaseEnded {
                    number: report.number,
                    phase: report.phase,
                    took,
                    services: report.services,
                    processes: report.processes,
                });
            }
            plan::Action::EndOrphans { grace, give_up_at } => self.begin_hunt(now, grace, give_up_at),
            plan::Action::HurryOrphans => self.hurry_hunt(now),
            plan::Action::Verify { deadline } => self.begin_look(now, deadline),
            plan::Action::Leave => {
                self.publish(EventKind::ShutdownLeft);
                self.has_left = true;
            }
            plan::Action::Finish => self.has_finished = true,
        }
    }

    /// Waits until the output of the last lives is in the store. A stuck disk is waited for no longer than a moment.
    fn await_output(&mut self) {
        let deadline = Instant::now() + LAST_OUTPUT_WITHIN;
        self.bell.set_wanted(true);
        loop {
            self.bell.clear();
            self.flows.retain(|flow| !flow.is_done());
            let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
            if self.flows.is_empty() || !matches!(poll::poll(&mut fds, Some(deadline)), Ok(n) if n > 0) {
                return;
            }
        }
    }

    /// Makes the report, closes the books, and says goodbye to everybody.
    fn finish(mut self) -> Report {
        let now = Instant::now();
        if !self.has_left {
            self.await_output();
        }
        let (began, why) = self.stop.unwrap_or((now, Why::Asked));
        let head = Head {
            run: self.books.run().to_owned(),
            stack: self.spec.name.clone(),
            why: why.describe(),
            has_failed_to_start: self.stack.startup_failure().is_some(),
            took: now.saturating_duration_since(began),
            is_left_early: self.has_left,
            is_ledger_closed: !self.has_left,
        };
        let tally = std::mem::replace(&mut self.tally, Tally::new([]));
        let mut report = tally.finish(head);
        let (is_clean, took) = (report.is_clean(), report.took);
        let left = u32::try_from(report.left.len()).unwrap_or(u32::MAX);
        self.publish(EventKind::RunEnded { is_clean, took, left });
        if !self.has_left {
            report.is_ledger_closed = self.books.close(&report, is_clean) && is_clean;
        }
        self.feed.close();
        self.server.broadcast(&Answer::Report(Box::new(report.clone())), &mut self.poller);
        self.server.finish(Instant::now() + GOODBYE_WITHIN);
        report
    }

    /// Publishes what happened to everybody who listens.
    pub(super) fn publish(&mut self, kind: EventKind) {
        let event = self.feed.publish(kind);
        self.books.append(&event);
        self.server.publish(&event, &mut self.poller);
    }

    /// Says that something of lariat's own did not work.
    pub(super) fn trouble(&mut self, what: String) {
        self.tally.note(what.clone());
        self.publish(EventKind::Trouble { what });
    }

    /// Every process that is a keeper of ours.
    pub(super) fn keeper_pids(&self) -> Vec<i32> {
        let lives = self.units.iter().filter_map(|unit| unit.life.as_ref()).map(|life| &life.keeper);
        let leaving = self.leaving.iter().map(|(keeper, _)| keeper);
        lives.chain(leaving).map(|keeper| keeper.identity().pid).collect()
    }

    /// Watches what the embedder passed in.
    pub(super) fn watch_all(&mut self) -> lariat_sys::Result<()> {
        if let Some(signals) = &self.options.signals {
            self.poller.add(signals, Interest::Read, Owner::Signals)?;
        }
        if let Some(terminal) = &self.options.terminal {
            self.terminal_key = Some(self.poller.add(terminal, Interest::Hangup, Owner::Terminal)?);
        }
        self.poller.add(&self.handle, Interest::Read, Owner::Handle)?;
        self.poller.add(self.bell.as_fd(), Interest::Read, Owner::Bell)?;
        self.poller.add(self.server.listener(), Interest::Read, Owner::Door)?;
        self.bell.set_wanted(false);
        Ok(())
    }
}

/// The kernel's name for a process.
pub(super) fn name_of(named: &Named) -> String {
    let end = named.comm.iter().position(|byte| *byte == 0).unwrap_or(named.comm.len());
    String::from_utf8_lossy(&named.comm[..end]).into_owned()
}
