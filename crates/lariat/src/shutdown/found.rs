//! What is found of a run without a keeper's help, as a containment that can be ended: by marker, recorded identity,
//! descent, session and group ([`crate::ledger::recover`]).
//!
//! Only what is certainly the run's is ever signalled, and each identity is opened again before it is. Whoever is only
//! possibly the run's is named by the caller and left alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lariat_keeper::contain::Containment;
use lariat_keeper::contain::lineage::{life, signal_identity};
use lariat_keeper::stop::{Member, Role};
use lariat_sys::identity::Identity;
use lariat_sys::procfs;
use lariat_sys::signal::Signal;
use lariat_sys::{process, reap, tree};

use crate::ledger::recover::{Clues, Findings, Found, Reach, Why, survey};
use crate::process::{age_of, command_of};

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
    fn has(&self, found: &Found) -> bool {
        match (self, &found.service) {
            (Self::All, _) | (Self::Without(_), None) => true,
            (Self::Of(name), service) => service.as_ref() == Some(name),
            (Self::Without(names), Some(service)) => !names.contains(service),
        }
    }
}

/// The certain findings of a run.
#[derive(Clone, Debug)]
pub struct FoundSet {
    clues: Clues,
    /// The caller's own children, these excepted, are found and reaped as well.
    children_but: Option<Vec<i32>>,
    /// Whose processes count.
    part: Part,
    /// Since when every look has found nobody.
    empty_since: Option<Instant>,
}

/// For so long nobody may be found before the set counts as empty. A process in the middle of execve(2) has no
/// environment to be known by (HAZARD(exec-not-finished)), and its parent, which was known, may be dead already.
const SETTLES_AFTER: Duration = Duration::from_millis(50);
/// The pause between two looks that find nobody.
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl FoundSet {
    /// Looks by these clues.
    #[must_use]
    pub fn new(clues: Clues) -> Self {
        Self { clues, children_but: None, part: Part::All, empty_since: None }
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
        let nothing = Findings { reach: Reach::Here, certain: Vec::new(), possible: Vec::new() };
        // Without a look at /proc nothing can be found, and nothing is proven either: `is_empty` says so.
        let mut findings = survey(&self.clues).unwrap_or(nothing);
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

    /// Returns what is found; that it is nobody only when a while has passed in which nobody was. Blocks for that while.
    ///
    /// A look is no snapshot: whom it read first may have made another and died before its turn came
    /// (HAZARD(fork-while-walking)).
    #[must_use]
    pub fn look_until_settled(&self) -> Findings {
        let until = Instant::now() + SETTLES_AFTER;
        loop {
            let findings = self.look();
            let now = Instant::now();
            if !findings.certain.is_empty() || findings.reach != Reach::Here || now >= until {
                return findings;
            }
            // It fails only for want of memory; then the looks follow each other without a pause.
            let _ = lariat_sys::poll::poll(&mut [], Some(until.min(now + LOOK_EVERY)));
        }
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
        out.extend(certain.iter().filter_map(|found| {
            let stat = procfs::read_stat(found.identity.pid).ok().flatten()?;
            Some(Member {
                identity: found.identity,
                role: Role::Inner,
                life: life(&stat),
                pgrp: stat.pgrp,
                comm: stat.comm,
                wants_hangup: false,
            })
        }));
        Ok(())
    }

    fn signal(&mut self, member: Identity, signal: Signal) -> lariat_sys::Result<()> {
        signal_identity(member, signal)
    }

    fn reap(&mut self) -> bool {
        let dead = |pid: i32| matches!(reap::reap(pid), Ok(Some(_)));
        self.children().into_iter().map(dead).fold(false, |any, one| any | one)
    }

    fn is_empty(&mut self) -> bool {
        let is_found = |findings: Findings| findings.certain.iter().any(|found| self.part.has(found));
        if survey(&self.clues).map_or(true, is_found) || !self.children().is_empty() {
            self.empty_since = None;
            return false;
        }
        self.empty_since.get_or_insert_with(Instant::now).elapsed() >= SETTLES_AFTER
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

/// Says in words why a process is thought to be the run's.
#[must_use]
pub fn why_in_words(why: Why) -> String {
    match why {
        Why::Recorded => "the ledger names it as a service's leader".into(),
        Why::Left => "it could not be ended before".into(),
        Why::Marked => "it carries the run's marker".into(),
        Why::Descendant(pid) => format!("it descends from {pid}, which is the run's"),
        Why::Session(number) => format!("it is in session {number}, which a service led"),
        Why::Group(number) => format!("it is in process group {number}, which a service led"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use lariat_keeper::ending::Ending;
    use lariat_keeper::stop::StopPlan;

    use super::*;
    use crate::ledger::record::RunId;

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

    fn drive(mut ending: Ending<FoundSet>) -> lariat_keeper::wire::End {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(end) = ending.turn() {
                return end;
            }
            assert!(Instant::now() < deadline, "it does not end");
            let wake = ending.wake_at().unwrap().min(Instant::now() + Duration::from_millis(20));
            lariat_sys::poll::poll(&mut [], Some(wake)).unwrap();
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
        let end = drive(Ending::new(set.clone(), plan, None));
        assert_eq!(end.left, 0);
        assert!(end.told >= 2 && end.killed >= 1, "{end:?}");
        assert!(set.look().certain.is_empty());
        assert!(stranger.identity().is_alive());
    }
}
