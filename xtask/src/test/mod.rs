//! Everything a change must pass, in one command.
//!
//! Each step has a deadline and ends in counts. A step that fails does not keep the next from running. What cannot
//! be run here is a skip with its reason, counted and printed; in CI a skip is a failure.

mod fuzz;
mod isolate;
mod kernel;
mod needs;
mod readme;
mod steps;
mod user;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The README's command that runs the first stack.
pub(crate) const RUN_COMMAND: &str = "cargo run --release -- up -f examples/first/lariat.toml";
/// The README's command that tests a change; the only thing that CI runs.
pub(crate) const TEST_COMMAND: &str = "cargo xtask test";

/// The variable naming the file to which a test that cannot run here appends a line: `SKIP: TEST: REASON`.
const SKIPS_VARIABLE: &str = "LARIAT_TEST_SKIPS";
/// Set for the run as an ordinary user: the tests that need root ran as root before.
const ROOT_TOO_VARIABLE: &str = "LARIAT_TEST_ROOT_TOO";

/// Set for all runs here: the tests that need a kernel set up as the guest's run there as well.
const GUEST_TOO_VARIABLE: &str = "LARIAT_TEST_GUEST_TOO";

/// The containment that the tests ask lariat for.
const CONTAINMENT_VARIABLE: &str = "LARIAT_TEST_CONTAINMENT";
/// The profile of the tests that are about trees and endings.
const MATRIX_PROFILE: &str = "matrix";

/// What a step led to.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    /// Tests or checks that passed.
    pub(crate) passed: u32,
    /// Tests or checks that failed.
    pub(crate) failed: u32,
    /// One reason per test or check that could not run.
    pub(crate) skips: Vec<String>,
}

impl Outcome {
    /// A check that either holds or does not.
    fn check(holds: bool) -> Self {
        Self { passed: holds.into(), failed: (!holds).into(), skips: Vec::new() }
    }

    /// A check that cannot run here.
    fn skip(reason: impl Into<String>) -> Self {
        Self { skips: vec![reason.into()], ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips.extend(other.skips);
    }
}

/// What every step needs to know.
struct Session {
    root: PathBuf,
    /// `PATH` with the tools that were installed for the tests in front.
    path: std::ffi::OsString,
    is_ci: bool,
}

struct Step {
    name: &'static str,
    run: fn(&Session) -> Result<Outcome>,
    /// Also run by `--quick`.
    is_quick: bool,
}

/// The step that can be run alone.
const OLDER_KERNEL: &str = "an older kernel";

const STEPS: &[Step] = &[
    Step { name: "needs", run: needs::run, is_quick: false },
    Step { name: "format", run: steps::format, is_quick: true },
    Step { name: "lints", run: steps::lints, is_quick: true },
    Step {
        name: "tidy",
        run: |session| Ok(Outcome::check(crate::tidy::run(&session.root)?)),
        is_quick: true,
    },
    Step { name: "tests", run: steps::tests, is_quick: true },
    Step { name: "trees by descent alone", run: steps::matrix, is_quick: false },
    Step { name: "doc tests", run: steps::doc_tests, is_quick: false },
    Step { name: "documentation", run: steps::documentation, is_quick: false },
    Step { name: "tests as an ordinary user", run: user::run, is_quick: false },
    Step { name: "the same by descent alone", run: user::matrix, is_quick: false },
    Step { name: "fuzz targets", run: fuzz::run, is_quick: false },
    Step { name: "README", run: readme::run, is_quick: false },
    Step { name: OLDER_KERNEL, run: kernel::run, is_quick: false },
];

/// Runs every step and prints the summary. Returns whether all is well.
///
/// # Errors
/// An argument is unknown.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<bool> {
    let is_quick = match args {
        [] => false,
        [flag] if flag == "--quick" => true,
        _ => bail!("unknown arguments: {}", args.join(" ")),
    };
    run_steps(root, |step| step.is_quick || !is_quick)
}

