//! What `lariat run` costs in front of a command that does nothing.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::report::{Budget, Report, Row};
use super::sample::{Sample, timed};
use super::tree::Contender;
use super::{Bench, stack};
use crate::commands;

const PEERS: &[(&str, &[&str])] = &[
    ("tini -s", &["tini", "-s", "--"]),
    ("catatonit", &["catatonit", "--"]),
    ("dumb-init", &["dumb-init", "--"]),
];
/// What lariat is compared with in a pid namespace.
const UNSHARE: &str = "unshare";
/// As root, for both, and without rights.
const NAMESPACES: [(&str, &[&str]); 3] = [
    (UNSHARE, &["unshare", "-fp", "--mount-proc", "--"]),
    ("bwrap", &["bwrap", "--unshare-pid", "--dev-bind", "/", "/", "--proc", "/proc", "--"]),
    (UNSHARE, &["unshare", "-Urfp", "--mount-proc", "--"]),
];
/// The command that does nothing.
const TRUE: &str = "true";
/// Longest time for one command.
const LIMIT: Duration = Duration::from_secs(5);
/// Rounds that are thrown away: caches fill.
const WARM_UP: usize = 5;

/// Measures `true` from start to exit, and the time until a command's own first words.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let fifo = bench.dir.join("words.fifo");
    let mut reader = stack::make_fifo(&fifo)?;
    let mut contenders = vec![Contender::bare()];
    contenders.extend(Contender::installed(PEERS));
    let mut ours = Vec::new();
    for contender in Contender::containments(bench) {
        // An exit code of 0 alone does not say that the command ran.
        match first_words(bench, &contender, &fifo, &mut reader) {
            Ok(_) => ours.push(contender),
            Err(error) => report.unavailable("run", contender.name, &error),
        }
    }
    contenders.extend(ours.iter().cloned());
    let budget = Budget::AtMostTimes(1.5, "tini -s");
    measure_true(bench, report, &contenders, "true, start to exit", budget)?;
    measure_isolated(bench, report)?;
    measure_first_words(bench, report, &ours, &fifo, &mut reader)
}

/// The same with a pid namespace around, beside those who make one and hold nothing.
fn measure_isolated(bench: &Bench, report: &mut Report) -> Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    let peers = if is_root { &NAMESPACES[..2] } else { &NAMESPACES[1..] };
    let mut contenders = Contender::installed(peers);
    let ours = Contender::isolated(bench);
    let trial = run_once(&mut ours.command(&[TRUE.to_owned()]));
    match trial {
        Ok(()) if contenders.iter().any(|peer| peer.name == UNSHARE) => contenders.push(ours),
        Ok(()) => return Ok(()),
        Err(error) => {
            report.unavailable("run", "true in a pid namespace", &error);
            return Ok(());
        }
    }
    let budget = Budget::AtMostTimes(2.0, UNSHARE);
    measure_true(bench, report, &contenders, "true in a pid namespace", budget)
}

fn measure_true(
    bench: &Bench,
    report: &mut Report,
    contenders: &[Contender],
    what: &str,
    budget: Budget,
) -> Result<()> {
    let program = commands::find(TRUE).context("there is no `true`")?.display().to_string();
    let mut samples: Vec<Sample> = contenders.iter().map(|contender| Sample::new(contender.name)).collect();
    for round in 0..bench.rounds(300) + WARM_UP {
        for (contender, sample) in contenders.iter().zip(&mut samples) {
            let mut command = contender.command(std::slice::from_ref(&program));
            let took = timed(|| run_once(&mut command))?;
            if round >= WARM_UP {
                sample.push_time(took);
            }
        }
    }
    report.add(Row { part: "run", what: what.to_owned(), unit: "ms", samples, budget });
    Ok(())
}

/// The command runs only once everything that guards it is in place: what comes before is the machinery's own time.
fn measure_first_words(
    bench: &Bench,
    report: &mut Report,
    ours: &[Contender],
    fifo: &Path,
    reader: &mut File,
) -> Result<()> {
    let bare = Contender::bare();
    let mut without = Sample::new("bare");
    let mut extra: Vec<Sample> = ours.iter().map(|contender| Sample::new(contender.name)).collect();
    for _ in 0..bench.rounds(100) {
        let base = first_words(bench, &bare, fifo, reader)?;
        without.push_time(base);
        for (contender, sample) in ours.iter().zip(&mut extra) {
            sample.push_time(first_words(bench, contender, fifo, reader)?.saturating_sub(base));
        }
    }
    let what = "beyond the bare, until the guard is in place".to_owned();
    let samples = [vec![without], extra].concat();
    report.add(Row { part: "run", what, unit: "ms", samples, budget: Budget::AtMost(5.0) });
    Ok(())
}

fn first_words(bench: &Bench, contender: &Contender, fifo: &Path, reader: &mut File) -> Result<Duration> {
    let mut command = contender.command(&bench.child(&["greet", &fifo.display().to_string()]));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn()?;
    // Its end comes after its words, which stay in the fifo: waiting for them alone would wait for ever if there
    // were none.
    let words = stack::wait_readable(reader, LIMIT)?;
    let took = start.elapsed();
    let status = commands::wait(&mut child, &command, LIMIT)?;
    ensure!(words && status.success(), "{} ended with {status}", contender.name);
    reader.read_exact(&mut [0])?;
    Ok(took)
}

fn run_once(command: &mut Command) -> Result<()> {
    let status =
        command.status().with_context(|| format!("could not start {}", commands::display(command)))?;
    ensure!(status.success(), "`{}` ended with {status}", commands::display(command));
    Ok(())
}
