//! Signals: their names, sets of them, masks, dispositions, and receiving them by descriptor.
//!
//! Responsible for the calling process's own side of signals, and for process groups. To signal one process, use
//! [`PidFd`](crate::pidfd::PidFd). Installs no handlers but one that does nothing: signals are received
//! through [`SignalFd`] or [`wait`].

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::{Errno, Result, call};

mod names;

pub use names::{ParseSignalError, Signal};

/// A set of signals, in the kernel's own form: signal `n` is bit `n - 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SignalSet(u64);

impl SignalSet {
    /// Returns the set without members.
    pub const fn empty() -> SignalSet {
        SignalSet(0)
    }

    /// Returns the set of all signals. In a mask the kernel leaves KILL and STOP out by itself.
    pub const fn full() -> SignalSet {
        SignalSet(u64::MAX)
    }

    /// Takes the kernel's form.
    pub const fn from_bits(bits: u64) -> SignalSet {
        SignalSet(bits)
    }

    /// Returns the kernel's form.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns this set with one more member.
    pub const fn with(self, signal: Signal) -> SignalSet {
        SignalSet(self.0 | 1 << (signal.number() - 1))
    }

    /// Returns this set with one member fewer.
    pub const fn without(self, signal: Signal) -> SignalSet {
        SignalSet(self.0 & !(1 << (signal.number() - 1)))
    }

    /// Says whether the signal is a member.
    pub const fn contains(self, signal: Signal) -> bool {
        self.0 & 1 << (signal.number() - 1) != 0
    }

    /// Says whether the set has no members.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the members, ascending.
    pub fn iter(self) -> impl Iterator<Item = Signal> {
        (1..=64).filter_map(Signal::from_number).filter(move |signal| self.contains(*signal))
    }
}

impl FromIterator<Signal> for SignalSet {
    fn from_iter<I: IntoIterator<Item = Signal>>(signals: I) -> SignalSet {
        signals.into_iter().fold(SignalSet::empty(), SignalSet::with)
    }
}

/// The size of the kernel's signal set in bytes, which the raw calls ask for.
const SET_SIZE: usize = size_of::<SignalSet>();

/// Signals 32 and 33, which the C library keeps for itself: blocking them would hang `setuid` in a threaded program.
const RESERVED: u64 = 0b11 << 31;

/// Blocks these signals in the calling thread besides those that are blocked, and returns the mask before.
pub fn block(signals: SignalSet) -> SignalSet {
    change_mask(libc::SIG_BLOCK, SignalSet(signals.0 & !RESERVED))
}

/// Makes these the signals that the calling thread blocks, and returns the mask before.
pub fn set_mask(signals: SignalSet) -> SignalSet {
    change_mask(libc::SIG_SETMASK, SignalSet(signals.0 & !RESERVED))
}

/// Returns the signals that the calling thread blocks.
pub fn mask() -> SignalSet {
    change_mask(libc::SIG_BLOCK, SignalSet::empty())
}

/// Makes these the signals that the calling thread blocks, the C library's own included.
pub(crate) fn change_mask(how: libc::c_int, signals: SignalSet) -> SignalSet {
    let mut before = SignalSet::empty();
    // SAFETY: both pointers are to sets of the size given. The call cannot fail with them and a valid `how`.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const signals, &raw mut before, SET_SIZE);
    }
    before
}

/// A signal's disposition in the kernel's own form, as far as it is needed without a handler: the handler comes first,
/// and flags, restorer and mask are zero, so their order, which differs between machines, does not matter.
#[repr(C)]
struct Action {
    handler: usize,
    rest: [usize; 4],
}

/// Sets one disposition to `SIG_DFL` or `SIG_IGN` by a raw call: fit for a child that shares our memory, and for the
/// signals that the C library refuses.
pub(crate) fn set_handler(number: libc::c_int, handler: libc::sighandler_t) -> Result<()> {
    let action = Action { handler, rest: [0; 4] };
    let none: *mut Action = std::ptr::null_mut();
    // SAFETY: the kernel reads an action that is at least as long as its own structure and runs no handler of ours.
    call::check(unsafe { libc::syscall(libc::SYS_rt_sigaction, number, &raw const action, none, SET_SIZE) })
        .map(drop)
}

/// Says whether the process ignores this signal.
pub fn disposition_is_ignored(signal: Signal) -> bool {
    let none: *const Action = std::ptr::null();
    let mut action = Action { handler: 0, rest: [0; 4] };
    // SAFETY: the kernel writes a structure that is no longer than `Action`.
    let asked =
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal.number(), none, &raw mut action, SET_SIZE) };
    asked == 0 && action.handler == libc::SIG_IGN
}

