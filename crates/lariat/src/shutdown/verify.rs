//! The last look: who is alive that should not be, and which ports are not free.
//!
//! Looks only; nothing is signalled here.

use std::collections::BTreeSet;

use lariat_sys::identity::Identity;
use lariat_sys::pidfd::is_surely_gone;
use lariat_sys::procfs::{self, State};

use super::report::{HeldPort, LeftProcess};
use crate::ledger::recover::{Findings, Found, Reach};
use crate::ports::{self, HolderProcess};
use crate::process::{Mark, age_of, command_of};

/// Parents named at most.
const PARENTS_MAX: usize = 16;

/// Says whether nothing is left by what was seen: nobody is there, no port is ours, and somebody looked. That nobody was
/// found where the processes could not be read says nothing.
#[must_use]
pub fn is_quiet(found: &Findings, held: &[HeldPort], has_keepers: bool) -> bool {
    let is_seen = found.reach == Reach::Here;
    is_seen && found.certain.is_empty() && !has_keepers && !held.iter().any(|port| port.is_ours)
}

/// Describes a process that is alive; `None` if it is gone.
#[must_use]
pub fn describe(identity: Identity, reason: &str) -> Option<LeftProcess> {
    let stat = procfs::read_stat(identity.pid).ok().flatten()?;
    if is_surely_gone(identity) || !stat.is_alive() {
        return None;
    }
    Some(LeftProcess {
        service: Mark::of(identity.pid).and_then(|mark| mark.service),
        pid: identity.pid,
        start: identity.start,
        inode: identity.inode(),
        command: command_of(identity.pid, &stat.comm.to_string()),
        age: age_of(identity),
        parents: parents(stat.ppid),
        reason: match stat.state {
            State::Uninterruptible => format!("{reason}; it waits in the kernel"),
            State::Traced => format!("{reason}; a debugger holds it"),
            _ => reason.to_owned(),
        },
    })
}

/// The parents of a process, nearest first.
fn parents(first: i32) -> Vec<String> {
    let mut parents = Vec::new();
    let mut pid = first;
    while pid > 0 && parents.len() < PARENTS_MAX {
        let Some(stat) = procfs::read_stat(pid).ok().flatten() else { break };
        parents.push(format!("{pid} {}", stat.comm));
        pid = stat.ppid;
    }
    parents
}

