//! Watches what an ending does to a tree: who is alive, until nobody may be; what is held; who had the time to end.

use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::poll::{PollFd, PollFlags, poll};
use lariat_sys::{procfs, spawn};

use super::{GONE_WITHIN, Judge, Trouble};
use crate::endings::Ending;
use crate::hall::Held;
use crate::promise::{Containment, Grace};
use crate::verdict::Verdict;
use crate::{act, census};

/// How long what is left is watched before the next command is run.
const SETTLES_WITHIN: Duration = Duration::from_millis(400);
/// How long the next command may take.
const SWEEPS_WITHIN: Duration = Duration::from_secs(40);
/// How long a storm may evade walks while the kernel says that somebody is there.
const FOUND_WITHIN: Duration = Duration::from_secs(3);
/// A judge that looks that long after its last look did not run in between.
const STILL_MAX: Duration = Duration::from_secs(3);
/// Whoever is alive after that is named, for whoever has to find out why.
const SLOW_AFTER: Duration = Duration::from_secs(3);
/// How long a word may be on its way once its sender is gone.
const LAST_WORD: Duration = Duration::from_millis(50);

impl Judge<'_> {
    /// Watches an ending after which nobody may be alive.
    pub(super) fn watch(
        &mut self,
        mut later: act::Later,
        began: Instant,
        down: Option<spawn::Child>,
        verdict: &mut Verdict,
    ) {
        let mut deadline = began + GONE_WITHIN;
        let mut looked_at = Instant::now();
        let mut is_slow = false;
        let has_witness = self.spec.ending.has_witness() && self.spec.tree.attack.leaves_witness();
        loop {
            let still = looked_at.elapsed();
            looked_at = Instant::now();
            if still > STILL_MAX {
                // A machine that was paused, or so busy that the judge did not run, has not given lariat that time.
                deadline += still;
                verdict.notes.push(format!("the machine stood still for {} ms", still.as_millis()));
            }
            self.hall.listen();
            let is_over = self.has_subject_ended();
            let has_command_ended =
                down.as_ref().is_none_or(|command| command.pidfd.has_exited().unwrap_or(true));
            if self.is_deserted() {
                verdict.gone_after_ms = Some(millis(began.elapsed()));
                break;
            }
            // When lariat says that it is over, it is over.
            if (has_witness && is_over && has_command_ended) || Instant::now() >= deadline {
                break;
            }
            self.continue_subject(verdict);
            if began.elapsed() > SLOW_AFTER && !is_slow {
                is_slow = true;
                verdict.notes.push(format!("alive after {SLOW_AFTER:?}: {}", self.everybody().join(", ")));
            }
            self.go_on(&mut later);
            self.wait_for_something(later.at.map_or(deadline, |at| at.min(deadline)), down.as_ref());
        }
        verdict.hung = !self.has_subject_ended();
        if verdict.hung
            && let Some(cast) = &self.cast
        {
            verdict.notes.push(act::doing(cast));
        }
        verdict.survivors = self.survivors();
        if verdict.survivors.is_empty() && verdict.gone_after_ms.is_none() {
            verdict.gone_after_ms = Some(millis(began.elapsed()));
        }
        self.hear_last_words();
        verdict.members = self.hall.members.len();
    }

    /// Does what the ending does later, when it is time.
    fn go_on(&self, later: &mut act::Later) {
        if later.at.is_some_and(|at| Instant::now() >= at)
            && let Some(cast) = &self.cast
        {
            act::go_on(self.spec.ending, cast, later);
        }
    }

    /// Continues the subject if a member has stopped it and nobody else is left: that is its user's to do.
    fn continue_subject(&self, verdict: &mut Verdict) {
        let Some(cast) = &self.cast else { return };
        let subject = cast.subject.identity;
        let is_stopped =
            matches!(procfs::read_stat(subject.pid), Ok(Some(stat)) if stat.state == procfs::State::Stopped);
        let is_alone = || census::below(&self.excepted()).iter().all(|alive| alive.identity == subject);
        if is_stopped && is_alone() {
            act::go_on_living(cast);
            verdict
                .notes
                .push("lariat itself was stopped when all others were gone, and continued".to_owned());
        }
    }

    /// Watches an ending that leaves what the next command has to find.
    pub(super) fn watch_sweep(
        &mut self,
        mut later: act::Later,
        began: Instant,
        verdict: &mut Verdict,
    ) -> Result<(), Trouble> {
        let settled = began + if later.at.is_some() { SETTLES_WITHIN * 4 } else { SETTLES_WITHIN };
        while !self.is_deserted() && Instant::now() < settled {
            self.hall.listen();
            self.wait_for_something(settled, None);
        }
        // Whoever sweeps leaves alone what is alive.
        let deadline = began + GONE_WITHIN;
        let is_ending = |later: &act::Later| self.spec.ending.has_witness() || later.at.is_some();
        while is_ending(&later) && !self.has_subject_ended() && Instant::now() < deadline {
            self.hall.listen();
            self.go_on(&mut later);
            self.wait_for_something(later.at.map_or(deadline, |at| at.min(deadline)), None);
        }
        let before = self.survivors();
        verdict.before_sweep = Some(before.len());
        verdict.members = self.hall.members.len();
        let arguments: &[&str] = match self.spec.ending.is_of_stack() {
            true => &["down", "--yes"],
            false if self.subject.has_sweep => &["sweep", "--yes"],
            false => {
                verdict.notes.push("this lariat has no `sweep`".to_owned());
                return Ok(());
            }
        };
        let command = self.lariat(arguments)?;
        let deadline = Instant::now() + SWEEPS_WITHIN;
        while !command.pidfd.has_exited().unwrap_or(true) && Instant::now() < deadline {
            self.hall.listen();
            // The orphans come to us: those who fork themselves away would use up the machine's numbers as zombies.
            census::reap_all();
            self.wait_for_something(deadline, Some(&command));
        }
        verdict.hung = !command.pidfd.has_exited().unwrap_or(true);
        let after = self.survivors();
        verdict.after_sweep = Some(after.len());
        if after.is_empty() {
            verdict.gone_after_ms = Some(millis(began.elapsed()));
        } else if self.spec.containment == Containment::Lineage && self.spec.tree.hides_from_sweep() {
            // In a cgroup nobody hides.
            verdict
                .notes
                .push(format!("nothing proves whose they are, offered by name only: {}", after.join(", ")));
        } else {
            verdict.survivors = after;
            verdict.notes.push(format!("the command says: {}", self.output()));
        }
        self.hear_last_words();
        Ok(())
    }

    /// Returns everybody who is alive, and comes back empty only if the kernel says that nobody is there.
    fn survivors(&self) -> Vec<String> {
        let deadline = Instant::now() + FOUND_WITHIN;
        loop {
            let is_deserted = self.is_deserted();
            let left = self.everybody();
            if is_deserted || !left.is_empty() {
                return left;
            }
            if Instant::now() >= deadline {
                return vec!["somebody whom no walk finds".to_owned()];
            }
        }
    }

    pub(super) fn everybody(&self) -> Vec<String> {
        let members: Vec<Identity> = self.hall.members.iter().map(|member| member.identity).collect();
        let alive = census::everybody(&members, &self.marker, &self.excepted());
        let name = |alive: &census::Alive| {
            let member = self.hall.members.iter().find(|member| member.identity == alive.identity);
            member.map_or(alive.shown.clone(), |member| {
                let told = if member.told > 0 { ", told" } else { "" };
                format!("{} {}{told}", member.name, alive.shown)
            })
        };
        alive.iter().map(name).collect()
    }

    /// Words of those who are gone may still be on their way.
    fn hear_last_words(&mut self) {
        self.hall.listen();
        let deadline = Instant::now() + LAST_WORD;
        while self.hall.members.iter().any(|m| m.is_graceful && !m.is_clean) && Instant::now() < deadline {
            let mut fds = [PollFd::new(&self.hall, PollFlags::IN)];
            if poll(&mut fds, Some(deadline)).is_ok_and(|ready| ready == 0) {
                break;
            }
            self.hall.listen();
        }
    }

    pub(super) fn look_at_ports(&self, verdict: &mut Verdict) {
        let is_declared = verdict.after_sweep.is_none() && verdict.before_sweep.is_some();
        if !is_declared {
            let held = self.hall.held.iter().filter(|held| !held.is_free());
            verdict.ports = held.map(|Held { kind, place }| format!("{kind} {place}")).collect();
        }
    }

    pub(super) fn look_at_grace(&self, taken_along: &[Identity], verdict: &mut Verdict) {
        let twice = self.hall.members.iter().filter(|member| member.told > 1);
        verdict.told_twice = twice.map(|member| member.name.clone()).collect();
        let is_judged =
            matches!(self.spec.promise().grace, Grace::All | Grace::AllButTheFirst | Grace::OutsideTheGroup);
        if !is_judged || !self.spec.tree.is_cooperative {
            return;
        }
        let ends_leader = self.spec.ending.asks_the_leader()
            || self.spec.ending == Ending::LeaderKilled
            || self.spec.promise().grace == Grace::AllButTheFirst;
        let denied = self.hall.members.iter().filter(|member| {
            let is_excused =
                taken_along.contains(&member.identity) || (ends_leader && member.name == "leader");
            member.is_graceful && !member.is_clean && !is_excused
        });
        verdict.denied = denied.map(|member| format!("{} {}", member.name, member.identity)).collect();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
