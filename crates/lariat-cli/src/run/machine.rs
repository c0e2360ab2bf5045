//! Decides what `lariat run` does between its command's start and end.
//!
//! Pure: signals, notices and the clock come in as events; orders and exits go out as actions. What a terminal types
//! belongs to the command, what somebody sends belongs to lariat, and what counts as a second signal is counted here.
//!
//! | stage | typed INT, QUIT | sent TERM, INT, QUIT | HUP, terminal closed | lifeline, caller |
//! |---|---|---|---|---|
//! | `Going` | nothing, but the plan if the command ignores it or it is the third within a second | the plan | the plan | the plan |
//! | `Stopping` | kill | kill, if a second has passed since the last that counted | nothing | nothing |
//! | `Lingering` (stragglers only) | kill | kill, if a second has passed since the last that was typed | nothing | nothing |
//! | `Killing` | leave | leave, if a second has passed | nothing | nothing |

use std::time::{Duration, Instant};

use lariat_keeper::clock::later;
use lariat_keeper::stop::KILL_LIMIT;
use lariat_keeper::wire::{End, Order};
use lariat_sys::reap::Exit;
use lariat_sys::signal::Signal;

/// A sent signal counts as the next one only this long after the last that counted: closing a terminal, `timeout` and
/// nested runs send two at once, and the grace period has to survive that.
pub(crate) const NEXT_COUNTS_AFTER: Duration = Duration::from_secs(1);
/// A keeper that has not come to its end so long after the last kill pass could have begun is broken: it is killed, and
/// its orphans are ended from here.
const KEEPER_OVERDUE: Duration = KILL_LIMIT.saturating_add(Duration::from_secs(5));
/// So many typed signals within [`TYPED_WITHIN`] mean that the command does not listen.
const TYPED_MAX: usize = 3;
/// See [`TYPED_MAX`].
const TYPED_WITHIN: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A signal that asks to end: INT, TERM, HUP or QUIT.
    Ask {
        /// Which.
        signal: Signal,
        /// By the terminal's line discipline, so the command heard it as well.
        is_typed: bool,
        /// The command ignores it.
        is_ignored_by_leader: bool,
    },
    /// Any other signal that was sent to lariat.
    Other(Signal),
    /// The terminal is gone.
    TerminalClosed,
    /// Standard input, as the lifeline, reached its end.
    LifelineClosed,
    /// The process that called lariat died.
    CallerDied,
    /// The command was stopped (Ctrl-Z).
    LeaderStopped(Signal),
    /// The command exited and left this many behind.
    Stragglers(u32),
    /// The keeper's last word.
    Ended(End),
    /// The keeper is gone without a last word.
    KeeperGone,
    /// The time of [`Machine::wake_at`] has come.
    Woke,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Tell the keeper.
    Order(Order),
    /// Stop as the command did, so that the shell sees a stopped job.
    StopSelf(Signal),
    /// Kill the keeper, which does not do its work.
    KillKeeper,
    /// End the orphans within this grace period; the keeper is gone.
    Adopt(Duration),
    /// Exit as the command did.
    Exit(Ending),
    /// Exit at once, as if of this signal; the keeper finishes the work.
    Leave(Signal),
}

/// How `lariat run` exits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// With this code.
    Code(u8),
    /// By this signal.
    Signal(Signal),
    /// The command succeeded or its end is unknown, and this many could not be ended: code 125.
    Left(u32),
}

/// Returns how lariat exits after a command ended so.
///
/// Death by INT or QUIT is passed on as that death, because shells look at it (a loop in a script ends with the
/// command that was interrupted); every other signal becomes 128 + n.
#[must_use]
pub(crate) fn ending(end: &End) -> Ending {
    match end.exit {
        Some(Exit::Code(0)) | None if end.left > 0 => Ending::Left(end.left),
        None => Ending::Code(125),
        Some(Exit::Code(code)) => Ending::Code(code),
        Some(Exit::Signal { signal: signal @ (Signal::INT | Signal::QUIT), .. }) => Ending::Signal(signal),
        Some(Exit::Signal { signal, .. }) => Ending::Code(code_of(signal)),
    }
}

