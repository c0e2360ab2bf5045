//! What a process says about itself.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::ffi::{c_char, c_int};

use lariat_sys::process::{
    exit_now, fill_random, open_files_max, overwrite_argv, parent_pid, pid, remember_argv, set_comm,
    set_subreaper, setsid,
};
use lariat_sys::reap::{Exit, has_children, peek, reap};
use lariat_sys::spawn::{self, SpawnOptions};
use lariat_sys::{Errno, procfs};

use support::{eventually, fixture, output, say};

fixtures!(forks, renames);

/// Overwrites its arguments and shows what others see of them.
fn renames(argc: c_int, argv: *const *const c_char) -> u8 {
    assert!(!overwrite_argv("too early"));
    // SAFETY: the values are main's, and there is one thread.
    unsafe { remember_argv(argc, argv) };
    let environ = procfs::environ(pid()).unwrap().unwrap();
    let length = procfs::cmdline(pid()).unwrap().unwrap().len();
    for text in ["keeper:web", "", &"é".repeat(length), "keeper:db"] {
        assert!(overwrite_argv(text));
        let shown = procfs::cmdline(pid()).unwrap().unwrap();
        assert_eq!(shown.len(), length);
        let shown = std::str::from_utf8(&shown).unwrap().trim_end_matches('\0');
        assert!(
            text.starts_with(shown) && shown.len() + 2 >= text.len().min(length),
            "{text:?} became {shown:?}"
        );
        say(shown.get(..shown.len().min(10)).unwrap());
    }
    assert_eq!(procfs::environ(pid()).unwrap().unwrap(), environ, "the environment was hit");
    0
}

/// Forks: the child exits with 5, the parent with what it saw of it.
fn forks(_: c_int, _: *const *const c_char) -> u8 {
    let own = pid();
    // SAFETY: a fixture has one thread.
    match unsafe { spawn::fork() }.unwrap() {
        None => {
            exit_now(if parent_pid() == own { 5 } else { 6 });
        }
        Some(child) => {
            assert_eq!(child.identity.pid, child.pid);
            assert_eq!(child.pidfd.wait_exit(None), Ok(true));
            let (exit, _) = reap(child.pid).unwrap().unwrap();
            u8::from(exit == Exit::Code(5) && !has_children())
        }
    }
}

#[test]
fn arguments_are_overwritten_and_nothing_else() {
    let long = "x".repeat(100);
    let (text, exit) =
        output(&fixture("renames", &["pkill -f me", &long]), &SpawnOptions::default()).unwrap();
    assert_eq!(text, "keeper:web\n\nééééé\nkeeper:db\n");
    assert_eq!(exit, Exit::Code(0));
}

#[test]
fn without_remembered_arguments_nothing_is_overwritten() {
    let before = procfs::cmdline(pid()).unwrap();
    assert!(!overwrite_argv("x"));
    assert_eq!(procfs::cmdline(pid()).unwrap(), before);
}

#[test]
fn fork_returns_on_both_sides() {
    assert_eq!(output(&fixture("forks", &[]), &SpawnOptions::default()).unwrap().1, Exit::Code(1));
}

#[test]
fn the_name_is_cut_at_15_bytes_and_whole_characters() {
    for (name, shown) in [
        ("keeper:web", "keeper:web"),
        ("0123456789abcdef", "0123456789abcde"),
        ("0123456789abcdé", "0123456789abcd"),
        ("", ""),
    ] {
        set_comm(name).unwrap();
        let thread = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        assert_eq!(thread.trim_end_matches('\n'), shown);
    }
}

#[test]
fn a_subreaper_adopts_until_it_is_none() {
    set_subreaper(true).unwrap();
    // The one in between prints the sleeper's number and ends.
    let orphan = || -> i32 {
        let script = support::shell("sleep 1000 >/dev/null & echo $!");
        output(&script, &SpawnOptions::default()).unwrap().0.trim().parse().unwrap()
    };
    let adopted = orphan();
    assert_eq!(procfs::read_stat(adopted).unwrap().unwrap().ppid, pid());
    set_subreaper(false).unwrap();
    let lost = procfs::read_stat(orphan()).unwrap().unwrap();
    assert_ne!(lost.ppid, pid());
    lariat_sys::pidfd::PidFd::open(lost.identity())
        .unwrap()
        .signal(lariat_sys::signal::Signal::KILL)
        .unwrap();
    support::end_descendants();
    assert_eq!(peek(), Err(Errno::CHILD));
    eventually("the other one is gone", || !lost.identity().is_alive());
}

#[test]
fn a_session_is_started_once() {
    // The runner makes each test the leader of a group, and a leader cannot leave its group.
    let is_leader = procfs::read_stat(pid()).unwrap().unwrap().pgrp == pid();
    assert_eq!(setsid(), if is_leader { Err(Errno::PERM) } else { Ok(()) });
    assert_eq!(setsid(), Err(Errno::PERM));
}

#[test]
fn small_facts() {
    assert_eq!(pid(), std::process::id() as i32);
    assert_eq!(parent_pid(), procfs::read_stat(pid()).unwrap().unwrap().ppid);
    assert!(open_files_max().is_none_or(|max| max >= 16));
    let (mut one, mut other) = ([0; 300], [0; 300]);
    fill_random(&mut one).unwrap();
    fill_random(&mut other).unwrap();
    assert_ne!(one, other);
    fill_random(&mut []).unwrap();
}
