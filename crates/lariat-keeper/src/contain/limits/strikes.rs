//! What the kernel says when a limit strikes: who was killed for want of memory, and that forks were refused.

use std::os::fd::OwnedFd;

use lariat_sys::cgroup::{self, Cgroup, text};
use lariat_sys::reap::Exit;
use lariat_sys::signal::Signal;

use super::{Limits, size};

/// That the kernel killed members for want of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutOfMemory {
    /// They reached their own limit.
    OwnLimit,
    /// The machine, or a group around, had no more.
    Around,
}

impl OutOfMemory {
    /// Says why a life ended, where this is why: the leader was killed, and not by somebody who asked for a stop.
    #[must_use]
    pub fn in_words(self, limits: &Limits) -> String {
        match (self, limits.memory) {
            (Self::OwnLimit, Some(bytes)) => {
                format!("ended by the kernel: over its memory limit of {}", size(bytes))
            }
            _ => "ended by the kernel: out of memory".into(),
        }
    }
}

/// Says whether an end of a leader may be the kernel's doing for want of memory.
#[must_use]
pub fn is_by_kill(exit: Option<Exit>) -> bool {
    matches!(exit, Some(Exit::Signal { signal: Signal::KILL, .. }))
}

/// Asks the kernel whether it killed members for want of memory. To be asked before the directory is removed.
#[must_use]
pub fn out_of_memory(group: &Cgroup) -> Option<OutOfMemory> {
    let whole = group.read("memory.events").ok()?;
    // KERNEL(5.2): memory.events.local, without what happened by limits further down. Before, a limit that a member set
    // below passes for the service's own.
    let local = group.read("memory.events.local").unwrap_or_else(|_| whole.clone());
    judge(&whole, &local)
}

fn judge(whole: &[u8], local: &[u8]) -> Option<OutOfMemory> {
    let has = |text: &[u8], key| text::count(text, key).is_some_and(|count| count > 0);
    match (has(whole, "oom_kill"), has(local, "oom")) {
        (true, true) => Some(OutOfMemory::OwnLimit),
        // Somebody was killed by a limit that is not ours: one below does not reach the leader.
        (true, false) if has(local, "oom_kill") => Some(OutOfMemory::Around),
        _ => None,
    }
}

/// Sees, once, that forks were refused in a directory.
#[derive(Debug)]
pub struct ForkWatch(Option<OwnedFd>);

impl ForkWatch {
    /// Begins to watch; sees nothing where processes are not limited.
    #[must_use]
    pub fn begin(group: &Cgroup) -> Self {
        let file = group.watch("pids.events").ok();
        // A change is one since the last time that it was read.
        Self(file.filter(|file| cgroup::read_again(file).is_ok()))
    }

    /// Returns what raises POLLPRI.
    #[must_use]
    pub fn file(&self) -> Option<&OwnedFd> {
        self.0.as_ref()
    }

    /// Says whether a fork was refused; after a yes it watches no more.
    pub fn look(&mut self) -> bool {
        let Some(file) = &self.0 else { return false };
        let refused = cgroup::read_again(file).map(|text| text::count(&text, "max").is_some_and(|n| n > 0));
        if !matches!(refused, Ok(false)) {
            self.0 = None;
        }
        refused.unwrap_or(false)
    }
}

/// Says that forks were refused.
#[must_use]
pub fn forks_refused(limits: &Limits) -> String {
    let limit =
        limits.processes.map_or_else(|| "a limit".to_owned(), |limit| format!("its limit of {limit}"));
    format!("a process or thread could not be started: it has reached {limit} processes and threads")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_limit_it_was_is_told_apart() {
        let none = b"low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n".as_slice();
        let own = b"low 0\nhigh 0\nmax 31\noom 1\noom_kill 3\n".as_slice();
        let around = b"low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\n".as_slice();
        let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
        let words = |found: Option<OutOfMemory>| found.map(|found| found.in_words(&limits));
        assert_eq!(
            words(judge(own, own)).as_deref(),
            Some("ended by the kernel: over its memory limit of 64 MiB")
        );
        assert_eq!(words(judge(around, around)).as_deref(), Some("ended by the kernel: out of memory"));
        assert_eq!(judge(none, none), None);
        // A limit that a member set further down.
        assert_eq!(judge(own, none), None);
        // Reached and reclaimed: nobody was killed.
        assert_eq!(judge(none, b"max 7\noom 1\noom_kill 0\n"), None);
        assert_eq!(judge(b"", b""), None);
    }
}
