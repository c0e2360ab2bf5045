//! `isolation = "pid"`, besides the servers of `up_servers.rs`: the numbers that people see, daemons, restarts, stacks of
//! both kinds; and what happens where there are no namespaces.

use std::fmt::Write as _;
use std::time::Duration;

use lariat_testkit::census::{self, Seen};
use lariat_testkit::needs::skip_as_user;
use lariat_testkit::stuck::DeafServer;
use lariat_testkit::{Arena, Facts, PATIENCE, Stack, fixture, is_root, need, needs, subject, wait_until};
use serde_json::Value;

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");
/// Kill passes last up to fifteen seconds where nothing helps.
const KILLING_AT_MOST: Duration = Duration::from_secs(28);

fn project(arena: &Arena, kind: &str, args: &str, more: &str) -> (Stack, Facts) {
    let facts = arena.facts("f");
    let run = fixture::line(kind, &facts, args);
    let toml = format!("[service.web]\nrun = '''{run}'''\nisolation = 'pid'\n{more}");
    (Stack::new(arena, LARIAT, "isolated", &toml), facts)
}

fn keeper(arena: &Arena, stack: &Stack) -> Seen {
    let keepers = stack.keepers(arena);
    assert_eq!(keepers.len(), 1, "{keepers:#?}");
    keepers.into_iter().next().expect("one")
}

/// Returns the number in the last event of this kind.
fn pid_in(stack: &Stack, kind: &str) -> i32 {
    let events = stack.events();
    let mut lines = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let event = lines.rfind(|event| event["event"] == kind);
    let event = event.unwrap_or_else(|| panic!("no {kind} in {events}"));
    event["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok())
        .unwrap_or_else(|| panic!("no pid in {event}"))
}

/// Returns the last end record.
fn end_record(stack: &Stack) -> Value {
    let path = stack.dir().join(".lariat/ends.jsonl");
    wait_until("an end record", KILLING_AT_MOST, || {
        let text = std::fs::read_to_string(&path).ok()?;
        serde_json::from_str(text.lines().last()?).ok()
    })
}

/// A service knows only its own small numbers; everything that lariat shows and writes has those of the machine, also of
/// processes that are dead by then.
#[test]
fn people_and_the_ledger_see_the_machines_numbers() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let (stack, facts) = project(&arena, "daemon", "--manner graceful", "stop = { grace = '20s' }\n");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let keeper = keeper(&arena, &stack).pid;
    let outside = |role| census::inside(keeper, facts.pid(role)).expect("it is alive");
    let (leader, daemon) = (outside("leader"), outside("daemon"));
    assert_eq!(pid_in(&stack, "service-started"), leader.pid);
    // The daemon outlives its leader: a straggler.
    leader.signal(libc::SIGUSR1);
    up.wait().expect(1);
    assert_eq!(pid_in(&stack, "straggler-named"), daemon.pid);
    arena.finish();
}

/// Nobody has to be alive to be named. The witness is a daemon in the session of the leader, which has its number.
#[test]
fn a_leader_that_is_gone_at_once_has_its_number_all_the_same() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let toml = "[service.web]\nrun = 'sleep 1000 & exit 0'\ndaemon = true\nisolation = 'pid'\n";
    let stack = Stack::new(&arena, LARIAT, "isolated", toml);
    let up = stack.up(&arena);
    stack.wait_event("service-daemonized", 0);
    let members = census::by_parent(keeper(&arena, &stack).pid);
    let daemon = members.iter().find(|seen| seen.comm == "sleep").expect("a daemon");
    assert_ne!(daemon.session, daemon.pid);
    assert_eq!(pid_in(&stack, "service-started"), daemon.session);
    up.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    assert_eq!(end_record(&stack)["leader"]["pid"], daemon.session);
    stack.run(&arena, &["down"]);
    arena.finish();
}

