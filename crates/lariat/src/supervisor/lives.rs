//! What happens to the services of one loop: their keepers are started, heard, and buried.
//!
//! Carries out what the services' machines decide, and tells them what keepers say. An end is published only when its
//! machine says that it is one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lariat_keeper::client::{Keeper, Received};
use lariat_keeper::contain::limits::{self, Seat};
use lariat_keeper::wire::{End, Named, Notice, Order};
use lariat_sys::Errno;
use lariat_sys::signal::Signal;
use lariat_sys::spawn::SpawnStep;

use super::driver::{Driver, Owner};
use super::poller::{Interest, Key};
use super::unit::{self, Life, Start};
use crate::event::{self, EventKind};
use crate::service::graph::Place;
use crate::service::machine::{self, Cause, State};
use crate::service::restart::Outcome;
use crate::service::spec::Isolation;
use crate::shutdown::report::{LeftProcess, ServiceCounts};

/// How long what is in a pipe may take to reach the store once its service is gone.
pub(super) const LAST_OUTPUT_WITHIN: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) fn act_on_service(&mut self, now: Instant, place: Place, action: machine::Action) {
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
                let unit = &mut self.units[place];
                if let Some(life) = &unit.life {
                    // A keeper that is gone in this moment needs no killing.
                    let _ = life.keeper.pidfd().signal(Signal::KILL);
                    if life.leader.is_none() {
                        let within = machine::START_WITHIN.as_secs();
                        unit.trouble = Some(format!("its keeper did not start it within {within} s"));
                    }
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
        let ports = unit::port_variables(&self.spec, &self.units);
        let start = Start {
            spec: &self.spec.services[place],
            options: &self.options,
            controllers: self.seat.as_ref().map(Seat::controllers).unwrap_or_default(),
            run: self.books.run(),
            supervisor: self.books.record().supervisor.into(),
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
                    is_lost: false,
                    leader: None,
                    began: now,
                    flow: begun.flow,
                    output: begun.output,
                    end: None,
                    has_failed_to_spawn: false,
                    stop_began: None,
                    cgroup: begun.cgroup,
                });
                if let Some(reason) = begun.no_cgroup {
                    self.trouble(format!("{service} is contained by descent alone: {reason}"));
                }
                if let Some(reason) = begun.no_limits {
                    self.trouble(format!("the limits of {service} are not all applied: {reason}"));
                }
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
    pub(super) fn hear(&mut self, place: Place) {
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
                let output = unit.life.as_ref().and_then(|life| life.output);
                unit.leaders.push((leader, output));
                let port = unit.port;
                if let Some(life) = &mut unit.life {
                    life.leader = Some(leader);
                }
                self.publish(EventKind::ServiceStarted { service, pid: leader.pid, port });
                self.tell(place, machine::Event::Started);
                self.note(place);
            }
            Notice::SpawnFailed { step, errno } => {
                let reason = self.why_not_spawned(place, step, errno);
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
                let (pid, name) = (named.identity.pid, named.comm.to_string());
                self.publish(EventKind::StragglerNamed { service, pid, name });
            }
            Notice::Left { named } => self.member_left(Some(service), &named),
            Notice::ForksRefused => {
                let what = limits::forks_refused(&self.spec.services[place].limits);
                self.publish(EventKind::LimitReached { what: format!("{service}: {what}") });
            }
            Notice::Unlimited => {
                self.trouble(format!(
                    "the limits of {service} are not applied: it could not enter its cgroup"
                ));
            }
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

    /// Says why a service could not be spawned, by the name of what was to be found or executed.
    fn why_not_spawned(&self, place: Place, step: SpawnStep, errno: i32) -> String {
        let spec = &self.spec.services[place];
        let program = spec.command.argv().first().map(|word| word.to_string_lossy().into_owned());
        match (step, Errno::from_raw_os_error(errno)) {
            (SpawnStep::Exec, Errno::NOENT | Errno::NOTDIR) => {
                format!("`{}`: command not found", program.unwrap_or_default())
            }
            (SpawnStep::Exec, errno) => {
                format!("could not execute `{}`: {}", program.unwrap_or_default(), words(errno))
            }
            (SpawnStep::Directory, errno) => {
                format!("could not enter the directory `{}`: {}", spec.dir.display(), words(errno))
            }
            (step, errno) => format!("could not {step}: {}", words(errno)),
        }
    }

    pub(super) fn member_left(&mut self, service: Option<String>, named: &Named) {
        let reason = why_left(named);
        self.tally.left(LeftProcess {
            service: service.clone(),
            pid: named.identity.pid,
            start: named.identity.start,
            inode: named.identity.inode(),
            command: named.comm.to_string(),
            age: Duration::ZERO,
            parents: Vec::new(),
            reason: reason.clone(),
        });
        let (pid, name) = (named.identity.pid, named.comm.to_string());
        self.publish(EventKind::MemberLeft { service, pid, name, reason });
    }

    pub(super) fn keeper_died(&mut self, place: Place) {
        // What it said before it died comes first: its last word makes this an exit like any other.
        self.hear(place);
        self.settle();
        let Some(life) = self.units[place].life.as_mut().filter(|life| !life.is_lost) else { return };
        // What was reported may be the end of the life before this one, and this keeper well.
        // HAZARD(traced-keeper): a dead one whose zombie a debugger has is reaped when that one lets go. Were it waited for,
        // and the debugger a member, nobody would end that one.
        if !life.keeper.reap() && !matches!(life.keeper.pidfd().has_exited(), Ok(true)) {
            return;
        }
        life.is_lost = true;
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
            let is_isolated = self.is_isolated(place);
            self.publish(EventKind::KeeperLost { service, is_isolated });
            self.tell(place, machine::Event::KeeperGone);
        }
    }

    /// Takes notice of the keepers that have died since, and says whether there were any. To be called before any child is
    /// reaped: the one who came from a keeper and is dead as well may be its leader, who must be there to be known by. Not
    /// to be called while actions are carried out: what follows from it would overtake them.
    pub(super) fn notice_lost_keepers(&mut self) -> bool {
        let is_lost = |life: &Life| !life.is_lost && !matches!(life.keeper.pidfd().has_exited(), Ok(false));
        let mut has_lost_any = false;
        for place in 0..self.units.len() {
            if self.units[place].life.as_ref().is_some_and(is_lost) {
                has_lost_any = true;
                self.keeper_died(place);
                self.settle();
            }
        }
        has_lost_any
    }

    /// A keeper that had nothing more to say has exited.
    pub(super) fn has_left(&mut self, pid: i32) {
        self.reap_leaving();
        // HAZARD(traced-keeper): a debugger has its zombie. It is not watched any more, for it would be reported for ever;
        // the next change of a child, or the last look, tries again.
        let held = self.leaving.iter_mut().find(|(keeper, _)| keeper.identity().pid == pid);
        if let Some((keeper, key)) = held
            && let Some(key) = key.take()
        {
            self.poller.remove(keeper.pidfd(), key);
        }
    }

    /// Reaps those keepers that have exited.
    pub(super) fn reap_leaving(&mut self) {
        let (gone, left) =
            std::mem::take(&mut self.leaving).into_iter().partition(|(keeper, _)| keeper.reap());
        self.leaving = left;
        let gone: Vec<(Keeper, Option<Key>)> = gone;
        for (keeper, key) in &gone {
            key.iter().for_each(|key| self.poller.remove(keeper.pidfd(), *key));
        }
        if !gone.is_empty() {
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
            Ok(key) => {
                self.leaving.push((life.keeper, Some(key)));
                self.update_exceptions();
            }
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
        let cause = self.cause_of(place, end.cause, counts);
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

    /// Why a life ended: by the kernel for want of memory, or as its machine says.
    fn cause_of(&self, place: Place, cause: Cause, counts: &End) -> String {
        let may_be_killed = match cause {
            Cause::Exited(exit) => limits::is_by_kill(Some(exit)),
            // Its leader is gone by design; whoever was killed was the service.
            Cause::DaemonEnded => true,
            _ => false,
        };
        match counts.out_of_memory.filter(|_| may_be_killed) {
            Some(found) => found.in_words(&self.spec.services[place].limits),
            None => self.cause_in_words(place, cause),
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
            Cause::KeeperLost if self.is_isolated(place) => {
                "its keeper was killed, and the kernel ended everything in its pid namespace".into()
            }
            Cause::KeeperLost => "its keeper was killed".into(),
            Cause::DaemonEnded => "its daemon ended".into(),
            Cause::DependencyLost => "something it comes after ended".into(),
        }
    }

    fn is_isolated(&self, place: Place) -> bool {
        self.spec.services[place].isolation == Isolation::Pid
    }

    pub(super) fn why_failed(&self, place: Place) -> String {
        let machine = self.stack.service(place);
        let cause = machine.last_end().map(|end| self.cause_in_words(place, end.cause));
        match (machine.state(), cause) {
            (State::GaveUp, Some(cause)) => format!("{cause}, after {} restarts", machine.history().in_a_row),
            (_, Some(cause)) => cause,
            (_, None) => "it did not start".into(),
        }
    }
}

/// Says why somebody could not be ended.
pub(super) fn why_left(named: &Named) -> String {
    match named.errno {
        0 => "does not die of KILL".to_owned(),
        errno => format!("could not be signalled: {}", Errno::from_raw_os_error(errno)),
    }
}

/// The kernel's reason as people know it, without its number.
fn words(errno: Errno) -> String {
    let text = errno.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
