//! The tests once more as an ordinary user, where we are root: rights, and what is missing without them.
//!
//! Cargo and nextest stay who they are; each test program is started by a runner that gives up root first. The user
//! is `bin`, whom every machine has, so nothing on it is changed; `nobody` and `daemon` are strangers in tests.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use super::steps::{self, TestRun};
use super::{MATRIX_PROFILE, Outcome, Session, is_root};
use crate::commands;

/// The number of the user and of the group `bin`.
const BIN: u32 = 2;

/// Runs the tests of the profile `user`, in a cgroup that is delegated to the user.
pub(super) fn run(session: &Session) -> Result<Outcome> {
    run_as_user(session, "user", None)
}

/// Runs the tests of trees and endings without that cgroup's help.
pub(super) fn matrix(session: &Session) -> Result<Outcome> {
    run_as_user(session, MATRIX_PROFILE, Some("lineage"))
}

fn run_as_user(session: &Session, profile: &str, containment: Option<&str>) -> Result<Outcome> {
    if !is_root() {
        println!("we are an ordinary user: the tests ran as one already");
        return Ok(Outcome::default());
    }
    let home = Home::new()?;
    let runner = home.0.join("runner");
    let delegated = Delegated::new();
    if delegated.is_none() {
        println!("no cgroup can be delegated here: the tests run without one");
    }
    fs::write(
        &runner,
        script(&session.root, &home.0, delegated.as_ref().map(|delegated| delegated.0.as_path())),
    )?;
    fs::set_permissions(&runner, fs::Permissions::from_mode(0o755))?;
    let mut probe = Command::new(&runner);
    probe.args(["/usr/bin/test", "-r"]).arg(session.root.join("Cargo.toml"));
    let (status, text) = commands::output(&mut probe, Duration::from_secs(10))?;
    if !status.success() {
        return Ok(Outcome::skip(format!(
            "tests as an ordinary user: `bin` cannot read the workspace {text}"
        )));
    }
    let skips = home.0.join("skips.txt");
    fs::write(&skips, "")?;
    chown(&skips, Some(BIN), Some(BIN))?;
    let how = TestRun { profile, skips: &skips, runner: Some(&runner), containment };
    let mut outcome = steps::run_tests(session, &how)?;
    outcome.skips = outcome.skips.iter().map(|skip| format!("as an ordinary user: {skip}")).collect();
    Ok(outcome)
}

/// The user's home, removed with all that is in it when dropped.
struct Home(PathBuf);

impl Home {
    fn new() -> Result<Self> {
        // By the clock as well: numbers come again, most of all in a pid namespace, and one that was killed leaves its own.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let path = std::env::temp_dir().join(format!("lariat-user-{}-{now}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("could not make {}", path.display()))?;
        let home = Self(path);
        fs::set_permissions(&home.0, fs::Permissions::from_mode(0o700))?;
        chown(&home.0, Some(BIN), Some(BIN))?;
        Ok(home)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // What is left in a temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A cgroup directory that belongs to the user with all that matters in it, as a desktop's are. Removed when dropped.
struct Delegated(PathBuf);

impl Delegated {
    fn new() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|mount| Path::new(mount).join(own));
        let parent =
            mounts.into_iter().find(|place| place.join("cgroup.kill").exists() || is_root_group(place))?;
        let path = parent.join(format!("lariat-user-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let delegated = Self(path);
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(delegated.0.join(name), Some(BIN), Some(BIN)).ok()?;
        }
        Some(delegated)
    }
}

/// The root has no `cgroup.kill`, and like all others it has this file.
fn is_root_group(place: &Path) -> bool {
    place.join("cgroup.subtree_control").exists()
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // Tests that failed may have left somebody; nobody of ours is to be there by now.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..REMOVE_TRIES {
            remove_groups(&self.0);
            if !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The kernel lets go of the dead a moment after they are gone; a directory that is left harms nobody.
const REMOVE_TRIES: usize = 100;

fn remove_groups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// Returns the runner. Where the workspace is below a closed folder, such as root's home, it is shown to the test
/// alone, through a mount of its own over that folder.
fn script(root: &Path, home: &Path, cgroup: Option<&Path>) -> String {
    let home = quote(home);
    let enter = cgroup.map(|cgroup| format!("echo 0 > {}/cgroup.procs\n", quote(cgroup))).unwrap_or_default();
    let drop = format!(
        "{enter}exec setpriv --reuid={BIN} --regid={BIN} --clear-groups env --unset=XDG_RUNTIME_DIR \
         HOME={home} TMPDIR={home} USER=bin LOGNAME=bin \"$@\"\n"
    );
    let Some(closed) = closed_folder(root) else { return format!("#!/bin/sh\n{drop}") };
    let (root, closed) = (quote(root), quote(&closed));
    format!(
        "#!/bin/sh\nset -eu\n\
         if [ -z \"${{LARIAT_SHOWN:-}}\" ]; then LARIAT_SHOWN=1 exec unshare --mount --propagation private \"$0\" \"$@\"; fi\n\
         unset LARIAT_SHOWN\nhere=$PWD\nhold={home}/hold-$$\nmkdir \"$hold\"\nmount --bind {root} \"$hold\"\n\
         mount -t tmpfs -o mode=0755 tmpfs {closed}\nmkdir -p {root}\nmount --move \"$hold\" {root}\n\
         rmdir \"$hold\"\ncd \"$here\" 2>/dev/null || cd /\n{drop}"
    )
}

/// Returns the first folder on the way to the workspace that others may not enter.
fn closed_folder(root: &Path) -> Option<PathBuf> {
    let mut way: Vec<&Path> = root.ancestors().collect();
    way.reverse();
    let is_closed = |path: &&&Path| path.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0);
    way.iter().find(is_closed).map(|path| path.to_path_buf())
}

fn quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_a_path_stays_in_it() {
        assert_eq!(quote(Path::new("/a'b")), r"'/a'\''b'");
    }

    #[test]
    fn an_open_way_needs_no_mount() {
        assert_eq!(closed_folder(Path::new("/usr/bin")), None);
        assert!(!script(Path::new("/usr/bin"), Path::new("/tmp/x"), None).contains("unshare"));
    }

    #[test]
    fn a_closed_folder_on_the_way_is_found() {
        let closed = std::env::temp_dir().join(format!("xtask-closed-{}", std::process::id()));
        let inside = closed.join("inside");
        fs::create_dir_all(&inside).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(closed_folder(&inside).as_deref(), Some(closed.as_path()));
        assert!(script(&inside, Path::new("/tmp/x"), None).contains("mount --move"));
        fs::remove_dir_all(&closed).unwrap();
    }
}
