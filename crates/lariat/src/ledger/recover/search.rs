//! The search itself. Pure: it sees a snapshot and nothing else.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use lariat_sys::identity::Identity;

use super::patterns::CommandPattern;
use super::{Clues, Findings, Found, LeaderClue, Process, Reach, Snapshot, Why};

mod place;

/// Finds what is left of a run in a snapshot. Pure.
#[must_use]
pub fn find(clues: &Clues, snapshot: &Snapshot) -> Findings {
    let mut findings = Findings { reach: reach(clues, snapshot), ..Findings::nobody() };
    if findings.reach == Reach::Here {
        let mut search = Search::new(clues, snapshot);
        search.find_known();
        while search.add_descendants() | search.add_members() {}
        findings.possible = search.possible();
        findings.certain = search.certain();
    }
    findings
}

/// Finds whoever works below `place` and whose command matches a pattern, without `known`. Nobody who belongs to a run
/// that is alive, carries the mark of another one than `run`, or is older than `since`, is among them. Pure; the
/// snapshot has to have been asked for the commands in that place.
#[must_use]
pub fn by_pattern(
    snapshot: &Snapshot,
    place: &Path,
    patterns: &[CommandPattern],
    run: Option<&str>,
    since: Option<u64>,
) -> Vec<Found> {
    let alive = snapshot.belonging_to_living();
    let mut found: Vec<Found> = Vec::new();
    for process in &snapshot.processes {
        let is_candidate = process.is_alive
            && process.uid == Some(snapshot.user)
            && !process.is_keeper
            && !snapshot.spared.contains(&process.identity.pid)
            && !alive.contains(&process.identity.pid)
            && process.mark.as_ref().is_none_or(|mark| Some(mark.run.as_str()) == run)
            && since.is_none_or(|since| process.identity.start >= since);
        let traces = process.traces.as_ref().filter(|_| is_candidate);
        let is_here = |cwd: &Path| cwd.starts_with(place);
        let Some(traces) = traces.filter(|traces| traces.cwd.as_deref().is_some_and(is_here)) else {
            continue;
        };
        if let Some(pattern) = patterns.iter().find(|pattern| pattern.matches(&traces.arguments)) {
            let mut one = found_as(process, Why::Pattern, None);
            one.pattern = Some(pattern.to_string());
            found.push(one);
        }
    }
    found.sort_by_key(|found| (found.identity.start, found.identity.pid));
    found
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
    holders: BTreeMap<i32, &'a Process>,
    led: Vec<Led<'a>>,
    reapers: BTreeSet<i32>,
    /// By pid: why it is the run's, and of which service.
    ours: BTreeMap<i32, (Why, Option<String>)>,
}

impl<'a> Search<'a> {
    fn new(clues: &'a Clues, snapshot: &'a Snapshot) -> Self {
        let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
        let mut holders = BTreeMap::new();
        for process in &snapshot.processes {
            children.entry(process.ppid).or_default().push(process);
            holders.insert(process.identity.pid, process);
        }
        let mut led = Vec::new();
        for clue in &clues.leaders {
            let number = clue.leader.pid;
            // HAZARD(pid-reuse): a process that has the number now and is not our leader got it after our session and
            // group were empty. Whoever has that session or group is a stranger.
            let is_reused = holders.get(&number).is_some_and(|holder| !clue.leader.is_same(&holder.identity));
            if !is_reused && number > 1 {
                led.extend(clue.has_own_session.then_some(Led { number, is_session: true, clue }));
                led.extend(clue.has_own_group.then_some(Led { number, is_session: false, clue }));
            }
        }
        let reapers = place::reapers(clues, snapshot);
        Self { clues, snapshot, children, holders, led, reapers, ours: BTreeMap::new() }
    }

    fn is_spared(&self, process: &Process) -> bool {
        process.identity.pid <= 1
            || self.snapshot.spared.contains(&process.identity.pid)
            || self.clues.spared.iter().any(|spared| spared.is_same(&process.identity))
            || self.snapshot.living.own.iter().any(|own| own.is_same(&process.identity))
    }

    /// It carries the mark of a run that is alive, and that run is another one.
    fn is_of_another(&self, process: &Process) -> bool {
        process.mark.as_ref().is_some_and(|mark| {
            mark.run != self.clues.run.as_str() && self.snapshot.living.marks.contains(&mark.run)
        })
    }

