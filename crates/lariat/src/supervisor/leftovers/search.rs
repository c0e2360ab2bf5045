//! Finds the groups, and has them ended and closed together.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;

use super::super::recovery::{self, Access, Others, Past, Seen};
use super::super::runs::{Kind, KnownRun, Runs, State, reach_in_words};
use super::{AtWork, Body, Closed, Leftover, Other, Outcome};
use crate::ledger::LedgerError;
use crate::ledger::command::{CommandFile, Loaded};
use crate::ledger::index::{RunIndex, RuntimeDir, UserDirs};
use crate::ledger::lock::{DirectoryLock, LockWait};
use crate::ledger::record::RunId;
use crate::ledger::recover::patterns::CommandPattern;
use crate::ledger::recover::{self, Clues, Findings, Reach, Snapshot};
use crate::shutdown::endings::{Ended, Pace, end_all};
use crate::shutdown::found::FoundSet;

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
    /// Where cgroups may have been made, besides the places that are known anyway.
    pub cgroup_bases: &'a [PathBuf],
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
    let mut look = first_look(request, &BTreeSet::new())?;
    let places = look.search.places_to_lock();
    if request.takes && !places.is_empty() {
        let deaf = look.deaf;
        // Nothing is held while another sweep is waited for. What it has ended meanwhile is not there any more.
        drop(look.search);
        let locks = lock_user(request.dirs, &places, deadline, cancel)?;
        look = first_look(request, &deaf)?;
        look.search.locks = locks;
    }
    let Look { mut search, mut snapshot, .. } = look;
    if request.takes {
        search.settle();
    }
    search.forget_doubles();
    if let Some(project) = request.project.filter(|_| !request.patterns.is_empty()) {
        search.add_strays(project, request.patterns, &mut snapshot);
    }
    Ok(search)
}

/// What one look has found.
struct Look {
    search: Search,
    snapshot: Snapshot,
    /// Projects that do not answer.
    deaf: BTreeSet<PathBuf>,
}

/// Looks once, but not for strays. Projects of which it is known that they do not answer are not asked.
fn first_look(request: &Request<'_>, deaf: &BTreeSet<PathBuf>) -> Result<Look, SearchError> {
    let mut runs = Runs::read_beside(request.dirs, deaf);
    let mut snapshot = Snapshot::take(&runs.living()).map_err(SearchError::Processes)?;
    runs.complete(&snapshot, request.cgroup_bases);
    runs.add_strays(&snapshot, request.cgroup_bases);
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
    Ok(Look { search, snapshot, deaf: runs.deaf })
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
    let wanted = listed.chain(request.project.map(Path::to_owned));
    wanted.filter(|root| !runs.deaf.contains(root)).collect()
}

fn is_wanted(request: &Request<'_>, known: &KnownRun) -> bool {
    let is_below = |dir: &PathBuf| request.project.is_some_and(|project| dir.starts_with(project));
    let is_at = |dir: &PathBuf| request.project.is_some_and(|project| dir == project);
    request.is_all
        || match known.kind {
            // A project below this one is its own.
            Kind::Stack(_) => known.dir.as_ref().is_some_and(is_at),
            // Where it was nobody can say any more, and nobody can miss it.
            Kind::Lost if known.is_deserted => true,
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
                let dir = known.dir.as_ref().map(|dir| format!(" of {}", dir.display())).unwrap_or_default();
                let text = format!("run {}{dir} was left alone: {why}", known.run);
                if runs.is_unanswered(known) { self.troubles.push(text) } else { self.notes.push(text) }
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
        let reach = reach_in_words(findings.reach);
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

    /// Makes sure that nobody is left of those of whom nobody was found: one look proves nothing.
    fn settle(&mut self) {
        let open: Vec<&mut Leftover> = self.leftovers.iter_mut().filter(|one| !one.is_settled()).collect();
        if open.is_empty() {
            return;
        }
        let sets: Vec<FoundSet> = open.iter().map(|leftover| leftover.set()).collect();
        for (leftover, findings) in open.into_iter().zip(FoundSet::look_until_settled(&sets)) {
            leftover.found(findings);
        }
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
    /// Blocks until nobody is left, or nothing helps any more: the longest grace period and fifteen seconds at most; or
    /// until `pace`, which is asked every few milliseconds, wants it otherwise.
    pub fn end(&mut self, grace: Duration, is_forced: bool, pace: impl FnMut() -> Pace) {
        let began = Instant::now();
        let (mut owners, mut sets) = (Vec::new(), Vec::new());
        for (place, leftover) in self.leftovers.iter().enumerate() {
            if !leftover.certain().is_empty() {
                let endings = leftover.endings(if is_forced { Duration::ZERO } else { grace }, is_forced);
                owners.extend(endings.iter().map(|_| place));
                sets.extend(endings);
            }
        }
        let done = end_all(sets, pace);
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

    /// Returns the longest grace period that [`Self::end`] gives to somebody.
    #[must_use]
    pub fn longest_grace(&self, grace: Duration, is_forced: bool) -> Duration {
        let somebody = self.leftovers.iter().filter(|leftover| !is_forced && !leftover.certain().is_empty());
        somebody.map(|leftover| leftover.grace().unwrap_or(grace)).max().unwrap_or_default()
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
