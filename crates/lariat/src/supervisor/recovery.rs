//! What became of the last run of a project: alive, being finished by its keepers, or crashed with something left.
//!
//! A lock that nobody holds means that no lariat process of the run is alive; an open ledger without one means that the
//! run did not end by itself. What keepers did after their supervisor's death they wrote down; what is left is found by
//! [`crate::ledger::recover`]. Only what is certainly the run's is ended here, and only when the caller says so.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::identity::{BootId, Identity};
use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{PollFd, PollFlags, poll};
use lariat_sys::procfs;
use lariat_sys::signal::Signal;

pub use super::crashed::Crashed;
use super::held::{HeldKeepers, LockHolders, keepers_with};
use super::unrecorded;
use crate::ledger::index::IndexEntry;
use crate::ledger::lock::{self, LockWait, RunLock};
use crate::ledger::record::{RunId, RunRecord};
use crate::ledger::recover::{Clues, Living};
use crate::ledger::store::{self, Loaded};
use crate::ledger::{LedgerError, StateDir};
use crate::shutdown::report::{Outcome, Report};

/// How long a lock that somebody only looks at is waited for.
const LOCK_WITHIN: Duration = Duration::from_millis(250);

/// The pause between two looks at the dying.
const DYING_EVERY: Duration = Duration::from_millis(5);

/// How often a ledger is looked at whose lock is waited for.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is known of the user's other runs, for a search that must not touch them.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Others {
    /// Those that are alive.
    pub living: Living,
    /// The list of runs: what a damaged ledger does not say any more.
    pub listed: Vec<IndexEntry>,
    /// Where cgroups may have been made: what a damaged ledger does not say either.
    pub cgroup_bases: Vec<PathBuf>,
}

impl Others {
    /// Returns the run that is alive in a project though `ledger`, the run in the project's ledger, is another one or none:
    /// the state directory was removed under it, and its lock with that.
    fn alive_in(&self, root: &Path, ledger: Option<&RunId>) -> Option<LiveRun> {
        let is_candidate = |entry: &&IndexEntry| entry.root == root && Some(&entry.run) != ledger;
        let mut candidates = self.listed.iter().filter(is_candidate).peekable();
        candidates.peek()?;
        // Without a boot to compare with, an entry says nothing about now.
        let boot = BootId::read().ok()?.to_string();
        let entry = candidates.find(|entry| entry.has_live_supervisor(Some(&boot)))?;
        Some(LiveRun {
            run: Some(entry.run.clone()),
            supervisor: entry.supervisor.map(Identity::from),
            root: root.to_owned(),
            socket: entry.socket.clone(),
        })
    }
}

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
    /// Keepers that no record knows.
    unrecorded: Vec<Identity>,
}

impl fmt::Display for Finishing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.record {
            // The lock is somebody's, and no keeper that is known: another `up`, `down` or `sweep` is at it.
            Some(record) if self.at_work().is_empty() => {
                write!(f, "another lariat is ending what run {} left", record.run)
            }
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
    /// Makes one of a run without a record.
    pub(super) fn of_keepers(state: StateDir, unrecorded: Vec<Identity>) -> Self {
        Self { state, record: None, unrecorded }
    }

    /// Returns the run's id, if its ledger could be read.
    #[must_use]
    pub fn run(&self) -> Option<&RunId> {
        self.record.as_ref().map(|record| &record.run)
    }

