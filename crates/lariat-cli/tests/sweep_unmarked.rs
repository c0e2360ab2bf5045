//! A daemon that took nothing but the run's mark out of its environment, after every lariat process was killed at once
//! under descent alone: it is offered, and whatever hangs on somebody who lives is not.
//!
//! The tests' own process takes in no orphans here, and so they go to init, or to the user's systemd. Where somebody stands
//! in between of whom that is not known, nobody is offered, which is seen before the test is skipped.

mod crash;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crash::{LARIAT, crash, is_alive, lariat, said};
use lariat_testkit::arena::set_subreaper;
use lariat_testkit::census::Seen;
use lariat_testkit::{
    Arena, Command, Containment, PATIENCE, Pty, Running, Stack, fixture, needs, wait_until,
};

/// Who takes in orphans is said for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// A shell that was there before, a run whose leader is dead, and the daemon that it left.
struct Scene {
    arena: Arena,
    stack: Option<Stack>,
    older: Running,
    stdin: Option<std::process::ChildStdin>,
    daemon: Seen,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    /// Returns the scene, or says that the test is skipped: orphans go to somebody who is not known to take them in.
    fn new(is_stack: bool) -> Option<Self> {
        let scene = Self::with(is_stack, false);
        let parent = Seen::of(scene.daemon.parent).expect("whoever takes in orphans lives on");
        if parent.pid == 1 || parent.parent == 1 && parent.comm == "systemd" {
            return Some(scene);
        }
        scene.end_unoffered();
        needs::skip(&format!("orphans go to {parent} here"));
        None
    }

    fn with(is_stack: bool, is_subreaper: bool) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let arena = Arena::with(Containment::Lineage);
        set_subreaper(is_subreaper);
        let older = arena.command("/bin/sh").stdin(std::process::Stdio::piped()).own_session().start();
        let facts = arena.facts("f");
        let line = fixture::line("alone", &facts, "--manner graceful --ms 10");
        let script = format!("env -u LARIAT_RUN setsid {} {line}", sleeping(601));
        let (stack, running) = if is_stack {
            let toml = format!("[service.server]\nrun = '{script}'\n");
            let stack = Stack::new(&arena, LARIAT, "project", &toml);
            let running = stack.up(&arena);
            (Some(stack), running)
        } else {
            (None, lariat(&arena, &["run", "--", "/bin/sh", "-c", &script]).start())
        };
        facts.wait_for("ready");
        let daemon = seen(&arena, 601);
        match &stack {
            Some(stack) => crash::wait_ledger(stack, facts.pid("leader")),
            None => crash::wait_records(&arena, 1),
        }
        crash(&arena, &[&running]);
        let leader = facts.pid("leader");
        wait_until("the leader's end", PATIENCE, || (!is_alive(leader)).then_some(()));
        let environment = std::fs::read(format!("/proc/{}/environ", daemon.pid)).expect("it lives on");
        let has = |name: &[u8]| environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(name));
        assert!(has(b"HOME=") && !has(b"LARIAT_RUN="), "the negative control");
        let daemon = Seen::of(daemon.pid).expect("it lives on");
        Self { arena, stack, older, stdin: None, daemon, _alone: alone }
    }

    fn end_unoffered(self) {
        assert_eq!(self.offered(), BTreeSet::new(), "nobody knows the parent: {:?}", self.daemon);
        self.daemon.kill();
        self.end();
    }

    fn end(self) {
        self.older.signal(libc::SIGKILL);
        self.older.wait();
        self.arena.wait_until_empty(PATIENCE);
        self.arena.finish();
    }

    fn sweep(&self, args: &[&str]) -> Command {
        let args = [&["sweep"], args].concat();
        match &self.stack {
            Some(stack) => stack.in_front(&self.arena, &args),
            None => self.arena.command(lariat_testkit::subject::lariat(LARIAT)).args(&args),
        }
    }

    /// Returns who is offered, and that nobody is certain.
    fn offered(&self) -> BTreeSet<i64> {
        let dry = self.sweep(&["--dry-run", "--json"]).own_session().run().expect(0);
        let json: serde_json::Value = serde_json::from_str(&dry.out()).expect("one object");
        let groups = json["groups"].as_array().expect("a list");
        let all = |kind: &str| -> BTreeSet<i64> {
            groups.iter().flat_map(|group| group[kind].as_array().expect("a list")).map(pid).collect()
        };
        assert!(all("certain").is_empty(), "{json}");
        all("possible")
    }

    /// Has the older shell start a daemon in the project.
    fn start_beside(&mut self, time: u32) -> Seen {
        let dir = self.stack.as_ref().map_or_else(|| self.arena.work(), |stack| stack.dir().to_owned());
        let mut stdin = self.older.take_stdin().expect("it is piped");
        let text = format!("cd '{}' && setsid {}\n", dir.display(), sleeping(time));
        stdin.write_all(text.as_bytes()).expect("it reads");
        let found = seen(&self.arena, time);
        // At its end the shell would end.
        self.stdin = Some(stdin);
        found
    }
}

