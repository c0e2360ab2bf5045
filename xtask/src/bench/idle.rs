//! What lariat costs while nothing happens: memory, processor time and wake-ups with ten idle services.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::report::{Budget, Report, Row};
use super::sample::Sample;
use super::stack::{LIMIT, Stack};
use super::tree::Contender;
use crate::processes::{self, Process};

const SERVICES: usize = 10;
/// After the start, before anything is read.
const SETTLE: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(20);
/// Milliseconds per clock tick of `/proc/PID/stat`: the kernel's interface has 100 per second on every machine.
const TICK: f64 = 10.0;

/// What a process has used so far.
#[derive(Clone, Copy, Default, Debug)]
struct Usage {
    ticks: u64,
    /// Voluntary context switches: each is one wake-up that went to sleep again.
    switches: u64,
}

/// Measures a stack of idle services, with the memory of ten `tini` beside it.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let services: Vec<(String, Vec<String>)> = (0..SERVICES)
        .map(|number| (format!("idle{number}"), vec!["sleep".to_owned(), "300".to_owned()]))
        .collect();
    let mut stack = Stack::new(bench, "idle", &services)?;
    stack.up()?;
    let keepers = wait_for_keepers(&mut stack)?;
    thread::sleep(SETTLE);
    let supervisor = stack.supervisor()?;
    let before = total(supervisor, &keepers)?;
    thread::sleep(WINDOW);
    let after = total(supervisor, &keepers)?;
    memory(report, supervisor, &keepers)?;
    for (who, before, after) in [("supervisor", before.0, after.0), ("all keepers", before.1, after.1)] {
        let used = Usage { ticks: after.ticks - before.ticks, switches: after.switches - before.switches };
        usage(report, who, used);
    }
    stack.end()?;
    bench.expect_nothing_left()
}

/// Waits until every service is there and returns the supervisor's children.
fn wait_for_keepers(stack: &mut Stack) -> Result<Vec<i32>> {
    let deadline = Instant::now() + LIMIT;
    loop {
        stack.expect_up()?;
        let supervisor = stack.supervisor()?;
        let below = processes::descendants(supervisor);
        if below.iter().filter(|process| process.comm == "sleep").count() == SERVICES {
            let keepers =
                below.iter().filter(|process| process.parent == supervisor).map(|process| process.pid);
            return Ok(keepers.collect());
        }
        ensure!(Instant::now() < deadline, "the stack was not up after {LIMIT:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn total(supervisor: i32, keepers: &[i32]) -> Result<(Usage, Usage)> {
    let mut all = Usage::default();
    for keeper in keepers {
        let one = used(*keeper)?;
        all.ticks += one.ticks;
        all.switches += one.switches;
    }
    Ok((used(supervisor)?, all))
}

fn used(pid: i32) -> Result<Usage> {
    let ticks = Process::of(pid).with_context(|| format!("process {pid} is gone"))?.ticks;
    let mut switches = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        switches += field(&status, "voluntary_ctxt_switches:").context("no switches in status")?;
    }
    Ok(Usage { ticks, switches })
}

fn memory(report: &mut Report, supervisor: i32, keepers: &[i32]) -> Result<()> {
    let rollup = rollup(supervisor)?;
    let resident = field(&rollup, "Rss:").context("no Rss")?;
    let share = field(&rollup, "Pss:").context("no Pss")?;
    let samples = vec![Sample::of("lariat", mebi(resident)), Sample::of("proportional", mebi(share))];
    let what = format!("supervisor's memory, {SERVICES} services");
    report.add(Row { part: "idle", what, unit: "MiB", samples, budget: Budget::AtMost(10.0) });

    let mut keeper = Sample::new("lariat");
    keeper.values = shares(keepers)?;
    let largest = Sample::of("largest", keeper.values.iter().copied().fold(0.0, f64::max));
    let mut samples = vec![keeper, largest];
    samples.extend(tini_share()?);
    let what = "a keeper's proportional memory".to_owned();
    report.add(Row { part: "idle", what, unit: "KiB", samples, budget: Budget::AtMost(150.0) });
    Ok(())
}

/// As many `tini` as there are keepers, for comparison.
fn tini_share() -> Result<Option<Sample>> {
    let Some(tini) = Contender::installed(&[("tini -s", &["tini", "-s", "--"])]).pop() else {
        return Ok(None);
    };
    let sleep = ["sleep".to_owned(), "300".to_owned()];
    let start = |_| -> std::io::Result<Child> { quiet(tini.command(&sleep)).spawn() };
    let mut running: Vec<Child> = (0..SERVICES).map(start).collect::<Result<_, _>>()?;
    let deadline = Instant::now() + LIMIT;
    let has_child = |child: &Child| {
        i32::try_from(child.id())
            .is_ok_and(|pid| processes::descendants(pid).iter().any(|p| p.comm == "sleep"))
    };
    while !running.iter().all(has_child) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    let pids: Vec<i32> = running.iter().filter_map(|child| i32::try_from(child.id()).ok()).collect();
    let values = shares(&pids);
    for (child, pid) in running.iter_mut().zip(pids) {
        processes::Held::open(pid)?.signal(rustix::process::Signal::TERM);
        child.wait()?;
    }
    Ok(Some(Sample { name: "tini -s".to_owned(), values: values? }))
}

fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn usage(report: &mut Report, who: &str, used: Usage) {
    #[expect(clippy::cast_precision_loss, reason = "counts of twenty seconds are small")]
    let (time, switches) = (used.ticks as f64 * TICK, used.switches as f64);
    let seconds = WINDOW.as_secs();
    let row = |what: String, unit, value| Row {
        part: "idle",
        what,
        unit,
        samples: vec![Sample::of("lariat", value)],
        budget: Budget::AtMost(0.0),
    };
    report.add(row(format!("{who}: processor time in {seconds} s"), "ms", time));
    report.add(row(format!("{who}: wake-ups in {seconds} s"), "switches", switches));
}

fn shares(pids: &[i32]) -> Result<Vec<f64>> {
    pids.iter().map(|pid| Ok(kibi(field(&rollup(*pid)?, "Pss:").context("no Pss")?))).collect()
}

fn rollup(pid: i32) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("memory of process {pid}"))
}

/// Returns the number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "memory sizes in KiB are far below 2^52")]
fn kibi(kib: u64) -> f64 {
    kib as f64
}

fn mebi(kib: u64) -> f64 {
    kibi(kib) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_usage_and_memory_can_be_read() {
        let me = std::process::id().try_into().unwrap();
        assert!(used(me).unwrap().switches > 0 || used(me).unwrap().ticks < 1000);
        assert!(shares(&[me]).unwrap()[0] > 10.0);
    }

    #[test]
    fn a_field_is_found_at_the_start_of_a_line() {
        assert_eq!(field("nonvoluntary_x: 1\nvoluntary_x:\t22\n", "voluntary_x:"), Some(22));
        assert_eq!(field("Rss: 1 kB\n", "Pss:"), None);
    }
}
