//! Every lariat process dies in one instant, and a user of one's own for searches over all runs of a user.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lariat_testkit::census::Seen;
use lariat_testkit::{
    Arena, Command, Ending, Facts, PATIENCE, Running, Stack, fixture, needs, subject, wait_until,
};

pub(crate) const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// A service of one fixture. Its grace period is short where it has to run out, and long where it must not.
pub(crate) fn service(name: &str, kind: &str, facts: &Facts, args: &str) -> String {
    let line = fixture::line(kind, facts, args);
    let grace = if args.contains("graceful") { "20s" } else { "300ms" };
    format!("[service.{name}]\nrun = '{line}'\nstop = {{ grace = '{grace}' }}\n")
}

/// A project of one fixture.
pub(crate) fn project(arena: &Arena, name: &str, kind: &str, args: &str) -> (Stack, Facts) {
    let facts = arena.facts(name);
    let stack = Stack::new(arena, LARIAT, name, &service("server", kind, &facts, args));
    (stack, facts)
}

/// Prepares `lariat` in the arena's working directory, without a terminal.
pub(crate) fn lariat(arena: &Arena, args: &[&str]) -> Command {
    arena.command(subject::lariat(LARIAT)).args(args).own_session()
}

/// Returns lariat's own processes that are alive: supervisors and keepers.
fn own(arena: &Arena) -> Vec<Seen> {
    let is_own = |seen: &Seen| seen.comm.starts_with("keeper:") || seen.comm == "lariat";
    arena.alive().into_iter().filter(is_own).collect()
}

/// Kills these, none of whom gets to see another one's death before its own: they are stopped first, and the keepers die
/// before their supervisors, because a supervisor's death continues its keeper.
fn kill_unseen(all: &[Seen]) {
    all.iter().for_each(|seen| seen.signal(libc::SIGSTOP));
    let (keepers, others): (Vec<&Seen>, Vec<&Seen>) =
        all.iter().partition(|seen| seen.comm.starts_with("keeper:"));
    keepers.into_iter().chain(others).for_each(Seen::kill);
}

/// Kills every lariat process in one go, and returns who is left.
pub(crate) fn crash(arena: &Arena, running: &[&Running]) -> Vec<Seen> {
    let all = own(arena);
    assert!(all.len() >= 2 * running.len(), "no supervisor and keeper: {all:?}");
    kill_unseen(&all);
    running.iter().for_each(|running| drop(running.wait()));
    wait_until("the end of lariat", PATIENCE, || own(arena).is_empty().then_some(()));
    arena.alive()
}

/// Kills these in one go, as [`crash`] does.
pub(crate) fn kill_at_once(all: &[Seen]) {
    kill_unseen(all);
    let is_gone = |seen: &Seen| !seen.is_alive_now();
    wait_until("their end", PATIENCE, || all.iter().all(is_gone).then_some(()));
}

/// What was said, on both.
pub(crate) fn said(ending: &Ending) -> String {
    ending.out() + &ending.err()
}

#[track_caller]
pub(crate) fn names(text: &str, pids: &[i32]) {
    for pid in pids {
        assert!(text.contains(&pid.to_string()), "{pid} is not named in:\n{text}");
    }
}

pub(crate) fn is_alive(pid: i32) -> bool {
    Seen::of(pid).is_some_and(|seen| seen.is_alive())
}

/// Returns the run that a process carries the mark of.
pub(crate) fn mark_of(pid: i32) -> String {
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("it is alive");
    let mut entries = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    entries.find_map(|entry| entry.strip_prefix("LARIAT_RUN=").map(str::to_owned)).expect("it is marked")
}

/// Returns a directory of the arena's environment.
pub(crate) fn directory(arena: &Arena, variable: &str) -> PathBuf {
    let found = arena.environment().into_iter().find(|(name, _)| name == variable);
    found.map(|(_, value)| PathBuf::from(value)).expect("the arena sets it")
}

/// Returns the entries in the list of runs.
pub(crate) fn listed(arena: &Arena) -> Vec<PathBuf> {
    names_in(&directory(arena, "XDG_STATE_HOME").join("lariat/runs"))
}

/// Returns records and sockets in the runtime directory.
pub(crate) fn at_runtime(arena: &Arena) -> Vec<PathBuf> {
    names_in(&directory(arena, "XDG_RUNTIME_DIR").join("lariat"))
}

/// Waits until the ledger names a leader: changes gather for some milliseconds before they are written.
#[track_caller]
pub(crate) fn wait_ledger(stack: &Stack, leader: i32) {
    let ledger = stack.dir().join(".lariat/run.json");
    let is_named =
        || fs::read_to_string(&ledger).is_ok_and(|text| text.contains(&format!("\"pid\": {leader},")));
    wait_until("the ledger", PATIENCE, || is_named().then_some(()));
}

/// Waits until commands have been written down: that is done right after they were started.
#[track_caller]
pub(crate) fn wait_records(arena: &Arena, count: usize) {
    let is_whole = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes.ends_with(b"}\n"));
    wait_until("the records of commands", PATIENCE, || {
        (at_runtime(arena).iter().filter(|path| is_whole(path)).count() == count).then_some(())
    });
}

fn names_in(directory: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    names.sort();
    names
}

/// Everything below a directory: each file with its bytes and its time.
pub(crate) fn everything(below: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let (mut found, mut ahead) = (BTreeMap::new(), vec![below.to_owned()]);
    while let Some(directory) = ahead.pop() {
        for path in names_in(&directory) {
            let metadata = path.symlink_metadata().expect("nobody changes it");
            if metadata.is_dir() {
                ahead.push(path.clone());
            }
            let bytes = if metadata.is_file() { fs::read(&path).expect("it is ours") } else { Vec::new() };
            found.insert(path, (bytes, metadata.modified().expect("a time")));
        }
    }
    found
}

/// A user that nobody else has: `--all` is about all processes of a user, other tests' included.
#[derive(Clone, Copy)]
pub(crate) struct User(pub(crate) u32);

impl User {
    /// Takes one, or says that the test is skipped.
    pub(crate) fn take() -> Option<Self> {
        if !lariat_testkit::is_root() {
            needs::skip_as_user(
                "a search over all runs of a user needs a user of its own, and root to become it",
            );
            return None;
        }
        Some(Self(200_000 + std::process::id() % 100_000))
    }

    /// Gives him everything in the arena. To be called again after more was made in it.
    pub(crate) fn own(self, arena: &Arena) {
        let mut ahead = vec![arena.dir().to_owned()];
        while let Some(path) = ahead.pop() {
            std::os::unix::fs::lchown(&path, Some(self.0), Some(self.0)).expect("root may");
            if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                ahead.extend(names_in(&path));
            }
        }
    }

    /// Runs it as this user.
    pub(crate) fn runs(self, command: Command) -> Command {
        command.as_user(self.0, self.0)
    }

    /// Brings a stack up as this user.
    pub(crate) fn up(self, arena: &Arena, stack: &Stack) -> Running {
        let before = stack.count("startup-finished");
        let running = self.runs(stack.lariat(arena, &["up", "--yes"])).start();
        stack.wait_up(&running, before);
        running
    }
}
