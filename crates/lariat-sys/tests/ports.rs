//! The kernel's two ways to name listeners agree, and holders are found.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use lariat_sys::ports::{Listener, Proto, holders, listeners, listeners_by_diag, listeners_by_proc};
use lariat_sys::spawn::SpawnOptions;

use support::{Guard, eventually, shell, skip};

/// Opens a listener of each kind on loopback, v6 where this machine has it.
fn open_all() -> Vec<(Proto, SocketAddr, OwnedFd)> {
    let mut open = Vec::new();
    for host in ["127.0.0.1:0", "[::1]:0", "[::]:0", "0.0.0.0:0"] {
        if host.starts_with("[") && fs::read("/proc/net/if_inet6").unwrap_or_default().is_empty() {
            skip(&format!("{host}: no IPv6 on this machine"));
            continue;
        }
        let tcp = TcpListener::bind(host).unwrap();
        open.push((Proto::Tcp, tcp.local_addr().unwrap(), OwnedFd::from(tcp)));
        let udp = UdpSocket::bind(host).unwrap();
        open.push((Proto::Udp, udp.local_addr().unwrap(), OwnedFd::from(udp)));
    }
    open
}

fn inode(socket: &OwnedFd) -> u64 {
    fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino()
}

#[test]
fn both_ways_find_each_kind() {
    let open = open_all();
    assert!(open.len() >= 4);
    for (name, found) in [
        ("diag", listeners_by_diag().unwrap()),
        ("proc", listeners_by_proc().unwrap()),
        ("either", listeners().unwrap()),
    ] {
        for (proto, addr, socket) in &open {
            let uid = lariat_sys::process::effective_user();
            let expected = Listener { proto: *proto, addr: *addr, inode: inode(socket), uid };
            assert!(found.contains(&expected), "{name} has no {expected:?}");
        }
    }
}

#[test]
fn both_ways_agree_on_the_whole_machine() {
    let _open = open_all();
    // Others come and go between the two listings, so one agreement among several is enough.
    eventually("both agree", || {
        let diag: BTreeSet<_> = listeners_by_diag().unwrap().into_iter().collect();
        let proc: BTreeSet<_> = listeners_by_proc().unwrap().into_iter().collect();
        !diag.is_empty() && diag == proc
    });
}

#[test]
fn connections_are_no_listeners() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    connected.connect("127.0.0.1:9").unwrap();
    let sockets = [OwnedFd::from(client), OwnedFd::from(server), OwnedFd::from(connected)];
    for found in [listeners_by_diag().unwrap(), listeners_by_proc().unwrap()] {
        for socket in &sockets {
            assert!(found.iter().all(|listener| listener.inode != inode(socket)));
        }
    }
}

#[test]
fn a_port_is_gone_once_it_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    assert!(listeners().unwrap().iter().any(|found| found.addr == addr));
    drop(listener);
    assert!(!listeners().unwrap().iter().any(|found| found.addr == addr));
}

#[test]
fn holders_are_all_who_have_it_open() {
    let socket = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let other = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let options = SpawnOptions {
        fds: vec![(socket.as_raw_fd(), 4), (socket.as_raw_fd(), 5)],
        ..SpawnOptions::default()
    };
    let child = Guard::start(&shell("exec sleep 1000"), &options);
    let own = lariat_sys::process::pid();
    let inodes = [inode(&other), inode(&socket), u64::MAX];
    let mut expected = vec![(inode(&socket), own), (inode(&socket), child.pid()), (inode(&other), own)];
    expected.sort_unstable();
    assert_eq!(holders(&inodes, None), expected);
    assert_eq!(holders(&inodes, Some(&[child.pid(), i32::MAX, 0, -1])), [(inode(&socket), child.pid())]);
    assert_eq!(holders(&[], None), []);
    assert_eq!(holders(&inodes, Some(&[])), []);
}
