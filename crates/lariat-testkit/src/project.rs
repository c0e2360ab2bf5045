//! A project with a `lariat.toml`, driven from outside as a user drives it.
//!
//! What lariat says is never taken as proof of anything but of what it says: whether something is alive or a port is
//! free is the arena's to find out. The events of a run are read only to know *when* to look.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::census::Seen;
use crate::wait::{PATIENCE, wait_until};
use crate::{Arena, Command, Ending, Running, subject};

/// A project's directory and the command that works on it.
#[derive(Clone)]
pub struct Stack {
    dir: PathBuf,
    lariat: OsString,
}

impl Stack {
    /// Makes the directory `name` in the arena with this `lariat.toml`. `built` is the command's path as cargo says.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn new(arena: &Arena, built: &str, name: &str, toml: &str) -> Self {
        let file = arena.write(&format!("{name}/lariat.toml"), toml);
        let dir = file.parent().expect("a file is in a directory").to_owned();
        Self { dir, lariat: subject::lariat(built) }
    }

    /// Returns the project's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Prepares `lariat ARGS` in the project, in a session of its own: without a terminal.
    #[must_use]
    pub fn lariat(&self, arena: &Arena, args: &[&str]) -> Command {
        self.in_front(arena, args).own_session()
    }

    /// Prepares `lariat ARGS` in the project, for a terminal.
    #[must_use]
    pub fn in_front(&self, arena: &Arena, args: &[&str]) -> Command {
        arena.command(&self.lariat).args(args).dir(&self.dir)
    }

    /// Runs `lariat up --yes` and waits until it says that everything is up.
    ///
    /// # Panics
    /// When it ends before that, or after [`PATIENCE`].
    #[track_caller]
    pub fn up(&self, arena: &Arena) -> Running {
        let before = self.count("startup-finished");
        let running = self.lariat(arena, &["up", "--yes"]).start();
        self.wait_up(&running, before);
        running
    }

    /// Waits until `running` has brought the stack up, once more than `before` times.
    ///
    /// # Panics
    /// When it ends before that, or after [`PATIENCE`].
    #[track_caller]
    pub fn wait_up(&self, running: &Running, before: usize) {
        wait_until("the stack's being up", PATIENCE, || {
            if let Some(ending) = running.ended(std::time::Duration::ZERO) {
                panic!("`up` ended: {ending:?}");
            }
            (self.count("startup-finished") > before).then_some(())
        });
    }

    /// Runs `lariat ARGS` to its end.
    #[track_caller]
    pub fn run(&self, arena: &Arena, args: &[&str]) -> Ending {
        self.lariat(arena, args).run()
    }

    /// Returns the history of all runs, one JSON object per line.
    #[must_use]
    pub fn events(&self) -> String {
        fs::read_to_string(self.dir.join(".lariat/events.jsonl")).unwrap_or_default()
    }

    /// Returns how many events of this kind have happened in all runs.
    #[must_use]
    pub fn count(&self, kind: &str) -> usize {
        self.events().matches(&format!("\"event\":\"{kind}\"")).count()
    }

    /// Waits until there are more than `before` events of a kind.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[track_caller]
    pub fn wait_event(&self, kind: &str, before: usize) {
        wait_until(&format!("the event {kind}"), PATIENCE, || (self.count(kind) > before).then_some(()));
    }

    /// Returns the bytes of a service's store.
    #[must_use]
    pub fn store(&self, service: &str) -> Vec<u8> {
        fs::read(self.dir.join(format!(".lariat/logs/{service}.log"))).unwrap_or_default()
    }

    /// Waits until the store of a service contains `text`.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[track_caller]
    pub fn wait_store(&self, service: &str, text: &str) {
        wait_until(&format!("{text:?} in the store of {service}"), PATIENCE, || {
            String::from_utf8_lossy(&self.store(service)).contains(text).then_some(())
        });
    }

    /// Returns the keepers that are alive, by the name the kernel has for them.
    #[must_use]
    pub fn keepers(&self, arena: &Arena) -> Vec<Seen> {
        arena.alive().into_iter().filter(|seen| seen.comm.starts_with("keeper:")).collect()
    }
}
