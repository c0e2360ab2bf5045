//! A recycled pid is nobody of ours: the whole command, in a pid namespace of few numbers, with strangers who wear the
//! numbers of leaders and members.
//!
//! Each guarantee has its negative control: what a reader of numbers would do to the same stranger.

use std::collections::BTreeSet;
use std::fs;

use lariat_sys::identity::Identity;
use lariat_testkit::census::Seen;
use lariat_testkit::numbers::{self, Numbers, Stranger};
use lariat_testkit::{Arena, Facts, PATIENCE, Running, Stack, census, fixture, needs, subject, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// A stack of one stubborn service with a child in a session of its own.
fn crashed_stack(arena: &Arena) -> (Stack, Facts) {
    let facts = arena.facts("f");
    let run = fixture::line("new-session", &facts, "--manner stubborn");
    let toml = format!("[service.server]\nrun = '{run}'\nstop = {{ grace = '300ms' }}\n");
    let stack = Stack::new(arena, LARIAT, "project", &toml);
    let up = stack.up(arena);
    facts.wait_for("ready");
    // A thread of its own writes the ledger.
    wait_until("the leader in the ledger", PATIENCE, || {
        fs::read_to_string(ledger(&stack)).is_ok_and(|text| text.contains("\"leader\": {")).then_some(())
    });
    crash(arena, &stack, &up);
    (stack, facts)
}

/// Kills the supervisor and its keeper in one go.
fn crash(arena: &Arena, stack: &Stack, up: &Running) {
    let keepers = stack.keepers(arena);
    assert_eq!(keepers.len(), 1);
    // Stopped and killed first, so that it does not see the supervisor's death, which would continue it.
    keepers.iter().for_each(|seen| seen.signal(libc::SIGSTOP));
    up.signal(libc::SIGSTOP);
    keepers.iter().for_each(Seen::kill);
    up.signal(libc::SIGKILL);
    up.wait();
    wait_until("the keeper's end", PATIENCE, || stack.keepers(arena).is_empty().then_some(()));
}

/// Ends what the crash left, without lariat, and gives the leader's number to a stranger who leads a session.
fn recycle(arena: &Arena, numbers: Numbers, facts: &Facts) -> Stranger {
    let leader = facts.pid("leader");
    arena.alive().iter().for_each(Seen::kill);
    arena.wait_until_empty(PATIENCE);
    numbers.stranger(leader, true)
}

fn ledger(stack: &Stack) -> std::path::PathBuf {
    stack.dir().join(".lariat/run.json")
}

/// Changes the text of the ledger.
fn forge(stack: &Stack, change: impl FnOnce(String) -> String) {
    let path = ledger(stack);
    let text = fs::read_to_string(&path).expect("the ledger is there");
    let forged = change(text.clone());
    assert_ne!(text, forged, "nothing to change in {text}");
    fs::write(path, forged).expect("it is ours");
}

/// Returns the leader as it stands in the ledger.
fn recorded(text: &str) -> &str {
    let (_, rest) = text.split_once("\"leader\": {").expect("the leader is in the ledger");
    rest.split_once('}').expect("an object ends").0
}

/// Returns `"key": VALUE` of an object.
fn field<'a>(object: &'a str, key: &str) -> &'a str {
    let at = object.find(&format!("\"{key}\": ")).expect("the field is there");
    object[at..].split([',', '\n']).next().unwrap_or_default()
}

#[test]
fn recovery_leaves_whoever_has_the_leaders_number_alone() {
    numbers::inside("recovery_leaves_whoever_has_the_leaders_number_alone", |numbers| {
        for command in [["down", "--yes"], ["up", "--yes"], ["down", "--force"]] {
            let arena = Arena::new();
            let (stack, facts) = crashed_stack(&arena);
            let stranger = recycle(&arena, numbers, &facts);
            if command[0] == "up" {
                let up = stack.up(&arena);
                assert!(stranger.is_alive(), "`up` ended a stranger");
                stack.run(&arena, &["down"]).expect(0);
                up.wait().expect(0);
            } else {
                let down = stack.run(&arena, &command).expect(0);
                let said = down.out() + &down.err();
                assert!(!said.contains("possibly"), "a stranger is offered: {said}");
            }
            assert!(stranger.is_alive(), "{command:?} ended a stranger");
            drop(stranger);
            arena.finish();
        }
    });
}

