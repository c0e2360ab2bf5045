//! `lariat run`: `--grace`, `--signal`, `--lifeline`, `--die-with-parent`; runs inside runs; callers that signal.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::Stdio;
use std::time::Duration;

use lariat_testkit::{
    Arena, Command, Facts, PATIENCE, Running, census, fixture, need, subject, wait_at_most, wait_until,
};

fn lariat(arena: &Arena) -> Command {
    arena.command(subject::lariat(env!("CARGO_BIN_EXE_lariat")))
}

fn path() -> String {
    subject::lariat(env!("CARGO_BIN_EXE_lariat")).into_string().expect("a plain path")
}

fn start(arena: &Arena, options: &[&str], kind: &[&str]) -> (Running, Facts) {
    let facts = arena.facts("f");
    let command =
        lariat(arena).arg("run").args(options).arg("--").arg(fixture::path()).args(kind).facts(&facts);
    let running = command.own_session().start();
    facts.wait_for("ready");
    (running, facts)
}

/// A graceful fixture of this kind on a lifeline.
fn on_lifeline(arena: &Arena, facts: &Facts, kind: &str) -> Command {
    let command =
        lariat(arena).args(["run", "--lifeline", "--", fixture::path(), kind, "--manner", "graceful"]);
    command.facts(facts).stdin(Stdio::piped())
}

/// Stops a process, and waits until it is.
fn stop(process: &census::Seen) {
    process.signal(libc::SIGSTOP);
    wait_until("the stop", PATIENCE, || (state(process.pid) == 'T').then_some(()));
}

/// Closes the lifeline, and waits until the leader and this one have ended as they like to.
#[track_caller]
fn end_by_lifeline(mut running: Running, facts: &Facts, other: &str) {
    drop(running.take_stdin());
    assert_eq!(running.wait().code(), Some(0));
    assert!(facts.has("clean-leader") && facts.has(&format!("clean-{other}")), "{:?}", facts.names());
}

#[test]
fn the_grace_period_is_the_one_that_was_asked_for() {
    let arena = Arena::new();
    let (running, _) = start(&arena, &["--grace", "400ms"], &["alone", "--manner", "stubborn"]);
    let before = std::time::Instant::now();
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code(), Some(137));
    let took = before.elapsed();
    assert!(took >= Duration::from_millis(400), "killed after {took:?}");
    assert!(took < Duration::from_secs(8), "the default grace period was used: {took:?}");
    arena.finish();
}

#[test]
fn no_grace_at_all_kills_at_once() {
    let arena = Arena::new();
    let (running, facts) =
        start(&arena, &["--grace", "0s"], &["alone", "--manner", "graceful", "--ms", "20000"]);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code(), Some(137));
    assert!(!facts.has("clean-leader"));
    arena.finish();
}

#[test]
fn the_stop_signal_is_the_one_that_was_asked_for() {
    for (name, number) in [("INT", libc::SIGINT), ("SIGHUP", libc::SIGHUP), ("15", libc::SIGTERM)] {
        let arena = Arena::new();
        let (running, facts) = start(&arena, &["--signal", name], &["child", "--manner", "graceful"]);
        running.signal(libc::SIGTERM);
        assert_eq!(running.wait().code(), Some(0));
        for role in ["leader", "child"] {
            facts.assert_told(role, &[1], format!("--signal {name}"));
            let heard = &facts.heard(role)[&facts.pid(role)];
            assert_eq!(heard[0].signal, number, "--signal {name}: {}", facts.told_in_words(role));
        }
        arena.finish();
    }
}

#[test]
fn stragglers_of_a_command_that_ended_well_get_their_grace_and_its_code_stays() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let kind = ["daemon", "--leave", "1", "--code", "33", "--manner", "graceful", "--ms", "300"];
    let command = lariat(&arena).args(["run", "--", fixture::path()]).args(kind).facts(&facts).own_session();
    command.run().expect(33);
    assert!(facts.has("clean-daemon"));
    facts.assert_told("daemon", &[1], "a straggler");
    arena.finish();
}

#[test]
fn any_signal_but_hup_kills_while_only_stragglers_are_waited_for() {
    let arena = Arena::new();
    let (running, facts) =
        start(&arena, &["--grace", "10m"], &["daemon", "--manner", "graceful", "--ms", "600000"]);
    let leader = facts.pid("leader");
    census::Seen::of(leader).expect("it is alive").kill();
    wait_until("the straggler's being told", PATIENCE, || (facts.told("daemon") == [1]).then_some(()));
    running.signal(libc::SIGHUP);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code(), Some(137));
    assert!(!facts.has("clean-daemon"));
    arena.finish();
}

