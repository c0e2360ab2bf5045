//! Decides how a set of processes is ended: who is told when, who is killed when, and when to stop trying.
//!
//! Pure: it reads no clock and touches no process. A driver gives it walks of a containment and carries its actions
//! out; the keeper uses it for one service, a supervisor for orphans it adopted, recovery for what a crash left.
//!
//! The order of a stop: the *first* to be told (the leader, by default) → the *rest*, when the first are gone or one
//! second has passed → kill passes at the end of the grace period. Telling everybody at once breaks programs whose
//! leader forwards the signal or still needs its workers; telling the leader alone leaves shells' children to KILL
//! (docs/design/001-stopping.md).
//!
//! It does not prove emptiness: that is the containment's business ([`crate::contain`]). It deliberately knows no
//! parent chains beyond [`Role`].
//!
//! Hazards: `HAZARD(fork-while-killing)`, `HAZARD(told-twice)`.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::procfs::Comm;
use lariat_sys::signal::Signal;

use crate::clock::later;

/// How long the first to be told have before the rest is told as well.
pub const STAGE_DELAY: Duration = Duration::from_secs(1);
/// When those who were told and are still there are examined for being interactive shells.
pub const EXAMINE_DELAY: Duration = Duration::from_millis(30);
/// How long kill passes go on at least before what is left is given up: some do not die of KILL (HAZARD(stuck-member)).
pub const KILL_WITHIN: Duration = Duration::from_secs(5);
/// How long kill passes go on at most, while members still die and new ones appear.
pub const KILL_LIMIT: Duration = Duration::from_secs(15);
/// The pauses after which a member that did not die is killed again.
const KILL_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// Bounds of the pause between two walks that nothing else asked for.
const WALK_PAUSE_MIN: Duration = Duration::from_millis(1);
const WALK_PAUSE_MAX: Duration = Duration::from_millis(500);
/// A walk may take this share of the time at most (one part in), so that walking does not starve the dying.
const WALK_SHARE: u32 = 4;

/// Who is told first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StopScope {
    /// The leader; the rest when it is gone, or after one second.
    #[default]
    Staged,
    /// The leader; the rest only when it is gone.
    Leader,
    /// The leader's process group; the rest when it is gone, or after one second.
    Group,
    /// Everybody at once.
    All,
}

/// How to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StopPlan {
    /// The polite signal; never KILL or STOP.
    pub signal: Signal,
    /// Who is told first.
    pub scope: StopScope,
    /// Time from the begin of the stop to the first kill pass. Shared by all members, however late they are told.
    pub grace: Duration,
}

impl Default for StopPlan {
    fn default() -> Self {
        Self { signal: Signal::TERM, scope: StopScope::Staged, grace: Duration::from_secs(10) }
    }
}

/// The place of a member in its containment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The process that was spawned.
    Leader,
    /// A direct child of whoever holds the containment: a daemon, or an orphan.
    Root,
    /// Any other.
    Inner,
    /// A keeper of a lariat run inside this containment, or below one: told by its own supervisor, not by us.
    Nested,
}

/// How alive a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Runs, sleeps, or waits in the kernel.
    Going,
    /// Stopped by a signal (`T`): it hears nothing but KILL until it is continued.
    Stopped,
    /// Dead, not yet reaped by its parent.
    Zombie,
}

/// One process found by a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who it is.
    pub identity: Identity,
    /// Its place.
    pub role: Role,
    /// How alive it is.
    pub life: Life,
    /// Its process group's number.
    pub pgrp: i32,
    /// The kernel's name for it, for people.
    pub comm: Comm,
    /// It ignores the stop signal and catches HUP, as interactive shells do. Only known after a walk that was asked
    /// to examine; false otherwise.
    pub wants_hangup: bool,
}

/// What this stop starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// A leader is there.
    Leader,
    /// The leader left a daemon by design: the roots stand in for it.
    Daemon,
    /// The leader is gone, or there never was one: everybody is told at once.
    Stragglers,
}

