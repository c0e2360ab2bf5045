//! Tables and properties of the search.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::process::Mark;

pub(super) const RUN: &str = "00c0ffee00c0ffee";
const ME: u32 = 1000;

pub(super) fn run() -> RunId {
    RunId::try_from(RUN.to_owned()).unwrap()
}

pub(super) fn clue(pid: i32, start: u64) -> LeaderClue {
    LeaderClue {
        service: "web".into(),
        leader: Identity::new(pid, start),
        has_own_session: true,
        has_own_group: true,
        output: Some(7_000),
    }
}

pub(super) fn clues() -> Clues {
    Clues {
        boot: Some("boot".into()),
        pid_namespace: Some(7),
        leaders: vec![clue(100, 50)],
        spared: vec![Identity::new(90, 40)],
        began: Some(40),
        place: Some("/p".into()),
        ports: vec![("web".into(), 8000)],
        ..Clues::mark_only(run())
    }
}

/// A process of our user, started at tick 60, child of init, in a session and group of its own.
pub(super) fn process(pid: i32) -> Process {
    Process {
        identity: Identity::new(pid, 60),
        ppid: 1,
        pgrp: pid,
        session: pid,
        uid: Some(ME),
        is_alive: true,
        is_keeper: false,
        has_terminal: false,
        has_home: true,
        is_unit: false,
        mark: None,
        supervisor: None,
        dir: None,
        comm: "x".into(),
        traces: None,
    }
}

pub(super) fn leader() -> Process {
    Process { identity: Identity::new(100, 50), ..process(100) }
}

pub(super) fn marked(pid: i32) -> Process {
    Process {
        mark: Some(Mark { run: RUN.into(), service: Some("api".into()), ..Mark::default() }),
        ..process(pid)
    }
}

fn member(pid: i32) -> Process {
    Process { session: 100, ..process(pid) }
}

pub(super) fn snapshot(processes: &[Process]) -> Snapshot {
    let spared = BTreeSet::from([1, 500]);
    let boot = "boot".into();
    let living = Living { home: Some("/home/me".into()), ..Living::default() };
    Snapshot {
        boot,
        pid_namespace: Some(7),
        user: ME,
        spared,
        living,
        processes: processes.to_vec(),
        grouped: BTreeMap::new(),
    }
}

pub(super) fn reasons(found: &[Found]) -> Vec<(i32, Why)> {
    found.iter().map(|found| (found.identity.pid, found.why)).collect()
}

