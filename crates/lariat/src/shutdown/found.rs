//! What is found of a run without a keeper's help, as a containment that can be ended: by marker, recorded identity,
//! descent, session and group ([`crate::ledger::recover`]).
//!
//! Only what is certainly the run's is ever signalled, and each identity is opened again before it is. Whoever is only
//! possibly the run's is named by the caller and left alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lariat_keeper::contain::Containment;
use lariat_keeper::contain::cgroup::{self, Directory};
use lariat_keeper::contain::limits;
use lariat_keeper::contain::lineage::{is_keeper, life, signal_identity};
use lariat_keeper::stop::{Member, Role};
use lariat_sys::cgroup::Cgroup;
use lariat_sys::identity::Identity;
use lariat_sys::procfs;
use lariat_sys::signal::Signal;
use lariat_sys::{Errno, process, reap, tree};

use crate::ledger::recover::{self, Clues, Findings, Found, Living, Reach, Snapshot, Why, newborn, survey};
use crate::process::{Mark, age_of, command_of};

/// Directories, opened.
type Groups = Vec<(Directory, Cgroup)>;

/// Which of the findings.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    All,
    /// Those of this service.
    Of(String),
    /// Those of no service, or of one that is not named here.
    Without(Vec<String>),
}

impl Part {
    fn has_label(&self, label: &str) -> bool {
        match self {
            Self::All => true,
            Self::Of(name) => name == label,
            Self::Without(names) => !names.iter().any(|name| name == label),
        }
    }

    fn has(&self, found: &Found) -> bool {
        match &found.service {
            Some(service) => self.has_label(service),
            None => !matches!(self, Self::Of(_)),
        }
    }
}

/// The certain findings of a run.
#[derive(Clone, Debug)]
pub struct FoundSet {
    clues: Clues,
    living: Living,
    /// The caller's own children, these excepted, are found and reaped as well.
    children_but: Option<Vec<i32>>,
    /// Whose processes count.
    part: Part,
    /// Since when every look has found nobody.
    empty_since: Option<Instant>,
    /// Whom the last walk delivered.
    delivered: HashSet<Identity>,
    /// How often in a row a walk delivered nobody whom the one before did, though somebody was there.
    missed: u32,
    /// Somebody was too fast for a look.
    has_missed: bool,
    /// Nobody in the run's cgroups was frozen when the first signal was sent.
    is_thawed: bool,
}

/// After so many walks that came too late, whoever was born last is killed on sight (HAZARD(runner)).
const MISSED_MAX: u32 = 3;
/// How often the newest processes are looked through in one turn, and for how many looks in a row nobody may be there.
const SNIPES_MAX: u32 = 256;
const SNIPES_IN_VAIN: u32 = 8;

