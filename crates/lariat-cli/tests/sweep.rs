//! `lariat sweep` in a project: what is ours and what is not, consent, books, several at once.

mod crash;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use crash::{LARIAT, User, at_runtime, crash, is_alive, kill_at_once, lariat, listed, names, project, said};
use lariat_testkit::census::Seen;
use lariat_testkit::{Arena, Containment, PATIENCE, Pty, Running, Stack, fixture, wait_until};

/// A program of the project's with this name, which does nothing for a minute.
fn tool(stack: &Stack, name: &str) -> std::path::PathBuf {
    let path = stack.dir().join("node_modules/.bin").join(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("it is ours");
    fs::copy("/bin/sleep", &path).expect("it is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

/// Starts it in a session of its own and waits until the kernel has laid out its arguments.
fn start(command: lariat_testkit::Command) -> Running {
    let running = command.own_session().start();
    let has_arguments =
        || running.seen().is_some_and(|seen| !seen.command.is_empty() && seen.session == seen.pid);
    wait_until("the program", PATIENCE, || has_arguments().then_some(()));
    running
}

fn end(running: &Running) {
    running.signal(libc::SIGKILL);
    running.wait();
}

#[test]
fn a_dry_run_says_why_and_changes_nothing() {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    // A member without environment that kept the service's output, and one without either but in its session.
    let line = fixture::line("new-session", &facts, "--manner stubborn");
    let run = format!("(env -i setsid sleep 50 &); (env -i sleep 51 >/dev/null 2>&1 &); {line}");
    let stack = Stack::new(&arena, LARIAT, "project", &format!("[service.server]\nrun = \"{run}\"\n"));
    let up = stack.up(&arena);
    facts.wait_for("ready");
    crash::wait_ledger(&stack, facts.pid("leader"));
    let left = crash(&arena, &[&up]);
    assert_eq!(left.len(), 4, "{left:?}");
    let before = crash::everything(arena.dir());
    let dry = stack.run(&arena, &["sweep", "--dry-run"]).expect(0);
    let after = crash::everything(arena.dir());
    let is_output = |path: &std::path::Path| path.parent() == Some(&arena.dir().join("out"));
    let changed: Vec<_> = after.iter().filter(|(path, now)| before.get(*path) != Some(now)).collect();
    let changed: Vec<_> = changed.iter().map(|(path, _)| path).filter(|path| !is_output(path)).collect();
    assert!(changed.iter().all(|path| path.ends_with("out")), "{changed:?}");
    assert!(before.keys().all(|path| after.contains_key(path)));
    let why = |seen: &Seen| {
        let out = dry.out();
        let line = out.lines().find(|line| line.trim_start().starts_with(&seen.pid.to_string()));
        line.map(str::to_owned).unwrap_or_else(|| panic!("{seen} is not named: {}", dry.out()))
    };
    for (command, reason) in [("sleep 50", "it can write to the output"), ("sleep 51", "session")] {
        let seen = left.iter().find(|seen| seen.command == command).expect("it is left");
        assert!(why(seen).contains(reason), "{}", why(seen));
    }
    let seen = |role| Seen::of(facts.pid(role)).expect("it is left");
    assert!(why(&seen("leader")).contains("leader"), "{}", why(&seen("leader")));
    assert!(why(&seen("child")).contains("marker"), "{}", why(&seen("child")));
    let json = stack.run(&arena, &["sweep", "-n", "--json"]).expect(0);
    let json: serde_json::Value = serde_json::from_str(&json.out()).expect("one object");
    assert_eq!(json["groups"][0]["certain"].as_array().map(Vec::len), Some(4), "{json}");
    assert_eq!((json["is_dry_run"].as_bool(), json["is_clean"].as_bool()), (Some(true), Some(false)));
    stack.run(&arena, &["sweep", "--yes", "--force"]).expect(0);
    arena.finish();
}

#[test]
fn consent_is_asked_for() {
    // What is typed, the exit code, and how many are left.
    for (keys, code, left) in [("y\n", 0, 0), ("\n", 0, 0), ("n\n", 8, 2), ("what?\n", 8, 2), ("\x03", 8, 2)]
    {
        let arena = Arena::with(Containment::Lineage);
        let (stack, facts) = project(&arena, "project", "new-session", "--manner stubborn");
        let up = stack.up(&arena);
        facts.wait_for("ready");
        crash(&arena, &[&up]);
        // Nobody can be asked.
        let refused = stack.run(&arena, &["sweep"]).expect(8);
        names(&said(&refused), &[facts.pid("leader"), facts.pid("child")]);
        assert_eq!(arena.alive().len(), 2);
        let mut pty = Pty::new();
        let sweep = pty.start(stack.in_front(&arena, &["sweep"]));
        pty.wait_for(&facts.pid("leader").to_string());
        pty.wait_for("End 2 processes? [Y/n]");
        pty.send(keys);
        assert_eq!(pty.wait_end(&sweep).code(), Some(code), "{keys:?}: {}", pty.text());
        assert_eq!(arena.alive().len(), left, "{keys:?}");
        stack.run(&arena, &["sweep", "--yes"]).expect(0);
        arena.finish();
    }
}

#[test]
fn who_redirects_the_input_is_not_asked_and_who_redirects_the_output_is() {
    for verb in ["sweep", "down", "up"] {
        let arena = Arena::with(Containment::Lineage);
        let (stack, facts) = project(&arena, "project", "new-session", "--manner stubborn");
        let up = stack.up(&arena);
        facts.wait_for("ready");
        crash(&arena, &[&up]);
        let mut pty = Pty::new();
        let unasked = pty.start_beside(stack.in_front(&arena, &[verb]).stdin(Stdio::null()));
        let unasked = unasked.wait().expect(8);
        names(&said(&unasked), &[facts.pid("leader"), facts.pid("child")]);
        for wanted in ["nobody can be asked", "--yes"] {
            assert!(unasked.err().contains(wanted), "{verb}: {}", unasked.err());
        }
        assert_eq!(arena.alive().len(), 2);
        let mut pty = Pty::new();
        let stdin = pty.program_side();
        let asked = pty.start_beside(stack.in_front(&arena, &[verb]).stdin(stdin));
        pty.wait_for("[Y/n]");
        pty.send("n\n");
        assert_eq!(pty.wait_end(&asked).code(), Some(8), "{verb}: {}", pty.text());
        stack.run(&arena, &["sweep", "--yes", "--force"]).expect(0);
        arena.finish();
    }
}

#[test]
fn what_is_only_possible_has_a_question_of_its_own() {
    for (answer, is_ended) in [("\n", false), ("n\n", false), ("y\n", true)] {
        let arena = Arena::with(Containment::Lineage);
        let (stack, facts) = project(&arena, "project", "disguised", "--manner stubborn");
        let up = stack.up(&arena);
        facts.wait_for("ready");
        crash(&arena, &[&up]);
        let disguised = facts.pid("disguised");
        let mut pty = Pty::new();
        let sweep = pty.start(stack.in_front(&arena, &["sweep"]));
        pty.wait_for("End 1 process? [Y/n]");
        pty.send("y\n");
        pty.wait_for(&format!("End {disguised} as well, which may be of something else? [y/N]"));
        pty.send(answer);
        assert_eq!(pty.wait_end(&sweep).code(), Some(0), "{}", pty.text());
        assert_eq!(is_alive(disguised), !is_ended, "{answer:?}");
        // After a no it is nobody's, and is not offered again.
        let again = stack.run(&arena, &["sweep", "--dry-run"]).expect(0);
        assert!(again.out().starts_with("nothing is left"), "{}", again.out());
        arena.alive().iter().for_each(Seen::kill);
        arena.wait_until_empty(PATIENCE);
        arena.finish();
    }
}

#[test]
fn a_server_of_the_project_is_offered_and_a_stranger_is_not() {
    let arena = Arena::with(Containment::Lineage);
    let stack = Stack::new(
        &arena,
        LARIAT,
        "project",
        "[sweep]\npatterns = ['my-server 6*']\n[service.server]\nrun = 'sleep 60'\n",
    );
    let (nodemon, own, other) = (tool(&stack, "nodemon"), tool(&stack, "my-server"), tool(&stack, "other"));
    let inside = |path: &std::path::Path, time: &str| start(arena.command(path).arg(time).dir(stack.dir()));
    let offered = [inside(&nodemon, "61"), inside(&own, "62")];
    let ignored = [inside(&other, "63"), inside(&own, "55"), start(arena.command(&nodemon).arg("64"))];
    // One that hangs on a live run.
    let nodemon_text = nodemon.to_str().expect("a plain path");
    let live = stack.lariat(&arena, &["run", "--", nodemon_text, "65"]).start();
    crash::wait_records(&arena, 1);
    let is_there = || arena.alive().iter().any(|seen| seen.command == format!("{nodemon_text} 65"));
    wait_until("the live run's server", PATIENCE, || is_there().then_some(()));
    let foreign = lariat_testkit::is_root().then(|| {
        let command = arena.command(&nodemon).arg("66").dir(stack.dir());
        start(command.as_user(12_345, 12_345))
    });
    let pids = |all: &[Running]| all.iter().map(Running::pid).collect::<Vec<_>>();
    let dry = stack.run(&arena, &["sweep", "--dry-run", "--json"]).expect(0);
    let json: serde_json::Value = serde_json::from_str(&dry.out()).expect("one object");
    let group = &json["groups"][0];
    assert_eq!(
        (group["kind"].as_str(), group["certain"].as_array().map(Vec::len)),
        (Some("project"), Some(0))
    );
    let found: Vec<i64> =
        group["possible"].as_array().expect("a list").iter().filter_map(|p| p["pid"].as_i64()).collect();
    assert_eq!(found, pids(&offered).into_iter().map(i64::from).collect::<Vec<_>>(), "{json}");
    // Below the project it is the same project, and above it is none.
    fs::create_dir(stack.dir().join("below")).expect("it is ours");
    let below = lariat(&arena, &["sweep", "-n"]).dir(stack.dir().join("below")).run().expect(0);
    names(&below.out(), &pids(&offered));
    let swept = stack.run(&arena, &["sweep", "--yes"]).expect(0);
    names(&said(&swept), &pids(&offered));
    assert!(
        said(&swept).contains("`nodemon`") && said(&swept).contains("`my-server 6*`"),
        "{}",
        said(&swept)
    );
    assert!(offered.iter().all(Running::is_alive), "ended without a word");
    let swept = stack.run(&arena, &["sweep", "--possible"]).expect(0);
    assert!(!offered.iter().any(Running::is_alive), "{}", said(&swept));
    assert!(ignored.iter().chain(&foreign).all(Running::is_alive), "a stranger was ended");
    assert!(live.is_alive() && is_there(), "a live run was touched");
    live.signal(libc::SIGTERM);
    live.wait();
    offered.iter().for_each(|running| drop(running.wait()));
    ignored.iter().chain(&foreign).for_each(end);
    arena.finish();
}

/// A session whose number the ledger knows, and nobody in it who says that he is ours.
#[test]
fn a_stranger_with_the_number_of_our_session_is_only_possible() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = project(&arena, "project", "alone", "--manner stubborn");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    crash::wait_ledger(&stack, facts.pid("leader"));
    crash(&arena, &[&up]);
    let leader = Seen::of(facts.pid("leader")).expect("it is left");
    leader.kill();
    arena.wait_until_empty(PATIENCE);
    let script = "sleep 60 & echo $! > stranger; exit";
    let shell = arena.command("/bin/sh").args(["-c", script]).own_session().start();
    let number = shell.pid();
    shell.wait();
    let stranger: i32 =
        fs::read_to_string(arena.work().join("stranger")).expect("it ran").trim().parse().expect("a pid");
    let ledger = stack.dir().join(".lariat/run.json");
    let text = fs::read_to_string(&ledger).expect("the ledger is there");
    fs::write(&ledger, text.replace(&format!(": {},", leader.pid), &format!(": {number},")))
        .expect("it is ours");
    let dry = stack.run(&arena, &["sweep", "--dry-run", "--json"]).expect(0);
    let json: serde_json::Value = serde_json::from_str(&dry.out()).expect("one object");
    assert_eq!(json["groups"][0]["possible"][0]["pid"].as_i64(), Some(stranger.into()), "{json}");
    stack.run(&arena, &["sweep", "--yes"]).expect(0);
    assert!(is_alive(stranger), "a stranger was ended");
    Seen::of(stranger).expect("it is alive").kill();
    arena.wait_until_empty(PATIENCE);
    stack.run(&arena, &["sweep", "--yes"]).expect(0);
    assert!(listed(&arena).is_empty());
    arena.finish();
}

#[test]
fn a_damaged_ledger_is_set_aside_and_the_list_of_runs_knows_whose_processes_they_are() {
    for damage in ["", "{\"vers", "{\"version\":1}", "\u{0}\u{0}"] {
        let arena = Arena::with(Containment::Lineage);
        let (stack, facts) = project(&arena, "project", "daemon", "--manner stubborn");
        let up = stack.up(&arena);
        facts.wait_for("ready");
        crash(&arena, &[&up]);
        fs::write(stack.dir().join(".lariat/run.json"), damage).expect("it is ours");
        let dry = stack.run(&arena, &["sweep", "--dry-run"]).expect(0);
        names(&dry.out(), &[facts.pid("leader"), facts.pid("daemon")]);
        let set_aside = || {
            let names = fs::read_dir(stack.dir().join(".lariat")).expect("it is there").flatten();
            names.filter(|name| name.file_name().to_string_lossy().contains("damaged")).count()
        };
        assert_eq!(set_aside(), 0, "a dry run set it aside");
        let swept = stack.run(&arena, &["sweep", "--yes", "--force"]).expect(0);
        assert!(said(&swept).contains("damaged"), "{}", said(&swept));
        assert!(arena.alive().is_empty(), "{damage:?}: {:?}", arena.alive());
        assert_eq!(set_aside(), 1);
        assert!(listed(&arena).is_empty() && at_runtime(&arena).is_empty(), "{:?}", at_runtime(&arena));
        arena.finish();
    }
}

#[test]
fn a_project_that_was_removed_is_swept_by_its_path() {
    for is_root_gone in [true, false] {
        let arena = Arena::with(Containment::Lineage);
        let (stack, facts) = project(&arena, "project", "disguised", "--manner stubborn");
        let up = stack.up(&arena);
        facts.wait_for("ready");
        crash(&arena, &[&up]);
        let gone = if is_root_gone { stack.dir().to_owned() } else { stack.dir().join(".lariat") };
        fs::remove_dir_all(gone).expect("it is ours");
        let path = stack.dir().to_str().expect("a plain path").to_owned();
        let swept = lariat(&arena, &["sweep", "--yes", "--force", &path]).run().expect(0);
        assert!(!is_alive(facts.pid("leader")), "{}", said(&swept));
        // Without a leader's number, the place and the time are left.
        names(&said(&swept), &[facts.pid("disguised")]);
        assert!(is_alive(facts.pid("disguised")) && listed(&arena).len() == 1);
        lariat(&arena, &["sweep", "--possible", "--force", &path]).run().expect(0);
        assert!(listed(&arena).is_empty() && at_runtime(&arena).is_empty(), "{:?}", at_runtime(&arena));
        arena.finish();
    }
}

#[test]
fn a_run_that_is_alive_is_alive_without_its_project() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = project(&arena, "project", "daemon", "");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    // Moved away in one step: it is being written to.
    fs::rename(stack.dir(), arena.dir().join("gone")).expect("it is ours");
    let path = stack.dir().to_str().expect("a plain path").to_owned();
    let swept = lariat(&arena, &["sweep", "--yes", "--possible", &path]).run().expect(0);
    assert!(said(&swept).contains("is alive"), "{}", said(&swept));
    assert!(up.is_alive() && is_alive(facts.pid("leader")) && is_alive(facts.pid("daemon")));
    up.signal(libc::SIGTERM);
    up.wait();
    arena.finish();
}

#[test]
fn after_a_reboot_files_are_cleaned_and_nobody_is_touched() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = project(&arena, "project", "new-session", "--manner stubborn");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let left = crash(&arena, &[&up]);
    let ledger = stack.dir().join(".lariat/run.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&fs::read(&ledger).expect("it is there")).expect("it is whole");
    json["boot"] = "00000000-0000-0000-0000-000000000000".into();
    fs::write(&ledger, json.to_string()).expect("it is ours");
    let swept = stack.run(&arena, &["sweep", "--yes", "--possible"]).expect(0);
    assert!(said(&swept).contains("started anew"), "{}", said(&swept));
    assert_eq!(arena.alive().len(), left.len(), "somebody was ended by numbers of another boot");
    assert!(listed(&arena).is_empty() && at_runtime(&arena).is_empty());
    arena.alive().iter().for_each(Seen::kill);
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

#[test]
fn two_sweeps_at_once_end_everything_once() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = project(&arena, "project", "daemon", "--manner graceful --ms 50");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    crash(&arena, &[&up]);
    let sweeps: Vec<Running> = (0..3).map(|_| stack.lariat(&arena, &["sweep", "--yes"]).start()).collect();
    for sweep in &sweeps {
        sweep.wait().expect(0);
    }
    assert!(arena.alive().is_empty());
    assert!(facts.has("clean-daemon"));
    facts.assert_told("daemon", &[1], "three sweeps");
    arena.finish();
}

#[test]
fn a_sweep_and_an_up_side_by_side_leave_one_stack() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = project(&arena, "project", "new-session", "--manner stubborn");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let old = crash(&arena, &[&up]);
    let before = stack.count("startup-finished");
    let (sweep, up) =
        (stack.lariat(&arena, &["sweep", "--yes"]).start(), stack.lariat(&arena, &["up", "--yes"]).start());
    sweep.wait().expect(0);
    stack.wait_up(&up, before);
    assert!(old.iter().all(|seen| !seen.is_alive_now()));
    // Started is not ready: the new leader says who it is in its own time.
    wait_until("one new leader", PATIENCE, || (facts.pids("leader").len() == 2).then_some(()));
    assert!(up.is_alive());
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    assert_eq!(facts.pids("leader").len(), 2);
    arena.finish();
}

