use proptest::prelude::*;

use super::*;
use crate::service::spec::RestartWhen;

const GRACE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(3);

fn policy(when: RestartWhen) -> Policy {
    Policy {
        stop: StopSpec { grace: GRACE, ..StopSpec::default() },
        restart: RestartSpec { when, max: 2 },
        has_ready_check: true,
        is_daemon: false,
    }
}

/// A machine, and the time that it is told.
struct Bench {
    machine: Machine,
    now: Instant,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        Self { machine: Machine::new(policy), now: Instant::now() }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.machine.step(self.now, event, 0)
    }

    fn steps(mut self, events: &[Event]) -> Self {
        for event in events {
            self.step(*event);
        }
        self
    }
}

const OK: Event = Event::KeeperEnded { exit: Some(Exit::Code(0)), is_empty: true };
const BAD: Event = Event::KeeperEnded { exit: Some(Exit::Code(3)), is_empty: true };
const STOP: Event = Event::Stop { grace: SHORT };
const UP: [Event; 3] = [Event::Start, Event::DependenciesMet, Event::Started];

/// A machine in every state, the way it gets there.
fn states() -> Vec<(&'static str, Bench)> {
    let bench = |events: &[Event]| Bench::new(policy(RestartWhen::OnFailure)).steps(events);
    let with = |last: Event| bench(&[UP.as_slice(), &[last]].concat());
    let mut tired = bench(&[]);
    tired.machine.policy.restart.max = 0;
    vec![
        ("Down", bench(&[])),
        ("Waiting", bench(&[Event::Start])),
        ("Starting", bench(&[Event::Start, Event::DependenciesMet])),
        ("Up", bench(&UP)),
        ("Closing", with(Event::LeaderExited(Exit::Code(3)))),
        ("Stopping", with(STOP)),
        ("Sweeping", with(Event::KeeperGone)),
        ("Backoff", with(BAD)),
        ("GaveUp", tired.steps(&[UP.as_slice(), &[BAD]].concat())),
    ]
}

/// Every event. A new variant does not compile until it is added to the match, and the table below has to say what
/// it does.
fn events() -> Vec<Event> {
    let all = vec![
        Event::DependenciesMet,
        Event::DependencyLost,
        Event::Started,
        Event::NotSpawned,
        Event::SpawnFailed,
        Event::ReadySeen,
        Event::ReadyTimedOut,
        Event::LeaderExited(Exit::Code(0)),
        Event::Daemonized,
        OK,
        Event::KeeperGone,
        Event::OrphansEnded { is_empty: true },
        Event::Start,
        STOP,
        Event::Kill,
        Event::Restart,
        Event::ShutdownBegan,
        Event::Woke,
    ];
    for event in &all {
        match event {
            Event::DependenciesMet
            | Event::DependencyLost
            | Event::Started
            | Event::NotSpawned
            | Event::SpawnFailed
            | Event::ReadySeen
            | Event::ReadyTimedOut
            | Event::LeaderExited(_)
            | Event::Daemonized
            | Event::KeeperEnded { .. }
            | Event::KeeperGone
            | Event::OrphansEnded { .. }
            | Event::Start
            | Event::Stop { .. }
            | Event::Kill
            | Event::Restart
            | Event::ShutdownBegan
            | Event::Woke => {}
        }
    }
    all
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Down => "Down",
        State::Waiting => "Waiting",
        State::Starting => "Starting",
        State::Up => "Up",
        State::Closing => "Closing",
        State::Stopping => "Stopping",
        State::Sweeping => "Sweeping",
        State::Backoff { .. } => "Backoff",
        State::GaveUp => "GaveUp",
    }
}

fn action_word(action: &Action) -> String {
    match action {
        Action::Spawn => "spawn".into(),
        Action::WatchReadiness => "watch".into(),
        Action::DropReadiness => "drop".into(),
        Action::OrderStop { grace } => format!("stop{}", grace.as_secs()),
        Action::OrderKill => "kill".into(),
        Action::KillKeeper => "kill-keeper".into(),
        Action::EndOrphans { grace } => format!("end{}", grace.as_secs()),
        Action::CutOrphans { grace } => format!("cut{}", grace.as_secs()),
        Action::Ready => "ready".into(),
        Action::Ended(end) => match end.cause {
            Cause::Exited(Exit::Code(code)) => format!("ended:code{code}"),
            other => format!("ended:{other:?}"),
        },
    }
}

const HEAD: &str = "Down | Waiting | Starting | Up | Closing | Stopping | Sweeping | Backoff | GaveUp";