#[test]
fn a_sent_second_signal_within_a_second_leaves_the_grace_period_alone() {
    let arena = Arena::new();
    let kind = ["child", "--manner", "graceful", "--ms", "300"];
    for (first, second) in [
        (libc::SIGTERM, libc::SIGTERM),
        (libc::SIGHUP, libc::SIGTERM),
        (libc::SIGTERM, libc::SIGINT),
        (libc::SIGTERM, libc::SIGHUP),
    ] {
        let (running, facts) = start(&arena, &["--grace", "20s"], &kind);
        running.signal(first);
        wait_until("the first signal's effect", PATIENCE, || {
            (!facts.told("leader").is_empty()).then_some(())
        });
        running.signal(second);
        assert_eq!(running.wait().code(), Some(0), "{first} then {second}");
        assert!(facts.has("clean-leader") && facts.has("clean-child"), "{first} then {second}");
        let _ = std::fs::remove_dir_all(facts.dir());
    }
    arena.finish();
}

#[test]
fn the_lifelines_end_ends_everything_gracefully() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let running = on_lifeline(&arena, &facts, "daemon").own_session().start();
    facts.wait_for("ready");
    let stdin = std::fs::read_link(format!("/proc/{}/fd/0", facts.pid("leader"))).expect("it is alive");
    assert_eq!(stdin.as_os_str(), "/dev/null");
    end_by_lifeline(running, &facts, "daemon");
    arena.finish();
}

/// The end of a lifeline continues nobody, so lariat must not have stopped with its command.
#[test]
fn the_lifelines_end_ends_a_stopped_command() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let running = on_lifeline(&arena, &facts, "child").own_group().start();
    facts.wait_for("ready");
    stop(&census::Seen::of(facts.pid("leader")).expect("it is alive"));
    let asleep = wait_at_most(Duration::from_millis(300), || (state(running.pid()) == 'T').then_some(()));
    assert_eq!(asleep, None, "lariat stopped with its command");
    end_by_lifeline(running, &facts, "child");
    arena.finish();
}

/// Lariat itself was stopped, by a member or with its job: the kernel wakes it.
#[test]
fn the_lifelines_end_wakes_a_stopped_lariat() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let running = on_lifeline(&arena, &facts, "child").own_session().start();
    facts.wait_for("ready");
    stop(&running.seen().expect("it is alive"));
    end_by_lifeline(running, &facts, "child");
    arena.finish();
}

/// The description is the caller's, who goes on using it.
#[test]
fn a_lifeline_is_given_back() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let (read, write) = std::io::pipe().expect("a pipe");
    let is_async = || {
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", read.as_raw_fd())).expect("it is open");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("it has flags");
        i32::from_str_radix(flags.trim(), 8).expect("octal") & libc::O_ASYNC != 0
    };
    let stdin = read.try_clone().expect("a copy");
    let running = on_lifeline(&arena, &facts, "child").stdin(stdin).own_session().start();
    facts.wait_for("ready");
    assert!(is_async(), "the control");
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code(), Some(0));
    assert!(!is_async());
    drop(write);
    arena.finish();
}

/// What is written to a lifeline wakes lariat, and nobody else.
#[test]
fn bytes_on_the_lifeline_continue_no_stopped_command() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let mut running = on_lifeline(&arena, &facts, "child").own_session().start();
    facts.wait_for("ready");
    let leader = census::Seen::of(facts.pid("leader")).expect("it is alive");
    stop(&leader);
    let mut lifeline = running.take_stdin().expect("it is piped");
    lifeline.write_all(b"x").expect("somebody reads");
    let is_continued = || (state(leader.pid) != 'T').then_some(());
    // The byte's CONT is pending since the write. Lariat takes it before any signal with a higher number, and its keeper
    // keeps the order: once that one waits in the command, a CONT would have arrived.
    running.signal(libc::SIGVTALRM);
    wait_until("the signal after it", PATIENCE, || is_pending(leader.pid, libc::SIGVTALRM).then_some(()));
    assert_eq!(is_continued(), None, "the command was continued");
    // The control: what a person sends does continue it, to die of what waits.
    running.signal(libc::SIGCONT);
    wait_until("the command to go on", PATIENCE, is_continued);
    assert_eq!(running.wait().code(), Some(128 + libc::SIGVTALRM));
    drop(lifeline);
    arena.finish();
}

/// Says whether a signal was sent to a process that has not taken it yet.
fn is_pending(pid: i32, signal: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    pending
        .is_some_and(|set| u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set >> (signal - 1) & 1 == 1))
}

/// A command that is stopped while it is being ended does not stop its end: nobody would continue it.
#[test]
fn a_command_that_stops_while_it_is_ended_is_ended() {
    let bash = need!("bash");
    let arena = Arena::new();
    let running = lariat(&arena)
        .args(["run", "--grace", "500ms", "--", &bash, "-c"])
        .arg("trap 'kill -STOP $$' TERM; echo ready; while :; do sleep 0.05; done")
        .own_group()
        .start();
    wait_until("the command", PATIENCE, || running.stdout().contains("ready").then_some(()));
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code(), Some(137));
    arena.finish();
}

/// Where no shell continues anybody, a command that was stopped stays stopped, as without lariat.
#[test]
fn a_command_that_was_stopped_without_a_shell_stays_stopped() {
    let arena = Arena::new();
    let (running, facts) = start(&arena, &[], &["alone"]);
    let leader = census::Seen::of(facts.pid("leader")).expect("it is alive");
    stop(&leader);
    let awake = wait_at_most(Duration::from_millis(500), || (state(leader.pid) != 'T').then_some(()));
    assert_eq!(awake, None, "it was continued");
    leader.signal(libc::SIGCONT);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code(), Some(143));
    arena.finish();
}

