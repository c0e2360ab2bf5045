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

/// How long it is left alone after it was put off, for there may be many turns in that time.
const LEFT_ALONE: Duration = Duration::from_millis(50);

/// Continues the calling process for as long as it is kept and used. Whoever blocks CONT takes it by a signalfd.
#[derive(Debug, Default)]
pub struct Awake {
    timer: Option<Timer>,
    put_off_at: Option<Instant>,
}

impl Awake {
    /// Puts the next CONT off by half a second; the first call starts it. Returns when to call again at the latest.
    pub fn still(&mut self) -> Instant {
        let now = Instant::now();
        if let Some(at) = self.put_off_at.filter(|at| now.duration_since(*at) < LEFT_ALONE) {
            return at + PUT_OFF_EVERY;
        }
        if self.timer.is_none() {
            // Without a timer we are no worse off than without a hostile member.
            self.timer = Timer::new(Signal::CONT).ok();
        }
        if let Some(timer) = &self.timer {
            let _ = timer.arm(STOPPED_MAX);
        }
        self.put_off_at = Some(now);
        now + PUT_OFF_EVERY
    }
}
