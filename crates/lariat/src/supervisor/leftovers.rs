//! What earlier runs left, of one project or of all runs of the user: found, shown to whoever decides, ended, closed.
//!
//! A group for each run that crashed, and one for a project's processes that no run is known to have started. A stack's
//! group holds its project's lock; what is done about commands and lost runs is done under one lock of the user. Nothing
//! that belongs to a run that is alive is in any group, and nobody is in two. Here is one group; [`search()`] finds them.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lariat_keeper::ending::Ending;
use lariat_keeper::stop::StopPlan;
use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{PollFd, PollFlags, poll};

use super::crashed::Crashed;
use super::held::HeldKeepers;
use super::recovery::{Finishing, LOOK_EVERY, Waited};
use super::runs::{Kind, reach_in_words};
use crate::ledger::LedgerError;
use crate::ledger::command::{CommandFile, Loaded};
use crate::ledger::index::{RunIndex, UserDirs};
use crate::ledger::record::{LeftRecord, RunId, StopRecord};
use crate::ledger::recover::{self, Clues, Findings, Found, Living, Reach};
use crate::shutdown::endings::Ended;
use crate::shutdown::found::FoundSet;
use crate::shutdown::report::{HeldPort, LeftProcess};
use crate::shutdown::verify;

mod search;

pub use search::{Request, Search, SearchError, search};

/// Somebody who is ending a run.
#[derive(Debug)]
pub enum AtWork {
    /// The keepers of a stack, or another lariat.
    Stack(Finishing),
    /// The keeper of a command, or keepers of a run whose ledger is gone.
    Keepers {
        /// The run.
        run: RunId,
        /// They.
        keepers: Vec<Identity>,
        /// How long they may wait before they kill.
        grace: Option<Duration>,
    },
}

impl fmt::Display for AtWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stack(finishing) => finishing.fmt(f),
            Self::Keepers { run, .. } => {
                write!(f, "lariat of run {run} is dead, and its keeper is ending it")
            }
        }
    }
}

impl AtWork {
    /// Returns the longest grace period that is known of.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        match self {
            Self::Stack(finishing) => finishing.grace(),
            Self::Keepers { grace, .. } => *grace,
        }
    }

    /// Waits until they are done. Blocks until then, the deadline, or until `cancel` is readable. Keepers that a debugger
    /// holds are killed.
    ///
    /// # Errors
    /// When a lock file cannot be used.
    pub fn wait(&self, deadline: Instant, cancel: Option<BorrowedFd<'_>>) -> Result<Waited, LedgerError> {
        let keepers = match self {
            Self::Stack(finishing) => return finishing.wait(deadline, cancel),
            Self::Keepers { keepers, .. } => keepers,
        };
        let mut held = HeldKeepers::default();
        for keeper in keepers {
            let Ok(pidfd) = PidFd::open(*keeper) else { continue };
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
            fds.extend(cancel.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            loop {
                let slice = deadline.min(Instant::now() + LOOK_EVERY);
                match poll(&mut fds, Some(slice)) {
                    Ok(0) if Instant::now() >= deadline => return Ok(Waited::TimedOut),
                    Ok(0) => held.look(keepers.iter().copied(), Instant::now()),
                    Ok(_) if fds[0].revents().is_empty() => return Ok(Waited::Cancelled),
                    // Where the kernel cannot wait for want of memory, the next look says how it is.
                    Ok(_) | Err(_) => break,
                }
            }
        }
        Ok(Waited::Finished)
    }
}

/// What one run left.
#[derive(Debug)]
pub struct Leftover {
    /// The run; absent for a project's strays.
    pub run: Option<RunId>,
    /// What it is.
    pub kind: Kind,
    /// Where.
    pub dir: Option<PathBuf>,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_unix_ms: Option<u64>,
    /// What a person should read first.
    pub notes: Vec<String>,
    body: Body,
    /// Who may be the run's was shown, and somebody said no.
    is_dismissed: bool,
}

#[derive(Debug)]
enum Body {
    Stack(Box<Crashed>),
    Other(Box<Other>),
}