/// One row per event, one cell per state: the next state, then the actions; `.` where nothing happens.
const TABLE: &[(&str, &str)] = &[
    ("DependenciesMet", ". | Starting spawn | . | . | . | . | . | . | ."),
    ("DependencyLost", ". | Down ended:DependencyLost | . | . | . | . | . | . | ."),
    ("Started", ". | . | Up watch | . | . | . | . | . | ."),
    ("NotSpawned", ". | . | Backoff ended:NotSpawned | . | . | . | . | . | ."),
    ("SpawnFailed", ". | . | Closing | . | . | . | . | . | ."),
    ("ReadySeen", ". | . | . | Up drop,ready | . | . | . | . | ."),
    ("ReadyTimedOut", ". | . | . | Stopping drop,stop10 | . | . | . | . | ."),
    ("LeaderExited", ". | . | Closing | Closing drop | . | . | . | . | ."),
    ("Daemonized", ". | . | . | Up | . | . | . | . | ."),
    (
        "KeeperEnded",
        ". | . | Down ended:code0 | Down drop,ended:code0 | Backoff ended:code3 | Down ended:Stopped | . | . | .",
    ),
    (
        "KeeperGone",
        ". | . | Sweeping end10 | Sweeping drop,end10 | Sweeping end10 | Sweeping end3 | . | . | .",
    ),
    ("OrphansEnded", ". | . | . | . | . | . | Backoff ended:KeeperLost | . | ."),
    ("Start", "Waiting | . | . | . | Closing | Stopping | Sweeping | Waiting | Waiting"),
    (
        "Stop",
        ". | Down | Stopping stop3 | Stopping drop,stop3 | Stopping stop3 | Stopping stop3 | Sweeping cut3 | Down | GaveUp",
    ),
    (
        "Kill",
        ". | Down | Stopping kill | Stopping drop,kill | Stopping kill | Stopping kill | Sweeping cut0 | Down | GaveUp",
    ),
    (
        "Restart",
        "Waiting | . | Stopping stop10 | Stopping drop,stop10 | Stopping stop10 | Stopping | Sweeping | Waiting | Waiting",
    ),
    ("ShutdownBegan", "Down | Down | Starting | Up | Closing | Stopping | Sweeping | Down | GaveUp"),
    ("Woke", ". | . | . | . | . | . | . | . | ."),
];

fn cell(bench: &mut Bench, event: Event) -> String {
    let before = bench.machine.clone();
    let actions = bench.step(event);
    if bench.machine == before && actions.is_empty() {
        return ".".into();
    }
    let words: Vec<String> = actions.iter().map(action_word).collect();
    let state = state_word(bench.machine.state());
    if words.is_empty() { state.into() } else { format!("{state} {}", words.join(",")) }
}

