//! A directory of the cgroup hierarchy for one arena, where the tests may have one.
//!
//! The kernel's own account of who is in a directory is also a way to find whom no other way finds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::wait::wait_at_most;

/// How long the kernel may hold a directory whose last member is dead.
const SETTLING: Duration = Duration::from_secs(5);

/// A directory below our own cgroup. Dropping it kills whoever is in it and removes it.
#[derive(Debug)]
pub struct Boundary(PathBuf);

impl Boundary {
    /// Makes one; `None` where we may not, or where there is no cgroup v2.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let path = own()?.join(name);
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    /// Returns where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the directories in it.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn inner(&self) -> Vec<PathBuf> {
        subdirectories(&self.0)
    }

    /// Returns the numbers of all who live in it or below.
    #[must_use]
    pub fn members(&self) -> Vec<i32> {
        let mut members = Vec::new();
        let mut places = vec![self.0.clone()];
        while let Some(place) = places.pop() {
            let text = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
            members.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            places.extend(subdirectories(&place));
        }
        members
    }

    fn remove(&self) -> Option<()> {
        let mut places = vec![self.0.clone()];
        let mut next = 0;
        while let Some(place) = places.get(next).cloned() {
            next += 1;
            places.extend(subdirectories(&place));
        }
        for place in places.iter().rev() {
            let _ = fs::remove_dir(place);
        }
        (!self.0.exists()).then_some(())
    }
}

impl Drop for Boundary {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let _ = wait_at_most(SETTLING, || self.remove());
    }
}

fn subdirectories(place: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Returns our own cgroup's directory, where cgroup v2 is mounted as a whole.
#[must_use]
pub fn own() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let point = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (kind.starts_with("cgroup2 ") && root == "/").then(|| point.to_owned())
    })?;
    Some(PathBuf::from(point).join(path))
}
