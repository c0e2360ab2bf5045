use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const LIMIT: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(1);

fn spec(name: &str, priority: i32) -> Spec {
    Spec { name: name.to_owned(), priority, limit: LIMIT }
}

/// A machine, the time that it is told, and which ids have which part in the test.
struct Bench {
    stack: Stack<&'static str>,
    now: Instant,
    /// Still waits, if anybody does.
    waiting: Id,
    /// Runs, if anybody does; was started, if anybody was.
    running: Id,
    /// Was given up.
    given_up: Id,
}

impl Bench {
    /// Three are registered: `given up` is first, then `running`, then `waiting`.
    fn open() -> Self {
        let mut stack = Stack::new();
        let mut register = |name| stack.register(spec(name, 0), name).expect("it is open");
        let (waiting, running, given_up) = (register("waiting"), register("running"), register("given up"));
        Self { stack, now: Instant::now(), waiting, running, given_up }
    }

    fn cleaning() -> Self {
        let mut bench = Self::open();
        bench.tell(Told::Begin);
        bench.tell(Told::WokeLate);
        bench
    }

    fn done() -> Self {
        let mut bench = Self::cleaning();
        bench.tell(Told::FinishedRunning);
        bench.tell(Told::WokeLate);
        assert!(bench.stack.is_done());
        bench
    }

    fn step(&mut self, event: Event) -> String {
        match self.stack.step(self.now, event) {
            None => "nothing".to_owned(),
            Some(Action::Finish) => "finish".to_owned(),
            Some(Action::Start { name, job, deadline, .. }) => {
                assert_eq!((name.as_str(), deadline), (job, self.now + LIMIT));
                format!("start {name}")
            }
        }
    }

    fn finished(&mut self, id: Id) -> String {
        self.step(Event::Finished { id, outcome: Outcome::Cleaned, is_on_callers_thread: false })
    }

    fn unregistered(&mut self, id: Id) -> String {
        self.stack.unregister(id).map_or_else(|| "nothing".to_owned(), |job| format!("back {job}"))
    }

