//! `lariat doctor --drill`: chooses, runs, shows.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use lariat_drill::drill::{self, Outcome, Plan};
use lariat_drill::endings::{ENDINGS, Ending};
use lariat_drill::guard::{self, Side};
use lariat_drill::promise::Containment;
use lariat_drill::stage::{Stage, Subject};
use lariat_drill::trees::{self, TREES};
use lariat_drill::verdict::Verdict;
use lariat_keeper::wire::{End, Notice};
use lariat_sys::Errno;
use lariat_sys::reap::Exit;
use lariat_sys::spawn::SpawnStep;
use serde::Serialize;

use super::{contain, matrix};
use crate::args::Cli;
use crate::args::doctor::DoctorArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// How long no new cell is begun after this, in a drill of everything and in a quick one, for one round.
const WITHIN: [Duration; 2] = [Duration::from_secs(1200), Duration::from_secs(100)];
/// How long the last cells and the cleaning may take beyond that, before the guard ends the drill.
const BEYOND: Duration = Duration::from_secs(200);

/// Drills, in a process of its own that this one guards.
pub(super) fn run(args: &DoctorArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    if args.list {
        output.print(matrix::list());
        return Ok(ExitCode::Done);
    }
    let plans = plans(args)?;
    let subject = subject(args)?;
    let rounds = u32::try_from(plans.len()).unwrap_or(u32::MAX);
    let within = WITHIN[usize::from(args.quick)].saturating_mul(rounds) + BEYOND;
    let trouble = |errno| Failure::new(ExitCode::Trouble, "could not begin the drill").because(errno);
    let stage = Stage::new(&subject, contain::cgroup_base().as_deref()).map_err(|error| {
        Failure::new(ExitCode::Trouble, "could not make directories for the drill").because(error)
    })?;
    match guard::split(within, &stage).map_err(trouble)? {
        Side::Drill(guard) => Drill::new(args, output).run(&plans, &stage, &subject, &guard),
        Side::Over(Some(code)) => Ok(ExitCode::of(code).unwrap_or(ExitCode::Trouble)),
        Side::Over(None) => {
            Err(Failure::new(ExitCode::Trouble, "the drill was killed; nothing of it is left"))
        }
    }
}

/// Returns a plan for each round.
fn plans(args: &DoctorArgs) -> Result<Vec<Plan>, Failure> {
    let available = contain::available();
    let containments = match args.containments.as_slice() {
        [] => available,
        names => names.iter().map(|name| containment(name, &available)).collect::<Result<_, _>>()?,
    };
    let mut plan = Plan::usual(containments, args.quick);
    let unknown = |kind: &str, name: &str| {
        Failure::new(ExitCode::Usage, format!("there is no {kind} `{}`", name.escape_debug()))
            .hint("`lariat doctor --drill --list` shows their names")
    };
    if !args.trees.is_empty() {
        let find = |name: &String| trees::find(name).ok_or_else(|| unknown("tree", name));
        plan.trees = args.trees.iter().map(find).collect::<Result<_, _>>()?;
    }
    if !args.endings.is_empty() {
        let find = |name: &String| Ending::find(name).ok_or_else(|| unknown("ending", name));
        plan.endings = args.endings.iter().map(find).collect::<Result<_, _>>()?;
        plan.endings.sort_by_key(|ending| ending.letter());
        plan.endings.dedup();
    }
    plan.within = WITHIN[usize::from(args.quick)];
    let first = args.seed.unwrap_or(1);
    let rounds = (0..args.repeat.unwrap_or(1)).map(|round| first.wrapping_add(round));
    Ok(rounds.map(|seed| Plan { seed, ..plan.clone() }).collect())
}

fn containment(name: &str, available: &[Containment]) -> Result<Containment, Failure> {
    let found = available.iter().find(|containment| containment.name() == name);
    found.copied().ok_or_else(|| {
        let known = Containment::ALL.iter().any(|containment| containment.name() == name);
        let message = format!("there is no containment `{}`", name.escape_debug());
        let message = if known { format!("{message} here") } else { message };
        Failure::new(ExitCode::Usage, message)
            .hint("`lariat doctor` says which there are, and why not the others")
    })
}

