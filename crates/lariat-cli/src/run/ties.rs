//! What ties `lariat run` to its surroundings: the terminal, the caller, standard input as a lifeline.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lariat_sys::files::ReadableSignal;
use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{PollFd, PollFlags};
use lariat_sys::{Errno, files, process};

/// How much is read from a lifeline at once, and thrown away.
const LIFELINE_READ: usize = 4096;

/// The ties of one run. Each is gone once it was cut.
#[derive(Debug, Default)]
pub(crate) struct Ties {
    /// The controlling terminal. A background or stopped process group gets no HUP from the kernel when it closes, so
    /// it is polled.
    pub(crate) terminal: Option<OwnedFd>,
    /// Standard input, kept out of the command's reach.
    pub(crate) lifeline: Option<OwnedFd>,
    /// What is read there continues us while we are stopped. The description is the caller's, and is given back.
    pub(crate) lifeline_wakes: Option<ReadableSignal>,
    /// The process that called us.
    pub(crate) caller: Option<PidFd>,
}

/// Which tie was cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// The terminal was closed.
    Terminal,
    /// Nobody holds the other end of the lifeline any more.
    Lifeline,
    /// The caller died.
    Caller,
}

impl Ties {
    /// Takes hold of the caller. Returns false if it is gone already.
    ///
    /// # Errors
    /// What pidfd_open(2) gave.
    pub(crate) fn hold_caller(&mut self) -> lariat_sys::Result<bool> {
        let parent = process::parent_pid();
        match PidFd::open_pid(parent) {
            Ok(pidfd) => self.caller = Some(pidfd),
            Err(Errno::SRCH) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        // HAZARD(pid-reuse): whoever had that number when it was opened is our parent only if it still is.
        Ok(process::parent_pid() == parent)
    }

    /// Returns the descriptors that the ties hold.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let (terminal, lifeline) =
            (self.terminal.as_ref().map(AsFd::as_fd), self.lifeline.as_ref().map(AsFd::as_fd));
        let wakes = self.lifeline_wakes.as_ref().map(AsFd::as_fd);
        [terminal, lifeline, wakes, self.caller.as_ref().map(AsFd::as_fd)].into_iter().flatten()
    }

    /// Adds what is to be polled, in an order that [`Self::cut`] knows.
    pub(crate) fn poll<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        for tie in [
            self.terminal.as_ref().map(|t| PollFd::new(t, PollFlags::empty())),
            self.lifeline.as_ref().map(|l| PollFd::new(l, PollFlags::IN)),
            self.caller.as_ref().map(|c| PollFd::new(c, PollFlags::IN)),
        ] {
            fds.extend(tie);
        }
    }

    /// Takes what poll(2) said of the descriptors that [`Self::poll`] added, and returns what was cut, once each.
    pub(crate) fn cut(&mut self, revents: &[PollFlags]) -> Vec<Cut> {
        let mut cut = Vec::new();
        let mut revents = revents.iter().copied();
        let mut next = |is_there: bool| {
            if is_there { revents.next().unwrap_or(PollFlags::empty()) } else { PollFlags::empty() }
        };
        let (terminal, lifeline, caller) =
            (next(self.terminal.is_some()), next(self.lifeline.is_some()), next(self.caller.is_some()));
        if terminal.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            self.terminal = None;
            cut.push(Cut::Terminal);
        }
        if !lifeline.is_empty() && self.lifeline_has_ended() {
            (self.lifeline, self.lifeline_wakes) = (None, None);
            cut.push(Cut::Lifeline);
        }
        if !caller.is_empty() {
            self.caller = None;
            cut.push(Cut::Caller);
        }
        cut
    }

    /// Reads away what came on the lifeline, and returns whether that was its end.
    fn lifeline_has_ended(&self) -> bool {
        let Some(lifeline) = &self.lifeline else { return false };
        let mut bytes = [0; LIFELINE_READ];
        // Whoever shares it may read it as well: it can be empty again since it was polled.
        match files::read_now(lifeline, &mut bytes) {
            Ok(0) => true,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => true,
        }
    }
}

/// Takes standard input away from descriptor 0 and leaves `/dev/null` there.
///
/// # Errors
/// What dup(2) gave; `EBADF` where standard input is closed.
pub(crate) fn take_stdin() -> lariat_sys::Result<OwnedFd> {
    let lifeline = std::io::stdin().as_fd().try_clone_to_owned();
    let lifeline = lifeline.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::BADF))?;
    files::replace_stream(files::dev_null()?, 0)?;
    Ok(lifeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifeline_that_somebody_else_has_read_empty_is_not_waited_for() {
        for (read, write) in [files::pipe(4096).map_err(drop), unix_pair()].into_iter().flatten() {
            let ties = Ties { lifeline: Some(read), ..Ties::default() };
            assert!(!ties.lifeline_has_ended());
            assert_eq!(rustix::io::write(&write, b"x"), Ok(1));
            assert!(!ties.lifeline_has_ended() && !ties.lifeline_has_ended());
            drop(write);
            assert!(ties.lifeline_has_ended());
        }
    }

    fn unix_pair() -> Result<(OwnedFd, OwnedFd), ()> {
        let (read, write) = std::os::unix::net::UnixStream::pair().map_err(drop)?;
        Ok((read.into(), write.into()))
    }
}
