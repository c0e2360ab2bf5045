//! What a shutdown did: what each phase ended, how long it took, and what is left.
//!
//! Data, and the counting that makes it. Pure: who is alive and which port is held is found out elsewhere. The text for
//! people is the command line's.

use std::time::Duration;

use lariat_sys::identity::Identity;
use serde::{Deserialize, Serialize};

use super::plan::Phase;
use crate::event::{Exit, seconds};

/// The version of this record. A reader takes newer ones as they are.
pub const REPORT_VERSION: u32 = 1;

/// The proof of what happened. Times are in seconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// The run's id.
    pub run: String,
    /// The stack's name.
    pub stack: String,
    /// Why it stopped, in words.
    pub why: String,
    /// The start-up failed.
    pub has_failed_to_start: bool,
    /// From the begin of the stop to this report.
    #[serde(with = "seconds")]
    pub took: Duration,
    /// The five, in order.
    pub phases: Vec<PhaseReport>,
    /// All services that were asked for, in the order of the file.
    pub services: Vec<ServiceReport>,
    /// Processes that could not be ended.
    pub left: Vec<LeftProcess>,
    /// Ports of the stack that somebody holds.
    pub ports: Vec<HeldPort>,
    /// The supervisor was made to leave before the end; keepers finish the work.
    pub is_left_early: bool,
    /// The ledger is closed: the next command finds nothing to do.
    pub is_ledger_closed: bool,
    /// The processes could not be read at the last look: whether anything is left is not known.
    #[serde(default)]
    pub is_blind: bool,
    /// What else a person should know.
    pub notes: Vec<String>,
}

impl Report {
    /// Returns whether nothing is left, which somebody has seen: no process, no port of ours, no open ledger.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let holds_ours = |port: &HeldPort| port.is_ours;
        self.left.is_empty()
            && !self.ports.iter().any(holds_ours)
            && self.is_ledger_closed
            && !self.is_left_early
            && !self.is_blind
    }

    /// Returns whether a service failed that nobody had asked to stop.
    #[must_use]
    pub fn has_failures(&self) -> bool {
        self.has_failed_to_start || self.services.iter().any(|service| service.is_failure)
    }
}

/// What one phase did.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PhaseReport {
    /// 1 to 5.
    pub number: u8,
    /// Its name.
    pub phase: String,
    /// How long it took.
    #[serde(with = "seconds")]
    pub took: Duration,
    /// Services that it ended.
    pub services: u32,
    /// Processes that it ended.
    pub processes: u32,
    /// What there is to say beside the numbers.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub note: String,
}

/// How a service came out of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing of it was alive when the stop began.
    NotRunning,
    /// It heeded the stop within its grace period.
    Graceful,
    /// Somebody of it was killed.
    Killed,
    /// Somebody of it could not be ended.
    Left,
    /// Its keeper was killed with the supervisor; whatever it left was found and ended later.
    Swept,
}

/// One service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its name.
    pub service: String,
    /// How it came out of it.
    pub outcome: Outcome,
    /// It had failed by itself.
    pub is_failure: bool,
    /// Why its last life ended, in words; empty if it had none.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub cause: String,
    /// How its leader exited, if anybody could see it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit: Option<Exit>,
    /// From the begin of its stop to the proof.
    #[serde(with = "seconds")]
    pub took: Duration,
    /// Members that got the stop signal.
    pub told: u32,
    /// Members that were killed.
    pub killed: u32,
    /// Members that could not be ended.
    pub left: u32,
    /// Bytes of output that could not be stored, in the whole run.
    pub dropped_bytes: u64,
}

/// A process that could not be ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LeftProcess {
    /// Its service, if known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// Its pid.
    pub pid: i32,
    /// Clock ticks since boot at its start: with the pid, who it is.
    pub start: u64,
    /// Its number in pidfs, unique within the boot, if it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub inode: Option<u64>,
    /// Its command line, or the kernel's name for it.
    pub command: String,
    /// Since its start.
    #[serde(with = "seconds")]
    pub age: Duration,
    /// Its parents, nearest first, as `pid name`.
    pub parents: Vec<String>,
    /// Why it could not be ended.
    pub reason: String,
}

impl LeftProcess {
    /// Returns who it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity::new(self.pid, self.start).with_inode(self.inode)
    }
}

/// A port of the stack that is not free.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldPort {
    /// The port.
    pub port: u16,
    /// Whose it is by the configuration.
    pub service: String,
    /// Who holds it, in words.
    pub holder: String,
    /// The holder is of this run. A stranger's is named and left alone.
    pub is_ours: bool,
}