/// A group that has no project's lock.
#[derive(Debug)]
struct Other {
    clues: Clues,
    living: Living,
    findings: Findings,
    file: Option<CommandFile>,
    ended: Option<Ended>,
    took: Duration,
}

impl Other {
    fn set(&self) -> FoundSet {
        FoundSet::new(self.clues.clone()).beside(&self.living)
    }

    fn stop(&self) -> Option<StopPlan> {
        match self.file.as_ref().map(|file| &file.loaded) {
            Some(Loaded::Record(record)) => record.stop.as_ref().map(StopRecord::plan),
            _ => None,
        }
    }
}

/// How the end of one group came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Processes that ended.
    pub ended: u32,
    /// Those of them that had to be killed.
    pub killed: u32,
    /// How long it took.
    pub took: Duration,
    /// Who is left, and why.
    pub left: Vec<LeftProcess>,
    /// Ports of the run that somebody holds.
    pub ports: Vec<HeldPort>,
    /// What else a person should know.
    pub notes: Vec<String>,
    /// Cgroup directories of the run that were removed.
    pub removed: Vec<PathBuf>,
    /// The run is closed: the next command finds nothing to do.
    pub is_closed: bool,
    /// The processes could not be read at the last look: what is left is not known.
    pub is_blind: bool,
}

impl Outcome {
    /// Says whether something is seen that is certainly the run's.
    #[must_use]
    pub fn is_something_left(&self) -> bool {
        !self.left.is_empty() || self.ports.iter().any(|port| port.is_ours)
    }

    /// Says whether nothing that is certainly the run's is left, which somebody has seen.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.is_something_left() && !self.is_blind
    }
}

/// Which group it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// The run; absent for a project's strays.
    pub run: Option<RunId>,
    /// What it is.
    pub kind: Kind,
    /// Where.
    pub dir: Option<PathBuf>,
}

impl Leftover {
    fn set(&self) -> FoundSet {
        match &self.body {
            Body::Stack(crashed) => crashed.set(),
            Body::Other(other) => other.set(),
        }
    }

    /// Says whether another look would find nothing else. What is only a name in the hierarchy is empty by the kernel's word.
    fn is_settled(&self) -> bool {
        let findings = self.findings();
        let is_proven = || self.kind == Kind::Lost && self.set().are_groups_deserted();
        !findings.certain.is_empty() || findings.reach != Reach::Here || is_proven()
    }

    /// Takes what another look has found.
    fn found(&mut self, findings: Findings) {
        match &mut self.body {
            Body::Stack(crashed) => crashed.found(findings),
            Body::Other(other) => {
                self.notes.extend(reach_in_words(findings.reach));
                other.findings = findings;
            }
        }
    }

    fn findings(&self) -> &Findings {
        match &self.body {
            Body::Stack(crashed) => crashed.findings(),
            Body::Other(other) => &other.findings,
        }
    }

    /// Returns who is certainly the run's.
    #[must_use]
    pub fn certain(&self) -> &[Found] {
        &self.findings().certain
    }

    /// Returns who may be the run's.
    #[must_use]
    pub fn possible(&self) -> &[Found] {
        &self.findings().possible
    }

    /// Returns the ports that the run claimed and somebody holds.
    #[must_use]
    pub fn held_ports(&self) -> Vec<HeldPort> {
        match &self.body {
            Body::Stack(crashed) => {
                verify::held_ports(&crashed.ports(), crashed.run().as_str(), &crashed.findings().certain)
            }
            Body::Other(_) => Vec::new(),
        }
    }

