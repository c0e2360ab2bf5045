//! The run's books: its lock, its ledger, its history.
//!
//! The record is changed as things happen and handed to the writer's thread a moment later, many changes at once. What
//! a crash in that moment leaves out is found by the run's marker all the same.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::driver::Driver;
use crate::clock;
use crate::event::Event;
use crate::ledger::lock::RunLock;
use crate::ledger::record::{
    EarlierStart, LeftRecord, RecordedState, ReportSummary, RunRecord, ServiceRecord, StopRecord,
};
use crate::ledger::writer::LedgerWriter;
use crate::ledger::{LedgerError, StateDir, journal};
use crate::service::graph::Place;
use crate::service::machine::State;
use crate::service::restart::Outcome;
use crate::shutdown::report::Report;

/// Changes gather for this long before they are written.
const GATHER: Duration = Duration::from_millis(5);
/// How long the end of a run waits for a slow disk.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// The books of one run.
#[derive(Debug)]
pub(super) struct Books {
    record: RunRecord,
    run: String,
    lock: RunLock,
    ends: OwnedFd,
    writer: LedgerWriter,
    flush_at: Option<Instant>,
    has_told_trouble: bool,
}

impl Books {
    /// Opens the books with the run's first record on the disk.
    pub(super) fn open(state: StateDir, lock: RunLock, record: RunRecord) -> Result<Self, LedgerError> {
        let ends = journal::open_ends(&state, &lock)?;
        let writer = LedgerWriter::start(state, &lock, &record)?;
        let run = record.run.to_string();
        Ok(Self { record, run, lock, ends, writer, flush_at: None, has_told_trouble: false })
    }

    pub(super) fn run(&self) -> &str {
        &self.run
    }

    pub(super) fn record(&self) -> &RunRecord {
        &self.record
    }

    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    pub(super) fn ends(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }

    /// Returns when changes are to be written.
    pub(super) fn flush_at(&self) -> Option<Instant> {
        self.flush_at
    }

    pub(super) fn append(&self, event: &Event) {
        self.writer.append(event);
    }

    fn change(&mut self, place: Place, record: ServiceRecord) {
        let known = &mut self.record.services[place];
        if *known != record {
            *known = record;
            self.flush_at.get_or_insert_with(|| Instant::now() + GATHER);
        }
    }

    /// Writes what has changed, if it is time.
    fn flush(&mut self) {
        if self.flush_at.is_some_and(|at| Instant::now() >= at) {
            self.flush_at = None;
            self.writer.save(self.record.clone());
        }
    }

    /// Takes trouble with the disk, to be told once: it stays for a while, and everything else goes on.
    fn trouble(&mut self) -> Option<String> {
        let trouble = self.writer.take_trouble();
        let error = trouble.record.or(trouble.event);
        let text = match (error, trouble.events_dropped) {
            (None, 0) => return None,
            (Some(error), _) => error.to_string(),
            (None, dropped) => format!("{dropped} events are missing in the history: the disk is too slow"),
        };
        (!std::mem::replace(&mut self.has_told_trouble, true)).then_some(text)
    }

    /// Closes the ledger of a run that does not begin.
    pub(super) fn abandon(&mut self) {
        self.record.is_closed = true;
        self.writer.save(self.record.clone());
        let _ = self.writer.wait_until_written(Instant::now() + CLOSE_WITHIN);
    }

    /// Writes the last word. Returns whether it is on the disk.
    pub(super) fn close(&mut self, report: &Report, is_clean: bool) -> bool {
        self.record.is_closed = is_clean;
        self.record.report = Some(summary(report));
        self.writer.save(self.record.clone());
        self.writer.wait_until_written(Instant::now() + CLOSE_WITHIN)
    }
}

impl Driver {
    /// Notes in the ledger how it stands with a service.
    pub(super) fn note(&mut self, place: Place) {
        let unit = &self.units[place];
        let spec = &self.spec.services[place];
        let machine = self.stack.service(place);
        let has_failed = machine.last_end().is_some_and(|end| end.cause.outcome() == Outcome::Failure);
        let state = match machine.state() {
            State::Waiting | State::Backoff { .. } => RecordedState::Waiting,
            State::Starting => RecordedState::Starting,
            State::Up if machine.is_ready() => RecordedState::Ready,
            State::Up => RecordedState::Starting,
            State::Closing | State::Stopping | State::Sweeping => RecordedState::Stopping,
            State::Down if !has_failed => RecordedState::Stopped,
            State::Down | State::GaveUp => RecordedState::Failed,
        };
        let life = unit.life.as_ref();
        let started = unit.leaders.last().copied().filter(|_| life.is_some());
        let leader = started.map(|(leader, _)| leader);
        // Sessions of lives whose keeper died before it could prove them empty.
        let earlier = unit.leaders.iter().filter(|(known, _)| Some(*known) != leader);
        let earlier = earlier.filter(|_| unit.has_left_members);
        let known = &self.books.record().services[place];
        let record = ServiceRecord {
            name: unit.name.clone(),
            state,
            keeper: life.map(|life| life.keeper.identity().into()),
            leader: leader.map(Into::into),
            pgrp: leader.map(|leader| leader.pid),
            session: leader.map(|leader| leader.pid),
            command: spec.command.argv().iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            dir: spec.dir.clone(),
            started_unix_ms: match (leader, known.leader) {
                (Some(leader), Some(before)) if before == leader.into() => known.started_unix_ms,
                (Some(_), _) => Some(clock::unix_millis()),
                (None, _) => known.started_unix_ms,
            },
            ports: unit.port.into_iter().collect(),
            stop: Some(StopRecord::new(spec.stop.signal, spec.stop.grace)),
            restarts: machine.history().total,
            output: started.and_then(|(_, output)| output),
            earlier: earlier
                .map(|(l, output)| EarlierStart { leader: (*l).into(), session: l.pid, output: *output })
                .collect(),
        };
        self.books.change(place, record);
    }

    /// Writes what has changed, and says so if the disk does not take it.
    pub(super) fn keep_books(&mut self) {
        self.books.flush();
        if let Some(what) = self.books.trouble() {
            self.trouble(what);
        }
    }
}

/// Makes of a report what the ledger keeps of it.
pub(super) fn summary(report: &Report) -> ReportSummary {
    let left = |process: &crate::shutdown::report::LeftProcess| LeftRecord {
        pid: process.pid,
        start: process.start,
        inode: process.inode,
        comm: process.command.clone(),
        reason: process.reason.clone(),
    };
    ReportSummary {
        ended_unix_ms: clock::unix_millis(),
        took_ms: u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
        told: report.services.iter().map(|service| service.told).sum(),
        killed: report.services.iter().map(|service| service.killed).sum(),
        left: report.left.iter().map(left).collect(),
        held_ports: report.ports.iter().map(|port| port.port).collect(),
    }
}
