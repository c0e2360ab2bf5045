//! How fast output goes into the store, and is shown.
//!
//! The clock starts with the writer's first call (it leaves the time in a file) and stops when the last byte is in
//! the store, or when the last words come out of the foreground's output. `cat > file` is measured the same way.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::report::{Budget, Report, Row};
use super::sample::{Sample, monotonic};
use super::stack::{LIMIT, Stack};
use super::tree::Contender;
use crate::commands;

/// Longest time until the writer has started.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(10);

/// How a flood is written.
struct Flood {
    what: &'static str,
    bytes: usize,
    /// Bytes per write call.
    chunk: usize,
    rounds: usize,
}

const BUFFERED: Flood = Flood { what: "buffered", bytes: 200_000_000, chunk: 50_000, rounds: 5 };
const UNBUFFERED: Flood = Flood { what: "unbuffered", bytes: 100_000_000, chunk: 100, rounds: 3 };

/// Measures each flood stored, and the buffered one shown too.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    compare(bench, report, &BUFFERED, "stored", 0.9, stored)?;
    compare(bench, report, &BUFFERED, "shown with prefix", 0.6, shown)?;
    compare(bench, report, &UNBUFFERED, "stored", 0.9, stored)
}

/// Writes a flood through lariat and returns how long it took.
type Way = fn(&Bench, &Flood) -> Result<Duration>;

fn compare(bench: &Bench, report: &mut Report, flood: &Flood, how: &str, limit: f64, way: Way) -> Result<()> {
    let what = format!("{} 100-byte lines, {how}", flood.what);
    let (mut peer, mut ours) = (Sample::new("cat > file"), Sample::new("lariat"));
    #[expect(clippy::cast_precision_loss, reason = "a few hundred megabytes are exact")]
    let speed = |time: Duration| flood.bytes as f64 / 1e6 / time.as_secs_f64();
    for _ in 0..bench.rounds(flood.rounds) {
        peer.values.push(speed(through_cat(bench, flood)?));
        match way(bench, flood) {
            Ok(time) => ours.values.push(speed(time)),
            Err(error) => {
                report.unavailable("logs", &what, &error);
                break;
            }
        }
        bench.expect_nothing_left()?;
    }
    let budget = Budget::AtLeastTimes(limit, "cat > file");
    report.add(Row { part: "logs", what, unit: "MB/s", samples: vec![peer, ours], budget });
    Ok(())
}

fn flood_argv(bench: &Bench, flood: &Flood, stamp: &Path) -> Vec<String> {
    let (bytes, chunk) = (flood.bytes.to_string(), flood.chunk.to_string());
    bench.child(&["flood", &bytes, &chunk, &stamp.display().to_string()])
}

fn through_cat(bench: &Bench, flood: &Flood) -> Result<Duration> {
    let (stamp, file) = (bench.dir.join("cat.stamp"), bench.dir.join("cat.out"));
    remove(&stamp)?;
    let mut writer = Contender::bare().command(&flood_argv(bench, flood, &stamp));
    let mut writer = writer.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let pipe = writer.stdout.take().context("no output")?;
    let mut cat = std::process::Command::new(commands::find("cat").context("there is no `cat`")?);
    let cat = cat.stdin(pipe).stdout(File::create(&file)?).spawn();
    let took = wait_for_bytes(&file, flood.bytes).and_then(|end| since(&stamp, end));
    for mut child in [Ok(writer), cat].into_iter().flatten() {
        kill(&mut child)?;
    }
    remove(&file)?;
    took
}

fn kill(child: &mut Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn stored(bench: &Bench, flood: &Flood) -> Result<Duration> {
    let stamp = bench.dir.join("stored.stamp");
    remove(&stamp)?;
    let stack = Stack::new(bench, "stored", &[("flood".to_owned(), flood_argv(bench, flood, &stamp))])?;
    stack.lariat(&["up", "-d"])?;
    let end = wait_for_bytes(&stack.dir.join(".lariat/logs/flood.log"), flood.bytes);
    stack.lariat(&["down", "--yes"])?;
    since(&stamp, end?)
}

fn shown(bench: &Bench, flood: &Flood) -> Result<Duration> {
    let stamp = bench.dir.join("shown.stamp");
    remove(&stamp)?;
    let mut stack = Stack::new(bench, "shown", &[("flood".to_owned(), flood_argv(bench, flood, &stamp))])?;
    stack.up()?;
    let end = stack.last_words();
    stack.expect_up()?;
    stack.end()?;
    since(&stamp, end?)
}

/// Waits until a file has its full size and returns when.
fn wait_for_bytes(file: &Path, bytes: usize) -> Result<Duration> {
    let (start, bytes) = (Instant::now(), u64::try_from(bytes)?);
    loop {
        let length = file.metadata().map_or(0, |meta| meta.len());
        if length >= bytes {
            ensure!(length == bytes, "{} has {length} bytes, {bytes} were written", file.display());
            return monotonic();
        }
        let limit = if length == 0 { FIRST_BYTE_LIMIT } else { LIMIT };
        ensure!(start.elapsed() < limit, "{} has {length} of {bytes} bytes after {limit:?}", file.display());
        thread::sleep(Duration::from_micros(200));
    }
}

fn since(stamp: &Path, end: Duration) -> Result<Duration> {
    let start = fs::read_to_string(stamp).context("the writer left no time")?;
    Ok(end.saturating_sub(Duration::from_nanos(start.parse()?)))
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
