//! All runs of this user on the machine: stacks from the list of runs, commands from their records.
//!
//! Reads, and changes nothing. Whether a stack is alive is said by its project's lock; where the project is gone, by its
//! supervisor and keepers. What a run of neither list has left is found by the marks of processes
//! ([`crate::ledger::recover::Snapshot::unknown_marks`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lariat_keeper::contain::cgroup::{self, Directory};
use lariat_keeper::contain::choose;
use lariat_sys::identity::{BootId, Identity};
use lariat_sys::procfs;

use super::recovery::Others;
use crate::ledger::command::{self, CommandFile};
use crate::ledger::index::{IndexEntry, RunIndex, UserDirs};
use crate::ledger::record::{RunId, RunRecord};
use crate::ledger::recover::{self, Clues, Guard, Living, Reach, Snapshot};
use crate::ledger::store::{self, Loaded};
use crate::ledger::{LedgerError, StateDir, answers, lock};

/// How it is with a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Its supervisor is alive.
    Alive,
    /// Its supervisor is dead, and keepers are ending it.
    Finishing,
    /// It did not end by itself.
    Crashed,
    /// It ended and was closed; its entry was left.
    Ended,
    /// It cannot be told from here.
    Unknown,
}

/// What a run is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A stack with this name, if that is known.
    Stack(Option<String>),
    /// A command.
    Command(Vec<String>),
    /// Nothing is known but processes that carry its id.
    Lost,
    /// None: processes that work in a project, and that no run is known to have started.
    Project,
}

/// One run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownRun {
    /// Its id.
    pub run: RunId,
    /// What it is.
    pub kind: Kind,
    /// Where: the project's root, or the command's working directory.
    pub dir: Option<PathBuf>,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_unix_ms: Option<u64>,
    /// Who decides.
    pub supervisor: Option<Identity>,
    /// Its keepers.
    pub keepers: Vec<Identity>,
    /// The run around it, whose mark its processes carry.
    pub inside: Option<RunId>,
    /// How it is.
    pub state: State,
    /// All that is known of it are cgroup directories in which nobody is.
    pub is_deserted: bool,
    /// Why that cannot be told, or what else a person should know.
    pub note: Option<String>,
    /// What is known for a search; only of those that did not end by themselves.
    pub clues: Option<Clues>,
}

/// All that are known.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Runs {
    /// Stacks and commands, in this order.
    pub known: Vec<KnownRun>,
    /// The list of runs, as it is on the disk.
    pub listed: Vec<IndexEntry>,
    /// The records of commands.
    pub commands: Vec<CommandFile>,
    /// Projects of the list whose file systems do not answer: nothing of them was read.
    pub deaf: BTreeSet<PathBuf>,
    /// What could not be read.
    pub notes: Vec<String>,
    /// Where the user is at home, without links.
    home: Option<PathBuf>,
}

impl Runs {
    /// Reads what the user's directories say. What cannot be read is a note.
    ///
    /// Blocks for some seconds at most where a listed project's file system does not answer ([`answers::deaf`]).
    #[must_use]
    pub fn read(dirs: &UserDirs) -> Self {
        Self::read_beside(dirs, &BTreeSet::new())
    }

    /// Reads as [`Self::read`] does, but does not ask those that are known not to answer.
    pub(super) fn read_beside(dirs: &UserDirs, deaf: &BTreeSet<PathBuf>) -> Self {
        let mut runs = Self { home: dirs.home_without_links(), ..Self::default() };
        let index = dirs.runs().map(|directory| RunIndex::at(&directory));
        match index.map_or(Ok(Vec::new()), |index| index.list()) {
            Ok(listed) => runs.listed = listed,
            Err(error) => runs.notes.push(error.to_string()),
        }
        for directory in dirs.at_runtime_all() {
            match command::list(&directory) {
                Ok(found) => runs.commands.extend(found),
                Err(error) => runs.notes.push(error.to_string()),
            }
        }
        // Without it no record can be believed to be of this boot.
        let boot = BootId::read().map(|boot| boot.to_string()).unwrap_or_default();
        let roots = runs.listed.iter().map(|entry| entry.root.clone());
        runs.deaf = answers::deaf(&roots.filter(|root| !deaf.contains(root)).collect());
        runs.deaf.extend(deaf.iter().cloned());
        let is_deaf = |entry: &IndexEntry| runs.deaf.contains(&entry.root);
        let known = |entry| if is_deaf(entry) { unanswered(entry, &boot) } else { stack(entry, &boot) };
        runs.known.extend(runs.listed.iter().map(known));
        runs.known.extend(runs.commands.iter().map(|file| of_command(file, &boot, dirs.home.as_deref())));
        runs
    }

