//! Containment by cgroup: whoever is born in a directory of ours stays in it, whatever it does to its parents, session,
//! name and environment.
//!
//! It comes on top of another containment, which says who is who: the directory adds a kill that nobody forks past
//! (`cgroup.kill`), a second proof of emptiness (`populated`), and a membership that outlives every lariat process. A
//! member with the rights to it may move out; so descent counts as well, and nothing is proven by the directory alone.
//!
//! Every start has a directory of its own that is never used again (HAZARD(cgroup-killed-once)). Its name says which
//! run and service it belongs to, so that it can be found without a ledger; its lock says whether somebody of lariat
//! still looks after it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::cgroup::{self, Cgroup};
use lariat_sys::identity::Identity;
use lariat_sys::procfs;
use lariat_sys::signal::Signal;
use lariat_sys::{Errno, Result};

use super::Containment;
use super::lineage::life;
use crate::stop::{Life, Member, Role};

/// What the names of directories begin with.
const PREFIX: &str = "lariat-";
/// The longest part of a name that a label makes.
const LABEL_MAX: usize = 63;
/// How many names are tried for one start.
const NAMES_MAX: u32 = 1000;
/// How long the kernel may take to say that a directory is empty whose last member is dead, and to let it be removed.
const SETTLE_WITHIN: Duration = Duration::from_millis(100);

/// A containment that is bounded by directories as well; by none, it is the inner one alone.
#[derive(Debug)]
pub struct Bounded<C> {
    inner: C,
    groups: Vec<Cgroup>,
}

impl<C> Bounded<C> {
    /// Bounds `inner` by these directories.
    #[must_use]
    pub fn new(inner: C, groups: Vec<Cgroup>) -> Self {
        Self { inner, groups }
    }

    /// Gives access to the inner containment.
    pub fn inner(&mut self) -> &mut C {
        &mut self.inner
    }

    /// Adds a directory.
    pub fn add(&mut self, group: Cgroup) {
        self.groups.push(group);
    }

    /// Returns the directories.
    #[must_use]
    pub fn groups(&self) -> &[Cgroup] {
        &self.groups
    }

    /// Says whether nobody lives in the directories. Waits a moment for a kernel that has not counted the dead yet.
    pub fn are_groups_empty(&self) -> bool {
        self.groups.iter().all(is_empty)
    }

    /// Removes the directories, which have to be empty. One that cannot be removed stays, for whoever looks next.
    pub fn remove(&mut self) {
        for group in self.groups.drain(..) {
            remove(&group);
        }
    }

    /// Appends those members of the directories that are no members of the inner containment: somebody who was moved in
    /// from outside, or whose keeper is dead.
    fn add_strays(&self, out: &mut Vec<Member>) -> Result<()> {
        let mut pids = Vec::new();
        for group in &self.groups {
            group.members(&mut pids)?;
        }
        pids.retain(|pid| !out.iter().any(|member| member.identity.pid == *pid));
        for pid in pids {
            let Some(stat) = procfs::read_stat(pid)? else { continue };
            out.push(Member {
                identity: stat.identity(),
                role: Role::Root,
                life: life(&stat),
                pgrp: stat.pgrp,
                comm: stat.comm,
                wants_hangup: false,
            });
        }
        Ok(())
    }
}

impl<C: Containment> Containment for Bounded<C> {
    fn walk(&mut self, examine: Option<Signal>, out: &mut Vec<Member>) -> Result<()> {
        let walked = self.inner.walk(examine, out);
        // While the inner walk finds somebody alive, the place of every member is known from it. Whoever it misses has
        // just been forked, and telling that one out of turn would be wrong (HAZARD(told-twice)).
        if out.iter().all(|member| member.life == Life::Zombie) {
            self.add_strays(out)?;
        }
        walked
    }

    fn signal(&mut self, member: Identity, signal: Signal) -> Result<()> {
        self.inner.signal(member, signal)
    }

    fn kill_group(&mut self, group: i32) {
        self.inner.kill_group(group);
    }

    fn kill_all(&mut self) {
        self.inner.kill_all();
        for group in &self.groups {
            // Whoever it does not reach is killed one by one besides, and named if that does not help either.
            let _ = group.kill();
        }
    }

    fn reap(&mut self) -> bool {
        self.inner.reap()
    }

