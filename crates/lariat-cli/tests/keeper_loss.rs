//! A keeper dies at a moment that is hard to hit: before it has said who its leader is, or together with another one.

use std::time::Duration;

use lariat_keeper::wire::{End, Notice};
use lariat_sys::reap::Exit;
use lariat_sys::spawn::SpawnStep;
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
    let mut trace = hold_at_its_first_word(0, command, is_time)?;
    trace.strike(Victims::Keeper(0));
    assert!(trace.has_struck());
    Some(trace)
}

/// Starts a command, and holds the keeper that is its nth up at its first word until `is_time`.
fn hold_at_its_first_word(nth: usize, command: Command, is_time: impl Fn() -> bool) -> Option<Trace> {
    let mut trace = match Trace::start(command, &subject::lariat(LARIAT), Who::Supervisor, None) {
        Ok(trace) => trace,
        Err(error) => {
            needs::skip(&format!("nobody may trace here: {error}"));
            return None;
        }
    };
    trace.hold(Who::Keeper(nth), "sendto", 0);
    assert!(trace.run("the keeper's first word", |trace| trace.is_held() && is_time()));
    Some(trace)
}

fn assert_told_once(facts: &Facts) {
    for role in MEMBERS {
        facts.assert_told(role, &[1], "its keeper is dead");
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
    let facts = arena.facts("run");
    let words = ["run", "--grace", "20s", "--", "sh", "-c", &leaves_an_orphan(&facts)];
    let command = arena.command(subject::lariat(LARIAT)).args(words).own_session();
    let Some(trace) = lose_it_then(command, || is_orphan(&facts)) else { return };
    assert_eq!(trace.running().wait().code(), Some(125));
    assert_orphan_told(&facts);

    let facts = arena.facts("up");
    let script = leaves_an_orphan(&facts);
    let toml = format!("[service.server]\nrun = ['sh', '-c', '{script}']\nstop = {{ grace = '14s' }}\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let Some(trace) = lose_it_then(stack.lariat(&arena, &["up", "--yes"]), || is_orphan(&facts)) else {
        return;
    };
    assert_eq!(trace.running().wait().code(), Some(1));
    assert_orphan_told(&facts);
    arena.finish();
}

/// The same of a keeper that is lost while the orphans of another one are being ended.
#[test]
fn nor_is_one_of_the_second_keeper_that_is_lost() {
    // Without a trial of cgroups, whose process would be counted as a keeper.
    let arena = Arena::with(Containment::Lineage);
    let (first, second) = (arena.facts("first"), arena.facts("second"));
    let (line, script) = (fixture::line("alone", &first, "--manner stubborn"), leaves_an_orphan(&second));
    let toml = format!(
        "[service.first]\nrun = '{line}'\nstop = {{ grace = '8s' }}\n\
         [service.second]\nrun = ['sh', '-c', '{script}']\nstop = {{ grace = '8s' }}\n"
    );
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    // It has its name a moment after its leader has begun.
    let keeper = || arena.alive().into_iter().find(|seen| seen.comm == "keeper:first");
    let is_time = || first.has("ready") && is_orphan(&second) && keeper().is_some();
    let Some(mut trace) = hold_at_its_first_word(1, stack.lariat(&arena, &["up", "--yes"]), is_time) else {
        return;
    };
    keeper().expect("it has its name").kill();
    assert!(trace.run("the first keeper's loss", |_| stack.count("keeper-lost") == 1));
    trace.strike(Victims::Keeper(1));
    assert!(trace.has_struck());
    assert_eq!(trace.running().wait().code(), Some(1));
    assert_orphan_told(&second);
    arena.finish();
}

/// A line for `sh` that leaves a process in a session of its own and ends.
fn leaves_an_orphan(facts: &Facts) -> String {
    format!("setsid sh -c \"{}\" &", fixture::line("alone", facts, "--manner graceful --ms 5"))
}

fn is_orphan(facts: &Facts) -> bool {
    let seen = facts.has("ready").then(|| census::Seen::of(facts.pid("leader"))).flatten();
    let parent = seen.filter(|seen| seen.session == seen.pid).and_then(|seen| census::Seen::of(seen.parent));
    parent.is_some_and(|parent| parent.comm.starts_with("keeper:"))
}

fn assert_orphan_told(facts: &Facts) {
    facts.assert_told("leader", &[1], "its keeper is dead");
    assert!(facts.has("clean-leader"), "{:?}", facts.names());
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

/// HAZARD(forged-word): the end of all is believed of a keeper that ends, and leaves nobody.
#[test]
fn a_last_word_that_the_keeper_has_not_said_is_not_believed() {
    all_last_words().for_each(|word| say_in_its_place(word, "nothing"));
}

#[test]
fn nor_is_one_whose_keeper_was_killed_after_it() {
    all_last_words().for_each(|word| say_in_its_place(word, "kill"));
}

/// Nor does it help to say it without end.
#[test]
fn nor_is_one_that_is_said_again_and_again() {
    all_last_words().for_each(|word| say_in_its_place(word, "repeat"));
}

/// Without the right to open anything nothing can be asked, which is no yes.
#[test]
fn nor_is_one_by_a_lariat_that_cannot_ask() {
    say_in_its_place(Notice::Ended(End { exit: Some(Exit::Code(0)), ..End::default() }), "limit");
}

fn all_last_words() -> impl Iterator<Item = Notice> {
    let end = End { exit: Some(Exit::Code(0)), ..End::default() };
    let failed = Notice::SpawnFailed { step: SpawnStep::Exec, errno: libc::ENOENT };
    [Notice::Ended(end), Notice::Ended(End { left: 1, ..end }), failed].into_iter()
}

/// A member says this in its keeper's place, and does something else besides.
fn say_in_its_place(notice: Notice, besides: &str) {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let word: String = notice.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    let words =
        ["run", "--grace", "300ms", "--", fixture::path(), "forger", "--manner", "stubborn", "--word", &word];
    let words = words.into_iter().chain(["--besides", besides]);
    let lariat = arena.command(subject::lariat(LARIAT)).args(words).facts(&facts).own_session();
    let ending = lariat.run();
    assert_eq!(facts.get("forged").as_deref(), Some("1"), "nobody may take a descriptor here");
    assert_eq!(ending.code(), Some(125), "{notice:?}, {besides}: {}", ending.err());
    if besides == "limit" {
        // Nobody can be found either, which is said, and known to the next command.
        assert!(ending.err().contains("not all that it left could be ended"), "{}", ending.err());
        arena.command(subject::lariat(LARIAT)).args(["sweep", "--yes"]).run().expect(0);
    }
    assert!(arena.alive().is_empty(), "{notice:?}, {besides}: {:?} {}", arena.alive(), ending.err());
    arena.finish();
}

/// One STOP to a keeper at work, and what it holds ends: nobody gives an order then, and no timer runs.
#[test]
fn a_keeper_that_was_stopped_at_work_hears_of_the_end() {
    let arena = Arena::new();
    let script = "kill -STOP $PPID; exit 3";
    let lariat = arena.command(subject::lariat(LARIAT)).args(["run", "--", "sh", "-c", script]).own_session();
    assert_eq!(lariat.run().code(), Some(3));
    let toml = format!("[service.server]\nrun = ['sh', '-c', '{script}']\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.run(&arena, &["up", "--yes"]).expect(1);
    assert!(up.out().contains("exit code 3"), "{}{}", up.out(), up.err());
    arena.finish();
}

/// A supervisor that died cannot wake its keeper any more; whoever waits for the keeper does.
#[test]
fn a_stopped_keeper_of_a_dead_supervisor_is_woken_by_whoever_waits_for_it() {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let line = fixture::line("alone", &facts, "--manner graceful --ms 5");
    let stack = Stack::new(&arena, LARIAT, "project", &format!("[service.server]\nrun = '{line}'\n"));
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let keepers = stack.keepers(&arena);
    let [keeper] = &keepers[..] else { panic!("{keepers:?}") };
    // Its own parent-death signal wakes it once: after that.
    up.signal(libc::SIGKILL);
    drop(up.wait());
    keeper.signal(libc::SIGSTOP);
    stack.run(&arena, &["down", "--yes"]).expect(0);
    assert!(!keeper.is_alive_now() && arena.alive().is_empty());
    arena.finish();
}

/// Nobody of lariat had the time to write down who the keeper is, and a debugger has it.
#[test]
fn a_keeper_that_is_held_before_anybody_knows_it_is_done_without() {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let lariat = subject::lariat(LARIAT);
    let words =
        ["run", "--grace", "1s", "--", fixture::path(), "daemon", "--manner", "graceful", "--ms", "5"];
    let command = arena.command(&lariat).args(words).facts(&facts).own_session();
    let Some(trace) = hold_at_its_first_word(0, command, || facts.has("ready")) else { return };
    trace.running().signal(libc::SIGKILL);
    // A run whose supervisor is not dead yet would be left alone.
    trace.running().wait();
    arena.command(&lariat).args(["sweep", "--yes"]).start().wait_at_most(PATIENCE).expect(0);
    drop(trace);
    arena.wait_until_empty(PATIENCE);
    assert_told_once(&facts);
    arena.finish();
}

/// `--force` waits for nobody, keepers neither.
#[test]
fn force_does_not_wait_for_the_keepers_of_a_dead_supervisor() {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let line = fixture::line("alone", &facts, "--manner stubborn");
    let toml = format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '90s' }}\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    up.signal(libc::SIGKILL);
    drop(up.wait());
    stack.lariat(&arena, &["down", "--force", "--yes"]).start().wait_at_most(PATIENCE).expect(0);
    assert!(arena.alive().is_empty());
    arena.finish();
}

/// The file of the lock is what says that a run is alive; a run that it was taken from is alive all the same.
#[test]
fn a_run_whose_lock_was_removed_is_not_swept() {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let line = fixture::line("daemon", &facts, "--manner graceful --ms 5");
    let stack = Stack::new(&arena, LARIAT, "project", &format!("[service.server]\nrun = '{line}'\n"));
    let up = stack.up(&arena);
    facts.wait_for("ready");
    std::fs::remove_file(stack.dir().join(".lariat/lock")).expect("it is there");
    stack.run(&arena, &["sweep", "--yes"]);
    assert!(up.is_alive());
    ["leader", "daemon"].into_iter().for_each(|role| facts.assert_told(role, &[], "by `sweep`"));
    stack.run(&arena, &["up", "--yes"]).expect(5);
    stack.run(&arena, &["down", "--yes"]).expect(0);
    assert_told_once(&facts);
    arena.finish();
}

/// A stack whose state directory is removed. Kills its supervisor, and its keepers as well if all are to die.
fn lose_its_ledger(arena: &Arena, facts: &Facts, args: &str, is_all: bool) -> Stack {
    let line = fixture::line("daemon", facts, args);
    let toml = format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '20s' }}\n");
    let stack = Stack::new(arena, LARIAT, "project", &toml);
    let up = stack.up(arena);
    facts.wait_for("ready");
    if is_all {
        let keepers = stack.keepers(arena);
        keepers.iter().for_each(|keeper| keeper.signal(libc::SIGSTOP));
        up.signal(libc::SIGSTOP);
        keepers.iter().for_each(|keeper| keeper.signal(libc::SIGKILL));
    }
    up.signal(libc::SIGKILL);
    drop(up.wait());
    if is_all {
        wait_until("the keepers' end", PATIENCE, || stack.keepers(arena).is_empty().then_some(()));
    }
    std::fs::remove_dir_all(stack.dir().join(".lariat")).expect("nobody writes there any more");
    stack
}

