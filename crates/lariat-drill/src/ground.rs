//! The cgroup directory of a drill, in which every cell has one of its own: whatever lariat, a run of it inside, or a
//! member makes is below, and goes with it.
//!
//! The judge of a cell enters the cell's directory before it starts anything, so lariat finds it as its own cgroup and
//! is told nothing. Where no directory can be had, a drill is done without.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::cgroup::{self, Cgroup};
use lariat_sys::{Errno, Result};

/// What the names of these directories begin with. No run's directory and no probe's has such a name, so no `sweep` takes
/// one for a leftover of its own.
const PREFIX: &str = "lariat-drill.";
/// The variable that names a cell's directory to its members, who make theirs below it.
pub(crate) const CELL_VARIABLE: &str = "LARIAT_DRILL_CGROUP";
/// How long the kernel may hold a directory whose members were killed.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);

/// The directory. Dropping it removes nothing.
#[derive(Debug)]
pub(crate) struct Ground(Cgroup);

impl Ground {
    /// Makes a directory with this token in its name, and removes those of drills that were killed with their guards.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub(crate) fn create(base: &Path, token: &str) -> Result<Self> {
        remove_stale(base);
        let group = Cgroup::create(base, &format!("{PREFIX}{token}"))?;
        // Guard, drill and judges share the lock, which says that the drill goes on; nothing that is executed has it.
        let _ = group.lock();
        Ok(Self(group))
    }

    /// Makes the directory of a cell, moves the calling process in, and returns it.
    ///
    /// # Errors
    /// As [`Cgroup::create`] and [`Cgroup::enter`].
    pub(crate) fn enter(&self, cell: usize) -> Result<PathBuf> {
        let group = Cgroup::create(&self.0.path()?, &cell.to_string())?;
        group.enter()?;
        group.path()
    }

    /// Kills whoever is in a cell's directory and removes it. Says whether it is gone.
    pub(crate) fn clear(&self, cell: usize) -> bool {
        match self.0.path().and_then(|path| Cgroup::open(&path.join(cell.to_string()))) {
            Ok(group) => end(&group).is_ok(),
            Err(errno) => errno == Errno::NOENT,
        }
    }

    /// Kills whoever is in it, in all cells, and removes it with everything below; does nothing where that was done.
    pub(crate) fn remove(&self) {
        // What could not be removed within the time is found by the next drill.
        let _ = end(&self.0);
    }
}

/// Kills everybody in a directory and removes it; bounded in time.
fn end(group: &Cgroup) -> Result<()> {
    match group.kill().and_then(|()| group.remove(Instant::now() + REMOVED_WITHIN)) {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        result => result,
    }
}

/// Removes what drills left that were killed with their guards. Their members are dead by their own timers.
fn remove_stale(base: &Path) {
    for name in cgroup::names_in(base).unwrap_or_default() {
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX))
            && let Ok(group) = Cgroup::open(&base.join(&name))
            && group.lock() == Ok(true)
            && group.is_populated() == Ok(false)
        {
            let _ = group.remove(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use lariat_sys::cgroup::Own;

    use super::*;

    /// A directory below our own cgroup; `None` where none can be made.
    fn base(name: &str) -> Option<(Cgroup, PathBuf)> {
        let Ok(Own::At(own)) = cgroup::own() else { return None };
        let group = Cgroup::create(&own, &format!("{name}.{}", lariat_sys::process::pid())).ok()?;
        let path = group.path().ok()?;
        Some((group, path))
    }

    #[test]
    fn whoever_is_in_it_goes_with_it() {
        let Some((outer, path)) = base("ground") else { return };
        let ground = Ground::create(&path, "a").unwrap();
        let child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let cell = Cgroup::create(&path.join("lariat-drill.a"), "0").unwrap();
        let inner = Cgroup::create(&cell.path().unwrap(), "lariat-x").unwrap();
        inner.write("cgroup.procs", &child.id().to_string()).unwrap();
        inner.write("cgroup.freeze", "1").unwrap();
        assert!(ground.clear(0) && ground.clear(0), "twice, and one that was never made");
        assert!(ground.clear(7));
        ground.remove();
        ground.remove();
        assert_eq!(cgroup::names_in(&path).unwrap(), Vec::<std::ffi::OsString>::new());
        let mut child = child;
        assert!(!child.wait().unwrap().success());
        outer.remove(Instant::now() + REMOVED_WITHIN).unwrap();
    }

    #[test]
    fn only_what_nobody_uses_is_stale() {
        let Some((outer, path)) = base("stale") else { return };
        let used = Ground::create(&path, "used").unwrap();
        let stale = Ground::create(&path, "stale").unwrap();
        Cgroup::create(&path.join("lariat-drill.stale"), "0").unwrap();
        drop(stale);
        let ours = Ground::create(&path, "ours").unwrap();
        let deadline = Instant::now() + REMOVED_WITHIN;
        let mut names = cgroup::names_in(&path).unwrap();
        // A process that another test forks has the lock until it executes its program.
        while names.len() > 2 && Instant::now() < deadline {
            remove_stale(&path);
            names = cgroup::names_in(&path).unwrap();
        }
        names.sort();
        assert_eq!(names, ["lariat-drill.ours", "lariat-drill.used"]);
        used.remove();
        ours.remove();
        outer.remove(Instant::now() + REMOVED_WITHIN).unwrap();
    }
}