#[test]
fn ps_and_the_ledger_name_the_leader_by_its_number_outside() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let (stack, facts) = project(&arena, "alone", "--manner graceful", "");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let keeper = keeper(&arena, &stack);
    let leader = census::inside(keeper.pid, facts.pid("leader")).expect("a leader");
    let shown = stack.run(&arena, &["ps"]).expect(0).out();
    assert!(shown.contains(&leader.pid.to_string()), "no {} in {shown}", leader.pid);
    let recorded = wait_until("the leader in the ledger", PATIENCE, || {
        let ledger = std::fs::read_to_string(stack.dir().join(".lariat/run.json")).ok()?;
        let ledger: Value = serde_json::from_str(&ledger).ok()?;
        let service = &ledger["services"][0];
        service["leader"].is_object().then(|| (service["keeper"].clone(), service["leader"].clone()))
    });
    for (seen, recorded) in [(&keeper, recorded.0), (&leader, recorded.1.clone())] {
        assert_eq!((&recorded["pid"], &recorded["start"]), (&seen.pid.into(), &seen.start.into()));
    }
    // After the supervisor's death the keeper writes down whom it ended, and who it was itself.
    up.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    let end = end_record(&stack);
    assert_eq!((&end["keeper"], &end["leader"]), (&keeper.pid.into(), &recorded.1), "{end:#}");
    assert!(facts.has("clean-leader"));
    stack.run(&arena, &["down"]);
    arena.finish();
}

/// Who could not be ended is there for the next command to find, and to end.
#[test]
fn whom_a_keeper_could_not_end_is_named_by_its_number_outside() {
    let arena = Arena::new();
    if !is_root() {
        return skip_as_user("it takes root to make a process that cannot be ended");
    }
    let dir = arena.dir().join("deaf");
    std::fs::create_dir(&dir).expect("the arena is ours");
    let mut server = match DeafServer::mount(&dir) {
        Ok(server) => server,
        Err(error) => return needs::skip(&format!("there is no FUSE: {error}")),
    };
    let args = format!("--manner graceful --file {}", server.file().display());
    let (stack, facts) = project(&arena, "reader", &args, "stop = { grace = '300ms' }\n");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let reader = census::inside(keeper(&arena, &stack).pid, facts.pid("reader")).expect("a reader");
    up.signal(libc::SIGKILL);
    let end = end_record(&stack);
    let left = &end["left"][0];
    assert_eq!((&left["pid"], &left["start"]), (&reader.pid.into(), &reader.start.into()), "{end:#}");
    let down = stack.run(&arena, &["down", "--yes"]).expect(4);
    assert!(down.out().contains(&reader.pid.to_string()), "{down:?}");
    server.stop();
    stack.run(&arena, &["down", "--yes"]).expect(0);
    assert!(!reader.is_alive_now());
    drop(server);
    arena.finish();
}

/// HAZARD(numbers-inside): nobody but the keeper holds what shows the processes outside. That root may look into any
/// process, the keeper too, is so everywhere.
#[test]
fn no_member_gets_at_what_shows_the_processes_outside() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let look = "for fd in /proc/[0-9]*/fd/*; do test -e $fd/1/stat && echo $fd; done; echo looked around";
    let toml = format!("[service.web]\nrun = '{look}; sleep 1000'\nisolation = 'pid'\n");
    let stack = Stack::new(&arena, LARIAT, "isolated", &toml);
    let up = stack.up(&arena);
    stack.wait_store("web", "looked around");
    let store = String::from_utf8_lossy(&stack.store("web")).into_owned();
    let is_the_keepers = |line: &&str| line.starts_with("/proc/1/");
    let found: Vec<&str> = store.lines().filter(|line| line.starts_with("/proc/")).collect();
    assert!(found.iter().all(is_the_keepers), "{found:?}");
    assert_eq!(found.is_empty(), !is_root(), "{found:?}");
    stack.run(&arena, &["down"]).expect(0);
    up.wait();
    arena.finish();
}

