//! Quiet trees: who is whose child, in which group and session, and what they do about signals.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use lariat_sys::pidfd::PidFd;
use lariat_sys::signal::{self, Signal, SignalSet};
use lariat_sys::unusual::{self, Birth};
use lariat_sys::{files, process, procfs};
use rustix::process::DumpableBehavior;

use super::part::{CRASH, LEAVE, POLITE, Part};

/// Nobody but the leader.
pub(crate) fn alone(part: &Part) -> ! {
    part.lead(0)
}

/// A leader and a child.
pub(crate) fn child(part: &Part) -> ! {
    part.child(|| part.member("child"));
    part.lead(1)
}

/// A child that leads a group of its own.
pub(crate) fn own_group(part: &Part) -> ! {
    part.child(|| {
        let _ = rustix::process::setpgid(None, None);
        part.member("child")
    });
    part.lead(1)
}

/// A child that leads a session of its own.
pub(crate) fn new_session(part: &Part) -> ! {
    part.child(|| {
        part.new_session();
        part.member("child")
    });
    part.lead(1)
}

/// A daemon, forked twice, in a session of its own.
pub(crate) fn daemon(part: &Part) -> ! {
    part.daemon(|| {
        part.nullify();
        part.member("daemon")
    });
    part.lead(1)
}

/// A daemon that nothing gives away: no environment, no descriptor, another name, other arguments, directory `/`.
pub(crate) fn disguised(part: &Part) -> ! {
    part.daemon(|| {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("kworker/u8:3").args(part.as_role("disguised-member", Vec::new()).arguments());
        let error = command.env_clear().current_dir("/").exec();
        part.broken("execute itself", error)
    });
    part.lead(1)
}

/// The second half of [`disguised`], after the exec that left the environment behind.
pub(super) fn disguised_member(part: &Part) -> ! {
    let _ = process::set_comm("kworker/u8:3");
    process::overwrite_argv("[kworker/u8:3-events]");
    let _ = unusual::close_everything();
    part.member("disguised")
}

/// A daemon that has only the run's mark taken out of its environment, and works in the project.
pub(crate) fn unmarked(part: &Part) -> ! {
    part.daemon(|| {
        part.nullify();
        let mut command = Command::new("/proc/self/exe");
        command.args(part.as_role("unmarked-member", Vec::new()).arguments());
        let error = command.env_remove("LARIAT_RUN").exec();
        part.broken("execute itself", error)
    });
    part.lead(1)
}

/// The second half of [`unmarked`].
pub(super) fn unmarked_member(part: &Part) -> ! {
    part.member("unmarked")
}

/// A child that has closed every descriptor.
pub(crate) fn closed(part: &Part) -> ! {
    part.child(|| {
        let _ = unusual::close_everything();
        part.member("child")
    });
    part.lead(1)
}

/// A child that was stopped.
pub(crate) fn stopped_member(part: &Part) -> ! {
    let child = part.child(|| {
        part.stand("stopped");
        let _ = signal::stop_self(Signal::STOP);
        part.live("stopped")
    });
    part.wait_stop(child);
    part.lead(1)
}

/// A leader that has stopped itself, and its child.
pub(crate) fn stopped_leader(part: &Part) -> ! {
    part.child(|| {
        // Told between its word that it stands and its stop, the leader would not be what this tree is about.
        let leader = process::parent_pid();
        let is_stopped =
            || matches!(procfs::read_stat(leader), Ok(Some(stat)) if stat.state == procfs::State::Stopped);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_stopped() && Instant::now() < deadline {
            signal::wait(SignalSet::empty(), Some(Instant::now() + Duration::from_millis(1)));
        }
        part.member("child")
    });
    part.say("expect 2");
    part.stand("leader");
    let _ = signal::stop_self(Signal::STOP);
    part.live("leader")
}

/// A leader and a child that ignore TERM, INT, HUP and QUIT.
pub(crate) fn stubborn(part: &Part) -> ! {
    child(&part.stubborn())
}

/// A leader and a child that block every signal that can be blocked.
pub(crate) fn blocked(part: &Part) -> ! {
    let life = |name: &str| -> ! {
        for signal in POLITE {
            let _ = signal::set_default(signal);
        }
        signal::set_mask(SignalSet::full());
        part.stand_wild(name);
        match signal::wait(SignalSet::empty().with(LEAVE).with(CRASH), None) {
            Some(CRASH) => signal::raise_to_death(Signal::SEGV),
            _ => process::exit_now(7),
        }
    };
    part.child(|| life("child"));
    part.say("expect 2");
    life("leader")
}

