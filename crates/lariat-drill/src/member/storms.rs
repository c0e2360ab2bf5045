//! Trees that do not hold still: they fork, change sessions and start one another again while they are ended.
//!
//! Each is bounded by a count besides its time. The count is of the whole storm, not of one process.

use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::process;
use lariat_sys::signal::{self, Signal, SignalSet};
use lariat_sys::unusual::Birth;

use super::part::{CRASH, LEAVE, POLITE, Part};

/// How many processes a storm starts over its whole life.
const STORM_MAX: u32 = 20_000;
/// How many processes a bomb has at most.
const BOMB_MAX: u32 = 256;

/// Sleeps, letting only what is unblocked through.
fn pause(time: Duration) {
    signal::wait(SignalSet::empty(), Some(Instant::now() + time));
}

/// One that forks and exits, for ever: no list of processes is true for longer than half a millisecond.
pub(crate) fn runner(part: &Part) -> ! {
    part.child(|| run_away(part, false));
    part.lead(1)
}

/// Four of these, each generation in a session of its own.
pub(crate) fn session_runners(part: &Part) -> ! {
    const RUNNERS: usize = 4;
    for _ in 0..RUNNERS {
        part.child(|| run_away(part, true));
    }
    part.lead(RUNNERS)
}

fn run_away(part: &Part, has_sessions: bool) -> ! {
    part.nullify();
    for signal in POLITE {
        let _ = signal::set_default(signal);
    }
    signal::set_mask(SignalSet::empty());
    part.stand_wild("runner");
    for _ in 0..STORM_MAX {
        pause(Duration::from_micros(500));
        if part.fork(Birth::Usual).is_some() {
            process::exit_now(0);
        }
        if has_sessions {
            let _ = process::setsid();
        }
    }
    process::exit_now(0)
}

/// A leader that forks children into sessions of their own, and each of them another one, deaf to all but KILL.
pub(crate) fn storm(part: &Part) -> ! {
    storming(&part.stubborn())
}

fn storming(part: &Part) -> ! {
    const LIVE_MAX: u32 = 40;
    part.prepare();
    // The kernel collects; a storm has no time for it.
    let _ = signal::set_ignored(Signal::CHLD);
    part.say("expect 1");
    let ends_at = |n: u32| Instant::now() + Duration::from_millis(60 + u64::from(n % 7) * 10);
    for total in 0..STORM_MAX / 2 {
        if part.fork(Birth::Usual).is_none() {
            let _ = process::setsid();
            if part.fork(Birth::Usual).is_none() {
                let _ = process::setsid();
            }
            signal::wait(SignalSet::empty(), Some(ends_at(total)));
            process::exit_now(0);
        }
        if total == LIVE_MAX {
            part.stand_wild("leader");
        }
        let heard = SignalSet::empty().with(LEAVE).with(CRASH);
        match signal::wait(heard, Some(Instant::now() + Duration::from_millis(2))) {
            Some(LEAVE) => process::exit_now(7),
            Some(CRASH) => signal::raise_to_death(Signal::SEGV),
            _ => {}
        }
    }
    part.live("leader")
}

/// Every process forks, and so do the new ones, until there are 256 of them.
pub(crate) fn bomb(part: &Part) -> ! {
    let part = part.stubborn();
    part.child(|| {
        part.new_session();
        part.prepare();
        let _ = signal::set_ignored(Signal::CHLD);
        part.stand_wild("bomb");
        // Each generation has half of what the one before had, so the sum is bounded without anybody counting.
        explode(&part, BOMB_MAX)
    });
    part.lead(1)
}

fn explode(part: &Part, share: u32) -> ! {
    let mut share = share;
    while share > 1 {
        share /= 2;
        if part.fork(Birth::Usual).is_none() && share.is_multiple_of(2) {
            let _ = process::setsid();
        }
    }
    part.live("bomb")
}

