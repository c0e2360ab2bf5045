//! What became of each cleanup, as data, and the text of it for people.
//!
//! Pure. Nothing is printed: who wants to show a report shows it.

use std::fmt;
use std::time::Duration;

/// How a cleanup ended.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It returned `Ok`.
    Cleaned,
    /// It returned this error, in the words of its `{:#}`: with `anyhow` these name the causes too.
    Failed(String),
    /// It panicked with this message.
    Panicked(String),
    /// It was given up at its limit. One that blocks is left behind on its thread and may end later; a future is dropped
    /// there, unless it is its poll that blocks.
    TimedOut,
}

/// One cleanup that has ended or was given up.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Ended {
    /// The name it was registered with. Several may have the same.
    pub name: String,
    /// Its priority.
    pub priority: i32,
    /// The limit that counted, see [`Named::limit`](super::Named::limit).
    pub limit: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// From its start to its end, or until it was given up.
    pub took: Duration,
    /// There was no thread to be had, so it ran on the thread that called for the cleaning. Its limit held only if it is
    /// a future, and there as long as its polls returned.
    pub is_on_callers_thread: bool,
}

/// What a cleaning did. The same for everybody who asked for it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Every cleanup that was started, in this order. What was unregistered before its turn is not among them.
    pub ended: Vec<Ended>,
    /// From the trigger to the end of the last, or until now.
    pub took: Duration,
    /// All is done. `false` only for a cleanup that asks for the cleaning that it is part of.
    pub is_complete: bool,
}

impl Report {
    /// Returns how many returned `Ok`.
    #[must_use]
    pub fn cleaned_count(&self) -> usize {
        self.ended.iter().filter(|ended| ended.outcome == Outcome::Cleaned).count()
    }

    /// Returns how many failed, panicked, or were given up at their limit.
    #[must_use]
    pub fn failed_count(&self) -> usize {
        self.ended.len() - self.cleaned_count()
    }

    /// Returns whether all is done and nothing failed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_complete && self.failed_count() == 0
    }
}

/// A line for the whole, then an indented one for each cleanup, without a line end after the last. Control characters
/// of names and messages are escaped: each line is one line, and a terminal is told nothing.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cleaned, all) = (self.cleaned_count(), self.ended.len());
        let noun = if all == 1 { "cleanup" } else { "cleanups" };
        write!(f, "{cleaned} of {all} {noun} done in {:.1?}", self.took)?;
        if !self.is_complete {
            f.write_str(", more under way")?;
        }
        self.ended.iter().try_for_each(|ended| write!(f, "\n  {ended}"))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, took) = (Line(&self.name), self.took);
        match &self.outcome {
            Outcome::Cleaned => write!(f, "{name}: cleaned in {took:.1?}")?,
            Outcome::Failed(error) => write!(f, "{name}: failed after {took:.1?}: {}", Line(error))?,
            Outcome::Panicked(message) => write!(f, "{name}: panicked after {took:.1?}: {}", Line(message))?,
            Outcome::TimedOut => {
                write!(f, "{name}: given up after {took:.1?}, its limit is {:.1?}", self.limit)?
            }
        }
        if self.is_on_callers_thread {
            f.write_str(" (on the caller's thread: no other could be had)")?;
        }
        Ok(())
    }
}

/// Text from elsewhere, on one line.
struct Line<'a>(&'a str);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |c: char| c.is_control().then(|| c.escape_default());
        self.0.chars().try_for_each(|c| match escaped(c) {
            Some(escape) => write!(f, "{escape}"),
            None => write!(f, "{c}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, outcome: Outcome) -> Ended {
        Ended {
            name: name.to_owned(),
            priority: 0,
            limit: Duration::from_millis(50),
            outcome,
            took: Duration::from_millis(3),
            is_on_callers_thread: false,
        }
    }

    fn report(ended: Vec<Ended>) -> Report {
        Report { ended, took: Duration::from_millis(61), is_complete: true }
    }

    #[test]
    fn the_text_has_a_line_for_each_and_says_why() {
        let mut here = ended("here", Outcome::Cleaned);
        here.is_on_callers_thread = true;
        let report = report(vec![
            ended("server", Outcome::Cleaned),
            ended("db", Outcome::Failed("connection refused".to_owned())),
            ended("cache", Outcome::Panicked("oh".to_owned())),
            ended("watcher", Outcome::TimedOut),
            here,
        ]);
        let text = "\
2 of 5 cleanups done in 61.0ms
  server: cleaned in 3.0ms
  db: failed after 3.0ms: connection refused
  cache: panicked after 3.0ms: oh
  watcher: given up after 3.0ms, its limit is 50.0ms
  here: cleaned in 3.0ms (on the caller's thread: no other could be had)";
        assert_eq!(report.to_string(), text);
        assert_eq!((report.cleaned_count(), report.failed_count(), report.is_clean()), (2, 3, false));
    }

    #[test]
    fn names_and_messages_cannot_forge_lines_or_tell_the_terminal_anything() {
        let forged = ended("a\n  b: cleaned", Outcome::Failed("\u{1b}[31mred\r".to_owned()));
        let text = report(vec![forged]).to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }

    #[test]
    fn what_is_under_way_or_failed_is_not_clean_and_nothing_is() {
        let mut unfinished = report(vec![ended("a", Outcome::Cleaned)]);
        unfinished.is_complete = false;
        assert!(!unfinished.is_clean() && unfinished.to_string().contains("1 of 1 cleanup done"));
        assert!(unfinished.to_string().contains("more under way"));
        assert!(report(Vec::new()).is_clean());
        assert!(!report(vec![ended("a", Outcome::TimedOut)]).is_clean());
    }
}
