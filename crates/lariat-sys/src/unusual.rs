//! Calls that programs under supervision make and lariat itself never does: odd ways to be born, to share, to hide.
//!
//! Responsible for building the process trees of a drill without unsafe code there. Nothing of lariat's own work goes
//! through here. Handles no hazard; it makes them.

use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::signal::{Signal, Timer};
use crate::{Errno, Result, call};

/// How a forked process is related to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    /// As `fork(2)` does.
    Usual,
    /// A child of our parent, a sibling of ours (`CLONE_PARENT`).
    Sibling,
    /// Its end sends no signal, so that only waits with `__WALL` or `__WCLONE` see it.
    Silent,
    /// Its end sends its parent URG in place of CHLD, with the same consequence.
    OddSignal,
    /// Its parent sleeps in the kernel until it has ended or executed a program (`CLONE_VFORK`).
    ParentWaits,
}

impl Birth {
    fn flags(self) -> libc::c_int {
        match self {
            Birth::Usual => libc::SIGCHLD,
            Birth::Sibling => libc::CLONE_PARENT | libc::SIGCHLD,
            Birth::Silent => 0,
            Birth::OddSignal => libc::SIGURG,
            Birth::ParentWaits => libc::CLONE_VFORK | libc::SIGCHLD,
        }
    }
}

/// Copies the calling process, which must have one thread: `None` in the child, its number in the parent.
///
/// Unlike [`fork_alone`](crate::spawn::fork_alone) it names nobody, so it works in pid namespaces without a `/proc` of
/// their own. The number is right in our own namespace only.
///
/// # Errors
/// [`Errno::BUSY`] where there are more threads; otherwise as the kernel says.
pub fn fork(birth: Birth) -> Result<Option<i32>> {
    if !crate::spawn::has_one_thread()? {
        return Err(Errno::BUSY);
    }
    let forked = match birth {
        // SAFETY: this is the only thread, so the child may do whatever the parent may.
        Birth::Usual => call::check(unsafe { libc::fork() })?,
        // SAFETY: without CLONE_VM and with no stack given, the child runs on in a copy of everything, as after fork(2).
        // The C library's own record of the thread's number is stale in the child; nothing here depends on it.
        _ => call::check(unsafe { libc::syscall(libc::SYS_clone, birth.flags(), 0, 0, 0, 0) })? as i32,
    };
    Ok((forked > 0).then_some(forked))
}

/// How large the stack of a process that shares our memory is, in bytes.
const SHARED_STACK: usize = 64 * 1024;

/// Starts a process that shares our memory and nothing else (`CLONE_VM`), and that lives until a signal or `within` ends
/// it. Returns its number.
///
/// # Errors
/// As the kernel says.
pub fn share_memory(within: Duration) -> Result<i32> {
    // Given up for good: the other process runs on it, and may outlive whatever would give it back.
    let stack = Box::leak(vec![0_u128; SHARED_STACK / size_of::<u128>()].into_boxed_slice());
    let within: &'static Duration = Box::leak(Box::new(within));
    let top = stack.as_mut_ptr_range().end.cast();
    // SAFETY: the stack is ours, aligned to 16 bytes, leaked, and used by nobody else. `sharer` makes system calls only,
    // and none that fails, since a failure would write the errno of the thread that is shared.
    let made = unsafe {
        libc::clone(sharer, top, libc::CLONE_VM | libc::SIGCHLD, std::ptr::from_ref(within).cast_mut().cast())
    };
    call::check(made)
}

extern "C" fn sharer(within: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the caller leaked it.
    let within = unsafe { *within.cast::<Duration>() };
    // Unbounded it would be only where the kernel has no timer to give; then it dies with a signal as the others do.
    let _ = die_after(within);
    loop {
        // SAFETY: pause(2) takes nothing. No handler is installed by this crate that could return from it.
        unsafe { libc::pause() };
    }
}

/// Makes the kernel end this process by KILL when the time is over, whatever it does. Neither fork nor exec hands it on.
///
/// # Errors
/// As the kernel says; there is no timer then.
pub fn die_after(time: Duration) -> Result<()> {
    let timer = Timer::new(Signal::KILL)?;
    timer.arm(time)?;
    // For the life of the process.
    let _ = std::mem::ManuallyDrop::new(timer);
    Ok(())
}

/// What a process has a namespace of its own of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Users: it becomes root of its own, which an ordinary user needs for the other two.
    pub user: bool,
    /// Pids: its *next* child is the first process there.
    pub pid: bool,
    /// Mounts.
    pub mount: bool,
}

