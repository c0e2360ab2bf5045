//! Who is alive: by descent from the judge, by what members said of themselves at birth, and by the marker in their
//! environment. Uses nothing that lariat knows or says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::procfs::{self, Stat};
use lariat_sys::signal::{self, Signal, SignalSet};
use lariat_sys::{process, reap, tree};

/// The variable that everything started in a cell has in its environment.
pub(crate) const MARKER: &str = "LARIAT_DRILL";
/// How long what is left is killed at most.
const KILLING_WITHIN: Duration = Duration::from_secs(20);
/// The pause between two passes of killing.
const PASS_EVERY: Duration = Duration::from_millis(2);

/// Somebody who is alive.
#[derive(Clone, Debug)]
pub(crate) struct Alive {
    pub(crate) identity: Identity,
    /// For people: number, name, state.
    pub(crate) shown: String,
}

fn shown(stat: &Stat) -> Alive {
    let name = String::from_utf8_lossy(stat.comm.as_bytes()).into_owned();
    let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    Alive { identity: stat.identity(), shown: format!("{} ({name}, {})", stat.pid, stat.state.letter()) }
}

/// Collects every child that has ended. Returns whether the kernel says that there is no child at all.
pub(crate) fn reap_all() -> bool {
    loop {
        match reap::peek() {
            Ok(Some(reap::ChildEvent::Exited { pid, .. })) => drop(reap::reap(pid)),
            Ok(_) => return false,
            Err(_) => return true,
        }
    }
}

/// Returns everybody below the calling process who is alive, without those in `except` and what is below them.
pub(crate) fn below(except: &[i32]) -> Vec<Alive> {
    let mut stats = Vec::new();
    // What a failed walk has found counts; the caller asks the kernel besides.
    let _ = tree::walk(process::pid(), except, &mut stats);
    stats.iter().filter(|stat| stat.is_alive()).map(shown).collect()
}

/// Returns everybody whose environment has this marker, wherever they are, without the calling process.
pub(crate) fn marked(marker: &str) -> Vec<Alive> {
    let entry = format!("{MARKER}={marker}");
    let us = process::pid();
    let pids = procfs::pids().unwrap_or_default().into_iter().filter(|pid| *pid != us);
    let has_marker = |pid: &i32| procfs::environ_has(*pid, entry.as_bytes()).unwrap_or(false);
    pids.filter(has_marker)
        .filter_map(|pid| procfs::read_stat(pid).ok().flatten())
        .filter(Stat::is_alive)
        .map(|stat| shown(&stat))
        .collect()
}

/// Returns everybody that any of the three ways finds, each once.
pub(crate) fn everybody(members: &[Identity], marker: &str, except: &[i32]) -> Vec<Alive> {
    let told = members.iter().filter(|member| member.is_alive());
    let told =
        told.filter_map(|member| procfs::read_stat(member.pid).ok().flatten()).map(|stat| shown(&stat));
    let all = below(except).into_iter().chain(told).chain(marked(marker));
    let mut once: BTreeMap<Identity, Alive> = BTreeMap::new();
    for alive in all.filter(|alive| !except.contains(&alive.identity.pid)) {
        once.entry(alive.identity).or_insert(alive);
    }
    once.into_values().collect()
}

/// Kills everybody below the calling process but `except`, and whoever carries the marker, until the kernel says that
/// nobody is there, or for 20 seconds. Returns whether nobody is.
pub(crate) fn end_everybody(members: &[Identity], marker: &str, except: &[i32]) -> bool {
    let deadline = Instant::now() + KILLING_WITHIN;
    loop {
        let is_childless = reap_all();
        let left = everybody(members, marker, except);
        if left.is_empty() && (is_childless || !except.is_empty()) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        for alive in &left {
            // Who is gone by now is what was wanted; who may not be killed is found again, until the time is over.
            let _ = PidFd::open(alive.identity).and_then(|process| process.signal(Signal::KILL));
        }
        signal::wait(SignalSet::empty(), Some(Instant::now() + PASS_EVERY));
    }
}
