//! Ports: a free one, and who has one.
//!
//! Only listeners count: a connection that goes out from a port, or one that is closing, holds nothing that a server
//! needs. What this module does not do: end whoever holds a port.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use lariat_sys::identity::Identity;
use lariat_sys::procfs;
use lariat_sys::{Errno, ports};

use lariat_sys::ports::Listener;
pub use lariat_sys::ports::Proto;

use crate::process::{Mark, age_of, command_of};

/// How many ports are tried before none is found.
const TRIES_MAX: usize = 256;

/// Why nothing can be said of a port, or no port is found.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The kernel does not say who listens.
    #[error("could not list the listening sockets: {0}")]
    List(#[source] Errno),
    /// No socket can be bound on loopback.
    #[error("could not bind a port on 127.0.0.1: {0}")]
    Bind(#[source] io::Error),
    /// All ports that the kernel offered are taken in some way.
    #[error("no free port found in {TRIES_MAX} tries")]
    NoneFree,
}

/// A socket that listens on a port, and who has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The protocol.
    pub proto: Proto,
    /// The address and port it listens on.
    pub addr: SocketAddr,
    /// The user who made the socket.
    pub uid: u32,
    /// The processes that have it open, the oldest first. Empty where they may not be looked into, or are in another pid
    /// namespace, or where the kernel itself listens.
    pub processes: Vec<HolderProcess>,
}

/// A process behind a listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HolderProcess {
    /// Who it is.
    pub identity: Identity,
    /// Its real user, if it could be read.
    pub uid: Option<u32>,
    /// Its command line, or its name in brackets where it has none; at most 512 bytes, for display.
    pub command: String,
    /// How long it has been running.
    pub age: Duration,
    /// The run and service that it belongs to, by its mark.
    pub mark: Option<Mark>,
}

impl HolderProcess {
    /// Returns the run it is of, if that may be believed: everybody may put any text into his own environment, so the mark
    /// counts for processes of `user` alone.
    #[must_use]
    pub fn run(&self, user: u32) -> Option<&str> {
        self.mark.as_ref().filter(|_| self.uid == Some(user)).map(|mark| mark.run.as_str())
    }
}

impl fmt::Display for Holder {
    /// Names who has the socket: the oldest of its processes, and the numbers of the others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.processes.split_first() else {
            return write!(f, "a process of user {} that may not be looked into", self.uid);
        };
        write!(f, "{} `{}`", first.identity.pid, first.command)?;
        match &first.mark {
            Some(Mark { run, service: Some(service), .. }) => {
                write!(f, ", service `{service}` of run {run}")?
            }
            Some(Mark { run, service: None, .. }) => write!(f, ", of run {run}")?,
            None => {}
        }
        let numbers: Vec<String> = others.iter().map(|other| other.identity.pid.to_string()).collect();
        if numbers.is_empty() { Ok(()) } else { write!(f, " (shared with {})", numbers.join(", ")) }
    }
}

/// Names all who listen, each once.
#[must_use]
pub fn in_words(holders: &[Holder]) -> String {
    let mut words: Vec<String> = holders.iter().map(Holder::to_string).collect();
    words.dedup();
    words.join(", ")
}

/// Returns all that listen on these ports, TCP and UDP, v4 and v6: one entry for each socket, by port.
///
/// Looks no further than needed: see [`lariat_sys::ports::find_holders`] for who may be left out.
///
/// # Errors
/// [`PortError::List`] when neither sock_diag nor `/proc/net` is there.
pub fn explain(ports: &BTreeSet<u16>) -> Result<Vec<Holder>, PortError> {
    explain_if(|listener| ports.contains(&listener.addr.port()))
}