/// For so long nobody may be found before the set counts as empty. A process in the middle of execve(2) has no
/// environment to be known by (HAZARD(exec-not-finished)), and its parent, which was known, may be dead already.
const SETTLES_AFTER: Duration = Duration::from_millis(50);
/// The same where somebody was too fast for a look before: one look in a few finds such a one (HAZARD(runner)).
const SETTLES_AFTER_A_MISS: Duration = Duration::from_millis(400);
/// So many looks in a row have to find nobody then, however long each takes on a busy machine.
const LOOKS_MIN: u32 = 8;
/// For so long a look that could not be taken is tried again.
const BLIND_WITHIN: Duration = Duration::from_millis(200);
/// The pause between two looks that find nobody.
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl FoundSet {
    /// Looks by these clues.
    #[must_use]
    pub fn new(clues: Clues) -> Self {
        Self {
            clues,
            living: Living::default(),
            children_but: None,
            part: Part::All,
            empty_since: None,
            delivered: HashSet::new(),
            missed: 0,
            has_missed: false,
            is_thawed: false,
        }
    }

    /// Spares what belongs to these runs.
    #[must_use]
    pub fn beside(self, living: &Living) -> Self {
        Self { living: living.clone(), ..self }
    }

    /// Looks for one service only.
    #[must_use]
    pub fn of_service(self, name: &str) -> Self {
        Self { part: Part::Of(name.to_owned()), ..self }
    }

    /// Looks for what belongs to none of these services.
    #[must_use]
    pub fn without_services(self, names: Vec<String>) -> Self {
        Self { part: Part::Without(names), ..self }
    }

    /// Looks among the caller's own children as well, without `but`: for a child subreaper, to which orphans come.
    #[must_use]
    pub fn with_children_but(self, but: Vec<i32>) -> Self {
        Self { children_but: Some(but), ..self }
    }

    /// Returns what is found now.
    #[must_use]
    pub fn look(&self) -> Findings {
        self.look_among(&mut Snapshot::take(&self.living))
    }

    /// Returns what is found among these, if they could be read.
    fn look_among(&self, snapshot: &mut lariat_sys::Result<Snapshot>) -> Findings {
        // HAZARD(shut-proc): without a look at /proc nothing can be found, and nothing is proven either.
        match snapshot {
            Ok(snapshot) => {
                snapshot.living.clone_from(&self.living);
                self.look_in(snapshot)
            }
            Err(errno) => Findings { reach: Reach::Unreadable(*errno), ..Findings::nobody() },
        }
    }

    /// Returns what is found among processes that were read already.
    #[must_use]
    pub fn look_in(&self, snapshot: &mut Snapshot) -> Findings {
        let mut findings = recover::survey_in(&self.clues, snapshot);
        findings.certain.retain(|found| self.part.has(found));
        for pid in self.children() {
            let Some(stat) = procfs::read_stat(pid).ok().flatten().filter(procfs::Stat::is_alive) else {
                continue;
            };
            let is_known = |found: &Found| found.identity == stat.identity();
            if !findings.certain.iter().any(is_known) {
                findings.possible.retain(|found| !is_known(found));
                let comm = stat.comm.to_string();
                findings.certain.push(Found {
                    identity: stat.identity(),
                    why: Why::Descendant(process::pid()),
                    pattern: None,
                    service: None,
                    ppid: stat.ppid,
                    uid: procfs::uid(pid).ok().flatten(),
                    command: command_of(pid, &comm),
                    age: age_of(stat.identity()),
                    comm,
                });
            }
        }
        findings
    }

    /// A walk came too late.
    fn miss(&mut self) {
        self.missed += 1;
        self.has_missed = true;
        if self.missed > MISSED_MAX {
            self.snipe();
        }
    }

    /// Kills whoever of the run was born last, as long as there is one: he forks himself away before a walk has delivered
    /// him. What carries the run's mark alone is known fast enough.
    fn snipe(&self) {
        let mut in_vain = 0;
        // Whoever sweeps from a shell that the run left carries the mark, and so does that shell.
        let own_line: BTreeSet<i32> = own_line().collect();
        for _ in 0..SNIPES_MAX {
            let mut is_found = false;
            for (pid, process) in newborn() {
                // HAZARD(pid-reuse): the descriptor was opened before the mark is read, so if the number went to another
                // since, the signal goes to nobody.
                let mark = Mark::of(pid);
                let is_ours = self.clues.has_mark
                    && mark.as_ref().is_some_and(|mark| mark.run == self.clues.run.as_str())
                    && procfs::uid(pid).ok().flatten() == Some(process::effective_user())
                    && !own_line.contains(&pid)
                    && !self.clues.spared.iter().any(|spared| spared.pid == pid)
                    && !self.living.own.iter().any(|own| own.pid == pid);
                if is_ours {
                    is_found |= process.signal(Signal::KILL).is_ok();
                }
            }
            in_vain = if is_found { 0 } else { in_vain + 1 };
            if in_vain == SNIPES_IN_VAIN {
                return;
            }
        }
    }

    /// Returns the directories of what is looked for, opened.
    fn groups(&self) -> Groups {
        let mut groups = self.clues.groups();
        groups.retain(|(directory, _)| self.part.has_label(&directory.label));
        groups
    }

    /// Removes the directories of what is looked for, as far as they are empty.
    pub fn remove_groups(&self) {
        let groups = self.groups();
        groups
            .iter()
            .map(|(_, group)| group)
            .filter(|group| cgroup::is_empty(group))
            .for_each(cgroup::remove);
        // The room that it made for limits, where it was killed before it could go back.
        self.clues.cgroup_bases.iter().for_each(|base| limits::remove_leaves(base));
    }

    /// Returns the directories that [`Self::remove_groups`] would remove once nobody of the run is left.
    #[must_use]
    pub fn removable(&self) -> Vec<PathBuf> {
        let groups = self.groups();
        if groups.iter().all(|(_, group)| cgroup::is_empty(group)) {
            return groups.into_iter().map(|(directory, _)| directory.path).collect();
        }
        drop(groups);
        let Some((groups, guests)) = self.guests() else { return Vec::new() };
        let is_free = |group: &Cgroup| members(group).is_some_and(|all| all.is_disjoint(&guests));
        let free = groups.into_iter().filter(|(_, group)| is_free(group));
        free.map(|(directory, _)| directory.path).collect()
    }

    /// Returns the directories, and who of their members is not the run's. `None` where nobody can say.
    fn guests(&self) -> Option<(Groups, BTreeSet<i32>)> {
        let groups = self.groups();
        if groups.is_empty() {
            return Some((groups, BTreeSet::new()));
        }
        let mut snapshot = Snapshot::take(&self.living).ok()?;
        snapshot.set_groups(&groups);
        let certain = recover::find(&self.clues, &snapshot).certain;
        let guests = snapshot.guests(&certain);
        Some((groups, guests))
    }

    /// Says whether nobody of the run is in its directories. A guest counts for the directory to stay, and for no more.
    #[must_use]
    pub fn are_groups_deserted(&self) -> bool {
        if self.groups().iter().all(|(_, group)| cgroup::is_empty(group)) {
            return true;
        }
        let Some((groups, guests)) = self.guests() else { return false };
        // Whoever forks himself away is in no list, and the kernel counts him all the same (HAZARD(runner)).
        let has_guests_only = |all: BTreeSet<i32>| !all.is_empty() && all.is_subset(&guests);
        let is_deserted =
            |group: &Cgroup| cgroup::is_empty(group) || members(group).is_some_and(has_guests_only);
        groups.iter().all(|(_, group)| is_deserted(group))
    }

    /// Returns what is found of each set; that it is nobody only when a while has passed in which nobody was. Blocks for that
    /// while, which they share.
    ///
    /// A look is no snapshot: whom it read first may have made another and died before its turn came
    /// (HAZARD(fork-while-walking)).
    #[must_use]
    pub fn look_until_settled(sets: &[FoundSet]) -> Vec<Findings> {
        let mut until = Instant::now() + SETTLES_AFTER;
        let give_up_at = Instant::now() + BLIND_WITHIN;
        let mut looks = 0;
        let mut found: Vec<Findings> = sets.iter().map(|_| Findings::nobody()).collect();
        let is_open = |found: &Findings| {
            found.certain.is_empty() && !matches!(found.reach, Reach::OtherBoot | Reach::OtherNamespace)
        };
        loop {
            let mut snapshot = Snapshot::take(&Living::default());
            for (set, found) in sets.iter().zip(&mut found).filter(|(_, found)| is_open(found)) {
                *found = set.look_among(&mut snapshot);
            }
            let now = Instant::now();
            // A look that saw nothing proves nothing (HAZARD(shut-proc)), nor do those before it.
            (looks, until) = if snapshot.is_ok() { (looks + 1, until) } else { (0, now + SETTLES_AFTER) };
            let is_settled = now >= until && looks >= LOOKS_MIN;
            let is_blind = snapshot.is_err() && now >= give_up_at;
            if is_settled || is_blind || !found.iter().any(is_open) {
                break;
            }
            // It fails only for want of memory; then the looks follow each other without a pause.
            let _ = lariat_sys::poll::poll(&mut [], Some(now + LOOK_EVERY));
        }
        found
    }

    fn children(&self) -> Vec<i32> {
        let mut children = Vec::new();
        if let Some(but) = &self.children_but {
            // A list that cannot be read leaves the other clues.
            let _ = tree::children(process::pid(), &mut children);
            children.retain(|pid| !but.contains(pid));
        }
        children
    }
}