/// HAZARD(removed-ledger): the run's entry in the list is what is left to know it by.
#[test]
fn what_a_run_left_whose_ledger_was_removed_is_found() {
    for next in [&["down", "--yes"][..], &["up", "-d", "--yes"]] {
        let arena = Arena::with(Containment::Lineage);
        let facts = arena.facts("f");
        let stack = lose_its_ledger(&arena, &facts, "--manner graceful --ms 5", true);
        let daemon = facts.pid("daemon");
        let ending = stack.run(&arena, next).expect(0);
        let said = format!("{}{}", ending.out(), ending.err());
        assert!(said.contains("the ledger of run") && said.contains("is gone"), "{next:?}: {said}");
        assert!(arena.alive().iter().all(|alive| alive.pid != daemon), "{next:?}: {said}");
        // Both heard of it, the leader by the kernel (HAZARD(parent-death-again)); `up` has begun the same anew.
        facts.assert_told("daemon", &[1], format!("{next:?}: {said}"));
        let told = facts.told_in_words("leader");
        assert_eq!(facts.told("leader").len(), 1, "{next:?}: {told}: {said}");
        let last = if next[0] == "up" { 0 } else { 6 };
        stack.run(&arena, &["down", "--yes"]).expect(last);
        arena.wait_until_empty(PATIENCE);
        arena.finish();
    }
}

