//! A directory of its own to run `lariat` in, with nothing in the environment.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lariat_sys::pidfd::PidFd;
use tempfile::TempDir;

/// Longer than any of these commands takes on a machine under load; a test that gets here has found a hang.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// A directory that is removed at the end.
pub(crate) struct Place {
    dir: TempDir,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Ran {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().expect("a directory") };
        fs::create_dir(place.path("work")).expect("a directory");
        place
    }

    /// Returns a path beside the working directory.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the working directory, without links.
    pub(crate) fn work(&self) -> PathBuf {
        fs::canonicalize(self.path("work")).expect("an existing directory")
    }

    /// Writes a file below the working directory, with the directories it needs.
    pub(crate) fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("directories");
        fs::write(path, content).expect("a file");
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.work().join(name)).expect("a file of text")
    }

    /// Runs `lariat` in the working directory.
    pub(crate) fn lariat<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        let mut command = Command::new(LARIAT);
        command.args(args);
        self.run(command)
    }

    /// Runs a script in which `lariat` is `"$@"`, with these arguments.
    pub(crate) fn script(&self, script: &str, args: &[&str]) -> Ran {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh", LARIAT]).args(args);
        self.run(command)
    }

    /// Runs a command without environment and input, its output in files.
    pub(crate) fn run(&self, command: Command) -> Ran {
        self.run_with(command, |command, stdout| {
            command.stdout(stdout);
        })
    }

    /// Runs a command whose standard output is a pipe that nobody reads.
    pub(crate) fn run_unread(&self, command: Command) -> Ran {
        self.run_with(command, |command, _| {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            command.stdout(writer);
        })
    }

    fn run_with(&self, mut command: Command, set: impl FnOnce(&mut Command, File)) -> Ran {
        let (stdout, stderr) = (self.path("stdout"), self.path("stderr"));
        // What the command itself was told about its environment is kept.
        let told: Vec<_> =
            command.get_envs().map(|(name, value)| (name.to_owned(), value.map(OsStr::to_owned))).collect();
        command.env_clear().envs(told.into_iter().filter_map(|(name, value)| Some((name, value?))));
        if command.get_current_dir().is_none() {
            command.current_dir(self.work());
        }
        set(&mut command, File::create(&stdout).expect("a file"));
        command.stdin(Stdio::null()).stderr(File::create(&stderr).expect("a file"));
        let mut child = command.spawn().expect("a command that can be started");
        drop(command);
        let pid = i32::try_from(child.id()).expect("a pid");
        let deadline = Instant::now() + PATIENCE;
        let pidfd = PidFd::open_pid(pid).expect("our own child");
        if !pidfd.wait_exit(Some(deadline)).expect("a wait") {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
            panic!("still running after {PATIENCE:?}");
        }
        let status = child.wait().expect("our own child");
        let text = |path| String::from_utf8_lossy(&fs::read(path).expect("a file")).into_owned();
        Ran { code: status.code(), signal: status.signal(), stdout: text(&stdout), stderr: text(&stderr) }
    }
}

impl Ran {
    /// Checks the exit code, and shows everything when it is another.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Checks that nothing was said on standard error.
    #[track_caller]
    pub(crate) fn quiet(self) -> Self {
        assert_eq!(self.stderr, "", "{self:#?}");
        self
    }
}

/// Checks that a text has all of these pieces.
#[track_caller]
pub(crate) fn has(text: &str, pieces: &[&str]) {
    for piece in pieces {
        assert!(text.contains(piece), "no {piece:?} in:\n{text}");
    }
}
