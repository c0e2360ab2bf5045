//! Starts a process, with everything about it decided before (`clone(2)`, `execve(2)`).
//!
//! Responsible for giving the new program exactly the session, signals, descriptors and directory that were asked for,
//! and for saying which step failed otherwise. Does not wait for it, and knows no defaults of lariat.
//!
//! The child is made as posix_spawn(3) makes it: it shares the parent's memory and the parent sleeps until it has
//! called exec. That is fast whatever the parent's size, but the child must not touch anything that it could break.
//! Handles HAZARD(child-in-our-memory), HAZARD(parent-death-signal-race), HAZARD(slot-overlap),
//! HAZARD(vfork-stall).

use std::ffi::{CString, c_char};
use std::fmt;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::identity::Identity;
use crate::pidfd::PidFd;
use crate::signal::{Signal, SignalSet};
use crate::{Errno, Result, call};

mod child;
mod gate;
mod isolate;
mod memory;
mod path;

use child::{Move, Order, Report};
use gate::Gate;
pub use isolate::{Namespaces, fork_isolated};
use memory::ChildMemory;

/// What is to be executed.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The file to execute; `None` is the first of `argv`.
    pub file: Option<CString>,
    /// The arguments, the name first.
    pub argv: Vec<CString>,
    /// The whole environment, each `NAME=value`.
    pub env: Vec<CString>,
    /// The directory to start in; `None` is our own.
    pub dir: Option<CString>,
    /// Whether to do as execvp(3) does: look for a file without a slash along the `PATH` of `env`, and give a text file
    /// that no `#!` explains to `/bin/sh`.
    pub search_path: bool,
}

/// How the new process is to differ from us. The default: a child in our session and group, with our directory, that
/// ignores and blocks no signal and inherits what is not close-on-exec.
#[derive(Clone, Debug, Default)]
pub struct SpawnOptions {
    /// Whether it leads a session, and therefore a group, of its own.
    pub new_session: bool,
    /// Whether it leads a process group of its own.
    pub new_group: bool,
    /// The signals that it blocks.
    pub mask: SignalSet,
    /// The signals that it ignores; all others have their default action.
    pub ignored: SignalSet,
    /// The signal that the kernel sends it when the *thread* that spawns it ends (`PR_SET_PDEATHSIG`).
    pub parent_death: Option<Signal>,
    /// Its descriptors: each source becomes the slot of that number. Sources and slots may overlap in any way.
    pub fds: Vec<(RawFd, RawFd)>,
    /// Whether all other descriptors from 3 on are closed, also those that are not close-on-exec.
    pub close_others: bool,
    /// Its nice value, from -20 to 19; `None` is ours.
    pub nice: Option<i32>,
    /// The directory of the cgroup that it is born in ([`crate::cgroup::Cgroup`]).
    pub cgroup: Option<RawFd>,
    /// Whether the *caller* starts a session of its own (`setsid(2)`) once the child was born in the one of before, and
    /// before it executes anything. The caller stays where it leads a group, or can have no thread to do that.
    pub leaves_session: bool,
    /// The namespaces that are made for it: it is number 1 there, and `/proc` shows that.
    pub namespaces: Option<Namespaces>,
}

/// The step at which a spawn failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum SpawnStep {
    /// Preparing the call: no arguments, or memory for the child.
    Prepare = 1,
    /// Making the process.
    Clone = 2,
    /// Starting its session.
    Session = 3,
    /// Starting its group.
    Group = 4,
    /// Setting the parent-death signal, or the parent was gone by then.
    ParentDeath = 5,
    /// Setting the nice value.
    Nice = 6,
    /// Putting the descriptors in place.
    Descriptors = 7,
    /// Setting dispositions of signals.
    Signals = 8,
    /// Entering its directory.
    Directory = 9,
    /// Executing the program.
    Exec = 10,
    /// Reading the identity of the process; it was killed again.
    Identity = 11,
    /// Entering its cgroup.
    Cgroup = 12,
    /// Making namespaces.
    Namespaces = 13,
    /// Making its user known in a user namespace.
    MapUser = 14,
    /// Mounting `/proc` of its pid namespace.
    MountProc = 15,
}

