//! The wall clock, for what is written down. Deadlines use [`std::time::Instant`] and nothing of this.

use std::time::{Duration, SystemTime};

/// Returns the time since the Unix epoch; zero if the clock is set before it.
#[must_use]
pub fn unix_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Returns the milliseconds since the Unix epoch.
#[must_use]
pub fn unix_millis() -> u64 {
    u64::try_from(unix_now().as_millis()).unwrap_or(u64::MAX)
}
