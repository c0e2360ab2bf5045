//! What is written down of a run, so that the next command knows what was there, whatever happened to this one.
//!
//! In the project's root, the state directory `.lariat/` holds `lock` ([`lock`]), `run.json` ([`record`], [`store`]),
//! `events.jsonl` and `ends.jsonl` ([`journal`]) and `logs/`. A per-user [`index`] lists the runs of all projects.
//! [`recover`] compares the record of a crashed run with what lives.
//!
//! The types here are the files' format: a change that an older lariat cannot read takes a new
//! [`record::LEDGER_VERSION`]. Older files load; files of a newer version are read, never rewritten; a damaged file is
//! set aside. What this module does not do: signal anybody, or decide what becomes of what is found.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use lariat_sys::files::{DirError, dir_private};
use rustix::fs::{Mode, OFlags};

pub mod answers;
pub mod command;
pub mod index;
pub mod journal;
pub mod lock;
pub mod record;
pub mod recover;
pub mod store;
pub mod writer;

/// The name of the state directory in a project's root.
pub const STATE_DIR: &str = ".lariat";
const IGNORE_FILE: &str = ".gitignore";
const LOGS_DIR: &str = "logs";

/// Why something in the state directory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The state directory, or another that has to be ours alone, is not.
    #[error("{} cannot be used: {problem}; {}", path.display(), advice(problem))]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: DirProblem,
    },
    /// A call on a file failed.
    #[error("could not {step} {}: {cause}", path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The file was written by a newer lariat, so this one must not replace it.
    #[error("{} was written by a newer lariat (format {version}); it is left as it is", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format version.
        version: u32,
    },
    /// No directory is left in which a socket's path is short enough for the kernel.
    #[error("no directory for the socket is short enough: {} has {length} bytes, and {max} are possible", path.display())]
    SocketPathTooLong {
        /// The shortest path that was tried.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// The kernel's limit.
        max: usize,
    },
}

/// What is wrong with a directory that has to be ours alone.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DirProblem {
    /// It is a file, or a symbolic link, wherever that leads.
    #[error("it is no directory, or a symbolic link")]
    NotADirectory,
    /// It belongs to another user.
    #[error("it belongs to user {owner}")]
    Owner {
        /// Whom it belongs to.
        owner: u32,
    },
    /// Other users may use it.
    #[error("other users may use it (mode {mode:04o})")]
    Mode {
        /// Its permission bits.
        mode: u32,
    },
    /// The kernel refused.
    #[error("{message}")]
    System {
        /// The kernel's reason.
        message: String,
        /// Its error number.
        errno: i32,
    },
}

fn advice(problem: &DirProblem) -> &'static str {
    match problem {
        DirProblem::NotADirectory => "move it away",
        DirProblem::Owner { .. } => "run lariat as that user",
        DirProblem::Mode { .. } => "look at what is in it, then `chmod 700` it",
        DirProblem::System { .. } => "the project's directory has to be writable",
    }
}

impl From<DirError> for DirProblem {
    fn from(error: DirError) -> Self {
        match error {
            DirError::NotADirectory => Self::NotADirectory,
            DirError::Owner { owner } => Self::Owner { owner },
            DirError::Mode { mode } => Self::Mode { mode },
            DirError::System(errno) => {
                Self::System { message: errno.to_string(), errno: errno.raw_os_error() }
            }
        }
    }
}

/// Opens or makes a directory that is ours alone.
fn private_dir(path: &Path) -> Result<OwnedFd, LedgerError> {
    dir_private(path).map_err(|error| LedgerError::Directory { path: path.to_owned(), problem: error.into() })
}

/// A project's state directory: ours, private, and no link.
///
/// Files in it are opened relative to its descriptor and never through links, so a directory that is exchanged meanwhile
/// leads nowhere else.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    path: PathBuf,
    directory: OwnedFd,
}