    /// Returns the ids of all of them, and of the runs around those that are alive.
    fn marks(&self) -> BTreeSet<String> {
        let is_alive = |run: &&KnownRun| matches!(run.state, State::Alive | State::Finishing);
        let around = self.known.iter().filter(is_alive).filter_map(|run| run.inside.as_ref());
        self.known.iter().map(|run| &run.run).chain(around).map(ToString::to_string).collect()
    }

    /// Returns the ids of those that did not surely end.
    pub(super) fn at_work(&self) -> BTreeSet<String> {
        let is_over = |run: &&KnownRun| matches!(run.state, State::Crashed | State::Ended);
        self.known.iter().filter(|run| !is_over(run)).map(|run| run.run.to_string()).collect()
    }

    /// Returns what belongs to those that are alive or are being ended by their keepers.
    #[must_use]
    pub fn living(&self) -> Living {
        let mut living = Living { home: self.home.clone(), ..Living::default() };
        // Whether one is alive whose ledger does not answer nobody can say, so it is spared.
        let is_alive =
            |run: &&KnownRun| matches!(run.state, State::Alive | State::Finishing) || self.is_unanswered(run);
        // A run inside another one carries that one's mark, and is part of it: of its life, and of what it leaves.
        // What a process says of its supervisor keeps its own run from being ended, and hides nobody of another one.
        let is_hearsay = |run: &&KnownRun| run.kind == Kind::Lost && run.supervisor.is_some();
        let alive = self.known.iter().filter(is_alive).filter(|run| run.inside.is_none());
        for run in alive.filter(|run| !is_hearsay(run)) {
            living.marks.insert(run.run.to_string());
            living.own.extend(run.supervisor);
            living.own.extend(&run.keepers);
        }
        living
    }

    /// Says whether nothing of a stack could be read, because its file system does not answer.
    #[must_use]
    pub fn is_unanswered(&self, run: &KnownRun) -> bool {
        matches!(run.kind, Kind::Stack(_)) && run.dir.as_ref().is_some_and(|dir| self.deaf.contains(dir))
    }

    /// Returns what a search for leftovers of one of them has to know of the others.
    #[must_use]
    pub fn others(&self) -> Others {
        Others { living: self.living(), listed: self.listed.clone(), cgroup_bases: self.bases(&[]) }
    }

    /// Corrects the states of those of which only the mark is known, by who carries it: a mark below a keeper is that of
    /// a run that is being ended, and so is one whose cgroup somebody looks after. Adds runs that are in neither list.
    ///
    /// Cgroups are looked for in `bases`, in our own cgroup, and wherever a record names one.
    pub fn complete(&mut self, snapshot: &Snapshot, bases: &[PathBuf]) {
        let directories = Directories::read(self.bases(bases));
        for run in self.known.iter_mut().filter(|run| run.state == State::Crashed) {
            let Some(clues) = &mut run.clues else { continue };
            if clues.asks_locks {
                clues.cgroup_bases.clone_from(&directories.bases);
            }
            let is_blind = clues.leaders.is_empty();
            let is_held = clues.asks_locks && directories.is_held(run.run.as_str());
            let keepers =
                if is_blind { snapshot.keepers_above(run.run.as_str(), clues.began) } else { Vec::new() };
            if is_blind && (is_held || !keepers.is_empty()) {
                run.state = State::Finishing;
                run.keepers = keepers;
                run.clues = None;
            }
        }
        for (mark, guard) in snapshot.unknown_marks(&self.marks()) {
            let Ok(run) = RunId::try_from(mark) else { continue };
            let dir = snapshot.place_of(run.as_str()).map(Path::to_owned);
            let is_held = || directories.is_held(run.as_str());
            let alive = |supervisor| KnownRun {
                state: State::Alive,
                supervisor,
                dir: dir.clone(),
                ..known(run.clone(), Kind::Lost)
            };
            match guard {
                Guard::Supervisor(supervisor) => self.known.push(alive(Some(supervisor))),
                Guard::Nobody if is_held() => self.known.push(alive(None)),
                Guard::Nobody => self.known.push(lost_run(run, dir, &directories.bases)),
                Guard::Keeper => {}
            }
        }
    }

    /// Adds runs of which only cgroup directories are known, whether somebody is in them or not. To be called after
    /// [`Self::complete`], with the same.
    pub fn add_strays(&mut self, snapshot: &Snapshot, bases: &[PathBuf]) {
        let directories = Directories::read(self.bases(bases));
        // What lives below a keeper is of a run that is alive, though no list of ours has it.
        let marks = snapshot.unknown_marks(&self.marks());
        for run in directories.abandoned() {
            let is_known =
                marks.contains_key(&run) || self.known.iter().any(|known| known.run.as_str() == run);
            let Some(run) = RunId::try_from(run).ok().filter(|_| !is_known) else { continue };
            let eldest = directories.eldest_in(run.as_str());
            let dir = eldest.and_then(|eldest| procfs::cwd(eldest.pid).ok().flatten());
            let is_deserted = eldest.is_none();
            self.known.push(KnownRun { is_deserted, ..lost_run(run, dir, &directories.bases) });
        }
    }