/// Returns 128 + n, as shells do.
#[must_use]
pub(crate) fn code_of(signal: Signal) -> u8 {
    u8::try_from(128 + signal.number()).unwrap_or(u8::MAX)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Going,
    Stopping { until: Instant },
    Lingering { until: Instant },
    Killing,
}

/// The machine of one `lariat run`.
#[derive(Debug)]
pub(crate) struct Machine {
    grace: Duration,
    hears_hangup: bool,
    follows_stops: bool,
    stage: Stage,
    counted_at: Option<Instant>,
    typed: Vec<Instant>,
    overdue_at: Option<Instant>,
}

impl Machine {
    /// Begins with a command that was just started. `hears_hangup` is false where HUP was ignored when lariat began
    /// (`nohup`).
    #[must_use]
    pub(crate) fn new(grace: Duration, hears_hangup: bool) -> Self {
        Self {
            grace,
            hears_hangup,
            follows_stops: true,
            stage: Stage::Going,
            counted_at: None,
            typed: Vec::new(),
            overdue_at: None,
        }
    }

    /// Makes lariat stay awake while the command is stopped: for a run that has to notice the end of a tie, which
    /// continues nobody.
    pub(crate) fn stay_awake(&mut self) {
        self.follows_stops = false;
    }

    /// Takes one event and returns what to do, in order.
    pub(crate) fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Ask { signal: Signal::HUP, .. } | Event::TerminalClosed if !self.hears_hangup => {
                Vec::new()
            }
            Event::Ask { signal: Signal::HUP, .. }
            | Event::TerminalClosed
            | Event::LifelineClosed
            | Event::CallerDied => self.begin(now),
            Event::Ask { signal, is_typed: true, is_ignored_by_leader } => {
                self.typed(now, signal, is_ignored_by_leader)
            }
            Event::Ask { signal, is_typed: false, .. } => self.sent(now, signal),
            Event::Other(signal) => vec![Action::Order(Order::Signal(signal))],
            // Who ends a command must not wait for a shell to continue it: a stop that has begun goes on.
            Event::LeaderStopped(signal) if self.follows_stops && self.stage == Stage::Going => {
                vec![Action::StopSelf(signal)]
            }
            Event::LeaderStopped(_) => Vec::new(),
            Event::Stragglers(_) => {
                if self.stage == Stage::Going {
                    let until = later(now, self.grace);
                    self.stage = Stage::Lingering { until };
                    // What ended the command has reached lariats around us as well, which tell us in their turn.
                    self.counted_at = self.typed.last().copied();
                    self.overdue_at = Some(until + KEEPER_OVERDUE);
                }
                Vec::new()
            }
            Event::Ended(end) => vec![Action::Exit(ending(&end))],
            Event::KeeperGone => {
                self.overdue_at = None;
                vec![Action::Adopt(self.grace_left(now))]
            }
            Event::Woke if self.overdue_at.is_some_and(|at| now >= at) => {
                self.overdue_at = None;
                vec![Action::KillKeeper]
            }
            Event::Woke => Vec::new(),
        }
    }

    /// Returns when to come back with [`Event::Woke`], if nothing happens before.
    #[must_use]
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.overdue_at
    }

    fn grace_left(&self, now: Instant) -> Duration {
        match self.stage {
            Stage::Going => self.grace,
            Stage::Stopping { until } | Stage::Lingering { until } => until.saturating_duration_since(now),
            Stage::Killing => Duration::ZERO,
        }
    }

    /// Begins the plan, if it has not begun. What calls this never counts as a second signal.
    fn begin(&mut self, now: Instant) -> Vec<Action> {
        if self.stage != Stage::Going {
            return Vec::new();
        }
        let until = later(now, self.grace);
        self.stage = Stage::Stopping { until };
        self.overdue_at = Some(until + KEEPER_OVERDUE);
        self.counted_at = Some(now);
        vec![Action::Order(Order::Stop { grace: self.grace })]
    }

    fn typed(&mut self, now: Instant, signal: Signal, is_ignored_by_leader: bool) -> Vec<Action> {
        if self.stage != Stage::Going {
            return self.escalate(now, signal);
        }
        self.typed.retain(|at| now.duration_since(*at) < TYPED_WITHIN);
        self.typed.push(now);
        if is_ignored_by_leader || self.typed.len() >= TYPED_MAX { self.begin(now) } else { Vec::new() }
    }

    fn sent(&mut self, now: Instant, signal: Signal) -> Vec<Action> {
        let counts = self.counted_at.is_none_or(|at| now.duration_since(at) >= NEXT_COUNTS_AFTER);
        match self.stage {
            Stage::Going => self.begin(now),
            _ if counts => self.escalate(now, signal),
            _ => Vec::new(),
        }
    }

    fn escalate(&mut self, now: Instant, signal: Signal) -> Vec<Action> {
        self.counted_at = Some(now);
        match self.stage {
            Stage::Killing => vec![Action::Leave(signal)],
            _ => {
                self.stage = Stage::Killing;
                self.overdue_at = Some(now + KEEPER_OVERDUE);
                vec![Action::Order(Order::Kill)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn ask(signal: Signal, is_typed: bool) -> Event {
        Event::Ask { signal, is_typed, is_ignored_by_leader: false }
    }

    fn all_events() -> Vec<Event> {
        let mut events = vec![
            Event::Other(Signal::USR1),
            Event::TerminalClosed,
            Event::LifelineClosed,
            Event::CallerDied,
            Event::LeaderStopped(Signal::TSTP),
            Event::Stragglers(2),
            Event::Ended(End::default()),
            Event::KeeperGone,
            Event::Woke,
        ];
        for signal in [Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP] {
            events.extend([ask(signal, true), ask(signal, false)]);
        }
        events
    }

    fn stop() -> Vec<Action> {
        vec![Action::Order(Order::Stop { grace: GRACE })]
    }

    fn kill() -> Vec<Action> {
        vec![Action::Order(Order::Kill)]
    }

    /// What each stage answers to each event, two seconds after the last one that counted.
    fn expected(stage: &str, event: Event) -> Vec<Action> {
        let is_hangup = matches!(event, Event::TerminalClosed | Event::Ask { signal: Signal::HUP, .. });
        match (stage, event) {
            (_, Event::Other(signal)) => vec![Action::Order(Order::Signal(signal))],
            ("going", Event::LeaderStopped(signal)) => vec![Action::StopSelf(signal)],
            (_, Event::LeaderStopped(_)) => Vec::new(),
            (_, Event::Stragglers(_) | Event::Woke) => Vec::new(),
            (_, Event::Ended(_)) => vec![Action::Exit(Ending::Code(125))],
            ("going", Event::KeeperGone) => vec![Action::Adopt(GRACE)],
            ("stopping" | "lingering", Event::KeeperGone) => {
                vec![Action::Adopt(GRACE - Duration::from_secs(2))]
            }
            (_, Event::KeeperGone) => vec![Action::Adopt(Duration::ZERO)],
            ("going", Event::Ask { is_typed: true, .. }) if !is_hangup => Vec::new(),
            ("going", _) => stop(),
            (_, Event::LifelineClosed | Event::CallerDied) => Vec::new(),
            _ if is_hangup => Vec::new(),
            ("killing", Event::Ask { signal, .. }) => vec![Action::Leave(signal)],
            _ => kill(),
        }
    }

    #[test]
    fn a_signal_right_after_the_key_that_ended_the_command_takes_no_grace_away() {
        let start = Instant::now();
        let mut machine = Machine::new(GRACE, true);
        assert_eq!(machine.step(start, ask(Signal::INT, true)), []);
        let soon = start + Duration::from_millis(30);
        assert_eq!(machine.step(soon, Event::Stragglers(1)), []);
        assert_eq!(machine.step(soon, ask(Signal::TERM, false)), [], "a lariat around this one passes it on");
        assert_eq!(machine.step(start + Duration::from_secs(2), ask(Signal::TERM, false)), kill());
    }

    #[test]
    fn every_stage_answers_every_event() {
        for stage in ["going", "stopping", "lingering", "killing"] {
            for event in all_events() {
                let start = Instant::now();
                let mut machine = Machine::new(GRACE, true);
                match stage {
                    "stopping" => drop(machine.step(start, ask(Signal::TERM, false))),
                    "lingering" => drop(machine.step(start, Event::Stragglers(1))),
                    "killing" => {
                        machine.step(start, ask(Signal::TERM, false));
                        machine.step(start, ask(Signal::INT, true));
                    }
                    _ => {}
                }
                let actions = machine.step(start + Duration::from_secs(2), event);
                assert_eq!(actions, expected(stage, event), "{stage} × {event:?}");
            }
        }
    }

    /// Every ordered pair of sent signals within a second begins one plan and kills nobody.
    #[test]
    fn two_sent_at_once_are_one() {
        let asks = [Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP];
        for first in asks {
            for second in asks {
                let now = Instant::now();
                let mut machine = Machine::new(GRACE, true);
                assert_eq!(machine.step(now, ask(first, false)), stop());
                let soon = now + Duration::from_millis(20);
                assert_eq!(machine.step(soon, ask(second, false)), Vec::new(), "{first} then {second}");
            }
        }
    }

    #[test]
    fn a_command_that_does_not_listen_to_the_keyboard_is_stopped() {
        let now = Instant::now();
        let mut machine = Machine::new(GRACE, true);
        let ignored = Event::Ask { signal: Signal::INT, is_typed: true, is_ignored_by_leader: true };
        assert_eq!(machine.step(now, ignored), stop());

        let mut machine = Machine::new(GRACE, true);
        for _ in 0..2 {
            assert_eq!(machine.step(now, ask(Signal::INT, true)), Vec::new());
        }
        assert_eq!(machine.step(now, ask(Signal::INT, true)), stop());

        let mut machine = Machine::new(GRACE, true);
        for i in 0..5 {
            let later = now + Duration::from_millis(600) * i;
            assert_eq!(machine.step(later, ask(Signal::INT, true)), Vec::new());
        }
    }

    #[test]
    fn a_keeper_that_does_not_end_is_replaced() {
        let now = Instant::now();
        let mut machine = Machine::new(GRACE, true);
        assert_eq!(machine.wake_at(), None);
        machine.step(now, ask(Signal::TERM, false));
        let overdue = machine.wake_at().expect("a stop has a deadline");
        assert!(overdue > now + GRACE + KILL_LIMIT);
        assert_eq!(machine.step(overdue, Event::Woke), vec![Action::KillKeeper]);
        assert_eq!(machine.wake_at(), None);
    }

    #[test]
    fn who_has_to_notice_a_tie_stays_awake() {
        let mut machine = Machine::new(GRACE, true);
        machine.stay_awake();
        let now = Instant::now();
        assert_eq!(machine.step(now, Event::LeaderStopped(Signal::TSTP)), Vec::new());
        assert_eq!(machine.step(now, Event::LifelineClosed), stop());
    }

    #[test]
    fn nohup_is_not_heard() {
        let mut machine = Machine::new(GRACE, false);
        let now = Instant::now();
        assert_eq!(machine.step(now, ask(Signal::HUP, false)), Vec::new());
        assert_eq!(machine.step(now, Event::TerminalClosed), Vec::new());
        assert_eq!(machine.step(now, ask(Signal::TERM, false)), stop());
    }

    #[test]
    fn endings() {
        let end = |exit, left| End { exit, left, ..End::default() };
        let signal = |signal| Some(Exit::Signal { signal, core: false });
        assert_eq!(ending(&end(Some(Exit::Code(0)), 0)), Ending::Code(0));
        assert_eq!(ending(&end(Some(Exit::Code(0)), 2)), Ending::Left(2));
        assert_eq!(ending(&end(Some(Exit::Code(3)), 2)), Ending::Code(3));
        assert_eq!(ending(&end(signal(Signal::INT), 0)), Ending::Signal(Signal::INT));
        assert_eq!(ending(&end(signal(Signal::QUIT), 0)), Ending::Signal(Signal::QUIT));
        assert_eq!(ending(&end(signal(Signal::TERM), 0)), Ending::Code(143));
        assert_eq!(ending(&end(signal(Signal::KILL), 0)), Ending::Code(137));
        assert_eq!(ending(&end(None, 0)), Ending::Code(125));
    }
}
