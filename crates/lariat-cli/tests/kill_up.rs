//! SIGKILL at the system calls of `lariat up`, of its keepers, and of what becomes the services: while the stack comes up,
//! while it is up, and in all five phases of `down`.
//!
//! Whoever is killed, everything ends, who was up had its grace, and the project is as good as new: the ledger can be read,
//! the next `up` works, and no lock, socket or entry in the list of runs is left over. There are thousands of steps, so a
//! run of the tests takes some of them, spread over all, by a seed; `LARIAT_TEST_ROUNDS` multiplies them.

use std::path::{Path, PathBuf};

use lariat_testkit::chance::rounds;
use lariat_testkit::trace::{Point, Strike, Trace, Victims, When, Who};
use lariat_testkit::{Arena, Chance, Containment, Facts, PATIENCE, Running, Stack, fixture, needs, subject};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// The main one, the ledger's, the logs' and the screen's.
const SUPERVISOR_THREADS: usize = 4;

/// Two services, one after the other.
struct Project {
    stack: Stack,
    db: Facts,
    web: Facts,
}

impl Project {
    fn new(arena: &Arena, name: &str) -> Self {
        let (db, web) = (arena.facts(&format!("{name}-db")), arena.facts(&format!("{name}-web")));
        let manner = "--manner graceful --ms 5";
        let toml = format!(
            "[service.db]\nrun = 'echo is up; {}'\nready = {{ log = 'is up' }}\nstop = {{ grace = '14s' }}\n\
             [service.web]\nrun = '{}'\nafter = {{ db = 'ready' }}\nstop = {{ grace = '14s' }}\n",
            fixture::line("daemon", &db, manner),
            fixture::line("alone", &web, manner),
        );
        Self { stack: Stack::new(arena, LARIAT, name, &toml), db, web }
    }

    fn is_ready(&self) -> bool {
        self.db.has("ready") && self.web.has("ready")
    }

    /// Whoever was up was told once and had its grace.
    fn wrong_with_members(&self, was_up: bool, most: impl Fn(&str) -> usize) -> Option<String> {
        for (facts, role) in [(&self.db, "leader"), (&self.db, "daemon"), (&self.web, "leader")] {
            let (told, is_clean) = (facts.told(role), facts.has(&format!("clean-{role}")));
            let what = || format!("{role} in {:?}", facts.names());
            if told.iter().any(|times| *times > most(role)) {
                return Some(format!("told {told:?} times: {}", what()));
            }
            if (was_up || !told.is_empty()) && !is_clean {
                return Some(format!("no grace for {}", what()));
            }
        }
        None
    }
}

/// One life of the stack under the tracer.
struct Life {
    project: Project,
    trace: Trace,
    down: Option<Running>,
    was_up: bool,
}

fn live(arena: &Arena, name: &str, strike: Option<Strike>) -> Option<Life> {
    let project = Project::new(arena, name);
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
    let command = |args: &[&str]| {
        let ending = project.stack.lariat(arena, args).start().ended(PATIENCE);
        ending.ok_or_else(|| format!("`lariat {}` does not end", args.join(" ")))
    };
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
    match command(&["down", "--yes"]) {
        Ok(ending) if matches!(ending.code(), Some(0 | 6)) => {}
        Ok(ending) => return Some(format!("`down --yes` ended so: {ending:?}")),
        Err(what) => return Some(what),
    }
    let left = arena.left_after(PATIENCE);
    if !left.is_empty() {
        return Some(format!("left after `down`: {left:?}"));
    }
    // HAZARD(parent-death-again): see kill_run.rs.
    let told = usize::from(life.was_up);
    let most = |role: &str| match victims {
        Victims::Supervisor => 1,
        Victims::Keeper(_) => 1 + told,
        // The kernel at the death of the keeper and of each thread of the supervisor; and the next lariat tells it again
        // where the ledger did not come to know of it.
        Victims::All if role == "leader" => 1 + SUPERVISOR_THREADS + 1 + told,
        Victims::All => 1 + told,
    };
    project.wrong_with_members(life.was_up, most).or_else(|| wrong_afterwards(arena, project))
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
    let steps: Vec<(Who, usize, String)> =
        dry.trace.steps().into_iter().filter(|(who, _, _)| whose(*who)).collect();
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
    assert!(strikes > count / 8, "{strikes} of {count} steps were reached");
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
