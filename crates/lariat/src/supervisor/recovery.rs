//! What became of the last run of a project: alive, being finished by its keepers, or crashed with something left.
//!
//! A lock that nobody holds means that no lariat process of the run is alive; an open ledger without one means that the
//! run did not end by itself. What keepers did after their supervisor's death they wrote down; what is left is found by
//! [`crate::ledger::recover`]. Only what is certainly the run's is ended here, and only when the caller says so.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_keeper::ending::{Ending, was_told_by_death};
use lariat_keeper::stop::StopPlan;
use lariat_keeper::wire::{End, Named};
use lariat_sys::identity::Identity;
use lariat_sys::signal::Signal;

use super::books::summary;
use super::lives::why_left;
use crate::event::Exit;
use crate::ledger::index::RunIndex;
use crate::ledger::journal::read_ends;
use crate::ledger::lock::{self, LockWait, RunLock};
use crate::ledger::record::{EndRecord, ExitRecord, RecordedState, RunId, RunRecord};
use crate::ledger::recover::{Clues, Findings, Reach};
use crate::ledger::store::{self, Loaded};
use crate::ledger::{LedgerError, StateDir};
use crate::shutdown::found::FoundSet;
use crate::shutdown::plan::Phase;
use crate::shutdown::report::{Head, Outcome, Report, ServiceCounts, Tally};
use crate::shutdown::verify;

/// How long a lock that somebody only looks at is waited for.
const LOCK_WITHIN: Duration = Duration::from_millis(250);
/// The longest pause between two looks at somebody who is being ended.
const TURN_EVERY: Duration = Duration::from_millis(20);

/// Whether a state directory is made where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It is made.
    Create,
    /// It is not.
    Open,
}

/// What became of the last run.
#[derive(Debug)]
pub enum Past {
    /// There is no state directory.
    Absent,
    /// Nothing is left of any run. The lock is ours now.
    Nothing {
        /// The state directory.
        state: StateDir,
        /// The lock.
        lock: RunLock,
        /// What a person should read: a ledger that was damaged, for instance.
        notes: Vec<String>,
    },
    /// A run is alive.
    Live(LiveRun),
    /// Its supervisor is dead, and its keepers are ending the services.
    Finishing(Finishing),
    /// It did not end by itself. The lock is ours now.
    Crashed(Box<Crashed>),
}

/// A run that is alive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LiveRun {
    /// Its id; absent while it is just beginning.
    pub run: Option<RunId>,
    /// Its supervisor.
    pub supervisor: Option<Identity>,
    /// The project's root.
    pub root: PathBuf,
    /// Its socket.
    pub socket: Option<PathBuf>,
}

impl fmt::Display for LiveRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = self.root.display();
        match (&self.run, self.supervisor) {
            (Some(run), Some(supervisor)) => {
                write!(f, "run {run} of {root} is alive (supervisor {supervisor})")
            }
            _ => write!(f, "another lariat is at work in {root}"),
        }
    }
}

/// A run whose keepers are ending what its dead supervisor left.
#[derive(Debug)]
pub struct Finishing {
    state: StateDir,
    record: Option<Box<RunRecord>>,
}

impl fmt::Display for Finishing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.record {
            Some(record) => write!(
                f,
                "the supervisor of run {} is dead, and its keepers are ending the services",
                record.run
            ),
            None => f.write_str("keepers of a dead supervisor are ending its services"),
        }
    }
}

/// How waiting for keepers ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waited {
    /// They are done.
    Finished,
    /// They were not, when the deadline came.
    TimedOut,
    /// The cancel descriptor became readable.
    Cancelled,
}

impl Finishing {
    /// Returns the run's id, if its ledger could be read.
    #[must_use]
    pub fn run(&self) -> Option<&RunId> {
        self.record.as_ref().map(|record| &record.run)
    }

    /// Returns the services whose keepers are alive.
    #[must_use]
    pub fn at_work(&self) -> Vec<String> {
        let services = self.record.iter().flat_map(|record| &record.services);
        let at_work = services.filter(|service| service.keeper.is_some_and(|k| Identity::from(k).is_alive()));
        at_work.map(|service| service.name.clone()).collect()
    }

    /// Waits until all keepers are done. Blocks until then, the deadline, or until `cancel` is readable.
    ///
    /// # Errors
    /// When the lock file cannot be used.
    pub fn wait(&self, deadline: Instant, cancel: Option<BorrowedFd<'_>>) -> Result<Waited, LedgerError> {
        Ok(match lock::wait_until(&self.state, deadline, cancel)? {
            LockWait::Acquired(_) => Waited::Finished,
            LockWait::TimedOut => Waited::TimedOut,
            LockWait::Cancelled => Waited::Cancelled,
        })
    }
}

