//! One file per verb, and the table that leads to them.

mod check;
mod completions;
mod init;
mod man;
pub(crate) mod run;

use crate::args::Command;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Does what was asked for.
pub(crate) fn dispatch(command: &Command, output: &mut Output) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::run(args, output),
        Command::Init(args) => init::run(args, output),
        Command::Completions(args) => completions::run(args, output),
        Command::Man(args) => man::run(args, output),
    }
}
