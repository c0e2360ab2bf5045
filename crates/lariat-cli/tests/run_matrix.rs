//! Every fixture × every ending of `lariat run`: nothing is left, by the harness's own check, and whoever may have a
//! grace period gets it.
//!
//! All of it once more with `--isolate` (`…::isolated`), and with one ending more: all of lariat is killed at once. What
//! differs there is that at the keeper's death the kernel ends everybody in that moment.
//!
//! Each cell runs three times: with members that die of the stop signal, that ignore every polite signal, and that
//! work for a moment before they write a marker and exit. Storms and trees have one manner only.

use std::time::Duration;

use lariat_testkit::boundary::Boundary;
use lariat_testkit::census::{self, Seen};
use lariat_testkit::{
    Arena, Command, Containment, Ending, Facts, PATIENCE, Pty, Running, fixture, subject, wait_until,
};

/// What ends the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    LeaderExits,
    Term,
    Hup,
    Int,
    KillLariat,
    KillKeeper,
    KillAll,
    TerminalClosed,
    TypedInterrupt,
    KillGroup,
    SecondSignal,
}

impl End {
    fn is_in_terminal(self) -> bool {
        matches!(self, Self::TerminalClosed | Self::TypedInterrupt)
    }

    /// Whether lariat lives to see the end, so that nothing may be alive once it has exited.
    fn has_witness(self) -> bool {
        !matches!(self, Self::KillLariat | Self::KillGroup | Self::KillAll)
    }

    /// Whether a namespace ends with it, at once and without a word to anybody.
    fn is_the_keepers_death(self) -> bool {
        matches!(self, Self::KillKeeper | Self::KillAll)
    }

    /// Whether lariat alone tells the members, so that each must have been told exactly once.
    fn tells_once(self) -> bool {
        !self.is_in_terminal() && self != Self::SecondSignal
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    Plain,
    Stubborn,
    Graceful,
}

/// One fixture: its arguments, and the roles of members besides the leader.
struct Shape {
    args: &'static [&'static str],
    roles: &'static [&'static str],
    has_manners: bool,
}

const fn shape(args: &'static [&'static str], roles: &'static [&'static str]) -> Shape {
    Shape { args, roles, has_manners: true }
}

const fn storm(args: &'static [&'static str]) -> Shape {
    Shape { args, roles: &[], has_manners: false }
}

const ALONE: Shape = shape(&["alone"], &[]);
const CHILD: Shape = shape(&["child"], &["child"]);
const OWN_GROUP: Shape = shape(&["own-group"], &["child"]);
const NEW_SESSION: Shape = shape(&["new-session"], &["child"]);
const DAEMON: Shape = shape(&["daemon"], &["daemon"]);
const DISGUISED: Shape = shape(&["disguised"], &["disguised"]);
const STOPPED: Shape = shape(&["stopped"], &["stopped"]);
const PORT_HOLDER: Shape = shape(&["port-holder", "--port", "PORT"], &["port"]);
const PIPE_HOLDER: Shape = storm(&["pipe-holder", "--wait", "1", "--code", "7"]);
const FORKER: Shape = storm(&["forker"]);
const RUNNERS: Shape = storm(&["runners"]);
const DYING_FORKER: Shape = storm(&["forks-while-dying"]);
const LATE_DAEMON: Shape = storm(&["daemonize-on-term"]);
const WIDE: Shape = storm(&["wide"]);
const DEEP: Shape = storm(&["deep"]);

fn run_cell(shape: &Shape, end: End, containment: Containment) {
    let manners: &[Manner] = if shape.has_manners {
        &[Manner::Plain, Manner::Stubborn, Manner::Graceful]
    } else {
        &[Manner::Plain]
    };
    for manner in manners {
        let mut arena = Arena::with(containment);
        if arena.is_isolated() && !arena.has_pid_namespaces() {
            return;
        }
        run_one(&mut arena, shape, *manner, end);
    }
}

/// The grace period: short where it has to run out, longer than any test's patience where it must not.
fn grace(arena: &Arena, manner: Manner, end: End) -> &'static str {
    match (manner, end) {
        (_, End::SecondSignal) => "10m",
        _ if arena.is_isolated() && end.is_the_keepers_death() => "10m",
        (Manner::Stubborn, _) => "700ms",
        _ => "20s",
    }
}

