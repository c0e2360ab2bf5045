//! `lariat run` is as if it were not there: exit codes, deaths, environment, descriptors, signals.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use lariat_testkit::needs::skip_as_user;
use lariat_testkit::{
    Arena, Command, Ending, Facts, PATIENCE, Running, census, fixture, is_root, need, subject, wait_until,
};

fn lariat(arena: &Arena) -> Command {
    arena.command(subject::lariat(env!("CARGO_BIN_EXE_lariat")))
}

fn run(arena: &Arena, args: &[&str]) -> Ending {
    lariat(arena).arg("run").args(args).own_session().run()
}

#[test]
fn every_exit_code_passes_through() {
    let arena = Arena::new();
    for code in 0..=255 {
        let ending = run(&arena, &["--", "/bin/sh", "-c", &format!("exit {code}")]);
        assert_eq!(ending.code(), Some(code), "{}", ending.err());
    }
    arena.finish();
}

#[test]
fn deaths_by_interrupt_and_quit_are_passed_on_and_others_are_codes() {
    let arena = Arena::new();
    let harmless = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
    let stopping = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let real_time = [34, 40, 64];
    for signal in
        (1..32).chain(real_time).filter(|signal| !harmless.contains(signal) && !stopping.contains(signal))
    {
        let ending = run(&arena, &["--", fixture::path(), "die", "--signal", &signal.to_string()]);
        let expected = match signal {
            libc::SIGINT | libc::SIGQUIT => (None, Some(signal)),
            _ => (Some(128 + signal), None),
        };
        assert_eq!((ending.code(), ending.signal()), expected, "signal {signal}: {}", ending.err());
    }
    arena.finish();
}