impl SpawnStep {
    const ALL: [SpawnStep; 15] = [
        SpawnStep::Prepare,
        SpawnStep::Clone,
        SpawnStep::Session,
        SpawnStep::Group,
        SpawnStep::ParentDeath,
        SpawnStep::Nice,
        SpawnStep::Descriptors,
        SpawnStep::Signals,
        SpawnStep::Directory,
        SpawnStep::Exec,
        SpawnStep::Identity,
        SpawnStep::Cgroup,
        SpawnStep::Namespaces,
        SpawnStep::MapUser,
        SpawnStep::MountProc,
    ];

    /// Returns the step of this number, as a message between processes carries it.
    pub fn from_number(number: i32) -> Option<SpawnStep> {
        SpawnStep::ALL.into_iter().find(|step| *step as i32 == number)
    }

    /// Returns its number.
    pub fn number(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for SpawnStep {
    /// Completes the sentence "could not …".
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            SpawnStep::Prepare => "prepare the process",
            SpawnStep::Clone => "make a process",
            SpawnStep::Session => "start a session",
            SpawnStep::Group => "start a process group",
            SpawnStep::ParentDeath => "set the parent-death signal",
            SpawnStep::Nice => "set the nice value",
            SpawnStep::Descriptors => "put descriptors in place",
            SpawnStep::Signals => "set signal dispositions",
            SpawnStep::Directory => "enter the directory",
            SpawnStep::Exec => "execute the program",
            SpawnStep::Identity => "read the identity of the process",
            SpawnStep::Cgroup => "enter the cgroup",
            SpawnStep::Namespaces => "make a pid namespace",
            SpawnStep::MapUser => "map the user in a user namespace",
            SpawnStep::MountProc => "mount /proc in a pid namespace",
        })
    }
}

/// A process could not be started. None is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpawnError {
    /// What was being done.
    pub step: SpawnStep,
    /// What the kernel said.
    pub errno: Errno,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "could not {}: {}", self.step, self.errno)
    }
}

impl std::error::Error for SpawnError {}

/// A child that was started. Dropping it closes the descriptor; the process goes on and remains to be reaped.
#[derive(Debug)]
pub struct Child {
    /// Its number, which is its own until it is reaped.
    pub pid: i32,
    /// Its identity.
    pub identity: Identity,
    /// A descriptor of it.
    pub pidfd: PidFd,
}

/// Starts a process and returns once it has taken on its program, so that nothing can fail any more.
///
/// HAZARD(exec-not-finished): for a moment after that the kernel still closes its close-on-exec descriptors and lays out
/// its arguments: a look into `/proc` may find the former there and the latter empty.
///
/// Blocks for as long as the kernel takes to execute it: a program on a dead network file system can hold up the calling
/// thread (HAZARD(vfork-stall)). The process must not ignore CHLD, or the child could be gone before it is named.
///
/// # Errors
/// The first step that failed; the process is gone and reaped then.
pub fn spawn(program: &Program, options: &SpawnOptions) -> std::result::Result<Child, SpawnError> {
    let (pid, descriptor) = start(program, options, How::usual())?;
    let pidfd = PidFd::from_owned(descriptor);
    // The child is unreaped, so its number cannot be anybody else's.
    match Identity::of(pid) {
        Ok(Some(identity)) => {
            let identity = identity.with_inode(pidfd.inode());
            Ok(Child { pid, identity, pidfd })
        }
        unknown => {
            // A process that cannot be named cannot be looked after. Killing our own unreaped child cannot hit a
            // stranger, and the error that matters is the one below.
            let _ = pidfd.signal(Signal::KILL);
            collect(pid);
            Err(SpawnError { step: SpawnStep::Identity, errno: unknown.err().unwrap_or(Errno::SRCH) })
        }
    }
}

