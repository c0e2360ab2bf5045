//! The run's own socket, the server's side: takes requests, keeps what could not be sent yet.
//!
//! It knows lines and answers, not what is done about them. No client can hold up the loop: a request that is too long,
//! an answer that is not read and too many clients all end in a closed connection.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use lariat_sys::{process, sockets};

use super::poller::{Interest, Key, Poller};
use crate::api::{Answer, REQUEST_MAX, Refusal, Request};
use crate::event::Event;

/// Clients at once.
const CLIENTS_MAX: usize = 64;
/// What waits for a client at most, in bytes.
const OUTPUT_MAX: usize = 4 << 20;
/// Requests of one client that wait for their answer at most.
const PENDING_MAX: usize = 64;
/// Bytes taken from one client before the others have their turn.
const READ_STEP: usize = 16 * 1024;

/// A client, by a number that is not used again.
pub(super) type ClientId = u64;

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    key: Key,
    input: Vec<u8>,
    output: Vec<u8>,
    wants_events: bool,
    /// Requests that were not answered yet.
    pending: usize,
    /// It sent its last byte; what it is owed is still sent.
    is_half_closed: bool,
}

/// The listening socket and everybody who is connected.
#[derive(Debug)]
pub(super) struct Server {
    listener: UnixListener,
    path: PathBuf,
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
}

