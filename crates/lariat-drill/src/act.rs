//! Brings an ending about: finds lariat's processes by where they stand in the tree, and does to them what the ending
//! says.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::procfs;
use lariat_sys::signal::Signal;
use lariat_sys::{Errno, Result};

use crate::endings::Ending;
use crate::member::{CRASH, LEAVE};

/// How long after the first signal a second one counts as one.
const SECOND_AFTER: Duration = Duration::from_millis(1_100);
/// How long a command has to hear the first key before more are typed.
const KEYS_AFTER: Duration = Duration::from_millis(600);
/// The pause between two keys.
const KEY_EVERY: Duration = Duration::from_millis(150);
/// How many keys are typed at most.
const KEYS_MAX: u32 = 40;

/// A process that an ending does something to.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) identity: Identity,
    pidfd: PidFd,
}

impl Actor {
    pub(crate) fn find(pid: i32) -> Result<Self> {
        let pidfd = PidFd::open_pid(pid)?;
        let identity = Identity::of(pid)?.ok_or(Errno::SRCH)?;
        Ok(Self { identity, pidfd })
    }

    /// Signals it. One that is gone by now cannot be what the ending is about any more.
    fn signal(&self, signal: Signal) {
        let _ = self.pidfd.signal(signal);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.pidfd.has_exited().unwrap_or(true)
    }

    pub(crate) fn pidfd(&self) -> &PidFd {
        &self.pidfd
    }
}

/// Who takes part in a cell.
#[derive(Debug)]
pub(crate) struct Cast {
    /// The leader of the tree.
    pub(crate) leader: Actor,
    /// The subject: lariat itself.
    pub(crate) subject: Actor,
    /// Whoever of lariat stands between the leader and the subject, the nearest first.
    pub(crate) keepers: Vec<Actor>,
    /// The program that started lariat, where the ending has one.
    pub(crate) caller: Option<Actor>,
    /// The terminal's other side, where it happens on one.
    pub(crate) terminal: Option<OwnedFd>,
}

impl Cast {
    /// Finds the keepers by going up from the leader.
    pub(crate) fn keepers(leader: Identity, subject: Identity) -> Vec<Actor> {
        let mut found = Vec::new();
        let mut at = leader.pid;
        // A chain of parents is short here; longer ones are not lariat's.
        for _ in 0..8 {
            let Ok(Some(stat)) = procfs::read_stat(at) else { break };
            if stat.ppid <= 1 || stat.ppid == subject.pid {
                break;
            }
            at = stat.ppid;
            found.extend(Actor::find(at));
        }
        found
    }

    fn every_lariat(&self) -> impl Iterator<Item = &Actor> {
        self.keepers.iter().chain([&self.subject])
    }
}

/// What is left to be done at later instants, while the judge watches.
#[derive(Debug, Default)]
pub(crate) struct Later {
    /// When to do the next thing.
    pub(crate) at: Option<Instant>,
    keys: u32,
}