/// Very many short-lived children, so that numbers run through.
pub(crate) fn churn(part: &Part) -> ! {
    part.child(|| {
        part.stand_wild("churner");
        let _ = signal::set_ignored(Signal::CHLD);
        for signal in POLITE {
            let _ = signal::set_default(signal);
        }
        signal::set_mask(SignalSet::empty());
        for _ in 0..STORM_MAX {
            part.child(|| {});
        }
        part.stubborn().live("churner")
    });
    part.lead(1)
}

/// Two that watch one another: whoever dies is started again by the other, in a session of its own.
pub(crate) fn phoenix(part: &Part) -> ! {
    let stubborn = part.stubborn();
    part.daemon(|| {
        stubborn.prepare();
        let _ = signal::set_ignored(Signal::CHLD);
        stubborn.stand_wild("phoenix");
        watch_and_restart(&stubborn, None)
    });
    part.lead(1)
}

/// Watches `other` and replaces it when it is gone; a newborn watches its maker. The count goes down over generations.
fn watch_and_restart(part: &Part, other: Option<Identity>) -> ! {
    const RESTARTS_MAX: u32 = 2_000;
    let mut other = other;
    for _ in 0..RESTARTS_MAX {
        let watched = other.and_then(|other| PidFd::open(other).ok());
        if let Some(watched) = watched {
            let _ = watched.wait_exit(None);
        }
        let me = Identity::own().ok();
        match part.fork(Birth::Usual) {
            None => {
                let _ = process::setsid();
                other = me;
            }
            Some(child) => other = Identity::of(child).ok().flatten(),
        }
    }
    part.live("phoenix")
}

/// A daemon that starts its leader again when that is gone.
pub(crate) fn guardian(part: &Part) -> ! {
    const LOOK_EVERY: Duration = Duration::from_millis(2);
    let leader = Identity::own().ok().and_then(|leader| PidFd::open(leader).ok());
    part.daemon(|| {
        part.nullify();
        part.stand("guardian");
        while let Some(leader) = &leader {
            if leader.wait_exit(Some(Instant::now())).unwrap_or(true) {
                part.child(|| part.member("second-leader"));
                break;
            }
            let polite = POLITE.into_iter().fold(SignalSet::empty(), SignalSet::with);
            if let Some(told) = signal::wait(polite, Some(Instant::now() + LOOK_EVERY)) {
                part.say(&format!("told guardian {told}"));
                part.say("clean guardian");
                return;
            }
        }
        part.live("guardian")
    });
    part.lead(1)
}

/// A leader that leaves a daemon behind when it is told to end.
pub(crate) fn late_daemon(part: &Part) -> ! {
    on_told(part, || {
        part.daemon(|| {
            part.nullify();
            part.member("late")
        });
    })
}

/// A leader that forks when it is told to end; its child ignores TERM.
pub(crate) fn late_fork(part: &Part) -> ! {
    let stubborn = part.stubborn();
    on_told(part, || {
        stubborn.child(|| stubborn.member("late"));
    })
}

/// A leader that forks three when told, each of which does the same, twice over.
pub(crate) fn multiplying(part: &Part) -> ! {
    part.say("expect 1");
    part.stand_wild("leader");
    multiply(part, 2)
}

fn multiply(part: &Part, depth: u32) -> ! {
    const CHILDREN: u32 = 3;
    wait_told();
    for _ in 0..if depth == 0 { 0 } else { CHILDREN } {
        part.child(|| {
            part.stand_wild("late");
            multiply(part, depth - 1)
        });
    }
    process::exit_now(0)
}

fn on_told(part: &Part, then: impl FnOnce()) -> ! {
    part.say("expect 1");
    block_polite();
    part.stand_wild("leader");
    wait_told();
    then();
    process::exit_now(0)
}

fn block_polite() {
    for signal in POLITE {
        let _ = signal::set_default(signal);
    }
    signal::set_mask(heard());
}

fn heard() -> SignalSet {
    POLITE.into_iter().fold(SignalSet::empty().with(LEAVE).with(CRASH), SignalSet::with)
}

fn wait_told() {
    block_polite();
    match signal::wait(heard(), None) {
        Some(LEAVE) => process::exit_now(7),
        Some(CRASH) => signal::raise_to_death(Signal::SEGV),
        _ => {}
    }
}
