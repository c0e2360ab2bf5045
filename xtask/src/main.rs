//! Development tasks: `cargo xtask test`, `cargo xtask kernel`, `cargo xtask tidy`, `cargo xtask bench`.
//!
//! Nothing here is shipped, and nothing here trusts lariat: what is alive is read from `/proc` by [`processes`].

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a development task talks to its terminal")]

mod bench;
mod commands;
mod processes;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "\
usage: cargo xtask <task>

  test [--quick]          everything a change must pass; installs what the tests need
                          --quick: format, lints, tidy and tests only
  fuzz [SECONDS]          the fuzz targets alone, each for so long (default: 10)
  kernel                  the part of it that runs on Debian's own kernel, in an emulator
  tidy                    the house rules that no compiler checks
  bench [OPTIONS] [PART…] lariat beside its peers, against the budgets
                          --json FILE       the same as JSON
                          --profile NAME    Cargo profile of the lariat measured (default: dist)
                          --rounds N        rounds per comparison, instead of each part's own number
                          PART: run, stop, kill, logs, idle, start, port (default: all)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the task that the arguments name. `Ok(false)`: it ran, and has already said what is wrong.
fn dispatch(args: &[String]) -> Result<bool> {
    let (task, rest) = args.split_first().context(USAGE)?;
    match task.as_str() {
        "test" => test::run(&root()?, rest),
        "fuzz" => test::fuzz(&root()?, rest),
        "kernel" => test::run_older_kernel(&root()?, rest),
        "tidy" => tidy::run(&root()?),
        "bench" => bench::run(&root()?, rest),
        bench::INNER => bench::run_inner(rest),
        bench::CHILD => bench::run_child(rest),
        _ => bail!("unknown task `{task}`\n{USAGE}"),
    }
}

/// Returns the workspace's root.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask is not inside a workspace")?.to_path_buf())
}