/// What a spawn takes from its surroundings, so that the tests can choose other ones.
#[derive(Clone, Copy)]
struct How {
    /// The ways to make a child, in order; the next one is taken where the kernel does not know one.
    ways: &'static [libc::c_int],
    /// The pid that the child must have as its parent.
    parent: i32,
}

impl How {
    fn usual() -> How {
        How { ways: &WAYS, parent: crate::process::pid() }
    }
}

/// The child in our memory; and a copy, slower and otherwise the same, for sandboxes that emulate a kernel and refuse to
/// share memory between processes. In both the parent sleeps until the child has executed its program. The same again
/// without a descriptor from the clone itself, where a sandbox refuses that.
const WAYS: [libc::c_int; 4] = [
    libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD,
    libc::CLONE_VFORK | libc::CLONE_PIDFD,
    libc::CLONE_VM | libc::CLONE_VFORK,
    libc::CLONE_VFORK,
];

/// Clones the child and lets it run until it has executed the program or failed.
fn start(
    program: &Program,
    options: &SpawnOptions,
    how: How,
) -> std::result::Result<(i32, OwnedFd), SpawnError> {
    let failure = |step| move |errno| SpawnError { step, errno };
    let prepare = failure(SpawnStep::Prepare);
    let file = program.file.as_ref().or(program.argv.first()).ok_or(Errno::INVAL).map_err(prepare)?;
    let candidates = match program.search_path {
        true => path::candidates(file, &program.env).map_err(failure(SpawnStep::Exec))?,
        false => vec![file.clone()],
    };
    let candidates = pointers(&candidates);
    let argv = pointers(&program.argv);
    // What execvp(3) runs for a text file without `#!`: the shell, the file in place of argv[0], the other arguments.
    let shell = c"/bin/sh";
    let mut shell_argv = vec![shell.as_ptr(), std::ptr::null()];
    shell_argv.extend(argv.iter().skip(1));
    if shell_argv.len() == 2 {
        shell_argv.push(std::ptr::null());
    }
    let env = pointers(&program.env);
    let mut moves = Move::plan(&options.fds).map_err(failure(SpawnStep::Descriptors))?;
    let close = if options.close_others { child::gaps(&options.fds) } else { Vec::new() };
    let stray = child::strays(&close).map_err(failure(SpawnStep::Descriptors))?;
    let mut memory = ChildMemory::new().map_err(prepare)?;
    let mut order = Order {
        candidates: &candidates,
        argv: argv.as_ptr(),
        shell_argv: program.search_path.then_some(&mut shell_argv),
        env: env.as_ptr(),
        dir: program.dir.as_deref(),
        options,
        enters: None,
        parent: how.parent,
        moves: &mut moves,
        close: &close,
        stray: stray.as_deref(),
        report: memory.report(),
        gate: None,
    };
    let gate: *const Gate = memory.gate();
    let cloned = match options.leaves_session {
        // SAFETY: the memory is mapped until this function returns.
        true => gate::attended(unsafe { &*gate }, |is_attended| {
            order.gate = is_attended.then_some(gate);
            clone(how.ways, &mut memory, &mut order)
        }),
        false => clone(how.ways, &mut memory, &mut order),
    };
    let step = if options.namespaces.is_some() { SpawnStep::Namespaces } else { SpawnStep::Clone };
    let (pid, descriptor) = cloned.map_err(failure(step))?;
    match memory.report_text() {
        None => Ok((pid, descriptor)),
        Some(Report { step, errno, .. }) => {
            collect(pid);
            Err(SpawnError {
                step: SpawnStep::from_number(step).unwrap_or(SpawnStep::Exec),
                errno: Errno::from_raw_os_error(errno),
            })
        }
    }
}

