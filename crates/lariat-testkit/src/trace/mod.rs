//! Death at a chosen system call: follows lariat's own processes by ptrace(2) and kills them there.
//!
//! A program's system calls are the steps that anybody else can tell apart, so SIGKILL at each of them in turn is SIGKILL
//! at every step, and needs nothing in the program. Supervisor and keepers are followed, and what a keeper makes until it
//! executes the service; the services themselves are let go there. Calls are counted for each process, those of all its
//! threads together.
//!
//! When the chosen ones were killed, everybody else is let go: from there on the world is as it would be without a tracer.
//! Seizing changes no parent and no signal, and whoever is traced is still reaped by the tracer first, so everything is
//! single-threaded here: a test that traces waits for nothing but [`Trace::run`].

mod names;
mod ptrace;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use crate::census;
use crate::command::{Command, Running};
use crate::reaper::{self, Change};
use crate::wait::PATIENCE;
use ptrace::{Call, Stop, Ticks};

/// How often the condition of [`Trace::run`] is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// One of lariat's processes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    /// The command that waits for a supervisor in the background.
    Caller,
    /// The supervisor.
    Supervisor,
    /// The keeper that was started as this one, counted from 0; from the moment it was cloned.
    Keeper(usize),
    /// What that keeper cloned, until it executes the service.
    Child(usize),
}

/// Which side of a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// It was not made.
    Entry,
    /// It was made, and nothing after it.
    Exit,
}

/// A step of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// Whose.
    pub who: Who,
    /// Which of its system calls, counted from 0.
    pub nth: usize,
    /// Which side of it.
    pub when: When,
}

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victims {
    /// The supervisor.
    Supervisor,
    /// This keeper.
    Keeper(usize),
    /// Supervisor and all keepers, one right after the other.
    All,
}

impl Victims {
    fn has(self, who: Who) -> bool {
        match self {
            Self::Supervisor => who == Who::Supervisor,
            Self::Keeper(index) => who == Who::Keeper(index),
            Self::All => matches!(who, Who::Supervisor | Who::Keeper(_)),
        }
    }
}

/// Who is killed where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Strike {
    /// Where.
    pub at: Point,
    /// Who.
    pub victims: Victims,
    /// Who dies after that, so many system calls of its own later.
    pub then: Option<(Victims, usize)>,
}

#[derive(Debug)]
struct Hold {
    who: Who,
    name: &'static str,
    /// So many are let pass.
    skip: usize,
}

#[derive(Debug)]
struct Thread {
    process: i32,
    /// The call that it is in.
    call: Option<usize>,
}

#[derive(Debug)]
struct Process {
    who: Who,
    calls: Vec<u64>,
    /// During which steps of the supervisor it was there.
    life: Range<usize>,
}

/// A traced command.
pub struct Trace {
    running: Running,
    /// Device and inode of the executable whose processes are followed.
    subject: (u64, u64),
    threads: BTreeMap<i32, Thread>,
    /// Everybody who was followed, the dead included.
    processes: BTreeMap<i32, Process>,
    /// Stopped at birth before their maker has said so.
    early: Vec<i32>,
    keepers: usize,
    strike: Option<Strike>,
    /// Where somebody is to be held up.
    hold: Option<Hold>,
    held: Option<i32>,
    /// Deaths that are still to come.
    second: Option<(Victims, usize)>,
    struck_at: Option<String>,
    killed: BTreeMap<i32, Killed>,
    is_over: bool,
}

/// A process that was killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Killed {
    /// Which one.
    pub who: Who,
    /// How many threads it had at that moment.
    pub threads: usize,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let struck = self.struck_at.as_deref().unwrap_or("nobody was killed");
        write!(f, "{struck}")?;
        for process in self.processes.values() {
            let last: Vec<String> =
                process.calls.iter().rev().take(4).rev().map(|n| names::name(*n)).collect();
            write!(f, "; {:?} made {} calls, the last {}", process.who, process.calls.len(), last.join(" "))?;
        }
        Ok(())
    }
}