/// A program that goes to the background by itself is held, and ended, as without isolation.
#[test]
fn a_daemon_by_design_is_up_while_it_lives() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let (stack, facts) = project(&arena, "daemon", "--leave 1 --code 0 --manner graceful", "daemon = true\n");
    let up = stack.up(&arena);
    stack.wait_event("service-daemonized", 0);
    let inner = facts.pid("daemon");
    let daemon = census::inside(keeper(&arena, &stack).pid, inner).expect("a daemon");
    assert!(daemon.is_alive_now());
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    assert!(facts.has("clean-daemon"));
    arena.finish();
}

/// A keeper that was killed is a failure like any other: the service comes back, in a namespace of its own.
#[test]
fn a_service_comes_back_after_its_keeper_was_killed() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let (stack, facts) = project(&arena, "disguised", "--manner stubborn", "restart = 'on-failure'\n");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let first = keeper(&arena, &stack);
    let members: Vec<Seen> = census::by_parent(first.pid).into_iter().filter(Seen::is_alive).collect();
    assert_eq!(members.len(), 2, "{members:#?}");
    first.kill();
    stack.wait_event("service-started", 1);
    assert!(members.iter().all(|member| !member.is_alive_now()), "{members:#?}");
    let second = keeper(&arena, &stack);
    assert_ne!(first.pid, second.pid);
    stack.run(&arena, &["down", "--force"]).expect(0);
    up.wait();
    arena.finish();
}

/// Isolated services beside others, and `lariat run` inside of one.
#[test]
fn services_of_both_kinds_live_in_one_stack() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let own = subject::lariat(LARIAT).into_string().expect("a plain path");
    let (inside, beside) = (arena.facts("inside"), arena.facts("beside"));
    let mut toml = String::new();
    let line = fixture::line("daemon", &inside, "--manner graceful");
    let line = line.trim_start_matches("exec ");
    write!(toml, "[service.a]\nisolation = 'pid'\nrun = '''exec {own} run --isolate -- {line}'''\n")
        .expect("text");
    let line = fixture::line("daemon", &beside, "--manner graceful");
    write!(toml, "[service.b]\nisolation = 'none'\nrun = '''{line}'''\n").expect("text");
    let stack = Stack::new(&arena, LARIAT, "isolated", &toml);
    let up = stack.up(&arena);
    inside.wait_for("ready");
    beside.wait_for("ready");
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    for facts in [&inside, &beside] {
        assert!(facts.has("clean-leader") && facts.has("clean-daemon"), "{:?}", facts.names());
        facts.assert_told("daemon", &[1], "by its keeper");
    }
    arena.finish();
}

#[test]
fn without_a_namespace_no_service_of_the_stack_starts() {
    let unshare = need!("unshare");
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let toml = "[service.a]\nrun = 'touch started'\n[service.b]\nisolation = 'pid'\nrun = 'touch started'\n";
    let stack = Stack::new(&arena, LARIAT, "isolated", toml);
    let script = "echo 0 >/proc/sys/user/max_pid_namespaces && exec \"$0\" up --yes";
    let command = arena.command(unshare).args(["-Ur", "sh", "-c", script]).arg(subject::lariat(LARIAT));
    let ending = command.dir(stack.dir()).own_session().run();
    assert_eq!(ending.code(), Some(9), "{ending:?}");
    assert!(!stack.dir().join("started").exists());
    for words in ["`b` cannot be isolated", "could not make a pid namespace", "max_pid_namespaces"] {
        assert!(ending.err().contains(words), "no {words:?} in {}", ending.err());
    }
    // The others alone are no reason to refuse.
    let script = "echo 0 >/proc/sys/user/max_pid_namespaces && exec \"$0\" up --yes a";
    let command =
        arena.command(need!("unshare")).args(["-Ur", "sh", "-c", script]).arg(subject::lariat(LARIAT));
    command.dir(stack.dir()).own_session().run().expect(0);
    assert!(stack.dir().join("started").exists());
    arena.finish();
}
