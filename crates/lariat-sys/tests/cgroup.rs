//! Directories of the cgroup hierarchy: who is in them, and how everybody there is ended.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lariat_sys::Errno;
use lariat_sys::cgroup::{self, Cgroup, Own};
use lariat_sys::identity::Identity;
use lariat_sys::reap::{self, Exit};
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{Child, SpawnError, SpawnOptions, SpawnStep, spawn};
use support::{PATIENCE, eventually, shell, skip};

/// A directory below our own cgroup, emptied and removed at the end.
struct Place {
    path: PathBuf,
    group: Cgroup,
}

impl Place {
    fn new(name: &str) -> Option<Self> {
        let Own::At(own) = cgroup::own().unwrap() else { return None };
        let name = format!("lt-sys-{name}-{}", std::process::id());
        let group = Cgroup::create(&own, &name).ok()?;
        Some(Self { path: own.join(name), group })
    }

    fn start(&self, script: &str) -> Child {
        let options =
            SpawnOptions { cgroup: Some(self.group.as_fd().as_raw_fd()), ..SpawnOptions::default() };
        spawn(&shell(script), &options).unwrap()
    }

    fn members(&self) -> Vec<i32> {
        let mut members = Vec::new();
        self.group.members(&mut members).unwrap();
        members
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.group.kill();
        let _ = self.group.wait_until_empty(Instant::now() + PATIENCE);
        let _ = self.group.remove(Instant::now() + PATIENCE);
    }
}

fn end_of(child: &Child) -> Exit {
    assert_eq!(child.pidfd.wait_exit(Some(Instant::now() + PATIENCE)), Ok(true));
    reap::reap(child.pid).unwrap().unwrap().0
}

/// Binds a place, or leaves the test out where we may not make directories.
macro_rules! place {
    ($name:expr) => {
        match Place::new($name) {
            Some(place) => place,
            None => return skip("no cgroup directory can be made here"),
        }
    };
}

const KILLED: Exit = Exit::Signal { signal: Signal::KILL, core: false };

#[test]
fn a_spawned_process_is_born_inside_with_all_that_it_starts() {
    let place = place!("born");
    let child = place.start("setsid sleep 100 & exec sleep 100");
    eventually("two members", || place.members().len() == 2);
    assert!(place.members().contains(&child.pid));
    let name = place.path.file_name().unwrap();
    assert_eq!(cgroup::of(child.pid).unwrap().unwrap().file_name(), Some(name));
    assert_eq!(place.group.path().unwrap(), place.path);
    assert!(place.group.is_populated().unwrap());
}

#[test]
fn everybody_is_killed_at_once_and_the_directory_can_be_removed() {
    let place = place!("kill");
    let child = place.start("setsid sleep 100 & sleep 100 & trap '' TERM; wait");
    eventually("three members", || place.members().len() == 3);
    assert_eq!(place.group.remove(Instant::now()), Err(Errno::BUSY), "members hold it");
    place.group.kill().unwrap();
    assert_eq!(place.group.wait_until_empty(Instant::now() + PATIENCE), Ok(true));
    // Our child's zombie does not count, and does not hold the directory.
    assert_eq!(place.group.remove(Instant::now() + PATIENCE), Ok(()));
    assert!(!place.path.exists());
    assert_eq!(place.group.path(), Err(Errno::NOENT));
    assert_eq!(end_of(&child), KILLED);
}

#[test]
fn a_kernel_without_the_kill_file_kills_who_is_frozen() {
    let place = place!("frozen");
    // Forks all the time, so killing one by one would always come late.
    let script =
        "f() { n=$1; while [ $n -gt 0 ]; do (sleep 0.01); n=$((n-1)); done; }; f 3000 & f 3000 & f 3000";
    let child = place.start(script);
    eventually("a crowd", || place.members().len() >= 4);
    place.group.kill_frozen().unwrap();
    assert_eq!(place.group.wait_until_empty(Instant::now() + PATIENCE), Ok(true));
    assert_eq!(end_of(&child), KILLED);
}

