//! Repeated measurements and what is said of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};

/// What was measured of one contender, once per round.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Who.
    pub(super) name: String,
    /// In the row's unit.
    pub(super) values: Vec<f64>,
}

impl Sample {
    /// Starts an empty one.
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), values: Vec::new() }
    }

    /// Makes one of a single value.
    pub(super) fn of(name: &str, value: f64) -> Self {
        Self { name: name.to_owned(), values: vec![value] }
    }

    /// Takes a time, in milliseconds.
    pub(super) fn push_time(&mut self, time: Duration) {
        self.values.push(time.as_secs_f64() * 1e3);
    }

    /// Returns the middle value; not a number where there is none.
    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        }
    }
}

/// Measures how long something takes.
///
/// # Errors
/// Those of what is measured.
pub(super) fn timed(what: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    what()?;
    Ok(start.elapsed())
}

/// Returns CLOCK_MONOTONIC: a time that two processes can compare.
///
/// # Errors
/// The clock is before its own start.
pub(super) fn monotonic() -> Result<Duration> {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).context("the clock is negative")?;
    Ok(Duration::new(seconds, u32::try_from(now.tv_nsec).context("the clock is negative")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn median(values: &[f64]) -> f64 {
        Sample { name: String::new(), values: values.to_vec() }.median()
    }

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
