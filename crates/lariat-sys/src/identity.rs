//! Names one process for ever: pid, start tick, its number in pidfs, and the boot they belong to.
//!
//! Responsible for telling a process from a later one with the same number. Does not signal and holds no descriptor:
//! that is [`pidfd`](crate::pidfd). Handles HAZARD(pid-reuse) and HAZARD(zombie-main-thread).

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU64;
use std::str::FromStr;

use crate::pidfd::PidFd;
use crate::procfs;
use crate::{Errno, Result};

/// One process of this boot: its pid, when it started, and, where it is remembered, its number in pidfs.
///
/// # What tells processes apart
/// The inode of a process's pidfd is given out once in a boot and never again (KERNEL(6.9): pidfs). Pid and start tick
/// tell all processes apart but those that had one number within one tick of 10 ms; on a kernel without pidfs they are
/// all there is.
///
/// Equality, order and hash are by pid and start alone: a walk over `/proc` sees no inode, and has to find again whom it
/// knows. That is sound because equality never decides about a signal. What is signalled is opened by
/// [`PidFd::open`], which compares the inode wherever there is one; and whoever remembers a process beyond one walk
/// has it: a spawn's leader or keeper, [`Self::own`], [`PidFd::of`], the ledger. Where two such memories meet,
/// [`Self::is_same`] compares all that both know.
///
/// Across boots, compare the [`BootId`] as well.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The number, in the pid namespace of `/proc`. For display; never a reference by itself.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`), in the unit of [`boot_ticks`].
    pub start: u64,
    /// INVARIANT: the number of this very process in pidfs, in this boot; absent where nobody looked or could look.
    inode: Option<NonZeroU64>,
}

impl Identity {
    /// Names the process with this pid and start.
    #[must_use]
    pub const fn new(pid: i32, start: u64) -> Identity {
        Identity { pid, start, inode: None }
    }

    /// Sets the process's number in pidfs, as [`PidFd::inode`] returned it; `None` or 0 is an unknown one.
    #[must_use]
    pub const fn with_inode(self, inode: Option<u64>) -> Identity {
        let inode = match inode {
            Some(inode) => NonZeroU64::new(inode),
            None => None,
        };
        Identity { inode, ..self }
    }

    /// Returns the process's number in pidfs, if it is known.
    #[must_use]
    pub const fn inode(&self) -> Option<u64> {
        match self.inode {
            Some(inode) => Some(inode.get()),
            None => None,
        }
    }

    /// Says whether both name one process, by all that both know: as equality, and by the inode where both have one.
    ///
    /// Not an equivalence: two strangers are both the same as one who is known by pid and start only.
    #[must_use]
    pub fn is_same(&self, other: &Identity) -> bool {
        self == other && self.inode.zip(other.inode).is_none_or(|(ours, theirs)| ours == theirs)
    }

    /// Returns the identity of the process that has this pid now, without its inode, or `None` if there is none.
    ///
    /// A zombie has an identity. What the pid meant to the caller is the caller's risk: this is safe for own unreaped
    /// children and for pids just read from a list. For one that is to be remembered there is [`PidFd::of`].
    pub fn of(pid: i32) -> Result<Option<Identity>> {
        Ok(procfs::read_stat(pid)?.map(|stat| stat.identity()))
    }

    /// Returns the identity of the calling process.
    ///
    /// # Errors
    /// [`Errno::NOENT`] if `/proc` is not mounted; [`Errno::SRCH`] if it shows another pid namespace, whose numbers mean
    /// other processes to us (HAZARD(foreign-proc)). Nothing in lariat can work then.
    pub fn own() -> Result<Identity> {
        let pid = crate::process::pid();
        if procfs::own_number()? != pid {
            return Err(Errno::SRCH);
        }
        let own = Identity::of(pid)?.ok_or(Errno::SRCH)?;
        // Nobody else can have our number. Without a descriptor to spare, the start has to do.
        Ok(own.with_inode(PidFd::open_pid(pid).ok().and_then(|own| own.inode())))
    }

    /// Returns the identity of the calling process, where [`Self::own`] was asked before.
    ///
    /// # Panics
    /// If `/proc` is not mounted or not ours.
    pub fn current() -> Identity {
        match Identity::own() {
            Ok(identity) => identity,
            Err(errno) => panic!("/proc has no entry for the calling process: {errno}"),
        }
    }

    /// Says whether this very process still runs. A zombie does not run, nor does one whose entry cannot be read.
    pub fn is_alive(&self) -> bool {
        if self.inode.is_some() {
            match PidFd::open(*self) {
                Ok(process) => return !process.has_exited().unwrap_or(false),
                Err(Errno::SRCH) => return false,
                // No descriptor to spare.
                Err(_) => {}
            }
        }
        matches!(procfs::read_stat(self.pid), Ok(Some(stat)) if stat.identity() == *self && stat.is_alive())
    }

