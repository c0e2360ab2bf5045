//! Decides whether a service that ended by itself is started again, and when.
//!
//! Pure: the life's length and the chance value are passed in. It does not know why a service was stopped on
//! request; nobody asks it then.

use std::time::Duration;

use super::spec::{RestartSpec, RestartWhen};

/// The wait before the first restart in a row, before chance shortens it.
pub const WAIT_FIRST: Duration = Duration::from_secs(1);
/// No wait is longer than this.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// A service that lived longer than this starts the count of restarts anew.
pub const LIFE_LONG: Duration = Duration::from_secs(60);

/// How a service's life ended, as far as restarting is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Exit code 0.
    Success,
    /// Any other exit code, a signal, a start that did not succeed, a keeper that died.
    Failure,
}

/// The restarts of a service since it was last asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// Restarts without a long life in between.
    pub in_a_row: u32,
    /// All restarts.
    pub total: u32,
}

/// What follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is started again after this long.
    Restart {
        /// The wait.
        after: Duration,
    },
    /// It stays ended, as its policy says.
    Stop,
    /// It would be started again, but has used up its restarts.
    GaveUp,
}

/// Decides what follows the end of a service that nobody asked to stop, and counts it in `history`.
///
/// `chance` is any value, fresh for each decision: it shortens the wait by up to a fifth, so that services which
/// fell together do not come back together.
pub fn decide(
    spec: RestartSpec,
    outcome: Outcome,
    life: Duration,
    history: &mut History,
    chance: u64,
) -> Verdict {
    let is_wanted = match spec.when {
        RestartWhen::No => false,
        RestartWhen::OnFailure => outcome == Outcome::Failure,
        RestartWhen::Always => true,
    };
    if !is_wanted {
        return Verdict::Stop;
    }
    if life > LIFE_LONG {
        history.in_a_row = 0;
    }
    if history.in_a_row >= spec.max {
        return Verdict::GaveUp;
    }
    let after = wait(history.in_a_row, chance);
    history.in_a_row += 1;
    history.total = history.total.saturating_add(1);
    Verdict::Restart { after }
}

/// The wait after `restarts` restarts in a row: 1 s, 2 s, 4 s … 30 s, each up to a fifth shorter.
fn wait(restarts: u32, chance: u64) -> Duration {
    let factor = 1_u32.checked_shl(restarts.min(31)).unwrap_or(u32::MAX);
    let full = WAIT_FIRST.saturating_mul(factor).min(WAIT_MAX);
    // Ten bits of chance are enough, and keep the arithmetic in range.
    let part = u32::try_from(chance % 1024).unwrap_or(0);
    full - full / 5 * part / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(2);

    fn spec(when: RestartWhen, max: u32) -> RestartSpec {
        RestartSpec { when, max }
    }

    #[test]
    fn policy_by_outcome_is_the_table() {
        use Outcome::{Failure, Success};
        use RestartWhen::{Always, No, OnFailure};
        let restart = Verdict::Restart { after: WAIT_FIRST };
        let table = [
            (No, Success, Verdict::Stop),
            (No, Failure, Verdict::Stop),
            (OnFailure, Success, Verdict::Stop),
            (OnFailure, Failure, restart),
            (Always, Success, restart),
            (Always, Failure, restart),
        ];
        for (when, outcome, expected) in table {
            let mut history = History::default();
            let verdict = decide(spec(when, 5), outcome, SHORT, &mut history, 0);
            assert_eq!(verdict, expected, "{when:?} {outcome:?}");
            let counted = u32::from(matches!(expected, Verdict::Restart { .. }));
            assert_eq!(history, History { in_a_row: counted, total: counted }, "{when:?} {outcome:?}");
        }
    }

    #[test]
    fn waits_double_up_to_half_a_minute_and_then_it_gives_up() {
        let mut history = History::default();
        let mut waits = Vec::new();
        let end = loop {
            match decide(spec(RestartWhen::Always, 8), Outcome::Failure, SHORT, &mut history, 0) {
                Verdict::Restart { after } => waits.push(after.as_secs()),
                other => break other,
            }
        };
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(end, Verdict::GaveUp);
        assert_eq!(history, History { in_a_row: 8, total: 8 });
    }

    #[test]
    fn a_long_life_starts_the_count_anew_and_a_minute_is_not_long() {
        let mut history = History { in_a_row: 5, total: 9 };
        let policy = spec(RestartWhen::OnFailure, 5);
        assert_eq!(decide(policy, Outcome::Failure, LIFE_LONG, &mut history, 0), Verdict::GaveUp);
        let longer = LIFE_LONG + Duration::from_millis(1);
        assert_eq!(
            decide(policy, Outcome::Failure, longer, &mut history, 0),
            Verdict::Restart { after: WAIT_FIRST }
        );
        assert_eq!(history, History { in_a_row: 1, total: 10 });
    }

    #[test]
    fn max_zero_gives_up_at_once() {
        let mut history = History::default();
        let verdict = decide(spec(RestartWhen::Always, 0), Outcome::Success, SHORT, &mut history, 7);
        assert_eq!(verdict, Verdict::GaveUp);
    }

    #[test]
    fn chance_shortens_by_at_most_a_fifth_and_nothing_overflows() {
        for restarts in [0, 1, 4, 5, 31, 32, u32::MAX] {
            let full = wait(restarts, 0);
            for chance in [0, 1, 511, 1023, 1024, u64::MAX] {
                let wait = wait(restarts, chance);
                assert!(wait <= full && wait >= full - full / 5, "{restarts} {chance}: {wait:?} of {full:?}");
            }
        }
        assert_eq!(wait(u32::MAX, 0), WAIT_MAX);
    }
}
