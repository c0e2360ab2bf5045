//! The fixtures do what they say, without lariat: otherwise lariat's tests would prove nothing.

use std::time::Duration;

use lariat_testkit::census::{Seen, by_children, by_parent};
use lariat_testkit::{Arena, Facts, PATIENCE, Pty, Running, fixture, net, wait_until};

fn start(arena: &Arena, args: &[&str]) -> (Running, Facts) {
    let facts = arena.facts(args[0]);
    let running = arena.command(fixture::path()).args(args).facts(&facts).start();
    facts.wait_for("ready");
    (running, facts)
}

fn own() -> i32 {
    i32::try_from(std::process::id()).expect("a pid")
}

#[test]
fn stubborn_ignores_the_polite_signals() {
    let mut arena = Arena::new();
    let (running, _) = start(&arena, &["alone", "--manner", "stubborn"]);
    for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGTERM] {
        running.signal(signal);
    }
    // It answers SIGUSR1 only after the others were delivered: signals to one process are taken in order of number
    // at the latest when it returns to user space.
    running.signal(libc::SIGUSR1);
    assert_eq!(running.wait().code(), Some(7));
    assert!(arena.check().is_empty());
}

#[test]
fn graceful_writes_its_marker_and_counts_what_it_was_told() {
    let arena = Arena::new();
    let (running, facts) = start(&arena, &["alone", "--manner", "graceful", "--ms", "300"]);
    running.signal(libc::SIGTERM);
    wait_until("the first signal", PATIENCE, || facts.told("leader").first().copied());
    running.signal(libc::SIGINT);
    assert_eq!(running.wait().code(), Some(0));
    assert!(facts.has("clean-leader"));
    assert_eq!(facts.told("leader"), [2]);
    arena.finish();
}

#[test]
fn every_process_ends_itself_at_its_limit_even_a_stopped_one() {
    for kind in ["alone", "stopped", "disguised", "runners"] {
        let arena = Arena::new();
        let facts = arena.facts("f");
        let command = arena.command(fixture::path()).args([kind, "--manner", "stubborn", "--limit", "1"]);
        let running = command.facts(&facts).start();
        assert_eq!(running.wait().signal(), Some(libc::SIGKILL));
        arena.wait_until_empty(Duration::from_secs(10));
        arena.finish();
    }
}

#[test]
fn escapes_are_where_they_should_be() {
    for (kind, role, leads_group, leads_session) in [
        ("child", "child", false, false),
        ("own-group", "child", true, false),
        ("new-session", "child", true, true),
    ] {
        let mut arena = Arena::new();
        let (_running, facts) = start(&arena, &[kind]);
        let seen = Seen::of(facts.pid(role)).expect("it is alive");
        assert_eq!(
            (seen.group == seen.pid, seen.session == seen.pid),
            (leads_group, leads_session),
            "{seen}"
        );
        assert_eq!(arena.check().processes.len(), 2);
    }
    let mut arena = Arena::new();
    let (_running, facts) = start(&arena, &["daemon"]);
    let seen = Seen::of(facts.pid("daemon")).expect("it is alive");
    assert_eq!((seen.parent, seen.session == seen.pid), (own(), false));
    assert_eq!(arena.check().processes.len(), 2);
}

#[test]
fn disguised_has_neither_descriptors_nor_environment() {
    let mut arena = Arena::new();
    let (_running, facts) = start(&arena, &["disguised"]);
    let pid = facts.pid("disguised");
    wait_until("no descriptor", PATIENCE, || {
        std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.next().is_none().then_some(())
    });
    assert!(std::fs::read(format!("/proc/{pid}/environ")).expect("it is ours").iter().all(|byte| *byte == 0));
    assert_eq!(arena.check().processes.len(), 2);
}

#[test]
fn stopped_is_stopped() {
    let mut arena = Arena::new();
    let (_running, facts) = start(&arena, &["stopped"]);
    assert_eq!(Seen::of(facts.pid("stopped")).expect("it is alive").state, 'T');
    assert_eq!(arena.check().processes.len(), 2);
}

#[test]
fn trees_have_the_size_they_were_asked_for_and_both_walks_agree() {
    for (kind, size) in [("wide", 500), ("deep", 200)] {
        let mut arena = Arena::new();
        let (running, facts) = start(&arena, &[kind]);
        assert_eq!(facts.pids("child").len(), size);
        assert_eq!((by_children(running.pid()).len(), by_parent(running.pid()).len()), (size, size));
        assert_eq!(arena.check().processes.len(), size + 1);
    }
}

#[test]
fn the_port_is_held_by_the_child() {
    let mut arena = Arena::new();
    let port = arena.port();
    let (running, _facts) = start(&arena, &["port-holder", "--port", &port.to_string()]);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().signal(), Some(libc::SIGTERM));
    assert!(net::connect(port).is_some());
    assert!(!net::is_free(port));
    assert_eq!(arena.check().ports, [port]);
    assert!(net::is_free(port));
}

