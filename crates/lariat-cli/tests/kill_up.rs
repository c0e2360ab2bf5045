//! SIGKILL at the system calls of `lariat up`, of its keepers, and of what becomes the services: while the stack comes up,
//! while it is up, and in all five phases of `down`.
//!
//! Whoever is killed, everything ends, who was up had its grace, and the project is as good as new: the ledger can be read,
//! the next `up` works, and no lock, socket or entry in the list of runs is left over. There are thousands of steps, so a
//! run of the tests takes some of them, spread over all, by a seed; `LARIAT_TEST_ROUNDS` multiplies them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lariat_testkit::chance::rounds;
use lariat_testkit::facts::Told;
use lariat_testkit::trace::{Killed, Point, Strike, Trace, Victims, When, Who};
use lariat_testkit::{Arena, Chance, Containment, Facts, PATIENCE, Running, Stack, fixture, needs, subject};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// Two services, one after the other.
struct Project {
    stack: Stack,
    db: Facts,
    web: Facts,
}

impl Project {
    fn new(arena: &Arena, name: &str, victims: Option<Victims>) -> Self {
        let (db, web) = (arena.facts(&format!("{name}-db")), arena.facts(&format!("{name}-web")));
        // Where everybody dies, the next command has to come before their end: it would find nobody to tell again.
        let ms = if victims == Some(Victims::All) { 200 } else { 5 };
        let manner = format!("--manner graceful --ms {ms}");
        let toml = format!(
            "[service.db]\nrun = 'echo is up; {}'\nready = {{ log = 'is up' }}\nstop = {{ grace = '14s' }}\n\
             [service.web]\nrun = '{}'\nafter = {{ db = 'ready' }}\nstop = {{ grace = '14s' }}\n",
            fixture::line("daemon", &db, &manner),
            fixture::line("alone", &web, &manner),
        );
        Self { stack: Stack::new(arena, LARIAT, name, &toml), db, web }
    }

    fn is_ready(&self) -> bool {
        self.db.has("ready") && self.web.has("ready")
    }

    /// Nobody was told too often, and whoever was up had its grace.
    fn wrong_with_members(&self, tellers: &Tellers, was_up: bool) -> Option<String> {
        let ledger = std::fs::read_to_string(self.stack.dir().join(".lariat/run.json")).unwrap_or_default();
        let is_named = |pid: i32| ledger.contains(&format!("\"pid\": {pid},"));
        for (facts, role) in [(&self.db, "leader"), (&self.db, "daemon"), (&self.web, "leader")] {
            let what = || format!("{}; {tellers:?}; {:?}", facts.told_in_words(role), facts.names());
            let heard = facts.heard(role);
            let is_leader = role == "leader";
            if heard.iter().any(|(pid, heard)| tellers.have_gone_too_far(heard, is_leader, is_named(*pid))) {
                return Some(format!("told too often: {}", what()));
            }
            if (was_up || !heard.is_empty()) && !facts.has(&format!("clean-{role}")) {
                return Some(format!("no grace: {}", what()));
            }
        }
        None
    }
}

/// Whoever may have told a member anything.
#[derive(Debug)]
struct Tellers {
    victims: Victims,
    supervisor: i32,
    /// The commands that ended what was left. Anybody else is a keeper.
    later: BTreeSet<i32>,
    killed: BTreeMap<i32, Killed>,
}

impl Tellers {
    fn of(life: &Life, victims: Victims, later: BTreeSet<i32>) -> Self {
        let supervisor = life.trace.running().pid();
        Self { victims, supervisor, later, killed: life.trace.killed().clone() }
    }