/// A name, the processes, who of them is certain and who is possible.
pub(super) type Row = (&'static str, Vec<Process>, Vec<(i32, Why)>, Vec<(i32, Why)>);

pub(super) fn descendant(pid: i32, ppid: i32) -> Process {
    Process { ppid, ..process(pid) }
}

pub(super) fn foreign(process: Process) -> Process {
    Process { uid: Some(0), ..process }
}

fn identities_and_marks() -> Vec<Row> {
    let reused = || Process { identity: Identity::new(100, 70), ..process(100) };
    let in_group = |pid| Process { pgrp: 100, ..process(pid) };
    vec![
        ("nobody", vec![process(300)], vec![], vec![]),
        ("the leader lives", vec![leader()], vec![(100, Why::Recorded)], vec![]),
        ("its number was reused", vec![reused()], vec![], vec![]),
        ("and so were session and group", vec![reused(), member(300), in_group(301)], vec![], vec![]),
        (
            "descendants in sessions of their own, of any user",
            vec![leader(), descendant(300, 100), foreign(descendant(301, 300))],
            vec![(100, Why::Recorded), (300, Why::Descendant(100)), (301, Why::Descendant(300))],
            vec![],
        ),
        ("a mark", vec![marked(300)], vec![(300, Why::Marked)], vec![]),
        (
            "a mark of another user's, and what he has started; his others, and a third one's child, are strangers",
            vec![
                foreign(marked(300)),
                foreign(descendant(301, 300)),
                foreign(process(302)),
                Process { uid: Some(7), ..descendant(303, 300) },
                Process { uid: None, ..marked(304) },
            ],
            vec![],
            vec![(300, Why::MarkedByOther), (301, Why::Descendant(300))],
        ),
        (
            "another user's below a keeper is of a run that is alive",
            vec![
                Process { is_keeper: true, ..foreign(process(300)) },
                Process { ppid: 300, ..foreign(marked(301)) },
            ],
            vec![],
            vec![],
        ),
        (
            "another run's mark",
            vec![Process { mark: Some(Mark { run: "0".repeat(16), ..Mark::default() }), ..process(300) }],
            vec![],
            vec![],
        ),
        (
            "ourselves, our ancestors, init and lariat's own are spared",
            vec![
                marked(500),
                marked(1),
                Process { identity: Identity::new(90, 40), ..marked(90) },
                Process { session: 100, ..marked(501) },
            ],
            vec![(501, Why::Marked)],
            vec![],
        ),
        (
            "what has a keeper's number now is no keeper",
            vec![Process { identity: Identity::new(90, 99), ..marked(90) }],
            vec![(90, Why::Marked)],
            vec![],
        ),
    ]
}

fn sessions_and_groups() -> Vec<Row> {
    let zombie = |process| Process { is_alive: false, ..process };
    let older = |pid| Process { identity: Identity::new(pid, 10), ..member(pid) };
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

/// A daemon that says nothing of itself, at work in the project.
pub(super) fn bare(pid: i32) -> Process {
    let traces = Traces { cwd: Some("/p/web".into()), ..Traces::default() };
    Process { has_home: false, traces: Some(traces), session: 299, ..process(pid) }
}

pub(super) fn traced(process: Process, traces: Traces) -> Process {
    Process { traces: Some(traces), ..process }
}

fn left_chosen_and_outputs() -> Vec<Row> {
    let pipes = |inode| Traces { pipes: BTreeSet::from([inode]), ..Traces::default() };
    let at =
        |start, process: Process| Process { identity: Identity::new(process.identity.pid, start), ..process };
    vec![
        ("one that could not be ended before", vec![at(30, process(80))], vec![(80, Why::Left)], vec![]),
        ("its number was reused since", vec![at(31, process(80))], vec![], vec![]),
        ("one that a person chose", vec![at(30, process(81))], vec![(81, Why::Chosen)], vec![]),
        (
            "and what it has started",
            vec![at(30, process(81)), descendant(300, 81)],
            vec![(81, Why::Chosen), (300, Why::Descendant(81))],
            vec![],
        ),
        (
            "one that writes to the output",
            vec![traced(process(300), pipes(7_000))],
            vec![(300, Why::Output)],
            vec![],
        ),
        ("to another pipe", vec![traced(process(300), pipes(7_001))], vec![], vec![]),
        ("older than the leader", vec![at(49, traced(process(300), pipes(7_000)))], vec![], vec![]),
        ("another user's", vec![foreign(traced(process(300), pipes(7_000)))], vec![], vec![]),
    ]
}

fn ports_and_places() -> Vec<Row> {
    let at =
        |start, process: Process| Process { identity: Identity::new(process.identity.pid, start), ..process };
    let listener =
        |ports: &[u16]| traced(process(300), Traces { ports: ports.to_vec(), ..Traces::default() });
    let inside = |path: &str| Some(std::path::PathBuf::from(path));
    let place = |trace| vec![(300, Why::Place(trace))];
    let cwd = || place(Trace::WorkingDirectory);
    let program = Traces { program: inside("/p/bin/x"), ..Traces::default() };
    let file = Traces { files: vec!["/dev/null".into(), "/p/db".into()], ..Traces::default() };
    let outside = Traces { cwd: inside("/px"), program: inside("/usr/bin/x"), ..Traces::default() };
    let gone = Traces { cwd: inside("/p (deleted)"), ..Traces::default() };
    vec![
        ("a listener on the port", vec![listener(&[8000])], vec![], vec![(300, Why::Port(8000))]),
        ("a listener on another", vec![listener(&[8001])], vec![], vec![]),
        ("one that was there before", vec![at(39, listener(&[8000]))], vec![], vec![]),
        ("another user's", vec![foreign(listener(&[8000]))], vec![], vec![]),
        ("bare, in the project", vec![bare(300)], vec![], cwd()),
        ("its program is", vec![traced(bare(300), program)], vec![], place(Trace::Program)),
        ("a file of it is", vec![traced(bare(300), file)], vec![], place(Trace::File)),
        ("nothing of it is", vec![traced(bare(300), outside)], vec![], vec![]),
        ("its directory was removed", vec![traced(bare(300), gone)], vec![], vec![]),
        ("on a terminal", vec![Process { has_terminal: true, ..bare(300) }], vec![], vec![]),
        ("before the run", vec![at(39, bare(300))], vec![], vec![]),
        ("another user's, bare", vec![foreign(bare(300))], vec![], vec![]),
        ("a keeper", vec![Process { is_keeper: true, ..bare(300) }], vec![], vec![]),
        ("somebody's child", vec![at(45, process(310)), Process { ppid: 310, ..bare(300) }], vec![], vec![]),
        (
            "adopted by one who was there before",
            vec![at(20, process(310)), Process { ppid: 310, ..bare(300) }],
            vec![],
            cwd(),
        ),
        (
            "adopted by one as young as the run",
            vec![at(40, process(310)), Process { ppid: 310, ..bare(300) }],
            vec![],
            cwd(),
        ),
        (
            "in a session that was there before",
            vec![at(20, process(310)), Process { session: 310, ..bare(300) }],
            vec![],
            vec![],
        ),
        (
            "what a suspect has started goes with it",
            vec![bare(300), Process { ppid: 300, ..process(301) }],
            vec![],
            vec![(300, Why::Place(Trace::WorkingDirectory)), (301, Why::Descendant(300))],
        ),
    ]
}

#[test]
fn who_is_certain_and_who_is_possible() {
    let rows = [identities_and_marks(), sessions_and_groups(), left_chosen_and_outputs(), ports_and_places()];
    check(rows.concat());
}

/// Whatever the order in which they are seen.
pub(super) fn check(rows: Vec<Row>) {
    for (name, processes, certain, possible) in rows {
        let mut reversed = processes.clone();
        reversed.reverse();
        for processes in [processes, reversed] {
            let mut clues = clues();
            clues.left = vec![Identity::new(80, 30)];
            clues.chosen = vec![Identity::new(81, 30)];
            let findings = find(&clues, &snapshot(&processes));
            assert_eq!(
                (findings.reach, reasons(&findings.certain)),
                (Reach::Here, certain.clone()),
                "{name}"
            );
            assert_eq!(reasons(&findings.possible), possible, "{name}");
        }
    }
}

pub(super) const ANOTHER: &str = "00000000000000bb";

pub(super) fn of_another(pid: i32) -> Process {
    Process { mark: Some(Mark { run: ANOTHER.into(), ..Mark::default() }), ..process(pid) }
}

/// What belongs to a run that is alive is nobody's leftover, by whatever clue it is found.
#[test]
fn a_run_that_is_alive_is_spared() {
    let pipes = Traces { pipes: BTreeSet::from([7_000]), ports: vec![8000], ..Traces::default() };
    let supervisor = Process { identity: Identity::new(400, 61), ..marked(400) };
    let processes = [
        leader(),
        Process { ppid: 100, ..of_another(300) },
        Process { ppid: 300, ..process(301) },
        Process { session: 100, ..of_another(302) },
        traced(of_another(303), pipes.clone()),
        supervisor.clone(),
        Process { ppid: 400, is_keeper: true, ..process(401) },
        Process { ppid: 401, ..traced(bare(402), pipes) },
        Process { ppid: 401, ..bare(403) },
        Process { ppid: 300, ..bare(404) },
    ];
    let mut snapshot = snapshot(&processes);
    let all = find(&clues(), &snapshot);
    assert!(all.certain.len() > 5, "the negative control: {:?}", reasons(&all.certain));
    snapshot.living = Living {
        marks: BTreeSet::from([ANOTHER.to_owned()]),
        own: BTreeSet::from([supervisor.identity]),
        home: None,
    };
    let findings = find(&clues(), &snapshot);
    assert_eq!(reasons(&findings.certain), [(100, Why::Recorded), (402, Why::Output)]);
    assert_eq!(reasons(&findings.possible), []);
}

#[test]
fn a_run_inside_another_one_does_not_claim_what_carries_the_others_mark() {
    let clues = Clues { has_mark: false, ..clues() };
    let findings = find(&clues, &snapshot(&[leader(), marked(300), Process { ppid: 100, ..marked(301) }]));
    assert_eq!(reasons(&findings.certain), [(100, Why::Recorded), (301, Why::Descendant(100))]);
}

#[test]
fn patterns_find_what_works_in_the_project() {
    let command = |pid, cwd: &str, words: &[u8]| {
        let (cwd, arguments) = (Some(cwd.into()), words.to_vec());
        traced(process(pid), Traces { cwd, arguments, ..Traces::default() })
    };
    let vite = |pid| command(pid, "/p/web", b"node\0/p/node_modules/.bin/vite\0");
    let processes = [
        vite(300),
        command(301, "/q", b"vite\0"),
        command(302, "/p", b"vim\0vite\0"),
        foreign(vite(303)),
        vite(500),
        Process { is_alive: false, ..vite(304) },
        Process { mark: of_another(0).mark, ..vite(305) },
        Process { is_keeper: true, ..process(400) },
        Process { ppid: 400, ..vite(401) },
        Process { identity: Identity::new(306, 20), ..vite(306) },
        process(307),
    ];
    let snapshot = snapshot(&processes);
    let patterns = patterns::CommandPattern::built_in();
    let found = |run, since| {
        let found = by_pattern(&snapshot, Path::new("/p"), &patterns, run, since);
        assert!(found.iter().all(|found| found.pattern.as_deref() == Some("vite")));
        reasons(&found)
    };
    assert_eq!(found(None, None), [(306, Why::Pattern), (300, Why::Pattern)]);
    assert_eq!(found(None, Some(40)), [(300, Why::Pattern)]);
    assert_eq!(found(Some(ANOTHER), Some(40)), [(300, Why::Pattern), (305, Why::Pattern)]);
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
    assert_eq!(clues.left, [Identity::new(4300, 123_999)]);
    assert_eq!((clues.began, clues.place.as_deref()), (Some(123_456), Some(Path::new("/home/ada/shop"))));
    assert_eq!(clues.ports, [("web".to_owned(), 5173)]);
    assert!(place(Path::new("/")).is_none() && place(Path::new("relative")).is_none());
    record.services[0].session = Some(77);
    record.services[0].earlier = vec![EarlierStart {
        leader: ProcessRecord { pid: 9, start: 1, inode: None },
        session: 9,
        output: Some(5),
    }];
    let own = |clues: Clues| clues.leaders.iter().map(|l| l.has_own_session).collect::<Vec<_>>();
    assert_eq!(own(Clues::of(&record)), [false, true]);
}

fn any_process() -> impl Strategy<Value = Process> {
    let small = || 1..12_i32;
    (small(), 45..65_u64, small(), small(), small(), 0..3_u32, any::<bool>(), 0..3_u8).prop_map(
        |(pid, start, ppid, pgrp, session, uid, is_alive, mark)| Process {
            dir: None,
            supervisor: None,
            identity: Identity::new(pid, start),
            ppid,
            pgrp,
            session,
            uid: (uid < 2).then_some(uid),
            is_alive,
            is_keeper: mark == 0 && pgrp == 3,
            has_terminal: session == 5,
            has_home: ppid % 2 == 0,
            is_unit: pgrp == 4,
            mark: (mark > 0).then(|| Mark {
                run: if mark == 1 { RUN.into() } else { "other".into() },
                ..Mark::default()
            }),
            comm: String::new(),
            traces: Some(Traces {
                cwd: Some(if pgrp % 2 == 0 { "/p/x".into() } else { "/q".into() }),
                pipes: BTreeSet::from([7_000 + u64::from(session == 7)]),
                ports: if session == 9 { vec![8000] } else { Vec::new() },
                ..Traces::default()
            }),
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
            began: Some(48),
            place: Some("/p".into()),
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
        // Another user is only possible for the mark, which makes nobody certain, and for what he has started then.
        let is_marked = |found: &Found| found.why == Why::MarkedByOther;
        let users: BTreeSet<Option<u32>> =
            findings.possible.iter().filter(|found| is_marked(found)).map(|found| found.uid).collect();
        prop_assert!(!users.contains(&Some(0)) && !findings.certain.iter().any(is_marked));
        for found in &findings.possible {
            prop_assert!(found.uid == Some(0) || users.contains(&found.uid));
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
        // Another run that is alive loses nobody who carries its mark, or is its own, but recorded leaders.
        let living = Living { marks: BTreeSet::from(["other".into()]), own: BTreeSet::new(), home: None };
        let findings = find(&Clues { ports: vec![("web".into(), 8000)], began: Some(50), ..clues.clone() },
            &Snapshot { living, ..snapshot });
        for found in findings.certain.iter().chain(&findings.possible) {
            let mark = by_pid[&found.identity.pid].mark.as_ref();
            prop_assert!(mark.is_none_or(|mark| mark.run != "other") || found.why == Why::Recorded);
        }
    }
}

#[test]
fn within_one_tick_the_inode_tells_whose_number_it_is() {
    let seen = |inode| Process { identity: leader().identity.with_inode(inode), ..leader() };
    let in_group = |pid| Process { pgrp: 100, ..process(pid) };
    // What the ledger says, what is seen, and whether that is the leader.
    for (recorded, found, is_leader) in [
        (Some(7), Some(7), true),
        (Some(7), Some(8), false),
        (None, Some(8), true),
        (Some(7), None, true),
        (None, None, true),
    ] {
        let mut clues = clues();
        clues.leaders[0].leader = clues.leaders[0].leader.with_inode(recorded);
        let findings = find(&clues, &snapshot(&[seen(found), member(300), in_group(301)]));
        let (certain, possible) = (reasons(&findings.certain), reasons(&findings.possible));
        if is_leader {
            assert_eq!(certain, [(100, Why::Recorded), (300, Why::Session(100)), (301, Why::Group(100))]);
        } else {
            assert!(certain.is_empty() && possible.is_empty(), "{certain:?}, {possible:?}");
        }
    }
}

#[test]
fn a_keepers_number_within_one_tick_spares_nobody() {
    let mut clues = clues();
    clues.spared[0] = clues.spared[0].with_inode(Some(7));
    let with = |inode| Process { identity: Identity::new(90, 40).with_inode(inode), ..marked(90) };
    assert!(find(&clues, &snapshot(&[with(Some(7))])).is_empty());
    let findings = find(&clues, &snapshot(&[with(Some(8))]));
    assert_eq!(reasons(&findings.certain), [(90, Why::Marked)]);
}
