//! Reads what `/proc/PID` says of a process (`proc(5)`).
//!
//! Responsible for turning the kernel's text into values, whatever bytes a process put into it. Does not search: that is
//! [`tree`](crate::tree). A process that vanishes, at whatever moment, is `None` and no error
//! (HAZARD(vanishing-process)).

use std::ffi::{CStr, OsString};
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};

use crate::identity::Identity;
use crate::poll::poll;
use crate::signal::SignalSet;
use crate::{Errno, Result};

mod descriptors;
mod text;

pub use descriptors::{Open, has_locked, visit_descriptors};
pub use text::{Comm, State};

/// The most bytes of a `cmdline`, `environ` or `status` that are read; the kernel's own limit for arguments and
/// environment together is 6 MiB. What is beyond is cut.
pub const TEXT_MAX: usize = 8 << 20;

/// How long a process may be in the middle of execve(2) before it counts as one without an environment. The kernel is
/// done in less than a millisecond, unless it has to wait for the program's file.
pub const EXEC_WITHIN: Duration = Duration::from_millis(20);
/// The pause between two looks at it.
const EXEC_AGAIN: Duration = Duration::from_micros(200);

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its number.
    pub pid: i32,
    /// The name of its main thread.
    pub comm: Comm,
    /// The state of its main thread: [`Stat::is_alive`] says whether the process lives.
    pub state: State,
    /// Its parent; 0 for a parent outside of our pid namespace.
    pub ppid: i32,
    /// Its process group.
    pub pgrp: i32,
    /// Its session.
    pub session: i32,
    /// The device number of its terminal, or 0.
    pub tty_nr: i32,
    /// The foreground process group of its terminal, or -1.
    pub tty_pgrp: i32,
    /// Processor time in its own code, in clock ticks.
    pub utime: u64,
    /// Processor time in the kernel, in clock ticks.
    pub stime: u64,
    /// Its nice value, from -20 to 19.
    pub nice: i32,
    /// How many threads it has.
    pub threads: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
    /// Its virtual size in bytes.
    pub vsize: u64,
    /// Its resident pages.
    pub rss_pages: u64,
}

impl Stat {
    /// Returns the identity of the process that this describes, without its inode.
    pub fn identity(&self) -> Identity {
        Identity::new(self.pid, self.start)
    }

    /// Says whether the process runs, in any state but that of a zombie.
    pub fn is_alive(&self) -> bool {
        // HAZARD(zombie-main-thread): a main thread that ended before the others is shown as a zombie, and the process
        // lives on in them.
        !matches!(self.state, State::Zombie | State::Dead) || self.threads > 1
    }
}

/// Returns what `/proc/PID/stat` says; `None` if there is no such process. Allocates nothing.
pub fn read_stat(pid: i32) -> Result<Option<Stat>> {
    if pid <= 0 {
        return Ok(None);
    }
    // The longest possible line has 52 numbers and a name of 64 bytes.
    let mut buffer = [0; 2048];
    let Some(file) = open(ProcPath::new(pid, "/stat").as_c_str())? else { return Ok(None) };
    // The kernel writes the line as one record, which a buffer that is long enough gets with one read.
    let Some(length) = read_some(&file, &mut buffer)? else { return Ok(None) };
    let line = buffer.get(..length).unwrap_or_default();
    text::stat(line).map(Some).ok_or(Errno::BADMSG)
}

/// What `/proc/PID/status` says of a process's user and signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its real user: with the saved one, what decides who may signal it.
    pub real_user: u32,
    /// Its effective user.
    pub effective_user: u32,
    /// Its saved set-user-id.
    pub saved_user: u32,
    /// What its main thread blocks, and what the process ignores and catches.
    pub signals: SignalSets,
}

/// What a process does with each signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalSets {
    /// Blocked in the main thread.
    pub blocked: SignalSet,
    /// Ignored.
    pub ignored: SignalSet,
    /// Handled by the process itself.
    pub caught: SignalSet,
}

