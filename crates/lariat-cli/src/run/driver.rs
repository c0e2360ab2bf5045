//! Carries out what the [machine](super::machine) decides.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use lariat::ledger::command::{Cast, CommandLedger, OpenRecord};
use lariat_keeper::awake::Awake;
use lariat_keeper::client::{Keeper, Received};
use lariat_keeper::contain::cgroup::{self, Bounded};
use lariat_keeper::contain::limits::{self, OutOfMemory};
use lariat_keeper::contain::lineage::Lineage;
use lariat_keeper::ending::{Ending as Adoption, first_born, was_told_by_death};
use lariat_keeper::entry::{Holdings, SPAWN_FAILED};
use lariat_keeper::stop::StopPlan;
use lariat_keeper::wire::{Named, Notice, Order, Plan};
use lariat_sys::cgroup::Cgroup;
use lariat_sys::identity::Identity;
use lariat_sys::outside::Outside;
use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{self, PollFd, PollFlags};
use lariat_sys::reap::{ChildEvent, Exit};
use lariat_sys::signal::{self, Signal, SignalFd};
use lariat_sys::spawn::SpawnStep;
use lariat_sys::{Errno, files, kernel, process, procfs, reap, sockets, tree};

use super::machine::{Action, Ending, Event, Machine};
use super::start::{be_keeper, before, cgroup, fork_keeper, heard, limit, plan, tied, write_record};
use super::ties::{Cut, Ties};
use super::{Ended, RunError, RunOptions};

/// Signals that ask to end.
const ASKS: [Signal; 4] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT];
/// How long signals wait at most for the command to be known.
const DEAF_WITHIN: Duration = Duration::from_secs(2);
/// How long a keeper may take to exit after its last word.
const MEANT_WITHIN: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile whether it has begun to.
const MEANT_EVERY: Duration = Duration::from_millis(20);
/// How many notices are taken at a time: more than a socket holds, so that all that a dead keeper has said is among them,
/// and not without end where a member says them in its place.
const NOTICES_MAX: u32 = 4096;

/// Signals that stop a job; the command's own stop is followed instead.
const STOPS: [Signal; 3] = [Signal::TSTP, Signal::TTIN, Signal::TTOU];

/// Says whether a process is surely in the middle of its exit, which is when it has no memory any more.
fn is_exiting(process: Identity) -> bool {
    match procfs::read_stat(process.pid) {
        Ok(Some(stat)) => stat.identity() != process || stat.vsize == 0,
        Ok(None) => true,
        // Nothing is known then: a member may have taken the right to open files from us.
        Err(_) => false,
    }
}

