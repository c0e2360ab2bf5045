//! What this machine offers: features of the kernel, each tried and none guessed from a version; `/proc`, limits,
//! directories.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::pidfd::PidFd;
use lariat_sys::unusual::{self, Birth, Namespaces};
use lariat_sys::{Errno, process, reap, tree};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

/// How long a process that tries something may take.
const TRIAL_WITHIN: Duration = Duration::from_secs(5);
/// `f_type` of a descriptor of a process where the kernel gives each process an inode.
const PIDFS_MAGIC: i64 = 0x5049_4446;

/// A feature of the kernel.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Feature {
    pub(super) name: &'static str,
    pub(super) is_there: bool,
    /// Why it is not there, where the kernel said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    /// What lariat does with it, and without it.
    pub(super) meaning: &'static str,
}

fn feature<T>(name: &'static str, tried: Result<T, Errno>, meaning: &'static str) -> Feature {
    let why = tried.as_ref().err().map(ToString::to_string);
    Feature { name, is_there: tried.is_ok(), why, meaning }
}

/// Tries every feature that makes a difference. Starts short-lived processes of our own; the caller has one thread.
pub(super) fn features() -> Vec<Feature> {
    let me = process::pid();
    let pidfd = PidFd::open_pid(me);
    let has_inode = pidfd.as_ref().map_err(|errno| *errno).and_then(|pidfd| {
        let kind = rustix::fs::fstatfs(pidfd)?.f_type;
        if kind == PIDFS_MAGIC { Ok(()) } else { Err(Errno::OPNOTSUPP) }
    });
    let group = pidfd.as_ref().map_err(|errno| *errno).and_then(|_| signals_groups());
    vec![
        feature("pidfd", pidfd.map(drop), "signals reach the process that is meant; lariat needs it"),
        feature("pidfs", has_inode, "each process has a number that is never used again"),
        feature("group by pidfd", group, "a storm's group is killed in one go; without it, one by one"),
        feature(
            "children lists",
            tree::children(me, &mut Vec::new()),
            "members are found by looking below; without them, by reading all of /proc",
        ),
        feature(
            "close_range",
            close_range(),
            "nothing is inherited by mistake; lariat needs it for tidy pipes",
        ),
        feature(
            "sock_diag",
            lariat_sys::ports::listeners_by_diag(),
            "holders of ports are found quickly; without it, from /proc/net",
        ),
        feature(
            "timers",
            lariat_sys::signal::Timer::new(lariat_sys::signal::Signal::CONT),
            "a keeper that a member stops goes on",
        ),
        feature(
            "user namespaces",
            tried_in_child(|| {
                unusual::unshare(Namespaces { user: process::effective_user() != 0, pid: true, mount: true })
            }),
            "a pid namespace for a service can be made",
        ),
    ]
}

/// Asks for a signal to the group of a child that leads one.
fn signals_groups() -> Result<(), Errno> {
    tried_in_child(|| {
        process::setsid()?;
        lariat_sys::signal::set_ignored(lariat_sys::signal::Signal::USR1)?;
        PidFd::open_pid(process::pid())?.signal_group(lariat_sys::signal::Signal::USR1)
    })
}

/// Closes descriptors that are not there, in a child.
fn close_range() -> Result<(), Errno> {
    tried_in_child(|| lariat_sys::files::close_all_but(&[]))
}

/// Does something in a process of its own, which then exits, and returns what the kernel said to it.
fn tried_in_child(what: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let Some(child) = unusual::fork(Birth::Usual)? else {
        let errno = what().err().map_or(0, Errno::raw_os_error);
        process::exit_now(u8::try_from(errno).unwrap_or(u8::MAX))
    };
    // It is our own unreaped child, so the number is its.
    let ended = PidFd::open_pid(child).and_then(|child| child.wait_exit(Some(Instant::now() + TRIAL_WITHIN)));
    match (ended, reap::reap(child)) {
        (_, Ok(Some((reap::Exit::Code(0), _)))) => Ok(()),
        (_, Ok(Some((reap::Exit::Code(errno), _)))) => Err(Errno::from_raw_os_error(i32::from(errno))),
        _ => Err(Errno::TIMEDOUT),
    }
}

/// How `/proc` is mounted.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Proc {
    /// The value of `hidepid`, where processes of others are hidden.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hidepid: Option<String>,
    /// Whether that hides anybody from us.
    pub(super) hides: bool,
}

/// Reads how `/proc` is mounted.
pub(super) fn proc() -> Proc {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hidepid = hidepid(&mounts).filter(|value| !matches!(value.as_str(), "0" | "off"));
    Proc { hides: hidepid.is_some() && process::effective_user() != 0, hidepid }
}

/// Returns the value of `hidepid` of what is mounted on `/proc` last.
fn hidepid(mounts: &str) -> Option<String> {
    let of_proc = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/proc"))?;
    let (_, rest) = of_proc.split_once(" - ")?;
    let options = rest.split(' ').nth(2)?;
    options.split(',').find_map(|option| option.strip_prefix("hidepid=")).map(str::to_owned)
}

