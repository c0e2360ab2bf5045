//! Looks whether a service is ready: connects, asks by HTTP, or searches its output. Never blocks.
//!
//! When to look is decided by [`crate::service::probe`]. Names are never looked up. A process is not started for a
//! look, so nothing of it can be left behind.
//!
//! Hazards: `HAZARD(self-connect)`.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use lariat_sys::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::service::spec::{Endpoint, Pattern, ReadyCheck};

/// The longest response head that is read, in bytes.
const HEAD_MAX: usize = 16 * 1024;
/// The most headers in it.
const HEADERS_MAX: usize = 64;
/// Output searched in one turn, in bytes; the rest follows in the next.
const SEARCH_STEP: usize = 1 << 20;
/// The longest line that is searched as a whole, in bytes. Of a longer one each such part is searched.
const LINE_MAX: usize = 64 * 1024;

/// What an attempt is waiting for, or what it has shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// Come back when the descriptor is writable.
    WantsWrite,
    /// Come back when the descriptor is readable.
    WantsRead,
    /// It is ready.
    Passed,
    /// It is not, for this reason.
    Failed(String),
}

/// What is asked once connected.
#[derive(Clone, Debug)]
enum Question {
    /// Nothing: that somebody accepts is the answer.
    None,
    /// This request.
    Http(Vec<u8>),
}

#[derive(Debug)]
enum Step {
    Connecting,
    Writing { written: usize },
    Reading { head: Vec<u8> },
}

/// One attempt over the network.
#[derive(Debug)]
pub(super) struct Attempt {
    question: Question,
    /// Where to go next if the present address refuses.
    addresses: Vec<SocketAddr>,
    /// What the addresses before said.
    refusals: Vec<String>,
    present: SocketAddr,
    socket: OwnedFd,
    step: Step,
}

impl Attempt {
    /// Begins an attempt. The socket may differ after each step that asks to come back.
    pub(super) fn begin(check: &ReadyCheck, own_port: Option<u16>) -> Result<Self, String> {
        let (endpoint, question) = match check {
            ReadyCheck::Tcp(endpoint) => (endpoint, Question::None),
            ReadyCheck::Http { endpoint, host, path } => {
                let request = |port: u16| {
                    format!(
                        "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: lariat\r\nAccept: */*\r\nConnection: close\r\n\r\n"
                    )
                };
                let port = port_of(endpoint, own_port).unwrap_or(80);
                (endpoint, Question::Http(request(port).into_bytes()))
            }
            ReadyCheck::Log(_) => return Err("output is not connected to".into()),
        };
        let mut addresses = addresses(endpoint, own_port)?;
        addresses.reverse();
        Self::next(question, addresses, Vec::new())
    }

    /// Goes to the next address, as those before refused. An error names all of them: `localhost` is two.
    fn next(
        question: Question,
        mut addresses: Vec<SocketAddr>,
        mut refusals: Vec<String>,
    ) -> Result<Self, String> {
        while let Some(present) = addresses.pop() {
            match connect(present) {
                Ok(socket) => {
                    return Ok(Self {
                        question,
                        addresses,
                        refusals,
                        present,
                        socket,
                        step: Step::Connecting,
                    });
                }
                Err(errno) => refusals.push(format!("{present}: {errno}")),
            }
        }
        Err(refusals.join("; "))
    }

    /// Goes on after the descriptor became ready.
    pub(super) fn turn(&mut self) -> Seen {
        loop {
            match self.step() {
                Ok(seen) => return seen,
                Err(reason) => {
                    let addresses = std::mem::take(&mut self.addresses);
                    let mut refusals = std::mem::take(&mut self.refusals);
                    refusals.push(reason);
                    match Self::next(self.question.clone(), addresses, refusals) {
                        Ok(next) => *self = next,
                        Err(reason) => return Seen::Failed(reason),
                    }
                }
            }
        }
    }

    /// One step. An error means that this address does not answer, and another may.
    fn step(&mut self) -> Result<Seen, String> {
        let failed = |errno: Errno| format!("{}: {errno}", self.present);
        match &mut self.step {
            Step::Connecting => {
                if !is_writable(&self.socket) {
                    return Ok(Seen::WantsWrite);
                }
                sockopt::socket_error(&self.socket).map_err(failed)?.map_err(failed)?;
                if is_own_echo(&self.socket) {
                    return Err(format!("{}: nobody listens", self.present));
                }
                match self.question {
                    Question::None => return Ok(Seen::Passed),
                    Question::Http(_) => self.step = Step::Writing { written: 0 },
                }
                Ok(self.write())
            }
            Step::Writing { .. } => Ok(self.write()),
            Step::Reading { .. } => Ok(self.read()),
        }
    }

    fn write(&mut self) -> Seen {
        let (Step::Writing { written }, Question::Http(request)) = (&mut self.step, &self.question) else {
            return Seen::WantsRead;
        };
        while *written < request.len() {
            match send(&self.socket, &request[*written..]) {
                Ok(n) => *written += n,
                Err(Errno::AGAIN) => return Seen::WantsWrite,
                Err(errno) => return Seen::Failed(format!("{}: {errno}", self.present)),
            }
        }
        self.step = Step::Reading { head: Vec::new() };
        Seen::WantsRead
    }

