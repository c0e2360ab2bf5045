//! The loop: one thread that owns all live state of a run, waits for everything at once, and carries out what the
//! machines decide.
//!
//! It takes no decision that would be worth a test of its own. Nothing in it blocks: what could be slow (the disk under
//! ledger and store, terminals) is other threads'.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lariat_keeper::awake::Awake;
use lariat_keeper::client::Keeper;
use lariat_keeper::contain::limits::Seat;
use lariat_sys::poll::{self, PollFd, PollFlags};
use lariat_sys::signal::Signal;

use super::Options;
use super::books::Books;
use super::feed::Feed;
use super::handle::Handle;
use super::lives::LAST_OUTPUT_WITHIN;
use super::poller::{Interest, Key, Poller};
use super::requests::Wait;
use super::server::{ClientId, Server};
use super::stack::{self, Stack};
use super::sweeping::{Hunt, Sweep};
use super::unit::Unit;
use crate::api::Answer;
use crate::event::EventKind;
use crate::ledger::recover::Living;
use crate::logs::pump::{Bell, Flow, Pump};
use crate::service::graph::Place;
use crate::service::spec::StackSpec;
use crate::shutdown::plan::{self, Phase, Why};
use crate::shutdown::report::{Head, Report, Tally};

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
    /// Keepers that said their last word and are not reaped yet; no longer watched are those that a debugger keeps.
    pub(super) leaving: Vec<(Keeper, Option<Key>)>,
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
    /// The processes could not be read at the last look.
    pub(super) is_blind: bool,
    /// What a look does not suspect.
    pub(super) living: Living,
    pub(super) terminal_key: Option<Key>,
    pub(super) began: Instant,
    pub(super) stop: Option<(Instant, Why)>,
    pub(super) has_left: bool,
    pub(super) has_finished: bool,
    pub(super) awake: Awake,
    /// Where limits have an effect; left when everybody is gone.
    pub(super) seat: Option<Seat>,
    /// Why they have none, although services have limits.
    pub(super) no_limits: Option<String>,
}

impl Driver {
    /// Runs until the stack has stopped, or was left.
    pub(super) fn run(mut self, chosen: &[Place]) -> Report {
        if let Some(what) = self.no_limits.take() {
            self.trouble(what);
        }
        let (_, actions) = self.stack.start(Instant::now(), chosen);
        self.carry_out(Instant::now(), actions);
        self.settle();
        let mut owners = Vec::new();
        while !self.has_left && !self.has_finished {
            let must_stay = self.stack.is_stopping() || self.sweep.is_some();
            let awake = must_stay.then(|| self.awake.still());
            let deadline = [self.wake_at(), awake].into_iter().flatten().min();
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
        if self.sweep.is_some() || self.hunt.is_some() {
            self.notice_lost_keepers();
        }
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
            Owner::Leaving(pid) => self.has_left(pid),
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
        if self.stack.is_stopping() {
            // Before anybody hears of it, and may stop us.
            self.awake.still();
        }
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
            is_ledger_closed: !self.has_left && !self.is_blind,
            is_blind: self.is_blind,
        };
        let tally = std::mem::replace(&mut self.tally, Tally::new([]));
        let mut report = tally.finish(head);
        let (is_clean, took) = (report.is_clean(), report.took);
        let left = u32::try_from(report.left.len()).unwrap_or(u32::MAX);
        self.publish(EventKind::RunEnded { is_clean, took, left, is_blind: report.is_blind });
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

    /// Those of them that were alive when we last looked.
    pub(super) fn unlost_keepers(&self) -> Vec<i32> {
        let lives = self.units.iter().filter_map(|unit| unit.life.as_ref()).filter(|life| !life.is_lost);
        lives.map(|life| life.keeper.identity().pid).collect()
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
