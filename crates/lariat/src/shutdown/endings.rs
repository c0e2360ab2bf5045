//! The ends of several sets of leftovers, side by side, each by its own stop signal and grace period.

use std::time::{Duration, Instant};

use lariat_keeper::ending::Ending;
use lariat_keeper::wire::{End, Named};
use lariat_sys::Errno;
use lariat_sys::identity::Identity;
use lariat_sys::poll::poll;

use super::found::FoundSet;

/// How the end of one set came out.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The counts.
    pub end: End,
    /// Who could not be ended, the first of them.
    pub left: Vec<Named>,
}

/// How whoever waits for an end wants it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pace {
    /// Grace periods are kept.
    Patient,
    /// They are over: everybody is killed.
    Hurried,
    /// Nobody is waited for any more.
    Left,
}

/// The longest pause between two looks at somebody who is being ended.
const TURN_EVERY: Duration = Duration::from_millis(20);

/// Ends several sets side by side, and returns how each came out, in their order.
///
/// Blocks until nobody is left, or nothing helps any more: the longest grace period and fifteen seconds at most. `pace` is
/// asked every few milliseconds; of a set that it leaves nothing is known but that it was not ended.
pub fn end_all(sets: Vec<Ending<FoundSet>>, mut pace: impl FnMut() -> Pace) -> Vec<Ended> {
    let mut done: Vec<Ended> = vec![Ended::default(); sets.len()];
    let mut endings: Vec<(usize, Ending<FoundSet>)> = sets.into_iter().enumerate().collect();
    let mut has_hurried = false;
    while !endings.is_empty() {
        let wanted = pace();
        if wanted == Pace::Left {
            break;
        }
        let hurries = !has_hurried && wanted == Pace::Hurried;
        has_hurried |= hurries;
        endings.retain_mut(|(place, ending)| {
            let end = if hurries { ending.hurry() } else { ending.turn() };
            if let Some(end) = end {
                done[*place] = Ended { end, left: ending.left().to_vec() };
            }
            end.is_none()
        });
        let soon = Instant::now() + TURN_EVERY;
        let wake = endings.iter().filter_map(|(_, ending)| ending.wake_at()).fold(soon, Instant::min);
        if !endings.is_empty() {
            // It fails only for want of memory; then the loop turns without a pause until the machines give up.
            let _ = poll(&mut [], Some(wake));
        }
    }
    done
}

impl Ended {
    /// Counts several as one.
    #[must_use]
    pub fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        let mut sum = Self::default();
        for one in all {
            sum.end.told += one.end.told;
            sum.end.killed += one.end.killed;
            sum.end.left += one.end.left;
            sum.end.stop_time = sum.end.stop_time.max(one.end.stop_time);
            sum.left.extend(one.left);
        }
        sum
    }

    /// Says why this process is left.
    #[must_use]
    pub fn reason(&self, process: Identity) -> String {
        let errno = self.left.iter().find(|named| named.identity == process).map(|named| named.errno);
        match errno {
            None => "it was not ended".into(),
            Some(0) => "it does not die of KILL".into(),
            Some(errno) => {
                let text = Errno::from_raw_os_error(errno).to_string();
                let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
                format!("it could not be signalled: {text}")
            }
        }
    }
}
