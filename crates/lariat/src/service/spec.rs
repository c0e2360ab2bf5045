//! What the user wants: the stack, its services and how each starts, is ready and stops.
//!
//! Plain data with no I/O. `lariat-config` makes it from text; an embedding program may build it by hand.
//! Everything is resolved here that can be: directories are absolute, durations are durations, patterns compile.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lariat_sys::signal::Signal;

use crate::ledger::recover::patterns::CommandPattern;

/// The grace period of a service that sets none.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// The deadline of a whole stack that sets none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(15);
/// How long a service may take to become ready when it sets nothing else.
pub const READY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// The pause between two readiness probes when a service sets none.
pub const READY_EVERY_DEFAULT: Duration = Duration::from_millis(100);

/// A service's name: 1 to 63 of `a-z A-Z 0-9 _ -`, starting with a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceName(String);

/// Why a text is not a service name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{text}` is not a service name: 1 to 63 letters, digits, `-` or `_`, starting with a letter or a digit"
)]
pub struct ServiceNameError {
    text: String,
}

impl ServiceName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`ServiceNameError`] when the text is empty, longer than 63 bytes or has another character.
    pub fn new(text: impl Into<String>) -> Result<Self, ServiceNameError> {
        let text = text.into();
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if starts_well && is_plain && text.len() <= 63 {
            Ok(Self(text))
        } else {
            Err(ServiceNameError { text })
        }
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name as part of an environment variable: upper case, `-` turned into `_`.
    #[must_use]
    pub fn as_env(&self) -> String {
        self.0.to_ascii_uppercase().replace('-', "_")
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A whole stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StackSpec {
    /// Shown to people; by default the name of the project's directory.
    pub name: String,
    /// The project's root: an absolute directory. `.lariat/` is in it.
    pub root: PathBuf,
    /// Longest time for a stop of the whole stack. Grace periods are cut to it.
    pub deadline: Duration,
    /// The services in the order of the file. Names are unique and dependencies acyclic (checked by [`super::graph`]).
    pub services: Vec<ServiceSpec>,
    /// Commands that may be left of it beside the ones that are known everywhere: offered by a sweep, never ended unasked.
    pub sweep: Vec<CommandPattern>,
}

/// One service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSpec {
    /// Unique in its stack.
    pub name: ServiceName,
    /// What is started.
    pub command: CommandSpec,
    /// Absolute working directory.
    pub dir: PathBuf,
    /// Set on top of the environment that lariat itself was started with.
    pub env: BTreeMap<OsString, OsString>,
    /// Claimed before the start, exported as `PORT`, proven free at the end.
    pub port: Option<PortSpec>,
    /// What has to hold of other services before this one starts.
    pub after: Vec<Dependency>,
    /// When the service counts as ready; without it, as soon as it has started.
    pub ready: Option<ReadySpec>,
    /// How it is stopped.
    pub stop: StopSpec,
    /// What follows its end.
    pub restart: RestartSpec,
    /// The leader exits by design and leaves a daemon: the service is up while its containment has members.
    pub daemon: bool,
    /// What stands around it besides descent and cgroup.
    pub isolation: Isolation,
    /// What its members may use together, where it has a cgroup.
    pub limits: Limits,
}

/// What stands around a service besides the containment that everyone has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Isolation {
    /// Nothing.
    #[default]
    None,
    /// A pid namespace whose number 1 is the keeper: the kernel ends everything with it.
    Pid,
}

/// What is started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandSpec {
    /// Run as `shell… text`, the text exactly as the user wrote it. `shell` is `["/bin/sh", "-c"]` by default.
    Shell {
        /// Program and arguments before the text; never empty.
        shell: Vec<OsString>,
        /// The user's line, never looked into.
        text: OsString,
    },
    /// Run directly. Never empty; the first is looked up in the service's `PATH` when it has no `/`.
    Argv(Vec<OsString>),
}

impl CommandSpec {
    /// Returns the argument vector that is executed; never empty.
    #[must_use]
    pub fn argv(&self) -> Vec<OsString> {
        match self {
            Self::Shell { shell, text } => shell.iter().cloned().chain([text.clone()]).collect(),
            Self::Argv(argv) => argv.clone(),
        }
    }

    /// Returns the command as a person would type it, for display only.
    #[must_use]
    pub fn display(&self) -> String {
        match self {
            Self::Shell { text, .. } => text.to_string_lossy().into_owned(),
            Self::Argv(argv) => argv.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" "),
        }
    }
}

