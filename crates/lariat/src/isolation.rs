//! What stands in the way of isolation on this machine, as far as the machine says it.
//!
//! Responsible for the hint that follows a refusal: only what was really found is named, with what can be done about it.
//! The refusal itself comes from trying ([`lariat_keeper::contain::choose::probe_namespaces`]).

use std::fs;

use lariat_keeper::contain::choose::Refusal;
use lariat_sys::Errno;
use lariat_sys::spawn::SpawnStep;

/// Capabilities by their numbers (capabilities(7)).
const SYS_ADMIN: u32 = 21;
const SETFCAP: u32 = 31;

const USER_CLONE: &str = "kernel.unprivileged_userns_clone";
const APPARMOR: &str = "kernel.apparmor_restrict_unprivileged_userns";
const MAX_USER: &str = "user.max_user_namespaces";
const MAX_PID: &str = "user.max_pid_namespaces";
const MAX_MOUNT: &str = "user.max_mnt_namespaces";

/// Places below `/proc` that the kernel keeps empty for a mount, so that it hides nothing.
const MADE_TO_BE_COVERED: [&str; 2] = ["/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd"];
/// So many covered places are named, the others counted.
const COVERED_NAMED_MAX: usize = 2;

const NOTHING_FOUND: &str = "nothing that usually stands in the way was found here; whoever has CAP_SYS_ADMIN needs a pid \
    namespace only, everybody else a user namespace as well";

/// Returns what can be done where no pid namespace can be had.
#[must_use]
pub fn hint_for(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Spawn { step, errno } => hint(*step, *errno),
        _ => NOTHING_FOUND.to_owned(),
    }
}

/// Returns what can be done where this step towards a pid namespace gave this error. Reads a few files of `/proc`.
#[must_use]
pub fn hint(step: SpawnStep, errno: Errno) -> String {
    let found = obstacles(step, errno, &Facts::read());
    if found.is_empty() { NOTHING_FOUND.to_owned() } else { found.join("; ") }
}

/// What the machine says. A setting that does not exist is absent.
#[derive(Clone, Debug, Default)]
struct Facts {
    user_clone: Option<u64>,
    apparmor: Option<u64>,
    max_user: Option<u64>,
    max_pid: Option<u64>,
    max_mount: Option<u64>,
    /// Our effective capabilities, a bit each.
    capabilities: u64,
    is_root: bool,
    /// Our system calls are filtered.
    has_filter: bool,
    /// `/` is no mount, as in a chroot.
    is_chrooted: bool,
    /// Parts of `/proc` that something is mounted over.
    covered: Vec<String>,
}

impl Facts {
    fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let setting = |name: &str| read(&format!("/proc/sys/{}", name.replace('.', "/"))).trim().parse().ok();
        let status = read("/proc/self/status");
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let mounts = read("/proc/self/mountinfo");
        let places: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        let is_covered = |place: &&&str| place.starts_with("/proc/") && !MADE_TO_BE_COVERED.contains(place);
        Self {
            user_clone: setting(USER_CLONE),
            apparmor: setting(APPARMOR),
            max_user: setting(MAX_USER),
            max_pid: setting(MAX_PID),
            max_mount: setting(MAX_MOUNT),
            capabilities: line("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0),
            is_root: lariat_sys::process::effective_user() == 0,
            has_filter: line("Seccomp:") == Some("2"),
            is_chrooted: !places.is_empty() && !places.contains(&"/"),
            covered: places.iter().filter(is_covered).map(|place| (*place).to_owned()).collect(),
        }
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities & 1 << capability != 0
    }

    /// A user namespace is needed, with all that may forbid one.
    fn needs_user(&self) -> bool {
        !self.has(SYS_ADMIN)
    }
}

/// Returns what was found that explains this error at this step, the likeliest first.
fn obstacles(step: SpawnStep, errno: Errno, facts: &Facts) -> Vec<String> {
    let is_refused = matches!(errno, Errno::PERM | Errno::ACCESS);
    let found = match (step, errno) {
        (SpawnStep::Namespaces, Errno::NOSPC | Errno::USERS) => return limits(facts),
        (SpawnStep::Namespaces, Errno::NOSYS | Errno::INVAL) => {
            let built = "this kernel was built without pid namespaces, or without user namespaces".to_owned();
            return if facts.has_filter { vec![filter()] } else { vec![built] };
        }
        (SpawnStep::Namespaces, _) if is_refused && facts.needs_user() => {
            let chroot = "in a chroot only CAP_SYS_ADMIN makes namespaces".to_owned();
            let clone = (facts.user_clone == Some(0)).then(|| forbids(USER_CLONE, 0, 1));
            clone.into_iter().chain(facts.is_chrooted.then_some(chroot)).collect()
        }
        (SpawnStep::MapUser, _) if is_refused && facts.is_root && !facts.has(SETFCAP) => {
            vec![
                "root without CAP_SETFCAP may not be root in a namespace: run the container with `--cap-add SETFCAP`"
                    .to_owned(),
            ]
        }
        (SpawnStep::MountProc, _) if is_refused && facts.needs_user() => covered(facts).into_iter().collect(),
        _ => Vec::new(),
    };
    let apparmor = facts.apparmor.filter(|value| *value != 0 && is_refused && facts.needs_user());
    let apparmor = apparmor.map(|value| forbids(APPARMOR, value, 0));
    let filter = (is_refused && facts.has_filter).then(filter);
    found.into_iter().chain(apparmor).chain(filter).collect()
}

