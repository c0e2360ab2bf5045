//! What is known of a process from outside: its mark, its age, its command.
//!
//! The mark is what every process of a run carries: variables of its environment. Of a run inside another one they are
//! the outer one's, and a command for which no record can be had adds none. It survives exec, daemons and new sessions,
//! and is lost with `env -i`, `sudo`, or a program that overwrites its own environment. It is the block a process was
//! *started* with that is read, so nobody can take it off afterwards by unsetting the variable. Another user's process
//! can be read by root alone. A hint where processes are looked for, and never a proof that none is left.

use std::time::Duration;

use lariat_sys::identity::{Identity, boot_ticks};
use lariat_sys::procfs;

/// The longest command that is shown, in bytes.
pub const COMMAND_MAX: usize = 512;
/// The variable that names the run.
pub const RUN_VARIABLE: &str = "LARIAT_RUN";
/// The variable that names the service.
pub const SERVICE_VARIABLE: &str = "LARIAT_SERVICE";

/// The variable that names the run's supervisor, as `PID.START` ([`Identity`]): whoever meets a process of a run that no list
/// of his names can tell whether it is in somebody's hands.
pub const SUPERVISOR_VARIABLE: &str = "LARIAT_SUPERVISOR";

/// What a process says of the run that it belongs to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Mark {
    /// The run's id, as it stands there.
    pub run: String,
    /// The service's name, if it is there.
    pub service: Option<String>,
    /// The run's supervisor, if it is there and an identity. In the numbers of the supervisor's pid namespace.
    pub supervisor: Option<Identity>,
}

impl Mark {
    /// Returns the variables that every process of a run carries.
    #[must_use]
    pub fn variables(run: &str, supervisor: Identity) -> [(&'static str, String); 2] {
        [
            (RUN_VARIABLE, run.to_owned()),
            (SUPERVISOR_VARIABLE, format!("{}.{}", supervisor.pid, supervisor.start)),
        ]
    }

    /// Reads the mark of a process. `None` for one that has none, is gone, or may not be looked into; or is in the middle
    /// of execve(2), for which a race against those who fork themselves away has no time.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        procfs::environ(pid).ok().flatten().and_then(|block| Self::parse(&block))
    }

    /// Finds the mark in an environment block, entries ended by NUL. The first of two equal names counts, as for getenv(3).
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<Self> {
        let value = |name: &str| {
            let values =
                block.split(|byte| *byte == 0).filter_map(|entry| entry.strip_prefix(name.as_bytes()));
            let mut values = values.filter_map(|rest| rest.strip_prefix(b"="));
            values.next().map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let identity = |text: String| {
            let (pid, start) = text.split_once('.')?;
            Some(Identity::new(pid.parse().ok()?, start.parse().ok()?))
        };
        Some(Self {
            run: value(RUN_VARIABLE)?,
            service: value(SERVICE_VARIABLE),
            supervisor: value(SUPERVISOR_VARIABLE).and_then(identity),
        })
    }
}

/// Returns how long a process has been running, by its start.
#[must_use]
pub fn age_of(identity: Identity) -> Duration {
    let ticks = boot_ticks().saturating_sub(identity.start);
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second().max(1) as f64)
}

/// Returns a command line for display: arguments with spaces between, cut to [`COMMAND_MAX`], or `comm` in brackets for a
/// process that has none. Not safe for a terminal: it holds whatever the process put there.
#[must_use]
pub fn command_of(pid: i32, comm: &str) -> String {
    let arguments = procfs::cmdline(pid).ok().flatten().unwrap_or_default();
    let mut arguments = arguments.as_slice();
    while let [rest @ .., 0] = arguments {
        arguments = rest;
    }
    let shown = &arguments[..arguments.len().min(COMMAND_MAX)];
    let text = String::from_utf8_lossy(shown).replace('\0', " ");
    if text.trim().is_empty() { format!("[{comm}]") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_among_other_entries() {
        let mark = |run: &str, service: Option<&str>| {
            Some(Mark { run: run.to_owned(), service: service.map(str::to_owned), supervisor: None })
        };
        let table: [(&[u8], Option<Mark>); 9] = [
            (b"", None),
            (b"LARIAT_RUNS=1\0LARIAT_RU=2\0", None),
            (b"A=1\0LARIAT_RUN=x\0B=2\0", mark("x", None)),
            (b"LARIAT_SERVICE=web\0LARIAT_RUN=x", mark("x", Some("web"))),
            (b"LARIAT_RUN=first\0LARIAT_RUN=second\0", mark("first", None)),
            (b"LARIAT_RUN\0LARIAT_SERVICE=web\0", None),
            (b"LARIAT_SUPERVISOR=7.1\0", None),
            (b"LARIAT_RUN=x\0LARIAT_SUPERVISOR=7\0", mark("x", None)),
            (b"LARIAT_RUN=x\0LARIAT_SUPERVISOR=7.-1\0", mark("x", None)),
        ];
        for (block, expected) in table {
            assert_eq!(Mark::parse(block), expected, "{}", String::from_utf8_lossy(block));
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let supervisor = Identity::new(4_194_304, u64::MAX);
        let block: String = Mark::variables("x", supervisor)
            .iter()
            .map(|(name, value)| format!("{name}={value}\0"))
            .collect();
        let mark = Mark { run: "x".into(), supervisor: Some(supervisor), ..Mark::default() };
        assert_eq!(Mark::parse(block.as_bytes()), Some(mark));
    }

    #[test]
    fn a_command_without_arguments_is_its_name() {
        assert_eq!(command_of(i32::MAX, "gone"), "[gone]");
        assert!(command_of(Identity::current().pid, "x").contains("lariat"));
    }

    #[test]
    fn a_process_has_an_age() {
        assert!(age_of(Identity::current()) < Duration::from_secs(86_400));
        assert_eq!(age_of(Identity::new(1, u64::MAX)), Duration::ZERO);
    }
}
