//! Why a process is thought to be a run's, in words.

use std::fmt;

use super::{Found, Trace, Why};

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recorded => f.write_str("the record names it as a leader"),
            Self::Left => f.write_str("the record names it as one that could not be ended"),
            Self::Cgroup => f.write_str("it is in a cgroup that was made for the run"),
            Self::Abandoned => f.write_str("it is in the cgroup of a run that is over"),
            Self::Marked => f.write_str("it carries the run's marker"),
            Self::MarkedByOther => {
                f.write_str("it carries the run's marker, and is another user's, who may have put it there")
            }
            Self::Output => f.write_str("it can write to the output of a service"),
            Self::Chosen => f.write_str("it was chosen"),
            Self::Descendant(pid) => write!(f, "it descends from {pid}, which is the run's"),
            Self::Session(number) => write!(f, "it is in session {number}, which a service led"),
            Self::Group(number) => write!(f, "it is in process group {number}, which a service led"),
            Self::Port(port) => write!(f, "it listens on port {port}, which a service claimed"),
            Self::Place(trace) => write!(
                f,
                "{trace} is in the project, and it is an orphan without environment, born since the run began"
            ),
            Self::Unmarked(trace) => write!(
                f,
                "{trace} is in the project, and it is an orphan without terminal and mark, born since the run began"
            ),
            Self::Pattern => {
                f.write_str("its command is a development server's, and it works in the project")
            }
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WorkingDirectory => "its working directory",
            Self::Program => "its program",
            Self::File => "a file that it has open",
        })
    }
}

impl Found {
    /// Says in words why it is here; with the pattern, where one led to it.
    #[must_use]
    pub fn reason(&self) -> String {
        match &self.pattern {
            Some(pattern) => format!("it matches `{pattern}`, and it works in the project"),
            None => self.why.to_string(),
        }
    }
}