impl Trace {
    /// Starts a command whose first process is `top`, and follows every process that runs `subject`.
    ///
    /// # Errors
    /// When the kernel lets nobody trace; the command was killed then.
    ///
    /// # Panics
    /// When the command cannot be started.
    pub fn start(command: Command, subject: &OsStr, top: Who, strike: Option<Strike>) -> io::Result<Self> {
        let file = fs::metadata(subject).expect("the executable is there");
        let (mut pid_read, pid_write) = io::pipe()?;
        let (go_read, mut go_write) = io::pipe()?;
        let (pid_fd, go_fd) = (pid_write.as_raw_fd(), go_read.as_raw_fd());
        let command = command.in_child(move || wait_for_go(pid_fd, go_fd));
        reaper::set_traced(true);
        // Starting returns when the command was executed, which waits for the word that is given here.
        let (running, seized) = std::thread::scope(|scope| {
            let starting = scope.spawn(move || command.start());
            let mut bytes = [0; 4];
            let seized =
                pid_read.read_exact(&mut bytes).and_then(|()| ptrace::seize(i32::from_ne_bytes(bytes)));
            let _ = go_write.write_all(b"g");
            (starting.join().expect("the command can be started"), seized)
        });
        drop((pid_write, go_read));
        if let Err(error) = seized {
            reaper::set_traced(false);
            running.signal(libc::SIGKILL);
            return Err(error);
        }
        let pid = running.pid();
        Ok(Self {
            running,
            subject: (file.dev(), file.ino()),
            threads: BTreeMap::from([(pid, Thread { process: pid, call: None })]),
            processes: BTreeMap::from([(pid, Process { who: top, calls: Vec::new(), life: 0..usize::MAX })]),
            early: Vec::new(),
            keepers: 0,
            strike,
            hold: None,
            held: None,
            second: None,
            struck_at: None,
            killed: BTreeMap::new(),
            is_over: false,
        })
    }