/// Returns what `/proc/PID/status` says; `None` if there is no such process.
pub fn read_status(pid: i32) -> Result<Option<Status>> {
    let Some(text) = read_text(&ProcPath::new(pid, "/status"))? else { return Ok(None) };
    // A process that is reaped while it is read leaves an empty text or a first part.
    match text::status(&text) {
        Some(status) => Ok(Some(status)),
        None if read_stat(pid)?.is_none() => Ok(None),
        None => Err(Errno::BADMSG),
    }
}

/// Returns the numbers that a process has in our pid namespace and in those below, down to its own; `None` if there is no
/// such process. Empty before Linux 4.1.
pub fn numbers_by_namespace(pid: i32) -> Result<Option<Vec<i32>>> {
    Ok(read_text(&ProcPath::new(pid, "/status"))?.map(|text| text::namespace_numbers(&text)))
}

/// Returns what a process does with signals; `None` if there is no such process.
pub fn signal_sets(pid: i32) -> Result<Option<SignalSets>> {
    Ok(read_status(pid)?.map(|status| status.signals))
}

/// Returns a process's real user id; `None` if there is no such process.
pub fn uid(pid: i32) -> Result<Option<u32>> {
    Ok(read_status(pid)?.map(|status| status.real_user))
}

/// Returns a process's arguments as they lie in its memory, each ended by NUL, up to [`TEXT_MAX`]; `None` if there is no
/// such process. Empty for zombies and kernel threads. The process may have overwritten them.
pub fn cmdline(pid: i32) -> Result<Option<Vec<u8>>> {
    read_shared(pid, "/cmdline", |text: &Vec<u8>| !text.is_empty(), read_text)
}

/// Returns the environment that a process was started with, each entry ended by NUL, up to [`TEXT_MAX`]; `None` if there
/// is no such process. Empty for zombies. The process may have overwritten it.
///
/// # Errors
/// [`Errno::ACCESS`] or [`Errno::PERM`] for a process that we may not look into.
pub fn environ(pid: i32) -> Result<Option<Vec<u8>>> {
    match read_shared(pid, "/environ", |text: &Vec<u8>| !text.is_empty(), read_text) {
        // A zombie has no memory left, and what it has in /proc is root's: to others that looks like a refusal.
        Err(errno @ (Errno::ACCESS | Errno::PERM)) => match read_stat(pid)? {
            Some(stat) if stat.is_alive() => Err(errno),
            Some(_) => Ok(Some(Vec::new())),
            None => Ok(None),
        },
        read => read,
    }
}

/// Returns what [`environ`] returns, for the process that `stat` was just read of. Where it is in the middle of execve(2)
/// and has none yet, blocks until it has, for [`EXEC_WITHIN`] at most.
///
/// # Errors
/// As [`environ`].
pub fn settled_environ(stat: &Stat) -> Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + EXEC_WITHIN;
    let mut named = 0;
    loop {
        let environ = environ(stat.pid)?;
        if environ.as_ref().is_none_or(|environ| !environ.is_empty()) || Instant::now() >= deadline {
            return Ok(environ);
        }
        // HAZARD(exec-not-finished): a program has at least a name. That is laid out a moment before the environment, so
        // one look at a named one is not enough.
        named += u32::from(cmdline(stat.pid)?.is_none_or(|line| !line.is_empty()));
        // Asked anew: whoever is dying has no memory any more, and there may be very many.
        let now = read_stat(stat.pid)?.filter(|now| now.start == stat.start && now.vsize > 0);
        if named > 1 || now.is_none_or(|now| !now.is_alive()) {
            return Ok(environ);
        }
        poll(&mut [], Some(deadline.min(Instant::now() + EXEC_AGAIN)))?;
    }
}

/// Says whether a process was started with exactly this entry (`NAME=value`); `false` if there is no such process.
///
/// # Errors
/// As [`environ`].
pub fn environ_has(pid: i32, entry: &[u8]) -> Result<bool> {
    Ok(environ(pid)?.is_some_and(|environ| environ.split(|byte| *byte == 0).any(|found| found == entry)))
}

/// Returns a process's working directory; `None` if there is no such process, or it is a zombie. The kernel adds
/// ` (deleted)` to one that was removed.
///
/// # Errors
/// [`Errno::ACCESS`] for a process that we may not look into.
pub fn cwd(pid: i32) -> Result<Option<PathBuf>> {
    read_shared(pid, "/cwd", |_| true, read_link)
}

