//! What is read of the machine's processes: a little of everybody, more of those who are suspected.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use lariat_keeper::contain::cgroup::Directory;
use lariat_keeper::contain::lineage::is_keeper;
use lariat_sys::cgroup::Cgroup;
use lariat_sys::identity::{BootId, Identity};
use lariat_sys::pidfd::PidFd;
use lariat_sys::procfs::{Open, visit_descriptors};
use lariat_sys::{Result, ports, procfs};

use super::{Clues, Living};
use crate::process::Mark;

/// Files of one process that are looked at.
const FILES_MAX: usize = 256;

/// One process of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Who it is.
    pub identity: Identity,
    /// Its parent's number.
    pub ppid: i32,
    /// Its process group.
    pub pgrp: i32,
    /// Its session.
    pub session: i32,
    /// Its real user, if it could be read.
    pub uid: Option<u32>,
    /// It lives: no zombie. A zombie still proves whose its session is.
    pub is_alive: bool,
    /// It is a keeper of some run.
    pub is_keeper: bool,
    /// It has a controlling terminal.
    pub has_terminal: bool,
    /// Its environment says where home is, as that of everything does which was started from a login.
    pub has_home: bool,
    /// Its environment says that a service manager started it: systemd names its unit's process by number.
    pub is_unit: bool,
    /// The mark in its environment, if it has one that could be read.
    pub mark: Option<Mark>,
    /// The supervisor that the mark names, if that is alive. Anybody can write one into his environment.
    pub supervisor: Option<Identity>,
    /// Where it works, if it has a mark: read at once, for it may be gone when that is asked for.
    pub dir: Option<PathBuf>,
    /// The name of its program.
    pub comm: String,
    /// More about it, of those who were looked at more closely.
    pub traces: Option<Traces>,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        // HAZARD(pid-reuse): opened before anything is read, so that the inode and what was read are of one process.
        let opened = PidFd::open_pid(pid).ok();
        let stat = procfs::read_stat(pid).ok().flatten()?;
        let opened = opened.filter(PidFd::has_number);
        let is_alive = stat.is_alive();
        // A zombie has no memory any more, and there may be very many.
        let environment =
            if is_alive { procfs::settled_environ(&stat).ok().flatten() } else { None }.unwrap_or_default();
        let mark = Mark::parse(&environment);
        let supervisor = mark.as_ref().and_then(|mark| mark.supervisor).filter(Identity::is_alive);
        let dir = mark.as_ref().and_then(|_| procfs::cwd(pid).ok().flatten());
        Some(Self {
            identity: stat.identity().with_inode(opened.and_then(|opened| opened.inode())),
            ppid: stat.ppid,
            pgrp: stat.pgrp,
            session: stat.session,
            uid: if is_alive { procfs::uid(pid).ok().flatten() } else { None },
            is_alive,
            is_keeper: is_alive && is_keeper(&stat),
            has_terminal: stat.tty_nr != 0,
            has_home: has_home(&environment),
            is_unit: is_unit(&environment, pid),
            mark,
            supervisor,
            dir,
            comm: stat.comm.to_string(),
            traces: None,
        })
    }
}

/// Numbers that are tried for processes too young for a list.
const NEWBORN_MAX: i32 = 256;

/// Returns processes whose numbers were given out last, the newest first, each held by a descriptor.
pub(crate) fn newborn() -> impl Iterator<Item = (i32, PidFd)> {
    // Without it the list is what there is.
    let newest = procfs::newest().unwrap_or(0);
    let numbers = (newest.saturating_sub(NEWBORN_MAX).max(1)..=newest).rev();
    // Most numbers are nobody's any more, and some are threads', which cannot be opened.
    numbers.filter_map(|pid| Some((pid, PidFd::open_pid(pid).ok()?)))
}

/// How often those born since are looked for at most.
const NEWBORN_LOOKS: u32 = 8;

/// Adds whoever was born since the `known` were listed, until none of them died before he was read.
///
/// HAZARD(runner): whoever forks himself away faster than a list is read is among them, and most of his generations have no
/// environment any more when it is their turn.
fn add_newborn(processes: &mut Vec<Process>, mut known: BTreeSet<i32>) {
    for _ in 0..NEWBORN_LOOKS {
        let mut has_missed = false;
        for (pid, _) in newborn() {
            if known.insert(pid) {
                let read = Process::read(pid).filter(|process| process.is_alive);
                has_missed |= read.as_ref().is_none_or(|process| process.mark.is_none());
                processes.extend(read);
            }
        }
        if !has_missed {
            return;
        }
    }
}

/// What a process has to do with places, pipes and ports.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Traces {
    /// Its working directory.
    pub cwd: Option<PathBuf>,
    /// Its executable.
    pub program: Option<PathBuf>,
    /// Files that it has open, the first few hundred.
    pub files: Vec<PathBuf>,
    /// Numbers of the pipes that it can write to.
    pub pipes: BTreeSet<u64>,
    /// Ports of interest on which it listens.
    pub ports: Vec<u16>,
    /// Its arguments, each ended by NUL.
    pub arguments: Vec<u8>,
}

/// All processes at about one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The boot id.
    pub boot: String,
    /// Our pid namespace.
    pub pid_namespace: Option<u64>,
    /// The user that we are.
    pub user: u32,
    /// Ourselves, pid 1 and our ancestors: never found, whatever they look like.
    pub spared: BTreeSet<i32>,
    /// What is known of the user's runs that are alive.
    pub living: Living,
    /// The processes, in any order.
    pub processes: Vec<Process>,
    /// Who is in a cgroup of the run, by number, with the service that it belongs to.
    pub grouped: BTreeMap<i32, String>,
}