/// A run that did not end by itself, with the project's lock held: nothing of lariat's own is alive any more.
#[derive(Debug)]
pub struct Crashed {
    state: StateDir,
    /// Held, unless somebody only looks.
    lock: Option<RunLock>,
    record: Option<Box<RunRecord>>,
    clues: Clues,
    findings: Findings,
    ends: Vec<EndRecord>,
    notes: Vec<String>,
    ended: Option<End>,
    /// Whom the end that was tried here could not end, and why.
    refused: Vec<Named>,
    took: Duration,
}

/// Looks what became of the last run of the project in `root`.
///
/// Blocks for a quarter of a second at most, while somebody else looks.
///
/// # Errors
/// [`LedgerError`] when the state directory or the ledger cannot be used; a ledger of a newer lariat is one that cannot.
pub fn look(root: &Path, access: Access) -> Result<Past, LedgerError> {
    let state = match access {
        Access::Create => StateDir::create(root)?,
        Access::Open => match StateDir::open(root)? {
            Some(state) => state,
            None => return Ok(Past::Absent),
        },
    };
    let LockWait::Acquired(lock) = lock::wait_until(&state, Instant::now() + LOCK_WITHIN, None)? else {
        return held(state);
    };
    let mut notes = Vec::new();
    let (record, clues) = match store::load_and_set_aside(&state, &lock)? {
        Loaded::Absent => return Ok(Past::Nothing { state, lock, notes }),
        Loaded::Record(record) if record.is_closed => {
            // A supervisor that was killed right after its last word left it there.
            let _ = std::fs::remove_file(&record.socket);
            return Ok(Past::Nothing { state, lock, notes });
        }
        Loaded::Record(record) => (Some(record.clone()), Clues::of(&record)),
        Loaded::Newer { version, .. } => {
            return Err(LedgerError::Newer { path: state.path().join("run.json"), version });
        }
        Loaded::Damaged { run, set_aside, .. } => {
            let place = set_aside.map(|path| format!("; it is kept as {}", path.display()));
            notes.push(format!("the ledger of the last run is damaged{}", place.unwrap_or_default()));
            match run {
                Some(run) => (None, Clues::mark_only(run)),
                None => return Ok(Past::Nothing { state, lock, notes }),
            }
        }
    };
    Ok(Past::Crashed(Box::new(Crashed::new(state, Some(lock), record, clues, notes))))
}

/// Returns the report of the last run, if it crashed and nobody has closed it yet. Takes nothing and changes nothing.
///
/// # Errors
/// As [`look`].
pub fn peek(root: &Path) -> Result<Option<Report>, LedgerError> {
    let Some(state) = StateDir::open(root)? else { return Ok(None) };
    if lock::is_held(&state)? {
        return Ok(None);
    }
    let (record, clues) = match store::load(&state)? {
        Loaded::Record(record) if !record.is_closed => (Some(record.clone()), Clues::of(&record)),
        Loaded::Damaged { run: Some(run), .. } => (None, Clues::mark_only(run)),
        _ => return Ok(None),
    };
    Ok(Some(Crashed::new(state, None, record, clues, Vec::new()).report()))
}