#[test]
fn death_by_quit_leaves_no_core_of_lariat() {
    let arena = Arena::new();
    let ending = run(&arena, &["--", fixture::path(), "die", "--signal", "3"]);
    assert_eq!(ending.signal(), Some(libc::SIGQUIT));
    let left: Vec<_> =
        std::fs::read_dir(arena.work()).expect("it is ours").flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    arena.finish();
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_be_executed_126() {
    let arena = Arena::new();
    let plain = arena.write("plain", "no program\n").into_os_string().into_string().expect("plain");
    for (command, code) in [
        ("no-such-command", 127),
        ("/no/such/command", 127),
        ("./no-such-command", 127),
        (plain.as_str(), 126),
        ("/", 126),
    ] {
        let ending = run(&arena, &["--", command]).expect(code);
        assert!(ending.err().contains(command), "the message does not name it: {}", ending.err());
        assert_eq!(ending.err().lines().count(), 1, "{}", ending.err());
    }
    arena.finish();
}

#[test]
fn wrong_use_is_code_2_and_nothing_starts() {
    let arena = Arena::new();
    for args in [&["run"][..], &["run", "--"], &["run", "--no-such-option", "--", "touch", "started"]] {
        let ending = lariat(&arena).args(args).run().expect(2);
        assert!(!ending.err().is_empty());
    }
    for args in [["--grace", "soon"], ["--signal", "NOSUCH"], ["--signal", "KILL"], ["--grace", "-1s"]] {
        lariat(&arena).arg("run").args(args).args(["--", "touch", "started"]).run().expect(2);
    }
    assert!(!arena.work().join("started").exists());
    arena.finish();
}

#[test]
fn arguments_are_the_commands_own() {
    let arena = Arena::new();
    let text = "printf '<%s>' \"$@\"";
    let ending =
        run(&arena, &["--", "/bin/sh", "-c", text, "x", "--grace", "", "a b", "--", "-h", "$HOME", "\u{e9}"]);
    assert_eq!(ending.expect(0).out(), "<--grace><><a b><--><-h><$HOME><\u{e9}>");
    // Without the two dashes, options end at the command.
    assert_eq!(run(&arena, &["echo", "--grace", "--help"]).expect(0).out(), "--grace --help\n");
    arena.finish();
}

#[test]
fn programs_are_looked_up_as_by_a_shell() {
    let arena = Arena::new();
    arena.script("bin/in-path", "#!/bin/sh\necho found\n");
    arena.script("here", "#!/bin/sh\necho here\n");
    arena.script("no-interpreter", "echo by the shell\n");
    let path = format!("{}:{}", arena.work().join("nothing").display(), arena.work().join("bin").display());
    let in_path = lariat(&arena).env("PATH", &path).args(["run", "--", "in-path"]).run();
    assert_eq!(in_path.expect(0).out(), "found\n");
    assert_eq!(run(&arena, &["--", "./here"]).expect(0).out(), "here\n");
    assert_eq!(run(&arena, &["--", "./no-interpreter"]).expect(0).out(), "by the shell\n");
    arena.finish();
}

#[test]
fn standard_input_output_and_error_are_the_commands() {
    let arena = Arena::new();
    let input = arena.write("input", "from standard input\n");
    let ending = lariat(&arena)
        .args(["run", "--", "/bin/sh", "-c", "cat; echo problem >&2"])
        .stdin(std::fs::File::open(input).expect("it was written"))
        .run()
        .expect(0);
    assert_eq!((ending.out().as_str(), ending.err().as_str()), ("from standard input\n", "problem\n"));
    arena.finish();
}

#[test]
fn output_ends_when_the_command_does() {
    // Neither lariat nor its keeper may hold a copy of the pipe: the reader would wait for them.
    let arena = Arena::new();
    let text = format!("{} run -- sh -c 'echo out; exec >&- 2>&-; exec sleep 61' | (cat; echo end)", path());
    let shell = arena.command("/bin/sh").args(["-c", &text]).own_session().start();
    wait_until("the pipe's end", PATIENCE, || (shell.stdout() == "out\nend\n").then_some(()));
    for seen in arena.alive() {
        seen.kill();
    }
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

fn path() -> String {
    subject::lariat(env!("CARGO_BIN_EXE_lariat")).into_string().expect("a plain path")
}

#[test]
fn a_closed_reader_is_the_commands_own_affair() {
    let arena = Arena::new();
    let bash = need!("bash");
    let text = format!("{} run -- yes | head -1; echo ${{PIPESTATUS[*]}}", path());
    let ending = arena.command(bash).args(["-c", &text]).own_session().run().expect(0);
    assert_eq!(ending.out(), "y\n141 0\n");
    arena.finish();
}

/// What `misbehave self` says, without what names the run.
fn report(facts: &Facts) -> Vec<String> {
    let text = facts.wait_for("self");
    facts.forget("self");
    let is_marker =
        |line: &str| line.starts_with("environment LARIAT_") && !line.contains("LARIAT_TEST_TOKEN");
    text.lines().filter(|line| !is_marker(line)).map(str::to_owned).collect()
}

fn without(lines: &[String], others: &[String]) -> Vec<String> {
    lines.iter().filter(|line| !others.contains(line)).cloned().collect()
}

/// Compares what the command finds with and without lariat, in surroundings that `change` makes.
fn compare(what: &str, change: impl Fn(Command) -> Command) {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let quiet = |command: Command| command.stdout(Stdio::null()).stderr(Stdio::null()).own_session();
    let bare = arena.command(fixture::path()).arg("self").facts(&facts);
    change(quiet(bare)).run().expect(0);
    let bare = report(&facts);
    let under = lariat(&arena).args(["run", "--", fixture::path(), "self"]).facts(&facts);
    change(quiet(under)).run().expect(0);
    let under = report(&facts);
    let (lost, new) = (without(&bare, &under), without(&under, &bare));
    assert!(bare == under, "{what}: bare has {lost:#?}\nunder lariat there is {new:#?}");
    arena.finish();
}

#[test]
fn surroundings_are_the_same_as_bare() {
    compare("nothing special", |command| command);
    compare("ignored signals", |command| {
        command.ignoring(&[
            libc::SIGHUP,
            libc::SIGPIPE,
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGTSTP,
            libc::SIGUSR1,
        ])
    });
    compare("ignored children", |command| command.ignoring(&[libc::SIGCHLD]));
    compare("blocked signals", |command| {
        command.blocking(&[libc::SIGUSR2, libc::SIGTERM, libc::SIGCHLD, libc::SIGINT, 40])
    });
    compare("odd environment", |command| {
        command.env("EMPTY", "").env("LINES", "a\nb=c").env("argv0", "\u{fc}")
    });
    compare("another directory", |command| command.dir("/"));
}

#[test]
fn closed_descriptors_stay_closed() {
    for closed in [&[0][..], &[1], &[2], &[0, 1, 2], &[0, 2]] {
        compare(&format!("closed {closed:?}"), move |command| {
            command.closing(match closed {
                [0] => &[0],
                [1] => &[1],
                [2] => &[2],
                [0, 2] => &[0, 2],
                _ => &[0, 1, 2],
            })
        });
    }
}

#[test]
fn descriptors_umask_niceness_and_limits_are_inherited() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let inherit = |prefix: &str| {
        let own = format!("{prefix} {} self --facts {}", fixture::path(), facts.as_arg());
        let text = format!(
            "umask 027; ulimit -c 0; ulimit -n 200; exec 7</dev/zero 9>>/dev/null; exec nice -n 3 {own}"
        );
        let shell = arena.command("/bin/sh").args(["-c", &text]).own_session();
        shell.stdout(Stdio::null()).stderr(Stdio::null()).run().expect(0);
        report(&facts)
    };
    let (bare, under) = (inherit(""), inherit(&format!("{} run --", path())));
    let (lost, new) = (without(&bare, &under), without(&under, &bare));
    assert!(bare == under, "bare has {lost:#?}\nunder lariat there is {new:#?}");
    arena.finish();
}

#[test]
fn a_command_under_nohup_survives_a_hang_up() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let running = lariat(&arena)
        .args(["run", "--", fixture::path(), "alone", "--manner", "graceful"])
        .facts(&facts)
        .ignoring(&[libc::SIGHUP])
        .own_session()
        .start();
    facts.wait_for("ready");
    running.signal(libc::SIGHUP);
    // Two signals to the same process: when the second has taken effect, the first has been delivered.
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code(), Some(0));
    facts.assert_told("leader", &[1], "HUP, then TERM");
    arena.finish();
}