    /// Returns the cgroup directories of the run that can be removed when nobody of it is left.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        match &self.body {
            Body::Stack(crashed) => crashed.directories(),
            Body::Other(other) => other.set().removable(),
        }
    }

    /// Says whether there is nobody to end or to ask about: the books are to be closed, and that is all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.findings().is_empty()
    }

    /// Takes what a person said: these possible ones are to be ended as well, with what they have started.
    pub fn choose(&mut self, chosen: &BTreeSet<Identity>) {
        let own: Vec<Identity> =
            self.possible().iter().map(|found| found.identity).filter(|id| chosen.contains(id)).collect();
        if own.is_empty() {
            return;
        }
        match &mut self.body {
            Body::Stack(crashed) => crashed.choose(own),
            Body::Other(other) => {
                other.clues.chosen.extend(&own);
                let mut findings = other.set().look();
                // A look by clues knows no patterns: who was not chosen is still there.
                let is_new = |found: &&Found| !recover::has(&findings.certain, found.identity);
                let rest: Vec<Found> = other.findings.possible.iter().filter(is_new).cloned().collect();
                findings.possible = rest;
                other.findings = findings;
            }
        }
    }

    /// Takes what a person said: the possible ones are not the run's.
    pub fn dismiss(&mut self) {
        self.is_dismissed = true;
    }

    fn forget(&mut self, known: &BTreeSet<Identity>) {
        match &mut self.body {
            Body::Stack(crashed) => crashed.forget(known),
            Body::Other(other) => {
                other.findings.certain.retain(|found| !known.contains(&found.identity));
                other.findings.possible.retain(|found| !known.contains(&found.identity));
            }
        }
    }

    fn endings(&self, grace: Duration, is_forced: bool) -> Vec<Ending<FoundSet>> {
        match &self.body {
            Body::Stack(crashed) => {
                let longest = crashed.grace().filter(|_| !is_forced);
                crashed.endings(longest.unwrap_or(grace))
            }
            Body::Other(other) => {
                let default = StopPlan { grace, ..StopPlan::default() };
                let plan = other.stop().map_or(default, |plan| match is_forced {
                    true => StopPlan { grace, ..plan },
                    false => plan,
                });
                vec![Ending::new(other.set(), plan, None)]
            }
        }
    }

    /// Returns the longest grace period that is on record.
    fn grace(&self) -> Option<Duration> {
        match &self.body {
            Body::Stack(crashed) => crashed.grace(),
            Body::Other(other) => other.stop().map(|plan| plan.grace),
        }
    }

    fn ended(&mut self, ended: Ended, took: Duration) {
        match &mut self.body {
            Body::Stack(crashed) => crashed.ended(ended, took),
            Body::Other(other) => {
                let possible = std::mem::take(&mut other.findings.possible);
                other.findings = other.set().look();
                other.findings.possible = possible;
                other.ended = Some(ended);
                other.took = took;
            }
        }
    }

    fn close(self, index: Option<&RunIndex>, dirs: &UserDirs) -> Result<Outcome, LedgerError> {
        let is_doubtful = !self.is_dismissed && self.possible().iter().any(|found| found.identity.is_alive());
        let directories = self.directories();
        let outcome = match self.body {
            Body::Stack(crashed) => close_stack(*crashed, index, dirs, is_doubtful)?,
            Body::Other(other) => {
                let run = self.run.filter(|_| self.kind != Kind::Project);
                close_other(*other, run.as_ref(), index, dirs, is_doubtful)?
            }
        };
        let removed = directories.into_iter().filter(|directory| !directory.exists()).collect();
        Ok(Outcome { removed, ..outcome })
    }
}

fn close_stack(
    crashed: Crashed,
    index: Option<&RunIndex>,
    dirs: &UserDirs,
    is_doubtful: bool,
) -> Result<Outcome, LedgerError> {
    let (ended, took) = crashed.outcome();
    let stays_open = is_doubtful && crashed.findings().certain.is_empty();
    let run = crashed.run().clone();
    let report = if stays_open { crashed.report() } else { crashed.close(index)? };
    if report.is_ledger_closed {
        // A ledger that was damaged does not say where it was.
        remove_socket(&run, dirs);
    }
    Ok(Outcome {
        ended: ended.end.told.max(ended.end.killed).saturating_sub(ended.end.left),
        killed: ended.end.killed.saturating_sub(ended.end.left),
        took,
        is_closed: report.is_ledger_closed,
        is_blind: report.is_blind,
        left: report.left,
        ports: report.ports,
        notes: report.notes,
        removed: Vec::new(),
    })
}

