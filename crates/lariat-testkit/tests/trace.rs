//! The tracer kills where it was told to, and nowhere else; and what it says of steps is so.

use std::ffi::OsStr;
use std::time::Instant;

use lariat_testkit::trace::{Killed, Point, Strike, Trace, Victims, When, Who};
use lariat_testkit::{Arena, PATIENCE, needs, wait_until};

const SHELL: &str = "/bin/sh";
/// Two writes, told apart by what is in the file; `cat` is another program, and is let go.
const SCRIPT: &str = "echo one >file; echo two >>file; cat file >copy; echo three >>file";

fn trace(arena: &Arena, strike: Option<Strike>) -> Option<Trace> {
    let command = arena.command(SHELL).args(["-c", SCRIPT]);
    match Trace::start(command, OsStr::new(SHELL), Who::Supervisor, strike) {
        Ok(trace) => Some(trace),
        Err(error) => {
            needs::skip(&format!("nobody may trace here: {error}"));
            None
        }
    }
}

fn content(arena: &Arena) -> String {
    std::fs::read_to_string(arena.work().join("file")).unwrap_or_default()
}

#[test]
fn death_comes_before_or_after_the_chosen_call() {
    let arena = Arena::new();
    let Some(mut whole) = trace(&arena, None) else { return };
    assert!(!whole.run("the end", |_| false) && !whole.has_struck());
    whole.running().wait().expect(0);
    assert_eq!(content(&arena), "one\ntwo\nthree\n");
    let steps = whole.steps();
    let writes: Vec<usize> = steps
        .iter()
        .filter(|(who, _, name)| *who == Who::Supervisor && name == "write")
        .map(|(_, nth, _)| *nth)
        .collect();
    assert_eq!(writes.len(), 3, "{steps:?}");
    drop(whole);
    for (nth, when, expected) in [
        (writes[0], When::Entry, ""),
        (writes[0], When::Exit, "one\n"),
        (writes[1], When::Entry, "one\n"),
        (writes[1], When::Exit, "one\ntwo\n"),
    ] {
        let at = Point { who: Who::Supervisor, nth, when };
        let strike = Strike { at, victims: Victims::Supervisor, then: None };
        let Some(mut struck) = trace(&arena, Some(strike)) else { return };
        struck.run("the end", |_| false);
        assert!(struck.has_struck(), "{struck}");
        assert_eq!(struck.running().wait().signal(), Some(libc::SIGKILL), "{struck}");
        assert_eq!(content(&arena), expected, "{struck}");
    }
    arena.finish();
}

/// Nobody hears again of a stop that was reported, so who is in one is not waited for.
#[test]
fn who_is_held_when_the_tracer_leaves_goes_on() {
    let arena = Arena::new();
    let Some(mut held) = trace(&arena, None) else { return };
    held.hold(Who::Supervisor, "write", 1);
    assert!(held.run("the second write", Trace::is_held));
    let began = Instant::now();
    drop(held);
    assert!(began.elapsed() < PATIENCE / 2, "who is held was waited for");
    wait_until("the shell's end", PATIENCE, || (content(&arena) == "one\ntwo\nthree\n").then_some(()));
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

/// Who was killed is in the books with the threads that it had.
#[test]
fn who_was_killed_is_known_with_its_threads() {
    let arena = Arena::new();
    let at = Point { who: Who::Supervisor, nth: 0, when: When::Entry };
    let strike = Strike { at, victims: Victims::Supervisor, then: None };
    let Some(mut struck) = trace(&arena, Some(strike)) else { return };
    struck.run("the end", |_| false);
    let killed = Killed { who: Who::Supervisor, threads: 1 };
    let pid = struck.running().pid();
    assert_eq!(struck.killed().iter().collect::<Vec<_>>(), [(&pid, &killed)]);
    struck.running().wait();
    arena.finish();
}

#[test]
fn who_is_held_waits_and_whoever_is_nobodys_victim_goes_on() {
    let arena = Arena::new();
    let Some(mut held) = trace(&arena, None) else { return };
    held.hold(Who::Supervisor, "write", 1);
    assert!(held.run("the second write", Trace::is_held));
    assert_eq!(content(&arena), "one\n");
    // There is no keeper: nobody is killed, and the shell goes on without a tracer.
    held.strike(Victims::Keeper(0));
    assert!(!held.has_struck() && held.is_over());
    held.running().wait().expect(0);
    assert_eq!(content(&arena), "one\ntwo\nthree\n");
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}
