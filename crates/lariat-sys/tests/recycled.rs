//! Numbers that really come back, by using up all numbers of a pid namespace: whoever wears the number of somebody whom
//! we remember is not signalled.
//!
//! Each guarantee has its negative control beside it: the number alone, or the number and the start, do reach the
//! stranger.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::collections::HashSet;

use lariat_sys::Errno;
use lariat_sys::identity::{Identity, boot_ticks};
use lariat_sys::pidfd::{PidFd, is_surely_gone};
use lariat_sys::reap::Exit;
use lariat_sys::signal::Signal;
use lariat_sys::spawn::SpawnOptions;
use lariat_testkit::numbers::{self, Numbers, Stranger};
use lariat_testkit::{PATIENCE, needs, wait_until};

use support::{Guard, eventually, shell};

/// Starts a process, and returns who it was after it was ended and reaped.
fn somebody_gone() -> Identity {
    let mut first = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
    let old = first.identity();
    assert!(old.is_alive() && !is_surely_gone(old));
    first.signal(Signal::KILL);
    assert_eq!(first.exit(), Exit::Signal { signal: Signal::KILL, core: false });
    // Whoever gets its number in the same tick is told from it by the inode alone, which is another test's matter.
    eventually("the next tick", || boot_ticks() > old.start);
    old
}

/// By every way that there is to reach a process, the stranger is not taken for the one who is gone.
fn is_nobody(old: Identity, stranger: &Stranger) {
    assert_eq!(PidFd::open(old).unwrap_err(), Errno::SRCH);
    assert!(!old.is_alive() && is_surely_gone(old));
    assert!(stranger.is_alive());
}

#[test]
fn a_number_that_came_round_names_nobody_we_knew() {
    numbers::inside("a_number_that_came_round_names_nobody_we_knew", |numbers| {
        for round in 0..20 {
            let old = somebody_gone();
            let stranger = numbers.stranger(old.pid, round % 2 == 0);
            is_nobody(old, &stranger);
            // Nor by its start alone, as on a kernel without pidfs.
            is_nobody(old.with_inode(None), &stranger);
            // The control: by its number alone, a signal reaches the stranger.
            let by_number = PidFd::open_pid(old.pid).unwrap();
            assert_eq!(by_number.signal(Signal::TERM), Ok(()));
            wait_until("the stranger's death", PATIENCE, || (!stranger.is_alive()).then_some(()));
        }
    });
}

/// Has a number change hands within one tick, and returns who had it and who has it.
fn within_a_tick(numbers: Numbers) -> (Identity, Stranger) {
    for _ in 0..200 {
        let mut first = Guard::start(&shell("exit 0"), &SpawnOptions::default());
        let old = first.identity();
        first.exit();
        if let Some(stranger) = numbers.stranger_at_once(old.pid, false)
            && stranger.seen.start == old.start
        {
            return (old, stranger);
        }
    }
    panic!("no number changed hands within a tick in 200 rounds");
}

#[test]
fn within_one_tick_only_the_inode_tells() {
    numbers::inside("within_one_tick_only_the_inode_tells", |numbers| {
        if Identity::current().inode().is_none() {
            return needs::skip("this kernel has no pidfs: within one tick nothing tells");
        }
        for _ in 0..100 {
            let (old, stranger) = within_a_tick(numbers);
            assert_eq!(Identity::of(old.pid).unwrap(), Some(old), "equal by pid and start");
            is_nobody(old, &stranger);
            let (_, new) = PidFd::of(old.pid).unwrap().unwrap();
            assert!(new == old && !new.is_same(&old) && old.is_same(&old.with_inode(None)));
        }
        // The control: with pid and start alone the stranger is opened, and a signal reaches it.
        let (old, stranger) = within_a_tick(numbers);
        let by_start = PidFd::open(old.with_inode(None)).unwrap();
        assert_eq!(by_start.signal(Signal::TERM), Ok(()));
        wait_until("the stranger's death", PATIENCE, || (!stranger.is_alive()).then_some(()));
    });
}

#[test]
fn a_descriptor_never_changes_hands() {
    numbers::inside("a_descriptor_never_changes_hands", |numbers| {
        let mut first = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
        let (held, who) = PidFd::of(first.pid()).unwrap().unwrap();
        assert!(held.has_number() && who.is_same(&first.identity()));
        first.signal(Signal::KILL);
        eventually("it is a zombie", || held.has_exited().unwrap());
        assert!(held.has_number(), "a zombie keeps its number");
        first.exit();
        let stranger = numbers.stranger(who.pid, true);
        assert!(!held.has_number());
        assert_eq!(held.signal(Signal::TERM), Err(Errno::SRCH));
        // The stranger leads a group of that number, which is another group.
        assert!(held.signal_group(Signal::TERM).is_err());
        assert!(stranger.is_alive());
    });
}

#[test]
fn inodes_are_given_out_once() {
    if Identity::current().inode().is_none() {
        return needs::skip("this kernel has no pidfs");
    }
    let mut seen = HashSet::new();
    for _ in 0..200 {
        let mut child = Guard::start(&shell("exit 0"), &SpawnOptions::default());
        let inode = child.child.pidfd.inode();
        assert_eq!(inode, child.identity().inode());
        assert_eq!(inode, PidFd::open_pid(child.pid()).unwrap().inode(), "every descriptor says the same");
        child.exit();
        assert_eq!(child.child.pidfd.inode(), inode, "and after its end");
        assert!(seen.insert(inode.unwrap()), "an inode came back");
    }
}
