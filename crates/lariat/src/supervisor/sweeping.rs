//! Ends what hangs on no keeper: the orphans of one that died, and, when the stack stops, whatever carries the run's
//! marker. Then takes the last look.

use std::time::{Duration, Instant};

use lariat_keeper::clock::later;
use lariat_keeper::contain::lineage::Lineage;
use lariat_keeper::ending::{Ending, was_told_by_death};
use lariat_keeper::stop::{StopPlan, StopScope};
use lariat_keeper::wire::End;
use lariat_sys::identity::Identity;
use lariat_sys::pidfd::is_surely_gone;
use lariat_sys::reap::{self, ChildEvent};
use lariat_sys::signal::Signal;

use super::driver::Driver;
use crate::event::EventKind;
use crate::ledger::recover::Clues;
use crate::service::graph::Place;
use crate::service::machine;
use crate::shutdown::found::{FoundSet, why_in_words};
use crate::shutdown::plan;
use crate::shutdown::report::HeldPort;
use crate::shutdown::verify;

/// Orphans named at most.
const NAMED_MAX: usize = 16;
/// The pause between two looks while something is still there.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The end of what a dead keeper left.
#[derive(Debug)]
pub(super) struct Sweep {
    ending: Ending<Lineage>,
    /// The services whose keepers died. Their orphans cannot be told apart, and end together.
    places: Vec<Place>,
    hurry_at: Option<Instant>,
}

impl Sweep {
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.ending.wake_at().into_iter().chain(self.hurry_at).min()
    }
}

/// The end of what carries the run's marker.
#[derive(Debug)]
pub(super) struct Hunt {
    ending: Ending<FoundSet>,
    give_up_at: Instant,
    found: u32,
}

impl Hunt {
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.ending.wake_at().into_iter().chain([self.give_up_at]).min()
    }
}

impl Driver {
    /// Our children that are no orphans: keepers, and who was there before the run.
    fn excepted(&self) -> Vec<i32> {
        let before = self.options.children_before.iter().map(|child| child.pid);
        self.keeper_pids().into_iter().chain(before).collect()
    }

    /// To be called whenever a keeper came or went.
    pub(super) fn update_exceptions(&mut self) {
        if self.sweep.is_none() {
            return;
        }
        let excepted = self.excepted();
        if let Some(sweep) = &mut self.sweep {
            sweep.ending.containment().set_except(excepted);
        }
    }

    pub(super) fn begin_sweep(&mut self, now: Instant, place: Place, grace: Duration) {
        self.awake.still();
        if let Some(sweep) = &mut self.sweep {
            sweep.places.push(place);
            return self.turn_sweep(now);
        }
        let signal = self.spec.services[place].stop.signal;
        let plan = StopPlan { signal, scope: StopScope::Staged, grace };
        let leader = self.units[place].life.as_ref().and_then(|life| life.leader);
        let told = leader.filter(|leader| was_told_by_death(*leader));
        let ending = Ending::new(Lineage::of_orphans(leader, self.excepted()), plan, told);
        self.sweep = Some(Sweep { ending, places: vec![place], hurry_at: None });
        self.turn_sweep(now);
    }

    pub(super) fn cut_sweep(&mut self, now: Instant, grace: Duration) {
        if let Some(sweep) = &mut self.sweep {
            let at = later(now, grace);
            sweep.hurry_at = Some(sweep.hurry_at.map_or(at, |sooner| sooner.min(at)));
            self.turn_sweep(now);
        }
    }

    pub(super) fn turn_sweep(&mut self, now: Instant) {
        let Some(sweep) = &mut self.sweep else { return };
        let is_due = sweep.hurry_at.is_some_and(|at| now >= at);
        let end = if is_due {
            sweep.hurry_at = None;
            sweep.ending.hurry()
        } else {
            sweep.ending.turn()
        };
        let Some(end) = end else { return };
        let Some(sweep) = self.sweep.take() else { return };
        for named in sweep.ending.left() {
            self.member_left(None, named);
        }
        let is_empty = end.left == 0;
        for (index, place) in sweep.places.into_iter().enumerate() {
            let unit = &mut self.units[place];
            // Counted once, whoever they belonged to.
            unit.swept = Some(if index == 0 { end } else { End::default() });
            unit.has_left_members = !is_empty;
            self.tell(place, machine::Event::OrphansEnded { is_empty });
        }
    }

