//! Members that cannot be ended: stuck in the kernel, or another user's. Nothing waits for them past its deadline, they
//! are named with the reason, and the ledger stays open until they are gone.
//!
//! Only root can make them; as another user, lariat itself is what runs as one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use lariat_testkit::census::Seen;
use lariat_testkit::stuck::{DeafServer, Freezer};
use lariat_testkit::{
    Arena, Command, Ending, Facts, PATIENCE, Stack, fixture, is_root, needs, subject, wait_until,
};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// Kill passes last up to fifteen seconds where nothing helps; a stack has a few more for its last look.
const AT_MOST: Duration = Duration::from_secs(28);
/// The user whom lariat runs as where it has to be an ordinary one.
const USER: u32 = 2;

fn freezer() -> Option<Freezer> {
    let made = if is_root() { Freezer::new() } else { return skip_as_user() };
    made.map_err(|error| needs::skip(&format!("there is no version 1 freezer: {error}"))).ok()
}

fn deaf_server(arena: &Arena) -> Option<DeafServer> {
    if !is_root() {
        return skip_as_user();
    }
    let dir = arena.dir().join("deaf");
    fs::create_dir(&dir).expect("the arena is ours");
    DeafServer::mount(&dir).map_err(|error| needs::skip(&format!("there is no FUSE: {error}"))).ok()
}

fn skip_as_user<T>() -> Option<T> {
    needs::skip_as_user("it takes root to make a process that cannot be ended");
    None
}

fn lariat(arena: &Arena) -> Command {
    arena.command(subject::lariat(LARIAT))
}

/// The stack of one service, whose leader ends well and whose other member is `role`.
fn project(arena: &Arena, kind: &str, args: &str) -> (Stack, Facts) {
    let facts = arena.facts("f");
    let toml = format!(
        "[stack]\ndeadline = '2s'\n[service.server]\nrun = '{}'\nstop = {{ grace = '300ms' }}\n",
        fixture::line(kind, &facts, args)
    );
    (Stack::new(arena, LARIAT, "project", &toml), facts)
}

fn is_alive(pid: i32) -> bool {
    Seen::of(pid).is_some_and(|seen| seen.is_alive())
}

fn assert_in_time(ending: &Ending) {
    assert!(ending.took < AT_MOST, "{ending:?}");
}

fn ledger(stack: &Stack) -> serde_json::Value {
    let text = fs::read(stack.dir().join(".lariat/run.json")).expect("a ledger");
    serde_json::from_slice(&text).expect("a whole ledger")
}

/// The ledger is open and names whoever is left.
fn assert_kept(stack: &Stack, pid: i32) {
    let ledger = ledger(stack);
    assert_eq!(ledger["is_closed"], false, "{ledger:#}");
    let left = &ledger["report"]["left"];
    assert!(left.as_array().is_some_and(|left| left.iter().any(|one| one["pid"] == pid)), "{ledger:#}");
}

#[test]
fn run_names_a_frozen_member_and_does_not_wait_for_it() {
    let arena = Arena::new();
    let Some(freezer) = freezer() else { return };
    let facts = arena.facts("f");
    let words = ["run", "--grace", "300ms", "--", fixture::path(), "new-session", "--manner", "graceful"];
    let running = lariat(&arena).args(words).facts(&facts).own_session().start();
    facts.wait_for("ready");
    let child = facts.pid("child");
    freezer.freeze(child);
    running.signal(libc::SIGTERM);
    let ending = running.wait_at_most(AT_MOST).expect(125);
    assert!(ending.err().contains(&child.to_string()) && is_alive(child), "{ending:?}");
    let records = fs::read_dir(arena.dir().join("runtime/lariat")).expect("a record").flatten().count();
    assert_eq!(records, 1, "the record is what finds it later");
    freezer.thaw();
    wait_until("the death of whoever was killed", PATIENCE, || (!is_alive(child)).then_some(()));
    drop(freezer);
    arena.finish();
}

#[test]
fn run_names_a_member_that_waits_for_a_deaf_file_server() {
    let arena = Arena::new();
    let Some(mut server) = deaf_server(&arena) else { return };
    let facts = arena.facts("f");
    let words =
        ["run", "--grace", "300ms", "--", fixture::path(), "reader", "--manner", "graceful", "--file"];
    let running = lariat(&arena).args(words).arg(server.file()).facts(&facts).own_session().start();
    facts.wait_for("ready");
    let reader = facts.pid("reader");
    wait_until("the question", PATIENCE, || Seen::of(reader).filter(|seen| matches!(seen.state, 'D' | 'S')));
    running.signal(libc::SIGTERM);
    let ending = running.wait_at_most(AT_MOST).expect(125);
    assert!(ending.err().contains(&reader.to_string()) && is_alive(reader), "{ending:?}");
    server.stop();
    wait_until("the death of whoever was killed", PATIENCE, || (!is_alive(reader)).then_some(()));
    drop(server);
    arena.finish();
}

