//! Loads and replaces `run.json`.
//!
//! A record is replaced as a whole: written to a new file, synced, renamed over the old one, and the directory synced.
//! Whoever reads sees the old or the new one, also after a power loss. Writing takes the run's lock. Blocks on the
//! disk: a supervisor uses [`super::writer`].

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, OFlags};

use super::lock::RunLock;
use super::record::{LEDGER_VERSION, RunId, RunRecord};
use super::{LedgerError, StateDir, read_limited};

/// The name of the ledger in the state directory.
pub const LEDGER_FILE: &str = "run.json";
const LEDGER_NEW: &str = "run.json.new";
/// The largest ledger that is read, in bytes. A larger one counts as damaged.
pub const LEDGER_BYTES_MAX: u64 = 16 << 20;

/// What was found in place of the ledger.
#[derive(Clone, PartialEq, Debug)]
pub enum Loaded {
    /// There is none: no run was ever here, or it was cleaned.
    Absent,
    /// The record, written by this version or an older one.
    Record(Box<RunRecord>),
    /// A file of a newer version. It must not be replaced.
    Newer {
        /// Its format version.
        version: u32,
        /// What could be understood of it.
        record: Option<Box<RunRecord>>,
    },
    /// It cannot be understood.
    Damaged {
        /// Why, with line and column.
        problem: String,
        /// The run's id, where that much can still be read: its processes carry it.
        run: Option<RunId>,
        /// Where it was set aside, if it was.
        set_aside: Option<PathBuf>,
    },
}

/// Makes a record of the bytes of a ledger. Pure; never panics, whatever the bytes.
#[must_use]
pub fn parse(bytes: &[u8]) -> Loaded {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let record = serde_json::from_slice::<RunRecord>(bytes);
    match (serde_json::from_slice::<Versioned>(bytes), record) {
        (Ok(Versioned { version }), record) if version > LEDGER_VERSION => {
            Loaded::Newer { version, record: record.ok().map(Box::new) }
        }
        (_, Ok(record)) => Loaded::Record(Box::new(record)),
        (_, Err(problem)) => damaged(problem.to_string(), bytes),
    }
}

fn damaged(problem: String, bytes: &[u8]) -> Loaded {
    Loaded::Damaged { problem, run: salvage_run(bytes), set_aside: None }
}

/// Finds the run's id in what is left of a ledger.
fn salvage_run(bytes: &[u8]) -> Option<RunId> {
    let key = b"\"run\"";
    let rest = memchr::memmem::find_iter(bytes, key).map(|at| &bytes[at + key.len()..]);
    rest.filter_map(|rest| {
        let value = rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
        let text = value.get(..16).filter(|_| value.get(16) == Some(&b'"'))?;
        RunId::try_from(String::from_utf8_lossy(text).into_owned()).ok()
    })
    .next()
}

/// Reads the ledger and changes nothing.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn load(state: &StateDir) -> Result<Loaded, LedgerError> {
    let Some(file) = state.open_existing(LEDGER_FILE)? else { return Ok(Loaded::Absent) };
    let bytes =
        read_limited(file, LEDGER_BYTES_MAX + 1).map_err(|cause| state.error("read", LEDGER_FILE, cause))?;
    if bytes.len() as u64 > LEDGER_BYTES_MAX {
        return Ok(damaged(format!("larger than {LEDGER_BYTES_MAX} bytes"), &bytes));
    }
    Ok(parse(&bytes))
}

/// Reads the ledger. A damaged one is renamed to `run.json.damaged-TIME`, so that a new one can take its place.
///
/// # Errors
/// As [`load`], and when it cannot be renamed.
pub fn load_and_set_aside(state: &StateDir, _lock: &RunLock) -> Result<Loaded, LedgerError> {
    let (problem, run) = match load(state)? {
        Loaded::Damaged { problem, run, .. } => (problem, run),
        loaded => return Ok(loaded),
    };
    let name = format!("{LEDGER_FILE}.damaged-{}", crate::clock::unix_millis());
    state.rename(LEDGER_FILE, &name)?;
    Ok(Loaded::Damaged { problem, run, set_aside: Some(state.path().join(name)) })
}

/// Replaces the ledger. Returns when it is on the disk.
///
/// # Errors
/// [`LedgerError::Newer`] when a newer lariat wrote the file that is there; [`LedgerError::File`] when a step failed: the
/// old record is in place then.
pub fn save(state: &StateDir, _lock: &RunLock, record: &RunRecord) -> Result<(), LedgerError> {
    if let Loaded::Newer { version, .. } = load(state)? {
        return Err(LedgerError::Newer { path: state.path().join(LEDGER_FILE), version });
    }
    replace(state, record)
}

/// Replaces the ledger without a look at the old one: the caller knows that it is its own.
pub(super) fn replace(state: &StateDir, record: &RunRecord) -> Result<(), LedgerError> {
    let bytes = serde_json::to_vec_pretty(record)
        .map_err(|cause| state.error("write", LEDGER_NEW, io::Error::other(cause)))?;
    // What a crash left under this name is worthless; a link under it is removed, not followed.
    let _ = rustix::fs::unlinkat(state.directory.as_fd(), LEDGER_NEW, AtFlags::empty());
    let mut file = state.open_file(LEDGER_NEW, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
    let written = file.write_all(&bytes).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all());
    written.map_err(|cause| state.error("write", LEDGER_NEW, cause))?;
    state.rename(LEDGER_NEW, LEDGER_FILE)?;
    rustix::fs::fsync(&state.directory).map_err(|errno| state.error("sync", "", errno.into()))
}

