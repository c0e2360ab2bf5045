//! Directories of the cgroup v2 hierarchy (`cgroups(7)`, `Documentation/admin-guide/cgroup-v2.rst`).
//!
//! Responsible for one directory's files: who is in it, entering, freezing, killing, removing. Knows no policy: which
//! directory is used for what is decided above. Handles HAZARD(cgroup-killed-once) and HAZARD(fork-while-killing).

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};

use crate::pidfd::PidFd;
use crate::poll::{PollFd, PollFlags, poll};
use crate::procfs::{self, ProcPath};
use crate::signal::Signal;
use crate::{Errno, Result, files};
use text::Controllers;

pub mod text;

/// The longest pause between two tries to remove a directory that the kernel still holds.
const REMOVE_AGAIN: Duration = Duration::from_millis(1);
/// Members that are held by descriptors at a time: how many there are is their doing, and must not cost us ours.
const HELD_MAX: usize = 256;
/// `statfs.f_type` of cgroup v2 (`linux/magic.h`).
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Where systemd mounts the hierarchy, alone and beside that of version 1.
const USUAL_MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Where our own cgroup is in the file system, or why there is no such place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// The directory.
    At(PathBuf),
    /// No cgroup v2 hierarchy is mounted where we are.
    NotMounted,
    /// Our cgroup is outside of our cgroup namespace, or of what is mounted.
    OutOfReach,
}

/// Finds our own cgroup by `/proc/self/cgroup` and `/proc/self/mountinfo`.
///
/// # Errors
/// When one of the two cannot be read.
pub fn own() -> Result<Own> {
    let own = procfs::read_whole(c"/proc/self/cgroup")?;
    let Some(own) = text::own_path(&own) else { return Ok(Own::NotMounted) };
    if let Some(place) = usual_place(&own) {
        return Ok(Own::At(place));
    }
    let mounts = procfs::read_whole(c"/proc/self/mountinfo")?;
    let mounts = text::mounts(&mounts);
    let found = mounts.iter().find_map(|mount| mount.place_of(&own));
    Ok(match found {
        Some(place) => Own::At(PathBuf::from(OsString::from_vec(place))),
        None if mounts.is_empty() => Own::NotMounted,
        None => Own::OutOfReach,
    })
}

/// Looks where the hierarchy is nearly always: the list of mounts is the kernel's slowest file of all those we need.
fn usual_place(own: &[u8]) -> Option<PathBuf> {
    USUAL_MOUNTS.iter().find_map(|point| {
        let mount = text::Mount { root: b"/".to_vec(), point: point.as_bytes().to_vec() };
        let place = PathBuf::from(OsString::from_vec(mount.place_of(own)?));
        // Elsewhere the mount point is a plain directory, or shows another part of the hierarchy.
        (kind_of(&place).ok()? == CGROUP2_SUPER_MAGIC).then_some(place)
    })
}

fn kind_of(path: &Path) -> Result<u64> {
    Ok(u64::try_from(rustix::fs::statfs(path)?.f_type).unwrap_or(0))
}

/// Returns the cgroup v2 of a process as the kernel names it, from the root of our cgroup namespace; `None` if there is
/// no such process.
pub fn of(pid: i32) -> Result<Option<PathBuf>> {
    let Some(text) = procfs::read_text(&ProcPath::new(pid, "/cgroup"))? else { return Ok(None) };
    Ok(text::own_path(&text).map(|path| PathBuf::from(OsString::from_vec(path))))
}

/// One directory. Dropping it closes the descriptor; the directory stays.
#[derive(Debug)]
pub struct Cgroup(OwnedFd);

