//! What nothing works without, asked of the kernel before anything is started.
//!
//! Responsible for saying no early and by name. What has a way around it where it is missing (`KERNEL(…)` in comments)
//! is not asked for here. Features are asked for, never versions: a sandbox refuses what its kernel has, and a
//! distribution's kernel has what its version does not say. Handles HAZARD(refused-call).

use std::fmt;

use crate::pidfd::PidFd;
use crate::{Errno, process};

/// The oldest kernel that has all of it.
pub const OLDEST: &str = "5.3";

/// A call that lariat cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub call: &'static str,
    /// The Linux version that brought it.
    pub since: &'static str,
    /// What the kernel said.
    pub errno: Errno,
}

impl fmt::Display for Missing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Missing { call, since, errno } = self;
        write!(
            out,
            "the kernel, or a sandbox around lariat, refuses {call} (in Linux since {since}): {errno}"
        )
    }
}

impl std::error::Error for Missing {}

/// Returns what is missing, or `None` where lariat can work. Takes a few microseconds and changes nothing.
pub fn missing() -> Option<Missing> {
    let own = match PidFd::open_pid(process::pid()) {
        Ok(own) => own,
        // KERNEL(5.3): without a descriptor of a process every signal would go to a bare number.
        Err(errno) => return Some(Missing { call: "pidfd_open(2)", since: "5.3", errno }),
    };
    // KERNEL(5.1): the signal 0 is checked for and not sent.
    let errno = own.signal_nobody().err()?;
    Some(Missing { call: "pidfd_send_signal(2)", since: "5.1", errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_missing_where_the_tests_run() {
        assert_eq!(missing(), None);
    }

    #[test]
    fn what_is_missing_is_named_with_its_kernel() {
        let missing = Missing { call: "pidfd_open(2)", since: OLDEST, errno: Errno::NOSYS };
        let said = missing.to_string();
        assert!(
            said.contains("pidfd_open(2) (in Linux since 5.3)") && said.contains("os error 38"),
            "{said}"
        );
    }
}