fn pid(process: &serde_json::Value) -> i64 {
    process["pid"].as_i64().expect("a number")
}

/// A command of the shell that goes on beside it, with none of its descriptors.
fn sleeping(time: u32) -> String {
    format!("sleep {time} </dev/null >/dev/null 2>&1 &")
}

/// Waits until the daemon is one: in a session of its own.
fn seen(arena: &Arena, time: u32) -> Seen {
    let command = format!("sleep {time}");
    let is_it = |seen: &Seen| seen.command == command && seen.session == seen.pid;
    wait_until("the daemon", PATIENCE, || arena.alive().into_iter().find(is_it))
}

fn check_consent(is_stack: bool) {
    let Some(scene) = Scene::new(is_stack) else { return };
    let daemon = scene.daemon.pid;
    let dry = scene.sweep(&["--dry-run"]).own_session().run().expect(0);
    let is_named = |line: &str| line.contains(&daemon.to_string()) && line.contains("orphan");
    assert!(dry.out().contains("possibly") && dry.out().lines().any(is_named), "{}", dry.out());
    assert_eq!(scene.offered(), BTreeSet::from([i64::from(daemon)]));
    // Twice: the first time does not forget it.
    for _ in 0..2 {
        let swept = scene.sweep(&["--yes", "--force"]).own_session().run().expect(0);
        assert!(said(&swept).contains(&format!("{daemon} left alone")), "{}", said(&swept));
        assert!(scene.daemon.is_alive_now(), "ended unasked: {}", said(&swept));
    }
    let mut pty = Pty::new();
    let sweep = pty.start(scene.sweep(&[]));
    pty.wait_for(&format!("End {daemon} as well, which may be of something else? [y/N]"));
    pty.send("y\n");
    assert_eq!(pty.wait_end(&sweep).code(), Some(0), "{}", pty.text());
    assert!(!scene.daemon.is_alive_now(), "{}", pty.text());
    assert!(scene.offered().is_empty());
    scene.end();
}

#[test]
fn a_daemon_of_a_stack_is_offered_and_ended_after_a_yes() {
    check_consent(true);
}

#[test]
fn a_daemon_of_a_command_is_offered_and_ended_after_a_yes() {
    check_consent(false);
}

/// It is named by every command that says that the run crashed, and ended by none of them.
#[test]
fn a_daemon_of_a_stack_is_named_where_somebody_asks_for_the_run() {
    let Some(scene) = Scene::new(true) else { return };
    let stack = scene.stack.as_ref().expect("it is one");
    let line = format!("{} `sleep 601` may be of this run", scene.daemon.pid);
    for command in ["ps", "down"] {
        let ending = stack.in_front(&scene.arena, &[command]).own_session().run();
        assert!(said(&ending).contains(&line), "`lariat {command}` does not name it: {}", said(&ending));
    }
    assert!(scene.daemon.is_alive_now());
    scene.daemon.kill();
    scene.end();
}

#[test]
fn what_an_older_shell_started_in_the_project_is_offered_to_nobody_while_the_shell_lives() {
    for is_stack in [true, false] {
        let Some(mut scene) = Scene::new(is_stack) else { return };
        let beside = scene.start_beside(602);
        assert_eq!((beside.parent, scene.older.is_alive()), (scene.older.pid(), true));
        assert_eq!(scene.offered(), BTreeSet::from([i64::from(scene.daemon.pid)]));
        scene.sweep(&["--yes", "--possible", "--force"]).own_session().run().expect(0);
        assert!(!scene.daemon.is_alive_now() && beside.is_alive_now());
        beside.kill();
        scene.end();
    }
}

/// The other side of that: nothing but the shell tells the two apart.
#[test]
fn once_the_shell_is_gone_nobody_can_tell_whose_it_was() {
    let Some(mut scene) = Scene::new(true) else { return };
    let beside = scene.start_beside(603);
    scene.older.signal(libc::SIGKILL);
    scene.older.wait();
    assert_eq!(scene.offered(), BTreeSet::from([scene.daemon.pid, beside.pid].map(i64::from)));
    scene.sweep(&["--yes", "--possible", "--force"]).own_session().run().expect(0);
    assert!(!scene.daemon.is_alive_now() && !beside.is_alive_now());
    scene.arena.finish();
}

/// The kernel does not say who takes in orphans, and anybody else's child may be the work of a person.
#[test]
fn where_nobody_knows_who_takes_in_orphans_nobody_is_offered() {
    Scene::with(true, true).end_unoffered();
}
