//! The per-user list of runs, and where a run's socket is.
//!
//! One small file per run, named by its id. The list is a convenience for `ps --all`: when it cannot be written, the run
//! goes on. The environment is not read here; the caller passes what it says ([`UserDirs`]).

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use lariat_sys::identity::Identity;
use serde::{Deserialize, Serialize};

use super::command::place_whole;
use super::record::{ProcessRecord, RunId, RunRecord};
use super::{LedgerError, open_plain, private_dir, read_limited};

/// The longest path of a unix socket in bytes: `sun_path` without its NUL.
pub const SOCKET_PATH_MAX: usize = 107;
/// The largest entry that is read, in bytes.
const ENTRY_BYTES_MAX: u64 = 64 * 1024;

/// The user's directories, as the environment says.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct UserDirs {
    /// `XDG_RUNTIME_DIR`.
    pub runtime: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub state: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
}

impl UserDirs {
    /// Returns the directory of the list of runs; `None` when neither `XDG_STATE_HOME` nor `HOME` is an absolute path.
    #[must_use]
    pub fn runs(&self) -> Option<PathBuf> {
        let state = self.state.as_ref().filter(|path| path.is_absolute()).cloned();
        let home = self.home.as_ref().filter(|path| path.is_absolute());
        let state = state.or_else(|| home.map(|home| home.join(".local/state")))?;
        Some(state.join("lariat/runs"))
    }

    /// Returns where the user is at home, without links as far as that can be told. Blocks for as long as the file system
    /// there does.
    #[must_use]
    pub fn home_without_links(&self) -> Option<PathBuf> {
        let home = self.home.as_ref().filter(|path| path.is_absolute())?;
        Some(home.canonicalize().unwrap_or_else(|_| home.clone()))
    }

    /// Chooses the path of a run's socket, and makes its directory, which is ours alone.
    ///
    /// It is under `XDG_RUNTIME_DIR`, or in `/tmp/lariat-UID` when that is not set, not there, or too long.
    ///
    /// # Errors
    /// [`LedgerError::Directory`] when the directory in `/tmp` is not ours.
    pub fn socket(&self, run: &RunId) -> Result<PathBuf, LedgerError> {
        let path = self.at_runtime(&format!("{run}.sock"))?;
        let length = path.as_os_str().len();
        if length <= SOCKET_PATH_MAX {
            return Ok(path);
        }
        Err(LedgerError::SocketPathTooLong { length, path, max: SOCKET_PATH_MAX })
    }

    /// Chooses the path of the record of a run that has no project, and makes its directory, which is ours alone.
    ///
    /// # Errors
    /// As [`Self::socket`].
    pub fn command_record(&self, run: &RunId) -> Result<PathBuf, LedgerError> {
        self.at_runtime(&format!("{run}.json"))
    }

    /// Returns the directories in which sockets and records of runs without a project may be, those that are there and
    /// ours alone.
    #[must_use]
    pub fn at_runtime_all(&self) -> Vec<RuntimeDir> {
        let preferred =
            self.runtime.as_ref().filter(|path| path.is_absolute()).map(|path| path.join("lariat"));
        let there =
            preferred.into_iter().chain([fallback_dir()]).filter(|path| path.symlink_metadata().is_ok());
        // One that is somebody else's, or open to others, says nothing that may be believed.
        there.filter_map(|path| Some(RuntimeDir { directory: private_dir(&path).ok()?, path })).collect()
    }

    fn at_runtime(&self, name: &str) -> Result<PathBuf, LedgerError> {
        let preferred =
            self.runtime.as_ref().filter(|path| path.is_absolute()).map(|path| path.join("lariat"));
        if let Some(directory) = preferred
            && directory.join(name).as_os_str().len() <= SOCKET_PATH_MAX
            && private_dir(&directory).is_ok()
        {
            return Ok(directory.join(name));
        }
        let directory = fallback_dir();
        private_dir(&directory)?;
        Ok(directory.join(name))
    }
}

/// Where it is when there is no runtime directory.
fn fallback_dir() -> PathBuf {
    PathBuf::from(format!("/tmp/lariat-{}", lariat_sys::process::effective_user()))
}

