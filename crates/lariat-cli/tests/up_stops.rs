//! The ways a stack is stopped, whole or in part: signals, terminals, `down`, `stop`, crashes of a leader.

use std::time::Duration;

use lariat_testkit::census::Seen;
use lariat_testkit::{Arena, Facts, PATIENCE, Pty, Stack, fixture, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// A service of one fixture.
fn service(name: &str, kind: &str, facts: &Facts, args: &str, more: &str) -> String {
    format!("[service.{name}]\nrun = '{}'\n{more}\n", fixture::line(kind, facts, args))
}

/// A project of one fixture. Its grace period is short where it has to run out, and long where it must not.
fn project(arena: &Arena, name: &str, kind: &str, args: &str) -> (Stack, Facts) {
    let facts = arena.facts(name);
    let grace = if args.contains("graceful") { "20s" } else { "300ms" };
    let more = format!("stop = {{ grace = '{grace}' }}");
    let stack = Stack::new(arena, LARIAT, name, &service("server", kind, &facts, args, &more));
    (stack, facts)
}

#[test]
fn an_interrupt_during_the_start_up_ends_everything() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        let arena = Arena::new();
        let facts = arena.facts("f");
        let more = "ready = { log = 'never said' }";
        let toml = service("server", "daemon", &facts, "--manner graceful", more);
        let stack = Stack::new(&arena, LARIAT, "project", &toml);
        let up = stack.lariat(&arena, &["up", "--yes"]).start();
        facts.wait_for("ready");
        up.signal(signal);
        up.wait();
        assert!(facts.has("clean-leader") && facts.has("clean-daemon"), "signal {signal}");
        arena.finish();
    }
}

#[test]
fn a_second_signal_kills_at_once() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let toml = "[stack]\ndeadline = '10m'\n".to_owned()
        + &service("server", "daemon", &facts, "--manner stubborn", "stop = { grace = '9m' }");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    wait_until("the end after several signals", PATIENCE, || {
        up.signal(libc::SIGTERM);
        up.ended(Duration::from_millis(100))
    });
    // The third one may have made the supervisor leave: keepers finish.
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

#[test]
fn a_forced_down_skips_the_grace_period() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let toml = "[stack]\ndeadline = '10m'\n".to_owned()
        + &service("server", "new-session", &facts, "--manner stubborn", "stop = { grace = '9m' }");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let down = stack.run(&arena, &["down", "--force"]).expect(0);
    assert!(down.took < Duration::from_secs(10), "{:?}", down.took);
    up.wait();
    arena.finish();
}

#[test]
fn detached_it_comes_back_when_all_is_ready_and_goes_on_without_its_terminal() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let line = fixture::line("daemon", &facts, "--manner graceful");
    let toml =
        format!("[service.server]\nrun = 'sleep 0.7; echo is up; {line}'\nready = {{ log = 'is up' }}\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let mut pty = Pty::new();
    let up = pty.start(stack.in_front(&arena, &["up", "-d", "--yes"]));
    assert_eq!(pty.wait_end(&up).code(), Some(0), "{}", pty.text());
    assert!(String::from_utf8_lossy(&stack.store("server")).contains("is up"), "it came back too early");
    pty.close();
    facts.wait_for("ready");
    assert!(Seen::of(facts.pid("leader")).is_some_and(|seen| seen.is_alive()));
    facts.assert_told("leader", &[], "the terminal's end");
    let ps = stack.run(&arena, &["ps"]).expect(0);
    assert!(
        ps.out().contains("server") && ps.out().contains(&facts.pid("leader").to_string()),
        "{}",
        ps.out()
    );
    stack.run(&arena, &["down"]).expect(0);
    assert!(facts.has("clean-leader") && facts.has("clean-daemon"));
    arena.finish();
}