/// Runs only the tests on an older kernel.
///
/// # Errors
/// An argument is given.
pub(crate) fn run_older_kernel(root: &Path, args: &[String]) -> Result<bool> {
    if !args.is_empty() {
        bail!("unknown arguments: {}", args.join(" "));
    }
    run_steps(root, |step| step.name == OLDER_KERNEL)
}

fn run_steps(root: &Path, is_wanted: impl Fn(&Step) -> bool) -> Result<bool> {
    let session = Session::new(root)?;
    let mut total = Outcome::default();
    let mut lines = Vec::new();
    for step in STEPS.iter().filter(|step| is_wanted(step)) {
        println!("\n==> {}", step.name);
        let start = Instant::now();
        let outcome = (step.run)(&session).unwrap_or_else(|error| {
            println!("error: {error:#}");
            Outcome::check(false)
        });
        lines.push(line(step.name, &outcome, start.elapsed()));
        total.add(outcome);
    }
    println!("\n{}", lines.join("\n"));
    for reason in &total.skips {
        println!("skipped: {reason}");
    }
    let is_well = total.failed == 0 && (total.skips.is_empty() || !session.is_ci);
    if !total.skips.is_empty() && session.is_ci {
        println!("CI allows no skip");
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skips.len());
    Ok(is_well)
}

/// Runs the fuzz targets alone.
///
/// # Errors
/// The argument is no number of seconds, or the targets do not build.
pub(crate) fn fuzz(root: &Path, args: &[String]) -> Result<bool> {
    let seconds = match args {
        [] => fuzz::SECONDS,
        [seconds] => seconds.parse().context("`fuzz` takes a number of seconds")?,
        _ => bail!("unknown arguments: {}", args.join(" ")),
    };
    let outcome = fuzz::run_for(&Session::new(root)?, seconds)?;
    println!("{}", line("fuzz targets", &outcome, Duration::ZERO));
    outcome.skips.iter().for_each(|reason| println!("skipped: {reason}"));
    Ok(outcome.failed == 0 && outcome.skips.is_empty())
}

fn line(name: &str, outcome: &Outcome, took: Duration) -> String {
    let Outcome { passed, failed, skips } = outcome;
    let mark = if *failed > 0 { "FAILED" } else { "ok" };
    let seconds = took.as_secs_f64();
    format!(
        "{name:<28} {mark:<7} {passed:>5} passed {failed:>3} failed {:>3} skipped {seconds:>7.1} s",
        skips.len()
    )
}

impl Session {
    fn new(root: &Path) -> Result<Self> {
        let tools = needs::tool_paths(root);
        let path = std::env::var_os("PATH").context("PATH is not set")?;
        let path = std::env::join_paths(tools.into_iter().chain(std::env::split_paths(&path)))?;
        let is_ci = std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
        Ok(Self { root: root.to_path_buf(), path, is_ci })
    }

    /// Returns a command of cargo's in the workspace.
    fn cargo(&self, args: &[&str]) -> Command {
        let mut command = Command::new("cargo");
        command.args(args).current_dir(&self.root).env("PATH", &self.path);
        command
    }
}

/// Whether we are root.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_add_up() {
        let mut total = Outcome::check(true);
        total.add(Outcome::check(false));
        total.add(Outcome::skip("no nginx"));
        assert_eq!(total, Outcome { passed: 1, failed: 1, skips: vec!["no nginx".to_owned()] });
    }

    #[test]
    fn a_failed_step_is_told_from_a_good_one() {
        assert!(line("tests", &Outcome::check(false), Duration::ZERO).contains("FAILED"));
        assert!(!line("tests", &Outcome::check(true), Duration::ZERO).contains("FAILED"));
    }

    #[test]
    fn an_unknown_argument_is_refused() {
        assert!(run(Path::new("/nowhere"), &["--fast".to_owned()]).is_err());
    }
}