    /// Every place in which a run of the user may have made cgroups.
    fn bases(&self, more: &[PathBuf]) -> Vec<PathBuf> {
        let of_clues = self.known.iter().filter_map(|run| run.clues.as_ref()).flat_map(|c| &c.cgroup_bases);
        let of_commands = self.commands.iter().filter_map(|file| match &file.loaded {
            command::Loaded::Record(record) => record.cgroup.as_ref(),
            _ => None,
        });
        let named: BTreeSet<PathBuf> = of_clues.chain(of_commands).chain(more).cloned().collect();
        named.into_iter().chain(choose::own()).collect()
    }

    /// Returns how many processes are left of a run that crashed.
    #[must_use]
    pub fn left_of(run: &KnownRun, snapshot: &Snapshot) -> usize {
        run.clues.as_ref().map_or(0, |clues| recover::find(clues, snapshot).certain.len())
    }
}

/// The cgroups of all runs in all places.
struct Directories {
    bases: Vec<PathBuf>,
    /// By run.
    found: BTreeMap<String, Vec<Directory>>,
}

impl Directories {
    fn read(mut bases: Vec<PathBuf>) -> Self {
        bases.sort();
        bases.dedup();
        let mut found: BTreeMap<String, Vec<Directory>> = BTreeMap::new();
        for directory in bases.iter().flat_map(|base| cgroup::directories(base)) {
            found.entry(directory.run.clone()).or_default().push(directory);
        }
        Self { bases, found }
    }

    /// Says whether a lariat process looks after one of a run's.
    fn is_held(&self, run: &str) -> bool {
        self.found.get(run).is_some_and(|all| all.iter().any(Directory::is_held))
    }

    /// Returns the runs of which all are ours and no lariat process looks after any.
    fn abandoned(&self) -> Vec<String> {
        let is_abandoned = |all: &[Directory]| all.iter().all(|one| one.open_abandoned().is_some());
        self.found.iter().filter(|(_, all)| is_abandoned(all)).map(|(run, _)| run.clone()).collect()
    }

    /// Returns the eldest process in those of a run.
    fn eldest_in(&self, run: &str) -> Option<Identity> {
        let mut pids = Vec::new();
        for group in self.found.get(run)?.iter().filter_map(Directory::open) {
            // One that cannot be read names nobody.
            let _ = group.members(&mut pids);
        }
        let members = pids.into_iter().filter_map(|pid| Identity::of(pid).ok().flatten());
        members.min_by_key(|member| (member.start, member.pid))
    }
}

/// Where its eldest process works is the best guess at where it was started.
fn lost_run(run: RunId, dir: Option<PathBuf>, bases: &[PathBuf]) -> KnownRun {
    let clues = Clues { cgroup_bases: bases.to_vec(), ..Clues::mark_only(run.clone()) };
    KnownRun { dir, clues: Some(clues), state: State::Crashed, ..known(run, Kind::Lost) }
}

fn known(run: RunId, kind: Kind) -> KnownRun {
    KnownRun {
        run,
        kind,
        dir: None,
        started_unix_ms: None,
        supervisor: None,
        keepers: Vec::new(),
        inside: None,
        state: State::Unknown,
        is_deserted: false,
        note: None,
        clues: None,
    }
}

/// What an entry of the list says by itself.
fn listed(entry: &IndexEntry) -> KnownRun {
    KnownRun {
        dir: Some(entry.root.clone()),
        started_unix_ms: entry.started_unix_ms,
        supervisor: entry.supervisor.map(Identity::from),
        ..known(entry.run.clone(), Kind::Stack(entry.stack.clone()))
    }
}

/// What is known of an entry whose project does not answer: its supervisor is alive, or nobody can tell.
fn unanswered(entry: &IndexEntry, boot: &str) -> KnownRun {
    let of_entry = listed(entry);
    let is_alive = entry.has_live_supervisor(Some(boot));
    let note = format!("its file system did not answer within {} s", answers::ANSWERS_WITHIN.as_secs());
    let state = if is_alive { State::Alive } else { State::Unknown };
    KnownRun { state, note: Some(note), ..of_entry }
}

/// What the project's ledger says of an entry of the list.
fn stack(entry: &IndexEntry, boot: &str) -> KnownRun {
    let of_entry = listed(entry);
    match project(&entry.root, &entry.run) {
        Ok(Ledger::Ours { record, is_held }) => of_record(of_entry, &record, is_held),
        Ok(Ledger::Other) => without_ledger(of_entry, entry, boot),
        Err(error) => KnownRun { note: Some(error.to_string()), ..of_entry },
    }
}

