//! `lariat doctor` and its drill from outside: what they say, that a leak is noticed, and that nothing of a drill is left
//! however it ends. The judge here is the testkit's, not the drill's own.

use std::collections::BTreeSet;
use std::time::Duration;

use lariat_drill::member::MEMBER_ARG;
use lariat_testkit::boundary::Boundary;
use lariat_testkit::census::{self, Seen};
use lariat_testkit::{Arena, Command, PATIENCE, Pty, is_root, needs, subject, wait_until};

/// More than any of the short drills here takes on a busy machine.
const DRILL_WITHIN: Duration = Duration::from_secs(150);

fn doctor(arena: &Arena, arguments: &[&str]) -> Command {
    let command = arena.command(subject::lariat(env!("CARGO_BIN_EXE_lariat"))).arg("doctor");
    arguments.iter().fold(command, |command, argument| command.arg(*argument))
}

fn drill(arena: &Arena, arguments: &[&str]) -> (Option<i32>, serde_json::Value, String) {
    let running = doctor(arena, &[&["--drill", "--json"], arguments].concat()).start();
    let ending = wait_until("the end of a drill", DRILL_WITHIN, || running.ended(Duration::from_millis(100)));
    let report = serde_json::from_str(&ending.out()).unwrap_or_default();
    (ending.code(), report, format!("{}{}", ending.out(), ending.err()))
}

/// Asserts that nothing was found in `count` cells; says that the test is skipped where this machine builds no such tree.
#[track_caller]
fn nothing_is_found((code, report, said): (Option<i32>, serde_json::Value, String), count: usize) {
    assert_eq!((code, &report["findings"]), (Some(0), &0.into()), "{said}");
    let cells = report["cells"].as_array().expect("a list");
    let why: BTreeSet<&str> = cells.iter().filter_map(|cell| cell["skipped"].as_str()).collect();
    if why.is_empty() {
        assert_eq!((&report["judged"], cells.len()), (&count.into(), count), "{said}");
    } else {
        needs::skip(&why.into_iter().collect::<Vec<_>>().join("; "));
    }
}

/// What temporary directories of drills are left in the arena.
fn stages(arena: &Arena) -> usize {
    let entries = std::fs::read_dir(arena.dir().join("tmp")).expect("the arena has one");
    entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("lariat-drill-")).count()
}

#[test]
fn it_says_what_there_is_and_what_each_ending_leads_to() {
    let arena = Arena::new();
    let ending = doctor(&arena, &[]).run();
    let text = ending.out();
    assert_eq!(ending.code(), Some(0), "{text}{}", ending.err());
    for word in ["yes lineage", "lariat gets KILL", "yes pidfd", "open files", "runtime"] {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }
    arena.finish();
}

#[test]
fn the_same_is_there_as_data() {
    let arena = Arena::new();
    let ending = doctor(&arena, &["--json"]).run();
    let report: serde_json::Value = serde_json::from_str(&ending.out()).expect("it is JSON");
    assert_eq!((ending.code(), &report["is_usable"]), (Some(0), &true.into()));
    let lineage = &report["containments"][0];
    assert_eq!((&lineage["name"], &lineage["is_available"]), (&"lineage".into(), &true.into()), "{lineage}");
    let promises = lineage["promises"].as_array().expect("a list");
    let leaving: Vec<&str> = promises
        .iter()
        .filter(|promise| promise["leaves_nothing"] == false)
        .filter_map(|promise| promise["ending"].as_str())
        .collect();
    let limits = &report["service_limits"];
    assert!(limits["is_available"].is_boolean() && limits["state"].is_string(), "{limits}");
    assert_eq!(leaving, ["all-killed", "up-all-killed"], "what may leave anything");
    arena.finish();
}