/// The time, as a driver passes it in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Monotonic, for deadlines.
    pub instant: Instant,
    /// Clock ticks since boot, the unit of [`Identity::start`].
    pub ticks: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum StopEvent<'a> {
    /// The time that was asked for has come, or the stop begins.
    Woke,
    /// Somebody died.
    Changed,
    /// The leader died.
    LeaderGone,
    /// A walk was made, parents before children. It took this long.
    Walked {
        /// Everyone but the zombie of the leader.
        members: &'a [Member],
        /// How long the walk took.
        took: Duration,
    },
    /// No more grace: kill now.
    Hurry,
    /// The grace period ends at this instant if that is sooner than it would have.
    Cut(Instant),
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopAction {
    /// Walk the containment and come back with [`StopEvent::Walked`].
    Walk {
        /// Fill in [`Member::wants_hangup`] too.
        examine: bool,
    },
    /// Send this signal to that member if it still is that member.
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
    /// What the last walk saw cannot be ended. Nothing more will be done.
    GiveUp,
}

/// Counts for the report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StopCounts {
    /// Members that got the stop signal.
    pub told: u32,
    /// Members that got KILL.
    pub killed: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Nobody was told yet.
    Begin,
    /// The first were told.
    First { rest_at: Option<Instant> },
    /// Everybody of this round was told.
    Rest,
    /// Kill passes, the first of them at `since`.
    Kill { since: Option<Instant> },
    /// Given up.
    Over,
}

/// Ends a set of processes, politely first.
#[derive(Debug)]
pub struct StopMachine {
    plan: StopPlan,
    start: Start,
    phase: Phase,
    grace_end: Instant,
    /// INVARIANT: who is in here got the stop signal once and never gets it again (HAZARD(told-twice)).
    told: HashSet<Identity>,
    /// Those of them whom somebody else told, until they are met: whoever tells a stopped process has to continue it.
    told_elsewhere: HashSet<Identity>,
    /// Who was there when the round began; the epoch is that moment in clock ticks.
    roster: HashSet<Identity>,
    /// The same with all that is known of them, until the rest was told.
    waiting: Vec<Member>,
    epoch: u64,
    /// The rounds' examination for interactive shells: due at, until it was made.
    examine_at: Option<Instant>,
    hung_up: HashSet<Identity>,
    killed: HashMap<Identity, (usize, Instant)>,
    last_death: Instant,
    alive_before: usize,
    walk_pause: Duration,
    walk_at: Instant,
    walk_earliest: Instant,
    is_walking: bool,
}

impl StopMachine {
    /// Begins a stop at `now`. The first step is [`StopEvent::Woke`].
    #[must_use]
    pub fn new(plan: StopPlan, start: Start, now: Now) -> Self {
        Self {
            plan,
            start,
            phase: Phase::Begin,
            grace_end: later(now.instant, plan.grace),
            told: HashSet::new(),
            told_elsewhere: HashSet::new(),
            roster: HashSet::new(),
            waiting: Vec::new(),
            epoch: now.ticks,
            examine_at: None,
            hung_up: HashSet::new(),
            killed: HashMap::new(),
            last_death: now.instant,
            alive_before: 0,
            walk_pause: WALK_PAUSE_MIN,
            walk_at: now.instant,
            walk_earliest: now.instant,
            is_walking: false,
        }
    }

    /// Begins anew, for members that have come to those of this stop: who was told stays told, and everybody has what is
    /// left of the old grace period or the new one, whichever is longer.
    #[must_use]
    pub fn renewed(self, now: Now, grace: Duration) -> Self {
        let left = self.grace_end.saturating_duration_since(now.instant);
        let plan = StopPlan { grace: grace.max(left), ..self.plan };
        let killed = self.killed.into_keys().map(|member| (member, (0, now.instant))).collect();
        Self { told: self.told, killed, hung_up: self.hung_up, ..Self::new(plan, Start::Leader, now) }
    }

