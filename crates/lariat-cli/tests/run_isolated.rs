//! `lariat run --isolate`, besides what `run_matrix.rs` has of it: runs in runs, numbers, what is reached from inside and
//! from outside, and where there is no pid namespace to be had.
//!
//! The judge looks from outside and knows nothing of namespaces but how to find a process by its number inside.

use std::time::Duration;

use lariat_testkit::census::{self, Seen};
use lariat_testkit::kernel::Kernel;
use lariat_testkit::needs::skip_as_user;
use lariat_testkit::{Arena, Command, PATIENCE, fixture, is_root, need, needs, subject, wait_until};

fn own() -> std::ffi::OsString {
    subject::lariat(env!("CARGO_BIN_EXE_lariat"))
}

/// Runs with isolation around, inside of, and beside runs without, and runs in runs in runs.
#[test]
fn runs_inside_runs_are_ended_from_outside() {
    for nest in [&["--isolate", ""][..], &["", "--isolate"], &["--isolate", "--isolate", "", "--isolate"]] {
        for is_kill in [false, true] {
            let arena = Arena::new();
            if !arena.has_pid_namespaces() {
                return;
            }
            let facts = arena.facts("f");
            let mut command = arena.command(own());
            for (depth, isolate) in nest.iter().enumerate() {
                command = if depth == 0 { command } else { command.arg(own()) };
                let isolate: &[&str] = if isolate.is_empty() { &[] } else { &["--isolate"] };
                command = command.arg("run").args(isolate).args(["--grace", "20s", "--"]);
            }
            let fixture = [fixture::path(), "daemon", "--manner", "graceful"];
            let running = command.args(fixture).facts(&facts).own_session().start();
            facts.wait_for("ready");
            running.signal(if is_kill { libc::SIGKILL } else { libc::SIGTERM });
            let ending = running.wait();
            if is_kill {
                arena.wait_until_empty(PATIENCE);
            } else {
                assert_eq!(ending.code(), Some(0), "{nest:?}: {ending:?}");
            }
            for role in ["leader", "daemon"] {
                assert!(facts.has(&format!("clean-{role}")), "{nest:?}: {role} had no grace: {ending:?}");
                facts.assert_told(role, &[1], format!("{nest:?}"));
            }
            arena.finish();
        }
    }
}

#[test]
fn codes_and_deaths_pass_through() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let run =
        |args: &[&str]| arena.command(own()).args(["run", "--isolate", "--"]).args(args).own_session().run();
    run(&["sh", "-c", "exit 41"]).expect(41);
    run(&["sh", "-c", "kill -KILL $$"]).expect(137);
    assert_eq!(run(&[fixture::path(), "die", "--signal", "2"]).signal(), Some(libc::SIGINT));
    run(&["/missing/program"]).expect(127);
    run(&["/"]).expect(126);
    let said = run(&["sh", "-c", "echo $$ $PPID; cat"]).expect(0);
    assert_eq!((said.out().as_str(), said.err().as_str()), ("2 1\n", ""));
    arena.finish();
}

/// Nobody inside can signal the keeper away or end it: it is the init of their namespace.
#[test]
fn no_member_can_kill_the_keeper() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let script = "for signal in KILL STOP TERM SEGV; do kill -$signal 1 || exit 9; done; kill -0 1 && exit 5";
    arena.command(own()).args(["run", "--isolate", "--", "sh", "-c", script]).own_session().run().expect(5);
    arena.finish();
}

#[test]
fn a_keeper_that_was_stopped_hears_of_its_supervisors_death() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let facts = arena.facts("f");
    let command = arena.command(own()).args(["run", "--isolate", "--", fixture::path(), "daemon"]);
    let running = command.args(["--manner", "graceful"]).facts(&facts).own_session().start();
    facts.wait_for("ready");
    census::keeper_of(running.pid()).signal(libc::SIGSTOP);
    running.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    assert!(facts.has("clean-leader") && facts.has("clean-daemon"), "{:?}", facts.names());
    arena.finish();
}