/// The port of a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortSpec {
    /// This one, 1 to 65535.
    Fixed(u16),
    /// A free one, chosen at the start of each run and kept over restarts.
    Auto,
}

/// Something that has to hold of another service first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dependency {
    /// The other service.
    pub service: ServiceName,
    /// What has to hold of it.
    pub condition: Condition,
}

/// What has to hold of a dependency.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Its leader was spawned.
    Started,
    /// Its readiness was seen.
    Ready,
    /// It ended by itself with exit code 0.
    Completed,
}

/// When a service counts as ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadySpec {
    /// What is looked at.
    pub check: ReadyCheck,
    /// A service that is not ready this long after its start has failed to start.
    pub timeout: Duration,
    /// The pause between two probes. Log patterns are looked for as the output comes.
    pub every: Duration,
}

/// What readiness is seen by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadyCheck {
    /// A connection is accepted.
    Tcp(Endpoint),
    /// `GET` answers with a status from 200 to 399.
    Http {
        /// Where to connect.
        endpoint: Endpoint,
        /// The `Host` header without the port.
        host: String,
        /// Path and query, starting with `/`.
        path: String,
    },
    /// A line of the service's output matches.
    Log(Pattern),
}

/// A regular expression that lines of output are searched for: any bytes, with Unicode classes where the text is UTF-8.
/// Searching takes time linear in the line, whatever the pattern.
#[derive(Clone, Debug)]
pub struct Pattern(regex::bytes::Regex);

/// Why a text is not a pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatternError {
    /// It is not a regular expression. The text says where and why, on several lines.
    #[error("{0}")]
    Syntax(String),
    /// It needs more memory than a pattern may have, usually because of a large number in `{…}`.
    #[error("the pattern needs more than {0} bytes of memory")]
    TooLarge(usize),
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// [`PatternError`] for what is not a regular expression, and for one that is too large.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        regex::bytes::Regex::new(text).map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => PatternError::TooLarge(limit),
            error => PatternError::Syntax(error.to_string()),
        })
    }

    /// Returns whether it matches anywhere in `bytes`.
    #[must_use]
    pub fn is_match(&self, bytes: &[u8]) -> bool {
        self.0.is_match(bytes)
    }

    /// Returns the text that it was made of.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// Two patterns of one text are equal.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

/// Where a probe connects. Names are never looked up: `localhost` means both loopback addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// The service's own `port`, on `127.0.0.1` or `::1`, whichever answers.
    OwnPort,
    /// This port on `127.0.0.1` or `::1`, whichever answers.
    Loopback(u16),
    /// Exactly this address.
    Address(SocketAddr),
}

/// How a service is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StopSpec {
    /// The polite signal, TERM by default. Never KILL or STOP.
    pub signal: Signal,
    /// Who is told.
    pub scope: StopScope,
    /// How long members have until they are killed.
    pub grace: Duration,
}

impl Default for StopSpec {
    fn default() -> Self {
        Self { signal: Signal::TERM, scope: StopScope::Staged, grace: GRACE_DEFAULT }
    }
}

pub use lariat_keeper::contain::limits::{Cpu, Limits};
pub use lariat_keeper::stop::StopScope;

/// What follows the end of a service that nobody asked to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestartSpec {
    /// Which ends are followed by a restart.
    pub when: RestartWhen,
    /// How many restarts in a row before lariat gives up. A life longer than a minute starts the count anew.
    pub max: u32,
}

impl Default for RestartSpec {
    fn default() -> Self {
        Self { when: RestartWhen::No, max: 5 }
    }
}

/// Which ends are followed by a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestartWhen {
    /// None.
    No,
    /// An exit code other than 0, or a signal.
    OnFailure,
    /// Every one.
    Always,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_search_bytes_and_say_why_they_are_none() {
        let pattern = Pattern::new("ready in \\d+").unwrap();
        assert!(pattern.is_match(b"\xff ready in 35 ms") && !pattern.is_match(b"ready in no time"));
        assert!(
            matches!(Pattern::new("("), Err(PatternError::Syntax(reason)) if reason.contains("unclosed"))
        );
        assert!(matches!(Pattern::new("(\\w{500}){500}"), Err(PatternError::TooLarge(_))));
    }
}