#[test]
fn down_names_a_frozen_member_and_the_next_one_ends_it_when_it_thaws() {
    let arena = Arena::new();
    let Some(freezer) = freezer() else { return };
    let (stack, facts) = project(&arena, "new-session", "--manner graceful");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let child = facts.pid("child");
    freezer.freeze(child);
    let down = stack.run(&arena, &["down"]).expect(4);
    assert_in_time(&down);
    assert!(down.out().contains(&child.to_string()) && down.out().contains("KILL"), "{down:?}");
    up.wait().expect(4);
    assert_kept(&stack, child);
    // It is still there: said again, within time, and nothing is started beside it.
    let again = stack.run(&arena, &["down", "--yes"]).expect(4);
    assert_in_time(&again);
    assert!(again.out().contains(&child.to_string()), "{again:?}");
    let start = stack.run(&arena, &["up", "--yes"]).expect(4);
    assert!(start.err().contains(&child.to_string()), "{start:?}");
    assert_kept(&stack, child);
    freezer.thaw();
    stack.run(&arena, &["down", "--yes"]).expect(0);
    assert!(!is_alive(child));
    assert_eq!(ledger(&stack)["is_closed"], true);
    drop(freezer);
    arena.finish();
}

#[test]
fn a_keeper_without_a_supervisor_writes_down_whom_it_could_not_end() {
    let arena = Arena::new();
    let Some(mut server) = deaf_server(&arena) else { return };
    let file = format!("--manner graceful --file {}", server.file().display());
    let (stack, facts) = project(&arena, "reader", &file);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let reader = facts.pid("reader");
    up.signal(libc::SIGKILL);
    let ends = stack.dir().join(".lariat/ends.jsonl");
    let record = wait_until("the keeper's record", AT_MOST, || {
        let text = fs::read_to_string(&ends).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(text.lines().next()?).ok()
    });
    assert_eq!((&record["left_total"], &record["left"][0]["pid"]), (&1.into(), &reader.into()), "{record:#}");
    wait_until("the keeper's exit", PATIENCE, || stack.keepers(&arena).is_empty().then_some(()));
    let down = stack.run(&arena, &["down", "--yes"]).expect(4);
    assert_in_time(&down);
    assert!(down.out().contains(&reader.to_string()), "{down:?}");
    assert_kept(&stack, reader);
    server.stop();
    stack.run(&arena, &["down", "--yes"]).expect(0);
    assert!(!is_alive(reader));
    drop(server);
    arena.finish();
}

/// HAZARD(vfork-stall): the program's file system answers nothing, so the keeper never says that it has started.
#[test]
fn a_program_that_cannot_be_read_does_not_hold_up_down() {
    let arena = Arena::new();
    let Some(mut server) = deaf_server(&arena) else { return };
    let toml = format!(
        "[stack]\ndeadline = '2s'\n[service.server]\nrun = ['{}']\nstop = {{ grace = '300ms' }}\n",
        server.file().display()
    );
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.lariat(&arena, &["up", "--yes"]).start();
    stack.wait_event("service-starting", 0);
    let down = stack.run(&arena, &["down"]).expect(4);
    assert_in_time(&down);
    up.wait().expect(4);
    server.stop();
    arena.wait_until_empty(PATIENCE);
    stack.run(&arena, &["down", "--yes"]).expect(0);
    assert_eq!(ledger(&stack)["is_closed"], true);
    drop(server);
    arena.finish();
}

/// Makes a copy of the fixture that makes whoever executes it root.
fn make_set_uid(arena: &Arena) -> std::path::PathBuf {
    let program = arena.dir().join("set-uid");
    fs::copy(fixture::path(), &program).expect("the arena is ours");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("the file is ours");
    program
}

fn give(path: &Path) {
    std::os::unix::fs::chown(path, Some(USER), Some(USER)).expect("we are root");
}

/// Copies lariat to where another user may execute it.
fn copy_of_lariat(arena: &Arena) -> std::path::PathBuf {
    let copy = arena.dir().join("lariat");
    fs::copy(subject::lariat(LARIAT), &copy).expect("the arena is ours");
    copy
}

