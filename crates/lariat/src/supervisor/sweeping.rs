//! Ends what hangs on no keeper: the orphans of one that died, and, when the stack stops, whatever carries the run's
//! marker. Then takes the last look.

use std::time::{Duration, Instant};

use lariat_keeper::clock::later;
use lariat_keeper::contain::cgroup::Bounded;
use lariat_keeper::contain::lineage::Lineage;
use lariat_keeper::ending::{Ending, first_born, was_told_by_death};
use lariat_keeper::stop::{StopPlan, StopScope};
use lariat_keeper::wire::End;
use lariat_sys::identity::Identity;
use lariat_sys::pidfd::is_surely_gone;
use lariat_sys::reap::{self, ChildEvent};
use lariat_sys::signal::Signal;
use lariat_sys::{process, procfs, tree};

use super::driver::Driver;
use super::runs::reach_in_words;
use crate::event::EventKind;
use crate::ledger::recover::patterns::CommandPattern;
use crate::ledger::recover::{self, Clues, Findings, Found, Reach, Snapshot};
use crate::process::Mark;
use crate::service::graph::Place;
use crate::service::machine;
use crate::shutdown::found::FoundSet;
use crate::shutdown::plan;
use crate::shutdown::report::{HeldPort, LeftProcess};
use crate::shutdown::verify;