/// A child that ignores TERM and QUIT and ends on HUP, as interactive shells do.
pub(crate) fn shell(part: &Part) -> ! {
    part.child(|| {
        part.prepare();
        for signal in [Signal::TERM, Signal::QUIT, Signal::INT] {
            let _ = signal::set_ignored(signal);
        }
        let _ = signal::set_noted(Signal::HUP);
        signal::set_mask(SignalSet::empty().with(Signal::HUP));
        part.say("born shell graceful");
        signal::wait(SignalSet::empty().with(Signal::HUP), None);
        part.say("told shell HUP");
        part.say("clean shell");
    });
    part.lead(1)
}

/// A child that goes into its leader's group from a group of its own, and tries to enter groups that are not its.
pub(crate) fn group_thief(part: &Part) -> ! {
    // In a pid namespace, on a terminal, the leader's group is led by somebody outside and has no number.
    let own = procfs::read_stat(process::pid()).ok().flatten();
    let leader = own.and_then(|stat| rustix::process::Pid::from_raw(stat.pgrp));
    part.child(|| {
        let _ = rustix::process::setpgid(None, None);
        for group in [rustix::process::Pid::INIT].into_iter().chain(leader) {
            // All but the leader's are refused, by design.
            let _ = rustix::process::setpgid(None, Some(group));
        }
        part.member("thief")
    });
    part.lead(1)
}

/// A chain of 200 generations, all alive.
pub(crate) fn deep(part: &Part) -> ! {
    const GENERATIONS: usize = 200;
    for generation in 0..GENERATIONS {
        if part.fork(Birth::Usual).is_some() {
            if generation == 0 {
                part.lead(GENERATIONS);
            }
            part.member("child");
        }
    }
    part.member("child")
}

/// A leader with 300 children.
pub(crate) fn wide(part: &Part) -> ! {
    const CHILDREN: usize = 300;
    for _ in 0..CHILDREN {
        part.child(|| part.member("child"));
    }
    part.lead(CHILDREN)
}

/// A child whose files in `/proc` are root's (`PR_SET_DUMPABLE`), its environment unreadable to its own user.
pub(crate) fn undumpable(part: &Part) -> ! {
    part.daemon(|| {
        let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
        part.member("undumpable")
    });
    part.lead(1)
}

/// A leader that has taken back the parent-death signal that its keeper gave it, and a child that dies of its parent's.
pub(crate) fn parent_death(part: &Part) -> ! {
    part.child(|| {
        let _ = process::set_parent_death(Signal::KILL);
        part.stand_wild("child");
        part.live("child")
    });
    let _ = rustix::process::set_parent_process_death_signal(None);
    part.lead(1)
}

/// A daemon that calls itself a keeper, by name and by arguments, and children of it.
pub(crate) fn impostor(part: &Part) -> ! {
    part.daemon(|| {
        let _ = process::set_comm("keeper:x");
        process::overwrite_argv("keeper:x");
        let calm = part.stubborn();
        calm.child(|| {
            calm.new_session();
            calm.member("child")
        });
        calm.member("impostor")
    });
    part.lead(2)
}

/// A child whose name looks like the rest of a line of `/proc/PID/stat`.
pub(crate) fn odd_name(part: &Part) -> ! {
    part.daemon(|| {
        let _ = process::set_comm("a) Z 1 1 1\n (b");
        part.member("odd")
    });
    part.lead(1)
}

/// A child with 50 children that have ended and that it never collects.
pub(crate) fn zombies(part: &Part) -> ! {
    part.child(|| {
        for _ in 0..50 {
            part.child(|| {});
        }
        part.member("parent")
    });
    part.lead(1)
}

/// A daemon that keeps the leader's standard output open.
pub(crate) fn pipe_holder(part: &Part) -> ! {
    part.daemon(|| part.member("holder"));
    part.lead(1)
}

/// A child whose executable was removed after its start.
pub(crate) fn deleted(part: &Part) -> ! {
    let copy = part.dir.join("copy");
    let source = std::env::var_os(crate::stage::COPY_VARIABLE).unwrap_or_else(|| "/proc/self/exe".into());
    if std::fs::hard_link(&source, &copy).is_err()
        && let Err(error) = std::fs::copy("/proc/self/exe", &copy)
    {
        part.skip(&format!("no copy of the executable can be made: {error}"));
    }
    part.child(|| {
        let words = part.as_role("deleted-member", vec![copy.clone().into()]).arguments();
        let error = Command::new(&copy).args(words).exec();
        part.skip(&format!("a copy of the executable cannot be run: {error}"))
    });
    part.lead(1)
}