    /// What equality, order and hash are by.
    fn key(&self) -> (i32, u64) {
        (self.pid, self.start)
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Identity {}

impl PartialOrd for Identity {
    fn partial_cmp(&self, other: &Identity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Identity {
    fn cmp(&self, other: &Identity) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for Identity {
    /// Writes the pid alone, as people know it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid.fmt(out)
    }
}

/// The kernel's name for the time since the last boot. Identities of another boot name nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BootId([u8; 16]);

impl BootId {
    /// Reads the running kernel's boot id from `/proc/sys/kernel/random/boot_id`.
    pub fn read() -> Result<BootId> {
        let mut text = [0; 64];
        let length = procfs::read_file(c"/proc/sys/kernel/random/boot_id", &mut text)?;
        let text = text.get(..length).unwrap_or_default();
        std::str::from_utf8(text).ok().and_then(|text| text.trim_end().parse().ok()).ok_or(Errno::BADMSG)
    }
}

impl fmt::Display for BootId {
    /// Writes the kernel's own form, `8-4-4-4-12` lower-case hexadecimal digits.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                out.write_str("-")?;
            }
            write!(out, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The text was not `8-4-4-4-12` hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseBootIdError;

impl fmt::Display for ParseBootIdError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("not a boot id")
    }
}

impl std::error::Error for ParseBootIdError {}

impl FromStr for BootId {
    type Err = ParseBootIdError;

    fn from_str(text: &str) -> std::result::Result<BootId, ParseBootIdError> {
        if text.len() != 36 {
            return Err(ParseBootIdError);
        }
        let mut id = [0; 16];
        let mut nibbles = 0;
        for (index, byte) in text.bytes().enumerate() {
            if matches!(index, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return Err(ParseBootIdError);
                }
                continue;
            }
            let digit = char::from(byte).to_digit(16).ok_or(ParseBootIdError)? as u8;
            id[nibbles / 2] = id[nibbles / 2] << 4 | digit;
            nibbles += 1;
        }
        Ok(BootId(id))
    }
}

/// Returns the time since boot, suspend included, in the unit and with the rounding of [`Identity::start`].
///
/// A process whose `start` is not greater than the value read before was there at that moment, or was born within the
/// same tick (10 ms) after it.
pub fn boot_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // The kernel divides nanoseconds by the length of a tick and rounds down; so does this.
    let per_second = procfs::ticks_per_second();
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * per_second + nanoseconds * per_second / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_id_reads_as_the_kernel_writes_it() {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let id = BootId::read().unwrap();
        assert_eq!(id.to_string(), text.trim_end());
        assert_eq!(id.to_string().parse::<BootId>(), Ok(id));
    }

    #[test]
    fn damaged_boot_ids_are_refused() {
        for text in [
            "",
            "x",
            "8bcd2a5c-51ff-4b48-b2c6-06a9dcb7f1a",
            "8bcd2a5c-51ff-4b48-b2c6-06a9dcb7f1ag",
            "8bcd2a5c051ff-4b48-b2c6-06a9dcb7f1a4",
            "é8bcd2a5-51ff-4b48-b2c6-06a9dcb7f1a",
        ] {
            assert_eq!(text.parse::<BootId>(), Err(ParseBootIdError), "{text:?}");
        }
    }

    #[test]
    fn own_start_is_not_after_now() {
        let own = Identity::current();
        assert!(own.start <= boot_ticks());
        assert!(own.is_alive());
        assert_eq!(own.to_string(), std::process::id().to_string());
    }

    #[test]
    fn a_number_with_another_start_is_somebody_else() {
        let own = Identity::current();
        assert!(!Identity::new(own.pid, own.start + 1).is_alive());
    }

    #[test]
    fn numbers_that_no_process_has_name_nobody() {
        for pid in [i32::MIN, -1, 0, i32::MAX] {
            assert_eq!(Identity::of(pid), Ok(None), "{pid}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_boot_id_or_refused(text in ".{0,40}|[0-9a-f-]{36}") {
            if let Ok(id) = text.parse::<BootId>() {
                proptest::prop_assert_eq!(id.to_string(), text.to_lowercase());
            }
        }

        #[test]
        fn any_boot_id_is_read_back(bytes in proptest::array::uniform16(proptest::num::u8::ANY)) {
            proptest::prop_assert_eq!(BootId(bytes).to_string().parse(), Ok(BootId(bytes)));
        }
    }
}
