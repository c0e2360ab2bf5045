//! Members that fight back when they are told to end: they stop, hold, kill, flood or hamper the
//! processes that hold them.
//!
//! Only processes between the member and its judge are ever attacked: those on the way up to the judge, or, in a pid
//! namespace that was made in the cell, from which nobody sees the judge, that one's first process. Where it is neither,
//! nobody is.

use std::os::fd::OwnedFd;
use std::path::Path;

use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::signal::{self, Signal, SignalSet};
use lariat_sys::{process, unusual};
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
    let keeper = keeper(part);
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

/// The leader's keeper, asked for while it surely is its parent; none where nobody is attacked.
pub(super) fn keeper(part: &Part) -> Option<Identity> {
    let keeper = above(part).first().copied().or_else(|| isolated_keeper(part))?;
    Identity::of(keeper).ok().flatten()
}

/// The first process of a pid namespace that was made in the cell, where that is the leader's parent. In any other
/// namespace, a container's for one, the first process is a stranger, and may be a lariat all the same.
fn isolated_keeper(part: &Part) -> Option<i32> {
    const FIRST: i32 = 1;
    // Where `/proc` is another namespace's, its first process is somebody else.
    let is_own_proc =
        std::fs::read_link("/proc/self").is_ok_and(|own| own == Path::new(&process::pid().to_string()));
    (process::parent_pid() == FIRST && is_own_proc && part.is_in_own_namespace()).then_some(FIRST)
}

/// Second descriptors of everything that a process has open.
pub(super) fn steal(pid: i32) -> Vec<OwnedFd> {
    let Ok(process) = PidFd::open_pid(pid) else { return Vec::new() };
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()).collect()
}

/// Stops the keeper once, when the first is told or the leader leaves, and never again: who is stopped at work and gets no
/// order hears of nothing.
pub(crate) fn stops_keeper(part: &Part) -> ! {
    let keeper = keeper(part);
    let stop = || {
        let is_first = || std::fs::File::create_new(part.dir.join("stopped")).is_ok();
        if let Some(keeper) = keeper.filter(|_| is_first()) {
            // One that is gone by now is no target any more.
            let _ = PidFd::open(keeper).and_then(|process| process.signal(Signal::STOP));
        }
    };
    attackers(part, 1, |_, _| stop());
    lead(part, 1, |_| stop())
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
    attackers(part, 1, |_, above| how(above));
    lead(part, 1, |_| {})
}

/// Daemons whose parent is the keeper. Each attacks when it is told to end, and lives on.
pub(super) fn attackers(part: &Part, count: usize, how: impl Fn(usize, &[i32])) {
    let stubborn = part.stubborn();
    for number in 0..count {
        part.daemon(|| {
            part.nullify();
            // Everything but the five signals is blocked, or what it sends would come back to it by its supervisor.
            signal::set_mask(SignalSet::full());
            part.stand_wild("attacker");
            signal::wait(heard(), None);
            how(number, &above(part));
            stubborn.prepare();
            stubborn.live("attacker")
        });
    }
}

/// The life of a leader beside attackers: it does something when it is told to end or to leave, and does so.
pub(super) fn lead(part: &Part, attackers: usize, before: impl FnOnce(Signal)) -> ! {
    part.say(&format!("expect {}", attackers + 1));
    part.stand_wild("leader");
    part.prepare();
    signal::set_mask(SignalSet::full());
    let told = signal::wait(heard(), None);
    if let Some(told) = told {
        before(told);
    }
    match told {
        Some(CRASH) => signal::raise_to_death(Signal::SEGV),
        Some(LEAVE) => process::exit_now(7),
        _ => process::exit_now(0),
    }
}

fn heard() -> SignalSet {
    POLITE.into_iter().fold(SignalSet::empty().with(LEAVE).with(CRASH), SignalSet::with)
}