#[test]
fn keepers_at_work_are_waited_for() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = project(&arena, "project", "daemon", "--manner graceful --ms 200");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    up.signal(libc::SIGKILL);
    up.wait();
    stack.run(&arena, &["sweep", "--yes"]).expect(0);
    assert!(arena.alive().is_empty(), "{:?}", arena.alive());
    facts.assert_told("daemon", &[1], "a sweep");
    arena.finish();
}

#[test]
fn a_project_below_another_one_is_its_own() {
    let arena = Arena::with(Containment::Lineage);
    let (outer, outer_facts) = project(&arena, "project", "new-session", "--manner stubborn");
    let (inner, inner_facts) = project(&arena, "project/inside", "new-session", "--manner stubborn");
    let inner_up = inner.up(&arena);
    inner_facts.wait_for("ready");
    let left = crash(&arena, &[&inner_up]);
    let outer_up = outer.up(&arena);
    outer_facts.wait_for("ready");
    // The outer one's sweep is not about the inner one, and the inner one's is not about the outer one.
    outer.run(&arena, &["sweep", "--yes", "--possible"]).expect(0);
    assert!(left.iter().all(Seen::is_alive_now));
    inner.run(&arena, &["sweep", "--yes", "--possible"]).expect(0);
    assert!(!left.iter().any(Seen::is_alive_now));
    assert!(outer_up.is_alive() && is_alive(outer_facts.pid("leader")) && is_alive(outer_facts.pid("child")));
    outer.run(&arena, &["down"]).expect(0);
    outer_up.wait().expect(0);
    arena.finish();
}

