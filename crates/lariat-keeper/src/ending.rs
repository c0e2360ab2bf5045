//! Ends a set of processes that no keeper holds: orphans adopted from one that was killed, or what a crash left.
//!
//! The same [machine](crate::machine) as in a keeper, over any [containment](crate::contain). It never blocks: the
//! owner's loop calls [`Ending::turn`] when a child changed and when [`Ending::wake_at`] has come.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::procfs::Stat;
use lariat_sys::{process, procfs};

use crate::contain::Containment;
use crate::driver::{now, send, walk};
use crate::machine::{Action, Event, Machine};
use crate::stop::StopPlan;
use crate::wire::{End, Named, Notice, Order};

/// An end that is under way.
#[derive(Debug)]
pub struct Ending<C> {
    machine: Machine,
    containment: C,
    plan: StopPlan,
    left: Vec<Named>,
}

/// Returns whether the kernel has sent the stop signal to this leader when its keeper died, as far as can be seen.
///
/// HAZARD(pdeathsig-lost): the kernel drops the parent-death signal of a process that changes its user.
#[must_use]
pub fn was_told_by_death(leader: Identity) -> bool {
    let us = process::effective_user();
    match procfs::read_status(leader.pid) {
        // Looked at afterwards: only then is it known whose status that was (HAZARD(pid-reuse)).
        Ok(Some(status)) => status.real_user == us && status.saved_user == us && leader.is_alive(),
        Ok(None) | Err(_) => false,
    }
}

/// Returns the leader among the orphans of a keeper that died before it could name it: who was born first, for a keeper
/// makes nobody else and keeps its zombie, and all others descend from it. Of one clock tick (10 ms) the lower number was
/// born first, unless the numbers came round in between.
///
/// HAZARD(hand-on-order): a list of children is not in that order.
#[must_use]
pub fn first_born(orphans: impl IntoIterator<Item = Stat>) -> Option<Stat> {
    orphans.into_iter().min_by_key(|stat| (stat.start, stat.pid))
}

impl<C: Containment> Ending<C> {
    /// Prepares the end of everybody in `containment`. `told` is the one who got the stop signal already, if any: it
    /// is not told again, and the others hear of it when it is gone or after one second. Nothing is signalled before
    /// the first [`Self::turn`].
    #[must_use]
    pub fn new(containment: C, plan: StopPlan, told: Option<Identity>) -> Self {
        Self { machine: Machine::for_orphans(plan, told, now()), containment, plan, left: Vec::new() }
    }

    /// Takes in the orphans of one more keeper ([`Machine::join`]).
    pub fn join(&mut self, told: Option<Identity>, grace: Duration) {
        self.machine.join(now(), told, grace);
    }

    /// Returns when the next turn is due, if nothing changes before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.machine.wake_at()
    }

    /// Returns those who could not be ended, by name, once [`Self::turn`] gave an end.
    #[must_use]
    pub fn left(&self) -> &[Named] {
        &self.left
    }

    /// Gives access to the containment, to change what is excepted from it.
    pub fn containment(&mut self) -> &mut C {
        &mut self.containment
    }

    /// Does what is due. Returns the end once everybody is gone, or nothing helps any more.
    pub fn turn(&mut self) -> Option<End> {
        // Before the first is told: one who was told by its keeper's death is not told again, and has to hear it.
        self.containment.thaw();
        if self.containment.reap()
            && let Some(end) = self.handle(Event::Reaped)
        {
            return Some(end);
        }
        self.handle(Event::Woke)
    }

    /// Takes away what is left of the grace period.
    pub fn hurry(&mut self) -> Option<End> {
        self.handle(Event::Order(Order::Kill))
    }

    fn handle(&mut self, event: Event<'_>) -> Option<End> {
        let mut queue: VecDeque<Action> = self.machine.step(now(), event).into();
        let mut members = Vec::new();
        while let Some(action) = queue.pop_front() {
            let more = match action {
                Action::Walk { examine } => {
                    let examine = examine.then_some(self.plan.signal);
                    walk(&mut self.machine, &mut self.containment, examine, &mut members)
                }
                Action::Signal { member, signal } => {
                    send(&mut self.machine, &mut self.containment, member, signal)
                }
                Action::ReapAll => {
                    self.containment.reap();
                    let event = if self.containment.is_empty() { Event::Empty } else { Event::Reaped };
                    self.machine.step(now(), event)
                }
                Action::KillAll => {
                    self.containment.kill_all();
                    Vec::new()
                }
                Action::KillGroup { group } => {
                    self.containment.kill_group(group);
                    Vec::new()
                }
                Action::Tell(notice) => {
                    if let Notice::Left { named } = notice {
                        self.left.push(named);
                    }
                    Vec::new()
                }
                Action::Exit(end) => return Some(end),
            };
            queue.extend(more);
        }
        None
    }
}
