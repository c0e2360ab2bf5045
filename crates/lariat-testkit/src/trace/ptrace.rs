//! ptrace(2), call by call, for threads that were seized.

use std::io;

/// Everything that a seized thread is asked to stop for.
const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC;

/// Whether a thread is about to make a system call or has made one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    /// It is about to make the one with this number.
    Entry(u64),
    /// It has made one.
    Exit,
    /// Neither.
    None,
}

/// Why a thread stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// At a system call.
    Call(Call),
    /// It made this thread or process.
    Born(i32),
    /// It executed a program.
    Executed,
    /// Job control stopped it.
    Group,
    /// Because it is new, or was interrupted by us, or for an event that nobody looks at.
    Plain,
    /// This signal is about to be delivered.
    Signal(libc::c_int),
}

fn call(request: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
    // SAFETY: none of the requests made here writes through a pointer.
    let result = unsafe { libc::ptrace(request, tid, std::ptr::null_mut::<libc::c_void>(), data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Begins to trace a process, without stopping it.
pub(super) fn seize(pid: i32) -> io::Result<()> {
    call(libc::PTRACE_SEIZE, pid, usize::try_from(OPTIONS).unwrap_or_default())
}

/// Makes a thread stop.
pub(super) fn interrupt(tid: i32) -> io::Result<()> {
    call(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Lets a stopped thread go on to its next system call, with this signal (0 for none).
pub(super) fn go_on(tid: i32, signal: libc::c_int) -> io::Result<()> {
    call(libc::PTRACE_SYSCALL, tid, usize::try_from(signal).unwrap_or_default())
}

/// Leaves a thread in its group's stop, to be told when that is over.
pub(super) fn listen(tid: i32) -> io::Result<()> {
    call(libc::PTRACE_LISTEN, tid, 0)
}

/// Lets a stopped thread go for good, with this signal (0 for none).
pub(super) fn detach(tid: i32, signal: libc::c_int) -> io::Result<()> {
    call(libc::PTRACE_DETACH, tid, usize::try_from(signal).unwrap_or_default())
}

/// Says why a thread stopped, from what waitpid(2) gave.
pub(super) fn why(tid: i32, status: libc::c_int) -> Stop {
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
            message(tid).map_or(Stop::Plain, Stop::Born)
        }
        libc::PTRACE_EVENT_EXEC => Stop::Executed,
        // A new or interrupted thread says TRAP; any other signal here is one of job control.
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Plain,
        libc::PTRACE_EVENT_STOP => Stop::Group,
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Call(system_call(tid)),
        0 => Stop::Signal(signal),
        _ => Stop::Plain,
    }
}

fn message(tid: i32) -> Option<i32> {
    let mut number: libc::c_ulong = 0;
    // SAFETY: the kernel writes one unsigned long through the pointer, which is valid.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETEVENTMSG,
            tid,
            std::ptr::null_mut::<libc::c_void>(),
            (&raw mut number).cast::<libc::c_void>(),
        )
    };
    if result < 0 { None } else { i32::try_from(number).ok() }
}

fn system_call(tid: i32) -> Call {
    // SAFETY: an all-zero value is valid.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most as many bytes as it is told there is room for.
    let got = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            tid,
            size_of::<libc::ptrace_syscall_info>(),
            (&raw mut info).cast::<libc::c_void>(),
        )
    };
    if got < 0 {
        return Call::None;
    }
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: `op` says that the kernel has filled in this variant.
            Call::Entry(unsafe { info.u.entry.nr })
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => Call::Exit,
        _ => Call::None,
    }
}

/// A clock that interrupts the calling thread's waits again and again, until it is dropped.
pub(super) struct Ticks(libc::timer_t);

impl Ticks {
    /// Starts it.
    pub(super) fn start() -> Self {
        extern "C" fn nothing(_: libc::c_int) {}
        let signal = libc::SIGRTMIN() + 5;
        let every = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let when = libc::itimerspec { it_interval: every, it_value: every };
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: all-zero values are valid, what matters is set. The handler does nothing, and is installed without
        // SA_RESTART: it is there to interrupt. All pointers outlive the calls.
        let is_armed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(libc::c_int) = nothing;
            action.sa_sigaction = handler as usize;
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::gettid();
            libc::sigaction(signal, &raw const action, std::ptr::null_mut()) == 0
                && libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) == 0
                && libc::timer_settime(timer, 0, &raw const when, std::ptr::null_mut()) == 0
        };
        assert!(is_armed, "the kernel has timers");
        Self(timer)
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is not used again.
        unsafe { libc::timer_delete(self.0) };
    }
}