#[test]
fn every_state_knows_every_event() {
    let mut seen = Vec::new();
    for event in events() {
        let name = format!("{event:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default().to_owned();
        let row: Vec<String> = states().iter_mut().map(|(_, bench)| cell(bench, event)).collect();
        seen.push((name, row.join(" | ")));
    }
    let names: Vec<&str> = states().iter().map(|(name, _)| *name).collect();
    assert_eq!(names.join(" | "), HEAD);
    for (name, bench) in states() {
        assert_eq!(state_word(bench.machine.state()), name);
    }
    let expected: Vec<(String, String)> =
        TABLE.iter().map(|(event, row)| ((*event).to_owned(), (*row).to_owned())).collect();
    let as_source: String = seen.iter().map(|(e, r)| format!("    ({e:?}, {r:?}),\n")).collect();
    assert_eq!(seen, expected, "the table as it is now:\n{as_source}");
}

#[test]
fn a_life_with_readiness_then_a_stop() {
    let mut bench = Bench::new(policy(RestartWhen::Always)).steps(&UP);
    assert!(bench.machine.holds(Condition::Started) && !bench.machine.is_ready());
    bench.step(Event::ReadySeen);
    assert!(bench.machine.is_ready());
    assert_eq!(bench.step(STOP), [Action::OrderStop { grace: SHORT }]);
    assert!(!bench.machine.is_ready());
    bench.now += SHORT;
    let end = End { cause: Cause::Stopped, life: SHORT };
    assert_eq!(bench.step(OK), [Action::Ended(end)]);
    assert_eq!((bench.machine.state(), bench.machine.wanted()), (State::Down, Wanted::Down));
    assert_eq!(bench.machine.last_end(), Some(end));
}

#[test]
fn without_a_check_it_is_ready_when_it_has_started() {
    let mut bench = Bench::new(Policy { has_ready_check: false, ..policy(RestartWhen::No) });
    bench.step(Event::Start);
    bench.step(Event::DependenciesMet);
    assert_eq!(bench.step(Event::Started), [Action::Ready]);
    assert!(bench.machine.is_ready());
}

#[test]
fn restarts_wait_and_then_it_gives_up_until_it_is_asked_for_again() {
    let mut bench = Bench::new(policy(RestartWhen::OnFailure)).steps(&UP);
    for wait in [1, 2] {
        bench.step(BAD);
        let until = bench.now + Duration::from_secs(wait);
        assert_eq!(bench.machine.state(), State::Backoff { until });
        assert_eq!(bench.machine.wake_at(), Some(until));
        bench.step(Event::Woke);
        assert_eq!(bench.machine.state(), State::Backoff { until }, "not before its time");
        bench.now = until;
        bench = bench.steps(&[Event::Woke, Event::DependenciesMet, Event::Started]);
        assert_eq!(bench.machine.state(), State::Up);
    }
    bench.step(BAD);
    assert_eq!((bench.machine.state(), bench.machine.wanted()), (State::GaveUp, Wanted::Up));
    assert_eq!(bench.machine.history().total, 2);
    bench.step(Event::Start);
    assert_eq!((bench.machine.state(), bench.machine.history()), (State::Waiting, History::default()));
}

#[test]
fn a_restart_on_request_waits_for_the_proof_and_needs_no_policy() {
    let mut bench = Bench::new(policy(RestartWhen::No)).steps(&UP);
    assert_eq!(bench.step(Event::Restart), [Action::DropReadiness, Action::OrderStop { grace: GRACE }]);
    assert_eq!(bench.machine.state(), State::Stopping);
    bench.step(OK);
    assert_eq!((bench.machine.state(), bench.machine.wanted()), (State::Waiting, Wanted::Up));
    // A stop that comes in between wins.
    let mut bench = Bench::new(policy(RestartWhen::No)).steps(&UP).steps(&[Event::Restart, STOP, OK]);
    assert_eq!(bench.machine.state(), State::Down);
    assert_eq!(bench.step(Event::Restart), []);
    assert_eq!(bench.machine.state(), State::Waiting);
}

#[test]
fn not_ready_in_time_is_a_failure_that_the_policy_answers() {
    let late = [Event::ReadyTimedOut, OK];
    let once = Bench::new(policy(RestartWhen::No)).steps(&UP).steps(&late);
    assert_eq!(once.machine.state(), State::Down);
    assert_eq!(once.machine.last_end().map(|end| end.cause), Some(Cause::NotReady));
    let again = Bench::new(policy(RestartWhen::OnFailure)).steps(&UP).steps(&late);
    assert!(matches!(again.machine.state(), State::Backoff { .. }));
}

#[test]
fn waiting_long_for_readiness_is_no_long_life_and_it_gives_up_in_the_end() {
    let mut bench = Bench::new(policy(RestartWhen::OnFailure)).steps(&UP);
    for _ in 0..2 {
        bench.now += restart::LIFE_LONG * 2;
        bench = bench.steps(&[Event::ReadyTimedOut, OK]);
        bench.now = bench.machine.wake_at().unwrap();
        bench = bench.steps(&[Event::Woke, Event::DependenciesMet, Event::Started]);
    }
    bench.now += restart::LIFE_LONG * 2;
    bench = bench.steps(&[Event::ReadyTimedOut, OK]);
    assert_eq!(bench.machine.state(), State::GaveUp);
}

#[test]
fn a_daemon_outlives_its_leader_and_its_own_end_is_a_failure() {
    let daemon = Policy { is_daemon: true, ..policy(RestartWhen::OnFailure) };
    let mut bench = Bench::new(daemon).steps(&UP);
    assert_eq!(bench.step(Event::LeaderExited(Exit::Code(0))), []);
    bench.step(Event::Daemonized);
    assert_eq!(bench.machine.state(), State::Up);
    bench.step(Event::ReadySeen);
    assert!(bench.machine.is_ready());
    bench.step(OK);
    assert_eq!(bench.machine.last_end().map(|end| end.cause), Some(Cause::DaemonEnded));
    assert!(matches!(bench.machine.state(), State::Backoff { .. }));
    // A leader that does not get as far as leaving a daemon is like any other.
    let mut failed = Bench::new(daemon).steps(&UP);
    failed.step(Event::LeaderExited(Exit::Code(1)));
    assert_eq!(failed.machine.state(), State::Closing);
}

#[test]
fn a_silent_keeper_is_killed_once_and_its_orphans_get_no_new_grace() {
    let mut bench = Bench::new(policy(RestartWhen::No)).steps(&UP);
    bench.step(STOP);
    // Asking again for longer does not move the end.
    bench.step(Event::Stop { grace: GRACE });
    let silent_at = bench.now + SHORT + KEEPER_SILENCE_MAX;
    assert_eq!(bench.machine.wake_at(), Some(silent_at));
    bench.now = silent_at - Duration::from_millis(1);
    assert_eq!(bench.step(Event::Woke), []);
    bench.now = silent_at;
    assert_eq!(bench.step(Event::Woke), [Action::KillKeeper]);
    assert_eq!(bench.machine.wake_at(), None);
    assert_eq!(bench.step(Event::KeeperGone), [Action::EndOrphans { grace: Duration::ZERO }]);
    bench.step(Event::OrphansEnded { is_empty: true });
    assert_eq!(bench.machine.state(), State::Down);
}

#[test]
fn a_keeper_that_does_not_say_that_it_has_started_is_killed() {
    let mut bench = Bench::new(policy(RestartWhen::No)).steps(&UP[..2]);
    let until = bench.now + START_WITHIN;
    assert_eq!(bench.machine.wake_at(), Some(until));
    bench.now = until - Duration::from_millis(1);
    assert_eq!(bench.step(Event::Woke), []);
    bench.now = until;
    assert_eq!(bench.step(Event::Woke), [Action::KillKeeper]);
    assert_eq!((bench.machine.wake_at(), bench.step(Event::Woke)), (None, vec![]), "once");
    assert_eq!(bench.step(Event::KeeperGone), [Action::EndOrphans { grace: GRACE }]);
    bench.step(Event::OrphansEnded { is_empty: true });
    assert_eq!(bench.machine.last_end().map(|end| end.cause), Some(Cause::NotSpawned));
    // One that has said that it could not is awaited no longer than one that is done.
    let mut failed = Bench::new(policy(RestartWhen::No)).steps(&UP[..2]).steps(&[Event::SpawnFailed]);
    failed.now += KEEPER_SILENCE_MAX;
    assert_eq!(failed.step(Event::Woke), [Action::KillKeeper]);
    // One that has is not.
    let mut up = Bench::new(policy(RestartWhen::No)).steps(&UP);
    up.now += START_WITHIN * 2;
    assert_eq!((up.machine.wake_at(), up.step(Event::Woke)), (None, vec![]));
}

#[test]
fn nothing_is_started_beside_somebody_who_could_not_be_ended() {
    let stuck = Event::KeeperEnded { exit: None, is_empty: false };
    let bench = Bench::new(policy(RestartWhen::Always)).steps(&UP).steps(&[Event::Restart, stuck]);
    assert_eq!(bench.machine.state(), State::GaveUp);
    let bench = Bench::new(policy(RestartWhen::Always)).steps(&UP).steps(&[STOP, stuck]);
    assert_eq!(bench.machine.state(), State::Down);
}

#[test]
fn once_the_stack_stops_nothing_starts() {
    for (name, mut bench) in states() {
        bench.step(Event::ShutdownBegan);
        assert!(!matches!(bench.machine.state(), State::Waiting | State::Backoff { .. }), "{name}");
        for event in [Event::Start, Event::Restart] {
            let before = bench.machine.clone();
            assert_eq!(bench.step(event), [], "{name}");
            assert_eq!(bench.machine, before, "{name}");
        }
    }
}

proptest! {
    /// Whatever is said in whatever order: lives do not overlap, every life ends once, and none begins in a shutdown.
    #[test]
    fn lives_follow_each_other(choices in proptest::collection::vec((0_usize..64, 0_u64..5_000), 0..300)) {
        let all = events();
        let mut bench = Bench::new(policy(RestartWhen::Always));
        let (mut is_alive, mut is_shutting_down) = (false, false);
        for (choice, pause) in choices {
            bench.now += Duration::from_millis(pause);
            // Shutdowns are rare, or nothing else would ever be seen.
            let event = all[choice % all.len()];
            if event == Event::ShutdownBegan && choice < all.len() * 3 {
                continue;
            }
            is_shutting_down |= event == Event::ShutdownBegan;
            for action in bench.step(event) {
                match action {
                    Action::Spawn => {
                        prop_assert!(!is_alive && !is_shutting_down);
                        is_alive = true;
                    }
                    Action::Ended(end) if end.cause == Cause::DependencyLost => prop_assert!(!is_alive),
                    Action::Ended(_) => prop_assert!(std::mem::take(&mut is_alive)),
                    Action::OrderStop { .. } | Action::OrderKill | Action::EndOrphans { .. } => {
                        prop_assert!(is_alive);
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(bench.machine.state().is_live(), is_alive);
            prop_assert!(!bench.machine.is_ready() || is_alive);
        }
    }
}

#[test]
fn a_grace_period_without_end_is_no_panic_and_can_be_cut() {
    let mut policy = policy(RestartWhen::No);
    policy.stop.grace = Duration::MAX;
    let mut bench = Bench::new(policy).steps(&UP);
    let stop = Event::Stop { grace: Duration::MAX };
    assert!(bench.step(stop).contains(&Action::OrderStop { grace: Duration::MAX }));
    bench.step(Event::Kill);
    assert_eq!(bench.machine.wake_at(), Some(bench.now + KEEPER_SILENCE_MAX));
}