    /// Some child of ours died. Keepers are heard of by their pidfd; an orphan is reaped here.
    pub(super) fn children_changed(&mut self, now: Instant) {
        if self.sweep.is_some() {
            return self.turn_sweep(now);
        }
        if self.hunt.is_some() {
            return self.turn_hunt(now);
        }
        let excepted = self.excepted();
        while let Ok(Some(ChildEvent::Exited { pid, .. })) = reap::peek() {
            // One that is not ours to reap hides those behind it until it is reaped.
            if excepted.contains(&pid) || !matches!(reap::reap(pid), Ok(Some(_))) {
                return;
            }
        }
    }

    /// Phase 3: looks for what carries the marker and ends it.
    pub(super) fn begin_hunt(&mut self, now: Instant, grace: Duration, give_up_at: Instant) {
        let set = self.found_set();
        let found = set.look().certain;
        for orphan in found.iter().take(NAMED_MAX) {
            let reason = format!("{}, and hangs on no keeper", why_in_words(orphan.why));
            let (pid, name) = (orphan.identity.pid, orphan.comm.clone());
            self.publish(EventKind::OrphanFound { pid, name, reason });
        }
        if found.is_empty() {
            return self.shutdown(plan::Event::OrphansEnded);
        }
        let plan = StopPlan { signal: Signal::TERM, scope: StopScope::All, grace };
        let ending = Ending::new(set, plan, None);
        let found = u32::try_from(found.len()).unwrap_or(u32::MAX);
        self.hunt = Some(Hunt { ending, give_up_at, found });
        self.turn_hunt(now);
    }

    pub(super) fn hurry_hunt(&mut self, now: Instant) {
        let end = self.hunt.as_mut().and_then(|hunt| hunt.ending.hurry());
        self.hunt_ended(now, end);
    }

    pub(super) fn turn_hunt(&mut self, now: Instant) {
        let end = self.hunt.as_mut().and_then(|hunt| hunt.ending.turn());
        self.hunt_ended(now, end);
    }

    fn hunt_ended(&mut self, now: Instant, end: Option<End>) {
        let is_late = self.hunt.as_ref().is_some_and(|hunt| now >= hunt.give_up_at);
        if end.is_none() && !is_late {
            return;
        }
        let Some(hunt) = self.hunt.take() else { return };
        let left = end.map_or(hunt.found, |end| end.left);
        self.tally.orphans_ended(hunt.found.saturating_sub(left));
        self.shutdown(plan::Event::OrphansEnded);
    }

    /// Everything of the run that hangs on no keeper.
    fn found_set(&self) -> FoundSet {
        let set = FoundSet::new(Clues::of(self.books.record()));
        if self.options.is_subreaper { set.with_children_but(self.excepted()) } else { set }
    }

    /// Phase 5: looks, and looks again until nothing is there or the time is over.
    pub(super) fn begin_look(&mut self, now: Instant, deadline: Instant) {
        self.verify = Some((deadline, now));
        self.look_again(now);
    }

    pub(super) fn look_again(&mut self, now: Instant) {
        let Some((deadline, _)) = self.verify else { return };
        let pids: Vec<i32> = self.leaving.iter().map(|(keeper, _)| keeper.identity().pid).collect();
        for pid in pids {
            self.reap_leaving(pid);
        }
        let found = self.found_set().look();
        let held = self.held_ports();
        let is_quiet =
            found.certain.is_empty() && self.leaving.is_empty() && !held.iter().any(|port| port.is_ours);
        if !is_quiet && now < deadline {
            self.verify = Some((deadline, (now + LOOK_EVERY).min(deadline)));
            return;
        }
        self.verify = None;
        let keepers: Vec<Identity> = self.leaving.iter().map(|(keeper, _)| keeper.identity()).collect();
        for keeper in keepers {
            self.tally.note(format!("keeper {keeper} has not exited yet"));
        }
        // One that /proc hides is not gone because it cannot be seen.
        self.tally.retain_left(|left| !is_surely_gone(Identity { pid: left.pid, start: left.start }));
        for found in found.certain {
            if let Some(left) = verify::describe(found.identity, "alive at the last look") {
                self.tally.left(left);
            }
        }
        for found in found.possible {
            // Never ended unasked: a number alone proves nothing.
            let why = why_in_words(found.why);
            self.tally.note(format!("{} `{}` may be of this run: {why}", found.identity.pid, found.command));
        }
        for port in held {
            self.tally.port_held(port);
        }
        self.shutdown(plan::Event::Verified);
    }

    /// Ports of the stack that somebody listens on.
    fn held_ports(&self) -> Vec<HeldPort> {
        let claimed = self.units.iter().filter(|unit| !unit.leaders.is_empty());
        let claimed: Vec<(String, u16)> =
            claimed.filter_map(|unit| Some((unit.name.clone(), unit.port?))).collect();
        verify::held_ports(&claimed, self.books.run())
    }
}
