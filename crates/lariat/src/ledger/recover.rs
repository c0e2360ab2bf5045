//! Who is left of a run that crashed.
//!
//! [`find`] is pure: clues from the ledger and a snapshot of all processes go in, findings come out. [`survey`] takes the
//! snapshot. Findings are of two kinds. *Certain* is: a recorded identity; who is in a cgroup of the run; what carries
//! the run's mark under our user;
//! what can still write to a service's output; what descends from a certain process; and every member of a session or
//! group that our leader led, if a certain process is in it. *Possible* is a member of such a session or group by its
//! number alone, a listener on a port of the run, an orphan without the mark whose place is the project's, and
//! ([`by_pattern`]) a development server of the project. After a reboot, or from another pid namespace, the numbers name
//! others, and nothing is found. What belongs to another run that is alive is never found ([`Living`]).
//!
//! What this module does not do: signal. The caller holds the run's lock, so that no lariat process of it is alive; it
//! opens each identity again before it acts on it, and surveys again until nobody new is found
//! (HAZARD(fork-while-killing), HAZARD(pid-reuse), HAZARD(pipe-number)).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lariat_keeper::contain::cgroup::{self, Directory};
use lariat_keeper::contain::choose;
use lariat_sys::cgroup::Cgroup;
use lariat_sys::identity::Identity;
use lariat_sys::{Errno, Result};

use super::index::{IndexEntry, UserDirs};
use super::record::{RunId, RunRecord, ServiceRecord};
use crate::process::{age_of, command_of};

pub mod patterns;
mod search;
mod snapshot;
mod words;

pub use super::record::pid_namespace as own_pid_namespace;
pub use search::{Guard, by_pattern, find, has};
pub(crate) use snapshot::newborn;
pub use snapshot::{Process, Snapshot, Traces};

/// What is known of a run from its ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clues {
    /// The run whose mark is looked for.
    pub run: RunId,
    /// Whoever carries the mark is the run's. Not so for a run inside another one, whose processes carry the other's.
    pub has_mark: bool,
    /// The boot in which the numbers mean something; `None` where only the mark is known.
    pub boot: Option<String>,
    /// The pid namespace in which they do, if it was recorded.
    pub pid_namespace: Option<u64>,
    /// The leaders of all starts, whose session and process group have the leader's number where they were led by it.
    pub leaders: Vec<LeaderClue>,
    /// Processes that an earlier attempt could not end.
    pub left: Vec<Identity>,
    /// Processes that may be the run's and that a person said are to be ended.
    pub chosen: Vec<Identity>,
    /// Where the run's cgroups were made: whoever is in one of them was born in it.
    pub cgroup_bases: Vec<PathBuf>,
    /// Nothing else says that the run is over, so a cgroup counts only while no lariat process has its lock.
    pub asks_locks: bool,
    /// Supervisor and keepers of the run. They are spared: if one lives, the run does.
    pub spared: Vec<Identity>,
    /// When it began, in clock ticks since boot. Nobody older is suspected, and without it nobody is.
    pub began: Option<u64>,
    /// The project's directory: where its processes work.
    pub place: Option<PathBuf>,
    /// The ports that its services claimed, with the services.
    pub ports: Vec<(String, u16)>,
}

/// What is known of one start of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaderClue {
    /// The service.
    pub service: String,
    /// Its leader.
    pub leader: Identity,
    /// The leader led a session of its own, so whoever has that number descends from it.
    pub has_own_session: bool,
    /// The same of its process group.
    pub has_own_group: bool,
    /// The number of the pipe that took its output, if it had one.
    pub output: Option<u64>,
}

impl Clues {
    /// Takes the clues out of a record.
    #[must_use]
    pub fn of(record: &RunRecord) -> Self {
        let mut spared = vec![record.supervisor.into()];
        spared.extend(record.services.iter().filter_map(|service| service.keeper.map(Identity::from)));
        let ports = |service: &ServiceRecord| {
            let name = service.name.clone();
            service.ports.iter().map(move |port| (name.clone(), *port)).collect::<Vec<_>>()
        };
        Self {
            boot: Some(record.boot.clone()),
            pid_namespace: record.pid_namespace,
            leaders: record.services.iter().flat_map(leaders).collect(),
            left: record.report.iter().flat_map(|report| &report.left).map(|left| left.identity()).collect(),
            spared,
            began: Some(record.supervisor.start),
            place: place(&record.root),
            ports: record.services.iter().flat_map(ports).collect(),
            cgroup_bases: record.cgroup.iter().cloned().collect(),
            asks_locks: false,
            ..Self::mark_only(record.run.clone())
        }
    }