/// How a service's life ended, as counted by its keeper.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ServiceCounts {
    /// Why, in words.
    pub cause: String,
    /// It failed by itself.
    pub is_failure: bool,
    /// How its leader exited.
    pub exit: Option<Exit>,
    /// From the begin of its stop to the proof.
    pub took: Duration,
    /// Members that got the stop signal.
    pub told: u32,
    /// Members that were killed.
    pub killed: u32,
    /// Members that could not be ended.
    pub left: u32,
    /// Bytes of output that could not be stored.
    pub dropped_bytes: u64,
}

/// Puts a report together while the shutdown goes on.
#[derive(Clone, Debug)]
pub struct Tally {
    services: Vec<ServiceReport>,
    phases: Vec<PhaseReport>,
    left: Vec<LeftProcess>,
    ports: Vec<HeldPort>,
    notes: Vec<String>,
}

impl Tally {
    /// Begins with these services, none of which has run.
    #[must_use]
    pub fn new(services: impl IntoIterator<Item = String>) -> Self {
        let service = |service| ServiceReport {
            service,
            outcome: Outcome::NotRunning,
            is_failure: false,
            cause: String::new(),
            exit: None,
            took: Duration::ZERO,
            told: 0,
            killed: 0,
            left: 0,
            dropped_bytes: 0,
        };
        let phase = |phase: Phase| PhaseReport {
            number: phase.number(),
            phase: phase.as_str().into(),
            took: Duration::ZERO,
            services: 0,
            processes: 0,
            note: String::new(),
        };
        Self {
            services: services.into_iter().map(service).collect(),
            phases: Phase::ALL.map(phase).into(),
            left: Vec::new(),
            ports: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Notes the end of a life of the service at `place`; `is_stopping` if it fell into the shutdown.
    pub fn service_ended(&mut self, place: usize, counts: ServiceCounts, is_stopping: bool) {
        let service = &mut self.services[place];
        service.dropped_bytes = service.dropped_bytes.saturating_add(counts.dropped_bytes);
        service.cause = counts.cause;
        service.is_failure = counts.is_failure;
        service.exit = counts.exit;
        service.left = counts.left;
        if !is_stopping {
            return;
        }
        service.took = counts.took;
        service.told = counts.told;
        service.killed = counts.killed;
        let outcome = match (counts.left, counts.killed) {
            (0, 0) => Outcome::Graceful,
            (0, _) => Outcome::Killed,
            _ => Outcome::Left,
        };
        service.outcome = outcome;
        let graceful = self.phase(Phase::Graceful);
        graceful.services += u32::from(outcome == Outcome::Graceful);
        graceful.processes += counts.told.saturating_sub(counts.killed);
        let force = self.phase(Phase::Force);
        force.services += u32::from(outcome == Outcome::Killed);
        force.processes += counts.killed.saturating_sub(counts.left);
    }

    /// Notes that nothing more is awaited of the service at `place`, which did not end.
    pub fn service_given_up(&mut self, place: usize) {
        let service = &mut self.services[place];
        service.outcome = Outcome::Left;
        service.cause = "did not end in time".into();
    }

    /// Notes that the service at `place` lost its keeper together with its supervisor.
    pub fn service_swept(&mut self, place: usize) {
        let service = &mut self.services[place];
        service.outcome = Outcome::Swept;
        service.cause = "its supervisor and its keeper were killed".into();
    }

    /// Notes orphans that phase 3 ended.
    pub fn orphans_ended(&mut self, processes: u32) {
        self.phase(Phase::Orphans).processes += processes;
    }

    /// Notes how long a phase took.
    pub fn phase_ended(&mut self, phase: Phase, took: Duration) -> &PhaseReport {
        let report = self.phase(phase);
        report.took = took;
        report
    }

    /// Adds words to a phase.
    pub fn phase_note(&mut self, phase: Phase, note: impl Into<String>) {
        self.phase(phase).note = note.into();
    }

    /// INVARIANT: there is one for each of [`Phase::ALL`], in that order.
    fn phase(&mut self, phase: Phase) -> &mut PhaseReport {
        &mut self.phases[usize::from(phase.number() - 1)]
    }

    /// Adds a process that could not be ended; once, however often it is found.
    pub fn left(&mut self, process: LeftProcess) {
        let is_known = |known: &LeftProcess| (known.pid, known.start) == (process.pid, process.start);
        match self.left.iter_mut().find(|known| is_known(known)) {
            // A keeper knows the reason, the last look knows the command: keep what says more.
            Some(known) => {
                if known.parents.is_empty() {
                    let reason = std::mem::take(&mut known.reason);
                    *known = process;
                    if !reason.is_empty() {
                        known.reason = reason;
                    }
                }
            }
            None => self.left.push(process),
        }
    }

    /// Forgets processes that turned out to have ended after all.
    pub fn retain_left(&mut self, is_alive: impl Fn(&LeftProcess) -> bool) {
        self.left.retain(is_alive);
    }

    /// Adds a port that is not free.
    pub fn port_held(&mut self, port: HeldPort) {
        self.ports.push(port);
    }

    /// Adds words that a person should read.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Makes the report.
    #[must_use]
    pub fn finish(self, head: Head) -> Report {
        Report {
            version: REPORT_VERSION,
            run: head.run,
            stack: head.stack,
            why: head.why,
            has_failed_to_start: head.has_failed_to_start,
            took: head.took,
            phases: self.phases,
            services: self.services,
            left: self.left,
            ports: self.ports,
            is_left_early: head.is_left_early,
            is_ledger_closed: head.is_ledger_closed,
            is_blind: head.is_blind,
            notes: self.notes,
        }
    }
}

/// What the report says about the run as a whole.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The run's id.
    pub run: String,
    /// The stack's name.
    pub stack: String,
    /// Why it stopped, in words.
    pub why: String,
    /// The start-up failed.
    pub has_failed_to_start: bool,
    /// From the begin of the stop to now.
    pub took: Duration,
    /// The supervisor was made to leave before the end.
    pub is_left_early: bool,
    /// The ledger is closed.
    pub is_ledger_closed: bool,
    /// The last look saw no processes at all.
    pub is_blind: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(told: u32, killed: u32, left: u32) -> ServiceCounts {
        ServiceCounts { told, killed, left, dropped_bytes: 5, ..ServiceCounts::default() }
    }

    fn left(pid: i32, parents: &[&str], reason: &str) -> LeftProcess {
        LeftProcess {
            service: None,
            pid,
            start: 7,
            inode: None,
            command: if parents.is_empty() { "name".into() } else { "name --and arguments".into() },
            age: Duration::ZERO,
            parents: parents.iter().map(|p| (*p).to_owned()).collect(),
            reason: reason.into(),
        }
    }

    fn head() -> Head {
        Head { is_ledger_closed: true, ..Head::default() }
    }

    #[test]
    fn each_service_is_counted_in_one_place() {
        let mut tally = Tally::new(["a", "b", "c", "d", "e"].map(String::from));
        tally.service_ended(0, counts(3, 0, 0), true);
        tally.service_ended(1, counts(4, 2, 0), true);
        tally.service_ended(2, counts(1, 1, 1), true);
        tally.service_ended(3, counts(9, 9, 0), false);
        tally.service_given_up(4);
        tally.orphans_ended(2);
        let report = tally.finish(head());
        let outcomes: Vec<Outcome> = report.services.iter().map(|s| s.outcome).collect();
        assert_eq!(
            outcomes,
            [Outcome::Graceful, Outcome::Killed, Outcome::Left, Outcome::NotRunning, Outcome::Left]
        );
        let numbers: Vec<(u32, u32)> = report.phases.iter().map(|p| (p.services, p.processes)).collect();
        assert_eq!(numbers, [(1, 5), (1, 2), (0, 2), (0, 0), (0, 0)]);
        assert_eq!(report.services[3].dropped_bytes, 5);
    }

    #[test]
    fn clean_means_no_process_no_port_of_ours_and_a_closed_ledger() {
        assert!(Tally::new([]).finish(head()).is_clean());
        assert!(!Tally::new([]).finish(Head::default()).is_clean());
        assert!(!Tally::new([]).finish(Head { is_left_early: true, ..head() }).is_clean());
        assert!(!Tally::new([]).finish(Head { is_blind: true, ..head() }).is_clean());
        let port = |is_ours| HeldPort { port: 80, service: "web".into(), holder: "nginx".into(), is_ours };
        for (is_ours, is_clean) in [(true, false), (false, true)] {
            let mut tally = Tally::new([]);
            tally.port_held(port(is_ours));
            assert_eq!(tally.finish(head()).is_clean(), is_clean);
        }
        let mut tally = Tally::new([]);
        tally.left(left(1, &[], ""));
        assert!(!tally.finish(head()).is_clean());
    }

    #[test]
    fn one_who_is_found_twice_is_named_once_with_the_most_that_is_known() {
        let mut tally = Tally::new([]);
        tally.left(left(1, &[], "not permitted"));
        tally.left(left(1, &["1 init"], "alive at the last look"));
        tally.left(left(1, &["1 init"], "again"));
        let report = tally.finish(head());
        assert_eq!(report.left, [left(1, &["1 init"], "not permitted")]);
    }

    #[test]
    fn a_report_reads_back() {
        let mut tally = Tally::new(["web".to_owned()]);
        tally.service_ended(0, counts(1, 0, 0), true);
        tally.phase_note(Phase::Containers, "the stack has no containers");
        tally.phase_ended(Phase::Graceful, Duration::from_millis(300));
        let report = tally.finish(head());
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
