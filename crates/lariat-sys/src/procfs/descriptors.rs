//! What a process has open, as `/proc/PID/fd` says (`proc_pid_fd(5)`).

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};

use super::{ProcPath, absent, read_shared, read_text, text};
use crate::{Errno, Result};

/// The longest target of a descriptor's link that is read; a longer path is cut.
const TARGET_MAX: usize = 4096;

/// One open descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open<'a> {
    /// An end of a pipe. Both ends have the same number.
    Pipe {
        /// The pipe's number.
        inode: u64,
        /// It is open for writing.
        is_writable: bool,
    },
    /// A socket.
    Socket {
        /// Its number.
        inode: u64,
    },
    /// A file of whatever kind.
    File {
        /// The number of the descriptor in its process.
        descriptor: i32,
        /// Its path. The kernel adds ` (deleted)` to one that was removed.
        path: &'a Path,
    },
}

/// Calls `visit` for each pipe, socket and file that a process has open; never for a process that is gone.
///
/// # Errors
/// [`Errno::ACCESS`] for a process that we may not look into.
pub fn visit_descriptors(pid: i32, visit: &mut dyn FnMut(Open<'_>)) -> Result<()> {
    read_shared(pid, "/fd", |has_any| *has_any, |path| visit_in(path, visit)).map(drop)
}

/// Says whether there is any; `None` for a process that is gone.
fn visit_in(path: &ProcPath, visit: &mut dyn FnMut(Open<'_>)) -> Result<Option<bool>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(CWD, path.as_c_str(), flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(errno) => return absent(errno),
    };
    let mut has_any = false;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut target = [0_u8; TARGET_MAX];
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::INTR) => continue,
            Err(errno) => return absent(errno),
        };
        // A descriptor that was closed meanwhile is none.
        let Ok(length) = rustix::fs::readlinkat_raw(&directory, entry.file_name(), &mut target[..]) else {
            continue;
        };
        has_any = true;
        let target = target.get(..length).unwrap_or_default();
        if let Some(inode) = numbered(target, b"pipe:[") {
            // The link's own permission bits say how the descriptor was opened.
            let link = rustix::fs::statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            let is_writable = link.is_ok_and(|link| {
                FileType::from_raw_mode(link.st_mode) == FileType::Symlink
                    && Mode::from_raw_mode(link.st_mode).contains(Mode::WUSR)
            });
            visit(Open::Pipe { inode, is_writable });
        } else if let Some(inode) = numbered(target, b"socket:[") {
            visit(Open::Socket { inode });
        } else if target.starts_with(b"/") {
            let Some(descriptor) = text::number(entry.file_name().to_bytes()) else { continue };
            visit(Open::File { descriptor, path: Path::new(OsStr::from_bytes(target)) });
        }
    }
    Ok(Some(has_any))
}

/// Says whether a process has locked an open file of its own by flock(2) or fcntl(2), as `/proc/PID/fdinfo` names the taker
/// of a lock (Linux's Documentation/filesystems/proc.rst, 3.8). A lock that came with a copy of somebody else's descriptor
/// was taken by that other one, dead or alive. `false` for a process that is gone.
///
/// # Errors
/// [`Errno::ACCESS`] for a process that we may not look into.
pub fn has_locked(pid: i32, descriptor: i32) -> Result<bool> {
    let text = read_text(&ProcPath::new(pid, "/fdinfo/").number(descriptor))?;
    Ok(text.is_some_and(|text| text::lock_takers(&text).any(|taker| taker == pid)))
}

/// Reads `KIND:[NUMBER]`.
fn numbered(target: &[u8], kind: &[u8]) -> Option<u64> {
    target.strip_prefix(kind).and_then(|rest| rest.strip_suffix(b"]")).and_then(text::number)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn pipes(pid: i32) -> Vec<(u64, bool)> {
        let mut found = Vec::new();
        visit_descriptors(pid, &mut |open| {
            if let Open::Pipe { inode, is_writable } = open {
                found.push((inode, is_writable));
            }
        })
        .unwrap();
        found
    }

    #[test]
    fn ends_of_pipes_are_told_apart() {
        let (read, write) = crate::files::pipe(4096).unwrap();
        let inode = rustix::fs::fstat(read.as_fd()).unwrap().st_ino;
        assert_eq!(rustix::fs::fstat(write.as_fd()).unwrap().st_ino, inode);
        let ours = |wanted: bool| {
            pipes(crate::process::pid()).iter().filter(|found| **found == (inode, wanted)).count()
        };
        assert_eq!((ours(false), ours(true)), (1, 1));
        drop(write);
        assert_eq!((ours(false), ours(true)), (1, 0));
    }

    #[test]
    fn sockets_and_files_are_named() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let wanted = rustix::fs::fstat(&socket).unwrap().st_ino;
        let exe = std::env::current_exe().unwrap();
        let _file = std::fs::File::open(&exe).unwrap();
        let (mut has_socket, mut has_file) = (false, false);
        visit_descriptors(crate::process::pid(), &mut |open| match open {
            Open::Socket { inode } => has_socket |= inode == wanted,
            Open::File { path, .. } => has_file |= path == exe,
            Open::Pipe { .. } => {}
        })
        .unwrap();
        assert!(has_socket && has_file);
        visit_descriptors(i32::MAX, &mut |_| panic!("nobody has anything open")).unwrap();
    }

    /// The process of the next test that has a copy. It is this test program again; without its variable, this does nothing.
    #[test]
    fn copying_process() {
        if std::env::var_os(COPYING).is_some() {
            let mut byte = [0];
            let _ = std::io::Read::read(&mut std::io::stdin(), &mut byte);
        }
    }

    const COPYING: &str = "LARIAT_TEST_COPIES";

    #[test]
    fn a_lock_is_its_takers_and_not_of_whoever_has_a_copy() {
        let file = tempfile::tempfile().unwrap();
        let own = std::os::fd::AsRawFd::as_raw_fd(&file);
        let pid = crate::process::pid();
        assert_eq!(has_locked(pid, own), Ok(false), "nobody has locked it");
        assert_eq!(crate::files::lock_exclusive(&file), Ok(true));
        assert_eq!(has_locked(pid, own), Ok(true));
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "procfs::descriptors::tests::copying_process"]).env(COPYING, "1");
        // As its standard error it has a copy.
        let copy = file.try_clone().unwrap();
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).stderr(copy);
        let mut child = command.spawn().unwrap();
        let other = i32::try_from(child.id()).unwrap();
        assert_eq!(has_locked(other, 2), Ok(false), "we have");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(has_locked(other, 2), Ok(false), "it is gone");
    }
}
