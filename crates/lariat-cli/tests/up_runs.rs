//! Runs beside and after each other: live ones, crashed ones, two stacks, quick restarts, a damaged ledger.

use std::time::Duration;

use lariat_testkit::census::Seen;
use lariat_testkit::{Arena, Facts, PATIENCE, Pty, Stack, fixture, net, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// The grace period of a service that sets none.
const GRACE_DEFAULT: Duration = Duration::from_secs(10);

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

/// Kills the supervisor and all keepers in one go; stubborn members are left.
fn crash(arena: &Arena, stack: &Stack, up: &lariat_testkit::Running) {
    let keepers = stack.keepers(arena);
    assert!(!keepers.is_empty());
    // A thread of its own writes the ledger; without leaders in it, their grace period is not known.
    wait_until("the leaders in the ledger", PATIENCE, || {
        let text = std::fs::read_to_string(stack.dir().join(".lariat/run.json"));
        text.is_ok_and(|text| text.contains("\"leader\": {")).then_some(())
    });
    // Stopped first: no keeper gets to see the other deaths before its own.
    let own = up.seen().expect("it is alive");
    keepers.iter().chain([&own]).for_each(|seen| seen.signal(libc::SIGSTOP));
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
    let left = [facts.pid("leader"), facts.pid("child")];
    crash(&arena, &stack, &up);
    let down = stack.run(&arena, &["down", "--yes"]).expect(0);
    assert!(arena.alive().is_empty());
    let said = down.out() + &down.err();
    assert!(left.iter().all(|pid| said.contains(&pid.to_string())), "{left:?} are not named: {said}");
    stack.run(&arena, &["down"]).expect(6);
    arena.finish();
}

#[test]
fn what_a_crashed_service_left_has_that_services_own_grace_period() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let needs = GRACE_DEFAULT + Duration::from_secs(1);
    let line = fixture::line("new-session", &facts, &format!("--manner graceful --ms {}", needs.as_millis()));
    let toml = format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '28s' }}\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    crash(&arena, &stack, &up);
    let down = stack.run(&arena, &["down", "--yes"]).expect(0);
    assert!(facts.has("clean-child"), "{}{}", down.out(), down.err());
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
    let ledger = stack.dir().join(".lariat/run.json");
    let read = || std::fs::read_to_string(&ledger).expect("the ledger is there");
    crash(&arena, &stack, &up);
    arena.alive().iter().for_each(Seen::kill);
    arena.wait_until_empty(PATIENCE);
    let bystanding = arena.facts("bystander");
    let bystander = arena.command(fixture::path()).arg("alone").facts(&bystanding).own_session().start();
    bystanding.wait_for("ready");
    let text = read();
    let forged = text.replace(&format!(": {},", facts.pid("leader")), &format!(": {},", bystander.pid()));
    assert_ne!(text, forged, "nothing was forged");
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
    two_facts.assert_told("daemon", &[], "by the end of the other run");
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
    let leader = Seen::of(facts.pid("leader")).expect("it waits for its grace period to end");
    while leader.is_alive_now() {
        // Read in this order: a keeper frees the lock when its work is done, and a moment before it has ended itself.
        let (is_free, is_alive) = (is_free(), leader.is_alive_now());
        assert!(!is_free || !is_alive, "the lock was free while a keeper was at work");
    }
    arena.wait_until_empty(PATIENCE);
    assert!(is_free());
    arena.finish();
}

/// `down` in a project that was never started once stopped the stack of the directory around it.
#[test]
fn a_project_inside_another_ones_directory_is_its_own() {
    let arena = Arena::new();
    let (outer, facts) = project(&arena, "project", "alone", "");
    let (inner, _) = project(&arena, "project/inside", "alone", "");
    let up = outer.up(&arena);
    facts.wait_for("ready");
    for verb in ["ps", "down"] {
        inner.run(&arena, &[verb]).expect(6);
    }
    assert!(up.is_alive(), "the outer stack was stopped from the inner project");
    outer.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    arena.finish();
}

/// A run whose supervisor was killed, once it is closed, is off the list of runs, and its socket is gone.
#[test]
fn a_run_that_is_closed_after_a_crash_leaves_no_entry_and_no_socket() {
    let arena = Arena::new();
    let (stack, facts) = project(&arena, "project", "alone", "");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    up.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    stack.run(&arena, &["down"]).expect(0);
    for (variable, below) in [("XDG_RUNTIME_DIR", "lariat"), ("XDG_STATE_HOME", "lariat/runs")] {
        let home = arena.environment().into_iter().find(|(name, _)| name == variable);
        let directory = std::path::PathBuf::from(home.expect("the arena sets it").1).join(below);
        let names = std::fs::read_dir(&directory).expect("the run made it").flatten();
        let left: Vec<_> = names.map(|name| name.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    arena.finish();
}

/// While keepers end what a killed supervisor left, `ps` says that, and not that nothing is there.
#[test]
fn ps_beside_keepers_at_work_does_not_deny_them() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let toml = service("server", "alone", &facts, "--manner stubborn", "stop = { grace = '9m' }");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    up.signal(libc::SIGKILL);
    up.wait();
    let said = stack.run(&arena, &["ps"]).expect(6).err();
    assert!(said.contains("its keepers are ending the services"), "{said}");
    Seen::of(facts.pid("leader")).expect("it ignores the stop").kill();
    arena.wait_until_empty(PATIENCE);
    stack.run(&arena, &["down"]).expect(0);
    arena.finish();
}
