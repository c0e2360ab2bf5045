//! What a fixture tells the test: files in the facts directory, and the muster at the start.
//!
//! * `ready`: the whole tree stands and every member has its signals set up.
//! * `pid-ROLE-PID`: one for each process of the fixture, written by that process.
//! * `told-ROLE-PID`: all signals this process got, in order, one per line: `NUMBER from PID` (graceful members only).
//! * `clean-ROLE`: a member was allowed to finish its clean-up.
//! * others as the fixtures say.
//!
//! A fact is written beside its place and renamed, so that a reader sees it whole or not at all.

use std::path::PathBuf;

use crate::args::Args;
use crate::sys;

/// Where facts go.
#[derive(Clone)]
pub(crate) struct Facts(Option<PathBuf>);

impl Facts {
    /// Takes the place from the command line.
    pub(crate) fn of(args: &Args) -> Self {
        Self(args.facts.clone())
    }

    /// Writes the fact `name`; a directory that is gone is nobody's loss.
    pub(crate) fn state(&self, name: &str, text: &str) {
        let Some(dir) = &self.0 else { return };
        let beside = dir.join(format!(".{name}.{}", sys::pid()));
        let is_written = std::fs::write(&beside, text).is_ok();
        if is_written {
            let _ = std::fs::rename(&beside, dir.join(name));
        }
    }

    /// Announces this process under its role.
    pub(crate) fn announce(&self, role: &str) {
        let pid = sys::pid();
        self.state(&format!("pid-{role}-{pid}"), "");
    }
}

/// A pipe on which every member says once that it stands.
pub(crate) struct Muster {
    read: i32,
    write: i32,
}

impl Muster {
    /// Opens the pipe; every process forked from here on can say that it stands.
    pub(crate) fn new() -> Self {
        let (read, write) = sys::pipe();
        Self { read, write }
    }

    /// Says that this process stands, and lets go of the pipe.
    pub(crate) fn stand(&self) {
        sys::write_all(self.write, b"+");
        sys::close(self.write);
        sys::close(self.read);
    }

    /// Returns the number of the descriptor for a member that is executed anew.
    pub(crate) fn write_end(&self) -> i32 {
        self.write
    }

    /// Waits until `count` members stand, in the process that writes `ready`. Bounded by the fixture's limit.
    pub(crate) fn wait_for(self, count: usize) {
        sys::close(self.write);
        let mut seen = 0;
        while seen < count {
            match sys::read_one(self.read) {
                Some(_) => seen += 1,
                None => break,
            }
        }
        sys::close(self.read);
    }
}
