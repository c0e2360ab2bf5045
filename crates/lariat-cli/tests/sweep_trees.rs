//! Every fixture, under `up` and under `run`, with every lariat process killed at once: who survives, and that a sweep
//! ends them. Under descent alone the disguised one is offered, left alone by `--yes`, and ended by a consent of its own;
//! in a cgroup nobody hides, and no directory is left.

mod crash;

use crash::{crash, is_alive, names, project, said};
use lariat_testkit::census::Seen;
use lariat_testkit::{Arena, Command, Facts, Running, fixture};

/// How lariat is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verb {
    Up,
    Run,
}

/// One fixture.
struct Shape {
    kind: &'static str,
    args: &'static str,
    /// The role of the one who leaves no trace but his place.
    disguised: Option<&'static str>,
    /// Its processes come and go, so that they cannot be compared one by one.
    is_storm: bool,
}

const fn tree(kind: &'static str, args: &'static str) -> Shape {
    Shape { kind, args, disguised: None, is_storm: false }
}

const STUBBORN: &str = "--manner stubborn";
const ALONE: Shape = tree("alone", STUBBORN);
const CHILD: Shape = tree("child", STUBBORN);
const OWN_GROUP: Shape = tree("own-group", STUBBORN);
const NEW_SESSION: Shape = tree("new-session", STUBBORN);
const DAEMON: Shape = tree("daemon", STUBBORN);
const GRACEFUL_DAEMON: Shape = tree("daemon", "--manner graceful --ms 50");
const STOPPED: Shape = tree("stopped", STUBBORN);
const PORT_HOLDER: Shape = tree("port-holder", STUBBORN);
const WIDE: Shape = tree("wide", "--n 100 --manner stubborn");
const DEEP: Shape = tree("deep", "--n 60 --manner stubborn");
const PLAIN_WIDE: Shape = tree("wide", "--n 100");
const DISGUISED: Shape = Shape { disguised: Some("disguised"), ..tree("disguised", STUBBORN) };
const FORKER: Shape = Shape { is_storm: true, ..tree("forker", STUBBORN) };
const RUNNERS: Shape = Shape { is_storm: true, ..tree("runners", STUBBORN) };
const LATE_DAEMON: Shape = tree("daemonize-on-term", "");
const DYING_FORKER: Shape = tree("forks-while-dying", "");

/// The project, or the directory of the command.
struct Place {
    arena: Arena,
    facts: Facts,
    running: Running,
    stack: Option<lariat_testkit::Stack>,
}

impl Place {
    fn new(verb: Verb, shape: &Shape) -> Self {
        let arena = Arena::new();
        if verb == Verb::Up {
            let (stack, facts) = project(&arena, "project", shape.kind, shape.args);
            let running = stack.up(&arena);
            return Self { arena, facts, running, stack: Some(stack) };
        }
        let facts = arena.facts("f");
        let command = crash::lariat(&arena, &["run", "--grace", "300ms", "--", fixture::path(), shape.kind]);
        let running = command.args(shape.args.split_whitespace()).facts(&facts).start();
        Self { arena, facts, running, stack: None }
    }

    fn sweep(&self, args: &[&str]) -> Command {
        let args = [&["sweep"], args].concat();
        match &self.stack {
            Some(stack) => stack.lariat(&self.arena, &args),
            None => crash::lariat(&self.arena, &args),
        }
    }
}

fn identities(all: &[Seen]) -> Vec<(i32, u64)> {
    let mut all: Vec<_> = all.iter().map(|seen| (seen.pid, seen.start)).collect();
    all.sort_unstable();
    all
}

fn check(verb: Verb, shape: &Shape) {
    let place = Place::new(verb, shape);
    place.facts.wait_for("ready");
    if verb == Verb::Run {
        crash::wait_records(&place.arena, 1);
    }
    let survivors = crash(&place.arena, &[&place.running]);
    let dry = place.sweep(&["--dry-run"]).run().expect(0);
    if !shape.is_storm && shape.args.contains("stubborn") {
        // The negative control: without a sweep they live.
        assert!(!survivors.is_empty());
        assert_eq!(identities(&place.arena.alive()), identities(&survivors), "a dry run ended somebody");
        if survivors.len() < 20 {
            names(&dry.out(), &survivors.iter().map(|seen| seen.pid).collect::<Vec<_>>());
        }
    }
    let swept = place.sweep(&["--yes"]).run().expect(0);
    let what = format!("{verb:?} {}: {}", shape.kind, said(&swept));

    let boundary = place.arena.boundary();
    match shape.disguised.filter(|_| boundary.is_none()).map(|role| place.facts.pid(role)) {
        None => assert!(place.arena.alive().is_empty(), "{what}: {:?}", place.arena.alive()),
        Some(disguised) => {
            let left: Vec<i32> = place.arena.alive().iter().map(|seen| seen.pid).collect();
            assert_eq!(left, [disguised], "{what}");
            names(&said(&swept), &[disguised]);
            assert!(said(&swept).contains("possibl"), "{what}");
            // It is found again, and again it is left alone.
            place.sweep(&["--yes"]).run().expect(0);
            assert!(is_alive(disguised));
            place.sweep(&["--yes", "--possible"]).run().expect(0);
            assert!(place.arena.alive().is_empty(), "{what}: {:?}", place.arena.alive());
        }
    }
    let again = place.sweep(&["--yes"]).run().expect(0);
    assert!(again.out().contains("nothing is left of earlier runs"), "{}", said(&again));
    assert_eq!(crash::at_runtime(&place.arena), Vec::<std::path::PathBuf>::new());
    assert_eq!(crash::listed(&place.arena), Vec::<std::path::PathBuf>::new());
    assert_eq!(
        boundary.map(|boundary| boundary.inner()).unwrap_or_default(),
        Vec::<std::path::PathBuf>::new()
    );
    place.arena.finish();
}

macro_rules! trees {
    ($($name:ident: $shape:expr;)*) => {$(
        mod $name {
            use super::*;
            #[test] fn under_up() { check(Verb::Up, &$shape); }
            #[test] fn under_run() { check(Verb::Run, &$shape); }
        }
    )*};
}

trees! {
    alone: ALONE;
    child: CHILD;
    own_group: OWN_GROUP;
    new_session: NEW_SESSION;
    daemon: DAEMON;
    graceful_daemon: GRACEFUL_DAEMON;
    stopped: STOPPED;
    port_holder: PORT_HOLDER;
    wide: WIDE;
    plain_wide: PLAIN_WIDE;
    deep: DEEP;
    disguised: DISGUISED;
    forker_storm: FORKER;
    runners_storm: RUNNERS;
    daemonize_on_term: LATE_DAEMON;
    forks_while_dying: DYING_FORKER;
}
