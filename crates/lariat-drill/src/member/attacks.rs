//! Members that fight back when they are told to end: they stop, kill or flood the processes that hold them.
//!
//! Only processes between the member and its judge are ever attacked. Where the judge is not above, nobody is.

use lariat_sys::pidfd::PidFd;
use lariat_sys::signal::{self, Signal, SignalSet};

use super::births::above;
use super::part::{CRASH, LEAVE, POLITE, Part};

/// Stops the keeper and the supervisor when told.
pub(crate) fn stops_both(part: &Part) -> ! {
    attack(part, |above| send(above.iter().take(2), Signal::STOP))
}

/// Kills the keeper when told.
pub(crate) fn kills_keeper(part: &Part) -> ! {
    attack(part, |above| send(above.iter().take(1), Signal::KILL))
}

/// Kills the supervisor when told.
pub(crate) fn kills_supervisor(part: &Part) -> ! {
    attack(part, |above| send(above.iter().skip(1).take(1), Signal::KILL))
}

/// Kills keeper and supervisor when told, in one go.
pub(crate) fn kills_both(part: &Part) -> ! {
    attack(part, |above| {
        let both = || above.iter().take(2);
        send(both(), Signal::STOP);
        send(both(), Signal::KILL);
    })
}

/// Floods the keeper and the supervisor with real-time signals when told.
pub(crate) fn floods(part: &Part) -> ! {
    attack(part, |above| {
        for _ in 0..20 {
            for signal in (34..=64).filter_map(Signal::from_number) {
                send(above.iter().take(2), signal);
            }
        }
    })
}

fn send<'a>(whom: impl Iterator<Item = &'a i32>, signal: Signal) {
    for pid in whom {
        // Who is gone by now is no target any more.
        let _ = PidFd::open_pid(*pid).and_then(|process| process.signal(signal));
    }
}

/// A leader and a daemon; the daemon, whose parent is the keeper, attacks when it is told to end, and lives on.
fn attack(part: &Part, how: impl Fn(&[i32])) -> ! {
    let stubborn = part.stubborn();
    part.daemon(|| {
        part.nullify();
        // Everything but the five signals is blocked, or what it sends would come back to it by its supervisor.
        signal::set_mask(SignalSet::full());
        part.stand_wild("attacker");
        let heard = POLITE.into_iter().fold(SignalSet::empty().with(LEAVE).with(CRASH), SignalSet::with);
        signal::wait(heard, None);
        how(&above(part));
        stubborn.prepare();
        stubborn.live("attacker")
    });
    part.say("expect 2");
    part.stand_wild("leader");
    part.prepare();
    signal::set_mask(SignalSet::full());
    match signal::wait(
        POLITE.into_iter().fold(SignalSet::empty().with(LEAVE).with(CRASH), SignalSet::with),
        None,
    ) {
        Some(CRASH) => signal::raise_to_death(Signal::SEGV),
        Some(LEAVE) => lariat_sys::process::exit_now(7),
        _ => lariat_sys::process::exit_now(0),
    }
}
