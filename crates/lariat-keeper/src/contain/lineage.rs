//! Containment by descent: we are a child subreaper, so every process that our children ever start is our descendant
//! for life, however it forks and whatever session it makes for itself.
//!
//! The proof of emptiness is `waitid(2)` answering `ECHILD`: no children means no descendants. The walk is only the
//! means to find whom to signal.
//!
//! Sources: prctl(2) `PR_SET_CHILD_SUBREAPER`, proc_pid_task(5) `children`.

use std::collections::{HashMap, HashSet};

use lariat_sys::Errno;
use lariat_sys::identity::Identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::procfs::{self, Comm, Stat, State};
use lariat_sys::reap;
use lariat_sys::signal::Signal;
use lariat_sys::tree;

use super::Containment;
use crate::stop::{Life, Member, Role};

/// How a keeper calls itself: the start of its kernel name and of its argument line.
pub const KEEPER_COMM: &str = "keeper:";

/// How many descriptors of members are held at most: well below the usual limit of 1024 open files.
const HELD_MAX: usize = 768;
/// How many descriptors are never used for holding members: what a keeper has besides, and what a walk opens.
const FREE_MIN: u64 = 24;

/// The start of a member whose own is hidden. No process but the kernel's first has it.
const UNKNOWN_START: u64 = 0;

/// A member with its descriptor.
#[derive(Debug)]
struct Held {
    /// INVARIANT: the process that the descriptor refers to. The descriptor was opened before the start was read, and
    /// the process still had its number after that.
    identity: Identity,
    pidfd: PidFd,
}

/// The descendants of this process.
#[derive(Debug)]
pub struct Lineage {
    me: i32,
    leader: Option<Identity>,
    /// The leader's zombie is kept for its number, and somebody else reaps it.
    keeps_leader: bool,
    /// Children that are not ours to end, with all that is below them.
    except: Vec<i32>,
    /// Those of them that are subreapers and hand on what they leave.
    keepers: Vec<i32>,
    stats: Vec<Stat>,
    orphans: Vec<i32>,
    /// Members that the last walks found, by number.
    held: HashMap<i32, Held>,
    /// Living children of ours that the last walk could not look at.
    unseen: Vec<Identity>,
}

impl Lineage {
    /// Contains what descends from the calling process, which has to be a child subreaper. The zombie of this leader is
    /// neither found nor reaped here.
    #[must_use]
    pub fn new(leader: Identity) -> Self {
        Self { keeps_leader: true, ..Self::of_orphans(Some(leader), Vec::new()) }
    }

    /// Contains what descends from the calling process without the children in `except` and what is below them.
    /// `leader` is the one that the role is given to, if it is still there.
    #[must_use]
    pub fn of_orphans(leader: Option<Identity>, except: Vec<i32>) -> Self {
        let me = lariat_sys::process::pid();
        Self {
            me,
            leader,
            keeps_leader: false,
            except,
            keepers: Vec::new(),
            stats: Vec::new(),
            orphans: Vec::new(),
            held: HashMap::new(),
            unseen: Vec::new(),
        }
    }

    /// Forgets the leader, which was reaped: its number may be anybody's now.
    pub fn forget_leader(&mut self) {
        self.leader = None;
    }

    /// Changes which children are not ours to end, and which of them are `keepers` whose death the caller has yet to take
    /// notice of: while one of these is dead nobody is reaped, so that the caller sees whom it left.
    pub fn set_except(&mut self, except: Vec<i32>, keepers: Vec<i32>) {
        self.except = except;
        self.keepers = keepers;
    }

    /// HAZARD(hand-on-order): the kernel hands on what a keeper leaves and makes a zombie of it in one step, so a child that
    /// was seen before this is asked is not of a keeper that lives.
    fn has_lost_keeper(&self) -> bool {
        let is_alive = |pid: i32| procfs::read_stat(pid).ok().flatten().is_some_and(|stat| stat.is_alive());
        self.keepers.iter().any(|keeper| !is_alive(*keeper))
    }

    /// Returns whether no child is there, dead or alive, but the leader and the excepted.
    pub fn is_without_orphans(&self) -> bool {
        let mut some = Vec::new();
        let enough = self.except.len() + 2;
        tree::some_children(self.me, enough, &mut some).is_ok()
            && !some.iter().any(|pid| self.is_orphan(*pid))
    }

    fn is_orphan(&self, child: i32) -> bool {
        let leader = self.leader.filter(|_| self.keeps_leader).map(|leader| leader.pid);
        Some(child) != leader && !self.except.contains(&child)
    }

