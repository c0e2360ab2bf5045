//! Ends of children: observed, then collected; stops; and the proof that nobody is left.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use lariat_sys::Errno;
use lariat_sys::identity::Identity;
use lariat_sys::process;
use lariat_sys::reap::{ChildEvent, Exit, has_children, peek, peek_exit, peek_stops, reap};
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{SpawnOptions, spawn};

use support::{Guard, eventually, shell};

#[test]
fn an_exit_is_observed_until_it_is_reaped() {
    let child = spawn(&shell("exit 42"), &SpawnOptions::default()).unwrap();
    child.pidfd.wait_exit(None).unwrap();
    let event = ChildEvent::Exited { pid: child.pid, exit: Exit::Code(42) };
    for _ in 0..3 {
        assert_eq!(peek(), Ok(Some(event)));
        assert_eq!(peek_exit(child.pid), Ok(Some(event)));
        assert!(has_children());
        assert_eq!(Identity::of(child.pid), Ok(Some(child.identity)), "the number is its own until then");
    }
    let (exit, _) = reap(child.pid).unwrap().unwrap();
    assert_eq!(exit, Exit::Code(42));
    assert!(!exit.is_success());
    assert_eq!(reap(child.pid), Err(Errno::CHILD));
    assert_eq!(peek_exit(child.pid), Err(Errno::CHILD));
    assert_eq!(peek_stops(child.pid), Err(Errno::CHILD));
    assert_eq!(peek(), Err(Errno::CHILD));
    assert!(!has_children());
}

#[test]
fn a_living_child_has_no_events() {
    let child = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
    assert_eq!(peek(), Ok(None));
    assert_eq!(peek_exit(child.pid()), Ok(None));
    assert_eq!(peek_stops(child.pid()), Ok(None));
    assert_eq!(reap(child.pid()), Ok(None));
    assert!(has_children());
}

#[test]
fn death_by_signal_is_told_from_exit() {
    for signal in [Signal::KILL, Signal::TERM, Signal::INT, Signal::PIPE, "RTMIN+3".parse().unwrap()] {
        let mut child = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
        child.signal(signal);
        child.child.pidfd.wait_exit(None).unwrap();
        let exit = Exit::Signal { signal, core: false };
        assert_eq!(peek(), Ok(Some(ChildEvent::Exited { pid: child.pid(), exit })));
        assert_eq!(child.exit(), exit);
    }
}

#[test]
fn the_kernels_own_signals_can_be_causes_of_death() {
    // 32 belongs to the C library, but nothing keeps others from sending it.
    let mut child = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
    child.signal(Signal::from_number(32).unwrap());
    assert_eq!(child.exit(), Exit::Signal { signal: Signal::from_number(32).unwrap(), core: false });
}

#[test]
fn stops_are_told_once() {
    let mut child = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
    let pid = child.pid();
    child.signal(Signal::STOP);
    let mut event = None;
    eventually("it is stopped", || {
        event = peek_stops(pid).unwrap();
        event.is_some()
    });
    assert_eq!(event, Some(ChildEvent::Stopped { pid, signal: Signal::STOP }));
    assert_eq!(peek_stops(pid), Ok(None));
    assert_eq!(peek(), Ok(None), "a stop is no exit");
    child.signal(Signal::CONT);
    eventually("it goes on", || {
        event = peek_stops(pid).unwrap();
        event.is_some()
    });
    assert_eq!(event, Some(ChildEvent::Continued { pid }));
    assert_eq!(peek_stops(pid), Ok(None));
    child.signal(Signal::KILL);
    child.child.pidfd.wait_exit(None).unwrap();
    assert_eq!(peek_stops(pid), Err(Errno::CHILD), "a zombie neither stops nor goes on");
    child.exit();
}

#[test]
fn numbers_that_mean_many_are_refused() {
    let _child = Guard::start(&shell("exit 0"), &SpawnOptions::default());
    for pid in [0, -1, i32::MIN] {
        assert_eq!(reap(pid), Err(Errno::CHILD));
        assert_eq!(peek_exit(pid), Err(Errno::CHILD));
        assert_eq!(peek_stops(pid), Err(Errno::CHILD));
    }
}

#[test]
fn usage_is_of_the_child() {
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
    let child = spawn(&shell(script), &SpawnOptions::default()).unwrap();
    child.pidfd.wait_exit(None).unwrap();
    let (_, usage) = reap(child.pid).unwrap().unwrap();
    assert!(usage.user.as_millis() > 5, "{usage:?}");
    assert!((100..1 << 20).contains(&usage.max_rss_kib), "{usage:?}");
}

/// The rule that all of lariat rests on: a subreaper without children has no descendants.
#[test]
fn echild_proves_that_nobody_is_left() {
    process::set_subreaper(true).unwrap();
    // Daemons of daemons, each in a session of its own, whose parents are gone at once.
    let script = "for i in 1 2 3; do setsid sh -c 'setsid sleep 1000 & exit' & done; exit 0";
    let leader =
        spawn(&shell(script), &SpawnOptions { new_session: true, ..SpawnOptions::default() }).unwrap();
    leader.pidfd.wait_exit(None).unwrap();
    reap(leader.pid).unwrap().unwrap();
    let sleepers = || {
        let mut found = Vec::new();
        lariat_sys::tree::walk(process::pid(), &[], &mut found).unwrap();
        found.iter().filter(|stat| stat.comm.as_bytes() == b"sleep" && stat.ppid == process::pid()).count()
    };
    eventually("three daemons were adopted", || {
        // Those in between are ours to reap.
        while let Ok(Some(ChildEvent::Exited { pid, .. })) = peek() {
            reap(pid).unwrap();
        }
        sleepers() == 3
    });
    assert!(has_children());
    support::end_descendants();
    assert_eq!(peek(), Err(Errno::CHILD));
}
