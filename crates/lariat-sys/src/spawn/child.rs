//! What the child does between clone and exec.
//!
//! HAZARD(child-in-our-memory): the child shares the parent's memory, and other threads of the parent run on. So nothing
//! here allocates, locks, logs or panics: it makes system calls and writes to what was prepared for it alone.

use std::convert::Infallible;
use std::ffi::{CStr, c_char, c_void};
use std::os::fd::RawFd;

use super::gate::Gate;
use super::isolate::{self, Namespaces};
use super::{SpawnOptions, SpawnStep};
use crate::signal::SignalSet;
use crate::{Errno, Result, call};

/// The first failure in the child: a step's number, 0 for none, and what the kernel said.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Report {
    pub(super) step: i32,
    pub(super) errno: i32,
    /// Set first of all: a child without it never ran.
    pub(super) has_run: bool,
}

/// All that the child needs, prepared by the parent. Every pointer outlives the child's use of it.
pub(super) struct Order<'a> {
    /// The paths to try, ended by null.
    pub(super) candidates: &'a [*const c_char],
    pub(super) argv: *const *const c_char,
    /// The shell's arguments for a file that is no program, with the second free for the file; `None` to fail instead.
    pub(super) shell_argv: Option<&'a mut Vec<*const c_char>>,
    pub(super) env: *const *const c_char,
    pub(super) dir: Option<&'a CStr>,
    pub(super) options: &'a SpawnOptions,
    /// The directory whose `cgroup.procs` it enters by, unless it was born there.
    pub(super) enters: Option<RawFd>,
    /// The pid that must still be the parent's once the parent-death signal is set.
    pub(super) parent: libc::pid_t,
    pub(super) moves: &'a mut [Move],
    /// The ranges of descriptors to close at exec, first and last.
    pub(super) close: &'a [(RawFd, RawFd)],
    /// The descriptors to close at exec one by one, where the kernel cannot close ranges.
    pub(super) stray: Option<&'a [RawFd]>,
    pub(super) report: *mut Report,
    /// Where the child waits for its parent to leave the session, right before it executes.
    pub(super) gate: Option<*const Gate>,
}

impl Order<'_> {
    /// Returns the flags of clone(2) for the namespaces that are made with the child.
    pub(super) fn namespace_flags(&self) -> libc::c_int {
        self.options.namespaces.as_ref().map_or(0, Namespaces::flags)
    }
}

/// One descriptor on its way from source to slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    /// Where it is now: the source, or a copy above all slots.
    from: RawFd,
    slot: RawFd,
    /// The lowest number that is free of slots, if the source must leave its own first.
    above: Option<RawFd>,
}

impl Move {
    /// Decides which sources must be copied away because another source is to take their number.
    ///
    /// # Errors
    /// [`Errno::BADF`] for negative numbers, [`Errno::INVAL`] for a slot that is named twice.
    pub(super) fn plan(fds: &[(RawFd, RawFd)]) -> Result<Vec<Move>> {
        let above = fds.iter().map(|(_, slot)| *slot).max().unwrap_or(0).saturating_add(1);
        let mut moves = Vec::with_capacity(fds.len());
        for (index, (source, slot)) in fds.iter().copied().enumerate() {
            if source < 0 || slot < 0 {
                return Err(Errno::BADF);
            }
            if fds.iter().skip(index + 1).any(|(_, other)| *other == slot) {
                return Err(Errno::INVAL);
            }
            // HAZARD(slot-overlap): its number is somebody else's slot, so it would be overwritten before it is read.
            let is_in_the_way = source != slot && fds.iter().any(|(_, other)| *other == source);
            moves.push(Move { from: source, slot, above: is_in_the_way.then_some(above) });
        }
        Ok(moves)
    }
}

/// Returns the ranges of descriptors from 3 on that are no slots.
pub(super) fn gaps(fds: &[(RawFd, RawFd)]) -> Vec<(RawFd, RawFd)> {
    let mut slots: Vec<RawFd> = fds.iter().map(|(_, slot)| *slot).collect();
    slots.sort_unstable();
    let mut gaps = Vec::with_capacity(slots.len() + 1);
    let mut first = 3;
    for slot in slots {
        if slot > first {
            gaps.push((first, slot - 1));
        }
        first = first.max(slot.saturating_add(1));
    }
    gaps.push((first, RawFd::MAX));
    gaps
}

/// Returns the open descriptors in the ranges, if the kernel cannot mark whole ranges; `None` if it can.
///
/// KERNEL(5.11): close_range(2) with CLOSE_RANGE_CLOEXEC. Without it the descriptors open now are marked one by one;
/// this branch may go when no kernel before 5.11 is supported.
pub(super) fn strays(ranges: &[(RawFd, RawFd)]) -> Result<Option<Vec<RawFd>>> {
    if ranges.is_empty() || close_at_exec(RawFd::MAX, RawFd::MAX).is_ok() {
        return Ok(None);
    }
    list_strays(ranges).map(Some)
}

