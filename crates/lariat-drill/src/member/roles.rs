//! Roles that are no trees: second halves of members that execute themselves, and the programs around lariat.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use lariat_sys::signal::{self, SignalSet};
use lariat_sys::{files, process};

use super::part::Part;
use super::{births, places, shapes};

/// What a role does.
pub(crate) type Build = fn(&Part) -> !;

const HELPERS: &[(&str, Build)] = &[
    ("disguised-member", shapes::disguised_member),
    ("unmarked-member", shapes::unmarked_member),
    ("deleted-member", shapes::deleted_member),
    ("executor-member", shapes::executor_member),
    ("plain-member", plain_member),
    ("thread-exec-leader", births::thread_exec_leader),
    ("inner-daemon", births::inner_daemon),
    ("neighbour", places::neighbour),
    ("on-terminal", terminal),
    ("caller", caller),
];

/// Finds a helper's role.
pub(super) fn find(role: &str) -> Option<Build> {
    HELPERS.iter().find(|(name, _)| *name == role).map(|(_, build)| *build)
}

fn plain_member(part: &Part) -> ! {
    part.member("member")
}

/// Takes the terminal of the first word as its session's and its standard streams, and executes the others. It leads a
/// session without a terminal, so opening one takes it.
fn terminal(part: &Part) -> ! {
    let Some((path, command)) = part.rest.split_first() else { process::exit_now(2) };
    let terminal = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(terminal) => terminal,
        Err(error) => part.broken("open the terminal", error),
    };
    for slot in 0..3 {
        if let Err(errno) = files::replace_stream(&terminal, slot) {
            part.broken("take the terminal", errno);
        }
    }
    execute(part, command)
}

fn execute(part: &Part, command: &[OsString]) -> ! {
    let Some((file, words)) = command.split_first() else { process::exit_now(2) };
    let error = Command::new(file).args(words).exec();
    part.broken("execute the subject", error)
}

/// A program that has started lariat, holds its lifeline, and waits for nothing: the judge ends it.
fn caller(part: &Part) -> ! {
    let Some((file, words)) = part.rest.split_first() else { process::exit_now(2) };
    let (read, write) = match files::pipe(0) {
        Ok(ends) => ends,
        Err(errno) => part.broken("open a pipe", errno),
    };
    // Not piped by the library: the write end has to stay open when the handle of the child is dropped.
    let subject = Command::new(file).args(words).stdin(Stdio::from(read)).spawn();
    let subject = match subject {
        Ok(subject) => subject,
        Err(error) => part.broken("start the subject", error),
    };
    part.say(&format!("subject {}", subject.id()));
    signal::block(SignalSet::full());
    hold(&write);
    // USR1 is the judge's word for closing the lifeline.
    let _ = signal::wait(SignalSet::empty().with(super::LEAVE), None);
    drop(write);
    let _ = signal::wait(SignalSet::empty().with(super::CRASH), None);
    process::exit_now(0)
}

/// Keeps a descriptor in sight of the reader of this code: it is the lifeline.
fn hold(end: &OwnedFd) -> i32 {
    end.as_raw_fd()
}
