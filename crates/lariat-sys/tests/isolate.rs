//! Processes that are number 1 of a pid namespace: what they see, who they are outside, and what stays as it was.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use lariat_sys::identity::Identity;
use lariat_sys::outside::Outside;
use lariat_sys::pidfd::PidFd;
use lariat_sys::procfs::Stat;
use lariat_sys::reap::{self, Exit};
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{Namespaces, SpawnOptions, fork_isolated, inherit, spawn};
use lariat_sys::{Errno, files, process, tree};

use support::{Guard, eventually, fixture, output, say, shell, skip};

/// Where the fixture that holds it finds `/proc` as it is outside.
const OUTSIDE: RawFd = 9;

fixtures!(holds, names_outside, shares);

/// Returns options with namespaces, or nothing where there are none to be had.
fn isolated() -> Option<SpawnOptions> {
    let options = SpawnOptions { namespaces: Some(Namespaces::choose()), ..SpawnOptions::default() };
    match output(&shell(":"), &options) {
        Ok(_) => Some(options),
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}

#[test]
fn the_first_process_has_number_one_and_a_proc_that_says_so() {
    let Some(options) = isolated() else { return };
    let script = "echo $$ $PPID; echo /proc/[0-9]*; \
                  while read -r name id rest; do case $name in [UG]id:) echo $id;; esac; done </proc/self/status";
    let (text, exit) = output(&shell(script), &options).unwrap();
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    assert_eq!((text, exit), (format!("1 0\n/proc/1\n{user}\n{group}\n"), Exit::Code(0)));
}

#[test]
fn everybody_dies_with_the_first_and_is_gone_when_that_one_is() {
    let Some(mut options) = isolated() else { return };
    let (read, write) = files::pipe(0).unwrap();
    options.fds.push((write.as_raw_fd(), 1));
    let script = "trap '' TERM; (setsid sh -c 'exec sleep 1000 >/dev/null' &) ; sleep 1000 >/dev/null & echo up; \
                  exec >/dev/null; while :; do wait; done";
    let mut init = Guard::start(&shell(script), &options);
    std::io::Read::read_exact(&mut std::fs::File::from(read), &mut [0; 3]).unwrap();
    let members = || {
        let mut found: Vec<Stat> = Vec::new();
        tree::walk(init.pid(), &[], &mut found).unwrap();
        found.retain(|stat| stat.comm.as_bytes() == b"sleep");
        found
    };
    eventually("both are there", || members().len() == 2);
    let members: Vec<Identity> = members().iter().map(Stat::identity).collect();
    init.signal(Signal::KILL);
    init.child.pidfd.wait_exit(None).unwrap();
    // Not a moment later: the kernel waits for them before it lets the first one end.
    for member in &members {
        assert_eq!(PidFd::open(*member).map(drop), Err(Errno::SRCH));
    }
    assert_eq!(init.exit(), Exit::Signal { signal: Signal::KILL, core: false });
}

#[test]
fn whoever_is_inside_can_be_named_as_outside_until_it_is_reaped() {
    if isolated().is_none() {
        return;
    }
    let (text, exit) = output(&fixture("names_outside", &[]), &SpawnOptions::default()).unwrap();
    assert_eq!(exit, Exit::Code(0), "{text}");
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start)).unwrap().to_owned();
    assert_eq!(line("inside "), "1 1 2", "its pid, its number in /proc, its first child's pid");
    assert_eq!(line("said "), line("seen "), "{text}");
    assert_eq!(line("dead "), line("seen ").split_once(' ').unwrap().1, "a zombie has its number still");
}

