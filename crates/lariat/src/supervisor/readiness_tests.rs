use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use lariat_sys::poll::{PollFd, PollFlags, poll};

use super::*;

/// Drives one attempt to its end, or gives up after ten seconds.
fn drive(check: &ReadyCheck, own_port: Option<u16>) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut attempt = Attempt::begin(check, own_port)?;
    loop {
        let flags = match attempt.turn() {
            Seen::Passed => return Ok(()),
            Seen::Failed(reason) => return Err(reason),
            Seen::WantsRead => PollFlags::IN,
            Seen::WantsWrite => PollFlags::OUT,
        };
        let mut fds = [PollFd::new(&attempt, flags)];
        assert!(poll(&mut fds, Some(deadline)).unwrap() > 0, "the attempt hangs");
    }
}

fn http(port: u16) -> ReadyCheck {
    ReadyCheck::Http { endpoint: Endpoint::Loopback(port), host: "localhost".into(), path: "/health".into() }
}

/// A server that answers one connection with these bytes.
fn answering(answer: &'static [u8]) -> (u16, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 1024];
        let n = stream.read(&mut request).unwrap();
        stream.write_all(answer).unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    (port, server)
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_listener_on_either_loopback_passes() {
    let four = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = four.local_addr().unwrap().port();
    assert_eq!(drive(&ReadyCheck::Tcp(Endpoint::Loopback(port)), None), Ok(()));
    assert_eq!(drive(&ReadyCheck::Tcp(Endpoint::OwnPort), Some(port)), Ok(()));
    // Machines without IPv6 have nothing to show here.
    if let Ok(six) = TcpListener::bind("[::1]:0") {
        let port = six.local_addr().unwrap().port();
        assert_eq!(drive(&ReadyCheck::Tcp(Endpoint::Loopback(port)), None), Ok(()));
    }
}

#[test]
fn nobody_there_is_a_failure_and_stays_one() {
    let port = free_port();
    for _ in 0..50 {
        let reason = drive(&ReadyCheck::Tcp(Endpoint::Loopback(port)), None).unwrap_err();
        assert!(reason.contains("refused") || reason.contains("assign"), "{reason}");
        for tried in [format!("127.0.0.1:{port}: "), format!("[::1]:{port}: ")] {
            assert!(reason.contains(&tried), "{tried} is not in: {reason}");
        }
    }
    assert_eq!(drive(&ReadyCheck::Tcp(Endpoint::OwnPort), None), Err("the service has no port".into()));
}

#[test]
fn a_connection_to_oneself_is_not_a_service() {
    // What the kernel does by chance once in some ten thousand times, made certain: bind the source to the target.
    let port = free_port();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    assert!(is_own_echo(&socket));
}

#[test]
fn http_passes_by_its_status() {
    let table: [(&[u8], bool); 6] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
        (b"HTTP/1.0 302 Found\r\nLocation: /login\r\n\r\n", true),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", false),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", false),
        (b"SSH-2.0-OpenSSH_9.2\r\n", false),
        (b"", false),
    ];
    for (answer, passes) in table {
        let (port, server) = answering(answer);
        let seen = drive(&http(port), None);
        assert_eq!(seen.is_ok(), passes, "{:?}: {seen:?}", String::from_utf8_lossy(answer));
        let request = server.join().unwrap();
        assert!(request.starts_with("GET /health HTTP/1.1\r\nHost: localhost:"), "{request}");
        assert!(request.ends_with("\r\n\r\n"), "{request}");
    }
}

#[test]
fn any_bytes_are_judged_and_none_is_waited_for_for_ever() {
    for length in [0, 1, 15, 16, 17, 4_000] {
        for byte in [0_u8, b'H', b'\r', b'\n', 0xff] {
            assert!(judge(&vec![byte; length], true).is_some(), "{length} of {byte}");
        }
    }
    let many: Vec<u8> = (0..500).flat_map(|n| format!("x-{n}: y\r\n").into_bytes()).collect();
    let head = [b"HTTP/1.1 200 OK\r\n".as_slice(), &many].concat();
    assert_eq!(judge(&head, false), Some(Seen::Passed));
}

fn search(pattern: &str) -> (File, Search) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let reader = file.reopen().unwrap();
    (file.into_file(), Search::begin(reader, Pattern::new(pattern).unwrap(), 0))
}

#[test]
fn a_line_is_found_however_it_arrives() {
    let (mut store, mut search) = search("^ready on port \\d+$");
    assert_eq!(search.turn().unwrap(), Some(false));
    for part in ["starting\nnot ready on port 1\nrea", "dy on po", "rt 80"] {
        assert_eq!(search.turn().unwrap(), Some(false), "before {part:?}");
        store.write_all(part.as_bytes()).unwrap();
    }
    assert_eq!(search.turn().unwrap(), Some(true));

    let (mut store, mut search) = self::search("ready$");
    store.write_all(b"\xff\x00 ready\r\nmore\n").unwrap();
    assert_eq!(search.turn().unwrap(), Some(true));
}

#[test]
fn what_was_there_before_the_start_does_not_count() {
    let (mut store, first) = search("ready");
    store.write_all(b"ready\n").unwrap();
    let mut second = Search::begin(first.store, Pattern::new("ready").unwrap(), 6);
    assert_eq!(second.turn().unwrap(), Some(false));
}

#[test]
fn a_flood_is_searched_in_turns_and_a_line_without_end_in_parts() {
    let (mut store, mut search) = search("needle");
    store.write_all(&vec![b'x'; 3 << 20]).unwrap();
    store.write_all(b"needle").unwrap();
    let mut turns = 0;
    let found = loop {
        turns += 1;
        if let Some(found) = search.turn().unwrap() {
            break found;
        }
        assert!(search.rest.len() <= 2 * LINE_MAX);
    };
    assert!(found && turns > 2, "{turns} turns");
}