#[test]
fn a_crowd_larger_than_our_descriptors_is_killed_one_by_one() {
    let place = place!("crowd");
    // Low, for a crowd that a slow machine can start; it hits no other test, which opens a few.
    let count = 330;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let lower = rustix::process::Rlimit { current: Some(300), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, lower).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("silent");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    // They execute nothing, for the same reason.
    let begin = format!("exec 3<>{}; i=0; while [ $i -lt {count} ]", fifo.display());
    let child = place.start(&format!("{begin}; do (read _ <&3) & i=$((i+1)); done; wait"));
    eventually("the crowd", || place.members().len() > count);
    let crowd = place.members();
    // So that their zombies go with the test, and slow down nobody where init collects none.
    lariat_sys::process::set_subreaper(true).unwrap();
    let killed = place.group.kill_frozen();
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    assert_eq!(killed, Ok(()));
    assert_eq!(place.group.wait_until_empty(Instant::now() + PATIENCE), Ok(true));
    assert_eq!(end_of(&child), KILLED);
    eventually("all are collected", || crowd.iter().all(|pid| reap::reap(*pid) != Ok(None)));
}

#[test]
fn frozen_processes_stand_still_until_they_are_thawed() {
    let place = place!("freeze");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("n");
    let child = place.start(&format!("i=0; while :; do i=$((i+1)); echo $i > {}; done", file.display()));
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    eventually("it counts", || !read().is_empty());
    assert_eq!(place.group.freeze(Instant::now() + PATIENCE), Ok(true));
    let before = read();
    // It had every chance: an unfrozen one counts thousands in this time.
    let until = Instant::now() + Duration::from_millis(50);
    while Instant::now() < until {
        assert_eq!(read(), before);
    }
    place.group.thaw().unwrap();
    eventually("it counts on", || read() != before && !read().is_empty());
    child.pidfd.signal(Signal::KILL).unwrap();
    assert_eq!(end_of(&child), KILLED);
}

#[test]
fn directories_that_members_made_are_seen_and_removed() {
    let place = place!("nested");
    let dir = place.path.display();
    let child = place.start(&format!(
        "mkdir -p {dir}/a/b {dir}/c; (echo 0 > {dir}/a/b/cgroup.procs; exec sleep 100) & sleep 100 & wait"
    ));
    eventually("three members, one of them two floors down", || {
        place.members().len() == 3
            && std::fs::read_to_string(place.path.join("a/b/cgroup.procs")).unwrap() != ""
    });
    place.group.kill().unwrap();
    assert_eq!(place.group.wait_until_empty(Instant::now() + PATIENCE), Ok(true));
    assert_eq!(end_of(&child), KILLED);
    assert_eq!(place.group.remove(Instant::now() + PATIENCE), Ok(()));
    assert!(!place.path.exists());
}

#[test]
fn a_group_that_was_killed_once_takes_new_members() {
    // HAZARD(cgroup-killed-once): what is cloned into such a directory dies at birth on many kernels. It is seen to have
    // never run, and the next one enters by itself.
    let place = place!("again");
    let first = place.start("exec sleep 100");
    place.group.kill().unwrap();
    assert_eq!(end_of(&first), KILLED);
    for _ in 0..20 {
        let child = place.start("exit 7");
        assert_eq!(end_of(&child), Exit::Code(7));
    }
}

#[test]
fn a_directory_that_cannot_be_entered_fails_the_spawn_at_that_step() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let options = SpawnOptions { cgroup: Some(file.as_raw_fd()), ..SpawnOptions::default() };
    let error = spawn(&shell("exit 0"), &options).unwrap_err();
    assert_eq!(error, SpawnError { step: SpawnStep::Cgroup, errno: Errno::NOTDIR });
    assert_eq!(reap::peek(), Err(Errno::CHILD), "nobody is left of it");
}

#[test]
fn other_directories_are_no_groups() {
    assert_eq!(Cgroup::open(std::path::Path::new("/tmp")).unwrap_err(), Errno::NOTDIR);
    assert_eq!(Cgroup::open(std::path::Path::new("/dev/null")).unwrap_err(), Errno::NOTDIR);
    assert!(Cgroup::open(std::path::Path::new("/nowhere")).is_err());
}

#[test]
fn the_lock_belongs_to_whoever_shares_the_description() {
    let place = place!("lock");
    assert_eq!(place.group.lock(), Ok(true));
    let other = Cgroup::open(&place.path).unwrap();
    assert_eq!(other.lock(), Ok(false));
    let shared =
        Cgroup::from_owned(std::os::fd::AsFd::as_fd(&place.group).try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(shared.lock(), Ok(true));
    drop(shared);
    assert_eq!(other.lock(), Ok(false), "one of two was closed");
}

#[test]
fn our_own_place_lists_us() {
    let Own::At(own) = cgroup::own().unwrap() else { return skip("no cgroup v2 here") };
    let text = std::fs::read_to_string(own.join("cgroup.procs")).unwrap();
    let me = Identity::current().pid.to_string();
    assert!(text.lines().any(|line| line == me), "{} does not list {me}", own.display());
}
