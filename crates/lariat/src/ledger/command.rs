//! The record of a run that has no project: one command of `lariat run`.
//!
//! One small file in the user's runtime directory, written when the command was started, without fsync: it is about
//! processes, and does not have to survive a boot. It is removed by whoever sees the end; what is left of it after a
//! crash of both says where to look.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lariat_sys::identity::{BootId, Identity};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::LedgerError;
use super::index::{UserDirs, error};
use super::record::{ProcessRecord, RunId};
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
        place_whole(&self.path, (text + "\n").as_bytes()).map_err(failed)
    }

    /// Removes the record, if it is there. The directory stays.
    pub fn remove(&self) {
        // What cannot be removed names identities that are dead, which is all that it can do.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes a file that is there with all of its bytes or not at all, whenever we are killed.
///
/// Without a name until it is whole (open(2), `O_TMPFILE`), so that nothing half-written is left under any name; on a
/// file system that knows no such files it is renamed into place.
fn place_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let directory = path.parent().unwrap_or(Path::new("/"));
    if let Ok(file) = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        let mut file = fs::File::from(file);
        file.write_all(bytes)?;
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, nameless, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
        return Ok(());
    }
    let new = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(&new)?.write_all(bytes)?;
    fs::rename(&new, path)
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
        assert_eq!((record.marker, Identity::from(record.leader)), (outer, me));
        ledger.remove();
        assert!(!ledger.path().exists());
        ledger.remove();
    }
}