impl StateDir {
    /// Opens the state directory of the project in `root`, after making it (mode 0700, with a `.gitignore` of its own and
    /// a directory for logs) if there is none.
    ///
    /// # Errors
    /// [`LedgerError::Directory`] when it is a link, somebody else's, open to others, or cannot be made.
    pub fn create(root: &Path) -> Result<Self, LedgerError> {
        let path = root.join(STATE_DIR);
        let directory = private_dir(&path)?;
        private_dir(&path.join(LOGS_DIR))?;
        let state = Self { root: root.to_owned(), path, directory };
        match state.open_file(IGNORE_FILE, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL) {
            // A directory without it still works; git shows it then.
            Ok(mut file) => drop(io::Write::write_all(&mut file, b"*\n")),
            Err(LedgerError::File { cause, .. }) if cause.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(state)
    }

    /// Opens the state directory of the project in `root`; `None` if there is none. Makes and changes nothing.
    ///
    /// # Errors
    /// As [`StateDir::create`].
    pub fn open(root: &Path) -> Result<Option<Self>, LedgerError> {
        let path = root.join(STATE_DIR);
        match std::fs::symlink_metadata(&path) {
            Ok(_) => {}
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(LedgerError::File { step: "look at", path, cause }),
        }
        let directory = private_dir(&path)?;
        Ok(Some(Self { root: root.to_owned(), path, directory }))
    }

    /// Returns the project's root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of the state directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the directory with the services' output.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path.join(LOGS_DIR)
    }

    /// Opens a file in the directory, close-on-exec and not through a link. New files get mode 0600.
    fn open_file(&self, name: impl AsRef<OsStr>, flags: OFlags) -> Result<File, LedgerError> {
        let name = name.as_ref();
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        rustix::io::retry_on_intr(|| {
            rustix::fs::openat(self.directory.as_fd(), name, flags, Mode::from_raw_mode(0o600))
        })
        .map(File::from)
        .map_err(|errno| self.error("open", name, errno.into()))
    }

    /// Opens a file in the directory for reading; `None` if there is none.
    fn open_existing(&self, name: &str) -> Result<Option<File>, LedgerError> {
        match self.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => Ok(Some(file)),
            Err(LedgerError::File { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), LedgerError> {
        rustix::fs::renameat(self.directory.as_fd(), from, self.directory.as_fd(), to)
            .map_err(|errno| self.error("rename", from, errno.into()))
    }

    fn error(&self, step: &'static str, name: impl AsRef<OsStr>, cause: io::Error) -> LedgerError {
        LedgerError::File { step, path: self.path.join(name.as_ref()), cause }
    }
}

/// Opens a file in one of the user's directories for reading. Follows no link, waits for nobody at the other end of a FIFO,
/// and takes no terminal: whoever may write there may have put anything under that name.
fn open_plain(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Reads a file, but no more than `limit` bytes of it.
fn read_limited(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, limit), &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_new_directory_is_private_and_ignored_by_git() {
        let root = tempfile::tempdir().unwrap();
        assert!(StateDir::open(root.path()).unwrap().is_none());
        let state = StateDir::create(root.path()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(state.path()), mode(&state.logs())), (0o700, 0o700));
        assert_eq!(std::fs::read_to_string(state.path().join(".gitignore")).unwrap(), "*\n");
        StateDir::create(root.path()).unwrap();
        assert!(StateDir::open(root.path()).unwrap().is_some());
    }

    #[test]
    fn a_link_is_refused() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(elsewhere.path(), root.path().join(STATE_DIR)).unwrap();
        for result in [StateDir::create(root.path()).map(drop), StateDir::open(root.path()).map(drop)] {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, LedgerError::Directory { problem: DirProblem::NotADirectory, .. }),
                "{error}"
            );
            let text = error.to_string();
            assert!(text.contains(".lariat cannot be used: ") && text.ends_with("move it away"), "{text}");
        }
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_open_to_others_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(STATE_DIR);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o770)).unwrap();
        let error = StateDir::create(root.path()).unwrap_err();
        assert!(
            matches!(error, LedgerError::Directory { problem: DirProblem::Mode { mode: 0o770 }, .. }),
            "{error}"
        );
    }

    #[test]
    fn somebody_elses_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(STATE_DIR);
        std::fs::create_dir(&path).unwrap();
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
            eprintln!("SKIP: giving a directory away takes root");
            return;
        }
        let error = StateDir::create(root.path()).unwrap_err();
        assert!(
            matches!(error, LedgerError::Directory { problem: DirProblem::Owner { owner: 12_345 }, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_linked_file_in_the_directory_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path()).unwrap();
        let target = root.path().join("target");
        std::fs::write(&target, "untouched").unwrap();
        symlink(&target, state.path().join("run.json")).unwrap();
        assert!(state.open_existing("run.json").is_err());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
    }
}
