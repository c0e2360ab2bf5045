//! The network as a test sees it: loopback only, no name look-ups, no crate of lariat.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// Below the range from which the kernel takes ports for outgoing connections, so nobody gets them by chance.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// How long one network operation may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A port that no other test uses while this value lives: a lock file says so.
#[derive(Debug)]
pub struct Port {
    /// Its number.
    pub number: u16,
    _claim: File,
}

impl Port {
    /// Claims a port on which nobody listens.
    ///
    /// # Panics
    /// When none of ten thousand is free.
    #[must_use]
    pub fn claim() -> Self {
        // One for each user: nobody can lock the files of another.
        let name = format!("lariat-test-ports-{}", rustix::process::geteuid().as_raw());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).expect("the temporary directory is writable");
        let start = std::process::id() % u32::from(PORTS.end - PORTS.start);
        let start = u16::try_from(start).unwrap_or(0);
        for offset in 0..PORTS.end - PORTS.start {
            let number = PORTS.start + (start.wrapping_mul(7) + offset) % (PORTS.end - PORTS.start);
            let Ok(claim) = File::create(dir.join(number.to_string())) else { continue };
            let is_ours = flock(&claim, FlockOperation::NonBlockingLockExclusive).is_ok();
            if is_ours && is_free(number) {
                return Self { number, _claim: claim };
            }
        }
        panic!("no port is free in {PORTS:?}")
    }
}

/// Returns whether nobody listens on this TCP port, by binding it and by the kernel's tables.
#[must_use]
pub fn is_free(port: u16) -> bool {
    let can_bind = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
    can_bind && !listened().contains(&port)
}

/// Returns all TCP ports somebody listens on, v4 and v6, by `/proc/net`.
#[must_use]
pub fn listened() -> BTreeSet<u16> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next()?, fields.nth(1)?);
            let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
            (state == "0A").then_some(port)
        })
        .collect()
}

/// Connects to a port of this machine.
#[must_use]
pub fn connect(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.set_write_timeout(Some(LIMIT)).ok()?;
    Some(stream)
}

/// Gets `path` by HTTP; returns status and body, or `None` when there was no whole answer.
#[must_use]
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = connect(port)?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