/// Somebody stopped the keeper: it is woken for an order, and by lariat's death.
#[test]
fn a_keeper_that_was_stopped_does_its_work() {
    for end in [libc::SIGTERM, libc::SIGKILL] {
        let arena = Arena::new();
        let (running, facts) = start(&arena, &["--grace", "10m"], &["daemon", "--manner", "graceful"]);
        let keepers = census::children_of(running.pid());
        let keeper = census::Seen::of(keepers[0]).expect("it is alive");
        // It is woken for that, and may be before it is told.
        keeper.signal(libc::SIGSTOP);
        running.signal(end);
        running.wait();
        arena.wait_until_empty(PATIENCE);
        assert!(facts.has("clean-leader") && facts.has("clean-daemon"));
        arena.finish();
    }
}

/// Returns the letter that `/proc` shows for what a process is doing.
fn state(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

#[test]
fn what_is_written_to_the_lifeline_means_nothing() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let mut running = on_lifeline(&arena, &facts, "alone").own_session().start();
    facts.wait_for("ready");
    let mut lifeline = running.take_stdin().expect("it is a pipe");
    lifeline.write_all(&[b'x'; 300_000]).expect("lariat reads its lifeline");
    assert!(running.is_alive() && !running.stdout().contains('x'));
    drop(lifeline);
    end_by_lifeline(running, &facts, "leader");
    facts.assert_told("leader", &[1], "by its end, and by nothing before");
    arena.finish();
}

#[test]
fn the_callers_death_closes_the_lifeline() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    // The shell holds the write end; when it is killed nobody does.
    let own = format!("{} run --lifeline -- {} daemon --facts {}", path(), fixture::path(), facts.as_arg());
    let text = format!("mkfifo line; {own} <line & exec 9>line; wait");
    let caller = arena.command("/bin/sh").args(["-c", &text]).own_session().start();
    facts.wait_for("ready");
    caller.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

#[test]
fn with_die_with_parent_the_parents_death_ends_everything() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let kind = format!("daemon --manner graceful --facts {}", facts.as_arg());
    let text = format!("{} run --die-with-parent -- {} {kind} & wait", path(), fixture::path());
    let caller = arena.command("/bin/sh").args(["-c", &text]).own_session().start();
    facts.wait_for("ready");
    caller.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    assert!(facts.has("clean-leader") && facts.has("clean-daemon"), "{:?}", facts.names());
    arena.finish();
}

#[test]
fn without_it_lariat_outlives_its_parent() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let text = format!("{} run -- {} alone --facts {} & wait", path(), fixture::path(), facts.as_arg());
    let caller = arena.command("/bin/sh").args(["-c", &text]).own_session().start();
    facts.wait_for("ready");
    caller.signal(libc::SIGKILL);
    caller.wait();
    let leader = census::Seen::of(facts.pid("leader")).expect("it is there");
    assert!(leader.is_alive());
    // USR1 makes the fixture exit by itself; lariat follows.
    leader.signal(libc::SIGUSR1);
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

#[test]
fn runs_inside_runs_tell_everybody_once() {
    for ending in [libc::SIGTERM, libc::SIGKILL] {
        let arena = Arena::new();
        let facts = arena.facts("f");
        let lariat_path = path();
        let inner = [lariat_path.as_str(), "run", "--", fixture::path(), "daemon", "--manner", "graceful"];
        let outer = lariat(&arena).args(["run", "--"]).args(inner).facts(&facts).own_session().start();
        facts.wait_for("ready");
        outer.signal(ending);
        outer.wait();
        arena.wait_until_empty(PATIENCE);
        for role in ["leader", "daemon"] {
            facts.assert_told(role, &[1], format!("signal {ending}"));
            assert!(facts.has(&format!("clean-{role}")));
        }
        arena.finish();
    }
}

#[test]
fn timeout_around_lariat_leaves_the_grace_period_alone() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let own = ["run", "--", fixture::path(), "child", "--manner", "graceful", "--ms", "400"];
    let command = arena.command("timeout").args(["0.5", &path()]).args(own).facts(&facts).own_session();
    command.run().expect(124);
    assert!(facts.has("clean-leader") && facts.has("clean-child"), "{:?}", facts.names());
    arena.finish();
}

#[test]
fn killing_every_lariat_by_name_leaves_the_keeper_to_do_its_work() {
    let arena = Arena::new();
    let (running, facts) = start(&arena, &[], &["daemon", "--manner", "graceful"]);
    let is_ours = |seen: &census::Seen| seen.comm == "lariat" || seen.command.contains("lariat run");
    let named: Vec<_> = arena.alive().into_iter().filter(is_ours).collect();
    assert_eq!(named.iter().map(|seen| seen.pid).collect::<Vec<_>>(), [running.pid()], "{named:?}");
    named.iter().for_each(census::Seen::kill);
    arena.wait_until_empty(PATIENCE);
    assert!(facts.has("clean-leader") && facts.has("clean-daemon"));
    arena.finish();
}