/// Does what the ending says.
pub(crate) fn bring_about(ending: Ending, cast: &mut Cast) -> Later {
    let mut later = Later::default();
    match ending {
        Ending::Exits | Ending::StackExits => ask_leader(cast, LEAVE),
        Ending::Crashes => ask_leader(cast, CRASH),
        Ending::LeaderKilled => cast.leader.signal(Signal::KILL),
        Ending::Term | Ending::StackTerm => cast.subject.signal(Signal::TERM),
        Ending::Int => cast.subject.signal(Signal::INT),
        Ending::Hup => cast.subject.signal(Signal::HUP),
        Ending::Quit => cast.subject.signal(Signal::QUIT),
        Ending::Second => {
            cast.subject.signal(Signal::TERM);
            later.at = Some(Instant::now() + SECOND_AFTER);
        }
        Ending::Third => {
            type_interrupt(cast);
            later.at = Some(Instant::now() + KEY_EVERY);
        }
        Ending::Typed => {
            type_interrupt(cast);
            later.at = Some(Instant::now() + KEYS_AFTER);
        }
        Ending::Closed => cast.terminal = None,
        Ending::Killed | Ending::StackKilled => cast.subject.signal(Signal::KILL),
        Ending::Aborted => cast.subject.signal(Signal::ABRT),
        Ending::GroupKilled => {
            if let Ok(Some(stat)) = procfs::read_stat(cast.subject.identity.pid) {
                // The subject is alive and in the group, whose leader is the subject itself or its caller.
                let leader = PidFd::of(stat.pgrp).ok().flatten();
                let _ = leader.map(|(leader, _)| leader.signal_group(Signal::KILL));
            }
        }
        Ending::KeeperKilled | Ending::StackKeeperKilled => {
            // Without a keeper it is lariat itself that holds the command.
            cast.keepers.first().unwrap_or(&cast.subject).signal(Signal::KILL);
        }
        Ending::KeeperStopped => {
            cast.keepers.iter().for_each(|keeper| keeper.signal(Signal::STOP));
            cast.subject.signal(Signal::KILL);
        }
        Ending::AllKilled | Ending::StackAllKilled => {
            // Stopped first, so that none sees another one's death before its own.
            cast.every_lariat().for_each(|process| process.signal(Signal::STOP));
            cast.every_lariat().for_each(|process| process.signal(Signal::KILL));
        }
        Ending::CallerKilled | Ending::LifelineKilled => {
            if let Some(caller) = &cast.caller {
                caller.signal(Signal::KILL);
            }
        }
        Ending::LifelineClosed => {
            if let Some(caller) = &cast.caller {
                caller.signal(LEAVE);
            }
        }
        // Done by the judge, who starts the command.
        Ending::Down => {}
    }
    later
}

/// Does the next thing of an ending that takes several.
pub(crate) fn go_on(ending: Ending, cast: &Cast, later: &mut Later) {
    later.at = None;
    if cast.subject.has_ended() || later.keys >= KEYS_MAX {
        return;
    }
    later.keys += 1;
    match ending {
        Ending::Second => {
            cast.subject.signal(Signal::TERM);
            later.at = Some(Instant::now() + SECOND_AFTER);
        }
        // A command that heard the first key is not hurried: its stragglers have their time.
        Ending::Typed if cast.leader.has_ended() => {}
        Ending::Third | Ending::Typed => {
            type_interrupt(cast);
            later.at = Some(Instant::now() + KEY_EVERY);
        }
        _ => {}
    }
}

/// Says what every process of lariat is doing, for whoever has to find out why it does not end.
pub(crate) fn doing(cast: &Cast) -> String {
    let of_one = |actor: &Actor| {
        let pid = actor.identity.pid;
        let state = procfs::read_stat(pid).ok().flatten().map_or('-', |stat| stat.state.letter());
        let file = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        format!("{pid} {state} in {} ({})", file("wchan"), file("syscall").trim())
    };
    format!("lariat's processes: {}", cast.every_lariat().map(of_one).collect::<Vec<_>>().join("; "))
}

/// Continues the subject.
pub(crate) fn go_on_living(cast: &Cast) {
    cast.subject.signal(Signal::CONT);
}

/// Lets go of what the judge itself holds in the cell, once it was judged.
pub(crate) fn dismiss(cast: &Cast) {
    if let Some(caller) = &cast.caller {
        caller.signal(Signal::KILL);
    }
}

fn ask_leader(cast: &Cast, what: Signal) {
    cast.leader.signal(what);
    // A leader that was stopped hears nothing before it goes on.
    cast.leader.signal(Signal::CONT);
}

fn type_interrupt(cast: &Cast) {
    if let Some(terminal) = &cast.terminal {
        // A terminal that takes no key shows in what follows: nothing ends.
        let _ = rustix::io::write(terminal, b"\x03");
    }
}
