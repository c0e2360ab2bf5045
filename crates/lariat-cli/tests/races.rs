//! Races, over and over: whatever dies, at whatever moment, of whatever tree. A failure prints its seed, and
//! `LARIAT_TEST_SEED` plays it again as far as the scheduler allows; `LARIAT_TEST_ROUNDS` multiplies the rounds.

use std::process::Stdio;
use std::time::{Duration, Instant};

use lariat_testkit::census::{self, Seen};
use lariat_testkit::chance::rounds;
use lariat_testkit::{
    Arena, Chance, Command, Facts, PATIENCE, Pty, Running, Stack, fixture, subject, wait_at_most, wait_until,
};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// Trees whose members can be told and say so.
const POLITE: &[&str] =
    &["alone", "child", "own-group", "new-session", "daemon --leave 0", "disguised", "stopped"];
/// Trees that change while they are ended.
const STORMS: &[&str] = &[
    "forker --live 20",
    "runners --n 3",
    "forks-while-dying --n 3 --depth 2",
    "daemonize-on-term",
    "twins --n 2",
    "wide --n 40",
];

/// Lets some time pass: the moment itself is what is tried here.
fn pass(chance: &mut Chance, most: Duration) {
    let most = u64::try_from(most.as_micros()).expect("short").max(1);
    let until = Instant::now() + Duration::from_micros(chance.below(most));
    while Instant::now() < until {
        std::thread::yield_now();
    }
}

fn run(arena: &Arena, options: &[&str], tree: &str, manner: &str, facts: &Facts) -> Command {
    let command =
        arena.command(subject::lariat(LARIAT)).arg("run").args(options).args(["--", fixture::path()]);
    command.args(tree.split(' ')).args(["--manner", manner, "--ms", "20"]).facts(facts).own_session()
}

/// Waits until it is up, or only for a moment, as chance has it. Returns whether it is up.
fn wait_or_not(chance: &mut Chance, facts: &Facts) -> bool {
    if chance.below(3) > 0 {
        facts.wait_for("ready");
        pass(chance, Duration::from_millis(2));
        return true;
    }
    pass(chance, Duration::from_millis(15));
    false
}

fn told_too_often(facts: &Facts, most: usize) -> Vec<String> {
    let told = facts.names().into_iter().filter(|name| name.starts_with("told-"));
    let told = told.map(|name| (facts.get(&name).unwrap_or_default(), name));
    let too_often = told.filter(|(told, _)| told.lines().count() > most);
    too_often.map(|(told, name)| format!("{name}: {}", told.trim_end().replace('\n', ", "))).collect()
}

fn without_grace(facts: &Facts) -> Vec<String> {
    let told = facts.names().into_iter().filter(|name| name.starts_with("told-"));
    told.filter(|name| {
        let role = name.trim_start_matches("told-").rsplit_once('-').map_or("", |(role, _)| role);
        !facts.has(&format!("clean-{role}"))
    })
    .collect()
}

fn keeper_of(lariat: &Running) -> Option<Seen> {
    census::children_of(lariat.pid()).first().and_then(|pid| Seen::of(*pid))
}

/// Whether some lariat has made its keeper, which may still have its name.
fn has_keeper(arena: &Arena) -> bool {
    let alive = arena.alive();
    let is_lariat = |pid: i32| alive.iter().any(|seen| seen.pid == pid && seen.comm == "lariat");
    alive.iter().any(|seen| is_lariat(seen.parent))
}

#[track_caller]
fn assert_empty(arena: &Arena, what: &str) {
    let left = arena.left_after(PATIENCE);
    assert!(left.is_empty(), "{what}: left {left:?}");
}

/// One of the two lives to end everything.
#[test]
fn any_tree_under_any_ending_at_any_moment() {
    let arena = Arena::new();
    let mut chance = Chance::new();
    for round in 0..rounds(40) {
        let is_storm = chance.below(3) == 0;
        let tree = chance.pick(if is_storm { STORMS } else { POLITE });
        let manner = chance.pick(&["plain", "graceful", "graceful", "stubborn"]);
        let grace = if manner == "stubborn" || is_storm { "200ms" } else { "20s" };
        let facts = arena.facts(&round.to_string());
        let running = run(&arena, &["--grace", grace], tree, manner, &facts).start();
        let was_up = wait_or_not(&mut chance, &facts);
        let end = chance.pick(&["term", "hup", "supervisor", "keeper", "leader"]);
        let what = format!("seed {}, round {round}: {tree} {manner}, {end}, up: {was_up}", chance.seed());
        match end {
            "term" => running.signal(libc::SIGTERM),
            "hup" => running.signal(libc::SIGHUP),
            "supervisor" => running.signal(libc::SIGKILL),
            "keeper" => match keeper_of(&running) {
                Some(keeper) => keeper.kill(),
                None => running.signal(libc::SIGKILL),
            },
            _ => match facts.pids("leader").first().and_then(|pid| Seen::of(*pid)) {
                Some(leader) => leader.kill(),
                None => running.signal(libc::SIGKILL),
            },
        }
        assert!(running.ended(PATIENCE).is_some(), "{what}: lariat does not end");
        assert_empty(&arena, &what);
        assert_eq!(told_too_often(&facts, 1), Vec::<String>::new(), "{what}");
        if grace == "20s" {
            assert_eq!(without_grace(&facts), Vec::<String>::new(), "{what}");
        }
        let _ = std::fs::remove_dir_all(facts.dir());
    }
    arena.finish();
}

