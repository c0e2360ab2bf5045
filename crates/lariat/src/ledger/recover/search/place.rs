//! Who is suspected for where it works: orphans that do not say whose they are.
//!
//! A daemon without environment says nothing, and nothing that a person started looks like it. One that kept its
//! environment but for the mark looks like whatever a person started in the project, so only what cannot hang on anybody
//! who lives is suspected: its parent is one that takes in orphans, not merely one that was there before.

use std::collections::BTreeSet;
use std::path::Path;

use lariat_sys::ask::ASKER_COMM;

use super::{Process, Search, Why};
use crate::ledger::recover::{Clues, Snapshot, Trace, Traces};

/// The name of systemd, of the machine's and of a user's, which is a child of it and takes in the user's orphans.
const USER_MANAGER: &str = "systemd";

impl Search<'_> {
    /// A daemon in the project: nobody's child, in nobody's session, without terminal and mark.
    pub(super) fn by_place(&self, process: &Process) -> Option<(Why, Option<String>)> {
        let place = self.clues.place.as_deref()?;
        if process.has_terminal || process.mark.is_some() || !self.is_born_since(process) {
            return None;
        }
        let trace = trace_in(place, process.traces.as_ref()?)?;
        let why = if !process.has_home {
            self.is_orphan(process).then_some(Why::Place(trace))
        } else {
            self.is_lost(process, place).then_some(Why::Unmarked(trace))
        };
        Some((why?, None))
    }

    /// Its parent was there before the run began, so it is not the one that started it, or did so without the run; and
    /// so with the leader of its session.
    fn is_orphan(&self, process: &Process) -> bool {
        let Some(began) = self.clues.began else { return false };
        let start_of = |pid: i32| self.holders.get(&pid).map(|holder| holder.identity.start);
        // Within one tick the order is unknown. Whoever reaps here may be as young as the run that it has just started.
        let has_younger_parent =
            process.ppid > 1 && start_of(process.ppid).is_some_and(|start| start > began);
        let is_in_older_session = process.session != process.identity.pid
            && start_of(process.session).is_some_and(|start| start < began);
        !has_younger_parent && !is_in_older_session
    }

    /// It may be any person's, and yet there is nobody alive whose it could be.
    fn is_lost(&self, process: &Process, place: &Path) -> bool {
        // Whatever its user has is in such a place.
        let is_everywhere = self.snapshot.living.home.as_ref().is_none_or(|home| home.starts_with(place));
        let leader = self
            .holders
            .get(&process.session)
            .filter(|leader| leader.is_alive && leader.identity.pid != process.identity.pid);
        let is_in_a_living_session =
            leader.is_some_and(|leader| !self.is_born_since(leader) || !self.is_adopted(leader));
        // HAZARD(deaf-file-system): one of ours that asked it may be held there when the one who wanted to know is gone.
        let is_asker = process.comm == ASKER_COMM;
        !is_everywhere
            && !is_asker
            && !self.has_lariat()
            && self.is_orphan(process)
            && self.is_adopted(process)
            && !is_in_a_living_session
            && !self.is_above_others(process)
    }

    /// Somebody of lariat's own is left of the run, and takes in its orphans: none of them is anywhere else.
    fn has_lariat(&self) -> bool {
        let lives = |pid: i32| self.holders.get(&pid).filter(|holder| holder.is_alive);
        let mut own = self.clues.spared.iter();
        own.any(|own| lives(own.pid).is_some_and(|holder| own.is_same(&holder.identity)))
    }

    /// Its parent takes in orphans, and did not start it, as far as that can be told.
    fn is_adopted(&self, process: &Process) -> bool {
        // Whoever is started begins in the session of the one that starts it.
        let is_in_its_session =
            self.holders.get(&process.ppid).is_some_and(|parent| parent.session == process.session);
        self.reapers.contains(&process.ppid) && !is_in_its_session && !process.is_unit
    }

    /// A person works below it (a terminal multiplexer, or a server that was started from afar), or a keeper: of a run that
    /// no list knows, whose supervisor it is.
    fn is_above_others(&self, process: &Process) -> bool {
        let mut seen = BTreeSet::new();
        let mut to_visit = vec![process.identity.pid];
        while let Some(parent) = to_visit.pop() {
            for child in self.children.get(&parent).into_iter().flatten() {
                if child.has_terminal || child.is_keeper {
                    return true;
                }
                to_visit.extend(seen.insert(child.identity.pid).then_some(child.identity.pid));
            }
        }
        false
    }
}

/// Returns who is known to take in orphans.
///
/// HAZARD(untold-subreaper): the kernel does not say who is one. Whoever was merely there before may as well have started
/// what hangs on it.
pub(super) fn reapers(clues: &Clues, snapshot: &Snapshot) -> BTreeSet<i32> {
    let is_user_manager = |process: &Process| {
        process.ppid == 1 && process.uid == Some(snapshot.user) && process.comm == USER_MANAGER
    };
    let mut reapers = BTreeSet::from([1]);
    for process in &snapshot.processes {
        if is_user_manager(process) {
            reapers.insert(process.identity.pid);
        }
        // A leader is a keeper's child. Who is its parent after that got all that the run left.
        let is_leader = clues.leaders.iter().any(|clue| clue.leader.is_same(&process.identity));
        if is_leader && process.ppid > 0 {
            reapers.insert(process.ppid);
        }
    }
    reapers
}

fn trace_in(place: &Path, traces: &Traces) -> Option<Trace> {
    let is_inside = |path: &std::path::PathBuf| path.starts_with(place);
    if traces.cwd.iter().any(is_inside) {
        Some(Trace::WorkingDirectory)
    } else if traces.program.iter().any(is_inside) {
        Some(Trace::Program)
    } else if traces.files.iter().any(is_inside) {
        Some(Trace::File)
    } else {
        None
    }
}
