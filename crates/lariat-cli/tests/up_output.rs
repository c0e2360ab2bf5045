//! Output of services: no byte lost, doubled or changed in the store, whoever dies and whoever does not read; and
//! nothing that is written ever holds up a stop.

use std::process::Stdio;
use std::time::{Duration, Instant};

use lariat_testkit::{Arena, Facts, PATIENCE, Pty, Running, Stack, fixture, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// A stack of one fixture, `server`, whose grace period does not end before the test.
fn stack(arena: &Arena, facts: &Facts, kind: &str, args: &str) -> Stack {
    let line = fixture::line(kind, facts, args);
    let toml =
        format!("[stack]\ndeadline = '5m'\n[service.server]\nrun = '{line}'\nstop = {{ grace = '4m' }}\n");
    Stack::new(arena, LARIAT, "project", &toml)
}

fn down(arena: &Arena, stack: &Stack, up: &Running) {
    stack.run(arena, &["down"]).expect(0);
    up.wait().expect(0);
}

/// The store holds exactly the lines that were written.
fn has_all_lines(stack: &Stack, facts: &Facts) {
    let written: usize = facts.wait_for("written").parse().expect("a number");
    assert!(!facts.has("failed-writes"), "{:?}", facts.get("failed-writes"));
    let store = stack.store("server");
    assert_eq!(fixture::wrong_line(&store), None, "of {written} lines");
    assert_eq!(store.len(), written * 13, "of {written} lines");
}

#[test]
fn a_flood_is_stored_byte_for_byte_and_holds_up_no_stop() {
    for args in ["--lines 5000000", "--lines 5000000 --line-by-line 1"] {
        let arena = Arena::new();
        let facts = arena.facts("f");
        let stack = stack(&arena, &facts, "flood", args);
        let up = stack.up(&arena);
        facts.wait_for("ready");
        wait_until("some of the flood", PATIENCE, || (stack.store("server").len() > 1_000_000).then_some(()));
        down(&arena, &stack, &up);
        has_all_lines(&stack, &facts);
        arena.finish();
    }
}

#[test]
fn a_flood_loses_and_doubles_nothing_when_the_supervisor_is_killed_in_the_middle() {
    for round in 0..8 {
        let arena = Arena::new();
        let facts = arena.facts("f");
        let stack = stack(&arena, &facts, "flood", "--lines 20000000");
        let up = stack.up(&arena);
        let amount = 300_000 * (round + 1);
        wait_until("some of the flood", PATIENCE, || (stack.store("server").len() > amount).then_some(()));
        up.signal(libc::SIGKILL);
        arena.wait_until_empty(PATIENCE);
        has_all_lines(&stack, &facts);
        arena.finish();
    }
}

#[test]
fn a_flood_goes_on_when_the_keeper_is_killed() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let stack = stack(&arena, &facts, "flood", "--lines 20000000");
    let up = stack.up(&arena);
    wait_until("some of the flood", PATIENCE, || (stack.store("server").len() > 500_000).then_some(()));
    stack.keepers(&arena).iter().for_each(lariat_testkit::census::Seen::kill);
    up.wait();
    arena.wait_until_empty(PATIENCE);
    has_all_lines(&stack, &facts);
    arena.finish();
}

#[test]
fn output_without_a_newline_and_binary_output_are_stored_as_they_came() {
    for (kind, args, wanted) in [
        ("no-newline", "--bytes 3000000", fixture::alphabet(3_000_000)),
        ("binary", "--bytes 3000000 --seed 77", fixture::noise(77, 3_000_000)),
    ] {
        let arena = Arena::new();
        let facts = arena.facts("f");
        let stack = stack(&arena, &facts, kind, args);
        let up = stack.up(&arena);
        facts.wait_for("ready");
        down(&arena, &stack, &up);
        assert!(stack.store("server") == wanted, "{kind}: {} bytes are stored", stack.store("server").len());
        arena.finish();
    }
}

#[test]
fn a_pipe_that_a_grandchild_holds_delays_neither_the_end_of_the_service_nor_a_stop() {
    for is_stopped in [false, true] {
        let arena = Arena::new();
        let facts = arena.facts("f");
        let args = if is_stopped { "--wait 1" } else { "" };
        let stack = stack(&arena, &facts, "pipe-holder", args);
        let up = stack.lariat(&arena, &["up", "--yes"]).start();
        facts.wait_for("ready");
        if is_stopped {
            stack.wait_event("startup-finished", 0);
            stack.run(&arena, &["down"]).expect(0);
        }
        stack.wait_event("service-ended", 0);
        if up.is_alive() {
            up.signal(libc::SIGTERM);
        }
        up.wait();
        assert_eq!(String::from_utf8_lossy(&stack.store("server")), "holder stands\nleader leaves\n");
        arena.finish();
    }
}

