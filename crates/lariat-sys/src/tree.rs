//! Finds the descendants of a process.
//!
//! Responsible for one walk over the tree as it is now. A walk is no snapshot (HAZARD(fork-while-walking)): whoever must
//! find everybody walks again until the kernel answers ECHILD. Handles HAZARD(children-per-thread).

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use crate::Result;
use crate::procfs::{self, ProcPath, Stat};

/// The longest entry of a children list: a pid and a space.
const NUMBER_MAX: usize = 11;

/// Appends the children of all threads of a process, zombies included, the eldest first for each thread. A process that
/// is gone has none.
///
/// Where the kernel keeps no children lists, all of `/proc` is read, and the order is that of their starts.
pub fn children(pid: i32, out: &mut Vec<i32>) -> Result<()> {
    if !has_children_lists() {
        return children_by_scan(pid, out);
    }
    children_in_lists(pid, usize::MAX, out)
}

/// Does what [`children`] does and stops soon after the first `enough`: for who asks whether there is anybody.
pub fn some_children(pid: i32, enough: usize, out: &mut Vec<i32>) -> Result<()> {
    if !has_children_lists() {
        return children_by_scan(pid, out);
    }
    children_in_lists(pid, enough, out)
}

fn children_in_lists(pid: i32, enough: usize, out: &mut Vec<i32>) -> Result<()> {
    // HAZARD(children-per-thread): a child belongs to the thread that forked it, and each thread has a list.
    let mut threads = vec![pid];
    if procfs::thread_count(pid) != Some(1) {
        threads.clear();
        procfs::numbers_in(&ProcPath::new(pid, "/task"), &mut threads)?;
    }
    let before = out.len();
    for thread in threads {
        children_of_thread(pid, thread, enough.saturating_sub(out.len() - before), out)?;
    }
    Ok(())
}

/// Appends the descendants of `root`, nearest first, without `root` itself; zombies are included.
///
/// Processes in `skip` and whatever hangs below them are left out. Each process appears once. Falls back to
/// [`walk_by_scan`] where the kernel keeps no children lists.
pub fn walk(root: i32, skip: &[i32], out: &mut Vec<Stat>) -> Result<()> {
    walk_visiting(root, skip, &mut |_| {}, out)
}

/// Does what [`walk`] does, and calls `visit` with each number after it was found and *before* its stat is read: the
/// place to open a pidfd, which is then the process that was found or an earlier one with its number, never a later.
/// Where the kernel keeps no children lists, it calls nobody.
pub fn walk_visiting(root: i32, skip: &[i32], visit: &mut dyn FnMut(i32), out: &mut Vec<Stat>) -> Result<()> {
    if !has_children_lists() {
        return walk_by_scan(root, skip, out);
    }
    let mut seen: HashSet<i32> = skip.iter().copied().collect();
    seen.insert(root);
    let mut found = Vec::new();
    children(root, &mut found)?;
    let mut next = out.len();
    loop {
        for pid in found.drain(..) {
            if seen.insert(pid) {
                visit(pid);
                out.extend(procfs::read_stat(pid)?);
            }
        }
        let Some(stat) = out.get(next) else { return Ok(()) };
        next += 1;
        // A process that has ended has given its children away. One thread is by far the most common case, and saves
        // the listing of the threads; a thread that starts right now is found by the next pass.
        if stat.is_alive() {
            match stat.threads {
                1 => children_of_thread(stat.pid, stat.pid, usize::MAX, &mut found)?,
                _ => children(stat.pid, &mut found)?,
            }
        }
    }
}

/// Appends who names this process as its parent.
fn children_by_scan(pid: i32, out: &mut Vec<i32>) -> Result<()> {
    let mut found = Vec::new();
    for candidate in procfs::pids()? {
        found.extend(procfs::read_stat(candidate)?.filter(|stat| stat.ppid == pid));
    }
    found.sort_by_key(|stat| (stat.start, stat.pid));
    out.extend(found.iter().map(|stat| stat.pid));
    Ok(())
}

