//! The boundary: who is a member, how one is signalled, and how the kernel proves that nobody is left.
//!
//! One trait, so that the machines and their driver know no backend. What is here finds and signals; *when* is decided
//! in [`crate::machine`] and [`crate::stop`].

pub mod cgroup;
pub mod choose;
pub mod limits;
pub mod lineage;

use lariat_sys::identity::Identity;
use lariat_sys::signal::Signal;

use crate::stop::Member;

/// A set of processes that can be walked, signalled and proven empty.
pub trait Containment {
    /// Finds every member and puts them into `out` (cleared first), parents before children. The leader's own zombie
    /// is left out. With `examine`, tells which members ignore that signal but catch HUP.
    ///
    /// Not a snapshot: members that fork while the walk is on may be missed (HAZARD(fork-while-killing)), so a walk
    /// that finds nobody proves nothing.
    ///
    /// # Errors
    /// What reading `/proc` gave, other than a process that is gone.
    fn walk(&mut self, examine: Option<Signal>, out: &mut Vec<Member>) -> lariat_sys::Result<()>;

    /// Sends a signal to a member if the process with its number still is that member; a member that is gone is fine.
    ///
    /// # Errors
    /// `EPERM` for a process of another user.
    fn signal(&mut self, member: Identity, signal: Signal) -> lariat_sys::Result<()>;

    /// Lets those go on who were frozen, once: whoever is to hear of a stop, or has heard of it, needs to run
    /// (HAZARD(frozen-member)).
    fn thaw(&mut self) {}

    /// Kills the process group with this number where that is surely a group of members: nobody forks past that. Where it
    /// is not, or the kernel cannot, nothing is done; members are killed one by one besides.
    fn kill_group(&mut self, _group: i32) {}

    /// Kills everybody at once where there is a way that nobody forks past; members are killed one by one besides.
    fn kill_all(&mut self) {}

    /// Collects those of the dead that are ours to collect. Returns whether there were any. Never blocks.
    fn reap(&mut self) -> bool {
        false
    }

    /// Proves by another source than the walk that nobody is left, dead or alive.
    fn is_empty(&mut self) -> bool;
}