    fn tell(&mut self, told: Told) -> String {
        match told {
            Told::Register => match self.stack.register(spec("late", 0), "late") {
                Ok(_) => "waits".to_owned(),
                Err((reason, job)) => format!("refused {reason:?} {job}"),
            },
            Told::UnregisterWaiting => self.unregistered(self.waiting),
            Told::UnregisterStarted => self.unregistered(self.running),
            Told::Begin => self.step(Event::Begin),
            Told::FinishedRunning => self.finished(self.running),
            Told::FinishedOther => self.finished(self.given_up),
            Told::WokeEarly => {
                self.now += SOON;
                self.step(Event::Woke)
            }
            Told::WokeLate => {
                self.now += LIMIT;
                self.step(Event::Woke)
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Register,
    UnregisterWaiting,
    UnregisterStarted,
    Begin,
    FinishedRunning,
    FinishedOther,
    WokeEarly,
    WokeLate,
}

impl Told {
    /// A variant of the machine's events that this forgets does not compile.
    fn of(event: &Event) -> &'static [Self] {
        match event {
            Event::Begin => &[Self::Begin],
            Event::Finished { .. } => &[Self::FinishedRunning, Self::FinishedOther],
            Event::Woke => &[Self::WokeEarly, Self::WokeLate],
        }
    }
}

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    use Told::*;
    let table = [
        (Register, "waits", "waits", "refused Done late"),
        (UnregisterWaiting, "back waiting", "back waiting", "nothing"),
        (UnregisterStarted, "back running", "nothing", "nothing"),
        (Begin, "start given up", "nothing", "nothing"),
        (FinishedRunning, "nothing", "start waiting", "nothing"),
        (FinishedOther, "nothing", "nothing", "nothing"),
        (WokeEarly, "nothing", "nothing", "nothing"),
        (WokeLate, "nothing", "start waiting", "nothing"),
    ];
    for (told, open, cleaning, done) in table {
        assert_eq!(Bench::open().tell(told), open, "{told:?} while open");
        assert_eq!(Bench::cleaning().tell(told), cleaning, "{told:?} while cleaning");
        assert_eq!(Bench::done().tell(told), done, "{told:?} when done");
    }
    let id = Bench::open().waiting;
    let finished = Event::Finished { id, outcome: Outcome::Cleaned, is_on_callers_thread: false };
    for told in [Event::Begin, finished, Event::Woke].iter().flat_map(Told::of) {
        assert!(table.iter().any(|row| row.0 == *told), "{told:?} has no row");
    }
}

#[test]
fn what_ends_the_last_one_finishes_and_so_does_a_begin_with_none() {
    for last in [Told::FinishedRunning, Told::WokeLate] {
        let mut bench = Bench::cleaning();
        bench.tell(Told::UnregisterWaiting);
        assert_eq!(bench.tell(last), "finish", "{last:?}");
        assert_eq!(bench.tell(Told::Register), "refused Done late");
    }
    let mut none = Stack::<()>::new();
    let now = Instant::now();
    assert_eq!(none.step(now, Event::Begin), Some(Action::Finish));
    let report = none.report(now + SOON);
    assert!(report.is_clean() && report.ended.is_empty() && report.took.is_zero());
}

#[test]
fn the_report_has_the_outcomes_with_their_times_and_those_given_up_stay_so() {
    let mut bench = Bench::cleaning();
    assert!(!bench.stack.report(bench.now).is_complete);
    bench.tell(Told::FinishedOther);
    bench.now += SOON;
    let outcome = Outcome::Failed("no".to_owned());
    bench.step(Event::Finished { id: bench.running, outcome, is_on_callers_thread: true });
    bench.tell(Told::UnregisterWaiting);
    bench.finished(bench.waiting);
    let report = bench.stack.report(bench.now + LIMIT);
    let ended: Vec<_> = report.ended.iter().map(|e| (e.name.as_str(), &e.outcome, e.took)).collect();
    let failed = Outcome::Failed("no".to_owned());
    let cleaned = ("waiting", &Outcome::Cleaned, Duration::ZERO);
    assert_eq!(ended, [("given up", &Outcome::TimedOut, LIMIT), ("running", &failed, SOON), cleaned]);
    assert!(
        report.is_complete && report.ended[1].is_on_callers_thread && !report.ended[0].is_on_callers_thread
    );
    assert_eq!(report.took, LIMIT + SOON);
}

#[test]
fn what_is_through_before_anybody_looked_counts_even_past_its_limit() {
    let mut bench = Bench::cleaning();
    bench.now += LIMIT * 3;
    assert_eq!(bench.tell(Told::FinishedRunning), "start waiting");
    let last = bench.stack.report(bench.now).ended.pop().expect("two have ended");
    assert_eq!((last.outcome, last.took, last.limit), (Outcome::Cleaned, LIMIT * 3, LIMIT));
}

#[test]
fn limits_are_cut_to_what_is_allowed() {
    let cut = |limit| {
        let mut stack = Stack::new();
        let _ = stack.register(Spec { limit, ..spec("a", 0) }, ());
        let now = Instant::now();
        let Some(Action::Start { deadline, .. }) = stack.step(now, Event::Begin) else { panic!("it starts") };
        assert_eq!(stack.wake_at(), Some(deadline));
        deadline - now
    };
    let table = [
        (Duration::ZERO, LIMIT_MIN),
        (LIMIT_MIN, LIMIT_MIN),
        (LIMIT, LIMIT),
        (LIMIT_MAX, LIMIT_MAX),
        (Duration::MAX, LIMIT_MAX),
    ];
    for (asked, counts) in table {
        assert_eq!(cut(asked), counts, "{asked:?}");
    }
}

#[test]
fn one_that_registers_itself_again_comes_to_an_end() {
    let mut bench = Bench::open();
    for _ in 0..LATE_MAX + 1 {
        assert_eq!(bench.tell(Told::Register), "waits", "before the cleaning there is no limit");
    }
    bench.tell(Told::Begin);
    for at in 0..LATE_MAX {
        assert_eq!(bench.tell(Told::Register), "waits", "number {at}");
    }
    assert_eq!(bench.tell(Told::Register), "refused TooManyLate late");
}

#[test]
fn jobs_that_are_never_run_are_dropped_in_the_order_of_the_cleaning() {
    struct Noted(i32, std::sync::mpsc::Sender<i32>);
    impl Drop for Noted {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }
    let (sender, dropped) = std::sync::mpsc::channel();
    let mut stack = Stack::new();
    for (number, priority) in [(4, 0), (3, 0), (1, i32::MAX), (2, 0), (5, i32::MIN)] {
        assert!(stack.register(spec("a", priority), Noted(number, sender.clone())).is_ok());
    }
    drop(stack);
    assert_eq!(dropped.try_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

/// What may happen, in any order. Numbers choose among those there are.
#[derive(Clone, Debug)]
enum Happens {
    Register(i32),
    Unregister(usize),
    Begin,
    Finish,
    FinishStale(usize),
    Woke,
    TimePasses(u32),
}

fn happens() -> impl Strategy<Value = Happens> {
    let priority = prop_oneof![3 => -2..3, 1 => any::<i32>()];
    prop_oneof![
        6 => priority.prop_map(Happens::Register),
        2 => any::<usize>().prop_map(Happens::Unregister),
        1 => Just(Happens::Begin),
        3 => Just(Happens::Finish),
        1 => any::<usize>().prop_map(Happens::FinishStale),
        2 => Just(Happens::Woke),
        2 => (0..3_000_u32).prop_map(Happens::TimePasses),
    ]
}

/// The same in the plainest way: a list, searched from the front.
#[derive(Default)]
struct Model {
    ids: Vec<Id>,
    /// Number and priority, in the order of registration.
    waiting: Vec<(usize, i32)>,
    running: Option<(usize, Instant)>,
    has_begun: bool,
    handed_back: BTreeSet<usize>,
    started: Vec<usize>,
}

impl Model {
    /// Removes and returns who has to be next.
    fn take_next(&mut self) -> Option<usize> {
        let highest = self.waiting.iter().map(|(_, priority)| *priority).max()?;
        let at = self.waiting.iter().rposition(|(_, priority)| *priority == highest)?;
        Some(self.waiting.remove(at).0)
    }

    fn is_done(&self) -> bool {
        self.has_begun && self.running.is_none()
    }

    /// Compares what the machine does with what has to be done when the next one is due.
    fn expect_next(&mut self, now: Instant, action: Option<Action<usize>>) {
        match action {
            Some(Action::Start { id, deadline, job, .. }) => {
                assert_eq!(Some(job), self.take_next(), "the wrong one is next");
                assert_eq!(id, self.ids[job]);
                self.running = Some((job, deadline));
                self.started.push(job);
            }
            Some(Action::Finish) => {
                assert_eq!(self.take_next(), None, "somebody was forgotten");
                self.running = None;
            }
            None => panic!("at {now:?} nothing follows"),
        }
    }

    fn apply(&mut self, stack: &mut Stack<usize>, now: &mut Instant, happens: Happens) {
        let finished = |id| Event::Finished { id, outcome: Outcome::Cleaned, is_on_callers_thread: false };
        match happens {
            Happens::Register(priority) => {
                let number = self.ids.len();
                match stack.register(spec("any", priority), number) {
                    Ok(id) => {
                        assert!(!self.is_done(), "taken when all is done");
                        self.ids.push(id);
                        self.waiting.push((number, priority));
                    }
                    Err((reason, job)) => {
                        assert!(self.is_done(), "refused though it is not done");
                        assert_eq!((reason, job), (Reason::Done, number), "another job comes back");
                    }
                }
            }
            Happens::Unregister(any) => {
                let Some(number) = any.checked_rem(self.ids.len()) else { return };
                let back = stack.unregister(self.ids[number]);
                let at = self.waiting.iter().position(|(waits, _)| *waits == number);
                assert_eq!(back, at.map(|_| number), "whoever waits comes back, and nobody else");
                if let Some(at) = at {
                    self.waiting.remove(at);
                    assert!(self.handed_back.insert(number), "handed back twice");
                }
            }
            Happens::Begin => {
                let action = stack.step(*now, Event::Begin);
                if self.has_begun {
                    assert_eq!(action, None, "a second trigger changes something");
                } else {
                    self.has_begun = true;
                    self.expect_next(*now, action);
                }
            }
            Happens::Finish => {
                let Some((number, _)) = self.running else { return };
                let action = stack.step(*now, finished(self.ids[number]));
                self.expect_next(*now, action);
            }
            Happens::FinishStale(any) => {
                let Some(number) = any.checked_rem(self.ids.len()) else { return };
                if self.running.is_none_or(|(runs, _)| runs != number) {
                    assert_eq!(stack.step(*now, finished(self.ids[number])), None);
                }
            }
            Happens::Woke => {
                let action = stack.step(*now, Event::Woke);
                match self.running {
                    Some((_, deadline)) if *now >= deadline => self.expect_next(*now, action),
                    _ => assert_eq!(action, None, "woken before the limit"),
                }
            }
            Happens::TimePasses(millis) => *now += Duration::from_millis(millis.into()),
        }
    }
}

proptest! {
    #[test]
    fn each_is_ended_or_handed_back_exactly_once_and_in_order(all in prop::collection::vec(happens(), 0..60)) {
        let (mut stack, mut model, mut now) = (Stack::new(), Model::default(), Instant::now());
        for one in all {
            model.apply(&mut stack, &mut now, one);
        }
        model.apply(&mut stack, &mut now, Happens::Begin);
        while model.running.is_some() {
            model.apply(&mut stack, &mut now, Happens::Finish);
        }
        prop_assert!(stack.is_done());
        let started: BTreeSet<usize> = model.started.iter().copied().collect();
        prop_assert_eq!(started.len(), model.started.len(), "one was started twice");
        prop_assert!(started.is_disjoint(&model.handed_back));
        prop_assert_eq!(started.len() + model.handed_back.len(), model.ids.len(), "one is lost");
        prop_assert_eq!(stack.report(now).ended.len(), model.started.len());
    }
}
