//! `lariat doctor`: what this machine can guarantee (`report.rs`), and the drill that proves it (`drill.rs`).

mod contain;
mod drill;
mod matrix;

use crate::args::doctor::DoctorArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Looks, or drills.
pub(crate) fn run(args: &DoctorArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    if args.drill { drill::run(args, output) } else { Ok(ExitCode::Done) }
}
