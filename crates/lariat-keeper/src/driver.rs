//! Carries out what the [machine](crate::machine) decides: polls, walks, signals, reaps, reports.
//!
//! Synchronous, on one thread (the [last words](crate::last_words) have another, once the supervisor is gone). It takes
//! no decision that would be worth a test of its own; the one thing it owns is pacing, so that reaping and walking never
//! take the processor from those who are still dying.
//!
//! Hazards: `HAZARD(orphan-reap)`, `HAZARD(keeper-starved)`.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use lariat_sys::cgroup::Cgroup;
use lariat_sys::identity::{self, Identity};
use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{self, PollFd, PollFlags};
use lariat_sys::reap::{self, ChildEvent, Exit, Usage};
use lariat_sys::signal::{Signal, SignalFd, SignalSet};
use lariat_sys::{Errno, sockets};

use crate::awake::Awake;
use crate::contain::Containment;
use crate::contain::cgroup::Bounded;
use crate::contain::limits::{self, ForkWatch};
use crate::contain::lineage::Lineage;
use crate::last_words::LastWords;
use crate::machine::{Action, Event, Machine};
use crate::names::Names;
use crate::record::{self, Subject};
use crate::stop::{Member, Now};
use crate::store::Drain;
use crate::wire::{End, Named, Notice, Order, PACKET_MAX};

/// Notices that wait for a supervisor that does not read; more are dropped, the last word excepted.
const OUTBOX_MAX: usize = 64;
/// How long the last word waits for a supervisor that does not read, or for a disk that does not write.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(1);
/// A look at the children that takes no longer is followed by the next one at once.
const REAP_UNPACED: Duration = Duration::from_micros(300);
/// Longer ones may take this share of the time at most (one part in).
const REAP_SHARE: u32 = 3;

/// What a driver works with.
#[derive(Debug)]
pub struct Parts {
    /// The supervisor's end of the conversation is the other one.
    pub control: OwnedFd,
    /// The supervisor itself; absent when it was gone before we could look.
    pub supervisor: Option<PidFd>,
    /// Delivers CHLD and CONT.
    pub signals: SignalFd,
    /// The service's output, drained once the supervisor is gone.
    pub drain: Option<Drain>,
    /// Where the end record goes.
    pub ends: Option<OwnedFd>,
    /// Removed when nobody is left and the supervisor is gone.
    pub record: Option<CString>,
    /// The directory that the leader was born in.
    pub cgroup: Option<Cgroup>,
    /// The supervisor removes the directory once it has heard the last word; we do if it is gone.
    pub leaves_cgroup: bool,
    /// The service's label in the end record.
    pub label: String,
    /// The run's id in the end record.
    pub run: String,
    /// Who everybody is to those who hear of them.
    pub names: Names,
    /// The directory has limits.
    pub is_limited: bool,
}

/// The keeper at work.
#[derive(Debug)]
pub struct Driver {
    parts: Parts,
    machine: Machine,
    members: Bounded<Lineage>,
    /// Watches a limited directory.
    forks: Option<ForkWatch>,
    leader: Identity,
    stop_signal: Signal,
    leader_exit: Option<Exit>,
    usage: Usage,
    is_leader_reaped: bool,
    last_words: Option<LastWords>,
    is_alone: bool,
    outbox: VecDeque<Vec<u8>>,
    reap_at: Option<Instant>,
    reap_earliest: Instant,
    left: Vec<Named>,
    awake: Awake,
}

impl Driver {
    /// Takes over a leader that was just spawned by this process.
    #[must_use]
    pub fn new(mut parts: Parts, machine: Machine, leader: Identity, stop_signal: Signal) -> Self {
        let forks = parts.cgroup.as_ref().filter(|_| parts.is_limited).map(ForkWatch::begin);
        let groups = parts.cgroup.take().into_iter().collect();
        Self {
            parts,
            machine,
            forks,
            members: Bounded::new(Lineage::new(leader), groups),
            leader,
            stop_signal,
            leader_exit: None,
            usage: Usage::default(),
            is_leader_reaped: false,
            last_words: None,
            is_alone: false,
            outbox: VecDeque::new(),
            // The leader may be gone already.
            reap_at: Some(Instant::now()),
            reap_earliest: Instant::now(),
            left: Vec::new(),
            awake: Awake::default(),
        }
    }