    /// Returns the longest grace period that its services may have; absent where the ledger does not say.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        let services = self.record.iter().flat_map(|record| &record.services);
        services.filter_map(|service| Some(service.stop.as_ref()?.plan().grace)).max()
    }

    /// Returns the services whose keepers are alive.
    #[must_use]
    pub fn at_work(&self) -> Vec<String> {
        let services = self.record.iter().flat_map(|record| &record.services);
        let at_work = services.filter(|service| service.keeper.is_some_and(|k| Identity::from(k).is_alive()));
        at_work.map(|service| service.name.clone()).collect()
    }

    /// Waits until all keepers are done, or somebody else has taken over: a run that begins, for instance. Blocks until
    /// then, the deadline, or until `cancel` is readable. Keepers that a debugger holds are killed, and so are members that
    /// keep the lock from us.
    ///
    /// # Errors
    /// When the lock file cannot be used.
    pub fn wait(&self, deadline: Instant, cancel: Option<BorrowedFd<'_>>) -> Result<Waited, LedgerError> {
        let (mut holders, mut held) = (LockHolders::default(), HeldKeepers::default());
        loop {
            let slice = deadline.min(Instant::now() + LOOK_EVERY);
            match lock::wait_until(&self.state, slice, cancel)? {
                LockWait::Acquired(_) if !self.has_keepers() => return Ok(Waited::Finished),
                LockWait::Cancelled => return Ok(Waited::Cancelled),
                _ if self.is_over() => return Ok(Waited::Finished),
                _ if Instant::now() >= deadline => return Ok(Waited::TimedOut),
                LockWait::TimedOut => self.look_at(&mut holders),
                // HAZARD(removed-lock): it is no news of them then, and they are looked at as often.
                LockWait::Acquired(_) => {
                    let mut polled = Vec::with_capacity(1);
                    polled.extend(cancel.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
                    if matches!(poll(&mut polled, Some(slice)), Ok(1..)) {
                        return Ok(Waited::Cancelled);
                    }
                }
            }
            held.look(self.keepers(), Instant::now());
        }
    }

    /// Kills the keepers: their run has crashed then, and what they held is found and ended by whoever looks next. For those
    /// that are not done after all their time, and where nobody is to have any. Returns how many there were.
    pub fn kill_keepers(&self) -> usize {
        let unknown = self.lock_file().map(|lock| keepers_with(&lock)).unwrap_or_default();
        let all: BTreeSet<Identity> = self.keepers().chain(unknown).collect();
        // One that may not be killed is waited for, and one that has ended is what is wanted.
        let kill =
            |keeper: &&Identity| PidFd::open(**keeper).and_then(|keeper| keeper.signal(Signal::KILL)).is_ok();
        all.iter().filter(kill).count()
    }

    fn keepers(&self) -> impl Iterator<Item = Identity> {
        let services = self.record.iter().flat_map(|record| &record.services);
        let recorded = services.filter_map(|service| service.keeper.map(Identity::from));
        recorded.chain(self.unrecorded.iter().copied()).filter(|keeper| can_work(*keeper))
    }

    fn has_keepers(&self) -> bool {
        self.keepers().next().is_some()
    }

    fn look_at(&self, holders: &mut LockHolders) {
        if let Some(lock) = self.lock_file() {
            let run = self.run().filter(|_| self.at_work().is_empty());
            holders.look(&lock, run, Instant::now());
        }
    }

    /// Returns the lock's file by its whole path, as the kernel names it.
    fn lock_file(&self) -> Option<PathBuf> {
        std::fs::canonicalize(self.state.path().join(lock::LOCK_FILE)).ok()
    }

    /// The ledger under the lock is another one's by now, or closed.
    fn is_over(&self) -> bool {
        match (store::load(&self.state), self.run()) {
            (Ok(Loaded::Record(record)), Some(run)) => record.run != *run || record.is_closed,
            (_, _) => false,
        }
    }
}

/// Looks what became of the last run of the project in `root`, and spares what belongs to other runs that are alive.
///
/// What is not known of the others is not found, or not spared: without the user's home, for one, no process that took
/// the run's mark out of its environment.
///
/// Blocks for a quarter of a second at most, while somebody else looks.
///
/// # Errors
/// [`LedgerError`] when the state directory or the ledger cannot be used; a ledger of a newer lariat is one that cannot.
pub fn look(root: &Path, access: Access, others: &Others) -> Result<Past, LedgerError> {
    Ok(match take(root, access, others)? {
        Past::Crashed(crashed) => Past::Crashed(Box::new(crashed.look(&others.living))),
        Past::Absent if unrecorded::find(&others.listed, root, None).is_some() => {
            look(root, Access::Create, others)?
        }
        Past::Nothing { state, lock, notes } => {
            let ledger = store::load(&state)?;
            match unrecorded::find(&others.listed, root, run_of(&ledger)) {
                Some(entry) => unrecorded::look(entry, state, lock, notes, others)?,
                None => Past::Nothing { state, lock, notes },
            }
        }
        past => past,
    })
}

