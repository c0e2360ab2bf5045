//! Messages arrive whole, ends are seen, last words survive.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::os::fd::AsFd;

use lariat_sys::files::set_nonblocking;
use lariat_sys::sockets::{peer_cred, recv, send, seqpacket_pair};
use lariat_sys::{Errno, process};

#[test]
fn messages_keep_their_borders() {
    let (here, there) = seqpacket_pair().unwrap();
    send(&here, b"one").unwrap();
    send(&here, b"and two").unwrap();
    let mut buffer = [0; 16];
    assert_eq!(recv(&there, &mut buffer), Ok(3));
    assert_eq!(&buffer[..3], b"one");
    assert_eq!(recv(&there, &mut buffer), Ok(7));
    set_nonblocking(&there, true).unwrap();
    assert_eq!(recv(&there, &mut buffer), Err(Errno::AGAIN));
    drop(here);
    assert_eq!(recv(&there, &mut buffer), Ok(0));
    assert_eq!(recv(&there, &mut buffer), Ok(0));
}

#[test]
fn a_message_that_does_not_fit_is_an_error() {
    let (here, there) = seqpacket_pair().unwrap();
    send(&here, b"too long").unwrap();
    send(&here, b"ok").unwrap();
    let mut buffer = [0; 4];
    assert_eq!(recv(&there, &mut buffer), Err(Errno::MSGSIZE));
    assert_eq!(recv(&there, &mut buffer), Ok(2));
    assert_eq!(send(&here, b""), Err(Errno::INVAL));
}

#[test]
fn sending_to_nobody_is_an_error_and_no_signal() {
    let (here, there) = seqpacket_pair().unwrap();
    lariat_sys::signal::set_default(lariat_sys::signal::Signal::PIPE).unwrap();
    drop(there);
    assert_eq!(send(&here, b"hello?"), Err(Errno::PIPE));
}

#[test]
fn a_full_queue_does_not_block_who_must_not() {
    let (here, _there) = seqpacket_pair().unwrap();
    set_nonblocking(&here, true).unwrap();
    let full = (0..1_000_000).find_map(|_| send(&here, &[7; 1000]).err());
    assert_eq!(full, Some(Errno::AGAIN));
}

/// HAZARD(reset-before-data): the peer wrote, left our message unread, and closed.
#[test]
fn last_words_survive_a_reset() {
    let (here, there) = seqpacket_pair().unwrap();
    send(&here, b"never read").unwrap();
    send(&there, b"last").unwrap();
    send(&there, b"words").unwrap();
    drop(there);
    let mut buffer = [0; 16];
    assert_eq!(recv(&here, &mut buffer), Ok(4));
    assert_eq!(&buffer[..4], b"last");
    assert_eq!(recv(&here, &mut buffer), Ok(5));
    assert_eq!(recv(&here, &mut buffer), Ok(0));
}

#[test]
fn the_peer_is_known() {
    let (here, _there) = seqpacket_pair().unwrap();
    let cred = peer_cred(&here).unwrap();
    assert_eq!((cred.pid, cred.uid), (process::pid(), process::effective_user()));
    let (file, _) = lariat_sys::files::pipe(0).unwrap();
    assert_eq!(peer_cred(&file), Err(Errno::NOTSOCK));
}

#[test]
fn sockets_are_close_on_exec() {
    let (here, there) = seqpacket_pair().unwrap();
    for socket in [&here, &there] {
        let flags = rustix::io::fcntl_getfd(socket.as_fd()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}
