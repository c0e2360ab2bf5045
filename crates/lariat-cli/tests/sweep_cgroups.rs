//! Cgroup directories that a run leaves when every lariat process of it is killed at once: found, emptied and removed,
//! with and without a record; those of runs that are alive stay.

mod crash;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use crash::{
    LARIAT, User, at_runtime, crash, is_alive, kill_at_once, lariat, names, project, said, wait_records,
};
use lariat::process::Mark;
use lariat_sys::identity::Identity;
use lariat_testkit::census::{self, Seen};
use lariat_testkit::{Arena, Command, Facts, PATIENCE, Running, fixture, wait_until};

fn inner(arena: &Arena) -> Vec<PathBuf> {
    let mut inner = arena.boundary().expect("it is there").inner();
    inner.sort();
    inner
}

/// The supervisor and the keeper of a running command.
fn lariats(running: &Running) -> Vec<Seen> {
    let own = running.seen().expect("it is alive");
    census::children_of(own.pid).into_iter().filter_map(Seen::of).chain([own]).collect()
}

/// Starts `lariat run` of a fixture.
fn run(arena: &Arena, facts: &Facts, args: &[&str]) -> Running {
    let running =
        lariat(arena, &["run", "--grace", "300ms", "--", fixture::path()]).args(args).facts(facts).start();
    facts.wait_for("ready");
    running
}

fn shows(text: &str, directories: &[PathBuf]) {
    for directory in directories {
        assert!(text.contains(directory.to_str().expect("a plain path")), "{directory:?} is not in:\n{text}");
    }
}

/// How a crashed run's tree is when the sweep comes.
const TREES: [&[&str]; 3] = [
    &["new-session", "--manner", "graceful"],
    &["disguised", "--manner", "stubborn"],
    // Nobody of it is left.
    &["alone"],
];