#[test]
fn forker_forks_and_its_number_is_bounded() {
    let mut arena = Arena::new();
    let (running, _facts) = start(&arena, &["forker", "--live", "25"]);
    let first: Vec<i32> = by_children(running.pid()).iter().map(|seen| seen.pid).collect();
    wait_until("another generation", PATIENCE, || {
        let now = by_children(running.pid());
        assert!(now.len() <= 25, "{} children", now.len());
        now.iter().all(|seen| !first.contains(&seen.pid)).then_some(())
    });
    assert!(!arena.check().is_empty());
}

#[test]
fn the_dying_leave_others_behind() {
    let mut arena = Arena::new();
    let (running, facts) = start(&arena, &["forks-while-dying", "--n", "3", "--depth", "1"]);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code(), Some(0));
    wait_until("three late children", PATIENCE, || (facts.pids("late").len() == 3).then_some(()));
    assert_eq!(arena.check().processes.len(), 3);

    drop(arena);
    let mut arena = Arena::new();
    let (running, facts) = start(&arena, &["daemonize-on-term"]);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code(), Some(0));
    let late = facts.pid("late");
    assert_eq!(arena.check().processes.iter().map(|seen| seen.pid).collect::<Vec<_>>(), [late]);
}

#[test]
fn output_is_what_it_says() {
    let arena = Arena::new();
    let facts = arena.facts("flood");
    let flood = arena.command(fixture::path()).args(["flood", "--lines", "123456"]).facts(&facts).start();
    let ending = flood.wait().expect(0);
    assert_eq!(facts.get("written").as_deref(), Some("123456"));
    assert_eq!(fixture::wrong_line(&ending.stdout), None);
    assert_eq!(ending.stdout.len(), 123_456 * 13);

    let (running, _) = start(&arena, &["no-newline", "--bytes", "100000"]);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().stdout, fixture::alphabet(100_000));
    let (running, _) = start(&arena, &["binary", "--bytes", "100000", "--seed", "9"]);
    running.signal(libc::SIGTERM);
    let stdout = running.wait().stdout;
    assert_eq!(stdout, fixture::noise(9, 100_000));
    assert!((0..=255).all(|value| stdout.contains(&value)));
    arena.finish();
}

#[test]
fn wrong_lines_are_found() {
    assert_eq!(fixture::wrong_line(b"000000000000\n000000000001\n"), None);
    assert_eq!(fixture::wrong_line(b"000000000000\n000000000002\n"), Some(1));
    assert_eq!(fixture::wrong_line(b"000000000000\n000000000000\n"), Some(1));
    assert_eq!(fixture::wrong_line(b"000000000000\n00000"), Some(1));
}

#[test]
fn last_words_take_their_time() {
    let arena = Arena::new();
    let (running, facts) = start(&arena, &["last-words", "--ms", "200", "--every-ms", "10"]);
    running.signal(libc::SIGTERM);
    let ending = running.wait().expect(0);
    let lines: usize = facts.wait_for("clean-leader").parse().expect("a number");
    assert_eq!(ending.out().lines().count(), lines + 2);
    assert!(ending.out().ends_with("last words\n"));
    arena.finish();
}

#[test]
fn the_pipe_stays_open_after_its_leader() {
    let mut arena = Arena::new();
    let facts = arena.facts("f");
    let command = arena.command(fixture::path()).arg("pipe-holder").facts(&facts);
    let running = command.stdout(std::process::Stdio::piped()).start();
    assert_eq!(running.wait().code(), Some(0));
    let holder = facts.pid("holder");
    let stdout = std::fs::read_link(format!("/proc/{holder}/fd/1")).expect("it holds the pipe");
    assert!(stdout.to_string_lossy().starts_with("pipe:"));
    assert_eq!(arena.check().processes.len(), 1);
}

#[test]
fn exits_and_deaths_are_as_asked() {
    let arena = Arena::new();
    assert_eq!(arena.command(fixture::path()).args(["exit", "--code", "201"]).run().code(), Some(201));
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGSEGV, libc::SIGKILL] {
        let ending = arena.command(fixture::path()).args(["die", "--signal", &signal.to_string()]).run();
        assert_eq!(ending.signal(), Some(signal));
    }
    arena.finish();
}

#[test]
fn a_terminal_takes_keys_shows_text_and_hangs_up() {
    let arena = Arena::new();
    let mut pty = Pty::new();
    pty.resize(30, 100);
    let facts = arena.facts("f");
    let window = pty.start(arena.command(fixture::path()).arg("window").facts(&facts));
    pty.wait_for("window 30 100");
    pty.resize(31, 101);
    pty.wait_for("window 31 101");
    pty.send("\x03");
    assert_eq!(pty.wait_end(&window).code(), Some(0));

    let mut pty = Pty::new();
    let cat = pty.start(arena.command("/bin/cat"));
    pty.send("hello\n");
    pty.wait_for("hello\nhello\n");
    assert_eq!(pty.foreground(), Some(cat.pid()));
    pty.close();
    assert_eq!(cat.wait().signal(), Some(libc::SIGHUP));
    arena.finish();
}