    fn orphans(&self, out: &mut Vec<i32>) -> lariat_sys::Result<()> {
        out.clear();
        tree::children(self.me, out)?;
        out.retain(|pid| self.is_orphan(*pid));
        Ok(())
    }

    /// Walks, and holds a descriptor of whoever is found for the signals that follow: asking again who has a number
    /// costs more than the signal. What there is no descriptor for is signalled the slow way.
    fn find(&mut self, stats: &mut Vec<Stat>) -> lariat_sys::Result<()> {
        let mut before = std::mem::take(&mut self.held);
        let held_max = held_max();
        let mut opened = Vec::new();
        let walked = tree::walk_visiting(
            self.me,
            &self.except,
            &mut |pid| {
                let is_known = before.contains_key(&pid);
                if !is_known && opened.len() + before.len() < held_max {
                    opened.extend(PidFd::open_pid(pid).ok().map(|pidfd| (pid, pidfd)));
                }
            },
            stats,
        );
        let mut fresh: HashMap<i32, PidFd> = opened.into_iter().collect();
        for stat in stats.iter().filter(|stat| stat.is_alive()) {
            let known = before.remove(&stat.pid).filter(|held| held.identity == stat.identity());
            let held = known.or_else(|| Held::new(stat.identity(), fresh.remove(&stat.pid)?));
            self.held.extend(held.map(|held| (stat.pid, held)));
        }
        self.unseen.clear();
        let seen: HashSet<i32> = stats.iter().map(|stat| stat.pid).collect();
        let known = before.into_values().map(|held| (held.identity, held.pidfd));
        let unknown = fresh.into_iter().map(|(pid, pidfd)| (Identity::new(pid, UNKNOWN_START), pidfd));
        for (identity, pidfd) in known.chain(unknown) {
            // HAZARD(unseen-member): it is a living child of ours, so its number is its own until we reap it. What is no
            // child of ours becomes one when its parent is gone.
            let pid = identity.pid;
            if !seen.contains(&pid) && matches!(reap::peek_exit(pid), Ok(None)) {
                // HAZARD(fork-while-walking): handed on to us while the walk was on, and missed. It is not hidden.
                if let Ok(Some(stat)) = procfs::read_stat(pid) {
                    self.held.extend(Held::new(stat.identity(), pidfd).map(|held| (pid, held)));
                    stats.push(stat);
                    continue;
                }
                let identity = self.leader.filter(|leader| leader.pid == pid).unwrap_or(identity);
                if let Some(held) = Held::new(identity, pidfd) {
                    self.unseen.push(held.identity);
                    self.held.insert(pid, held);
                }
            }
        }
        walked
    }

    /// Returns who was read, with its inode if it is held: members are remembered until the next walk, and those who
    /// are left for longer.
    fn remembered(&self, stat: &Stat) -> Identity {
        let held = self.held.get(&stat.pid).map(|held| held.identity);
        held.filter(|held| *held == stat.identity()).unwrap_or(stat.identity())
    }

    fn role(&self, stat: &Stat, nested: &mut HashSet<i32>) -> Role {
        if nested.contains(&stat.ppid) || is_keeper(stat) {
            nested.insert(stat.pid);
            return Role::Nested;
        }
        match self.leader {
            Some(leader) if leader.pid == stat.pid && leader.start == stat.start => Role::Leader,
            _ if stat.ppid == self.me => Role::Root,
            _ => Role::Inner,
        }
    }
}

impl Held {
    /// Joins a descriptor with what was read of the process after it was opened; `None` if the process that was opened
    /// had lost its number by then, so that another one may have been read.
    fn new(identity: Identity, pidfd: PidFd) -> Option<Self> {
        pidfd.has_number().then(|| Self { identity: identity.with_inode(pidfd.inode()), pidfd })
    }
}