#[test]
fn run_names_a_member_that_it_may_not_signal() {
    let arena = Arena::new();
    if !is_root() {
        return skip_as_user().unwrap_or_default();
    }
    let (program, lariat) = (make_set_uid(&arena), copy_of_lariat(&arena));
    let runtime = arena.dir().join("runtime");
    give(&runtime);
    let fixture = arena.dir().join("misbehave");
    fs::copy(fixture::path(), &fixture).expect("the arena is ours");
    let facts = arena.facts("f");
    let command = arena.command(&lariat).args(["run", "--grace", "300ms", "--"]).arg(&fixture);
    let command = command.args(["usurper", "--manner", "graceful", "--program"]).arg(&program);
    let running = command.facts(&facts).as_user(USER, USER).own_session().start();
    let usurper = facts.pid("usurper");
    running.signal(libc::SIGTERM);
    let ending = running.wait_at_most(AT_MOST).expect(125);
    assert!(ending.err().contains(&usurper.to_string()), "{ending:?}");
    assert!(ending.err().to_lowercase().contains("not permitted"), "{ending:?}");
    assert!(is_alive(usurper));
    Seen::of(usurper).expect("it is alive").kill();
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

#[test]
fn down_names_a_member_that_it_may_not_signal() {
    let arena = Arena::new();
    if !is_root() {
        return skip_as_user().unwrap_or_default();
    }
    let (program, lariat) = (make_set_uid(&arena), copy_of_lariat(&arena));
    let facts = arena.facts("f");
    let fixture = arena.dir().join("misbehave");
    fs::copy(fixture::path(), &fixture).expect("the arena is ours");
    let (fixture, facts_dir) = (fixture.display(), facts.as_arg());
    let toml = format!(
        "[stack]\ndeadline = '2s'\n[service.server]\nstop = {{ grace = '300ms' }}\n\
         run = 'exec {fixture} usurper --facts {facts_dir} --manner graceful --program {}'\n",
        program.display()
    );
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    for dir in [stack.dir().to_owned(), arena.dir().join("runtime"), arena.dir().join("home")] {
        give(&dir);
    }
    let run = |args: &[&str]| {
        let command = arena.command(&lariat).args(args).dir(stack.dir());
        command.as_user(USER, USER).own_session()
    };
    let up = run(&["up", "--yes"]).start();
    let usurper = facts.pid("usurper");
    let down = run(&["down"]).run().expect(4);
    assert_in_time(&down);
    assert!(down.out().contains(&usurper.to_string()), "{down:?}");
    assert!(down.out().to_lowercase().contains("not permitted"), "{down:?}");
    up.wait().expect(4);
    assert_kept(&stack, usurper);
    let again = run(&["down", "--yes"]).run();
    assert_in_time(&again);
    assert_eq!(again.code(), Some(4), "{again:?}");
    assert!(again.out().to_lowercase().contains("not permitted"), "{again:?}");
    Seen::of(usurper).expect("it is alive").kill();
    arena.wait_until_empty(PATIENCE);
    run(&["down", "--yes"]).run().expect(0);
    assert_eq!(ledger(&stack)["is_closed"], true);
    arena.finish();
}

/// HAZARD(pdeathsig-lost): the kernel tells a leader that has changed its user nothing at its keeper's death.
#[test]
fn a_leader_that_changed_its_user_is_told_when_its_keeper_is_killed() {
    if !is_root() {
        return skip_as_user().unwrap_or_default();
    }
    let arena = Arena::new();
    let facts = arena.facts("f");
    let line = fixture::line("demoted", &facts, "--manner graceful");
    let toml = format!("[service.server]\nrun = '{line}'\nstop = {{ grace = '14s' }}\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    let up = stack.up(&arena);
    facts.wait_for("ready");
    for keeper in stack.keepers(&arena) {
        keeper.kill();
    }
    up.wait();
    facts.assert_told("leader", &[1], "a stack");
    assert!(facts.has("clean-leader"));
    facts.forget("ready");
    let words = ["run", "--grace", "20s", "--", fixture::path(), "demoted", "--manner", "graceful"];
    let running = lariat(&arena).args(words).facts(&facts).own_session().start();
    facts.wait_for("ready");
    // It gets its name when the command has been started.
    wait_until("the keeper", PATIENCE, || stack.keepers(&arena).pop()).kill();
    running.wait().expect(125);
    facts.assert_told("leader", &[1, 1], "a stack, then a command");
    arena.finish();
}