/// Returns all signals that the process ignores: right at its start, those that it was told to ignore by its parent.
pub fn ignored() -> SignalSet {
    SignalSet::full().iter().filter(|signal| disposition_is_ignored(*signal)).collect()
}

/// Gives a signal its default action.
///
/// # Errors
/// [`Errno::INVAL`] for KILL and STOP, which have no other.
pub fn set_default(signal: Signal) -> Result<()> {
    set_handler(signal.number(), libc::SIG_DFL)
}

/// Makes the process ignore a signal. Children inherit that, over exec too.
///
/// # Errors
/// [`Errno::INVAL`] for KILL and STOP.
pub fn set_ignored(signal: Signal) -> Result<()> {
    set_handler(signal.number(), libc::SIG_IGN)
}

/// Makes the process catch a signal and do nothing about it: calls that it interrupts are repeated.
///
/// # Errors
/// [`Errno::INVAL`] for KILL and STOP.
pub fn set_noted(signal: Signal) -> Result<()> {
    // SAFETY: an all-zero `sigaction` is valid: an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = note as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the action lives for the call, and its handler does nothing at all.
    call::check(unsafe { libc::sigaction(signal.number(), &raw const action, std::ptr::null_mut()) })
        .map(drop)
}

extern "C" fn note(_signal: libc::c_int) {}

/// Takes one of these signals, which the calling thread blocks; `None` once the deadline has passed.
///
/// Needs no descriptor (`sigtimedwait(2)`). Without a deadline it waits without end.
pub fn wait(signals: SignalSet, deadline: Option<Instant>) -> Option<Signal> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let time = left.map(|left| libc::timespec {
            tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(left.subsec_nanos().cast_signed()),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let none: *mut libc::siginfo_t = std::ptr::null_mut();
        // SAFETY: the set and the time live for the call, and the set has the size given.
        let taken = unsafe {
            libc::syscall(libc::SYS_rt_sigtimedwait, std::ptr::from_ref(&signals), none, time, SET_SIZE)
        };
        match call::check(taken) {
            Ok(number) => return Signal::from_number(number as i32),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// A timer of the kernel that sends the process a signal (`timer_create(2)`), also while it is stopped. Neither forked nor
/// executed programs have it; dropping it ends it.
#[derive(Debug)]
pub struct Timer(libc::c_int);

impl Timer {
    /// Makes a timer that is not armed.
    ///
    /// # Errors
    /// As the kernel says: [`Errno::AGAIN`] where it has none to give.
    pub fn new(signal: Signal) -> Result<Timer> {
        // SAFETY: an all-zero `sigevent` is valid; what matters is set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = signal.number();
        let mut number: libc::c_int = 0;
        // SAFETY: both outlive the call. The kernel's own call numbers timers by integers, unlike the C library's.
        call::check(unsafe {
            libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut number)
        })?;
        Ok(Timer(number))
    }

    /// Lets it fire after this time, and again each time that it has passed; what was set before is forgotten.
    ///
    /// It fires again only once the signal was received: one that stays pending is the last.
    ///
    /// # Errors
    /// None that is known.
    pub fn arm(&self, every: Duration) -> Result<()> {
        let every = libc::timespec {
            tv_sec: libc::time_t::try_from(every.as_secs()).unwrap_or(libc::time_t::MAX),
            // A time of zero would disarm it.
            tv_nsec: libc::c_long::from(every.subsec_nanos().max(1).cast_signed()),
        };
        let when = libc::itimerspec { it_interval: every, it_value: every };
        let no_old: *mut libc::itimerspec = std::ptr::null_mut();
        // SAFETY: the time outlives the call.
        call::check(unsafe { libc::syscall(libc::SYS_timer_settime, self.0, 0, &raw const when, no_old) })
            .map(drop)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the number is of a timer that we made, and nobody uses it after this.
        unsafe { libc::syscall(libc::SYS_timer_delete, self.0) };
    }
}

/// A signal that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Which one.
    pub signal: Signal,
    /// Who sent it; 0 if the kernel did, or somebody outside of our pid namespace.
    pub sender_pid: i32,
    /// The sender's real user.
    pub sender_user: u32,
    /// How it was caused (`si_code` of `sigaction(2)`).
    pub code: i32,
    /// Whether the kernel sent it by itself: typed on the terminal (INT, QUIT, TSTP), or a hang-up of it (HUP).
    pub is_typed: bool,
    /// For CHLD, the child's exit code or signal. Not to be relied on: several are merged into one.
    pub status: i32,
}

impl Received {
    /// Says whether a process sent it, and not the kernel by itself. The kernel's parent-death signal counts as sent by
    /// that parent: nothing tells the two apart.
    #[must_use]
    pub fn is_from_process(&self) -> bool {
        self.code <= 0
    }
}

/// A queue of signals (`signalfd(2)`), non-blocking and close-on-exec.
///
/// It receives only what the reading process blocks: [`block`] the same set, in every thread. Signals that come several
/// times before they are read are received once. Dropping it leaves the mask alone.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Opens a queue for these signals.
    pub fn new(signals: SignalSet) -> Result<SignalFd> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set lives for the call and has the size given.
        let opened = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const signals, SET_SIZE, flags) };
        let descriptor = call::check(opened)?;
        // SAFETY: the kernel has just opened it for us, and nobody else knows it.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(descriptor as libc::c_int) }))
    }

    /// Takes the next signal, or `None` if there is none now. Does not block.
    pub fn read(&self) -> Result<Option<Received>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes at most `size` bytes to `info`, which has room for them.
        let read = call::retry(|| unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) });
        match read {
            Ok(length) if length as usize == size => {}
            Ok(_) => return Err(Errno::BADMSG),
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        // SAFETY: the kernel has written the whole structure.
        let info = unsafe { info.assume_init() };
        Ok(Some(Received {
            signal: Signal::from_number(info.ssi_signo as i32).ok_or(Errno::BADMSG)?,
            sender_pid: info.ssi_pid as i32,
            sender_user: info.ssi_uid,
            code: info.ssi_code,
            is_typed: info.ssi_code == libc::SI_KERNEL,
            status: info.ssi_status,
        }))
    }
}