#[test]
fn children_that_were_there_before_are_left_alone() {
    for ending in ["true", "false"] {
        let arena = Arena::new();
        let facts = arena.facts("f");
        let helper = format!("{} alone --facts {}", fixture::path(), facts.as_arg());
        let text = format!("{helper} & exec {} run -- {ending}", path());
        let shell = arena.command("/bin/sh").args(["-c", &text]).own_session().start();
        assert_eq!(shell.wait().code(), Some(i32::from(ending == "false")));
        facts.wait_for("ready");
        let alive = arena.alive();
        let [helper] = alive.as_slice() else { panic!("only the helper should be alive: {alive:?}") };
        assert_eq!(helper.pid, facts.pid("leader"));
        helper.kill();
        arena.wait_until_empty(PATIENCE);
        arena.finish();
    }
}

/// What such a child leaves comes to lariat, and is not what the keeper has left.
#[test]
fn what_children_from_before_leave_changes_no_exit_code() {
    let arena = Arena::new();
    let facts = arena.facts("f");
    let (orphan, begun) = (arena.dir().join("orphan"), arena.dir().join("begun"));
    let (orphan, begun) = (orphan.display(), begun.display());
    let helper = format!("{} alone --facts {}", fixture::path(), facts.as_arg());
    // Not before lariat takes orphans in, and the command ends when that one has come.
    let before = format!("({helper} & echo $! > {orphan}; until [ -e {begun} ]; do sleep 0.01; done) &");
    let command = format!(
        ": > {begun}; for i in $(seq 3000); do \
         [ \"$(cut -d\" \" -f4 /proc/$(cat {orphan})/stat)\" = $LARIAT ] && exit 41; sleep 0.01; done; exit 42"
    );
    let text = format!("{before} export LARIAT=$$; exec {} run -- sh -c '{command}'", path());
    let ending = arena.command("/bin/sh").args(["-c", &text]).own_session().run();
    assert_eq!((ending.code(), ending.err().as_str()), (Some(41), ""));
    arena.alive().iter().for_each(census::Seen::kill);
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

#[test]
fn children_that_were_there_before_survive_the_keepers_death_and_a_stop() {
    for is_keeper_killed in [true, false] {
        let arena = Arena::new();
        let (helping, running) = (arena.facts("helper"), arena.facts("leader"));
        let helper = format!("{} alone --facts {}", fixture::path(), helping.as_arg());
        let own = format!("{} daemon --facts {}", fixture::path(), running.as_arg());
        let text = format!("{helper} & exec {} run --grace 20s -- {own}", path());
        let shell = arena.command("/bin/sh").args(["-c", &text]).own_session().start();
        helping.wait_for("ready");
        running.wait_for("ready");
        let helper = helping.pid("leader");
        if is_keeper_killed {
            let keeper =
                census::children_of(shell.pid()).into_iter().find(|pid| *pid != helper).expect("a keeper");
            census::Seen::of(keeper).expect("it is alive").kill();
        } else {
            shell.signal(libc::SIGTERM);
        }
        shell.wait();
        let alive = arena.alive();
        assert_eq!(alive.iter().map(|seen| seen.pid).collect::<Vec<_>>(), [helper], "{alive:?}");
        alive.iter().for_each(census::Seen::kill);
        arena.wait_until_empty(PATIENCE);
        arena.finish();
    }
}

#[test]
fn the_exit_code_passes_through_when_sigchld_is_ignored() {
    let arena = Arena::new();
    for code in [0, 9] {
        let command = lariat(&arena).args(["run", "--", "/bin/sh", "-c", &format!("exit {code}")]);
        command.ignoring(&[libc::SIGCHLD]).own_session().run().expect(code);
    }
    arena.finish();
}

#[test]
fn a_failing_standard_output_does_not_matter_to_a_quiet_command() {
    let arena = Arena::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("there is /dev/full");
    lariat(&arena).args(["run", "--", "true"]).stdout(full).own_session().run().expect(0);
    arena.finish();
}

#[test]
fn lariat_says_nothing_of_its_own_when_all_is_well() {
    let arena = Arena::new();
    let ending = run(&arena, &["--", fixture::path(), "daemon", "--leave", "1", "--code", "0"]).expect(0);
    assert_eq!((ending.out().as_str(), ending.err().as_str()), ("", ""));
    arena.finish();
}

/// The keeper says how the command ended and exits while lariat is between two looks at it: each look at the socket takes
/// 100 ms here, and the command ends within the second one.
#[test]
fn a_last_word_between_two_looks_is_heard() {
    let strace = need!("strace");
    let arena = Arena::new();
    let slow = ["-qq", "-o", "/dev/null", "-e", "trace=recvfrom", "-e", "inject=recvfrom:delay_exit=100000"];
    for _ in 0..3 {
        let own = subject::lariat(env!("CARGO_BIN_EXE_lariat"));
        let command =
            arena.command(&strace).args(slow).arg(own).args(["run", "--", "sh", "-c", "sleep 0.15; exit 7"]);
        command.own_session().run().expect(7);
    }
    arena.finish();
}

/// Lets a command that reads a word from its standard input go on.
fn let_go(running: &mut Running) {
    let mut stdin = running.take_stdin().expect("it is piped");
    stdin.write_all(b"go\n").expect("it reads");
}

/// A program that its user may execute and not read cannot be dumped, and `hidepid=2` hides it from that user.
#[test]
fn members_that_proc_hides_are_ended() {
    let (unshare, setpriv, sleep) = (need!("unshare"), need!("setpriv"), need!("sleep"));
    if !is_root() {
        return skip_as_user("only root may mount /proc");
    }
    let arena = Arena::new();
    let dir = arena.work();
    let hidden = dir.join("hidden");
    std::fs::copy(sleep, &hidden).expect("a copy");
    for path in [arena.dir(), &dir, &hidden] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711)).expect("our own");
    }
    let script = format!(
        "mount -t proc -o hidepid=2 proc /proc && exec {setpriv} --reuid 65534 --regid 65534 --clear-groups \
         \"$0\" run --grace 10m -- sh -c '(setsid {hidden} 600 &); {hidden} 600 & read go; exit 3'",
        hidden = hidden.display()
    );
    let own = subject::lariat(env!("CARGO_BIN_EXE_lariat"));
    let command = arena.command(unshare).args(["-m", "sh", "-c", &script]).arg(own);
    let mut running = command.stdin(Stdio::piped()).own_session().start();
    let are_hidden = || arena.alive().iter().filter(|seen| seen.comm == "hidden").count() == 2;
    wait_until("both", PATIENCE, || are_hidden().then_some(()));
    let_go(&mut running);
    running.wait().expect(3);
    arena.finish();
}

