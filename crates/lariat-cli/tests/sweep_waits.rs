//! What is seen of a sweep while it waits, and what signals change about it: the first one kills, the second one leaves.

mod crash;

use std::time::Duration;

use crash::{LARIAT, crash, is_alive, mark_of, names, said, wait_ledger};
use lariat_testkit::census::Seen;
use lariat_testkit::stuck::DeafServer;
use lariat_testkit::{Arena, Containment, Facts, PATIENCE, Pty, Stack, fixture, is_root, needs, wait_until};

/// A stack of a service that ignores the stop signal, with this grace period, of which all of lariat was killed.
fn crashed(arena: &Arena, kind: &str, args: &str, grace: &str) -> (Stack, Facts) {
    let facts = arena.facts("f");
    let line = fixture::line(kind, &facts, args);
    let toml = format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '{grace}' }}\n");
    let stack = Stack::new(arena, LARIAT, "project", &toml);
    let up = stack.up(arena);
    facts.wait_for("ready");
    wait_ledger(&stack, facts.pid("leader"));
    crash(arena, &[&up]);
    (stack, facts)
}

#[test]
fn a_terminal_shows_who_is_waited_for_and_the_first_signal_kills() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = crashed(&arena, "alone", "--manner stubborn", "90s");
    let mut pty = Pty::new();
    let sweep = pty.start(stack.in_front(&arena, &["sweep", "--yes"]));
    pty.wait_for("waiting 1 min");
    pty.wait_for(&format!("{} `", facts.pid("leader")));
    pty.send("\x03");
    pty.wait_for("killing everything now");
    let ending = pty.wait_end(&sweep);
    assert!(ending.code() == Some(0) && !is_alive(facts.pid("leader")), "{ending:?}: {}", pty.text());
    assert!(
        pty.text().contains("1 of them killed") && pty.text().contains("nothing is left"),
        "{}",
        pty.text()
    );
    arena.finish();
}

#[test]
fn without_a_terminal_one_line_says_it_and_only_after_a_while() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = crashed(&arena, "alone", "--manner stubborn", "3s");
    let sweep = stack.run(&arena, &["sweep", "--yes"]).expect(0);
    let told: Vec<String> =
        sweep.err().lines().filter(|line| line.starts_with("waiting ")).map(str::to_owned).collect();
    assert!(told.len() == 1 && !sweep.err().contains('\r'), "{}", said(&sweep));
    names(&told[0], &[facts.pid("leader")]);
    arena.finish();
}

#[test]
fn programs_that_read_json_are_told_nothing_besides() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, _) = crashed(&arena, "alone", "--manner stubborn", "2s");
    let sweep = stack.run(&arena, &["sweep", "--yes", "--json"]).expect(0);
    assert_eq!(sweep.err(), "");
    arena.finish();
}

/// The first signal to an `up` that ends what a crash left is a no to the stack.
#[test]
fn an_up_that_is_interrupted_while_it_ends_leftovers_starts_nothing() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = crashed(&arena, "alone", "--manner stubborn", "90s");
    let before = stack.count("startup-finished");
    let up = stack.lariat(&arena, &["up", "--yes"]).start();
    wait_until("the wait", PATIENCE, || up.stderr().contains("waiting ").then_some(()));
    up.signal(libc::SIGINT);
    let ending = up.wait().expect(8);
    assert!(ending.err().contains("nothing was started"), "{}", said(&ending));
    assert!(!is_alive(facts.pid("leader")) && stack.count("startup-finished") == before);
    arena.finish();
}

/// Called from a shell that the run left, a command carries the run's mark and has the run's lock, as a member that has
/// stolen it would.
#[test]
fn a_marked_command_that_ends_a_run_is_not_killed_by_the_next_one_that_waits() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = crashed(&arena, "alone", "--manner stubborn", "8s");
    let first =
        stack.lariat(&arena, &["down", "--yes"]).env("LARIAT_RUN", mark_of(facts.pid("leader"))).start();
    wait_until("the lock", PATIENCE, || first.stderr().contains("waiting ").then_some(()));
    let second = stack.lariat(&arena, &["down", "--yes"]).start();
    // A thief is given three seconds, and somebody looks once a second.
    let first = first.wait().expect(0);
    assert!(first.out().contains("nothing is left") && !is_alive(facts.pid("leader")), "{}", said(&first));
    let second = second.wait().expect(6);
    assert!(second.err().contains("another lariat is ending"), "it has waited: {}", said(&second));
    arena.finish();
}

#[test]
fn the_second_signal_leaves_whoever_does_not_die() {
    if !is_root() {
        return needs::skip_as_user("it takes root to make a process that cannot be ended");
    }
    let arena = Arena::with(Containment::Lineage);
    let dir = arena.dir().join("deaf");
    std::fs::create_dir(&dir).expect("the arena is ours");
    let Ok(mut server) = DeafServer::mount(&dir) else { return needs::skip("there is no FUSE") };
    let args = format!("--manner graceful --file {}", server.file().display());
    let (stack, facts) = crashed(&arena, "reader", &args, "300ms");
    let reader = facts.pid("reader");
    let sweep = stack.lariat(&arena, &["sweep", "--yes"]).start();
    wait_until("KILL", PATIENCE, || sweep.stderr().contains("killing ").then_some(()));
    sweep.signal(libc::SIGINT);
    wait_until("the first", PATIENCE, || sweep.stderr().contains("one more signal").then_some(()));
    sweep.signal(libc::SIGINT);
    // Without it, kill passes go on for fifteen seconds.
    let ending = sweep.wait_at_most(Duration::from_secs(9)).expect(4);
    names(&ending.out(), &[reader]);
    assert!(ending.err().contains("leaving") && Seen::of(reader).is_some(), "{}", said(&ending));
    server.stop();
    wait_until("the death of whoever was killed", PATIENCE, || (!is_alive(reader)).then_some(()));
    stack.run(&arena, &["sweep", "--yes", "--force"]).expect(0);
    drop(server);
    arena.finish();
}
