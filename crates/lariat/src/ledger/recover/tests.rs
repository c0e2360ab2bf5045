//! Tables and properties of the search, and one survey of real processes.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use lariat_sys::pidfd::PidFd;
use lariat_sys::signal::Signal;
use proptest::prelude::*;

use super::*;

const RUN: &str = "00c0ffee00c0ffee";
const ME: u32 = 1000;

fn run() -> RunId {
    RunId::try_from(RUN.to_owned()).unwrap()
}

fn clue(pid: i32, start: u64) -> LeaderClue {
    LeaderClue {
        service: "web".into(),
        leader: Identity { pid, start },
        has_own_session: true,
        has_own_group: true,
    }
}

fn clues() -> Clues {
    Clues {
        run: run(),
        boot: Some("boot".into()),
        pid_namespace: Some(7),
        leaders: vec![clue(100, 50)],
        left: vec![Identity { pid: 80, start: 60 }],
        spared: vec![Identity { pid: 90, start: 40 }],
    }
}

/// A process of our user, started at tick 60, child of init, in a session and group of its own.
fn process(pid: i32) -> Process {
    Process {
        identity: Identity { pid, start: 60 },
        ppid: 1,
        pgrp: pid,
        session: pid,
        uid: Some(ME),
        is_alive: true,
        mark: None,
        comm: "x".into(),
    }
}

fn leader() -> Process {
    Process { identity: Identity { pid: 100, start: 50 }, ..process(100) }
}

fn marked(pid: i32) -> Process {
    Process { mark: Some(Mark { run: RUN.into(), service: Some("api".into()) }), ..process(pid) }
}

fn member(pid: i32) -> Process {
    Process { session: 100, ..process(pid) }
}

fn snapshot(processes: &[Process]) -> Snapshot {
    let spared = BTreeSet::from([1, 500]);
    Snapshot { boot: "boot".into(), pid_namespace: Some(7), user: ME, spared, processes: processes.to_vec() }
}

fn reasons(found: &[Found]) -> Vec<(i32, Why)> {
    found.iter().map(|found| (found.identity.pid, found.why)).collect()
}

