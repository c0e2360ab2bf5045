//! Who is alive: walks of `/proc` that share no code with lariat.
//!
//! Three ways, because a process may hide from any one of them: the kernel's children lists, the parent recorded in
//! every process's `stat`, and the arena's token in the environment it was executed with. A zombie is not alive; a
//! process whose first thread has exited while others run shows as a zombie too, and *is* alive.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One process as it was when it was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Its number, for display and together with `start` for [`Seen::kill`].
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// The kernel's name for it.
    pub comm: String,
    /// Arguments joined by spaces; empty for a process that has wiped them.
    pub command: String,
    /// The state letter of `proc_pid_stat(5)`.
    pub state: char,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
    /// Which ways found it.
    pub ways: BTreeSet<Way>,
}

/// How a process was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// On the children list of a thread of its parent.
    Children,
    /// By the parent number in its `stat`.
    Parent,
    /// By the arena's token in its environment.
    Token,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, parent, comm, command, state, group, session, ways, .. } = self;
        write!(
            f,
            "{pid} ({comm}) `{command}` state {state}, parent {parent}, group {group}, session {session}, "
        )?;
        write!(f, "found by {ways:?}")
    }
}

impl Seen {
    /// Looks at one process; `None` when there is no such process.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, rest) = stat.rsplit_once(')')?;
        let comm = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<i64>().ok());
        let mut state = fields.first()?.chars().next()?;
        if state == 'Z' && has_other_threads(pid) {
            state = 'S';
        }
        let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&raw).replace('\0', " ").trim_end().to_owned();
        Some(Self {
            pid,
            parent: i32::try_from(number(1)?).ok()?,
            group: i32::try_from(number(2)?).ok()?,
            session: i32::try_from(number(3)?).ok()?,
            start: u64::try_from(number(19)?).ok()?,
            comm,
            command,
            state,
            ways: BTreeSet::new(),
        })
    }

    /// Returns whether it could still do something: it is neither a zombie nor gone.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Returns whether this very process (not another one with its number) is alive now.
    #[must_use]
    pub fn is_alive_now(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.start == self.start && now.is_alive())
    }

    /// Sends SIGKILL to this very process; nothing happens when its number belongs to another one by now.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// Sends a signal (by number) to this very process; nothing happens when it is gone or may not be signalled.
    pub fn signal(&self, signal: i32) {
        let (Some(pid), Some(signal)) = (Pid::from_raw(self.pid), Signal::from_named_raw(signal)) else {
            return;
        };
        let Ok(reference) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        if Self::of(self.pid).is_some_and(|now| now.start == self.start) {
            let _ = pidfd_send_signal(reference, signal);
        }
    }
}

fn has_other_threads(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1)
}

/// Returns the numbers of all processes.
#[must_use]
pub fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Returns all descendants of `root`, zombies included, by the kernel's children lists of all threads.
#[must_use]
pub fn by_children(root: i32) -> Vec<Seen> {
    let (mut found, mut ahead) = (Vec::new(), vec![root]);
    let mut known = BTreeSet::from([root]);
    while let Some(parent) = ahead.pop() {
        for child in children_of(parent) {
            if !known.insert(child) {
                continue;
            }
            ahead.push(child);
            found.extend(Seen::of(child));
        }
    }
    found
}

/// Returns the direct children of `parent`, zombies included.
#[must_use]
pub fn children_of(parent: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

/// Returns all descendants of `root`, zombies included, by one scan of all processes and the parents they name.
#[must_use]
pub fn by_parent(root: i32) -> Vec<Seen> {
    let all: BTreeMap<i32, Seen> = pids().into_iter().filter_map(|pid| Some((pid, Seen::of(pid)?))).collect();
    let mut below = BTreeSet::from([root]);
    loop {
        let before = below.len();
        below.extend(
            all.values().filter(|seen| below.contains(&seen.parent)).map(|seen| seen.pid).collect::<Vec<_>>(),
        );
        if below.len() == before {
            break;
        }
    }
    below.remove(&root);
    all.into_values().filter(|seen| below.contains(&seen.pid)).collect()
}

/// Returns all processes that were executed with `token` (`NAME=value`) in their environment.
#[must_use]
pub fn by_token(token: &str) -> Vec<Seen> {
    pids().into_iter().filter(|pid| has_token(*pid, token)).filter_map(Seen::of).collect()
}

fn has_token(pid: i32, token: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == token.as_bytes())
}

/// Returns everybody that any of the three ways finds, `root` itself left out, each once, with all its ways.
#[must_use]
pub fn everybody(root: i32, token: &str) -> Vec<Seen> {
    let mut all: BTreeMap<i32, Seen> = BTreeMap::new();
    let ways =
        [(Way::Children, by_children(root)), (Way::Parent, by_parent(root)), (Way::Token, by_token(token))];
    for (way, found) in ways {
        for seen in found.into_iter().filter(|seen| seen.pid != root) {
            all.entry(seen.pid).or_insert(seen).ways.insert(way);
        }
    }
    all.into_values().collect()
}

/// Returns the keeper of a `lariat run`, its only child that is alive: who made a namespace for the keeper is dead, and may
/// be unreaped for a moment.
///
/// # Panics
/// When there is none, or more than one.
#[must_use]
#[track_caller]
pub fn keeper_of(lariat: i32) -> Seen {
    let mut keepers: Vec<Seen> = children_of(lariat).into_iter().filter_map(Seen::of).collect();
    keepers.retain(Seen::is_alive);
    assert!(keepers.len() == 1, "lariat has children {keepers:?}");
    keepers.remove(0)
}

/// Returns the process that calls itself `inner` in the pid namespace of `keeper`, its first process: a fixture in there
/// tells that number. `None` where there is none, or `keeper` is not in a namespace of its own.
#[must_use]
pub fn inside(keeper: i32, inner: i32) -> Option<Seen> {
    let depth = numbers(keeper).len().checked_sub(1)?;
    let has_number = |seen: &Seen| numbers(seen.pid).get(depth) == Some(&inner);
    (numbers(keeper).last() == Some(&1)).then(|| by_parent(keeper).into_iter().find(has_number))?
}

/// Returns the numbers of a process in all namespaces from ours to its own.
fn numbers(pid: i32) -> Vec<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}
