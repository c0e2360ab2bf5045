//! What happened, as one ordered stream: terminal, socket, history file and report all read the same.
//!
//! Plain data for the edges. Nothing in here decides or does anything. Environments are never part of it.

use std::time::{Duration, SystemTime};

use lariat_sys::reap;
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the run, from 1, without gaps.
    pub sequence: u64,
    /// When, in microseconds since 1970 UTC.
    pub time: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen. Times are in seconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// A run began.
    RunStarted {
        /// Its id.
        run: String,
        /// The stack's name.
        stack: String,
        /// The project's root.
        root: String,
        /// The supervisor's pid.
        pid: i32,
    },
    /// A keeper was started with a service.
    ServiceStarting {
        /// Which.
        service: String,
        /// The keeper's pid.
        keeper: i32,
    },
    /// The leader of a service was spawned.
    ServiceStarted {
        /// Which.
        service: String,
        /// The leader's pid.
        pid: i32,
        /// Its port.
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// A service could not be spawned.
    ServiceNotStarted {
        /// Which.
        service: String,
        /// Why.
        reason: String,
    },
    /// A service is ready.
    ServiceReady {
        /// Which.
        service: String,
        /// Since its start.
        #[serde(with = "seconds")]
        after: Duration,
    },
    /// A service was not ready in time.
    ServiceNotReady {
        /// Which.
        service: String,
        /// Since its start.
        #[serde(with = "seconds")]
        after: Duration,
        /// What the last attempt saw.
        reason: String,
    },
    /// The leader of a service exited.
    LeaderExited {
        /// Which.
        service: String,
        /// How.
        exit: Exit,
    },
    /// The leader left a daemon by design.
    ServiceDaemonized {
        /// Which.
        service: String,
        /// How many are alive.
        members: u32,
    },
    /// Members outlived the leader; they are being stopped.
    StragglersFound {
        /// Of which service.
        service: String,
        /// How many are alive.
        alive: u32,
    },
    /// One of those members.
    StragglerNamed {
        /// Of which service.
        service: String,
        /// Its pid.
        pid: i32,
        /// The kernel's name for it.
        name: String,
    },
    /// A service was told to stop.
    ServiceStopping {
        /// Which.
        service: String,
        /// Until its members are killed.
        #[serde(with = "seconds")]
        grace: Duration,
    },
    /// A service is being killed.
    ServiceKilled {
        /// Which.
        service: String,
    },
    /// A life of a service is over, proven.
    ServiceEnded(ServiceEnded),
    /// A service will be started again.
    RestartScheduled {
        /// Which.
        service: String,
        /// The wait.
        #[serde(with = "seconds")]
        after: Duration,
        /// Its restarts in a row, this one included.
        restarts: u32,
    },
    /// A service is not started again.
    ServiceGaveUp {
        /// Which.
        service: String,
        /// Its restarts in a row.
        restarts: u32,
    },
    /// The keeper of a service died; the supervisor ends what it left.
    KeeperLost {
        /// Of which service.
        service: String,
        /// It was number 1 of a pid namespace, and has left nobody: the kernel ended all of them with it.
        #[serde(default)]
        is_isolated: bool,
    },
    /// A process could not be ended.
    MemberLeft {
        /// Of which service, if known.
        #[serde(skip_serializing_if = "Option::is_none")]
        service: Option<String>,
        /// Its pid.
        pid: i32,
        /// The kernel's name for it.
        name: String,
        /// Why not.
        reason: String,
    },
    /// All services of the start-up are up and ready, or completed.
    StartupFinished {
        /// Since the run began.
        #[serde(with = "seconds")]
        after: Duration,
    },
    /// The start-up failed; the stack stops.
    StartupFailed {
        /// Because of which service.
        service: String,
        /// Why.
        reason: String,
    },
    /// The stack begins to stop. Nothing starts from here on.
    ShutdownStarted {
        /// Why.
        why: String,
        /// How long it may take.
        #[serde(with = "seconds")]
        deadline: Duration,
    },
    /// All grace periods were ended.
    ShutdownForced,
    /// The supervisor leaves before the end; keepers finish.
    ShutdownLeft,
    /// A phase of the shutdown began.
    PhaseStarted {
        /// 1 to 5.
        number: u8,
        /// Its name.
        phase: String,
    },
    /// A phase of the shutdown is over.
    PhaseEnded {
        /// 1 to 5.
        number: u8,
        /// Its name.
        phase: String,
        /// How long it took.
        #[serde(with = "seconds")]
        took: Duration,
        /// Services that it ended.
        services: u32,
        /// Processes that it ended.
        processes: u32,
    },
    /// A process of the run hangs on no keeper.
    OrphanFound {
        /// Its pid.
        pid: i32,
        /// The kernel's name for it.
        name: String,
        /// How it was recognized.
        reason: String,
    },
    /// Something of lariat's own did not work; everything else goes on.
    Trouble {
        /// What, and why.
        what: String,
    },
    /// A limit was reached.
    LimitReached {
        /// Which, and what follows.
        what: String,
    },
    /// The run is over.
    RunEnded {
        /// Nothing is left.
        is_clean: bool,
        /// From the begin of the stop.
        #[serde(with = "seconds")]
        took: Duration,
        /// Processes that could not be ended.
        left: u32,
        /// The processes could not be read at the last look: whether anything is left is not known.
        #[serde(default)]
        is_blind: bool,
    },
}