    fn read(&mut self) -> Seen {
        let Step::Reading { head } = &mut self.step else { return Seen::WantsRead };
        let mut buffer = [0; 2048];
        loop {
            let n = match rustix::io::read(&self.socket, &mut buffer) {
                Ok(n) => n,
                Err(Errno::AGAIN) => return Seen::WantsRead,
                Err(Errno::INTR) => continue,
                Err(errno) => return Seen::Failed(format!("{}: {errno}", self.present)),
            };
            head.extend_from_slice(&buffer[..n]);
            if let Some(seen) = judge(head, n == 0 || head.len() >= HEAD_MAX) {
                return seen;
            }
        }
    }
}

/// Reads the status from what has come of a response; `None` while it is not all there.
fn judge(head: &[u8], is_all: bool) -> Option<Seen> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(head);
    // The status line is enough: a server that sends endless headers has answered as well.
    let code = response.code;
    match (parsed, code) {
        (Ok(httparse::Status::Partial), _) if !is_all => None,
        (Err(httparse::Error::TooManyHeaders) | Ok(_), Some(code)) => Some(match code {
            200..=399 => Seen::Passed,
            _ => Seen::Failed(format!("answered with status {code}")),
        }),
        (Ok(_), None) => Some(Seen::Failed("closed the connection without an answer".into())),
        (Err(error), _) => Some(Seen::Failed(format!("does not answer as HTTP: {error}"))),
    }
}

fn port_of(endpoint: &Endpoint, own_port: Option<u16>) -> Option<u16> {
    match endpoint {
        Endpoint::OwnPort => own_port,
        Endpoint::Loopback(port) => Some(*port),
        Endpoint::Address(address) => Some(address.port()),
    }
}

/// Where an endpoint is, in the order to be tried.
fn addresses(endpoint: &Endpoint, own_port: Option<u16>) -> Result<Vec<SocketAddr>, String> {
    if let Endpoint::Address(address) = endpoint {
        return Ok(vec![*address]);
    }
    let port = port_of(endpoint, own_port).ok_or("the service has no port")?;
    let loopbacks = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    Ok(loopbacks.map(|address| SocketAddr::new(address, port)).into())
}

fn connect(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

fn is_writable(socket: &OwnedFd) -> bool {
    use lariat_sys::poll::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    let ready = poll(&mut fds, Some(std::time::Instant::now()));
    matches!(ready, Ok(n) if n > 0)
}

/// HAZARD(self-connect): the kernel may give a socket that connects to a free port of its own range that very port as
/// its source, and it is connected to itself. A service that nobody has started would be ready.
fn is_own_echo(socket: &OwnedFd) -> bool {
    let ours = rustix::net::getsockname(socket).ok().and_then(|a| SocketAddr::try_from(a).ok());
    let theirs = rustix::net::getpeername(socket).ok().flatten().and_then(|a| SocketAddr::try_from(a).ok());
    ours.is_some() && ours == theirs
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::net::send(socket, bytes, rustix::net::SendFlags::NOSIGNAL)
}

/// Searches the output of one start of a service.
#[derive(Debug)]
pub(super) struct Search {
    store: File,
    pattern: Pattern,
    /// What was read and is no whole line yet.
    rest: Vec<u8>,
    /// How far the store was read.
    at: u64,
}

impl Search {
    /// Begins at `from`, the end of the store when the service was started.
    pub(super) fn begin(store: File, pattern: Pattern, from: u64) -> Self {
        Self { store, pattern, rest: Vec::new(), at: from }
    }

    /// Looks at what has come. `Ok(None)` means that there is more to look at than one turn takes.
    pub(super) fn turn(&mut self) -> io::Result<Option<bool>> {
        let mut buffer = vec![0; LINE_MAX];
        let stop_at = self.at + SEARCH_STEP as u64;
        while self.at < stop_at {
            let n = self.store.read_at(&mut buffer, self.at)?;
            if n == 0 {
                // A prompt has no newline, and it may be all there is.
                return Ok(Some(self.pattern.is_match(&self.rest)));
            }
            self.at += n as u64;
            self.rest.extend_from_slice(&buffer[..n]);
            if self.search_lines() {
                return Ok(Some(true));
            }
        }
        Ok(None)
    }

    /// Searches the whole lines of what was read, and keeps the rest.
    fn search_lines(&mut self) -> bool {
        let mut begin = 0;
        while let Some(length) = memchr::memchr(b'\n', &self.rest[begin..]) {
            let line = &self.rest[begin..begin + length];
            if self.pattern.is_match(line.strip_suffix(b"\r").unwrap_or(line)) {
                return true;
            }
            begin += length + 1;
        }
        if self.rest.len() - begin > LINE_MAX {
            if self.pattern.is_match(&self.rest[begin..]) {
                return true;
            }
            begin = self.rest.len();
        }
        self.rest.drain(..begin);
        false
    }
}

/// Lends the descriptor that an attempt waits for.
impl AsFd for Attempt {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[path = "readiness_tests.rs"]
mod tests;