    fn add(&mut self, process: &Process, why: Why, service: Option<String>) -> bool {
        if self.is_spared(process) || self.ours.contains_key(&process.identity.pid) {
            return false;
        }
        self.ours.insert(process.identity.pid, (why, service));
        true
    }

    /// Adds whoever is the run's by himself.
    fn find_known(&mut self) {
        let others = self.snapshot.belonging_to_known();
        let in_group = if self.clues.asks_locks { Why::Abandoned } else { Why::Cgroup };
        for process in &self.snapshot.processes {
            if let Some(clue) = self.clues.leaders.iter().find(|clue| clue.leader.is_same(&process.identity))
            {
                self.add(process, Why::Recorded, Some(clue.service.clone()));
            }
            // Somebody else may put any text into his own environment.
            let is_own = process.uid == Some(self.snapshot.user);
            if let Some(mark) = process
                .mark
                .as_ref()
                .filter(|mark| is_own && self.clues.has_mark && mark.run == self.clues.run.as_str())
            {
                self.add(process, Why::Marked, mark.service.clone());
            }
            // A run that is alive may have been started from within this one, and is in its cgroup with all it has.
            let pid = process.identity.pid;
            if let Some(service) = self.snapshot.grouped.get(&pid).filter(|_| !others.contains(&pid)) {
                self.add(process, in_group, Some(service.clone()));
            }
            // HAZARD(member-of-another-user): whatever else would say whose it is may not be read.
            if self.clues.left.iter().any(|left| left.is_same(&process.identity)) {
                self.add(process, Why::Left, None);
            }
            if let Some(clue) = self.writes_to(process).filter(|_| is_own && !self.is_of_another(process)) {
                self.add(process, Why::Output, Some(clue.service.clone()));
            }
            if self.clues.chosen.iter().any(|chosen| chosen.is_same(&process.identity)) {
                self.add(process, Why::Chosen, None);
            }
        }
    }

    /// Returns the start whose output the process can write to. The writing end came from the service, by fork or by
    /// hand.
    fn writes_to(&self, process: &Process) -> Option<&'a LeaderClue> {
        let pipes = &process.traces.as_ref()?.pipes;
        // HAZARD(pipe-number): nobody who got it from the leader by descent is older than the leader.
        self.clues.leaders.iter().find(|clue| {
            clue.output.is_some_and(|output| pipes.contains(&output))
                && process.identity.start >= clue.leader.start
        })
    }

    /// Adds the children of what is ours already, and says whether there were any new ones.
    fn add_descendants(&mut self) -> bool {
        let mut has_grown = false;
        let mut to_visit: Vec<i32> = self.ours.keys().copied().collect();
        while let Some(parent) = to_visit.pop() {
            let service = self.ours.get(&parent).and_then(|(_, service)| service.clone());
            for child in self.children.get(&parent).cloned().unwrap_or_default() {
                if !self.is_of_another(child) && self.add(child, Why::Descendant(parent), service.clone()) {
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
                    if !self.is_of_another(member) {
                        has_grown |= self.add(member, led.why(), Some(led.clue.service.clone()));
                    }
                }
            }
        }
        has_grown
    }

    fn possible(&self) -> Vec<Found> {
        let alive = self.snapshot.belonging_to_living();
        let is_free = |process: &Process| {
            process.is_alive
                && !process.is_keeper
                && !self.is_spared(process)
                && !alive.contains(&process.identity.pid)
                && !self.ours.contains_key(&process.identity.pid)
        };
        let mut suspects: BTreeMap<i32, (Why, Option<String>)> = BTreeMap::new();
        // Users of suspects: ours, and of those who carry the mark as somebody else what they have started as such.
        let mut users = BTreeSet::from([self.snapshot.user]);
        for process in self.snapshot.processes.iter().filter(|process| is_free(process)) {
            let suspicion = if process.uid == Some(self.snapshot.user) {
                self.by_number(process).or_else(|| self.by_port(process)).or_else(|| self.by_place(process))
            } else {
                let marked = self.by_mark_of_other(process);
                users.extend(process.uid.filter(|_| marked.is_some()));
                marked
            };
            suspects.extend(suspicion.map(|suspicion| (process.identity.pid, suspicion)));
        }
        let is_candidate =
            |process: &Process| is_free(process) && process.uid.is_some_and(|uid| users.contains(&uid));
        // What a suspect has started goes with it.
        let mut to_visit: Vec<i32> = suspects.keys().copied().collect();
        while let Some(parent) = to_visit.pop() {
            let service = suspects.get(&parent).and_then(|(_, service)| service.clone());
            for child in self.children.get(&parent).into_iter().flatten().filter(|child| is_candidate(child))
            {
                if let Entry::Vacant(place) = suspects.entry(child.identity.pid) {
                    place.insert((Why::Descendant(parent), service.clone()));
                    to_visit.push(child.identity.pid);
                }
            }
        }
        self.take(suspects)
    }

    /// Another user's process with the run's mark: a member that has become that user, or anybody of his, who may put
    /// any text into his environment. Only root gets to see it.
    fn by_mark_of_other(&self, process: &Process) -> Option<(Why, Option<String>)> {
        let mark = process.mark.as_ref().filter(|_| self.clues.has_mark && process.uid.is_some())?;
        (mark.run == self.clues.run.as_str()).then(|| (Why::MarkedByOther, mark.service.clone()))
    }

    /// The number of a session or group that a leader of ours led.
    fn by_number(&self, process: &Process) -> Option<(Why, Option<String>)> {
        // Nobody is older than the leader he descends from.
        let is_it = |led: &&Led<'_>| led.has(process) && process.identity.start >= led.clue.leader.start;
        let led = self.led.iter().find(is_it)?;
        Some((led.why(), Some(led.clue.service.clone())))
    }

    fn is_born_since(&self, process: &Process) -> bool {
        self.clues.began.is_some_and(|began| process.identity.start >= began)
    }

    /// A listener on a port of the run.
    fn by_port(&self, process: &Process) -> Option<(Why, Option<String>)> {
        let traces = process.traces.as_ref().filter(|_| self.is_born_since(process))?;
        let (service, port) = self.clues.ports.iter().find(|(_, port)| traces.ports.contains(port))?;
        Some((Why::Port(*port), Some(service.clone())))
    }

    fn certain(mut self) -> Vec<Found> {
        let ours = std::mem::take(&mut self.ours);
        self.take(ours)
    }

    /// Makes findings of those that are alive, parents first.
    fn take(&self, mut reasons: BTreeMap<i32, (Why, Option<String>)>) -> Vec<Found> {
        let mut all = Vec::new();
        for process in self.snapshot.processes.iter().filter(|process| process.is_alive) {
            if let Some((why, service)) = reasons.remove(&process.identity.pid) {
                all.push(found_as(process, why, service));
            }
        }
        // A child is never older than its parent; of the same tick, the lower number nearly always came first.
        all.sort_by_key(|found: &Found| (found.identity.start, found.identity.pid));
        all
    }
}

