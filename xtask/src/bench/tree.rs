//! A tree of waiting processes below one command, bare or under a contender, and its end.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::Bench;
use crate::commands;
use crate::processes::{self, Held};

/// Longest time for the tree to be up, and to be gone.
const LIMIT: Duration = Duration::from_secs(30);

/// What a stop costs at least; as in the report.
pub(super) const BARE_CALLS: &str = "bare calls";

/// Whoever holds a command: a name and the words in front of the command.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    /// As in the report.
    pub(super) name: &'static str,
    prefix: Vec<String>,
    /// Lariat's `LARIAT_CONTAINMENT`: one that cannot be had is an error. `None` for everybody else.
    containment: Option<&'static str>,
    order: Order,
}

/// How a contender is told to end its tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// There is none: the group is signalled.
    Group,
    /// TERM.
    Term,
    /// The end of its standard input.
    EndOfInput,
}

impl Contender {
    /// Nobody: the command itself.
    pub(super) fn bare() -> Self {
        Self { name: "bare", prefix: Vec::new(), containment: None, order: Order::Group }
    }

    /// `lariat run` as it is without settings: in a cgroup where one can be had.
    fn lariat(bench: &Bench) -> Self {
        let lariat = bench.lariat.display().to_string();
        Self {
            name: "lariat",
            prefix: vec![lariat, "run".to_owned(), "--".to_owned()],
            containment: Some("auto"),
            order: Order::Term,
        }
    }

    /// The [bare calls](super::bare_calls) of a stop.
    pub(super) fn bare_calls(bench: &Bench) -> Self {
        let prefix = bench.child(&["bare-calls"]);
        Self { name: BARE_CALLS, prefix, containment: None, order: Order::EndOfInput }
    }

    /// `lariat run` with each containment that holds the command by itself.
    pub(super) fn containments(bench: &Bench) -> [Self; 2] {
        let within = |name, containment| Self { name, containment: Some(containment), ..Self::lariat(bench) };
        [within("lariat by descent", "lineage"), within("lariat in a cgroup", "cgroup")]
    }

    /// Says whether it is lariat.
    pub(super) fn is_ours(&self) -> bool {
        self.containment.is_some()
    }

    /// `lariat run --isolate`.
    pub(super) fn isolated(bench: &Bench) -> Self {
        let words = [bench.lariat.display().to_string(), "run".into(), "--isolate".into(), "--".into()];
        Self { prefix: words.into(), ..Self::lariat(bench) }
    }

    /// The peers that are installed, out of `name, words` where the first word is the program.
    pub(super) fn installed(peers: &[(&'static str, &[&str])]) -> Vec<Self> {
        let find = |(name, words): &(&'static str, &[&str])| {
            let (program, options) = words.split_first()?;
            let path = commands::find(program)?.display().to_string();
            let prefix = [path].into_iter().chain(options.iter().map(|word| (*word).to_owned())).collect();
            Some(Self { name, prefix, containment: None, order: Order::Term })
        };
        peers.iter().filter_map(find).collect()
    }

    /// Returns the command that runs `argv` under this contender.
    pub(super) fn command(&self, argv: &[String]) -> Command {
        let words: Vec<&String> = self.prefix.iter().chain(argv).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        self.containment.map(|name| command.env("LARIAT_CONTAINMENT", name));
        command
    }
}

/// A running tree. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Tree {
    /// The contender, or the leader itself where there is none.
    top: Child,
    top_held: Held,
    order: Order,
    /// The leader and everyone below it.
    members: Vec<Held>,
    /// Others below the contender: lariat's keeper.
    others: Vec<Held>,
}

impl Tree {
    /// Starts a leader with `count` processes below it, and waits until all are there.
    ///
    /// # Errors
    /// The contender ends before the tree is up, or it takes too long.
    pub(super) fn start(bench: &Bench, contender: &Contender, count: usize) -> Result<Self> {
        let mut command = contender.command(&bench.child(&["tree", &count.to_string()]));
        let input = if contender.order == Order::EndOfInput { Stdio::piped() } else { Stdio::null() };
        command.process_group(0).stdin(input).stdout(Stdio::piped());
        let mut top = command.spawn().with_context(|| format!("could not start {}", contender.name))?;
        let top_held = Held::open(i32::try_from(top.id())?)?;
        let pids = read_pids(&mut top);
        let mut tree =
            Self { top, top_held, order: contender.order, members: Vec::new(), others: Vec::new() };
        for pid in pids.with_context(|| format!("{} did not start the command", contender.name))? {
            tree.members.push(Held::open(pid)?);
        }
        ensure!(tree.members.len() == count + 1, "the tree has {} members", tree.members.len());
        let below = processes::descendants(tree.top_held.pid);
        let others = below.iter().filter(|p| !tree.members.iter().any(|member| member.pid == p.pid));
        tree.others = others.filter_map(|process| Held::open(process.pid).ok()).collect();
        Ok(tree)
    }

    /// Asks politely and measures until everyone is dead and the contender has left.
    ///
    /// # Errors
    /// Somebody is alive at the deadline.
    pub(super) fn stop(mut self) -> Result<Duration> {
        let start = Instant::now();
        self.terminate()?;
        processes::wait_all(&self.members, LIMIT)?;
        ensure!(self.top_held.wait(start + LIMIT)?, "the contender is still there");
        let took = start.elapsed();
        self.top.wait()?;
        Ok(took)
    }

    /// Kills the contender alone and measures until every member is dead, then until its keeper is gone too.
    ///
    /// # Errors
    /// Somebody is alive at the deadline.
    pub(super) fn kill_top(mut self) -> Result<(Duration, Duration)> {
        let start = Instant::now();
        self.top_held.signal(Signal::KILL);
        processes::wait_all(&self.members, LIMIT)?;
        let dead = start.elapsed();
        processes::wait_all(&self.others, LIMIT)?;
        let gone = start.elapsed();
        self.top.wait()?;
        Ok((dead, gone))
    }

    fn terminate(&mut self) -> Result<()> {
        match self.order {
            Order::Term => self.top_held.signal(Signal::TERM),
            Order::EndOfInput => drop(self.top.stdin.take()),
            Order::Group => {
                let group = Pid::from_raw(self.top_held.pid).context("a process number is positive")?;
                kill_process_group(group, Signal::TERM).context("could not signal the group")?;
            }
        }
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for process in self.members.iter().chain(&self.others).chain([&self.top_held]) {
            process.signal(Signal::KILL);
        }
        // Reaped already, or now: killed it cannot keep us waiting.
        let _ = self.top.wait();
    }
}

/// Reads the numbers up to `ready`.
fn read_pids(top: &mut Child) -> Result<Vec<i32>> {
    let output = BufReader::new(top.stdout.take().context("no output")?);
    let (sender, receiver) = mpsc::channel();
    // Nobody receives after a timeout; the numbers are of no use then.
    thread::spawn(move || sender.send(parse_pids(output)).ok());
    receiver.recv_timeout(LIMIT).context("it took too long")?
}

fn parse_pids(output: impl BufRead) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for line in output.lines() {
        let line = line?;
        if line == "ready" {
            return Ok(pids);
        }
        pids.push(line.parse().with_context(|| format!("`{line}` is no process number"))?);
    }
    bail!("it ended before the command was ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_ready_or_no_tree() {
        assert_eq!(parse_pids("4\n5\nready\n".as_bytes()).unwrap(), [4, 5]);
        assert!(parse_pids("4\n".as_bytes()).is_err());
        assert!(parse_pids("lariat: no\nready\n".as_bytes()).is_err());
    }
}
