//! Descriptors: pipes, splicing, locks, memory files, private directories.
//!
//! Responsible for calls on files that `std` has not, or not with these guarantees. Every descriptor made here is
//! close-on-exec.

use std::ffi::CStr;
use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, MemfdFlags, Mode, OFlags};
use rustix::io::ReadWriteFlags;
use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::signal::Signal;
use crate::{Errno, Result, call, process, procfs};

/// `F_SETSIG` of `asm-generic/fcntl.h`, which the C library's bindings do not have for every machine.
const F_SETSIG: i32 = 10;
/// `F_GETSIG`, likewise.
const F_GETSIG: i32 = 11;
/// `F_SETOWN_EX`, likewise.
const F_SETOWN_EX: i32 = 15;
/// `F_GETOWN_EX`, likewise.
const F_GETOWN_EX: i32 = 16;
/// `F_OWNER_TID`, likewise: the kind of owner that a description has to which none was ever given.
const F_OWNER_TID: i32 = 0;

/// The size that is tried when a pipe may not have the size asked for.
const PIPE_FALLBACK: usize = 256 << 10;

/// Returns a pipe, read end first, that holds `bytes` if that is allowed, or else 256 KiB, or else the kernel's default.
///
/// The kernel rounds up to a power of two pages, and limits what all pipes of a user hold together; a smaller pipe is
/// no error.
pub fn pipe(bytes: usize) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    for size in [bytes, PIPE_FALLBACK.min(bytes)] {
        if rustix::pipe::fcntl_setpipe_size(&write, size).is_ok() {
            break;
        }
    }
    Ok((read, write))
}

/// Moves up to `max` bytes from a pipe to the end of what was written through `file`'s description so far, and returns
/// how many; 0 means that all writers are closed and the pipe is empty (`splice(2)`).
///
/// The offset is the one that all descriptors of the same open file description share, and the kernel takes from the
/// pipe exactly what it has written: who is killed in the middle neither loses nor doubles a byte. Does not block on
/// the pipe: [`Errno::AGAIN`] if it is empty. May block on the file's disk.
///
/// # Errors
/// [`Errno::INVAL`] for a file opened for appending, or in a file system without splicing; nothing was moved then.
pub fn splice_to_file(pipe: impl AsFd, file: impl AsFd, max: usize) -> Result<usize> {
    let (pipe, file) = (pipe.as_fd(), file.as_fd());
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    rustix::io::retry_on_intr(|| rustix::pipe::splice(pipe, None, file, None, max, flags))
}

/// Gives a pipe another size in bytes; what is in it stays (`F_SETPIPE_SZ`).
///
/// # Errors
/// [`Errno::PERM`] when the pipes of this user hold as much as they may; [`Errno::BUSY`] when more is in it than fits.
pub fn resize_pipe(pipe: impl AsFd, bytes: usize) -> Result<()> {
    rustix::pipe::fcntl_setpipe_size(pipe, bytes).map(drop)
}

/// Returns how many bytes wait in a pipe (`FIONREAD`).
pub fn pipe_fill(pipe: impl AsFd) -> Result<usize> {
    rustix::io::ioctl_fionread(pipe).map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Makes reads and writes of an open file description block or not block, for all who share it.
pub fn set_nonblocking(file: impl AsFd, is_nonblocking: bool) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(&file)?;
    let wanted = if is_nonblocking { flags | OFlags::NONBLOCK } else { flags - OFlags::NONBLOCK };
    if wanted == flags { Ok(()) } else { rustix::fs::fcntl_setfl(&file, wanted) }
}

/// The kernel's promise to signal us, from [`signal_when_readable`]; dropping it takes that back: nobody is signalled then.
#[derive(Debug)]
pub struct ReadableSignal {
    file: OwnedFd,
    signal_before: i32,
    owner_kind_before: i32,
}

impl AsFd for ReadableSignal {
    /// Borrows the descriptor that it keeps open for the giving back.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for ReadableSignal {
    fn drop(&mut self) {
        // A forked child drops its copy too, and somebody may have taken the description over: neither is ours to undo.
        if command(&self.file, libc::F_GETOWN, 0) != Ok(process::pid()) {
            return;
        }
        let _ = set_async(&self.file, false);
        let _ = command(&self.file, F_SETSIG, self.signal_before);
        // By F_SETOWN the kind would stay, and look as if somebody whom nobody sees here had asked.
        let _ = command_owner(&self.file, F_SETOWN_EX, Owner { kind: self.owner_kind_before, number: 0 });
    }
}

