//! Masks, dispositions, the signal descriptor, and dying and stopping as the kernel would have it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::ffi::{c_char, c_int};
use std::io::BufRead;
use std::os::fd::AsRawFd;
use std::time::Instant;

use lariat_sys::Errno;
use lariat_sys::poll::{PollFd, PollFlags, poll};
use lariat_sys::procfs;
use lariat_sys::reap::{ChildEvent, Exit, peek_stops};
use lariat_sys::signal::{
    Signal, SignalFd, SignalSet, block, disposition_is_ignored, ignored, mask, raise_to_death, set_default,
    set_ignored, set_mask, stop_self,
};
use lariat_sys::spawn::SpawnOptions;

use support::{Guard, PATIENCE, eventually, fixture, say};

fixtures!(dies_of, receives, stops);

/// Dies of the signal that its argument names, although it blocks and ignores everything.
fn dies_of(_: c_int, _: *const *const c_char) -> u8 {
    let signal: Signal = std::env::args().nth(1).unwrap().parse().unwrap();
    set_mask(SignalSet::full());
    let _ = set_ignored(signal);
    raise_to_death(signal)
}

/// Tells of each INT and TERM whether it was typed; opens the terminal that its argument names, so that it is ours.
fn receives(_: c_int, _: *const *const c_char) -> u8 {
    let terminal = std::env::args().nth(1).unwrap();
    let _terminal = std::fs::File::options().read(true).write(true).open(terminal).unwrap();
    let wanted = SignalSet::empty().with(Signal::INT).with(Signal::TERM);
    block(wanted);
    let queue = SignalFd::new(wanted).unwrap();
    assert_eq!(queue.read(), Ok(None));
    say("ready");
    for _ in 0..2 {
        poll(&mut [PollFd::new(&queue, PollFlags::IN)], Some(Instant::now() + PATIENCE)).unwrap();
        let received = queue.read().unwrap().unwrap();
        say(&format!("{} {} {}", received.signal, received.is_typed, received.sender_pid));
    }
    0
}

/// Stops by TSTP although it blocks and ignores it, and tells whether both are so again.
fn stops(_: c_int, _: *const *const c_char) -> u8 {
    block(SignalSet::empty().with(Signal::TSTP));
    set_ignored(Signal::TSTP).unwrap();
    stop_self(Signal::TSTP).unwrap();
    u8::from(mask().contains(Signal::TSTP)) + 2 * u8::from(disposition_is_ignored(Signal::TSTP))
}

fn exit_of_death_by(signal: &str) -> Exit {
    Guard::start(&fixture("dies_of", &[signal]), &SpawnOptions::default()).exit()
}

#[test]
fn death_is_by_the_signal_and_without_a_core() {
    for signal in
        [Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP, Signal::SEGV, Signal::KILL, Signal::PIPE]
    {
        assert_eq!(exit_of_death_by(&signal.to_string()), Exit::Signal { signal, core: false });
    }
}

#[test]
fn a_signal_that_does_not_kill_ends_by_its_code() {
    assert_eq!(exit_of_death_by("CHLD"), Exit::Code(128 + 17));
    assert_eq!(exit_of_death_by("WINCH"), Exit::Code(128 + 28));
}

#[test]
fn stopping_restores_mask_and_disposition() {
    // A group of its own in our session is not orphaned, so the kernel does stop it.
    let options = SpawnOptions { new_group: true, ..SpawnOptions::default() };
    let mut child = Guard::start(&fixture("stops", &[]), &options);
    let mut event = None;
    eventually("it stops or ends", || {
        event = peek_stops(child.pid()).unwrap_or(None);
        event.is_some() || child.child.pidfd.has_exited().unwrap()
    });
    assert_eq!(event, Some(ChildEvent::Stopped { pid: child.pid(), signal: Signal::TSTP }));
    child.signal(Signal::CONT);
    assert_eq!(child.exit(), Exit::Code(3));
    assert_eq!(stop_self(Signal::TERM), Err(Errno::INVAL));
}

#[test]
fn stopping_an_orphaned_group_returns() {
    let options = SpawnOptions { new_session: true, ..SpawnOptions::default() };
    assert_eq!(Guard::start(&fixture("stops", &[]), &options).exit(), Exit::Code(3));
}

/// What `run` decides by: Ctrl-C on the terminal, or somebody's kill.
#[test]
fn typed_and_sent_signals_are_told_apart() {
    let master =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let terminal = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let (read, write) = lariat_sys::files::pipe(0).unwrap();
    let options =
        SpawnOptions { new_session: true, fds: vec![(write.as_raw_fd(), 1)], ..SpawnOptions::default() };
    let mut child = Guard::start(&fixture("receives", &[terminal.to_str().unwrap()]), &options);
    drop(write);
    let mut lines = std::io::BufReader::new(std::fs::File::from(read)).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    rustix::io::write(&master, b"\x03").unwrap();
    assert_eq!(lines.next().as_deref(), Some("INT true 0"));
    child.signal(Signal::TERM);
    assert_eq!(lines.next(), Some(format!("TERM false {}", std::process::id())));
    assert_eq!(child.exit(), Exit::Code(0));
}

#[test]
fn masks_are_as_the_kernel_shows_them() {
    let before = mask();
    let wanted = SignalSet::empty().with(Signal::TERM).with(Signal::USR1);
    assert_eq!(block(wanted), before);
    assert_eq!(mask().bits(), before.bits() | wanted.bits());
    assert_eq!(set_mask(before).bits(), before.bits() | wanted.bits());
    assert_eq!(mask(), before);
    // What the C library needs for itself is never blocked by us.
    set_mask(SignalSet::full());
    for number in [32, 33, 9, 19] {
        assert!(!mask().contains(Signal::from_number(number).unwrap()), "{number}");
    }
    set_mask(before);
}

#[test]
fn dispositions_are_as_the_kernel_shows_them() {
    assert!(!disposition_is_ignored(Signal::USR2));
    set_ignored(Signal::USR2).unwrap();
    assert!(disposition_is_ignored(Signal::USR2));
    assert!(ignored().contains(Signal::USR2));
    let shown = procfs::signal_sets(lariat_sys::process::pid()).unwrap().unwrap();
    assert_eq!(shown.ignored, ignored());
    set_default(Signal::USR2).unwrap();
    assert!(!disposition_is_ignored(Signal::USR2));
    for signal in [Signal::KILL, Signal::STOP] {
        assert_eq!(set_ignored(signal), Err(Errno::INVAL));
        assert!(!disposition_is_ignored(signal));
    }
}

#[test]
fn a_set_knows_its_members() {
    let set: SignalSet = [Signal::HUP, Signal::from_number(64).unwrap()].into_iter().collect();
    assert_eq!(set.bits(), 1 | 1 << 63);
    assert_eq!(set.iter().map(Signal::number).collect::<Vec<_>>(), [1, 64]);
    assert_eq!(set.without(Signal::HUP).with(Signal::HUP), set);
    assert!(SignalSet::default().is_empty() && SignalSet::empty().iter().next().is_none());
    assert_eq!(SignalSet::full().iter().count(), 64);
}
