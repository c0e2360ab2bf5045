//! The steps that are cargo's.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{
    CONTAINMENT_VARIABLE, GUEST_TOO_VARIABLE, MATRIX_PROFILE, Outcome, ROOT_TOO_VARIABLE, SKIPS_VARIABLE,
    Session, isolate,
};
use crate::commands;

/// Longest time for building, or for one run of the tests.
pub(super) const CARGO_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Formatting.
pub(super) fn format(session: &Session) -> Result<Outcome> {
    if !has(session, "fmt") {
        return Ok(Outcome::skip("formatting: cargo has no `fmt`"));
    }
    check(&mut session.cargo(&["fmt", "--all", "--check"]))
}

/// Lints, warnings as errors.
pub(super) fn lints(session: &Session) -> Result<Outcome> {
    if !has(session, "clippy") {
        return Ok(Outcome::skip("lints: cargo has no `clippy`"));
    }
    check(&mut session.cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Documentation without warnings.
pub(super) fn documentation(session: &Session) -> Result<Outcome> {
    check(
        session
            .cargo(&["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// The examples in the documentation.
pub(super) fn doc_tests(session: &Session) -> Result<Outcome> {
    counted(&mut session.cargo(&["test", "--workspace", "--doc", "--locked"]), libtest_counts)
}

/// How the tests are run.
pub(super) struct TestRun<'a> {
    /// nextest's profile.
    pub(super) profile: &'a str,
    /// Where tests write down that they were skipped; exists.
    pub(super) skips: &'a Path,
    /// Put in front of each test program.
    pub(super) runner: Option<&'a Path>,
    /// The containment that lariat is asked for; what it finds best if absent.
    pub(super) containment: Option<&'a str>,
}

impl TestRun<'_> {
    /// Tells the tests what they are to do otherwise than usual.
    pub(super) fn tell(&self, command: &mut Command) {
        command.env(SKIPS_VARIABLE, self.skips);
        if let Some(containment) = self.containment {
            command.env(CONTAINMENT_VARIABLE, containment);
        }
        command.env(GUEST_TOO_VARIABLE, "1");
        if self.runner.is_some() {
            // The same tests have run as root before: what needs root was not skipped, only not run twice.
            command.env(ROOT_TOO_VARIABLE, "1");
        }
    }
}

/// All tests, as who we are.
pub(super) fn tests(session: &Session) -> Result<Outcome> {
    let skips = session.root.join("target/test-skips.txt");
    fs::create_dir_all(session.root.join("target"))?;
    fs::write(&skips, "")?;
    run_tests(
        session,
        &TestRun {
            profile: if session.is_ci { "ci" } else { "default" },
            skips: &skips,
            runner: None,
            containment: None,
        },
    )
}

/// The trees and endings again, by descent alone: elsewhere a cgroup may have done the work.
pub(super) fn matrix(session: &Session) -> Result<Outcome> {
    let skips = session.root.join("target/matrix-skips.txt");
    fs::write(&skips, "")?;
    run_tests(
        session,
        &TestRun { profile: MATRIX_PROFILE, skips: &skips, runner: None, containment: Some("lineage") },
    )
}

/// Runs the tests and gathers the skips that they write down.
pub(super) fn run_tests(session: &Session, how: &TestRun<'_>) -> Result<Outcome> {
    let mut outcome = if has(session, "nextest") {
        nextest(session, how)?
    } else {
        println!("cargo-nextest is not installed: the tests are run without it");
        isolate::run(session, how)?
    };
    let lines: BTreeSet<String> = fs::read_to_string(how.skips)?
        .lines()
        .map(|line| line.trim_start_matches("SKIP: ").to_owned())
        .collect();
    // A test that wrote down its skip returned early and was counted as passed.
    outcome.passed = outcome.passed.saturating_sub(u32::try_from(lines.len())?);
    outcome.skips.extend(lines);
    Ok(outcome)
}

fn nextest(session: &Session, how: &TestRun<'_>) -> Result<Outcome> {
    let args = ["nextest", "run", "--workspace", "--locked", "--no-fail-fast", "--profile", how.profile];
    let mut command = session.cargo(&args);
    how.tell(&mut command);
    if let Some(runner) = how.runner {
        command.env(format!("CARGO_TARGET_{}_RUNNER", host()?.to_uppercase().replace('-', "_")), runner);
    }
    counted(&mut command, nextest_counts)
}

pub(super) fn host() -> Result<String> {
    let (_, text) = commands::output(Command::new("rustc").arg("-vV"), Duration::from_secs(60))?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc does not name its host")?.to_owned())
}

/// Whether cargo has a command of that name.
fn has(session: &Session, name: &str) -> bool {
    let version = commands::output(&mut session.cargo(&[name, "--version"]), Duration::from_secs(60));
    version.is_ok_and(|(status, _)| status.success())
}

fn check(command: &mut Command) -> Result<Outcome> {
    Ok(Outcome::check(commands::status(command, CARGO_LIMIT)?.success()))
}

/// Runs tests and counts them by their closing lines. A failure that no line tells counts as one.
fn counted(command: &mut Command, count: fn(&str) -> (u32, u32)) -> Result<Outcome> {
    let (status, text) = commands::tee(command, CARGO_LIMIT)?;
    let (passed, failed) = count(&text);
    ensure!(
        status.success() || failed > 0 || passed > 0,
        "`{}` ended with {status}",
        commands::display(command)
    );
    let failed = if status.success() { failed } else { failed.max(1) };
    Ok(Outcome { passed, failed, skips: Vec::new() })
}

/// Counts by nextest's `Summary` line; timeouts and the like are failures. Its "skipped" are those that the profile
/// leaves out by design.
fn nextest_counts(text: &str) -> (u32, u32) {
    let Some(line) = text.lines().rev().find(|line| line.contains("Summary [")) else { return (0, 0) };
    let counts = line.rsplit("tests run: ").next().unwrap_or_default();
    let mut sums = (0, 0);
    for part in counts.split(", ") {
        let (number, what) = part.trim().split_once(' ').unwrap_or_default();
        let number: u32 = number.parse().unwrap_or_default();
        match what.split(' ').next() {
            Some("passed") => sums.0 += number,
            Some("skipped") => {}
            _ => sums.1 += number,
        }
    }
    sums
}

/// Counts by the `test result:` lines of every test program. An ignored test counts as failed: there are none.
fn libtest_counts(text: &str) -> (u32, u32) {
    let number = |line: &str, what: &str| -> u32 {
        let before = line.split(&format!(" {what}")).next().unwrap_or_default();
        before.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default()
    };
    let results = text.lines().filter(|line| line.starts_with("test result:"));
    results.fold((0, 0), |(passed, failed), line| {
        (passed + number(line, "passed"), failed + number(line, "failed") + number(line, "ignored"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_says_its_counts_in_one_line() {
        let line =
            |counts: &str| nextest_counts(&format!("x\n     Summary [   1.2s] 9 tests run: {counts}\n"));
        assert_eq!(line("9 passed, 3 skipped"), (9, 0));
        assert_eq!(line("5 passed (1 slow), 3 failed, 1 timed out, 0 skipped"), (5, 4));
        assert_eq!(nextest_counts("error: could not compile"), (0, 0));
        assert_eq!(nextest_counts(" Summary [ 1.2s] 9/12 tests run: 8 passed, 1 failed, 0 skipped"), (8, 1));
    }

    #[test]
    fn libtest_says_its_counts_once_per_program() {
        let text = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured\n\
                    test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured\n";
        assert_eq!(libtest_counts(text), (4, 3));
    }
}
