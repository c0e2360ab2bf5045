//! SIGKILL at every system call of `lariat run`, of its keeper, and of what becomes the command.
//!
//! The run is one that has everything: a leader, a daemon in a session of its own, both graceful, ended by TERM. Whoever
//! is killed, and wherever: where one of the two is left, everything ends without help, who was up had its grace, and
//! nobody is told twice. Where none is left, the leader ends by the kernel's word, and what goes on is marked, and its run
//! is written down.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lariat_testkit::chance::rounds;
use lariat_testkit::trace::{Point, Strike, Trace, Victims, When, Who};
use lariat_testkit::{Arena, Chance, Facts, PATIENCE, census, fixture, needs, subject, wait_at_most};

const ROLES: [&str; 2] = ["leader", "daemon"];

/// Nobody of the tree needs more than an instant: who needs all of it was not told.
const GRACE: Duration = Duration::from_secs(20);

/// One run, and what was there when somebody was killed.
struct Run {
    began: Instant,
    trace: Trace,
    facts: Facts,
    was_up: bool,
    was_told: bool,
}

fn run(arena: &Arena, name: &str, strike: Option<Strike>) -> Option<Run> {
    let facts = arena.facts(name);
    let lariat = subject::lariat(env!("CARGO_BIN_EXE_lariat"));
    let (began, grace) = (Instant::now(), format!("{}s", GRACE.as_secs()));
    let command = arena.command(&lariat).args(["run", "--grace", &grace, "--", fixture::path()]);
    let command = command.args(["daemon", "--manner", "graceful", "--ms", "5"]).facts(&facts).own_session();
    let mut trace = match Trace::start(command, &lariat, Who::Supervisor, strike) {
        Ok(trace) => trace,
        Err(error) => {
            needs::skip(&format!("nobody may trace here: {error}"));
            return None;
        }
    };
    let was_up = trace.run("the command", |_| facts.has("ready"));
    if was_up {
        trace.running().signal(libc::SIGTERM);
        trace.run("the end", |_| false);
    }
    // Everybody may have ended by themselves before the point was reached.
    let was_told = was_up;
    Some(Run { began, trace, facts, was_up, was_told })
}

fn records(arena: &Arena) -> Vec<PathBuf> {
    let names = std::fs::read_dir(arena.dir().join("runtime/lariat"));
    names.map_or(Vec::new(), |names| names.flatten().map(|name| name.path()).collect())
}

/// Looks at what is written down, and removes it.
fn wrong_records(arena: &Arena, may_be_left: bool) -> Option<String> {
    let mut wrong = None;
    for record in records(arena) {
        let bytes = std::fs::read(&record).unwrap_or_default();
        let lines: Result<Vec<serde_json::Value>, _> =
            serde_json::Deserializer::from_slice(&bytes).into_iter().collect();
        if !lines.is_ok_and(|lines| matches!(lines.len(), 1 | 2)) || !may_be_left {
            wrong = Some(format!("{} is left: {}", record.display(), String::from_utf8_lossy(&bytes)));
        }
        let _ = std::fs::remove_file(record);
    }
    wrong
}

/// Says what is wrong after a strike; nothing when nothing is.
fn wrong(arena: &Arena, run: &Run, victims: Victims) -> Option<String> {
    if victims == Victims::All && run.trace.has_struck() {
        return wrong_without_both(arena, run);
    }
    let ending = run.trace.running().ended(PATIENCE);
    if ending.is_none() {
        return Some("lariat does not end".to_owned());
    }
    if run.began.elapsed() >= GRACE {
        return Some("somebody was not told, and got no grace".to_owned());
    }
    let left = arena.left_after(PATIENCE);
    if !left.is_empty() {
        return Some(format!("left: {left:?}"));
    }
    // A supervisor that dies after its keeper's last word leaves a record of the dead, which says so.
    let may_be_left = victims == Victims::Supervisor;
    if let Some(wrong) = wrong_records(arena, may_be_left) {
        return Some(wrong);
    }
    let is_lariat_left = victims != Victims::Supervisor && run.trace.has_struck();
    let code = ending.and_then(|ending| ending.code());
    if is_lariat_left && !matches!(code, Some(0 | 125 | 143)) {
        return Some(format!("lariat exited with {code:?}"));
    }
    ROLES.iter().find_map(|role| wrong_with(run, role, victims))
}

/// Whoever was up was told once and had its grace; whoever was not up yet may have died of the signal.
fn wrong_with(run: &Run, role: &str, victims: Victims) -> Option<String> {
    let (told, is_clean) = (run.facts.told(role), run.facts.has(&format!("clean-{role}")));
    // HAZARD(parent-death-again): the kernel tells the leader at its keeper's death, whom the keeper may have told already,
    // and once more where that death handed it to a supervisor that dies too.
    let most = match victims {
        Victims::Supervisor => 1,
        Victims::Keeper(_) => 1 + usize::from(run.was_told),
        Victims::All => 2 + usize::from(run.was_told),
    };
    if told.len() > 1 || told.iter().any(|times| *times > most) {
        return Some(format!("told too often: {}", run.facts.told_in_words(role)));
    }
    if (run.was_up || !told.is_empty()) && !is_clean {
        return Some(format!("no grace for {role}: {}", run.facts.told_in_words(role)));
    }
    None
}

