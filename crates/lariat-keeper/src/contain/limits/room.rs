//! Making a place in which limits have an effect: the controllers are turned on in the directory above the services', and
//! lariat moves out of it first where it is there itself.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::cgroup::text::Controllers;
use lariat_sys::cgroup::{self, Cgroup};
use lariat_sys::{Result as SysResult, process};

use super::{NoLimits, Step};

/// What the names of the leaves begin with in which lariat itself is. No directory of a service has such a name: nobody
/// is killed through one.
const LEAF: &str = "lariat-self.";
/// What the names of all directories of lariat's begin with.
const OURS: &str = "lariat-";
/// How long the kernel may hold a leaf that was left.
const SETTLE_WITHIN: Duration = Duration::from_millis(100);

/// How controllers come to be on for the directories in a base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// They are.
    AreOn,
    /// They are turned on: nobody is there, or it is the root, which is exempt.
    TurnOn(Controllers),
    /// Lariat is there, and makes room first.
    MakeRoom(Controllers),
}

/// What is known of a base.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Facts {
    base: PathBuf,
    kind: String,
    is_root: bool,
    available: Controllers,
    on: Controllers,
    /// Lariat's own processes in it.
    own: usize,
    others: usize,
}

fn decide(facts: Facts, wanted: Controllers) -> Result<Way, NoLimits> {
    let missing = wanted.without(facts.available);
    let more = wanted.without(facts.on);
    match () {
        () if !missing.is_empty() => Err(NoLimits::Missing { controllers: missing, base: facts.base }),
        () if more.is_empty() => Ok(Way::AreOn),
        () if facts.is_root => Ok(Way::TurnOn(more)),
        () if facts.kind.starts_with("threaded") || facts.kind.ends_with("(invalid)") => {
            Err(NoLimits::Threaded(facts.base))
        }
        () if facts.others > 0 => Err(NoLimits::Others { count: facts.others, base: facts.base }),
        () if facts.own > 0 => Ok(Way::MakeRoom(more)),
        () => Ok(Way::TurnOn(more)),
    }
}

fn facts(base: &Path, group: &Cgroup) -> SysResult<Facts> {
    let is_root = group.is_root()?;
    let kind = if is_root { Vec::new() } else { group.read("cgroup.type")? };
    // What a threaded directory has cannot be listed so; nothing is decided by it there.
    let residents = if is_root { Vec::new() } else { group.residents().unwrap_or_default() };
    let own = residents.iter().filter(|pid| is_ours(**pid)).count();
    Ok(Facts {
        base: base.to_owned(),
        kind: String::from_utf8_lossy(&kind).trim_end().to_owned(),
        is_root,
        available: group.controllers()?,
        on: group.enabled()?,
        own,
        others: residents.len() - own,
    })
}

/// Says whether a process is lariat: we, or the command that waits in front for us to come up, which is our parent.
fn is_ours(pid: i32) -> bool {
    pid > 0 && (pid == process::pid() || (pid == process::parent_pid() && is_same_program(pid)))
}

fn is_one_of_us_in(group: &Cgroup) -> bool {
    group.residents().is_ok_and(|residents| residents.iter().any(|pid| is_ours(*pid)))
}

fn is_same_program(pid: i32) -> bool {
    let program =
        |who: &str| std::fs::metadata(format!("/proc/{who}/exe")).ok().map(|file| (file.dev(), file.ino()));
    program("self").is_some_and(|own| program(&pid.to_string()) == Some(own))
}

/// Looks whether limits by these controllers can have an effect on directories in `base`. Changes nothing.
///
/// # Errors
/// Why not.
pub fn look(base: &Path, wanted: Controllers) -> Result<Way, NoLimits> {
    let step = |errno| NoLimits::Step { step: Step::Look, errno };
    let group = Cgroup::open(base).map_err(step)?;
    decide(facts(base, &group).map_err(step)?, wanted)
}

/// Controllers turned on for the directories in a base, with lariat itself out of the way. Dropping it undoes what can be
/// undone.
///
/// Holds no descriptors: `lariat run` closes all that it does not know.
#[derive(Debug)]
pub struct Seat {
    base: PathBuf,
    on: Controllers,
    missing: Controllers,
    leaf: Option<Leaf>,
}

#[derive(Debug)]
struct Leaf {
    path: PathBuf,
    /// What was turned on for it, and is turned off to go back.
    turned_on: Controllers,
}