/// Leaves namespaces for new ones (`unshare(2)`).
///
/// # Errors
/// [`Errno::PERM`], [`Errno::NOSPC`] or [`Errno::INVAL`] where that is not allowed here.
pub fn unshare(what: Namespaces) -> Result<()> {
    let flag = |is_wanted, flag| if is_wanted { flag } else { 0 };
    let flags = flag(what.user, libc::CLONE_NEWUSER)
        | flag(what.pid, libc::CLONE_NEWPID)
        | flag(what.mount, libc::CLONE_NEWNS);
    // SAFETY: unshare(2) takes an integer; none of these flags touches memory or descriptors.
    call::check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Joins the pid namespace that the children of a process are in (`setns(2)`): our *next* child is born there. An ordinary
/// user has to join that process's user namespace as well, which must be one that this user has made.
///
/// # Errors
/// [`Errno::NOENT`] where no such process can be seen; [`Errno::PERM`] where that is not allowed here.
pub fn join(pid: i32, user: bool) -> Result<()> {
    let open = |name: &str| {
        let path = format!("/proc/{pid}/ns/{name}");
        rustix::fs::open(
            path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
    };
    // Opened before any is joined: after that the files may be somebody else's.
    let (users, pids) = (user.then(|| open("user")).transpose()?, open("pid_for_children")?);
    let kinds = [(users.as_ref(), libc::CLONE_NEWUSER), (Some(&pids), libc::CLONE_NEWPID)];
    for (namespace, kind) in kinds.into_iter().filter_map(|(namespace, kind)| Some((namespace?, kind))) {
        // SAFETY: setns(2) takes two integers, the first an open descriptor.
        call::check(unsafe { libc::setns(namespace.as_raw_fd(), kind) })?;
    }
    Ok(())
}

/// Mounts a `/proc` of the pid namespace that we are in. Needs a mount namespace of our own, whose mounts are made
/// private first: nobody else may see it.
///
/// # Errors
/// As `mount(2)`.
pub fn mount_proc() -> Result<()> {
    let none: *const libc::c_void = std::ptr::null();
    // SAFETY: the strings end in NUL; the kernel reads no data.
    unsafe {
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        call::check(libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), flags, none))?;
        call::check(libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, none)).map(drop)
    }
}

/// Becomes the tracer of a process and stops it there (`PTRACE_SEIZE` and `PTRACE_INTERRUPT`). It goes on when we end.
///
/// # Errors
/// As `ptrace(2)`: [`Errno::PERM`] where that is not allowed here.
pub fn trace(pid: i32) -> Result<()> {
    let none: *mut libc::c_void = std::ptr::null_mut();
    // SAFETY: neither request reads or writes our memory.
    unsafe {
        call::check(libc::ptrace(libc::PTRACE_SEIZE, pid, none, none))?;
        call::check(libc::ptrace(libc::PTRACE_INTERRUPT, pid, none, none)).map(drop)
    }
}

/// When the calling process runs, compared with all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduling {
    /// Only when nobody else wants to (`SCHED_IDLE`).
    WhenIdle,
    /// Before everybody who is not real-time as well (`SCHED_FIFO`).
    RealTime,
}

/// Chooses when the calling process, which must have one thread, runs (`sched_setscheduler(2)`). A fork hands it on.
///
/// # Errors
/// [`Errno::PERM`] where that is not allowed here.
pub fn schedule(when: Scheduling) -> Result<()> {
    let (policy, priority) = match when {
        Scheduling::WhenIdle => (libc::SCHED_IDLE, 0),
        Scheduling::RealTime => (libc::SCHED_FIFO, 1),
    };
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads one `sched_param`, which lives until the call is over.
    call::check(unsafe { libc::sched_setscheduler(0, policy, &raw const param) }).map(drop)
}

/// Ends the calling thread while the other threads of the process go on. Its stack stays as it is.
///
/// # Errors
/// Returns at all only in a thread that is not the main one, of whose stack others would dispose: [`Errno::INVAL`].
pub fn end_main_thread() -> Errno {
    let is_main = rustix::thread::gettid() == rustix::process::getpid();
    if is_main {
        // SAFETY: exit(2) of the thread alone. The main thread's stack is the process's, and nobody frees it.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    Errno::INVAL
}

/// Closes every descriptor of the process, the standard ones included (`close_range(2)`).
///
/// Call it where nothing that owns a descriptor is used afterwards.
///
/// # Errors
/// [`Errno::NOSYS`] before Linux 5.9; nothing is closed then.
pub fn close_everything() -> Result<()> {
    // SAFETY: close_range(2) takes integers. That nobody misses what it closes is the caller's word.
    call::check(unsafe { libc::syscall(libc::SYS_close_range, 0_u32, u32::MAX, 0_u32) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_threaded_process_is_not_copied() {
        // The test harness has more threads than this one.
        assert_eq!(fork(Birth::Silent), Err(Errno::BUSY));
    }

    #[test]
    fn only_the_main_thread_ends_alone() {
        assert_eq!(std::thread::spawn(end_main_thread).join().unwrap(), Errno::INVAL);
    }

    #[test]
    fn who_shares_our_memory_is_a_process_and_ends_in_time() {
        let pid = share_memory(Duration::from_millis(20)).unwrap();
        let identity = Identity::of(pid).unwrap().unwrap();
        let pidfd = crate::pidfd::PidFd::open(identity).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        assert_eq!(pidfd.wait_exit(Some(deadline)), Ok(true));
        crate::reap::reap(pid).unwrap();
    }
}