/// A name, the processes, who of them is certain and who is possible.
type Row = (&'static str, Vec<Process>, Vec<(i32, Why)>, Vec<(i32, Why)>);

fn descendant(pid: i32, ppid: i32) -> Process {
    Process { ppid, ..process(pid) }
}

fn foreign(process: Process) -> Process {
    Process { uid: Some(0), ..process }
}

fn identities_and_marks() -> Vec<Row> {
    let reused = || Process { identity: Identity { pid: 100, start: 70 }, ..process(100) };
    let in_group = |pid| Process { pgrp: 100, ..process(pid) };
    vec![
        ("nobody", vec![process(300)], vec![], vec![]),
        ("the leader lives", vec![leader()], vec![(100, Why::Recorded)], vec![]),
        (
            "one that could not be ended, of any user",
            vec![foreign(process(80))],
            vec![(80, Why::Left)],
            vec![],
        ),
        (
            "and a stranger with its number",
            vec![Process { identity: Identity { pid: 80, start: 61 }, ..process(80) }],
            vec![],
            vec![],
        ),
        ("its number was reused", vec![reused()], vec![], vec![]),
        ("and so were session and group", vec![reused(), member(300), in_group(301)], vec![], vec![]),
        (
            "descendants in sessions of their own, of any user",
            vec![leader(), descendant(300, 100), foreign(descendant(301, 300))],
            vec![(100, Why::Recorded), (300, Why::Descendant(100)), (301, Why::Descendant(300))],
            vec![],
        ),
        ("a mark", vec![marked(300)], vec![(300, Why::Marked)], vec![]),
        ("a mark of another user's", vec![foreign(marked(300))], vec![], vec![]),
        (
            "another run's mark",
            vec![Process { mark: Some(Mark { run: "0".repeat(16), service: None }), ..process(300) }],
            vec![],
            vec![],
        ),
        (
            "ourselves, our ancestors, init and lariat's own are spared",
            vec![
                marked(500),
                marked(1),
                Process { identity: Identity { pid: 90, start: 40 }, ..marked(90) },
                Process { session: 100, ..marked(501) },
            ],
            vec![(501, Why::Marked)],
            vec![],
        ),
        (
            "what has a keeper's number now is no keeper",
            vec![Process { identity: Identity { pid: 90, start: 99 }, ..marked(90) }],
            vec![(90, Why::Marked)],
            vec![],
        ),
    ]
}

fn sessions_and_groups() -> Vec<Row> {
    let zombie = |process| Process { is_alive: false, ..process };
    let older = |pid| Process { identity: Identity { pid, start: 10 }, ..member(pid) };
    let in_group = |pid| Process { pgrp: 100, ..process(pid) };
    vec![
        ("a session's number alone", vec![member(300)], vec![], vec![(300, Why::Session(100))]),
        ("a group's number alone", vec![in_group(300)], vec![], vec![(300, Why::Group(100))]),
        ("the number alone, of another user's", vec![foreign(member(300))], vec![], vec![]),
        ("the number alone, of one older than the leader", vec![older(300)], vec![], vec![]),
        (
            "a session with somebody marked in it",
            vec![member(300), Process { session: 100, ..marked(301) }, foreign(member(302))],
            vec![(300, Why::Session(100)), (301, Why::Marked), (302, Why::Session(100))],
            vec![],
        ),
        (
            "a zombie leader proves whose the session is, and is not there itself",
            vec![zombie(leader()), member(300)],
            vec![(300, Why::Session(100))],
            vec![],
        ),
        (
            "a member's child that left the session",
            vec![Process { session: 100, ..marked(300) }, member(301), descendant(302, 301)],
            vec![(300, Why::Marked), (301, Why::Session(100)), (302, Why::Descendant(301))],
            vec![],
        ),
        (
            "a marked one in a session of strangers makes none of them ours",
            vec![
                Process { session: 400, ..marked(300) },
                process(400),
                Process { session: 400, ..process(401) },
            ],
            vec![(300, Why::Marked)],
            vec![],
        ),
    ]
}

#[test]
fn who_is_certain_and_who_is_possible() {
    for (name, processes, certain, possible) in [identities_and_marks(), sessions_and_groups()].concat() {
        let mut reversed = processes.clone();
        reversed.reverse();
        for processes in [processes, reversed] {
            let findings = find(&clues(), &snapshot(&processes));
            assert_eq!(
                (findings.reach, reasons(&findings.certain)),
                (Reach::Here, certain.clone()),
                "{name}"
            );
            assert_eq!(reasons(&findings.possible), possible, "{name}");
        }
    }
}

#[test]
fn a_command_in_front_of_a_terminal_does_not_claim_the_shells_session() {
    let mut clues = clues();
    clues.leaders[0].has_own_session = false;
    clues.leaders[0].has_own_group = false;
    let findings = find(&clues, &snapshot(&[leader(), member(300), Process { pgrp: 100, ..process(301) }]));
    assert_eq!(reasons(&findings.certain), [(100, Why::Recorded)]);
    assert!(findings.possible.is_empty());
}

#[test]
fn after_a_reboot_or_from_elsewhere_nothing_is_touched() {
    let mut other = snapshot(&[leader(), marked(300), member(301)]);
    other.boot = "another".into();
    let findings = find(&clues(), &other);
    assert!(findings.is_empty() && findings.reach == Reach::OtherBoot);
    let mut other = snapshot(&[leader(), marked(300)]);
    other.pid_namespace = Some(8);
    assert_eq!(find(&clues(), &other).reach, Reach::OtherNamespace);
    other.pid_namespace = None;
    assert_eq!(find(&clues(), &other).certain.len(), 2);
}

#[test]
fn the_mark_alone_is_enough() {
    let findings = find(&Clues::mark_only(run()), &snapshot(&[leader(), marked(300), member(301)]));
    assert_eq!(reasons(&findings.certain), [(300, Why::Marked)]);
    assert_eq!(findings.certain[0].service.as_deref(), Some("api"));
}

#[test]
fn clues_come_from_the_record() {
    use super::super::record::{EarlierStart, ProcessRecord};
    let bytes = include_bytes!("../../../tests/data/ledger/v1-0.1.0.json");
    let mut record: RunRecord = serde_json::from_slice(bytes).unwrap();
    let clues = Clues::of(&record);
    assert_eq!(clues.leaders.iter().map(|l| l.leader.pid).collect::<Vec<_>>(), [4202, 4100]);
    assert!(clues.leaders.iter().all(|l| l.has_own_session && l.has_own_group && l.service == "web"));
    assert_eq!(clues.spared.iter().map(|i| i.pid).collect::<Vec<_>>(), [4200, 4201]);
    record.services[0].session = Some(77);
    record.services[0].earlier =
        vec![EarlierStart { leader: ProcessRecord { pid: 9, start: 1 }, session: 9 }];
    let own = |clues: Clues| clues.leaders.iter().map(|l| l.has_own_session).collect::<Vec<_>>();
    assert_eq!(own(Clues::of(&record)), [false, true]);
}

fn any_process() -> impl Strategy<Value = Process> {
    let small = || 1..12_i32;
    (small(), 45..65_u64, small(), small(), small(), 0..3_u32, any::<bool>(), 0..3_u8).prop_map(
        |(pid, start, ppid, pgrp, session, uid, is_alive, mark)| Process {
            identity: Identity { pid, start },
            ppid,
            pgrp,
            session,
            uid: (uid < 2).then_some(uid),
            is_alive,
            mark: (mark > 0)
                .then(|| Mark { run: if mark == 1 { RUN.into() } else { "other".into() }, service: None }),
            comm: String::new(),
        },
    )
}

proptest! {
    #[test]
    fn rules_that_hold_whatever_the_processes(
        processes in prop::collection::vec(any_process(), 0..14),
        leaders in prop::collection::vec((1..12_i32, 45..65_u64), 0..4),
        spared in prop::collection::btree_set(1..12_i32, 0..4),
    ) {
        let mut by_pid = BTreeMap::new();
        by_pid.extend(processes.into_iter().map(|process| (process.identity.pid, process)));
        let processes: Vec<Process> = by_pid.values().cloned().collect();
        let clues = Clues {
            boot: Some("boot".into()),
            leaders: leaders.into_iter().map(|(pid, start)| clue(pid, start)).collect(),
            ..Clues::mark_only(run())
        };
        let snapshot = Snapshot { spared, user: 0, ..snapshot(&processes) };
        let findings = find(&clues, &snapshot);
        let mut seen = BTreeSet::new();
        for found in findings.certain.iter().chain(&findings.possible) {
            let process = &by_pid[&found.identity.pid];
            prop_assert!(seen.insert(found.identity), "found twice");
            prop_assert!(process.identity == found.identity && process.is_alive);
            prop_assert!(found.identity.pid > 1 && !snapshot.spared.contains(&found.identity.pid));
        }
        for found in &findings.possible {
            prop_assert_eq!(found.uid, Some(0));
        }
        // Whoever is a living child of somebody certain is certain, unless spared.
        let certain: BTreeSet<i32> = findings.certain.iter().map(|found| found.identity.pid).collect();
        for process in processes.iter().filter(|p| p.is_alive && p.identity.pid > 1) {
            let pid = process.identity.pid;
            if certain.contains(&process.ppid) && !snapshot.spared.contains(&pid) {
                prop_assert!(certain.contains(&pid));
            }
        }
        // No clues, no findings.
        let nothing = find(&Clues::mark_only(RunId::try_from("f".repeat(16)).unwrap()), &snapshot);
        prop_assert!(nothing.is_empty());
    }
}

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
        let findings = survey(clues).unwrap();
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
    assert!(find(&Clues { boot: Some("another".into()), ..clues }, &Snapshot::take().unwrap()).is_empty());
}

#[test]
fn we_and_our_ancestors_are_in_no_survey() {
    let snapshot = Snapshot::take().unwrap();
    let own = Identity::current().pid;
    assert!(snapshot.spared.contains(&own) && snapshot.spared.contains(&1));
    assert!(snapshot.processes.iter().any(|process| process.identity.pid == own));
    let clues = Clues {
        leaders: vec![LeaderClue { leader: Identity::current(), ..clue(own, 0) }],
        ..Clues::mark_only(run())
    };
    assert!(survey(&clues).unwrap().certain.iter().all(|found| found.identity.pid != own));
}
