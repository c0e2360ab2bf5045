//! Runs beside and after each other: live ones, crashed ones, two stacks, quick restarts; what is refused, and how.

use std::time::Duration;

use lariat_testkit::census::Seen;
use lariat_testkit::{Arena, Facts, PATIENCE, Pty, Stack, fixture, net, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// A service of one fixture.
fn service(name: &str, kind: &str, facts: &Facts, args: &str, more: &str) -> String {
    format!("[service.{name}]\nrun = '{}'\n{more}\n", fixture::line(kind, facts, args))
}

fn project(arena: &Arena, name: &str, kind: &str, args: &str) -> (Stack, Facts) {
    let facts = arena.facts(name);
    let stack =
        Stack::new(arena, LARIAT, name, &service("server", kind, &facts, args, "stop = { grace = '300ms' }"));
    (stack, facts)
}

#[test]
fn up_beside_a_live_run_says_so_and_names_it() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "alone", "");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let second = stack.run(&arena, &["up", "--yes"]).expect(5);
    let said = second.out() + &second.err();
    assert!(said.contains(&up.pid().to_string()), "it does not say which run: {said}");
    assert_eq!(facts.pids("leader").len(), 1, "it started something");
    assert!(up.is_alive());
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    arena.finish();
}

#[test]
fn commands_without_a_run_say_so() {
    let arena = Arena::new();
    let (stack, _) = project(&arena, "project", "alone", "");
    for args in [&["down"][..], &["start", "server"], &["stop", "server"], &["restart", "server"]] {
        let ending = stack.run(&arena, args);
        assert_eq!(ending.code(), Some(6), "{args:?}: {ending:?} {}", ending.err());
        assert!(!ending.err().is_empty());
    }
    arena.finish();
}

/// Kills the supervisor and all keepers in one go; stubborn members are left.
fn crash(arena: &Arena, stack: &Stack, up: &lariat_testkit::Running) {
    let keepers = stack.keepers(arena);
    assert!(!keepers.is_empty());
    // Stopped first: no keeper gets to see the other deaths before its own.
    for pid in keepers.iter().map(|seen| seen.pid).chain([up.pid()]) {
        // SAFETY: numbers only; all are descendants that nobody has collected.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
    }
    keepers.iter().for_each(Seen::kill);
    up.signal(libc::SIGKILL);
    up.wait();
    wait_until("the keepers' end", PATIENCE, || stack.keepers(arena).is_empty().then_some(()));
}

#[test]
fn up_after_every_lariat_process_was_killed_shows_what_is_left_and_ends_it_on_yes() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "new-session", "--manner stubborn");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let left = [facts.pid("leader"), facts.pid("child")];
    crash(&arena, &stack, &up);
    assert_eq!(arena.alive().len(), 2, "{:?}", arena.alive());
    // Nobody to ask, and nobody said yes: nothing is touched, everything is shown.
    let refused = stack.run(&arena, &["up"]).expect(8);
    let said = refused.out() + &refused.err();
    assert!(left.iter().all(|pid| said.contains(&pid.to_string())), "{left:?} are not named: {said}");
    assert_eq!(arena.alive().len(), 2);
    let up = stack.up(&arena);
    wait_until("a new leader", PATIENCE, || (facts.pids("leader").len() == 2).then_some(()));
    assert!(left.iter().all(|pid| Seen::of(*pid).is_none_or(|seen| !seen.is_alive())), "{:?}", arena.alive());
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    arena.finish();
}

