//! `run`: from arguments to [`crate::run`], and from how it ended to lariat's own end.

use std::io::Error;
use std::path::{Path, PathBuf};

use lariat::containment::{self, Candidates};
use lariat::isolation;
use lariat::ledger::command::CommandLedger;
use lariat::ledger::record::RunId;
use lariat::process::RUN_VARIABLE;
use lariat_keeper::contain::limits::{Limits, NoLimits, Seat, Step};
use lariat_keeper::wire::Named;
use lariat_sys::cgroup::text::Controllers;
use lariat_sys::{Errno, process, signal};

use super::up::{lacking, user_dirs};
use crate::args::run::RunArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};
use crate::run::{self, Ended, Ending, RunError, RunOptions};
use crate::settings::{self, Boundary};

/// Runs the command and never returns: the way it ends may be a signal.
pub(crate) fn run(args: &RunArgs) -> ! {
    let mut options = RunOptions::new(args.command.clone());
    options.grace = args.grace.unwrap_or(options.grace);
    options.signal = args.signal.unwrap_or(options.signal);
    options.has_lifeline = args.lifeline;
    options.is_isolated = args.isolate;
    // A lifeline says that the caller's death ends everything, and somebody else may hold the pipe as well.
    options.dies_with_parent = args.die_with_parent || args.lifeline;
    let around = std::env::var(RUN_VARIABLE).ok().and_then(|run| RunId::try_from(run).ok());
    options.ledger = CommandLedger::choose(&user_dirs(), around).ok();
    options.boundary = match settings::boundary() {
        Ok(boundary) => boundary,
        Err(failure) => process::exit_now(fail(Failure { code: ExitCode::RunTrouble, ..failure })),
    };
    let seat = limited(args, &mut options);
    let outcome = run::run(&options);
    // Before anything ends us: nobody else can move us back.
    drop(seat);
    let code = match outcome {
        Ok(ended) => {
            if ended.has_lost_keeper {
                fail(lost_keeper(&options, matches!(ended.ending, Ending::Left(_))));
            }
            report_left(&ended);
            report_limits(&ended, &options);
            match ended.ending {
                Ending::Code(code) => code,
                Ending::Signal(signal) => signal::raise_to_death(signal),
                Ending::Left(_) => ExitCode::RunTrouble.number(),
            }
        }
        Err(error) => fail(failure(&options, error)),
    };
    process::exit_now(code)
}

/// Makes a place in which the limits that are asked for have an effect, or says why they have none: the command is run
/// all the same.
fn limited(args: &RunArgs, options: &mut RunOptions) -> Option<Seat> {
    options.limits = Limits { memory: args.memory, processes: args.processes, cpu: args.cpu };
    let wanted = options.limits.controllers();
    if wanted.is_empty() {
        return None;
    }
    let seat = base(&options.boundary, wanted).and_then(|base| {
        let run = options.ledger.as_ref().map(|ledger| ledger.run().clone());
        let look = |errno| NoLimits::Step { step: Step::Look, errno };
        let run = run.map_or_else(RunId::new_random, Ok).map_err(look)?;
        let seat = Seat::take(&base, run.as_str(), wanted)?;
        options.limited_in = Some(base);
        Ok(seat)
    });
    let on = seat.as_ref().map(Seat::controllers).unwrap_or_default();
    let reason = seat.as_ref().map_or_else(|reason| Some(reason.clone()), Seat::lacks);
    if let Some(reason) = reason {
        let without = options.limits.by(wanted.without(on));
        let mut output = Output::new(false);
        output.note(&format!("lariat: not limited ({without}): {reason}"));
        output.note(&format!("hint: {}", reason.hint()));
    }
    options.limits = options.limits.by(on);
    seat.ok()
}

/// Chooses a directory in which limits have an effect.
fn base(boundary: &Boundary, wanted: Controllers) -> Result<PathBuf, NoLimits> {
    let given = match boundary {
        Boundary::Lineage => return Err(NoLimits::DescentAlone),
        Boundary::Any { given } | Boundary::Cgroup { given } => given,
    };
    let environment: Vec<_> = std::env::vars_os().collect();
    let choice = containment::choose(&Candidates {
        given: given.as_deref(),
        may_ask_systemd: true,
        environment: &environment,
        executable: Path::new("/proc/self/exe"),
        wanted,
    });
    choice.base.map(|base| base.path).ok_or(NoLimits::NoCgroup)
}

/// Says what came of the limits, in the words of an `up`.
fn report_limits(ended: &Ended, options: &RunOptions) {
    let memory = ended.out_of_memory.map(|found| found.in_words(&options.limits));
    let mut output = Output::new(false);
    for note in memory.iter().chain(&ended.notes) {
        output.note(&format!("lariat: {note}"));
    }
}

fn fail(failure: Failure) -> u8 {
    Output::new(false).fail(&failure);
    failure.code.number()
}

/// Names those who could not be ended, whatever the command's own end was.
fn report_left(ended: &Ended) {
    let count = match ended.ending {
        Ending::Left(count) => count,
        _ => u32::try_from(ended.left.len()).unwrap_or(u32::MAX),
    };
    if count == 0 {
        return;
    }
    let message = format!("{count} of its processes could not be ended");
    let named = ended.left.iter().map(|Named { identity, comm, errno }| {
        let why = if *errno == 0 { "it did not die of KILL".to_owned() } else { reason(*errno) };
        format!("`{comm}` (pid {identity}): {why}")
    });
    fail(named.fold(Failure::new(ExitCode::RunTrouble, message), Failure::because));
}

/// Says that somebody killed the keeper, which takes the grace period and the command's own end along.
fn lost_keeper(options: &RunOptions, is_anybody_left: bool) -> Failure {
    let name = options.command.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let then = match (options.is_isolated, is_anybody_left) {
        (true, _) => "the kernel ended everything in its pid namespace",
        (false, false) => "what it left was ended",
        (false, true) => "not all that it left could be ended",
    };
    Failure::new(ExitCode::RunTrouble, format!("the keeper of `{name}` was killed; {then}"))
}

fn reason(errno: i32) -> String {
    let text = Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn failure(options: &RunOptions, error: RunError) -> Failure {
    let name = options.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
    match error {
        RunError::NotFound => Failure::new(ExitCode::NotFound, format!("`{name}`: command not found")),
        RunError::NotExecutable(errno) => {
            Failure::new(ExitCode::NotExecutable, format!("could not execute `{name}`: {}", reason(errno)))
        }
        RunError::Kernel(missing) => lacking(ExitCode::RunTrouble, &missing),
        RunError::Isolate { step, errno } => {
            let hint = isolation::hint(step, Errno::from_raw_os_error(errno));
            Failure::new(ExitCode::RunTrouble, format!("could not isolate `{name}`"))
                .because(format!("could not {step}: {}", reason(errno)))
                .hint(hint)
        }
        RunError::Own { step, errno } => {
            Failure::new(ExitCode::RunTrouble, format!("could not {step}: {}", reason(errno)))
        }
    }
}
