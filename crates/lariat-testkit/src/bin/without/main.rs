//! Runs a program as on a kernel that lacks something: `without [--listener PATH] FEATURE[=ERRNO]… -- PROGRAM ARGS…`.
//!
//! A seccomp filter answers the system calls of a feature as an older kernel would, or a sandbox with `=EPERM`. It holds
//! for the program and for everything that it starts, and `without` is replaced by the program, so that parents, signals
//! and exit codes are as without it. What a feature is stands in [`features`].
//!
//! `without --check FEATURE` exits with 0 if the filter of that feature does catch its call.

#![allow(clippy::unwrap_used, reason = "a fixture ends at the first surprise")]

mod features;
mod filter;
mod listener;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

/// What every usage message starts with.
const USAGE: &str = "without [--listener PATH] FEATURE[=ERRNO]... -- PROGRAM ARGS...";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, check, feature] = args.as_slice()
        && check == "--check"
    {
        return ExitCode::from(u8::from(!features::is_caught(feature)));
    }
    match run() {
        Ok(never) => match never {},
        Err(what) => {
            use std::io::Write as _;
            let names: Vec<&str> = features::FEATURES.iter().map(|feature| feature.name).collect();
            let said = format!("without: {what}\nusage: {USAGE}\nfeatures: {}\n", names.join(" "));
            let _ = std::io::stderr().write_all(said.as_bytes());
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<std::convert::Infallible, String> {
    let mut args = std::env::args_os().skip(1);
    let mut rules = Vec::new();
    let mut listener = None;
    loop {
        let word = args.next().ok_or("no program")?.into_string().map_err(|_| "a feature that is no text")?;
        match word.as_str() {
            "--" => break,
            "--listener" => listener = args.next(),
            word => rules.extend(features::rules(word)?),
        }
    }
    let program = args.next().ok_or("no program")?;
    let asks = rules.iter().any(|rule| rule.answer == filter::Answer::Ask);
    match (asks, &listener) {
        (true, None) => return Err("this feature needs --listener".into()),
        (false, Some(_)) => return Err("nothing to ask a listener".into()),
        _ => {}
    }
    // Connected before the filter is there: nothing that it needs may be missing to us.
    let socket = listener.map(|path| listener::connect(&path)).transpose()?;
    let asked = filter::install(&rules)?;
    if let (Some(socket), Some(asked)) = (socket, asked) {
        listener::hand_over(socket, asked)?;
    }
    let error = Command::new(&program).args(args).exec();
    Err(format!("could not execute {}: {error}", program.display()))
}
