//! Limits: how much memory, how many processes and how much of the processors the members of a directory may use.
//!
//! Responsible for what is written to a directory's files, for making a place in which that has an effect, and for what
//! the kernel says when a limit strikes. A limit is no boundary and proves nothing; without limits none of this runs.
//!
//! The kernel limits what is in a directory only where the directory above hands the controllers on, and none hands
//! them on that has processes of its own (HAZARD(cgroup-no-internal-processes)). Where that is the one that we are in,
//! we move into a leaf beside the services' directories, and back when all is over.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::cgroup::text::{self, Controllers};
use lariat_sys::cgroup::{self, Cgroup};
use lariat_sys::reap::Exit;
use lariat_sys::signal::Signal;
use lariat_sys::{Errno, Result as SysResult, process};

/// What the names of the leaves begin with in which lariat itself is. No directory of a service has such a name: nobody
/// is killed through one.
const LEAF: &str = "lariat-self.";
/// What the names of all directories of lariat's begin with.
const OURS: &str = "lariat-";
/// The period for which a share of the processors is granted, in microseconds: the kernel's own default.
const PERIOD: u64 = 100_000;
/// How long the kernel may hold a leaf that was left.
const SETTLE_WITHIN: Duration = Duration::from_millis(100);

/// What to do where limits have no effect.
pub const HINT: &str = "`systemd-run --user --scope -p Delegate=yes lariat …` gives lariat a cgroup with them; \
    or let LARIAT_CGROUP name a delegated one in which nobody is";

/// A share of the processors, in thousandths of one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cpu(u32);

impl Cpu {
    /// The least that the kernel grants: a millisecond in each period.
    pub const MIN: Self = Self(10);
    /// More than any machine has.
    pub const MAX: Self = Self(10_000_000);

    /// Takes thousandths of a processor; `None` outside of [`Self::MIN`] and [`Self::MAX`].
    #[must_use]
    pub fn from_thousandths(thousandths: u32) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&thousandths).then_some(Self(thousandths))
    }

    /// Returns thousandths of a processor.
    #[must_use]
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

/// As it is written: `1.5`.
impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// What the members of one directory may use together. Nothing that is `None` is limited.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    /// Bytes of memory. Whoever needs more is ended by the kernel, with all of the directory.
    pub memory: Option<u64>,
    /// Processes and threads. A fork beyond is refused.
    pub processes: Option<u32>,
    /// The share of the processors. Whoever needs more waits.
    pub cpu: Option<Cpu>,
}

impl Limits {
    /// Says whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the controllers that it takes.
    #[must_use]
    pub fn controllers(&self) -> Controllers {
        Controllers { memory: self.memory.is_some(), pids: self.processes.is_some(), cpu: self.cpu.is_some() }
    }

    /// Returns those of them that take nothing but these controllers.
    #[must_use]
    pub fn by(&self, controllers: Controllers) -> Self {
        Self {
            memory: self.memory.filter(|_| controllers.memory),
            processes: self.processes.filter(|_| controllers.pids),
            cpu: self.cpu.filter(|_| controllers.cpu),
        }
    }

    /// Returns what is written to which file, and whether a kernel without the file limits all the same.
    fn files(&self) -> Vec<(&'static str, String, IfMissing)> {
        let mut files = Vec::new();
        if let Some(memory) = self.memory {
            files.push(("memory.max", memory.to_string(), IfMissing::Fails));
            // A limit of memory alone would be met by swapping: the service would go on, and slow down the machine.
            files.push(("memory.swap.max", "0".into(), IfMissing::Fine));
            // KERNEL(4.19): memory.oom.group. Without it the kernel picks one member: a server may start it anew for
            // ever, or wait for it for ever. A service ends as one, and its restart policy says what comes next.
            files.push(("memory.oom.group", "1".into(), IfMissing::Fine));
        }
        if let Some(processes) = self.processes {
            files.push(("pids.max", processes.to_string(), IfMissing::Fails));
        }
        if let Some(Cpu(thousandths)) = self.cpu {
            let quota = u64::from(thousandths) * PERIOD / 1000;
            files.push(("cpu.max", format!("{quota} {PERIOD}"), IfMissing::Fails));
        }
        files
    }