/// Runs the command, blocks until everything it started is gone, and returns how lariat has to exit.
///
/// The calling process must have one thread only. It becomes a child subreaper; its signals are blocked and its
/// standard input and output become `/dev/null` (standard error stays, for what lariat has to say).
///
/// # Errors
/// [`RunError`] when the command could not be started; nothing is left then.
pub(crate) fn run(options: &RunOptions) -> Result<Ended, RunError> {
    let own = |step| move |errno: Errno| RunError::Own { step, errno: errno.raw_os_error() };
    let me = Identity::own()
        .map_err(own("find lariat in /proc, which is not mounted or of another pid namespace"))?;
    if let Some(missing) = kernel::missing() {
        return Err(RunError::Kernel(missing));
    }
    let before = before();
    let ties = tied(options)?;
    // Before there is a command that could come to the front by itself.
    let was_in_front = ties.terminal.as_ref().is_some_and(process::is_in_front);
    process::set_subreaper(true).map_err(own("become a child subreaper"))?;
    let signals = SignalFd::new(heard()).map_err(own("hear signals"))?;
    let (ours, theirs) = sockets::seqpacket_pair().map_err(own("make a socket pair"))?;
    let plan = plan(options, me, &before, ties.terminal.is_some());
    // Opened here, where it shows our numbers: the keeper may have others.
    let outside = options.is_isolated.then(Outside::open).transpose().map_err(own("open /proc"))?;
    let us = PidFd::open(me).map_err(own("open ourselves"))?;
    let group = cgroup(options, &plan.label).map_err(own("make a cgroup for the command"))?;
    let mut notes = Vec::new();
    let is_limited = limit(options, group.as_ref(), &mut notes);
    let plan = Plan { is_limited, ..plan };
    let (stop, shares_group) = (plan.stop, !plan.has_session);
    let forked = fork_keeper(options).inspect_err(|_| group.iter().for_each(cgroup::remove))?;
    let Some(child) = forked else {
        // The keeper. What it does not need must not outlive us in it.
        drop((ours, signals, ties));
        let holdings = Holdings { cgroup: group, supervisor: Some(us), outside, ..Holdings::default() };
        be_keeper(plan, theirs, holdings);
    };
    drop((theirs, us, outside));
    files::set_nonblocking(&ours, true).map_err(own("prepare the socket"))?;
    let keeper = Keeper::from_fork(child.identity, ours, child.pidfd);
    // While the keeper prepares the start. INVARIANT: no command begins before its record was tried to be written.
    let record = write_record(options, me, stop, group.as_ref());
    if keeper.go_ahead().is_err() {
        // Mostly it is gone. One that cannot be told, for want of memory, would wait for ever; its death is an event of its own.
        let _ = keeper.pidfd().signal(Signal::KILL);
    }
    let hears_hangup = !before.ignored.contains(Signal::HUP);
    let mut machine = Machine::new(options.grace, hears_hangup);
    if options.has_lifeline || options.dies_with_parent {
        machine.stay_awake();
    }
    Driver {
        keeper: Some(keeper),
        machine,
        signals,
        ties,
        was_in_front,
        stop,
        strangers: before.children,
        shares_group,
        began: Instant::now(),
        leader: None,
        dead_keeper: None,
        adoption: None,
        group,
        awake: Awake::default(),
        options,
        ledger: options.ledger.as_ref(),
        record,
        keeps_record: false,
        left: Vec::new(),
        has_lost_keeper: false,
        out_of_memory: None,
        notes,
    }
    .run()
}

struct Driver<'a> {
    options: &'a RunOptions,
    /// Where the record is, until it is removed.
    ledger: Option<&'a CommandLedger>,
    /// Its file, until it says who has come.
    record: Option<OpenRecord>,
    /// Something is left, or the keeper goes on without us: the record stays.
    keeps_record: bool,
    keeper: Option<Keeper>,
    machine: Machine,
    signals: SignalFd,
    ties: Ties,
    /// Our process group was the terminal's when we were called.
    was_in_front: bool,
    stop: StopPlan,
    strangers: Vec<i32>,
    /// The command is in our process group, on our terminal.
    shares_group: bool,
    began: Instant,
    leader: Option<Identity>,
    /// Reaped, unless a debugger still has it.
    dead_keeper: Option<Identity>,
    adoption: Option<Adoption<Bounded<Lineage>>>,
    /// The command's directory, ours to remove after the keeper's last word, and to end as well when that one is dead.
    group: Option<Cgroup>,
    awake: Awake,
    left: Vec<Named>,
    /// The keeper died before its last word.
    has_lost_keeper: bool,
    out_of_memory: Option<OutOfMemory>,
    notes: Vec<String>,
}

type Outcome = Result<Ending, RunError>;

/// What a wait has shown.
#[derive(Default)]
struct Ready {
    signals: bool,
    keeper: bool,
    keeper_death: bool,
    cut: Vec<Cut>,
}