impl Cgroup {
    /// Makes a directory in `parent` and opens it.
    ///
    /// # Errors
    /// As [`Self::open`] for the parent; [`Errno::EXIST`] if the name is taken, [`Errno::ACCESS`], [`Errno::PERM`] or
    /// [`Errno::ROFS`] where we may not, [`Errno::AGAIN`] where a limit of descendants is reached.
    pub fn create(parent: &Path, name: &str) -> Result<Cgroup> {
        // What is no cgroup gets no directory either.
        let parent = Cgroup::open(parent)?;
        rustix::fs::mkdirat(&parent.0, name, Mode::from_raw_mode(0o755))?;
        let opened = rustix::fs::openat(&parent.0, name, directory_flags(), Mode::empty());
        opened.and_then(Cgroup::from_owned).inspect_err(|_| {
            // Where descriptors are missing, for instance: nobody would know of it.
            let _ = rustix::fs::unlinkat(&parent.0, name, AtFlags::REMOVEDIR);
        })
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// [`Errno::NOTDIR`] for what is none, or is in another kind of file system.
    pub fn open(path: &Path) -> Result<Cgroup> {
        let directory = rustix::fs::openat(CWD, path, directory_flags(), Mode::empty())?;
        Cgroup::from_owned(directory)
    }

    /// Takes a descriptor of a directory.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_owned(directory: OwnedFd) -> Result<Cgroup> {
        let kind = u64::try_from(rustix::fs::fstatfs(&directory)?.f_type).unwrap_or(0);
        if kind == CGROUP2_SUPER_MAGIC { Ok(Cgroup(directory)) } else { Err(Errno::NOTDIR) }
    }

    /// Returns where the directory is.
    ///
    /// # Errors
    /// [`Errno::NOENT`] once it was removed.
    pub fn path(&self) -> Result<PathBuf> {
        let link = ProcPath::new(crate::process::pid(), "/fd/").number(raw(&self.0));
        let path = rustix::fs::readlinkat(CWD, link.as_c_str(), Vec::new())?.into_bytes();
        // The kernel adds this to the name of what was removed; no directory made here ends so.
        if path.ends_with(b" (deleted)") { Err(Errno::NOENT) } else { Ok(OsString::from_vec(path).into()) }
    }

    /// Returns the user whom the directory belongs to.
    pub fn owner(&self) -> Result<u32> {
        Ok(rustix::fs::fstat(&self.0)?.st_uid)
    }

