//! Who is left of a run that crashed.
//!
//! [`find`] is pure: clues from the ledger and a snapshot of all processes go in, findings come out. [`survey`] takes the
//! snapshot. Findings are of two kinds. *Certain* is: a recorded identity; what descends from a certain process; what
//! carries the run's mark under our user; and every member of a session or group that our leader led, if a certain
//! process is in it. *Possible* is a member of such a session or group by its number alone. After a reboot, or from
//! another pid namespace, the numbers name others, and nothing is found.
//!
//! What this module does not do: signal. The caller holds the run's lock, so that no lariat process of it is alive; it
//! opens each identity again before it acts on it, and surveys again until nobody new is found
//! (HAZARD(fork-while-walking), HAZARD(pid-reuse)).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lariat_sys::identity::{BootId, Identity};
use lariat_sys::{Result, procfs};

use super::record::{RunId, RunRecord};
use crate::process::{Mark, age_of, command_of};

/// What is known of a run from its ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clues {
    /// The run whose mark is looked for.
    pub run: RunId,
    /// The boot in which the numbers mean something; `None` where only the mark is known.
    pub boot: Option<String>,
    /// The pid namespace in which they do, if it was recorded.
    pub pid_namespace: Option<u64>,
    /// The leaders of all starts, whose session and process group have the leader's number where they were led by it.
    pub leaders: Vec<LeaderClue>,
    /// Who could not be ended when it was last tried.
    pub left: Vec<Identity>,
    /// Supervisor and keepers of the run. They are spared: if one lives, the run does.
    pub spared: Vec<Identity>,
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
}

impl Clues {
    /// Takes the clues out of a record.
    #[must_use]
    pub fn of(record: &RunRecord) -> Self {
        let mut leaders = Vec::new();
        let mut spared = vec![record.supervisor.into()];
        for service in &record.services {
            spared.extend(service.keeper.map(Identity::from));
            let current = service.leader.map(|leader| (leader, service.session, service.pgrp));
            let earlier = service.earlier.iter().map(|e| (e.leader, Some(e.session), Some(e.session)));
            leaders.extend(current.into_iter().chain(earlier).map(|(leader, session, pgrp)| LeaderClue {
                service: service.name.clone(),
                leader: leader.into(),
                // The session of a command in front of a terminal is the shell's: its members are not ours.
                has_own_session: session == Some(leader.pid),
                has_own_group: pgrp == Some(leader.pid),
            }));
        }
        let (boot, pid_namespace) = (Some(record.boot.clone()), record.pid_namespace);
        let left = record.report.iter().flat_map(|report| &report.left);
        let left = left.map(|left| Identity { pid: left.pid, start: left.start }).collect();
        Self { run: record.run.clone(), boot, pid_namespace, leaders, left, spared }
    }

    /// Makes clues of the mark alone, for a ledger that is damaged.
    #[must_use]
    pub fn mark_only(run: RunId) -> Self {
        Self {
            run,
            boot: None,
            pid_namespace: None,
            leaders: Vec::new(),
            left: Vec::new(),
            spared: Vec::new(),
        }
    }
}

/// One process of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Who it is.
    pub identity: Identity,
    /// Its parent's number.
    pub ppid: i32,
    /// Its process group.
    pub pgrp: i32,
    /// Its session.
    pub session: i32,
    /// Its real user, if it could be read.
    pub uid: Option<u32>,
    /// It lives: no zombie. A zombie still proves whose its session is.
    pub is_alive: bool,
    /// The mark in its environment, if it has one that could be read.
    pub mark: Option<Mark>,
    /// The name of its program.
    pub comm: String,
}

/// All processes at about one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The boot id.
    pub boot: String,
    /// Our pid namespace.
    pub pid_namespace: Option<u64>,
    /// The user that we are.
    pub user: u32,
    /// Ourselves, pid 1 and our ancestors: never found, whatever they look like.
    pub spared: BTreeSet<i32>,
    /// The processes, in any order.
    pub processes: Vec<Process>,
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
}

/// Why a process is thought to be the run's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Why {
    /// It is the recorded leader of a service.
    Recorded,
    /// It is one that could not be ended when that was last tried.
    Left,
    /// It carries the run's mark.
    Marked,
    /// It descends from this process, which is the run's.
    Descendant(i32),
    /// It is in this session, which a leader of the run led.
    Session(i32),
    /// It is in this process group, which a leader of the run led.
    Group(i32),
}