/// Returns a process's executable; `None` if there is no such process, or it is a zombie or a kernel thread. The kernel
/// adds ` (deleted)` to one that was removed or replaced.
///
/// # Errors
/// [`Errno::ACCESS`] for a process that we may not look into.
pub fn exe(pid: i32) -> Result<Option<PathBuf>> {
    read_shared(pid, "/exe", |_| true, read_link)
}

/// Returns the pids of all processes that `/proc` shows us, ascending.
pub fn pids() -> Result<Vec<i32>> {
    let mut pids = Vec::with_capacity(256);
    numbers_in_dir(c"/proc", &mut pids)?;
    Ok(pids)
}

/// Returns the number that was given out last in our pid namespace, to a process or a thread. Whoever lives for so short
/// that no list of all processes is read in time is found by trying the numbers up to this one.
pub fn newest() -> Result<i32> {
    let mut text = [0; 128];
    let length = read_file(c"/proc/loadavg", &mut text)?;
    // Load three times, running and all, the number.
    let words = text.get(..length).unwrap_or_default().split(u8::is_ascii_whitespace);
    words.filter(|word| !word.is_empty()).nth(4).and_then(text::number).ok_or(Errno::BADMSG)
}

/// Returns the number that we have in the pid namespace that `/proc` shows: our pid, unless it shows another one.
///
/// # Errors
/// [`Errno::NOENT`] if `/proc` is not mounted, or shows a namespace in which we have no number.
pub fn own_number() -> Result<i32> {
    number_in_link(CWD, c"/proc/self")
}

/// Returns the number that we have in the pid namespace that this `/proc` shows.
pub(crate) fn number_of_self(proc: impl AsFd) -> Result<i32> {
    number_in_link(proc, c"self")
}

fn number_in_link(directory: impl AsFd, link: &CStr) -> Result<i32> {
    let target = rustix::fs::readlinkat(directory, link, Vec::new())?;
    text::number(target.to_bytes()).ok_or(Errno::NOENT)
}

/// Returns the number of the process that a pidfd refers to, from the text of its `fdinfo`; -1 for one that was reaped.
pub(crate) fn number_in_fdinfo(text: &[u8]) -> Option<i32> {
    text::pidfd_number(text)
}

/// Returns how many clock ticks a second has, in the unit of `start`, `utime` and `stime`; 100 on most machines.
pub fn ticks_per_second() -> u64 {
    // SAFETY: sysconf(3) has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// A path below `/proc/PID`, or relative to such a directory, built without allocation.
pub(crate) struct ProcPath {
    bytes: [u8; ProcPath::SIZE],
    length: usize,
}

impl ProcPath {
    /// Enough for the longest path asked for: `/proc/`, two numbers of ten digits, and the names between them.
    const SIZE: usize = 64;

    pub(crate) fn new(pid: i32, rest: &str) -> ProcPath {
        ProcPath::within("/proc/").number(pid).text(rest)
    }

    /// Begins a path with this.
    pub(crate) fn within(start: &str) -> ProcPath {
        ProcPath { bytes: [0; ProcPath::SIZE], length: 0 }.text(start)
    }

    pub(crate) fn text(mut self, text: &str) -> ProcPath {
        for byte in text.bytes() {
            self.push(byte);
        }
        self
    }

    pub(crate) fn number(mut self, number: i32) -> ProcPath {
        let mut digits = [0; 10];
        let mut rest = number.unsigned_abs();
        let mut count = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
        for digit in digits.iter().skip(digits.len() - count) {
            self.push(*digit);
        }
        self
    }

    fn push(&mut self, byte: u8) {
        // INVARIANT: the last byte stays NUL, so that the path always ends.
        debug_assert!(self.length + 1 < ProcPath::SIZE, "a path below /proc does not fit");
        if let Some(place) = self.bytes.get_mut(self.length).filter(|_| self.length + 1 < ProcPath::SIZE) {
            *place = byte;
            self.length += 1;
        }
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl fmt::Debug for ProcPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_c_str().fmt(out)
    }
}

/// Reads what all threads of a process share, in the file of the main thread or, where that says nothing, of another one.
///
/// HAZARD(zombie-main-thread): a main thread that has ended has let go of all that it shared. To root its files are empty
/// or missing, to everybody else they are closed.
pub(crate) fn read_shared<T>(
    pid: i32,
    file: &str,
    says_something: impl Fn(&T) -> bool,
    mut read: impl FnMut(&ProcPath) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let main = read(&ProcPath::new(pid, file));
    if matches!(&main, Ok(Some(found)) if says_something(found)) {
        return main;
    }
    match another_thread(pid) {
        Some(thread) => read(&ProcPath::new(pid, "/task/").number(thread).text(file)),
        None => main,
    }
}

/// Returns a thread of a process that is not the main one, if it has any.
fn another_thread(pid: i32) -> Option<i32> {
    let mut threads = Vec::new();
    if thread_count(pid)? > 1 {
        numbers_in(&ProcPath::new(pid, "/task"), &mut threads).ok()?;
    }
    threads.into_iter().find(|thread| *thread != pid)
}

/// Returns how many threads a process has, a main thread that has ended included; `None` where that cannot be read.
pub(crate) fn thread_count(pid: i32) -> Option<u64> {
    // The kernel counts the directories of threads as links, which is cheaper to ask than to list them.
    let links =
        rustix::fs::statat(CWD, ProcPath::new(pid, "/task").as_c_str(), AtFlags::empty()).ok()?.st_nlink;
    Some(links.saturating_sub(2))
}

/// Opens a file of `/proc` for reading; `None` if its process is gone.
pub(crate) fn open(path: &CStr) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    match rustix::io::retry_on_intr(|| rustix::fs::openat(CWD, path, flags, Mode::empty())) {
        Ok(file) => Ok(Some(file)),
        Err(errno) => absent(errno),
    }
}

