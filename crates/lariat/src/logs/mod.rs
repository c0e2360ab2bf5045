//! What services say: kept byte for byte in a store of two files each, and read from there by everybody.
//!
//! [`pump`] moves output into the stores, [`read`] reads them, [`sanitize`] makes a line safe to show. The file format
//! is `lariat_keeper::store`'s, because the keeper writes it too. Nobody but the pump is in the way of a slow disk, and
//! nothing at all is in the way of a slow reader: the store is the buffer.
//!
//! What this module does not do: prefix, colour, or decide when a service is ready.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lariat_keeper::store::{Drain, Stage};
use rustix::fs::OFlags;

mod index;
pub mod pump;
pub mod read;
pub mod sanitize;

/// The two files of one service's output in one run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFiles {
    log: PathBuf,
    index: PathBuf,
}

impl LogFiles {
    /// Names the files of the current, or else the last, run of a service. Touches nothing.
    ///
    /// `logs` is the state directory's `logs`, and `service` a checked service name.
    #[must_use]
    pub fn current(logs: &Path, service: &str) -> Self {
        Self { log: logs.join(format!("{service}.log")), index: logs.join(format!("{service}.idx")) }
    }

    /// Names the files of the run before that one. Touches nothing.
    #[must_use]
    pub fn previous(logs: &Path, service: &str) -> Self {
        Self {
            log: logs.join(format!("{service}.prev.log")),
            index: logs.join(format!("{service}.prev.idx")),
        }
    }

    /// Returns the path of the service's bytes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Returns the path of the times.
    #[must_use]
    pub fn index(&self) -> &Path {
        &self.index
    }
}

/// Why a store could not be made.
#[derive(Debug, thiserror::Error)]
#[error("could not {step} {}: {cause}", path.display())]
pub struct StoreError {
    step: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// The open store of one service for one run. All starts of the service in this run go on in it.
///
/// Its descriptors share one file offset with every copy: those that keepers have, and those of drains. Dropping it
/// closes its own.
#[derive(Debug)]
pub struct Store {
    files: LogFiles,
    log: OwnedFd,
    index: OwnedFd,
}

impl Store {
    /// Makes an empty store, after renaming the last run's to `NAME.prev.log` and `NAME.prev.idx`.
    ///
    /// Blocks on the disk. The caller holds the run's lock.
    ///
    /// # Errors
    /// [`StoreError`] when a file cannot be renamed or made; links are not followed.
    pub fn create(logs: &Path, service: &str) -> Result<Self, StoreError> {
        let (files, previous) = (LogFiles::current(logs, service), LogFiles::previous(logs, service));
        for (from, to) in [(&files.log, &previous.log), (&files.index, &previous.index)] {
            match std::fs::rename(from, to) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError { step: "rename", path: from.clone(), cause });
                }
                _ => {}
            }
        }
        // Not O_APPEND: splice(2) refuses it. The index is appended to, so that its records never tear.
        let log = create(&files.log, OpenOptions::new().read(true).write(true))?;
        let index = create(&files.index, OpenOptions::new().append(true))?;
        Ok(Self { files, log: log.into(), index: index.into() })
    }

    /// Returns the names of the files.
    #[must_use]
    pub fn files(&self) -> &LogFiles {
        &self.files
    }

    /// Returns the descriptor of the service's bytes, to be handed to a keeper.
    #[must_use]
    pub fn log(&self) -> BorrowedFd<'_> {
        self.log.as_fd()
    }

    /// Returns the descriptor of the times, to be handed to a keeper.
    #[must_use]
    pub fn index(&self) -> BorrowedFd<'_> {
        self.index.as_fd()
    }

    /// Makes the drain of one start of the service into this store.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn drain(&self, pipe: OwnedFd, stage: Stage) -> io::Result<Drain> {
        let (log, index) = (self.log.try_clone()?, self.index.try_clone()?);
        Ok(Drain::new(pipe, stage, log, Some(index))?)
    }
}

fn create(path: &Path, options: &mut OpenOptions) -> Result<File, StoreError> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    options.create_new(true).mode(0o600).custom_flags(flags).open(path).map_err(|cause| StoreError {
        step: "create",
        path: path.to_owned(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_store_keeps_the_last_run_and_forgets_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        for run in 1..=3 {
            let store = Store::create(dir.path(), "web").unwrap();
            std::fs::write(store.files().log(), format!("run {run}")).unwrap();
        }
        let read = |files: LogFiles| std::fs::read_to_string(files.log()).unwrap();
        assert_eq!(read(LogFiles::current(dir.path(), "web")), "run 3");
        assert_eq!(read(LogFiles::previous(dir.path(), "web")), "run 2");
    }

    #[test]
    fn a_store_without_a_directory_says_which_file() {
        let error = Store::create(Path::new("/nonexistent/logs"), "web").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("could not create /nonexistent/logs/web.log: "), "{text}");
    }
}