#[test]
fn of_the_same_tick_only_the_inode_tells_recovery_who_it_is() {
    numbers::inside("of_the_same_tick_only_the_inode_tells_recovery_who_it_is", |numbers| {
        if Identity::current().inode().is_none() {
            return needs::skip("this kernel has no pidfs: within one tick nothing tells");
        }
        for has_inode in [true, false] {
            let arena = Arena::new();
            let (stack, facts) = crashed_stack(&arena);
            let text = fs::read_to_string(ledger(&stack)).expect("the ledger is there");
            let leader = recorded(&text);
            let stranger = recycle(&arena, numbers, &facts);
            assert_eq!(field(leader, "pid"), format!("\"pid\": {}", stranger.seen.pid));
            // As if it had got the number within the leader's own tick.
            let start = format!("\"start\": {}", stranger.seen.start);
            let mut forged = leader.replace(field(leader, "start"), &start);
            if !has_inode {
                forged = forged.replace(field(leader, "inode"), "\"inode\": null");
            }
            forge(&stack, |text| text.replace(leader, &forged));
            stack.run(&arena, &["down", "--yes", "--force"]);
            // The control: with pid and start alone, it is taken for the leader and ended.
            assert_eq!(stranger.is_alive(), has_inode, "with an inode in the ledger: {has_inode}");
            drop(stranger);
            arena.finish();
        }
    });
}

/// Strangers who take every number that becomes free, for as long as a stop goes on.
struct Crowd {
    strangers: Vec<Stranger>,
}

/// As many strangers as leave the others enough numbers to work with.
const CROWD_MAX: usize = 70;

impl Crowd {
    /// Replaces the oldest strangers by new ones, so that numbers go round.
    fn mill(&mut self, numbers: Numbers) {
        let gone = (self.strangers.len() + 8).saturating_sub(CROWD_MAX);
        drop(self.strangers.drain(..gone));
        // Where the others have taken all that were left, there is none for now.
        self.strangers.extend((0..8).filter_map(|_| numbers.next()));
    }

    fn check(&self) {
        let dead: Vec<String> =
            self.strangers.iter().filter(|s| !s.is_alive()).map(|s| s.seen.to_string()).collect();
        assert!(dead.is_empty(), "strangers were signalled: {dead:?}");
    }
}

/// Starts a run whose members change their numbers all the time.
fn storm(arena: &Arena, facts: &Facts) -> Running {
    let command = arena.command(subject::lariat(LARIAT)).args(["run", "--grace", "100ms", "--"]);
    let command = command.args([fixture::path(), "runners", "--n", "4", "--life-us", "300"]).facts(facts);
    let running = command.own_session().start();
    facts.wait_for("ready");
    running
}

#[test]
fn a_stop_among_strangers_who_take_every_free_number_hits_none_of_them() {
    numbers::inside("a_stop_among_strangers_who_take_every_free_number_hits_none_of_them", |numbers| {
        if !numbers.are_few() {
            return;
        }
        let mut worn = BTreeSet::new();
        for round in 0..25 {
            let arena = Arena::new();
            let facts = arena.facts("f");
            let mut crowd = Crowd { strangers: Vec::new() };
            let running = storm(&arena, &facts);
            crowd.mill(numbers);
            // The stop of a living lariat, and the one after its death.
            running.signal(if round % 2 == 0 { libc::SIGTERM } else { libc::SIGKILL });
            wait_until("the end of the run", PATIENCE, || {
                crowd.check();
                crowd.mill(numbers);
                worn.extend(crowd.strangers.iter().map(|stranger| stranger.seen.pid));
                let is_over = running.ended(std::time::Duration::ZERO).is_some();
                let ours: BTreeSet<i32> = crowd.strangers.iter().map(|stranger| stranger.seen.pid).collect();
                let others = arena.alive().iter().any(|seen| !ours.contains(&seen.pid));
                (is_over && !others).then_some(())
            });
            crowd.check();
            drop(crowd);
            arena.finish();
        }
        assert!(worn.len() > 60, "the numbers did not go round: {worn:?}");
    });
}

#[test]
fn a_killer_by_number_hits_a_stranger_in_the_same_crowd() {
    // The control of the test before: numbers are read first and signalled afterwards, as `kill $(pgrep …)` does it.
    numbers::inside("a_killer_by_number_hits_a_stranger_in_the_same_crowd", |numbers| {
        if !numbers.are_few() {
            return;
        }
        let is_hit = (0..20).any(|_| {
            let arena = Arena::new();
            let facts = arena.facts("f");
            let mut crowd = Crowd { strangers: Vec::new() };
            let running = storm(&arena, &facts);
            let leader = facts.pid("leader");
            let found = census::by_children(running.pid());
            // As long as it takes a slow reader for the numbers to go round.
            (0..8).for_each(|_| crowd.mill(numbers));
            for seen in found.iter().filter(|seen| seen.comm == "misbehave" && seen.pid != leader) {
                numbers::kill_number(seen.pid);
            }
            let is_hit = crowd.strangers.iter().any(|stranger| !stranger.is_alive());
            running.signal(libc::SIGTERM);
            running.wait();
            drop(crowd);
            arena.finish();
            is_hit
        });
        assert!(is_hit, "no stranger was hit: the crowd proves nothing");
    });
}
