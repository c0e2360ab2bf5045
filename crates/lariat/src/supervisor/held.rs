//! What makes a run whose supervisor is dead look as if lariat were at work in it: keepers that a debugger holds, and
//! members with a descriptor of the lock. Both are done without.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

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

/// Since when which members have had a descriptor of the lock.
#[derive(Debug, Default)]
pub(super) struct LockThieves(BTreeMap<Identity, Instant>);

impl LockThieves {
    /// Looks who has the lock's file open, and kills those members of the run that had it at every look for three seconds.
    /// The caller knows that no lariat process of the run is alive, so that nobody but a thief keeps the lock.
    ///
    /// HAZARD(stolen-lock): a member may take a second descriptor of whatever lariat has open.
    pub(super) fn look(&mut self, lock: &Path, run: &RunId, now: Instant) {
        let thieves: Vec<Identity> =
            procfs::pids().unwrap_or_default().into_iter().filter_map(|pid| thief(pid, lock, run)).collect();
        self.0.retain(|known, _| thieves.contains(known));
        for thief in thieves {
            if now.duration_since(*self.0.entry(thief).or_insert(now)) >= HELD_FOR {
                // One that may not be killed is waited for, as before.
                let _ = PidFd::open(thief).and_then(|thief| thief.signal(Signal::KILL));
            }
        }
    }
}

/// Returns who has this number if that is a process of ours with the run's mark that has the file open. A lariat command
/// that waits for the lock has it open for a moment only.
fn thief(pid: i32, lock: &Path, run: &RunId) -> Option<Identity> {
    let identity = Identity::of(pid).ok().flatten().filter(|_| pid != process::pid())?;
    let is_marked = Mark::of(pid).is_some_and(|mark| mark.run == run.as_str());
    let is_own = || procfs::uid(pid).ok().flatten() == Some(process::effective_user());
    let mut has_it = false;
    if is_marked && is_own() {
        // What may not be looked into is not known to have it.
        let _ = procfs::visit_descriptors(pid, &mut |open| {
            has_it |= matches!(open, Open::File(path) if path == lock)
        });
    }
    has_it.then_some(identity)
}

fn is_held(keeper: Identity) -> bool {
    let stat = procfs::read_stat(keeper.pid).ok().flatten();
    stat.is_some_and(|stat| stat.identity() == keeper && stat.state == State::Traced)
}