/// Nobody of lariat is left: the kernel has told the leader, and the daemon can be found.
fn wrong_without_both(arena: &Arena, run: &Run) -> Option<String> {
    // A leader that was hit at its birth may be told before it has announced itself. A daemon always comes to that.
    let is_gone = || {
        let alive = arena.alive();
        let daemons = run.facts.pids("daemon");
        alive.iter().all(|seen| daemons.contains(&seen.pid)).then_some(())
    };
    if wait_at_most(PATIENCE, is_gone).is_none() {
        return Some("the leader was not told".to_owned());
    }
    if let Some(wrong) = wrong_with(run, "leader", Victims::All) {
        return Some(wrong);
    }
    let alive = wait_at_most(PATIENCE, || {
        // A member in the middle of its start has no environment to be known by yet.
        let alive = arena.alive();
        alive.iter().all(|seen| is_marked(seen.pid) || !seen.is_alive_now()).then_some(alive)
    });
    let Some(alive) = alive else { return Some(format!("not marked: {:?}", arena.alive())) };
    if records(arena).is_empty() && !alive.is_empty() {
        return Some(format!("there is no record of {alive:?}"));
    }
    if let Some(wrong) = wrong_records(arena, true) {
        return Some(wrong);
    }
    alive.iter().for_each(census::Seen::kill);
    arena.clear();
    None
}

fn is_marked(pid: i32) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(b"LARIAT_RUN="))
}

/// Kills `victims` at each step of `who`.
fn at_every_step(victims: Victims, whose: impl Fn(Who) -> bool) {
    let arena = Arena::new();
    let mut chance = Chance::new();
    let Some(dry) = run(&arena, "dry", None) else { return };
    assert_eq!(wrong(&arena, &dry, Victims::Supervisor), None, "nobody was killed: {}", dry.trace);
    let mut problems = Vec::new();
    let (mut strikes, mut misses) = (0, 0);
    for (who, calls) in dry.trace.calls().into_iter().filter(|(who, _)| whose(*who)) {
        assert!(calls > 20, "{}", dry.trace);
        for nth in 0..calls {
            let when = if chance.below(4) == 0 { When::Exit } else { When::Entry };
            let strike = Strike { at: Point { who, nth, when }, victims, then: None };
            let name = format!("{who:?}-{nth}");
            let Some(run) = run(&arena, &name, Some(strike)) else { return };
            *if run.trace.has_struck() { &mut strikes } else { &mut misses } += 1;
            if let Some(what) = wrong(&arena, &run, victims) {
                problems.push(format!("{}: {what}; {:?}", run.trace, run.facts.names()));
                // Each may have cost all of a test's patience: who has seen three need not see more.
                assert!(problems.len() < 3, "seed {}:\n{}", chance.seed(), problems.join("\n"));
                arena.clear();
            }
            let _ = std::fs::remove_dir_all(run.facts.dir());
        }
    }
    // The last steps depend on the scheduler: not every run comes to each of them. Before it is born nobody can die.
    assert!(strikes > 20, "{misses} of {strikes} steps were not reached");
    let seed = chance.seed();
    let count = problems.len();
    assert!(count == 0, "seed {seed}, {count} of {strikes} steps:\n{}", problems.join("\n"));
    arena.finish();
}

#[test]
fn the_supervisor_dies_at_each_of_its_steps() {
    at_every_step(Victims::Supervisor, |who| who == Who::Supervisor);
}

#[test]
fn the_supervisor_dies_at_each_step_of_the_keeper() {
    at_every_step(Victims::Supervisor, |who| who != Who::Supervisor);
}

#[test]
fn the_keeper_dies_at_each_of_its_steps() {
    at_every_step(Victims::Keeper(0), |who| who == Who::Keeper(0));
}

#[test]
fn the_keeper_dies_at_each_step_between_clone_and_exec() {
    at_every_step(Victims::Keeper(0), |who| who == Who::Child(0));
}

#[test]
fn the_keeper_dies_at_each_step_of_the_supervisor() {
    at_every_step(Victims::Keeper(0), |who| who == Who::Supervisor);
}

#[test]
fn both_die_at_each_step_of_the_supervisor() {
    at_every_step(Victims::All, |who| who == Who::Supervisor);
}

#[test]
fn both_die_at_each_step_of_the_keeper() {
    at_every_step(Victims::All, |who| who == Who::Keeper(0));
}

#[test]
fn both_die_at_each_step_between_clone_and_exec() {
    at_every_step(Victims::All, |who| who == Who::Child(0));
}

/// One after the other, some steps apart: the one that is left has begun to end everything.
#[test]
fn both_die_one_after_the_other() {
    let arena = Arena::new();
    let mut chance = Chance::new();
    let Some(dry) = run(&arena, "dry", None) else { return };
    let calls = dry.trace.calls();
    for round in 0..rounds(120) {
        let (who, first, second) = chance.pick(&[
            (Who::Supervisor, Victims::Supervisor, Victims::Keeper(0)),
            (Who::Keeper(0), Victims::Keeper(0), Victims::Supervisor),
            (Who::Child(0), Victims::Supervisor, Victims::Keeper(0)),
        ]);
        let most = calls.get(&who).copied().unwrap_or(1) as u64;
        let nth = usize::try_from(chance.below(most)).expect("small");
        let later = usize::try_from(chance.below(60)).expect("small");
        let when = chance.pick(&[When::Entry, When::Exit]);
        let strike = Strike { at: Point { who, nth, when }, victims: first, then: Some((second, later)) };
        let Some(run) = run(&arena, &format!("{round}"), Some(strike)) else { return };
        let problem = wrong_without_both(&arena, &run);
        assert_eq!(problem, None, "seed {}: {}; {:?}", chance.seed(), run.trace, run.facts.names());
        let _ = std::fs::remove_dir_all(run.facts.dir());
    }
    arena.finish();
}
