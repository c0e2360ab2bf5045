//! `run`: from arguments to [`crate::run`], and from how it ended to lariat's own end.

use std::io::Error;

use lariat::ledger::command::CommandLedger;
use lariat::ledger::record::RunId;
use lariat::process::RUN_VARIABLE;
use lariat_sys::{process, signal};

use super::up::user_dirs;
use crate::args::run::RunArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};
use crate::run::{self, Ending, RunError, RunOptions};

/// Runs the command and never returns: the way it ends may be a signal.
pub(crate) fn run(args: &RunArgs) -> ! {
    let mut options = RunOptions::new(args.command.clone());
    options.grace = args.grace.unwrap_or(options.grace);
    options.signal = args.signal.unwrap_or(options.signal);
    options.has_lifeline = args.lifeline;
    options.dies_with_parent = args.die_with_parent;
    let around = std::env::var(RUN_VARIABLE).ok().and_then(|run| RunId::try_from(run).ok());
    options.ledger = CommandLedger::choose(&user_dirs(), around).ok();
    let code = match run::run(&options) {
        Ok(Ending::Code(code)) => code,
        Ok(Ending::Signal(signal)) => signal::raise_to_death(signal),
        Ok(Ending::Left(left)) => {
            let message = format!("{left} of its processes could not be ended");
            fail(Failure::new(ExitCode::RunTrouble, message))
        }
        Err(error) => fail(failure(&options, error)),
    };
    process::exit_now(code)
}

fn fail(failure: Failure) -> u8 {
    Output::new(false).fail(&failure);
    failure.code.number()
}

fn failure(options: &RunOptions, error: RunError) -> Failure {
    let name = options.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
    let reason = |errno| {
        let text = Error::from_raw_os_error(errno).to_string();
        text.split(" (os error").next().unwrap_or_default().to_lowercase()
    };
    match error {
        RunError::NotFound => Failure::new(ExitCode::NotFound, format!("`{name}`: command not found")),
        RunError::NotExecutable(errno) => {
            Failure::new(ExitCode::NotExecutable, format!("could not execute `{name}`: {}", reason(errno)))
        }
        RunError::Own { step, errno } => {
            Failure::new(ExitCode::RunTrouble, format!("could not {step}: {}", reason(errno)))
        }
    }
}