impl Seat {
    /// Makes limits have an effect on directories in `base`. Where we are in it ourselves, the calling process moves
    /// into a leaf for `run`, with the command that waits for it, and so are those born there whom we start from now on.
    ///
    /// Blocks for some milliseconds where something has to be moved.
    ///
    /// Controllers that are not to be had are done without, as long as there is one: see [`Self::lacks`].
    ///
    /// # Errors
    /// Why limits have no effect; everything is as before then.
    pub fn take(base: &Path, run: &str, wanted: Controllers) -> Result<Self, NoLimits> {
        remove_leaves(base);
        let failed = |step| move |errno| NoLimits::Step { step, errno };
        let group = Cgroup::open(base).map_err(failed(Step::Look))?;
        let facts = facts(base, &group).map_err(failed(Step::Look))?;
        let missing = wanted.without(facts.available);
        let on = wanted.without(missing);
        // Without any there is nothing to be done for; that all are missing is the reason then.
        let way = decide(facts, if on.is_empty() { wanted } else { on })?;
        let mut seat = Self { base: base.to_owned(), on, missing, leaf: None };
        match way {
            Way::AreOn => {}
            // In a directory that others gave to us, or in the root, they stay on: other lariats may use them, and they
            // change nothing for anybody.
            Way::TurnOn(more) => group.enable(more).map_err(failed(Step::Enable))?,
            Way::MakeRoom(more) => {
                let name = format!("{LEAF}{run}");
                let leaf = Cgroup::create(base, &name).map_err(failed(Step::Leaf))?;
                // From here on a failure drops the seat, which undoes it.
                seat.leaf = Some(Leaf { path: base.join(name), turned_on: more });
                leaf.enter().map_err(failed(Step::Move))?;
                if is_one_of_us_in(&group) {
                    leaf.move_parent().map_err(failed(Step::Move))?;
                }
                group.enable(more).map_err(failed(Step::Enable))?;
            }
        }
        Ok(seat)
    }

    /// Returns the controllers by which limits have an effect.
    #[must_use]
    pub fn controllers(&self) -> Controllers {
        self.on
    }

    /// Returns why some limits have no effect, where that is so.
    #[must_use]
    pub fn lacks(&self) -> Option<NoLimits> {
        let lacks = NoLimits::Missing { controllers: self.missing, base: self.base.clone() };
        (!self.missing.is_empty()).then_some(lacks)
    }

    fn leave(&mut self) {
        let Some(leaf) = self.leaf.take() else { return };
        // Somebody's limits would be gone with the controllers: a keeper goes on without us, or another lariat is here.
        // The leaf stays then, and whoever comes next removes it.
        if are_services_in(&self.base) {
            return;
        }
        let (Ok(base), Ok(group)) = (Cgroup::open(&self.base), Cgroup::open(&leaf.path)) else { return };
        // What was not turned on in the end is not turned off either.
        let _ = base.disable(leaf.turned_on);
        if base.enter().is_ok() {
            if is_one_of_us_in(&group) {
                let _ = base.move_parent();
            }
            let _ = group.remove(Instant::now() + SETTLE_WITHIN);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Removes the leaves of lariats that are gone, and turns off what was turned on for them. Nobody is harmed by it: the
/// kernel keeps a directory that somebody is in.
pub fn remove_leaves(base: &Path) {
    let names = cgroup::names_in(base).unwrap_or_default();
    let leaves = names.iter().filter(|name| name.to_str().is_some_and(|name| name.starts_with(LEAF)));
    let removed = leaves.filter(|name| std::fs::remove_dir(base.join(name)).is_ok()).count();
    let is_unused = || !cgroup::names_in(base).unwrap_or_default().iter().any(is_of_lariat);
    if removed > 0
        && is_unused()
        && let Ok(group) = Cgroup::open(base)
        && let Ok(on) = group.enabled()
    {
        // Where a leaf was, none was on before: processes were in the directory itself.
        let _ = group.disable(on);
    }
}

fn is_of_lariat(name: &std::ffi::OsString) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(OURS))
}

fn are_services_in(base: &Path) -> bool {
    let names = cgroup::names_in(base).unwrap_or_default();
    let mut others = names.iter().filter(|name| is_of_lariat(name));
    others.any(|name| !name.to_string_lossy().starts_with(LEAF))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Controllers = Controllers { memory: true, pids: false, cpu: false };

    fn base(own: usize, others: usize) -> Facts {
        Facts {
            base: "/b".into(),
            kind: "domain".into(),
            is_root: false,
            available: Controllers::ALL,
            on: Controllers::default(),
            own,
            others,
        }
    }

    #[test]
    fn room_is_made_only_where_nobody_else_is() {
        assert_eq!(decide(base(0, 0), MEMORY), Ok(Way::TurnOn(MEMORY)));
        assert_eq!(decide(base(1, 0), MEMORY), Ok(Way::MakeRoom(MEMORY)));
        let others = NoLimits::Others { count: 2, base: "/b".into() };
        assert_eq!(decide(base(1, 2), MEMORY), Err(others.clone()));
        assert_eq!(decide(base(0, 2), MEMORY), Err(others));
        let is_on = Facts { on: Controllers::ALL, ..base(0, 2) };
        assert_eq!(decide(is_on, MEMORY), Ok(Way::AreOn));
        let partly = Facts { on: MEMORY, ..base(1, 0) };
        let rest = Controllers { memory: false, ..Controllers::ALL };
        assert_eq!(decide(partly, Controllers::ALL), Ok(Way::MakeRoom(rest)));
        assert_eq!(decide(Facts { is_root: true, ..base(1, 9) }, MEMORY), Ok(Way::TurnOn(MEMORY)));
        let none = Facts { available: MEMORY, ..base(0, 0) };
        assert_eq!(
            decide(none, Controllers::ALL),
            Err(NoLimits::Missing { controllers: rest, base: "/b".into() })
        );
        for kind in ["threaded", "domain (invalid)"] {
            let odd = Facts { kind: kind.into(), ..base(1, 0) };
            assert_eq!(decide(odd, MEMORY), Err(NoLimits::Threaded("/b".into())), "{kind}");
        }
    }
}