fn run_one(arena: &mut Arena, shape: &Shape, manner: Manner, end: End) {
    let (facts, ending, is_taken_along) = end_one(arena, shape, manner, end);
    if !end.has_witness() {
        arena.wait_until_empty(PATIENCE);
    }
    let what = format!("{:?} {manner:?} {end:?}: {ending:?}, {:?}", shape.args, facts.names());
    let leaks = arena.check();
    assert!(leaks.is_empty(), "{what}: {leaks}");
    let directories = arena.boundary().map(Boundary::inner).unwrap_or_default();
    // Nobody is there to remove them where all were killed: that is for the next command.
    assert!(directories.is_empty() || end == End::KillAll, "{what}: {directories:?} were left");
    check_ending(manner, end, shape, &ending, &what);
    if manner == Manner::Graceful {
        let is_told = !(arena.is_isolated() && end.is_the_keepers_death());
        check_grace(shape, end, is_told && !is_taken_along, &facts, &what);
        if !is_told {
            let roles = ["leader"].into_iter().chain(shape.roles.iter().copied());
            roles.for_each(|role| facts.assert_told(role, &[], &what));
        }
    }
}

/// Starts one cell and brings its end about. Says as well whether the leader shared the end of lariat's group.
fn end_one(arena: &mut Arena, shape: &Shape, manner: Manner, end: End) -> (Facts, Ending, bool) {
    let facts = arena.facts("f");
    let port = arena.port().to_string();
    let args = shape.args.iter().map(|arg| if *arg == "PORT" { port.as_str() } else { arg });
    let manner_arg = format!("{manner:?}").to_lowercase();
    let command = arena
        .command(subject::lariat(env!("CARGO_BIN_EXE_lariat")))
        .arg("run")
        .args(arena.isolation_flags())
        .args(["--grace", grace(arena, manner, end), "--", fixture::path()])
        .args(args)
        .args(["--manner", &manner_arg, "--ms", "150"])
        .facts(&facts);
    let (running, pty) = start(command, end);
    facts.wait_for("ready");
    let keeper = census::keeper_of(running.pid());
    // Looked for only where it matters: by its number inside it is found late among those that fork without end.
    let leader = matches!(end, End::LeaderExits | End::KillGroup).then(|| facts.pid("leader"));
    let leader = leader.and_then(|number| match arena.is_isolated() {
        true => census::inside(keeper.pid, number),
        false => Seen::of(number),
    });
    let is_taken_along =
        end == End::KillGroup && leader.as_ref().is_some_and(|leader| leader.group == running.pid());
    let ending = bring_about(end, &running, pty, &keeper, leader);
    (facts, ending, is_taken_along)
}

fn start(command: Command, end: End) -> (Running, Option<Pty>) {
    if end.is_in_terminal() {
        let mut pty = Pty::new();
        let running = pty.start(command);
        return (running, Some(pty));
    }
    // A session of its own has no terminal, whatever the tests run in.
    (command.own_session().start(), None)
}

fn bring_about(end: End, running: &Running, pty: Option<Pty>, keeper: &Seen, leader: Option<Seen>) -> Ending {
    match end {
        End::LeaderExits => leader.expect("a living leader").signal(libc::SIGUSR1),
        End::Term => running.signal(libc::SIGTERM),
        End::Hup => running.signal(libc::SIGHUP),
        End::Int => running.signal(libc::SIGINT),
        End::KillLariat => running.signal(libc::SIGKILL),
        End::KillKeeper => keeper.kill(),
        End::KillAll => {
            // Stopped first, so that none of them sees the other's death.
            let all = [keeper.clone(), running.seen().expect("a living lariat")];
            for signal in [libc::SIGSTOP, libc::SIGKILL] {
                all.iter().for_each(|seen| seen.signal(signal));
            }
        }
        End::KillGroup => running.signal_group(libc::SIGKILL),
        End::SecondSignal => {
            return wait_until("the end after several signals", PATIENCE, || {
                running.signal(libc::SIGTERM);
                running.ended(Duration::from_millis(50))
            });
        }
        End::TerminalClosed => pty.expect("it is in a terminal").close(),
        End::TypedInterrupt => {
            let mut pty = pty.expect("it is in a terminal");
            pty.send("\x03");
            return pty.wait_end(running);
        }
    }
    running.wait()
}