impl Snapshot {
    /// Returns the numbers of everybody who belongs to a run that is alive: its own processes, what carries its mark, and
    /// what descends from either.
    pub(super) fn belonging_to_living(&self) -> BTreeSet<i32> {
        self.below(|process| process.is_keeper || self.is_of_known(process))
    }

    /// Returns the same of runs that are known to be alive. Whoever calls himself a keeper is no proof of one: in a
    /// cgroup nobody hides.
    fn belonging_to_known(&self) -> BTreeSet<i32> {
        if self.grouped.is_empty() {
            BTreeSet::new()
        } else {
            self.below(|process| self.is_of_known(process))
        }
    }

    fn is_of_known(&self, process: &Process) -> bool {
        self.living.own.contains(&process.identity)
            || process.mark.as_ref().is_some_and(|mark| self.living.marks.contains(&mark.run))
    }

    fn below(&self, is_seed: impl Fn(&Process) -> bool) -> BTreeSet<i32> {
        let seeds = self.processes.iter().filter(|process| is_seed(process)).map(pid).collect();
        self.with_descendants(seeds)
    }

    /// Returns who is in its cgroups and is not the run's: ourselves and who started us from there, and what belongs to
    /// runs that are alive.
    #[must_use]
    pub fn guests(&self, certain: &[Found]) -> BTreeSet<i32> {
        let others = self.belonging_to_known();
        let is_guest = |pid: &&i32| self.spared.contains(pid) || others.contains(pid);
        let is_certain = |pid: i32| certain.iter().any(|found| found.identity.pid == pid);
        self.grouped.keys().filter(is_guest).copied().filter(|pid| !is_certain(*pid)).collect()
    }

