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
    /// Nobody in the directories was frozen when the first signal was sent.
    is_thawed: bool,
}

impl<C> Bounded<C> {
    /// Bounds `inner` by these directories.
    #[must_use]
    pub fn new(inner: C, groups: Vec<Cgroup>) -> Self {
        Self { inner, groups, is_thawed: false }
    }

    /// Gives access to the inner containment.
    pub fn inner(&mut self) -> &mut C {
        &mut self.inner
    }

    /// Adds a directory.
    pub fn add(&mut self, group: Cgroup) {
        self.groups.push(group);
        self.is_thawed = false;
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
        self.thaw();
        self.inner.signal(member, signal)
    }

    fn thaw(&mut self) {
        // HAZARD(frozen-member): it hears of nothing but KILL. What is frozen again afterwards has chosen so.
        if !std::mem::replace(&mut self.is_thawed, true) {
            for group in &self.groups {
                // Who cannot be thawed has no grace, and dies of KILL all the same.
                let _ = group.thaw();
            }
        }
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
    create_seen(base, run, label, &mut |_| ())
}

/// Does what [`create`] does; `made` sees each directory before its lock is taken.
fn create_seen(base: &Path, run: &str, label: &str, made: &mut dyn FnMut(&Cgroup)) -> Result<Cgroup> {
    create_held(base, &format!("{PREFIX}{run}.{}", sanitized(label)), made)
}

/// Makes a directory whose name is `stem`, a dot and a number, and takes its lock; `made` sees each that is made before.
pub(super) fn create_held(base: &Path, stem: &str, made: &mut dyn FnMut(&Cgroup)) -> Result<Cgroup> {
    for number in 0..NAMES_MAX {
        match Cgroup::create(base, &format!("{stem}.{number}")) {
            Err(Errno::EXIST) => {}
            // A sweep was faster than we were with opening it; or there is no such base.
            Err(Errno::NOENT) if Cgroup::open(base).is_ok() => {}
            Err(errno) => return Err(errno),
            Ok(group) => {
                made(&group);
                if hold(&group) {
                    return Ok(group);
                }
            }
        }
    }
    Err(Errno::EXIST)
}

/// Takes the lock of a directory that was just made, and says whether the directory is ours to use.
///
/// HAZARD(made-and-not-locked): in between, a sweep may take it for a dead run's. Whoever has the lock and sees the
/// directory still there has it for good: a sweep kills and removes only under the lock.
fn hold(group: &Cgroup) -> bool {
    match group.lock() {
        // A sweep looks at it. One that only looks leaves it behind, and nobody but us knows that it is of no use.
        Ok(false) => {
            let _ = group.remove(Instant::now());
            false
        }
        // Where it cannot be locked, no sweep can lock it either.
        Ok(true) | Err(_) => group.path().is_ok(),
    }
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

    /// Opens it, if it is there, our user's, and no lariat process looks after it. As long as what this returns is not
    /// dropped, none will: whoever is in it was left by one that is dead.
    #[must_use]
    pub fn open_abandoned(&self) -> Option<Cgroup> {
        let group = Cgroup::open(&self.path).ok()?;
        let is_ours = group.owner().is_ok_and(|owner| owner == lariat_sys::process::effective_user());
        // Shared, so that two who look at the same time do not take each other for its owner.
        (is_ours && group.lock_shared() == Ok(true)).then_some(group)
    }

    /// Says whether a lariat process looks after it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        Cgroup::open(&self.path).is_ok_and(|group| group.lock_shared() == Ok(false))
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
    use std::os::fd::AsFd;

    use lariat_testkit::boundary::Boundary;
    use lariat_testkit::needs;

    use super::*;

    const RUN: &str = "00c0ffee00c0ffee";

    fn boundary(name: &str) -> Option<Boundary> {
        let boundary = Boundary::new(&format!("lt-{name}-{}", std::process::id()));
        if boundary.is_none() {
            needs::skip_as_user("no cgroup directory can be made here");
        }
        boundary
    }

    fn only(base: &Path) -> Directory {
        let mut all = directories_of(base, RUN);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// HAZARD(made-and-not-locked), with everything that a sweep can do in that moment.
    #[test]
    fn a_directory_that_was_just_made_is_nobodys_to_take() {
        let Some(boundary) = boundary("made") else { return };
        let base = boundary.path();
        let first = |before: &mut dyn FnMut()| {
            let mut made = 0;
            create_seen(base, RUN, "web", &mut |_| {
                made += 1;
                if made == 1 {
                    before();
                }
            })
            .unwrap()
        };
        // Nobody looks: the first one is used, and while it is, it is nobody's.
        let group = first(&mut || ());
        assert_eq!(group.path().unwrap(), only(base).path);
        assert!(only(base).is_held() && only(base).open_abandoned().is_none());
        remove(&group);
        // A sweep removes it: the negative control is that what was made is not there any more.
        let mut removed = None;
        let group = first(&mut || {
            let stray = only(base).open_abandoned().unwrap();
            remove(&stray);
            removed = Some(stray);
        });
        assert_eq!(removed.unwrap().path(), Err(Errno::NOENT));
        assert!(group.path().unwrap().exists() && only(base).is_held());
        remove(&group);
        // A sweep is looking at it: it is left to that one, and not left behind.
        let mut looking = None;
        let group = first(&mut || looking = only(base).open_abandoned());
        assert!(looking.is_some());
        assert_eq!(group.path().unwrap(), only(base).path);
        assert!(only(base).is_held());
        remove(&group);
        assert_eq!(directories(base), []);
    }

    #[test]
    fn what_its_owner_left_is_abandoned_and_two_may_see_it() {
        let Some(boundary) = boundary("left") else { return };
        let group = create(boundary.path(), RUN, "web").unwrap();
        let heir = group.as_fd().try_clone_to_owned().unwrap();
        drop(group);
        assert!(only(boundary.path()).is_held(), "whoever inherited the descriptor looks after it");
        drop(heir);
        let (one, other) = (only(boundary.path()).open_abandoned(), only(boundary.path()).open_abandoned());
        assert!(one.is_some() && other.is_some() && !only(boundary.path()).is_held());
        remove(&one.unwrap());
    }

    #[test]
    fn a_base_that_is_not_there_is_an_error() {
        assert_eq!(create(Path::new("/nowhere"), RUN, "web").err(), Some(Errno::NOENT));
    }

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