#[cfg(test)]
mod tests {
    use super::super::lock::try_acquire;
    use super::super::record::{RecordedState, ServiceRecord};
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn record() -> RunRecord {
        let run = RunId::new_random().unwrap();
        let mut record =
            RunRecord::begin(run, "shop", Path::new("/home/me/shop"), Path::new("/run/s.sock")).unwrap();
        record.services.push(ServiceRecord {
            name: "web".into(),
            state: RecordedState::Ready,
            keeper: Some(record.supervisor),
            leader: None,
            pgrp: Some(7),
            session: Some(7),
            command: vec!["npm".into(), "run".into()],
            dir: "/home/me/shop/web".into(),
            started_unix_ms: Some(1),
            ports: vec![8000],
            stop: None,
            restarts: 2,
            output: Some(77),
            earlier: Vec::new(),
        });
        record
    }

    fn held() -> (tempfile::TempDir, StateDir, RunLock) {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path()).unwrap();
        let lock = try_acquire(&state).unwrap().unwrap();
        (root, state, lock)
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let (_root, state, lock) = held();
        assert_eq!(load(&state).unwrap(), Loaded::Absent);
        let mut record = record();
        for restarts in 0..3 {
            record.services[0].restarts = restarts;
            save(&state, &lock, &record).unwrap();
            assert_eq!(load(&state).unwrap(), Loaded::Record(Box::new(record.clone())));
        }
        assert!(!state.path().join(LEDGER_NEW).exists());
    }

    #[test]
    fn what_a_crash_left_half_written_is_in_nobodys_way() {
        let (_root, state, lock) = held();
        std::fs::write(state.path().join(LEDGER_NEW), "{\"vers").unwrap();
        save(&state, &lock, &record()).unwrap();
        assert!(matches!(load(&state).unwrap(), Loaded::Record(_)));
    }

    #[test]
    fn a_damaged_ledger_is_set_aside_and_said() {
        let (_root, state, lock) = held();
        for bytes in [&b""[..], b"{", b"[]", b"{\"version\":1}", b"\xff\xfe", &[0; 4096]] {
            std::fs::write(state.path().join(LEDGER_FILE), bytes).unwrap();
            assert!(matches!(load(&state).unwrap(), Loaded::Damaged { set_aside: None, .. }));
            let loaded = load_and_set_aside(&state, &lock).unwrap();
            let Loaded::Damaged { set_aside: Some(path), .. } = loaded else { panic!("{loaded:?}") };
            assert_eq!(std::fs::read(path).unwrap(), bytes);
            assert_eq!(load(&state).unwrap(), Loaded::Absent);
            save(&state, &lock, &record()).unwrap();
        }
    }

    #[test]
    fn a_newer_ledger_is_read_and_never_replaced() {
        let (_root, state, lock) = held();
        let newer = RunRecord { version: LEDGER_VERSION + 1, ..record() };
        let mut value = serde_json::to_value(&newer).unwrap();
        value["novelty"] = serde_json::json!({ "a": [1, 2] });
        let path = state.path().join(LEDGER_FILE);
        std::fs::write(&path, value.to_string()).unwrap();
        let version = LEDGER_VERSION + 1;
        assert_eq!(load(&state).unwrap(), Loaded::Newer { version, record: Some(Box::new(newer)) });
        let error = save(&state, &lock, &record()).unwrap_err();
        assert!(matches!(error, LedgerError::Newer { version: v, .. } if v == version), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), value.to_string());
        std::fs::write(&path, "{\"version\":99,\"run\":[]}").unwrap();
        assert_eq!(load_and_set_aside(&state, &lock).unwrap(), Loaded::Newer { version: 99, record: None });
    }

    #[test]
    fn ledgers_of_every_release_load() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ledger");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let loaded = parse(&std::fs::read(&path).unwrap());
            assert!(matches!(loaded, Loaded::Record(_)), "{}: {loaded:?}", path.display());
            count += 1;
        }
        assert!(count > 0);
    }

    #[test]
    fn a_cut_ledger_still_says_which_run_it_was() {
        let record = record();
        for text in [serde_json::to_string(&record).unwrap(), serde_json::to_string_pretty(&record).unwrap()]
        {
            let Loaded::Damaged { run, .. } = parse(&text.as_bytes()[..text.len() / 2]) else {
                panic!("{text}")
            };
            assert_eq!(run, Some(record.run.clone()));
        }
        for text in
            ["{\"run\"", "{\"run\": \"0123", "\"run\":\"0123456789ABCDEF\"", "{\"run\":\"0123456789abcdef"]
        {
            assert!(matches!(parse(text.as_bytes()), Loaded::Damaged { run: None, .. }), "{text}");
        }
    }

    fn damage() -> impl Strategy<Value = Vec<u8>> {
        let whole = serde_json::to_vec(&record()).unwrap();
        let length = whole.len();
        (0..length, 0..length, any::<u8>(), any::<bool>()).prop_map(move |(cut, at, byte, is_cut)| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            bytes.truncate(if is_cut { cut } else { length });
            bytes
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), damage()]) {
            let _ = parse(&bytes);
        }
    }
}