#[test]
fn a_commands_directory_is_found_by_its_record_wherever_the_sweep_is() {
    for tree in TREES {
        let Some(arena) = Arena::bounded() else { return };
        let (dead, living) = (arena.facts("dead"), arena.facts("living"));
        let running = run(&arena, &dead, tree);
        wait_records(&arena, 1);
        let left = inner(&arena);
        assert_eq!(left.len(), 1);
        kill_at_once(&lariats(&running));
        running.wait();
        if tree == ["alone"] {
            arena.alive().iter().for_each(Seen::kill);
            arena.wait_until_empty(PATIENCE);
        }
        let other = run(&arena, &living, &["daemon"]);
        wait_records(&arena, 2);
        let of_living: Vec<PathBuf> = inner(&arena).into_iter().filter(|path| !left.contains(path)).collect();
        assert_eq!(of_living.len(), 1);
        // Nothing names the place but the record.
        let sweep = |args: &[&str]| lariat(&arena, args).env("LARIAT_CGROUP", "").run().expect(0);
        let dry = sweep(&["sweep", "--dry-run"]);
        shows(&dry.out(), &left);
        assert!(!dry.out().contains(of_living[0].to_str().expect("a plain path")), "{}", dry.out());
        assert_eq!(inner(&arena).len(), 2, "a dry run removed one");
        let json = sweep(&["sweep", "--dry-run", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json.out()).expect("one object");
        assert_eq!(json["groups"][0]["directories"][0].as_str(), left[0].to_str(), "{json}");
        let swept = sweep(&["sweep", "--yes"]);
        assert!(said(&swept).contains("removed 1 cgroup directory"), "{}", said(&swept));
        assert_eq!(inner(&arena), of_living, "{tree:?}: {}", said(&swept));
        assert!(other.is_alive() && is_alive(living.pid("leader")) && is_alive(living.pid("daemon")));
        for role in ["leader", "child", "disguised"].iter().filter(|role| dead.has(role)) {
            assert!(!is_alive(dead.pid(role)), "{tree:?}: {role}");
        }
        other.signal(libc::SIGTERM);
        other.wait();
        assert_eq!(inner(&arena), Vec::<PathBuf>::new());
        arena.finish();
    }
}

/// The kernel ends all of it with its keeper; a name in the hierarchy stays.
#[test]
fn an_isolated_commands_directory_is_removed_by_the_next_sweep_there() {
    let Some(arena) = Arena::bounded() else { return };
    if !arena.has_pid_namespaces() {
        return;
    }
    let facts = arena.facts("f");
    let words = ["run", "--isolate", "--grace", "300ms", "--", fixture::path(), "new-session"];
    let running = lariat(&arena, &words).args(["--manner", "stubborn"]).facts(&facts).start();
    facts.wait_for("ready");
    wait_records(&arena, 1);
    let left = inner(&arena);
    assert_eq!(left.len(), 1);
    kill_at_once(&lariats(&running));
    running.wait();
    arena.wait_until_empty(PATIENCE);
    assert_eq!(inner(&arena), left, "the negative control");
    let swept = lariat(&arena, &["sweep", "--yes"]).run().expect(0);
    assert!(inner(&arena).is_empty() && at_runtime(&arena).is_empty(), "{}", said(&swept));
    arena.finish();
}

#[test]
fn a_stacks_directories_are_removed_by_whichever_command_comes_next() {
    for next in [&["sweep", "--yes"][..], &["down", "--yes"], &["up", "--yes"]] {
        for is_deserted in [true, false] {
            let Some(arena) = Arena::bounded() else { return };
            let (stack, facts) = project(&arena, "project", "disguised", "--manner stubborn");
            let up = stack.up(&arena);
            facts.wait_for("ready");
            let left = inner(&arena);
            crash(&arena, &[&up]);
            if is_deserted {
                arena.alive().iter().for_each(Seen::kill);
                arena.wait_until_empty(PATIENCE);
            }
            assert_eq!((inner(&arena), left.len()), (left.clone(), 1), "the negative control");
            let before = stack.count("startup-finished");
            let command = stack.lariat(&arena, next).env("LARIAT_CGROUP", "");
            if next[0] == "up" {
                let up = command.env("LARIAT_CONTAINMENT", "lineage").start();
                stack.wait_up(&up, before);
                assert_eq!(inner(&arena), Vec::<PathBuf>::new());
                stack.run(&arena, &["down"]).expect(0);
                up.wait().expect(0);
            } else {
                command.run().expect(0);
            }
            assert_eq!(inner(&arena), Vec::<PathBuf>::new(), "{next:?}");
            arena.finish();
        }
    }
}

/// A run that is alive, started from within one that is over, is in its cgroup: that must not be killed at one stroke.
#[test]
fn a_stack_that_was_started_within_a_dead_run_lives_on() {
    let Some(arena) = Arena::bounded() else { return };
    let (stack, facts) = project(&arena, "project", "daemon", "");
    let script =
        format!("trap '' TERM; cd {}; {LARIAT} up --yes & sleep 60 & wait; wait", stack.dir().display());
    let before = stack.count("startup-finished");
    let outer = lariat(&arena, &["run", "--grace", "300ms", "--", "/bin/sh", "-c", &script]).start();
    wait_until("the inner stack", PATIENCE, || (stack.count("startup-finished") > before).then_some(()));
    facts.wait_for("ready");
    let (shell, inner_up) = within(&outer);
    kill_at_once(&lariats(&outer));
    outer.wait();
    let swept = lariat(&arena, &["sweep", "--yes"]).run().expect(0);
    assert!(!is_alive(shell.pid), "{}", said(&swept));
    let alive = [inner_up.pid, facts.pid("leader"), facts.pid("daemon")];
    assert!(alive.iter().all(|pid| is_alive(*pid)), "{alive:?}: {}", said(&swept));
    assert!(!arena.alive().iter().any(|seen| seen.command == "sleep 60"), "{}", said(&swept));
    stack.run(&arena, &["down"]).expect(0);
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

/// The command of a run, and the lariat below that.
fn within(outer: &Running) -> (Seen, Seen) {
    let below = |pid: i32| census::children_of(pid).into_iter().filter_map(Seen::of);
    let keeper = below(outer.pid()).next().expect("its keeper");
    let shell = below(keeper.pid).next().expect("its command");
    let lariat = below(shell.pid).find(|seen| seen.comm == "lariat").expect("the lariat within");
    (shell, lariat)
}

/// The shell that somebody types `lariat sweep` into may itself be what a dead run left.
#[test]
fn a_sweep_from_within_a_dead_run_does_not_end_itself() {
    let Some(arena) = Arena::bounded() else { return };
    let facts = arena.facts("f");
    let line = fixture::line("disguised", &facts, "--manner stubborn").replacen("exec ", "", 1);
    let script = format!(
        "trap '' TERM; mkfifo go; {line} & read word < go; {LARIAT} sweep --yes --force > said 2>&1; echo $? > code"
    );
    let outer = lariat(&arena, &["run", "--", "/bin/sh", "-c", &script]).start();
    facts.wait_for("ready");
    wait_records(&arena, 1);
    kill_at_once(&lariats(&outer));
    outer.wait();
    assert!(is_alive(facts.pid("disguised")), "the negative control");
    // For reading as well: opening does not wait for a shell that should be there.
    let mut go =
        fs::File::options().read(true).write(true).open(arena.work().join("go")).expect("it is made");
    go.write_all(b"on\n").expect("the shell reads it");
    let code = wait_until("the sweep's end", PATIENCE, || {
        fs::read_to_string(arena.work().join("code")).ok().filter(|text| text.ends_with('\n'))
    });
    let words = fs::read_to_string(arena.work().join("said")).unwrap_or_default();
    assert_eq!(code, "0\n", "{words}");
    assert!(!is_alive(facts.pid("disguised")) && !is_alive(facts.pid("leader")), "{words}");
    // The directory stayed as long as they were in it.
    arena.wait_until_empty(PATIENCE);
    let left = inner(&arena);
    assert_eq!(left.len(), 1);
    arena.finish();
}

/// A directory that belongs to the user, who starts his commands from within it.
fn delegate(arena: &Arena, user: User) {
    let boundary = arena.boundary().expect("it is there").path();
    for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        chown(boundary.join(name), Some(user.0), Some(user.0)).expect("it is ours to give");
    }
    user.own(arena);
}

/// Prepares lariat as the user, who has entered the directory.
fn from_within(arena: &Arena, user: User, args: &[&str]) -> Command {
    let entrance = arena.boundary().expect("it is there").path().join("cgroup.procs");
    let script = format!(
        "echo 0 > {} && exec setpriv --reuid {user} --regid {user} --clear-groups \"$@\"",
        entrance.display(),
        user = user.0
    );
    arena.command("/bin/sh").args(["-c", &script, "sh", LARIAT]).args(args).own_session()
}

/// Nobody knows of the run but its directory.
#[test]
fn what_no_record_knows_is_found_by_its_directory() {
    let Some(user) = User::take() else { return };
    let Some(arena) = Arena::bounded() else { return };
    let (lost, living) = (arena.facts("lost"), arena.facts("living"));
    fs::create_dir(arena.dir().join("elsewhere")).expect("it is ours");
    delegate(&arena, user);
    let start = |facts: &Facts, args: &[&str]| {
        let command = from_within(&arena, user, &["run", "--grace", "300ms", "--", fixture::path()]);
        let running = command.args(args).facts(facts).start();
        facts.wait_for("ready");
        running
    };
    user.own(&arena);
    let crashed = start(&lost, &["disguised", "--manner", "stubborn"]);
    // Nobody is in the second one's when the sweep comes.
    let deserted_facts = arena.facts("deserted");
    user.own(&arena);
    let deserted = start(&deserted_facts, &["alone"]);
    let left = inner(&arena);
    assert_eq!(left.len(), 2);
    kill_at_once(&[lariats(&crashed), lariats(&deserted)].concat());
    [&crashed, &deserted].iter().for_each(|running| drop(running.wait()));
    // What carries the mark is gone, so is the record: the disguised one and a name in the hierarchy are left.
    let leaders = [lost.pid("leader"), deserted_facts.pid("leader")];
    leaders.iter().filter_map(|pid| Seen::of(*pid)).for_each(|seen| seen.kill());
    wait_until("their end", PATIENCE, || (!leaders.iter().any(|pid| is_alive(*pid))).then_some(()));
    at_runtime(&arena).iter().for_each(|path| fs::remove_file(path).expect("root may"));
    let alive = start(&living, &["disguised", "--manner", "stubborn"]);
    // Alive, and known to nobody: its lock is what says so.
    wait_records(&arena, 1);
    at_runtime(&arena).iter().for_each(|path| fs::remove_file(path).expect("root may"));
    // A directory with such a name that is somebody else's.
    let foreign = arena.boundary().expect("it is there").path().join("lariat-00000000000000aa.web.0");
    fs::create_dir(&foreign).expect("root may");
    // One who says that whoever is above everybody has him in hand hides nobody else by that.
    let above = Identity::current();
    let mark = Mark::variables("00000000000000bb", above).into_iter();
    let forger = user.runs(arena.command("/bin/sleep").arg("60").own_session());
    let forger = mark.fold(forger, |forger, (name, value)| forger.env(name, value)).start();
    let sweep = |args: &[&str]| user.runs(lariat(&arena, args)).run().expect(0);
    let disguised = lost.pid("disguised");
    let elsewhere = arena.dir().join("elsewhere");
    let has_members =
        |path: &&PathBuf| !fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().is_empty();
    let (left, empty): (Vec<&PathBuf>, Vec<&PathBuf>) = left.iter().partition(has_members);
    let left: Vec<PathBuf> = left.into_iter().cloned().collect();
    assert_eq!((left.len(), empty.len()), (1, 1));
    // What nobody is in is removed by any sweep; whoever is in one is of a place.
    let here = user.runs(lariat(&arena, &["sweep", "--yes"]).dir(&elsewhere)).run().expect(0);
    assert!(is_alive(disguised) && left[0].exists(), "only `--all` is about all");
    assert!(!empty[0].exists() && said(&here).contains("removed 1 cgroup directory"), "{}", said(&here));
    let dry = sweep(&["sweep", "--all", "--dry-run"]);
    names(&dry.out(), &[disguised]);
    shows(&dry.out(), &left);
    assert!(dry.out().contains("it is in the cgroup of a run that is over"), "{}", dry.out());
    assert!(!dry.out().contains(&living.pid("disguised").to_string()), "{}", dry.out());
    assert_eq!(inner(&arena).len(), 3, "a dry run removed one");
    let swept = sweep(&["sweep", "--all", "--yes", "--possible"]);
    assert!(!is_alive(disguised), "{}", said(&swept));
    assert!(left.iter().all(|path| !path.exists()), "{}", said(&swept));
    assert!(said(&swept).contains("removed 1 cgroup directory"), "{}", said(&swept));
    assert!(alive.is_alive() && is_alive(living.pid("disguised")) && is_alive(living.pid("leader")));
    assert_eq!(inner(&arena).len(), 2, "{:?}", inner(&arena));
    forger.signal(libc::SIGKILL);
    forger.wait();
    alive.signal(libc::SIGTERM);
    alive.wait();
    assert_eq!(inner(&arena), [foreign]);
    arena.finish();
}

/// HAZARD(made-and-not-locked): sweeps that look at nothing but strays, while runs begin and end without a record.
#[test]
fn runs_that_begin_beside_sweeps_lose_nothing() {
    const RUNS: usize = 40;
    let Some(user) = User::take() else { return };
    let Some(arena) = Arena::bounded() else { return };
    delegate(&arena, user);
    let script = format!("i=0; while [ $i -lt {RUNS} ]; do i=$((i+1)); {LARIAT} run -- true || exit; done");
    let entrance = arena.boundary().expect("it is there").path().join("cgroup.procs");
    let runs = format!("echo 0 > {} && exec setpriv \"$@\"", entrance.display());
    let id = user.0.to_string();
    let runs = arena
        .command("/bin/sh")
        .args(["-c", &runs, "sh", "--reuid", &id, "--regid", &id, "--clear-groups", "sh", "-c", &script])
        .own_session()
        .start();
    let mut sweeps = 0;
    while runs.is_alive() {
        user.runs(lariat(&arena, &["sweep", "--all", "--yes", "--possible", "--force"])).run().expect(0);
        sweeps += 1;
    }
    runs.wait().expect(0);
    assert!(sweeps > 1, "no sweep came in between");
    assert_eq!(inner(&arena), Vec::<PathBuf>::new());
    arena.finish();
}