/// Makes the child and sleeps until it has executed a program or exited.
fn clone(ways: &[libc::c_int], memory: &mut ChildMemory, order: &mut Order<'_>) -> Result<(i32, OwnedFd)> {
    // HAZARD(child-in-our-memory): a handler that runs in the child would change the parent's memory. Everything is
    // blocked, the signals of the C library included, until the child has made all dispositions harmless.
    let mask = crate::signal::change_mask(libc::SIG_SETMASK, SignalSet::full());
    let cloned = match order.options.cgroup {
        Some(directory) => clone_into(directory, memory, order).or_else(|_| {
            order.enters = Some(directory);
            clone_by(ways, memory, order)
        }),
        None => clone_by(ways, memory, order),
    };
    crate::signal::change_mask(libc::SIG_SETMASK, mask);
    cloned
}

/// Takes the first way that the kernel knows.
fn clone_by(ways: &[libc::c_int], memory: &mut ChildMemory, order: &mut Order<'_>) -> Result<(i32, OwnedFd)> {
    let mut cloned = Err(Errno::NOSYS);
    for way in ways {
        cloned = clone_with(*way, memory, order);
        if !matches!(cloned, Err(Errno::INVAL | Errno::NOSYS | Errno::PERM)) {
            break;
        }
    }
    // HAZARD(refused-call): a kernel that does not know CLONE_PIDFD starts the child without saying so. It is not started
    // again in another way.
    match cloned? {
        (pid, Some(descriptor)) => Ok((pid, descriptor)),
        (pid, None) => descriptor_of(pid),
    }
}

/// Makes a child that is born in a cgroup (`clone3(2)`, `CLONE_INTO_CGROUP`): a copy of us, since only a call written in
/// assembler could give it our memory, and a stack of its own, by `clone3`. Whoever starts services is small.
///
/// HAZARD(cgroup-entry-stall): a child that enters by itself waits for a grace period of the kernel's, up to tens of
/// milliseconds; one that is born there does not.
///
/// # Errors
/// Anything: it is one way of two, and what matters is what the other one says.
fn clone_into(directory: RawFd, memory: &mut ChildMemory, order: &mut Order<'_>) -> Result<(i32, OwnedFd)> {
    // KERNEL(5.7): CLONE_INTO_CGROUP, of linux/sched.h. Before, the child enters by itself.
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut descriptor: libc::c_int = -1;
    // SAFETY: all fields are numbers, for which zero is "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = libc::CLONE_VFORK | libc::CLONE_PIDFD | order.namespace_flags();
    args.flags = INTO_CGROUP | u64::from(flags.cast_unsigned());
    args.exit_signal = libc::SIGCHLD as u64;
    args.pidfd = (&raw mut descriptor) as u64;
    args.cgroup = u64::try_from(directory).map_err(|_| Errno::BADF)?;
    // SAFETY: the child is a copy with one thread, on a copy of this stack, and goes straight into `child::main`, which
    // makes system calls only and never returns. The kernel writes `descriptor` in our memory before it returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if pid == 0 {
        child::main((&raw mut *order).cast());
    }
    let pid = i32::try_from(call::check(pid)?).map_err(|_| Errno::BADMSG)?;
    if descriptor < 0 {
        return Err(Errno::NOSYS);
    }
    // SAFETY: the kernel has opened it for us (CLONE_PIDFD, close-on-exec), and nobody else knows it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    if !memory.has_run() {
        // HAZARD(cgroup-killed-once): the kernel took it for one that was to be killed with a cgroup of ours that was
        // killed before, and killed it before its first instruction.
        collect(pid);
        return Err(Errno::INTR);
    }
    Ok((pid, descriptor))
}

