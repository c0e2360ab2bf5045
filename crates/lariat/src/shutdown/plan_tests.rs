use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::service::spec::{
    CommandSpec, Condition, Dependency, Isolation, RestartSpec, ServiceName, ServiceSpec, StopSpec,
};

pub(super) fn graph(edges: &[&[usize]]) -> Graph {
    let name = |n: usize| ServiceName::new(format!("s{n}")).unwrap();
    let services: Vec<ServiceSpec> = edges
        .iter()
        .enumerate()
        .map(|(place, after)| ServiceSpec {
            name: name(place),
            command: CommandSpec::Argv(vec!["true".into()]),
            dir: PathBuf::from("/"),
            env: BTreeMap::new(),
            port: None,
            after: after
                .iter()
                .map(|n| Dependency { service: name(*n), condition: Condition::Ready })
                .collect(),
            ready: None,
            stop: StopSpec::default(),
            restart: RestartSpec::default(),
            daemon: false,
            isolation: Isolation::None,
            limits: crate::service::spec::Limits::default(),
        })
        .collect();
    Graph::new(&services).unwrap()
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A plan over these dependencies with all services alive: 10 s of grace each, 15 s for all.
fn plan(edges: &[&[usize]]) -> Plan {
    let mut plan = Plan::new(graph(edges), vec![secs(10); edges.len()], secs(15));
    for place in 0..edges.len() {
        assert_eq!(plan.step(Instant::now(), Event::Spawned(place)), []);
    }
    plan
}

fn sent(signal: Signal) -> Event {
    Event::Signal { signal, is_typed: false }
}

fn typed(signal: Signal) -> Event {
    Event::Signal { signal, is_typed: true }
}

/// What a signal led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Led {
    Plan,
    Kill,
    Leave,
    Nothing,
}

fn led(actions: &[Action]) -> Led {
    let has = |wanted: fn(&Action) -> bool| actions.iter().any(wanted);
    if has(|a| matches!(a, Action::Leave)) {
        Led::Leave
    } else if has(|a| matches!(a, Action::Kill(_))) {
        Led::Kill
    } else if has(|a| matches!(a, Action::Begin(_))) {
        Led::Plan
    } else {
        Led::Nothing
    }
}

#[test]
fn every_ordered_pair_of_signals() {
    let signals = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT];
    for first in signals {
        for second in signals {
            for is_typed in [false, true] {
                for pause in [millis(0), millis(20), millis(999), secs(1), secs(3)] {
                    let begin = Instant::now();
                    let mut plan = plan(&[&[], &[0]]);
                    assert_eq!(led(&plan.step(begin, sent(first))), Led::Plan);
                    let event = Event::Signal { signal: second, is_typed };
                    let counts = second != Signal::HUP && (is_typed || pause >= secs(1));
                    let expected = if counts { Led::Kill } else { Led::Nothing };
                    let seen = led(&plan.step(begin + pause, event));
                    assert_eq!(seen, expected, "{first} then {second} typed={is_typed} after {pause:?}");
                }
            }
        }
    }
}

#[test]
fn three_signals() {
    use Led::{Kill, Leave, Nothing, Plan};
    type Row<'a> = (&'a [(u64, Event)], &'a [Led]);
    let table: [Row<'_>; 7] = [
        (
            &[(0, typed(Signal::INT)), (100, typed(Signal::INT)), (200, typed(Signal::INT))],
            &[Plan, Kill, Leave],
        ),
        (
            &[(0, sent(Signal::TERM)), (1_000, sent(Signal::TERM)), (2_000, sent(Signal::TERM))],
            &[Plan, Kill, Leave],
        ),
        // Each has to be a second after the last that counted.
        (
            &[(0, sent(Signal::TERM)), (1_000, sent(Signal::TERM)), (1_999, sent(Signal::TERM))],
            &[Plan, Kill, Nothing],
        ),
        // A terminal that closes under `timeout`: one reason, three signals.
        (
            &[(0, sent(Signal::HUP)), (1, sent(Signal::HUP)), (20, sent(Signal::TERM))],
            &[Plan, Nothing, Nothing],
        ),
        (
            &[(0, Event::Begin(Why::TerminalClosed)), (20, sent(Signal::TERM)), (1_100, sent(Signal::TERM))],
            &[Plan, Nothing, Kill],
        ),
        // It stops for another reason already: the first signal changes nothing, the second kills.
        (
            &[(0, Event::Begin(Why::Asked)), (100, typed(Signal::INT)), (200, typed(Signal::INT))],
            &[Plan, Nothing, Kill],
        ),
        (
            &[(0, Event::Force), (100, typed(Signal::INT)), (200, typed(Signal::INT))],
            &[Kill, Nothing, Nothing],
        ),
    ];
    for (events, expected) in table {
        let begin = Instant::now();
        let mut plan = plan(&[&[], &[0]]);
        let seen: Vec<Led> =
            events.iter().map(|(at, event)| led(&plan.step(begin + millis(*at), *event))).collect();
        assert_eq!(seen, expected, "{events:?}");
    }
}

#[test]
fn a_third_signal_leaves_in_every_stage() {
    for stage in 0..3 {
        let now = Instant::now();
        let mut plan = plan(&[&[]]);
        plan.step(now, typed(Signal::INT));
        plan.step(now, typed(Signal::INT));
        if stage > 0 {
            plan.step(now, Event::Ended(0));
        }
        if stage > 1 {
            plan.step(now, Event::OrphansEnded);
        }
        assert_eq!(plan.step(now, typed(Signal::INT)), [Action::Leave]);
        assert!(plan.is_over());
        assert_eq!(plan.step(now + secs(100), Event::Woke), []);
        assert_eq!(plan.wake_at(), None);
    }
}