fn close_other(
    other: Other,
    run: Option<&RunId>,
    index: Option<&RunIndex>,
    dirs: &UserDirs,
    is_doubtful: bool,
) -> Result<Outcome, LedgerError> {
    other.set().remove_groups();
    let ended = other.ended.unwrap_or_default();
    let describe = |found: &Found| verify::describe(found.identity, &ended.reason(found.identity));
    let left: Vec<LeftProcess> = other.findings.certain.iter().filter_map(describe).collect();
    let reach = other.findings.reach;
    let is_closed = left.is_empty() && !is_doubtful && !reach.is_blind();
    if let Some(run) = run.filter(|_| is_closed) {
        if let Some(index) = index {
            index.remove(run)?;
        }
        remove_socket(run, dirs);
    }
    match &other.file {
        // What cannot be removed names identities that are dead, which is all that it can do.
        Some(file) if is_closed => drop(std::fs::remove_file(&file.path)),
        Some(CommandFile { loaded: Loaded::Record(record), path, .. }) if !left.is_empty() => {
            let mut record = record.clone();
            record.left = left.iter().map(left_record).collect();
            record.rewrite(path)?;
        }
        _ => {}
    }
    Ok(Outcome {
        ended: ended.end.told.max(ended.end.killed).saturating_sub(ended.end.left),
        killed: ended.end.killed.saturating_sub(ended.end.left),
        took: other.took,
        left,
        ports: Vec::new(),
        notes: reach_in_words(reach).filter(|_| reach.is_blind()).into_iter().collect(),
        removed: Vec::new(),
        is_closed,
        is_blind: reach.is_blind(),
    })
}

fn left_record(left: &LeftProcess) -> LeftRecord {
    let (pid, start, inode) = (left.pid, left.start, left.inode);
    LeftRecord { pid, start, inode, comm: left.command.clone(), reason: left.reason.clone() }
}

/// Removes the socket of a run of which nobody is alive.
fn remove_socket(run: &RunId, dirs: &UserDirs) {
    for directory in dirs.at_runtime_all() {
        // One that is not there, or cannot be removed, is in nobody's way.
        let _ = std::fs::remove_file(directory.path.join(format!("{run}.sock")));
    }
}

#[cfg(test)]
mod tests {
    use lariat_sys::Errno;

    use super::*;
    use crate::ledger::index::IndexEntry;
    use crate::ledger::record::RunRecord;
    use crate::ledger::recover::Reach;

    #[test]
    fn what_could_not_be_seen_is_not_closed() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = UserDirs { runtime: None, state: Some(dir.path().to_owned()), home: None };
        let index = RunIndex::at(&dirs.runs().unwrap());
        for (reach, is_over) in
            [(Reach::Here, true), (Reach::OtherBoot, true), (Reach::Unreadable(Errno::ACCESS), false)]
        {
            let run = RunId::new_random().unwrap();
            let path = dir.path().join(run.as_str());
            std::fs::write(&path, "").unwrap();
            let record = RunRecord::begin(run.clone(), "shop", &path, dir.path()).unwrap();
            index.add(&IndexEntry::of(&record)).unwrap();
            let other = Other {
                // By no mark: nobody is to be looked for.
                clues: Clues { has_mark: false, cgroup_bases: Vec::new(), ..Clues::mark_only(run.clone()) },
                living: Living::default(),
                findings: Findings { reach, ..Findings::nobody() },
                file: Some(CommandFile { run: run.clone(), path: path.clone(), loaded: Loaded::Newer }),
                ended: None,
                took: Duration::ZERO,
            };
            let outcome = close_other(other, Some(&run), Some(&index), &dirs, false).unwrap();
            let is_listed = index.list().unwrap().iter().any(|entry| entry.run == run);
            assert_eq!((outcome.is_closed, outcome.is_clean()), (is_over, is_over), "{reach:?}");
            assert_eq!((path.exists(), is_listed), (!is_over, !is_over), "{reach:?}");
            let says_why = outcome.notes.iter().any(|note| note.contains("/proc could not be read"));
            assert_eq!((says_why, outcome.is_something_left()), (!is_over, false), "{reach:?}");
        }
    }
}