    /// Makes clues of the mark alone, for a ledger that is damaged.
    #[must_use]
    pub fn mark_only(run: RunId) -> Self {
        Self {
            run,
            has_mark: true,
            boot: None,
            pid_namespace: None,
            leaders: Vec::new(),
            left: Vec::new(),
            chosen: Vec::new(),
            // Where they were made is in the record; most likely where we would make them.
            cgroup_bases: choose::own().into_iter().collect(),
            asks_locks: true,
            spared: Vec::new(),
            began: None,
            place: None,
            ports: Vec::new(),
        }
    }

    /// Makes clues of a run's entry in the list, for one whose ledger is gone.
    #[must_use]
    pub fn of_entry(entry: &IndexEntry) -> Self {
        let supervisor = entry.supervisor.map(Identity::from);
        Self {
            boot: entry.boot.clone(),
            spared: supervisor.into_iter().collect(),
            began: supervisor.map(|supervisor| supervisor.start),
            place: place(&entry.root),
            ..Self::mark_only(entry.run.clone())
        }
    }

    /// Returns the run's cgroup directories that are there now.
    #[must_use]
    pub fn cgroups(&self) -> Vec<Directory> {
        // Two clues may name the same place.
        let bases: BTreeSet<&PathBuf> = self.cgroup_bases.iter().collect();
        bases.into_iter().flat_map(|base| cgroup::directories_of(base, self.run.as_str())).collect()
    }

    /// Returns the same, opened: those that are ours and, where these clues ask for that, nobody's who is alive. That
    /// holds for as long as what is returned is not dropped ([`Directory::open_abandoned`]).
    #[must_use]
    pub fn groups(&self) -> Vec<(Directory, Cgroup)> {
        let open = |directory: Directory| {
            let opened = if self.asks_locks { directory.open_abandoned() } else { directory.open() };
            Some((directory, opened?))
        };
        self.cgroups().into_iter().filter_map(open).collect()
    }
}

fn leaders(service: &ServiceRecord) -> Vec<LeaderClue> {
    let current = service.leader.map(|leader| (leader, service.session, service.pgrp, service.output));
    let earlier = service.earlier.iter();
    let earlier = earlier.map(|start| (start.leader, Some(start.session), Some(start.session), start.output));
    let clue = |(leader, session, pgrp, output): (super::record::ProcessRecord, _, _, _)| LeaderClue {
        service: service.name.clone(),
        leader: leader.into(),
        // The session of a command in front of a terminal is the shell's: its members are not ours.
        has_own_session: session == Some(leader.pid),
        has_own_group: pgrp == Some(leader.pid),
        output,
    };
    current.into_iter().chain(earlier).map(clue).collect()
}

/// Returns the directory if it can tell anything: everything is below `/`.
#[must_use]
pub fn place(root: &Path) -> Option<PathBuf> {
    (root.is_absolute() && root.parent().is_some()).then(|| root.to_owned())
}

/// What a search has to know of its user: runs that are alive, for what belongs to them is nobody's leftover, and his home.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Living {
    /// Their ids, which their processes carry.
    pub marks: BTreeSet<String>,
    /// Their supervisors and keepers.
    pub own: BTreeSet<Identity>,
    /// Where the user is at home, without links: whatever he has may be below it. Where nobody knows that, an orphan is not
    /// suspected for its place alone.
    pub home: Option<PathBuf>,
}

impl Living {
    /// Knows of no run, and of the user what his directories say. Blocks for as long as his home's file system does.
    #[must_use]
    pub fn of(dirs: &UserDirs) -> Self {
        Self { home: dirs.home_without_links(), ..Self::default() }
    }
}

