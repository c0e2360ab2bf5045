//! `lariat doctor`: what this machine can guarantee (`report.rs`), and the drill that proves it (`drill.rs`).

mod contain;
mod drill;
mod machine;
mod matrix;
mod report;

use crate::args::doctor::DoctorArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Looks, or drills.
pub(crate) fn run(args: &DoctorArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    if args.drill { drill::run(args, output) } else { look(args, output) }
}

fn look(args: &DoctorArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let report = report::Report::new();
    if args.json {
        output.print_json(&report)?;
    } else {
        output.print(report.text());
    }
    let Some((why, hint)) = report.trouble() else { return Ok(ExitCode::Done) };
    let failure = Failure::new(ExitCode::Trouble, "lariat cannot do its work here").because(why);
    Err(match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    })
}