fn subject(args: &DoctorArgs) -> Result<Subject, Failure> {
    let members = std::env::current_exe().map_err(|error| {
        Failure::new(ExitCode::Trouble, "could not find lariat's own file").because(error)
    })?;
    if !members.exists() {
        return Err(Failure::new(ExitCode::Trouble, "the file of this lariat was removed or replaced")
            .hint("start the one that is installed now"));
    }
    let program: PathBuf = args.subject.clone().unwrap_or_else(|| members.clone());
    let has_sweep = args.subject.is_none() && Cli::command().find_subcommand("sweep").is_some();
    // Words of this lariat's keepers: another subject takes them for noise, which is an attack as well.
    let ended = Notice::Ended(End { exit: Some(Exit::Code(0)), ..End::default() });
    let failed = Notice::SpawnFailed { step: SpawnStep::Exec, errno: Errno::NOENT.raw_os_error() };
    let last_words = [ended, failed].iter().map(Notice::encode).collect();
    Ok(Subject { program, members, has_sweep, last_words })
}

/// A drill as it is shown.
struct Drill<'a> {
    args: &'a DoctorArgs,
    output: &'a mut Output,
    shows_progress: bool,
    has_progress: bool,
    total: usize,
    done: usize,
    cells: Vec<Verdict>,
    /// Verdicts of trees whose row is not complete.
    rows: BTreeMap<(String, String), Vec<Verdict>>,
    /// The containment that the row shown last was judged under.
    shown: Option<String>,
}

/// The whole drill as data.
#[derive(Serialize)]
struct Report<'a> {
    is_kept: bool,
    is_complete: bool,
    seconds: f64,
    judged: usize,
    skipped: usize,
    findings: usize,
    cells: &'a [Verdict],
}

impl<'a> Drill<'a> {
    fn new(args: &'a DoctorArgs, output: &'a mut Output) -> Self {
        let shows_progress = !args.json && std::io::stderr().is_terminal();
        Self {
            args,
            output,
            shows_progress,
            has_progress: false,
            total: 0,
            done: 0,
            cells: Vec::new(),
            rows: BTreeMap::new(),
            shown: None,
        }
    }

    fn run(
        mut self,
        plans: &[Plan],
        stage: &Stage,
        subject: &Subject,
        guard: &lariat_sys::pidfd::PidFd,
    ) -> Result<ExitCode, Failure> {
        let began = Instant::now();
        self.total = plans.iter().map(Plan::len).sum();
        let mut outcome = Outcome::Done;
        for plan in plans {
            self.shown = None;
            let judged = drill::run(plan, stage, subject, guard, &mut |verdict| self.take(plan, verdict));
            outcome = judged.map_err(|errno| {
                Failure::new(ExitCode::Trouble, "could not go on with the drill").because(errno)
            })?;
            self.show_rest(plan);
            if outcome != Outcome::Done {
                break;
            }
        }
        self.finish(plans, outcome, began.elapsed())
    }

    /// Takes a verdict, and shows the row of its tree when that is complete. Returns whether anybody still reads.
    fn take(&mut self, plan: &Plan, verdict: Verdict) -> bool {
        let is_judged = verdict.skipped.is_none();
        self.done += usize::from(is_judged);
        if self.shows_progress && is_judged {
            let (done, total) = (self.done, self.total);
            self.clear_progress();
            let text = format!("{} × {} ({done}/{total})\n", verdict.tree, verdict.ending);
            // There is no other place to show it.
            self.has_progress = std::io::stderr().write_all(text.as_bytes()).is_ok();
        }
        let key = (verdict.containment.clone(), verdict.tree.clone());
        self.cells.push(verdict.clone());
        let row = self.rows.entry(key.clone()).or_default();
        row.push(verdict);
        if row.len() == plan.endings.len() {
            self.show_row(plan, &key);
        }
        !self.output.is_broken()
    }