    /// Returns the command.
    #[must_use]
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Returns whether somebody was killed.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        self.struck_at.is_some()
    }

    /// Returns who was killed, by number.
    #[must_use]
    pub fn killed(&self) -> &BTreeMap<i32, Killed> {
        &self.killed
    }

    /// Returns whether nobody is followed any more: all are dead, or the last victim is.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Holds a process up at the entry of its first call with this name, after `skip` others with that name, until
    /// [`Trace::strike`].
    pub fn hold(&mut self, who: Who, name: &'static str, skip: usize) {
        self.hold = Some(Hold { who, name, skip });
    }

    /// Returns whether the process that was to be held up is there.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Kills these where they are, and follows nobody any more.
    pub fn strike(&mut self, victims: Victims) {
        let ticks = Ticks::start();
        let at = self.held.and_then(|tid| self.threads.get(&tid)).map_or(0, |thread| thread.process);
        if let Some((who, nth, number)) = self.processes.get(&at).and_then(|process| {
            Some((process.who, process.calls.len().checked_sub(1)?, *process.calls.last()?))
        }) {
            self.kill(victims, Point { who, nth, when: When::Entry }, number);
        }
        self.let_go();
        drop(ticks);
        reaper::set_traced(false);
    }

    /// Returns every step that was made: whose, which, and the call's name.
    #[must_use]
    pub fn steps(&self) -> Vec<(Who, usize, String)> {
        let of = |process: &Process| {
            let who = process.who;
            let named =
                process.calls.iter().enumerate().map(move |(nth, number)| (who, nth, names::name(*number)));
            named.collect::<Vec<_>>()
        };
        self.processes.values().flat_map(of).collect()
    }

    /// Returns during which steps of the supervisor this process was there.
    #[must_use]
    pub fn life_of(&self, who: Who) -> Option<Range<usize>> {
        self.processes.values().find(|process| process.who == who).map(|process| process.life.clone())
    }

    fn supervisor_steps(&self) -> usize {
        self.processes
            .values()
            .find(|process| process.who == Who::Supervisor)
            .map_or(0, |one| one.calls.len())
    }

    /// Returns how many system calls each process has made.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<Who, usize> {
        self.processes.values().map(|process| (process.who, process.calls.len())).collect()
    }

    /// Follows until `until` says so, or until nobody is followed any more. Returns whether it was `until`.
    ///
    /// # Panics
    /// After [`PATIENCE`], with what was waited for and what everybody was doing.
    #[track_caller]
    pub fn run(&mut self, what: &str, mut until: impl FnMut(&Self) -> bool) -> bool {
        let ticks = Ticks::start();
        let deadline = Instant::now() + PATIENCE;
        let mut look_at = Instant::now();
        while !self.is_over {
            let now = Instant::now();
            if now >= look_at {
                if until(self) {
                    return true;
                }
                look_at = now + LOOK_EVERY;
                assert!(now < deadline, "waited {PATIENCE:?} for: {what}; {self}");
            }
            if let Some(change) = reaper::wait_change() {
                self.changed(change);
            }
            if self.has_struck() && self.second.is_none() {
                self.let_go();
            }
            self.is_over |= self.threads.is_empty();
        }
        drop(ticks);
        reaper::set_traced(false);
        false
    }

    fn thread_ended(&mut self, tid: i32) {
        let Some(Thread { process, .. }) = self.threads.remove(&tid) else { return };
        let steps = self.supervisor_steps();
        let was_last = !self.threads.values().any(|thread| thread.process == process);
        if let Some(process) = self.processes.get_mut(&process).filter(|_| was_last) {
            process.life.end = steps;
        }
    }

    fn changed(&mut self, (tid, status): Change) {
        if !libc::WIFSTOPPED(status) {
            self.thread_ended(tid);
            return self.early.retain(|early| *early != tid);
        }
        let Some(thread) = self.threads.get_mut(&tid) else { return self.early.push(tid) };
        // Whatever cannot be continued was killed meanwhile, and its end comes next.
        let _ = match ptrace::why(tid, status) {
            Stop::Call(call) => {
                let nth = self.processes.get_mut(&thread.process).and_then(|p| count(thread, p, call));
                if let Some((point, number)) = nth {
                    self.reached(point, number);
                    if self.is_to_be_held(point, number) {
                        self.held = Some(tid);
                        return;
                    }
                }
                ptrace::go_on(tid, 0)
            }
            Stop::Born(born) => {
                self.born(tid, born);
                ptrace::go_on(tid, 0)
            }
            Stop::Executed if !self.is_subject(tid) => {
                self.threads.remove(&tid);
                ptrace::detach(tid, 0)
            }
            Stop::Executed | Stop::Plain => ptrace::go_on(tid, 0),
            Stop::Group => ptrace::listen(tid),
            Stop::Signal(signal) => ptrace::go_on(tid, signal),
        };
    }

    fn is_to_be_held(&mut self, point: Point, number: u64) -> bool {
        let is_there = |hold: &Hold| {
            point.when == When::Entry && point.who == hold.who && names::name(number) == hold.name
        };
        match &mut self.hold {
            Some(hold) if is_there(hold) && hold.skip > 0 => {
                hold.skip -= 1;
                false
            }
            Some(hold) if is_there(hold) => {
                self.hold = None;
                true
            }
            _ => false,
        }
    }

    fn is_subject(&self, pid: i32) -> bool {
        let file = fs::metadata(format!("/proc/{pid}/exe"));
        file.is_ok_and(|file| (file.dev(), file.ino()) == self.subject)
    }

    fn born(&mut self, maker: i32, tid: i32) {
        let Some(process) = self.threads.get(&maker).map(|thread| thread.process) else { return };
        let own = group_of(tid).unwrap_or(process);
        self.threads.insert(tid, Thread { process: own, call: None });
        if own != process {
            let who = match self.processes.get(&process).map(|process| process.who) {
                Some(Who::Caller) => Who::Supervisor,
                Some(Who::Keeper(index) | Who::Child(index)) => Who::Child(index),
                Some(Who::Supervisor) | None => {
                    self.keepers += 1;
                    Who::Keeper(self.keepers - 1)
                }
            };
            let life = self.supervisor_steps()..usize::MAX;
            self.processes.insert(own, Process { who, calls: Vec::new(), life });
        }
        if let Some(at) = self.early.iter().position(|early| *early == tid) {
            self.early.swap_remove(at);
            let _ = ptrace::go_on(tid, 0);
        }
    }

    fn reached(&mut self, point: Point, number: u64) {
        if let Some((victims, left)) = self.second {
            if point.when == When::Entry && victims.has(point.who) {
                self.second = left.checked_sub(1).map(|left| (victims, left));
                if left == 0 {
                    self.kill(victims, point, number);
                }
            }
        } else if let Some(strike) = self.strike.filter(|strike| strike.at == point && !self.has_struck()) {
            self.kill(strike.victims, point, number);
            self.second = strike.then.filter(|_| self.has_struck());
        }
    }

    /// Kills whoever of them is alive. It is no strike if nobody is.
    fn kill(&mut self, victims: Victims, point: Point, number: u64) {
        let mut is_anybody = false;
        for (pid, process) in &self.processes {
            let is_followed = self.threads.values().any(|thread| thread.process == *pid);
            if is_followed && victims.has(process.who) {
                self.killed.insert(*pid, Killed { who: process.who, threads: threads_of(*pid) });
                // SAFETY: no memory. It is traced and its end was not collected, so the number is its own.
                unsafe { libc::kill(*pid, libc::SIGKILL) };
                is_anybody = true;
            }
        }
        if !is_anybody {
            return;
        }
        let before = self.struck_at.take().map(|before| format!("{before}, then ")).unwrap_or_default();
        let Point { who, nth, when } = point;
        let name = names::name(number);
        self.struck_at =
            Some(format!("{before}{victims:?} killed at {when:?} of {who:?}'s call {nth}, {name}"));
    }

    /// Detaches from everybody. Whoever was killed is collected.
    fn let_go(&mut self) {
        let mut gone = BTreeSet::new();
        // They are in a stop that was reported already, and nothing more is heard of that.
        for tid in std::mem::take(&mut self.early).into_iter().chain(self.held.take()) {
            if ptrace::detach(tid, 0).is_ok() {
                self.threads.remove(&tid);
                gone.insert(tid);
            } else {
                // It was killed meanwhile.
                self.threads.entry(tid).or_insert(Thread { process: tid, call: None });
            }
        }
        for tid in self.threads.keys() {
            // It fails for the dead, whose end is waited for all the same.
            let _ = ptrace::interrupt(*tid);
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.threads.is_empty() {
                // Whose maker was killed in the middle of the birth is followed as well, and nobody says so.
                let unsaid = followed().into_iter().filter(|tid| !gone.contains(tid));
                self.threads.extend(unsaid.map(|tid| (tid, Thread { process: tid, call: None })));
                if self.threads.is_empty() {
                    break;
                }
            }
            let Some((tid, status)) = reaper::wait_change() else { continue };
            self.threads.remove(&tid);
            gone.insert(tid);
            if libc::WIFSTOPPED(status) {
                let signal = match ptrace::why(tid, status) {
                    Stop::Signal(signal) => signal,
                    Stop::Born(born) if !gone.contains(&born) => {
                        self.threads.insert(born, Thread { process: born, call: None });
                        0
                    }
                    _ => 0,
                };
                let _ = ptrace::detach(tid, signal);
            }
        }
        self.is_over = true;
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if !self.is_over {
            let ticks = Ticks::start();
            self.let_go();
            drop(ticks);
        }
        reaper::set_traced(false);
    }
}

