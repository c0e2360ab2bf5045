//! Keepers of a dead supervisor that a debugger holds: they end nobody, and are done without.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::procfs::{self, State};
use lariat_sys::signal::Signal;

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

fn is_held(keeper: Identity) -> bool {
    let stat = procfs::read_stat(keeper.pid).ok().flatten();
    stat.is_some_and(|stat| stat.identity() == keeper && stat.state == State::Traced)
}
