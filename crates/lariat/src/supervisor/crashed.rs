//! A run that did not end by itself: what is left of it, its end, and the closing of its ledger.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lariat_keeper::ending::{Ending, was_told_by_death};
use lariat_keeper::stop::StopPlan;
use lariat_sys::identity::Identity;
use lariat_sys::signal::Signal;

use super::recovery::Past;
use super::runs::reach_in_words;
use crate::event::Exit;
use crate::ledger::index::RunIndex;
use crate::ledger::journal::read_ends;
use crate::ledger::lock::RunLock;
use crate::ledger::record::{EndRecord, ExitRecord, RecordedState, RunId, RunRecord};
use crate::ledger::recover::{self, Clues, Findings, Living, Snapshot};
use crate::ledger::{LedgerError, StateDir, store};
use crate::shutdown::endings::{Ended, Pace, end_all};
use crate::shutdown::found::FoundSet;
use crate::shutdown::plan::Phase;
use crate::shutdown::report::{Head, Report, ServiceCounts, Tally};
use crate::shutdown::verify;

/// A run that did not end by itself, with the project's lock held: nothing of lariat's own is alive any more.
#[derive(Debug)]
pub struct Crashed {
    state: StateDir,
    /// Held, unless somebody only looks.
    lock: Option<RunLock>,
    record: Option<Box<RunRecord>>,
    clues: Clues,
    living: Living,
    findings: Findings,
    ends: Vec<EndRecord>,
    notes: Vec<String>,
    ended: Option<Ended>,
    took: Duration,
}

impl Crashed {
    /// Takes what is known of the run. Nobody was looked for yet.
    pub(super) fn new(
        state: StateDir,
        lock: Option<RunLock>,
        record: Option<Box<RunRecord>>,
        mut clues: Clues,
        notes: Vec<String>,
    ) -> Self {
        // Without the records of keepers, what they did is not known; that nothing is left is seen all the same.
        let ends = read_ends(&state, &clues.run).map(|lines| lines.records).unwrap_or_default();
        let left = ends.iter().flat_map(|end| &end.left).map(|left| left.to_left().identity());
        clues.left.extend(left);
        let (living, findings) = (Living::default(), Findings::nobody());
        Self { state, lock, record, clues, living, findings, ends, notes, ended: None, took: Duration::ZERO }
    }

    /// Looks who is left, without whoever belongs to another run that is alive.
    #[must_use]
    pub fn look(mut self, living: &Living) -> Self {
        self.spare(living);
        self.look_again();
        self
    }

    fn spare(&mut self, living: &Living) {
        self.living = living.clone();
        // Who holds its lock is us: to whoever looks from elsewhere that is a run that somebody is ending.
        self.living.marks.remove(self.clues.run.as_str());
    }

    /// Returns it with this note, or nothing where nobody is left, not even somebody who may be its.
    #[must_use]
    pub(super) fn or_nothing(mut self, note: String) -> Past {
        let is_known = !self.findings.reach.is_blind();
        let is_deserted = is_known && self.findings.certain.is_empty() && self.findings.possible.is_empty();
        match self.lock.take_if(|_| is_deserted) {
            Some(lock) => Past::Nothing { state: self.state, lock, notes: self.notes },
            None => {
                self.notes.push(note);
                Past::Crashed(Box::new(self))
            }
        }
    }

    /// Looks who is left among processes that were read already.
    #[must_use]
    pub fn look_in(mut self, snapshot: &mut Snapshot) -> Self {
        self.spare(&snapshot.living);
        self.findings = recover::survey_in(&self.clues, snapshot);
        self
    }

    fn look_again(&mut self) {
        let set = self.set();
        // Who only looks has no need of a proof.
        self.findings = match self.lock {
            Some(_) => FoundSet::look_until_settled(&[set]).swap_remove(0),
            None => set.look(),
        };
    }

    /// Takes what another look has found.
    pub(super) fn found(&mut self, findings: Findings) {
        self.findings = findings;
    }

    pub(super) fn set(&self) -> FoundSet {
        FoundSet::new(self.clues.clone()).beside(&self.living)
    }

    /// Takes what a person said: these are to be ended as well, with what they have started.
    pub fn choose(&mut self, chosen: impl IntoIterator<Item = Identity>) {
        self.clues.chosen.extend(chosen);
        self.look_again();
    }

    /// Drops findings that are somebody else's already.
    pub(super) fn forget(&mut self, known: &std::collections::BTreeSet<Identity>) {
        self.findings.certain.retain(|found| !known.contains(&found.identity));
        self.findings.possible.retain(|found| !known.contains(&found.identity));
    }

    /// Returns the stack's name; absent where the ledger cannot be read.
    #[must_use]
    pub fn stack(&self) -> Option<&str> {
        self.record.as_ref().map(|record| record.stack.as_str())
    }

    /// Returns the project's root.
    #[must_use]
    pub fn root(&self) -> &std::path::Path {
        self.state.root()
    }