    /// Appends the numbers of all members, of directories below as well. Processes of a pid namespace that we cannot see
    /// have none and are left out. No snapshot, but a member that forks is listed together with its child or before.
    pub fn members(&self, out: &mut Vec<i32>) -> Result<()> {
        for place in self.below()? {
            match self.file(join(&place, "cgroup.procs"), OFlags::RDONLY).and_then(|file| read(&file)) {
                Ok(text) => out.extend(text::numbers(&text)),
                // Removed meanwhile; or part of a threaded group, whose processes its root lists.
                Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Returns the numbers of those who live in the directory itself, not below. Whom we cannot see is a 0.
    pub fn residents(&self) -> Result<Vec<i32>> {
        let text = self.read("cgroup.procs")?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        Ok(lines.map(|line| text::numbers(line).next().unwrap_or(0)).collect())
    }

    /// Moves the calling process in, with all its threads.
    ///
    /// # Errors
    /// [`Errno::BUSY`] where controllers are turned on for the directories in it; [`Errno::ACCESS`] where we may not.
    pub fn enter(&self) -> Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Moves the calling process's parent in, as [`Self::enter`].
    ///
    /// # Errors
    /// Also [`Errno::SRCH`] where it is in another pid namespace, or gone.
    pub fn move_parent(&self) -> Result<()> {
        let Some(parent) = rustix::process::getppid() else { return Err(Errno::SRCH) };
        // HAZARD(pid-reuse): a number is all that the kernel takes here. A parent that dies in this moment leaves its
        // number alone for as long as its own parent has not reaped it; and who is moved by mistake is in a directory
        // that is no boundary.
        self.write("cgroup.procs", &parent.as_raw_nonzero().to_string())
    }

    /// Says whether it is the root of the whole hierarchy, which is bound by fewer rules.
    pub fn is_root(&self) -> Result<bool> {
        match self.file("cgroup.type", OFlags::RDONLY) {
            Ok(_) => Ok(false),
            Err(Errno::NOENT) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    /// Returns the controllers that can be turned on for the directories in it.
    pub fn controllers(&self) -> Result<Controllers> {
        Ok(Controllers::parse(&self.read("cgroup.controllers")?))
    }

    /// Returns the controllers that are on for the directories in it.
    pub fn enabled(&self) -> Result<Controllers> {
        Ok(Controllers::parse(&self.read("cgroup.subtree_control")?))
    }

    /// Turns controllers on for the directories in it.
    ///
    /// # Errors
    /// [`Errno::BUSY`] where processes live in the directory itself; [`Errno::NOENT`] for one that is not to be had.
    pub fn enable(&self, controllers: Controllers) -> Result<()> {
        self.write("cgroup.subtree_control", &controllers.signed('+'))
    }

    /// Turns controllers off for the directories in it.
    ///
    /// # Errors
    /// [`Errno::BUSY`] where a directory in it has them on for its own.
    pub fn disable(&self, controllers: Controllers) -> Result<()> {
        self.write("cgroup.subtree_control", &controllers.signed('-'))
    }

    /// Opens one of its files whose changes can be waited for: POLLPRI after a change since the last [`read_again`].
    pub fn watch(&self, name: &str) -> Result<OwnedFd> {
        self.file(name, OFlags::RDONLY)
    }

    /// Says whether anybody lives in it or below. Zombies do not count.
    pub fn is_populated(&self) -> Result<bool> {
        self.event("populated")
    }

    /// Waits until nobody lives in it or below, or until the deadline, and says whether that is so.
    pub fn wait_until_empty(&self, deadline: Instant) -> Result<bool> {
        self.wait_for("populated", false, deadline)
    }

    /// Kills everybody in it and below, at once: nobody forks past it (`cgroup.kill`).
    ///
    /// HAZARD(cgroup-killed-once): what is *cloned into* this directory afterwards may be killed at its birth, so no
    /// directory is used again after this.
    pub fn kill(&self) -> Result<()> {
        match self.write("cgroup.kill", "1") {
            // KERNEL(5.14): cgroup.kill. Before, everybody is frozen first, so that nobody forks. This branch may go
            // when no kernel before 5.14 is supported.
            Err(Errno::NOENT | Errno::OPNOTSUPP) => self.kill_frozen(),
            result => result,
        }
    }

    /// Does what [`Self::kill`] does without `cgroup.kill`: freezes, kills one by one, and thaws what cannot be killed.
    pub fn kill_frozen(&self) -> Result<()> {
        // A group that does not freeze within the time is killed all the same, like any other set.
        let _ = self.freeze(Instant::now() + Duration::from_millis(100));
        let result = self.kill_each();
        // A frozen process does die of KILL; this is for those that we may not kill.
        let _ = self.thaw();
        result
    }

    fn kill_each(&self) -> Result<()> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        self.members(&mut before)?;
        let mut result = Ok(());
        for some in before.chunks(HELD_MAX) {
            let held: Vec<(i32, PidFd)> =
                some.iter().filter_map(|pid| Some((*pid, PidFd::open_pid(*pid).ok()?))).collect();
            // HAZARD(pid-reuse): who is listed after its descriptor was opened is the one that the descriptor holds, or
            // that one is dead.
            after.clear();
            self.members(&mut after)?;
            for (_, pidfd) in held.iter().filter(|(pid, _)| after.contains(pid)) {
                match pidfd.signal(Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => result = Err(errno),
                }
            }
        }
        result
    }

    /// Stops everybody in it and below, until [`Self::thaw`]; blocks until that is so, and says whether it is by the
    /// deadline. A frozen process still dies of KILL.
    pub fn freeze(&self, deadline: Instant) -> Result<bool> {
        self.write("cgroup.freeze", "1")?;
        self.wait_for("frozen", true, deadline)
    }

    /// Lets everybody go on who was frozen by this directory, or by one below: by whomever.
    pub fn thaw(&self) -> Result<()> {
        for place in self.below()? {
            let file = self.file(join(&place, "cgroup.freeze"), OFlags::RDWR);
            let thawed = file.and_then(|file| match read(&file)?.starts_with(b"1") {
                true => write(&file, b"0"),
                false => Ok(()),
            });
            match thawed {
                // KERNEL(5.2): cgroup.freeze. Where it is not, nobody is frozen; nor is anybody in what was removed.
                Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Reads one of its files.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        read(&self.file(name, OFlags::RDONLY)?)
    }

    /// Writes one of its files.
    pub fn write(&self, name: &str, value: &str) -> Result<()> {
        write(&self.file(name, OFlags::WRONLY)?, value.as_bytes())
    }

    /// Removes the directory and those below. Blocks until `deadline` at most, for the kernel lets go of the dead a
    /// moment after they are gone.
    ///
    /// # Errors
    /// [`Errno::BUSY`] while anybody is in it; [`Errno::NOENT`] if it was removed before.
    pub fn remove(&self, deadline: Instant) -> Result<()> {
        let path = self.path()?;
        loop {
            match self.remove_once(&path) {
                Err(Errno::BUSY) if Instant::now() < deadline => {
                    poll(&mut [], Some(deadline.min(Instant::now() + REMOVE_AGAIN)))?;
                }
                result => return result,
            }
        }
    }

    fn remove_once(&self, path: &Path) -> Result<()> {
        match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            // It has members, or directories below.
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            removed => return removed,
        }
        // What is further down comes later in the list.
        for place in self.below()?.into_iter().rev() {
            let removed = match place.is_empty() {
                true => rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR),
                false => rustix::fs::unlinkat(&self.0, place.as_slice(), AtFlags::REMOVEDIR),
            };
            match removed {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Takes the lock on this open file description, which whoever inherits the descriptor shares, and says whether it
    /// was free ([`files::lock_exclusive`]).
    pub fn lock(&self) -> Result<bool> {
        files::lock_exclusive(&self.0)
    }

    /// Takes a shared lock, as [`Self::lock`] does, and says whether nobody has that one. Several may have this.
    pub fn lock_shared(&self) -> Result<bool> {
        files::lock_shared(&self.0)
    }

    /// Returns the directory and all below it as paths from here, the upper before the lower; itself is the empty path.
    fn below(&self) -> Result<Vec<Vec<u8>>> {
        let mut places = vec![Vec::new()];
        // The kernel counts the directories in it among its links.
        if rustix::fs::fstat(&self.0)?.st_nlink == 2 {
            return Ok(places);
        }
        let mut next = 0;
        while let Some(place) = places.get(next).cloned() {
            next += 1;
            // Opened one at a time: how many there are is the members' doing, and must not cost us our descriptors.
            let opened = match place.is_empty() {
                true => rustix::fs::openat(&self.0, c".", directory_flags(), Mode::empty()),
                false => rustix::fs::openat(&self.0, place.as_slice(), directory_flags(), Mode::empty()),
            };
            match opened {
                Ok(directory) => subdirectories(&directory, &place, &mut places)?,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(places)
    }

    /// Waits for a value of `cgroup.events`, at whose change the kernel raises POLLPRI.
    fn wait_for(&self, key: &str, value: bool, deadline: Instant) -> Result<bool> {
        let events = self.file("cgroup.events", OFlags::RDONLY)?;
        loop {
            if text::event(&read(&events)?, key) == Some(value) {
                return Ok(true);
            }
            if poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(deadline))? == 0 {
                return Ok(false);
            }
            rustix::fs::seek(&events, rustix::fs::SeekFrom::Start(0))?;
        }
    }

    fn event(&self, key: &str) -> Result<bool> {
        let text = self.read("cgroup.events")?;
        text::event(&text, key).ok_or(Errno::BADMSG)
    }

    fn file(&self, name: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let name = name.into_c_str()?.into_owned();
        rustix::io::retry_on_intr(|| rustix::fs::openat(&self.0, name.as_c_str(), flags, Mode::empty()))
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the names of the directories in a directory of the hierarchy.
///
/// # Errors
/// As [`Cgroup::open`].
pub fn names_in(path: &Path) -> Result<Vec<OsString>> {
    let directory = Cgroup::open(path)?;
    let mut names = Vec::new();
    subdirectories(&directory.0, b"", &mut names)?;
    Ok(names.into_iter().map(OsString::from_vec).collect())
}

/// Reads a file of [`Cgroup::watch`] from its begin.
///
/// # Errors
/// [`Errno::NODEV`] or [`Errno::NOENT`] once the directory was removed.
pub fn read_again(file: &OwnedFd) -> Result<Vec<u8>> {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))?;
    read(file)
}

fn subdirectories(directory: &OwnedFd, place: &[u8], out: &mut Vec<Vec<u8>>) -> Result<()> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::INTR) => continue,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let name = entry.file_name().to_bytes();
        if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
            out.push(if place.is_empty() { name.to_vec() } else { [place, b"/", name].concat() });
        }
    }
    Ok(())
}

fn join(place: &[u8], name: &str) -> CString {
    let path =
        if place.is_empty() { name.as_bytes().to_vec() } else { [place, b"/", name.as_bytes()].concat() };
    // The kernel's names hold no NUL.
    CString::new(path).unwrap_or_default()
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn raw(file: &OwnedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

fn read(file: &OwnedFd) -> Result<Vec<u8>> {
    procfs::read_to_end(file)?.ok_or(Errno::NOENT)
}

fn write(file: &OwnedFd, bytes: &[u8]) -> Result<()> {
    rustix::io::retry_on_intr(|| rustix::io::write(file, bytes)).map(drop)
}
