//! A keeper dies at a moment that is hard to hit: before it has said who its leader is, or together with another one.

use std::time::Duration;

use lariat_testkit::trace::{Trace, Victims, Who};
use lariat_testkit::{
    Arena, Command, Containment, Facts, PATIENCE, Stack, census, fixture, needs, subject, wait_until,
};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");
const MEMBERS: [&str; 2] = ["leader", "daemon"];

/// Starts a command, holds its keeper up at its first word, which names the leader, and kills it there.
fn lose_it_before_its_first_word(command: Command, facts: &Facts) -> Option<Trace> {
    lose_it_then(command, || facts.has("ready"))
}

/// The same, once `is_time`.
fn lose_it_then(command: Command, is_time: impl Fn() -> bool) -> Option<Trace> {
    let mut trace = match Trace::start(command, &subject::lariat(LARIAT), Who::Supervisor, None) {
        Ok(trace) => trace,
        Err(error) => {
            needs::skip(&format!("nobody may trace here: {error}"));
            return None;
        }
    };
    trace.hold(Who::Keeper(0), "sendto", 0);
    assert!(trace.run("the keeper's first word", |trace| trace.is_held() && is_time()));
    trace.strike(Victims::Keeper(0));
    assert!(trace.has_struck());
    Some(trace)
}

fn assert_told_once(facts: &Facts) {
    for role in MEMBERS {
        assert_eq!(facts.told(role), [1], "{role}: {:?}", facts.names());
        assert!(facts.has(&format!("clean-{role}")), "{role}: {:?}", facts.names());
    }
}

#[test]
fn a_keeper_that_dies_before_its_first_word_leaves_nobody_to_be_told_twice() {
    // Without a trial of cgroups, whose process would be counted as a keeper.
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let lariat = subject::lariat(LARIAT);
    let words =
        ["run", "--grace", "20s", "--", fixture::path(), "daemon", "--manner", "graceful", "--ms", "300"];
    let command = arena.command(&lariat).args(words).facts(&facts).own_session();
    let Some(trace) = lose_it_before_its_first_word(command, &facts) else { return };
    assert_eq!(trace.running().wait().code(), Some(125));
    assert_told_once(&facts);
    arena.finish();
}

#[test]
fn a_keeper_of_a_service_that_dies_before_its_first_word_leaves_nobody_to_be_told_twice() {
    // Without a trial of cgroups, whose process would be counted as a keeper.
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let line = fixture::line("daemon", &facts, "--manner graceful --ms 300");
    let toml = format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '14s' }}\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let command = stack.lariat(&arena, &["up", "--yes"]);
    let Some(trace) = lose_it_before_its_first_word(command, &facts) else { return };
    assert_eq!(trace.running().wait().code(), Some(1));
    assert_told_once(&facts);
    arena.finish();
}

/// Who died before its keeper heard nothing of that one's death, and nobody is taken for it who leads a session as it did.
#[test]
fn an_orphan_is_not_taken_for_its_leader_that_is_dead() {
    // Without a trial of cgroups, whose process would be counted as a keeper.
    let arena = Arena::with(Containment::Lineage);
    let script = |facts: &Facts| {
        format!("setsid sh -c \"{}\" &", fixture::line("alone", facts, "--manner graceful --ms 5"))
    };
    let is_orphan = |facts: &Facts| {
        let seen = facts.has("ready").then(|| census::Seen::of(facts.pid("leader"))).flatten();
        let parent =
            seen.filter(|seen| seen.session == seen.pid).and_then(|seen| census::Seen::of(seen.parent));
        parent.is_some_and(|parent| parent.comm.starts_with("keeper:"))
    };
    let assert_told = |facts: &Facts| {
        assert_eq!(facts.told("leader"), [1], "{:?}", facts.names());
        assert!(facts.has("clean-leader"), "{:?}", facts.names());
    };

    let facts = arena.facts("run");
    let words = ["run", "--grace", "20s", "--", "sh", "-c", &script(&facts)];
    let command = arena.command(subject::lariat(LARIAT)).args(words).own_session();
    let Some(trace) = lose_it_then(command, || is_orphan(&facts)) else { return };
    assert_eq!(trace.running().wait().code(), Some(125));
    assert_told(&facts);

    let facts = arena.facts("up");
    let toml =
        format!("[service.server]\nrun = ['sh', '-c', '{}']\nstop = {{ grace = '14s' }}\n", script(&facts));
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let Some(trace) = lose_it_then(stack.lariat(&arena, &["up", "--yes"]), || is_orphan(&facts)) else {
        return;
    };
    assert_eq!(trace.running().wait().code(), Some(1));
    assert_told(&facts);
    arena.finish();
}

/// The orphans of two keepers cannot be told apart, and end together: the one who is lost second gets its grace all the
/// same.
#[test]
fn of_two_keepers_that_are_lost_the_second_has_its_own_grace() {
    // Without a trial of cgroups, whose process would be counted as a keeper.
    let arena = Arena::with(Containment::Lineage);
    let (short, long) = (arena.facts("short"), arena.facts("long"));
    let toml = format!(
        "[service.short]\nrun = '{}'\nstop = {{ grace = '700ms' }}\n\
         [service.long]\nrun = '{}'\nstop = {{ grace = '6s' }}\n",
        fixture::line("daemon", &short, "--manner stubborn"),
        fixture::line("daemon", &long, "--manner graceful --ms 2000"),
    );
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    short.wait_for("ready");
    long.wait_for("ready");
    for name in ["short", "long"] {
        let before = stack.count("keeper-lost");
        let keepers = stack.keepers(&arena);
        let keeper = keepers.iter().find(|keeper| keeper.comm == format!("keeper:{name}"));
        keeper.expect("it is alive").kill();
        stack.wait_event("keeper-lost", before);
    }
    wait_until("the end", PATIENCE, || up.ended(Duration::from_millis(50)));
    assert_told_once(&long);
    arena.finish();
}

/// Who waits for a stack that ends in the moment in which it is up is not told that it is.
#[test]
fn a_service_that_ends_as_it_starts_is_no_success() {
    // Without a trial of cgroups, whose process would be counted as a keeper.
    let arena = Arena::with(Containment::Lineage);
    for round in 0..9 {
        let toml = "[service.server]\nrun = ['/bin/sh', '-c', 'exit 3']\n";
        let stack = Stack::new(&arena, LARIAT, &format!("p{round}"), toml);
        let up = stack.run(&arena, &["up", "-d", "--yes"]);
        // On a machine under load it may have been up for so long that nobody would have waited.
        if lived(&stack) < Duration::from_millis(150) {
            assert_eq!(up.code(), Some(1), "{up:?}");
            assert!(!up.out().contains("goes on in the background"), "{up:?}");
        }
        arena.wait_until_empty(PATIENCE);
    }
    arena.finish();
}

/// From the stack's being up to its first end of a service.
fn lived(stack: &Stack) -> Duration {
    let events = wait_until("the end", PATIENCE, || {
        let events = stack.events();
        events.contains("service-ended").then_some(events)
    });
    let time = |kind: &str| {
        let line = events.lines().find(|line| line.contains(&format!("\"event\":\"{kind}\"")));
        let event: serde_json::Value = serde_json::from_str(line.expect("it happened")).expect("an event");
        Duration::from_micros(event["time"].as_u64().expect("a number"))
    };
    time("service-ended").saturating_sub(time("startup-finished"))
}
