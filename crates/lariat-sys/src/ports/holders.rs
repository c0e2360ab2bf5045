//! Who has a socket open: descriptors of processes, looked through by [`holders`] all, by [`find_holders`] as few as
//! will do.
//!
//! Reading the descriptors of one process costs the kernel tens of microseconds, and no table leads from a socket to
//! its processes. So [`find_holders`] stops early: whoever has a socket made it or got it from its parent, and those
//! who share one are kin (HAZARD(socket-heirs)).

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};

use super::text;
use crate::procfs::{self, ProcPath, Stat};
use crate::{Errno, Result, process, tree};

/// A parent with more children than that, who is in their session, is a shell or a script with a crowd of jobs: its
/// other children have nothing to do with the socket of one of them.
const SIBLINGS_MAX: usize = 64;
/// Whoever has more descriptors than that has opened them itself.
const GIVEN_MAX: i64 = 16;
/// The parent of all kernel threads, and its name.
const KERNEL_PARENT: (i32, &str) = (2, "kthreadd");

/// Returns which processes have a descriptor of which of these sockets, once for each pair, ascending.
///
/// Looks at the given processes, or at all. Those that we may not look into, or that vanish, are left out: an empty
/// answer means "nobody that we can see".
pub fn holders(inodes: &[u64], pids: Option<&[i32]>) -> Vec<(u64, i32)> {
    let listed;
    let pids = match pids {
        Some(pids) => pids,
        None => {
            listed = procfs::pids().unwrap_or_default();
            &listed
        }
    };
    let mut search = Search::new(inodes, pids);
    if !search.wanted.is_empty() {
        pids.iter().for_each(|pid| search.look(*pid));
    }
    search.finish()
}

/// Returns what [`holders`] returns for all processes, and looks only at those that matter.
///
/// One holder of each socket is looked for, the youngest processes first. Then its kin is looked at: those above it in
/// its session and beyond as long as they have a socket too, the children of the parent of the topmost, and everybody
/// below holders. Where no holder is seen, or the topmost is a child of init (a daemon), that is everybody. Left out is
/// who was sent the socket by a stranger (`SCM_RIGHTS`), and who hangs on another branch because all between are dead.
pub fn find_holders(inodes: &[u64]) -> Vec<(u64, i32)> {
    let pids = procfs::pids().unwrap_or_default();
    let mut search = Search::new(inodes, &pids);
    search.skip_kernel_threads();
    // Whoever has hardly more than its standard descriptors comes last: a socket is rarely among them.
    let few = few();
    for is_last in [false, true] {
        for pid in pids.iter().rev() {
            if search.has_all() {
                break;
            }
            if !search.has_looked_at(*pid) && (is_last || !(1..=few).contains(&count(*pid))) {
                search.look(*pid);
            }
        }
    }
    // Those whose kin was looked at.
    let mut known = Vec::new();
    let mut next = 0;
    while let Some((_, pid)) = search.found.get(next).copied() {
        next += 1;
        if !known.contains(&pid) && search.look_at_kin(pid, &mut known).is_none() {
            pids.iter().for_each(|pid| search.look(*pid));
            break;
        }
    }
    search.finish()
}

/// Returns how many descriptors are few: the three standard ones, and those that we were given ourselves besides. Terminals
/// and runners leak some to everything below them.
fn few() -> i64 {
    Some(count(process::pid())).filter(|own| *own <= GIVEN_MAX).unwrap_or_default().max(3)
}

/// Returns how many descriptors a process has, 0 if it is not known.
///
/// KERNEL(6.2): the size of the directory is their number. Before that it is 0.
fn count(pid: i32) -> i64 {
    let stat = rustix::fs::statat(CWD, ProcPath::new(pid, "/fd").as_c_str(), AtFlags::empty());
    stat.map(|stat| stat.st_size).unwrap_or_default()
}

/// A search for the holders of some sockets.
struct Search {
    /// Sorted.
    wanted: Vec<u64>,
    /// Pairs as they were found.
    found: Vec<(u64, i32)>,
    /// Those that were looked at: a bit for each of `pids`, which is sorted.
    pids: Vec<i32>,
    is_done: Vec<bool>,
}

impl Search {
    fn new(inodes: &[u64], pids: &[i32]) -> Self {
        let (mut wanted, mut pids) = (inodes.to_vec(), pids.to_vec());
        wanted.sort_unstable();
        wanted.dedup();
        pids.sort_unstable();
        let is_done = vec![false; pids.len()];
        Self { wanted, found: Vec::new(), pids, is_done }
    }

    fn has_looked_at(&self, pid: i32) -> bool {
        let place = self.pids.binary_search(&pid).ok();
        place.and_then(|place| self.is_done.get(place)).is_some_and(|is_done| *is_done)
    }

