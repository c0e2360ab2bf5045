//! What makes a run whose supervisor is dead look as if lariat were at work in it: keepers that a debugger holds, and
//! members with a descriptor of the lock. Both are done without.

use std::collections::BTreeMap;
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

/// How long a keeper has to be held, at every look, before it is believed to be so for good: one whose calls are only
/// traced goes on between two looks.
const HELD_FOR: Duration = Duration::from_secs(3);

/// How often those who have the lock are looked for, among all processes.
const HOLDERS_EVERY: Duration = Duration::from_secs(1);

/// Since when which keepers have been held.
#[derive(Debug, Default)]
pub(super) struct HeldKeepers(BTreeMap<Identity, Instant>);

impl HeldKeepers {
    /// Looks at the keepers, and kills those that were held at every look for three seconds. With such a one gone its run
    /// has crashed, so that whoever is left is found and ended.
    ///
    /// HAZARD(traced-keeper): no signal but KILL reaches it, and the debugger may be a member of its own.
    pub(super) fn look(&mut self, keepers: impl Iterator<Item = Identity>, now: Instant) {
        for keeper in keepers {
            if !is_held(keeper) {
                self.0.remove(&keeper);
            } else if now.duration_since(*self.0.entry(keeper).or_insert(now)) >= HELD_FOR {
                // One that may not be killed is waited for like any other that is at work.
                let _ = PidFd::open(keeper).and_then(|keeper| keeper.signal(Signal::KILL));
            }
        }
    }
}

/// Since when which processes have kept the lock from us for nothing.
#[derive(Debug, Default)]
pub(super) struct LockHolders {
    since: BTreeMap<Identity, Instant>,
    look_at: Option<Instant>,
}

impl LockHolders {
    /// Looks, once a second, who has the lock's file open, and kills those keepers that a debugger held at every look for
    /// three seconds. Where nobody of lariat is known to be at work for the run, so it does with the run's members.
    ///
    /// HAZARD(traced-keeper), also where the supervisor died before it could write the keeper down. HAZARD(stolen-lock): a
    /// member may take a second descriptor of whatever lariat has open.
    pub(super) fn look(&mut self, lock: &Path, run: Option<&RunId>, now: Instant) {
        if self.look_at.is_some_and(|at| now < at) {
            return;
        }
        self.look_at = Some(now + HOLDERS_EVERY);
        let pids = procfs::pids().unwrap_or_default().into_iter();
        let holders: Vec<Identity> = pids.filter_map(|pid| idle_holder(pid, lock, run)).collect();
        self.since.retain(|known, _| holders.contains(known));
        for holder in holders {
            if now.duration_since(*self.since.entry(holder).or_insert(now)) >= HELD_FOR {
                // One that may not be killed is waited for, as before.
                let _ = PidFd::open(holder).and_then(|holder| holder.signal(Signal::KILL));
            }
        }
    }
}

/// Returns who has this number if that is a process of ours, a held keeper or a member of the run, that has the file open.
/// A lariat command that waits for the lock has it open for a moment only.
fn idle_holder(pid: i32, lock: &Path, run: Option<&RunId>) -> Option<Identity> {
    let stat = procfs::read_stat(pid).ok().flatten().filter(|stat| stat.pid != process::pid())?;
    let is_held = stat.state == State::Traced && is_keeper(&stat);
    let is_member = || run.is_some_and(|run| Mark::of(pid).is_some_and(|mark| mark.run == run.as_str()));
    let is_own = || procfs::uid(pid).ok().flatten() == Some(process::effective_user());
    let mut has_it = false;
    if (is_held || is_member()) && is_own() {
        // What may not be looked into is not known to have it.
        let _ = procfs::visit_descriptors(pid, &mut |open| {
            has_it |= matches!(open, Open::File(path) if path == lock)
        });
    }
    has_it.then(|| stat.identity())
}

fn is_held(keeper: Identity) -> bool {
    let stat = procfs::read_stat(keeper.pid).ok().flatten();
    stat.is_some_and(|stat| stat.identity() == keeper && stat.state == State::Traced)
}