impl Driver<'_> {
    fn run(mut self) -> Result<Ended, RunError> {
        self.give_up_streams();
        let outcome = loop {
            if let Some(outcome) = self.turn() {
                break outcome;
            }
        };
        if self.options.is_isolated && self.was_in_front {
            self.take_the_terminal_back();
        }
        self.left.extend(self.adoption.iter().flat_map(Adoption::left));
        self.close_record();
        let Self { left, has_lost_keeper, out_of_memory, notes, .. } = self;
        outcome.map(|ending| Ended { ending, left, has_lost_keeper, out_of_memory, notes })
    }

    /// A shell that ends gives the terminal back to the group that was in front when it began. From within a namespace it
    /// cannot name that group, so a group without members stays in front, and the caller's next read would stop it.
    fn take_the_terminal_back(&self) {
        if let Some(terminal) = &self.ties.terminal {
            // One that is closed or somebody else's by now is nobody's to take.
            let _ = process::come_to_front(terminal);
        }
    }

    /// Writes down who has come.
    fn complete_record(&mut self, leader: Identity) {
        if let (Some(record), Some(keeper)) = (self.record.take(), &self.keeper) {
            let cast = Cast { keeper: keeper.identity(), leader, has_session: !self.shares_group };
            let _ = record.complete(cast);
        }
    }

    /// Removes the record, once nobody is left whom it names.
    fn close_record(&mut self) {
        if let Some(ledger) = self.ledger.take_if(|_| !self.keeps_record) {
            ledger.remove();
        }
    }

    /// Closes what only the command may hold: who waits for the end of a pipe, or for SIGPIPE, must not wait for us.
    /// Standard error stays ours for what we have to say.
    fn give_up_streams(&self) {
        let mut keep = vec![self.signals.as_fd()];
        if let Some(keeper) = &self.keeper {
            keep.extend([keeper.as_fd(), keeper.pidfd().as_fd()]);
        }
        keep.extend(self.ties.descriptors());
        keep.extend(self.record.as_ref().map(AsFd::as_fd));
        keep.extend(self.group.as_ref().map(AsFd::as_fd));
        let _ = files::close_all_but(&keep);
        if let Ok(null) = files::dev_null() {
            for stream in 0..=1 {
                let _ = files::replace_stream(&null, stream);
            }
        }
    }

    fn turn(&mut self) -> Option<Outcome> {
        // Without a keeper nobody else ends what is left, so we may not be stopped either.
        let awake = self.adoption.is_some().then(|| self.awake.still());
        let adoption = self.adoption.as_ref().and_then(Adoption::wake_at);
        let deadline =
            [adoption, self.machine.wake_at(), self.deaf_until(), awake].into_iter().flatten().min();
        let ready = self.wait(deadline);
        if (ready.keeper || ready.keeper_death)
            && let Some(outcome) = self.hear_keeper(ready.keeper_death)
        {
            return Some(outcome);
        }
        if ready.signals
            && let Some(outcome) = self.take_signals()
        {
            return Some(outcome);
        }
        for cut in ready.cut {
            let event = match cut {
                Cut::Terminal => Event::TerminalClosed,
                Cut::Lifeline => Event::LifelineClosed,
                Cut::Caller => Event::CallerDied,
            };
            if let Some(outcome) = self.handle(event) {
                return Some(outcome);
            }
        }
        if self.machine.wake_at().is_some_and(|at| Instant::now() >= at)
            && let Some(outcome) = self.handle(Event::Woke)
        {
            return Some(outcome);
        }
        let end = self.adoption.as_mut().and_then(Adoption::turn)?;
        Some(self.orphans_ended(end.left))
    }

    /// Those whom a dead keeper left are ended, as far as that can be.
    fn orphans_ended(&mut self, left: u32) -> Outcome {
        if left > 0 {
            self.keeps_record = true;
            return Ok(Ending::Left(left));
        }
        if let Some(adoption) = &mut self.adoption {
            adoption.containment().remove();
        }
        Ok(Ending::Code(125))
    }

    /// Nothing is decided about a signal before it is known who the command is: whether it ignores it counts. But a
    /// program on a file system that does not answer may never start, and must not take the keyboard with it.
    fn deaf_until(&self) -> Option<Instant> {
        let is_known = self.leader.is_some() || self.keeper.is_none();
        let until = self.began + DEAF_WITHIN;
        (!is_known && Instant::now() < until).then_some(until)
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Ready {
        let hears = if self.deaf_until().is_some() { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = vec![PollFd::new(&self.signals, hears)];
        if let Some(keeper) = &self.keeper {
            fds.push(PollFd::new(keeper, PollFlags::IN));
            fds.push(PollFd::new(keeper.pidfd(), PollFlags::IN));
        }
        let first_tie = fds.len();
        self.ties.poll(&mut fds);
        if poll::poll(&mut fds, deadline).is_err() {
            return Ready::default();
        }
        let revents: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let cut = self.ties.cut(&revents[first_tie..]);
        let mut is_ready = revents[..first_tie].iter().map(|r| !r.is_empty());
        let mut next = || is_ready.next().unwrap_or(false);
        Ready { signals: next(), keeper: next(), keeper_death: next(), cut }
    }

    /// Takes what the keeper has said. `is_dead` was seen before the first look at the socket: a keeper may say its last
    /// word and die between a look that finds nothing and a later one at its pidfd, and that word would be lost.
    fn hear_keeper(&mut self, is_dead: bool) -> Option<Outcome> {
        for _ in 0..NOTICES_MAX {
            let Some(keeper) = &self.keeper else { return None };
            match keeper.receive() {
                Received::Nothing => break,
                Received::Closed => return self.keeper_gone(),
                Received::Notice(notice) => {
                    if let Some(outcome) = self.hear(&notice) {
                        return Some(outcome);
                    }
                }
            }
        }
        // A keeper that was killed may have left its end of the socket to somebody: its death alone says it.
        if is_dead && self.keeper.is_some() { self.keeper_gone() } else { None }
    }

    /// Removes the command's directory, if it lets itself be removed at once.
    ///
    /// HAZARD(forged-word): done before the word is known to be the keeper's, since it does no harm if it is not. Only empty
    /// directories go, and not before the leader was born in it.
    fn remove_empty_group(&mut self) {
        let was_entered = self.leader.is_some();
        self.group.take_if(|group| was_entered && group.remove(Instant::now()).is_ok());
    }

    fn hear(&mut self, notice: &Notice) -> Option<Outcome> {
        if matches!(notice, Notice::Ended(end) if end.left == 0) {
            // While the keeper exits.
            self.remove_empty_group();
        }
        match notice {
            Notice::Started { leader } => {
                self.leader = Some(*leader);
                self.complete_record(*leader);
                None
            }
            Notice::SpawnFailed { .. } if !self.has_meant_it(SPAWN_FAILED) => self.keeper_gone(),
            Notice::Ended(end) if !self.has_meant_it(end.exit_code()) => self.keeper_gone(),
            Notice::SpawnFailed { step, errno } => {
                self.reap_keeper();
                Some(Err(spawn_error(*step, *errno)))
            }
            Notice::LeaderStopped { signal } => self.handle(Event::LeaderStopped(*signal)),
            Notice::Stragglers { alive } => self.handle(Event::Stragglers(*alive)),
            Notice::Left { named } => {
                self.left.push(*named);
                None
            }
            Notice::ForksRefused => {
                self.notes.push(limits::forks_refused(&self.options.limits));
                None
            }
            Notice::Unlimited => {
                self.notes.push("its limits were not applied: it could not enter its cgroup".into());
                None
            }
            Notice::Ended(end) => {
                self.out_of_memory = end.out_of_memory.filter(|_| limits::is_by_kill(end.exit));
                self.keeps_record = end.left > 0;
                if let Some(group) = self.group.take_if(|_| end.left == 0) {
                    cgroup::remove(&group);
                }
                self.close_record();
                // The keeper exits right after its last word; it is reaped so that our parent, should it be a
                // subreaper that counts, never sees it.
                self.reap_keeper();
                self.handle(Event::Ended(*end))
            }
            _ => None,
        }
    }

    fn keeper_gone(&mut self) -> Option<Outcome> {
        self.has_lost_keeper = true;
        self.reap_keeper();
        self.handle(Event::KeeperGone)
    }

    /// HAZARD(keeper-stopped): it would not even see that the command has ended.
    fn wake_keeper(&self) {
        if let Some(keeper) = &self.keeper
            && matches!(reap::peek_stops(keeper.identity().pid), Ok(Some(ChildEvent::Stopped { .. })))
        {
            // Whatever this gives, the next stop is told again.
            let _ = keeper.pidfd().signal(Signal::CONT);
        }
    }

    /// Waits for the keeper's exit, which follows its last word at once, and says whether the word was the keeper's, which
    /// exits with `code` then. One that does not exit is killed.
    ///
    /// HAZARD(forged-word): whoever has taken the keeper's end of the conversation can say that all is over, and kill the
    /// keeper after that.
    fn has_meant_it(&self, code: u8) -> bool {
        let Some(keeper) = &self.keeper else { return true };
        let until = Instant::now() + MEANT_WITHIN;
        while Instant::now() < until {
            let look_at = until.min(Instant::now() + MEANT_EVERY);
            let has_exited = matches!(keeper.pidfd().wait_exit(Some(look_at)), Ok(true));
            // HAZARD(joined-namespace): the exit of one that is number 1 of a namespace may be held up, and who is in there
            // dies with it.
            if self.options.is_isolated && (has_exited || is_exiting(keeper.identity())) {
                return true;
            }
            match reap::peek_exit(keeper.identity().pid) {
                Ok(Some(ChildEvent::Exited { exit, .. })) => return exit == Exit::Code(code),
                // HAZARD(traced-zombie): a debugger has it first, for a moment or for good.
                _ if has_exited => drop(poll::poll(&mut [], Some(look_at))),
                _ => {}
            }
        }
        let _ = keeper.pidfd().signal(Signal::KILL);
        false
    }

    /// Waits for the keeper's exit, which follows its last word at once, and reaps it.
    fn reap_keeper(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            // HAZARD(joined-namespace): somebody else's child may hold its exit up, and does not hold us up.
            let _ = keeper.pidfd().wait_exit(Some(Instant::now() + Duration::from_secs(1)));
            keeper.reap();
            self.dead_keeper = Some(keeper.identity());
        }
    }

    fn take_signals(&mut self) -> Option<Outcome> {
        while let Ok(Some(received)) = self.signals.read() {
            let event = match received.signal {
                Signal::CHLD => {
                    self.wake_keeper();
                    continue;
                }
                // Delivered to the whole foreground group, or meant for a job: the command's own stop is followed.
                signal if STOPS.contains(&signal) && received.is_typed => continue,
                Signal::CONT => {
                    // From the lifeline it is meant for us alone. The end of the thread that called us looks as if the
                    // caller had sent it (SI_USER).
                    if received.is_from_process() {
                        self.wake_leader();
                    }
                    continue;
                }
                Signal::WINCH if received.is_typed => continue,
                signal if ASKS.contains(&signal) => Event::Ask {
                    signal,
                    is_typed: received.is_typed,
                    is_ignored_by_leader: received.is_typed && self.leader_ignores(signal),
                },
                signal => Event::Other(signal),
            };
            if let Some(outcome) = self.handle(event) {
                return Some(outcome);
            }
        }
        None
    }

    fn leader_ignores(&self, signal: Signal) -> bool {
        self.leader.is_some_and(|leader| {
            matches!(procfs::signal_sets(leader.pid), Ok(Some(sets)) if sets.ignored.contains(signal))
        })
    }

    fn leader_is_stopped(&self) -> bool {
        let is_stopped =
            |pid| matches!(procfs::read_stat(pid), Ok(Some(s)) if s.state == procfs::State::Stopped);
        self.leader.is_some_and(|leader| is_stopped(leader.pid))
    }

    /// We were continued. A command that shares our group was continued with us, and if it is stopped it was stopped
    /// again since; only one with a session of its own has to hear it from us.
    fn wake_leader(&mut self) {
        if !self.shares_group && self.leader_is_stopped() {
            self.handle(Event::Other(Signal::CONT));
        }
    }

    fn handle(&mut self, event: Event) -> Option<Outcome> {
        for action in self.machine.step(Instant::now(), event) {
            match action {
                Action::Order(order) => match (&self.keeper, &mut self.adoption) {
                    // A keeper that cannot be told is gone, and its death is an event of its own.
                    (Some(keeper), _) => drop(keeper.order(&order)),
                    (None, Some(adoption)) if order == Order::Kill => {
                        if let Some(end) = adoption.hurry() {
                            return Some(self.orphans_ended(end.left));
                        }
                    }
                    (None, _) => {}
                },
                Action::StopSelf(signal) => self.stop_self(signal),
                Action::KillKeeper => {
                    if let Some(keeper) = &self.keeper {
                        // Whatever this gives, the keeper's death is seen by its pidfd.
                        let _ = keeper.pidfd().signal(Signal::KILL);
                    }
                }
                Action::Adopt(grace) => self.adopt(grace),
                Action::Exit(ending) => return Some(Ok(ending)),
                Action::Leave(signal) => {
                    self.keeps_record = true;
                    return Some(Ok(Ending::Code(super::machine::code_of(signal))));
                }
            }
        }
        None
    }

    /// Stops as the command did. Returns when the shell continues us, which the signal that it does that with says as
    /// well; or at once where there is no shell to do that (an orphaned process group), and the command stays stopped.
    fn stop_self(&mut self, signal: Signal) {
        let signal = if STOPS.contains(&signal) { signal } else { Signal::TSTP };
        // The notice may be old: after `bg` and `fg` the command can run again by now.
        let _ = signal::stop_self_if(signal, || self.leader_is_stopped());
    }

    /// Returns who the command must be when its keeper died before it could say so.
    fn orphaned_leader(&self) -> Option<Identity> {
        let mut children = Vec::new();
        // Without a list nobody counts as told, and the leader hears of the stop twice.
        let _ = tree::children(process::pid(), &mut children);
        children.retain(|pid| !self.strangers.contains(pid));
        let orphans = children.into_iter().filter_map(|pid| procfs::read_stat(pid).ok().flatten());
        // What children from before have left may be older. HAZARD(traced-zombie): a dead keeper may still be among them.
        let is_its = |stat: &procfs::Stat| {
            let is_after = |keeper: Identity| stat.start >= keeper.start && stat.pid != keeper.pid;
            self.dead_keeper.is_none_or(is_after)
        };
        first_born(orphans.filter(is_its)).map(|leader| leader.identity())
    }

    fn adopt(&mut self, grace: Duration) {
        self.awake.still();
        let leader = self.leader.or_else(|| self.orphaned_leader());
        let told = leader.filter(|leader| was_told_by_death(*leader));
        let lineage = Lineage::of_orphans(leader, self.strangers.clone());
        let members = Bounded::new(lineage, self.group.take().into_iter().collect());
        self.adoption = Some(Adoption::new(members, StopPlan { grace, ..self.stop }, told));
    }
}

fn spawn_error(step: SpawnStep, errno: i32) -> RunError {
    match (step, Errno::from_raw_os_error(errno)) {
        (SpawnStep::Exec, Errno::NOENT | Errno::NOTDIR) => RunError::NotFound,
        (SpawnStep::Exec, _) => RunError::NotExecutable(errno),
        (SpawnStep::Directory, _) => RunError::Own { step: "enter the working directory", errno },
        (_, _) => RunError::Own { step: "prepare the command", errno },
    }
}
