//! A member's number changes hands between the walk that finds it and the signal: in a pid namespace of few numbers,
//! where that really happens. The stranger with the number is never signalled, nor is the group that it leads.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::CString;
use std::os::fd::AsRawFd as _;
use std::time::Instant;

use lariat_keeper::contain::Containment;
use lariat_keeper::contain::lineage::{Lineage, signal_identity};
use lariat_keeper::stop::Member;
use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{Child, Program, SpawnOptions, spawn};
use lariat_sys::{files, process, reap};
use lariat_testkit::numbers::{self, Numbers, Stranger};
use lariat_testkit::{PATIENCE, wait_until};

/// A shell that starts a member, and when told to, ends it, reaps it and waits on.
struct Tree {
    leader: Child,
    lineage: Lineage,
    tell: std::fs::File,
    seen: Vec<Identity>,
}

/// The member is `sleep`, in a group of its own (`set -m`), so that the shell can reap it.
const SCRIPT: &str = "set -m; sleep 1000 & read -r line; kill -KILL $!; wait $!; exec sleep 1001";

impl Tree {
    fn start() -> Self {
        process::set_subreaper(true).unwrap();
        let (read, write) = files::pipe(0).unwrap();
        let argv = ["/bin/sh", "-c", SCRIPT].map(|word| CString::new(word).unwrap()).to_vec();
        let program = Program { argv, env: vec![c"PATH=/bin:/usr/bin".to_owned()], ..Program::default() };
        let null = files::dev_null().unwrap();
        let fds = vec![(read.as_raw_fd(), 0), (null.as_raw_fd(), 1), (null.as_raw_fd(), 2)];
        let options = SpawnOptions { new_session: true, close_others: true, fds, ..SpawnOptions::default() };
        let leader = spawn(&program, &options).unwrap();
        Self { lineage: Lineage::new(leader.identity), leader, tell: write.into(), seen: Vec::new() }
    }

    fn member(&mut self, comm: &str) -> Identity {
        let mut members: Vec<Member> = Vec::new();
        let found = wait_until("the member", PATIENCE, || {
            self.lineage.walk(None, &mut members).unwrap();
            members.iter().find(|member| member.comm.to_string() == comm).map(|member| member.identity)
        });
        self.seen.push(found);
        found
    }

    /// Has the member end and its parent reap it, without a walk of ours.
    fn end_member(&mut self, member: Identity) {
        std::io::Write::write_all(&mut self.tell, b"now\n").unwrap();
        wait_until("the member is reaped", PATIENCE, || (Identity::of(member.pid) == Ok(None)).then_some(()));
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = self.leader.pidfd.signal(Signal::KILL);
        // Only those that were seen: other tests of this process may have children of their own.
        for seen in &self.seen {
            let _ = signal_identity(*seen, Signal::KILL);
        }
        let _ = self.leader.pidfd.wait_exit(Some(Instant::now() + PATIENCE));
        let _ = reap::reap(self.leader.pid);
    }
}

/// Whatever a stop does to a member, done to one whose number the stranger has.
fn stop_all_ways(lineage: &mut Lineage, member: Identity, stranger: &Stranger) {
    for signal in [Signal::TERM, Signal::CONT, Signal::KILL] {
        assert_eq!(lineage.signal(member, signal), Ok(()), "one who is gone is no error");
        assert_eq!(signal_identity(member, signal), Ok(()));
    }
    lineage.kill_group(member.pid);
    assert!(stranger.is_alive(), "a stranger was signalled");
}

/// The control: by its number alone, the stranger is reached.
fn is_reached_by_number(pid: i32, stranger: &Stranger) {
    PidFd::open_pid(pid).unwrap().signal(Signal::KILL).unwrap();
    wait_until("the stranger's death", PATIENCE, || (!stranger.is_alive()).then_some(()));
}

fn one_round(numbers: Numbers) {
    let mut tree = Tree::start();
    let member = tree.member("sleep");
    tree.end_member(member);
    let stranger = numbers.stranger(member.pid, true);
    stop_all_ways(&mut tree.lineage, member, &stranger);
    // A lineage that holds no descriptor of it, as beyond the limit of those: by identity alone.
    let mut other = Lineage::new(tree.leader.identity);
    stop_all_ways(&mut other, member, &stranger);
    is_reached_by_number(member.pid, &stranger);
}

#[test]
fn a_member_whose_number_came_round_is_not_signalled() {
    numbers::inside("a_member_whose_number_came_round_is_not_signalled", |numbers| {
        for _ in 0..25 {
            one_round(numbers);
        }
    });
}

#[test]
fn members_are_remembered_with_their_inodes() {
    numbers::inside("members_are_remembered_with_their_inodes", |_| remembers());
}

fn remembers() {
    let mut tree = Tree::start();
    let member = tree.member("sleep");
    let (_, exact) = PidFd::of(member.pid).unwrap().unwrap();
    assert_eq!(
        (member.inode(), tree.leader.identity.inode().is_some()),
        (exact.inode(), exact.inode().is_some())
    );
    let again = tree.member("sleep");
    assert!(again.is_same(&member));
    assert_eq!(tree.lineage.signal(member, Signal::KILL), Ok(()));
    wait_until("its death", PATIENCE, || (!member.is_alive()).then_some(()));
}

#[test]
fn the_leader_keeps_its_number_until_it_is_reaped() {
    numbers::inside("the_leader_keeps_its_number_until_it_is_reaped", |numbers| {
        let mut tree = Tree::start();
        let leader = tree.leader.identity;
        let member = tree.member("sleep");
        assert_eq!(tree.lineage.signal(member, Signal::KILL), Ok(()));
        tree.leader.pidfd.signal(Signal::KILL).unwrap();
        wait_until("its end", PATIENCE, || tree.leader.pidfd.has_exited().unwrap().then_some(()));
        // The member has to be gone as well: the number is that of its session.
        wait_until("the member's end", PATIENCE, || {
            tree.lineage.reap();
            (Identity::of(member.pid) == Ok(None)).then_some(())
        });
        // The leader's zombie is kept: every other number comes round, and that one does not.
        assert!(numbers.is_taken(leader.pid));
        assert_eq!(Identity::of(leader.pid).unwrap(), Some(leader));
        reap::reap(leader.pid).unwrap();
        assert!(!numbers.is_taken(leader.pid), "the control: once it is reaped, the number comes round");
        let stranger = numbers.stranger(leader.pid, true);
        tree.lineage.forget_leader();
        tree.lineage.kill_group(leader.pid);
        assert_eq!(tree.lineage.signal(leader, Signal::KILL), Ok(()));
        assert!(stranger.is_alive(), "a stranger was signalled");
    });
}
