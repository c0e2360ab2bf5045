//! Limits of memory, processes and cpu: that they hold, who is told what when one strikes, and that nothing of them is
//! left. They need controllers of cgroup v2, which a machine with both versions keeps in the old one: where these tests
//! run for certain is the guest of `cargo xtask kernel`.

use std::fs;
use std::path::{Path, PathBuf};

use lariat_testkit::{Arena, Command, Containment, PATIENCE, Running, Stack, needs, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");
/// Needs 64 MiB of memory at once, and is done in no time with it.
const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1";
/// Starts 40 sleepers, and says how many by a line for each.
const BOMB: &str = "i=0; while [ $i -lt 40 ]; do sleep 20 & i=$((i+1)); echo n$i; done";

/// Opens an arena whose boundary has controllers, or leaves the test out where there are none.
fn limited() -> Option<Arena> {
    let arena = Arena::with(Containment::Cgroup);
    let base = arena.boundary().map(|boundary| boundary.path().to_owned());
    let text = base.and_then(|base| fs::read_to_string(base.join("cgroup.controllers")).ok());
    let has = |name| text.as_ref().is_some_and(|text| text.split_whitespace().any(|word| word == name));
    if ["memory", "pids", "cpu"].into_iter().all(has) {
        return Some(arena);
    }
    needs::skip_here("no controllers of cgroup v2");
    None
}

macro_rules! limited {
    () => {
        match limited() {
            Some(arena) => arena,
            None => return,
        }
    };
}

fn base(arena: &Arena) -> PathBuf {
    arena.boundary().expect("it is there").path().to_owned()
}

fn inner(arena: &Arena) -> Vec<PathBuf> {
    arena.boundary().expect("it is there").inner()
}

fn run(arena: &Arena, options: &[&str], script: &str) -> Command {
    arena.command(LARIAT).arg("run").args(options).args(["--", "sh", "-c", script]).own_session()
}

fn read(directory: &Path, file: &str) -> String {
    fs::read_to_string(directory.join(file)).unwrap_or_default().trim_end().to_owned()
}

/// Waits until there is a directory in the boundary whose name holds `part` and that somebody is in.
fn directory(arena: &Arena, part: &str) -> PathBuf {
    wait_until("a directory with somebody in it", PATIENCE, || {
        let is_it =
            |path: &PathBuf| path.to_string_lossy().rsplit('/').next().is_some_and(|n| n.contains(part));
        inner(arena).into_iter().find(|path| is_it(path) && !read(path, "cgroup.procs").is_empty())
    })
}

#[test]
fn a_command_over_its_memory_is_ended_with_everything_it_started() {
    let arena = limited!();
    let script = format!("sleep 600 & setsid sleep 600 & {GREEDY}; sleep 600");
    for options in [&["--memory", "16MiB"][..], &["--memory=16m", "--isolate"]] {
        let ended = run(&arena, options, &script).run();
        assert_eq!(ended.code(), Some(128 + libc::SIGKILL), "{ended:?}");
        assert!(ended.err().contains("ended by the kernel: over its memory limit of 16 MiB"), "{ended:?}");
    }
    // The control: it is the limit that ends it.
    let free = run(&arena, &["--processes", "50"], GREEDY).run().expect(0);
    assert!(!free.err().contains("limit"), "{free:?}");
    assert!(inner(&arena).is_empty());
    arena.finish();
}

#[test]
fn a_service_over_its_memory_fails_by_name_and_its_policy_counts() {
    let arena = limited!();
    let toml = format!(
        "[service.web]\nrun = 'sleep 600 & {GREEDY}; sleep 600'\nlimits = {{ memory = '16MiB' }}\n\
         restart = {{ when = 'on-failure', max = 1 }}\n"
    );
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let ended = stack.run(&arena, &["up", "--yes"]).expect(1);
    let said = ended.out() + &ended.err();
    assert!(said.contains("web ended: ended by the kernel: over its memory limit of 16 MiB"), "{said}");
    assert_eq!(stack.events().matches("over its memory limit of 16 MiB").count(), 2, "{}", stack.events());
    assert!(inner(&arena).is_empty());
    arena.finish();
}

#[test]
fn a_bomb_stops_at_its_limit_of_processes() {
    let arena = limited!();
    let ended = run(&arena, &["--processes", "10", "--grace", "1s"], BOMB).run();
    let count = ended.out().lines().filter(|line| line.starts_with('n')).count();
    assert_eq!(count, 9, "the shell is the tenth: {ended:?}");
    assert!(ended.err().contains("its limit of 10 processes and threads"), "{ended:?}");
    // The control: without the limit there are all of them.
    let free = run(&arena, &["--grace", "1s"], BOMB).run();
    assert_eq!(free.out().lines().filter(|line| line.starts_with('n')).count(), 40, "{free:?}");
    assert!(inner(&arena).is_empty());
    arena.finish();
}

#[test]
fn a_services_limits_are_set_and_one_that_strikes_is_told_once_while_it_lives() {
    let arena = limited!();
    let toml = format!(
        "[service.web]\nrun = '''(sh -c '{BOMB}'; sh -c '{BOMB}'); read x < stay'''\n\
         limits = {{ memory = '64MiB', processes = 12, cpu = 1.5 }}\nstop = {{ grace = '1s' }}\n"
    );
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    arena.command("mkfifo").arg(stack.dir().join("stay")).run().expect(0);
    let up = stack.up(&arena);
    stack.wait_event("limit-reached", 0);
    let place = directory(&arena, ".web.");
    let found = ["memory.max", "memory.oom.group", "pids.max", "cpu.max"].map(|file| read(&place, file));
    assert_eq!(found, ["67108864", "1", "12", "150000 100000"]);
    assert!(read(&place, "pids.current").parse::<u32>().is_ok_and(|count| count <= 12));
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    assert_eq!(stack.count("limit-reached"), 1, "{}", stack.events());
    assert!(stack.events().contains("web: a process or thread could not be started"), "{}", stack.events());
    arena.finish();
}

/// Starts `lariat ARGS` in the boundary itself, as in a scope of its own, without a word about where to make directories.
fn inside(arena: &Arena, dir: &Path, args: &[&str]) -> Running {
    let script = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", base(arena).display());
    let command = arena.command("/bin/sh").args(["-c", &script, "sh", LARIAT]).args(args).dir(dir);
    command.env("LARIAT_CGROUP", "").own_session().start()
}

#[test]
fn lariat_makes_room_in_its_own_cgroup_and_goes_back() {
    let arena = limited!();
    let words = ["run", "--cpu", "0.5", "--grace", "1s", "--", "sleep", "600"];
    let running = inside(&arena, &arena.work(), &words);
    let place = directory(&arena, ".sleep.");
    assert_eq!(read(&place, "cpu.max"), "50000 100000");
    let leaf = directory(&arena, "lariat-self.");
    let own = running.seen().expect("it is alive").pid.to_string();
    assert!(read(&leaf, "cgroup.procs").lines().any(|line| line == own));
    assert_eq!(read(&base(&arena), "cgroup.procs"), "", "nobody is in the way");
    running.signal(libc::SIGTERM);
    running.wait();
    assert!(inner(&arena).is_empty(), "{:?}", inner(&arena));
    assert_eq!(read(&base(&arena), "cgroup.subtree_control"), "", "it is as it was");
    arena.finish();
}

#[test]
fn a_stack_in_the_background_makes_room_for_both_of_its_processes() {
    let arena = limited!();
    let toml = "[service.web]\nrun = 'exec sleep 600'\nlimits = { cpu = 0.5 }\n";
    let stack = Stack::new(&arena, LARIAT, "project", toml);
    inside(&arena, stack.dir(), &["up", "--yes", "-d"]).wait().expect(0);
    assert_eq!(read(&directory(&arena, ".web."), "cpu.max"), "50000 100000");
    stack.run(&arena, &["down"]).expect(0);
    arena.wait_until_empty(PATIENCE);
    assert!(inner(&arena).is_empty(), "{:?}", inner(&arena));
    assert_eq!(read(&base(&arena), "cgroup.subtree_control"), "", "it is as it was");
    arena.finish();
}

#[test]
fn where_others_are_nothing_is_limited_and_nobody_moved() {
    let arena = limited!();
    let base = base(&arena);
    let stranger = arena.command("/bin/sleep").arg("600").own_session().start();
    fs::write(base.join("cgroup.procs"), stranger.pid().to_string()).expect("we may move our own");
    let ended =
        inside(&arena, &arena.work(), &["run", "--cpu", "0.5", "--", "cat", "/proc/self/cgroup"]).wait();
    let ended = ended.expect(0);
    assert!(ended.err().contains("another process is in"), "{ended:?}");
    assert!(ended.err().contains("systemd-run"), "it says what to do: {ended:?}");
    assert!(ended.out().contains(".cat."), "it is contained all the same: {ended:?}");
    assert_eq!(read(&base, "cgroup.procs"), stranger.pid().to_string());
    assert_eq!(read(&base, "cgroup.subtree_control"), "");
    stranger.signal(libc::SIGKILL);
    stranger.wait();
    arena.finish();
}

#[test]
fn the_room_of_a_lariat_that_was_killed_is_cleared_by_the_next() {
    let arena = limited!();
    let words = ["run", "--cpu", "0.5", "--grace", "1s", "--", "sleep", "600"];
    let running = inside(&arena, &arena.work(), &words);
    directory(&arena, ".sleep.");
    running.signal(libc::SIGKILL);
    running.wait();
    arena.wait_until_empty(PATIENCE);
    let left: Vec<_> = inner(&arena);
    assert!(left.len() == 1 && left[0].to_string_lossy().contains("lariat-self."), "{left:?}");
    let next = run(&arena, &["--memory", "64MiB"], "cat /proc/self/cgroup").run().expect(0);
    assert_eq!(next.err(), "");
    assert!(inner(&arena).is_empty(), "{:?}", inner(&arena));
    arena.finish();
}

#[test]
fn the_room_of_a_stack_that_was_killed_is_cleared_by_whoever_closes_it() {
    let arena = limited!();
    let toml = "[service.web]\nrun = 'exec sleep 600'\nlimits = { cpu = 0.5 }\nstop = { grace = '1s' }\n";
    let stack = Stack::new(&arena, LARIAT, "project", toml);
    let up = inside(&arena, stack.dir(), &["up", "--yes"]);
    directory(&arena, ".web.");
    stack.wait_event("startup-finished", 0);
    up.signal(libc::SIGKILL);
    up.wait();
    arena.wait_until_empty(PATIENCE);
    assert!(inner(&arena).iter().any(|path| path.to_string_lossy().contains("lariat-self.")));
    stack.run(&arena, &["down", "--yes"]).expect(0);
    assert!(inner(&arena).is_empty(), "{:?}", inner(&arena));
    assert_eq!(read(&base(&arena), "cgroup.subtree_control"), "", "it is as it was");
    arena.finish();
}

#[test]
fn what_cannot_be_limited_is_said_and_started_all_the_same() {
    let arena = Arena::with(Containment::Lineage);
    let ended =
        run(&arena, &["--memory", "64MiB", "--processes=5", "--cpu", "1.5"], "exit 3").run().expect(3);
    let expected =
        "not limited (memory 64 MiB, 5 processes, 1.5 cpu): LARIAT_CONTAINMENT asks for descent alone";
    assert!(ended.err().contains(expected), "{ended:?}");
    assert!(ended.err().contains("hint: without LARIAT_CONTAINMENT"), "{ended:?}");
    let auto = run(&arena, &["--cpu", "1.5"], "exit 3").env("LARIAT_CONTAINMENT", "auto").run().expect(3);
    assert!(!auto.err().contains("LARIAT_CONTAINMENT"), "nobody chose it: {auto:?}");
    let toml = "[service.web]\nrun = 'true'\nlimits = { cpu = 0.5 }\n[service.db]\nrun = 'true'\n";
    let stack = Stack::new(&arena, LARIAT, "project", toml);
    let ended = stack.run(&arena, &["up", "--yes"]).expect(0);
    let said = ended.out() + &ended.err();
    assert!(said.contains("the limits of web are not applied: LARIAT_CONTAINMENT asks"), "{said}");
    let checked = stack.run(&arena, &["check"]).expect(0);
    assert!(checked.out().contains("at most 0.5 cpu"), "{checked:?}");
    let data = stack.run(&arena, &["check", "--json"]).expect(0).out();
    let data: serde_json::Value = serde_json::from_str(&data).expect("it is JSON");
    assert_eq!(data["stack"]["services"][0]["limits"], serde_json::json!({ "cpu": 0.5 }));
    assert_eq!(data["stack"]["services"][1].get("limits"), None);
    arena.finish();
}

#[test]
fn limits_that_are_none_are_refused_before_anything_is_started() {
    let arena = Arena::with(Containment::Lineage);
    for (option, value, word) in [
        ("--memory", "512", "no unit"),
        ("--memory", "1k", "less than a mebibyte"),
        ("--processes", "0", "from 1 to 4194304"),
        ("--cpu", "0", "number of processors"),
        ("--cpu", "150%", "number of processors"),
    ] {
        let ended = run(&arena, &[option, value], "echo started").run().expect(2);
        assert!(ended.err().contains(word) && ended.out().is_empty(), "{option} {value}: {ended:?}");
    }
    arena.finish();
}

#[test]
fn an_ordinary_user_has_them_in_a_delegated_directory() {
    let arena = limited!();
    if !lariat_testkit::is_root() {
        // The directory of the tests is a delegated one already.
        return;
    }
    let boundary = base(&arena);
    for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        std::os::unix::fs::chown(boundary.join(name), Some(2), Some(2)).expect("it is ours to give");
    }
    for name in ["home", "tmp", "runtime", "work"] {
        std::os::unix::fs::chown(arena.dir().join(name), Some(2), Some(2)).expect("it is ours to give");
    }
    let script = format!(
        "echo 0 > {}/cgroup.procs && exec setpriv --reuid 2 --regid 2 --clear-groups \"$@\"",
        boundary.display()
    );
    let command = arena.command("/bin/sh").args(["-c", &script, "sh", LARIAT, "run", "--memory", "16MiB"]);
    let greedy = format!("{GREEDY}; sleep 600");
    let ended = command.args(["--", "sh", "-c", &greedy]).env("LARIAT_CGROUP", "").own_session().run();
    assert_eq!(ended.code(), Some(128 + libc::SIGKILL), "{ended:?}");
    assert!(ended.err().contains("over its memory limit of 16 MiB"), "{ended:?}");
    assert!(inner(&arena).is_empty(), "{:?}", inner(&arena));
    assert_eq!(read(&boundary, "cgroup.subtree_control"), "", "it is as it was");
    arena.finish();
}