/// Reads the next bytes of a file of `/proc`; `None` if its process is gone by now, 0 at the end.
pub(crate) fn read_some(file: impl AsFd, buffer: &mut [u8]) -> Result<Option<usize>> {
    let file = file.as_fd();
    match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut *buffer)) {
        Ok(length) => Ok(Some(length)),
        Err(errno) => absent(errno),
    }
}

/// Reads a file into `buffer` until it ends or the buffer is full, and returns how many bytes were read.
///
/// A process that is gone is [`Errno::NOENT`] or [`Errno::SRCH`] here.
pub(crate) fn read_file(path: &CStr, buffer: &mut [u8]) -> Result<usize> {
    let file = open(path)?.ok_or(Errno::NOENT)?;
    let mut length = 0;
    loop {
        let rest = buffer.get_mut(length..).unwrap_or_default();
        match read_some(&file, rest)?.ok_or(Errno::SRCH)? {
            0 => return Ok(length),
            more => length += more,
        }
    }
}

/// Appends the numbers among the names in a directory of a process; nothing if it is gone.
pub(crate) fn numbers_in(path: &ProcPath, out: &mut Vec<i32>) -> Result<()> {
    numbers_in_dir(path.as_c_str(), out)
}

fn numbers_in_dir(path: &CStr, out: &mut Vec<i32>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::io::retry_on_intr(|| rustix::fs::openat(CWD, path, flags, Mode::empty())) {
        Ok(directory) => directory,
        Err(errno) => return absent(errno).map(|_: Option<()>| ()),
    };
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        match entry {
            Ok(entry) => out.extend(text::number::<i32>(entry.file_name().to_bytes())),
            Err(Errno::INTR) => {}
            Err(errno) => return absent(errno).map(|_: Option<()>| ()),
        }
    }
    Ok(())
}

/// Reads a whole file of a process, up to [`TEXT_MAX`]; `None` if the process is gone.
pub(crate) fn read_text(path: &ProcPath) -> Result<Option<Vec<u8>>> {
    match open(path.as_c_str())? {
        Some(file) => read_to_end(&file),
        None => Ok(None),
    }
}

/// Reads a whole file, up to [`TEXT_MAX`].
pub(crate) fn read_whole(path: &CStr) -> Result<Vec<u8>> {
    let file = open(path)?.ok_or(Errno::NOENT)?;
    read_to_end(&file)?.ok_or(Errno::NOENT)
}