    /// Says whether a member heard more than it may. Lariat tells everybody once; after it was killed, its successor tells
    /// those once of whom nobody can know that they were told: those whose number the ledger does not have.
    fn have_gone_too_far(&self, heard: &[Told], is_leader: bool, is_named: bool) -> bool {
        let mut times: BTreeMap<i32, usize> = BTreeMap::new();
        heard.iter().for_each(|told| *times.entry(told.sender).or_default() += 1);
        let is_dead_keeper =
            |sender: &i32| self.killed.get(sender).is_some_and(|k| matches!(k.who, Who::Keeper(_)));
        let is_orphan = is_leader && times.keys().any(is_dead_keeper);
        // HAZARD(parent-death-again): the kernel tells a leader of each thread of a parent that dies, in that one's name.
        for (sender, times) in times.iter_mut().filter(|_| is_leader) {
            let by_the_kernel = self.killed.get(sender).map_or(0, |killed| killed.threads);
            *times = times.saturating_sub(by_the_kernel);
        }
        let (mut by_keepers, mut by_supervisor, mut later) = (0, 0, 0);
        for (sender, times) in times {
            if sender == self.supervisor {
                by_supervisor += times;
            } else if self.later.contains(&sender) {
                later += times;
            } else {
                by_keepers += times;
            }
        }
        let has_struck = !self.killed.is_empty();
        // A keeper's orphans are the supervisor's to tell, but for the one whom the kernel has told.
        let most_by_supervisor = matches!(self.victims, Victims::Keeper(_)) && has_struck && !is_orphan;
        let most_later = self.victims == Victims::All && has_struck && !(is_leader && is_named);
        by_keepers > 1 || by_supervisor > usize::from(most_by_supervisor) || later > usize::from(most_later)
    }
}

/// The negative control of [`Tellers`]: each way to tell a member twice is noticed, and what has to be is none.
#[test]
fn whoever_tells_twice_is_noticed() {
    let (supervisor, keeper, other, down, again) = (10, 11, 12, 20, 21);
    let all = [(supervisor, Who::Supervisor, 4), (keeper, Who::Keeper(0), 1)];
    let check = |victims, is_leader, is_named, senders: &[i32], expected: bool| {
        let is_victim = |(pid, _, _): &&(i32, Who, usize)| match victims {
            Victims::All => true,
            Victims::Keeper(_) => *pid == keeper,
            Victims::Supervisor => *pid == supervisor,
        };
        let killed = all
            .iter()
            .filter(is_victim)
            .map(|(pid, who, threads)| (*pid, Killed { who: *who, threads: *threads }));
        let tellers = Tellers { victims, supervisor, later: [down, again].into(), killed: killed.collect() };
        let heard: Vec<Told> =
            senders.iter().map(|sender| Told { signal: libc::SIGTERM, sender: *sender }).collect();
        let is_too_far = tellers.have_gone_too_far(&heard, is_leader, is_named);
        assert_eq!(is_too_far, expected, "{victims:?}, leader: {is_leader}, named: {is_named}, {senders:?}");
    };
    let (leader, daemon) = (true, false);
    let by_the_kernel = [keeper, supervisor, supervisor, supervisor, supervisor];
    let and = |more: &[i32]| [&by_the_kernel[..], more].concat();
    // Everybody was killed.
    check(Victims::All, leader, true, &by_the_kernel, false);
    check(Victims::All, leader, true, &and(&[keeper]), false);
    check(Victims::All, leader, true, &and(&[keeper, keeper]), true);
    check(Victims::All, leader, true, &and(&[supervisor]), true);
    check(Victims::All, leader, true, &[keeper, down], true);
    check(Victims::All, leader, false, &[keeper, down], false);
    check(Victims::All, leader, false, &[down, down], true);
    check(Victims::All, leader, false, &[down, again], true);
    check(Victims::All, daemon, false, &[keeper, down], false);
    check(Victims::All, daemon, false, &[keeper, keeper], true);
    check(Victims::All, daemon, false, &[supervisor], true);
    // One keeper was: the supervisor tells its orphans, and not the leader, whom the kernel has told.
    check(Victims::Keeper(0), leader, true, &[keeper, keeper], false);
    check(Victims::Keeper(0), leader, true, &[keeper, supervisor], true);
    check(Victims::Keeper(0), daemon, true, &[keeper, supervisor], false);
    check(Victims::Keeper(0), daemon, true, &[supervisor, supervisor], true);
    check(Victims::Keeper(0), leader, true, &[other, other], true);
    check(Victims::Keeper(0), leader, true, &[other, down], true);
    // The supervisor was: each keeper tells its own once, and nobody comes after that.
    check(Victims::Supervisor, leader, true, &[keeper], false);
    check(Victims::Supervisor, leader, true, &[keeper, keeper], true);
    check(Victims::Supervisor, leader, false, &[keeper, down], true);
}