#[test]
fn where_one_controller_is_missing_the_others_limits_hold() {
    let arena = limited!();
    // What the boundary hands on to the one in it lacks cpu, as in sessions of an older systemd.
    let (outer, inner) = (base(&arena), base(&arena).join("delegated"));
    fs::create_dir(&inner).expect("the boundary is ours");
    fs::write(outer.join("cgroup.subtree_control"), "+memory +pids").expect("nobody is in it");
    let place = inner.display().to_string();
    let words = ["run", "--memory", "64MiB", "--cpu", "0.5", "--", "cat", "/proc/self/cgroup"];
    let ended = arena.command(LARIAT).args(words).env("LARIAT_CGROUP", &place).own_session().run().expect(0);
    let expected = format!("not limited (0.5 cpu): the controller cpu is not available in {place}");
    assert!(ended.err().contains(&expected), "{ended:?}");
    let greedy = ["run", "--memory", "16MiB", "--cpu", "0.5", "--", "sh", "-c", GREEDY];
    let ended = arena.command(LARIAT).args(greedy).env("LARIAT_CGROUP", &place).own_session().run();
    assert!(ended.err().contains("over its memory limit of 16 MiB"), "{ended:?}");
    let toml = "[service.web]\nrun = 'true'\nlimits = { processes = 9, cpu = 0.5 }\n";
    let stack = Stack::new(&arena, LARIAT, "project", toml);
    let ended = stack.lariat(&arena, &["up", "--yes"]).env("LARIAT_CGROUP", &place).run().expect(0);
    let said = ended.out() + &ended.err();
    assert!(said.contains("the limits of web are not all applied: the controller cpu is not"), "{said}");
    arena.finish();
}