/// The processes of a run inside a run carry the outer one's mark: a crashed inner one must not take the outer along.
#[test]
fn a_crashed_run_inside_a_live_one_is_ended_and_the_outer_one_is_not() {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let inner = format!(
        "{LARIAT} run -- {}",
        fixture::line("new-session", &facts, "--manner stubborn").replacen("exec ", "", 1)
    );
    let script = format!("{inner}; sleep 60");
    let outer = lariat(&arena, &["run", "--grace", "300ms", "--", "/bin/sh", "-c", &script]).start();
    facts.wait_for("ready");
    crash::wait_records(&arena, 2);
    let leader = Seen::of(facts.pid("leader")).expect("it is alive");
    let keeper = Seen::of(leader.parent).expect("it is alive");
    let supervisor = Seen::of(keeper.parent).expect("it is alive");
    kill_at_once(&[keeper, supervisor]);
    wait_until("the outer one goes on", PATIENCE, || {
        arena.alive().iter().any(|seen| seen.command == "sleep 60").then_some(())
    });
    let swept = lariat(&arena, &["sweep", "--yes", "--force"]).run().expect(0);
    assert!(!is_alive(leader.pid), "{}", said(&swept));
    assert!(outer.is_alive() && arena.alive().iter().any(|seen| seen.command == "sleep 60"));
    outer.signal(libc::SIGTERM);
    outer.wait();
    arena.finish();
}