fn list_strays(ranges: &[(RawFd, RawFd)]) -> Result<Vec<RawFd>> {
    let mut open = Vec::new();
    crate::procfs::numbers_in(&crate::procfs::ProcPath::new(crate::process::pid(), "/fd"), &mut open)?;
    open.retain(|descriptor| ranges.iter().any(|(first, last)| (first..=last).contains(&descriptor)));
    Ok(open)
}

/// Runs in the child, on its own stack; exits where it fails.
pub(super) extern "C" fn main(order: *mut c_void) -> libc::c_int {
    // SAFETY: the parent passes an `Order` that it lends until the child has left its memory.
    let order = unsafe { &mut *order.cast::<Order<'_>>() };
    // SAFETY: the place is mapped and ours alone until we exit. Volatile: the reader is another process.
    unsafe { order.report.write_volatile(Report { has_run: true, ..Report::default() }) };
    let Err((step, errno)) = run(order);
    let report = Report { step: step as i32, errno: errno.raw_os_error(), has_run: true };
    // SAFETY: the place is mapped and ours alone until we exit. Volatile: the reader is another process. _exit(2) runs
    // nothing of the parent's.
    unsafe {
        order.report.write_volatile(report);
        libc::_exit(127)
    }
}

/// Takes all steps; returns only if one failed.
fn run(order: &mut Order<'_>) -> std::result::Result<Infallible, (SpawnStep, Errno)> {
    let at = |step| move |errno| (step, errno);
    let options = order.options;
    if let Some(directory) = order.enters {
        // Before everything else: what it does from here on counts as the group's.
        enter(directory).map_err(at(SpawnStep::Cgroup))?;
    }
    if let Some(namespaces) = &options.namespaces {
        namespaces.map_user().map_err(at(SpawnStep::MapUser))?;
        isolate::mount_proc(namespaces).map_err(at(SpawnStep::MountProc))?;
    }
    dispositions(options.ignored).map_err(at(SpawnStep::Signals))?;
    // SAFETY: these calls take integers.
    unsafe {
        if options.new_session {
            call::check(libc::setsid()).map_err(at(SpawnStep::Session))?;
        } else if options.new_group {
            call::check(libc::setpgid(0, 0)).map_err(at(SpawnStep::Group))?;
        }
        if let Some(nice) = options.nice {
            call::check(libc::setpriority(libc::PRIO_PROCESS, 0, nice)).map_err(at(SpawnStep::Nice))?;
        }
    }
    descriptors(order).map_err(at(SpawnStep::Descriptors))?;
    if let Some(dir) = order.dir {
        // SAFETY: the string ends in NUL and is lent by the parent.
        call::retry(|| unsafe { libc::chdir(dir.as_ptr()) }).map_err(at(SpawnStep::Directory))?;
    }
    parent_death(order).map_err(at(SpawnStep::ParentDeath))?;
    // All dispositions are harmless by now: no handler of the parent's can run in its memory.
    crate::signal::change_mask(libc::SIG_SETMASK, options.mask);
    if let Some(gate) = order.gate {
        // SAFETY: it is mapped in the child as in the parent, which has it until the child has left its memory.
        unsafe { &*gate }.pass();
        // Who was to open it may have died, and a signal that is blocked or ignored is no end of ours.
        has_parent(order).map_err(at(SpawnStep::ParentDeath))?;
    }
    Err((SpawnStep::Exec, exec(order)))
}

/// Moves this process into the cgroup of an open directory: `0` stands for whoever writes it.
fn enter(directory: RawFd) -> Result<()> {
    // SAFETY: the strings end in NUL; the descriptor is open and closed once.
    unsafe {
        let flags = libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        let file = call::retry(|| libc::openat(directory, c"cgroup.procs".as_ptr(), flags))?;
        let entered = call::retry(|| libc::write(file, c"0".as_ptr().cast(), 1));
        libc::close(file);
        entered.map(drop)
    }
}

/// Ignores what is to be ignored and gives everything else its default action.
fn dispositions(ignored: SignalSet) -> Result<()> {
    for number in 1..=64 {
        let is_ignored = ignored.bits() & 1 << (number - 1) != 0;
        let handler = if is_ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        match crate::signal::set_handler(number, handler) {
            // KILL and STOP have no disposition; asking to ignore them is a mistake, leaving them alone is none.
            Err(Errno::INVAL) if matches!(number, libc::SIGKILL | libc::SIGSTOP) => {}
            set => set?,
        }
    }
    Ok(())
}

/// Puts the descriptors into their slots and marks all others, if asked to.
fn descriptors(order: &mut Order<'_>) -> Result<()> {
    for step in order.moves.iter_mut() {
        if let Some(above) = step.above {
            // SAFETY: this fcntl takes integers.
            step.from = call::check(unsafe { libc::fcntl(step.from, libc::F_DUPFD_CLOEXEC, above) })?;
        }
    }
    for step in order.moves.iter() {
        // SAFETY: these calls take integers. dup2(2) clears close-on-exec on the copy; a descriptor that is in its
        // slot already has no copy, and loses the flag by fcntl.
        unsafe {
            if step.from == step.slot {
                call::check(libc::fcntl(step.slot, libc::F_SETFD, 0))?;
            } else {
                call::retry(|| libc::dup2(step.from, step.slot))?;
            }
        }
    }
    for descriptor in order.stray.unwrap_or_default() {
        // SAFETY: this fcntl takes integers. The result is ignored: the descriptor was open in the parent a moment ago,
        // and one that is closed by now needs no mark.
        let _ = unsafe { libc::fcntl(*descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    if order.stray.is_none() {
        for (first, last) in order.close {
            close_at_exec(*first, *last)?;
        }
    }
    Ok(())
}

/// Marks a range of descriptors as close-on-exec (`close_range(2)`).
fn close_at_exec(first: RawFd, last: RawFd) -> Result<()> {
    // SAFETY: the call takes integers, and marks only.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    call::check(marked).map(drop)
}

/// Sets the parent-death signal and makes sure that there is a parent to die.
fn parent_death(order: &Order<'_>) -> Result<()> {
    let Some(signal) = order.options.parent_death else { return Ok(()) };
    let number = signal.number() as libc::c_ulong;
    // SAFETY: this prctl takes an integer.
    call::check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, number, 0, 0, 0) })?;
    // HAZARD(parent-death-signal-race): a parent that died before the call above is never reported.
    has_parent(order)
}

/// Fails where the parent is dead: its place was taken by an adopter, so the parent's number is another one.
fn has_parent(order: &Order<'_>) -> Result<()> {
    if crate::process::parent_pid() == order.parent { Ok(()) } else { Err(Errno::SRCH) }
}

/// Tries the candidates as execvp(3) does, and returns the error that it would.
fn exec(order: &mut Order<'_>) -> Errno {
    let mut is_denied = false;
    let mut last = Errno::NOENT;
    for candidate in order.candidates.iter().copied().take_while(|candidate| !candidate.is_null()) {
        // SAFETY: path, arguments and environment end as execve(2) wants them, and are lent by the parent.
        last = unsafe { execute(candidate, order.argv, order.env) };
        if let (Errno::NOEXEC, Some(shell_argv)) = (last, order.shell_argv.as_deref_mut()) {
            if let Some(place) = shell_argv.get_mut(1) {
                *place = candidate;
            }
            // SAFETY: as above; the shell's arguments end in null.
            last = unsafe { execute(c"/bin/sh".as_ptr(), shell_argv.as_ptr(), order.env) };
        }
        match last {
            // Somewhere else there may be one that we may execute; if not, this is the error worth telling.
            Errno::ACCESS => is_denied = true,
            Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::NODEV | Errno::TIMEDOUT => {}
            _ => return last,
        }
    }
    if is_denied { Errno::ACCESS } else { last }
}

/// Calls execve(2), which returns only where it fails.
///
/// # Safety
/// The path must end in NUL; both vectors must be pointers to such strings, ended by null.
unsafe fn execute(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> Errno {
    // SAFETY: as this function demands.
    unsafe { libc::execve(path, argv, env) };
    call::errno()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_sources_in_the_way_leave_their_number() {
        let moves = Move::plan(&[(3, 4), (4, 3), (9, 5), (6, 6), (9, 7)]).unwrap();
        let above: Vec<_> = moves.iter().map(|step| step.above).collect();
        assert_eq!(above, [Some(8), Some(8), None, None, None]);
        assert_eq!(Move::plan(&[]), Ok(vec![]));
    }

    #[test]
    fn impossible_slots_are_refused() {
        assert_eq!(Move::plan(&[(-1, 3)]), Err(Errno::BADF));
        assert_eq!(Move::plan(&[(3, -1)]), Err(Errno::BADF));
        assert_eq!(Move::plan(&[(3, 5), (4, 5)]), Err(Errno::INVAL));
    }

    #[test]
    fn gaps_are_what_the_slots_leave() {
        let end = RawFd::MAX;
        assert_eq!(gaps(&[]), [(3, end)]);
        assert_eq!(gaps(&[(9, 0), (9, 1), (9, 2)]), [(3, end)]);
        assert_eq!(gaps(&[(9, 7), (9, 3), (9, 4)]), [(5, 6), (8, end)]);
        assert_eq!(gaps(&[(9, 5)]), [(3, 4), (6, end)]);
    }

    #[test]
    fn open_descriptors_are_found_one_by_one() {
        let (read, write) = crate::files::pipe(0).unwrap();
        let (read, write) = (read.as_raw_fd(), write.as_raw_fd());
        let found = list_strays(&[(read, read)]).unwrap();
        assert_eq!(found, [read]);
        let found = list_strays(&gaps(&[(0, read)])).unwrap();
        assert!(found.contains(&write) && !found.contains(&read) && !found.contains(&2));
    }
}
