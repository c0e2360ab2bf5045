//! Waits for descriptors until an absolute deadline (`ppoll(2)`).
//!
//! Handles HAZARD(limits-from-outside).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use rustix::event::Timespec;

use crate::{Errno, Result, call};

pub use rustix::event::{PollFd, PollFlags};

/// Blocks until a descriptor has an event or the deadline has passed, and returns how many have one.
///
/// `None` waits without end. `Ok(0)` is returned only once the deadline has passed: interruptions by signals are waited
/// out against the same deadline, so they cannot stretch it. A deadline that has passed already looks once.
pub fn poll(descriptors: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<usize> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A duration beyond the kernel's range (i64 seconds) is as good as no deadline.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(descriptors, timeout.as_ref()) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {}
            Err(Errno::INTR) => {}
            // HAZARD(limits-from-outside): there are more of them than we may have open.
            Err(Errno::INVAL) => match select(descriptors, timeout.as_ref()) {
                Ok(0) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {}
                Err(Errno::INTR) => {}
                result => return result,
            },
            result => return result,
        }
    }
}

/// Waits as `ppoll(2)` does, by `pselect(2)`, which asks for no limit. Knows no descriptor beyond 1023, and no hang-up of
/// one that is not waited for otherwise.
fn select(descriptors: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<usize> {
    const KINDS: [PollFlags; 3] = [PollFlags::IN, PollFlags::OUT, PollFlags::PRI];
    // SAFETY: all zeroes is a valid, empty set.
    let mut sets: [libc::fd_set; 3] = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut end = 0;
    for (number, events, _) in descriptors.iter_mut().filter_map(parts) {
        for (kind, set) in KINDS.iter().zip(&mut sets) {
            if events.contains(*kind) {
                // SAFETY: the number is below FD_SETSIZE.
                unsafe { libc::FD_SET(number, set) };
                end = end.max(number + 1);
            }
        }
    }
    let timeout = timeout.map(|time| libc::timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let [read, write, except] = &mut sets;
    // SAFETY: the sets and the time live for the call; all descriptors in them are borrowed, hence open.
    call::check(unsafe { libc::pselect(end, read, write, except, timeout, std::ptr::null()) })?;
    let mut ready = 0;
    for (number, events, found) in descriptors.iter_mut().filter_map(parts) {
        // SAFETY: the number is below FD_SETSIZE.
        let is_in = |set: &libc::fd_set| unsafe { libc::FD_ISSET(number, set) };
        let kinds = KINDS.iter().zip(&sets).filter(|(kind, set)| events.contains(**kind) && is_in(set));
        let kinds = kinds.fold(PollFlags::empty(), |all, (kind, _)| all | *kind);
        *found = kinds.bits().cast_signed();
        ready += usize::from(!kinds.is_empty());
    }
    Ok(ready)
}

/// Returns a descriptor's number, what is waited for, and where the kernel says what has come.
fn parts<'a>(descriptor: &'a mut PollFd<'_>) -> Option<(i32, PollFlags, &'a mut i16)> {
    let number = descriptor.as_fd().as_raw_fd();
    // SAFETY: a `PollFd` is what ppoll(2) takes, a `pollfd`.
    let raw = unsafe { &mut *std::ptr::from_mut(descriptor).cast::<libc::pollfd>() };
    let events = PollFlags::from_bits_truncate(raw.events.cast_unsigned());
    (usize::try_from(number).ok()? < libc::FD_SETSIZE).then_some((number, events, &mut raw.revents))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The same questions by both calls.
    #[test]
    fn select_answers_as_poll_does() {
        let (read, write) = crate::files::pipe(4096).unwrap();
        let (full, closed) = (crate::files::pipe(4096).unwrap(), crate::files::pipe(4096).unwrap());
        drop(closed.1);
        let soon = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let asks = || {
            vec![
                PollFd::new(&read, PollFlags::IN),
                PollFd::new(&write, PollFlags::OUT),
                PollFd::new(&full.0, PollFlags::IN | PollFlags::PRI),
                PollFd::new(&full.1, PollFlags::IN),
            ]
        };
        for has_bytes in [false, true] {
            if has_bytes {
                rustix::io::write(&write, b"x").unwrap();
            }
            let (mut polled, mut selected) = (asks(), asks());
            let count = rustix::event::poll(&mut polled, Some(&soon)).unwrap();
            assert_eq!(select(&mut selected, Some(&soon)), Ok(count));
            let found = |all: &[PollFd<'_>]| all.iter().map(PollFd::revents).collect::<Vec<_>>();
            assert_eq!(found(&selected), found(&polled), "{has_bytes}");
        }
        let mut end = [PollFd::new(&closed.0, PollFlags::IN)];
        assert_eq!(select(&mut end, Some(&soon)), Ok(1), "the end of a pipe is something to read");
        let began = Instant::now();
        assert_eq!(select(&mut [], Some(&soon)), Ok(0));
        assert!(began.elapsed() >= Duration::from_millis(1));
    }
}