/// Lets the kernel send us a signal whenever this pipe, socket or terminal has something to read, its end included
/// (`F_SETSIG` in fcntl(2)), until what this returns is dropped.
///
/// All who share the open file description share this, and it has one owner: the first who asks is the one who hears.
/// Who is killed leaves flag and signal behind, and no owner: the kernel holds the process and not its number, so nobody
/// is signalled, and from Linux 5.12 on the next may ask.
///
/// HAZARD(no-number-here): an owner outside of our pid namespace looks as one that is dead, so in there the next may not:
/// what anybody has asked for is somebody's.
///
/// # Errors
/// [`Errno::BUSY`] where a process owns its signals or may, before Linux 5.12 even a dead one; [`Errno::NOTTY`] for a file
/// that never sends any, as a regular one; otherwise what fcntl(2) and ioctl(2) give.
pub fn signal_when_readable(file: impl AsFd, signal: Signal) -> Result<ReadableSignal> {
    let file = rustix::io::fcntl_dupfd_cloexec(file, 3)?;
    let owner = command_owner(&file, F_GETOWN_EX, Owner::default())?;
    let signal_before = command(&file, F_GETSIG, 0)?;
    let is_async = command(&file, libc::F_GETFL, 0)? & libc::O_ASYNC != 0;
    let was_asked_for = is_async || signal_before != 0 || owner.kind != F_OWNER_TID;
    if owner.number != 0 || (was_asked_for && !process::is_in_first_pid_namespace()) {
        return Err(Errno::BUSY);
    }
    command(&file, libc::F_SETOWN, process::pid())?;
    // From here on a failure is undone by the drop.
    let asked = ReadableSignal { file, signal_before, owner_kind_before: owner.kind };
    command(&asked.file, F_SETSIG, signal.number())?;
    set_async(&asked.file, true)?;
    Ok(asked)
}

/// `struct f_owner_ex` of fcntl(2).
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Owner {
    kind: i32,
    number: i32,
}

/// Does one of the two fcntl(2) commands that take an owner, and returns it as it is after that.
fn command_owner(file: &OwnedFd, command: i32, mut owner: Owner) -> Result<Owner> {
    // SAFETY: both commands take a pointer to this structure, which outlives the call; the descriptor is open as long as
    // `file`.
    call::check(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut owner) })?;
    Ok(owner)
}

/// Changes this one flag of the description: `F_SETFL` would undo what another sharer changes meanwhile.
fn set_async(file: &OwnedFd, is_on: bool) -> Result<()> {
    let is_on = libc::c_int::from(is_on);
    // SAFETY: FIOASYNC reads one integer, which outlives the call; the descriptor is open as long as `file`.
    call::check(unsafe { libc::ioctl(file.as_raw_fd(), libc::FIOASYNC, &raw const is_on) }).map(drop)
}

/// Does an fcntl(2) that takes a number, or nothing.
fn command(file: &OwnedFd, command: i32, argument: i32) -> Result<i32> {
    // SAFETY: the commands used here take a number and no pointer; the descriptor is open as long as `file`.
    call::check(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) })
}

/// Makes descriptor number `slot` (0, 1 or 2) another one for the same description as `file`, not close-on-exec.
///
/// # Errors
/// [`Errno::BADF`] for any other slot: who owns that number would not notice.
pub fn replace_stream(file: impl AsFd, slot: i32) -> Result<()> {
    match slot {
        0 => rustix::stdio::dup2_stdin(file),
        1 => rustix::stdio::dup2_stdout(file),
        2 => rustix::stdio::dup2_stderr(file),
        _ => Err(Errno::BADF),
    }
}

/// Closes every descriptor from 3 on but these, whoever opened it (`close_range(2)`).
///
/// For a process that inherited what only its child was to have: whoever waits for the end of a pipe must not wait for
/// us. Call it where `keep` is all that the process itself has opened: an owner that is forgotten finds its descriptor
/// closed, and later somebody else's.
///
/// # Errors
/// What the kernel says where it can neither close ranges nor list our descriptors; some may be closed then.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    match close_between(&kept) {
        // KERNEL(5.9): close_range(2); sandboxes refuse it with EPERM. What is open is closed one by one then; this branch
        // may go when no kernel before 5.9 is supported.
        Err(Errno::NOSYS | Errno::PERM) => close_listed(&kept),
        closed => closed,
    }
}

/// Closes what is listed in `/proc`, from 3 on, but the sorted `kept`.
fn close_listed(kept: &[u32]) -> Result<()> {
    let mut open = Vec::new();
    procfs::numbers_in(&procfs::ProcPath::new(process::pid(), "/fd"), &mut open)?;
    for descriptor in open.into_iter().filter(|open| *open >= 3) {
        if u32::try_from(descriptor).is_ok_and(|number| kept.binary_search(&number).is_err()) {
            // The result is ignored: the descriptor of the listing itself is closed already.
            // SAFETY: close(2) takes an integer. That nobody owns what it closes is the caller's word.
            let _ = unsafe { libc::close(descriptor) };
        }
    }
    Ok(())
}

/// Closes everything from 3 on but the sorted `kept`.
fn close_between(kept: &[u32]) -> Result<()> {
    let mut first = 3;
    for last in kept.iter().copied().chain([u32::MAX]) {
        if first < last {
            let end = if last == u32::MAX { last } else { last - 1 };
            // SAFETY: close_range(2) takes integers. That nobody owns what it closes is the caller's word.
            call::check(unsafe { libc::syscall(libc::SYS_close_range, first, end, 0) })?;
        }
        first = first.max(last.saturating_add(1));
    }
    Ok(())
}