/// Nobody of lariat is left, at once or microseconds apart: the leader hears of it from the kernel.
#[test]
fn both_die_at_once_or_nearly_so() {
    let arena = Arena::new();
    let mut chance = Chance::new();
    for round in 0..rounds(40) {
        let tree = chance.pick(POLITE);
        let facts = arena.facts(&round.to_string());
        let running = run(&arena, &["--grace", "20s"], tree, "graceful", &facts).start();
        let was_up = wait_or_not(&mut chance, &facts);
        let Some(keeper) = keeper_of(&running) else {
            running.signal(libc::SIGKILL);
            assert_empty(&arena, "before there was a keeper");
            continue;
        };
        let is_keeper_first = chance.below(2) == 0;
        let gap = chance.pick(&[0, 20, 300]);
        let what = format!("seed {}, round {round}: {tree}, up: {was_up}, {gap} us", chance.seed());
        if is_keeper_first {
            keeper.kill()
        } else {
            running.signal(libc::SIGKILL)
        }
        pass(&mut chance, Duration::from_micros(gap));
        if is_keeper_first {
            running.signal(libc::SIGKILL)
        } else {
            keeper.kill()
        }
        let leader = || facts.pids("leader").iter().find_map(|pid| Seen::of(*pid)).filter(Seen::is_alive);
        let is_gone = wait_at_most(PATIENCE, || leader().is_none().then_some(()));
        assert!(is_gone.is_some(), "{what}: the leader was not told; {:?}", facts.names());
        // HAZARD(parent-death-again): once by the keeper, and by the kernel at each of the two deaths.
        assert_eq!(told_too_often(&facts, 3), Vec::<String>::new(), "{what}");
        assert!(!was_up || facts.has("clean-leader"), "{what}: {:?}", facts.names());
        arena.clear();
        let _ = std::fs::remove_dir_all(facts.dir());
    }
    arena.finish();
}

/// The process that a run is tied to dies of SIGKILL at any moment.
#[test]
fn the_caller_dies_at_any_moment() {
    let arena = Arena::new();
    let mut chance = Chance::new();
    for round in 0..rounds(30) {
        let facts = arena.facts(&round.to_string());
        let tree = chance.pick(POLITE);
        let lariat = subject::lariat(LARIAT).to_string_lossy().into_owned();
        let (tie, before, after) = chance.pick(&[
            ("--die-with-parent", "", "& wait"),
            ("--lifeline", "mkfifo line$$; ", "<line$$ & exec 9>line$$; wait"),
        ]);
        let member = format!("{tree} --manner graceful --ms 20 --facts {}", facts.as_arg());
        let text = format!("{before}{lariat} run {tie} --grace 20s -- {} {member} {after}", fixture::path());
        let caller = arena.command("/bin/sh").args(["-c", &text]).stdin(Stdio::null()).own_session().start();
        // A caller that dies before lariat has looked at it was never its caller, and a lifeline that nobody has opened yet is
        // none: lariat has begun when it has a keeper.
        wait_until("a keeper", PATIENCE, || has_keeper(&arena).then_some(()));
        let was_up = wait_or_not(&mut chance, &facts);
        let what = format!("seed {}, round {round}: {tie} {tree}, up: {was_up}", chance.seed());
        caller.signal(libc::SIGKILL);
        assert_empty(&arena, &what);
        assert_eq!(told_too_often(&facts, 1), Vec::<String>::new(), "{what}");
        assert_eq!(without_grace(&facts), Vec::<String>::new(), "{what}");
        let _ = std::fs::remove_dir_all(facts.dir());
    }
    arena.finish();
}

