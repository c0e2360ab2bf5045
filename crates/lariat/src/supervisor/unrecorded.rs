//! A run of a project of which only its entry in the list of runs is left: somebody removed the project's ledger.
//!
//! Responsible for what the next command makes of that; a `sweep` reads the entries itself ([`super::runs`]). Handles
//! HAZARD(removed-ledger).

use lariat_sys::Errno;
use lariat_sys::identity::BootId;

use super::crashed::Crashed;
use super::recovery::{Finishing, Others, Past};
use crate::ledger::index::IndexEntry;
use crate::ledger::lock::RunLock;
use crate::ledger::record::RunId;
use crate::ledger::recover::{Clues, Snapshot};
use crate::ledger::{LedgerError, StateDir};

/// Returns the entry of a run of the project that is not in its ledger, whose supervisor is dead, and that may have left
/// somebody: it began in this boot.
pub(super) fn find<'a>(
    listed: &'a [IndexEntry],
    root: &std::path::Path,
    ledger: Option<&RunId>,
) -> Option<&'a IndexEntry> {
    let is_candidate = |entry: &&IndexEntry| entry.root == root && Some(&entry.run) != ledger;
    let mut candidates = listed.iter().filter(is_candidate).peekable();
    candidates.peek()?;
    let boot = BootId::read().ok()?.to_string();
    let is_dead = |entry: &IndexEntry| {
        entry.supervisor.is_some()
            && entry.boot.as_ref() == Some(&boot)
            && !entry.has_live_supervisor(Some(&boot))
    };
    candidates.find(|entry| is_dead(entry))
}

/// Says what became of it. The lock is the project's, and kept where nobody of lariat's own is at work.
pub(super) fn look(
    entry: &IndexEntry,
    state: StateDir,
    lock: RunLock,
    notes: Vec<String>,
    others: &Others,
) -> Result<Past, LedgerError> {
    // Its keepers do not hold the lock's new file.
    let snapshot = Snapshot::take(&others.living).map_err(unreadable)?;
    let began = entry.supervisor.map(|supervisor| supervisor.start);
    let keepers = snapshot.keepers_above(entry.run.as_str(), began);
    if !keepers.is_empty() {
        return Ok(Past::Finishing(Finishing::of_keepers(state, keepers)));
    }
    let mut clues = Clues::of_entry(entry);
    clues.cgroup_bases.extend(others.cgroup_bases.iter().cloned());
    let crashed = Crashed::new(state, Some(lock), None, clues, notes).look(&others.living);
    // One that ended well could not say so in a ledger that was gone.
    Ok(crashed.or_nothing(format!("the ledger of run {} is gone", entry.run)))
}

fn unreadable(errno: Errno) -> LedgerError {
    LedgerError::File { step: "list the processes in", path: "/proc".into(), cause: errno.into() }
}
