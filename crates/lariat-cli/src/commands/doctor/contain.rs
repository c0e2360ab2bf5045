//! The containments of this build, and whether each can be had on this machine.

use std::path::{Path, PathBuf};

use lariat::containment::{self, Base, Candidates, Choice, Source};
use lariat::isolation;
use lariat_drill::promise::Containment;
use lariat_keeper::contain::choose;
use lariat_keeper::contain::limits::{HINT, NoLimits};
use lariat_sys::cgroup::text::Controllers;

/// Whether a containment can be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// It can; what it is here, where there is something to say.
    Available(String),
    /// It cannot, for this reason; what to do about it, where there is something.
    Missing { why: String, hint: Option<String> },
}

/// A containment of this build.
pub(super) struct Entry {
    pub(super) containment: Containment,
    /// When it is used, as a sentence without a full stop.
    pub(super) used: &'static str,
    /// Looks whether this machine has it.
    pub(super) probe: fn() -> Found,
}

/// Every containment that this build knows, the one that is always there first.
pub(super) const ENTRIES: &[Entry] = &[
    Entry { containment: Containment::Lineage, used: "always", probe: lineage },
    Entry {
        containment: Containment::Cgroup,
        used: "by itself, where it can be had; LARIAT_CONTAINMENT=lineage does without",
        probe: cgroup,
    },
    Entry {
        containment: Containment::Namespace,
        used: "with `lariat run --isolate`, or `isolation = \"pid\"` of a service",
        probe: namespace,
    },
];

/// The program that is started to try something out: this one.
const OURSELVES: &str = "/proc/self/exe";

/// Returns those that this machine has.
pub(super) fn available() -> Vec<Containment> {
    let has = |entry: &&Entry| matches!((entry.probe)(), Found::Available(_));
    ENTRIES.iter().filter(has).map(|entry| entry.containment).collect()
}

/// A directory of the cgroup hierarchy in which a process of ours could be born, seen, killed and forgotten.
fn cgroup() -> Found {
    let choice = choose_cgroup(Controllers::default());
    let refused: Vec<String> = choice
        .refused
        .iter()
        .map(|refused| {
            let path = refused.path.as_ref().map(|path| format!(" ({})", path.display()));
            format!("{}{}: {}", refused.source, path.unwrap_or_default(), refused.reason)
        })
        .collect();
    match choice.base {
        Some(base) => Found::Available(format!("{}, {}", base.source, base.path.display())),
        None => Found::Missing {
            why: refused.join("; "),
            hint: Some(
                "a login session of systemd's delegates one; or let LARIAT_CGROUP name a directory of yours"
                    .into(),
            ),
        },
    }
}

/// Returns the cgroup in which lariat would make its own directories; `None` where none can be had.
pub(super) fn cgroup_base() -> Option<PathBuf> {
    choose_cgroup(Controllers::default()).base.map(|base| base.path)
}

/// Chooses as `up` does for a stack with limits by these controllers.
fn choose_cgroup(wanted: Controllers) -> Choice {
    let environment: Vec<_> = std::env::vars_os().collect();
    let given = std::env::var_os("LARIAT_CGROUP").filter(|value| !value.is_empty()).map(PathBuf::from);
    containment::choose(&Candidates {
        given: given.as_deref(),
        may_ask_systemd: true,
        environment: &environment,
        executable: Path::new(OURSELVES),
        wanted,
    })
}

/// Whether memory, processes and cpu of a service can be limited.
pub(super) fn limits() -> Found {
    let choice = choose_cgroup(Controllers::ALL);
    let scope = choice.refused.iter().find(|refused| refused.source == Source::Scope);
    let scope = scope.map(|refused| format!("; {}: {}", refused.source, refused.reason)).unwrap_or_default();
    match choice.base {
        Some(Base { no_limits: None, path, source }) => {
            Found::Available(format!("{source}, {}", path.display()))
        }
        Some(Base { no_limits: Some(reason), .. }) => {
            Found::Missing { why: format!("{reason}{scope}"), hint: Some(HINT.into()) }
        }
        None => Found::Missing { why: NoLimits::NoCgroup.to_string(), hint: None },
    }
}

/// A pid namespace whose number 1 is a process of ours.
fn namespace() -> Found {
    match choose::probe_namespaces(Path::new(OURSELVES)) {
        Ok(true) => Found::Available("with a user namespace around it".into()),
        Ok(false) => Found::Available("by our own rights".into()),
        Err(refusal) => {
            Found::Missing { why: refusal.to_string(), hint: Some(isolation::hint_for(&refusal)) }
        }
    }
}

/// Descent needs `/proc` of our own pid namespace, and a kernel that knows subreapers.
fn lineage() -> Found {
    if let Err(errno) = lariat_sys::identity::Identity::own() {
        let why = format!("/proc is not mounted, or shows another pid namespace: {errno}");
        let hint = "mount it: `mount -t proc proc /proc`, or `unshare --mount-proc`".to_owned();
        return Found::Missing { why, hint: Some(hint) };
    }
    match lariat_sys::process::set_subreaper(true) {
        Ok(()) => {
            // We have no children to adopt; what was set goes with this process, and is taken back all the same.
            let _ = lariat_sys::process::set_subreaper(false);
            Found::Available("child subreapers and /proc of our own".to_owned())
        }
        Err(errno) => {
            Found::Missing { why: format!("the kernel knows no child subreapers: {errno}"), hint: None }
        }
    }
}