    /// Counts a member as told that got the stop signal from somebody else.
    pub fn count_as_told(&mut self, member: Identity) {
        self.told.insert(member);
        self.told_elsewhere.insert(member);
    }

    /// Returns how many were told and killed so far.
    #[must_use]
    pub fn counts(&self) -> StopCounts {
        StopCounts { told: count(self.told.len()), killed: count(self.killed.len()) }
    }

    /// Returns whether kill passes have begun.
    #[must_use]
    pub fn is_killing(&self) -> bool {
        matches!(self.phase, Phase::Kill { .. } | Phase::Over)
    }

    /// Returns when to come back with [`StopEvent::Woke`], if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let phase_end = match self.phase {
            Phase::Over => return None,
            Phase::Begin => Some(self.walk_at),
            Phase::First { rest_at } => {
                rest_at.map_or(Some(self.grace_end), |at| Some(at.min(self.grace_end)))
            }
            Phase::Rest => Some(self.grace_end),
            Phase::Kill { .. } => None,
        };
        [phase_end, self.examine_at, Some(self.walk_at)].into_iter().flatten().min()
    }

    /// Takes one event and returns what to do, in order.
    pub fn step(&mut self, now: Now, event: StopEvent<'_>) -> Vec<StopAction> {
        let mut actions = Vec::new();
        if self.phase == Phase::Over {
            return actions;
        }
        let saw_nobody = matches!(event, StopEvent::Walked { members, .. } if members.iter().all(|m| m.life == Life::Zombie));
        match event {
            StopEvent::Woke => {}
            StopEvent::Changed => {
                self.last_death = now.instant;
                self.walk_pause = WALK_PAUSE_MIN;
                self.walk_at = self.walk_earliest.max(now.instant);
            }
            StopEvent::LeaderGone => {
                self.last_death = now.instant;
                self.walk_pause = WALK_PAUSE_MIN;
                self.walk_at = self.walk_earliest.max(now.instant);
                self.tell_those_who_waited(now, &mut actions);
            }
            StopEvent::Hurry => self.begin_killing(now),
            StopEvent::Cut(at) => self.grace_end = self.grace_end.min(at),
            StopEvent::Walked { members, took } => {
                self.is_walking = false;
                self.pace(now, took);
                self.decide(now, members, &mut actions);
            }
        }
        if now.instant >= self.grace_end && !self.is_killing() {
            self.begin_killing(now);
        }
        // Whether nobody is the end is proven by whoever walked, who says [`StopEvent::Changed`] if it is not: another walk
        // before that would only find nobody again.
        if !saw_nobody || self.is_killing() {
            self.walk_if_due(now, &mut actions);
        }
        actions
    }

    fn begin_killing(&mut self, now: Now) {
        if !self.is_killing() {
            self.phase = Phase::Kill { since: None };
            self.examine_at = None;
            self.last_death = now.instant;
            self.walk_pause = WALK_PAUSE_MIN;
            self.walk_at = now.instant;
        }
    }

    /// Sets the next walk that nobody asks for: soon after a death, ever later while nothing happens.
    fn pace(&mut self, now: Now, took: Duration) {
        self.walk_earliest = now.instant + took * WALK_SHARE;
        self.walk_pause = (self.walk_pause * 2).min(WALK_PAUSE_MAX);
        self.walk_at = now.instant + self.walk_pause.max(took * WALK_SHARE);
    }

    fn walk_if_due(&mut self, now: Now, actions: &mut Vec<StopAction>) {
        let rest_is_due = matches!(self.phase, Phase::First { rest_at: Some(at) } if now.instant >= at);
        let examine = self.examine_at.is_some_and(|at| now.instant >= at);
        let is_due = now.instant >= self.walk_at || rest_is_due || examine;
        if is_due && !self.is_walking && self.phase != Phase::Over {
            self.is_walking = true;
            actions.push(StopAction::Walk { examine });
        }
    }

    fn decide(&mut self, now: Now, members: &[Member], actions: &mut Vec<StopAction>) {
        let alive = members.iter().filter(|m| m.life != Life::Zombie).count();
        if alive < self.alive_before {
            self.last_death = now.instant;
            self.walk_pause = WALK_PAUSE_MIN;
            self.walk_at = self.walk_earliest;
        }
        self.alive_before = alive;
        match self.phase {
            Phase::Begin => self.tell_first(now, members, actions),
            Phase::First { rest_at } => {
                let is_over = rest_at.is_some_and(|at| now.instant >= at) || self.all_told_are_gone(members);
                if is_over {
                    self.tell_rest(now, members, actions);
                }
            }
            Phase::Rest => {
                if self.all_told_are_gone(members) {
                    // Those who are left were born after the stop began: a trap's own helper has had its time now.
                    self.begin_round(now, members);
                    self.tell_rest(now, members, actions);
                } else {
                    self.tell_overlooked(members, actions);
                }
            }
            Phase::Kill { since } => self.kill_pass(now, since, members, actions),
            Phase::Over => {}
        }
        if matches!(self.phase, Phase::First { .. } | Phase::Rest) {
            self.hang_up_shells(now, members, actions);
        }
    }

    /// Notes who is there before the first signal of a round is sent.
    fn begin_round(&mut self, now: Now, members: &[Member]) {
        self.epoch = now.ticks;
        self.waiting = members.to_vec();
        self.roster = members.iter().map(|m| m.identity).collect();
    }

    fn tell_first(&mut self, now: Now, members: &[Member], actions: &mut Vec<StopAction>) {
        // The round begins with the first walk, not with the request: nobody was told in between.
        self.begin_round(now, members);
        let is_first = |m: &Member| match self.start {
            Start::Leader => m.role == Role::Leader,
            Start::Daemon => m.role == Role::Root,
            Start::Stragglers => true,
        };
        let groups: HashSet<i32> = members.iter().filter(|m| is_first(m)).map(|m| m.pgrp).collect();
        let chosen = |m: &&Member| match self.plan.scope {
            StopScope::Staged | StopScope::Leader => is_first(m),
            StopScope::Group => is_first(m) || groups.contains(&m.pgrp),
            StopScope::All => true,
        };
        let first: Vec<Member> = members.iter().filter(chosen).copied().collect();
        for member in &first {
            self.tell(member, actions);
        }
        self.examine_at = Some(now.instant + EXAMINE_DELAY);
        self.phase =
            if self.told.is_empty() || self.start == Start::Stragglers || self.plan.scope == StopScope::All {
                Phase::Rest
            } else {
                let waits = self.plan.scope != StopScope::Leader;
                Phase::First { rest_at: waits.then(|| now.instant + STAGE_DELAY) }
            };
        if self.phase == Phase::Rest {
            self.tell_rest(now, members, actions);
        }
    }

    /// The leader was the first to be told and is gone: the rest need not wait for another walk.
    fn tell_those_who_waited(&mut self, now: Now, actions: &mut Vec<StopAction>) {
        let by_leader = self.start == Start::Leader && self.plan.scope != StopScope::Group;
        if by_leader && matches!(self.phase, Phase::First { .. }) {
            let waiting = std::mem::take(&mut self.waiting);
            self.tell_rest(now, &waiting, actions);
        }
    }

    fn tell_rest(&mut self, now: Now, members: &[Member], actions: &mut Vec<StopAction>) {
        self.phase = Phase::Rest;
        self.waiting = Vec::new();
        self.examine_at = Some(now.instant + EXAMINE_DELAY);
        self.tell_overlooked(members, actions);
    }

    /// Tells everybody who was there when the round began and was not told yet.
    ///
    /// A children list is no snapshot, so the walk that began the round may have missed somebody: who started in an
    /// earlier clock tick counts as having been there. In the same tick nobody can say; such a one is a newcomer,
    /// and its turn comes with the next round (HAZARD(fork-while-killing)).
    fn tell_overlooked(&mut self, members: &[Member], actions: &mut Vec<StopAction>) {
        for member in members {
            let was_there = self.roster.contains(&member.identity) || member.identity.start < self.epoch;
            if was_there {
                self.tell(member, actions);
            }
        }
    }

    fn tell(&mut self, member: &Member, actions: &mut Vec<StopAction>) {
        if member.role == Role::Nested || member.life == Life::Zombie {
            return;
        }
        let is_news = self.told.insert(member.identity);
        if is_news {
            actions.push(StopAction::Signal { member: member.identity, signal: self.plan.signal });
        }
        let is_met = self.told_elsewhere.remove(&member.identity);
        if member.life == Life::Stopped && (is_news || is_met) {
            actions.push(StopAction::Signal { member: member.identity, signal: Signal::CONT });
        }
    }

    fn all_told_are_gone(&self, members: &[Member]) -> bool {
        !members.iter().any(|m| m.life != Life::Zombie && self.told.contains(&m.identity))
    }

    /// An interactive shell ignores TERM by design; the hang-up is how a terminal ends it.
    fn hang_up_shells(&mut self, now: Now, members: &[Member], actions: &mut Vec<StopAction>) {
        if self.examine_at.is_none_or(|at| now.instant < at) {
            return;
        }
        self.examine_at = None;
        for member in members {
            let is_deaf = member.wants_hangup && member.life != Life::Zombie;
            if is_deaf && self.told.contains(&member.identity) && self.hung_up.insert(member.identity) {
                actions.push(StopAction::Signal { member: member.identity, signal: Signal::HUP });
            }
        }
    }

    /// Kills everybody who is there, again where it did not help, and gives up where nothing helps.
    fn kill_pass(
        &mut self,
        now: Now,
        since: Option<Instant>,
        members: &[Member],
        actions: &mut Vec<StopAction>,
    ) {
        // From the first pass on: a machine that slept, or a walk that took its time, has killed nobody yet.
        let since = since.unwrap_or(now.instant);
        self.phase = Phase::Kill { since: Some(since) };
        let waited = now.instant.saturating_duration_since(since);
        let is_still = now.instant.saturating_duration_since(self.last_death) >= KILL_AGAIN[0];
        let was_tried = |m: &Member| m.life == Life::Zombie || self.killed.contains_key(&m.identity);
        if (waited >= KILL_WITHIN && is_still && members.iter().all(was_tried)) || waited >= KILL_LIMIT {
            self.phase = Phase::Over;
            actions.push(StopAction::GiveUp);
            return;
        }
        // HAZARD(fork-while-killing): whoever was found may be gone before its signal is sent, having forked the next one.
        // Its zombie still says which group it was in, which is its child's as well, and nobody forks past a signal to a
        // group.
        let is_new = |m: &&Member| !self.killed.contains_key(&m.identity);
        let groups: HashSet<i32> = members.iter().filter(is_new).map(|m| m.pgrp).collect();
        if !groups.is_empty() {
            actions.push(StopAction::KillAll);
        }
        actions.extend(groups.into_iter().map(|group| StopAction::KillGroup { group }));
        for member in members.iter().filter(|m| m.life != Life::Zombie) {
            let (attempts, again_at) = self.killed.entry(member.identity).or_insert((0, now.instant));
            if now.instant >= *again_at && *attempts <= KILL_AGAIN.len() {
                let pause = KILL_AGAIN.get(*attempts).copied().unwrap_or(KILL_LIMIT);
                *again_at = now.instant + pause;
                *attempts += 1;
                actions.push(StopAction::Signal { member: member.identity, signal: Signal::KILL });
            }
        }
    }
}

/// Counts for a message or a record.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
