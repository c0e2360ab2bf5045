//! A number is no name: reuse, zombies, processes without their main thread.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::ffi::{c_char, c_int};

use lariat_sys::Errno;
use lariat_sys::identity::{Identity, boot_ticks};
use lariat_sys::pidfd::PidFd;
use lariat_sys::procfs::{self, State};
use lariat_sys::reap::{self, Exit};
use lariat_sys::signal::Signal;
use lariat_sys::spawn::SpawnOptions;

use support::{Guard, eventually, fixture, shell, skip};

fixtures!(main_thread_ends);

/// Its main thread ends; another one waits for ever.
fn main_thread_ends(_: c_int, _: *const *const c_char) -> u8 {
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
fn another_start_is_nobody() {
    let mut child = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
    let other = Identity::new(child.pid(), child.identity().start + 1);
    assert_eq!(PidFd::open(other).unwrap_err(), Errno::SRCH);
    assert!(!other.is_alive());
    assert!(child.identity().is_alive());
    PidFd::open(child.identity()).unwrap().signal(Signal::TERM).unwrap();
    assert_eq!(child.exit(), Exit::Signal { signal: Signal::TERM, core: false });
    assert_eq!(PidFd::open(child.identity()).unwrap_err(), Errno::SRCH);
    assert_eq!(child.child.pidfd.signal(Signal::TERM), Err(Errno::SRCH), "a reaped process was signalled");
}

#[test]
fn a_zombie_has_an_identity_and_no_life() {
    let mut child = Guard::start(&shell("exit 0"), &SpawnOptions::default());
    assert_eq!(child.child.pidfd.wait_exit(None), Ok(true));
    assert_eq!(Identity::of(child.pid()), Ok(Some(child.identity())));
    assert!(!child.identity().is_alive());
    PidFd::open(child.identity()).unwrap().signal(Signal::TERM).unwrap();
    child.exit();
    assert_eq!(Identity::of(child.pid()), Ok(None));
}

#[test]
fn a_process_without_its_main_thread_is_alive() {
    let child = Guard::start(&fixture("main_thread_ends", &[]), &SpawnOptions::default());
    let stat = || procfs::read_stat(child.pid()).unwrap().unwrap();
    eventually("the main thread is a zombie", || stat().state == State::Zombie);
    assert!(stat().is_alive());
    assert!(child.identity().is_alive());
    assert!(!child.child.pidfd.has_exited().unwrap());
    assert_eq!(reap::peek_exit(child.pid()), Ok(None));
    // What its threads share is read from another one, be we root or not.
    let pid = child.pid();
    assert_eq!(procfs::exe(pid), procfs::exe(lariat_sys::process::pid()));
    assert_eq!(procfs::cwd(pid), procfs::cwd(lariat_sys::process::pid()));
    assert!(procfs::cmdline(pid).unwrap().is_some_and(|line| !line.is_empty()));
    assert!(procfs::environ_has(pid, b"LARIAT_SYS_FIXTURE=main_thread_ends").unwrap());
    let mut open = 0;
    procfs::visit_descriptors(pid, &mut |_| open += 1).unwrap();
    assert!(open > 0);
}

#[test]
fn a_group_is_signalled_through_the_descriptor_of_its_number() {
    let options = SpawnOptions { new_group: true, ..SpawnOptions::default() };
    let mut leader = Guard::start(&shell("sleep 1000 & wait"), &options);
    let mut found = Vec::new();
    eventually("the shell has its child", || {
        found.clear();
        lariat_sys::tree::walk(leader.pid(), &[], &mut found).unwrap();
        found.iter().any(|stat| stat.comm.to_string() == "sleep")
    });
    match leader.child.pidfd.signal_group(Signal::TERM) {
        // KERNEL(6.9): members are signalled one by one there, and a group not at all.
        Err(Errno::INVAL) => {
            PidFd::open(found[0].identity()).unwrap().signal(Signal::TERM).unwrap();
            return skip("this kernel signals no group through a descriptor");
        }
        sent => sent.unwrap(),
    }
    assert_eq!(leader.exit(), Exit::Signal { signal: Signal::TERM, core: false });
    eventually("the child is gone", || !found[0].identity().is_alive());
}

#[test]
fn start_is_in_the_unit_of_boot_ticks() {
    let before = boot_ticks();
    let child = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
    let start = child.identity().start;
    assert!((before..=boot_ticks()).contains(&start), "{start} is not between {before} and {}", boot_ticks());
}

/// The real thing: a second process gets the number of the first.
///
/// Choosing a number needs rights in the pid namespace (`clone3` with `set_tid`); without them the test says so.
#[test]
fn a_reused_number_is_not_opened() {
    let mut first = Guard::start(&shell("exit 0"), &SpawnOptions::default());
    let old = first.identity();
    first.exit();
    eventually("a tick has passed", || boot_ticks() > old.start);
    let wanted = [old.pid];
    let mut arguments = CloneArguments {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: wanted.as_ptr() as u64,
        set_tid_size: 1,
        ..CloneArguments::default()
    };
    // SAFETY: the structure is the kernel's and lives for the call. The child makes one call and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) };
    match pid {
        0 => loop {
            // SAFETY: pause(2) has no preconditions; the signal below ends it.
            unsafe { libc::pause() };
        },
        -1 => {
            skip(&format!("choosing a pid is not allowed: {}", std::io::Error::last_os_error()));
            return;
        }
        pid => assert_eq!(pid, i64::from(old.pid)),
    }
    let new = Identity::of(old.pid).unwrap().unwrap();
    let is_old_alive = old.is_alive();
    let opened = PidFd::open(old);
    PidFd::open(new).unwrap().signal(Signal::KILL).unwrap();
    eventually("the second is reaped", || reap::reap(new.pid).unwrap().is_some());
    assert_ne!(old, new);
    assert!(!is_old_alive);
    assert_eq!(opened.unwrap_err(), Errno::SRCH);
}

/// `struct clone_args` of clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