    /// Runs until the containment is proven empty or given up. Returns how it ended.
    ///
    /// Blocks for as long as the service lives. Once a stop has begun it is bounded by the grace period and
    /// [`crate::stop::KILL_LIMIT`]. `before_the_wait` is called once, when everything about the start is done.
    pub fn run(mut self, before_the_wait: impl FnOnce()) -> End {
        self.say(Notice::Started { leader: self.leader });
        if self.parts.is_limited && self.forks.is_none() {
            self.say(Notice::Unlimited);
        }
        let mut end = None;
        if self.parts.supervisor.is_none() {
            end = self.supervisor_gone();
        }
        if end.is_none() {
            end = self.turn();
        }
        before_the_wait();
        while end.is_none() {
            end = self.turn();
        }
        self.leave(end.unwrap_or_default())
    }

    /// Waits for the next thing and handles it.
    fn turn(&mut self) -> Option<End> {
        let awake = self.machine.is_stopping().then(|| self.awake.still());
        let deadline = [self.machine.wake_at(), self.reap_at, awake].into_iter().flatten().min();
        let ready = self.wait(deadline);
        let mut end = if ready.control { self.read_orders() } else { None };
        if end.is_none() && ready.supervisor {
            end = self.supervisor_gone();
        }
        if ready.signals && self.take_signals() {
            self.reap_at = Some(self.reap_earliest);
        }
        if ready.forks && self.forks.as_mut().is_some_and(ForkWatch::look) {
            self.say(Notice::ForksRefused);
        }
        let now = Instant::now();
        if end.is_none() && self.reap_at.is_some_and(|at| now >= at) {
            end = self.look_at_children();
        }
        if end.is_none() && self.machine.wake_at().is_some_and(|at| Instant::now() >= at) {
            end = self.handle(Event::Woke);
        }
        end
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Ready {
        let control_flags =
            if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::new(&self.parts.signals, PollFlags::IN)];
        let mut index = [None; 3];
        if !self.is_alone {
            index[0] = Some(fds.len());
            fds.push(PollFd::new(&self.parts.control, control_flags));
        }
        if let (Some(supervisor), false) = (&self.parts.supervisor, self.is_alone) {
            index[1] = Some(fds.len());
            fds.push(PollFd::new(supervisor, PollFlags::IN));
        }
        if let Some(forks) = self.forks.as_ref().and_then(ForkWatch::file) {
            index[2] = Some(fds.len());
            fds.push(PollFd::new(forks, PollFlags::PRI));
        }
        if poll::poll(&mut fds, deadline).is_err() {
            // Only ENOMEM is possible here; the next turn tries again, and deadlines still count.
            return Ready::default();
        }
        let is_ready = |i: Option<usize>| i.is_some_and(|i| !fds[i].revents().is_empty());
        Ready {
            signals: is_ready(Some(0)),
            control: is_ready(index[0]),
            supervisor: is_ready(index[1]),
            forks: is_ready(index[2]),
        }
    }

    /// Feeds one event to the machine and carries out everything that follows from it.
    fn handle(&mut self, event: Event<'_>) -> Option<End> {
        let mut queue: VecDeque<Action> = self.machine.step(now(), event).into();
        let mut is_awake = false;
        let mut members: Vec<Member> = Vec::new();
        while let Some(action) = queue.pop_front() {
            let more = match action {
                // Mostly nobody has outlived the leader, which is seen without a walk.
                Action::Walk { .. } if !self.machine.is_stopping() && self.is_leader_the_last() => {
                    self.machine.step(now(), Event::Walked { members: &[], took: Duration::ZERO })
                }
                Action::Walk { examine } => {
                    let examine = examine.then_some(self.stop_signal);
                    walk(&mut self.machine, &mut self.members, examine, &mut members)
                }
                Action::Signal { member, signal } => {
                    if !is_awake && self.machine.is_stopping() {
                        // Before the first of them hears of it, and may stop us.
                        self.awake.still();
                        is_awake = true;
                    }
                    send(&mut self.machine, &mut self.members, member, signal)
                }
                Action::KillAll => {
                    self.members.kill_all();
                    Vec::new()
                }
                Action::KillGroup { group } => {
                    self.members.kill_group(group);
                    Vec::new()
                }
                Action::Tell(notice) => {
                    self.say(notice);
                    Vec::new()
                }
                Action::ReapAll => self.reap_all(),
                Action::Exit(end) => return Some(end),
            };
            queue.extend(more);
        }
        None
    }

    fn read_orders(&mut self) -> Option<End> {
        self.flush();
        let mut packet = [0; PACKET_MAX];
        while !self.is_alone {
            match sockets::recv(&self.parts.control, &mut packet) {
                Ok(0) => return self.supervisor_gone(),
                // A packet that is no order can only come from a bug of ours; there is nobody to tell but the
                // supervisor, which sees the order not carried out.
                Ok(n) => match Order::decode(&packet[..n]) {
                    Ok(order) => {
                        if let Some(end) = self.handle(Event::Order(order)) {
                            return Some(end);
                        }
                    }
                    Err(_) => continue,
                },
                Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(_) => return self.supervisor_gone(),
            }
        }
        None
    }