/// The window is closed: the terminal is gone, not only hung up.
#[test]
fn the_terminal_closes_at_any_moment() {
    let arena = Arena::new();
    let mut chance = Chance::new();
    for round in 0..rounds(24) {
        let facts = arena.facts(&round.to_string());
        let tree = chance.pick(POLITE);
        let mut pty = Pty::new();
        let is_up = chance.below(2) == 0;
        let running = if is_up {
            pty.start(
                project(&arena, &round.to_string(), tree, "graceful", &facts)
                    .in_front(&arena, &["up", "--yes"]),
            )
        } else {
            let command = arena.command(subject::lariat(LARIAT)).args(["run", "--grace", "20s", "--"]);
            let command = command.arg(fixture::path()).args(tree.split(' ')).args(["--manner", "graceful"]);
            pty.start(command.facts(&facts))
        };
        let was_up = wait_or_not(&mut chance, &facts);
        let what = format!("seed {}, round {round}: {tree}, `up`: {is_up}, up: {was_up}", chance.seed());
        pty.close();
        assert!(running.ended(PATIENCE).is_some(), "{what}: lariat does not end");
        assert_empty(&arena, &what);
        assert_eq!(without_grace(&facts), Vec::<String>::new(), "{what}");
        let _ = std::fs::remove_dir_all(facts.dir());
    }
    arena.finish();
}

/// A stack of one service.
fn project(arena: &Arena, name: &str, tree: &str, manner: &str, facts: &Facts) -> Stack {
    let line = fixture::line(
        tree.split(' ').next().unwrap_or(tree),
        facts,
        &format!("{} --manner {manner} --ms 20", tree.split_once(' ').map_or("", |(_, rest)| rest)),
    );
    let grace = if manner == "graceful" { "14s" } else { "400ms" };
    let toml = format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '{grace}' }}\n");
    Stack::new(arena, LARIAT, &format!("project-{name}"), &toml)
}

/// The second typed Ctrl-C kills, the third leaves; keepers finish what is left, whatever phase it hits.
#[test]
fn one_to_three_interrupts_at_any_moments() {
    let arena = Arena::new();
    let mut chance = Chance::new();
    for round in 0..rounds(20) {
        let facts = arena.facts(&round.to_string());
        let tree = chance.pick(&["daemon", "new-session", "twins --n 2", "wide --n 20"]);
        let manner = chance.pick(&["stubborn", "graceful", "plain"]);
        let stack = project(&arena, &round.to_string(), tree, manner, &facts);
        let mut pty = Pty::new();
        let running = pty.start(stack.in_front(&arena, &["up", "--yes"]));
        let was_up = wait_or_not(&mut chance, &facts);
        let keys = 1 + chance.below(3);
        let what =
            format!("seed {}, round {round}: {tree} {manner}, {keys} keys, up: {was_up}", chance.seed());
        for _ in 0..keys {
            pty.pump();
            pty.send("\x03");
            pass(&mut chance, Duration::from_millis(60));
        }
        let is_over = wait_at_most(PATIENCE, || {
            pty.pump();
            // Before it has taken its signals a Ctrl-C kills it, and a later one meets nobody.
            running.ended(Duration::ZERO)
        });
        assert!(is_over.is_some(), "{what}: {}", pty.text());
        assert_empty(&arena, &what);
        let down = stack.run(&arena, &["down", "--yes"]);
        assert!(matches!(down.code(), Some(0 | 6)), "{what}: {down:?}");
        let _ = std::fs::remove_dir_all(facts.dir());
    }
    arena.finish();
}

/// Supervisor and keepers die at once over a tree that changes by itself: the next command ends all of it.
#[test]
fn storms_of_a_stack_that_lost_everybody_are_ended_by_the_next_command() {
    let arena = Arena::new();
    let mut chance = Chance::new();
    for round in 0..rounds(14) {
        let facts = arena.facts(&round.to_string());
        // Where each process lives for less than a look at /proc takes, nothing but a cgroup or a subreaper finds it; the
        // runners do.
        let tree = chance
            .pick(&STORMS.iter().filter(|tree| !tree.starts_with("runners")).copied().collect::<Vec<_>>());
        let stack = project(&arena, &round.to_string(), tree, "plain", &facts);
        let up = stack.lariat(&arena, &["up", "--yes"]).start();
        let was_up = wait_or_not(&mut chance, &facts);
        let what = format!("seed {}, round {round}: {tree}, up: {was_up}", chance.seed());
        let keepers: Vec<Seen> = census::children_of(up.pid()).into_iter().filter_map(Seen::of).collect();
        up.signal(libc::SIGKILL);
        keepers.iter().for_each(Seen::kill);
        let down = stack.run(&arena, &["down", "--yes"]);
        assert!(matches!(down.code(), Some(0 | 6)), "{what}: {down:?}");
        assert_empty(&arena, &what);
        let _ = std::fs::remove_dir_all(facts.dir());
    }
    arena.finish();
}
