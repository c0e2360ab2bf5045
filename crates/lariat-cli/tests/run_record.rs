//! `lariat run` writes down who takes part, and the record is gone with the run.

use std::path::PathBuf;

use lariat_testkit::{Arena, Command, Facts, PATIENCE, Running, fixture, subject, wait_until};
use serde_json::Value;

fn lariat(arena: &Arena) -> Command {
    arena.command(subject::lariat(env!("CARGO_BIN_EXE_lariat")))
}

fn start(arena: &Arena, words: &[&str]) -> (Running, Facts) {
    let facts = arena.facts("f");
    let command = lariat(arena).args(["run", "--grace", "500ms", "--"]).args(words).facts(&facts);
    let running = command.own_session().start();
    facts.wait_for("ready");
    (running, facts)
}

fn records(arena: &Arena) -> Vec<PathBuf> {
    let runtime = arena.environment().into_iter().find(|(name, _)| name == "XDG_RUNTIME_DIR");
    let directory = PathBuf::from(runtime.expect("the arena sets it").1).join("lariat");
    std::fs::read_dir(directory).map_or(Vec::new(), |names| names.flatten().map(|name| name.path()).collect())
}

/// Its two lines.
fn record(arena: &Arena) -> (Value, Value) {
    let read = || {
        let text = std::fs::read_to_string(records(arena).pop()?).ok()?;
        let (first, second) = text.split_once('\n')?;
        Some((serde_json::from_str(first).ok()?, serde_json::from_str(second).ok()?))
    };
    wait_until("a whole record", PATIENCE, read)
}

fn marker_of(pid: i32) -> Vec<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("it is alive");
    let entries =
        environment.split(|byte| *byte == 0).map(|entry| String::from_utf8_lossy(entry).into_owned());
    entries.filter_map(|entry| entry.strip_prefix("LARIAT_RUN=").map(str::to_owned)).collect()
}

#[test]
fn a_record_names_who_takes_part_and_goes_with_the_run() {
    let arena = Arena::new();
    let fixture = fixture::path();
    let (running, facts) = start(&arena, &[fixture, "alone"]);
    let (record, come) = record(&arena);
    assert_eq!(record["supervisor"]["pid"], running.pid());
    assert_eq!(come["leader"]["pid"], facts.pid("leader"));
    assert_eq!(record["command"][1], "alone");
    assert_eq!(marker_of(facts.pid("leader")), [record["run"].as_str().expect("an id")]);
    running.signal(libc::SIGTERM);
    running.wait();
    assert_eq!(records(&arena), Vec::<PathBuf>::new());
    arena.finish();
}

#[test]
fn the_keeper_removes_the_record_when_lariat_was_killed() {
    let arena = Arena::new();
    let fixture = fixture::path();
    let (running, _) = start(&arena, &[fixture, "alone"]);
    record(&arena);
    running.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    assert_eq!(records(&arena), Vec::<PathBuf>::new());
    arena.finish();
}

/// Whoever ends the outer run by its mark has to find what runs in the inner one.
#[test]
fn a_run_inside_a_run_carries_the_mark_of_the_outer_one() {
    let arena = Arena::new();
    let fixture = fixture::path();
    let inner = subject::lariat(env!("CARGO_BIN_EXE_lariat")).into_string().expect("a plain path");
    let words = [inner.as_str(), "run", "--", fixture, "alone"];
    let (running, facts) = start(&arena, &words);
    let marks = marker_of(facts.pid("leader"));
    assert_eq!(marks.len(), 1);
    wait_until("two records", PATIENCE, || (records(&arena).len() == 2).then_some(()));
    let is_outer = |path: &PathBuf| path.to_string_lossy().contains(&marks[0]);
    assert_eq!(records(&arena).iter().filter(|path| is_outer(path)).count(), 1);
    running.signal(libc::SIGTERM);
    running.wait();
    assert_eq!(records(&arena), Vec::<PathBuf>::new());
    arena.finish();
}