/// Returns those of the ports that a TCP server cannot have, each with who listens there. Datagram sockets are in nobody's
/// way.
///
/// # Errors
/// As [`explain`].
pub fn explain_tcp(ports: &BTreeSet<u16>) -> Result<BTreeMap<u16, Vec<Holder>>, PortError> {
    let mut held: BTreeMap<u16, Vec<Holder>> = BTreeMap::new();
    let is_meant =
        |listener: &Listener| listener.proto == Proto::Tcp && ports.contains(&listener.addr.port());
    for holder in if ports.is_empty() { Vec::new() } else { explain_if(is_meant)? } {
        held.entry(holder.addr.port()).or_default().push(holder);
    }
    Ok(held)
}

fn explain_if(is_meant: impl Fn(&Listener) -> bool) -> Result<Vec<Holder>, PortError> {
    let list = || -> Result<Vec<Listener>, PortError> {
        let mut listeners = ports::listeners().map_err(PortError::List)?;
        listeners.retain(&is_meant);
        Ok(listeners)
    };
    let mut listeners = list()?;
    let inodes: Vec<u64> = listeners.iter().map(|listener| listener.inode).collect();
    let held = if inodes.is_empty() { Vec::new() } else { ports::find_holders(&inodes) };
    let mut known: BTreeMap<i32, Option<HolderProcess>> = BTreeMap::new();
    for (_, pid) in &held {
        known.entry(*pid).or_insert_with(|| describe(*pid));
    }
    let processes = |listener: &Listener| -> Vec<HolderProcess> {
        let pids = held.iter().filter(|(inode, _)| *inode == listener.inode).map(|(_, pid)| pid);
        let mut processes: Vec<HolderProcess> =
            pids.filter_map(|pid| known.get(pid).cloned().flatten()).collect();
        processes.sort_by_key(|process| (process.identity.start, process.identity.pid));
        processes
    };
    if listeners.iter().any(|listener| processes(listener).is_empty()) {
        // Whoever closed it meanwhile is no unknown holder.
        let now: BTreeSet<u64> = list()?.iter().map(|listener| listener.inode).collect();
        listeners.retain(|listener| now.contains(&listener.inode));
    }
    listeners.sort_unstable_by_key(|listener| (listener.addr.port(), *listener));
    let holder = |listener: &Listener| {
        let Listener { proto, addr, uid, .. } = *listener;
        Holder { proto, addr, uid, processes: processes(listener) }
    };
    Ok(listeners.iter().map(holder).collect())
}

/// Says whether nobody listens on a TCP port, at whatever address.
///
/// # Errors
/// As [`explain`].
pub fn is_free(port: u16) -> Result<bool, PortError> {
    let listeners = ports::listeners().map_err(PortError::List)?;
    Ok(!listeners.iter().any(|listener| listener.proto == Proto::Tcp && listener.addr.port() == port))
}

/// Finds a port above 1023 that is free on both loopback addresses, has no listener at any other, and is not in `taken`.
///
/// It is not reserved: between this call and the service's own bind, another program may take it. Two calls may give
/// the same one unless the first is in `taken`.
///
/// # Errors
/// [`PortError`] when none is found, or the kernel does not say.
pub fn pick(taken: &BTreeSet<u16>) -> Result<u16, PortError> {
    // Those that were refused stay bound until the end, so that the kernel offers others.
    let mut refused = Vec::new();
    for _ in 0..TRIES_MAX {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(PortError::Bind)?;
        let port = listener.local_addr().map_err(PortError::Bind)?.port();
        let is_free_on_v6 = match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::AddrInUse,
        };
        let v4 = listener.local_addr().map_err(PortError::Bind)?;
        drop(listener);
        if is_free_on_v6 && !taken.contains(&port) && is_free(port)? {
            return Ok(port);
        }
        refused.extend(TcpListener::bind(v4));
    }
    Err(PortError::NoneFree)
}