/// A process that is, or may be, left of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Who it is. Check again before acting on it.
    pub identity: Identity,
    /// Why it is here.
    pub why: Why,
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
    /// Says whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.certain.is_empty() && self.possible.is_empty()
    }
}

/// Finds what is left of a run in a snapshot. Pure.
#[must_use]
pub fn find(clues: &Clues, snapshot: &Snapshot) -> Findings {
    let mut findings = Findings { reach: reach(clues, snapshot), certain: Vec::new(), possible: Vec::new() };
    if findings.reach == Reach::Here {
        let mut search = Search::new(clues, snapshot);
        search.find_recorded_and_marked();
        while search.add_descendants() | search.add_members() {}
        findings.possible = search.possible();
        findings.certain = search.certain();
    }
    findings
}

fn reach(clues: &Clues, snapshot: &Snapshot) -> Reach {
    match (&clues.boot, clues.pid_namespace, snapshot.pid_namespace) {
        (Some(boot), _, _) if *boot != snapshot.boot => Reach::OtherBoot,
        (_, Some(theirs), Some(ours)) if theirs != ours => Reach::OtherNamespace,
        _ => Reach::Here,
    }
}

/// A number that a leader gave to its session or group.
#[derive(Clone, Copy)]
struct Led<'a> {
    number: i32,
    is_session: bool,
    clue: &'a LeaderClue,
}

impl Led<'_> {
    fn has(&self, process: &Process) -> bool {
        let number = if self.is_session { process.session } else { process.pgrp };
        number == self.number
    }

    fn why(&self) -> Why {
        if self.is_session { Why::Session(self.number) } else { Why::Group(self.number) }
    }
}

struct Search<'a> {
    clues: &'a Clues,
    snapshot: &'a Snapshot,
    children: BTreeMap<i32, Vec<&'a Process>>,
    led: Vec<Led<'a>>,
    /// By pid: why it is the run's, and of which service.
    ours: BTreeMap<i32, (Why, Option<String>)>,
}

impl<'a> Search<'a> {
    fn new(clues: &'a Clues, snapshot: &'a Snapshot) -> Self {
        let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
        let mut starts = BTreeMap::new();
        for process in &snapshot.processes {
            children.entry(process.ppid).or_default().push(process);
            starts.insert(process.identity.pid, process.identity.start);
        }
        let mut led = Vec::new();
        for clue in &clues.leaders {
            let number = clue.leader.pid;
            // HAZARD(pid-reuse): a process that has the number now and is not our leader got it after our session and
            // group were empty. Whoever has that session or group is a stranger.
            let is_reused = starts.get(&number).is_some_and(|start| *start != clue.leader.start);
            if !is_reused && number > 1 {
                led.extend(clue.has_own_session.then_some(Led { number, is_session: true, clue }));
                led.extend(clue.has_own_group.then_some(Led { number, is_session: false, clue }));
            }
        }
        Self { clues, snapshot, children, led, ours: BTreeMap::new() }
    }

    fn is_spared(&self, process: &Process) -> bool {
        process.identity.pid <= 1
            || self.snapshot.spared.contains(&process.identity.pid)
            || self.clues.spared.contains(&process.identity)
    }

    fn add(&mut self, process: &Process, why: Why, service: Option<String>) -> bool {
        if self.is_spared(process) || self.ours.contains_key(&process.identity.pid) {
            return false;
        }
        self.ours.insert(process.identity.pid, (why, service));
        true
    }

    fn find_recorded_and_marked(&mut self) {
        for process in &self.snapshot.processes {
            if let Some(clue) = self.clues.leaders.iter().find(|clue| clue.leader == process.identity) {
                self.add(process, Why::Recorded, Some(clue.service.clone()));
            }
            // Somebody else may put any text into his own environment.
            let is_own = process.uid == Some(self.snapshot.user);
            if let Some(mark) =
                process.mark.as_ref().filter(|mark| is_own && mark.run == self.clues.run.as_str())
            {
                self.add(process, Why::Marked, mark.service.clone());
            }
            // HAZARD(member-of-another-user): whatever else would say whose it is may not be read.
            if self.clues.left.contains(&process.identity) {
                self.add(process, Why::Left, None);
            }
        }
    }

