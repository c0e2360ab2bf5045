//! The kernel's two ways to name listeners agree, and holders are found.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use lariat_sys::ports::{
    Listener, Proto, find_holders, holders, listeners, listeners_by_diag, listeners_by_proc,
};
use lariat_sys::procfs::{self, State};
use lariat_sys::spawn::SpawnOptions;
use lariat_sys::{process, tree};

use support::{Guard, end_descendants, eventually, fixture, shell, skip};

fixtures!(main_thread_ends);

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

/// A process is looked through until all that is wanted was seen: a socket that it has twice is one of them.
#[test]
fn a_socket_that_is_open_twice_hides_no_other() {
    let open = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let (first, second) = (open(), open());
    let [one, other] = [&first, &second].map(AsRawFd::as_raw_fd);
    let options =
        SpawnOptions { fds: vec![(one, 4), (one, 5), (other, 6), (one, 7)], ..SpawnOptions::default() };
    let child = Guard::start(&shell("exec sleep 1000"), &options);
    let mut expected = vec![(inode(&first), child.pid()), (inode(&second), child.pid())];
    expected.sort_unstable();
    assert_eq!(holders(&[inode(&first), inode(&second)], Some(&[child.pid()])), expected);
    assert_eq!(holders(&[inode(&second)], Some(&[child.pid()])), [(inode(&second), child.pid())]);
}

/// A listener that a script gets as descriptor 4, and nobody else has.
fn give_away(script: &str) -> (u64, Guard) {
    let socket = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let options = SpawnOptions { fds: vec![(socket.as_raw_fd(), 4)], ..SpawnOptions::default() };
    (inode(&socket), Guard::start(&shell(script), &options))
}

/// Waits until so many have the socket, by the complete search, and checks that the short one finds all of them.
#[track_caller]
fn expect_all_found(inode: u64, count: usize) {
    // A child has what its parent has until it closes it, so there may be more for a moment.
    eventually("both find all", || {
        let all = holders(&[inode], None);
        all.len() == count && find_holders(&[inode]) == all
    });
}

#[test]
fn the_short_search_finds_one_that_is_alone() {
    let (inode, child) = give_away("exec sleep 1000");
    expect_all_found(inode, 1);
    assert_eq!(find_holders(&[inode]), [(inode, child.pid())]);
    assert_eq!(find_holders(&[]), []);
}

#[test]
fn the_short_search_finds_parents_brothers_and_grandchildren() {
    process::set_subreaper(true).unwrap();
    let (inode, _child) = give_away("sleep 1000 & (sleep 1000 & sleep 1000; :) & wait");
    // The shell, its sleep, the shell between, and that one's two.
    expect_all_found(inode, 5);
    end_descendants();
}

#[test]
fn the_short_search_finds_heirs_of_one_that_has_closed_it() {
    process::set_subreaper(true).unwrap();
    let (inode, _child) = give_away("sh -c 'sleep 1000 & exec 4>&-; sleep 1000 & wait' & wait");
    expect_all_found(inode, 2);
    end_descendants();
}

#[test]
fn the_short_search_finds_the_server_beside_its_daemon() {
    process::set_subreaper(true).unwrap();
    let (inode, child) = give_away("(setsid sleep 1000 &); exec sleep 1000");
    // Two have it for a moment before the daemon is one: the shell, and the one that makes the daemon.
    eventually("the daemon is an orphan of ours", || {
        let found = holders(&[inode], None);
        let other = found.iter().map(|(_, pid)| *pid).find(|pid| *pid != child.pid());
        let stat = other.and_then(|pid| procfs::read_stat(pid).ok().flatten());
        found.len() == 2 && stat.is_some_and(|stat| stat.ppid == process::pid())
    });
    expect_all_found(inode, 2);
    end_descendants();
}

#[test]
fn the_short_search_finds_the_holder_below_a_crowd() {
    process::set_subreaper(true).unwrap();
    let crowd =
        Guard::start(&shell("for i in $(seq 100); do sleep 1000 & done; wait"), &SpawnOptions::default());
    let count = || {
        let mut members = Vec::new();
        tree::children(crowd.pid(), &mut members).unwrap();
        members.len()
    };
    eventually("the crowd is there", || count() == 100);
    let (inode, _child) =
        give_away("sleep 1000 & exec 4>&-; for i in $(seq 100); do sleep 1000 & done; wait");
    expect_all_found(inode, 1);
    end_descendants();
}

/// Its main thread ends; another one waits for ever.
fn main_thread_ends(_: std::ffi::c_int, _: *const *const std::ffi::c_char) -> u8 {
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
    // SAFETY: the call ends the calling thread alone; it takes an integer.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!()
}

#[test]
fn a_holder_without_its_main_thread_is_found() {
    let socket = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let options = SpawnOptions { fds: vec![(socket.as_raw_fd(), 4)], ..SpawnOptions::default() };
    let child = Guard::start(&fixture("main_thread_ends", &[]), &options);
    let inode = inode(&socket);
    drop(socket);
    let state = || procfs::read_stat(child.pid()).unwrap().unwrap().state;
    eventually("the main thread is a zombie", || state() == State::Zombie);
    assert_eq!(holders(&[inode], None), [(inode, child.pid())]);
    assert_eq!(find_holders(&[inode]), [(inode, child.pid())]);
}
