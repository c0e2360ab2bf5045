//! What a process says about itself: its session, its name, its arguments, its end.
//!
//! Responsible for calls on the calling process as a whole. Signals are in [`signal`](crate::signal).

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use rustix::process::Pid;

use crate::signal::Signal;
use crate::{Result, call};

/// Returns the calling process's pid.
pub fn pid() -> i32 {
    // SAFETY: getpid(2) has no preconditions and cannot fail.
    unsafe { libc::getpid() }
}

/// Returns the parent's pid: 0 if the parent is outside of our pid namespace, the adopter's if the parent is dead.
pub fn parent_pid() -> i32 {
    // SAFETY: getppid(2) has no preconditions and cannot fail.
    unsafe { libc::getppid() }
}

/// Returns the calling process's session; `None` for one that has no number here: its leader is outside of our pid
/// namespace.
pub fn session() -> Option<i32> {
    // HAZARD(no-number-here): getsid(2) and getpgid(2) return 0 for what has no number in the caller's pid namespace
    // (pid_namespaces(7)), which rustix takes for a pid.
    // SAFETY: getsid(2) has no preconditions.
    Some(unsafe { libc::getsid(0) }).filter(|session| *session > 0)
}

/// Returns the calling process's process group; `None` for one that has no number here: its leader is outside of our
/// pid namespace.
pub fn group() -> Option<i32> {
    // SAFETY: getpgid(2) has no preconditions.
    Some(unsafe { libc::getpgid(0) }).filter(|group| *group > 0)
}