#[test]
fn a_quick_drill_finds_nothing_and_leaves_nothing() {
    let arena = Arena::new();
    let (code, report, said) = drill(&arena, &["--quick"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((&report["is_kept"], &report["is_complete"]), (&true.into(), &true.into()), "{said}");
    assert!(report["judged"].as_u64().is_some_and(|judged| judged >= 60), "{said}");
    assert_eq!(stages(&arena), 0);
    arena.finish();
}

#[test]
fn storms_and_attacks_are_ended_too() {
    let arena = Arena::new();
    let trees = ["storm", "bomb", "phoenix", "sessions", "stops-lariat", "kills-keeper", "kills-lariat"];
    let endings = ["--ending", "term", "--ending", "killed", "--ending", "exits"];
    let (code, report, said) = drill(&arena, &[&trees[..], &endings[..]].concat());
    assert_eq!((code, &report["findings"]), (Some(0), &0.into()), "{said}");
    arena.finish();
}

/// A keeper that a member holds as a debugger does ends nobody, and hears nothing but KILL: once its supervisor is dead,
/// the next command waits for it, and then does without.
#[test]
fn a_keeper_that_is_held_is_done_without() {
    let arena = Arena::new();
    let endings = ["--ending", "killed", "--ending", "up-killed", "--containment", "lineage"];
    let (code, report, said) = drill(&arena, &[&["traces-keeper"], &endings[..]].concat());
    assert_eq!((code, &report["findings"], &report["judged"]), (Some(0), &0.into(), &2.into()), "{said}");
    arena.finish();
}

/// A member that has a descriptor of the run's lock makes it look as if lariat were at work: the next command does not wait
/// for that one.
#[test]
fn a_member_that_has_taken_the_lock_is_not_waited_for() {
    let arena = Arena::new();
    let (code, report, said) =
        drill(&arena, &["thief", "--ending", "up-all-killed", "--containment", "lineage"]);
    assert_eq!((code, &report["findings"], &report["judged"]), (Some(0), &0.into(), &1.into()), "{said}");
    arena.finish();
}

/// One STOP to a keeper at work: when its leader leaves, and while it ends what is left.
#[test]
fn a_keeper_that_is_stopped_once_does_its_work() {
    let arena = Arena::new();
    let endings = ["--ending", "exits", "--ending", "term", "--ending", "up-exits"];
    let containment = ["--containment", "lineage"];
    let (code, report, said) = drill(&arena, &[&["stops-keeper"], &endings[..], &containment].concat());
    assert_eq!((code, &report["findings"], &report["judged"]), (Some(0), &0.into(), &3.into()), "{said}");
    arena.finish();
}

/// Whoever says a keeper's last word in its place makes lariat leave nobody behind.
#[test]
fn words_that_a_keeper_has_not_said_leave_nobody() {
    let arena = Arena::new();
    let endings = ["--ending", "exits", "--ending", "term", "--ending", "up-exits"];
    let containment = ["--containment", "lineage"];
    nothing_is_found(drill(&arena, &[&["false-words"], &endings[..], &containment].concat()), 3);
    // Nobody else's member may take a descriptor of the first process of its namespace.
    if is_root() && arena.has_pid_namespaces() {
        let arguments = ["false-words", "--ending", "exits", "--containment", "namespace"];
        nothing_is_found(drill(&arena, &arguments), 1);
    }
    arena.finish();
}

/// HAZARD(left-descent): a command leaves it to the next sweep, a stack finds it at its end.
#[test]
fn who_is_left_in_the_namespace_of_another_is_found_by_the_mark() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return arena.finish();
    }
    let arguments = ["joined", "--ending", "term", "--ending", "up-term", "--containment", "lineage"];
    let (code, report, said) = drill(&arena, &arguments);
    let cells = report["cells"].as_array().cloned().unwrap_or_default();
    nothing_is_found((code, report, said), 2);
    // That somebody was left is the control.
    for cell in cells.iter().filter(|cell| cell["skipped"].is_null()) {
        let is_left = (cell["ending"] == "term").then_some(1);
        assert_eq!(cell["before_sweep"].as_u64(), is_left, "{cell:#}");
    }
    arena.finish();
}

/// Returns a line of `/proc/PID/status`, without its name.
fn status(pid: i32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|rest| rest.trim().to_owned())
}

/// Says whether a signal is in a set of a process.
fn has_signal(pid: i32, set: &str, signal: i32) -> bool {
    let bits = status(pid, set).and_then(|text| u64::from_str_radix(&text, 16).ok());
    bits.is_some_and(|bits| bits >> (signal - 1) & 1 == 1)
}

