//! A kernel made of dice: processes that fork while they die, ignore, daemonize, get stuck; numbers that are used
//! again soon; walks that are no snapshots. Everything follows from the seed.

#![allow(unreachable_pub, reason = "a module of a test")]

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use lariat_keeper::machine::{Action, Event, Machine};
use lariat_keeper::stop::{Life, Member, Now, Role};
use lariat_keeper::wire::{End, Notice};
use lariat_sys::identity::Identity;
use lariat_sys::procfs::Comm;
use lariat_sys::reap::Exit;
use lariat_sys::signal::Signal;

/// Numbers run from 2 to here and are used again as soon as they are free.
const PID_MAX: i32 = 600;
const TICK: Duration = Duration::from_millis(10);
/// The keeper in the simulation.
const KEEPER: i32 = 1;

/// Xorshift: enough for dice, and the same everywhere.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

/// What a process does when it is asked to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Dies this long after the stop signal.
    Cooperative(Duration),
    /// Ignores everything but KILL.
    Stubborn,
    /// Ignores the stop signal, dies of HUP.
    Shell,
    /// Forks this many, then dies.
    ForksWhileDying(u32),
    /// Leaves a daemon and dies.
    DaemonizesOnTerm,
    /// Does not even die of KILL.
    Stuck,
    /// Another user's: no signal reaches it.
    Foreign,
}

#[derive(Clone, Debug)]
pub struct Process {
    pub identity: Identity,
    pub parent: i32,
    pub life: Life,
    pub manner: Manner,
    pub dies_at: Option<Instant>,
    pub forks_every: Option<Duration>,
    pub next_fork: Instant,
    pub born: Instant,
    pub told: u32,
    pub killed: u32,
}

pub struct Kernel {
    pub dice: Dice,
    pub now: Instant,
    pub base: Instant,
    pub processes: BTreeMap<i32, Process>,
    pub forks_left: u32,
    pub leader: Identity,
    pub leader_status: Option<Exit>,
    pub signals: Vec<(Instant, Identity, Signal)>,
    pub child_changed: bool,
    pub history: HashMap<Identity, Process>,
    next_pid: i32,
    stop_signal: Signal,
}

impl Kernel {
    pub fn new(seed: u64, stop_signal: Signal) -> Self {
        let base = Instant::now();
        let nobody = Identity::new(0, 0);
        let mut kernel = Self {
            dice: Dice::new(seed),
            now: base,
            base,
            processes: BTreeMap::new(),
            forks_left: 100,
            leader: nobody,
            leader_status: None,
            signals: Vec::new(),
            child_changed: false,
            history: HashMap::new(),
            next_pid: 2,
            stop_signal,
        };
        kernel.leader = kernel.fork(KEEPER);
        let n = kernel.dice.roll(25);
        for _ in 0..n {
            let parent = kernel.somebody();
            kernel.fork(parent);
        }
        kernel
    }

    pub fn clock(&self) -> Now {
        let passed = self.now.duration_since(self.base);
        Now { instant: self.now, ticks: 1000 + u64::try_from(passed.as_millis() / TICK.as_millis()).unwrap() }
    }

    pub fn alive(&self) -> impl Iterator<Item = &Process> {
        self.processes.values().filter(|p| p.life != Life::Zombie)
    }

    fn somebody(&mut self) -> i32 {
        let pids: Vec<i32> = self.alive().map(|p| p.identity.pid).collect();
        pids[usize::try_from(self.dice.roll(pids.len() as u64)).unwrap()]
    }

    fn fork(&mut self, parent: i32) -> Identity {
        while self.processes.contains_key(&self.next_pid) {
            self.next_pid = if self.next_pid >= PID_MAX { 2 } else { self.next_pid + 1 };
        }
        let identity = Identity::new(self.next_pid, self.clock().ticks);
        // The same number twice in one tick cannot be told apart by anybody; the kernel does not wrap that fast.
        self.next_pid = if self.next_pid >= PID_MAX { 2 } else { self.next_pid + 1 };
        let manner = self.manner();
        let life = if self.dice.chance(5) { Life::Stopped } else { Life::Going };
        let forks_every = self.dice.chance(10).then(|| Duration::from_millis(1 + self.dice.roll(40)));
        self.processes.insert(
            identity.pid,
            Process {
                identity,
                parent,
                life,
                manner,
                dies_at: None,
                forks_every,
                next_fork: self.now + Duration::from_millis(1),
                born: self.now,
                told: 0,
                killed: 0,
            },
        );
        identity
    }

