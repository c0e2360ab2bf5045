//! The ledger's record of a run, as it stands in `run.json`, and the lines of `ends.jsonl`.
//!
//! Plain data. Fields that are added later have defaults, so that older files load; unknown fields are ignored, so that
//! newer ones can be read. Values of the environment are never recorded.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lariat_keeper::stop::StopPlan;
use lariat_sys::identity::{BootId, Identity};
use lariat_sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// The version of the format that this lariat writes.
pub const LEDGER_VERSION: u32 = 1;

/// The name of one run: 16 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

/// The text is no run id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a run id: 16 lower-case hexadecimal digits")]
pub struct RunIdError;

impl RunId {
    /// Makes a new one.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn new_random() -> lariat_sys::Result<Self> {
        let mut bytes = [0; 8];
        lariat_sys::process::fill_random(&mut bytes)?;
        Ok(Self(format!("{:016x}", u64::from_ne_bytes(bytes))))
    }

    /// Returns the digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RunId {
    type Error = RunIdError;

    fn try_from(text: String) -> Result<Self, RunIdError> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 16 && text.bytes().all(is_digit) { Ok(Self(text)) } else { Err(RunIdError) }
    }
}

impl From<RunId> for String {
    fn from(run: RunId) -> Self {
        run.0
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// A process, as it is written down. It names somebody only within its boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
    /// Its number in pidfs, unique within the boot; absent where the kernel has none, and in ledgers of versions that
    /// did not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

impl From<Identity> for ProcessRecord {
    fn from(identity: Identity) -> Self {
        Self { pid: identity.pid, start: identity.start, inode: identity.inode() }
    }
}

impl From<ProcessRecord> for Identity {
    fn from(record: ProcessRecord) -> Self {
        Self::new(record.pid, record.start).with_inode(record.inode)
    }
}

/// A path in JSON: text, or a list of bytes where it is not UTF-8.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Bytes(Vec<u8>),
}

mod path_text {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        let text = match path.to_str() {
            Some(text) => PathText::Text(text.to_owned()),
            None => PathText::Bytes(path.as_os_str().as_bytes().to_vec()),
        };
        text.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PathBuf, D::Error> {
        Ok(match PathText::deserialize(deserializer)? {
            PathText::Text(text) => PathBuf::from(text),
            PathText::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        })
    }
}

/// What a service was doing when the record was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordedState {
    /// It waits for its dependencies.
    Waiting,
    /// It was spawned and is not ready.
    Starting,
    /// It is ready, or has no readiness check.
    Ready,
    /// It was told to stop.
    Stopping,
    /// It ended, and nothing of it is left.
    Stopped,
    /// It ended badly or never became ready, and nothing of it is left.
    Failed,
    /// A state of a newer lariat.
    #[serde(other)]
    Unknown,
}

/// One service of a run, as far as its current or last start goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Its name.
    pub name: String,
    /// What it was doing.
    pub state: RecordedState,
    /// Its keeper.
    #[serde(default)]
    pub keeper: Option<ProcessRecord>,
    /// Its leader.
    #[serde(default)]
    pub leader: Option<ProcessRecord>,
    /// The leader's process group.
    #[serde(default)]
    pub pgrp: Option<i32>,
    /// The leader's session.
    #[serde(default)]
    pub session: Option<i32>,
    /// What was executed, without the environment. Arguments that are not UTF-8 are shown with U+FFFD.
    #[serde(default)]
    pub command: Vec<String>,
    /// Its working directory.
    #[serde(default, with = "path_text")]
    pub dir: PathBuf,
    /// When it was last started, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub started_unix_ms: Option<u64>,
    /// The ports that it claims.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// How it is stopped, for whoever has to do it after a crash; absent in ledgers of versions that did not say.
    #[serde(default)]
    pub stop: Option<StopRecord>,
    /// How often it was restarted in this run.
    #[serde(default)]
    pub restarts: u32,
    /// The number of the pipe that takes its output: whoever can write to it came from the service.
    #[serde(default)]
    pub output: Option<u64>,
    /// The sessions and groups of earlier starts in this run, whose numbers may still hold somebody.
    #[serde(default)]
    pub earlier: Vec<EarlierStart>,
}

