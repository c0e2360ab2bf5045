use std::time::Duration;

use super::*;
use crate::api::Client as ApiClient;
use crate::event::{EventKind, Sequence};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Door,
    Client(ClientId),
}

/// A server and its loop, turned by hand.
struct Bench {
    server: Server,
    poller: Poller<Owner>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(&dir.path().join("s")).unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(server.listener(), Interest::Read, Owner::Door).unwrap();
        Self { server, poller, dir }
    }

    fn connect(&self) -> ApiClient {
        ApiClient::connect(&self.dir.path().join("s")).unwrap()
    }

    /// Turns until `count` requests came, or fails after ten seconds.
    fn requests(&mut self, count: usize) -> Vec<(ClientId, Request)> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut requests = Vec::new();
        let mut owners = Vec::new();
        while requests.len() < count {
            assert!(Instant::now() < deadline, "no request came");
            self.poller.wait(Some(deadline), &mut owners).unwrap();
            for owner in owners.drain(..) {
                match owner {
                    Owner::Door => self.server.accept(&mut self.poller, Owner::Client),
                    Owner::Client(id) => {
                        requests.extend(self.server.turn(id, &mut self.poller).into_iter().map(|r| (id, r)));
                    }
                }
            }
        }
        requests
    }
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

#[test]
fn requests_are_answered_and_nonsense_is_refused() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    let raw = std::os::unix::net::UnixStream::connect(bench.dir.path().join("s")).unwrap();
    (&raw).write_all(b"nonsense\n{\"do\":\"events\"}\n").unwrap();
    client.ask(&Request::Ps { processes: true }).unwrap();
    let mut requests = bench.requests(2);
    requests.sort_by_key(|(id, _)| *id);
    assert_eq!(requests, [(0, Request::Ps { processes: true }), (1, Request::Events)]);
    bench.server.send(0, &Answer::Accepted, &mut bench.poller);
    assert_eq!(client.next(soon()).unwrap(), Answer::Accepted);
    let mut line = [0; 512];
    let n = (&raw).read(&mut line).unwrap();
    assert!(String::from_utf8_lossy(&line[..n]).contains("\"reason\":\"bad-request\""));
}

#[test]
fn events_go_to_those_who_asked() {
    let mut bench = Bench::new();
    let (mut listens, mut does_not) = (bench.connect(), bench.connect());
    listens.ask(&Request::Events).unwrap();
    does_not.ask(&Request::Events).unwrap();
    let requests = bench.requests(2);
    bench.server.subscribe(requests[0].0);
    let event = Sequence::default().next(EventKind::ShutdownForced);
    bench.server.publish(&event, &mut bench.poller);
    let heard = [&mut listens, &mut does_not]
        .map(|client| client.next(Some(Instant::now() + Duration::from_millis(50))).ok());
    assert_eq!(heard.iter().flatten().count(), 1);
    bench.server.broadcast(&Answer::Accepted, &mut bench.poller);
    bench.server.finish(Instant::now() + Duration::from_secs(5));
    assert!(ApiClient::connect(&bench.dir.path().join("s")).is_err(), "the path is gone");
}

#[test]
fn a_client_that_does_not_read_is_let_go_and_holds_up_nobody() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.ask(&Request::Events).unwrap();
    let id = bench.requests(1)[0].0;
    bench.server.subscribe(id);
    let what = "x".repeat(100_000);
    let event = Sequence::default().next(EventKind::Trouble { what });
    let begin = Instant::now();
    for _ in 0..100 {
        bench.server.publish(&event, &mut bench.poller);
    }
    assert!(bench.server.clients.is_empty(), "10 MB wait for nobody");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_request_without_end_and_a_hundred_clients_are_too_much() {
    let mut bench = Bench::new();
    let mut endless = std::os::unix::net::UnixStream::connect(bench.dir.path().join("s")).unwrap();
    endless.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut owners = Vec::new();
    let mut is_known = false;
    while !is_known || !bench.server.clients.is_empty() {
        assert!(Instant::now() < deadline);
        // Full, or closed by the other side: both are what is wanted.
        let _ = endless.write(&[b'x'; 8192]);
        bench.poller.wait(Some(Instant::now()), &mut owners).unwrap();
        for owner in owners.drain(..) {
            match owner {
                Owner::Door => bench.server.accept(&mut bench.poller, Owner::Client),
                Owner::Client(id) => assert!(bench.server.turn(id, &mut bench.poller).is_empty()),
            }
        }
        is_known |= !bench.server.clients.is_empty();
    }
    let crowd: Vec<ApiClient> = (0..CLIENTS_MAX).map(|_| bench.connect()).collect();
    let mut late = bench.connect();
    bench.server.accept(&mut bench.poller, Owner::Client);
    assert_eq!(bench.server.clients.len(), CLIENTS_MAX);
    // Nobody of the crowd has asked for anything: the eldest of it makes room.
    late.ask(&Request::Ps { processes: false }).unwrap();
    let (asker, request) = bench.requests(1).remove(0);
    assert_eq!(request, Request::Ps { processes: false });
    bench.server.send(asker, &Answer::Accepted, &mut bench.poller);
    assert_eq!(late.next(soon()).unwrap(), Answer::Accepted);
    drop((crowd, late));
}

#[test]
fn what_is_owed_is_sent_to_one_who_only_listens_any_more() {
    let mut bench = Bench::new();
    let raw = std::os::unix::net::UnixStream::connect(bench.dir.path().join("s")).unwrap();
    (&raw).write_all(b"{\"do\":\"down\"}\n").unwrap();
    let id = bench.requests(1)[0].0;
    bench.server.subscribe(id);
    raw.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(bench.server.turn(id, &mut bench.poller).is_empty());
    bench.server.broadcast(&Answer::Accepted, &mut bench.poller);
    bench.server.finish(Instant::now() + Duration::from_secs(5));
    let mut text = String::new();
    (&raw).read_to_string(&mut text).unwrap();
    assert_eq!(text, "{\"answer\":\"accepted\"}\n");
}

#[test]
fn one_who_asks_and_asks_is_refused_and_forgotten_when_it_goes() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    for _ in 0..=PENDING_MAX {
        client.ask(&Request::Stop { services: vec!["web".into()] }).unwrap();
    }
    let (id, _) = bench.requests(PENDING_MAX)[0];
    let refusal = loop {
        if let Ok(Answer::Refused { reason, .. }) = client.next(Some(Instant::now())) {
            break reason;
        }
        let mut owners = Vec::new();
        bench.poller.wait(soon(), &mut owners).unwrap();
        assert!(bench.server.turn(id, &mut bench.poller).is_empty());
    };
    assert_eq!(refusal, Refusal::Overloaded);
    assert!(bench.server.has(id));
    drop(client);
    while bench.server.has(id) {
        let mut owners = Vec::new();
        bench.poller.wait(soon(), &mut owners).unwrap();
        bench.server.turn(id, &mut bench.poller);
    }
}