fn check_ending(manner: Manner, end: End, shape: &Shape, ending: &Ending, what: &str) {
    let (code, signal) = (ending.code(), ending.signal());
    match end {
        End::KillLariat | End::KillGroup | End::KillAll => assert_eq!(signal, Some(libc::SIGKILL), "{what}"),
        // The keeper knew how the command ended; without it lariat has failed, whatever the command did.
        End::KillKeeper => assert_eq!(code, Some(125), "{what}"),
        End::TerminalClosed => {}
        End::LeaderExits if shape.has_manners => assert_eq!(code, Some(7), "{what}"),
        End::TypedInterrupt if shape.has_manners => match manner {
            Manner::Plain => assert_eq!(signal, Some(libc::SIGINT), "{what}"),
            Manner::Stubborn => assert_eq!(code, Some(128 + libc::SIGKILL), "{what}"),
            Manner::Graceful => assert_eq!(code, Some(0), "{what}"),
        },
        End::Term | End::Hup | End::Int if shape.has_manners => match manner {
            Manner::Plain => assert_eq!(code, Some(128 + libc::SIGTERM), "{what}"),
            Manner::Stubborn => assert_eq!(code, Some(128 + libc::SIGKILL), "{what}"),
            Manner::Graceful => assert_eq!(code, Some(0), "{what}"),
        },
        _ => {}
    }
}

/// Whoever is graceful was told, once, and had the time to finish, unless it was `has_grace` to begin with.
fn check_grace(shape: &Shape, end: End, has_grace: bool, facts: &Facts, what: &str) {
    if end == End::SecondSignal || !has_grace {
        return;
    }
    let leader: &[&str] = if end == End::LeaderExits { &[] } else { &["leader"] };
    for role in leader.iter().chain(shape.roles) {
        assert!(facts.has(&format!("clean-{role}")), "{role} had no grace: {what}");
        if end.tells_once() {
            facts.assert_told(role, &[1], what);
        }
    }
}

macro_rules! endings {
    ($shape:expr, $containment:expr) => {
        #[test]
        fn leader_exits() {
            run_cell(&$shape, End::LeaderExits, $containment);
        }
        #[test]
        fn term() {
            run_cell(&$shape, End::Term, $containment);
        }
        #[test]
        fn hup() {
            run_cell(&$shape, End::Hup, $containment);
        }
        #[test]
        fn int_sent() {
            run_cell(&$shape, End::Int, $containment);
        }
        #[test]
        fn kill_lariat() {
            run_cell(&$shape, End::KillLariat, $containment);
        }
        #[test]
        fn kill_keeper() {
            run_cell(&$shape, End::KillKeeper, $containment);
        }
        #[test]
        fn terminal_closed() {
            run_cell(&$shape, End::TerminalClosed, $containment);
        }
        #[test]
        fn typed_interrupt() {
            run_cell(&$shape, End::TypedInterrupt, $containment);
        }
        #[test]
        fn kill_group() {
            run_cell(&$shape, End::KillGroup, $containment);
        }
        #[test]
        fn second_signal() {
            run_cell(&$shape, End::SecondSignal, $containment);
        }
    };
}

macro_rules! matrix {
    ($($name:ident: $shape:expr;)*) => {$(
        mod $name {
            use super::*;
            endings!($shape, Containment::wanted());

            mod isolated {
                use super::*;
                endings!($shape, Containment::Namespace);
                #[test] fn kill_all() { run_cell(&$shape, End::KillAll, Containment::Namespace); }
            }
        }
    )*};
}

matrix! {
    alone: ALONE;
    child: CHILD;
    own_group: OWN_GROUP;
    new_session: NEW_SESSION;
    daemon: DAEMON;
    disguised: DISGUISED;
    stopped: STOPPED;
    port_holder: PORT_HOLDER;
    pipe_holder: PIPE_HOLDER;
    forker: FORKER;
    runners: RUNNERS;
    forks_while_dying: DYING_FORKER;
    daemonize_on_term: LATE_DAEMON;
    wide: WIDE;
    deep: DEEP;
}

/// The negative control of isolation: the same death of all of lariat without it leaves a daemon behind, and the harness
/// sees it.
#[test]
fn without_isolation_a_daemon_survives_the_death_of_all_of_lariat() {
    let mut arena = Arena::new();
    end_one(&mut arena, &DISGUISED, Manner::Stubborn, End::KillAll);
    let leaks = arena.check();
    assert!(!leaks.is_empty(), "it ends without isolation as well: the tests above prove nothing");
}
