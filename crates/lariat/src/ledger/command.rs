//! The record of a run that has no project: one command of `lariat run`.
//!
//! One small file in the user's runtime directory, written when the command was started, without fsync: it is about
//! processes, and does not have to survive a boot. It is removed by whoever sees the end; what is left of it after a
//! crash of both says where to look.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lariat_sys::identity::{BootId, Identity};
use serde::{Deserialize, Serialize};

use super::index::{UserDirs, error};
use super::record::{ProcessRecord, RunId};
use super::{LedgerError, read_limited};
use crate::clock;

/// The version of the format that this lariat writes.
pub const COMMAND_RECORD_VERSION: u32 = 1;

/// What is on disk of a run without a project. Values of the environment are never recorded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommandRecord {
    /// [`COMMAND_RECORD_VERSION`] of whoever wrote it.
    pub version: u32,
    /// The run.
    pub run: RunId,
    /// The run whose id the processes carry in `LARIAT_RUN`: this one, or the one around it.
    pub marker: RunId,
    /// The kernel's boot id, as text: identities mean nothing in another boot.
    pub boot: String,
    /// The process that decides.
    pub supervisor: ProcessRecord,
    /// Its keeper.
    pub keeper: ProcessRecord,
    /// The command itself.
    pub leader: ProcessRecord,
    /// What was executed; what is not UTF-8 is shown with U+FFFD.
    pub command: Vec<String>,
    /// Where.
    pub dir: PathBuf,
    /// When, in milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
}

/// Who takes part in a run without a project.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cast {
    /// The process that decides.
    pub supervisor: Identity,
    /// Its keeper.
    pub keeper: Identity,
    /// The command itself.
    pub leader: Identity,
}

/// The place of one record, chosen before the command starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandLedger {
    run: RunId,
    marker: RunId,
    path: PathBuf,
}

impl CommandLedger {
    /// Chooses an id and a place. `marker` is the `LARIAT_RUN` that was there before, if any: the command goes on
    /// carrying that one, so that whoever ends the run around it finds everything.
    ///
    /// # Errors
    /// As [`UserDirs::command_record`], and when the kernel gives no random bytes. The command runs without a record.
    pub fn choose(dirs: &UserDirs, marker: Option<RunId>) -> Result<Self, LedgerError> {
        let run = RunId::new_random()
            .map_err(|errno| error("choose an id for", Path::new("the run"), errno.into()))?;
        let path = dirs.command_record(&run)?;
        Ok(Self { marker: marker.unwrap_or_else(|| run.clone()), run, path })
    }

    /// Returns the run's own id.
    #[must_use]
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// Returns the id that the command carries in `LARIAT_RUN`.
    #[must_use]
    pub fn marker(&self) -> &RunId {
        &self.marker
    }

    /// Returns where the record is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the record.
    ///
    /// # Errors
    /// When the boot id cannot be read or the file not be written. The command goes on without a record.
    pub fn write(&self, cast: Cast, command: Vec<String>, dir: PathBuf) -> Result<(), LedgerError> {
        let failed = |cause: io::Error| error("write", &self.path, cause);
        let record = CommandRecord {
            version: COMMAND_RECORD_VERSION,
            run: self.run.clone(),
            marker: self.marker.clone(),
            boot: BootId::read().map_err(|errno| failed(errno.into()))?.to_string(),
            supervisor: cast.supervisor.into(),
            keeper: cast.keeper.into(),
            leader: cast.leader.into(),
            command,
            dir,
            started_unix_ms: clock::unix_millis(),
        };
        let text = serde_json::to_string(&record).map_err(|cause| failed(io::Error::other(cause)))?;
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&self.path).map_err(failed)?;
        file.write_all((text + "\n").as_bytes()).map_err(failed)
    }

    /// Removes the record, if it is there. The directory stays.
    pub fn remove(&self) {
        // What cannot be removed names identities that are dead, which is all that it can do.
        let _ = fs::remove_file(&self.path);
    }
}

/// The largest record that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 1024 * 1024;

/// Makes a record of the bytes of a file; `None` for what is none. Never panics, whatever the bytes.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<CommandRecord> {
    serde_json::from_slice(bytes).ok()
}

/// Returns the records that are in the user's runtime directories; what is none is left out. Makes no directory, and reads
/// in none that is somebody else's.
#[must_use]
pub fn list(dirs: &UserDirs) -> Vec<CommandRecord> {
    let mut records = Vec::new();
    let is_ours = |directory: &PathBuf| {
        let user = lariat_sys::process::effective_user();
        fs::symlink_metadata(directory)
            .is_ok_and(|found| found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0)
    };
    for directory in dirs.at_runtime_dirs().into_iter().filter(is_ours) {
        for path in fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "json") {
                let bytes = fs::File::open(&path).and_then(|file| read_limited(file, RECORD_BYTES_MAX));
                records.extend(bytes.ok().and_then(|bytes| parse(&bytes)));
            }
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_written_read_and_removed() {
        let runtime = tempfile::tempdir().unwrap();
        let dirs = UserDirs { runtime: Some(runtime.path().to_owned()), ..UserDirs::default() };
        let outer = RunId::new_random().unwrap();
        let ledger = CommandLedger::choose(&dirs, Some(outer.clone())).unwrap();
        assert_eq!(ledger.marker(), &outer);
        let me = Identity::current();
        let cast = Cast { supervisor: me, keeper: me, leader: me };
        ledger.write(cast, vec!["true".into()], "/".into()).unwrap();
        let record: CommandRecord = serde_json::from_slice(&fs::read(ledger.path()).unwrap()).unwrap();
        assert_eq!((record.marker.clone(), Identity::from(record.leader)), (outer, me));
        fs::write(ledger.path().with_file_name("other.json"), "{").unwrap();
        assert_eq!(list(&dirs).iter().filter(|found| found.run == record.run).count(), 1);
        ledger.remove();
        assert!(!ledger.path().exists());
        ledger.remove();
    }
}
