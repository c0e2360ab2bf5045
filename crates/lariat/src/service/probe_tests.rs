use proptest::prelude::*;

use super::*;
use crate::service::spec::{Endpoint, ReadyCheck};

fn spec(timeout_ms: u64, every_ms: u64) -> ReadySpec {
    ReadySpec {
        check: ReadyCheck::Tcp(Endpoint::OwnPort),
        timeout: Duration::from_millis(timeout_ms),
        every: Duration::from_millis(every_ms),
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

use ProbeAction::{Abandon, Attempt, Ready, TimedOut};
use ProbeEvent::{Failed, Passed, Woke};

#[test]
fn attempts_follow_each_other_with_a_pause_until_one_passes() {
    let t = Instant::now();
    let mut probe = ProbeMachine::attempting(&spec(60_000, 100), t);
    assert_eq!(probe.wake_at(), Some(t));
    assert_eq!(probe.step(t, Woke), [Attempt { deadline: t + ATTEMPT_MAX }]);
    assert_eq!(probe.step(t + ms(1), Failed), []);
    assert_eq!(probe.wake_at(), Some(t + ms(101)));
    assert_eq!(probe.step(t + ms(50), Woke), []);
    assert_eq!(probe.step(t + ms(101), Woke), [Attempt { deadline: t + ms(101) + ATTEMPT_MAX }]);
    assert_eq!(probe.step(t + ms(102), Passed), [Ready]);
    assert_eq!(probe.wake_at(), None);
    assert!(probe.is_over());
}

#[test]
fn an_attempt_that_hangs_is_abandoned_and_another_made() {
    let t = Instant::now();
    let mut probe = ProbeMachine::attempting(&spec(60_000, 100), t);
    probe.step(t, Woke);
    let late = t + ATTEMPT_MAX;
    assert_eq!(probe.step(late, Woke), [Abandon]);
    assert_eq!(probe.step(late + ms(10), Passed), [], "the answer of an abandoned attempt is nobody's");
    assert_eq!(probe.step(late + ms(100), Woke), [Attempt { deadline: late + ms(100) + ATTEMPT_MAX }]);
}

#[test]
fn the_time_ends_whatever_is_going_on() {
    let t = Instant::now();
    let mut hanging = ProbeMachine::attempting(&spec(2_000, 100), t);
    assert_eq!(hanging.step(t, Woke), [Attempt { deadline: t + ms(2_000) }]);
    assert_eq!(hanging.step(t + ms(2_000), Woke), [Abandon, TimedOut]);

    let mut listening = ProbeMachine::listening(&spec(2_000, 100), t);
    assert_eq!(listening.wake_at(), Some(t + ms(2_000)));
    assert_eq!(listening.step(t + ms(1_999), Woke), []);
    assert_eq!(listening.step(t + ms(2_000), Woke), [TimedOut]);
    assert_eq!(listening.step(t + ms(2_001), Passed), []);
}

#[test]
fn every_state_knows_every_event() {
    let t = Instant::now();
    let late = t + ms(500);
    let states =
        [State::Pause { until: late }, State::Attempt { deadline: late }, State::Listen, State::Over];
    let table: [[&[ProbeAction]; 3]; 4] = [
        // Woke, Passed, Failed: all before anything is due.
        [&[], &[], &[]],
        [&[], &[Ready], &[]],
        [&[], &[Ready], &[]],
        [&[], &[], &[]],
    ];
    for (state, row) in states.iter().zip(table) {
        for (event, expected) in [Woke, Passed, Failed].into_iter().zip(row) {
            let mut probe = ProbeMachine { every: ms(100), give_up_at: t + ms(1_000), state: *state };
            assert_eq!(probe.step(t, event), expected, "{state:?} {event:?}");
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: one attempt at a time, exactly one verdict, and never after the time.
    #[test]
    fn one_attempt_at_a_time_and_one_verdict(
        events in proptest::collection::vec((0_u64..400, 0_usize..3), 1..200),
        timeout in 0_u64..5_000,
    ) {
        let begin = Instant::now();
        let mut now = begin;
        let mut probe = ProbeMachine::attempting(&spec(timeout, 50), now);
        let mut is_attempting = false;
        let mut verdicts = 0;
        for (pause, event) in events {
            now += ms(pause);
            // A driver wakes it when it asked to be woken.
            for event in [Woke, [Woke, Passed, Failed][event]] {
                for action in probe.step(now, event) {
                    match action {
                        Attempt { deadline } => {
                            prop_assert!(!is_attempting && verdicts == 0 && now < begin + ms(timeout));
                            prop_assert!(deadline <= begin + ms(timeout));
                            is_attempting = true;
                        }
                        Abandon => prop_assert!(std::mem::take(&mut is_attempting)),
                        Ready | TimedOut => {
                            verdicts += 1;
                            is_attempting = false;
                        }
                    }
                }
                if event == Failed {
                    is_attempting &= matches!(probe.state, State::Attempt { .. });
                }
            }
            prop_assert!(verdicts <= 1);
            prop_assert_eq!(probe.is_over(), verdicts == 1);
            if now >= begin + ms(timeout) + ATTEMPT_MAX {
                prop_assert!(probe.is_over());
            }
        }
    }
}

#[test]
fn times_without_end_are_no_panic() {
    let t = Instant::now();
    let endless = ReadySpec { timeout: Duration::MAX, every: Duration::MAX, ..spec(1, 1) };
    let mut probe = ProbeMachine::attempting(&endless, t);
    assert_eq!(probe.step(t, Woke), [Attempt { deadline: t + ATTEMPT_MAX }]);
    assert_eq!(probe.step(t, Failed), []);
    assert!(probe.wake_at().is_some_and(|at| at > t + ATTEMPT_MAX));
}
