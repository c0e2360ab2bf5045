//! `lariat port` beside `lsof` and `ss`: one process that listens, found on the machine as it is, and in a crowd.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::report::{Budget, Report, Row};
use super::sample::{Sample, timed};
use super::tree::{Contender, Tree};
use crate::commands;

/// Processes that have nothing to do with the port.
const CROWD: usize = 1000;
/// Rounds that are thrown away: caches fill.
const WARM_UP: usize = 3;
/// What a peer may take for lariat to take a tenth of it.
const TENTH: f64 = 0.1;

/// A process that listens. Dropped, it is killed.
struct Listener {
    child: Child,
    port: String,
}

/// Whoever is asked for a port's holder.
struct Asked {
    name: &'static str,
    argv: Vec<String>,
    /// 0, or lariat's own for a port that is held.
    code: i32,
}

/// Measures both.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let listener = Listener::start(bench)?;
    round(bench, report, &listener, "as the machine is")?;
    let crowd = Tree::start(bench, &Contender::bare(), CROWD)?;
    let result = round(bench, report, &listener, &format!("with {CROWD} more processes"));
    crowd.stop()?;
    drop(listener);
    result?;
    bench.expect_nothing_left()
}

fn round(bench: &Bench, report: &mut Report, listener: &Listener, where_: &str) -> Result<()> {
    let pid = listener.child.id().to_string();
    let asked = Asked::all(bench, &listener.port, &pid);
    let mut samples: Vec<Sample> = asked.iter().map(|asked| Sample::new(asked.name)).collect();
    for round in 0..bench.rounds(40) + WARM_UP {
        // One after the other within a round, so that all meet the same machine.
        for (asked, sample) in asked.iter().zip(&mut samples) {
            let took = timed(|| asked.ask(&pid)).with_context(|| asked.name.to_owned())?;
            if round >= WARM_UP {
                sample.push_time(took);
            }
        }
    }
    for peer in ["lsof", "lsof -ti :N", "ss"] {
        let of = |name: &str| samples.iter().find(|sample| sample.name == name).cloned();
        // It asks the kernel as we do, and then reads every descriptor of every process.
        let budget = if peer == "ss" { Budget::None } else { Budget::AtMostTimes(TENTH, peer) };
        let samples = ["lariat", peer, "bare spawn"].into_iter().filter_map(of).collect();
        let what = format!("the holder, {where_}, over {peer}");
        report.add(Row { part: "port", what, unit: "ms", samples, budget });
    }
    Ok(())
}

impl Listener {
    fn start(bench: &Bench) -> Result<Self> {
        let argv = bench.child(&["listen"]);
        let mut child =
            Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut port = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut port)?;
        Ok(Self { child, port: port.trim().to_owned() })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Our own child: it is there until it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Asked {
    /// Lariat, and the peers that are installed, each with what people type.
    fn all(bench: &Bench, port: &str, pid: &str) -> Vec<Self> {
        let lariat = bench.lariat.display().to_string();
        let mut all = vec![Self::new("lariat", &[&lariat, "port", port], 7)];
        let only = format!("-iTCP:{port}");
        let peers: [(&'static str, &[&str]); 3] = [
            ("lsof", &["lsof", "-nP", &only, "-sTCP:LISTEN", "-t"]),
            ("lsof -ti :N", &["lsof", "-ti", &format!(":{port}")]),
            ("ss", &["ss", "-ltnp"]),
        ];
        for (name, argv) in peers {
            if let Some(program) = commands::find(argv[0]) {
                let program = program.display().to_string();
                all.push(Self::new(name, &[&[program.as_str()], &argv[1..]].concat(), 0));
            }
        }
        // What starting any process costs here, for comparison: it names the process because it is told to.
        let pid = pid.to_owned();
        all.push(Self { name: "bare spawn", argv: vec!["/bin/echo".to_owned(), pid], code: 0 });
        all
    }

    fn new(name: &'static str, argv: &[&str], code: i32) -> Self {
        Self { name, argv: argv.iter().map(|word| (*word).to_owned()).collect(), code }
    }

    /// Asks once. An answer that does not name the process is none.
    fn ask(&self, pid: &str) -> Result<()> {
        let output = Command::new(&self.argv[0]).args(&self.argv[1..]).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.code() == Some(self.code) && text.contains(pid),
            "{} ended with {} and does not name {pid}: {text}",
            self.name,
            output.status
        );
        Ok(())
    }
}