#[test]
fn dependents_stop_first_and_independent_ones_side_by_side() {
    let now = Instant::now();
    // 1 and 2 come after 0; 3 stands alone.
    let mut plan = plan(&[&[], &[0], &[0], &[]]);
    let stop = |place| Action::Stop { place, grace: secs(10) };
    assert_eq!(
        plan.step(now, sent(Signal::TERM)),
        [
            Action::Begin(Why::Signal(Signal::TERM)),
            Action::PhaseBegan(Phase::Graceful),
            stop(3),
            stop(2),
            stop(1)
        ]
    );
    assert_eq!(plan.step(now + secs(1), Event::Ended(1)), []);
    assert_eq!(plan.step(now + secs(2), Event::Ended(2)), [stop(0)]);
    assert_eq!(plan.step(now + secs(2), Event::Ended(3)), []);
    let actions = plan.step(now + secs(4), Event::Ended(0));
    assert_eq!(
        actions[..4],
        [
            Action::PhaseEnded(Phase::Graceful, secs(4)),
            Action::PhaseBegan(Phase::Force),
            Action::PhaseEnded(Phase::Force, secs(0)),
            Action::PhaseBegan(Phase::Orphans),
        ]
    );
    assert!(matches!(actions[4], Action::EndOrphans { grace: ORPHAN_GRACE, .. }));
    let actions = plan.step(now + secs(5), Event::OrphansEnded);
    assert_eq!(actions.last(), Some(&Action::Verify { deadline: now + secs(5) + VERIFY_WITHIN }));
    assert_eq!(
        plan.step(now + secs(5), Event::Verified),
        [Action::PhaseEnded(Phase::Verify, secs(0)), Action::Finish]
    );
}

#[test]
fn one_that_outlives_its_grace_is_killed_before_its_dependency_is_told_and_grace_is_cut_to_the_deadline() {
    let now = Instant::now();
    let mut plan = plan(&[&[], &[0], &[1]]);
    plan.step(now, sent(Signal::TERM));
    assert_eq!(plan.wake_at(), Some(now + secs(10)));
    assert_eq!(plan.step(now + secs(10), Event::Woke), [Action::PhaseBegan(Phase::Force)]);
    let told = plan.step(now + secs(10), Event::Ended(2));
    assert_eq!(told, [Action::Stop { place: 1, grace: secs(5) }]);
    // The deadline of the stack: the last is killed without having been asked.
    assert_eq!(plan.wake_at(), Some(now + secs(15)));
    assert_eq!(plan.step(now + secs(15), Event::Woke), [Action::Kill(0)]);
    assert_eq!(plan.wake_at(), Some(now + secs(20)));
    plan.step(now + secs(16), Event::Ended(0));
    let actions = plan.step(now + secs(20), Event::Woke);
    assert_eq!(actions[0], Action::GiveUp(1));
    assert!(matches!(actions.last(), Some(Action::EndOrphans { grace: Duration::ZERO, .. })));
    // The driver never answers; the end comes all the same.
    plan.step(now + secs(20) + ORPHANS_MIN, Event::Woke);
    let actions = plan.step(now + secs(20) + ORPHANS_MIN + VERIFY_WITHIN, Event::Woke);
    assert_eq!(actions.last(), Some(&Action::Finish));
}

#[test]
fn force_kills_everything_in_stop_order_and_ends_within_five_seconds() {
    let now = Instant::now();
    let mut plan = plan(&[&[], &[0], &[1]]);
    let actions = plan.step(now, Event::Force);
    assert_eq!(
        actions,
        [
            Action::Begin(Why::Asked),
            Action::PhaseBegan(Phase::Graceful),
            Action::PhaseBegan(Phase::Force),
            Action::Kill(2),
            Action::Kill(1),
            Action::Kill(0),
        ]
    );
    let mut at = now;
    while let Some(wake) = plan.wake_at() {
        at = wake;
        plan.step(at, Event::Woke);
    }
    assert!(plan.is_over());
    assert!(at - now <= secs(5), "{:?}", at - now);
}

#[test]
fn force_in_the_phase_of_the_orphans_hurries_it() {
    let now = Instant::now();
    let mut plan = plan(&[&[]]);
    plan.step(now, typed(Signal::INT));
    plan.step(now, Event::Ended(0));
    assert_eq!(plan.step(now, typed(Signal::INT)), [Action::HurryOrphans]);
    assert_eq!(plan.wake_at(), Some(now + FORCE_WITHIN));
}

#[test]
fn a_stack_with_nothing_alive_goes_straight_to_the_last_look() {
    let now = Instant::now();
    let mut plan = Plan::new(graph(&[&[]]), vec![secs(10)], secs(15));
    let actions = plan.step(now, Event::Begin(Why::AllEnded));
    assert_eq!(actions[0], Action::Begin(Why::AllEnded));
    assert!(matches!(actions.last(), Some(Action::EndOrphans { .. })));
    assert_eq!(Phase::ALL.map(Phase::number), [1, 2, 3, 4, 5]);
}

#[test]
fn a_stack_without_a_deadline_stops_and_can_be_forced() {
    let mut plan = Plan::new(graph(&[&[]]), vec![Duration::MAX], Duration::MAX);
    let now = Instant::now();
    plan.step(now, Event::Spawned(0));
    let actions = plan.step(now, Event::Begin(Why::Asked));
    assert!(actions.iter().any(|action| matches!(action, Action::Stop { place: 0, .. })), "{actions:?}");
    assert!(plan.step(now, Event::Force).contains(&Action::Kill(0)));
}
