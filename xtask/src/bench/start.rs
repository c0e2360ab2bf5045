//! Stacks of 10, 100 and 1,000 services: start, list, stop; one service of many; `--force`.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::report::{Budget, Report, Row};
use super::sample::{Sample, timed};
use super::stack::{LIMIT, Stack, make_fifo, wait_hellos};
use super::tree::Contender;
use crate::processes;

/// Services, with the rounds of each.
const SIZES: &[(usize, usize)] = &[(10, 5), (100, 3), (1000, 1)];
/// What ten times the services may cost, in times, to count as linear: noise, and memory that no cache holds.
const LINEAR: f64 = 15.0;
/// Processes below one service for `--force`.
const MANY: usize = 500;

/// What was measured of one size.
struct Size {
    bare: Sample,
    start: Sample,
    list: Sample,
    stop: Sample,
}

/// Measures every size, how the cost grows, the stop of one service, and `down --force`.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut sizes = Vec::new();
    for (count, rounds) in SIZES {
        let mut size = Size {
            bare: Sample::new("bare spawn"),
            start: Sample::new("lariat"),
            list: Sample::new("lariat"),
            stop: Sample::new("lariat"),
        };
        for _ in 0..bench.rounds(*rounds) {
            life(bench, *count, &mut size).with_context(|| format!("{count} services"))?;
        }
        let row = |what: &str, samples: Vec<Sample>| Row {
            part: "start",
            what: format!("{count} services, {what}"),
            unit: "ms",
            samples,
            budget: Budget::None,
        };
        report.add(row("until all run", vec![size.bare.clone(), size.start.clone()]));
        report.add(row("list", vec![size.list.clone()]));
        report.add(row("stop", vec![size.stop.clone()]));
        sizes.push(size);
    }
    growth(report, &sizes);
    measure_one(bench, report)?;
    measure_force(bench, report)
}

fn life(bench: &Bench, count: usize, size: &mut Size) -> Result<()> {
    let fifo = bench.dir.join("start.fifo");
    let mut reader = make_fifo(&fifo)?;
    let argv = bench.child(&["hello", &fifo.display().to_string()]);
    let services: Vec<_> = (0..count).map(|number| (format!("s{number}"), argv.clone())).collect();
    let mut stack = Stack::new(bench, "start", &services)?;
    let result = (|| {
        size.start.push_time(timed(|| {
            stack.up()?;
            wait_hellos(&mut reader, count, || stack.expect_up())
        })?);
        size.list.push_time(timed(|| stack.lariat(&["ps", "--json"]).map(drop))?);
        size.stop.push_time(timed(|| stack.end())?);
        bench.expect_nothing_left()?;
        size.bare.push_time(bare(&argv, count, &mut reader)?);
        Ok(())
    })();
    std::fs::remove_file(&fifo)?;
    result
}

/// The same processes without anybody above them.
fn bare(argv: &[String], count: usize, reader: &mut std::fs::File) -> Result<Duration> {
    let mut children = Vec::new();
    let took = timed(|| {
        for _ in 0..count {
            children
                .push(Contender::bare().command(argv).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        }
        wait_hellos(reader, count, || Ok(()))
    });
    for child in &mut children {
        child.kill()?;
        child.wait()?;
    }
    took
}

/// Ten times as many services: how many times as long?
fn growth(report: &mut Report, sizes: &[Size]) {
    let [.., hundred, thousand] = sizes else { return };
    let times = |pick: fn(&Size) -> &Sample| pick(thousand).median() / pick(hundred).median();
    let ratios =
        [("start", times(|size| &size.start)), ("list", times(|s| &s.list)), ("stop", times(|s| &s.stop))];
    for (what, ratio) in ratios {
        report.add(Row {
            part: "start",
            what: format!("{what}: 1,000 services over 100"),
            unit: "times",
            samples: vec![Sample::of("lariat", ratio)],
            budget: Budget::AtMost(LINEAR),
        });
    }
}

/// One service of ten, which needs no time itself.
fn measure_one(bench: &Bench, report: &mut Report) -> Result<()> {
    let fifo = bench.dir.join("one.fifo");
    let mut reader = make_fifo(&fifo)?;
    let argv = bench.child(&["hello", &fifo.display().to_string()]);
    let services: Vec<_> = (0..10).map(|number| (format!("s{number}"), argv.clone())).collect();
    let mut stack = Stack::new(bench, "one", &services)?;
    stack.up()?;
    wait_hellos(&mut reader, 10, || stack.expect_up())?;
    let mut sample = Sample::new("lariat");
    for number in 0..5 {
        sample.push_time(timed(|| stack.lariat(&["stop", &format!("s{number}")]).map(drop))?);
    }
    stack.end()?;
    let (what, samples) = ("stop of one service of ten".to_owned(), vec![sample]);
    report.add(Row { part: "start", what, unit: "ms", samples, budget: Budget::AtMost(2000.0) });
    bench.expect_nothing_left()
}

/// A wide tree below one service, without a grace period.
fn measure_force(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut sample = Sample::new("lariat");
    for _ in 0..bench.rounds(3) {
        let services = [("wide".to_owned(), bench.child(&["tree", &MANY.to_string()]))];
        let mut stack = Stack::new(bench, "force", &services)?;
        stack.up()?;
        wait_for_members(&mut stack)?;
        sample.push_time(timed(|| stack.lariat(&["down", "--force", "--yes"]).map(drop))?);
        bench.expect_nothing_left()?;
    }
    let what = format!("down --force, {MANY} processes");
    report.add(Row {
        part: "start",
        what,
        unit: "ms",
        samples: vec![sample],
        budget: Budget::AtMost(1000.0),
    });
    Ok(())
}

fn wait_for_members(stack: &mut Stack) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        stack.expect_up()?;
        let below = processes::descendants(stack.supervisor()?);
        if below.iter().filter(|process| process.comm == "sleep").count() == MANY {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the tree was not there after {LIMIT:?}");
        thread::sleep(Duration::from_millis(10));
    }
}
