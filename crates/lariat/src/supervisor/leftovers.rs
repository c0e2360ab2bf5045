//! What earlier runs left, of one project or of all runs of the user: found, shown to whoever decides, ended, closed.
//!
//! A group for each run that crashed, and one for a project's processes that no run is known to have started. A stack's
//! group holds its project's lock; what is done about commands and lost runs is done under one lock of the user. Nothing
//! that belongs to a run that is alive is in any group, and nobody is in two.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_keeper::ending::Ending;
use lariat_keeper::stop::StopPlan;
use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{PollFd, PollFlags, poll};

use super::crashed::Crashed;
use super::recovery::{self, Access, Finishing, Others, Past, Seen, Waited};
use super::runs::{Kind, KnownRun, Runs, State, reach_in_words};
use crate::ledger::LedgerError;
use crate::ledger::command::{CommandFile, Loaded};
use crate::ledger::index::{RunIndex, RuntimeDir, UserDirs};
use crate::ledger::lock::{DirectoryLock, LockWait};
use crate::ledger::record::{LeftRecord, RunId, StopRecord};
use crate::ledger::recover::patterns::CommandPattern;
use crate::ledger::recover::{self, Clues, Findings, Found, Living, Reach, Snapshot};
use crate::shutdown::found::{Ended, FoundSet, end_all};
use crate::shutdown::report::{HeldPort, LeftProcess};
use crate::shutdown::verify;

/// A socket that nobody listens on and that is younger than this may be in the middle of being made.
const SOCKET_MADE_WITHIN: Duration = Duration::from_secs(2);

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The user's directories.
    pub dirs: &'a UserDirs,
    /// The project.
    pub project: Option<&'a Path>,
    /// All runs of the user, not the project's alone.
    pub is_all: bool,
    /// Commands of the project's that are to be offered.
    pub patterns: &'a [CommandPattern],
    /// Something may be ended: locks are taken. Otherwise nothing is changed, and nothing held.
    pub takes: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Search {
    /// A group for each run that left something, or that is to be closed.
    pub leftovers: Vec<Leftover>,
    /// Runs that are alive, in words; they were left alone.
    pub alive: Vec<String>,
    /// Runs that keepers, or another lariat, are ending at this moment.
    pub at_work: Vec<AtWork>,
    /// What a person should read.
    pub notes: Vec<String>,
    /// What could not be looked at.
    pub troubles: Vec<String>,
    /// Held while anything of a run without a project is ended.
    locks: Vec<DirectoryLock>,
    dirs: UserDirs,
    /// Stale sockets are removed, but those of these runs.
    sockets_but: Option<BTreeSet<String>>,
}

/// Somebody who is ending a run.
#[derive(Debug)]
pub enum AtWork {
    /// The keepers of a stack, or another lariat.
    Stack(Finishing),
    /// The keeper of a command, or keepers of a run whose ledger is gone.
    Keepers {
        /// The run.
        run: RunId,
        /// They.
        keepers: Vec<Identity>,
        /// How long they may wait before they kill.
        grace: Option<Duration>,
    },
}

impl fmt::Display for AtWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stack(finishing) => finishing.fmt(f),
            Self::Keepers { run, .. } => {
                write!(f, "lariat of run {run} is dead, and its keeper is ending it")
            }
        }
    }
}

