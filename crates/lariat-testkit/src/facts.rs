//! Facts that fixtures state: files in a directory, waited for and read by tests.

use std::collections::BTreeMap;
use std::fmt;
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
        self.heard(role).values().map(Vec::len).collect()
    }

    /// Returns what each process in `role` that was told anything was told, by its number.
    #[must_use]
    pub fn heard(&self, role: &str) -> BTreeMap<i32, Vec<Told>> {
        let prefix = format!("told-{role}-");
        let of = |name: &String| {
            let pid = name.strip_prefix(&prefix)?.parse().ok()?;
            Some((pid, self.get(name)?.lines().map(Told::of).collect()))
        };
        self.names().iter().filter_map(of).collect()
    }

    /// Says who in `role` was told what by whom, for whoever reads that a test failed.
    #[must_use]
    pub fn told_in_words(&self, role: &str) -> String {
        let heard = self.heard(role);
        let one = |(pid, told): (&i32, &Vec<Told>)| {
            let told: Vec<String> = told.iter().map(Told::to_string).collect();
            format!("{role} {pid} was told {}", told.join(", "))
        };
        let said: Vec<String> = heard.iter().map(one).collect();
        if said.is_empty() { format!("no {role} was told anything") } else { said.join("; ") }
    }

    /// Asserts how often those in `role` that were told anything were told: a number for each of them.
    ///
    /// # Panics
    /// When it is not so, with what each was told by whom, and `what` this is about.
    #[track_caller]
    pub fn assert_told(&self, role: &str, times: &[usize], what: impl fmt::Display) {
        let told = self.told(role);
        assert!(
            told == times,
            "told {told:?} times instead of {times:?}: {}; {what}; stated are {:?}",
            self.told_in_words(role),
            self.names()
        );
    }
}

/// A signal that a member was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// Its number.
    pub signal: i32,
    /// Who sent it; 0 if that one has no number where the member is.
    pub sender: i32,
}

impl Told {
    /// # Panics
    /// When the fixture has written something else.
    fn of(line: &str) -> Self {
        let numbers = line.split_once(" from ").and_then(|(signal, sender)| {
            Some(Self { signal: signal.parse().ok()?, sender: sender.parse().ok()? })
        });
        numbers.unwrap_or_else(|| panic!("no signal and sender: {line:?}"))
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.signal) {
            Some((_, name)) => f.write_str(name)?,
            None => write!(f, "signal {}", self.signal)?,
        }
        match self.sender {
            0 => f.write_str(" from outside"),
            sender => write!(f, " from {sender}"),
        }
    }
}

/// Signals that a member may be told.
const NAMES: &[(i32, &str)] = &[
    (libc::SIGHUP, "HUP"),
    (libc::SIGINT, "INT"),
    (libc::SIGQUIT, "QUIT"),
    (libc::SIGUSR1, "USR1"),
    (libc::SIGUSR2, "USR2"),
    (libc::SIGTERM, "TERM"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_assertion_says_who_was_told_what_by_whom() {
        let dir = tempfile::tempdir().expect("a directory");
        let facts = Facts::new(dir.path().join("facts"));
        assert_eq!(facts.told_in_words("leader"), "no leader was told anything");
        facts.assert_told("leader", &[], "nobody was");
        fs::write(facts.dir().join("told-leader-7"), "15 from 3\n1 from 0\n").expect("it is ours");
        fs::write(facts.dir().join("told-child-8"), "64 from 3\n").expect("it is ours");
        assert_eq!(facts.told("leader"), [2]);
        assert_eq!(facts.told_in_words("child"), "child 8 was told signal 64 from 3");
        facts.assert_told("leader", &[2], "twice");
        let failed = std::panic::catch_unwind(|| facts.assert_told("leader", &[1], "at its end"));
        let said = *failed.expect_err("it was told twice").downcast::<String>().expect("a message");
        for words in ["leader 7 was told TERM from 3, HUP from outside", "at its end", "told-child-8"] {
            assert!(said.contains(words), "{said}");
        }
    }
}