/// Does what [`walk`] does by reading every process's parent: slower, and in need of no children lists.
pub fn walk_by_scan(root: i32, skip: &[i32], out: &mut Vec<Stat>) -> Result<()> {
    let mut by_parent: HashMap<i32, Vec<Stat>> = HashMap::new();
    for pid in procfs::pids()? {
        if let Some(stat) = procfs::read_stat(pid)? {
            by_parent.entry(stat.ppid).or_default().push(stat);
        }
    }
    let mut parent = root;
    let mut next = out.len();
    loop {
        // Taking the list out makes a second visit find nothing, so stale parents cannot lead in circles.
        let children = by_parent.remove(&parent).unwrap_or_default();
        out.extend(children.into_iter().filter(|stat| stat.pid != root && !skip.contains(&stat.pid)));
        let Some(stat) = out.get(next) else { return Ok(()) };
        parent = stat.pid;
        next += 1;
    }
}

/// Says whether this kernel keeps children lists in `/proc`; probed once.
///
/// KERNEL(4.2): only with `CONFIG_PROC_CHILDREN`. Without them everything is found by its parent's number, in a scan of
/// all processes; this branch may go when kernels may no longer be built without the lists.
fn has_children_lists() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| procfs::read_file(c"/proc/thread-self/children", &mut [0; 16]).is_ok())
}

/// Appends one thread's children, at least `enough` where there are so many; a thread that is gone has none.
fn children_of_thread(pid: i32, thread: i32, enough: usize, out: &mut Vec<i32>) -> Result<()> {
    let path = ProcPath::new(pid, "/task/").number(thread).text("/children");
    let Some(file) = procfs::open(path.as_c_str())? else { return Ok(()) };
    // The kernel hands out one page per read, so a longer buffer saves nothing; and no more than fits into a shorter one.
    let mut buffer = [0; 4096];
    let length = enough.saturating_mul(NUMBER_MAX).min(buffer.len());
    let mut list = NumberList::default();
    let before = out.len();
    while out.len() - before < enough {
        match procfs::read_some(&file, buffer.get_mut(..length).unwrap_or_default())? {
            None | Some(0) => {
                list.finish(out);
                break;
            }
            // Where this is enough, the last number may be cut in two, and is left out.
            Some(length) => list.feed(buffer.get(..length).unwrap_or_default(), out),
        }
    }
    Ok(())
}

/// Reads numbers that are separated by anything else, in pieces that may cut a number in two. Total over all bytes.
#[derive(Default)]
struct NumberList {
    number: Option<i64>,
}

impl NumberList {
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<i32>) {
        for byte in bytes {
            if byte.is_ascii_digit() {
                let number =
                    self.number.unwrap_or(0).saturating_mul(10).saturating_add(i64::from(byte - b'0'));
                self.number = Some(number);
            } else {
                self.finish(out);
            }
        }
    }

    /// Ends the number under way; what is no pid is left out.
    fn finish(&mut self, out: &mut Vec<i32>) {
        let number = self.number.take().and_then(|number| i32::try_from(number).ok());
        out.extend(number.filter(|number| *number > 0));
    }
}

/// Reads bytes as a children list that comes in pieces of every length.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let read = |piece: usize| {
        let (mut list, mut out) = (NumberList::default(), Vec::new());
        bytes.chunks(piece).for_each(|piece| list.feed(piece, &mut out));
        list.finish(&mut out);
        out
    };
    let whole = read(bytes.len().max(1));
    assert!(whole.iter().all(|pid| *pid > 0));
    assert_eq!(read(1), whole);
    assert_eq!(read(7), whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(pieces: &[&[u8]]) -> Vec<i32> {
        let mut out = Vec::new();
        let mut list = NumberList::default();
        for piece in pieces {
            list.feed(piece, &mut out);
        }
        list.finish(&mut out);
        out
    }

    #[test]
    fn numbers_survive_a_cut_anywhere() {
        let text = b"12 345 6 ";
        for cut in 0..=text.len() {
            assert_eq!(numbers(&[&text[..cut], &text[cut..]]), [12, 345, 6], "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_pid_is_left_out() {
        assert_eq!(numbers(&[b"0 99999999999999999999999 -7 x 8\n"]), [7, 8]);
        assert_eq!(numbers(&[]), [0; 0]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_pids_only(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), cut in 0..200_usize) {
            let cut = cut.min(bytes.len());
            let whole = numbers(&[&bytes]);
            proptest::prop_assert!(whole.iter().all(|pid| *pid > 0));
            proptest::prop_assert_eq!(&numbers(&[&bytes[..cut], &bytes[cut..]]), &whole);
        }
    }
}
