//! Facts that fixtures state: files in a directory, waited for and read by tests.

use std::fs;
use std::path::{Path, PathBuf};

use crate::wait::{PATIENCE, wait_at_most, wait_until};

/// A facts directory. Cloning it copies the path.
#[derive(Clone, Debug)]
pub struct Facts(PathBuf);

impl Facts {
    /// Makes the directory, open to every user: some fixtures run as another one.
    pub(crate) fn new(dir: PathBuf) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        fs::create_dir_all(&dir).expect("the arena's directory is ours");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("the directory is ours");
        Self(dir)
    }

    /// Returns the directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Returns the directory as text, to be put into a command line.
    #[must_use]
    pub fn as_arg(&self) -> String {
        self.0.to_str().expect("the arena's path is plain").to_owned()
    }

    /// Returns whether the fact was stated.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }

    /// Returns what was stated, or `None` when it was not.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0.join(name)).ok()
    }

    /// Takes a fact back, so that it can be waited for again.
    pub fn forget(&self, name: &str) {
        let _ = fs::remove_file(self.0.join(name));
    }

    /// Waits for a fact and returns it.
    ///
    /// # Panics
    /// After [`PATIENCE`], with the facts that there are.
    #[track_caller]
    pub fn wait_for(&self, name: &str) -> String {
        match wait_at_most(PATIENCE, || self.get(name)) {
            Some(text) => text,
            None => panic!("waited {PATIENCE:?} for the fact `{name}`; stated are {:?}", self.names()),
        }
    }

    /// Returns the names of all facts, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    /// Returns the pids of all processes that announced themselves under `role`.
    #[must_use]
    pub fn pids(&self, role: &str) -> Vec<i32> {
        let prefix = format!("pid-{role}-");
        self.names().iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()).collect()
    }

    /// Waits until a process has announced itself under `role` and returns its pid.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[track_caller]
    pub fn pid(&self, role: &str) -> i32 {
        wait_until(&format!("a process in the role `{role}`"), PATIENCE, || self.pids(role).first().copied())
    }

    /// Returns for each process in `role` that was told anything, how often.
    #[must_use]
    pub fn told(&self, role: &str) -> Vec<usize> {
        let prefix = format!("told-{role}-");
        let told = self.names().into_iter().filter(|name| name.starts_with(&prefix));
        told.map(|name| self.get(&name).unwrap_or_default().lines().count()).collect()
    }
}
