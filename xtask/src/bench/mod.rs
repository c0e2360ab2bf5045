//! lariat beside its peers, in one run, against the budgets of the design.
//!
//! Three processes: `bench` builds; it starts itself again from a release build, in a session of its own without a
//! terminal, so that what measures is fast and a terminal changes nothing; and that one starts itself as the
//! workload ([`child`]). What is alive is judged by `/proc` and process descriptors, never by asking lariat. Budgets
//! are printed as met or not; missing one is no error of this task.

mod bare_calls;
mod child;
mod idle;
mod logs;
mod port;
mod report;
mod run;
mod sample;
mod stack;
mod start;
mod stop;
mod sweep;
mod tree;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

pub(crate) use child::run as run_child;
use report::Report;

use crate::{commands, processes};

/// First argument of the process that measures.
pub(crate) const INNER: &str = "__bench";
/// First argument of a workload process.
pub(crate) const CHILD: &str = "__bench-child";

/// Marks every process of a bench, for the check that none is left.
const MARKER: &str = "LARIAT_BENCH";
/// Longest time for all parts together.
const LIMIT: Duration = Duration::from_secs(20 * 60);

type Part = fn(&Bench, &mut Report) -> Result<()>;

const PARTS: &[(&str, Part)] = &[
    ("run", run::measure),
    ("stop", stop::measure_stop),
    ("kill", stop::measure_kill),
    ("logs", logs::measure),
    ("idle", idle::measure),
    ("start", start::measure),
    ("port", port::measure),
    ("sweep", sweep::measure),
];

/// What every part needs to know.
struct Bench {
    /// The lariat that is measured.
    lariat: PathBuf,
    /// This program, which is the workload too.
    me: PathBuf,
    /// Where stacks and files of a part go; removed at the end.
    dir: PathBuf,
    /// Rounds per comparison, instead of each part's own number.
    rounds: Option<usize>,
}

/// Builds, measures in a process of its own, and looks for what is left.
///
/// # Errors
/// An argument is unknown, the build fails, or something of the bench is left alive.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<bool> {
    let options = Options::parse(args)?;
    let lariat = build(root, "lariat-cli", "lariat", &options.profile)?;
    let me = build(root, "xtask", "xtask", "release")?;
    println!("lariat: profile {}, {} KiB", options.profile, lariat.metadata()?.len() / 1024);
    let value = std::process::id().to_string();
    let mut inner = Command::new(me);
    inner.arg(INNER).arg(lariat).args(args).env(MARKER, &value);
    let result = commands::status(&mut inner, LIMIT);
    let marker = format!("{MARKER}={value}");
    let left = processes::wait_none_marked(&marker, Duration::from_secs(2));
    processes::kill_marked(&marker);
    ensure!(result?.success(), "the bench itself failed");
    left.context("the bench left something behind")?;
    Ok(true)
}

/// Measures; the first argument is the lariat to measure, the others are those of [`run()`].
///
/// # Errors
/// A part could not be carried out at all; a lariat that lacks what a part needs is a line in the report instead.
pub(crate) fn run_inner(args: &[String]) -> Result<bool> {
    let (lariat, args) = args.split_first().context("no lariat to measure")?;
    let options = Options::parse(args)?;
    // Ours is nobody's terminal; the death of the outer process is ours.
    rustix::process::setsid().context("could not leave the terminal")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let dir = std::env::temp_dir().join(format!("lariat-bench-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("could not make {}", dir.display()))?;
    let bench = Bench { lariat: lariat.into(), me: std::env::current_exe()?, dir, rounds: options.rounds };
    let mut report = Report::default();
    for (name, part) in PARTS.iter().filter(|(name, _)| options.wants(name)) {
        if let Err(error) = part(&bench, &mut report) {
            report.unavailable(name, "", &error);
        }
    }
    // What cannot be removed from the temporary directory is no result.
    let _ = std::fs::remove_dir_all(&bench.dir);
    report.print_summary();
    if let Some(file) = options.json {
        std::fs::write(&file, report.json()?)
            .with_context(|| format!("could not write {}", file.display()))?;
    }
    Ok(true)
}

impl Bench {
    fn rounds(&self, default: usize) -> usize {
        self.rounds.unwrap_or(default)
    }

    /// Returns the arguments that start this program as a workload.
    fn child(&self, args: &[&str]) -> Vec<String> {
        let me = self.me.display().to_string();
        [me.as_str(), CHILD].iter().chain(args).map(|word| (*word).to_owned()).collect()
    }

    /// Makes sure that nothing but us is alive of what this bench started, and says so where something was.
    fn expect_nothing_left(&self) -> Result<()> {
        let Ok(value) = std::env::var(MARKER) else { return Ok(()) };
        let marker = format!("{MARKER}={value}");
        let left = processes::wait_none_marked(&marker, Duration::from_secs(5));
        processes::kill_marked(&marker);
        left
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    json: Option<PathBuf>,
    profile: String,
    rounds: Option<usize>,
    parts: Vec<String>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self { json: None, profile: "dist".to_owned(), rounds: None, parts: Vec::new() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("`{arg}` needs a value"));
            match arg.as_str() {
                "--json" => options.json = Some(std::path::absolute(value()?)?),
                "--profile" => options.profile.clone_from(value()?),
                "--rounds" => options.rounds = Some(value()?.parse().context("--rounds needs a number")?),
                part if PARTS.iter().any(|(name, _)| *name == part) => options.parts.push(part.to_owned()),
                _ => bail!("unknown argument `{arg}`"),
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

/// Builds a program and returns where cargo put it.
fn build(root: &Path, package: &str, program: &str, profile: &str) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.args(["build", "--quiet", "--locked", "--message-format=json-render-diagnostics"]);
    command.args(["--package", package, "--bin", program, "--profile", profile]);
    let mut child = command.current_dir(root).stdout(Stdio::piped()).spawn()?;
    let output = BufReader::new(child.stdout.take().context("no output")?);
    let mut built = None;
    for line in output.lines() {
        let message: serde_json::Value = serde_json::from_str(&line?)?;
        if message["target"]["name"] == program {
            built = message["executable"].as_str().map(PathBuf::from).or(built);
        }
    }
    ensure!(child.wait()?.success(), "{program} does not build");
    built.with_context(|| format!("cargo does not say where {program} is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn parts_and_options_mix() {
        let options = parse(&["run", "--rounds", "3", "idle", "--json", "/a"]).unwrap();
        assert!(options.wants("run") && options.wants("idle") && !options.wants("logs"));
        assert_eq!((options.rounds, options.json), (Some(3), Some(PathBuf::from("/a"))));
        assert!(parse(&[]).unwrap().wants("logs"));
    }

    #[test]
    fn an_unknown_part_or_a_missing_value_is_refused() {
        assert!(parse(&["dance"]).is_err());
        assert!(parse(&["--rounds"]).is_err());
    }
}