#[test]
fn after_a_crash_a_terminal_is_asked() {
    for (answer, is_up) in [("y\n", true), ("\n", true), ("n\n", false)] {
        let arena = Arena::new();
        let (stack, facts) = project(&arena, "project", "new-session", "--manner stubborn");
        let up = stack.up(&arena);
        facts.wait_for("ready");
        crash(&arena, &stack, &up);
        let mut pty = Pty::new();
        let up = pty.start(stack.in_front(&arena, &["up"]));
        pty.wait_for(&facts.pid("leader").to_string());
        pty.wait_for("?");
        pty.send(answer);
        if is_up {
            wait_until("a new leader", PATIENCE, || {
                pty.pump();
                (facts.pids("leader").len() == 2).then_some(())
            });
            stack.run(&arena, &["down"]).expect(0);
            assert_eq!(pty.wait_end(&up).code(), Some(0));
        } else {
            assert_eq!(pty.wait_end(&up).code(), Some(8));
            assert_eq!(arena.alive().len(), 2);
            stack.run(&arena, &["down", "--yes"]).expect(0);
        }
        arena.finish();
    }
}

#[test]
fn down_after_a_crash_ends_and_names_what_was_left() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "new-session", "--manner stubborn");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    crash(&arena, &stack, &up);
    let down = stack.run(&arena, &["down", "--yes"]).expect(0);
    assert!(down.out().contains("[5/5]"), "{}", down.out());
    assert!(arena.alive().is_empty());
    stack.run(&arena, &["down"]).expect(6);
    arena.finish();
}

#[test]
fn after_the_supervisors_death_the_next_command_reports_what_the_keepers_did() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "new-session", "--manner stubborn");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    up.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    let next = stack.run(&arena, &["ps"]);
    let said = next.out() + &next.err();
    assert!(said.contains("server"), "{said}");
    let up = stack.up(&arena);
    let said = up.stdout() + &up.stderr();
    assert!(said.contains("killed"), "it does not say how it ended: {said}");
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    arena.finish();
}

#[test]
fn a_recycled_pid_is_nobody_of_ours() {
    // The ledger names a process that has ended and whose number somebody else has: here, by forging its start time.
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "new-session", "--manner stubborn");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    crash(&arena, &stack, &up);
    arena.alive().iter().for_each(Seen::kill);
    arena.wait_until_empty(PATIENCE);
    let bystanding = arena.facts("bystander");
    let bystander = arena.command(fixture::path()).arg("alone").facts(&bystanding).own_session().start();
    bystanding.wait_for("ready");
    let ledger = stack.dir().join(".lariat/run.json");
    let text = std::fs::read_to_string(&ledger).expect("the ledger is there");
    let forged = text.replace(&format!(":{},", facts.pid("leader")), &format!(":{},", bystander.pid()));
    std::fs::write(&ledger, forged).expect("it is ours");
    stack.run(&arena, &["down", "--yes", "--force"]);
    assert!(bystander.is_alive(), "a stranger was killed");
    bystander.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

#[test]
fn two_stacks_in_two_folders_never_disturb_each_other() {
    let arena = Arena::new();
    let (one, one_facts) = project(&arena, "one", "daemon", "--manner graceful");
    let (two, two_facts) = project(&arena, "two", "daemon", "--manner graceful");
    let (one_up, two_up) = (one.up(&arena), two.up(&arena));
    one_facts.wait_for("ready");
    two_facts.wait_for("ready");
    one.run(&arena, &["down"]).expect(0);
    one_up.wait().expect(0);
    let alive = |facts: &Facts, role: &str| Seen::of(facts.pid(role)).is_some_and(|seen| seen.is_alive());
    assert!(alive(&two_facts, "leader") && alive(&two_facts, "daemon") && two_up.is_alive());
    assert!(two_facts.told("daemon").is_empty());
    let one_up = one.up(&arena);
    two_up.signal(libc::SIGKILL);
    two_up.wait();
    wait_until("the end of the second stack", PATIENCE, || {
        (!alive(&two_facts, "leader") && !alive(&two_facts, "daemon") && two.keepers(&arena).len() == 1)
            .then_some(())
    });
    assert!(one_up.is_alive());
    one.run(&arena, &["down"]).expect(0);
    one_up.wait().expect(0);
    arena.finish();
}