/// Returns those of the claimed ports (service, port) on which somebody listens by TCP, with who it is.
///
/// Ours is whoever carries this run's mark under our user, or is among the `certain` findings of a look taken just
/// before. Since that look goes by the same mark, nobody is ours by his port alone; anybody else is only named.
#[must_use]
pub fn held_ports(claimed: &[(String, u16)], run: &str, certain: &[Found]) -> Vec<HeldPort> {
    let numbers: BTreeSet<u16> = claimed.iter().map(|(_, port)| *port).collect();
    // Where the kernel does not say who listens, nothing can be said here.
    let Ok(held) = ports::explain_tcp(&numbers) else { return Vec::new() };
    let user = lariat_sys::process::effective_user();
    let is_ours = |process: &HolderProcess| {
        process.run(user) == Some(run) || certain.iter().any(|found| found.identity == process.identity)
    };
    let mut all = Vec::new();
    for (service, port) in claimed {
        let Some(holders) = held.get(port) else { continue };
        let is_ours = holders.iter().flat_map(|holder| &holder.processes).any(is_ours);
        all.push(HeldPort {
            port: *port,
            service: service.clone(),
            holder: ports::in_words(holders),
            is_ours,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_live_process_is_described_and_a_dead_one_is_not() {
        let mut command = std::process::Command::new("sleep");
        let mut child =
            command.arg("60").env("LARIAT_RUN", "x").env("LARIAT_SERVICE", "web").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let identity = Identity::of(pid).unwrap().unwrap();
        // The parent goes on before the kernel has laid out the arguments of the new program.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let left = loop {
            let left = describe(identity, "does not die").unwrap();
            if !left.command.starts_with('[') || std::time::Instant::now() > deadline {
                break left;
            }
            std::thread::yield_now();
        };
        assert_eq!((left.pid, left.command.as_str()), (pid, "sleep 60"));
        assert_eq!(left.service.as_deref(), Some("web"));
        assert!(left.parents[0].starts_with(&format!("{} ", std::process::id())), "{:?}", left.parents);
        assert!(left.age < Duration::from_secs(60), "{:?}", left.age);
        let stranger = Identity::new(identity.pid, identity.start + 1);
        assert_eq!(describe(stranger, ""), None, "the number alone is nobody");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(describe(identity, ""), None);
    }

    fn found() -> Found {
        Found {
            identity: Identity::new(7, 8),
            why: crate::ledger::recover::Why::Marked,
            pattern: None,
            service: None,
            ppid: 1,
            uid: None,
            comm: "x".into(),
            command: "x".into(),
            age: Duration::ZERO,
        }
    }

    #[test]
    fn only_a_look_that_saw_nobody_is_quiet() {
        let (nobody, blind) = (Findings::nobody(), Reach::Unreadable(lariat_sys::Errno::ACCESS));
        let port = |is_ours| HeldPort { port: 80, service: "web".into(), holder: "x".into(), is_ours };
        assert!(is_quiet(&nobody, &[], false) && is_quiet(&nobody, &[port(false)], false));
        assert!(!is_quiet(&nobody, &[], true) && !is_quiet(&nobody, &[port(true)], false));
        for reach in [blind, Reach::OtherBoot, Reach::OtherNamespace] {
            assert!(!is_quiet(&Findings { reach, ..Findings::nobody() }, &[], false), "{reach:?}");
        }
        assert!(!is_quiet(&Findings { certain: vec![found()], ..Findings::nobody() }, &[], false));
        // Who is only possibly the run's is named, and nobody waits for his end.
        assert!(is_quiet(&Findings { possible: vec![found()], ..Findings::nobody() }, &[], false));
    }

    #[test]
    fn a_held_port_names_its_holder_and_a_free_one_is_not_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let held = held_ports(&[("web".into(), port), ("api".into(), 1)], "0123456789abcdef", &[]);
        assert_eq!(held.len(), 1, "{held:?}");
        assert!(!held[0].is_ours);
        assert!(held[0].holder.starts_with(&format!("{} `", std::process::id())), "{}", held[0].holder);
    }

    /// The port is the last resort, and adds nobody: whoever is ours by his port is found by his mark.
    #[test]
    fn a_holder_that_is_ours_is_always_found_without_its_port() {
        use crate::ledger::record::RunId;
        use crate::ledger::recover::{Clues, Process, Snapshot, find};
        use crate::process::Mark;
        use std::collections::BTreeSet;

        let (run, user) = (RunId::try_from("0123456789abcdef".to_owned()).unwrap(), 1000);
        let mut ours = 0;
        for (pid, uid) in [(70, Some(1000)), (71, Some(0)), (72, None), (1, Some(1000)), (50, Some(1000))] {
            for marked in [Some(run.as_str()), Some("fedcba9876543210"), None] {
                let identity = Identity::new(pid, 9);
                let mark = marked.map(|run| Mark { run: run.to_owned(), ..Mark::default() });
                let holder = HolderProcess {
                    identity,
                    uid,
                    command: "x".into(),
                    age: Duration::ZERO,
                    mark: mark.clone(),
                };
                // A daemon: on its own in every respect, but for the mark.
                let process = Process {
                    dir: None,
                    supervisor: None,
                    identity,
                    ppid: 1,
                    pgrp: pid,
                    session: pid,
                    uid,
                    is_alive: true,
                    is_keeper: false,
                    has_terminal: false,
                    has_home: true,
                    is_unit: false,
                    traces: None,
                    mark,
                    comm: "x".into(),
                };
                let snapshot = Snapshot {
                    boot: "b".into(),
                    pid_namespace: None,
                    user,
                    spared: BTreeSet::from([1, 50]),
                    processes: vec![process],
                    living: crate::ledger::recover::Living::default(),
                    grouped: std::collections::BTreeMap::new(),
                };
                let is_found = !find(&Clues::mark_only(run.clone()), &snapshot).certain.is_empty();
                let is_spared = snapshot.spared.contains(&pid);
                let is_ours = holder.run(user) == Some(run.as_str()) && !is_spared;
                assert_eq!(is_ours, is_found, "{holder:?}");
                ours += u32::from(is_ours);
            }
        }
        assert_eq!(ours, 1);
    }
}
