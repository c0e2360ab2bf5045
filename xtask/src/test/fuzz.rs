//! Everything that reads bytes it did not write, under libFuzzer for a bounded time each.
//!
//! The targets are a workspace of their own in `fuzz/`, built by the ordinary stable compiler: what they need of it, the
//! coverage pass of LLVM, is a stable option. What was found in earlier runs stays in `target/fuzz/corpus` and is begun
//! with; `fuzz/seeds` is the beginning of a fresh machine. A target that must fail is run as well: if it does not, the
//! others prove nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::steps::{CARGO_LIMIT, host};
use super::{Outcome, Session};
use crate::commands;

/// The targets.
const TARGETS: &[&str] = &["config", "ledger", "procfile", "procfs", "wire"];
/// The target with a fault in it.
const CONTROL: &str = "control";
/// How long each target is run, in seconds.
pub(super) const SECONDS: u64 = 10;
/// The most that the control may take to fail, in seconds: it takes less than one.
const CONTROL_SECONDS: u64 = 60;
/// How long one input may take, in seconds: the readers take microseconds.
const INPUT_SECONDS: u64 = 5;
/// Coverage of every edge, and of what is compared with what.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Builds the targets and runs each.
pub(super) fn run(session: &Session) -> Result<Outcome> {
    run_for(session, SECONDS)
}

/// Does so, each for so many seconds.
pub(super) fn run_for(session: &Session, seconds: u64) -> Result<Outcome> {
    if !commands::is_installed("c++") {
        return Ok(Outcome::skip("fuzz targets: libFuzzer needs a C++ compiler, and there is no `c++`"));
    }
    let fuzz = Fuzz::build(session)?;
    let mut outcome = Outcome::default();
    let (has_failed, text) = fuzz.run(CONTROL, CONTROL_SECONDS)?;
    let is_caught =
        has_failed && text.contains("found what was hidden") && text.contains("Test unit written to");
    println!("{CONTROL}: {}", if is_caught { "fails, as it must" } else { "does not fail as it must" });
    outcome.add(Outcome::check(is_caught));
    for target in TARGETS {
        let (has_failed, text) = fuzz.run(target, seconds)?;
        println!("{target}: {}", summary(&text));
        if has_failed {
            // The seed is in the first lines, the input with its place in the last.
            println!("{text}");
        }
        outcome.add(Outcome::check(!has_failed));
    }
    Ok(outcome)
}

/// The built targets.
struct Fuzz {
    root: PathBuf,
    programs: PathBuf,
}

impl Fuzz {
    fn build(session: &Session) -> Result<Self> {
        let root = session.root.join("fuzz");
        let target = session.root.join("target/fuzz");
        let mut command = session.cargo(&["build", "--release", "--locked", "--quiet"]);
        // The flags take the place of those in .cargo/config.toml; naming the host as target, which that file does, keeps
        // them away from build scripts.
        command.current_dir(&root).env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", &target);
        let status = commands::status(&mut command, CARGO_LIMIT)?;
        ensure!(status.success(), "the fuzz targets do not build");
        let programs = target.join(host()?).join("release");
        Ok(Self { root, programs })
    }

    /// Runs a target; returns whether it failed, and what it said.
    fn run(&self, target: &str, seconds: u64) -> Result<(bool, String)> {
        let kept = self.root.with_file_name("target").join("fuzz");
        let (corpus, artifacts) = match target {
            CONTROL => (kept.join("control/corpus"), kept.join("control/artifacts")),
            _ => (kept.join("corpus").join(target), kept.join("artifacts")),
        };
        if target == CONTROL && kept.join(target).exists() {
            // What was found once would be found at once, and prove nothing.
            fs::remove_dir_all(kept.join(target))?;
        }
        for place in [&corpus, &artifacts] {
            fs::create_dir_all(place).with_context(|| format!("could not make {}", place.display()))?;
        }
        let mut command = Command::new(self.programs.join(target));
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-artifact_prefix={}/{target}-", artifacts.display()))
            .args(["-print_final_stats=1", "-rss_limit_mb=2048"])
            .arg(&corpus);
        let seeds = self.root.join("seeds").join(target);
        command.args(seeds.is_dir().then_some(seeds));
        let (status, text) = commands::output(&mut command, Duration::from_secs(seconds + 60))?;
        Ok((!status.success(), text))
    }
}

/// Returns how many inputs a run of libFuzzer tried, and which seed it had.
fn summary(text: &str) -> String {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("?", str::trim).to_owned()
    };
    let (count, seed) = (value("stat::number_of_executed_units:"), value("INFO: Seed:"));
    format!("{count} inputs, seed {seed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_summed_up() {
        let text = "INFO: Running\nINFO: Seed: 42\n#2 INITED\nstat::number_of_executed_units: 70\n";
        assert_eq!(summary(text), "70 inputs, seed 42");
        assert_eq!(summary(""), "? inputs, seed ?");
    }
}