    /// Returns when it began, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn started_unix_ms(&self) -> Option<u64> {
        self.record.as_ref().map(|record| record.started_unix_ms)
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
        self.clues.ports.clone()
    }

    /// Returns the cgroup directories that are removed when nobody is left.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        self.set().removable()
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
    /// Blocks until nobody is left, or nothing helps any more: `grace` and fifteen seconds at most; or until `pace`, which
    /// is asked every few milliseconds, wants it otherwise.
    pub fn end(&mut self, grace: Duration, pace: impl FnMut() -> Pace) {
        let began = Instant::now();
        let ended = Ended::sum(end_all(self.endings(grace), pace));
        self.ended(ended, began.elapsed());
    }

    /// Returns how the end came out, and how long it took.
    pub(super) fn outcome(&self) -> (Ended, Duration) {
        (self.ended.clone().unwrap_or_default(), self.took)
    }

    /// Takes how the end that [`Self::endings`] prepared came out, and looks again.
    pub(super) fn ended(&mut self, ended: Ended, took: Duration) {
        self.ended = Some(ended);
        self.took = took;
        self.look_again();
    }

    /// One for each service that left something, and one for what belongs to none.
    pub(super) fn endings(&self, grace: Duration) -> Vec<Ending<FoundSet>> {
        let set = self.set();
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
        if self.lock.is_some() {
            // As far as they are empty. Whatever else becomes of the run, they are not needed any more.
            self.set().remove_groups();
        }
        let is_clean =
            report.left.is_empty() && !report.ports.iter().any(|port| port.is_ours) && !report.is_blind;
        report.is_ledger_closed = is_clean;
        if let (Some(mut record), Some(lock)) = (self.record, &self.lock) {
            record.is_closed = is_clean;
            // Who could not be ended is known to the next command by this.
            record.report = Some(super::books::summary(&report));
            store::save(&self.state, lock, &record)?;
            if is_clean {
                // The run is closed in the ledger, which is what counts; this is only in nobody's way.
                let _ = std::fs::remove_file(&record.socket);
            }
        }
        if let (true, Some(index)) = (is_clean, index) {
            let _ = index.remove(&self.clues.run);
        }
        Ok(report)
    }

    pub(super) fn report(&self) -> Report {
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
            tally.orphans_ended(end.end.told.max(end.end.killed).saturating_sub(end.end.left));
        }
        tally.phase_ended(Phase::Orphans, self.took);
        tally.phase_note(Phase::Containers, "the stack has no containers");
        for found in &self.findings.certain {
            let reason =
                self.ended.as_ref().map_or_else(|| "it was not ended".into(), |e| e.reason(found.identity));
            if let Some(left) = verify::describe(found.identity, &reason) {
                tally.left(left);
            }
        }
        for found in &self.findings.possible {
            let is_ours = found.uid == Some(lariat_sys::process::effective_user());
            let user = found.uid.filter(|_| !is_ours).map(|uid| format!(" of user {uid}"));
            let (pid, user, command) = (found.identity.pid, user.unwrap_or_default(), &found.command);
            tally.note(format!("{pid}{user} `{command}` may be of this run; it was left alone"));
        }
        if let Some(note) = reach_in_words(self.findings.reach) {
            tally.note(note);
        }
        for port in verify::held_ports(&self.ports(), self.clues.run.as_str(), &self.findings.certain) {
            tally.port_held(port);
        }
        self.notes.iter().for_each(|note| tally.note(note.clone()));
        tally.finish(Head {
            run: self.clues.run.to_string(),
            stack: self.record.as_ref().map(|record| record.stack.clone()).unwrap_or_default(),
            why: "the supervisor died".into(),
            took: self.took,
            is_blind: self.findings.reach.is_blind(),
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

#[cfg(test)]
mod tests {
    use lariat_sys::Errno;

    use super::*;
    use crate::ledger::lock::{LockWait, wait_until};
    use crate::ledger::recover::Reach;

    fn crashed(root: &std::path::Path, reach: Reach) -> Crashed {
        let state = StateDir::create(root).unwrap();
        // Somebody who was forked meanwhile may have a copy of it until he executes his program.
        let until = Instant::now() + Duration::from_secs(30);
        let LockWait::Acquired(lock) = wait_until(&state, until, None).unwrap() else {
            panic!("nobody else has the lock");
        };
        let run = RunId::new_random().unwrap();
        let crashed = Crashed::new(state, Some(lock), None, Clues::mark_only(run), Vec::new());
        Crashed { findings: Findings { reach, ..Findings::nobody() }, ..crashed }
    }

    #[test]
    fn a_run_whose_processes_could_not_be_read_is_not_over() {
        let dir = tempfile::tempdir().unwrap();
        let blind = Reach::Unreadable(Errno::ACCESS);
        for (reach, is_over) in [(Reach::Here, true), (Reach::OtherBoot, true), (blind, false)] {
            let is_nothing =
                matches!(crashed(dir.path(), reach).or_nothing(String::new()), Past::Nothing { .. });
            let report = crashed(dir.path(), reach).close(None).unwrap();
            assert_eq!((is_nothing, report.is_ledger_closed), (is_over, is_over), "{reach:?}");
            assert_eq!(report.notes.iter().any(|note| note.contains("could not be read (perm")), !is_over);
            assert_eq!(report.is_blind, !is_over);
        }
    }
}
