//! Turns the C library's "-1 and errno" into [`Result`], and repeats what a signal interrupted.

use crate::{Errno, Result};

/// Returns the calling thread's `errno`.
pub(crate) fn errno() -> Errno {
    // SAFETY: the location is valid for the life of the thread.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// Turns the return value of a call into a result; only -1 is an error.
pub(crate) fn check<T: Returned>(value: T) -> Result<T> {
    if value.is_failure() { Err(errno()) } else { Ok(value) }
}

/// Repeats `call` for as long as it is interrupted by a signal (`EINTR`).
pub(crate) fn retry<T: Returned>(mut call: impl FnMut() -> T) -> Result<T> {
    loop {
        match check(call()) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The integer types that calls of the C library return.
pub(crate) trait Returned: Copy {
    /// Says whether the value is the -1 that stands for an error.
    fn is_failure(self) -> bool;
}

impl Returned for i32 {
    fn is_failure(self) -> bool {
        self == -1
    }
}

impl Returned for i64 {
    fn is_failure(self) -> bool {
        self == -1
    }
}

impl Returned for isize {
    fn is_failure(self) -> bool {
        self == -1
    }
}