    fn manner(&mut self) -> Manner {
        match self.dice.roll(20) {
            0..=11 => Manner::Cooperative(Duration::from_millis(self.dice.roll(900))),
            12..=14 => Manner::Stubborn,
            15 => Manner::Shell,
            16..=17 => Manner::ForksWhileDying(1 + u32::try_from(self.dice.roll(4)).unwrap()),
            _ => Manner::DaemonizesOnTerm,
        }
    }

    /// Lets time pass until `at`, from one thing that happens to the next.
    pub fn pass_until(&mut self, at: Instant) {
        while self.now < at && !self.child_changed {
            let next = self.alive().filter_map(|p| self.next_of(p)).min();
            self.now = next.map_or(at, |next| next.max(self.now).min(at));
            let pids: Vec<i32> = self.alive().map(|p| p.identity.pid).collect();
            for pid in pids {
                self.live(pid);
            }
        }
    }

    /// When this process does something next.
    fn next_of(&self, process: &Process) -> Option<Instant> {
        let forks = process.forks_every.is_some() && process.life == Life::Going && self.forks_left > 0;
        [process.dies_at, forks.then_some(process.next_fork)].into_iter().flatten().min()
    }

    fn live(&mut self, pid: i32) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.dies_at.is_some_and(|at| at <= self.now) {
            self.die(pid, Exit::Code(0));
        } else if let (Some(every), Life::Going) = (process.forks_every, process.life)
            && process.next_fork <= self.now
            && self.forks_left > 0
        {
            process.next_fork = self.now + every;
            self.forks_left -= 1;
            self.fork(pid);
        }
    }

    /// Becomes a zombie, or vanishes if its parent is not the keeper (whose parents all wait); children move up.
    pub fn die(&mut self, pid: i32, exit: Exit) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.life = Life::Zombie;
        process.dies_at = None;
        let (parent, identity) = (process.parent, process.identity);
        for child in self.processes.values_mut().filter(|p| p.parent == pid) {
            child.parent = KEEPER;
        }
        let orphaned_zombies = self.processes.values().any(|p| p.parent == KEEPER && p.life == Life::Zombie);
        if identity == self.leader {
            self.leader_status = Some(exit);
        }
        if parent == KEEPER {
            self.child_changed = true;
        } else {
            self.bury(pid);
        }
        self.child_changed |= orphaned_zombies;
    }

    fn bury(&mut self, pid: i32) {
        if let Some(process) = self.processes.remove(&pid) {
            self.history.insert(process.identity, process);
        }
    }

    pub fn signal(&mut self, to: Identity, signal: Signal) -> Result<(), i32> {
        self.signals.push((self.now, to, signal));
        let now = self.now;
        let stop_signal = self.stop_signal;
        let Some(process) = self.processes.get_mut(&to.pid).filter(|p| p.identity == to) else {
            return Ok(());
        };
        if process.manner == Manner::Foreign {
            return Err(1);
        }
        if process.life == Life::Zombie {
            return Ok(());
        }
        if signal == Signal::KILL {
            process.killed += 1;
            if process.manner != Manner::Stuck {
                self.die(to.pid, Exit::Signal { signal, core: false });
            }
        } else if signal == Signal::CONT {
            process.life = Life::Going;
            let pending = process.told > 0;
            if pending {
                self.obey(to.pid);
            }
        } else if signal == stop_signal {
            process.told += 1;
            if process.life == Life::Going {
                self.obey(to.pid);
            }
        } else if signal == Signal::HUP && process.manner == Manner::Shell {
            process.dies_at = Some(now);
        }
        Ok(())
    }

    fn obey(&mut self, pid: i32) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match process.manner {
            Manner::Cooperative(delay) => process.dies_at = Some(now + delay),
            Manner::ForksWhileDying(n) => {
                process.dies_at = Some(now + Duration::from_millis(20));
                for _ in 0..n {
                    self.fork(pid);
                }
            }
            Manner::DaemonizesOnTerm => {
                process.dies_at = Some(now + Duration::from_millis(1));
                self.fork(KEEPER);
            }
            Manner::Stubborn | Manner::Shell | Manner::Stuck | Manner::Foreign => {}
        }
    }

    /// A walk that may miss whoever was forked while it was on.
    pub fn walk(&mut self, examine: bool) -> Vec<Member> {
        let mut found = Vec::new();
        let mut queue = vec![KEEPER];
        let mut by_parent: HashMap<i32, Vec<Process>> = HashMap::new();
        for process in self.processes.values() {
            by_parent.entry(process.parent).or_default().push(process.clone());
        }
        while let Some(parent) = queue.pop() {
            for child in by_parent.remove(&parent).unwrap_or_default() {
                let is_fresh = self.now.duration_since(child.born) < Duration::from_millis(2);
                if is_fresh && self.dice.chance(50) {
                    continue;
                }
                if child.identity == self.leader && child.life == Life::Zombie {
                    continue;
                }
                found.push(Member {
                    identity: child.identity,
                    role: match child.parent {
                        _ if child.identity == self.leader => Role::Leader,
                        KEEPER => Role::Root,
                        _ => Role::Inner,
                    },
                    life: child.life,
                    pgrp: self.leader.pid,
                    comm: Comm::new(b"member"),
                    wants_hangup: examine && child.manner == Manner::Shell,
                });
                queue.push(child.identity.pid);
            }
        }
        found
    }

    /// Reaps the keeper's dead children, but not the leader.
    pub fn reap(&mut self) -> bool {
        let leader = self.leader;
        let dead: Vec<i32> = self
            .processes
            .values()
            .filter(|p| p.parent == KEEPER && p.life == Life::Zombie && p.identity != leader)
            .map(|p| p.identity.pid)
            .collect();
        for pid in &dead {
            self.bury(*pid);
        }
        !dead.is_empty()
    }

    pub fn reap_leader(&mut self) {
        if self.leader_status.is_some() {
            let leader = self.leader;
            if self.processes.get(&leader.pid).is_some_and(|p| p.identity == leader) {
                self.bury(leader.pid);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }
}

/// Drives a machine over a kernel as the real driver does.
pub struct World {
    pub kernel: Kernel,
    pub machine: Machine,
    pub notices: Vec<Notice>,
    pub leader_seen: bool,
}

impl World {
    pub fn handle(&mut self, event: Event<'_>) -> Option<End> {
        let mut queue: std::collections::VecDeque<Action> =
            self.machine.step(self.kernel.clock(), event).into();
        while let Some(action) = queue.pop_front() {
            let more = match action {
                Action::Walk { examine } => {
                    let members = self.kernel.walk(examine);
                    let took = Duration::from_micros(20);
                    self.machine.step(self.kernel.clock(), Event::Walked { members: &members, took })
                }
                Action::Signal { member, signal } => match self.kernel.signal(member, signal) {
                    Ok(()) => Vec::new(),
                    Err(errno) => self.machine.step(self.kernel.clock(), Event::Refused { member, errno }),
                },
                Action::Tell(notice) => {
                    self.notices.push(notice);
                    Vec::new()
                }
                // Without it everybody has to be ended as well.
                Action::KillAll | Action::KillGroup { .. } => Vec::new(),
                Action::ReapAll => {
                    self.kernel.reap();
                    self.kernel.reap_leader();
                    let event = if self.kernel.is_empty() { Event::Empty } else { Event::Reaped };
                    self.machine.step(self.kernel.clock(), event)
                }
                Action::Exit(end) => return Some(end),
            };
            queue.extend(more);
        }
        None
    }

    /// Lets the world go on until the machine ends or `limit` is reached.
    pub fn run_until(&mut self, limit: Instant) -> Option<End> {
        loop {
            if let Some(end) = self.children() {
                return Some(end);
            }
            if self.kernel.now >= limit {
                return None;
            }
            let wake = self.machine.wake_at().unwrap_or(limit).min(limit);
            self.kernel.pass_until(wake);
            if !self.kernel.child_changed
                && self.machine.wake_at().is_some_and(|at| at <= self.kernel.now)
                && let Some(end) = self.handle(Event::Woke)
            {
                return Some(end);
            }
        }
    }

    fn children(&mut self) -> Option<End> {
        if !std::mem::take(&mut self.kernel.child_changed) {
            return None;
        }
        if !self.leader_seen
            && let Some(exit) = self.kernel.leader_status
        {
            self.leader_seen = true;
            if let Some(end) = self.handle(Event::LeaderExited(exit)) {
                return Some(end);
            }
        }
        if self.kernel.reap() {
            if let Some(end) = self.handle(Event::Reaped) {
                return Some(end);
            }
            if self.kernel.is_empty() {
                return self.handle(Event::Empty);
            }
        }
        None
    }
}