    fn supervisor_gone(&mut self) -> Option<End> {
        if self.is_alone {
            return None;
        }
        self.go_on_alone();
        self.handle(Event::SupervisorGone)
    }

    /// Takes over what the supervisor did.
    fn go_on_alone(&mut self) {
        self.is_alone = true;
        self.outbox.clear();
        if let Some(drain) = self.parts.drain.take() {
            self.last_words = LastWords::begin(drain, self.parts.supervisor.take());
        }
    }

    /// Says whether the supervisor is dead, or has at least let go of its end of the conversation.
    fn has_lost_supervisor(&self) -> bool {
        let mut fds = vec![PollFd::new(&self.parts.control, PollFlags::empty())];
        fds.extend(self.parts.supervisor.as_ref().map(|supervisor| PollFd::new(supervisor, PollFlags::IN)));
        poll::poll(&mut fds, Some(Instant::now())).is_ok_and(|ready| ready > 0)
    }

    /// Returns whether something happened to a child.
    fn take_signals(&mut self) -> bool {
        let mut has_child_changed = false;
        while let Ok(Some(received)) = self.parts.signals.read() {
            has_child_changed |= received.signal == Signal::CHLD;
        }
        has_child_changed
    }

    /// Sees the leader's stops and exit, reaps everybody else who is dead.
    fn look_at_children(&mut self) -> Option<End> {
        self.reap_at = None;
        let began = Instant::now();
        let mut end = None;
        if self.leader_exit.is_none() {
            end = self.look_at_leader();
        }
        let is_changed = self.members.reap();
        let took = began.elapsed();
        let pause = if took > REAP_UNPACED { took * REAP_SHARE } else { Duration::ZERO };
        self.reap_earliest = Instant::now() + pause;
        if is_changed && end.is_none() {
            end = self.handle(Event::Reaped);
        }
        if end.is_none() && is_changed {
            end = self.look_for_the_end();
        }
        end
    }

    /// Says whether there is no child but the leader's zombie, and so no living descendant, nor anybody in the cgroup who was
    /// moved there: whoever is has to be counted and named before the leader is reaped.
    fn is_leader_the_last(&mut self) -> bool {
        self.leader_exit.is_some()
            && !self.is_leader_reaped
            && self.members.inner().is_without_orphans()
            && self.members.are_groups_empty()
    }

    /// Sees that nobody is left without walking.
    fn look_for_the_end(&mut self) -> Option<End> {
        if self.is_leader_reaped {
            return if self.members.is_empty() { self.handle(Event::Empty) } else { None };
        }
        let is_last = self.is_leader_the_last();
        if is_last { self.handle(Event::Walked { members: &[], took: Duration::ZERO }) } else { None }
    }

    fn look_at_leader(&mut self) -> Option<End> {
        while let Ok(Some(event)) = reap::peek_stops(self.leader.pid) {
            let seen = match event {
                ChildEvent::Stopped { signal, .. } => self.handle(Event::LeaderStopped(signal)),
                ChildEvent::Continued { .. } => self.handle(Event::LeaderContinued),
                ChildEvent::Exited { .. } => break,
            };
            if seen.is_some() {
                return seen;
            }
        }
        match reap::peek_exit(self.leader.pid) {
            Ok(Some(ChildEvent::Exited { exit, .. })) => {
                self.leader_exit = Some(exit);
                self.handle(Event::LeaderExited(exit))
            }
            _ => None,
        }
    }

    fn reap_all(&mut self) -> Vec<Action> {
        if self.leader_exit.is_some() && !self.is_leader_reaped {
            if let Ok(Some((_, usage))) = reap::reap(self.leader.pid) {
                self.usage = usage;
            }
            // From here on its number may belong to somebody else, even to one of its own descendants.
            self.is_leader_reaped = true;
            self.members.inner().forget_leader();
        }
        // Mostly the leader was the last, and there is nobody else to collect.
        let is_empty = self.members.is_empty() || (self.members.reap() && self.members.is_empty());
        self.machine.step(now(), if is_empty { Event::Empty } else { Event::Reaped })
    }

    fn say(&mut self, notice: Notice) {
        let Some(notice) = self.parts.names.outer(notice) else { return };
        if let Notice::Left { named } = notice {
            self.left.push(named);
        }
        if !self.is_alone && (self.outbox.len() < OUTBOX_MAX || matches!(notice, Notice::Ended(_))) {
            self.outbox.push_back(notice.encode());
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let (Some(packet), true) = (self.outbox.front(), !self.is_alone) {
            match sockets::send(&self.parts.control, packet) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => return,
                // Nobody hears it. That the supervisor let go of its end is for the next read to see, which a keeper
                // that no longer listened here would not make: the supervisor's process may well live on.
                Err(_) => drop(self.outbox.pop_front()),
            }
        }
    }