/// How a service is stopped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StopRecord {
    /// The stop signal's name without `SIG`.
    pub signal: String,
    /// The grace period in milliseconds.
    pub grace_ms: u64,
}

impl StopRecord {
    /// Returns the record of this signal and grace period.
    #[must_use]
    pub fn new(signal: Signal, grace: Duration) -> Self {
        Self { signal: signal.to_string(), grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Returns the plan to stop by. A signal that this lariat does not know, or that nobody survives, becomes TERM.
    #[must_use]
    pub fn plan(&self) -> StopPlan {
        let is_polite = |signal: &Signal| *signal != Signal::KILL && *signal != Signal::STOP;
        let signal = self.signal.parse().ok().filter(is_polite).unwrap_or(Signal::TERM);
        // A damaged number must not become a wait without end.
        let grace = Duration::from_millis(self.grace_ms).min(GRACE_MAX);
        StopPlan { signal, grace, ..StopPlan::default() }
    }
}

/// The longest grace period that is believed: a day.
const GRACE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What is remembered of an earlier start of a service that was not proven empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EarlierStart {
    /// Its leader.
    pub leader: ProcessRecord,
    /// The leader's session, which is also its process group.
    pub session: i32,
    /// The number of the pipe that took its output.
    #[serde(default)]
    pub output: Option<u64>,
}

/// A process that could not be ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeftRecord {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
    /// Its number in pidfs, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// The name of its program.
    #[serde(default)]
    pub comm: String,
    /// Why it is left.
    #[serde(default)]
    pub reason: String,
}

impl LeftRecord {
    /// Returns who it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity::new(self.pid, self.start).with_inode(self.inode)
    }
}

/// What the report of a finished run comes down to.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReportSummary {
    /// When the run ended, in milliseconds since the Unix epoch.
    pub ended_unix_ms: u64,
    /// How long the shutdown took, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
    /// How many processes were told to stop.
    #[serde(default)]
    pub told: u32,
    /// How many were killed.
    #[serde(default)]
    pub killed: u32,
    /// Who is left.
    #[serde(default)]
    pub left: Vec<LeftRecord>,
    /// Ports of the run that were still held.
    #[serde(default)]
    pub held_ports: Vec<u16>,
}

/// The ledger of one run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// The format's version.
    pub version: u32,
    /// The run's id.
    pub run: RunId,
    /// The kernel's boot id. After a reboot, no number in here names anybody.
    pub boot: String,
    /// The inode of the supervisor's pid namespace, outside of which the numbers mean something else.
    #[serde(default)]
    pub pid_namespace: Option<u64>,
    /// The version of the lariat that wrote it, for display.
    #[serde(default)]
    pub lariat: String,
    /// The supervisor.
    pub supervisor: ProcessRecord,
    /// The stack's name.
    pub stack: String,
    /// The project's root.
    #[serde(with = "path_text")]
    pub root: PathBuf,
    /// The supervisor's socket.
    #[serde(default, with = "path_text")]
    pub socket: PathBuf,
    /// When the run began, in milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// The cgroup directory in which the services' own ones are made; absent where there is none.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// The services in the order of the configuration.
    #[serde(default)]
    pub services: Vec<ServiceRecord>,
    /// The run ended, and what was to be proven was proven or is in the report.
    #[serde(default)]
    pub is_closed: bool,
    /// What the end came down to, of a closed run.
    #[serde(default)]
    pub report: Option<ReportSummary>,
}

