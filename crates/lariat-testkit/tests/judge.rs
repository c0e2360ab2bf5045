//! Negative controls: programs that leak on purpose make the harness fail, for every way it has of finding them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lariat_testkit::arena::set_subreaper;
use lariat_testkit::census::{self, Way};
use lariat_testkit::{Arena, PATIENCE, fixture, wait_until};

/// Runs a fixture that leaves something behind and returns what the arena found.
fn leaks_of(kind: &str) -> Vec<census::Seen> {
    let mut arena = Arena::new();
    let facts = arena.facts("f");
    let leaky =
        arena.command(fixture::path()).args([kind, "--leave", "1", "--code", "3"]).facts(&facts).start();
    facts.wait_for("ready");
    assert_eq!(leaky.wait().code(), Some(3));
    let leaks = arena.check();
    let again = arena.check();
    assert!(again.is_empty(), "the arena did not end what it found: {again}");
    leaks.processes
}

#[test]
fn a_daemon_is_found_in_all_three_ways() {
    let leaks = leaks_of("daemon");
    let ways: Vec<Way> = leaks.iter().flat_map(|seen| seen.ways.iter().copied()).collect();
    assert_eq!(ways, [Way::Children, Way::Parent, Way::Token], "{leaks:?}");
}

#[test]
fn a_disguised_daemon_is_found_by_its_parentage_alone() {
    let leaks = leaks_of("disguised");
    let [seen] = leaks.as_slice() else { panic!("one was left behind, found were {leaks:?}") };
    assert_eq!(seen.ways.iter().copied().collect::<Vec<_>>(), [Way::Children, Way::Parent]);
    assert_eq!((seen.comm.as_str(), seen.command.as_str()), ("kworker/u8:3", "[kworker/u8:3-events]"));
}

#[test]
fn what_got_away_from_this_process_is_found_by_its_token() {
    let mut arena = Arena::new();
    set_subreaper(false);
    let facts = arena.facts("f");
    let leaky = arena.command(fixture::path()).args(["daemon", "--leave", "1"]).facts(&facts).start();
    facts.wait_for("ready");
    leaky.wait();
    let daemon = facts.pid("daemon");
    wait_until("the daemon's adoption by another one", PATIENCE, || {
        let parent = census::Seen::of(daemon)?.parent;
        (parent != i32::try_from(std::process::id()).ok()? && parent != leaky.pid()).then_some(())
    });
    set_subreaper(true);
    let leaks = arena.check();
    let ways: Vec<Way> = leaks.processes.iter().flat_map(|seen| seen.ways.iter().copied()).collect();
    assert_eq!(ways, [Way::Token], "{leaks}");
}

#[test]
fn a_held_port_is_found_and_named() {
    let mut arena = Arena::new();
    let port = arena.port().to_string();
    let facts = arena.facts("f");
    let command = arena.command(fixture::path()).args(["port-holder", "--leave", "1", "--port", &port]);
    let leaky = command.facts(&facts).start();
    facts.wait_for("ready");
    leaky.wait();
    let leaks = arena.check();
    assert_eq!(leaks.ports.iter().map(ToString::to_string).collect::<Vec<_>>(), [port]);
    assert_eq!(leaks.processes.len(), 1);
}

#[test]
fn a_stopped_and_a_stubborn_leak_are_found_and_killed() {
    for kind in ["stopped", "alone"] {
        let mut arena = Arena::new();
        let facts = arena.facts("f");
        let leaky = arena.command(fixture::path()).args([kind, "--manner", "stubborn"]).facts(&facts).start();
        facts.wait_for("ready");
        leaky.signal(libc::SIGTERM);
        assert!(leaky.is_alive());
        let leaks = arena.check();
        assert_eq!(leaks.processes.len(), if kind == "stopped" { 2 } else { 1 }, "{leaks}");
        assert_eq!(leaky.wait().signal(), Some(libc::SIGKILL));
    }
}

#[test]
fn a_storm_is_found_and_killed() {
    let mut arena = Arena::new();
    let facts = arena.facts("f");
    let _leaky = arena.command(fixture::path()).args(["runners", "--n", "3"]).facts(&facts).start();
    facts.wait_for("ready");
    assert!(!arena.check().is_empty());
    assert!(arena.check().is_empty(), "the storm goes on");
}

#[test]
fn a_leak_fails_the_test_that_made_it() {
    let message = |end: fn(Arena)| {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let arena = Arena::new();
            let facts = arena.facts("f");
            let _leaky = arena.command(fixture::path()).arg("daemon").facts(&facts).start();
            facts.wait_for("ready");
            end(arena);
        }));
        let panic = result.expect_err("the harness let a leak pass");
        panic.downcast_ref::<String>().cloned().expect("panics carry their message")
    };
    for end in [Arena::finish as fn(Arena), drop] {
        let message = message(end);
        assert!(message.starts_with("2 processes and 0 ports were left behind"), "{message}");
        assert!(message.contains("(misbehave) `"), "{message}");
    }
}

#[test]
fn a_clean_test_passes() {
    let mut arena = Arena::new();
    let port = arena.port();
    assert_ne!(port, arena.port());
    let ending = arena.command("/bin/sh").args(["-c", "echo $HOME; pwd; exit 4"]).run().expect(4);
    let (home, work) = (arena.dir().join("home"), arena.work());
    assert_eq!(ending.out(), format!("{}\n{}\n", home.display(), work.display()));
    arena.finish();
}

#[test]
fn zombies_are_not_alive_and_a_process_without_its_first_thread_is() {
    let arena = Arena::new();
    let ended = arena.command("/bin/true").start();
    wait_until("a zombie", PATIENCE, || ended.seen().is_some_and(|seen| seen.state == 'Z').then_some(()));
    assert!(arena.alive().is_empty());
    ended.wait();
    let Some(python) = lariat_testkit::needs::program("python3") else { return };
    let text = "import ctypes,threading,time\nthreading.Thread(target=lambda:time.sleep(60)).start()\n\
                ctypes.CDLL(None).pthread_exit(None)\n";
    let headless = arena.command(python).args(["-c", text]).start();
    wait_until("a process whose first thread has exited", PATIENCE, || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", headless.pid())).ok()?;
        stat.contains(") Z ").then_some(())
    });
    assert!(headless.is_alive());
    headless.signal(libc::SIGKILL);
    headless.wait();
    arena.finish();
}
