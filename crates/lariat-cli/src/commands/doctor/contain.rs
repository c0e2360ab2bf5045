//! The containments of this build, and whether each can be had on this machine.

use lariat_drill::promise::Containment;

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
pub(super) const ENTRIES: &[Entry] =
    &[Entry { containment: Containment::Lineage, used: "always", probe: lineage }];

/// Returns those that this machine has.
pub(super) fn available() -> Vec<Containment> {
    let has = |entry: &&Entry| matches!((entry.probe)(), Found::Available(_));
    ENTRIES.iter().filter(has).map(|entry| entry.containment).collect()
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
