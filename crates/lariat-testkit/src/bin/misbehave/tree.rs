//! The shapes of process trees that are hard to end.

use std::net::TcpListener;

use crate::args::Args;
use crate::facts::{Facts, Muster};
use crate::member::Part;
use crate::sys;

/// How many processes a storm may start over its whole life.
const STORM_MAX: u32 = 20_000;

/// How a child leaves its parent's surroundings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    None,
    Group,
    Session,
}

/// The leader with nobody else: `--manner stubborn` and `--manner graceful` are fixtures of their own.
pub(crate) fn alone(args: &Args) -> i32 {
    let part = Part::of(args);
    lead(&part)
}

/// Announces the leader, writes `ready`, lives.
pub(crate) fn lead(part: &Part) -> ! {
    part.prepare();
    part.facts.announce("leader");
    part.facts.state("ready", "");
    part.live("leader")
}

/// A member's whole life, in the forked child.
pub(crate) fn member(part: &Part, role: &str, muster: &Muster) -> ! {
    part.prepare();
    part.facts.announce(role);
    muster.stand();
    part.live(role)
}

/// A leader and one child, in a group or session of its own.
pub(crate) fn with_child(args: &Args, escape: Escape) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    if sys::fork(part.until).is_none() {
        match escape {
            Escape::None => {}
            Escape::Group => sys::new_group(),
            Escape::Session => sys::new_session(),
        }
        member(&part, "child", &muster);
    }
    muster.wait_for(1);
    lead(&part)
}

/// Forks twice, so that `body` runs in a session of its own without the leader as its parent.
fn daemonize(until: u64, body: impl FnOnce()) {
    if sys::fork(until).is_none() {
        sys::new_session();
        if sys::fork(until).is_none() {
            body();
        }
        sys::exit_now(0);
    }
    sys::reap_one(true);
}

/// A leader and a daemon. `--leave 1`: the leader exits once the daemon stands.
pub(crate) fn with_daemon(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    daemonize(part.until, || {
        sys::nullify(&[0, 1, 2]);
        member(&part, "daemon", &muster);
    });
    muster.wait_for(1);
    leave_or_lead(args, &part)
}

fn leave_or_lead(args: &Args, part: &Part) -> ! {
    if args.number("leave", 0) == 1 {
        part.facts.announce("leader");
        part.facts.state("ready", "");
        sys::exit_now(args.number("code", 7));
    }
    lead(part)
}

/// A leader and a daemon that nothing but its parentage gives away: no descriptor, no environment, another name and
/// other arguments.
pub(crate) fn with_disguised(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    daemonize(part.until, || {
        let (until, muster) = (args.until.to_string(), muster.write_end().to_string());
        let facts = args.facts.as_ref().map_or(String::new(), |dir| dir.to_string_lossy().into_owned());
        let (manner, work) = (args.text("manner", "plain"), args.text("ms", "50"));
        let rest =
            ["--until", &until, "--muster", &muster, "--facts", &facts, "--manner", manner, "--ms", work];
        let argv: Vec<&str> = ["kworker/u8:3", "disguised-member"].into_iter().chain(rest).collect();
        sys::execute_bare("/proc/self/exe", &argv);
    });
    muster.wait_for(1);
    leave_or_lead(args, &part)
}

/// The second half of [`with_disguised`], after the exec that left the environment behind.
pub(crate) fn disguised_member(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = args.number("muster", -1);
    sys::rename("kworker/u8:3");
    sys::wipe_arguments("[kworker/u8:3-events]");
    part.prepare();
    part.facts.announce("disguised");
    sys::write_all(muster, b"+");
    sys::close_all();
    part.live("disguised")
}

/// A leader and a member that has stopped itself.
pub(crate) fn with_stopped(args: &Args) -> i32 {
    let part = Part::of(args);
    match sys::fork(part.until) {
        None => {
            part.prepare();
            part.facts.announce("stopped");
            sys::stop_self();
            part.live("stopped")
        }
        Some(child) => sys::wait_stopped(child),
    }
    lead(&part)
}

/// A leader whose child, in a session of its own, listens on `--port`.
pub(crate) fn with_port(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    if sys::fork(part.until).is_none() {
        sys::new_session();
        let Ok(listener) = TcpListener::bind(("127.0.0.1", args.number("port", 0))) else {
            sys::broken("could not listen");
        };
        part.facts.state("port", &listener.local_addr().map_or(String::new(), |at| at.port().to_string()));
        member(&part, "port", &muster);
    }
    muster.wait_for(1);
    leave_or_lead(args, &part)
}