/// On a terminal the command stays in the shell's process group: the others in it are not ours.
#[test]
fn who_shares_the_terminals_group_with_a_command_is_a_stranger() {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let line = fixture::line("child", &facts, "--manner stubborn").replacen("exec ", "", 1);
    let script = format!("sleep 60 & {LARIAT} run -- {line} & wait");
    let mut pty = Pty::new();
    let shell = pty.start(arena.command("/bin/sh").args(["-c", &script]));
    facts.wait_for("ready");
    crash::wait_records(&arena, 1);
    let leader = Seen::of(facts.pid("leader")).expect("it is alive");
    assert_eq!(leader.session, shell.pid(), "it is not in the terminal's session");
    let keeper = Seen::of(leader.parent).expect("it is alive");
    let supervisor = Seen::of(keeper.parent).expect("it is alive");
    kill_at_once(&[keeper, supervisor]);
    let swept = lariat(&arena, &["sweep", "--yes", "--possible", "--force"]).run().expect(0);
    assert!(!is_alive(leader.pid) && !is_alive(facts.pid("child")), "{}", said(&swept));
    assert!(shell.is_alive() && arena.alive().iter().any(|seen| seen.command == "sleep 60"));
    arena.alive().iter().for_each(Seen::kill);
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

/// What cannot be ended is named with the reason, stays in the ledger, and is ended once it can be.
#[test]
fn who_may_not_be_signalled_is_kept_in_mind() {
    let Some(user) = User::take() else { return };
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = project(&arena, "project", "alone", "--manner stubborn");
    user.own(&arena);
    let up = user.up(&arena, &stack);
    facts.wait_for("ready");
    crash(&arena, &[&up]);
    // Root's, until a fact lets it become the user's: the same process all the time.
    let gate = arena.work().join("gate");
    let script = format!("until [ -e {}", gate.display())
        + " ]; do sleep 0.05; done; "
        + &format!("exec setpriv --reuid {0} --clear-groups sleep 60", user.0);
    let foreign = start(arena.command("/bin/sh").args(["-c", &script]));
    let seen = foreign.seen().expect("it is alive");
    let ledger = stack.dir().join(".lariat/run.json");
    let read = || -> serde_json::Value {
        serde_json::from_slice(&fs::read(&ledger).expect("it is there")).expect("it is whole")
    };
    let mut json = read();
    json["services"][0]["earlier"] = serde_json::json!([
        { "leader": { "pid": seen.pid, "start": seen.start }, "session": 1 }
    ]);
    fs::write(&ledger, json.to_string()).expect("it is ours");
    let sweep = |args: &[&str]| user.runs(stack.lariat(&arena, &[&["sweep"], args].concat())).run();
    let swept = sweep(&["--yes", "--force"]).expect(4);
    let text = said(&swept);
    names(&text, &[seen.pid]);
    assert!(text.contains("operation not permitted") && text.contains("sudo kill -KILL"), "{text}");
    assert!(foreign.is_alive() && listed(&arena).len() == 1);
    let mut json = read();
    assert_eq!(json["report"]["left"][0]["pid"].as_i64(), Some(seen.pid.into()), "{json}");
    // It is known by what was left alone.
    json["services"] = serde_json::json!([]);
    fs::write(&ledger, json.to_string()).expect("it is ours");
    fs::write(&gate, "").expect("it is ours");
    wait_until("its new user", PATIENCE, || {
        foreign.seen().is_some_and(|seen| seen.command == "sleep 60").then_some(())
    });
    sweep(&["--yes"]).expect(0);
    assert!(!foreign.is_alive() && listed(&arena).is_empty());
    foreign.wait();
    arena.finish();
}

#[test]
fn without_a_grace_period_it_is_short() {
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let line = fixture::line("daemon", &facts, "--manner stubborn");
    let toml = format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '9m' }}\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    crash(&arena, &[&up]);
    let swept = stack.run(&arena, &["sweep", "--yes", "--force"]).expect(0);
    assert!(swept.took < Duration::from_secs(10), "{:?}", swept.took);
    arena.finish();
}