/// The kernel lets the keeper go only when everybody in its namespace was reaped, also who came in from outside and is
/// somebody else's child.
#[test]
fn who_entered_from_outside_holds_nobody_up() {
    let (nsenter, sleep) = (need!("nsenter"), need!("sleep"));
    let arena = Arena::new();
    if !is_root() {
        return skip_as_user("only root may enter a namespace of others");
    }
    let facts = arena.facts("f");
    let command = arena.command(own()).args(["run", "--isolate", "--", fixture::path(), "alone"]);
    let running = command.facts(&facts).own_session().start();
    facts.wait_for("ready");
    let keeper = census::keeper_of(running.pid());
    let target = keeper.pid.to_string();
    let intruder = arena.command(nsenter).args(["--pid", "--target", &target, &sleep, "600"]).start();
    wait_until("somebody who entered", PATIENCE, || {
        let asleep = |seen: &Seen| seen.comm == "sleep" && seen.state == 'S';
        census::by_parent(intruder.pid()).iter().any(asleep).then_some(())
    });
    // Its parent outside does not reap it.
    intruder.signal(libc::SIGSTOP);
    running.signal(libc::SIGTERM);
    let ending = running.wait_at_most(Duration::from_secs(20));
    assert_eq!(ending.code(), Some(128 + libc::SIGTERM), "{ending:?}");
    let now = Seen::of(keeper.pid).filter(|seen| seen.start == keeper.start);
    assert!(now.is_some_and(|seen| seen.is_alive()), "nothing held the keeper up: this proves nothing");
    intruder.signal(libc::SIGCONT);
    intruder.wait();
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

/// What is written down of a run, and what is said of those who cannot be ended, has the numbers that people see.
#[test]
fn numbers_are_those_outside() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let facts = arena.facts("f");
    let command = arena.command(own()).args(["run", "--isolate", "--", fixture::path(), "alone"]);
    let running = command.facts(&facts).own_session().start();
    facts.wait_for("ready");
    let leader = census::inside(census::keeper_of(running.pid()).pid, facts.pid("leader")).expect("a leader");
    assert_ne!(leader.pid, facts.pid("leader"), "the number inside is a small one");
    let record = wait_until("the record", PATIENCE, || {
        let dir = arena.dir().join("runtime/lariat");
        let files = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
        files.filter_map(|path| std::fs::read_to_string(path).ok()).find(|text| text.contains("leader"))
    });
    let expected = format!("\"leader\":{{\"pid\":{},\"start\":{}", leader.pid, leader.start);
    assert!(record.contains(&expected), "no {expected} in {record}");
    running.signal(libc::SIGTERM);
    running.wait().expect(128 + libc::SIGTERM);
    arena.finish();
}

/// Looks for a `/proc` behind every descriptor of every process that it sees.
const LOOK_AROUND: &str = "for fd in /proc/[0-9]*/fd/*; do test -e $fd/1/stat && echo $fd; done; true";

/// HAZARD(numbers-inside): nobody but the keeper holds what shows the processes outside. That root may look into any
/// process, the keeper too, is so everywhere.
#[test]
fn no_member_gets_at_what_shows_the_processes_outside() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let shown =
        arena.command(own()).args(["run", "--isolate", "--", "sh", "-c", LOOK_AROUND]).run().expect(0);
    let found: Vec<String> = shown
        .out()
        .lines()
        .filter(|line| !is_root() || !line.starts_with("/proc/1/"))
        .map(str::to_owned)
        .collect();
    assert!(found.is_empty(), "{found:?}");
    if is_root() {
        assert!(shown.out().starts_with("/proc/1/"), "the look finds nothing: this proves nothing");
    }
    arena.finish();
}

/// Runs `lariat run --isolate` where something stands in its way, and returns what it said. Nothing may have started.
fn refused(arena: &Arena, unshare: &[&str], script: &str) -> String {
    let program = needs::program("unshare").expect("it was there a moment ago");
    let script = format!("{script} \"$0\" run --isolate -- touch started");
    let command = arena.command(program).args(unshare).args(["sh", "-c", &script]).arg(own());
    said_no(arena, command)
}

fn said_no(arena: &Arena, command: Command) -> String {
    let ending = command.own_session().run().expect(125);
    assert!(!arena.work().join("started").exists(), "it was started all the same: {ending:?}");
    assert!(ending.err().contains("could not isolate `touch`"), "{}", ending.err());
    ending.err()
}

/// What stands in the way is named where it was found, and nothing else is.
fn assert_hints(text: &str, step: &str, hints: &[&str]) {
    let all = [
        "max_pid_namespaces`",
        "max_user_namespaces`",
        "CAP_SETFCAP",
        "systempaths=",
        "seccomp=",
        "chroot",
        "apparmor",
        "userns_clone",
    ];
    assert!(text.contains(step), "{text}");
    for hint in all {
        assert_eq!(text.contains(hint), hints.contains(&hint), "{hint}: {text}");
    }
}

