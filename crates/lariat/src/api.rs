//! What is said over a run's own socket: one JSON object per line, both ways.
//!
//! A client sends a [`Request`] and reads [`Answer`]s. `ps` is answered at once; `start`, `stop` and `restart` when the
//! services have come to where they were sent; `down` and `events` by a stream of events, the former with the report
//! at its end. The socket is in a directory that only its owner may enter, and the supervisor asks the kernel who is on
//! the other side. Environments are never part of an answer.
//!
//! The server's side is [`crate::supervisor`]'s.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use lariat_sys::poll::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::event::{Event, seconds};
use crate::shutdown::report::Report;

/// The longest request, in bytes.
pub const REQUEST_MAX: usize = 64 * 1024;
/// The longest answer that a client takes, in bytes.
pub const ANSWER_MAX: usize = 16 << 20;

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The state of everything.
    Ps {
        /// With all processes of each service.
        #[serde(default)]
        processes: bool,
    },
    /// Start these services and what they come after.
    Start {
        /// Names.
        services: Vec<String>,
    },
    /// Stop these services, and only these.
    Stop {
        /// Names.
        services: Vec<String>,
    },
    /// Stop these services and start them again.
    Restart {
        /// Names.
        services: Vec<String>,
    },
    /// Stop the stack.
    Down {
        /// Without grace periods.
        #[serde(default)]
        force: bool,
    },
    /// Everything that happens from now on.
    Events,
}

/// What the supervisor answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To `ps`.
    Status(RunStatus),
    /// To `start`, `stop`, `restart`: done.
    Done {
        /// The services that were named, as they are now.
        services: Vec<ServiceStatus>,
    },
    /// To `down` and `events`: what happens follows.
    Accepted,
    /// Something happened.
    Event(Event),
    /// The run is over. Nothing follows.
    Report(Box<Report>),
    /// The request was not carried out.
    Refused {
        /// Why, for programs.
        reason: Refusal,
        /// Why, for people.
        message: String,
    },
}

/// Why a request was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The line is no request.
    BadRequest,
    /// A service of that name is not in this stack.
    UnknownService,
    /// The stack stops: nothing starts any more.
    ShuttingDown,
    /// The service came up and failed, or was not ready in time.
    ServiceFailed,
    /// Something of the service could not be ended.
    NotEnded,
    /// A port of the service is in use.
    PortInUse,
    /// Too many requests of this client wait for their answer.
    Overloaded,
}

/// A run, as `ps` shows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RunStatus {
    /// Its id.
    pub run: String,
    /// The stack's name.
    pub stack: String,
    /// The project's root.
    pub root: String,
    /// The supervisor's pid.
    pub pid: i32,
    /// `starting`, `up`, or `stopping`.
    pub state: String,
    /// Since its start.
    #[serde(with = "seconds")]
    pub age: Duration,
    /// In the order of the file.
    pub services: Vec<ServiceStatus>,
}

/// A service, as `ps` shows it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub service: String,
    /// How it is: `down`, `waiting`, `starting`, `ready`, `stopping`, `backoff`, `completed`, `stopped`, `failed`,
    /// `gave-up`.
    pub state: String,
    /// What is wanted: `up` or `down`.
    pub wanted: String,
    /// It is up and was seen to be ready.
    pub is_ready: bool,
    /// The leader's pid, while there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<i32>,
    /// The keeper's pid, while there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub keeper: Option<i32>,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// What is started.
    pub command: String,
    /// Seconds since its leader was started, while it lives.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub age: Option<f64>,
    /// Restarts since it was last asked for.
    pub restarts: u32,
    /// How its last life ended, in words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_end: Option<String>,
    /// That end was a failure.
    #[serde(default)]
    pub has_failed: bool,
    /// Services that come after it and are wanted up: they go on without it when it is stopped alone. Who only waits
    /// for it to complete is not among them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub needed_by: Vec<String>,
    /// How many processes it has.
    pub members: u32,
    /// Their resident memory, in KiB; what they share is counted for each.
    pub memory_kib: u64,
    /// Their processor time.
    pub cpu_seconds: f64,
    /// They, breadth first, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub processes: Vec<ProcessStatus>,
}

/// A process, as `ps` shows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its pid.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// The kernel's letter for its state.
    pub state: char,
    /// Its command line, or the kernel's name for it.
    pub command: String,
    /// Resident memory, in KiB.
    pub memory_kib: u64,
    /// Processor time.
    pub cpu_seconds: f64,
}