    /// Looks at a process, unless it was looked at. One that is not on the list is younger than that.
    fn look(&mut self, pid: i32) {
        if let Ok(place) = self.pids.binary_search(&pid)
            && let Some(is_done) = self.is_done.get_mut(place)
            && std::mem::replace(is_done, true)
        {
            return;
        }
        if pid > 0 {
            // The result is ignored: a process that we may not look into is one that we do not see.
            let _ = held_by(pid, &self.wanted, &mut self.found);
        }
    }

    /// Kernel threads have no descriptors, and are most of the processes of a machine that has just started.
    fn skip_kernel_threads(&mut self) {
        let (parent, name) = KERNEL_PARENT;
        let stat = procfs::read_stat(parent).ok().flatten();
        if stat.is_some_and(|stat| stat.ppid == 0 && stat.comm.as_bytes() == name.as_bytes()) {
            let mut threads = vec![parent];
            // Without the list they are looked at like all others.
            let _ = tree::children(parent, &mut threads);
            for place in threads.iter().filter_map(|pid| self.pids.binary_search(pid).ok()) {
                self.is_done.get_mut(place).into_iter().for_each(|is_done| *is_done = true);
            }
        }
    }

    fn has_all(&self) -> bool {
        self.wanted.iter().all(|inode| self.found.iter().any(|(found, _)| found == inode))
    }

    fn is_holder(&self, pid: i32) -> bool {
        self.found.iter().any(|(_, holder)| *holder == pid)
    }

    /// Looks at those who may have got a socket from whom `holder` has it from, and appends those whose kin these are.
    /// `None`: that may be anybody.
    fn look_at_kin(&mut self, holder: i32, known: &mut Vec<i32>) -> Option<()> {
        let Some(mut top) = procfs::read_stat(holder).ok().flatten() else { return Some(()) };
        let mut parent = self.look_at_parent(top)?;
        let mut next = parent;
        loop {
            if self.is_holder(next.pid) {
                top = next;
                parent = self.look_at_parent(top)?;
                next = parent;
            } else if next.session == top.session
                && let Some(above) = self.look_at_parent(next)
            {
                // One between them may have closed it.
                next = above;
            } else {
                break;
            }
        }
        // An orphan of them is a child of a reaper above, which in nearly all cases leads another session.
        let mut siblings = Vec::new();
        tree::children(parent.pid, &mut siblings).ok()?;
        if siblings.len() <= SIBLINGS_MAX || parent.session != top.session {
            siblings.iter().for_each(|pid| self.look(*pid));
        }
        let mut heirs = vec![top];
        tree::walk(top.pid, &[], &mut heirs).ok()?;
        heirs.iter().for_each(|stat| self.look(stat.pid));
        known.extend(heirs.iter().map(|stat| stat.pid));
        Some(())
    }

    /// Looks at the parent and returns it; `None` for init, whose children may be anybody's.
    fn look_at_parent(&mut self, child: Stat) -> Option<Stat> {
        let pid = Some(child.ppid).filter(|pid| *pid > 1)?;
        self.look(pid);
        procfs::read_stat(pid).ok().flatten()
    }

    fn finish(mut self) -> Vec<(u64, i32)> {
        self.found.sort_unstable();
        self.found.dedup();
        self.found
    }
}

/// Appends those of the sorted `wanted` sockets that a process has open.
fn held_by(pid: i32, wanted: &[u64], found: &mut Vec<(u64, i32)>) -> Result<()> {
    procfs::read_shared(pid, "/fd", |has_any| *has_any, |path| held_in(path, pid, wanted, found)).map(drop)
}

/// Does so for one directory of descriptors, and says whether there is any.
fn held_in(path: &ProcPath, pid: i32, wanted: &[u64], found: &mut Vec<(u64, i32)>) -> Result<Option<bool>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path.as_c_str(), flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(directory.as_fd(), &mut buffer);
    let (mut has_any, before) = (false, found.len());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_name().to_bytes().starts_with(b".") {
            continue;
        }
        has_any = true;
        // The longest name of a socket is `socket:[` and 20 digits.
        let mut target = [0_u8; 64];
        let length = match rustix::fs::readlinkat_raw(&directory, entry.file_name(), &mut target[..]) {
            Ok(length) => length,
            // The right to look is one to the process, and none of the others is told either.
            Err(Errno::ACCESS) => break,
            Err(_) => continue,
        };
        let inode = text::socket(target.get(..length).unwrap_or_default());
        let Some(inode) = inode.filter(|inode| wanted.binary_search(inode).is_ok()) else { continue };
        found.push((inode, pid));
        // A server listens first and has its connections after that: there may be thousands, and there is no more to know.
        let of_it = found.get(before..).unwrap_or_default();
        if wanted.iter().all(|inode| of_it.iter().any(|(found, _)| found == inode)) {
            break;
        }
    }
    Ok(Some(has_any))
}
