//! What makes a run whose supervisor is dead look as if lariat were at work in it: keepers that a debugger holds, and
//! members with a copy of the lock. Both are done without.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use lariat_keeper::contain::lineage::is_keeper;
use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::process;
use lariat_sys::procfs::{self, Open, State};
use lariat_sys::signal::Signal;

use crate::ledger::record::RunId;
use crate::process::Mark;

/// How long one has to be in the way, at every look, before it is believed to be so for good: a keeper whose calls are
/// only traced goes on between two looks.
const IN_THE_WAY_FOR: Duration = Duration::from_secs(3);

/// How often those who have the lock are looked for, among all processes.
const HOLDERS_EVERY: Duration = Duration::from_secs(1);

/// Since when who has been in the way.
#[derive(Debug, Default)]
struct InTheWay(BTreeMap<Identity, Instant>);

impl InTheWay {
    /// Takes who is in the way now, and kills those who were at every look for three seconds. One that may not be killed
    /// is waited for, like any other that is at work.
    fn look(&mut self, now_there: &BTreeSet<Identity>, now: Instant) {
        for process in self.overdue(now_there, now) {
            let _ = PidFd::open(process).and_then(|process| process.signal(Signal::KILL));
        }
    }

    fn overdue(&mut self, now_there: &BTreeSet<Identity>, now: Instant) -> Vec<Identity> {
        self.0.retain(|known, _| now_there.contains(known));
        for process in now_there {
            self.0.entry(*process).or_insert(now);
        }
        let is_overdue = |since: Instant| now.duration_since(since) >= IN_THE_WAY_FOR;
        self.0.iter().filter(|(_, since)| is_overdue(**since)).map(|(process, _)| *process).collect()
    }
}

/// The keepers of one run, of which some may be held.
#[derive(Debug, Default)]
pub(super) struct HeldKeepers(InTheWay);

impl HeldKeepers {
    /// Looks at all keepers, wakes those that are stopped, and kills those that were held at every look for three seconds.
    /// With such a one gone its run has crashed, so that whoever is left is found and ended.
    ///
    /// HAZARD(traced-keeper): no signal but KILL reaches it, and the debugger may be a member of its own.
    /// HAZARD(keeper-stopped): nobody else wakes one whose supervisor is dead.
    pub(super) fn look(&mut self, keepers: impl Iterator<Item = Identity>, now: Instant) {
        let held = keepers.filter(|keeper| {
            let state = state_of(*keeper);
            state.into_iter().for_each(|state| wake(*keeper, state));
            matches!(state, Some(State::Stopped | State::Traced))
        });
        self.0.look(&held.collect(), now);
    }
}

/// Lets a keeper that a signal has stopped go on.
fn wake(keeper: Identity, state: State) {
    if state == State::Stopped {
        // It fails for one that has ended since.
        let _ = PidFd::open(keeper).and_then(|keeper| keeper.signal(Signal::CONT));
    }
}

/// Those who keep the lock from us for nothing.
#[derive(Debug, Default)]
pub(super) struct LockHolders {
    holders: InTheWay,
    look_at: Option<Instant>,
}

impl LockHolders {
    /// Looks, once a second, who has the lock's file open, wakes those keepers that are stopped, and kills those that were held
    /// at every look for three seconds. Where nobody of lariat is known to be at work for the run, so it does with the run's members, unless
    /// they have taken the lock themselves.
    ///
    /// HAZARD(traced-keeper), also where the supervisor died before it could write the keeper down. HAZARD(stolen-lock): a
    /// member may take a second descriptor of whatever lariat has open.
    pub(super) fn look(&mut self, lock: &Path, run: Option<&RunId>, now: Instant) {
        if self.look_at.is_some_and(|at| now < at) {
            return;
        }
        self.look_at = Some(now + HOLDERS_EVERY);
        let pids = procfs::pids().unwrap_or_default().into_iter();
        self.holders.look(&pids.filter_map(|pid| idle_holder(pid, lock, run)).collect(), now);
    }
}

/// Returns the keepers of ours that have the lock's file open: those too whom a supervisor could not write down any more.
pub(super) fn keepers_with(lock: &Path) -> Vec<Identity> {
    let pids = procfs::pids().unwrap_or_default().into_iter();
    let keepers = pids.filter_map(|pid| procfs::read_stat(pid).ok().flatten().filter(is_keeper));
    keepers
        .filter(|stat| is_own(stat.pid) && has_open(stat.pid, lock, |_| ()))
        .map(|stat| stat.identity())
        .collect()
}

fn is_own(pid: i32) -> bool {
    procfs::uid(pid).ok().flatten() == Some(process::effective_user())
}

/// Says whether a process has a file open, and shows each of its descriptors of it. What may not be looked into is not known to
/// have it.
fn has_open(pid: i32, file: &Path, mut each: impl FnMut(i32)) -> bool {
    let mut has_it = false;
    let _ = procfs::visit_descriptors(pid, &mut |open| {
        if let Open::File { descriptor, path } = open
            && path == file
        {
            has_it = true;
            each(descriptor);
        }
    });
    has_it
}

/// Returns who has this number if that is a process of ours, a held keeper or a member of the run, that has the file open
/// and did not lock it: a lariat command that somebody calls from within the run has taken it, and is at work. What took it
/// and has another name is none.
fn idle_holder(pid: i32, lock: &Path, run: Option<&RunId>) -> Option<Identity> {
    let stat = procfs::read_stat(pid).ok().flatten().filter(|stat| stat.pid != process::pid())?;
    let is_held = is_keeper(&stat) && matches!(stat.state, State::Stopped | State::Traced);
    let is_member = || run.is_some_and(|run| Mark::of(pid).is_some_and(|mark| mark.run == run.as_str()));
    let is_lariat = stat.comm.as_bytes() == b"lariat";
    let mut has_taken_it = false;
    let has_it = (is_held || is_member())
        && is_own(pid)
        && has_open(pid, lock, |descriptor| {
            has_taken_it |= is_lariat && procfs::has_locked(pid, descriptor).unwrap_or(false);
        });
    if has_it && is_held {
        wake(stat.identity(), stat.state);
    }
    (has_it && !has_taken_it).then(|| stat.identity())
}

fn state_of(keeper: Identity) -> Option<State> {
    let stat = procfs::read_stat(keeper.pid).ok().flatten();
    stat.filter(|stat| stat.identity() == keeper).map(|stat| stat.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_there_at_every_look_for_three_seconds_is_overdue() {
        let [one, other] = [1, 2].map(|pid| Identity::new(pid, 1));
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut way = InTheWay::default();
        assert_eq!(way.overdue(&[one].into(), at(0)), []);
        assert_eq!(way.overdue(&[one, other].into(), at(2)), []);
        assert_eq!(way.overdue(&[one, other].into(), at(3)), [one]);
        assert_eq!(way.overdue(&[one].into(), at(4)), [one], "until it is gone");
        assert_eq!(way.overdue(&[one, other].into(), at(6)), [one], "the other one was away");
        assert_eq!(way.overdue(&[other].into(), at(9)), [other]);
        assert_eq!(way.overdue(&[].into(), at(12)), []);
    }
}
