//! Waiting for facts: the only way a test waits.

use std::time::{Duration, Instant};

/// How long a test waits for anything before it fails. Long, because a loaded machine is no bug; a test that needs to
/// show that something was *fast* measures it and compares with something slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Looks again and again until `look` returns something.
///
/// # Panics
/// After `patience`, saying what it waited for and how long.
#[track_caller]
pub fn wait_until<T>(what: &str, patience: Duration, look: impl FnMut() -> Option<T>) -> T {
    match wait_at_most(patience, look) {
        Some(found) => found,
        None => panic!("waited {patience:?} for: {what}"),
    }
}

/// Looks again and again until `look` returns something, or returns `None` after `patience`.
pub fn wait_at_most<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}
