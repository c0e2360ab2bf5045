//! Who the leader and the others are to whoever hears of them.
//!
//! A keeper that is number 1 of a pid namespace works with the numbers that hold there, and says and writes those that
//! hold outside (HAZARD(numbers-inside)): nothing that leaves the keeper names a process by its number inside. For any
//! other keeper both are the same.

use lariat_sys::identity::Identity;
use lariat_sys::outside::Outside;
use lariat_sys::pidfd::PidFd;
use lariat_sys::{Errno, process};

use crate::wire::{Named, Notice};

/// Names as they are outside.
#[derive(Debug)]
pub struct Names {
    outside: Option<Outside>,
    keeper: Identity,
    leader: Identity,
}

impl Names {
    /// Looks up who we are and who the leader is, which was just spawned and is unreaped. `outside` is absent where
    /// everybody has one number only.
    ///
    /// # Errors
    /// As [`Outside::identity_of`].
    pub fn new(outside: Option<Outside>, leader: Identity, opened: &PidFd) -> lariat_sys::Result<Self> {
        let Some(outside) = outside else {
            // The number is for display, and its start is asked for by nobody.
            return Ok(Self { outside: None, keeper: Identity::new(process::pid(), 0), leader });
        };
        let keeper = outside.own()?;
        let leader = outside.identity_of(opened, leader)?.ok_or(Errno::SRCH)?;
        Ok(Self { outside: Some(outside), keeper, leader })
    }

    /// Returns what the names are looked up by, which has to stay open.
    #[must_use]
    pub fn outside(&self) -> Option<&Outside> {
        self.outside.as_ref()
    }

    /// Returns who we are. Its start may be unknown.
    #[must_use]
    pub fn keeper(&self) -> Identity {
        self.keeper
    }

    /// Returns who the leader is, also once it was reaped.
    #[must_use]
    pub fn leader(&self) -> Identity {
        self.leader
    }

    /// Returns the notice as it is to be said; `None` where it names somebody who is gone by now, or cannot be named.
    #[must_use]
    pub fn outer(&self, notice: Notice) -> Option<Notice> {
        let Some(outside) = &self.outside else { return Some(notice) };
        let named = |mut named: Named| {
            named.identity = outside.identity(named.identity).ok().flatten()?;
            Some(named)
        };
        Some(match notice {
            Notice::Started { .. } => Notice::Started { leader: self.leader },
            Notice::Straggler { named: inner } => Notice::Straggler { named: named(inner)? },
            Notice::Left { named: inner } => Notice::Left { named: named(inner)? },
            Notice::SpawnFailed { .. }
            | Notice::LeaderStopped { .. }
            | Notice::LeaderContinued
            | Notice::LeaderExited { .. }
            | Notice::Stragglers { .. }
            | Notice::Daemonized { .. }
            | Notice::Unlimited
            | Notice::ForksRefused
            | Notice::Ended(_) => notice,
        })
    }
}