#[test]
fn the_last_words_after_the_supervisors_death_are_in_the_store() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let stack = stack(&arena, &facts, "last-words", "--ms 1500");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    up.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    let lines: usize = facts.wait_for("clean-leader").parse().expect("a number");
    let mut wanted = "started\n".to_owned();
    wanted.extend((0..lines).map(|line| format!("{line:012}\n")));
    wanted.push_str("last words\n");
    assert_eq!(String::from_utf8_lossy(&stack.store("server")), wanted);
    // The next command reports what the keepers did, and shows those lines.
    let logs = stack.run(&arena, &["logs", "server"]);
    assert!(logs.out().contains("last words"), "{logs:?}");
    arena.finish();
}

#[test]
fn the_last_words_during_a_stop_are_shown_and_stored() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let stack = stack(&arena, &facts, "last-words", "--ms 300");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    up.signal(libc::SIGTERM);
    let ending = up.wait().expect(0);
    assert!(facts.has("clean-leader"));
    assert!(String::from_utf8_lossy(&stack.store("server")).ends_with("last words\n"));
    assert!(ending.out().contains("last words"), "{}", ending.out());
    arena.finish();
}

/// Whoever shows the output is stuck: the store goes on, and so does a stop.
fn survives_a_stuck_reader(arena: Arena, facts: &Facts, stack: &Stack, up: &Running) {
    // Far more than a terminal or a pipe takes.
    facts.wait_for("written");
    wait_until("the whole flood in the store", PATIENCE, || {
        (stack.store("server").len() == 400_000 * 13).then_some(())
    });
    let before = Instant::now();
    stack.run(&arena, &["down"]).expect(0);
    up.wait();
    let took = before.elapsed();
    assert!(took < Duration::from_secs(15), "the stop took {took:?}");
    has_all_lines(stack, facts);
    arena.finish();
}

#[test]
fn a_terminal_that_nobody_reads_holds_up_nothing_under_a_flood() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let stack = stack(&arena, &facts, "flood", "--lines 400000 --stay 1");
    let mut pty = Pty::new();
    let up = pty.start(stack.in_front(&arena, &["up", "--yes"]));
    survives_a_stuck_reader(arena, &facts, &stack, &up);
}

#[test]
fn a_terminal_under_ctrl_s_holds_up_nothing_under_a_flood() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let line = fixture::line("flood", &facts, "--lines 400000 --stay 1");
    let toml = format!("[service.server]\nrun = 'read go < go; {line}'\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let made = arena.command("mkfifo").arg(stack.dir().join("go")).run();
    made.expect(0);
    let mut pty = Pty::new();
    let up = pty.start(stack.in_front(&arena, &["up", "--yes"]));
    stack.wait_event("service-started", 0);
    pty.send("\x13");
    std::fs::write(stack.dir().join("go"), "go\n").expect("somebody reads it");
    survives_a_stuck_reader(arena, &facts, &stack, &up);
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_nothing_under_a_flood() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let stack = stack(&arena, &facts, "flood", "--lines 400000 --stay 1");
    let mut up = stack.lariat(&arena, &["up", "--yes"]).stdout(Stdio::piped()).start();
    let _reader = up.take_stdout();
    survives_a_stuck_reader(arena, &facts, &stack, &up);
}

#[test]
fn a_reader_that_left_ends_the_stack_gracefully() {
    // `lariat up | head` and a log viewer that was quit: nobody is looking any more, as after a terminal's end.
    let arena = Arena::new();
    let facts = arena.facts("f");
    let stack = stack(&arena, &facts, "flood", "--lines 20000000");
    let mut up = stack.lariat(&arena, &["up", "--yes"]).stdout(Stdio::piped()).start();
    facts.wait_for("ready");
    drop(up.take_stdout());
    up.wait().expect(0);
    has_all_lines(&stack, &facts);
    arena.finish();
}

#[test]
fn output_that_cannot_be_written_ends_the_stack_and_is_trouble() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let stack = stack(&arena, &facts, "flood", "--lines 20000000");
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full is there");
    let ended = stack.lariat(&arena, &["up", "--yes"]).stdout(full()).run().expect(9);
    assert!(ended.err().contains("could not write to standard output"), "{}", ended.err());
    assert!(ended.err().contains("because no storage space"), "{}", ended.err());
    assert!(ended.err().contains("nothing is left"), "{}", ended.err());
    assert!(stack.events().contains("the output could not be written"), "{}", stack.events());
    // Whether it was at work already is left to chance here; in the next test it was, and had its grace.
    arena.finish();
}

#[test]
fn a_disk_that_fills_up_under_the_output_ends_the_stack_gracefully_and_is_trouble() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let stack = stack(&arena, &facts, "flood", "--lines 20000000");
    let lariat = lariat_testkit::subject::lariat(LARIAT);
    // A small file system for the output alone, seen by nobody else, gone with its last process.
    let out = arena.write("out/none", "").with_file_name("");
    let script = format!(
        "mount -t tmpfs -o size=1m none {out} && exec {} up --yes > {out}/log",
        lariat.display(),
        out = out.display()
    );
    let who: &[&str] = if lariat_testkit::is_root() { &["-m"] } else { &["-Urm"] };
    let probe = arena.command("unshare").args(who).args(["mount", "-t", "tmpfs", "none", "/mnt"]).run();
    if probe.code() != Some(0) {
        return lariat_testkit::needs::skip("no file system can be mounted here");
    }
    let command = arena.command("unshare").args(who).args(["sh", "-c", &script]);
    let ended = command.dir(stack.dir()).own_session().run().expect(9);
    assert!(ended.err().contains("because no storage space"), "{}", ended.err());
    has_all_lines(&stack, &facts);
    arena.finish();
}