impl Containment for Lineage {
    fn walk(&mut self, examine: Option<Signal>, out: &mut Vec<Member>) -> lariat_sys::Result<()> {
        out.clear();
        let mut stats = std::mem::take(&mut self.stats);
        stats.clear();
        let walked = self.find(&mut stats);
        let mut nested = HashSet::new();
        for stat in &stats {
            let role = self.role(stat, &mut nested);
            let life = life(stat);
            if role == Role::Leader && life == Life::Zombie && self.keeps_leader {
                continue;
            }
            out.push(Member {
                identity: self.remembered(stat),
                role,
                life,
                pgrp: stat.pgrp,
                comm: stat.comm,
                wants_hangup: examine.is_some_and(|signal| wants_hangup(stat.pid, signal)),
            });
        }
        out.extend(self.unseen.iter().map(|unseen| Member {
            identity: *unseen,
            role: if self.leader == Some(*unseen) { Role::Leader } else { Role::Root },
            // Whether it is stopped nobody says. To be continued harms nobody; not to be takes the grace period away.
            life: Life::Stopped,
            pgrp: 0,
            comm: Comm::new(b"?"),
            wants_hangup: false,
        }));
        self.stats = stats;
        walked
    }

    fn signal(&mut self, member: Identity, signal: Signal) -> lariat_sys::Result<()> {
        let Some(held) = self.held.get(&member.pid).filter(|held| held.identity.is_same(&member)) else {
            return signal_identity(member, signal);
        };
        match held.pidfd.signal(signal) {
            Err(Errno::SRCH) => {
                // HAZARD(pid-reuse): it is gone, and whoever has its number now is another one, be it of the same tick.
                // Should that be a member, the next walk opens it anew.
                self.held.remove(&member.pid);
                Ok(())
            }
            other => other,
        }
    }

    fn kill_group(&mut self, group: i32) {
        // HAZARD(pid-reuse): the number is named through the process that has it: a member that is held, or the leader,
        // whose zombie is kept.
        let held = self.held.get(&group).map(|held| held.pidfd.signal_group(Signal::KILL));
        if held.is_none()
            && let Some(leader) = self.leader.filter(|leader| leader.pid == group)
        {
            let _ = PidFd::open(leader).and_then(|pidfd| pidfd.signal_group(Signal::KILL));
        }
    }

    /// Reaps every dead child but the leader, by number: `P_ALL` would hand out the leader's zombie, which is kept,
    /// for ever (HAZARD(orphan-reap)).
    fn reap(&mut self) -> bool {
        let mut orphans = std::mem::take(&mut self.orphans);
        let may_reap = self.orphans(&mut orphans).is_ok() && !self.has_lost_keeper();
        let mut is_changed = false;
        for pid in orphans.iter().filter(|_| may_reap) {
            is_changed |= matches!(reap::reap(*pid), Ok(Some(_)));
        }
        self.orphans = orphans;
        is_changed
    }

    /// `ECHILD` where nobody is excepted; otherwise no child is there but the excepted.
    fn is_empty(&mut self) -> bool {
        if self.except.is_empty() {
            return !reap::has_children();
        }
        self.is_without_orphans()
    }
}

/// Returns how many members may be held: without a descriptor left, a walk would find nobody but those who are held.
fn held_max() -> usize {
    let spare = lariat_sys::process::open_files_max().map_or(u64::MAX, |max| max.saturating_sub(FREE_MIN));
    HELD_MAX.min(usize::try_from(spare).unwrap_or(HELD_MAX))
}

/// Sends a signal to the process that this identity names; one that is gone is fine.
///
/// # Errors
/// `EPERM` for a process of another user.
pub fn signal_identity(member: Identity, signal: Signal) -> lariat_sys::Result<()> {
    // HAZARD(pid-reuse): the descriptor is opened first and the identity compared after that, so the process that is
    // signalled is the one that was compared.
    match PidFd::open(member).and_then(|pidfd| pidfd.signal(signal)) {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}

/// Returns how alive this process is.
#[must_use]
pub fn life(stat: &Stat) -> Life {
    // Not the state alone: a zombie main thread may have threads that live on.
    match stat.state {
        _ if !stat.is_alive() => Life::Zombie,
        State::Stopped => Life::Stopped,
        _ => Life::Going,
    }
}

/// A keeper is known by its kernel name and its overwritten arguments together. A service that fakes both only loses
/// its own grace period: it is not told, and killed like everybody at the end.
#[must_use]
pub fn is_keeper(stat: &Stat) -> bool {
    let name = KEEPER_COMM.as_bytes();
    stat.comm.as_bytes().starts_with(name)
        && matches!(procfs::cmdline(stat.pid), Ok(Some(line)) if line.starts_with(name))
}

fn wants_hangup(pid: i32, stop_signal: Signal) -> bool {
    match procfs::signal_sets(pid) {
        Ok(Some(sets)) => sets.ignored.contains(stop_signal) && sets.caught.contains(Signal::HUP),
        _ => false,
    }
}