/// A directory of the user's sockets and records, open.
#[derive(Debug)]
pub struct RuntimeDir {
    /// Where it is.
    pub path: PathBuf,
    directory: OwnedFd,
}

impl AsFd for RuntimeDir {
    /// Borrows the directory's descriptor.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// One run in the list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IndexEntry {
    /// The run.
    pub run: RunId,
    /// The project's root. A root that is not UTF-8 is not listed.
    pub root: PathBuf,
    /// The stack's name, for when the project is gone.
    #[serde(default)]
    pub stack: Option<String>,
    /// The kernel's boot id, as text.
    #[serde(default)]
    pub boot: Option<String>,
    /// The supervisor: a run whose project was removed is alive all the same.
    #[serde(default)]
    pub supervisor: Option<ProcessRecord>,
    /// When the run began, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub started_unix_ms: Option<u64>,
    /// Its socket, for the same reason.
    #[serde(default)]
    pub socket: Option<PathBuf>,
}

impl IndexEntry {
    /// Makes the entry of a run.
    #[must_use]
    pub fn of(record: &RunRecord) -> Self {
        Self {
            run: record.run.clone(),
            root: record.root.clone(),
            stack: Some(record.stack.clone()),
            boot: Some(record.boot.clone()),
            supervisor: Some(record.supervisor),
            started_unix_ms: Some(record.started_unix_ms),
            socket: Some(record.socket.clone()),
        }
    }

    /// Says whether the supervisor that it names is alive in this boot. Where it names no boot, it is taken for this one.
    #[must_use]
    pub fn has_live_supervisor(&self, boot: Option<&str>) -> bool {
        let is_this_boot = self.boot.as_deref().is_none_or(|own| Some(own) == boot);
        is_this_boot && self.supervisor.is_some_and(|supervisor| Identity::from(supervisor).is_alive())
    }
}

/// The list of this user's runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunIndex {
    directory: PathBuf,
}

impl RunIndex {
    /// Names the list in this directory. Touches nothing.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Adds a run, or writes it anew, in place of any other of the same project that is over: a project has one run at a
    /// time, and who adds it holds the project's lock. One that is alive though its lock was removed is known by this list
    /// alone.
    ///
    /// # Errors
    /// When the directory is not ours alone, or the file cannot be written. The run does without.
    pub fn add(&self, entry: &IndexEntry) -> Result<(), LedgerError> {
        if let Some(parent) = self.directory.parent() {
            fs::create_dir_all(parent).map_err(|cause| error("make", parent, cause))?;
        }
        private_dir(&self.directory)?;
        let is_earlier = |other: &IndexEntry| {
            let is_over = || !other.has_live_supervisor(entry.boot.as_deref());
            other.root == entry.root && other.run != entry.run && is_over()
        };
        for earlier in self.list().unwrap_or_default().into_iter().filter(is_earlier) {
            // It is the list's loss if it cannot be removed: whoever reads it sees that the run is gone.
            let _ = self.remove(&earlier.run);
        }
        let path = self.path(&entry.run);
        let text =
            serde_json::to_string(entry).map_err(|cause| error("write", &path, io::Error::other(cause)))?;
        // Nobody reads it between the two: the run is only about to begin, or says the same of itself again.
        self.remove(&entry.run)?;
        place_whole(&path, (text + "\n").as_bytes()).map(drop).map_err(|cause| error("write", &path, cause))
    }

    /// Takes a run off the list. One that is not there is no error.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn remove(&self, run: &RunId) -> Result<(), LedgerError> {
        let path = self.path(run);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(error("remove", &path, cause)),
            _ => Ok(()),
        }
    }

    /// Returns all runs of the list, ordered by id. What is no entry is left out; a list that is not there is empty.
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    pub fn list(&self) -> Result<Vec<IndexEntry>, LedgerError> {
        let names = match fs::read_dir(&self.directory) {
            Ok(names) => names,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(error("read", &self.directory, cause)),
        };
        let mut entries = Vec::new();
        for name in names {
            let path = name.map_err(|cause| error("read", &self.directory, cause))?.path();
            let bytes = open_plain(&path).and_then(|file| read_limited(file, ENTRY_BYTES_MAX));
            let entry = bytes.ok().and_then(|bytes| serde_json::from_slice::<IndexEntry>(&bytes).ok());
            entries.extend(entry.filter(|entry| path == self.path(&entry.run)));
        }
        entries.sort_by(|a, b| a.run.cmp(&b.run));
        Ok(entries)
    }

    fn path(&self, run: &RunId) -> PathBuf {
        self.directory.join(run.as_str())
    }
}

