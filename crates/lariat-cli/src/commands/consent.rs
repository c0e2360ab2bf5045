//! Asks a person at the terminal, where standard output and error may be redirected.
//!
//! Who gave a command another standard input than the terminal (`< /dev/null`, a pipe, `nohup`) expects no question there,
//! and may not see one: nobody is asked then.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use lariat_sys::files;
use lariat_sys::poll::{PollFd, PollFlags, poll};

use super::up::Signals;

/// What was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// Yes, or nothing where that means yes.
    Yes,
    /// No, or nothing where that means no, or a signal that asks to end.
    No,
    /// There is no terminal, or it closed, or standard input is something else.
    Nobody,
}

/// What an empty line means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Default {
    Yes,
    No,
}

/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 4096;

/// Asks a question of yes or no. Blocks until it is answered, the terminal closes, or a signal asks to end.
pub(crate) fn ask(question: &str, default: Default, signals: &Signals) -> Answer {
    if !io::stdin().is_terminal() {
        return Answer::Nobody;
    }
    let Ok(terminal) = files::open_tty() else { return Answer::Nobody };
    let mut terminal = std::fs::File::from(terminal);
    let choice = match default {
        Default::Yes => "[Y/n]",
        Default::No => "[y/N]",
    };
    if terminal.write_all(format!("{question} {choice} ").as_bytes()).is_err() {
        return Answer::Nobody;
    }
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < ANSWER_MAX {
        let mut fds = [
            PollFd::from_borrowed_fd(terminal.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.queue.as_fd(), PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        let is_signalled = !fds[1].revents().is_empty();
        let is_answered = !fds[0].revents().is_empty();
        if is_signalled && signals.asks_to_end() {
            return Answer::No;
        }
        if is_answered {
            let mut buffer = [0; 64];
            match terminal.read(&mut buffer) {
                Ok(0) | Err(_) => return Answer::Nobody,
                Ok(n) => line.extend_from_slice(&buffer[..n]),
            }
        }
    }
    match line.trim_ascii().to_ascii_lowercase().as_slice() {
        b"" if default == Default::Yes => Answer::Yes,
        b"y" | b"yes" => Answer::Yes,
        _ => Answer::No,
    }
}