impl AtWork {
    /// Returns the longest grace period that is known of.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        match self {
            Self::Stack(finishing) => finishing.grace(),
            Self::Keepers { grace, .. } => *grace,
        }
    }

    /// Waits until they are done. Blocks until then, the deadline, or until `cancel` is readable.
    ///
    /// # Errors
    /// When a lock file cannot be used.
    pub fn wait(&self, deadline: Instant, cancel: Option<BorrowedFd<'_>>) -> Result<Waited, LedgerError> {
        let keepers = match self {
            Self::Stack(finishing) => return finishing.wait(deadline, cancel),
            Self::Keepers { keepers, .. } => keepers,
        };
        for keeper in keepers {
            let Ok(pidfd) = PidFd::open(*keeper) else { continue };
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
            fds.extend(cancel.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, Some(deadline)) {
                Ok(0) => return Ok(Waited::TimedOut),
                Ok(_) if fds[0].revents().is_empty() => return Ok(Waited::Cancelled),
                // Where the kernel cannot wait for want of memory, the next look says how it is.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(Waited::Finished)
    }
}

/// What one run left.
#[derive(Debug)]
pub struct Leftover {
    /// The run; absent for a project's strays.
    pub run: Option<RunId>,
    /// What it is.
    pub kind: Kind,
    /// Where.
    pub dir: Option<PathBuf>,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_unix_ms: Option<u64>,
    /// What a person should read first.
    pub notes: Vec<String>,
    body: Body,
    /// Who may be the run's was shown, and somebody said no.
    is_dismissed: bool,
}

#[derive(Debug)]
enum Body {
    Stack(Box<Crashed>),
    Other(Box<Other>),
}

/// A group that has no project's lock.
#[derive(Debug)]
struct Other {
    clues: Clues,
    living: Living,
    findings: Findings,
    file: Option<CommandFile>,
    ended: Option<Ended>,
    took: Duration,
}

impl Other {
    fn set(&self) -> FoundSet {
        FoundSet::new(self.clues.clone()).beside(&self.living)
    }

    fn stop(&self) -> Option<StopPlan> {
        match self.file.as_ref().map(|file| &file.loaded) {
            Some(Loaded::Record(record)) => record.stop.as_ref().map(StopRecord::plan),
            _ => None,
        }
    }
}

/// How the end of one group came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Processes that ended.
    pub ended: u32,
    /// Those of them that had to be killed.
    pub killed: u32,
    /// How long it took.
    pub took: Duration,
    /// Who is left, and why.
    pub left: Vec<LeftProcess>,
    /// Ports of the run that somebody holds.
    pub ports: Vec<HeldPort>,
    /// What else a person should know.
    pub notes: Vec<String>,
    /// The run is closed: the next command finds nothing to do.
    pub is_closed: bool,
}

impl Outcome {
    /// Says whether nothing that is certainly the run's is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.left.is_empty() && !self.ports.iter().any(|port| port.is_ours)
    }
}