/// What is left of it hangs on the keeper of another run, which is alive, is none of its own, and is spared.
#[test]
fn what_such_a_run_left_under_another_run_is_swept() {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let line = fixture::line("daemon", &facts, "--manner graceful --ms 5");
    let toml = format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '20s' }}\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let lariat = subject::lariat(LARIAT).into_string().expect("a plain path");
    let script = format!("{lariat} up --yes; exec sleep 60");
    let words = ["run", "--grace", "20s", "--", "sh", "-c", &script];
    let outer = arena.command(&lariat).args(words).dir(stack.dir()).own_session().start();
    facts.wait_for("ready");
    let keeper = || arena.alive().into_iter().find(|seen| seen.comm == "keeper:server");
    let keeper = wait_until("the inner keeper", PATIENCE, keeper);
    let inner = census::Seen::of(keeper.parent).expect("it is alive");
    inner.signal(libc::SIGSTOP);
    keeper.kill();
    inner.kill();
    wait_until("the death of both", PATIENCE, || {
        (!keeper.is_alive_now() && !inner.is_alive_now()).then_some(())
    });
    std::fs::remove_dir_all(stack.dir().join(".lariat")).expect("nobody writes there any more");
    let daemon = census::Seen::of(facts.pid("daemon")).expect("nobody has told it");
    let swept = stack.run(&arena, &["sweep", "--yes"]).expect(0);
    let said = format!("{}{}", swept.out(), swept.err());
    assert!(!daemon.is_alive_now(), "{said}");
    assert!(facts.has("clean-daemon") && outer.is_alive(), "{said}");
    outer.signal(libc::SIGTERM);
    drop(outer.wait());
    arena.finish();
}