/// Makes the child in one way. Gives no descriptor where none was asked for, or the kernel does not know the flag.
fn clone_with(
    flags: libc::c_int,
    memory: &mut ChildMemory,
    order: &mut Order<'_>,
) -> Result<(i32, Option<OwnedFd>)> {
    let mut descriptor: libc::c_int = -1;
    // SAFETY: the stack is mapped, is used by nobody else, and outlives the child's use of it: with CLONE_VFORK this
    // thread sleeps until the child has left our memory. `order` is likewise borrowed until then. `child::main` makes
    // system calls only and never returns. The kernel writes `descriptor` through the pointer before it returns.
    let pid = unsafe {
        libc::clone(
            child::main,
            memory.stack_top(),
            flags | order.namespace_flags() | libc::SIGCHLD,
            (&raw mut *order).cast(),
            // Read by the kernel for CLONE_PIDFD alone.
            &raw mut descriptor,
        )
    };
    let pid = call::check(pid)?;
    // SAFETY: the kernel has opened it for us (CLONE_PIDFD, close-on-exec), and nobody else knows it.
    let descriptor = (descriptor >= 0).then(|| unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok((pid, descriptor))
}

/// Opens a child whose clone gave no descriptor.
///
/// KERNEL(5.2): CLONE_PIDFD. The number is our own unreaped child's, so nobody else can have it, unless another thread
/// of the program reaps whatever ends. This branch may go when no sandbox refuses the flag.
fn descriptor_of(pid: i32) -> Result<(i32, OwnedFd)> {
    PidFd::open_pid(pid).map(|opened| (pid, opened.into())).inspect_err(|_| {
        // A process without a descriptor cannot be looked after. The result is ignored: it may have ended by itself.
        // SAFETY: kill(2) takes two integers; the number is that of our own unreaped child.
        let _ = unsafe { libc::kill(pid, libc::SIGKILL) };
        collect(pid);
    })
}

/// Reaps a child that is dead or about to be. Blocks for the moment between its leaving our memory and its end.
fn collect(pid: i32) {
    let mut status = 0;
    // The result is ignored: where CHLD is ignored, or another part of the program reaps everything, ECHILD says that
    // it was reaped already.
    // SAFETY: the pointer is to a live integer.
    let _ = call::retry(|| unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) });
}

/// Returns the pointers to the strings, ended by a null one, as execve(2) wants them.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// A child that [`fork`] made, as the parent sees it.
pub type Forked = Child;

/// Copies the calling process (`fork(2)`): `None` in the child, the child in the parent.
///
/// # Errors
/// As the kernel says; also if the child cannot be named, and then it was killed.
///
/// # Safety
/// The process must have one thread only: in the copy all others are missing, with whatever locks they held.
pub unsafe fn fork() -> Result<Option<Forked>> {
    // SAFETY: the caller promises that there is one thread.
    let pid = call::check(unsafe { libc::fork() })?;
    if pid == 0 {
        return Ok(None);
    }
    // The child is unreaped, so its number cannot be anybody else's.
    match PidFd::of(pid).and_then(|named| named.ok_or(Errno::SRCH)) {
        Ok((pidfd, identity)) => Ok(Some(Child { pid, identity, pidfd })),
        Err(errno) => {
            // SAFETY: kill(2) takes two integers; the number is that of our own unreaped child.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            collect(pid);
            Err(errno)
        }
    }
}

/// As [`fork`], for a process that has one thread; checked, so no caller has to promise it.
///
/// # Errors
/// [`Errno::BUSY`] where there are more threads; otherwise as [`fork`].
pub fn fork_alone() -> Result<Option<Forked>> {
    if !has_one_thread()? {
        return Err(Errno::BUSY);
    }
    // SAFETY: this is the only thread, and only it could start another.
    unsafe { fork() }
}

/// Says whether the calling process has one thread only.
pub(crate) fn has_one_thread() -> Result<bool> {
    // A task directory has two links of its own and one for each thread.
    Ok(rustix::fs::stat("/proc/self/task")?.st_nlink.saturating_sub(2) == 1)
}

