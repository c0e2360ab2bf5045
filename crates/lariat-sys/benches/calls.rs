//! What the calls that everything else waits for cost: a spawn, beside the barest one possible, and a walk.
//!
//! `cargo bench -p lariat-sys` prints the median and the minimum of each; the ones that are compared take turns, so that
//! a busy machine is busy for all of them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends at the first surprise, and prints"
)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::procfs;
use lariat_sys::reap;
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{Program, SpawnOptions, spawn};
use lariat_sys::tree::{walk, walk_by_scan};

fn main() {
    let program = |argv: &[&str]| Program {
        argv: argv.iter().map(|word| CString::new(*word).unwrap()).collect(),
        env: vec![c"PATH=/bin:/usr/bin".to_owned()],
        search_path: true,
        ..Program::default()
    };
    let all = SpawnOptions {
        new_session: true,
        parent_death: Some(Signal::TERM),
        fds: vec![(0, 0), (1, 3), (2, 4)],
        close_others: true,
        ..SpawnOptions::default()
    };
    let absolute = program(&["/bin/true"]);
    let searched = program(&["true"]);
    compare(
        1000,
        &mut [
            ("spawn /bin/true: clone and execve alone", &mut bare_spawn),
            ("spawn /bin/true: posix_spawn", &mut posix_spawn),
            ("spawn /bin/true: lariat-sys, no options", &mut || {
                full_spawn(&absolute, &SpawnOptions::default())
            }),
            ("spawn true by PATH: lariat-sys, all options", &mut || full_spawn(&searched, &all)),
        ],
    );

    let own = Identity::current();
    let held = PidFd::open(own).unwrap();
    compare(
        10_000,
        &mut [
            ("read_stat", &mut || assert!(procfs::read_stat(own.pid).unwrap().is_some())),
            ("PidFd::open by inode", &mut || drop(PidFd::open(own).unwrap())),
            ("PidFd::open by start", &mut || drop(PidFd::open(own.with_inode(None)).unwrap())),
            ("PidFd::of", &mut || drop(PidFd::of(own.pid).unwrap())),
            ("is_alive by inode", &mut || assert!(own.is_alive())),
            ("is_alive by start", &mut || assert!(own.with_inode(None).is_alive())),
            ("has_number and inode of a held one", &mut || {
                assert!(held.has_number() && held.inode() == own.inode());
            }),
        ],
    );

    let script = "for i in $(seq 20); do sh -c 'for i in $(seq 24); do sleep 1000 & done; wait' & done; wait";
    let root = spawn(&program(&["/bin/sh", "-c", script]), &all).unwrap();
    let mut found = Vec::new();
    while found.len() != 500 {
        found.clear();
        walk(root.pid, &[], &mut found).unwrap();
    }
    compare(
        200,
        &mut [
            ("walk of 500 processes", &mut || walk(root.pid, &[], &mut Vec::new()).unwrap()),
            ("walk_by_scan of 500 processes", &mut || walk_by_scan(root.pid, &[], &mut Vec::new()).unwrap()),
        ],
    );
    // The whole session is ours: nobody in it has left it.
    root.pidfd.signal_group(Signal::KILL).unwrap();
    root.pidfd.wait_exit(None).unwrap();
    reap::reap(root.pid).unwrap();
}

/// Runs all in turn, many times, and prints each one's median and minimum.
fn compare(rounds: usize, entries: &mut [(&str, &mut dyn FnMut())]) {
    let mut times = vec![Vec::with_capacity(rounds); entries.len()];
    for _ in 0..rounds {
        for ((_, run), times) in entries.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run();
            times.push(start.elapsed());
        }
    }
    for ((name, _), times) in entries.iter().zip(&mut times) {
        times.sort_unstable();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!(
            "{name:45} median {:8.1} µs, minimum {:8.1} µs",
            micros(times[rounds / 2]),
            micros(times[0])
        );
    }
}

fn full_spawn(program: &Program, options: &SpawnOptions) {
    let child = spawn(program, options).unwrap();
    wait(child.pid);
}

/// The floor: a child in our memory that only executes, and no question asked about it.
fn bare_spawn() {
    extern "C" fn child(_: *mut c_void) -> c_int {
        let argv = [c"/bin/true".as_ptr(), std::ptr::null()];
        let env: [*const c_char; 1] = [std::ptr::null()];
        // SAFETY: path and vectors are as execve(2) wants them.
        unsafe {
            libc::execve(c"/bin/true".as_ptr(), argv.as_ptr(), env.as_ptr());
            libc::_exit(127)
        }
    }
    let mut stack = [0_u128; 2048];
    // SAFETY: the stack is ours until the child has left it; with CLONE_VFORK this thread sleeps until then.
    let pid = unsafe {
        let top = stack.as_mut_ptr_range().end.cast();
        libc::clone(child, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, std::ptr::null_mut())
    };
    wait(pid);
}

fn posix_spawn() {
    let argv = [c"/bin/true".as_ptr().cast_mut(), std::ptr::null_mut()];
    let env: [*mut c_char; 1] = [std::ptr::null_mut()];
    let (none, mut pid) = (std::ptr::null(), 0);
    // SAFETY: path and vectors are as posix_spawn(3) wants them.
    let error = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            c"/bin/true".as_ptr(),
            none,
            std::ptr::null(),
            argv.as_ptr(),
            env.as_ptr(),
        )
    };
    assert_eq!(error, 0);
    wait(pid);
}

fn wait(pid: c_int) {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
}