    fn is_empty(&mut self) -> bool {
        self.inner.is_empty() && self.are_groups_empty()
    }
}

/// Says whether nobody lives in a directory. One that was removed is empty.
#[must_use]
pub fn is_empty(group: &Cgroup) -> bool {
    match group.is_populated() {
        Ok(false) | Err(Errno::NOENT | Errno::NODEV) => true,
        Ok(true) => {
            // KERNEL(6.19): the last member counts until it was switched away from, a moment after it can be reaped.
            let mut members = Vec::new();
            let is_somebody_there = group.members(&mut members).is_err() || !members.is_empty();
            !is_somebody_there && matches!(group.wait_until_empty(Instant::now() + SETTLE_WITHIN), Ok(true))
        }
        Err(_) => false,
    }
}

/// Removes an empty directory, if the kernel lets it go in a moment.
pub fn remove(group: &Cgroup) {
    // One that is not removed holds nobody and costs a name; the next sweep finds it.
    let _ = group.remove(Instant::now() + SETTLE_WITHIN);
}

/// Makes the directory of one start in `base`, and takes its lock.
///
/// # Errors
/// As [`Cgroup::create`].
pub fn create(base: &Path, run: &str, label: &str) -> Result<Cgroup> {
    let label = sanitized(label);
    for number in 0..NAMES_MAX {
        match Cgroup::create(base, &format!("{PREFIX}{run}.{label}.{number}")) {
            Err(Errno::EXIST) => {}
            Ok(group) => {
                // Nobody else knows of it yet, so it is free; where it cannot be locked, the ledger's lock still counts.
                let _ = group.lock();
                return Ok(group);
            }
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

/// Takes the directory that a supervisor passed on.
///
/// # Errors
/// As [`Cgroup::from_owned`].
pub fn take(directory: OwnedFd) -> Result<Cgroup> {
    Cgroup::from_owned(directory)
}

/// A directory that some start of some run left or uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// The run's id.
    pub run: String,
    /// The service, or the command.
    pub label: String,
}

impl Directory {
    /// Opens it, if it is there and ours.
    #[must_use]
    pub fn open(&self) -> Option<Cgroup> {
        let group = Cgroup::open(&self.path).ok()?;
        let user = lariat_sys::process::effective_user();
        let is_ours = group.owner().is_ok_and(|owner| owner == user || user == 0);
        is_ours.then_some(group)
    }
}

/// Returns the directories of all runs in `base`. What cannot be read holds none.
#[must_use]
pub fn directories(base: &Path) -> Vec<Directory> {
    let names = cgroup::names_in(base).unwrap_or_default();
    let mut found: Vec<Directory> = names
        .into_iter()
        .filter_map(|name| {
            let (run, label) = parse(name.to_str()?)?;
            Some(Directory { path: base.join(&name), run, label })
        })
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Returns the directories of one run in `base`.
#[must_use]
pub fn directories_of(base: &Path, run: &str) -> Vec<Directory> {
    let mut found = directories(base);
    found.retain(|directory| directory.run == run);
    found
}

fn parse(name: &str) -> Option<(String, String)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('.');
    let (run, label, number) = (parts.next()?, parts.next()?, parts.next()?);
    let is_run = run.len() == 16 && run.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_name = parts.next().is_none() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (is_run && is_name).then(|| (run.to_owned(), label.to_owned()))
}

/// Makes any label a part of a name. The names of services stay what they are.
fn sanitized(label: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    label.chars().take(LABEL_MAX).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_none() {
        let run = "0123456789abcdef";
        for (label, expected) in
            [("web", "web"), ("my_api-2", "my_api-2"), ("a b/c.d\n", "a_b_c_d_"), ("", "")]
        {
            let name = format!("{PREFIX}{run}.{}.7", sanitized(label));
            assert_eq!(parse(&name), Some((run.to_owned(), expected.to_owned())), "{name}");
        }
        assert_eq!(sanitized(&"é".repeat(100)).len(), LABEL_MAX);
        for name in [
            "lariat-0123456789abcdef",
            "lariat-0123456789abcdef.web",
            "lariat-0123456789abcdef.web.",
            "lariat-0123456789abcdef.web.x",
            "lariat-0123456789abcdef.web.1.2",
            "lariat-0123456789ABCDEF.web.1",
            "lariat-0123456789abcde.web.1",
            "x-0123456789abcdef.web.1",
            "",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