    /// Says the last word and stores the last output.
    fn leave(mut self, end: End) -> End {
        // The service may have ended before we heard of the supervisor's death.
        if !self.is_alone && self.has_lost_supervisor() {
            self.go_on_alone();
        }
        let mut end = End { usage: self.usage, exit: end.exit.or(self.leader_exit), ..end };
        if self.parts.is_limited {
            end.out_of_memory = self.members.groups().first().and_then(limits::out_of_memory);
        }
        if end.left == 0 && (self.is_alone || !self.parts.leaves_cgroup) {
            self.members.remove();
        }
        if let Some(last_words) = self.last_words.take() {
            // A disk that does not answer by then: nobody knows what will become of the rest.
            end.dropped_bytes = last_words.finish(Instant::now() + LAST_WORD_WITHIN).unwrap_or(0);
        }
        if let (Some(ends), true) = (&self.parts.ends, self.is_alone) {
            let Parts { run, label, names, .. } = &self.parts;
            let subject = Subject { run, service: label, keeper: names.keeper(), leader: names.leader() };
            record::append(ends.as_fd(), subject, &end, &self.left);
        }
        if let (Some(record), true) = (&self.parts.record, self.is_alone && end.left == 0) {
            record::forget(record);
        }
        self.say(Notice::Ended(end));
        let deadline = Instant::now() + LAST_WORD_WITHIN;
        while !self.outbox.is_empty() && !self.is_alone && Instant::now() < deadline {
            let mut fds = [PollFd::new(&self.parts.control, PollFlags::OUT)];
            let _ = poll::poll(&mut fds, Some(deadline));
            self.flush();
        }
        end
    }
}

/// Walks and tells the machine.
pub(crate) fn walk(
    machine: &mut Machine,
    containment: &mut impl Containment,
    examine: Option<Signal>,
    members: &mut Vec<Member>,
) -> Vec<Action> {
    let began = Instant::now();
    // A walk that failed half-way still found somebody; the next one finds the others.
    let _ = containment.walk(examine, members);
    machine.step(now(), Event::Walked { members, took: began.elapsed() })
}

/// Signals and tells the machine if that was refused.
pub(crate) fn send(
    machine: &mut Machine,
    containment: &mut impl Containment,
    member: Identity,
    signal: Signal,
) -> Vec<Action> {
    match containment.signal(member, signal) {
        Ok(()) => Vec::new(),
        Err(errno) => machine.step(now(), Event::Refused { member, errno: errno.raw_os_error() }),
    }
}

#[derive(Default)]
struct Ready {
    signals: bool,
    control: bool,
    supervisor: bool,
    forks: bool,
}

pub(crate) fn now() -> Now {
    Now { instant: Instant::now(), ticks: identity::boot_ticks() }
}

/// Blocks every signal and makes a descriptor for CHLD, and for the CONT of [`Awake`]. Returns it.
///
/// # Errors
/// What signalfd(2) gave.
pub fn catch_children() -> lariat_sys::Result<SignalFd> {
    lariat_sys::signal::block(SignalSet::full());
    SignalFd::new(SignalSet::empty().with(Signal::CHLD).with(Signal::CONT))
}

#[cfg(test)]
mod tests {
    use lariat_sys::process;

    use super::*;
    use crate::stop::StopPlan;

    /// A supervisor that lets go of its handle and lives on is seen by the end of the conversation alone.
    #[test]
    fn a_word_that_nobody_hears_does_not_hide_the_end_of_the_conversation() {
        let (ours, control) = sockets::seqpacket_pair().unwrap();
        let me = Identity::current();
        let own = PidFd::open_pid(process::pid()).unwrap();
        let parts = Parts {
            control,
            names: Names::new(None, me, &own).unwrap(),
            supervisor: Some(own),
            signals: SignalFd::new(SignalSet::empty()).unwrap(),
            drain: None,
            ends: None,
            record: None,
            cgroup: None,
            leaves_cgroup: false,
            label: String::new(),
            run: String::new(),
            is_limited: false,
        };
        let plan = StopPlan::default();
        let mut driver = Driver::new(parts, Machine::new(plan, false, me), me, plan.signal);
        assert!(!driver.wait(Some(Instant::now())).control, "nothing was said yet");
        drop(ours);
        driver.say(Notice::LeaderContinued);
        assert!(driver.outbox.is_empty(), "nobody is there to hear it");
        assert!(driver.wait(Some(Instant::now())).control);
    }
}