/// Why a conversation with a supervisor did not work.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there: the supervisor is dead or about to be.
    #[error("could not connect to {path}: {cause}")]
    Connect {
        /// The socket.
        path: String,
        /// The kernel's word.
        #[source]
        cause: io::Error,
    },
    /// The supervisor closed the conversation, or died.
    #[error("the supervisor closed the connection")]
    Closed,
    /// Nothing came in time.
    #[error("no answer from the supervisor within the time")]
    TimedOut,
    /// Reading or writing did not work.
    #[error("could not talk to the supervisor: {0}")]
    Io(#[source] io::Error),
    /// What came is no answer; perhaps it is another version's.
    #[error("the supervisor said something that is not understood: {0}")]
    Garbled(String),
}

/// A conversation with the supervisor of a run.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Client {
    /// Connects to a run's socket.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let failed = |cause| ClientError::Connect { path: path.display().to_string(), cause };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// Sends a request. Blocks for five seconds at most, while the supervisor does not read.
    ///
    /// # Errors
    /// [`ClientError::Closed`], [`ClientError::TimedOut`] or [`ClientError::Io`].
    pub fn ask(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|e| ClientError::Garbled(e.to_string()))?;
        line.push(b'\n');
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::OUT, Some(deadline))?
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(ClientError::Closed),
                Err(e) => return Err(ClientError::Io(e)),
            }
        }
        Ok(())
    }

    /// Returns the next answer. Blocks until it is there or the deadline has passed; `None` waits without end.
    ///
    /// # Errors
    /// All of [`ClientError`] but `Connect`. After `TimedOut` it may be called again.
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<Answer, ClientError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.input) {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|e| ClientError::Garbled(e.to_string()));
            }
            if self.input.len() > ANSWER_MAX {
                return Err(ClientError::Garbled("a line without end".into()));
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(n) => self.input.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::IN, deadline)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(ClientError::Closed),
                Err(e) => return Err(ClientError::Io(e)),
            }
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Option<Instant>) -> Result<(), ClientError> {
        let mut fds = [PollFd::new(&self.stream, flags)];
        match poll(&mut fds, deadline) {
            Ok(0) => Err(ClientError::TimedOut),
            Ok(_) => Ok(()),
            Err(errno) => Err(ClientError::Io(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let table = [
            (r#"{"do":"ps"}"#, Request::Ps { processes: false }),
            (r#"{"do":"start","services":["db"]}"#, Request::Start { services: vec!["db".into()] }),
            (r#"{"do":"down","force":true}"#, Request::Down { force: true }),
            (r#"{"do":"events"}"#, Request::Events),
        ];
        for (line, request) in table {
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request, "{line}");
        }
        for line in [r#"{"do":"dance"}"#, r#"{"do":"down","forse":true}"#, r#"{"do":"stop"}"#, "[]", ""] {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
    }

    #[test]
    fn answers_read_back() {
        let event = crate::event::Sequence::default().next(crate::event::EventKind::ShutdownForced);
        let status = ServiceStatus { service: "db".into(), age: Some(1.5), ..ServiceStatus::default() };
        let refused = Answer::Refused { reason: Refusal::ShuttingDown, message: "no".into() };
        for answer in
            [Answer::Accepted, Answer::Event(event), Answer::Done { services: vec![status] }, refused]
        {
            let line = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer, "{line}");
        }
    }

    #[test]
    fn a_client_waits_no_longer_than_it_was_told_and_hears_of_a_close() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(matches!(Client::connect(&path), Err(ClientError::Connect { .. })));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut client = Client::connect(&path).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert!(matches!(client.next(Some(Instant::now())), Err(ClientError::TimedOut)));
        server.write_all(b"{\"answer\":\"acc").unwrap();
        assert!(matches!(client.next(Some(Instant::now())), Err(ClientError::TimedOut)));
        server.write_all(b"epted\"}\nnonsense\n").unwrap();
        assert_eq!(client.next(None).unwrap(), Answer::Accepted);
        assert!(matches!(client.next(None), Err(ClientError::Garbled(_))));
        drop(server);
        assert!(matches!(client.next(None), Err(ClientError::Closed)));
    }

    proptest! {
        #[test]
        fn no_bytes_are_more_than_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = serde_json::from_slice::<Request>(&bytes);
            let _ = serde_json::from_slice::<Answer>(&bytes);
        }
    }
}