/// A leader with `--n` children.
pub(crate) fn wide(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    let count = args.number("n", 500);
    for _ in 0..count {
        if sys::fork(part.until).is_none() {
            member(&part, "child", &muster);
        }
    }
    muster.wait_for(count);
    lead(&part)
}

/// A chain of `--n` generations; every one of them is alive.
pub(crate) fn deep(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    let count: usize = args.number("n", 200);
    for generation in 0..count {
        if sys::fork(part.until).is_some() {
            if generation == 0 {
                muster.wait_for(count);
                lead(&part);
            }
            member(&part, "child", &muster);
        }
    }
    member(&part, "child", &muster)
}

/// A leader that forks children without end, `--every-us` apart, at most `--live` at a time; each lives `--life-ms`.
/// Children have sessions of their own, and the manner that was asked for.
pub(crate) fn forker(args: &Args) -> i32 {
    let part = Part::of(args);
    let (every, most): (u64, u32) = (args.number("every-us", 2_000), args.number("live", 50));
    let life: u64 = args.number("life-ms", 200);
    part.prepare();
    part.facts.announce("leader");
    let (mut live, mut total) = (0_u32, 0_u32);
    loop {
        while sys::reap_one(live >= most) {
            live -= 1;
        }
        if total < STORM_MAX {
            if sys::fork(part.until).is_none() {
                sys::new_session();
                let end = sys::now() + life * 1_000_000;
                let _ = sys::wait_signal(&[libc::SIGUSR1], Some(end));
                sys::exit_now(0);
            }
            (live, total) = (live + 1, total + 1);
        }
        if total == most.min(20) {
            part.facts.state("ready", "");
        }
        // Only what is blocked may be waited for: sigtimedwait(2) would swallow a TERM that has to be fatal.
        match sys::wait_signal(part.waited_for(), Some(sys::now() + every * 1_000)) {
            Some(libc::SIGUSR1) => sys::exit_now(args.number("code", 7)),
            Some(_) => sys::exit_now(0),
            None => {}
        }
    }
}

/// A leader and `--n` runners: each forks itself into a new session and exits, over and over, so that no list of
/// processes is true for longer than `--life-us`.
pub(crate) fn runners(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    let count: usize = args.number("n", 4);
    let life: u64 = args.number("life-us", 500);
    for _ in 0..count {
        if sys::fork(part.until).is_none() {
            part.prepare();
            sys::nullify(&[0, 1, 2]);
            muster.stand();
            run_away(&part, life);
        }
    }
    muster.wait_for(count);
    lead(&part)
}

fn run_away(part: &Part, life: u64) -> ! {
    for _ in 0..STORM_MAX {
        let _ = sys::wait_signal(&[libc::SIGUSR1], Some(sys::now() + life * 1_000));
        if sys::fork(part.until).is_some() {
            sys::exit_now(0);
        }
        sys::new_session();
    }
    sys::exit_now(0)
}

/// A leader that answers TERM by forking `--n` children and exiting; each child does the same, `--depth` times.
pub(crate) fn forks_while_dying(args: &Args) -> i32 {
    let part = Part::of(args);
    part.facts.announce("leader");
    multiply(&part, "leader", args.number("n", 3), args.number("depth", 2))
}

fn multiply(part: &Part, role: &str, count: u32, depth: u32) -> ! {
    let heard = [libc::SIGTERM, libc::SIGUSR1];
    sys::block(&heard);
    if role == "leader" {
        part.facts.state("ready", "");
    }
    let _ = sys::wait_signal(&heard, None);
    for _ in 0..if depth == 0 { 0 } else { count } {
        if sys::fork(part.until).is_none() {
            part.facts.announce("late");
            multiply(part, "late", count, depth - 1);
        }
    }
    sys::exit_now(0)
}

/// A leader that answers TERM by leaving a daemon behind.
pub(crate) fn daemonize_on_term(args: &Args) -> i32 {
    let part = Part::of(args);
    let heard = [libc::SIGTERM, libc::SIGUSR1];
    sys::block(&heard);
    part.facts.announce("leader");
    part.facts.state("ready", "");
    let _ = sys::wait_signal(&heard, None);
    let facts = Facts::of(args);
    daemonize(part.until, || {
        sys::nullify(&[0, 1, 2]);
        part.prepare();
        facts.announce("late");
        part.live("late")
    });
    0
}
