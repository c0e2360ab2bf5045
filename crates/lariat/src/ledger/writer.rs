//! Writes the ledger and the history of a live run on a thread of its own.
//!
//! Syncing a file takes as long as the disk takes, and with a stuck one (HAZARD(stuck-disk)) for ever. The supervisor
//! hands records and events over without waiting; only the last record counts. When it has to know that the ledger is
//! closed, it waits with a deadline. What this module does not do: load, or decide what to write.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lariat_sys::signal::{self, SignalSet};
use serde::Serialize;

use super::journal::EventLog;
use super::lock::RunLock;
use super::record::RunRecord;
use super::{LedgerError, StateDir, store};

/// The most events that wait for the disk. More are dropped and counted.
pub const EVENTS_WAITING_MAX: usize = 10_000;
/// How long dropping the writer waits for the disk.
const LEAVE_AFTER: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Work {
    record: Option<Box<RunRecord>>,
    events: VecDeque<Vec<u8>>,
    dropped: u64,
    /// Something was taken and is being written.
    is_busy: bool,
    has_to_leave: bool,
    has_ended: bool,
    /// The trouble with the last record, if it was not written.
    record_error: Option<LedgerError>,
    event_error: Option<LedgerError>,
}

impl Work {
    fn is_idle(&self) -> bool {
        self.record.is_none() && self.events.is_empty() && !self.is_busy
    }
}

#[derive(Default)]
struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
}

impl Shared {
    /// A panic in between leaves whole values, so a poisoned lock is used on.
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How it stands with what was handed over.
#[derive(Debug, Default)]
pub struct WriterTrouble {
    /// Why the last record is not on the disk.
    pub record: Option<LedgerError>,
    /// Why the last event that failed is not in the history.
    pub event: Option<LedgerError>,
    /// How many events were dropped because the disk was too slow.
    pub events_dropped: u64,
}

/// The thread that writes, seen from the supervisor. Dropping it waits up to a second for what is still to be written,
/// then leaves the thread to itself.
pub struct LedgerWriter {
    shared: Arc<Shared>,
}

impl fmt::Debug for LedgerWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerWriter").finish_non_exhaustive()
    }
}

impl LedgerWriter {
    /// Writes the run's first record, so that trouble with the disk is known before anything is started, and starts the
    /// thread. Blocks on the disk.
    ///
    /// # Errors
    /// Those of [`store::save`], and when no thread can be started.
    pub fn start(state: StateDir, lock: &RunLock, first: &RunRecord) -> Result<Self, LedgerError> {
        store::save(&state, lock, first)?;
        let log = EventLog::open(&state)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let path = state.path().to_owned();
        // HAZARD(full-disk): with SIGXFSZ blocked, a file that is too large is an error and not the end.
        let mask = signal::block(SignalSet::full());
        let thread = std::thread::Builder::new().name("lariat-ledger".to_owned());
        let spawned = thread.spawn(move || run(&theirs, &state, log));
        signal::set_mask(mask);
        match spawned {
            Ok(_) => Ok(Self { shared }),
            Err(cause) => Err(LedgerError::File { step: "start a thread for", path, cause }),
        }
    }

    /// Hands over a record, which takes the place of one that is not written yet. Returns at once.
    pub fn save(&self, record: RunRecord) {
        self.shared.lock().record = Some(Box::new(record));
        self.shared.changed.notify_all();
    }

    /// Hands over an event for the history. Returns at once. One that is no JSON is counted as dropped.
    pub fn append<T: Serialize>(&self, event: &T) {
        let mut work = self.shared.lock();
        match serde_json::to_vec(event) {
            Ok(mut line) if work.events.len() < EVENTS_WAITING_MAX => {
                line.push(b'\n');
                work.events.push_back(line);
            }
            _ => work.dropped += 1,
        }
        drop(work);
        self.shared.changed.notify_all();
    }