fn describe(pid: i32) -> Option<HolderProcess> {
    let stat = procfs::read_stat(pid).ok().flatten()?;
    let identity = stat.identity();
    let command = command_of(pid, &stat.comm.to_string());
    let (age, uid, mark) = (age_of(identity), procfs::uid(pid).ok().flatten(), Mark::of(pid));
    Some(HolderProcess { identity, uid, command, age, mark })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpStream, UdpSocket};

    fn only(port: u16) -> BTreeSet<u16> {
        BTreeSet::from([port])
    }

    #[test]
    fn a_listener_is_explained_and_a_connection_is_none() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                eprintln!("SKIP: {address} cannot be bound here");
                continue;
            };
            let addr = listener.local_addr().unwrap();
            let client =
                TcpStream::connect((if addr.is_ipv6() { "::1" } else { "127.0.0.1" }, addr.port())).unwrap();
            let holders = explain(&only(addr.port())).unwrap();
            let [holder] = &holders[..] else { panic!("{holders:?}") };
            assert_eq!((holder.proto, holder.addr), (Proto::Tcp, addr));
            let [process] = &holder.processes[..] else { panic!("{holder:?}") };
            assert_eq!(process.identity, Identity::current());
            assert_eq!(process.uid, Some(lariat_sys::process::effective_user()));
            assert!(process.command.contains("lariat"), "{}", process.command);
            assert!(process.age < Duration::from_secs(86_400));
            assert!(!is_free(addr.port()).unwrap());
            assert_eq!(explain_tcp(&only(addr.port())).unwrap()[&addr.port()][0].addr, addr);
            assert!(explain(&only(client.local_addr().unwrap().port())).unwrap().is_empty());
        }
    }

    #[test]
    fn a_datagram_socket_is_explained_and_in_no_servers_way() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let holders = explain(&only(port)).unwrap();
        let is_known = |holder: &Holder| holder.proto == Proto::Udp && !holder.processes.is_empty();
        assert!(holders.iter().any(is_known), "{holders:?}");
        assert!(explain_tcp(&only(port)).unwrap().is_empty());
    }

    #[test]
    fn several_ports_are_explained_in_one_look_and_in_order() {
        let mut open: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        open.sort_by_key(|listener| listener.local_addr().unwrap().port());
        let ports: BTreeSet<u16> =
            open.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let found: Vec<u16> = explain(&ports).unwrap().iter().map(|holder| holder.addr.port()).collect();
        assert!(found.iter().eq(&ports), "{found:?} for {ports:?}");
        assert!(explain(&BTreeSet::new()).unwrap().is_empty());
    }

    #[test]
    fn holders_read_well() {
        let process = |pid, mark| HolderProcess {
            identity: Identity::new(pid, 1),
            uid: Some(7),
            command: "serve --port 80".into(),
            age: Duration::ZERO,
            mark,
        };
        let holder =
            |processes| Holder { proto: Proto::Tcp, addr: "[::]:80".parse().unwrap(), uid: 7, processes };
        let mark = |service: Option<&str>| {
            Some(Mark { run: "r".into(), service: service.map(str::to_owned), ..Mark::default() })
        };
        let table = [
            (vec![], "a process of user 7 that may not be looked into"),
            (vec![process(4, None)], "4 `serve --port 80`"),
            (vec![process(4, mark(None))], "4 `serve --port 80`, of run r"),
            (vec![process(4, mark(Some("web")))], "4 `serve --port 80`, service `web` of run r"),
            (
                vec![process(4, None), process(5, None), process(6, None)],
                "4 `serve --port 80` (shared with 5, 6)",
            ),
        ];
        for (processes, words) in table {
            assert_eq!(holder(processes).to_string(), words);
        }
        assert_eq!(
            in_words(&[holder(vec![process(4, None)]), holder(vec![process(4, None)])]),
            "4 `serve --port 80`"
        );
        let marked = process(4, mark(None));
        assert_eq!((marked.run(7), marked.run(8)), (Some("r"), None), "another user's mark is not believed");
    }

    #[test]
    fn picked_ports_are_free_and_not_taken() {
        let mut taken = BTreeSet::new();
        for _ in 0..50 {
            let port = pick(&taken).unwrap();
            assert!(port >= 1024 && taken.insert(port));
        }
        let port = pick(&taken).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        taken.insert(port);
        assert!(!is_free(port).unwrap() && explain_tcp(&taken).unwrap().contains_key(&port));
        drop(listener);
    }
}
