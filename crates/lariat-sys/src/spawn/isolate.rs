//! Pid namespaces: a process that is number 1 of its own, with a `/proc` that shows it (`pid_namespaces(7)`).
//!
//! Whoever may not make one by himself makes a user namespace around it, in which he may (`user_namespaces(7)`). The
//! first process of a pid namespace cannot be ended from inside, and the kernel ends all others with it.

use std::ffi::{CStr, CString, c_char};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::StatVfsMountFlags;
use rustix::thread::CapabilitySet;

use super::{Child, Forked, SpawnError, SpawnStep, collect, fork_alone};
use crate::pidfd::PidFd;
use crate::poll::{PollFd, PollFlags, poll};
use crate::{Errno, Result, call, files, process};

/// How long the process between may take to make the namespaces.
const MADE_WITHIN: Duration = Duration::from_secs(10);

/// What has to be made around a process that is to be number 1: a pid namespace, mounts of its own, and a user namespace
/// where that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    /// What `uid_map` and `gid_map` are to say; absent where no user namespace is needed.
    maps: Option<(CString, CString)>,
    /// How its `/proc` is mounted.
    proc_flags: libc::c_ulong,
}

impl Namespaces {
    /// Returns what this process needs: a user namespace only without `CAP_SYS_ADMIN`.
    pub fn choose() -> Namespaces {
        let has_right = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        if has_right { Namespaces { maps: None, proc_flags: proc_flags() } } else { Namespaces::with_user() }
    }

    /// Returns the same with a user namespace, in which our user and group are what they are outside, and all others
    /// are nobody.
    pub fn with_user() -> Namespaces {
        let line = |id: u32| CString::new(format!("{id} {id} 1\n")).unwrap_or_default();
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        Namespaces { maps: Some((line(user.as_raw()), line(group.as_raw()))), proc_flags: proc_flags() }
    }

    /// Says whether a user namespace is among them.
    pub fn has_user(&self) -> bool {
        self.maps.is_some()
    }

    pub(super) fn flags(&self) -> libc::c_int {
        let user = if self.has_user() { libc::CLONE_NEWUSER } else { 0 };
        libc::CLONE_NEWPID | libc::CLONE_NEWNS | user
    }

    /// Makes our user known in the user namespace that the calling process has just been put into. System calls only.
    pub(super) fn map_user(&self) -> Result<()> {
        let Some((users, groups)) = &self.maps else { return Ok(()) };
        // KERNEL(3.19): without this an ordinary user may not map a group.
        match write_file(c"/proc/self/setgroups", c"deny") {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        write_file(c"/proc/self/uid_map", users)?;
        write_file(c"/proc/self/gid_map", groups)
    }
}

/// Returns how `/proc` is to be mounted: a user namespace may do it only with the access times of the one that is there.
/// One that is read-only does not get so far, since users are mapped through it.
fn proc_flags() -> libc::c_ulong {
    let there = rustix::fs::statvfs(c"/proc").map_or(StatVfsMountFlags::empty(), |found| found.f_flag);
    let same = [
        (StatVfsMountFlags::NOATIME, libc::MS_NOATIME),
        (StatVfsMountFlags::NODIRATIME, libc::MS_NODIRATIME),
    ];
    let same = same.into_iter().filter(|(flag, _)| there.contains(*flag)).map(|(_, flag)| flag);
    // What has neither of the two is mounted strictly; the kernel takes none of the three for `relatime`.
    let times = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME;
    let strict = if there.intersects(times) { 0 } else { libc::MS_STRICTATIME };
    same.fold(libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | strict, |all, one| all | one)
}

/// Gives the calling process, number 1 of a pid namespace in mounts of its own, a `/proc` of that namespace. System calls
/// only.
pub(super) fn mount_proc(namespaces: &Namespaces) -> Result<()> {
    let none: *const c_char = std::ptr::null();
    // SAFETY: the strings end in NUL; mount(2) takes null where it does not look.
    unsafe {
        // HAZARD(shared-mounts): what is mounted outside goes on appearing here, and nothing that is mounted here appears
        // outside.
        let slave = libc::MS_SLAVE | libc::MS_REC;
        let made = match call::check(libc::mount(none, c"/".as_ptr(), none, slave, std::ptr::null())) {
            // In a chroot whose `/` is no mount only what can be named can be changed; ours has to be.
            Err(Errno::INVAL) => {
                call::check(libc::mount(none, c"/proc".as_ptr(), none, slave, std::ptr::null()))
            }
            made => made,
        };
        made?;
        let kind = c"proc".as_ptr();
        call::check(libc::mount(kind, c"/proc".as_ptr(), kind, namespaces.proc_flags, std::ptr::null()))
            .map(drop)
    }
}

/// Writes a whole file of the kernel's. System calls only.
fn write_file(path: &CStr, text: &CStr) -> Result<()> {
    // SAFETY: both strings end in NUL; the descriptor is closed once.
    unsafe {
        let file = call::retry(|| libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = call::retry(|| libc::write(file, text.as_ptr().cast(), text.count_bytes()));
        libc::close(file);
        written.map(drop)
    }
}

/// Copies the calling process into namespaces of its own, where it is number 1: `None` in the copy, the child in the
/// caller, as [`fork_alone`].
///
/// The caller has to be a child subreaper: a process cannot put itself into a pid namespace, only its children, so one
/// in between does that and exits, and the copy becomes ours. Blocks until the namespaces are there.
///
/// # Errors
/// The step that failed; nothing is left of it.
pub fn fork_isolated(namespaces: &Namespaces) -> std::result::Result<Option<Forked>, SpawnError> {
    let failure = |step| move |errno| SpawnError { step, errno };
    let (read, write) = files::pipe(4096).map_err(failure(SpawnStep::Prepare))?;
    let Some(between) = fork_alone().map_err(failure(SpawnStep::Clone))? else {
        drop(read);
        return be_between(namespaces, write);
    };
    drop(write);
    let words = hear(&read);
    collect(between.pid);
    match words {
        Ok([Word::Child(pid), Word::Ready]) => adopt(pid).map(Some),
        // The copy is dead or about to be, and ours.
        Ok([Word::Child(pid), Word::Failed(error)]) => {
            collect(pid);
            Err(error)
        }
        Ok([Word::Failed(error), _] | [_, Word::Failed(error)]) => Err(error),
        Ok(_) => Err(failure(SpawnStep::Clone)(Errno::CHILD)),
        Err(errno) => {
            // It said nothing in time; whatever there is of it descends from us and can be ended by its parent alone.
            let _ = between.pidfd.signal(crate::signal::Signal::KILL);
            Err(failure(SpawnStep::Clone)(errno))
        }
    }
}

/// What the two processes on the way say through the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// Nothing: they died before.
    Silence,
    /// The number that the copy has outside.
    Child(i32),
    /// The copy has its `/proc`.
    Ready,
    /// A step failed.
    Failed(SpawnError),
}

impl Word {
    const SIZE: usize = 8;