#[test]
fn without_a_namespace_nothing_starts_and_the_reason_is_said() {
    let setpriv = need!("setpriv");
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let bare = format!("{setpriv} --inh-caps=-all --ambient-caps=-all --bounding-set=-all");
    // Limits that are used up: with the right to make pid namespaces, and without.
    let text = refused(&arena, &["-Ur"], "echo 0 >/proc/sys/user/max_pid_namespaces && exec");
    assert_hints(&text, "could not make a pid namespace", &["max_pid_namespaces`"]);
    let script = format!("echo 0 >/proc/sys/user/max_user_namespaces && exec {bare}");
    let text = refused(&arena, &["-Ur"], &script);
    assert_hints(&text, "could not make a pid namespace", &["max_user_namespaces`"]);
    // Root that may not hand on its own id, as in a container without any capabilities.
    let text = refused(&arena, &["-Ur"], &format!("exec {bare}"));
    assert_hints(&text, "could not map the user", &["CAP_SETFCAP"]);
    // A container's view of /proc, in which parts are covered.
    let script = format!("mount -t tmpfs tmpfs /proc/sys && exec {bare},+setfcap");
    let text = refused(&arena, &["-Urm"], &script);
    assert_hints(&text, "could not mount /proc", &["systempaths="]);
    assert!(
        text.contains("/proc/sys is covered")
            || text.contains("/proc/sys, ")
            || text.contains("/proc/sys and "),
        "{text}"
    );
    arena.finish();
}

/// A container's filter of system calls. The doctor says the same, without having been asked for isolation.
#[test]
fn a_filter_that_takes_namespaces_away_is_named() {
    let arena = Arena::new();
    let kernel = Kernel::without(&arena, &["unshare-pid", "clone-pid"]);
    let command = kernel.command(&arena, own()).args(["run", "--isolate", "--", "touch", "started"]);
    assert_hints(&said_no(&arena, command), "could not make a pid namespace", &["seccomp="]);
    let shown = kernel.command(&arena, own()).arg("doctor").run().out();
    let section = shown.split("namespace  ").nth(1).and_then(|rest| rest.split("\n\n").next());
    assert_hints(section.unwrap_or_default(), "could not make a pid namespace", &["seccomp="]);
    arena.finish();
}

/// Files below a directory that is no mount, `/proc` among them, and mounts that are shared as systemd leaves them.
const CHROOT: &str = "set -e; mount --make-rshared /; mkdir -p root/proc root/tmp; \
    for dir in /usr /bin /lib /lib64 /dev; do test -e $dir && mkdir root$dir && mount --rbind $dir root$dir; done; \
    touch root/lariat; mount --bind \"$0\" root/lariat; mount -t proc proc root/proc; \
    before=$(wc -l </proc/self/mountinfo); \
    chroot root /lariat run --isolate -- sh -c 'test $$ = 2 && test -d /proc/2 && ! test -d /proc/3 && exit 7' || code=$?; \
    test $before = $(wc -l </proc/self/mountinfo) || exit 8; exit $code";

#[test]
fn a_chroot_whose_root_is_no_mount_will_do() {
    let arena = Arena::new();
    if !is_root() {
        return skip_as_user("only root may change its root");
    }
    if !arena.has_pid_namespaces() {
        return;
    }
    // Everything is mounted in a namespace that goes with the test.
    let command = arena.command(need!("unshare")).args(["-m", "sh", "-c", CHROOT]).arg(own());
    command.own_session().run().expect(7);
    arena.finish();
}

/// The kernel lets an ordinary user mount `/proc` only with the access times of the one that is there.
#[test]
fn a_proc_that_keeps_other_times_will_do() {
    let setpriv = need!("setpriv");
    let arena = Arena::new();
    if !is_root() {
        return skip_as_user("only root may change how /proc is mounted");
    }
    if !arena.has_pid_namespaces() {
        return;
    }
    for how in ["noatime", "strictatime", "nodiratime", "relatime"] {
        let script = format!(
            "mount -o remount,bind,{how} /proc && exec {setpriv} --reuid=2 --regid=2 --clear-groups \
             env --unset=XDG_RUNTIME_DIR \"$0\" run --isolate -- sh -c 'exit 7'"
        );
        let ending = arena.command(need!("unshare")).args(["-m", "sh", "-c", &script]).arg(own()).run();
        assert_eq!(ending.code(), Some(7), "{how}: {ending:?}");
    }
    arena.finish();
}
