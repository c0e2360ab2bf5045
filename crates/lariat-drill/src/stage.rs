//! The place of a drill: temporary directories of its own, in which home, state and runtime directories are, so that no
//! real run of the user is seen or touched; and a cgroup directory, where one can be had.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::census::MARKER;
use crate::ground::{CELL_VARIABLE, Ground};
use crate::promise::Containment;

/// The variable that names a copy of the executable on the drill's file system.
pub(crate) const COPY_VARIABLE: &str = "LARIAT_DRILL_COPY";

/// The variable that holds the words of [`Subject::last_words`] for members.
pub(crate) const WORDS_VARIABLE: &str = "LARIAT_DRILL_WORDS";
/// What the name of a drill's directory begins with.
pub(crate) const PREFIX: &str = "lariat-drill-";

/// What plays lariat's part.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The program, called with lariat's arguments.
    pub program: PathBuf,
    /// The executable that the members are.
    pub members: PathBuf,
    /// Whether the program has a verb `sweep`.
    pub has_sweep: bool,
    /// What its keepers say at their end, as they say it, for members that say it in their place. The drill knows no
    /// meaning of them.
    pub last_words: Vec<Vec<u8>>,
}

impl Subject {
    /// Returns the last words as text, for the environment.
    pub(crate) fn words(&self) -> String {
        let hexadecimal = |word: &Vec<u8>| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.last_words.iter().map(hexadecimal).collect::<Vec<_>>().join(",")
    }
}

/// Reads what [`Subject::words`] has written; what is no word is left out.
pub(crate) fn words_of(text: &str) -> Vec<Vec<u8>> {
    let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok();
    let word = |digits: &str| digits.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>();
    text.split(',').filter(|digits| !digits.is_empty()).filter_map(word).collect()
}

/// The directories of a drill. They are removed when it is dropped, by the process that made them.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    token: String,
    owner: i32,
    ground: Option<Ground>,
}

impl Stage {
    /// Makes the directories. `base` is the cgroup in which lariat would make its own; without one, or where none can be
    /// made in it, cells are judged in whatever cgroup we are in.
    ///
    /// # Errors
    /// There is no temporary directory that can be written.
    pub fn new(subject: &Subject, base: Option<&Path>) -> std::io::Result<Self> {
        let mut random = [0; 6];
        lariat_sys::process::fill_random(&mut random)?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let dir = std::env::temp_dir().join(format!("{PREFIX}{token}"));
        // Members that became another user have to find the judge's socket: they may enter, and not look around.
        std::fs::DirBuilder::new().mode(0o711).create(&dir)?;
        let ground = base.and_then(|base| Ground::create(base, &token).ok());
        let stage = Self { dir, token, owner: lariat_sys::process::pid(), ground };
        std::fs::create_dir(stage.dir.join("home"))?;
        // Without a copy the one tree that needs it makes one of its own.
        let _ = std::fs::copy(&subject.members, stage.copy());
        Ok(stage)
    }

    fn copy(&self) -> PathBuf {
        self.dir.join("copy")
    }

    /// Returns what everything that is started in the drill carries in its environment.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Makes the directories of one cell and returns the cell's own. Runs of cells are apart, so that the search for
    /// leftovers in one finds nothing of another.
    pub(crate) fn cell(&self, number: usize) -> std::io::Result<PathBuf> {
        let dir = self.dir.join(number.to_string());
        std::fs::DirBuilder::new().mode(0o755).create(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        for name in ["runtime", "state", "project"] {
            std::fs::DirBuilder::new().mode(0o700).create(dir.join(name))?;
        }
        Ok(dir)
    }

    /// Moves the calling process into the cgroup directory of a cell, and returns that, where there can be one.
    pub(crate) fn enter_cgroup(&self, number: usize) -> lariat_sys::Result<Option<PathBuf>> {
        self.ground.as_ref().map(|ground| ground.enter(number)).transpose()
    }

    /// Kills whoever is left in the cgroup directory of a cell and removes it. Says whether there is none any more.
    pub(crate) fn clear_cgroup(&self, number: usize) -> bool {
        self.ground.as_ref().is_none_or(|ground| ground.clear(number))
    }

    /// Kills whoever is left in the drill's cgroup directory, and removes that and the others. Everything of the drill but
    /// the caller and its parent is dead by then. Does nothing a second time.
    pub(crate) fn strike(&self) {
        if let Some(ground) = &self.ground {
            ground.remove();
        }
        // What cannot be removed is in a temporary directory.
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// Returns the environment of a cell.
    pub(crate) fn environment(
        &self,
        cell: &Path,
        marker: &str,
        containment: Containment,
        cgroup: Option<PathBuf>,
        subject: &Subject,
    ) -> Vec<CString> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let pairs: Vec<(&str, OsString)> = vec![
            ("PATH", path),
            ("HOME", self.dir.join("home").into()),
            ("TMPDIR", self.dir.clone().into()),
            ("XDG_RUNTIME_DIR", cell.join("runtime").into()),
            ("XDG_STATE_HOME", cell.join("state").into()),
            ("LANG", "C.UTF-8".into()),
            ("TERM", "dumb".into()),
            (MARKER, marker.into()),
            (COPY_VARIABLE, self.copy().into()),
            (WORDS_VARIABLE, subject.words().into()),
        ];
        let chosen = containment.variable().map(|(name, value)| (name, OsString::from(value)));
        let cgroup = cgroup.map(|place| (CELL_VARIABLE, place.into_os_string()));
        pairs
            .into_iter()
            .chain(chosen)
            .chain(cgroup)
            .filter_map(|(name, value)| c_pair(name, value))
            .collect()
    }
}

fn c_pair(name: &str, value: OsString) -> Option<CString> {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    CString::new(text.into_vec()).ok()
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A forked copy of this value is not the one that made the directories.
        if lariat_sys::process::pid() == self.owner {
            self.strike();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_through_the_environment() {
        let subject = |last_words: Vec<Vec<u8>>| Subject {
            program: PathBuf::new(),
            members: PathBuf::new(),
            has_sweep: true,
            last_words,
        };
        for words in [vec![], vec![vec![0, 255, 16]], vec![vec![11, 1], vec![1, 0, 0]]] {
            assert_eq!(words_of(&subject(words.clone()).words()), words);
        }
        assert_eq!(words_of("0g,zz,0102"), [[1, 2]]);
    }
}
