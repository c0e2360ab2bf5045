//! Observes and collects the ends of children (`waitid(2)`, `wait4(2)`).
//!
//! Responsible for both steps of the order of death: seeing an exit without collecting it, and collecting it. Does not
//! decide when. All calls take children of every kind (`__WALL`) and of every thread, and none blocks.

use std::time::Duration;

use crate::signal::Signal;
use crate::{Errno, Result, call};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// A signal ended it.
    Signal {
        /// Which one.
        signal: Signal,
        /// Whether the kernel wrote a core dump.
        core: bool,
    },
}

impl Exit {
    /// Says whether it exited with code 0.
    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }
}

/// Something that happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildEvent {
    /// It ended, and is a zombie until it is reaped.
    Exited {
        /// The child; its number stays its own until it is reaped.
        pid: i32,
        /// How it ended.
        exit: Exit,
    },
    /// A signal stopped it.
    Stopped {
        /// The child.
        pid: i32,
        /// Which signal.
        signal: Signal,
    },
    /// It goes on after a stop.
    Continued {
        /// The child.
        pid: i32,
    },
}

/// What a process used, with those of its own children that it had waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in its own code.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// The most memory resident at once of it or of one of those children, in KiB.
    pub max_rss_kib: u64,
}

/// Returns some child that has ended, leaving it a zombie; `None` if there are children but none has.
///
/// The same child is returned until it is reaped.
///
/// # Errors
/// [`Errno::CHILD`] if there are no children at all: to a subreaper that is the proof of having no descendants.
pub fn peek() -> Result<Option<ChildEvent>> {
    wait_id(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT)
}

/// Returns how this child ended, leaving it a zombie; `None` while it runs.
///
/// # Errors
/// [`Errno::CHILD`] if it is no child of ours, or was reaped.
pub fn peek_exit(pid: i32) -> Result<Option<ChildEvent>> {
    wait_id(libc::P_PID, positive(pid)?, libc::WEXITED | libc::WNOWAIT)
}

/// Returns a stop or a continuation of this child that was not returned before; `None` if there is none.
///
/// # Errors
/// [`Errno::CHILD`] if it is no child of ours, was reaped, or has ended.
pub fn peek_stops(pid: i32) -> Result<Option<ChildEvent>> {
    wait_id(libc::P_PID, positive(pid)?, libc::WSTOPPED | libc::WCONTINUED)
}

/// Says whether some child of ours has been stopped since anybody asked for its stops. Takes nothing: [`peek_stops`] says which
/// it is.
pub fn has_stopped_child() -> bool {
    matches!(wait_id(libc::P_ALL, 0, libc::WSTOPPED | libc::WNOWAIT), Ok(Some(ChildEvent::Stopped { .. })))
}

/// Collects a child that has ended, and with it frees its pid for reuse; `None` while it runs.
///
/// # Errors
/// [`Errno::CHILD`] if it is no child of ours, or was reaped.
pub fn reap(pid: i32) -> Result<Option<(Exit, Usage)>> {
    let pid = positive(pid)? as libc::pid_t;
    let mut status = 0;
    // SAFETY: all zeroes is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the types that the kernel writes.
    let reaped = call::retry(|| unsafe {
        libc::wait4(pid, &raw mut status, libc::WNOHANG | libc::__WALL, &raw mut usage)
    })?;
    if reaped == 0 {
        return Ok(None);
    }
    let exit = if libc::WIFSIGNALED(status) {
        let signal = Signal::from_number(libc::WTERMSIG(status)).ok_or(Errno::BADMSG)?;
        Exit::Signal { signal, core: libc::WCOREDUMP(status) }
    } else {
        Exit::Code(libc::WEXITSTATUS(status) as u8)
    };
    let usage = Usage {
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
    };
    Ok(Some((exit, usage)))
}

/// Says whether the calling process has any child, zombies included. In a subreaper, `false` is the kernel's own proof
/// that no descendant is left.
pub fn has_children() -> bool {
    peek() != Err(Errno::CHILD)
}

/// Asks for one event without blocking.
fn wait_id(kind: libc::idtype_t, id: libc::id_t, events: libc::c_int) -> Result<Option<ChildEvent>> {
    // SAFETY: all zeroes is a valid `siginfo_t`; a pid of 0 in it means "nothing", also where the kernel left it alone.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live `siginfo_t` for the kernel to write.
    call::retry(|| unsafe { libc::waitid(kind, id, &raw mut info, events | libc::WNOHANG | libc::__WALL) })?;
    // SAFETY: waitid fills the SIGCHLD variant of the union, or leaves the zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let signal = || Signal::from_number(status).ok_or(Errno::BADMSG);
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => ChildEvent::Exited { pid, exit: Exit::Code(status as u8) },
        libc::CLD_KILLED => ChildEvent::Exited { pid, exit: Exit::Signal { signal: signal()?, core: false } },
        libc::CLD_DUMPED => ChildEvent::Exited { pid, exit: Exit::Signal { signal: signal()?, core: true } },
        libc::CLD_STOPPED | libc::CLD_TRAPPED => ChildEvent::Stopped { pid, signal: signal()? },
        libc::CLD_CONTINUED => ChildEvent::Continued { pid },
        _ => return Err(Errno::BADMSG),
    }))
}

/// Refuses the numbers that wait calls take for "any child" and for groups.
fn positive(pid: i32) -> Result<libc::id_t> {
    libc::id_t::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(Errno::CHILD)
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(microseconds)
}