/// One that became another user may not be signalled: it is named with the reason, whatever the command's own end was.
#[test]
fn who_cannot_be_ended_is_named() {
    let setpriv = need!("setpriv");
    if !is_root() {
        return skip_as_user("only root may make a setuid program");
    }
    for code in [0, 3] {
        let arena = Arena::new();
        let dir = arena.work();
        let becomes_root = dir.join("becomes-root");
        std::fs::copy(&setpriv, &becomes_root).expect("a copy");
        for (path, mode) in [(arena.dir(), 0o711), (&dir, 0o711), (&becomes_root, 0o4755)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("our own");
        }
        let script = format!("{} --reuid 0 sleep 600 & read go; exit {code}", becomes_root.display());
        let command = lariat(&arena).args(["run", "--grace", "0s", "--", "sh", "-c", &script]);
        let command = command.as_user(65534, 65534).stdin(Stdio::piped());
        let mut running = command.own_session().start();
        let is_root = || arena.alive().iter().any(|seen| seen.comm == "sleep");
        wait_until("one that has become root", PATIENCE, || is_root().then_some(()));
        let_go(&mut running);
        let ending = running.wait();
        for left in census::by_token(arena.token()) {
            left.kill();
        }
        arena.wait_until_empty(PATIENCE);
        let ending = ending.expect(if code == 0 { 125 } else { code });
        let text = ending.err();
        assert!(text.contains("1 of its processes could not be ended"), "{text}");
        assert!(text.contains("`sleep` (pid ") && text.contains("operation not permitted"), "{text}");
        arena.finish();
    }
}

