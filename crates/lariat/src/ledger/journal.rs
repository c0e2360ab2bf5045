//! Files of one JSON object per line: `events.jsonl`, the history of a project's runs, and `ends.jsonl`, what keepers did
//! after their supervisor's death.
//!
//! A line is appended in one write. A crash may tear the last one: readers skip what is no whole object, and writers
//! begin a new line after it. Both files have a limit; what is older moves to one `.prev` file and then away.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lock::RunLock;
use super::record::{EndRecord, RunId};
use super::{LedgerError, StateDir, read_limited};

/// The size of `events.jsonl` in bytes at which a new one is begun.
pub const EVENTS_BYTES_MAX: u64 = 8 << 20;
/// The size of `ends.jsonl` in bytes at which the next run begins a new one.
pub const ENDS_BYTES_MAX: u64 = 1 << 20;
const EVENTS: Journal =
    Journal { file: "events.jsonl", previous: "events.prev.jsonl", limit: EVENTS_BYTES_MAX };
const ENDS: Journal = Journal { file: "ends.jsonl", previous: "ends.prev.jsonl", limit: ENDS_BYTES_MAX };

/// Lines that were read, oldest first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lines<T> {
    /// Those that could be understood.
    pub records: Vec<T>,
    /// How many could not: torn by a crash, or of a newer version.
    pub skipped: usize,
}

/// Makes records of the bytes of a journal. Pure; never panics, whatever the bytes.
#[must_use]
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Lines<T> {
    let mut lines = Lines { records: Vec::new(), skipped: 0 };
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(record) => lines.records.push(record),
            Err(_) => lines.skipped += 1,
        }
    }
    lines
}

struct Journal {
    file: &'static str,
    previous: &'static str,
    limit: u64,
}

impl Journal {
    /// Opens the file for appending, so that what is appended begins a line.
    fn open(&self, state: &StateDir) -> Result<(File, u64), LedgerError> {
        let mut file = state.open_file(self.file, OFlags::RDWR | OFlags::CREATE | OFlags::APPEND)?;
        let error = |cause| state.error("append to", self.file, cause);
        let length = file.metadata().map_err(error)?.len();
        let mut last = [b'\n'];
        if length > 0 {
            file.read_exact_at(&mut last, length - 1).map_err(error)?;
        }
        if last != *b"\n" {
            file.write_all(b"\n").map_err(error)?;
        }
        Ok((file, length))
    }

    fn begin_anew(&self, state: &StateDir) -> Result<(File, u64), LedgerError> {
        state.rename(self.file, self.previous)?;
        self.open(state)
    }

    fn read<T: DeserializeOwned>(&self, state: &StateDir) -> Result<Lines<T>, LedgerError> {
        let Some(file) = state.open_existing(self.file)? else {
            return Ok(Lines { records: Vec::new(), skipped: 0 });
        };
        // Others append while we read, and the limit is looked at only between lines.
        let bytes =
            read_limited(file, 2 * self.limit).map_err(|cause| state.error("read", self.file, cause))?;
        Ok(parse(&bytes))
    }
}

/// Appends to `events.jsonl`. Blocks on the disk: a supervisor uses [`super::writer`].
#[derive(Debug)]
pub struct EventLog {
    file: File,
    length: u64,
}

impl EventLog {
    /// Opens the history, or begins one.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(state: &StateDir) -> Result<Self, LedgerError> {
        let (file, length) = EVENTS.open(state)?;
        Ok(Self { file, length })
    }

    /// Appends one event as a line. Begins a new file when the limit is reached.
    ///
    /// # Errors
    /// When the event is no JSON, or the disk does not take it. The next event is tried again.
    pub fn append<T: Serialize>(&mut self, state: &StateDir, event: &T) -> Result<(), LedgerError> {
        let error = |cause| state.error("append to", EVENTS.file, cause);
        let mut line = serde_json::to_vec(event).map_err(|cause| error(io::Error::other(cause)))?;
        line.push(b'\n');
        self.append_line(state, &line)
    }

    /// Appends a line that is made already, newline included.
    pub(super) fn append_line(&mut self, state: &StateDir, line: &[u8]) -> Result<(), LedgerError> {
        if self.length >= EVENTS.limit {
            (self.file, self.length) = EVENTS.begin_anew(state)?;
        }
        self.file.write_all(line).map_err(|cause| state.error("append to", EVENTS.file, cause))?;
        self.length += line.len() as u64;
        Ok(())
    }
}

/// Reads the history of the project's runs.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read_events<T: DeserializeOwned>(state: &StateDir) -> Result<Lines<T>, LedgerError> {
    EVENTS.read(state)
}

/// Opens `ends.jsonl` for the keepers of a new run to append to.
///
/// # Errors
/// When the file cannot be opened.
pub fn open_ends(state: &StateDir, _lock: &RunLock) -> Result<OwnedFd, LedgerError> {
    let (file, length) = ENDS.open(state)?;
    let (file, _) = if length < ENDS.limit { (file, length) } else { ENDS.begin_anew(state)? };
    Ok(file.into())
}

/// Reads what the keepers of a run wrote.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read_ends(state: &StateDir, run: &RunId) -> Result<Lines<EndRecord>, LedgerError> {
    let mut ends: Lines<EndRecord> = ENDS.read(state)?;
    ends.records.retain(|end| end.run == *run);
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::super::lock::try_acquire;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_are_appended_and_a_torn_line_costs_only_itself() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path()).unwrap();
        EventLog::open(&state).unwrap().append(&state, &1).unwrap();
        let path = state.path().join("events.jsonl");
        let torn = [&std::fs::read(&path).unwrap()[..], b"[12"].concat();
        std::fs::write(&path, torn).unwrap();
        let mut log = EventLog::open(&state).unwrap();
        for n in 2..4 {
            log.append(&state, &n).unwrap();
        }
        assert_eq!(read_events::<u32>(&state).unwrap(), Lines { records: vec![1, 2, 3], skipped: 1 });
    }

    #[test]
    fn a_full_history_begins_anew_and_keeps_the_one_before() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path()).unwrap();
        let mut log = EventLog::open(&state).unwrap();
        let event = "x".repeat(1 << 20);
        for _ in 0..9 {
            log.append(&state, &event).unwrap();
        }
        assert_eq!(read_events::<String>(&state).unwrap().records.len(), 1);
        assert!(state.path().join("events.prev.jsonl").metadata().unwrap().len() > EVENTS_BYTES_MAX);
    }

    #[test]
    fn ends_are_those_of_the_run() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path()).unwrap();
        let lock = try_acquire(&state).unwrap().unwrap();
        let run = RunId::new_random().unwrap();
        assert!(read_ends(&state, &run).unwrap().records.is_empty());
        let mut keeper = File::from(open_ends(&state, &lock).unwrap());
        for run in [run.as_str(), "0123456789abcdef"] {
            writeln!(
                keeper,
                r#"{{"version":1,"run":"{run}","service":"web","keeper":12,"leader":{{"pid":1,"start":2}}}}"#
            )
            .unwrap();
        }
        keeper.write_all(br#"{"run":"0123"#).unwrap();
        let ends = read_ends(&state, &run).unwrap();
        assert_eq!((ends.records.len(), ends.skipped), (1, 1));
        assert_eq!(ends.records[0].service, "web");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse::<EndRecord>(&bytes);
            let _ = parse::<serde_json::Value>(&bytes);
        }
    }
}
