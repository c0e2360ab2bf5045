//! Asks file systems for files in a child, because one that does not answer keeps whoever asks.
//!
//! HAZARD(deaf-file-system): a process that waits for an answer may be out of reach of SIGKILL, and a thread that does
//! holds up its process's exit. A child that does holds up nobody: it is killed when the asker is dropped, and left
//! behind where that does not end it.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::pidfd::PidFd;
use crate::poll::{PollFd, PollFlags, poll};
use crate::signal::Signal;
use crate::{Errno, Result, call, files, process, reap};

/// The kernel's name for the child. One that a file system holds may outlive its caller: it is nobody's to end.
pub const ASKER_COMM: &str = "lariat-asker";
/// What is read at once, in bytes, and how often for one file at most.
const READ_AT_ONCE: usize = 16 * 1024;
const READS_MAX: usize = 4096;
/// Descriptors that are closed at most where no range can be.
const CLOSED_MAX: u64 = 64 * 1024;
/// How long a child that was killed is waited for, to be reaped.
const DIES_WITHIN: Duration = Duration::from_millis(20);
/// The bytes that hold an answer for each question.
const PIPE_BYTES: usize = 4096;

/// A child that asks.
#[derive(Debug)]
pub struct Asker {
    pid: i32,
    pidfd: PidFd,
    answers: OwnedFd,
    questions: usize,
    answered: usize,
}

impl Asker {
    /// Starts a child that opens the files of each question in their order, and reads them to their ends. Whatever comes of
    /// that, a refusal included, is an answer.
    ///
    /// The child is a copy of the calling process that has no descriptor but the pipe to us, makes system calls only, and
    /// is killed when the calling thread ends. Its end sends no SIGCHLD, and only who waits for all kinds of children
    /// (`__WALL`) sees it.
    ///
    /// # Errors
    /// As the kernel says: no descriptor, no process to spare.
    pub fn start(questions: &[Vec<CString>]) -> Result<Asker> {
        let (answers, theirs) = files::pipe(PIPE_BYTES)?;
        let us = process::pid();
        let open_max = process::open_files_max().unwrap_or(CLOSED_MAX).min(CLOSED_MAX);
        // No flags and no exit signal, on the caller's own stack: fork(2) without SIGCHLD.
        // SAFETY: the child gets a copy of all memory. Other threads may have held locks at that moment, so it calls
        // nothing that could want one: only system calls, on what was prepared above.
        let pid = call::check(unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) })?;
        if pid == 0 {
            child(us, theirs.as_raw_fd(), open_max, questions);
        }
        let pid = i32::try_from(pid).map_err(|_| Errno::INVAL)?;
        match PidFd::open_pid(pid) {
            Ok(pidfd) => Ok(Asker { pid, pidfd, answers, questions: questions.len(), answered: 0 }),
            Err(errno) => {
                // SAFETY: kill(2) takes two integers; the number is that of our own unreaped child.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                Err(errno)
            }
        }
    }

    /// Returns how many questions were answered, from the first on, as far as that is known.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// Says whether no more answers are to come: all are here, or the child is dead.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.answered >= self.questions
    }

    /// Waits for more answers, and says whether there are. Blocks until then, until no more are to come, or until the
    /// deadline.
    ///
    /// # Errors
    /// [`Errno::NOMEM`], when the kernel cannot wait.
    pub fn wait(&mut self, deadline: Instant) -> Result<bool> {
        let mut watched = [PollFd::new(&self.answers, PollFlags::IN)];
        if self.is_over() || poll(&mut watched, Some(deadline))? == 0 {
            return Ok(false);
        }
        let mut bytes = [0; 256];
        let more = files::read(&self.answers, &mut bytes).unwrap_or(0);
        if more == 0 {
            // Somebody killed it: what it did not ask is not answered.
            self.questions = self.answered;
        }
        self.answered += more;
        Ok(more > 0)
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        // One that has asked everything is about to exit, and one that waits dies of this or of nothing.
        let _ = self.pidfd.signal(Signal::KILL);
        let _ = self.pidfd.wait_exit(Some(Instant::now() + DIES_WITHIN));
        let _ = reap::reap(self.pid);
    }
}

/// The child. Raw system calls only: it is a copy of a process that may have had other threads.
fn child(parent: i32, answers: RawFd, open_max: u64, questions: &[Vec<CString>]) -> ! {
    // Locks above all: one that is left behind would hold them for ever (HAZARD(shared-lock)), and whoever reads what we
    // print would wait for its end.
    close_all_but(answers, open_max);
    let _ = process::set_comm(ASKER_COMM);
    // HAZARD(parent-death-signal-race): who is gone already is never told of.
    if process::set_parent_death(Signal::KILL).is_ok() && process::parent_pid() == parent {
        for question in questions {
            question.iter().for_each(read);
            // SAFETY: the pointer is to a live byte.
            if unsafe { libc::write(answers, [1_u8].as_ptr().cast(), 1) } != 1 {
                break;
            }
        }
    }
    process::exit_now(0)
}

/// Opens a file and reads it to its end, or to what is enough to know that it is answered.
fn read(path: &CString) {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the string ends in NUL and outlives the call.
    let Ok(file) = call::retry(|| unsafe { libc::open(path.as_ptr(), flags) }) else { return };
    let mut bytes = [0_u8; READ_AT_ONCE];
    for _ in 0..READS_MAX {
        // SAFETY: the kernel writes at most as many bytes as there are.
        if unsafe { libc::read(file, bytes.as_mut_ptr().cast(), bytes.len()) } <= 0 {
            break;
        }
    }
    // SAFETY: the descriptor is ours, and nobody uses it afterwards.
    unsafe { libc::close(file) };
}

fn close_all_but(kept: RawFd, open_max: u64) {
    let kept = kept.unsigned_abs();
    let close = |first: u32, last: u32| {
        // SAFETY: close_range(2) takes integers; nothing of what is closed is used in this process.
        let closed = || unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        first > last || call::check(closed()).is_ok()
    };
    if (kept > 0 && !close(0, kept - 1)) || !close(kept + 1, u32::MAX) {
        // KERNEL(5.9): close_range(2); sandboxes refuse it with EPERM. This branch may go when no kernel before 5.9 is
        // supported.
        for descriptor in (0..open_max).filter_map(|number| i32::try_from(number).ok()) {
            if descriptor.unsigned_abs() != kept {
                // SAFETY: close(2) takes an integer; as above.
                unsafe { libc::close(descriptor) };
            }
        }
    }
}
