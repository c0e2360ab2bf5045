//! The `lariat` command: arguments → settings → commands → exit code.
//!
//! There is no `main` of the standard library around this one. That one ignores SIGPIPE for everything that is
//! started from here, and costs time before a keeper, which is this same executable, gets to its entry. What it does
//! besides and is needed is done here: panics are caught, and standard descriptors that are closed are occupied.

#![cfg_attr(not(test), no_main)]

mod args;
mod commands;
mod exit_code;
mod output;
mod run;
mod settings;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::Parser;
use clap::error::ErrorKind;

use args::Cli;
use exit_code::ExitCode;
use output::{Failure, Output};

#[cfg(not(test))]
lariat_sys::entry_point!(start);

/// Runs the command and returns the exit code of the process. Never unwinds.
#[cfg_attr(test, allow(dead_code, reason = "the test harness has a main of its own"))]
fn start() -> i32 {
    // Before everything else: a keeper needs nothing of what follows, and holds its descriptors in fixed places.
    lariat_keeper::entry::entry();
    // Likewise what a drill starts, which has to find its signals and descriptors as they were left.
    lariat_drill::member::entry();
    // A panic has printed its message by itself; what was started is ended by its keepers.
    let code = catch_unwind(AssertUnwindSafe(|| {
        occupy_standard_descriptors();
        command(std::env::args_os().collect())
    }));
    i32::from(code.unwrap_or(ExitCode::Trouble).number())
}

/// Opens `/dev/null` where standard input, output or error is closed, so that no file opened later gets its number
/// and is taken for it. Without `/dev/null` there is nothing to be done.
fn occupy_standard_descriptors() {
    while let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        if null.as_raw_fd() > 2 {
            return;
        }
        // Left open for the life of the process.
        let _ = null.into_raw_fd();
    }
}

fn command(args: Vec<OsString>) -> ExitCode {
    if args.get(1).is_some_and(|verb| verb == "run")
        && let Some(run) = args::run::parse(&args[2..])
    {
        commands::run::run(&run);
    }
    if args.get(1).is_some_and(|verb| verb == "port")
        && let Some(port) = args::port::parse(&args[2..])
    {
        let mut output = Output::new(false);
        let result = commands::port::run(&port, &mut output);
        return finish(result, output);
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return parse_error(args::suggest(error)),
    };
    let mut output = Output::new(cli.no_color);
    let result = commands::dispatch(&cli.command, &mut output);
    finish(result, output)
}

fn finish(result: Result<ExitCode, Failure>, mut output: Output) -> ExitCode {
    // What was printed comes first, also before the failure that follows it, which says more than that of the output.
    let written = output.finish();
    let result = result.and_then(|code| written.map(|()| code));
    match result {
        Ok(code) => code,
        Err(failure) => {
            output.fail(&failure);
            failure.code
        }
    }
}

/// Shows help or version on standard output, and what is wrong with the command line on standard error.
fn parse_error(error: clap::Error) -> ExitCode {
    let mut output = Output::new(false);
    let is_asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !is_asked_for {
        output.fail_usage(&error);
        return ExitCode::Usage;
    }
    let text = error.render();
    let text = if output.is_out_styled() { text.ansi().to_string() } else { text.to_string() };
    output.print(text);
    match output.finish() {
        Ok(()) => ExitCode::Done,
        Err(failure @ Failure { code, .. }) => {
            output.fail(&failure);
            code
        }
    }
}
