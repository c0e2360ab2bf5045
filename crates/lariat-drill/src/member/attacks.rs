//! Members that fight back when they are told to end: they stop, hold, kill, flood or hamper the
//! processes that hold them.
//!
//! Only processes between the member and its judge are ever attacked. Where the judge is not above, nobody is.

use std::os::fd::OwnedFd;

use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::signal::{self, Signal, SignalSet};
use lariat_sys::unusual;
use rustix::process::{Pid, PidfdGetfdFlags, Resource, Rlimit, pidfd_getfd, prlimit, setpriority_process};

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

/// Holds the keeper as a debugger does when told, so that it neither runs nor goes on when it is continued. The leader's
/// first parent is meant: a supervisor that somebody debugs is its user's to care for.
pub(crate) fn traces_keeper(part: &Part) -> ! {
    let keeper = above(part).first().and_then(|keeper| Identity::of(*keeper).ok().flatten());
    attack(part, |_| {
        if let Some(keeper) = keeper.filter(Identity::is_alive) {
            // Where that is not allowed it has no way to attack.
            let _ = unusual::trace(keeper.pid);
        }
    })
}

/// Takes the right to open files and to fork from the keeper and the supervisor when told.
pub(crate) fn limits_lariat(part: &Part) -> ! {
    attack(part, |above| {
        for pid in above.iter().take(2).filter_map(|pid| Pid::from_raw(*pid)) {
            for what in [Resource::Nofile, Resource::Nproc] {
                let _ = prlimit(Some(pid), what, Rlimit { current: Some(0), maximum: Some(0) });
            }
        }
    })
}

/// Puts the keeper and the supervisor behind everybody else when told, and uses all of the processor.
pub(crate) fn starves_lariat(part: &Part) -> ! {
    const BURNERS: usize = 6;
    /// The lowest priority that there is.
    const LAST: i32 = 19;
    attack(part, |above| {
        for pid in above.iter().take(2).filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = setpriority_process(Some(pid), LAST);
        }
        let stubborn = part.stubborn();
        for _ in 0..BURNERS {
            stubborn.child(|| {
                stubborn.prepare();
                super::shapes::burn()
            });
        }
    })
}

/// A daemon with a second descriptor of everything that keeper and supervisor have open: whoever waits for the end of
/// what these hold waits for this one.
pub(crate) fn thief(part: &Part) -> ! {
    part.daemon(|| {
        let above = above(part);
        let stolen: Vec<OwnedFd> = above.iter().take(2).flat_map(|pid| steal(*pid)).collect();
        if stolen.is_empty() && !above.is_empty() {
            part.skip("the descriptors of others may not be taken here");
        }
        part.nullify();
        part.stand("thief");
        // For its life.
        let _held = std::mem::ManuallyDrop::new(stolen);
        part.live("thief")
    });
    part.lead(1)
}

fn steal(pid: i32) -> Vec<OwnedFd> {
    let Ok(process) = PidFd::open_pid(pid) else { return Vec::new() };
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()).collect()
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