/// Whether the record's numbers mean anything here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// They do.
    Here,
    /// The machine was started anew since: nothing of the run is alive.
    OtherBoot,
    /// The run is in another pid namespace of this machine: whether it is alive cannot be seen from here.
    OtherNamespace,
    /// The processes could not be read, for this reason, so nothing is known.
    Unreadable(Errno),
}

impl Reach {
    /// Says whether nothing is known, for want of a look at the processes.
    #[must_use]
    pub fn is_blind(self) -> bool {
        matches!(self, Self::Unreadable(_))
    }
}

/// Why a process is thought to be the run's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Why {
    /// It is the recorded leader of a service.
    Recorded,
    /// An earlier attempt could not end it.
    Left,
    /// It was born in a cgroup that was made for the run alone.
    Cgroup,
    /// It is in such a cgroup, and no lariat process has its lock: that run is over, and no record knows it.
    Abandoned,
    /// It carries the run's mark.
    Marked,
    /// It carries the run's mark, and is another user's, who may have put anything there.
    MarkedByOther,
    /// It can write to the output of a service.
    Output,
    /// A person said so.
    Chosen,
    /// It descends from this process, which is the run's.
    Descendant(i32),
    /// It is in this session, which a leader of the run led.
    Session(i32),
    /// It is in this process group, which a leader of the run led.
    Group(i32),
    /// It listens on this port, which a service of the run claimed.
    Port(u16),
    /// It is an orphan without environment and terminal, and this of it is in the project.
    Place(Trace),
    /// It has the environment of a login without any run's mark; else as [`Why::Place`].
    Unmarked(Trace),
    /// Its command is one of those that development leaves behind, and it works in the project.
    Pattern,
}

/// What of a process is in the project's directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Trace {
    /// Its working directory.
    WorkingDirectory,
    /// Its program.
    Program,
    /// A file that it has open.
    File,
}

/// A process that is, or may be, left of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Who it is. Check again before acting on it.
    pub identity: Identity,
    /// Why it is here.
    pub why: Why,
    /// The pattern that its command matches, for [`Why::Pattern`].
    pub pattern: Option<String>,
    /// The service it belongs to, as far as that is known.
    pub service: Option<String>,
    /// Its parent's number, for display.
    pub ppid: i32,
    /// Its real user, if it could be read.
    pub uid: Option<u32>,
    /// The name of its program.
    pub comm: String,
    /// Its command line, for display; empty from [`find`], which sees no memory.
    pub command: String,
    /// How long it has been running; zero from [`find`], which reads no clock.
    pub age: Duration,
}

/// What is left of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Findings {
    /// Whether the record's numbers mean anything here.
    pub reach: Reach,
    /// Processes of the run, parents before their children.
    pub certain: Vec<Found>,
    /// Processes of our user that may be the run's, and may as well be strangers. To be offered, never ended unasked.
    pub possible: Vec<Found>,
}

impl Findings {
    /// Returns findings of nobody.
    #[must_use]
    pub fn nobody() -> Self {
        Self { reach: Reach::Here, certain: Vec::new(), possible: Vec::new() }
    }

    /// Says whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.certain.is_empty() && self.possible.is_empty()
    }
}

/// Reads for display what [`find`] does not see: command lines and ages.
pub fn describe(found: &mut [Found]) {
    for found in found {
        found.command = command_of(found.identity.pid, &found.comm);
        found.age = age_of(found.identity);
    }
}

/// Looks for what is left of a run among all processes of the machine. The caller holds the run's lock.
///
/// # Errors
/// As [`Snapshot::take`].
pub fn survey(clues: &Clues, living: &Living) -> Result<Findings> {
    Ok(survey_in(clues, &mut Snapshot::take(living)?))
}

/// Looks among processes that were read already, and reads more about those that are suspected.
#[must_use]
pub fn survey_in(clues: &Clues, snapshot: &mut Snapshot) -> Findings {
    snapshot.look_closer(clues);
    snapshot.set_groups(&clues.groups());
    let mut findings = find(clues, snapshot);
    describe(&mut findings.certain);
    describe(&mut findings.possible);
    findings
}

#[cfg(test)]
mod keeper_tests;
#[cfg(test)]
mod place_tests;
#[cfg(test)]
mod real_tests;
#[cfg(test)]
mod tests;