/// Says whether we are in the pid namespace that the machine began with, in which everybody has a number; not where `/proc`
/// does not say so.
pub fn is_in_first_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO` of the kernel's `include/linux/proc_ns.h`, which is the same on every machine.
    const FIRST: u64 = 0xEFFF_FFFC;
    // The field's width is not the same on every machine.
    #[allow(clippy::useless_conversion, reason = "it is one on some machines")]
    rustix::fs::stat(c"/proc/self/ns/pid").is_ok_and(|found| u64::from(found.st_ino) == FIRST)
}

/// Returns the effective user id.
pub fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Makes the calling process adopt orphaned descendants, or stop doing so (`PR_SET_CHILD_SUBREAPER`, `prctl(2)`).
///
/// The setting is the process's, not the thread's; forked children do not inherit it; it lasts over exec.
pub fn set_subreaper(is_on: bool) -> Result<()> {
    // SAFETY: this prctl takes an integer and no pointer.
    call::check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(is_on), 0, 0, 0) })
        .map(drop)
}

/// Makes the kernel send us this signal when the thread that made us ends (`PR_SET_PDEATHSIG`, `prctl(2)`).
///
/// A parent that is gone already is never reported: look for that afterwards. Children do not inherit it.
pub fn set_parent_death(signal: Signal) -> Result<()> {
    let number = signal.number() as libc::c_ulong;
    // SAFETY: this prctl takes an integer and no pointer.
    call::check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, number, 0, 0, 0) }).map(drop)
}

/// Starts a session of our own, without a terminal (`setsid(2)`).
///
/// # Errors
/// [`Errno::PERM`](crate::Errno::PERM) for a leader of a process group.
pub fn setsid() -> Result<()> {
    rustix::process::setsid().map(drop)
}

/// Returns the process group in front of this terminal: `Some(None)` for one that has no number here, since its leader
/// is outside of our pid namespace; `None` for what is not our terminal (`tcgetpgrp(3)`).
fn front(terminal: BorrowedFd<'_>) -> Option<Option<i32>> {
    // SAFETY: tcgetpgrp(3) has no preconditions.
    let group = unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) };
    (group >= 0).then_some((group > 0).then_some(group))
}

/// Says whether our process group is the one in front of this terminal. If both are without a number here, they are
/// taken for one: a namespace is entered from a terminal by the command in front of it.
pub fn is_in_front(terminal: impl AsFd) -> bool {
    front(terminal.as_fd()).is_some_and(|front| front == group())
}

/// Puts our process group in front of this terminal if the group that is there has no members any more. The caller
/// blocks TTOU, or is stopped for asking from behind.
///
/// # Errors
/// As tcsetpgrp(3) says, for instance [`Errno::NOTTY`](crate::Errno::NOTTY) for one that is not ours.
pub fn come_to_front(terminal: impl AsFd) -> Result<()> {
    // Groups without a number here can neither be looked for nor be named.
    let (Some(Some(front)), Some(group)) = (front(terminal.as_fd()), group().and_then(Pid::from_raw)) else {
        return Ok(());
    };
    let Some(front) = Pid::from_raw(front) else { return Ok(()) };
    match rustix::process::test_kill_process_group(front) {
        Err(crate::Errno::SRCH) => rustix::termios::tcsetpgrp(terminal, group),
        _ => Ok(()),
    }
}

/// Sets the calling thread's name; in the main thread that is the process's name, as `ps` and `killall` know it.
///
/// The kernel keeps 15 bytes of it; what is longer is cut, at a character's border.
pub fn set_comm(name: &str) -> Result<()> {
    let mut comm = [0_u8; 16];
    let end = name.floor_char_boundary(name.len().min(15));
    for (to, from) in comm.iter_mut().zip(name.bytes().take(end)) {
        *to = from;
    }
    // SAFETY: the kernel reads up to 16 bytes or the first NUL from `comm`, which is that long and ends in NUL.
    call::check(unsafe { libc::prctl(libc::PR_SET_NAME, comm.as_ptr(), 0, 0, 0) }).map(drop)
}

/// Where the argument strings lie that the kernel laid out at exec; null until [`remember_argv`].
static ARGUMENTS: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());
/// Their length in bytes, the last NUL included.
static ARGUMENTS_LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Remembers where the process's arguments lie, for [`overwrite_argv`].
///
/// # Safety
/// `argc` and `argv` must be what `main` was given, and the memory that they name must not be read or written by other
/// threads while [`overwrite_argv`] runs.
pub unsafe fn remember_argv(argc: c_int, argv: *const *const c_char) {
    if argc < 1 || argv.is_null() {
        return;
    }
    // SAFETY: `argv` has `argc` elements, as main's caller promises.
    let first = unsafe { *argv };
    let mut end = first;
    for index in 0..argc as usize {
        // SAFETY: `index` is below `argc`.
        let argument = unsafe { *argv.add(index) };
        if argument.is_null() || argument != end {
            // Somebody rearranged the vector: only the strings that follow one another are surely ours.
            break;
        }
        // SAFETY: arguments are strings that end in NUL.
        let length = unsafe { CStr::from_ptr(argument) }.to_bytes_with_nul().len();
        // SAFETY: one past the string, at most one past the argument area.
        end = unsafe { argument.add(length) };
    }
    // `end` is `first` plus the lengths, so the difference is their sum.
    ARGUMENTS_LENGTH.store(end.addr() - first.addr(), Ordering::Relaxed);
    ARGUMENTS.store(first.cast_mut(), Ordering::Release);
}

/// Returns the first argument, the name that we were started by; `None` until [`remember_argv`].
pub fn first_argument() -> Option<&'static [u8]> {
    let area = ARGUMENTS.load(Ordering::Acquire);
    if area.is_null() {
        return None;
    }
    // SAFETY: the area begins with the first argument, ends in NUL, and lives as long as the process.
    Some(unsafe { CStr::from_ptr(area) }.to_bytes())
}

/// Overwrites what `/proc/PID/cmdline` shows of us, so that `pkill -f COMMAND` does not take us for the command.
///
/// Cuts what does not fit. `std::env::args` shows the overwritten text from then on. Returns `false`, having done
/// nothing, where [`remember_argv`] was not called.
pub fn overwrite_argv(text: &str) -> bool {
    let area = ARGUMENTS.load(Ordering::Acquire);
    let length = ARGUMENTS_LENGTH.load(Ordering::Relaxed);
    if area.is_null() || length == 0 {
        return false;
    }
    // The last byte stays NUL: the kernel takes anything else for a sign to read on into the environment.
    let kept = text.floor_char_boundary(text.len().min(length - 1));
    // SAFETY: the area was measured by `remember_argv`, is writable by the kernel's design (setproctitle(3) rests on
    // it), and nobody else uses it, as the caller of `remember_argv` promised.
    unsafe {
        area.cast::<u8>().copy_from(text.as_ptr(), kept);
        area.add(kept).write_bytes(0, length - kept);
    }
    true
}

/// Ends the process at once, without destructors, exit handlers or flushing (`_exit(2)`).
pub fn exit_now(code: u8) -> ! {
    // SAFETY: _exit(2) has no preconditions and does not return.
    unsafe { libc::_exit(c_int::from(code)) }
}

/// Returns how many descriptors the process may have open now (the soft `RLIMIT_NOFILE`); `None` is no limit.
pub fn open_files_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Fills `bytes` with random bytes from the kernel (`getrandom(2)`).
///
/// Blocks only in a system that has just booted and has no entropy yet.
pub fn fill_random(mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel writes at most `bytes.len()` bytes to `bytes`.
        let filled = call::retry(|| unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) })?;
        bytes = bytes.get_mut(filled as usize..).unwrap_or_default();
    }
    Ok(())
}

unsafe extern "C" {
    /// Where the executable's read-only part begins in memory; defined by the linker.
    static __executable_start: u8;
    /// Where its code ends; defined by the linker.
    static etext: u8;
}

/// Unmaps the pages of our own executable that starting up has touched (`madvise(2)`, `MADV_DONTNEED`).
///
/// They stay in the page cache and come back one by one as they are run again. For a process that will sleep for long:
/// what it did at its start does not count as its memory then. Does nothing where the kernel refuses.
pub fn forget_startup_pages() {
    let page = rustix::param::page_size();
    let (start, end) = ((&raw const __executable_start).addr(), (&raw const etext).addr());
    let (first, last) = (start.next_multiple_of(page), end / page * page);
    if first < last {
        // SAFETY: the range is the file-backed read-only and executable part of this program, which nothing writes; a
        // page that is dropped is read from the same file again when it is touched.
        let _ = unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(first), last - first, libc::MADV_DONTNEED)
        };
    }
}

/// Defines the program's `main` as the C library calls it, which remembers its arguments ([`remember_argv`]) and returns
/// what the named function, of type `fn() -> i32`, returns.
///
/// For a crate with `#![no_main]`. The standard library's own `main` ignores SIGPIPE for everything that is started
/// from the program, and costs time before a keeper, which is the same executable, gets to its entry.
#[macro_export]
macro_rules! entry_point {
    ($start:path) => {
        /// The entry that the C library calls. Returning from it ends the process with the code.
        // SAFETY: this is the only symbol `main` of the program, since `no_main` leaves out the compiler's own, and it
        // has the type that the C library calls.
        #[unsafe(no_mangle)]
        extern "C" fn main(argc: std::ffi::c_int, argv: *const *const std::ffi::c_char) -> std::ffi::c_int {
            // SAFETY: these are the arguments of `main`, and there is no other thread yet.
            unsafe { $crate::process::remember_argv(argc, argv) };
            $start()
        }
    };
}