/// Slots that [`inherit`] gave out, a bit each.
static INHERITED: AtomicU64 = AtomicU64::new(0);

/// Takes a descriptor that our parent placed in this slot (3 to 63) by [`SpawnOptions::fds`], if it is open, and makes
/// it close-on-exec. Each slot can be taken once.
///
/// Call it before anything in the process opens descriptors: what is found in a slot is taken for the parent's.
pub fn inherit(slot: RawFd) -> Option<OwnedFd> {
    let bit = u32::try_from(slot).ok().filter(|slot| (3..64).contains(slot)).map(|slot| 1_u64 << slot)?;
    // SAFETY: fcntl(2) with F_SETFD takes integers, and fails for a descriptor that is not open.
    if unsafe { libc::fcntl(slot, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    if INHERITED.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return None;
    }
    // SAFETY: the descriptor is open, the parent put it there for us by the caller's word, and the bit says that
    // nobody was given it before.
    Some(unsafe { OwnedFd::from_raw_fd(slot) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reap::{self, Exit};

    fn shell(script: &str) -> Program {
        let words = ["/bin/sh", "-c", script];
        Program { argv: words.map(|word| CString::new(word).unwrap()).to_vec(), ..Program::default() }
    }

    fn exit(program: &Program, options: &SpawnOptions, how: How) -> std::result::Result<Exit, SpawnError> {
        let (pid, descriptor) = start(program, options, how)?;
        assert_eq!(PidFd::from_owned(descriptor).wait_exit(None), Ok(true));
        Ok(reap::reap(pid).unwrap().unwrap().0)
    }

    #[test]
    fn every_way_starts_programs_and_reports_failures() {
        let options = SpawnOptions { new_session: true, ..SpawnOptions::default() };
        for way in WAYS.chunks(1) {
            let how = How { ways: way, ..How::usual() };
            assert_eq!(exit(&shell("exit 7"), &options, how), Ok(Exit::Code(7)));
            let missing = Program { file: Some(c"/missing".to_owned()), ..shell("") };
            let error = SpawnError { step: SpawnStep::Exec, errno: Errno::NOENT };
            assert_eq!(exit(&missing, &options, how), Err(error));
            assert_eq!(reap::peek(), Err(Errno::CHILD), "a failed spawn left a child");
        }
    }

    #[test]
    fn a_way_that_the_kernel_refuses_is_passed_over() {
        // CLONE_SIGHAND without CLONE_VM is invalid by definition.
        let how = How { ways: &[libc::CLONE_SIGHAND, WAYS[0]], ..How::usual() };
        assert_eq!(exit(&shell("exit 3"), &SpawnOptions::default(), how), Ok(Exit::Code(3)));
        let how = How { ways: &[libc::CLONE_SIGHAND], ..How::usual() };
        let error = SpawnError { step: SpawnStep::Clone, errno: Errno::INVAL };
        assert_eq!(exit(&shell(""), &SpawnOptions::default(), how), Err(error));
    }

    #[test]
    fn a_parent_that_is_gone_is_noticed() {
        // As if the parent had died before the child set its parent-death signal: its parent is somebody else now.
        let how = How { parent: crate::process::pid() + 1, ..How::usual() };
        let options = SpawnOptions { parent_death: Some(Signal::TERM), ..SpawnOptions::default() };
        let error = SpawnError { step: SpawnStep::ParentDeath, errno: Errno::SRCH };
        assert_eq!(exit(&shell(""), &options, how), Err(error));
    }

    #[test]
    fn steps_have_one_number_each() {
        for step in SpawnStep::ALL {
            assert_eq!(SpawnStep::from_number(step.number()), Some(step));
        }
        for number in [i32::MIN, -1, 0, SpawnStep::ALL.len() as i32 + 1, i32::MAX] {
            assert_eq!(SpawnStep::from_number(number), None);
        }
    }
}