/// The ledger in a project's directory.
enum Ledger {
    /// It is this run's, and somebody holds the lock or not.
    Ours { record: Box<RunRecord>, is_held: bool },
    /// It is another run's, damaged, or not there.
    Other,
}

fn project(root: &Path, run: &RunId) -> Result<Ledger, LedgerError> {
    let Some(state) = StateDir::open(root)? else { return Ok(Ledger::Other) };
    // The lock first: a run that ends in between is seen as held and closed, which is an end.
    let is_held = lock::is_held(&state)?;
    Ok(match store::load(&state)? {
        Loaded::Record(record) | Loaded::Newer { record: Some(record), .. } if record.run == *run => {
            Ledger::Ours { record, is_held }
        }
        _ => Ledger::Other,
    })
}

fn of_record(of_entry: KnownRun, record: &RunRecord, is_held: bool) -> KnownRun {
    let supervisor = Identity::from(record.supervisor);
    let state = match (record.is_closed, is_held) {
        (true, _) => State::Ended,
        (false, true) if supervisor.is_alive() => State::Alive,
        (false, true) => State::Finishing,
        (false, false) => State::Crashed,
    };
    KnownRun {
        kind: Kind::Stack(Some(record.stack.clone())),
        started_unix_ms: Some(record.started_unix_ms),
        supervisor: Some(supervisor),
        keepers: record.services.iter().filter_map(|s| s.keeper.map(Identity::from)).collect(),
        clues: (state == State::Crashed).then(|| Clues::of(record)),
        state,
        ..of_entry
    }
}

/// The project was removed, moved, or has begun another run: the entry and the marks of processes are what is left.
fn without_ledger(of_entry: KnownRun, entry: &IndexEntry, boot: &str) -> KnownRun {
    let of_entry = KnownRun { note: Some("its ledger is gone".to_owned()), ..of_entry };
    if entry.has_live_supervisor(Some(boot)) {
        return KnownRun { state: State::Alive, ..of_entry };
    }
    KnownRun { state: State::Crashed, clues: Some(Clues::of_entry(entry)), ..of_entry }
}

fn of_command(file: &CommandFile, boot: &str, home: Option<&Path>) -> KnownRun {
    let record = match &file.loaded {
        command::Loaded::Record(record) => record,
        command::Loaded::Newer => {
            let note = format!("{} is a newer lariat's", file.path.display());
            return KnownRun { note: Some(note), ..known(file.run.clone(), Kind::Command(Vec::new())) };
        }
        command::Loaded::Damaged(problem) => {
            let note = format!("its record, {}, is damaged: {problem}", file.path.display());
            return KnownRun {
                state: State::Crashed,
                note: Some(note),
                clues: Some(Clues::mark_only(file.run.clone())),
                ..known(file.run.clone(), Kind::Command(Vec::new()))
            };
        }
    };
    let (supervisor, keeper) = (Identity::from(record.supervisor), record.keeper.map(Identity::from));
    let clues = record.clues(home);
    let is_here = record.boot == boot;
    let state = match is_here {
        true if is_elsewhere(&clues) => State::Unknown,
        true if supervisor.is_alive() => State::Alive,
        true if keeper.is_some_and(|keeper| keeper.is_alive()) => State::Finishing,
        _ => State::Crashed,
    };
    KnownRun {
        dir: Some(record.dir.clone()),
        started_unix_ms: Some(record.started_unix_ms),
        supervisor: Some(supervisor),
        keepers: keeper.into_iter().collect(),
        inside: (record.marker != record.run).then(|| record.marker.clone()),
        note: (state == State::Unknown).then(|| "it is in another pid namespace".to_owned()),
        clues: (state == State::Crashed).then_some(clues),
        state,
        ..known(record.run.clone(), Kind::Command(record.command.clone()))
    }
}

fn is_elsewhere(clues: &Clues) -> bool {
    matches!((clues.pid_namespace, recover::own_pid_namespace()), (Some(theirs), Some(ours)) if theirs != ours)
}

/// Says in words that a run's numbers mean nothing here; `None` where they do.
#[must_use]
pub fn reach_in_words(reach: Reach) -> Option<String> {
    Some(match reach {
        Reach::Here => return None,
        Reach::OtherBoot => "the machine was started anew since: nothing of the run can be alive".to_owned(),
        Reach::OtherNamespace => {
            "the run was in another pid namespace: whether it is alive cannot be seen from here".to_owned()
        }
        Reach::Unreadable(errno) => {
            let why = std::io::Error::from(errno).kind();
            format!("/proc could not be read ({why}): what is left of the run is not known")
        }
    })
}