impl RunRecord {
    /// Makes the record of a run that begins now under the calling process.
    ///
    /// # Errors
    /// When the kernel's boot id cannot be read.
    pub fn begin(run: RunId, stack: &str, root: &Path, socket: &Path) -> lariat_sys::Result<Self> {
        Ok(Self {
            version: LEDGER_VERSION,
            run,
            boot: BootId::read()?.to_string(),
            pid_namespace: pid_namespace(),
            lariat: env!("CARGO_PKG_VERSION").to_owned(),
            supervisor: Identity::current().into(),
            stack: stack.to_owned(),
            root: root.to_owned(),
            socket: socket.to_owned(),
            started_unix_ms: crate::clock::unix_millis(),
            cgroup: None,
            services: Vec::new(),
            is_closed: false,
            report: None,
        })
    }
}

/// Returns the inode of our pid namespace, if `/proc` says it.
#[must_use]
pub fn pid_namespace() -> Option<u64> {
    std::fs::metadata("/proc/self/ns/pid").ok().map(|found| std::os::unix::fs::MetadataExt::ino(&found))
}

/// How a leader ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "ExitText", into = "ExitText")]
pub enum ExitRecord {
    /// With this exit code.
    Code(u8),
    /// By this signal's number.
    Signal(i32),
}

/// The same as it stands in the file: a code, or a signal's name without `SIG` (or its number, as text).
#[derive(Default, Serialize, Deserialize)]
struct ExitText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal: Option<String>,
}

impl TryFrom<ExitText> for ExitRecord {
    type Error = &'static str;

    fn try_from(text: ExitText) -> Result<Self, &'static str> {
        match (text.code, text.signal) {
            (Some(code), None) => Ok(Self::Code(code)),
            (None, Some(name)) => match name.parse::<Signal>() {
                Ok(signal) => Ok(Self::Signal(signal.number())),
                Err(_) => Err("no signal of this machine"),
            },
            _ => Err("neither an exit code nor a signal"),
        }
    }
}

impl From<ExitRecord> for ExitText {
    fn from(exit: ExitRecord) -> Self {
        match exit {
            ExitRecord::Code(code) => Self { code: Some(code), signal: None },
            ExitRecord::Signal(number) => {
                let name = Signal::from_number(number).map_or_else(|| number.to_string(), |s| s.to_string());
                Self { code: None, signal: Some(name) }
            }
        }
    }
}

/// A process that a keeper could not end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndLeft {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
    /// Its number in pidfs, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// The name of its program.
    #[serde(default)]
    pub comm: String,
    /// The error of the last signal, or 0: it was told and did not end.
    #[serde(default)]
    pub errno: i32,
}

impl EndLeft {
    /// Makes the record of it that goes into the ledger.
    #[must_use]
    pub fn to_left(&self) -> LeftRecord {
        let reason = match self.errno {
            0 => "does not end, stuck in the kernel".to_owned(),
            errno => lariat_sys::Errno::from_raw_os_error(errno).to_string(),
        };
        LeftRecord { pid: self.pid, start: self.start, inode: self.inode, comm: self.comm.clone(), reason }
    }
}

/// One line of `ends.jsonl`: what a keeper did after its supervisor's death.
///
/// A keeper has no serde and writes the line with its own hand (`lariat_keeper::record`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndRecord {
    /// The format's version.
    pub version: u32,
    /// When it was over, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub at_ms: u64,
    /// The run.
    pub run: RunId,
    /// The service.
    pub service: String,
    /// The keeper's number.
    pub keeper: i32,
    /// The leader.
    pub leader: ProcessRecord,
    /// How the leader ended, if it did.
    #[serde(default)]
    pub exit: Option<ExitRecord>,
    /// How many processes were told to stop.
    #[serde(default)]
    pub told: u32,
    /// How many were killed.
    #[serde(default)]
    pub killed: u32,
    /// How many outlived the leader.
    #[serde(default)]
    pub stragglers: u32,
    /// How many could not be ended.
    #[serde(default)]
    pub left_total: u32,
    /// Those of them that are named.
    #[serde(default)]
    pub left: Vec<EndLeft>,
    /// How long the stop took, in milliseconds.
    #[serde(default)]
    pub stop_ms: u64,
    /// How many bytes of output the store could not take.
    #[serde(default)]
    pub dropped_bytes: u64,
}