/// A tree in a container whose first process is a lariat, and its leader's parent. Only where the judge is said to be
/// outside of the namespace was that one made in the cell, and is attacked.
#[test]
fn the_first_process_of_a_container_is_nobodys_keeper() {
    for is_judge_outside in [true, false] {
        let arena = Arena::new();
        if !arena.has_pid_namespaces() {
            return;
        }
        let outside =
            std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/self/ns/pid").expect("our own"));
        let namespace = if is_judge_outside {
            outside.to_string()
        } else {
            "$(stat -Lc %i /proc/self/ns/pid)".to_owned()
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
        let (exe, dir, until) =
            (subject::lariat(env!("CARGO_BIN_EXE_lariat")), arena.work(), (now + 100) * 1000);
        let (exe, dir) = (exe.display(), dir.display());
        // As the judge hands it out. The role around lariat stands for whatever runs in a container.
        let part = |role| {
            format!("{exe} {MEMBER_ARG} {role} {dir}/judge {} $namespace {until} graceful 30 {dir}", i32::MAX)
        };
        let script = format!("namespace={namespace}; exec {} {}", part("caller"), part("traces-keeper"));
        let user: &[&str] = if is_root() { &[] } else { &["-U", "--map-root-user"] };
        let unshare =
            arena.command("unshare").args(user).args(["-fp", "--mount-proc", "/bin/sh", "-c", &script]);
        let running = unshare.own_session().start();
        // It blocks every signal before it waits for some, which the kernel shows as open then.
        let (first, attacker) = wait_until("the attacker", PATIENCE, || {
            let first = Seen::of(*census::children_of(running.pid()).first()?)?;
            let is_attacker = |seen: &Seen| {
                seen.parent == first.pid
                    && seen.session != first.session
                    && has_signal(seen.pid, "SigBlk", libc::SIGALRM)
            };
            let attacker = census::by_parent(first.pid).into_iter().find(is_attacker)?;
            Some((first, attacker))
        });
        attacker.signal(libc::SIGTERM);
        wait_until("its attack", PATIENCE, || {
            has_signal(attacker.pid, "SigIgn", libc::SIGTERM).then_some(())
        });
        let is_held = status(first.pid, "TracerPid").expect("it is alive") != "0";
        first.kill();
        arena.wait_until_empty(PATIENCE);
        arena.finish();
        if is_judge_outside && !is_held {
            return needs::skip("nobody may hold another process here");
        }
        assert_eq!(is_held, is_judge_outside, "a stranger was attacked");
    }
}

/// What lariat remembers a run by is gone when it would be needed: everybody is found all the same.
#[test]
fn a_run_whose_records_were_removed_is_ended_all_the_same() {
    let arena = Arena::new();
    let endings = ["--ending", "killed", "--ending", "all-killed", "--ending", "up-all-killed"];
    let containment = ["--containment", "lineage"];
    let (code, report, said) = drill(&arena, &[&["removes-ledger"], &endings[..], &containment].concat());
    assert_eq!((code, &report["findings"], &report["judged"]), (Some(0), &0.into(), &3.into()), "{said}");
    arena.finish();
}

/// What a drill sees of a program that starts commands and cares for nothing.
#[test]
fn a_leak_is_noticed() {
    let arena = Arena::new();
    let plain = arena.script("plain", "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\n\"$@\"\n");
    let plain = plain.to_string_lossy().into_owned();
    let endings = ["--ending", "exits", "--ending", "term", "--ending", "killed", "--containment", "lineage"];
    let trees = ["alone", "daemon", "disguised", "ports"];
    let (code, report, said) = drill(&arena, &[&["--subject", &plain], &trees[..], &endings[..]].concat());
    assert_eq!(code, Some(4), "{said}");
    let cells = report["cells"].as_array().expect("a list");
    let cell = |tree: &str, ending: &str| {
        cells.iter().find(|cell| cell["tree"] == tree && cell["ending"] == ending).expect("it was judged")
    };
    let leaks =
        |tree: &str, ending: &str| !cell(tree, ending)["survivors"].as_array().expect("a list").is_empty();
    assert!(
        leaks("daemon", "exits") && leaks("disguised", "exits"),
        "the daemon of a leader that left: {said}"
    );
    assert!(leaks("daemon", "killed") && leaks("alone", "term"), "nobody tells the command: {said}");
    assert!(!leaks("alone", "exits"), "nothing was there to be left: {said}");
    let ports = cell("ports", "exits")["ports"].as_array().expect("a list");
    assert!(ports.len() >= 3, "TCP, UDP and a unix socket: {ports:?}");
    // What was found to be left was ended all the same.
    arena.finish();
}

/// A subject that ends everything at once keeps nobody, and has taken the grace period away.
#[test]
fn a_missing_grace_period_is_noticed() {
    let arena = Arena::new();
    let brutal = arena.script(
        "brutal",
        "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\n\"$@\" &\ntrap 'kill -9 $!; exit' TERM\nwait\n",
    );
    let brutal = brutal.to_string_lossy().into_owned();
    let (code, report, said) =
        drill(&arena, &["--subject", &brutal, "alone", "--ending", "term", "--containment", "lineage"]);
    assert_eq!(code, Some(4), "{said}");
    let denied = report["cells"][0]["denied"].as_array().expect("a list");
    assert_eq!(denied.len(), 1, "{said}");
    arena.finish();
}

#[test]
fn a_finding_says_how_to_see_it_again() {
    let arena = Arena::new();
    let plain = arena.script("plain", "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\n\"$@\"\n");
    let arguments = ["--drill", "daemon", "--ending", "exits", "--seed", "7", "--subject"];
    let ending = doctor(&arena, &arguments).arg(&plain).run();
    let said = ending.out();
    assert_eq!(ending.code(), Some(4), "{said}");
    assert!(said.contains("doctor --drill daemon --ending exits --containment lineage --seed 7"), "{said}");
    assert!(said.contains("1 survived: daemon"), "{said}");
    arena.finish();
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing() {
    let arena = Arena::new();
    let mut pty = Pty::new();
    pty.resize(50, 100);
    let running = pty.start(doctor(&arena, &["--drill", "storm", "phoenix", "daemon", "--repeat", "50"]));
    pty.wait_for("(3/");
    pty.send("\x03");
    let ending = pty.wait_end(&running);
    assert_eq!(ending.code(), Some(9), "{}", pty.text());
    assert!(pty.text().contains("nothing of it is left"), "{}", pty.text());
    assert_eq!(stages(&arena), 0);
    arena.finish();
}

/// A doctor that has a cgroup directory to itself, in which everything is that it makes and does not remove.
fn doctor_in(boundary: &Boundary, arena: &Arena, arguments: &[&str]) -> Command {
    let script = "echo 0 > \"$0\" && exec \"$@\"";
    let place = boundary.path().join("cgroup.procs");
    let exe = subject::lariat(env!("CARGO_BIN_EXE_lariat"));
    let command = arena.command("/bin/sh").arg("-c").arg(script).arg(place).arg(exe).arg("doctor");
    arguments.iter().fold(command, |command, argument| command.arg(*argument)).env("LARIAT_CGROUP", "")
}

/// Trees and endings after which nobody removes what lariat made, one of them with a lariat inside.
const LITTERING: [&str; 11] = [
    "--drill",
    "daemon",
    "nested",
    "sub-cgroup",
    "frozen",
    "--ending",
    "killed",
    "--ending",
    "keeper-killed",
    "--ending",
    "all-killed",
];

#[test]
fn no_cgroup_directory_is_left_behind() {
    let arena = Arena::new();
    let Some(boundary) = Boundary::new("drill-litter") else { return };
    let running = doctor_in(&boundary, &arena, &LITTERING).start();
    let ending = wait_until("the end", DRILL_WITHIN, || running.ended(Duration::from_millis(100)));
    assert_eq!(ending.code(), Some(0), "{}{}", ending.out(), ending.err());
    assert!(ending.out().contains("killed"), "it was drilled: {}", ending.out());
    assert_eq!(boundary.inner(), Vec::<std::path::PathBuf>::new());
    assert_eq!(stages(&arena), 0);
    arena.finish();
}

/// Whoever of guard and drill is killed in the middle: the other one leaves no directory.
#[test]
fn a_killed_drill_leaves_no_directory() {
    for kills_guard in [false, true] {
        let arena = Arena::new();
        let Some(boundary) = Boundary::new(&format!("drill-killed-{kills_guard}")) else { return };
        let mut pty = Pty::new();
        let running =
            pty.start(doctor_in(&boundary, &arena, &[&LITTERING[..], &["--repeat", "50"]].concat()));
        pty.wait_for("(3/");
        let made = boundary.inner();
        assert!(!made.is_empty() && stages(&arena) == 1, "it is in the middle: {made:?}");
        if kills_guard {
            running.signal(libc::SIGKILL);
            running.wait();
            arena.wait_until_empty(PATIENCE);
        } else {
            let drills = census::children_of(running.pid());
            Seen::of(drills[0]).expect("it is alive").kill();
            pty.wait_end(&running);
        }
        assert_eq!(boundary.inner(), Vec::<std::path::PathBuf>::new(), "the guard was killed: {kills_guard}");
        assert_eq!(stages(&arena), 0);
        arena.finish();
    }
}

#[test]
fn killing_the_drill_leaves_it_to_its_guard() {
    let arena = Arena::new();
    let mut pty = Pty::new();
    let running = pty.start(doctor(&arena, &["--drill", "storm", "daemon", "--repeat", "50"]));
    pty.wait_for("(3/");
    let drills = census::children_of(running.pid());
    assert_eq!(drills.len(), 1, "the guard has one child: {drills:?}");
    Seen::of(drills[0]).expect("it is alive").kill();
    let ending = pty.wait_end(&running);
    assert_eq!(ending.code(), Some(9), "{}", pty.text());
    arena.finish();
}

#[test]
fn killing_the_guard_ends_the_drill() {
    let arena = Arena::new();
    let mut pty = Pty::new();
    let running = pty.start(doctor(&arena, &["--drill", "storm", "daemon", "--repeat", "50"]));
    pty.wait_for("(3/");
    running.signal(libc::SIGKILL);
    running.wait();
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

#[test]
fn a_reader_that_leaves_ends_the_drill() {
    let arena = Arena::new();
    let exe = subject::lariat(env!("CARGO_BIN_EXE_lariat"));
    let script = format!("{} doctor --drill alone child daemon --repeat 200 | head -n 2", exe.display());
    let running = arena.command("/bin/sh").args(["-c", &script]).own_session().start();
    let ending = wait_until("the end", DRILL_WITHIN, || running.ended(Duration::from_millis(100)));
    assert_eq!(ending.out().lines().count(), 2, "{}", ending.out());
    arena.finish();
}

#[test]
fn names_that_do_not_exist_are_refused_before_anything_starts() {
    let arena = Arena::new();
    let wrong: [&[&str]; 4] = [
        &["--drill", "demon"],
        &["--drill", "--ending", "tern"],
        &["--drill", "--containment", "chains"],
        &["daemon"],
    ];
    for arguments in wrong {
        let ending = doctor(&arena, arguments).run();
        assert_eq!(ending.code(), Some(2), "{arguments:?}: {}", ending.err());
    }
    let list = doctor(&arena, &["--drill", "--list"]).run().out();
    assert!(list.contains("disguised") && list.contains("keeper-killed"), "{list}");
    arena.finish();
}

/// Where `/proc` is not ours nothing works, and it says so.
#[test]
fn a_proc_that_is_not_ours_is_no_good() {
    if !is_root() {
        return;
    }
    let arena = Arena::new();
    let exe = subject::lariat(env!("CARGO_BIN_EXE_lariat"));
    let command = arena.command("unshare").args(["--pid", "--fork"]).arg(exe).arg("doctor");
    let ending = command.run();
    assert_eq!(ending.code(), Some(9), "{}", ending.out());
    assert!(ending.err().contains("/proc"), "{}", ending.err());
    arena.finish();
}
