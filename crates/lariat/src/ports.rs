//! Ports: a free one, and who has one.
//!
//! Only listeners count: a connection that goes out from a port, or one that is closing, holds nothing that a server
//! needs. What this module does not do: end whoever holds a port.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use lariat_sys::identity::Identity;
use lariat_sys::procfs;
use lariat_sys::{Errno, ports};

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

/// Who listens on a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The protocol.
    pub proto: Proto,
    /// The address and port it listens on.
    pub addr: SocketAddr,
    /// The user who made the socket.
    pub uid: u32,
    /// The process that has it open; `None` for one that we may not look into, or in another pid namespace.
    pub process: Option<HolderProcess>,
}

/// The process behind a listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HolderProcess {
    /// Who it is.
    pub identity: Identity,
    /// Its command line, or its name in brackets where it has none; at most 512 bytes, for display.
    pub command: String,
    /// How long it has been running.
    pub age: Duration,
    /// The run and service that it belongs to, by its mark.
    pub mark: Option<Mark>,
}

/// Returns all that listen on a port, TCP and UDP, v4 and v6: one entry for each socket and process that has it open.
///
/// # Errors
/// [`PortError::List`] when neither sock_diag nor `/proc/net` is there.
pub fn explain(port: u16) -> Result<Vec<Holder>, PortError> {
    let mut listeners = ports::listeners().map_err(PortError::List)?;
    listeners.retain(|listener| listener.addr.port() == port);
    listeners.sort_unstable();
    let inodes: Vec<u64> = listeners.iter().map(|listener| listener.inode).collect();
    let held = ports::holders(&inodes, None);
    let mut holders = Vec::new();
    for listener in listeners {
        let (proto, addr, uid) = (listener.proto, listener.addr, listener.uid);
        let pids = held.iter().filter(|(inode, _)| *inode == listener.inode).map(|(_, pid)| *pid);
        let known: Vec<HolderProcess> = pids.filter_map(describe).collect();
        if known.is_empty() {
            holders.push(Holder { proto, addr, uid, process: None });
        }
        holders.extend(known.into_iter().map(|process| Holder { proto, addr, uid, process: Some(process) }));
    }
    Ok(holders)
}

/// Says whether nobody listens on a TCP port, at whatever address.
///
/// # Errors
/// As [`explain`].
pub fn is_free(port: u16) -> Result<bool, PortError> {
    Ok(held_of(&BTreeSet::from([port]))?.is_empty())
}

/// Returns those of the given ports on which somebody listens by TCP. One look for all, so it is cheap for many.
///
/// # Errors
/// As [`explain`].
pub fn held_of(ports: &BTreeSet<u16>) -> Result<BTreeSet<u16>, PortError> {
    let listeners = ports::listeners().map_err(PortError::List)?;
    let tcp = listeners.iter().filter(|listener| listener.proto == Proto::Tcp);
    Ok(tcp.map(|listener| listener.addr.port()).filter(|port| ports.contains(port)).collect())
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
    Some(HolderProcess { identity, command, age: age_of(identity), mark: Mark::of(pid) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_listener_is_explained_and_a_connection_is_none() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                eprintln!("SKIP: {address} cannot be bound here");
                continue;
            };
            let addr = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(addr).unwrap();
            let holders = explain(addr.port()).unwrap();
            let [holder] = &holders[..] else { panic!("{holders:?}") };
            assert_eq!((holder.proto, holder.addr), (Proto::Tcp, addr));
            let process = holder.process.as_ref().unwrap();
            assert_eq!(process.identity, Identity::current());
            assert!(process.command.contains("lariat"), "{}", process.command);
            assert!(process.age < Duration::from_secs(86_400));
            assert!(!is_free(addr.port()).unwrap());
            assert!(explain(client.local_addr().unwrap().port()).unwrap().is_empty());
        }
    }

    #[test]
    fn a_datagram_socket_is_explained_and_leaves_the_tcp_port_free() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let holders = explain(port).unwrap();
        assert!(holders.iter().any(|h| h.proto == Proto::Udp && h.process.is_some()), "{holders:?}");
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
        assert_eq!(held_of(&taken).unwrap().contains(&port), !is_free(port).unwrap());
        drop(listener);
    }
}
