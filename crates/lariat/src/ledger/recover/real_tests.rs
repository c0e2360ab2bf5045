//! The search among real processes.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lariat_sys::pidfd::PidFd;
use lariat_sys::signal::Signal;

use super::tests::{clue, run};
use super::*;

/// Real processes, all of which are killed at the end, whatever happens.
struct Tree {
    leader: Child,
    seen: Vec<Identity>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        for identity in &self.seen {
            // One that is gone already needs no signal.
            let _ = PidFd::open(*identity).and_then(|pidfd| pidfd.signal(Signal::KILL));
        }
        let _ = self.leader.kill();
        let _ = self.leader.wait();
    }
}

fn survey_until(tree: &mut Tree, clues: &Clues, what: &str, is_so: impl Fn(&Findings) -> bool) -> Findings {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let findings = survey(clues, &Living::default()).unwrap();
        tree.seen.extend(findings.certain.iter().chain(&findings.possible).map(|found| found.identity));
        if is_so(&findings) {
            return findings;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}: {findings:#?}");
        std::thread::yield_now();
    }
}

#[test]
fn real_leftovers_are_found_before_and_after_their_leader_is_gone() {
    let run = RunId::new_random().unwrap();
    // A child, one in a session of its own, one without environment, and the leader itself.
    let script = "sleep 1111 & setsid sleep 1112 & env -i sleep 1113 & exec sleep 1115";
    let leader = Command::new("setsid")
        .args(["sh", "-c", script])
        .env(crate::process::RUN_VARIABLE, run.as_str())
        .env(crate::process::SERVICE_VARIABLE, "web")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let identity = Identity::of(leader.id() as i32).unwrap().unwrap();
    let mut tree = Tree { leader, seen: Vec::new() };
    let mut clues = Clues::mark_only(run.clone());
    clues.leaders = vec![LeaderClue { leader: identity, ..clue(identity.pid, 0) }];
    let sleeps = |findings: &Findings, number: &str| {
        findings.certain.iter().any(|found| found.command == format!("sleep {number}"))
    };
    let findings = survey_until(&mut tree, &clues, "all are found", |findings| {
        ["1111", "1112", "1113", "1115"].iter().all(|number| sleeps(findings, number))
    });
    assert!(findings.possible.is_empty());
    let leader = findings.certain.iter().find(|found| found.identity == identity).unwrap();
    assert_eq!((leader.why, leader.service.as_deref()), (Why::Recorded, Some("web")));

    tree.leader.kill().unwrap();
    tree.leader.wait().unwrap();
    let findings =
        survey_until(&mut tree, &clues, "the leader is gone", |findings| !sleeps(findings, "1115"));
    let why = |number: &str| {
        let found = findings.certain.iter().find(|found| found.command == format!("sleep {number}"));
        found.map(|found| found.why)
    };
    assert_eq!((why("1111"), why("1112")), (Some(Why::Marked), Some(Why::Marked)));
    assert_eq!(why("1113"), Some(Why::Session(identity.pid)), "by a marked one in its session");
    assert!(
        find(&Clues { boot: Some("another".into()), ..clues }, &Snapshot::take(&Living::default()).unwrap())
            .is_empty()
    );
}

#[test]
fn we_and_our_ancestors_are_in_no_survey() {
    let snapshot = Snapshot::take(&Living::default()).unwrap();
    let own = Identity::current().pid;
    let parent = lariat_sys::process::parent_pid();
    assert!([own, parent, 1].iter().all(|pid| snapshot.spared.contains(pid)), "{:?}", snapshot.spared);
    assert!(snapshot.processes.iter().any(|process| process.identity.pid == own));
    let clues = Clues {
        leaders: vec![LeaderClue { leader: Identity::current(), ..clue(own, 0) }],
        ..Clues::mark_only(run())
    };
    assert!(
        survey(&clues, &Living::default()).unwrap().certain.iter().all(|found| found.identity.pid != own)
    );
}
