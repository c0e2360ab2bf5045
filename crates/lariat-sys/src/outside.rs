//! Who a process of our pid namespace is to those outside of it (`pid_namespaces(7)`).
//!
//! Responsible for the numbers that whoever made the namespace knows: HAZARD(numbers-inside). It looks through a
//! descriptor of `/proc` as it is outside, opened before we had a `/proc` of our own. Does not search and does not signal.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::identity::Identity;
use crate::pidfd::PidFd;
use crate::procfs::{self, ProcPath};
use crate::{Errno, Result};

/// `/proc` as it is outside of the pid namespace that we are in, or are going to be in.
#[derive(Debug)]
pub struct Outside(OwnedFd);

impl Outside {
    /// Opens `/proc` as it is here, for a process that will be in a namespace below.
    ///
    /// # Errors
    /// As open(2).
    pub fn open() -> Result<Outside> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, c"/proc", flags, Mode::empty()).map(Outside)
    }

    /// Takes what [`Outside::open`] opened in the process that gave it to us.
    #[must_use]
    pub fn from_owned(descriptor: OwnedFd) -> Outside {
        Outside(descriptor)
    }

    /// Returns who we are outside.
    ///
    /// # Errors
    /// [`Errno::NOENT`] if we have no number there.
    pub fn own(&self) -> Result<Identity> {
        let own = Identity::own()?;
        Ok(numbered(own, procfs::number_of_self(&self.0)?))
    }

    /// Returns who one of us is outside, be it alive or a zombie; `None` if it is gone.
    ///
    /// # Errors
    /// As [`PidFd::open`], but for one that is gone, and as [`Outside::identity_of`].
    pub fn identity(&self, inner: Identity) -> Result<Option<Identity>> {
        match PidFd::open(inner) {
            Ok(opened) => self.identity_of(&opened, inner),
            Err(Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Returns who the process that `opened` refers to is outside, `inner` being who it is here; `None` if it was reaped.
    ///
    /// # Errors
    /// As open(2) and read(2); [`Errno::BADMSG`] where the kernel does not say it.
    pub fn identity_of(&self, opened: &PidFd, inner: Identity) -> Result<Option<Identity>> {
        // KERNEL(5.2): `Pid:` is the number in the namespace of the `/proc` that it is read from, and -1 once the
        // process was reaped. Nothing is searched for, so nobody can be taken for somebody else.
        let path = ProcPath::within("self/fdinfo/").number(opened.as_fd().as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&self.0, path.as_c_str(), flags, Mode::empty());
        let file = rustix::io::retry_on_intr(open)?;
        let mut text = [0; 1024];
        let length = procfs::read_some(&file, &mut text)?.unwrap_or(0);
        let number = procfs::number_in_fdinfo(text.get(..length).unwrap_or_default()).ok_or(Errno::BADMSG)?;
        Ok((number > 0).then(|| numbered(inner, number)))
    }

    /// Keeps the others of our namespace from reaching this descriptor through our entry in `/proc`, as far as they have no
    /// right to look into any process (`CAP_SYS_PTRACE`). Outside, an ordinary user may see us as before, and not read our
    /// environment or descriptors any more.
    ///
    /// The setting is the process's (`PR_SET_DUMPABLE`) and lasts until it executes a program.
    pub fn hide(&self) {
        // The results are ignored: with these values the call cannot fail, and without it everything works.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        // KERNEL(5.14): before, /proc/self/fdinfo of one that may not be dumped is root's, and closed to ourselves as well.
        // That we can name our own is worth more. This branch may go when no kernel before 5.14 is supported.
        let own = Identity::own().and_then(|own| self.identity(own));
        if !matches!(own, Ok(Some(_))) {
            let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
        }
    }
}

/// Start and inode are the same on both sides of a pid namespace's border.
fn numbered(identity: Identity, pid: i32) -> Identity {
    Identity::new(pid, identity.start).with_inode(identity.inode())
}

impl AsFd for Outside {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_no_namespace_is_inside() {
        let outside = Outside::open().unwrap();
        let own = Identity::current();
        assert!(outside.own().unwrap().is_same(&own));
        let found = outside.identity(own).unwrap().unwrap();
        assert!(found.is_same(&own) && found.inode() == own.inode(), "{found:?}");
    }

    #[test]
    fn who_is_gone_is_nobody() {
        let outside = Outside::open().unwrap();
        let own = Identity::current();
        let later = Identity::new(own.pid, own.start + 1);
        assert_eq!(outside.identity(later), Ok(None), "a later one with our number");
        assert_eq!(outside.identity(Identity::new(i32::MAX, 1)), Ok(None));
    }
}