    /// Sets the limits of a directory in which nobody is yet.
    ///
    /// # Errors
    /// The file that the kernel did not take. Those before it are set.
    pub fn apply(&self, group: &Cgroup) -> Result<(), NoLimits> {
        for (file, value, if_missing) in self.files() {
            match (group.write(file, &value), if_missing) {
                (Ok(()), _) | (Err(Errno::NOENT), IfMissing::Fine) => {}
                (Err(errno), _) => return Err(NoLimits::Step { step: Step::Set(file), errno }),
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum IfMissing {
    Fine,
    Fails,
}

/// As people read it: `memory 512 MiB, 200 processes, 1.5 cpu`.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.memory.map(|bytes| format!("memory {}", size(bytes)));
        let processes = self.processes.map(|count| match count {
            1 => "1 process".to_owned(),
            count => format!("{count} processes"),
        });
        let cpu = self.cpu.map(|cpu| format!("{cpu} cpu"));
        let all: Vec<String> = [memory, processes, cpu].into_iter().flatten().collect();
        f.write_str(&all.join(", "))
    }
}

/// Returns a number of bytes in the largest unit that leaves it whole: `512 MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units.into_iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    match whole {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

/// Why limits have no effect here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoLimits {
    /// There is no directory for what is to be limited.
    NoCgroup,
    /// These controllers are not handed on to the directory.
    Missing {
        /// Which.
        controllers: Controllers,
        /// The directory.
        base: PathBuf,
    },
    /// Others than lariat are in it.
    Others {
        /// How many.
        count: usize,
        /// The directory.
        base: PathBuf,
    },
    /// The directory is of a kind that takes no controllers for memory.
    Threaded(PathBuf),
    /// The kernel did not take a step.
    Step {
        /// Which.
        step: Step,
        /// What it said.
        errno: Errno,
    },
}

/// What is done for limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Looking at the directory.
    Look,
    /// Making the leaf for lariat itself.
    Leaf,
    /// Moving there.
    Move,
    /// Turning the controllers on.
    Enable,
    /// Setting a limit.
    Set(&'static str),
}

impl fmt::Display for NoLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCgroup => f.write_str("there is no cgroup for it here"),
            Self::Missing { controllers, base } => {
                let names: Vec<&str> = controllers.names().collect();
                let (word, verb) =
                    if names.len() == 1 { ("controller", "is") } else { ("controllers", "are") };
                write!(f, "the {word} {} {verb} not available in {}", names.join(", "), base.display())
            }
            Self::Others { count: 1, base } => {
                write!(
                    f,
                    "another process is in {}, which then cannot limit what is below it",
                    base.display()
                )
            }
            Self::Others { count, base } => write!(
                f,
                "{count} other processes are in {}, which then cannot limit what is below it",
                base.display()
            ),
            Self::Threaded(base) => write!(f, "{} is a threaded cgroup", base.display()),
            Self::Step { step, errno } => write!(f, "could not {step}: {errno}"),
        }
    }
}

impl std::error::Error for NoLimits {}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Look => f.write_str("look at the cgroup"),
            Self::Leaf => f.write_str("make a cgroup for lariat itself"),
            Self::Move => f.write_str("move lariat into a cgroup of its own"),
            Self::Enable => f.write_str("turn the controllers on"),
            Self::Set(file) => write!(f, "set {file}"),
        }
    }
}

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

/// That the kernel killed members for want of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutOfMemory {
    /// They reached their own limit.
    OwnLimit,
    /// The machine, or a group around, had no more.
    Around,
}

impl OutOfMemory {
    /// Says why a life ended, where this is why: the leader was killed, and not by somebody who asked for a stop.
    #[must_use]
    pub fn in_words(self, limits: &Limits) -> String {
        match (self, limits.memory) {
            (Self::OwnLimit, Some(bytes)) => {
                format!("ended by the kernel: over its memory limit of {}", size(bytes))
            }
            _ => "ended by the kernel: out of memory".into(),
        }
    }
}

/// Says whether an end of a leader may be the kernel's doing for want of memory.
#[must_use]
pub fn is_by_kill(exit: Option<Exit>) -> bool {
    matches!(exit, Some(Exit::Signal { signal: Signal::KILL, .. }))
}

/// Asks the kernel whether it killed members for want of memory. To be asked before the directory is removed.
#[must_use]
pub fn out_of_memory(group: &Cgroup) -> Option<OutOfMemory> {
    let whole = group.read("memory.events").ok()?;
    // KERNEL(5.2): memory.events.local, without what happened by limits further down. Before, a limit that a member set
    // below passes for the service's own.
    let local = group.read("memory.events.local").unwrap_or_else(|_| whole.clone());
    judge(&whole, &local)
}

fn judge(whole: &[u8], local: &[u8]) -> Option<OutOfMemory> {
    let has = |text: &[u8], key| text::count(text, key).is_some_and(|count| count > 0);
    match (has(whole, "oom_kill"), has(local, "oom")) {
        (true, true) => Some(OutOfMemory::OwnLimit),
        // Somebody was killed by a limit that is not ours: one below does not reach the leader.
        (true, false) if has(local, "oom_kill") => Some(OutOfMemory::Around),
        _ => None,
    }
}