    /// Adds the children of what is ours already, and says whether there were any new ones.
    fn add_descendants(&mut self) -> bool {
        let mut has_grown = false;
        let mut to_visit: Vec<i32> = self.ours.keys().copied().collect();
        while let Some(parent) = to_visit.pop() {
            let service = self.ours.get(&parent).and_then(|(_, service)| service.clone());
            for child in self.children.get(&parent).cloned().unwrap_or_default() {
                if self.add(child, Why::Descendant(parent), service.clone()) {
                    has_grown = true;
                    to_visit.push(child.identity.pid);
                }
            }
        }
        has_grown
    }

    /// Adds whoever is with somebody of ours in a session or group that a leader of ours led.
    fn add_members(&mut self) -> bool {
        let mut has_grown = false;
        for led in self.led.clone() {
            let members = || self.snapshot.processes.iter().filter(|process| led.has(process));
            if members().any(|member| self.ours.contains_key(&member.identity.pid)) {
                for member in members() {
                    has_grown |= self.add(member, led.why(), Some(led.clue.service.clone()));
                }
            }
        }
        has_grown
    }

    fn possible(&self) -> Vec<Found> {
        let mut possible = Vec::new();
        for process in &self.snapshot.processes {
            let is_candidate = process.is_alive
                && process.uid == Some(self.snapshot.user)
                && !self.is_spared(process)
                && !self.ours.contains_key(&process.identity.pid);
            // Nobody is older than the leader he descends from.
            let led = self
                .led
                .iter()
                .find(|led| led.has(process) && process.identity.start >= led.clue.leader.start);
            if let Some(led) = led.filter(|_| is_candidate) {
                possible.push(found(process, led.why(), Some(led.clue.service.clone())));
            }
        }
        possible.sort_by_key(|found: &Found| (found.identity.start, found.identity.pid));
        possible
    }

    fn certain(mut self) -> Vec<Found> {
        let mut certain = Vec::new();
        for process in self.snapshot.processes.iter().filter(|process| process.is_alive) {
            if let Some((why, service)) = self.ours.remove(&process.identity.pid) {
                certain.push(found(process, why, service));
            }
        }
        // A child is never older than its parent; of the same tick, the lower number nearly always came first.
        certain.sort_by_key(|found: &Found| (found.identity.start, found.identity.pid));
        certain
    }
}

fn found(process: &Process, why: Why, service: Option<String>) -> Found {
    Found {
        identity: process.identity,
        why,
        service,
        ppid: process.ppid,
        uid: process.uid,
        comm: process.comm.clone(),
        command: String::new(),
        age: Duration::ZERO,
    }
}

impl Snapshot {
    /// Reads `/proc`. Processes that end meanwhile are left out; those that we may not look into have no mark.
    ///
    /// # Errors
    /// When `/proc` cannot be listed, or the boot id cannot be read.
    pub fn take() -> Result<Self> {
        let mut processes = Vec::new();
        for pid in procfs::pids()? {
            let Ok(Some(stat)) = procfs::read_stat(pid) else { continue };
            processes.push(Process {
                identity: stat.identity(),
                ppid: stat.ppid,
                pgrp: stat.pgrp,
                session: stat.session,
                uid: procfs::uid(pid).ok().flatten(),
                is_alive: stat.is_alive(),
                mark: Mark::of(pid),
                comm: stat.comm.to_string(),
            });
        }
        let spared = ancestors(&processes, lariat_sys::process::pid());
        let boot = BootId::read()?.to_string();
        let user = lariat_sys::process::effective_user();
        Ok(Self { boot, pid_namespace: super::record::pid_namespace(), user, spared, processes })
    }
}

/// Returns a process, all above it, and pid 1.
fn ancestors(processes: &[Process], pid: i32) -> BTreeSet<i32> {
    let parents: BTreeMap<i32, i32> =
        processes.iter().map(|process| (process.identity.pid, process.ppid)).collect();
    let mut spared = BTreeSet::from([1]);
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| spared.insert(*pid)) {
        next = parents.get(&pid).copied();
    }
    spared
}

/// Looks for what is left of a run among all processes of the machine. The caller holds the run's lock.
///
/// # Errors
/// As [`Snapshot::take`].
pub fn survey(clues: &Clues) -> Result<Findings> {
    let mut findings = find(clues, &Snapshot::take()?);
    for found in findings.certain.iter_mut().chain(&mut findings.possible) {
        found.command = command_of(found.identity.pid, &found.comm);
        found.age = age_of(found.identity);
    }
    Ok(findings)
}

#[cfg(test)]
mod tests;
