//! Waits for many descriptors at once, and says to whom each belongs (epoll(7)).
//!
//! Every registration has a key of its own that is never used again: what the kernel reported for a descriptor that was
//! closed in the meantime finds nobody, instead of hitting whoever got its number.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use lariat_sys::{Errno, Result};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Reports taken from the kernel at once.
const BATCH: usize = 64;

/// One registration.
pub(super) type Key = u64;

/// What a descriptor is watched for. Hang-ups and errors are always reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Interest {
    /// Bytes, connections, a death.
    Read,
    /// Room, or the end of a connect.
    Write,
    /// Both.
    Both,
    /// Only hang-ups and errors.
    Hangup,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::Write => EventFlags::OUT,
            Self::Both => EventFlags::IN | EventFlags::OUT,
            Self::Hangup => EventFlags::empty(),
        }
    }
}

/// The descriptors of one loop, each with its owner.
pub(super) struct Poller<T> {
    set: OwnedFd,
    owners: HashMap<Key, T>,
    next: Key,
    batch: Vec<Event>,
}

impl<T> std::fmt::Debug for Poller<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller").field("watched", &self.owners.len()).finish_non_exhaustive()
    }
}

impl<T: Copy> Poller<T> {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            set: epoll::create(CreateFlags::CLOEXEC)?,
            owners: HashMap::new(),
            next: 0,
            batch: Vec::with_capacity(BATCH),
        })
    }

    /// Begins to watch a descriptor.
    pub(super) fn add(&mut self, fd: impl AsFd, interest: Interest, owner: T) -> Result<Key> {
        let key = self.next;
        epoll::add(&self.set, fd, EventData::new_u64(key), interest.flags())?;
        self.next += 1;
        self.owners.insert(key, owner);
        Ok(key)
    }

    /// Changes what a descriptor is watched for.
    pub(super) fn change(&self, fd: impl AsFd, interest: Interest, key: Key) -> Result<()> {
        epoll::modify(&self.set, fd, EventData::new_u64(key), interest.flags())
    }

    /// Ends watching a descriptor. To be called before it is closed: a copy of it in another process would keep the
    /// registration alive in the kernel.
    pub(super) fn remove(&mut self, fd: impl AsFd, key: Key) {
        // It fails only for a descriptor that is not watched, and then there is nothing to end.
        let _ = epoll::delete(&self.set, fd);
        self.owners.remove(&key);
    }

    /// Waits until something happens or the deadline has passed, and puts the owners of what happened into `out`.
    pub(super) fn wait(&mut self, deadline: Option<Instant>, out: &mut Vec<T>) -> Result<()> {
        out.clear();
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        self.batch.clear();
        match epoll::wait(&self.set, rustix::buffer::spare_capacity(&mut self.batch), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        // A key that is gone belongs to a descriptor that was closed after the kernel had looked.
        out.extend(self.batch.iter().filter_map(|event| self.owners.get(&{ event.data }.u64())).copied());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(5))
    }

    #[test]
    fn each_owner_hears_of_its_own_and_of_nothing_after_it_left() {
        let mut poller = Poller::new().unwrap();
        let (mut a, a_far) = UnixStream::pair().unwrap();
        let (mut b, b_far) = UnixStream::pair().unwrap();
        let a_key = poller.add(&a_far, Interest::Read, 'a').unwrap();
        poller.add(&b_far, Interest::Read, 'b').unwrap();
        let mut seen = Vec::new();
        a.write_all(b"x").unwrap();
        poller.wait(soon(), &mut seen).unwrap();
        assert_eq!(seen, ['a']);
        poller.remove(&a_far, a_key);
        b.write_all(b"x").unwrap();
        poller.wait(soon(), &mut seen).unwrap();
        assert_eq!(seen, ['b']);
    }

    #[test]
    fn a_deadline_that_has_passed_looks_once() {
        let mut poller: Poller<()> = Poller::new().unwrap();
        let mut seen = vec![()];
        poller.wait(Some(Instant::now()), &mut seen).unwrap();
        assert!(seen.is_empty());
    }
}
