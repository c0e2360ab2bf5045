//! Waits for descriptors until an absolute deadline (`ppoll(2)`).

use std::time::Instant;

use rustix::event::Timespec;

use crate::{Errno, Result};

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
            result => return result,
        }
    }
}