    /// Waits until all that was handed over is on the disk, and says whether it is. Blocks until the deadline at most.
    #[must_use]
    pub fn wait_until_written(&self, deadline: Instant) -> bool {
        let mut work = self.shared.lock();
        while !work.is_idle() && !work.has_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            work = self.shared.changed.wait_timeout(work, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        work.is_idle() && work.record_error.is_none()
    }

    /// Takes what went wrong since the last call.
    #[must_use]
    pub fn take_trouble(&self) -> WriterTrouble {
        let mut work = self.shared.lock();
        WriterTrouble {
            record: work.record_error.take(),
            event: work.event_error.take(),
            events_dropped: std::mem::take(&mut work.dropped),
        }
    }
}

impl Drop for LedgerWriter {
    fn drop(&mut self) {
        let _ = self.wait_until_written(Instant::now() + LEAVE_AFTER);
        self.shared.lock().has_to_leave = true;
        self.shared.changed.notify_all();
    }
}

/// Says that the thread is gone, whichever way it went.
struct EndNote<'a>(&'a Shared);

impl Drop for EndNote<'_> {
    fn drop(&mut self) {
        self.0.lock().has_ended = true;
        self.0.changed.notify_all();
    }
}

fn run(shared: &Shared, state: &StateDir, mut log: EventLog) {
    let _note = EndNote(shared);
    loop {
        let mut work = shared.lock();
        while work.is_idle() && !work.has_to_leave {
            work = shared.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
        if work.is_idle() {
            return;
        }
        let (record, events) = (work.record.take(), std::mem::take(&mut work.events));
        work.is_busy = true;
        drop(work);

        // Events first: the record of a closed run is the last word.
        let event_error = events.iter().filter_map(|line| log.append_line(state, line).err()).last();
        let saved = record.map(|record| store::replace(state, &record));

        let mut work = shared.lock();
        work.is_busy = false;
        work.event_error = event_error.or(work.event_error.take());
        if let Some(saved) = saved {
            work.record_error = saved.err();
        }
        drop(work);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::read_events;
    use super::super::lock::try_acquire;
    use super::super::record::RunId;
    use super::super::store::{Loaded, load};
    use super::*;
    use std::path::Path;

    fn record() -> RunRecord {
        RunRecord::begin(RunId::new_random().unwrap(), "s", Path::new("/p"), Path::new("/s")).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn the_last_record_and_every_event_are_written() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path()).unwrap();
        let lock = try_acquire(&state).unwrap().unwrap();
        let mut record = record();
        let writer = LedgerWriter::start(StateDir::create(root.path()).unwrap(), &lock, &record).unwrap();
        for n in 0..200_u64 {
            record.started_unix_ms = n;
            writer.save(record.clone());
            writer.append(&n);
        }
        assert!(writer.wait_until_written(soon()));
        assert_eq!(load(&state).unwrap(), Loaded::Record(Box::new(record)));
        assert_eq!(read_events::<u64>(&state).unwrap().records, (0..200).collect::<Vec<_>>());
        let trouble = writer.take_trouble();
        assert!(trouble.record.is_none() && trouble.event.is_none() && trouble.events_dropped == 0);
    }

    #[test]
    fn what_cannot_be_written_is_said_and_tried_again() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path()).unwrap();
        let lock = try_acquire(&state).unwrap().unwrap();
        let first = record();
        let writer = LedgerWriter::start(StateDir::create(root.path()).unwrap(), &lock, &first).unwrap();
        // A directory in the new file's place cannot be removed by unlink, for root neither.
        let obstacle = state.path().join("run.json.new");
        std::fs::create_dir(&obstacle).unwrap();
        writer.save(record());
        assert!(!writer.wait_until_written(soon()));
        let error = writer.take_trouble().record.unwrap().to_string();
        assert!(error.starts_with("could not open ") && error.contains("run.json.new"), "{error}");
        assert_eq!(load(&state).unwrap(), Loaded::Record(Box::new(first)));
        std::fs::remove_dir(&obstacle).unwrap();
        writer.save(record());
        assert!(writer.wait_until_written(soon()));
    }
}