#[test]
fn the_end_of_a_live_stack_names_servers_of_the_project_and_leaves_them_alone() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, facts) = project(&arena, "project", "alone", "");
    let nodemon = tool(&stack, "nodemon");
    let older = start(arena.command(&nodemon).arg("61").dir(stack.dir()));
    // Starts are counted in hundredths of a second.
    let born = older.seen().expect("it is alive").start;
    wait_until("another tick", PATIENCE, || {
        let probe = arena.command("/bin/true").start();
        let start = probe.seen().map(|seen| seen.start);
        probe.wait();
        start.is_some_and(|start| start > born).then_some(())
    });
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let younger = start(arena.command(&nodemon).arg("62").dir(stack.dir()));
    let down = stack.run(&arena, &["down"]).expect(0);
    names(&down.out(), &[younger.pid()]);
    assert!(!down.out().contains(&format!("{} `", older.pid())), "{}", down.out());
    assert!(older.is_alive() && younger.is_alive());
    up.wait().expect(0);
    [older, younger].iter().for_each(end);
    arena.finish();
}

#[test]
fn a_newer_ledger_is_trouble_and_is_not_touched() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, _) = project(&arena, "project", "alone", "");
    fs::create_dir(stack.dir().join(".lariat")).expect("it is ours");
    fs::set_permissions(stack.dir().join(".lariat"), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let ledger = stack.dir().join(".lariat/run.json");
    fs::write(&ledger, "{\"version\":99,\"run\":[]}").expect("it is ours");
    for args in [&["sweep", "--yes"][..], &["sweep", "-n"]] {
        let swept = stack.run(&arena, args).expect(9);
        assert!(said(&swept).contains("newer lariat"), "{}", said(&swept));
    }
    assert_eq!(fs::read_to_string(&ledger).expect("it is there"), "{\"version\":99,\"run\":[]}");
    assert!(
        fs::metadata(&ledger).is_ok_and(|found| found.modified().is_ok_and(|at| at <= SystemTime::now()))
    );
    arena.finish();
}
