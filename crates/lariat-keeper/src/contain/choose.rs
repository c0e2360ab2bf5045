//! Whether a directory of the cgroup hierarchy can be a boundary here: tried, not guessed.
//!
//! Everything that containment by cgroup needs is done once with a process that only waits to be killed: make a
//! directory, enter it, be seen in it, be killed through it, be gone from it, remove it. The first step that fails is
//! the answer.

use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::Errno;
use lariat_sys::cgroup::{self, Cgroup, Own};
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{self, Namespaces, Program, SpawnError, SpawnOptions, SpawnStep};
use lariat_sys::{poll, process, procfs, reap};

use super::cgroup::create_held;
use crate::PROBE_ARG0;

/// What the names of a probe's directories begin with.
const PREFIX: &str = "lariat-probe.";
/// How long the kernel may take for each step.
const STEP_WITHIN: Duration = Duration::from_secs(2);
/// How long the process that waits to be killed waits at most.
const LIFE_MAX: Duration = Duration::from_secs(10);

/// Why a directory is no boundary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No cgroup v2 hierarchy is mounted.
    NotMounted,
    /// Our own cgroup is outside of what is mounted or of our cgroup namespace.
    OutOfReach,
    /// A step failed.
    Step {
        /// What was tried: completes "could not …".
        step: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// A process could not be started there.
    Spawn {
        /// At which step.
        step: SpawnStep,
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel made it another kind of group, which not every process may enter.
    NotDomain(String),
    /// The process was not in it after it had entered, or lived on after it was killed.
    NotContained(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMounted => f.write_str("cgroup v2 is not mounted"),
            Self::OutOfReach => f.write_str("our own cgroup is outside of what is mounted here"),
            Self::Step { step, errno } => write!(f, "could not {step}: {errno}"),
            Self::Spawn { step, errno } => write!(f, "could not {step}: {errno}"),
            Self::NotDomain(kind) => write!(f, "a new directory has the type `{kind}`, not `domain`"),
            Self::NotContained(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Refusal {}

/// Returns where our own cgroup is.
///
/// # Errors
/// [`Refusal`] when there is none.
pub fn own() -> Result<PathBuf, Refusal> {
    match cgroup::own() {
        Ok(Own::At(path)) => Ok(path),
        Ok(Own::NotMounted) => Err(Refusal::NotMounted),
        Ok(Own::OutOfReach) => Err(Refusal::OutOfReach),
        Err(errno) => Err(Refusal::Step { step: "find our own cgroup", errno }),
    }
}

/// Tries whether services can be contained in directories made in `base`. Leaves nothing behind.
///
/// `executable` is one whose `main` calls [`crate::entry::entry`] first. Blocks for about a millisecond, and for a few
/// seconds where the kernel does not do what it says.
///
/// # Errors
/// The first thing that did not work.
pub fn probe(base: &Path, executable: &Path) -> Result<(), Refusal> {
    let step = |step| move |errno| Refusal::Step { step, errno };
    remove_stale(base);
    let stem = format!("{PREFIX}{}", process::pid());
    let group = create_held(base, &stem, &mut |_| ()).map_err(step("make a directory"))?;
    let result = try_out(&group, executable);
    let removed = group.remove(Instant::now() + STEP_WITHIN);
    result.and(removed.map_err(step("remove the directory")))
}

/// Tries whether a service can be put into a pid namespace, and says whether that takes a user namespace. Leaves nothing
/// behind.
///
/// Blocks for about a millisecond. `executable` as for [`probe`].
///
/// # Errors
/// The first thing that did not work.
pub fn probe_namespaces(executable: &Path) -> Result<bool, Refusal> {
    let namespaces = Namespaces::choose();
    let has_user = namespaces.has_user();
    let options = SpawnOptions { namespaces: Some(namespaces), ..options() };
    let child = spawn::spawn(&program(executable)?, &options)
        .map_err(|SpawnError { step, errno }| Refusal::Spawn { step, errno })?;
    // Number 1 there and known to us by another number; ended from outside like any child of ours.
    let numbers = procfs::numbers_by_namespace(child.pid).ok().flatten().unwrap_or_default();
    let _ = child.pidfd.signal(Signal::KILL);
    let has_ended = child.pidfd.wait_exit(Some(Instant::now() + STEP_WITHIN));
    let _ = reap::reap(child.pid);
    match (numbers.last(), has_ended) {
        (Some(1), Ok(true)) if numbers.len() > 1 => Ok(has_user),
        (_, Ok(true)) => {
            Err(Refusal::NotContained("a process in a pid namespace of its own is not number 1 there"))
        }
        _ => Err(Refusal::NotContained("number 1 of a pid namespace does not die of KILL")),
    }
}

/// The process that waits to be killed.
fn program(executable: &Path) -> Result<Program, Refusal> {
    let path = std::os::unix::ffi::OsStrExt::as_bytes(executable.as_os_str());
    let invalid = |_| Refusal::Step { step: "execute our own program", errno: Errno::INVAL };
    Ok(Program {
        file: Some(CString::new(path).map_err(invalid)?),
        argv: vec![CString::new(PROBE_ARG0).unwrap_or_default()],
        ..Program::default()
    })
}

fn options() -> SpawnOptions {
    SpawnOptions { new_session: true, close_others: true, ..SpawnOptions::default() }
}

fn try_out(group: &Cgroup, executable: &Path) -> Result<(), Refusal> {
    let step = |step| move |errno| Refusal::Step { step, errno };
    let kind = group.read("cgroup.type").map_err(step("read cgroup.type"))?;
    let kind = String::from_utf8_lossy(&kind).trim_end().to_owned();
    if kind != "domain" {
        return Err(Refusal::NotDomain(kind));
    }
    let program = program(executable)?;
    let options = SpawnOptions {
        parent_death: Some(Signal::KILL),
        cgroup: Some(group.as_fd().as_raw_fd()),
        ..options()
    };
    let child = spawn::spawn(&program, &options).map_err(|error| match error.step {
        SpawnStep::Cgroup => step("enter it")(error.errno),
        _ => step("start a process in it")(error.errno),
    })?;
    let result = see_and_kill(group, child.pid);
    if result.is_err() {
        // It is our own unreaped child.
        let _ = child.pidfd.signal(Signal::KILL);
    }
    let _ = child.pidfd.wait_exit(Some(Instant::now() + STEP_WITHIN));
    // It was seen to be dead, or is reaped by nobody: then it is a zombie until we exit, and holds nothing.
    let _ = reap::reap(child.pid);
    result
}

fn see_and_kill(group: &Cgroup, pid: i32) -> Result<(), Refusal> {
    let step = |step| move |errno| Refusal::Step { step, errno };
    let place = cgroup::of(pid).map_err(step("read its cgroup"))?;
    let own = group.path().map_err(step("find the directory again"))?;
    if place.is_none_or(|place| place.file_name() != own.file_name()) {
        return Err(Refusal::NotContained("a process that entered is not in it"));
    }
    group.kill().map_err(step("kill through it"))?;
    match group.wait_until_empty(Instant::now() + STEP_WITHIN) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refusal::NotContained("a process that was killed through it lives on")),
        Err(errno) => Err(step("see that it is empty")(errno)),
    }
}

/// Removes what a probe left that was killed. Whether it was is told by its lock alone: its number may be anybody's, or that
/// of a process in another pid namespace.
fn remove_stale(base: &Path) {
    for name in cgroup::names_in(base).unwrap_or_default() {
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX))
            && let Ok(group) = Cgroup::open(&base.join(&name))
            && group.lock() == Ok(true)
        {
            let _ = group.kill();
            let _ = group.remove(Instant::now() + Duration::from_millis(50));
        }
    }
}

/// Waits for the KILL that ends a probe, or for a limit, and exits.
pub(crate) fn wait_to_be_killed() -> ! {
    let _ = poll::poll(&mut [], Some(Instant::now() + LIFE_MAX));
    process::exit_now(0)
}

#[cfg(test)]
mod tests {
    use lariat_testkit::boundary::Boundary;
    use lariat_testkit::needs;

    use super::*;

    /// Number 1 is alive everywhere, and a probe may have had it: in a pid namespace.
    #[test]
    fn a_probe_that_was_killed_is_told_by_its_lock_and_not_by_its_number() {
        let Some(boundary) = Boundary::new(&format!("lt-stale-{}", std::process::id())) else {
            return needs::skip_as_user("no cgroup directory can be made here");
        };
        let base = boundary.path();
        let (stale, used) = (format!("{PREFIX}1"), format!("{PREFIX}2"));
        drop(create_held(base, &stale, &mut |_| ()).unwrap());
        let group = create_held(base, &used, &mut |_| ()).unwrap();
        remove_stale(base);
        let there = |stem: &str| base.join(format!("{stem}.0")).exists();
        assert!(!there(&stale) && there(&used));
        drop(group);
        remove_stale(base);
        assert!(!there(&used));
    }
}