    fn show_row(&mut self, plan: &Plan, key: &(String, String)) {
        let Some(cells) = self.rows.remove(key) else { return };
        if self.args.json {
            return;
        }
        self.clear_progress();
        // Cells are judged side by side, so a row may be complete when those of the next containment have begun.
        if self.shown.as_ref() != Some(&key.0) {
            self.shown = Some(key.0.clone());
            let containment = plan.containments.iter().find(|containment| containment.name() == key.0);
            if let Some(containment) = containment {
                self.output.print(matrix::head(*containment, &plan.endings));
            }
        }
        self.output.print(matrix::row(&key.1, &plan.endings, &cells));
        self.output.flush();
    }

    /// Shows the rows of trees that were not judged to the end.
    fn show_rest(&mut self, plan: &Plan) {
        for key in self.rows.keys().cloned().collect::<Vec<_>>() {
            self.show_row(plan, &key);
        }
    }

    /// Takes the line that was shown last away.
    fn clear_progress(&mut self) {
        if std::mem::take(&mut self.has_progress) {
            let _ = std::io::stderr().write_all(b"\x1b[1A\r\x1b[K");
        }
    }

    fn finish(mut self, plans: &[Plan], outcome: Outcome, took: Duration) -> Result<ExitCode, Failure> {
        self.clear_progress();
        let judged = self.cells.iter().filter(|cell| cell.skipped.is_none()).count();
        let findings = self.cells.iter().filter(|cell| !cell.is_kept()).count();
        let is_complete = outcome == Outcome::Done;
        let report = Report {
            is_kept: findings == 0,
            is_complete,
            seconds: took.as_secs_f64(),
            judged,
            skipped: self.cells.len() - judged,
            findings,
            cells: &self.cells,
        };
        if self.args.json {
            self.output.print_json(&report)?;
        } else {
            let endings = plans.first().map(|plan| plan.endings.as_slice()).unwrap_or_default();
            self.output.print(matrix::legend(endings));
            self.output.print(matrix::skips(&self.cells));
            self.output.print(matrix::findings(&self.cells));
            self.output.print(summary(&report, took));
        }
        match outcome {
            Outcome::Done | Outcome::OutOfTime if findings > 0 => Ok(verdict_code(&self.cells)),
            Outcome::Done => Ok(ExitCode::Done),
            Outcome::Cancelled if self.output.is_broken() => {
                Ok(if findings > 0 { verdict_code(&self.cells) } else { ExitCode::Done })
            }
            Outcome::Cancelled => Err(Failure::new(
                ExitCode::Trouble,
                "the drill was ended before it was done; nothing of it is left",
            )),
            Outcome::OutOfTime => {
                Err(Failure::new(ExitCode::Trouble, "the drill's time was over before everything was judged")
                    .hint("`lariat doctor --drill TREE` drills less"))
            }
        }
    }
}

/// A promise that was broken, or only trouble of the drill's own.
fn verdict_code(cells: &[Verdict]) -> ExitCode {
    let is_broken = cells.iter().any(|cell| !cell.is_kept() && cell.trouble.is_none());
    if is_broken { ExitCode::Left } else { ExitCode::Trouble }
}

fn summary(report: &Report<'_>, took: Duration) -> String {
    let trees = report.cells.iter().filter(|cell| cell.skipped.is_none()).map(|cell| &cell.tree);
    let trees = trees.collect::<std::collections::BTreeSet<_>>().len();
    let findings = match report.findings {
        0 => "no finding: every promise was kept".to_owned(),
        1 => "1 finding".to_owned(),
        n => format!("{n} findings"),
    };
    let (all_trees, all_endings) = (TREES.len(), ENDINGS.len());
    format!(
        "\n{} cells judged ({trees} of {all_trees} trees, {all_endings} endings are known), {} skipped, in {:.0} s\n{findings}\n",
        report.judged,
        report.skipped,
        took.as_secs_f64()
    )
}