impl AsFd for SignalFd {
    /// Borrows the descriptor: it is readable while a signal waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ends the process by this signal, so that our parent sees us die of it, without a core dump.
///
/// Where the signal does not end a process by default, exits with 128 plus its number.
pub fn raise_to_death(signal: Signal) -> ! {
    // The four results are ignored: each call makes the death more faithful, and the exit below is certain.
    let _ = set_default(signal);
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit lives for the call. The prctl takes an integer. A core limit of 0 does not hold back a dump
    // that core_pattern pipes to a program; not being dumpable does.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    change_mask(libc::SIG_UNBLOCK, SignalSet::empty().with(signal));
    // SAFETY: raise(3) takes an integer. It signals the calling thread, where the signal is not blocked, so death
    // comes before the return.
    unsafe { libc::raise(signal.number()) };
    crate::process::exit_now((128 + signal.number()) as u8)
}

/// Stops the calling process by the default action of this signal, and returns when it is continued.
///
/// Its disposition and the thread's mask are restored then. In an orphaned process group the kernel drops TSTP, TTIN and
/// TTOU, and this returns at once.
///
/// # Errors
/// [`Errno::INVAL`] for a signal that does not stop.
pub fn stop_self(signal: Signal) -> Result<()> {
    if signal == Signal::STOP {
        // SAFETY: raise(3) takes an integer.
        return call::check(unsafe { libc::raise(signal.number()) }).map(drop);
    }
    stop_self_if(signal, || true)
}

/// Does what [`stop_self`] does if `is_wanted` says so, without a gap between the look and the stop: the signal is
/// pending by then, and a CONT that comes later takes it away again.
///
/// # Errors
/// [`Errno::INVAL`] for any signal but TSTP, TTIN and TTOU.
pub fn stop_self_if(signal: Signal, is_wanted: impl FnOnce() -> bool) -> Result<()> {
    if !matches!(signal, Signal::TSTP | Signal::TTIN | Signal::TTOU) {
        return Err(Errno::INVAL);
    }
    let only = SignalSet::empty().with(signal);
    let mask = change_mask(libc::SIG_BLOCK, only);
    let before = exchange_action(signal, &Action { handler: libc::SIG_DFL, rest: [0; 4] });
    // SAFETY: raise(3) takes an integer. The signal waits until it is unblocked, and stops us there.
    let raised = call::check(unsafe { libc::raise(signal.number()) });
    if !is_wanted() {
        // Ignoring a signal takes a pending one away.
        let _ = exchange_action(signal, &Action { handler: libc::SIG_IGN, rest: [0; 4] });
    }
    change_mask(libc::SIG_UNBLOCK, only);
    change_mask(libc::SIG_SETMASK, mask);
    if let Ok(before) = &before {
        exchange_action(signal, before)?;
    }
    before.and(raised).map(drop)
}

/// Sets what a signal does and returns what it did. A handler comes only from an earlier call's result.
fn exchange_action(signal: Signal, action: &Action) -> Result<Action> {
    let mut before = Action { handler: 0, rest: [0; 4] };
    // SAFETY: both pointers are to structures that are no shorter than the kernel's, and the action is one of the two
    // constants or what the kernel itself wrote for an owner of this program.
    call::check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal.number(),
            std::ptr::from_ref(action),
            &raw mut before,
            SET_SIZE,
        )
    })?;
    Ok(before)
}
