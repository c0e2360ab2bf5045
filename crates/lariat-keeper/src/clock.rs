//! Instants that are computed from what somebody asked for.
//!
//! Reads no clock.

use std::time::{Duration, Instant};

/// What "never" comes to: longer than any machine runs, and short enough to be added to any of its instants.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Returns the instant that is `by` later, at most a century away.
///
/// `Instant + Duration` panics where the sum is out of range, and a program that embeds lariat may well ask for a grace
/// period of [`Duration::MAX`].
#[must_use]
pub fn later(at: Instant, by: Duration) -> Instant {
    at + by.min(FOR_EVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_ever_is_an_instant_that_can_be_waited_for_and_added_to() {
        let now = Instant::now();
        assert_eq!(later(now, Duration::from_secs(1)), now + Duration::from_secs(1));
        let far = later(now, Duration::MAX);
        assert!(later(far, Duration::MAX) > far && far > now);
    }
}