/// Looks as [`look`] does, but for no process yet.
pub(super) fn take(root: &Path, access: Access, others: &Others) -> Result<Past, LedgerError> {
    let state = match (StateDir::open(root)?, access) {
        (Some(state), _) => state,
        (None, _) if let Some(live) = others.alive_in(root, None) => return Ok(Past::Live(live)),
        (None, Access::Create) => StateDir::create(root)?,
        (None, Access::Open) => return Ok(Past::Absent),
    };
    let LockWait::Acquired(lock) = lock::wait_until(&state, Instant::now() + LOCK_WITHIN, None)? else {
        return held(state);
    };
    let found = store::load_and_set_aside(&state, &lock)?;
    if let Some(live) = others.alive_in(root, run_of(&found)) {
        return Ok(Past::Live(live));
    }
    if let Loaded::Record(record) = &found
        && !record.is_closed
        && is_alive_without_its_lock(record)
    {
        drop(lock);
        return held(state);
    }
    if let Loaded::Record(record) = &found
        && record.is_closed
    {
        // A supervisor that was killed right after its last word left it there.
        let _ = std::fs::remove_file(&record.socket);
    }
    Ok(match understand(&state, found, others)? {
        (None, notes) => Past::Nothing { state, lock, notes },
        (Some((record, clues)), notes) => {
            Past::Crashed(Box::new(Crashed::new(state, Some(lock), record, clues, notes)))
        }
    })
}

/// Says whether supervisor or keepers of a run whose lock is free are alive. Blocks for a quarter of a second at most: the dying
/// let go of the lock a moment before they are dead.
///
/// HAZARD(removed-lock): the lock's file may have been removed under them, and another one made.
fn is_alive_without_its_lock(record: &RunRecord) -> bool {
    let is_this_boot = BootId::read().is_ok_and(|boot| boot.to_string() == record.boot);
    let keepers = record.services.iter().filter_map(|service| service.keeper);
    let own: Vec<Identity> = keepers.chain([record.supervisor]).map(Identity::from).collect();
    let is_somebody_alive = || is_this_boot && own.iter().any(|own| can_work(*own));
    let until = Instant::now() + LOCK_WITHIN;
    while is_somebody_alive() {
        if Instant::now() >= until {
            return true;
        }
        // It fails only for want of memory; then it is looked at without a pause.
        let _ = poll(&mut [], Some(until.min(Instant::now() + DYING_EVERY)));
    }
    false
}

/// Says whether one of lariat's own processes is alive and not in the middle of its exit, which a namespace that it leads may
/// hold up for as long as somebody in there is stuck: the dying have no memory any more.
fn can_work(own: Identity) -> bool {
    let stat = procfs::read_stat(own.pid).ok().flatten();
    stat.is_some_and(|stat| stat.identity() == own && stat.is_alive() && stat.vsize > 0)
}

fn run_of(ledger: &Loaded) -> Option<&RunId> {
    match ledger {
        Loaded::Record(record) | Loaded::Newer { record: Some(record), .. } => Some(&record.run),
        Loaded::Damaged { run, .. } => run.as_ref(),
        Loaded::Absent | Loaded::Newer { record: None, .. } => None,
    }
}

/// What is known of a run that was not closed: its record, where that can be read, and the clues to what is left of it.
type Open = (Option<Box<RunRecord>>, Clues);