/// Orphans named at most.
const NAMED_MAX: usize = 16;
/// The pause between two looks while something is still there.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The end of what a dead keeper left.
#[derive(Debug)]
pub(super) struct Sweep {
    ending: Ending<Bounded<Lineage>>,
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
        // HAZARD(pid-reuse): numbers do, since none of these changes hands: excepted children are reaped by nobody but
        // their keeper's life, which takes the keeper off this list.
        let before = self.options.children_before.iter().map(|child| child.pid);
        self.keeper_pids().into_iter().chain(before).collect()
    }

    /// To be called whenever a keeper came or went.
    pub(super) fn update_exceptions(&mut self) {
        if self.sweep.is_none() {
            return;
        }
        let (excepted, keepers) = (self.excepted(), self.unlost_keepers());
        if let Some(sweep) = &mut self.sweep {
            sweep.ending.containment().inner().set_except(excepted, keepers);
        }
    }

    pub(super) fn begin_sweep(&mut self, now: Instant, place: Place, grace: Duration) {
        self.awake.still();
        let group = self.units[place].life.as_mut().and_then(|life| life.cgroup.take());
        let known = self.units[place].life.as_ref().and_then(|life| life.leader);
        let leader = known.or_else(|| self.orphaned_leader(place));
        let told = leader.filter(|leader| was_told_by_death(*leader));
        if let Some(sweep) = &mut self.sweep {
            sweep.places.push(place);
            group.into_iter().for_each(|group| sweep.ending.containment().add(group));
            sweep.ending.join(told, grace);
            return self.turn_sweep(now);
        }
        let signal = self.spec.services[place].stop.signal;
        let plan = StopPlan { signal, scope: StopScope::Staged, grace };
        let orphans = Lineage::of_orphans(leader, Vec::new());
        let ending = Ending::new(Bounded::new(orphans, group.into_iter().collect()), plan, told);
        self.sweep = Some(Sweep { ending, places: vec![place], hurry_at: None });
        self.update_exceptions();
        self.turn_sweep(now);
    }

    /// Returns who leads a service whose keeper died before it could say so: it leads a session, was born while the keeper
    /// lived, and carries no mark but the service's. A zombie carries none, nor does who has executed itself without.
    fn orphaned_leader(&self, place: Place) -> Option<Identity> {
        let mut children = Vec::new();
        // Without a list nobody counts as told, and the leader hears of the stop twice.
        let _ = tree::children(process::pid(), &mut children);
        let excepted = self.excepted();
        let orphans = children.into_iter().filter(|pid| !excepted.contains(pid));
        let keeper = self.units[place].life.as_ref().map(|life| life.keeper.identity());
        let is_younger = |stat: &procfs::Stat| keeper.is_none_or(|keeper| stat.start >= keeper.start);
        let is_anothers = |pid: i32| {
            let is_own = |mark: &Mark| {
                mark.run == self.books.run() && mark.service.as_deref() == Some(&self.units[place].name)
            };
            Mark::of(pid).is_some_and(|mark| !is_own(&mark))
        };
        let leaders = orphans
            .filter_map(|pid| procfs::read_stat(pid).ok().flatten())
            .filter(|stat| stat.session == stat.pid && is_younger(stat))
            .filter(|stat| !is_anothers(stat.pid));
        first_born(leaders).map(|leader| leader.identity())
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
        let Some(mut sweep) = self.sweep.take() else { return };
        if end.left == 0 {
            sweep.ending.containment().remove();
        }
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
        self.wake_keepers();
        self.reap_leaving();
        self.notice_lost_keepers();
        if self.sweep.is_some() {
            return self.turn_sweep(now);
        }
        if self.hunt.is_some() {
            return self.turn_hunt(now);
        }
        while let Ok(Some(ChildEvent::Exited { pid, .. })) = reap::peek() {
            // One that is not ours to reap hides those behind it until it is reaped. And the kernel hands on what a keeper
            // leaves and makes a zombie of it in one step, so whoever was seen already came from one that is noticed now.
            let is_ours = !self.excepted().contains(&pid);
            if !is_ours || self.notice_lost_keepers() || !matches!(reap::reap(pid), Ok(Some(_))) {
                return;
            }
        }
    }

    /// HAZARD(keeper-stopped): one that is stopped would not even see that its service has ended.
    fn wake_keepers(&self) {
        if !reap::has_stopped_child() {
            return;
        }
        for keeper in self.units.iter().filter_map(|unit| Some(&unit.life.as_ref()?.keeper)) {
            if matches!(reap::peek_stops(keeper.identity().pid), Ok(Some(ChildEvent::Stopped { .. }))) {
                // Whatever this gives, the next stop is told again.
                let _ = keeper.pidfd().signal(Signal::CONT);
            }
        }
    }

    /// Phase 3: looks for what carries the marker and ends it.
    pub(super) fn begin_hunt(&mut self, now: Instant, grace: Duration, give_up_at: Instant) {
        let set = self.found_set();
        let found = set.look().certain;
        for orphan in found.iter().take(NAMED_MAX) {
            let reason = format!("{}, and hangs on no keeper", orphan.why);
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
        self.found_set().remove_groups();
        let left = end.map_or(hunt.found, |end| end.left);
        self.tally.orphans_ended(hunt.found.saturating_sub(left));
        self.shutdown(plan::Event::OrphansEnded);
    }

    /// Everything of the run that hangs on no keeper.
    fn found_set(&self) -> FoundSet {
        let set = FoundSet::new(Clues::of(self.books.record())).beside(&self.living);
        if self.options.is_subreaper { set.with_children_but(self.excepted()) } else { set }
    }

    /// Phase 5: looks, and looks again until nothing is there or the time is over.
    pub(super) fn begin_look(&mut self, now: Instant, deadline: Instant) {
        self.verify = Some((deadline, now));
        self.look_again(now);
    }

    pub(super) fn look_again(&mut self, now: Instant) {
        let Some((deadline, _)) = self.verify else { return };
        self.reap_leaving();
        let (found, strays) = self.look_around();
        let held = self.held_ports(&found.certain);
        let has_keepers = !self.leaving.is_empty() || self.units.iter().any(|unit| unit.life.is_some());
        if !verify::is_quiet(&found, &held, has_keepers) && now < deadline {
            self.verify = Some((deadline, (now + LOOK_EVERY).min(deadline)));
            return;
        }
        self.verify = None;
        let keepers: Vec<Identity> = self.leaving.iter().map(|(keeper, _)| keeper.identity()).collect();
        for keeper in keepers {
            self.tally.note(format!("keeper {keeper} has not exited yet"));
        }
        // One that /proc hides is not gone because it cannot be seen.
        self.tally.retain_left(|left| !is_surely_gone(left.identity()));
        // The keepers' proof stands, and the next command looks again.
        self.is_blind = found.reach != Reach::Here;
        reach_in_words(found.reach).into_iter().for_each(|words| self.tally.note(words));
        for found in found.certain {
            if let Some(left) = verify::describe(found.identity, "alive at the last look") {
                self.tally.left(left);
            }
        }
        for unit in &self.units {
            // Given up: what such a keeper holds hangs on it, and cannot be seen from here (HAZARD(vfork-stall)).
            let keeper = unit.life.as_ref().map(|life| life.keeper.identity());
            let reason =
                format!("the keeper of `{}` has not come to an end, nor has what it holds", unit.name);
            if let Some(left) = keeper.and_then(|keeper| verify::describe(keeper, &reason)) {
                self.tally.left(LeftProcess { service: Some(unit.name.clone()), ..left });
            }
        }
        for found in found.possible {
            // Never ended unasked: a number alone proves nothing.
            let (pid, command, why) = (found.identity.pid, &found.command, found.why);
            self.tally.note(format!("{pid} `{command}` may be of this run: {why}"));
        }
        for stray in strays.iter().take(NAMED_MAX) {
            let (pid, command, why) = (stray.identity.pid, &stray.command, stray.reason());
            self.tally.note(format!("{pid} `{command}` may be of this run: {why}; it was left alone"));
        }
        for port in held {
            self.tally.port_held(port);
        }
        self.shutdown(plan::Event::Verified);
    }

    /// Looks for what is left of the run, and for development servers in the project that are younger than it and hang on
    /// nobody of lariat's.
    fn look_around(&self) -> (Findings, Vec<Found>) {
        let Ok(mut snapshot) = Snapshot::take(&self.living) else {
            return (self.found_set().look(), Vec::new());
        };
        let findings = self.found_set().look_in(&mut snapshot);
        let Some(place) = recover::place(&self.spec.root) else { return (findings, Vec::new()) };
        snapshot.look_at_commands(&place);
        let patterns = [self.spec.sweep.clone(), CommandPattern::built_in()].concat();
        let record = self.books.record();
        let (run, since) = (Some(record.run.as_str()), Some(record.supervisor.start));
        let mut strays = recover::by_pattern(&snapshot, &place, &patterns, run, since);
        let is_known = |known: &[Found], stray: &Found| recover::has(known, stray.identity);
        strays.retain(|stray| !is_known(&findings.certain, stray) && !is_known(&findings.possible, stray));
        recover::describe(&mut strays);
        (findings, strays)
    }

    /// Ports of the stack that somebody listens on.
    fn held_ports(&self, certain: &[Found]) -> Vec<HeldPort> {
        let claimed = self.units.iter().filter(|unit| !unit.leaders.is_empty());
        let claimed: Vec<(String, u16)> =
            claimed.filter_map(|unit| Some((unit.name.clone(), unit.port?))).collect();
        verify::held_ports(&claimed, self.books.run(), certain)
    }
}