#[test]
fn a_full_disk_blocks_and_kills_nobody_and_what_was_dropped_is_counted() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let line = fixture::line("flood", &facts, "--lines 800000 --stay 1");
    let toml =
        format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '4m' }}\n[stack]\ndeadline = '5m'\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let copy = arena.write("copy/lariat.toml", &toml);
    // A file system of its own for the project, seen by nobody else, gone with its last process.
    let (dir, lariat) = (stack.dir().display(), lariat_testkit::subject::lariat(LARIAT));
    let script = format!(
        "mount -t tmpfs -o size=4m none {dir} && cd {dir} && cp {} . && exec {} up --yes",
        copy.display(),
        lariat.display()
    );
    // SAFETY: no argument, no memory.
    let who: &[&str] = if lariat_testkit::is_root() { &["-m"] } else { &["-Urm"] };
    let probe = arena.command("unshare").args(who).args(["mount", "-t", "tmpfs", "none", "/mnt"]).run();
    if probe.code() != Some(0) {
        return lariat_testkit::needs::skip("no file system can be mounted here");
    }
    let up = arena.command("unshare").args(who).args(["sh", "-c", &script]).own_session().start();
    let written: usize = facts.wait_for("written").parse().expect("a number");
    assert_eq!(written, 800_000, "it was blocked or killed: {}", up.stderr());
    // Inside that file system, through the process that is in it.
    let store = std::path::PathBuf::from(format!("/proc/{}/root{}", up.pid(), stack.dir().display()));
    let stored = std::fs::read(store.join(".lariat/logs/server.log")).expect("the store is there");
    assert_eq!(fixture::wrong_line(&stored[..stored.len() / 13 * 13]), None);
    assert!(stored.len() < 4 << 20 && stored.len() > 1 << 20, "{} bytes are stored", stored.len());
    up.signal(libc::SIGTERM);
    let ending = up.wait();
    let dropped = (written * 13 - stored.len()).to_string();
    let said = ending.out() + &ending.err();
    let digits = said.replace([',', '_', '\u{a0}'], "");
    assert!(
        digits.contains(&dropped) || said.contains("dropped"),
        "nobody counts the {dropped} dropped bytes: {said}"
    );
    let report: Vec<&str> = said.lines().filter(|line| !line.starts_with("server |")).collect();
    assert!(report.iter().any(|line| line.contains(&dropped)), "nobody counts {dropped} bytes: {report:#?}");
    arena.finish();
}

#[test]
fn logs_show_what_each_service_said_with_its_name() {
    let arena = Arena::new();
    let toml = "[service.one]\nrun = 'echo from one; echo part; exec sleep 61'\n\
                [service.two]\nrun = 'echo from two >&2; exec sleep 61'\n";
    let stack = Stack::new(&arena, LARIAT, "project", toml);
    let up = stack.up(&arena);
    stack.wait_store("one", "part\n");
    stack.wait_store("two", "from two\n");
    let all = stack.run(&arena, &["logs"]).expect(0).out();
    for line in ["from one", "part", "from two"] {
        assert!(all.lines().any(|shown| shown.contains(line)), "{all}");
    }
    let one = stack.run(&arena, &["logs", "one"]).expect(0).out();
    assert!(one.contains("from one") && !one.contains("from two"), "{one}");
    let last = stack.run(&arena, &["logs", "-n", "1", "one"]).expect(0).out();
    assert!(last.contains("part") && !last.contains("from one"), "{last}");
    assert_ne!(stack.run(&arena, &["logs", "nobody"]).code(), Some(0));
    down(&arena, &stack, &up);
    // They are there when nothing runs any more.
    let after = stack.run(&arena, &["logs", "one"]).expect(0).out();
    assert!(after.contains("from one"), "{after}");
    arena.finish();
}

#[test]
fn followed_logs_end_with_the_run_and_miss_nothing() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let stack = stack(&arena, &facts, "last-words", "--ms 300 --every-ms 5");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let follower = stack.lariat(&arena, &["logs", "-f", "server"]).start();
    wait_until("the first line", PATIENCE, || follower.stdout().contains("started").then_some(()));
    down(&arena, &stack, &up);
    if follower.ended(Duration::from_secs(10)).is_none() {
        panic!("`logs -f` goes on after the run");
    }
    let lines: usize = facts.wait_for("clean-leader").parse().expect("a number");
    let shown = follower.stdout();
    assert!(shown.contains("last words"), "{shown}");
    assert!(shown.contains(&format!("{:012}", lines - 1)), "{shown}");
    arena.finish();
}
