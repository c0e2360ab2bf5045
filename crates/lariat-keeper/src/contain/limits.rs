//! Limits: how much memory, how many processes and how much of the processors the members of a directory may use.
//!
//! Responsible for what is written to a directory's files; `room` makes a place in which that has an effect, `strikes`
//! reads what the kernel says when a limit strikes. A limit is no boundary and proves nothing; without limits none of this
//! runs.
//!
//! The kernel limits what is in a directory only where the directory above hands the controllers on, and none hands
//! them on that has processes of its own (HAZARD(cgroup-no-internal-processes)). Where that is the one that we are in,
//! we move into a leaf beside the services' directories, and back when all is over.

use std::fmt;
use std::path::PathBuf;

use lariat_sys::Errno;
use lariat_sys::cgroup::Cgroup;
use lariat_sys::cgroup::text::Controllers;

mod room;
mod strikes;

pub use room::{Seat, Way, look, remove_leaves};
pub use strikes::{ForkWatch, OutOfMemory, forks_refused, is_by_kill, out_of_memory};

/// The period for which a share of the processors is granted, in microseconds: the kernel's own default.
const PERIOD: u64 = 100_000;

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
    /// There is none because the user wants descent alone.
    DescentAlone,
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

impl NoLimits {
    /// Returns what to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::DescentAlone => {
                "without LARIAT_CONTAINMENT, or with `auto`, a cgroup is used where one can be had"
            }
            _ => HINT,
        }
    }
}

impl fmt::Display for NoLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCgroup => f.write_str("there is no cgroup for it here"),
            Self::DescentAlone => {
                f.write_str("LARIAT_CONTAINMENT asks for descent alone, which limits nothing")
            }
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn reasons_name_what_is_missing_and_where() {
        let missing = NoLimits::Missing { controllers: Controllers::ALL, base: "/b".into() };
        assert_eq!(missing.to_string(), "the controllers memory, pids, cpu are not available in /b");
        let one = NoLimits::Others { count: 1, base: "/b".into() };
        assert_eq!(one.to_string(), "another process is in /b, which then cannot limit what is below it");
    }
}