/// Holding on to members must not take the descriptors that finding the others needs.
#[test]
fn few_descriptors_cost_nobody_the_grace_period() {
    let arena = Arena::new();
    let script = "
        for i in $(seq 40); do (trap '' TERM; echo stands; exec sleep 600) & done
        for i in $(seq 10); do (trap \"echo clean-$i; exit\" TERM; echo stands; while :; do sleep 0.05; done) & done
        trap '' TERM; echo stands; while :; do sleep 600; done";
    let own = subject::lariat(env!("CARGO_BIN_EXE_lariat"));
    let limited = arena.command("sh").args(["-c", "ulimit -n 32; exec \"$0\" \"$@\""]).arg(own);
    let running = limited.args(["run", "--grace", "4s", "--", "sh", "-c", script]).own_session().start();
    wait_until("the tree", PATIENCE, || (running.stdout().matches("stands").count() == 51).then_some(()));
    running.signal(libc::SIGTERM);
    let ending = running.wait().expect(128 + libc::SIGKILL);
    assert_eq!(ending.out().matches("clean-").count(), 10, "{}", ending.out());
    arena.finish();
}

/// Nothing can be ended by the numbers of another pid namespace, so nothing is started.
#[test]
fn a_proc_that_is_not_ours_is_refused() {
    let unshare = need!("unshare");
    if !is_root() {
        return skip_as_user("only root may make a pid namespace");
    }
    let own = subject::lariat(env!("CARGO_BIN_EXE_lariat"));
    let foreign = ["--pid", "--fork", "sh", "-c", "\"$0\" run -- echo started; exit $?"];
    let missing = ["-m", "sh", "-c", "umount -l /proc && exec \"$0\" run -- echo started"];
    for args in [&foreign[..], &missing[..]] {
        let arena = Arena::new();
        let ending = arena.command(&unshare).args(args).arg(&own).own_session().run().expect(125);
        assert_eq!(ending.out(), "");
        assert!(ending.err().contains("/proc"), "{}", ending.err());
        arena.finish();
    }
}

/// The session and the group that a command was started in have no number in a pid namespace below them.
#[test]
fn a_session_without_a_number_here_is_no_error() {
    let unshare = need!("unshare");
    let mut args = vec!["--pid", "--fork", "--mount-proc"];
    if !is_root() {
        args.push("-Ur");
    }
    let arena = Arena::new();
    // Neither the namespace's first process nor a leader of anything: as a shell without job control starts it.
    let script = "\"$0\" run -- sh -c 'echo got it'; exit $?";
    let command = arena.command(&unshare).args(&args).args(["sh", "-c", script]);
    let command = command.arg(subject::lariat(env!("CARGO_BIN_EXE_lariat")));
    let ending = command.own_session().run().expect(0);
    assert_eq!((ending.out(), ending.err()), ("got it\n".into(), String::new()));
    arena.finish();
}
