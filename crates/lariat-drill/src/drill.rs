//! Runs cells, a few at a time, each judged by a process of its own; ends what a judge leaves.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{PollFd, PollFlags, poll};
use lariat_sys::signal::{Signal, SignalFd, SignalSet};
use lariat_sys::{Errno, files, process, reap, spawn};

use crate::cell::{self, Spec};
use crate::census;
use crate::endings::{ENDINGS, Ending};
use crate::guard::ASKS;
use crate::promise::Containment;
use crate::stage::{Stage, Subject};
use crate::trees::{TREES, Tree};
use crate::verdict::Verdict;

/// How long one judge may take, beyond everything it waits for itself.
const CELL_WITHIN: Duration = Duration::from_secs(140);

/// How many cells are run at once: they wait most of the time.
const AT_ONCE: usize = 3;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Under which containments.
    pub containments: Vec<Containment>,
    /// These trees.
    pub trees: Vec<&'static Tree>,
    /// Under these endings.
    pub endings: Vec<Ending>,
    /// Where the moments of the endings come from.
    pub seed: u64,
    /// How many cells at once.
    pub at_once: usize,
    /// When no more cells are begun.
    pub within: Duration,
}

impl Plan {
    /// Returns everything, or the small selection of `--quick`.
    #[must_use]
    pub fn usual(containments: Vec<Containment>, is_quick: bool) -> Self {
        let trees = TREES.iter().filter(|tree| !is_quick || tree.is_quick).collect();
        let endings = ENDINGS.iter().filter(|fact| !is_quick || fact.is_quick).map(|fact| fact.ending);
        Self {
            containments,
            trees,
            endings: endings.collect(),
            seed: 1,
            at_once: AT_ONCE,
            within: Duration::MAX,
        }
    }

    fn cells(&self) -> Vec<Spec> {
        let mut cells = Vec::new();
        for containment in &self.containments {
            for tree in &self.trees {
                for ending in &self.endings {
                    let number = cells.len();
                    // Reproducible for one cell alone: it does not depend on which others are run.
                    let seed = self.seed;
                    cells.push(Spec { number, containment: *containment, tree, ending: *ending, seed });
                }
            }
        }
        cells
    }

    /// Returns how many cells there are to be judged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells().iter().filter(|spec| spec.does_not_apply().is_none()).count()
    }

    /// Says whether nothing is to be judged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a drill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was judged.
    Done,
    /// A signal, the reader's end, or the guard's death ended it; nothing of it is left.
    Cancelled,
    /// The time was over before everything was judged.
    OutOfTime,
}

struct Running {
    spec: Spec,
    child: spawn::Child,
    pipe: File,
    text: Vec<u8>,
    deadline: Instant,
}

struct Drill<'a> {
    stage: &'a Stage,
    subject: &'a Subject,
    guard: &'a PidFd,
    signals: SignalFd,
    running: Vec<Running>,
}

/// Runs the plan and gives each verdict to `on_verdict`, in whatever order they come; it answers whether to go on.
///
/// To be called in the drill's side of [`split`](crate::guard::split). Nothing of the drill is alive afterwards. Where
/// the guard is dead, the stage is gone as well.
///
/// # Errors
/// The kernel refused something that the drill cannot do without.
pub fn run(
    plan: &Plan,
    stage: &Stage,
    subject: &Subject,
    guard: &PidFd,
    on_verdict: &mut dyn FnMut(Verdict) -> bool,
) -> lariat_sys::Result<Outcome> {
    let heard = ASKS.into_iter().fold(SignalSet::empty().with(Signal::CHLD), SignalSet::with);
    let signals = SignalFd::new(heard)?;
    let mut drill = Drill { stage, subject, guard, signals, running: Vec::new() };
    let outcome = drill.run(plan, on_verdict);
    drill.running.clear();
    census::end_everybody(&[], "", &[]);
    if guard.has_exited().unwrap_or(true) {
        stage.strike();
    }
    outcome
}