/// Reads what an open file still holds, up to [`TEXT_MAX`]; `None` if what it is about is gone.
pub(crate) fn read_to_end(file: &OwnedFd) -> Result<Option<Vec<u8>>> {
    let mut text = vec![0; 4096];
    let mut length = 0;
    loop {
        match read_some(file, text.get_mut(length..).unwrap_or_default())? {
            None => return Ok(None),
            Some(0) => break,
            Some(more) => length += more,
        }
        if length == text.len() {
            if length >= TEXT_MAX {
                break;
            }
            text.resize(length * 2, 0);
        }
    }
    text.truncate(length);
    Ok(Some(text))
}

/// Reads a link of a process; `None` if it points nowhere or the process is gone.
fn read_link(path: &ProcPath) -> Result<Option<PathBuf>> {
    match rustix::fs::readlinkat(CWD, path.as_c_str(), Vec::new()) {
        Ok(target) => Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes())))),
        Err(errno) => absent(errno),
    }
}

/// Turns the two errors that mean "no such process" into `None`.
///
/// HAZARD(vanishing-process): opening answers ENOENT once the process was reaped; reading a file that was opened before
/// answers ESRCH.
fn absent<T>(errno: Errno) -> Result<Option<T>> {
    match errno {
        Errno::NOENT | Errno::SRCH => Ok(None),
        errno => Err(errno),
    }
}

/// Reads bytes in every way that this module reads the kernel's.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Some(stat) = text::stat(bytes) {
        let _ = (stat.identity(), stat.is_alive(), stat.comm.to_string(), stat.state.letter());
    }
    let _ = text::status(bytes);
    let _ = text::number::<i32>(bytes);
    let _ = text::pidfd_number(bytes);
    text::lock_takers(bytes).for_each(drop);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_built_as_format_builds_them() {
        for pid in [0, 1, 9, 10, 4_194_304, i32::MAX] {
            assert_eq!(ProcPath::new(pid, "/stat").as_c_str().to_str().unwrap(), format!("/proc/{pid}/stat"));
            let path = ProcPath::new(pid, "/task/").number(i32::MAX).text("/children");
            assert_eq!(path.as_c_str().to_str().unwrap(), format!("/proc/{pid}/task/{}/children", i32::MAX));
        }
    }

    #[test]
    fn own_entry_says_what_std_says() {
        let pid = crate::process::pid();
        let stat = read_stat(pid).unwrap().unwrap();
        assert_eq!(stat.pid, pid);
        assert_eq!(stat.ppid, crate::process::parent_pid());
        assert!(stat.is_alive());
        assert!(stat.threads >= 1 && stat.rss_pages > 0 && stat.vsize > 0);
        assert_eq!(uid(pid).unwrap(), Some(rustix::process::getuid().as_raw()));
        assert_eq!(cwd(pid).unwrap(), Some(std::env::current_dir().unwrap()));
        assert_eq!(exe(pid).unwrap(), Some(std::env::current_exe().unwrap()));
        assert!(pids().unwrap().contains(&pid));
        let mut arguments = Vec::new();
        for argument in std::env::args_os() {
            arguments.extend(argument.into_encoded_bytes());
            arguments.push(0);
        }
        assert_eq!(cmdline(pid).unwrap().unwrap(), arguments);
    }

    #[test]
    fn the_newest_number_is_not_older_than_a_new_process() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (newest, pid) = (newest().unwrap(), i32::try_from(child.id()).unwrap());
        child.wait().unwrap();
        // Numbers begin anew at their limit, which may be in this very moment.
        assert!(newest >= pid || newest < pid / 2, "{newest} {pid}");
    }

    #[test]
    fn a_pid_that_nobody_has_is_none_everywhere() {
        for pid in [i32::MAX, i32::MAX - 1] {
            assert_eq!(read_stat(pid), Ok(None));
            assert_eq!(read_status(pid), Ok(None));
            assert_eq!(cmdline(pid), Ok(None));
            assert_eq!(environ(pid), Ok(None));
            assert_eq!(environ_has(pid, b"A=b"), Ok(false));
            assert_eq!(cwd(pid), Ok(None));
            assert_eq!(exe(pid), Ok(None));
        }
    }
}