/// One life of the stack under the tracer.
struct Life {
    project: Project,
    trace: Trace,
    down: Option<Running>,
    was_up: bool,
}

fn live(arena: &Arena, name: &str, strike: Option<Strike>) -> Option<Life> {
    let project = Project::new(arena, name, strike.map(|strike| strike.victims));
    let lariat = subject::lariat(LARIAT);
    let command = project.stack.lariat(arena, &["up", "--yes"]);
    let mut trace = match Trace::start(command, &lariat, Who::Supervisor, strike) {
        Ok(trace) => trace,
        Err(error) => {
            needs::skip(&format!("nobody may trace here: {error}"));
            return None;
        }
    };
    let is_up = |project: &Project| project.stack.count("startup-finished") > 0 && project.is_ready();
    let was_up = trace.run("the stack's being up", |_| is_up(&project));
    let down = was_up.then(|| project.stack.lariat(arena, &["down", "--yes"]).start());
    trace.run("the stack's end", |_| false);
    Some(Life { project, trace, down, was_up })
}

fn names_in(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    names.map(|name| name.path()).collect()
}

/// Ends what is left as a user would, and says what is wrong.
fn wrong(arena: &Arena, life: &Life, victims: Victims) -> Option<String> {
    let project = &life.project;
    if let Some(down) = &life.down {
        let Some(ending) = down.ended(PATIENCE) else { return Some("`down` does not end".to_owned()) };
        if !matches!(ending.code(), Some(0 | 6)) {
            return Some(format!("`down` ended so: {ending:?}"));
        }
    }
    if victims == Victims::Supervisor {
        // Without any help.
        let left = arena.left_after(PATIENCE);
        if !left.is_empty() {
            return Some(format!("left: {left:?}"));
        }
    }
    let last = project.stack.lariat(arena, &["down", "--yes"]).start();
    match last.ended(PATIENCE) {
        Some(ending) if matches!(ending.code(), Some(0 | 6)) => {}
        Some(ending) => return Some(format!("`down --yes` ended so: {ending:?}")),
        None => return Some("`down --yes` does not end".to_owned()),
    }
    let left = arena.left_after(PATIENCE);
    if !left.is_empty() {
        return Some(format!("left after `down`: {left:?}"));
    }
    let later = life.down.iter().chain([&last]).map(Running::pid).collect();
    let tellers = Tellers::of(life, victims, later);
    project.wrong_with_members(&tellers, life.was_up).or_else(|| wrong_afterwards(arena, project))
}

/// Whether the project is as good as new.
fn wrong_afterwards(arena: &Arena, project: &Project) -> Option<String> {
    let state = project.stack.dir().join(".lariat");
    for args in [&["up", "-d", "--yes"][..], &["down"]] {
        let ending = project.stack.lariat(arena, args).start().ended(PATIENCE);
        if ending.as_ref().and_then(lariat_testkit::Ending::code) != Some(0) {
            return Some(format!("afterwards `lariat {}`: {ending:?}", args.join(" ")));
        }
    }
    let left = arena.left_after(PATIENCE);
    let ledger = std::fs::read(state.join("run.json")).unwrap_or_default();
    let ledger: serde_json::Value = serde_json::from_slice(&ledger).unwrap_or_default();
    let listed = names_in(&arena.dir().join("home/.local/state/lariat/runs"));
    let sockets = names_in(&arena.dir().join("runtime/lariat"));
    let strange: Vec<PathBuf> =
        names_in(&state).into_iter().filter(|path| path.to_string_lossy().contains("run.json.")).collect();
    for path in listed.iter().chain(&sockets) {
        let _ = std::fs::remove_file(path);
    }
    let is_well = left.is_empty() && ledger["is_closed"] == true;
    let is_tidy = listed.is_empty() && sockets.is_empty() && strange.is_empty();
    (!is_well || !is_tidy).then(|| {
        format!("afterwards: {left:?}, closed: {}, {listed:?}, {sockets:?}, {strange:?}", ledger["is_closed"])
    })
}