/// Keepers do not hold the lock that the next command makes.
#[test]
fn keepers_of_a_run_whose_ledger_was_removed_are_waited_for() {
    // Once they are done there is no run any more, and nothing that a report could be made of.
    for (next, code) in [(&["down", "--yes"][..], 6), (&["up", "-d", "--yes"], 0)] {
        let arena = Arena::with(Containment::Lineage);
        let facts = arena.facts("f");
        let stack = lose_its_ledger(&arena, &facts, "--manner stubborn", false);
        // The keeper has told them, in vain, and waits for the end of their grace period.
        let members = MEMBERS.map(|role| census::Seen::of(facts.pid(role)).expect("it ignores the stop"));
        let waiting = stack.lariat(&arena, next).start();
        wait_until("the wait", PATIENCE, || {
            assert!(waiting.is_alive(), "{next:?} does not wait: {:?}", waiting.wait());
            waiting.stderr().contains("keepers of a dead supervisor").then_some(())
        });
        assert!(members.iter().all(census::Seen::is_alive_now), "{next:?} has ended them itself");
        members.iter().for_each(census::Seen::kill);
        let ending = waiting.wait().expect(code);
        let said = format!("{}{}", ending.out(), ending.err());
        assert!(!members.iter().any(census::Seen::is_alive_now), "{next:?}: {said}");
        stack.run(&arena, &["down", "--yes", "--force"]);
        arena.wait_until_empty(PATIENCE);
        arena.finish();
    }
}