/// Reads what is there, at most as much as `bytes` holds; 0 is the end (`read(2)`). Blocks as the description does.
pub fn read(file: impl AsFd, bytes: &mut [u8]) -> Result<usize> {
    rustix::io::read(file, bytes)
}

/// Reads what is there, as [`read`], and does not wait for more, whatever the description was opened as
/// (`RWF_NOWAIT` of `preadv2(2)`).
///
/// # Errors
/// [`Errno::AGAIN`] where nothing is there: another process that has the description may have been faster. Where the kernel
/// knows no such read for this kind of file (terminals; FIFOs and sockets before 5.10), it waits.
pub fn read_now(file: impl AsFd, bytes: &mut [u8]) -> Result<usize> {
    let file = file.as_fd();
    // The offset that means "where the description is", which pipes and sockets insist on.
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => read(file, bytes),
        result => result,
    }
}

/// Returns an empty file that lives in memory and has a name only for `/proc` (`memfd_create(2)`).
pub fn memfd(name: &CStr) -> Result<OwnedFd> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
}

/// Takes an exclusive lock on the open file description (`flock(2)`) and says whether it was free. Does not block.
///
/// The lock belongs to the description, which forked and passed descriptors share: it is free when the last of them is
/// closed. It is never unlocked explicitly, because that would unlock it for all of them
/// (HAZARD(shared-lock)).
pub fn lock_exclusive(file: impl AsFd) -> Result<bool> {
    lock(file.as_fd(), FlockOperation::NonBlockingLockExclusive)
}

/// Takes a shared lock, as [`lock_exclusive`] does, and says whether nobody has an exclusive one.
pub fn lock_shared(file: impl AsFd) -> Result<bool> {
    lock(file.as_fd(), FlockOperation::NonBlockingLockShared)
}

fn lock(file: BorrowedFd<'_>, operation: FlockOperation) -> Result<bool> {
    match rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens `/dev/null` for reading and writing.
pub fn dev_null() -> Result<OwnedFd> {
    open(c"/dev/null", OFlags::RDWR)
}

/// Opens the controlling terminal for reading and writing.
///
/// # Errors
/// [`Errno::NXIO`] if there is none.
pub fn open_tty() -> Result<OwnedFd> {
    open(c"/dev/tty", OFlags::RDWR | OFlags::NOCTTY)
}

fn open(path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    rustix::io::retry_on_intr(|| rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()))
}

/// Why a directory cannot be trusted with what is ours alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirError {
    /// The path names something else: a file, or a symbolic link, wherever that leads.
    NotADirectory,
    /// It belongs to another user.
    Owner {
        /// Whom it belongs to.
        owner: u32,
    },
    /// Others may read, search or write it.
    Mode {
        /// Its permission bits.
        mode: u32,
    },
    /// The kernel refused a call.
    System(Errno),
}

impl fmt::Display for DirError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DirError::NotADirectory => out.write_str("not a directory, or a symbolic link"),
            DirError::Owner { owner } => write!(out, "owned by user {owner}"),
            DirError::Mode { mode } => write!(out, "open to other users (mode {mode:04o}, wanted 0700)"),
            DirError::System(errno) => errno.fmt(out),
        }
    }
}

impl std::error::Error for DirError {}

impl From<DirError> for Errno {
    /// Gives the error number that comes nearest, for callers that only pass errors on.
    fn from(error: DirError) -> Errno {
        match error {
            DirError::NotADirectory => Errno::NOTDIR,
            DirError::Owner { .. } | DirError::Mode { .. } => Errno::PERM,
            DirError::System(errno) => errno,
        }
    }
}

impl From<Errno> for DirError {
    fn from(errno: Errno) -> DirError {
        DirError::System(errno)
    }
}

/// Creates a directory that only we may use, or opens it and verifies that, and returns it.
///
/// The last component must be no symbolic link; the path above it is the caller's affair. An existing directory is
/// never changed, only refused.
pub fn dir_private(path: &Path) -> std::result::Result<OwnedFd, DirError> {
    let owner_only = Mode::RWXU;
    let is_new = match rustix::fs::mkdirat(CWD, path, owner_only) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(errno.into()),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::io::retry_on_intr(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))
        .map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => DirError::NotADirectory,
            errno => DirError::System(errno),
        })?;
    // What counts is the directory that was opened; the name may point elsewhere by now.
    let found = rustix::fs::fstat(&directory)?;
    if found.st_uid != crate::process::effective_user() {
        return Err(DirError::Owner { owner: found.st_uid });
    }
    if is_new {
        // A umask may have taken bits from what was asked for.
        rustix::fs::fchmod(&directory, owner_only)?;
    } else if found.st_mode & 0o077 != 0 {
        return Err(DirError::Mode { mode: found.st_mode & 0o7777 });
    }
    Ok(directory)
}