/// The second half of [`deleted`].
pub(super) fn deleted_member(part: &Part) -> ! {
    if let Some(copy) = part.rest.first() {
        let _ = std::fs::remove_file(copy);
    }
    part.member("deleted")
}

/// A child that executes itself again and again.
pub(crate) fn executor(part: &Part) -> ! {
    part.child(|| execute_again(part, 0));
    part.lead(1)
}

/// One turn of [`executor`]: TERM has its default action, so that it is fatal between two turns as well.
pub(super) fn execute_again(part: &Part, turn: u32) -> ! {
    const TURNS_MAX: u32 = 3_000;
    if turn == 0 {
        part.stand_wild("executor");
    }
    signal::set_mask(SignalSet::empty());
    if turn >= TURNS_MAX {
        part.stubborn().live("executor");
    }
    std::thread::sleep(Duration::from_millis(2));
    let words = part.as_role("executor-member", vec![(turn + 1).to_string().into()]).arguments();
    let error = Command::new("/proc/self/exe").args(words).exec();
    part.broken("execute itself", error)
}

/// The second half of [`executor`].
pub(super) fn executor_member(part: &Part) -> ! {
    let turn = part.rest.first().and_then(|word| word.to_str()?.parse().ok()).unwrap_or(u32::MAX);
    execute_again(part, turn)
}

/// Uses all of the processor that it can get, until a signal ends it.
pub(super) fn burn() -> ! {
    let mut work = 1_u64;
    loop {
        work = std::hint::black_box(work.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// A child that runs only when nobody else wants to, beside some that always want to and are deaf.
pub(crate) fn idle(part: &Part) -> ! {
    const BURNERS: usize = 4;
    let stubborn = part.stubborn();
    part.child(|| {
        if let Err(errno) = unusual::schedule(unusual::Scheduling::WhenIdle) {
            part.skip(&format!("no scheduling of one's own is allowed here: {errno}"));
        }
        part.stand_wild("idle");
        part.prepare();
        part.live("idle")
    });
    for _ in 0..BURNERS {
        stubborn.child(|| {
            stubborn.stand("burner");
            burn()
        });
    }
    part.lead(BURNERS + 1)
}

/// A deaf child that runs before everybody else whenever it wants to, which is half of the time; only root can. One that
/// always wanted to would take the machine from its user.
pub(crate) fn real_time(part: &Part) -> ! {
    let stubborn = part.stubborn();
    part.child(|| {
        stubborn.stand("first-of-all");
        if let Err(errno) = unusual::schedule(unusual::Scheduling::RealTime) {
            part.skip(&format!("no real-time scheduling is allowed here: {errno}"));
        }
        loop {
            let until = Instant::now() + Duration::from_millis(10);
            while Instant::now() < until {}
            signal::wait(SignalSet::empty(), Some(until + Duration::from_millis(10)));
        }
    });
    part.lead(1)
}

/// A child that another one stops again and again, so that it never hears what it is told.
pub(crate) fn held_down(part: &Part) -> ! {
    let (standing, stands) = match files::pipe(0) {
        Ok(ends) => ends,
        Err(errno) => part.broken("open a pipe", errno),
    };
    let held = part.child(|| {
        part.stand_wild("held");
        part.prepare();
        let _ = rustix::io::write(&stands, b"+");
        part.live("held")
    });
    // Once it is held it says nothing any more.
    let _ = files::read(&standing, &mut [0]);
    let stubborn = part.stubborn();
    stubborn.child(|| {
        stubborn.stand("holder");
        let Ok(Some((held, _))) = PidFd::of(held) else { return };
        while held.signal(Signal::STOP).is_ok() {
            signal::wait(SignalSet::empty(), Some(Instant::now() + Duration::from_millis(1)));
        }
        stubborn.live("holder")
    });
    part.lead(2)
}

/// Children that use all of the processor they can get.
pub(crate) fn burners(part: &Part) -> ! {
    const BURNERS: usize = 4;
    for _ in 0..BURNERS {
        part.child(|| {
            part.stand("burner");
            let mut work = 1_u64;
            loop {
                for _ in 0..1_000_000 {
                    work = std::hint::black_box(work.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                }
                if let Some(told) = signal::wait(
                    POLITE.into_iter().fold(SignalSet::empty(), SignalSet::with),
                    Some(Instant::now()),
                ) {
                    part.say(&format!("told burner {told}"));
                    part.say("clean burner");
                    return;
                }
            }
        });
    }
    part.lead(BURNERS)
}

impl Part {
    /// Puts `/dev/null` in the place of the standard streams.
    pub(super) fn nullify(&self) {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        for slot in 0..3 {
            if let Ok(null) = &null {
                let _ = files::replace_stream(null, slot);
            }
        }
    }
}