impl Containment for FoundSet {
    fn walk(&mut self, _examine: Option<Signal>, out: &mut Vec<Member>) -> lariat_sys::Result<()> {
        out.clear();
        let mut certain = self.look().certain;
        parents_first(&mut certain);
        // What a run inside this one holds is told by that one's own supervisor (HAZARD(told-twice)).
        let mut nested = HashSet::new();
        out.extend(certain.iter().filter_map(|found| {
            let stat = procfs::read_stat(found.identity.pid).ok().flatten()?;
            let is_nested = nested.contains(&stat.ppid) || is_keeper(&stat);
            nested.extend(is_nested.then_some(stat.pid));
            Some(Member {
                identity: found.identity,
                role: if is_nested { Role::Nested } else { Role::Inner },
                life: life(&stat),
                pgrp: stat.pgrp,
                comm: stat.comm,
                wants_hangup: false,
            })
        }));
        let known = std::mem::take(&mut self.delivered);
        self.delivered.extend(out.iter().map(|member| member.identity));
        if !known.is_disjoint(&self.delivered) {
            self.missed = 0;
        } else if !out.is_empty() {
            self.miss();
        }
        Ok(())
    }

    fn signal(&mut self, member: Identity, signal: Signal) -> lariat_sys::Result<()> {
        signal_identity(member, signal)
    }