impl Snapshot {
    /// Reads `/proc`. Processes that end meanwhile are left out; those that we may not look into have no mark.
    ///
    /// # Errors
    /// When `/proc` cannot be listed, or the boot id cannot be read.
    pub fn take(living: &Living) -> Result<Self> {
        let listed = procfs::pids()?;
        let mut processes: Vec<Process> = listed.iter().filter_map(|pid| Process::read(*pid)).collect();
        add_newborn(&mut processes, listed.into_iter().collect());
        let spared = ancestors(&processes, lariat_sys::process::pid());
        let boot = BootId::read()?.to_string();
        let user = lariat_sys::process::effective_user();
        let pid_namespace = super::super::record::pid_namespace();
        Ok(Self {
            boot,
            pid_namespace,
            user,
            spared,
            living: living.clone(),
            processes,
            grouped: BTreeMap::new(),
        })
    }

    /// Notes who is in these directories, and forgets who was in others. Whoever is only born after this is found by
    /// descent, or by the next look.
    pub fn set_groups(&mut self, groups: &[(Directory, Cgroup)]) {
        self.grouped.clear();
        let mut pids = Vec::new();
        for (directory, group) in groups {
            // One that cannot be read hides nobody: its members are processes like any other.
            let _ = group.members(&mut pids);
            self.grouped.extend(pids.drain(..).map(|pid| (pid, directory.label.clone())));
        }
    }

    /// Reads more about those who may be left of this run and do not carry its mark. Costs a look at every descriptor of
    /// the user's processes that are younger than the run.
    pub fn look_closer(&mut self, clues: &Clues) {
        let Some(began) = clues.began.filter(|_| clues.boot.as_ref().is_none_or(|boot| *boot == self.boot))
        else {
            return;
        };
        let listeners = listeners(clues);
        let run = clues.run.as_str().to_owned();
        self.suspects(|process| {
            process.identity.start >= began && process.mark.as_ref().is_none_or(|mark| mark.run != run)
        })
        .for_each(|process| {
            let pid = process.identity.pid;
            let traces = process.traces.get_or_insert_default();
            traces.cwd = procfs::cwd(pid).ok().flatten().map(undeleted);
            traces.program = procfs::exe(pid).ok().flatten().map(undeleted);
            traces.files.clear();
            // One that may not be looked into has shown nothing.
            let _ = visit_descriptors(pid, &mut |open| match open {
                Open::Pipe { inode, is_writable: true } => drop(traces.pipes.insert(inode)),
                Open::Pipe { .. } => {}
                Open::Socket { inode } => traces.ports.extend(listeners.get(&inode)),
                Open::File { path, .. } if traces.files.len() < FILES_MAX => {
                    traces.files.push(path.to_owned())
                }
                Open::File { .. } => {}
            });
        });
    }

    /// Reads the commands of those who work below `place`.
    pub fn look_at_commands(&mut self, place: &Path) {
        self.suspects(|_| true).for_each(|process| {
            let pid = process.identity.pid;
            let cwd = procfs::cwd(pid).ok().flatten().map(undeleted);
            if let Some(cwd) = cwd.filter(|cwd| cwd.starts_with(place)) {
                let traces = process.traces.get_or_insert_default();
                traces.cwd = Some(cwd);
                traces.arguments = procfs::cmdline(pid).ok().flatten().unwrap_or_default();
            }
        });
    }

    fn suspects(&mut self, is_one: impl Fn(&Process) -> bool) -> impl Iterator<Item = &mut Process> {
        let (user, spared) = (self.user, &self.spared);
        self.processes.iter_mut().filter(move |process| {
            process.is_alive
                && process.uid == Some(user)
                && !process.is_keeper
                && !spared.contains(&process.identity.pid)
                && is_one(process)
        })
    }
}

/// Takes away what the kernel adds to the path of what was removed: who worked in a project that is gone did work there.
fn undeleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(before) => PathBuf::from(OsStr::from_bytes(before)),
        None => path,
    }
}

fn has_home(environment: &[u8]) -> bool {
    environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(b"HOME="))
}

/// Children inherit the variable, but not the number.
fn is_unit(environment: &[u8], pid: i32) -> bool {
    let entry = format!("SYSTEMD_EXEC_PID={pid}");
    environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes())
}

/// Returns the listening sockets on the ports that the run claimed.
fn listeners(clues: &Clues) -> BTreeMap<u64, u16> {
    if clues.ports.is_empty() {
        return BTreeMap::new();
    }
    // Where the kernel does not say who listens, the other clues are left.
    let listeners = ports::listeners().unwrap_or_default().into_iter();
    let is_claimed = |port: u16| clues.ports.iter().any(|(_, claimed)| *claimed == port);
    let ours = listeners.map(|listener| (listener.inode, listener.addr.port()));
    ours.filter(|(_, port)| is_claimed(*port)).collect()
}

/// Returns a process, all above it, and pid 1.
fn ancestors(processes: &[Process], pid: i32) -> BTreeSet<i32> {
    let parents: BTreeMap<i32, i32> =
        processes.iter().map(|process| (process.identity.pid, process.ppid)).collect();
    let mut spared = BTreeSet::from([1]);
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| spared.insert(*pid)) {
        next = parents.get(&pid).copied();
    }
    spared
}