/// Makes clues of what was found in place of the ledger, and says what a person should know. Nothing is open where the
/// run was closed, or there never was one.
fn understand(
    state: &StateDir,
    found: Loaded,
    others: &Others,
) -> Result<(Option<Open>, Vec<String>), LedgerError> {
    Ok(match found {
        Loaded::Absent => (None, Vec::new()),
        Loaded::Record(record) if record.is_closed => (None, Vec::new()),
        Loaded::Record(record) => {
            let clues = Clues::of(&record);
            (Some((Some(record), clues)), Vec::new())
        }
        Loaded::Newer { version, .. } => {
            return Err(LedgerError::Newer { path: state.path().join("run.json"), version });
        }
        Loaded::Damaged { run, set_aside, .. } => {
            let place = set_aside.map(|path| format!("; it is kept as {}", path.display()));
            let note = format!("the ledger of the last run is damaged{}", place.unwrap_or_default());
            // The list of runs knows which one was alive here, if any.
            let listed = others.listed.iter().find(|entry| entry.root == state.root());
            let run = run.or_else(|| listed.map(|entry| entry.run.clone()));
            let clues = |run| {
                let mut clues = Clues::mark_only(run);
                clues.cgroup_bases.extend(others.cgroup_bases.iter().cloned());
                clues
            };
            (run.map(|run| (None, clues(run))), vec![note])
        }
    })
}

/// What became of the last run, by a look that takes and changes nothing.
#[derive(Debug)]
pub enum Seen {
    /// Nothing is left of any run.
    Nothing {
        /// What a person should read.
        notes: Vec<String>,
    },
    /// A run is alive.
    Live(LiveRun),
    /// Its supervisor is dead, and its keepers are ending the services.
    Finishing(Finishing),
    /// It did not end by itself. Nobody has looked for its processes yet ([`Crashed::look`]).
    Crashed(Box<Crashed>),
}

/// Looks as [`look`] does, and takes and changes nothing: no lock is kept, no file set aside.
///
/// # Errors
/// As [`look`].
pub fn examine(root: &Path, others: &Others) -> Result<Seen, LedgerError> {
    let Some(state) = StateDir::open(root)? else { return Ok(Seen::Nothing { notes: Vec::new() }) };
    if lock::is_held(&state)? {
        return Ok(match held(state)? {
            Past::Live(live) => Seen::Live(live),
            Past::Finishing(finishing) => Seen::Finishing(finishing),
            _ => Seen::Nothing { notes: Vec::new() },
        });
    }
    let found = store::load(&state)?;
    Ok(match understand(&state, found, others)? {
        (None, notes) => Seen::Nothing { notes },
        (Some((record, clues)), notes) => {
            Seen::Crashed(Box::new(Crashed::new(state, None, record, clues, notes)))
        }
    })
}

/// Returns the report of the last run, if it crashed and nobody has closed it yet: what [`look`] finds. Takes nothing and
/// changes nothing.
///
/// # Errors
/// As [`look`].
pub fn peek(root: &Path, others: &Others) -> Result<Option<Report>, LedgerError> {
    Ok(match examine(root, others) {
        Ok(Seen::Crashed(crashed)) => Some(crashed.look(&others.living).report()),
        Ok(_) | Err(LedgerError::Newer { .. }) => None,
        Err(error) => return Err(error),
    })
}

/// Looks for a live run of the project in `root`, and takes nothing, not even the lock. `None` when there is none,
/// though keepers may be ending one. Of the others only the list is asked.
///
/// # Errors
/// As [`look`].
pub fn find_live(root: &Path, others: &Others) -> Result<Option<LiveRun>, LedgerError> {
    let state = match StateDir::open(root)? {
        Some(state) => state,
        None => return Ok(others.alive_in(root, None)),
    };
    if !lock::is_held(&state)? {
        return Ok(others.alive_in(root, run_of(&store::load(&state)?)));
    }
    match held(state)? {
        Past::Live(live) => Ok(Some(live)),
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
        (Some(record), _) if !record.is_closed => {
            Past::Finishing(Finishing { state, record: Some(record), unrecorded: Vec::new() })
        }
        _ => Past::Live(LiveRun { run: None, supervisor: None, root, socket: None }),
    })
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