    fn thaw(&mut self) {
        // HAZARD(frozen-member): it hears of nothing but KILL.
        if !std::mem::replace(&mut self.is_thawed, true) {
            for (_, group) in self.groups() {
                // Who cannot be thawed has no grace, and dies of KILL all the same.
                let _ = group.thaw();
            }
        }
    }

    fn kill_all(&mut self) {
        // The kernel makes no difference between members: where a run that is alive, or we ourselves, were started from
        // within, everybody is killed one by one. So is whoever this does not reach. A run's own processes are enough to
        // tell: where none of them is, nothing is that they hold. To read more would take too long in a storm.
        let guests: BTreeSet<i32> = self.living.own.iter().map(|own| own.pid).chain(own_line()).collect();
        for (_, group) in self.groups() {
            if members(&group).is_some_and(|all| all.is_disjoint(&guests)) {
                let _ = group.kill();
            }
        }
    }

    fn reap(&mut self) -> bool {
        let dead = |pid: i32| matches!(reap::reap(pid), Ok(Some(_)));
        self.children().into_iter().map(dead).fold(false, |any, one| any | one)
    }

    fn is_empty(&mut self) -> bool {
        let is_found = |findings: Findings| findings.certain.iter().any(|found| self.part.has(found));
        let looks = if self.has_missed { LOOKS_MIN } else { 1 };
        let is_somebody_there = (0..looks).any(|_| survey(&self.clues, &self.living).map_or(true, is_found))
            || !self.children().is_empty()
            || !self.are_groups_deserted();
        if is_somebody_there {
            self.empty_since = None;
            self.miss();
            return false;
        }
        let settles_after = if self.has_missed { SETTLES_AFTER_A_MISS } else { SETTLES_AFTER };
        self.empty_since.get_or_insert_with(Instant::now).elapsed() >= settles_after
    }
}