#[test]
fn detached_and_ended_before_it_is_up_it_says_by_whom_and_does_not_end_with_0() {
    enum By {
        Keys,
        Signal(i32),
        Down,
    }
    for (by, said) in [
        (By::Keys, "received INT"),
        (By::Signal(libc::SIGTERM), "received TERM"),
        (By::Signal(libc::SIGHUP), "received HUP"),
        (By::Down, "asked to"),
    ] {
        let arena = Arena::new();
        let toml = "[service.server]\nrun = 'exec sleep 600'\nready = { log = 'never said' }\n";
        let stack = Stack::new(&arena, LARIAT, "project", toml);
        let mut pty = Pty::new();
        let up = pty.start(stack.in_front(&arena, &["up", "-d", "--yes"]));
        stack.wait_event("service-started", 0);
        match by {
            By::Keys => pty.send("\x03"),
            By::Signal(signal) => up.signal(signal),
            By::Down => drop(stack.run(&arena, &["down"]).expect(0)),
        }
        assert_eq!(pty.wait_end(&up).code(), Some(1), "{said}: {}", pty.text());
        assert!(pty.text().contains(&format!("graceful: {said}")), "{}", pty.text());
        assert!(pty.text().contains("the stack was ended before"), "{}", pty.text());
        arena.finish();
    }
}

#[test]
fn detached_and_ended_at_any_early_moment_it_ends_with_1() {
    for round in 0..12 {
        let arena = Arena::new();
        let toml = "[service.server]\nrun = 'exec sleep 600'\nready = { log = 'never said' }\n";
        let stack = Stack::new(&arena, LARIAT, "project", toml);
        let up = stack.lariat(&arena, &["up", "-d", "--yes"]).start();
        // In half of the rounds as soon as there is a supervisor, in the others when it has begun its run.
        let early = round % 2 == 0;
        wait_until("a supervisor", PATIENCE, || {
            let seen = arena.alive();
            let is_there = seen.iter().any(|seen| seen.command.contains("--supervise"));
            (is_there && (early || stack.dir().join(".lariat").exists())).then_some(())
        });
        up.signal(libc::SIGTERM);
        let ended = up.wait().expect(1);
        assert!(ended.err().contains("because received TERM"), "{round}: {}", ended.err());
        arena.finish();
    }
}

#[test]
fn detached_it_ends_with_0_when_all_of_it_has_completed() {
    let arena = Arena::new();
    let stack = Stack::new(&arena, LARIAT, "project", "[service.task]\nrun = 'exit 0'\n");
    stack.run(&arena, &["up", "-d", "--yes"]).expect(0);
    arena.finish();
}

#[test]
fn detached_it_says_that_the_stack_goes_on_when_its_own_output_cannot_be_written() {
    let arena = Arena::new();
    let stack = Stack::new(&arena, LARIAT, "project", "[service.server]\nrun = 'exec sleep 600'\n");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full is there");
    let up = stack.lariat(&arena, &["up", "-d", "--yes"]).stdout(full).run().expect(9);
    assert!(up.err().contains("goes on in the background all the same"), "{}", up.err());
    wait_until("the stack is up", PATIENCE, || (stack.count("startup-finished") == 1).then_some(()));
    stack.run(&arena, &["down"]).expect(0);
    arena.finish();
}

#[test]
fn services_are_stopped_started_and_restarted_from_another_terminal() {
    let arena = Arena::new();
    let (one, two) = (arena.facts("one"), arena.facts("two"));
    let toml =
        service("one", "daemon", &one, "--manner graceful", "") + &service("two", "alone", &two, "", "");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    one.wait_for("ready");
    two.wait_for("ready");
    let is_alive = |pid: i32| Seen::of(pid).is_some_and(|seen| seen.is_alive());
    stack.run(&arena, &["stop", "one"]).expect(0);
    assert!(!is_alive(one.pid("leader")) && !is_alive(one.pid("daemon")), "`stop` came back too early");
    assert!(is_alive(two.pid("leader")) && up.is_alive());
    stack.run(&arena, &["start", "one"]).expect(0);
    wait_until("a second life", PATIENCE, || (one.pids("leader").len() == 2).then_some(()));
    stack.run(&arena, &["restart", "two"]).expect(0);
    wait_until("a second life", PATIENCE, || (two.pids("leader").len() == 2).then_some(()));
    let lives = two.pids("leader");
    assert_eq!(lives.iter().filter(|pid| is_alive(**pid)).count(), 1);
    assert_ne!(stack.run(&arena, &["stop", "nobody"]).code(), Some(0));
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    arena.finish();
}