/// Counts a call, and says which step this is.
fn count(thread: &mut Thread, process: &mut Process, call: Call) -> Option<(Point, u64)> {
    let (nth, when) = match call {
        Call::Entry(number) => {
            process.calls.push(number);
            thread.call = Some(process.calls.len() - 1);
            (thread.call?, When::Entry)
        }
        Call::Exit => (thread.call.take()?, When::Exit),
        Call::None => return None,
    };
    Some((Point { who: process.who, nth, when }, *process.calls.get(nth)?))
}

/// Returns how many threads of a process are alive.
fn threads_of(pid: i32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let is_alive = |task: &fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // Behind the name, which may have anything in it.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    tasks.filter(is_alive).count()
}

/// Returns the process that a thread belongs to.
fn group_of(tid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

/// Returns the processes that the calling thread traces.
fn followed() -> Vec<i32> {
    // SAFETY: takes nothing and cannot fail.
    let us = unsafe { libc::gettid() }.to_string();
    let is_ours = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() == us))
    };
    census::pids().into_iter().filter(is_ours).collect()
}

/// In the child: says who it is, and waits until it is traced.
fn wait_for_go(pid_fd: i32, go_fd: i32) -> io::Result<()> {
    let mut byte = 0_u8;
    // SAFETY: both descriptors are open until exec; the pointers are to live values of the lengths given.
    unsafe {
        let pid = libc::getpid().to_ne_bytes();
        if libc::write(pid_fd, pid.as_ptr().cast(), pid.len()) != 4 {
            return Err(io::Error::last_os_error());
        }
        while libc::read(go_fd, (&raw mut byte).cast(), 1) < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
    Ok(())
}