    /// Returns the numbers of these processes and of everybody below them.
    pub(super) fn with_descendants(&self, seeds: Vec<i32>) -> BTreeSet<i32> {
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for process in &self.processes {
            children.entry(process.ppid).or_default().push(process.identity.pid);
        }
        let mut all: BTreeSet<i32> = seeds.iter().copied().collect();
        let mut to_visit = seeds;
        while let Some(parent) = to_visit.pop() {
            let below = children.get(&parent).into_iter().flatten();
            to_visit.extend(below.filter(|child| all.insert(**child)));
        }
        all
    }

    /// Returns where the eldest of our user works who carries this mark, as far as it could be read of any.
    #[must_use]
    pub fn place_of(&self, mark: &str) -> Option<&Path> {
        let carries = |process: &&Process| {
            process.is_alive
                && process.uid == Some(self.user)
                && process.mark.as_ref().is_some_and(|found| found.run == mark)
        };
        let carriers = self.processes.iter().filter(carries);
        let places = carriers.filter_map(|process| Some((process.identity, process.dir.as_deref()?)));
        places.min_by_key(|(identity, _)| (identity.start, identity.pid)).map(|(_, dir)| dir)
    }

    /// Returns the keepers of a run with this mark that began then: our user's, that somebody with the mark hangs on. One
    /// that carries the mark itself is of a run within it, and one that is older is of the run around it.
    #[must_use]
    pub fn keepers_above(&self, mark: &str, began: Option<u64>) -> Vec<Identity> {
        let carries = |process: &&Process| process.mark.as_ref().is_some_and(|found| found.run == mark);
        let carriers: Vec<i32> = self.processes.iter().filter(carries).map(pid).collect();
        let is_its = |keeper: &&Process| {
            keeper.is_keeper
                && keeper.uid == Some(self.user)
                && !carries(keeper)
                && began.is_none_or(|began| keeper.identity.start >= began)
                && !self.spared.contains(&keeper.identity.pid)
                && !self.living.own.contains(&keeper.identity)
        };
        let keepers = self.processes.iter().filter(is_its);
        let is_above = |keeper: &&Process| {
            let below = self.with_descendants(vec![keeper.identity.pid]);
            carriers.iter().any(|carrier| below.contains(carrier))
        };
        keepers.filter(is_above).map(|keeper| keeper.identity).collect()
    }

    /// Says whether this process is below the supervisor that it names, as what has lost its keeper is. Everybody who has lost
    /// his parent is below init, whose word says nothing.
    fn has_in_hand(&self, supervisor: Identity, process: &Process) -> bool {
        supervisor.pid > 1 && self.with_descendants(vec![supervisor.pid]).contains(&process.identity.pid)
    }

    /// Returns the marks that processes of our user carry and that are not in `known`, each with what is known of the run.
    #[must_use]
    pub fn unknown_marks(&self, known: &BTreeSet<String>) -> BTreeMap<String, Guard> {
        let below_keepers =
            self.with_descendants(self.processes.iter().filter(|p| p.is_keeper).map(pid).collect());
        let mut marks = BTreeMap::new();
        for process in self.processes.iter().filter(|p| p.is_alive && p.uid == Some(self.user)) {
            let Some(mark) = process.mark.as_ref().filter(|mark| !known.contains(&mark.run)) else {
                continue;
            };
            let is_kept =
                below_keepers.contains(&process.identity.pid) || self.living.own.contains(&process.identity);
            let guard = match process.supervisor.filter(|supervisor| self.has_in_hand(*supervisor, process)) {
                Some(supervisor) => Guard::Supervisor(supervisor),
                None if is_kept => Guard::Keeper,
                None => Guard::Nobody,
            };
            let known = marks.entry(mark.run.clone()).or_insert(guard);
            *known = guard.max(*known);
        }
        marks
    }
}

/// Who of lariat looks after a run of which only the mark is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Guard {
    /// Nobody: it did not end by itself.
    Nobody,
    /// One who carries the mark is below a keeper, or is lariat's own.
    Keeper,
    /// The supervisor that one of them names and is below.
    Supervisor(Identity),
}

fn pid(process: &Process) -> i32 {
    process.identity.pid
}

pub(super) fn found_as(process: &Process, why: Why, service: Option<String>) -> Found {
    Found {
        identity: process.identity,
        why,
        pattern: None,
        service,
        ppid: process.ppid,
        uid: process.uid,
        comm: process.comm.clone(),
        command: String::new(),
        age: Duration::ZERO,
    }
}

/// Says whether an identity is among findings.
#[must_use]
pub fn has(found: &[Found], identity: Identity) -> bool {
    found.iter().any(|found| found.identity == identity)
}