/// Looks for a live run of the project in `root`, and takes nothing, not even the lock. `None` when there is none,
/// though keepers may be ending one.
///
/// # Errors
/// As [`look`].
pub fn find_live(root: &Path) -> Result<Option<LiveRun>, LedgerError> {
    match StateDir::open(root)? {
        Some(state) if lock::is_held(&state)? => match held(state)? {
            Past::Live(live) => Ok(Some(live)),
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Says whether the supervisor of the project's run is dead and its keepers are still ending the services. Takes nothing,
/// as [`find_live`].
///
/// # Errors
/// As [`look`].
pub fn is_finishing(root: &Path) -> Result<bool, LedgerError> {
    match StateDir::open(root)? {
        Some(state) if lock::is_held(&state)? => Ok(matches!(held(state)?, Past::Finishing(_))),
        _ => Ok(false),
    }
}

/// Somebody holds the lock.
fn held(state: StateDir) -> Result<Past, LedgerError> {
    let record = match store::load(&state)? {
        Loaded::Record(record) | Loaded::Newer { record: Some(record), .. } => Some(record),
        Loaded::Absent | Loaded::Damaged { .. } | Loaded::Newer { record: None, .. } => None,
    };
    let root = state.root().to_owned();
    let is_alive = record.as_ref().map(|record| Identity::from(record.supervisor).is_alive());
    Ok(match (record, is_alive) {
        (Some(record), Some(true)) => Past::Live(LiveRun {
            supervisor: Some(record.supervisor.into()),
            socket: Some(record.socket.clone()),
            run: Some(record.run),
            root,
        }),
        // A closed ledger under a lock is one that is about to be replaced by a run that begins.
        (Some(record), _) if !record.is_closed => Past::Finishing(Finishing { state, record: Some(record) }),
        _ => Past::Live(LiveRun { run: None, supervisor: None, root, socket: None }),
    })
}

impl Crashed {
    fn new(
        state: StateDir,
        lock: Option<RunLock>,
        record: Option<Box<RunRecord>>,
        mut clues: Clues,
        notes: Vec<String>,
    ) -> Self {
        // Without the records of keepers, what they did is not known; that nothing is left is seen all the same.
        let ends = read_ends(&state, &clues.run).map(|lines| lines.records).unwrap_or_default();
        let left = ends.iter().flat_map(|end| &end.left);
        clues.left.extend(left.map(|left| Identity { pid: left.pid, start: left.start }));
        let set = FoundSet::new(clues.clone());
        // Who only looks has no need of a proof.
        let findings = if lock.is_some() { set.look_until_settled() } else { set.look() };
        Self {
            state,
            lock,
            record,
            clues,
            findings,
            ends,
            notes,
            ended: None,
            refused: Vec::new(),
            took: Duration::ZERO,
        }
    }

    /// Returns the run's id.
    #[must_use]
    pub fn run(&self) -> &RunId {
        &self.clues.run
    }

    /// Returns what is left of it.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Returns what a person should read first.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the ports that its services claimed, as (service, port).
    #[must_use]
    pub fn ports(&self) -> Vec<(String, u16)> {
        let services = self.record.iter().flat_map(|record| &record.services);
        services.flat_map(|service| service.ports.iter().map(|port| (service.name.clone(), *port))).collect()
    }

    /// Returns the longest grace period of the services that were alive; absent where the ledger does not say.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        let services = self.record.iter().flat_map(|record| &record.services);
        let alive = services.filter(|service| service.leader.is_some());
        alive.filter_map(|service| Some(service.stop.as_ref()?.plan().grace)).max()
    }

    /// Ends what is certainly the run's, each service by its own stop signal and grace period as the ledger has them,
    /// side by side; without a ledger by TERM and `grace`, which is also the most that anybody is given.
    ///
    /// Blocks until nobody is left, or nothing helps any more: `grace` and fifteen seconds at most. When `hurry` says
    /// so, the grace period is over; it is asked every few milliseconds.
    pub fn end(&mut self, grace: Duration, mut hurry: impl FnMut() -> bool) {
        let began = Instant::now();
        let mut endings = self.endings(grace);
        let mut total = End::default();
        let mut has_hurried = false;
        while !endings.is_empty() {
            let hurries = !has_hurried && hurry();
            has_hurried |= hurries;
            endings.retain_mut(|ending| {
                let done = if hurries { ending.hurry() } else { ending.turn() };
                if let Some(end) = done {
                    total.told += end.told;
                    total.killed += end.killed;
                    total.left += end.left;
                    total.stop_time = total.stop_time.max(end.stop_time);
                    self.refused.extend_from_slice(ending.left());
                }
                done.is_none()
            });
            let soon = Instant::now() + TURN_EVERY;
            let wake = endings.iter().filter_map(Ending::wake_at).fold(soon, Instant::min);
            if !endings.is_empty() {
                // It fails only for want of memory; then the loop turns without a pause until the machines give up.
                let _ = lariat_sys::poll::poll(&mut [], Some(wake));
            }
        }
        self.ended = Some(total);
        self.took = began.elapsed();
        self.findings = FoundSet::new(self.clues.clone()).look();
    }

    /// One for each service that left something, and one for what belongs to none.
    fn endings(&self, grace: Duration) -> Vec<Ending<FoundSet>> {
        let set = FoundSet::new(self.clues.clone());
        let is_there = |name: &str| self.findings.certain.iter().any(|f| f.service.as_deref() == Some(name));
        let services = self.record.iter().flat_map(|record| &record.services);
        let planned: Vec<(&str, StopPlan)> = services
            .filter(|service| is_there(&service.name))
            .filter_map(|service| Some((service.name.as_str(), service.stop.as_ref()?.plan())))
            .collect();
        let names = planned.iter().map(|(name, _)| (*name).to_owned()).collect();
        let others = set.clone().without_services(names);
        let default = StopPlan { signal: Signal::TERM, grace, ..StopPlan::default() };
        let of_service = |(name, plan): (&str, StopPlan)| {
            let plan = StopPlan { grace: plan.grace.min(grace), ..plan };
            Ending::new(set.clone().of_service(name), plan, self.told(name))
        };
        planned.into_iter().map(of_service).chain([Ending::new(others, default, None)]).collect()
    }

    /// Returns the leader of a service that heard of the stop already: the kernel told it when its keeper died.
    fn told(&self, name: &str) -> Option<Identity> {
        let mut services = self.record.iter().flat_map(|record| &record.services);
        let leader = services.find(|service| service.name == name)?.leader?.into();
        let is_ours = self.findings.certain.iter().any(|found| found.identity == leader);
        Some(leader).filter(|leader| is_ours && was_told_by_death(*leader))
    }

    /// Puts the report of the crashed run together: what its keepers did, what was ended now, what is left. Closes the
    /// ledger if nothing is.
    ///
    /// Takes the run off the list of runs and removes its socket as well, as its supervisor would have done.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn close(self, index: Option<&RunIndex>) -> Result<Report, LedgerError> {
        let mut report = self.report();
        let is_clean = report.left.is_empty() && !report.ports.iter().any(|port| port.is_ours);
        report.is_ledger_closed = is_clean;
        if let (Some(mut record), Some(lock)) = (self.record, &self.lock) {
            record.is_closed = is_clean;
            record.report = Some(summary(&report));
            store::save(&self.state, lock, &record)?;
            if is_clean {
                // The run is closed in the ledger, which is what counts; these are only in nobody's way.
                let _ = std::fs::remove_file(&record.socket);
            }
        }
        if let (true, Some(index)) = (is_clean, index) {
            let _ = index.remove(&self.clues.run);
        }
        Ok(report)
    }

    fn report(&self) -> Report {
        let names: Vec<String> = match &self.record {
            Some(record) => record.services.iter().map(|service| service.name.clone()).collect(),
            None => Vec::new(),
        };
        let mut tally = Tally::new(names.clone());
        for (place, service) in self.record.iter().flat_map(|record| record.services.iter().enumerate()) {
            let was_alive = !matches!(service.state, RecordedState::Stopped | RecordedState::Failed);
            if was_alive
                && service.leader.is_some()
                && !self.ends.iter().any(|end| end.service == service.name)
            {
                tally.service_swept(place);
            }
        }
        for end in &self.ends {
            if let Some(place) = names.iter().position(|name| *name == end.service) {
                tally.service_ended(place, counts(end), true);
            }
        }
        if let Some(end) = &self.ended {
            tally.orphans_ended(end.told.max(end.killed).saturating_sub(end.left));
        }
        tally.phase_ended(Phase::Orphans, self.took);
        tally.phase_note(Phase::Containers, "the stack has no containers");
        for found in &self.findings.certain {
            let refused = self.refused.iter().find(|named| named.identity == found.identity);
            let reason = refused.map_or("it was not ended".into(), why_left);
            if let Some(left) = verify::describe(found.identity, &reason) {
                tally.left(left);
            }
        }
        for found in &self.findings.possible {
            tally.note(format!(
                "{} `{}` may be of this run; it was left alone",
                found.identity.pid, found.command
            ));
        }
        if self.findings.reach == Reach::OtherBoot {
            tally.note("the machine was started anew since: nothing of the run can be alive");
        }
        if self.findings.reach == Reach::OtherNamespace {
            tally.note("the run was in another pid namespace: whether it is alive cannot be seen from here");
        }
        for port in verify::held_ports(&self.ports(), self.clues.run.as_str()) {
            tally.port_held(port);
        }
        self.notes.iter().for_each(|note| tally.note(note.clone()));
        tally.finish(Head {
            run: self.clues.run.to_string(),
            stack: self.record.as_ref().map(|record| record.stack.clone()).unwrap_or_default(),
            why: "the supervisor died".into(),
            took: self.took,
            ..Head::default()
        })
    }
}

/// What a keeper wrote down at its end.
fn counts(end: &EndRecord) -> ServiceCounts {
    let exit = end.exit.as_ref().map(|exit| match exit {
        ExitRecord::Code(code) => Exit::Code(*code),
        ExitRecord::Signal(number) => Exit::Signal(
            Signal::from_number(*number).map_or_else(|| number.to_string(), |signal| signal.to_string()),
        ),
    });
    ServiceCounts {
        cause: "its supervisor died".into(),
        is_failure: false,
        exit,
        took: end.stop_time(),
        told: end.told,
        killed: end.killed,
        left: end.left_total,
        dropped_bytes: end.dropped_bytes,
    }
}

/// Returns how a service came out of a crash, in words.
#[must_use]
pub fn outcome_in_words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotRunning => "was not running",
        Outcome::Graceful => "stopped",
        Outcome::Killed => "killed",
        Outcome::Left => "could not be ended",
        Outcome::Swept => "lost its keeper as well",
    }
}