/// Forks with a namespace; the copy says who it and its own child are outside, and this one what it sees of both.
fn names_outside(_: c_int, _: *const *const c_char) -> u8 {
    process::set_subreaper(true).unwrap();
    let outside = Outside::open().unwrap();
    let (read, write) = files::pipe(0).unwrap();
    let Some(child) = fork_isolated(&Namespaces::choose()).unwrap() else {
        drop(write);
        let inner = spawn(&shell("exec sleep 1000"), &SpawnOptions::default()).unwrap();
        say(&format!("inside {} {} {}", process::pid(), Identity::current().pid, inner.pid));
        let known = outside.identity(inner.identity).unwrap().unwrap();
        assert_eq!(known.inode(), inner.pidfd.inode());
        say(&format!("said {} {} {}", outside.own().unwrap(), known.pid, known.start));
        assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0), "the end says that both were seen");
        inner.pidfd.signal(Signal::KILL).unwrap();
        inner.pidfd.wait_exit(None).unwrap();
        let dead = outside.identity(inner.identity).unwrap().unwrap();
        say(&format!("dead {} {}", dead.pid, dead.start));
        reap::reap(inner.pid).unwrap().unwrap();
        assert_eq!(outside.identity(inner.identity), Ok(None));
        assert_eq!(outside.identity_of(&inner.pidfd, inner.identity), Ok(None), "nor by what is open");
        process::exit_now(0);
    };
    let mut seen: Vec<Stat> = Vec::new();
    eventually("its child is there", || {
        seen.clear();
        tree::walk(child.pid, &[], &mut seen).unwrap();
        seen.iter().any(|stat| stat.comm.as_bytes() == b"sleep")
    });
    say(&format!("seen {} {} {}", child.pid, seen[0].pid, seen[0].start));
    drop(write);
    child.pidfd.wait_exit(None).unwrap();
    let (exit, _) = reap::reap(child.pid).unwrap().unwrap();
    u8::from(exit != Exit::Code(0))
}

/// HAZARD(shared-mounts): where `/` is shared, as systemd leaves it, a mount of ours that is no slave's would appear
/// outside, over everybody's `/proc`.
#[test]
fn mounts_that_are_shared_outside_stay_so() {
    let Some(options) = isolated().filter(|_| !Namespaces::choose().has_user()) else {
        return skip("only root may change mounts");
    };
    let (text, exit) = output(&fixture("shares", &[]), &options).unwrap();
    assert_eq!((text.as_str(), exit), ("0 appeared outside, 1 inside\n", Exit::Code(0)));
}

/// In mounts of its own that are shared: isolates a child, mounts something, and counts what appears where.
fn shares(_: c_int, _: *const *const c_char) -> u8 {
    let mount = |source: *const c_char, target: &CStr, flags| {
        // SAFETY: the strings end in NUL or are null.
        let done = unsafe { libc::mount(source, target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
        assert_eq!(done, 0, "mount");
    };
    mount(std::ptr::null(), c"/", libc::MS_SHARED | libc::MS_REC);
    let mounts =
        |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines().count();
    let before = mounts(process::pid());
    let options = SpawnOptions { namespaces: Some(Namespaces::choose()), ..SpawnOptions::default() };
    let child = spawn(&shell("exec sleep 1000"), &options).unwrap();
    let (outside, inside) = (mounts(process::pid()) - before, mounts(child.pid));
    mount(c"/tmp".as_ptr(), c"/tmp", libc::MS_BIND);
    say(&format!("{outside} appeared outside, {} inside", mounts(child.pid) - inside));
    child.pidfd.signal(Signal::KILL).unwrap();
    child.pidfd.wait_exit(None).unwrap();
    reap::reap(child.pid).unwrap().unwrap();
    0
}

/// What leads out of the namespace is closed to the others in it, and the one that holds it can go on using it.
#[test]
fn a_hidden_descriptor_is_reached_by_nobody_else_inside() {
    let Some(options) = isolated().filter(|options| options.namespaces.as_ref().unwrap().has_user()) else {
        return skip("root may look into any process");
    };
    let outside = Outside::open().unwrap();
    let fds = vec![(outside.as_fd().as_raw_fd(), OUTSIDE)];
    let options = SpawnOptions { fds, ..options };
    for hides in ["", "hides"] {
        let (text, exit) = output(&fixture("holds", &[hides]), &options).unwrap();
        let expected =
            if hides.is_empty() { "named true, reached true\n" } else { "named true, reached false\n" };
        assert_eq!((text.as_str(), exit), (expected, Exit::Code(0)));
    }
}

/// As number 1: holds `/proc` as it is outside, hidden if its argument says so, and says what a child can reach.
fn holds(_: c_int, _: *const *const c_char) -> u8 {
    let outside = Outside::from_owned(inherit(OUTSIDE).unwrap());
    if std::env::args().nth(1).is_some_and(|word| word == "hides") {
        outside.hide();
    }
    let is_named = outside.identity(Identity::current()).unwrap().is_some_and(|named| named.pid > 1);
    let descriptor = outside.as_fd().as_raw_fd();
    let look = shell(&format!("test -e /proc/1/fd/{descriptor}/1/stat"));
    let (_, exit) = output(&look, &SpawnOptions::default()).unwrap();
    say(&format!("named {is_named}, reached {}", exit == Exit::Code(0)));
    0
}