/// Sees, once, that forks were refused in a directory.
#[derive(Debug)]
pub struct ForkWatch(Option<OwnedFd>);

impl ForkWatch {
    /// Begins to watch; sees nothing where processes are not limited.
    #[must_use]
    pub fn begin(group: &Cgroup) -> Self {
        let file = group.watch("pids.events").ok();
        // A change is one since the last time that it was read.
        Self(file.filter(|file| cgroup::read_again(file).is_ok()))
    }

    /// Returns what raises POLLPRI.
    #[must_use]
    pub fn file(&self) -> Option<&OwnedFd> {
        self.0.as_ref()
    }

    /// Says whether a fork was refused; after a yes it watches no more.
    pub fn look(&mut self) -> bool {
        let Some(file) = &self.0 else { return false };
        let refused = cgroup::read_again(file).map(|text| text::count(&text, "max").is_some_and(|n| n > 0));
        if !matches!(refused, Ok(false)) {
            self.0 = None;
        }
        refused.unwrap_or(false)
    }
}

/// Says that forks were refused.
#[must_use]
pub fn forks_refused(limits: &Limits) -> String {
    let limit =
        limits.processes.map_or_else(|| "a limit".to_owned(), |limit| format!("its limit of {limit}"));
    format!("a process or thread could not be started: it has reached {limit} processes and threads")
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
    fn limits_become_files() {
        let limits =
            Limits { memory: Some(512 << 20), processes: Some(200), cpu: Cpu::from_thousandths(1500) };
        let files: Vec<(&str, String)> = limits.files().into_iter().map(|(f, v, _)| (f, v)).collect();
        let expected = [
            ("memory.max", "536870912"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("pids.max", "200"),
            ("cpu.max", "150000 100000"),
        ];
        assert_eq!(files, expected.map(|(file, value)| (file, value.to_owned())));
        assert_eq!(limits.to_string(), "memory 512 MiB, 200 processes, 1.5 cpu");
        let rest = limits.by(Controllers { cpu: false, ..Controllers::ALL });
        assert_eq!(rest, Limits { cpu: None, ..limits });
        assert!(limits.by(Controllers::default()).is_empty());
        assert!(Limits::default().files().is_empty() && Limits::default().controllers().is_empty());
        let least = Limits { cpu: Some(Cpu::MIN), ..Limits::default() };
        assert_eq!(least.files()[0].1, "1000 100000", "the kernel takes no less");
    }

    #[test]
    fn shares_and_sizes_in_words() {
        for (thousandths, shown) in
            [(10, "0.01"), (1000, "1"), (1500, "1.5"), (2125, "2.125"), (20_000, "20")]
        {
            assert_eq!(Cpu::from_thousandths(thousandths).map(|cpu| cpu.to_string()).as_deref(), Some(shown));
        }
        assert_eq!(Cpu::from_thousandths(9), None);
        for (bytes, shown) in
            [(0, "0 bytes"), (1000, "1000 bytes"), (1 << 20, "1 MiB"), (3 << 29, "1536 MiB")]
        {
            assert_eq!(size(bytes), shown);
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

    #[test]
    fn whose_limit_it_was_is_told_apart() {
        let none = b"low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n".as_slice();
        let own = b"low 0\nhigh 0\nmax 31\noom 1\noom_kill 3\n".as_slice();
        let around = b"low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\n".as_slice();
        let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
        let words = |found: Option<OutOfMemory>| found.map(|found| found.in_words(&limits));
        assert_eq!(
            words(judge(own, own)).as_deref(),
            Some("ended by the kernel: over its memory limit of 64 MiB")
        );
        assert_eq!(words(judge(around, around)).as_deref(), Some("ended by the kernel: out of memory"));
        assert_eq!(judge(none, none), None);
        // A limit that a member set further down.
        assert_eq!(judge(own, none), None);
        // Reached and reclaimed: nobody was killed.
        assert_eq!(judge(none, b"max 7\noom 1\noom_kill 0\n"), None);
        assert_eq!(judge(b"", b""), None);
    }

    #[test]
    fn reasons_name_what_is_missing_and_where() {
        let missing = NoLimits::Missing { controllers: Controllers::ALL, base: "/b".into() };
        assert_eq!(missing.to_string(), "the controllers memory, pids, cpu are not available in /b");
        let one = NoLimits::Others { count: 1, base: "/b".into() };
        assert_eq!(one.to_string(), "another process is in /b, which then cannot limit what is below it");
    }
}
