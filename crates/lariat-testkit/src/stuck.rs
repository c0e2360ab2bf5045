//! Members that SIGKILL does not end: frozen by a cgroup, or waiting for a file server that has taken the question and
//! never answers. Only root can make them. Both guards free whom they hold when they are dropped, also by a panic.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::wait::{wait_at_most, wait_until};

/// Where Linux systems with version 1 controllers have the freezer.
const FREEZER: &str = "/sys/fs/cgroup/freezer";
/// How long a guard tries to clean up.
const CLEANING: Duration = Duration::from_secs(10);

/// A version 1 freezer of our own. What is frozen in it dies of nothing, SIGKILL included, until it is thawed.
#[derive(Debug)]
pub struct Freezer(PathBuf);

impl Freezer {
    /// Makes one.
    ///
    /// # Errors
    /// Where there is no such controller, or we are not root.
    pub fn new() -> io::Result<Self> {
        let path = Path::new(FREEZER).join(format!("lariat-test-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Freezes a process; returns when it is.
    ///
    /// # Panics
    /// When the kernel does not.
    pub fn freeze(&self, pid: i32) {
        self.write("cgroup.procs", &pid.to_string());
        self.write("freezer.state", "FROZEN");
        wait_until("the freeze", CLEANING, || (self.state() == "FROZEN").then_some(()));
    }

    /// Thaws everybody.
    pub fn thaw(&self) {
        self.write("freezer.state", "THAWED");
    }

    fn state(&self) -> String {
        fs::read_to_string(self.0.join("freezer.state")).unwrap_or_default().trim().to_owned()
    }

    fn write(&self, file: &str, text: &str) {
        if let Err(error) = fs::write(self.0.join(file), text) {
            assert!(std::thread::panicking(), "could not write {text} to {file}: {error}");
        }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        let root = Path::new(FREEZER).join("cgroup.procs");
        let _ = wait_at_most(CLEANING, || {
            // Whoever lives on goes back to where it came from.
            let members = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for member in members.lines() {
                let _ = fs::write(&root, member);
            }
            fs::remove_dir(&self.0).ok()
        });
    }
}

/// A file system whose server takes every question and answers none but the first, which makes the mount. Who asks for a
/// file in it waits in the kernel, and SIGKILL does not end that: the question is with the server already.
#[derive(Debug)]
pub struct DeafServer {
    dir: PathBuf,
    /// Closed to end the server.
    stop: Option<io::PipeWriter>,
    server: Option<JoinHandle<()>>,
}

impl DeafServer {
    /// Mounts it on `dir`, in a mount namespace of the calling thread's own, which programs started by it share.
    ///
    /// # Errors
    /// Where there is no FUSE, or we are not root.
    pub fn mount(dir: &Path) -> io::Result<Self> {
        Self::mount_as(dir, false)
    }

    /// Mounts one whose server falls asleep after the mount: no question is taken. SIGKILL ends who asks this one.
    ///
    /// # Errors
    /// As [`Self::mount`].
    pub fn mount_asleep(dir: &Path) -> io::Result<Self> {
        Self::mount_as(dir, true)
    }

    fn mount_as(dir: &Path, sleeps: bool) -> io::Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        mount_private(dir, &device)?;
        let (until, stop) = io::pipe()?;
        let server = std::thread::spawn(move || serve(device, &until, sleeps));
        Ok(Self { dir: dir.to_owned(), stop: Some(stop), server: Some(server) })
    }

    /// Returns a file in it.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join("question")
    }

    /// Ends the server: who waits for it gets an error.
    pub fn stop(&mut self) {
        self.stop = None;
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Drop for DeafServer {
    fn drop(&mut self) {
        self.stop();
        if let Ok(dir) = std::ffi::CString::new(self.dir.as_os_str().as_encoded_bytes()) {
            // SAFETY: the path ends in NUL and outlives the call.
            unsafe { libc::umount2(dir.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn mount_private(dir: &Path, device: &File) -> io::Result<()> {
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let text = |text: &str| std::ffi::CString::new(text).map_err(io::Error::other);
    let (dir, options) = (text(&dir.to_string_lossy())?, text(&options)?);
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: all strings end in NUL and outlive the calls.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let whole = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), whole, std::ptr::null()))?;
        check(libc::mount(c"deaf".as_ptr(), dir.as_ptr(), c"fuse".as_ptr(), flags, options.as_ptr().cast()))
    }
}

/// Takes questions until `until` is closed, or the first only. Closing the device ends the file system.
fn serve(mut device: File, until: &io::PipeReader, sleeps: bool) {
    let mut question = vec![0; 256 * 1024];
    loop {
        let mut wanted = [PollFd::new(&device, PollFlags::IN), PollFd::new(until, PollFlags::IN)];
        if poll(&mut wanted, None).is_err() {
            continue;
        }
        if !wanted[1].revents().is_empty() {
            return;
        }
        match device.read(&mut question) {
            Ok(length) if length >= 40 => {
                if let Some(answer) = answer(&question[..length]) {
                    let _ = device.write_all(&answer);
                    if sleeps {
                        let mut end = [PollFd::new(until, PollFlags::IN)];
                        while poll(&mut end, None).is_err() {}
                        return;
                    }
                }
            }
            Ok(_) => {}
            // The question was taken back.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => {
            }
            Err(_) => return,
        }
    }
}

/// Answers `FUSE_INIT` (fuse(4): opcode 26) and nothing else.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const INIT: u32 = 26;
    /// `struct fuse_out_header` and `struct fuse_init_out`.
    const LENGTH: u32 = 16 + 64;
    let word = |at: usize| Some(u32::from_ne_bytes(question.get(at..at + 4)?.try_into().ok()?));
    if word(4)? != INIT {
        return None;
    }
    let mut answer = Vec::new();
    answer.extend(LENGTH.to_ne_bytes());
    answer.extend(0_u32.to_ne_bytes());
    answer.extend(question.get(8..16)?);
    // Major and minor version, read-ahead, no flags, and the defaults for everything else but the largest write.
    for number in [7, 31, 0, 0, 0, 4096] {
        answer.extend(u32::to_ne_bytes(number));
    }
    answer.resize(usize::try_from(LENGTH).ok()?, 0);
    Some(answer)
}