#[test]
fn who_comes_after_a_service_that_is_stopped_is_named() {
    let arena = Arena::new();
    let toml = "[service.db]\nrun = 'exec sleep 600'\n[service.task]\nrun = 'true'\n\
        [service.web]\nrun = 'exec sleep 600'\nafter = { db = 'ready', task = 'completed' }\n";
    let stack = Stack::new(&arena, LARIAT, "project", toml);
    let up = stack.up(&arena);
    let stopped = stack.run(&arena, &["stop", "db"]).expect(0);
    assert_eq!(stopped.err(), "note: left without it: web; `lariat start db` brings it back\n");
    let json = stack.run(&arena, &["stop", "db", "--json"]).expect(0);
    let status: serde_json::Value = serde_json::from_str(&json.out()).expect("one object");
    assert_eq!((status["needed_by"][0].as_str(), json.err().as_str()), (Some("web"), ""), "{status}");
    for service in ["task", "web", "db"] {
        let stopped = stack.run(&arena, &["stop", service]).expect(0);
        assert_eq!(stopped.err(), "", "nobody needs {service}");
    }
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    arena.finish();
}

#[test]
fn a_leader_that_crashes_takes_its_stragglers_along_before_its_restart() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let more = "restart = 'on-failure'\nstop = { grace = '300ms' }";
    let toml = service("server", "daemon", &facts, "--manner stubborn", more);
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let first = (facts.pid("leader"), facts.pid("daemon"));
    Seen::of(first.0).expect("it is alive").kill();
    wait_until("a second life", PATIENCE, || {
        let second = facts.pids("leader").len() == 2;
        if second {
            assert!(Seen::of(first.1).is_none_or(|seen| !seen.is_alive()), "the straggler outlived its life");
        }
        second.then_some(())
    });
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    arena.finish();
}

#[test]
fn killing_every_lariat_by_name_leaves_the_keepers_to_do_their_work() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "disguised", "--manner graceful");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let named: Vec<Seen> = arena.alive().into_iter().filter(|seen| seen.comm == "lariat").collect();
    assert_eq!(named.iter().map(|seen| seen.pid).collect::<Vec<_>>(), [up.pid()], "{named:?}");
    let by_command: Vec<Seen> =
        stack.keepers(&arena).into_iter().filter(|seen| seen.command.contains("misbehave")).collect();
    assert!(by_command.is_empty(), "`pkill -f` of the command would hit {by_command:?}");
    named.iter().for_each(Seen::kill);
    arena.wait_until_empty(PATIENCE);
    assert!(facts.has("clean-leader") && facts.has("clean-disguised"), "{:?}", facts.names());
    arena.finish();
}

#[test]
fn closing_the_terminal_of_up_is_a_graceful_stop() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "daemon", "--manner graceful");
    let mut pty = Pty::new();
    let up = pty.start(stack.in_front(&arena, &["up", "--yes"]));
    facts.wait_for("ready");
    stack.wait_up(&up, 0);
    pty.close();
    up.wait();
    let leaks = arena.alive();
    assert!(leaks.is_empty(), "{leaks:?}");
    assert!(facts.has("clean-leader") && facts.has("clean-daemon"));
    facts.assert_told("leader", &[1], "by `up`");
    arena.finish();
}

#[test]
fn a_typed_interrupt_is_a_graceful_stop() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "daemon", "--manner graceful");
    let mut pty = Pty::new();
    let up = pty.start(stack.in_front(&arena, &["up", "--yes"]));
    facts.wait_for("ready");
    stack.wait_up(&up, 0);
    pty.send("\x03");
    assert_eq!(pty.wait_end(&up).code(), Some(0), "{}", pty.text());
    for phase in 1..=5 {
        assert!(pty.text().contains(&format!("[{phase}/5]")), "{}", pty.text());
    }
    assert!(facts.has("clean-leader") && facts.has("clean-daemon"));
    facts.assert_told("leader", &[1], "by `up`");
    arena.finish();
}

/// Ctrl-Z in the stack's terminal, and another command in the next one.
#[test]
fn a_stopped_supervisor_is_named_by_ps_and_woken_by_down() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "daemon", "--manner graceful");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    up.signal(libc::SIGSTOP);
    wait_until("the stop", PATIENCE, || up.seen().filter(|seen| seen.state == 'T'));
    let ps = stack.run(&arena, &["ps"]).expect(9);
    assert!(ps.err().contains(&format!("kill -CONT {}", up.pid())), "{}", ps.err());
    stack.run(&arena, &["down"]).expect(0);
    up.wait();
    assert!(facts.has("clean-leader") && facts.has("clean-daemon"));
    arena.finish();
}
