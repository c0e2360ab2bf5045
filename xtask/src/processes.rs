//! The processes of this machine, as `/proc` tells them.
//!
//! The judge of tests and benches. It deliberately uses none of lariat's crates: a fault in their tree walk must not
//! hide a process from the check that should find it.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One line of the process table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: i32,
    /// Its parent's number.
    pub(crate) parent: i32,
    /// The kernel's name for it.
    pub(crate) comm: String,
    /// The state's letter; `Z` is a zombie.
    pub(crate) state: char,
    /// How many threads it has; a zombie that is only waiting to be reaped has one or none.
    pub(crate) threads: u32,
    /// User and system time, in clock ticks.
    pub(crate) ticks: u64,
}

impl Process {
    /// Parses `/proc/PID/stat`. The name may hold blanks and parentheses: its end is the last one.
    fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = stat.split_once(" (")?;
        let (comm, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Self {
            pid: pid.parse().ok()?,
            comm: comm.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            threads: fields.get(17)?.parse().ok()?,
            ticks,
        })
    }

    /// Returns the process of that number, or `None` where there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Whether it still runs. A zombie does not, unless only its main thread has ended.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X') || self.threads > 1
    }
}

/// Returns every process, zombies included. One that ends meanwhile is left out.
pub(crate) fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(Process::of).collect()
}

/// Returns the living descendants of `root`, not `root` itself.
pub(crate) fn descendants(root: i32) -> Vec<Process> {
    let table = all();
    let mut inside = HashSet::from([root]);
    loop {
        let before = inside.len();
        inside.extend(table.iter().filter(|p| inside.contains(&p.parent)).map(|p| p.pid).collect::<Vec<_>>());
        if inside.len() == before {
            break;
        }
    }
    table.into_iter().filter(|p| p.pid != root && inside.contains(&p.pid) && p.is_alive()).collect()
}

/// Returns the living processes whose environment, as it was at their start, holds `NAME=value`.
pub(crate) fn marked(marker: &str) -> Vec<Process> {
    let holds = |p: &Process| {
        let environ = fs::read(PathBuf::from(format!("/proc/{}/environ", p.pid))).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == marker.as_bytes())
    };
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    all().into_iter().filter(|p| p.pid != me && p.is_alive() && holds(p)).collect()
}

/// Waits until nothing that is marked runs.
///
/// # Errors
/// Names what is still alive at the deadline.
pub(crate) fn wait_none_marked(marker: &str, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let alive = marked(marker);
        if alive.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let names: Vec<String> = alive.iter().map(|p| format!("{} ({})", p.pid, p.comm)).collect();
            bail!("still alive after {limit:?}: {}", names.join(", "));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills everything that is marked, again and again until nobody is left or two seconds are over.
pub(crate) fn kill_marked(marker: &str) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        let alive = marked(marker);
        if alive.is_empty() {
            return;
        }
        for process in alive {
            // An error says that it is gone already, which is what we want.
            let _ = Pid::from_raw(process.pid).map(|pid| rustix::process::kill_process(pid, Signal::KILL));
        }
    }
}

/// A process held by its descriptor: it cannot be mistaken for a later one of the same number.
#[derive(Debug)]
pub(crate) struct Held {
    /// For messages only.
    pub(crate) pid: i32,
    fd: OwnedFd,
}

impl Held {
    /// Takes hold of a living process.
    ///
    /// # Errors
    /// There is none of that number.
    pub(crate) fn open(pid: i32) -> Result<Self> {
        let number = Pid::from_raw(pid).context("a process number is positive")?;
        let fd = pidfd_open(number, PidfdFlags::empty())
            .with_context(|| format!("could not open process {pid}"))?;
        Ok(Self { pid, fd })
    }

    /// Sends a signal. One that is gone already is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Waits until the process has ended; a zombie has. Returns whether it has by the deadline.
    ///
    /// # Errors
    /// poll(2) fails.
    pub(crate) fn wait(&self, deadline: Instant) -> Result<bool> {
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let rest =
                Timespec { tv_sec: i64::try_from(rest.as_secs())?, tv_nsec: rest.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&rest)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("could not wait for a process"),
            }
        }
    }
}

/// Waits until all of them have ended.
///
/// # Errors
/// Says how many have not at the deadline.
pub(crate) fn wait_all(held: &[Held], limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut alive = Vec::new();
    for process in held {
        if !process.wait(deadline)? {
            alive.push(process.pid);
        }
    }
    if alive.is_empty() { Ok(()) } else { bail!("{} still alive after {limit:?}: {alive:?}", alive.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_may_hold_parentheses_and_blanks() {
        let stat = "42 (a) b (c) S 7 42 42 0 -1 0 0 0 0 0 3 4 0 0 20 0 1 0 99 0 0";
        let process = Process::parse(stat).unwrap();
        assert_eq!((process.pid, process.parent, process.ticks), (42, 7, 7));
        assert_eq!(process.comm, "a) b (c");
        assert!(process.is_alive());
    }

    #[test]
    fn a_zombie_is_alive_only_while_it_has_other_threads() {
        let process = |threads| {
            Process::parse(&format!("1 (a) Z 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 9")).unwrap()
        };
        assert!(!process(1).is_alive() && process(2).is_alive());
    }

    #[test]
    fn a_grandchild_is_a_descendant_and_is_found_by_its_marker() {
        let marker = format!("XTASK_TEST=grandchild-{}", std::process::id());
        let (name, value) = marker.split_once('=').unwrap();
        let mut shell = Command::new("sh").args(["-c", "sleep 60 & wait"]).env(name, value).spawn().unwrap();
        let pid = shell.id().try_into().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !descendants(pid).iter().any(|p| p.comm == "sleep") {
            assert!(Instant::now() < deadline, "the shell started no sleep");
        }
        assert_eq!(marked(&marker).len(), 2);
        assert!(wait_none_marked(&marker, Duration::ZERO).is_err());
        kill_marked(&marker);
        shell.wait().unwrap();
        wait_none_marked(&marker, Duration::from_secs(5)).unwrap();
    }
}