impl Server {
    /// Makes the socket at `path`, whose directory is the caller's to have checked. Whatever is at that path is
    /// replaced: the name contains the run's id, so it can only be ours.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned(), clients: BTreeMap::new(), next: 0 })
    }

    /// Returns what to watch for new clients.
    pub(super) fn listener(&self) -> impl AsFd + '_ {
        self.listener.as_fd()
    }

    /// Takes everybody who waits at the door. `owner` makes the owner of a client's registration.
    pub(super) fn accept<T: Copy>(&mut self, poller: &mut Poller<T>, owner: impl Fn(ClientId) -> T) {
        // An error here is the client's (it went away) or ours (no descriptors left): the door stays open either way.
        while let Ok((stream, _)) = self.listener.accept() {
            let is_friend = sockets::peer_cred(&stream).is_ok_and(|peer| {
                // Root could do all of it without asking.
                peer.uid == process::effective_user() || peer.uid == 0
            });
            if !is_friend || !self.has_room(poller) || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let id = self.next;
            let Ok(key) = poller.add(&stream, Interest::Read, owner(id)) else { continue };
            self.next += 1;
            let client = Client {
                stream,
                key,
                input: Vec::new(),
                output: Vec::new(),
                wants_events: false,
                pending: 0,
                is_half_closed: false,
            };
            self.clients.insert(id, client);
        }
    }

    /// Reads and writes what is possible, and returns the requests that came. Lines that are none are answered here.
    pub(super) fn turn<T: Copy>(&mut self, id: ClientId, poller: &mut Poller<T>) -> Vec<Request> {
        let Some(client) = self.clients.get_mut(&id) else { return Vec::new() };
        let mut requests = Vec::new();
        // One who sends nothing any more and is owed no room is only heard of again when it is gone altogether.
        let has_hung_up = client.is_half_closed && client.output.is_empty();
        let is_alive = !has_hung_up && client.read();
        for line in client.lines() {
            match serde_json::from_slice(&line) {
                Ok(_) if client.pending >= PENDING_MAX => {
                    let message =
                        format!("{PENDING_MAX} requests of this client wait for their answer already");
                    client.put(&refused(Refusal::Overloaded, message));
                }
                Ok(request) => {
                    client.pending += 1;
                    requests.push(request);
                }
                Err(error) => client.put(&refused(Refusal::BadRequest, format!("not a request: {error}"))),
            }
        }
        if client.input.len() > REQUEST_MAX {
            client.put(&refused(Refusal::BadRequest, "a request without end".into()));
            client.write();
            self.close(id, poller);
        } else if is_alive {
            self.flush(id, poller);
        } else {
            self.close(id, poller);
        }
        requests
    }

    /// Returns whether the client is still there to be answered.
    pub(super) fn has(&self, id: ClientId) -> bool {
        self.clients.contains_key(&id)
    }

    /// Sends an answer, now or when the client reads.
    pub(super) fn send<T: Copy>(&mut self, id: ClientId, answer: &Answer, poller: &mut Poller<T>) {
        if let Some(client) = self.clients.get_mut(&id) {
            if !matches!(answer, Answer::Event(_)) {
                client.pending = client.pending.saturating_sub(1);
            }
            client.put(answer);
            self.flush(id, poller);
        }
    }

    /// From now on the client gets every event.
    pub(super) fn subscribe(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.wants_events = true;
        }
    }

    /// Sends an event to everybody who asked for them.
    pub(super) fn publish<T: Copy>(&mut self, event: &Event, poller: &mut Poller<T>) {
        self.broadcast(&Answer::Event(event.clone()), poller);
    }

    /// Sends an answer to everybody who asked for events.
    pub(super) fn broadcast<T: Copy>(&mut self, answer: &Answer, poller: &mut Poller<T>) {
        let wanting: Vec<ClientId> =
            self.clients.iter().filter(|(_, client)| client.wants_events).map(|(id, _)| *id).collect();
        for id in wanting {
            self.send(id, answer, poller);
        }
    }

    /// Closes the socket, sends what is owed until the deadline, and removes the path.
    pub(super) fn finish(mut self, deadline: Instant) {
        use lariat_sys::poll::{PollFd, PollFlags, poll};
        // The path goes first: who comes now is to see that nobody is there.
        let _ = std::fs::remove_file(&self.path);
        loop {
            self.clients.retain(|_, client| client.write() && !client.output.is_empty());
            let mut fds: Vec<PollFd<'_>> =
                self.clients.values().map(|client| PollFd::new(&client.stream, PollFlags::OUT)).collect();
            if fds.is_empty() || !matches!(poll(&mut fds, Some(deadline)), Ok(n) if n > 0) {
                return;
            }
        }
    }

    fn flush<T: Copy>(&mut self, id: ClientId, poller: &mut Poller<T>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let is_alive = client.write() && client.output.len() <= OUTPUT_MAX;
        let is_owed = !client.output.is_empty() || client.pending > 0 || client.wants_events;
        let is_done = client.is_half_closed && !is_owed;
        if !is_alive || is_done {
            self.close(id, poller);
            return;
        }
        let interest = match (client.is_half_closed, client.output.is_empty()) {
            (false, true) => Interest::Read,
            (false, false) => Interest::Both,
            (true, false) => Interest::Write,
            (true, true) => Interest::Hangup,
        };
        if poller.change(&client.stream, interest, client.key).is_err() {
            self.close(id, poller);
        }
    }

    /// Makes room for one more where there is none: whoever came first of those who have asked for nothing and are owed nothing
    /// goes, so that nobody can shut the door by standing in it. Says whether there is room.
    fn has_room<T: Copy>(&mut self, poller: &mut Poller<T>) -> bool {
        if self.clients.len() < CLIENTS_MAX {
            return true;
        }
        let is_idle =
            |client: &Client| client.pending == 0 && !client.wants_events && client.output.is_empty();
        let idle = self.clients.iter().find(|(_, client)| is_idle(client)).map(|(id, _)| *id);
        idle.is_some_and(|id| {
            self.close(id, poller);
            true
        })
    }

    fn close<T: Copy>(&mut self, id: ClientId, poller: &mut Poller<T>) {
        if let Some(client) = self.clients.remove(&id) {
            poller.remove(&client.stream, client.key);
        }
    }
}

/// Makes a refusal.
pub(super) fn refused(reason: Refusal, message: String) -> Answer {
    Answer::Refused { reason, message }
}

impl Client {
    /// Reads one step's worth. Returns false when the connection is gone.
    fn read(&mut self) -> bool {
        let mut buffer = [0; READ_STEP];
        match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.is_half_closed = true;
                true
            }
            Ok(n) => {
                self.input.extend_from_slice(&buffer[..n]);
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    fn lines(&mut self) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        while let Some(end) = memchr::memchr(b'\n', &self.input) {
            let mut line: Vec<u8> = self.input.drain(..=end).collect();
            line.pop();
            lines.push(line);
        }
        lines
    }

    fn put(&mut self, answer: &Answer) {
        // Nothing in an answer can fail to be written as JSON: keys are texts, numbers are finite.
        if let Ok(mut line) = serde_json::to_vec(answer) {
            line.push(b'\n');
            self.output.append(&mut line);
        }
    }

    /// Writes what goes. Returns false when the connection is gone.
    fn write(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
