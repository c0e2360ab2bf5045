//! Lets nobody stop us while we end somebody.
//!
//! HAZARD(keeper-stopped): a member may send STOP to whoever is about to kill it. A timer of the kernel sends CONT after
//! half a second in which we did not come round; it fires in a process that is stopped too.

use std::time::{Duration, Instant};

use lariat_sys::signal::{Signal, Timer};

/// How long we may be stopped.
const STOPPED_MAX: Duration = Duration::from_millis(500);
/// How often it has to be put off, well before it fires.
const PUT_OFF_EVERY: Duration = Duration::from_millis(300);

/// Continues the calling process for as long as it is kept and used. Whoever blocks CONT takes it by a signalfd.
#[derive(Debug, Default)]
pub struct Awake(Option<Timer>);

impl Awake {
    /// Puts the next CONT off by half a second; the first call starts it. Returns when to call again at the latest.
    pub fn still(&mut self) -> Instant {
        if self.0.is_none() {
            // Without a timer we are no worse off than without a hostile member.
            self.0 = Timer::new(Signal::CONT).ok();
        }
        if let Some(timer) = &self.0 {
            let _ = timer.arm(STOPPED_MAX);
        }
        Instant::now() + PUT_OFF_EVERY
    }
}