/// A limit that can be in the way.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Limit {
    pub(super) name: &'static str,
    /// `None` is no limit.
    pub(super) value: Option<u64>,
    /// What to do about it, where it is too low.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<&'static str>,
}

/// Reads the limits.
pub(super) fn limits() -> Vec<Limit> {
    let low = |value: Option<u64>, least: u64, hint: &'static str| {
        value.is_some_and(|value| value < least).then_some(hint)
    };
    let files = process::open_files_max();
    let processes = getrlimit(Resource::Nproc).current;
    let pids = number_in("/proc/sys/kernel/pid_max");
    vec![
        Limit {
            name: "open files",
            value: files,
            hint: low(files, 256, "raise it (`ulimit -n 1024`): each service takes some of lariat's"),
        },
        Limit {
            name: "processes of this user",
            value: processes,
            hint: low(
                processes,
                256,
                "raise it (`ulimit -u`): a service may not be able to start its workers",
            ),
        },
        Limit { name: "process numbers of the machine", value: pids, hint: None },
    ]
}

fn number_in(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A directory that lariat writes to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Directory {
    pub(super) what: &'static str,
    pub(super) path: PathBuf,
    pub(super) is_usable: bool,
    /// What is wrong with it, or how it stands.
    pub(super) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
}

/// Looks at the directories, and makes none.
pub(super) fn directories() -> Vec<Directory> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = process::effective_user();
    let fallback = PathBuf::from(format!("/tmp/lariat-{user}"));
    let mut found = Vec::new();
    let runtime = match variable("XDG_RUNTIME_DIR") {
        Some(runtime) => {
            let mut directory = directory("sockets and records", runtime);
            if !directory.is_usable {
                directory.hint = Some(format!("{} is used in its place", fallback.display()));
            }
            directory
        }
        None => Directory {
            hint: Some("log in with a session that sets XDG_RUNTIME_DIR to have them there".to_owned()),
            ..directory("sockets and records", fallback.clone())
        },
    };
    if !runtime.is_usable && runtime.path != fallback {
        found.push(directory("sockets and records, second choice", fallback));
    }
    found.insert(0, runtime);
    let state = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")));
    found.push(match state {
        Some(state) => directory("list of runs", state.join("lariat/runs")),
        None => Directory {
            what: "list of runs",
            path: PathBuf::new(),
            is_usable: false,
            state: "neither XDG_STATE_HOME nor HOME is set".to_owned(),
            hint: Some("set HOME: without a list, `lariat ps --all` does not know of runs".to_owned()),
        },
    });
    found
}

/// Says whether we can write in a directory, or make it where the nearest one above it is.
fn directory(what: &'static str, path: PathBuf) -> Directory {
    let nearest = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/")).to_owned();
    let is_there = nearest == path;
    let verdict = std::fs::metadata(&nearest).map_err(|error| error.to_string()).and_then(|metadata| {
        let user = process::effective_user();
        if !metadata.is_dir() {
            return Err(format!("{} is no directory", nearest.display()));
        }
        if rustix::fs::access(&nearest, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_err() {
            return Err(format!("{} cannot be written by us", nearest.display()));
        }
        if is_there && metadata.uid() != user {
            return Err(format!("it belongs to user {}", metadata.uid()));
        }
        let mode = metadata.permissions().mode() & 0o777;
        Ok(if is_there { format!("there, mode {mode:03o}") } else { "made when it is needed".to_owned() })
    });
    let is_usable = verdict.is_ok();
    let state = verdict.unwrap_or_else(|why| why);
    let hint = (!is_usable).then(|| format!("make {} writable for you", path.display()));
    Directory { what, path, is_usable, state, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidepid_is_read_from_the_last_proc() {
        let plain = "22 1 0:20 / /proc rw,nosuid - proc proc rw\n";
        let hidden = "23 22 0:21 / /proc rw - proc proc rw,gid=4,hidepid=invisible\n";
        let elsewhere = "24 1 0:22 / /jail/proc rw - proc proc rw,hidepid=2\n";
        assert_eq!(hidepid(plain), None);
        assert_eq!(hidepid(&format!("{plain}{hidden}{elsewhere}")).as_deref(), Some("invisible"));
        assert_eq!(hidepid(&format!("{hidden}{plain}")), None);
        assert_eq!(hidepid("nonsense"), None);
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_said_to_be_so() {
        let place = tempfile::tempdir().unwrap();
        let there = directory("x", place.path().to_owned());
        assert!(there.is_usable && there.state.starts_with("there"), "{there:?}");
        let later = directory("x", place.path().join("a/b"));
        assert!(later.is_usable && later.state.starts_with("made"), "{later:?}");
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        let wrong = directory("x", file.join("a"));
        assert!(!wrong.is_usable && wrong.hint.is_some(), "{wrong:?}");
    }
}