/// Looks for what earlier runs left.
///
/// Blocks for a quarter of a second at most for each project whose lock somebody looks at; and where something is to be
/// done about a run without a project, for the lock of the user, until the deadline or until `cancel` is readable.
///
/// # Errors
/// When `/proc` cannot be read, or the lock is not to be had in time.
pub fn search(
    request: &Request<'_>,
    deadline: Instant,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<Search, SearchError> {
    let found = look(request)?;
    let places = found.places_to_lock();
    if !request.takes || places.is_empty() {
        return Ok(found);
    }
    // Nothing is held while another sweep is waited for. What it has ended meanwhile is not there any more.
    drop(found);
    let locks = lock_user(request.dirs, &places, deadline, cancel)?;
    Ok(Search { locks, ..look(request)? })
}

fn look(request: &Request<'_>) -> Result<Search, SearchError> {
    let mut runs = Runs::read(request.dirs);
    let mut snapshot = Snapshot::take(&runs.living()).map_err(SearchError::Processes)?;
    runs.complete(&snapshot);
    snapshot.living = runs.living();
    let mut search = Search {
        notes: std::mem::take(&mut runs.notes),
        dirs: request.dirs.clone(),
        sockets_but: request.is_all.then(|| runs.at_work()),
        ..Search::default()
    };
    let others = runs.others();
    for root in roots(request, &runs) {
        search.add_stack(request, &root, &others, &mut snapshot);
    }
    for known in runs.known.iter().filter(|known| is_wanted(request, known)) {
        search.add_known(known, &runs, &mut snapshot);
    }
    search.forget_doubles();
    if let Some(project) = request.project.filter(|_| !request.patterns.is_empty()) {
        search.add_strays(project, request.patterns, &mut snapshot);
    }
    Ok(search)
}

/// Why there was no search.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// Nobody can be found.
    #[error("could not read the list of processes: {0}")]
    Processes(#[source] lariat_sys::Errno),
    /// Another `sweep` is at it.
    #[error("another lariat is sweeping")]
    Busy,
    /// Somebody asked to stop waiting.
    #[error("the wait for another lariat that is sweeping was broken off")]
    Cancelled,
    /// The lock cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

fn lock_user(
    dirs: &UserDirs,
    places: &BTreeSet<PathBuf>,
    deadline: Instant,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<Vec<DirectoryLock>, SearchError> {
    let lock = |directory: &RuntimeDir| match DirectoryLock::wait_until(directory, deadline, cancel)? {
        LockWait::Acquired(lock) => Ok(lock),
        LockWait::TimedOut => Err(SearchError::Busy),
        LockWait::Cancelled => Err(SearchError::Cancelled),
    };
    dirs.at_runtime_all().iter().filter(|directory| places.contains(&directory.path)).map(lock).collect()
}

/// The projects whose ledgers are to be looked at.
fn roots(request: &Request<'_>, runs: &Runs) -> BTreeSet<PathBuf> {
    let listed = runs.listed.iter().filter(|_| request.is_all).map(|entry| entry.root.clone());
    listed.chain(request.project.map(Path::to_owned)).collect()
}

fn is_wanted(request: &Request<'_>, known: &KnownRun) -> bool {
    let is_below = |dir: &PathBuf| request.project.is_some_and(|project| dir.starts_with(project));
    let is_at = |dir: &PathBuf| request.project.is_some_and(|project| dir == project);
    request.is_all
        || match known.kind {
            // A project below this one is its own.
            Kind::Stack(_) => known.dir.as_ref().is_some_and(is_at),
            _ => known.dir.as_ref().is_some_and(is_below),
        }
}

impl Search {
    fn add_stack(&mut self, request: &Request<'_>, root: &Path, others: &Others, snapshot: &mut Snapshot) {
        let seen = if request.takes {
            recovery::take(root, Access::Open, others).map(|past| match past {
                Past::Absent => Seen::Nothing { notes: Vec::new() },
                Past::Nothing { notes, .. } => Seen::Nothing { notes },
                Past::Live(live) => Seen::Live(live),
                Past::Finishing(finishing) => Seen::Finishing(finishing),
                Past::Crashed(crashed) => Seen::Crashed(crashed),
            })
        } else {
            recovery::examine(root, others)
        };
        match seen {
            Ok(Seen::Nothing { notes }) => self.notes.extend(notes),
            Ok(Seen::Live(live)) => self.alive.push(live.to_string()),
            Ok(Seen::Finishing(finishing)) => self.at_work.push(AtWork::Stack(finishing)),
            Ok(Seen::Crashed(crashed)) => {
                let crashed = crashed.look_in(snapshot);
                if crashed.findings().reach == Reach::OtherNamespace {
                    self.notes.push(elsewhere(crashed.run(), crashed.root()));
                    return;
                }
                self.leftovers.push(Leftover {
                    run: Some(crashed.run().clone()),
                    kind: Kind::Stack(crashed.stack().map(str::to_owned)),
                    dir: Some(crashed.root().to_owned()),
                    started_unix_ms: crashed.started_unix_ms(),
                    notes: crashed.notes().to_vec(),
                    body: Body::Stack(Box::new(crashed)),
                    is_dismissed: false,
                });
            }
            Err(error) => self.troubles.push(error.to_string()),
        }
    }

    /// Adds a run whose project's ledger says nothing of it: a command, one that is lost, an entry that was left.
    fn add_known(&mut self, known: &KnownRun, runs: &Runs, snapshot: &mut Snapshot) {
        // What the ledger of a project says was looked at under its lock; this is for those that have none.
        let is_done =
            matches!(known.kind, Kind::Stack(_)) && known.note.is_none() && known.state != State::Ended;
        if is_done || self.has(&known.run) {
            return;
        }
        let file = runs.commands.iter().find(|file| file.run == known.run);
        match known.state {
            State::Alive => self.alive.push(alive_in_words(known)),
            State::Finishing => {
                let grace = match file.map(|file| &file.loaded) {
                    Some(Loaded::Record(record)) => record.stop.as_ref().map(|stop| stop.plan().grace),
                    _ => None,
                };
                let (run, keepers) = (known.run.clone(), known.keepers.clone());
                self.at_work.push(AtWork::Keepers { run, keepers, grace });
            }
            State::Unknown => {
                let why = known.note.clone().unwrap_or_default();
                self.notes.push(format!("run {} was left alone: {why}", known.run));
            }
            State::Ended | State::Crashed => {
                let clues = known.clues.clone().unwrap_or_else(|| Clues::mark_only(known.run.clone()));
                self.add_other(known, clues, file.cloned(), snapshot);
            }
        }
    }

    fn add_other(
        &mut self,
        known: &KnownRun,
        clues: Clues,
        file: Option<CommandFile>,
        snapshot: &mut Snapshot,
    ) {
        let findings = recover::survey_in(&clues, snapshot);
        if findings.reach == Reach::OtherNamespace {
            let dir = known.dir.as_deref().unwrap_or(Path::new("?"));
            self.notes.push(elsewhere(&known.run, dir));
            return;
        }
        let reach = reach_in_words(findings.reach).map(str::to_owned);
        let living = snapshot.living.clone();
        let other = Other { clues, living, findings, file, ended: None, took: Duration::ZERO };
        self.leftovers.push(Leftover {
            run: Some(known.run.clone()),
            kind: known.kind.clone(),
            dir: known.dir.clone(),
            started_unix_ms: known.started_unix_ms,
            notes: known.note.clone().into_iter().chain(reach).collect(),
            body: Body::Other(Box::new(other)),
            is_dismissed: false,
        });
    }

    /// Adds what works in the project and matches a pattern, as far as no group has it.
    fn add_strays(&mut self, project: &Path, patterns: &[CommandPattern], snapshot: &mut Snapshot) {
        let Some(place) = recover::place(project) else { return };
        snapshot.look_at_commands(&place);
        let mut possible = recover::by_pattern(snapshot, &place, patterns, None, None);
        possible.retain(|found| {
            let has = |leftover: &Leftover| {
                recover::has(leftover.certain(), found.identity)
                    || recover::has(leftover.possible(), found.identity)
            };
            !self.leftovers.iter().any(has)
        });
        // Nobody carries an id that was never given to anybody.
        let (false, Ok(run)) = (possible.is_empty(), RunId::new_random()) else { return };
        recover::describe(&mut possible);
        let clues = Clues { has_mark: false, ..Clues::mark_only(run) };
        let findings = Findings { possible, ..Findings::nobody() };
        let living = snapshot.living.clone();
        let other = Other { clues, living, findings, file: None, ended: None, took: Duration::ZERO };
        self.leftovers.push(Leftover {
            run: None,
            kind: Kind::Project,
            dir: Some(project.to_owned()),
            started_unix_ms: None,
            notes: Vec::new(),
            body: Body::Other(Box::new(other)),
            is_dismissed: false,
        });
    }

    /// The directories whose lock is needed before anything is done: those of commands' records, and the first one for
    /// runs that have neither project nor record.
    fn places_to_lock(&self) -> BTreeSet<PathBuf> {
        let first = self.dirs.at_runtime_all().into_iter().next().map(|directory| directory.path);
        let place = |leftover: &Leftover| match (&leftover.body, &leftover.kind) {
            (Body::Stack(_), _) | (_, Kind::Project) => None,
            (Body::Other(other), _) => {
                let record = other.file.as_ref().and_then(|file| file.path.parent());
                record.map(Path::to_owned).or_else(|| first.clone())
            }
        };
        self.leftovers.iter().filter_map(place).collect()
    }

    fn has(&self, run: &RunId) -> bool {
        self.leftovers.iter().any(|leftover| leftover.run.as_ref() == Some(run))
    }

    /// Leaves everybody in one group only, the certain ones first.
    fn forget_doubles(&mut self) {
        let mut known = BTreeSet::new();
        for leftover in &mut self.leftovers {
            let certain: Vec<Identity> = leftover.certain().iter().map(|found| found.identity).collect();
            leftover.forget(&known);
            known.extend(certain);
        }
        // Whoever is certain in a later group is not possible in an earlier one.
        for leftover in &mut self.leftovers {
            let own: BTreeSet<Identity> = leftover.certain().iter().map(|found| found.identity).collect();
            leftover.forget(&known.difference(&own).copied().collect());
            known.extend(leftover.possible().iter().map(|found| found.identity));
        }
    }

    /// Ends what is certain in all groups, side by side, each by its own stop signal and grace period where these are
    /// known, else by TERM and `grace`; without any grace period where `is_forced`.
    ///
    /// Blocks until nobody is left, or nothing helps any more: the longest grace period and fifteen seconds at most. When
    /// `hurry` says so, the grace periods are over.
    pub fn end(&mut self, grace: Duration, is_forced: bool, hurry: impl FnMut() -> bool) {
        let began = Instant::now();
        let (mut owners, mut sets) = (Vec::new(), Vec::new());
        for (place, leftover) in self.leftovers.iter().enumerate() {
            if !leftover.certain().is_empty() {
                let endings = leftover.endings(if is_forced { Duration::ZERO } else { grace }, is_forced);
                owners.extend(endings.iter().map(|_| place));
                sets.extend(endings);
            }
        }
        let done = end_all(sets, hurry);
        let took = began.elapsed();
        for (place, leftover) in self.leftovers.iter_mut().enumerate() {
            let own: Vec<Ended> = owners
                .iter()
                .zip(&done)
                .filter(|(owner, _)| **owner == place)
                .map(|(_, e)| e.clone())
                .collect();
            if !own.is_empty() {
                leftover.ended(Ended::sum(own), took);
            }
        }
    }

    /// Closes the books of every group of which nothing is left, and says how each came out. What is only possibly a
    /// run's keeps its books open, so that the next search finds it again, unless somebody said that it is not.
    #[must_use]
    pub fn close(self) -> Vec<(Closed, Result<Outcome, LedgerError>)> {
        let index = self.dirs.runs().map(|directory| RunIndex::at(&directory));
        if let Some(but) = &self.sockets_but {
            remove_stale_sockets(&self.dirs, but);
        }
        let dirs = self.dirs.clone();
        let close = |leftover: Leftover| {
            let closed =
                Closed { run: leftover.run.clone(), kind: leftover.kind.clone(), dir: leftover.dir.clone() };
            (closed, leftover.close(index.as_ref(), &dirs))
        };
        let all = self.leftovers.into_iter().map(close).collect();
        // Held up to here.
        drop(self.locks);
        all
    }
}

/// Which group it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// The run; absent for a project's strays.
    pub run: Option<RunId>,
    /// What it is.
    pub kind: Kind,
    /// Where.
    pub dir: Option<PathBuf>,
}

fn elsewhere(run: &RunId, dir: &Path) -> String {
    let why = reach_in_words(Reach::OtherNamespace).unwrap_or_default();
    format!("run {run} of {} was left alone: {why}", dir.display())
}

fn alive_in_words(known: &KnownRun) -> String {
    let supervisor = known.supervisor.map(|supervisor| format!(" (lariat is {supervisor})"));
    let what = match &known.kind {
        Kind::Command(command) => format!(" `{}`", command.join(" ")),
        _ => known.dir.as_ref().map(|dir| format!(" of {}", dir.display())).unwrap_or_default(),
    };
    format!("run {}{what} is alive{}", known.run, supervisor.unwrap_or_default())
}

impl Leftover {
    fn findings(&self) -> &Findings {
        match &self.body {
            Body::Stack(crashed) => crashed.findings(),
            Body::Other(other) => &other.findings,
        }
    }

    /// Returns who is certainly the run's.
    #[must_use]
    pub fn certain(&self) -> &[Found] {
        &self.findings().certain
    }

    /// Returns who may be the run's.
    #[must_use]
    pub fn possible(&self) -> &[Found] {
        &self.findings().possible
    }

    /// Returns the ports that the run claimed and somebody holds.
    #[must_use]
    pub fn held_ports(&self) -> Vec<HeldPort> {
        match &self.body {
            Body::Stack(crashed) => verify::held_ports(&crashed.ports(), crashed.run().as_str()),
            Body::Other(_) => Vec::new(),
        }
    }

    /// Says whether there is nobody to end or to ask about: the books are to be closed, and that is all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.findings().is_empty()
    }

    /// Takes what a person said: these possible ones are to be ended as well, with what they have started.
    pub fn choose(&mut self, chosen: &BTreeSet<Identity>) {
        let own: Vec<Identity> =
            self.possible().iter().map(|found| found.identity).filter(|id| chosen.contains(id)).collect();
        if own.is_empty() {
            return;
        }
        match &mut self.body {
            Body::Stack(crashed) => crashed.choose(own),
            Body::Other(other) => {
                other.clues.chosen.extend(&own);
                let mut findings = other.set().look();
                // A look by clues knows no patterns: who was not chosen is still there.
                let is_new = |found: &&Found| !recover::has(&findings.certain, found.identity);
                let rest: Vec<Found> = other.findings.possible.iter().filter(is_new).cloned().collect();
                findings.possible = rest;
                other.findings = findings;
            }
        }
    }

    /// Takes what a person said: the possible ones are not the run's.
    pub fn dismiss(&mut self) {
        self.is_dismissed = true;
    }

    fn forget(&mut self, known: &BTreeSet<Identity>) {
        match &mut self.body {
            Body::Stack(crashed) => crashed.forget(known),
            Body::Other(other) => {
                other.findings.certain.retain(|found| !known.contains(&found.identity));
                other.findings.possible.retain(|found| !known.contains(&found.identity));
            }
        }
    }

    fn endings(&self, grace: Duration, is_forced: bool) -> Vec<Ending<FoundSet>> {
        match &self.body {
            Body::Stack(crashed) => {
                let longest = crashed.grace().filter(|_| !is_forced);
                crashed.endings(longest.unwrap_or(grace))
            }
            Body::Other(other) => {
                let default = StopPlan { grace, ..StopPlan::default() };
                let plan = other.stop().map_or(default, |plan| match is_forced {
                    true => StopPlan { grace, ..plan },
                    false => plan,
                });
                vec![Ending::new(other.set(), plan, None)]
            }
        }
    }

    fn ended(&mut self, ended: Ended, took: Duration) {
        match &mut self.body {
            Body::Stack(crashed) => crashed.ended(ended, took),
            Body::Other(other) => {
                let possible = std::mem::take(&mut other.findings.possible);
                other.findings = other.set().look();
                other.findings.possible = possible;
                other.ended = Some(ended);
                other.took = took;
            }
        }
    }

    fn close(self, index: Option<&RunIndex>, dirs: &UserDirs) -> Result<Outcome, LedgerError> {
        let is_doubtful = !self.is_dismissed && self.possible().iter().any(|found| found.identity.is_alive());
        match self.body {
            Body::Stack(crashed) => close_stack(*crashed, index, dirs, is_doubtful),
            Body::Other(other) => {
                let run = self.run.filter(|_| self.kind != Kind::Project);
                close_other(*other, run.as_ref(), index, dirs, is_doubtful)
            }
        }
    }
}

fn close_stack(
    crashed: Crashed,
    index: Option<&RunIndex>,
    dirs: &UserDirs,
    is_doubtful: bool,
) -> Result<Outcome, LedgerError> {
    let (ended, took) = crashed.outcome();
    let stays_open = is_doubtful && crashed.findings().certain.is_empty();
    let run = crashed.run().clone();
    let report = if stays_open { crashed.report() } else { crashed.close(index)? };
    if report.is_ledger_closed {
        // A ledger that was damaged does not say where it was.
        remove_socket(&run, dirs);
    }
    Ok(Outcome {
        ended: ended.end.told.max(ended.end.killed).saturating_sub(ended.end.left),
        killed: ended.end.killed.saturating_sub(ended.end.left),
        took,
        is_closed: report.is_ledger_closed,
        left: report.left,
        ports: report.ports,
        notes: report.notes,
    })
}

fn close_other(
    other: Other,
    run: Option<&RunId>,
    index: Option<&RunIndex>,
    dirs: &UserDirs,
    is_doubtful: bool,
) -> Result<Outcome, LedgerError> {
    let ended = other.ended.unwrap_or_default();
    let describe = |found: &Found| verify::describe(found.identity, &ended.reason(found.identity));
    let left: Vec<LeftProcess> = other.findings.certain.iter().filter_map(describe).collect();
    let is_closed = left.is_empty() && !is_doubtful;
    if let Some(run) = run.filter(|_| is_closed) {
        if let Some(index) = index {
            index.remove(run)?;
        }
        remove_socket(run, dirs);
    }
    match &other.file {
        // What cannot be removed names identities that are dead, which is all that it can do.
        Some(file) if is_closed => drop(std::fs::remove_file(&file.path)),
        Some(CommandFile { loaded: Loaded::Record(record), path, .. }) if !left.is_empty() => {
            let mut record = record.clone();
            record.left = left.iter().map(left_record).collect();
            record.rewrite(path)?;
        }
        _ => {}
    }
    Ok(Outcome {
        ended: ended.end.told.max(ended.end.killed).saturating_sub(ended.end.left),
        killed: ended.end.killed.saturating_sub(ended.end.left),
        took: other.took,
        left,
        ports: Vec::new(),
        notes: Vec::new(),
        is_closed,
    })
}

fn left_record(left: &LeftProcess) -> LeftRecord {
    LeftRecord { pid: left.pid, start: left.start, comm: left.command.clone(), reason: left.reason.clone() }
}

/// Removes the socket of a run of which nobody is alive.
fn remove_socket(run: &RunId, dirs: &UserDirs) {
    for directory in dirs.at_runtime_all() {
        // One that is not there, or cannot be removed, is in nobody's way.
        let _ = std::fs::remove_file(directory.path.join(format!("{run}.sock")));
    }
}

/// Removes sockets of runs that nobody has open any more.
fn remove_stale_sockets(dirs: &UserDirs, but: &BTreeSet<String>) {
    // Not by connecting: a supervisor that was stopped answers nobody, and is alive.
    let Ok(bound) = std::fs::read("/proc/net/unix") else { return };
    for directory in dirs.at_runtime_all() {
        let entries = std::fs::read_dir(&directory.path).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str());
            let run = name.and_then(|name| name.strip_suffix(".sock")).map(str::to_owned);
            let run = run.and_then(|run| RunId::try_from(run).ok());
            let is_old = path.symlink_metadata().and_then(|found| found.modified()).is_ok_and(|at| {
                // A time in the future is no age.
                at.elapsed().is_ok_and(|age| age >= SOCKET_MADE_WITHIN)
            });
            let is_bound = memchr::memmem::find(&bound, path.as_os_str().as_encoded_bytes()).is_some();
            if is_old && !is_bound && run.is_some_and(|run| !but.contains(run.as_str())) {
                // One that cannot be removed is in nobody's way.
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}