/// How a life of a service ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ServiceEnded {
    /// Which.
    pub service: String,
    /// Why, in words.
    pub cause: String,
    /// It counts as a failure.
    pub is_failure: bool,
    /// How the leader exited, if anybody could see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// From start to proof.
    #[serde(with = "seconds")]
    pub life: Duration,
    /// From the begin of the stop to the proof; zero if nothing had to be stopped.
    #[serde(with = "seconds")]
    pub stop_time: Duration,
    /// Members that got the stop signal.
    pub told: u32,
    /// Members that were killed.
    pub killed: u32,
    /// Members that outlived the leader.
    pub stragglers: u32,
    /// Members that could not be ended.
    pub left: u32,
    /// Bytes of output that could not be stored.
    pub dropped_bytes: u64,
}

/// How a process ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(String),
}

impl From<reap::Exit> for Exit {
    fn from(exit: reap::Exit) -> Self {
        match exit {
            reap::Exit::Code(code) => Self::Code(code),
            reap::Exit::Signal { signal, .. } => Self::Signal(signal.to_string()),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Numbers events and gives them their time.
#[derive(Debug, Default)]
pub struct Sequence(u64);

impl Sequence {
    /// Returns `kind` as the next event of the run, of the present moment.
    pub fn next(&mut self, kind: EventKind) -> Event {
        self.0 += 1;
        Event { sequence: self.0, time: unix_micros(SystemTime::now()), kind }
    }
}

/// Returns a time in microseconds since 1970 UTC; zero for earlier ones.
#[must_use]
pub fn unix_micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Durations as seconds with six digits, so that people and `jq` can read them.
pub mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes a duration.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e6)
    }

    /// Reads a duration.
    ///
    /// # Errors
    /// Those of the deserializer, and a number that is no duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_flat_lines_that_read_back() {
        let mut sequence = Sequence::default();
        let kind = EventKind::ServiceReady { service: "db".into(), after: Duration::from_millis(1_204) };
        let event = sequence.next(kind);
        let line = serde_json::to_string(&event).unwrap();
        assert!(line.starts_with("{\"sequence\":1,\"time\":"), "{line}");
        assert!(line.ends_with("\"event\":\"service-ready\",\"service\":\"db\",\"after\":1.204}"), "{line}");
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        assert_eq!(sequence.next(EventKind::ShutdownForced).sequence, 2);
    }

    /// The fields of what happened lie beside those of the event itself: none may have the name of another.
    #[test]
    fn no_field_hides_another() {
        let phase = || String::from("verify");
        let took = Duration::from_millis(5);
        let kinds = [
            EventKind::PhaseStarted { number: 5, phase: phase() },
            EventKind::PhaseEnded { number: 5, phase: phase(), took, services: 1, processes: 2 },
            EventKind::RunStarted { run: "r".into(), stack: "s".into(), root: "/".into(), pid: 1 },
            EventKind::RestartScheduled { service: "web".into(), after: took, restarts: 1 },
            EventKind::MemberLeft { service: None, pid: 1, name: "x".into(), reason: "y".into() },
        ];
        for kind in kinds {
            let event = Sequence::default().next(kind);
            let line = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event, "{line}");
        }
    }

    #[test]
    fn durations_that_are_none_are_errors() {
        for text in ["-1.0", "1e300", "\"a\""] {
            let line =
                format!("{{\"sequence\":1,\"time\":0,\"event\":\"startup-finished\",\"after\":{text}}}");
            assert!(serde_json::from_str::<Event>(&line).is_err(), "{text}");
        }
    }

    #[test]
    fn exits_in_words() {
        assert_eq!(Exit::from(reap::Exit::Code(3)).to_string(), "exit code 3");
        let killed = reap::Exit::Signal { signal: lariat_sys::signal::Signal::KILL, core: false };
        assert_eq!(Exit::from(killed).to_string(), "signal KILL");
    }
}
