//! The tests where nextest is missing: each in a process of its own, with a deadline.
//!
//! `cargo test` runs the tests of a program as threads of one process, where tests that reap, signal or change what
//! is ignored disturb each other. It only builds here. What nextest does beyond that (groups, retries, reports) is
//! left out.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::steps::{CARGO_LIMIT, TestRun};
use super::{MATRIX_PROFILE, Outcome, Session};
use crate::commands;

/// Longest time for one test.
const TEST_LIMIT: Duration = Duration::from_secs(120);
/// Tests side by side, at most: some start hundreds of processes.
const WORKERS_MAX: usize = 4;
/// Packages that the profile `user` leaves out; .config/nextest.toml says the same.
const SAME_FOR_EVERYONE: &[&str] = &["xtask", "lariat-config"];

/// The programs of the profile `matrix`; .config/nextest.toml says the same.
const MATRIX: &[&str] = &["run_matrix", "up_careless", "up_stops", "up_runs", "doctor", "sweep_trees"];

/// What it leaves out of them: those that choose their containment themselves.
const ISOLATED: &str = "::isolated::";

/// A program full of tests.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Program {
    path: PathBuf,
    /// The package's folder, where its tests run.
    dir: PathBuf,
}

/// Builds the tests and runs them one by one.
pub(super) fn run(session: &Session, how: &TestRun<'_>) -> Result<Outcome> {
    let tests = list(session, how)?;
    println!("{} tests, each in a process of its own", tests.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut outcome = Outcome::default();
        while let Some((program, name)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
            outcome.add(Outcome::check(passes(session, how, program, name)));
        }
        outcome
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let mut outcome = Outcome::default();
    thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in running {
            // A worker that panicked did not say what it counted.
            outcome.add(worker.join().unwrap_or_else(|_| Outcome::check(false)));
        }
    });
    Ok(outcome)
}

fn passes(session: &Session, how: &TestRun<'_>, program: &Program, name: &str) -> bool {
    let mut command = start(session, how, program);
    command.args(["--exact", name, "--nocapture"]);
    let (is_good, text) = match commands::output(&mut command, TEST_LIMIT) {
        Ok((status, text)) => (status.success(), text),
        Err(error) => (false, format!("{error:#}\n")),
    };
    if !is_good {
        println!("FAILED {name} in {}\n{text}", program.path.display());
    }
    is_good
}

fn start(session: &Session, how: &TestRun<'_>, program: &Program) -> Command {
    let mut command = Command::new(how.runner.unwrap_or(&program.path));
    if how.runner.is_some() {
        command.arg(&program.path);
    }
    command.current_dir(&program.dir).env("CARGO_MANIFEST_DIR", &program.dir);
    command.env("PATH", &session.path);
    how.tell(&mut command);
    command
}

fn list(session: &Session, how: &TestRun<'_>) -> Result<Vec<(Program, String)>> {
    let mut build =
        session.cargo(&["test", "--workspace", "--locked", "--no-run", "--lib", "--bins", "--tests"]);
    build.args(["--quiet", "--message-format=json-render-diagnostics"]);
    let (status, messages) = commands::output(&mut build, CARGO_LIMIT)?;
    ensure!(status.success(), "the tests do not build\n{messages}");
    let mut tests = Vec::new();
    for program in messages.lines().filter_map(|line| program(line, how.profile)) {
        let mut list = start(session, how, &program);
        let (status, names) = commands::output(list.args(["--list", "--format", "terse"]), TEST_LIMIT)?;
        ensure!(status.success(), "{} does not list its tests\n{names}", program.path.display());
        let names = names.lines().filter_map(|line| line.strip_suffix(": test"));
        let names = names.filter(|name| how.profile != MATRIX_PROFILE || !name.contains(ISOLATED));
        tests.extend(names.map(|name| (program.clone(), name.to_owned())));
    }
    Ok(tests)
}

/// Returns the program that a line of cargo's speaks of, unless it is none or the profile leaves it out.
fn program(line: &str, profile: &str) -> Option<Program> {
    let message: Value =
        serde_json::from_str(line).ok().filter(|message: &Value| message["profile"]["test"] == true)?;
    let dir = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    let package = dir.file_name()?.to_str()?;
    let is_wanted = match profile {
        "user" => !SAME_FOR_EVERYONE.contains(&package),
        MATRIX_PROFILE => message["target"]["name"].as_str().is_some_and(|name| MATRIX.contains(&name)),
        _ => true,
    };
    let path = PathBuf::from(message["executable"].as_str()?);
    is_wanted.then_some(Program { path, dir })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = r#"{"reason":"compiler-artifact","manifest_path":"/a/xtask/Cargo.toml",
        "profile":{"test":true},"executable":"/a/target/debug/deps/xtask-1"}"#;

    #[test]
    fn a_test_program_is_found_in_what_cargo_says() {
        let found = program(MESSAGE, "default").unwrap();
        assert_eq!(
            (found.path.to_str(), found.dir.to_str()),
            (Some("/a/target/debug/deps/xtask-1"), Some("/a/xtask"))
        );
        assert_eq!(program(&MESSAGE.replace("true", "false"), "default"), None);
        assert_eq!(program("warning: unused", "default"), None);
    }

    #[test]
    fn the_profile_matrix_has_the_same_programs_as_nextest() {
        let of = |name: &str| {
            MESSAGE.replace("\"profile\"", &format!("\"target\":{{\"name\":\"{name}\"}},\"profile\""))
        };
        assert!(program(&of("run_matrix"), MATRIX_PROFILE).is_some());
        assert_eq!(program(&of("usage"), MATRIX_PROFILE), None);
        let config = include_str!("../../../.config/nextest.toml");
        let filter = format!("binary(/^({})$/) and not test(/{ISOLATED}/)", MATRIX.join("|"));
        assert!(config.contains(&format!("default-filter = '{filter}'")));
    }

    #[test]
    fn the_profile_user_leaves_out_the_same_packages_as_nextest() {
        assert_eq!(program(MESSAGE, "user"), None);
        let filter: Vec<String> =
            SAME_FOR_EVERYONE.iter().map(|name| format!("not package({name})")).collect();
        let config = include_str!("../../../.config/nextest.toml");
        assert!(config.contains(&format!("default-filter = '{}'", filter.join(" and "))));
    }
}
