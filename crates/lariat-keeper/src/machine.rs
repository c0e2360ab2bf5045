//! Decides what a keeper does: from its leader's start to the proof that nothing of it is left.
//!
//! Pure: no clock, no process, no socket. The [driver](crate::driver) feeds it events and carries out its actions.
//! How members are told and killed is decided one floor below, in [`crate::stop`].
//!
//! | state | leader exits | stop order, or supervisor gone | kill order | empty |
//! |---|---|---|---|---|
//! | `Up` | walk: nobody left → finish; a daemon by design → `Daemon`; else stragglers → `Stopping` | `Stopping` | `Stopping`, killing | `Over` |
//! | `Daemon` | – | `Stopping` | `Stopping`, killing | `Over` |
//! | `Stopping` | goes on | the grace period can only become shorter | killing | `Over` |
//! | `Over` | – | – | – | – |
//!
//! INVARIANT: the leader's zombie is kept until nobody else is alive (or it left a daemon), so that its number, which
//! is also its group's and its session's, cannot be given to a stranger while we still act on the containment.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::reap::Exit;
use lariat_sys::signal::Signal;

use crate::clock::later;
use crate::stop::{Life, Member, Now, Start, StopAction, StopEvent, StopMachine, StopPlan, count};
use crate::wire::{End, Named, Notice, Order};

/// How many stragglers, and how many of those left, are named; the others are counted.
pub const NAMED_MAX: usize = 16;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The supervisor said something.
    Order(Order),
    /// The supervisor died, or closed its end.
    SupervisorGone,
    /// The leader was stopped.
    LeaderStopped(Signal),
    /// The leader goes on.
    LeaderContinued,
    /// The leader is a zombie now.
    LeaderExited(Exit),
    /// Some other member was reaped, or [`Action::ReapAll`] did not make it empty.
    Reaped,
    /// A walk was made. The leader's zombie is not in it.
    Walked {
        /// Who was found, parents before children.
        members: &'a [Member],
        /// How long it took.
        took: Duration,
    },
    /// A signal could not be sent.
    Refused {
        /// To whom.
        member: Identity,
        /// The kernel's error number.
        errno: i32,
    },
    /// The time of [`Machine::wake_at`] has come.
    Woke,
    /// The kernel says that there are no children, hence no descendants.
    Empty,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Walk the containment and come back with [`Event::Walked`].
    Walk {
        /// Look for interactive shells.
        examine: bool,
    },
    /// Send this signal to that member, if it still is that member; [`Event::Refused`] if it may not be.
    Signal {
        /// To whom.
        member: Identity,
        /// What.
        signal: Signal,
    },
    /// Kill everybody at once, where the containment can.
    KillAll,
    /// Kill the process group with this number, if it is one of members only.
    KillGroup {
        /// Its number.
        group: i32,
    },
    /// Tell the supervisor.
    Tell(Notice),
    /// Reap the leader and whoever else is dead; [`Event::Empty`] if nobody is left after that, else [`Event::Reaped`].
    ReapAll,
    /// Say [`Notice::Ended`] with this and exit.
    Exit(End),
}

#[derive(Debug)]
enum State {
    Up,
    Daemon,
    Stopping { stop: Box<StopMachine>, began: Instant },
    Over,
}

/// The keeper's machine.
#[derive(Debug)]
pub struct Machine {
    plan: StopPlan,
    is_daemon: bool,
    leader: Identity,
    exit: Option<Exit>,
    state: State,
    stragglers: u32,
    refused: HashMap<Identity, i32>,
    last_seen: Vec<Member>,
    /// [`Action::ReapAll`] was asked for, and its answer is not there yet.
    is_reaping: bool,
    has_given_up: bool,
}

impl Machine {
    /// Begins with a leader that was just spawned.
    #[must_use]
    pub fn new(plan: StopPlan, is_daemon: bool, leader: Identity) -> Self {
        Self {
            plan,
            is_daemon,
            leader,
            exit: None,
            state: State::Up,
            stragglers: 0,
            refused: HashMap::new(),
            last_seen: Vec::new(),
            is_reaping: false,
            has_given_up: false,
        }
    }