#[test]
fn ten_quick_restarts_of_one_stack() {
    let mut arena = Arena::new();
    let port = arena.port();
    let facts = arena.facts("f");
    let more = format!("port = {port}\nready = {{ tcp = {port} }}\nstop = {{ grace = '300ms' }}");
    let args = format!("--manner stubborn --port {port}");
    let stack =
        Stack::new(&arena, LARIAT, "project", &service("server", "port-holder", &facts, &args, &more));
    for round in 0..10 {
        let up = stack.up(&arena);
        assert!(!net::is_free(port), "round {round}");
        if round % 3 == 2 {
            // Killed, and started again while the keeper is still at work.
            up.signal(libc::SIGKILL);
            up.wait();
            continue;
        }
        stack.run(&arena, &["down"]).expect(0);
        up.wait().expect(0);
        assert!(arena.alive().is_empty(), "round {round}: {:?}", arena.alive());
        assert!(net::is_free(port), "round {round}");
    }
    arena.finish();
}

#[test]
fn a_port_in_use_is_explained_before_anything_starts() {
    let mut arena = Arena::new();
    let port = arena.port();
    let (facts, other) = (arena.facts("f"), arena.facts("other"));
    let holder = ["port-holder", "--port", &port.to_string()];
    let holder = arena.command(fixture::path()).args(holder).facts(&other).own_session().start();
    other.wait_for("ready");
    let toml = service("first", "alone", &facts, "", "")
        + &service("server", "alone", &facts, "", &format!("port = {port}\nafter = ['first']"));
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let refused = stack.run(&arena, &["up", "--yes"]).expect(7);
    let said = refused.err() + &refused.out();
    let who = other.pid("port").to_string();
    assert!(
        said.contains(&port.to_string()) && said.contains(&who),
        "it does not name port and holder: {said}"
    );
    assert!(facts.names().is_empty(), "something was started: {:?}", facts.names());
    let alive = arena.alive();
    assert_eq!(alive.len(), 2, "the stranger was touched: {alive:?}");
    holder.signal(libc::SIGKILL);
    alive.iter().for_each(Seen::kill);
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

#[test]
fn services_start_in_order_and_one_that_fails_takes_the_start_up_back() {
    let arena = Arena::new();
    let (one, two) = (arena.facts("one"), arena.facts("two"));
    let toml = service("one", "daemon", &one, "--manner graceful", "")
        + "[service.bad]\nrun = 'exit 3'\nafter = { one = 'started' }\nready = { log = 'never' }\n"
        + &service("two", "alone", &two, "", "after = { bad = 'ready' }");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.run(&arena, &["up", "--yes"]).expect(1);
    let said = up.err() + &up.out();
    assert!(said.contains("bad") && said.contains('3'), "{said}");
    assert!(two.names().is_empty(), "what needs the failed one was started");
    arena.finish();
}

#[test]
fn a_service_that_is_never_ready_is_given_up_and_everything_ended() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let more = "ready = { log = 'never said', timeout = '500ms' }\nstop = { grace = '300ms' }";
    let toml = service("server", "daemon", &facts, "--manner stubborn", more);
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.run(&arena, &["up", "--yes"]).expect(1);
    assert!((up.err() + &up.out()).contains("server"));
    arena.finish();
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
fn detached_it_goes_on_without_its_terminal_until_down() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "daemon", "--manner graceful");
    let mut pty = Pty::new();
    let up = pty.start(stack.in_front(&arena, &["up", "-d", "--yes"]));
    assert_eq!(pty.wait_end(&up).code(), Some(0), "{}", pty.text());
    pty.close();
    // Detached means started: the run is up when the command returns.
    assert_eq!(stack.count("startup-finished"), 1);
    assert!(Seen::of(facts.pid("leader")).is_some_and(|seen| seen.is_alive()));
    assert!(facts.told("leader").is_empty(), "the terminal's end reached it");
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
    assert_eq!(facts.told("leader"), [1]);
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
    assert_eq!(facts.told("leader"), [1]);
    arena.finish();
}