impl Drill<'_> {
    fn run(
        &mut self,
        plan: &Plan,
        on_verdict: &mut dyn FnMut(Verdict) -> bool,
    ) -> lariat_sys::Result<Outcome> {
        let until = Instant::now().checked_add(plan.within);
        let mut waiting = plan.cells().into_iter();
        loop {
            let is_late = until.is_some_and(|until| Instant::now() >= until);
            while !is_late && self.running.len() < plan.at_once.max(1) {
                let Some(spec) = waiting.next() else { break };
                if let Some(why) = spec.does_not_apply() {
                    if !on_verdict(Verdict { skipped: Some(why), ..spec.verdict() }) {
                        return Ok(Outcome::Cancelled);
                    }
                    continue;
                }
                let running = self.begin(spec)?;
                self.running.push(running);
            }
            if self.running.is_empty() {
                let is_done = waiting.next().is_none();
                return Ok(if is_done { Outcome::Done } else { Outcome::OutOfTime });
            }
            if self.wait()? {
                return Ok(Outcome::Cancelled);
            }
            for verdict in self.collect() {
                if !on_verdict(verdict) {
                    return Ok(Outcome::Cancelled);
                }
            }
        }
    }

    /// Forks the judge of a cell.
    fn begin(&self, spec: Spec) -> lariat_sys::Result<Running> {
        let (read, write) = files::pipe(0)?;
        files::set_nonblocking(&read, true)?;
        match spawn::fork_alone()? {
            None => {
                drop(read);
                let verdict = cell::judge(&spec, self.stage, self.subject);
                process::exit_now(u8::from(report(write, &verdict).is_err()))
            }
            Some(child) => {
                drop(write);
                let deadline = Instant::now() + CELL_WITHIN;
                Ok(Running { spec, child, pipe: read.into(), text: Vec::new(), deadline })
            }
        }
    }

    /// Blocks until something happens. Returns whether the drill has to end.
    fn wait(&self) -> lariat_sys::Result<bool> {
        let deadline = self.running.iter().map(|running| running.deadline).min();
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(self.guard, PollFlags::IN)];
        fds.extend(
            self.running.iter().map(|running| PollFd::from_borrowed_fd(running.pipe.as_fd(), PollFlags::IN)),
        );
        poll(&mut fds, deadline)?;
        let is_guard_gone = !fds[1].revents().is_empty();
        let mut is_asked = is_guard_gone;
        while let Some(received) = self.signals.read()? {
            is_asked |= ASKS.contains(&received.signal);
        }
        Ok(is_asked)
    }

    /// Takes what judges have said, and the verdicts of those who are done.
    fn collect(&mut self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let mut at = 0;
        while at < self.running.len() {
            let running = &mut self.running[at];
            let is_silent = is_at_end(running);
            let is_late = Instant::now() >= running.deadline;
            if !is_silent && !is_late {
                at += 1;
                continue;
            }
            let running = self.running.swap_remove(at);
            verdicts.push(self.finish(running));
        }
        verdicts
    }

    fn finish(&self, running: Running) -> Verdict {
        // A judge that has nothing more to say is gone or about to be; a late one is ended.
        let _ = running.child.pidfd.wait_exit(Some(Instant::now() + Duration::from_millis(200)));
        let _ = running.child.pidfd.signal(Signal::KILL);
        let _ = running.child.pidfd.wait_exit(Some(Instant::now() + Duration::from_secs(5)));
        let _ = reap::reap(running.child.pid);
        let judges: Vec<i32> = self.running.iter().map(|other| other.child.pid).collect();
        let marker = running.spec.marker(self.stage);
        // By walking first: what of it was still there would be hidden by the kernel's one stroke.
        let is_clean = census::end_everybody(&[], &marker, &judges);
        let is_cleared = self.stage.clear_cgroup(running.spec.number);
        let mut verdict = serde_json::from_slice(&running.text).unwrap_or_else(|_| Verdict {
            trouble: Some("the judge of this cell was ended".to_owned()),
            ..running.spec.verdict()
        });
        if !is_cleared {
            verdict.notes.push("the cgroup directory of this cell could not be removed".to_owned());
        }
        if !is_clean {
            verdict.notes.push("what is left could not be killed; it ends by its own timers".to_owned());
        }
        verdict
    }
}

/// Reads what has come; says whether the writer is gone.
fn is_at_end(running: &mut Running) -> bool {
    let mut block = [0; 4096];
    loop {
        match running.pipe.read(&mut block) {
            Ok(0) => return true,
            Ok(length) => running.text.extend_from_slice(block.get(..length).unwrap_or_default()),
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => return false,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
}

fn report(pipe: OwnedFd, verdict: &Verdict) -> std::io::Result<()> {
    File::from(pipe).write_all(&serde_json::to_vec(verdict)?)
}