    /// Begins with processes that have no keeper any more: they are ended, nobody is supervised. `told` got the stop
    /// signal already (the kernel sends it to a leader whose keeper dies) and is the first whose end is waited for.
    #[must_use]
    pub fn for_orphans(plan: StopPlan, told: Option<Identity>, now: Now) -> Self {
        let nobody = Identity::new(0, 0);
        let mut machine = Self::new(plan, false, nobody);
        let start = if told.is_some() { Start::Leader } else { Start::Stragglers };
        machine.begin_stop(now, plan.grace, start);
        if let (State::Stopping { stop, .. }, Some(told)) = (&mut machine.state, told) {
            stop.count_as_told(told);
        }
        machine
    }

    /// Takes in the orphans of one more keeper, while others are being ended: nobody is told again, and the newcomers have
    /// their grace period whatever is left of the others'. `told` is their leader, as in [`Self::for_orphans`].
    pub fn join(&mut self, now: Now, told: Option<Identity>, grace: Duration) {
        if let State::Stopping { stop, began } = std::mem::replace(&mut self.state, State::Over) {
            let mut stop = Box::new(stop.renewed(now, grace));
            if let Some(told) = told {
                stop.count_as_told(told);
            }
            self.has_given_up = false;
            self.state = State::Stopping { stop, began };
        }
    }

