//! `lariat run`: one command; when it or lariat ends, everything it started is gone.
//!
//! It sits in front of every command of somebody's day, so it is single-threaded and synchronous, forks its keeper
//! without exec, and does nothing on the way to the command that is not needed for the promise. What comes before the
//! command is in [`start`], decisions are in [`machine`], actions in [`driver`], the terminal and the caller's ties in
//! [`ties`].
//!
//! On a terminal the command stays in lariat's own process group: pipelines, `&`, `fg`, Ctrl-Z, scripts and runners
//! around it then behave as without lariat.

mod driver;
mod machine;
mod start;
mod ties;

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use lariat::ledger::command::CommandLedger;
use lariat_keeper::contain::limits::{Limits, OutOfMemory};
use lariat_keeper::stop::{StopPlan, StopScope};
use lariat_keeper::wire::Named;
use lariat_sys::kernel::Missing;
use lariat_sys::signal::Signal;
use lariat_sys::spawn::SpawnStep;

use crate::settings::Boundary;

pub(crate) use driver::run;
pub(crate) use machine::Ending;

/// What `lariat run` was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RunOptions {
    /// The command and its arguments; never empty.
    pub(crate) command: Vec<OsString>,
    /// How long the command has after the stop signal.
    pub(crate) grace: Duration,
    /// The stop signal.
    pub(crate) signal: Signal,
    /// Who is told first.
    pub(crate) scope: StopScope,
    /// Standard input is the lifeline: its end ends everything, and the command gets `/dev/null`.
    pub(crate) has_lifeline: bool,
    /// Where the run is written down; it goes without where there is no such place.
    pub(crate) ledger: Option<CommandLedger>,
    /// The death of the process that called lariat ends everything.
    pub(crate) dies_with_parent: bool,
    /// The keeper is number 1 of a pid namespace, with the command in it.
    pub(crate) is_isolated: bool,
    /// Whether the command gets a cgroup of its own.
    pub(crate) boundary: Boundary,
    /// What it and all that it starts may use.
    pub(crate) limits: Limits,
    /// The directory in which limits have an effect; with it, they are applied.
    pub(crate) limited_in: Option<PathBuf>,
}

impl RunOptions {
    /// Returns the options of a plain `lariat run -- command`.
    #[must_use]
    pub(crate) fn new(command: Vec<OsString>) -> Self {
        let StopPlan { signal, scope, grace } = StopPlan::default();
        Self {
            command,
            grace,
            signal,
            scope,
            has_lifeline: false,
            ledger: None,
            dies_with_parent: false,
            is_isolated: false,
            boundary: Boundary::default(),
            limits: Limits::default(),
            limited_in: None,
        }
    }
}

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ended {
    /// How lariat exits.
    pub(crate) ending: Ending,
    /// Those who could not be ended, the first of them by name.
    pub(crate) left: Vec<Named>,
    /// The keeper died before its last word.
    pub(crate) has_lost_keeper: bool,
    /// Members were killed by the kernel for want of memory, the command among them.
    pub(crate) out_of_memory: Option<OutOfMemory>,
    /// What there is to say of its limits.
    pub(crate) notes: Vec<String>,
}

/// Why there was no command to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RunError {
    /// The program is not there: code 127.
    NotFound,
    /// The program is there and cannot be executed, for this reason: code 126.
    NotExecutable(i32),
    /// The kernel lacks what nothing works without: code 125.
    Kernel(Missing),
    /// A pid namespace could not be had: code 125.
    Isolate {
        /// What it tried.
        step: SpawnStep,
        /// What the kernel said.
        errno: i32,
    },
    /// Lariat could not do its own part: code 125.
    Own {
        /// What it tried.
        step: &'static str,
        /// What the kernel said.
        errno: i32,
    },
}

/// Arguments and environment as the kernel takes them. Neither can hold a NUL: both came from the kernel.
fn c_string(text: &std::ffi::OsStr) -> CString {
    CString::new(text.as_bytes()).unwrap_or_default()
}
