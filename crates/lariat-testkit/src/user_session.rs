//! A user's own systemd, on a machine whose first process is another program or which has none: a `systemd --user` of
//! `bin`, in a mount and a cgroup namespace of its own, with the arena's boundary as the root of its cgroups.
//!
//! Nothing of the machine is touched: what is mounted is seen in there alone. Only root can set it up.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use crate::arena::{Arena, is_root};
use crate::command::{Command, Running};
use crate::needs;
use crate::wait::{PATIENCE, wait_until};

/// The number of the user and of the group `bin`.
const BIN: u32 = 2;
/// The cgroup of whoever logged in, which is not the user's: as of an ssh session.
const LOGIN: &str = "session-1.scope";

/// Runs in the namespaces: makes a place that looks booted by systemd, and becomes the user's.
const SETUP: &str = "set -e\n\
    mount -t tmpfs tmpfs /run\n\
    mkdir -p /run/systemd/system\n\
    mount -t cgroup2 none /sys/fs/cgroup\n\
    exec setpriv --reuid 2 --regid 2 --clear-groups \"$1\" --user\n";

/// A running session. Dropping it ends its systemd; what that one started is the arena's to judge.
pub struct UserSession<'a> {
    arena: &'a Arena,
    systemd: Running,
    boundary: PathBuf,
}

impl<'a> UserSession<'a> {
    /// Starts one; says that the test is skipped and returns `None` where systemd is not installed, or where we are not
    /// root.
    ///
    /// # Panics
    /// When it does not come up, and as [`needs::skip`].
    #[must_use]
    #[track_caller]
    pub fn start(arena: &'a Arena) -> Option<Self> {
        if !is_root() {
            needs::skip_as_user("a session of systemd's for another user is root's to make");
            return None;
        }
        let Some(boundary) = arena.boundary().map(|boundary| boundary.path().to_owned()) else {
            needs::skip("no cgroup directory can be made here");
            return None;
        };
        for program in ["nsenter", "unshare", "setpriv", "busctl", "dbus-daemon"] {
            needs::program(program)?;
        }
        let systemd = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
        if !fs::exists("/usr/lib/systemd/user/dbus.socket").unwrap_or(false) {
            needs::skip("`dbus-user-session` is not installed");
            return None;
        }
        let Some(systemd) = systemd.into_iter().find(|path| fs::exists(path).unwrap_or(false)) else {
            needs::skip("`systemd` is not installed");
            return None;
        };
        fs::create_dir(boundary.join(LOGIN)).expect("the boundary is ours");
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(boundary.join(name), Some(BIN), Some(BIN)).expect("it is ours to give");
        }
        for name in ["home", "tmp", "runtime", "work"] {
            chown(arena.dir().join(name), Some(BIN), Some(BIN)).expect("it is ours to give");
        }
        let enter = format!("echo 0 > '{}/cgroup.procs'\n", boundary.display());
        let script = format!("{enter}exec unshare -mC --propagation private sh -c '{SETUP}' sh \"$1\"\n");
        let command = arena.command("/bin/sh").args(["-c", &script, "sh", systemd]);
        let session = Self { arena, systemd: command.own_session().start(), boundary };
        wait_until("the bus of a user's session", PATIENCE, || {
            assert!(session.systemd.is_alive(), "systemd ended: {}", session.systemd.stderr());
            let list = session
                .command("busctl", Path::new("/"))
                .args(["--user", "status", "org.freedesktop.systemd1"])
                .run();
            (list.code() == Some(0)).then_some(())
        });
        Some(session)
    }

    /// Prepares a program of the user's, in a cgroup that is not the user's, with nothing said about where to contain. It is started in
    /// `dir`: whoever enters other mounts is at their root.
    #[must_use]
    pub fn command(&self, program: &str, dir: &Path) -> Command {
        let script = format!(
            "cd \"$1\" && shift && echo 0 > /sys/fs/cgroup/{LOGIN}/cgroup.procs && \
             exec setpriv --reuid 2 --regid 2 --clear-groups \"$@\""
        );
        let target = self.systemd.pid().to_string();
        let enter = ["--target", &target, "--mount", "--cgroup"];
        let command =
            self.arena.command("nsenter").args(enter).args(["sh", "-c", &script, "sh"]).arg(dir).arg(program);
        command.env("LARIAT_CGROUP", "").own_session()
    }

    /// Returns the directories of the scopes that lariat asked for and that are still there.
    #[must_use]
    pub fn scopes(&self) -> Vec<PathBuf> {
        let slice = fs::read_dir(self.boundary.join("app.slice")).into_iter().flatten().flatten();
        let is_ours =
            |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("lariat-"));
        slice.map(|entry| entry.path()).filter(is_ours).collect()
    }
}

impl Drop for UserSession<'_> {
    fn drop(&mut self) {
        // It stops its units and exits; whoever it leaves is found by the arena.
        self.systemd.signal(libc::SIGTERM);
        if !std::thread::panicking() {
            self.systemd.wait();
        }
    }
}
