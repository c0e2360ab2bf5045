//! The guard: the process that the user started, which stays behind and ends whatever its drill leaves.
//!
//! A hostile tree may well end the drill: the guard is its parent and a subreaper, so everything of it comes here then.
//! It does nothing else, and no member attacks it.

use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{PollFd, PollFlags, poll};
use lariat_sys::signal::{self, Signal, SignalFd, SignalSet};
use lariat_sys::{Result, process, reap, spawn};

use crate::census;
use crate::stage::Stage;

/// The signals that end a drill.
pub(crate) const ASKS: [Signal; 4] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT];
/// How long a drill that was asked to end may clean up before the guard does it.
const CLEANING_WITHIN: Duration = Duration::from_secs(25);

/// Which of the two we are.
#[derive(Debug)]
pub enum Side {
    /// The drill, which is to be done now; this is its guard.
    Drill(PidFd),
    /// The guard, and the drill is over. Its exit code, if it had one.
    Over(Option<u8>),
}

/// Splits into guard and drill. Returns at once in the drill; in the guard, when the drill is over and nothing of it is
/// left, neither a process nor a directory of its stage. The process must have one thread.
///
/// Both block every signal from here on, and both are child subreapers.
///
/// # Errors
/// The process could not be split; nothing was started then.
pub fn split(within: Duration, stage: &Stage) -> Result<Side> {
    let me = Identity::own()?;
    process::set_subreaper(true)?;
    signal::set_default(Signal::CHLD)?;
    let before = signal::block(SignalSet::full());
    let mut strangers = Vec::new();
    if reap::has_children() {
        lariat_sys::tree::children(process::pid(), &mut strangers)?;
    }
    let heard = ASKS.into_iter().fold(SignalSet::empty().with(Signal::CHLD), SignalSet::with);
    let signals = SignalFd::new(heard)?;
    match spawn::fork_alone()? {
        None => {
            drop(signals);
            process::set_subreaper(true)?;
            Ok(Side::Drill(PidFd::open(me)?))
        }
        Some(drill) => {
            let code = watch(&drill, &signals, within);
            // Whatever the drill was doing: nothing of it is left behind.
            census::end_everybody(&[], "", &strangers);
            stage.strike();
            signal::set_mask(before);
            Ok(Side::Over(code))
        }
    }
}

fn watch(drill: &spawn::Child, signals: &SignalFd, within: Duration) -> Option<u8> {
    let mut deadline = Instant::now() + within;
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN), PollFd::new(&drill.pidfd, PollFlags::IN)];
        let _ = poll(&mut fds, Some(deadline));
        while let Ok(Some(received)) = signals.read() {
            // What was typed has reached the drill as well; a second one changes nothing there.
            if ASKS.contains(&received.signal) {
                let _ = drill.pidfd.signal(received.signal);
                deadline = deadline.min(Instant::now() + CLEANING_WITHIN);
            }
        }
        if let Ok(Some((exit, _))) = reap::reap(drill.pid) {
            return match exit {
                reap::Exit::Code(code) => Some(code),
                reap::Exit::Signal { .. } => None,
            };
        }
        if Instant::now() >= deadline {
            let _ = drill.pidfd.signal(Signal::KILL);
        }
    }
}
