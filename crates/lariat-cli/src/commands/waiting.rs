//! Tells who is being ended while that takes its time, and what a signal changes about it.
//!
//! The first signal ends the grace periods, the second the wait: as in `up`, where the plan is what the first one runs.
//! Nothing here waits for whoever reads: what is ended is not held up by a terminal that is.

use std::time::{Duration, Instant};

use lariat::ledger::recover::Found;
use lariat::shutdown::endings::Pace;
use lariat_sys::identity::Identity;

use super::show::{duration, harmless};
use super::up::Signals;
use crate::output::Output;

/// What has ended by then is not worth a line.
const TOLD_AFTER: Duration = Duration::from_millis(300);
/// The same where no line can be written over.
const NOTED_AFTER: Duration = Duration::from_secs(1);
/// How often a terminal's line is written anew.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// Processes that are named at most.
const NAMED_MAX: usize = 3;
/// The longest command that is named, in characters.
const COMMAND_MAX: usize = 40;

/// How it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// By a line that is written over.
    Line,
    /// By a line after a while, and one more when KILL does not help.
    Notes,
    /// Not at all.
    Silent,
}

impl Manner {
    /// Chooses what standard error is fit for.
    pub(crate) fn of(output: &Output) -> Self {
        if output.is_err_terminal() { Self::Line } else { Self::Notes }
    }
}

/// A wait for these processes to end.
pub(crate) struct Waiting<'a> {
    members: Vec<(Identity, String)>,
    killed_at: Instant,
    manner: Manner,
    signals: &'a Signals,
    output: &'a mut Output,
    pace: Pace,
    tell_at: Option<Instant>,
}

impl<'a> Waiting<'a> {
    /// Begins the wait for those who were found, the longest grace period being this.
    pub(crate) fn new(
        found: &[Found],
        grace: Duration,
        manner: Manner,
        signals: &'a Signals,
        output: &'a mut Output,
    ) -> Self {
        let now = Instant::now();
        let first = if manner == Manner::Line { TOLD_AFTER } else { NOTED_AFTER };
        Self {
            members: found.iter().map(|found| (found.identity, shown(&found.command))).collect(),
            killed_at: now + grace,
            manner,
            signals,
            output,
            pace: Pace::Patient,
            tell_at: (manner != Manner::Silent && !found.is_empty()).then(|| now + first),
        }
    }

    /// Returns how the end is wanted by now, and tells what there is to tell. To be called every few milliseconds.
    pub(crate) fn pace(&mut self) -> Pace {
        let now = Instant::now();
        if self.pace != Pace::Left && self.signals.asks_to_end() {
            self.hurry(now);
        }
        if self.tell_at.is_some_and(|at| now >= at) {
            self.tell(now);
        }
        self.pace
    }

    /// Says whether a signal came.
    pub(crate) fn is_hurried(&self) -> bool {
        self.pace != Pace::Patient
    }

    fn hurry(&mut self, now: Instant) {
        let (pace, text) = match self.pace {
            Pace::Patient => (Pace::Hurried, "killing everything now; one more signal leaves it as it is"),
            Pace::Hurried | Pace::Left => (Pace::Left, "leaving what is not ended yet"),
        };
        self.pace = pace;
        self.killed_at = self.killed_at.min(now);
        if self.manner != Manner::Silent {
            self.output.try_note(text);
        }
        if self.manner == Manner::Line {
            self.tell_at = Some(now + TOLD_EVERY);
        }
    }

    fn tell(&mut self, now: Instant) {
        self.members.retain(|(identity, _)| identity.is_alive());
        let can_hurry = self.manner == Manner::Line && self.pace == Pace::Patient;
        let text = sentence(&self.members, self.killed_at.saturating_duration_since(now), can_hurry);
        self.tell_at = match self.manner {
            Manner::Line => {
                self.output.show_line(Some(text.as_deref().unwrap_or("making sure that nobody is left")));
                Some(now + TOLD_EVERY)
            }
            Manner::Notes => {
                let _ = text.map(|text| self.output.try_note(&text));
                // Once more, if KILL does not help.
                Some(self.killed_at + NOTED_AFTER).filter(|next| *next > now)
            }
            Manner::Silent => None,
        };
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.manner == Manner::Line {
            self.output.show_line(None);
        }
    }
}

/// Says who is waited for, and for how long at most; nothing where they are gone and only the proof is awaited.
fn sentence(members: &[(Identity, String)], grace: Duration, can_hurry: bool) -> Option<String> {
    if members.is_empty() {
        return None;
    }
    let named: Vec<String> = members
        .iter()
        .take(NAMED_MAX)
        .map(|(identity, command)| format!("{} `{command}`", identity.pid))
        .collect();
    let more = members.len().saturating_sub(NAMED_MAX);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let named = format!("{}{more}", named.join(", "));
    Some(if grace.is_zero() {
        format!("killing {named}")
    } else {
        // Whole seconds, rounded up: a count that goes down to 1 and not to 0.
        let left = duration(Duration::from_secs(grace.as_secs() + u64::from(grace.subsec_nanos() > 0)));
        let left = left.replace(".0 s", " s");
        let now = if can_hurry { " (Ctrl-C: at once)" } else { "" };
        format!("waiting {left}, then KILL{now}: {named}")
    })
}

fn shown(command: &str) -> String {
    let command = harmless(command);
    match command.chars().count() {
        0..=COMMAND_MAX => command,
        _ => command.chars().take(COMMAND_MAX - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: i32) -> Vec<(Identity, String)> {
        (0..count).map(|number| (Identity::new(100 + number, 1), "node server.js".to_owned())).collect()
    }

    #[test]
    fn the_wait_is_said_in_one_line() {
        let say =
            |count, millis, can_hurry| sentence(&members(count), Duration::from_millis(millis), can_hurry);
        assert_eq!(say(0, 900, true), None);
        assert_eq!(
            say(1, 7_100, true).unwrap(),
            "waiting 8 s, then KILL (Ctrl-C: at once): 100 `node server.js`"
        );
        assert_eq!(say(1, 1, false).unwrap(), "waiting 1 s, then KILL: 100 `node server.js`");
        let many = say(5, 0, true).unwrap();
        assert!(many.starts_with("killing 100 ") && many.ends_with("` and 2 more"), "{many}");
    }

    #[test]
    fn long_commands_are_cut_and_moved_no_cursor() {
        assert_eq!(shown(&"x".repeat(41)), format!("{}…", "x".repeat(39)));
        assert_eq!(shown("a\u{1b}[2J"), "a\u{fffd}[2J");
    }
}