impl EndRecord {
    /// Returns how long the stop took.
    #[must_use]
    pub fn stop_time(&self) -> Duration {
        Duration::from_millis(self.stop_ms)
    }

    /// Says whether nobody had to be killed and nobody is left.
    #[must_use]
    pub fn is_graceful(&self) -> bool {
        self.killed == 0 && self.left_total == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_are_sixteen_digits() {
        let run = RunId::new_random().unwrap();
        assert_eq!(RunId::try_from(run.to_string()), Ok(run.clone()));
        assert_ne!(run, RunId::new_random().unwrap());
        for text in ["", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef0", "../../../../etc/p"] {
            assert_eq!(RunId::try_from(text.to_owned()), Err(RunIdError), "{text}");
        }
    }

    #[test]
    fn paths_that_are_no_text_survive() {
        let root = PathBuf::from(OsString::from_vec(b"/tmp/\xff".to_vec()));
        let record = RunRecord::begin(RunId::new_random().unwrap(), "s", &root, Path::new("/s")).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<RunRecord>(&text).unwrap(), record);
    }

    #[test]
    fn a_state_of_a_newer_version_is_read() {
        assert_eq!(serde_json::from_str::<RecordedState>("\"hibernating\"").unwrap(), RecordedState::Unknown);
        assert_eq!(serde_json::to_string(&RecordedState::Ready).unwrap(), "\"ready\"");
    }

    #[test]
    fn an_identity_is_written_with_its_inode_and_read_without() {
        let identity = Identity::new(4202, 123).with_inode(Some(u64::MAX));
        let text = serde_json::to_string(&ProcessRecord::from(identity)).unwrap();
        assert_eq!(text, format!(r#"{{"pid":4202,"start":123,"inode":{}}}"#, u64::MAX));
        let read = |text: &str| Identity::from(serde_json::from_str::<ProcessRecord>(text).unwrap());
        assert_eq!((read(&text), read(&text).inode()), (identity, Some(u64::MAX)));
        // As older versions wrote it, and as a newer one may.
        let old = r#"{"pid":4202,"start":123}"#;
        assert_eq!((read(old), read(old).inode()), (identity, None));
        assert_eq!(serde_json::to_string(&ProcessRecord::from(read(old))).unwrap(), old);
        assert_eq!(read(r#"{"pid":4202,"start":123,"handle":"00ff"}"#), identity);
    }

    #[test]
    fn the_line_of_a_keeper_is_read() {
        use lariat_keeper::record::Subject;
        use lariat_keeper::wire::{End, Named};
        use lariat_sys::reap::Exit;
        let leader = Identity::new(13, 14).with_inode(Some(17));
        let named = Named {
            identity: Identity::new(15, 16),
            comm: lariat_sys::procfs::Comm::new(b"stuck"),
            errno: 1,
        };
        let real_time = Signal::from_number(40).unwrap();
        for (exit, expected) in [
            (None, None),
            (Some(Exit::Code(3)), Some(ExitRecord::Code(3))),
            (Some(Exit::Signal { signal: Signal::TERM, core: false }), Some(ExitRecord::Signal(15))),
            (Some(Exit::Signal { signal: real_time, core: true }), Some(ExitRecord::Signal(40))),
        ] {
            let end = End { exit, told: 1, stragglers: 2, left: 1, dropped_bytes: 7, ..End::default() };
            let subject =
                Subject { run: "0123456789abcdef", service: "web", keeper: Identity::new(12, 0), leader };
            let line = lariat_keeper::record::line(subject, &end, &[named], 18);
            let record: EndRecord = serde_json::from_str(&line).unwrap();
            assert_eq!(
                (record.exit, record.leader, record.leader.inode),
                (expected, leader.into(), Some(17))
            );
            assert_eq!((record.told, record.stragglers, record.left_total, record.at_ms), (1, 2, 1, 18));
            assert_eq!(record.left[0].to_left().reason, "Operation not permitted (os error 1)");
            assert_eq!(record.dropped_bytes, 7);
            let again = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<EndRecord>(&again).unwrap(), record);
        }
    }
}