    fn to_bytes(self) -> [u8; Word::SIZE] {
        let (kind, value) = match self {
            Word::Silence => (0, 0),
            Word::Child(pid) => (-1, pid),
            Word::Ready => (-2, 0),
            Word::Failed(SpawnError { step, errno }) => (step.number(), errno.raw_os_error()),
        };
        let mut bytes = [0; Word::SIZE];
        bytes[..4].copy_from_slice(&i32::to_ne_bytes(kind));
        bytes[4..].copy_from_slice(&i32::to_ne_bytes(value));
        bytes
    }

    fn from_bytes(bytes: [u8; Word::SIZE]) -> Word {
        let [a, b, c, d, e, f, g, h] = bytes;
        let (kind, value) = (i32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h]));
        match (kind, SpawnStep::from_number(kind)) {
            (-1, _) => Word::Child(value),
            (-2, _) => Word::Ready,
            (_, Some(step)) => Word::Failed(SpawnError { step, errno: Errno::from_raw_os_error(value) }),
            _ => Word::Silence,
        }
    }

    fn say(self, pipe: &OwnedFd) {
        // Whoever asked may be dead; then nobody needs the answer. A word is far below what a pipe takes at once.
        let Ok(pipe) = pipe.try_clone() else { return };
        let _ = std::fs::File::from(pipe).write_all(&self.to_bytes());
    }
}

/// Reads two words: in the order in which things happen, or one of a failure and silence.
fn hear(pipe: &OwnedFd) -> Result<[Word; 2]> {
    let deadline = Instant::now() + MADE_WITHIN;
    let mut words = [Word::Silence; 2];
    let mut file = std::fs::File::from(pipe.try_clone().map_err(|_| Errno::MFILE)?);
    for word in &mut words {
        if poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(deadline))? == 0 {
            return Err(Errno::TIMEDOUT);
        }
        let mut bytes = [0; Word::SIZE];
        // The end of the pipe means that both are gone.
        if file.read_exact(&mut bytes).is_ok() {
            *word = Word::from_bytes(bytes);
        }
    }
    // The copy may be ready before the one in between has said who it is.
    if let [first, Word::Child(pid)] = words {
        words = [Word::Child(pid), first];
    }
    Ok(words)
}

/// The process in between: makes the namespaces, forks the copy into them, says its number and exits.
fn be_between(namespaces: &Namespaces, pipe: OwnedFd) -> std::result::Result<Option<Forked>, SpawnError> {
    let fail = |step, errno| -> ! {
        Word::Failed(SpawnError { step, errno }).say(&pipe);
        process::exit_now(1)
    };
    // SAFETY: unshare(2) takes flags; this process has one thread and shares nothing that matters.
    if let Err(errno) = call::check(unsafe { libc::unshare(namespaces.flags()) }) {
        fail(SpawnStep::Namespaces, errno);
    }
    if let Err(errno) = namespaces.map_user() {
        fail(SpawnStep::MapUser, errno);
    }
    // SAFETY: as the caller of `fork_alone`, whose copy this is, it has one thread.
    match call::check(unsafe { libc::fork() }) {
        Err(errno) => fail(SpawnStep::Clone, errno),
        Ok(0) => {}
        Ok(pid) => {
            Word::Child(pid).say(&pipe);
            process::exit_now(0);
        }
    }
    if let Err(errno) = mount_proc(namespaces) {
        fail(SpawnStep::MountProc, errno);
    }
    Word::Ready.say(&pipe);
    Ok(None)
}

/// Names a process that became our child.
fn adopt(pid: i32) -> std::result::Result<Child, SpawnError> {
    let named = PidFd::of(pid).and_then(|named| named.ok_or(Errno::SRCH));
    let (pidfd, identity) = named.map_err(|errno| SpawnError { step: SpawnStep::Identity, errno })?;
    Ok(Child { pid, identity, pidfd })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back() {
        let error = SpawnError { step: SpawnStep::MountProc, errno: Errno::PERM };
        for word in [Word::Silence, Word::Child(4242), Word::Ready, Word::Failed(error)] {
            assert_eq!(Word::from_bytes(word.to_bytes()), word);
        }
    }
}