#[test]
fn bad_input_is_explained_and_starts_nothing() {
    let arena = Arena::new();
    let touch = "run = 'touch started; sleep 61'\n";
    for (what, toml, named) in [
        ("an unknown key", format!("[service.a]\n{touch}redy = 1\n"), "redy"),
        ("a wrong type", "[service.a]\nrun = 7\n".to_owned(), "run"),
        ("no command", "[service.a]\nport = 4000\n".to_owned(), "run"),
        ("a cycle", format!("[service.a]\n{touch}after = ['b']\n[service.b]\n{touch}after = ['a']\n"), "b"),
        ("an unknown dependency", format!("[service.a]\n{touch}after = ['nobody']\n"), "nobody"),
        ("no TOML", "[service.a\n".to_owned(), "lariat.toml"),
        ("a duplicate", format!("[service.a]\n{touch}[service.a]\n{touch}"), "a"),
        ("a negative duration", format!("[service.a]\n{touch}stop = {{ grace = '-1s' }}\n"), "-1s"),
    ] {
        let stack = Stack::new(&arena, LARIAT, "project", &toml);
        for args in [&["up", "--yes"][..], &["check"]] {
            let ending = stack.run(&arena, args);
            assert_eq!(ending.code(), Some(3), "{what}, {args:?}: {} {}", ending.out(), ending.err());
            let said = ending.err() + &ending.out();
            assert!(said.contains(named) && said.contains("lariat.toml"), "{what}, {args:?}: {said}");
        }
        assert!(!stack.dir().join("started").exists(), "{what}");
    }
    arena.finish();
}

#[test]
fn a_damaged_ledger_stops_nobody() {
    for damage in ["", "{", "not json at all", "{\"version\":1}", "\u{0}\u{0}\u{0}"] {
        let arena = Arena::new();
        let (stack, facts) = project(&arena, "project", "alone", "");
        let up = stack.up(&arena);
        facts.wait_for("ready");
        crash(&arena, &stack, &up);
        std::fs::write(stack.dir().join(".lariat/run.json"), damage).expect("it is ours");
        let up = stack.up(&arena);
        stack.run(&arena, &["down"]).expect(0);
        up.wait().expect(0);
        let leaks = arena.alive();
        assert!(leaks.is_empty(), "after {damage:?}: {leaks:?}");
        arena.finish();
    }
}

#[test]
fn a_state_directory_that_is_not_ours_is_refused() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "alone", "");
    let elsewhere = arena.dir().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("the arena is writable");
    std::os::unix::fs::symlink(&elsewhere, stack.dir().join(".lariat")).expect("the project is writable");
    let ending = stack.run(&arena, &["up", "--yes"]).expect(9);
    assert!(ending.err().contains(".lariat"), "{}", ending.err());
    assert!(facts.names().is_empty());
    assert_eq!(std::fs::read_dir(&elsewhere).expect("it is ours").count(), 0);
    arena.finish();
}

#[test]
fn the_lock_says_whether_a_lariat_process_of_the_run_is_alive() {
    use rustix::fs::{FlockOperation, flock};
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "alone", "--manner stubborn");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let lock = std::fs::File::open(stack.dir().join(".lariat/lock")).expect("there is a lock");
    let is_free = || {
        let is_free = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        let _ = flock(&lock, FlockOperation::Unlock);
        is_free
    };
    assert!(!is_free());
    up.signal(libc::SIGKILL);
    up.wait();
    while !stack.keepers(&arena).is_empty() {
        // Read in this order: a keeper that ends in between frees the lock rightly.
        let (is_free, is_alive) = (is_free(), !stack.keepers(&arena).is_empty());
        assert!(!is_free || !is_alive, "the lock was free while a keeper was at work");
    }
    assert!(is_free());
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}