    /// Returns when to come back with [`Event::Woke`], if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Stopping { stop, .. } => stop.wake_at(),
            State::Up | State::Daemon | State::Over => None,
        }
    }

    /// Returns whether a stop is under way.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        matches!(self.state, State::Stopping { .. })
    }

    /// Returns whether the machine has come to its end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Takes one event and returns what to do, in order.
    pub fn step(&mut self, now: Now, event: Event<'_>) -> Vec<Action> {
        if self.is_over() {
            return Vec::new();
        }
        match event {
            Event::Order(Order::Stop { grace }) => self.stop(now, grace),
            Event::SupervisorGone => match self.state {
                // A stop that is under way has its grace period already and gets no new one.
                State::Stopping { .. } => Vec::new(),
                _ => self.stop(now, self.plan.grace),
            },
            Event::Order(Order::Kill) => {
                let mut actions = self.stop(now, Duration::ZERO);
                actions.extend(self.pass_on(now, StopEvent::Hurry));
                actions
            }
            Event::Order(Order::Signal(signal)) => self.signal_leader(signal),
            Event::LeaderStopped(signal) => vec![Action::Tell(Notice::LeaderStopped { signal })],
            Event::LeaderContinued => vec![Action::Tell(Notice::LeaderContinued)],
            Event::LeaderExited(exit) => self.leader_exited(now, exit),
            Event::Reaped => self.reaped(now),
            Event::Walked { members, took } => self.walked(now, members, took),
            Event::Refused { member, errno } => {
                self.refused.insert(member, errno);
                Vec::new()
            }
            Event::Woke => self.pass_on(now, StopEvent::Woke),
            Event::Empty => self.finish(now, 0),
        }
    }

    fn stop(&mut self, now: Now, grace: Duration) -> Vec<Action> {
        let start = match &mut self.state {
            State::Stopping { .. } => return self.pass_on(now, StopEvent::Cut(later(now.instant, grace))),
            State::Over => return Vec::new(),
            State::Up if self.exit.is_none() => Start::Leader,
            State::Up => Start::Stragglers,
            State::Daemon => Start::Daemon,
        };
        self.begin_stop(now, grace, start);
        self.pass_on(now, StopEvent::Woke)
    }

    fn begin_stop(&mut self, now: Now, grace: Duration, start: Start) {
        let plan = StopPlan { grace, ..self.plan };
        self.state =
            State::Stopping { stop: Box::new(StopMachine::new(plan, start, now)), began: now.instant };
    }

    fn signal_leader(&self, signal: Signal) -> Vec<Action> {
        match self.exit {
            None => vec![Action::Signal { member: self.leader, signal }],
            Some(_) => Vec::new(),
        }
    }

    fn leader_exited(&mut self, now: Now, exit: Exit) -> Vec<Action> {
        self.exit = Some(exit);
        let mut actions = vec![Action::Tell(Notice::LeaderExited { exit })];
        match self.state {
            State::Up => actions.push(Action::Walk { examine: false }),
            _ => actions.extend(self.pass_on(now, StopEvent::LeaderGone)),
        }
        actions
    }

    fn reaped(&mut self, now: Now) -> Vec<Action> {
        let is_answer = std::mem::take(&mut self.is_reaping);
        if matches!(self.state, State::Up) && self.exit.is_some() {
            // The walk after the leader's exit found nobody, and yet the kernel says that somebody is there: it was born
            // while the walk was on (HAZARD(fork-while-killing)).
            return self.outlived(now, &[]);
        }
        if !is_answer {
            return self.pass_on(now, StopEvent::Changed);
        }
        if self.has_given_up {
            return self.leave_them(now);
        }
        // Nobody died: whoever is there is not seen by walks, and walking faster does not help.
        self.pass_on(now, StopEvent::Woke)
    }

    fn reap_all(&mut self) -> Action {
        self.is_reaping = true;
        Action::ReapAll
    }

    fn walked(&mut self, now: Now, members: &[Member], took: Duration) -> Vec<Action> {
        self.last_seen = members.to_vec();
        let alive = members.iter().filter(|m| m.life != Life::Zombie).count();
        let is_leader_gone = self.exit.is_some() || self.leader.pid == 0;
        if alive == 0 && is_leader_gone {
            let mut actions = vec![self.reap_all()];
            // If somebody turns up after all, the stop goes on from here.
            actions.extend(self.pass_on(now, StopEvent::Walked { members, took }));
            return actions;
        }
        match self.state {
            State::Up if is_leader_gone => self.outlived(now, members),
            _ => self.pass_on(now, StopEvent::Walked { members, took }),
        }
    }

    /// The leader exited by itself and somebody is left, though the walk may have missed them all.
    fn outlived(&mut self, now: Now, members: &[Member]) -> Vec<Action> {
        let alive: Vec<&Member> = members.iter().filter(|m| m.life != Life::Zombie).collect();
        let n = count(alive.len()).max(1);
        if self.is_daemon && self.exit == Some(Exit::Code(0)) {
            self.state = State::Daemon;
            return vec![Action::Tell(Notice::Daemonized { members: n }), self.reap_all()];
        }
        self.stragglers = n;
        let mut actions = vec![Action::Tell(Notice::Stragglers { alive: n })];
        actions.extend(alive.iter().take(NAMED_MAX).map(|m| {
            Action::Tell(Notice::Straggler { named: Named { identity: m.identity, comm: m.comm, errno: 0 } })
        }));
        self.begin_stop(now, self.plan.grace, Start::Stragglers);
        actions.extend(self.pass_on(now, StopEvent::Woke));
        actions
    }

    fn pass_on(&mut self, now: Now, event: StopEvent<'_>) -> Vec<Action> {
        let State::Stopping { stop, .. } = &mut self.state else {
            return Vec::new();
        };
        let decided = stop.step(now, event);
        let mut actions = Vec::with_capacity(decided.len());
        for action in decided {
            match action {
                StopAction::Walk { examine } => actions.push(Action::Walk { examine }),
                StopAction::Signal { member, signal } => actions.push(Action::Signal { member, signal }),
                StopAction::KillAll => actions.push(Action::KillAll),
                StopAction::KillGroup { group } => actions.push(Action::KillGroup { group }),
                StopAction::GiveUp => {
                    self.has_given_up = true;
                    actions.push(self.reap_all());
                }
            }
        }
        actions
    }

    /// Nothing helped and the kernel says that somebody is there: names those that the last walk saw alive. Where it saw
    /// nobody, somebody is there all the same (HAZARD(unseen-member)), and counts as one.
    fn leave_them(&mut self, now: Now) -> Vec<Action> {
        let left: Vec<Member> = self.last_seen.iter().filter(|m| m.life != Life::Zombie).copied().collect();
        let named = left.iter().take(NAMED_MAX).map(|m| {
            let errno = self.refused.get(&m.identity).copied().unwrap_or(0);
            Action::Tell(Notice::Left { named: Named { identity: m.identity, comm: m.comm, errno } })
        });
        let mut actions: Vec<Action> = named.collect();
        actions.extend(self.finish(now, count(left.len()).max(1)));
        actions
    }

    fn finish(&mut self, now: Now, left: u32) -> Vec<Action> {
        let (counts, stop_time) = match &self.state {
            State::Stopping { stop, began } => (stop.counts(), now.instant.duration_since(*began)),
            _ => Default::default(),
        };
        self.state = State::Over;
        vec![Action::Exit(End {
            exit: self.exit,
            told: counts.told,
            killed: counts.killed,
            stragglers: self.stragglers,
            left,
            stop_time,
            ..End::default()
        })]
    }
}
