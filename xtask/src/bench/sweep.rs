//! A search for leftovers among a thousand foreign processes, beside a bare read of what it has to read of each.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::report::{Budget, Report, Row};
use super::sample::{Sample, timed};
use super::stack::Stack;
use crate::commands;
use crate::processes::Held;

const PROCESSES: usize = 1000;
const ROUNDS: usize = 15;

/// Measures a dry run where nothing crashed, and one where every process is younger than a run that did.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let services = [("idle".to_owned(), vec!["sleep".to_owned(), "300".to_owned()])];
    let stack = Stack::new(bench, "sweep", &services)?;
    let mut tree = foreign(bench)?;
    let result = (|| {
        rows(bench, &stack, "nothing crashed", 3.0, report)?;
        crashed(&stack.dir)?;
        rows(bench, &stack, "all younger than a crashed run", 6.0, report)
    })();
    let held = Held::open(i32::try_from(tree.id())?)?;
    commands::end_tree(&held)?;
    tree.wait()?;
    result
}

fn rows(bench: &Bench, stack: &Stack, what: &str, limit: f64, report: &mut Report) -> Result<()> {
    let (mut bare, mut lariat) = (Sample::new("bare read"), Sample::new("lariat"));
    for _ in 0..bench.rounds(ROUNDS) {
        bare.push_time(timed(read_all)?);
        lariat.push_time(timed(|| stack.lariat(&["sweep", "--dry-run"]).map(drop))?);
    }
    report.add(Row {
        part: "sweep",
        what: format!("--dry-run among {PROCESSES} processes, {what}"),
        unit: "ms",
        samples: vec![bare, lariat],
        budget: Budget::AtMostTimes(limit, "bare read"),
    });
    Ok(())
}

/// Starts the processes and waits until all are there.
fn foreign(bench: &Bench) -> Result<Child> {
    let argv = bench.child(&["tree", &PROCESSES.to_string()]);
    let mut command = Command::new(&argv[0]);
    let mut child = command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let count = lines.map_while(Result::ok).take_while(|line| line != "ready").count();
    ensure!(count == PROCESSES + 1, "only {count} processes were started");
    Ok(child)
}

/// What cannot be done without: who every process is, and the environment in which its mark would be.
fn read_all() -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
        for file in ["stat", "environ"].iter().filter(|_| is_process) {
            // One that ends meanwhile, or that may not be looked into.
            let Ok(mut file) = fs::File::open(path.join(file)) else { continue };
            while std::io::Read::read(&mut file, &mut buffer).is_ok_and(|count| count > 0) {}
        }
    }
    Ok(())
}

/// Leaves the ledger of a run that began right after the boot.
fn crashed(project: &Path) -> Result<()> {
    let state = project.join(".lariat");
    fs::create_dir(&state)?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700))?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let service = serde_json::json!({
        "name": "idle", "state": "ready", "output": 1, "ports": [1], "leader": { "pid": 4_000_000, "start": 1 },
    });
    let record = serde_json::json!({
        "version": 1, "run": "00c0ffee00c0ffee", "boot": boot.trim(), "stack": "bench", "root": project,
        "supervisor": { "pid": 4_000_000, "start": 1 }, "started_unix_ms": 0, "services": [service],
    });
    Ok(fs::write(state.join("run.json"), record.to_string())?)
}
