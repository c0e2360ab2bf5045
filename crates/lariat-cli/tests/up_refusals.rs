//! What `up` and its companions refuse, with which code and which words; nothing is started, or everything is ended.

use lariat_testkit::census::Seen;
use lariat_testkit::{Arena, Facts, PATIENCE, Stack, fixture, wait_until};

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

/// `git clean -fdx` takes the state directory away, lock and ledger with it.
#[test]
fn a_run_whose_state_directory_was_removed_is_alive_all_the_same() {
    let arena = Arena::new();
    for is_made_anew in [false, true] {
        let (stack, facts) =
            project(&arena, &format!("p-{is_made_anew}"), "new-session", "--manner graceful");
        let up = stack.up(&arena);
        facts.wait_for("ready");
        let state = stack.dir().join(".lariat");
        // The supervisor may be writing.
        wait_until("its removal", PATIENCE, || std::fs::remove_dir_all(&state).is_ok().then_some(()));
        if is_made_anew {
            std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
                .create(&state)
                .expect("it is gone");
        }
        let second = stack.run(&arena, &["up", "--yes"]).expect(5);
        assert!(second.err().contains("is alive"), "{}", second.err());
        let ps = stack.run(&arena, &["ps", "--json"]).expect(0);
        assert!(ps.out().contains("\"server\""), "{}", ps.out());
        // What is not there cannot be closed: that is said, and is all that is wrong.
        let down = stack.run(&arena, &["down"]).expect(9);
        assert!(down.out().contains("nothing is left") && down.out().contains("ledger"), "{}", down.out());
        up.wait().expect(9);
        assert!(facts.has("clean-leader") && facts.has("clean-child"));
        arena.wait_until_empty(PATIENCE);
        stack.run(&arena, &["down"]).expect(6);
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