/// What others can see of a process's work. Most of its calls read `/proc`, and one is like the other.
const CHANGES: &[&str] = &[
    "write",
    "pwrite64",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "fsync",
    "clone",
    "clone3",
    "sendto",
    "recvfrom",
    "sendmsg",
    "pidfd_send_signal",
    "kill",
    "splice",
    "ftruncate",
    "mkdir",
    "mkdirat",
    "bind",
    "listen",
    "accept4",
    "flock",
    "wait4",
    "waitid",
    "prctl",
    "setsid",
    "execve",
    "memfd_create",
    "socketpair",
    "pipe2",
    "exit_group",
];

/// Chooses steps: two of three that change something, spread over all of them.
fn spread(steps: &[(Who, usize, String)], count: usize, chance: &mut Chance) -> Vec<(Who, usize)> {
    let changes: Vec<_> = steps.iter().filter(|(_, _, name)| CHANGES.contains(&name.as_str())).collect();
    let all: Vec<_> = steps.iter().collect();
    let mut chosen = Vec::new();
    for (from, count) in [(&changes, count * 2 / 3), (&all, count - count * 2 / 3)] {
        for round in 0..count {
            let (start, end) = (from.len() * round / count, from.len() * (round + 1) / count);
            let at = start + usize::try_from(chance.below((end - start).max(1) as u64)).expect("small");
            chosen.extend(from.get(at).map(|(who, nth, _)| (*who, *nth)));
        }
    }
    chosen
}

/// Kills `victims` at some steps of those whose steps count, spread over all.
fn at_some_steps(victims: Victims, whose: impl Fn(Who) -> bool) {
    // Without a trial of cgroups, whose process would be counted as a keeper.
    let arena = Arena::with(Containment::Lineage);
    let mut chance = Chance::new();
    let Some(dry) = live(&arena, "dry", None) else { return };
    assert_eq!(wrong(&arena, &dry, Victims::Supervisor), None, "nobody was killed: {}", dry.trace);
    // Before and after that there is nobody to be killed.
    let life = match victims {
        Victims::Keeper(nth) => dry.trace.life_of(Who::Keeper(nth)).expect("it was there"),
        _ => 0..usize::MAX,
    };
    let is_one =
        |(who, nth, _): &(Who, usize, String)| whose(*who) && (*who != Who::Supervisor || life.contains(nth));
    let steps: Vec<(Who, usize, String)> = dry.trace.steps().into_iter().filter(is_one).collect();
    let (count, mut problems, mut strikes) = (rounds(12).min(steps.len()), Vec::new(), 0);
    for (round, (who, nth)) in spread(&steps, count, &mut chance).into_iter().enumerate() {
        let when = chance.pick(&[When::Entry, When::Exit]);
        let strike = Strike { at: Point { who, nth, when }, victims, then: None };
        let Some(life) = live(&arena, &format!("p{round}"), Some(strike)) else { return };
        strikes += usize::from(life.trace.has_struck());
        if let Some(what) = wrong(&arena, &life, victims) {
            problems.push(format!("{}: {what}", life.trace));
            assert!(problems.len() < 3, "seed {}:\n{}", chance.seed(), problems.join("\n"));
            arena.clear();
        }
        let _ = std::fs::remove_dir_all(life.project.stack.dir());
    }
    assert!(strikes > count / 2, "{strikes} of {count} steps were reached");
    assert!(problems.is_empty(), "seed {}:\n{}", chance.seed(), problems.join("\n"));
    arena.finish();
}

#[test]
fn the_supervisor_dies_at_steps_of_its_own() {
    at_some_steps(Victims::Supervisor, |who| who == Who::Supervisor);
}

#[test]
fn the_supervisor_dies_at_steps_of_its_keepers() {
    at_some_steps(Victims::Supervisor, |who| who != Who::Supervisor);
}

#[test]
fn a_keeper_dies_at_steps_of_its_own() {
    at_some_steps(Victims::Keeper(0), |who| matches!(who, Who::Keeper(0) | Who::Child(0)));
}

#[test]
fn a_keeper_dies_at_steps_of_the_supervisor() {
    at_some_steps(Victims::Keeper(0), |who| who == Who::Supervisor);
}

#[test]
fn everybody_dies_at_steps_of_the_supervisor() {
    at_some_steps(Victims::All, |who| who == Who::Supervisor);
}

#[test]
fn everybody_dies_at_steps_of_the_keepers() {
    at_some_steps(Victims::All, |who| who != Who::Supervisor);
}