pub(super) fn error(step: &'static str, path: &Path, cause: io::Error) -> LedgerError {
    LedgerError::File { step, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(root: &str) -> IndexEntry {
        let run = RunId::new_random().unwrap();
        IndexEntry::of(&RunRecord::begin(run, "shop", Path::new(root), Path::new("/s")).unwrap())
    }

    #[test]
    fn runs_are_listed_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let index = RunIndex::at(&dir.path().join("state/lariat/runs"));
        assert_eq!(index.list().unwrap(), []);
        let mut entries = [entry("/a"), entry("/b")];
        entries.sort_by(|a, b| a.run.cmp(&b.run));
        entries.iter().for_each(|entry| index.add(entry).unwrap());
        std::fs::write(dir.path().join("state/lariat/runs/0123456789abcdef"), "{\"run\":").unwrap();
        // A FIFO that nobody writes to, and one that somebody has open and says nothing.
        let fifo = |name: &str| {
            let path = dir.path().join("state/lariat/runs").join(name);
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
                .unwrap();
            path
        };
        fifo("00000000000000f0");
        let _held = fs::File::options().read(true).write(true).open(fifo("00000000000000f1")).unwrap();
        std::fs::write(
            dir.path().join("state/lariat/runs/other"),
            serde_json::to_string(&entries[0]).unwrap(),
        )
        .unwrap();
        assert_eq!(index.list().unwrap(), entries);
        index.remove(&entries[0].run).unwrap();
        index.remove(&entries[0].run).unwrap();
        assert_eq!(index.list().unwrap(), entries[1..]);
        let next = IndexEntry { run: RunId::new_random().unwrap(), supervisor: None, ..entries[1].clone() };
        index.add(&next).unwrap();
        assert_eq!(index.list().unwrap().len(), 2, "the supervisor of the other one, this process, is alive");
        index.remove(&entries[1].run).unwrap();
        let last = IndexEntry { run: RunId::new_random().unwrap(), ..entries[1].clone() };
        index.add(&last).unwrap();
        assert_eq!(index.list().unwrap(), [last], "a project has one run at a time");
    }

    #[test]
    fn entries_of_earlier_versions_are_read() {
        let text = "{\"run\":\"0123456789abcdef\",\"root\":\"/p\"}";
        let entry: IndexEntry = serde_json::from_str(text).unwrap();
        assert_eq!((entry.root.as_path(), entry.supervisor, entry.boot), (Path::new("/p"), None, None));
    }

    #[test]
    fn the_list_follows_the_environment() {
        let path = |text: &str| Some(PathBuf::from(text));
        let table = [
            (path("/x"), path("/home/me"), path("/x/lariat/runs")),
            (path("relative"), path("/home/me"), path("/home/me/.local/state/lariat/runs")),
            (None, path("/home/me"), path("/home/me/.local/state/lariat/runs")),
            (None, None, None),
        ];
        for (state, home, expected) in table {
            assert_eq!(UserDirs { runtime: None, state, home }.runs(), expected);
        }
    }

    #[test]
    fn sockets_are_where_paths_are_short_enough_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let run = RunId::new_random().unwrap();
        let at = |runtime: PathBuf| {
            UserDirs { runtime: Some(runtime), ..UserDirs::default() }.socket(&run).unwrap()
        };
        assert_eq!(at(dir.path().to_owned()), dir.path().join(format!("lariat/{run}.sock")));

        let user = lariat_sys::process::effective_user();
        let fallback = PathBuf::from(format!("/tmp/lariat-{user}/{run}.sock"));
        let long = dir.path().join("x".repeat(SOCKET_PATH_MAX));
        std::fs::create_dir(&long).unwrap();
        assert_eq!(at(long), fallback);
        assert_eq!(at(dir.path().join("not there")), fallback);
        std::fs::set_permissions(dir.path().join("lariat"), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(at(dir.path().to_owned()), fallback);
    }
}