fn limits(facts: &Facts) -> Vec<String> {
    let user = facts.max_user.filter(|_| facts.needs_user());
    let limits = [(MAX_USER, user), (MAX_PID, facts.max_pid), (MAX_MOUNT, facts.max_mount)];
    let limits = limits.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let (none, some): (Vec<_>, Vec<_>) = limits.partition(|(_, value)| *value == 0);
    if none.is_empty() {
        let said: Vec<String> = some.iter().map(|(name, value)| format!("`{name}` is {value}")).collect();
        return vec![format!(
            "as many as are allowed exist already, or they are nested too deep: {}",
            said.join(", ")
        )];
    }
    none.into_iter().map(|(name, value)| forbids(name, value, 10_000)).collect()
}

fn forbids(setting: &str, value: u64, instead: u64) -> String {
    format!("`{setting}` is {value}: as root, `sysctl {setting}={instead}` allows it")
}

fn filter() -> String {
    "our system calls are filtered, as in a container: run it with `--security-opt seccomp=unconfined`"
        .to_owned()
}

fn covered(facts: &Facts) -> Option<String> {
    let named: Vec<&str> = facts.covered.iter().take(COVERED_NAMED_MAX).map(String::as_str).collect();
    let more = match facts.covered.len().saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let sentence = || {
        format!(
            "{}{more} {} covered, as in a container: run it with `--security-opt systempaths=unconfined`",
            named.join(", "),
            if facts.covered.len() == 1 { "is" } else { "are" }
        )
    };
    (!named.is_empty()).then(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: u64 = u64::MAX;

    /// An ordinary user on a machine where every obstacle is up.
    fn hostile() -> Facts {
        Facts {
            user_clone: Some(0),
            apparmor: Some(1),
            max_user: Some(0),
            max_pid: Some(0),
            max_mount: Some(0),
            has_filter: true,
            is_chrooted: true,
            covered: ["/proc/sys", "/proc/kcore", "/proc/keys"].map(str::to_owned).to_vec(),
            ..Facts::default()
        }
    }

    fn said(step: SpawnStep, errno: Errno, facts: &Facts) -> String {
        obstacles(step, errno, facts).join("; ")
    }

    #[test]
    fn every_obstacle_is_named_where_it_matters_and_was_found() {
        let all = [USER_CLONE, APPARMOR, MAX_USER, MAX_PID, MAX_MOUNT, "seccomp=", "chroot", "systempaths="];
        let table: [(SpawnStep, Errno, &[&str]); 6] = [
            (SpawnStep::Namespaces, Errno::PERM, &[USER_CLONE, APPARMOR, "seccomp=", "chroot"]),
            (SpawnStep::Namespaces, Errno::NOSPC, &[MAX_USER, MAX_PID, MAX_MOUNT]),
            (SpawnStep::Namespaces, Errno::NOSYS, &["seccomp="]),
            (SpawnStep::MapUser, Errno::PERM, &[APPARMOR, "seccomp="]),
            (SpawnStep::MountProc, Errno::PERM, &[APPARMOR, "seccomp=", "systempaths="]),
            (SpawnStep::MountProc, Errno::NOMEM, &[]),
        ];
        for (step, errno, expected) in table {
            let text = said(step, errno, &hostile());
            for name in all {
                assert_eq!(text.contains(name), expected.contains(&name), "{step} {errno}: {name} in {text}");
            }
            let nothing = said(step, errno, &Facts::default());
            assert!(all.iter().all(|name| !nothing.contains(name)), "{step} {errno}: {nothing}");
        }
    }

    #[test]
    fn what_only_user_namespaces_need_is_no_obstacle_to_who_needs_none() {
        let facts = Facts { capabilities: FULL, is_root: true, has_filter: false, ..hostile() };
        assert_eq!(said(SpawnStep::Namespaces, Errno::PERM, &facts), "");
        assert_eq!(said(SpawnStep::MountProc, Errno::PERM, &facts), "");
        let limits = said(SpawnStep::Namespaces, Errno::NOSPC, &facts);
        assert!(limits.contains(MAX_PID) && !limits.contains(MAX_USER), "{limits}");
    }

    #[test]
    fn limits_that_are_not_zero_are_shown_as_they_are() {
        let facts = Facts { max_user: Some(7), max_pid: Some(8), ..Facts::default() };
        let text = said(SpawnStep::Namespaces, Errno::NOSPC, &facts);
        assert!(text.contains("max_user_namespaces` is 7, `user.max_pid_namespaces` is 8"), "{text}");
    }

    #[test]
    fn root_without_a_capability_is_told_which() {
        let facts = Facts { is_root: true, ..Facts::default() };
        assert!(said(SpawnStep::MapUser, Errno::PERM, &facts).contains("SETFCAP"));
        let able = Facts { capabilities: 1 << SETFCAP, ..facts };
        assert_eq!(said(SpawnStep::MapUser, Errno::PERM, &able), "");
    }

    #[test]
    fn covered_parts_are_counted() {
        let text = said(SpawnStep::MountProc, Errno::PERM, &hostile());
        assert!(text.contains("/proc/sys, /proc/kcore and 1 more are covered"), "{text}");
        let one = Facts { covered: vec!["/proc/kcore".to_owned()], ..hostile() };
        assert!(said(SpawnStep::MountProc, Errno::PERM, &one).contains("/proc/kcore is covered"));
    }

    #[test]
    fn there_is_always_something_to_read() {
        // Whatever this machine says.
        assert!(!hint(SpawnStep::Clone, Errno::AGAIN).is_empty());
        assert_eq!(hint_for(&Refusal::NotMounted), NOTHING_FOUND);
    }
}