/// Returns ourselves and all above us.
fn own_line() -> impl Iterator<Item = i32> {
    let parent =
        |pid: &i32| procfs::read_stat(*pid).ok().flatten().map(|stat| stat.ppid).filter(|pid| *pid > 0);
    std::iter::successors(Some(process::pid()), parent)
}

/// Returns who is in a directory; `None` where it cannot be read.
fn members(group: &Cgroup) -> Option<BTreeSet<i32>> {
    let mut pids = Vec::new();
    match group.members(&mut pids) {
        // One that was removed has nobody.
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Some(pids.into_iter().collect()),
        Err(_) => None,
    }
}

/// Puts parents before their children: a shell whose command is killed first starts the next one.
fn parents_first(found: &mut [Found]) {
    let parents: HashMap<i32, i32> = found.iter().map(|f| (f.identity.pid, f.ppid)).collect();
    let depth = |pid: i32| {
        // Bounded by their number: what was read one after the other may lead in circles.
        let steps = std::iter::successors(parents.get(&pid), |parent| parents.get(parent));
        steps.take(parents.len()).count()
    };
    found.sort_by_cached_key(|f| depth(f.identity.pid));
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use lariat_keeper::ending::Ending;
    use lariat_keeper::stop::StopPlan;

    use super::*;
    use crate::ledger::record::RunId;
    use crate::shutdown::endings::{Pace, end_all};

    /// A marked process that is killed at the end, whatever the test did.
    struct Marked(Child);

    impl Marked {
        fn spawn(run: &RunId, script: &str) -> Self {
            let mut command = Command::new("sh");
            command.args(["-c", script]).env("LARIAT_RUN", run.as_str()).env("LARIAT_SERVICE", "web");
            Self(command.spawn().unwrap())
        }

        fn identity(&self) -> Identity {
            Identity::of(i32::try_from(self.0.id()).unwrap()).unwrap().unwrap()
        }
    }

    impl Drop for Marked {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn what_carries_the_marker_is_found_and_ended_and_nobody_else() {
        let (run, other) = (RunId::new_random().unwrap(), RunId::new_random().unwrap());
        let polite = Marked::spawn(&run, "sleep 100 & wait");
        let stubborn = Marked::spawn(&run, "trap '' TERM; while :; do sleep 100; done");
        let stranger = Marked::spawn(&other, "exec sleep 100");
        let set = FoundSet::new(Clues::mark_only(run));
        let is_found = |set: &FoundSet, identity| set.look().certain.iter().any(|f| f.identity == identity);
        assert!(is_found(&set, polite.identity()) && is_found(&set, stubborn.identity()));
        assert!(!is_found(&set, stranger.identity()));
        let plan = StopPlan { grace: Duration::from_millis(300), ..StopPlan::default() };
        let end = end_all(vec![Ending::new(set.clone(), plan, None)], || Pace::Patient)[0].end;
        assert_eq!(end.left, 0);
        assert!(end.told >= 2 && end.killed >= 1, "{end:?}");
        assert!(set.look().certain.is_empty());
        assert!(stranger.identity().is_alive());
    }

    const SNIPING: &str = "LARIAT_TEST_SNIPES";

    /// The sweep of the next test. It is this test program again; without its variable, this test does nothing.
    #[test]
    fn sniping_process() {
        let Ok(run) = std::env::var(SNIPING) else { return };
        FoundSet::new(Clues::mark_only(RunId::try_from(run).unwrap())).snipe();
    }

    #[test]
    fn the_shell_that_a_sweep_is_called_from_is_no_target_though_it_carries_the_mark() {
        let run = RunId::new_random().unwrap();
        // A bystander with the mark is the control: killed, its code is 137.
        let script = "sleep 100 & \"$0\" --exact --quiet shutdown::found::tests::sniping_process > /dev/null; wait $!; \
            echo $?";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(std::env::current_exe().unwrap());
        command.env("LARIAT_RUN", run.as_str()).env(SNIPING, run.as_str());
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "137\n", "{output:?}");
    }
}
