//! The one place that writes to standard output and standard error.
//!
//! Data goes to standard output, everything said about it to standard error. A reader that goes away (`| head`) ends
//! the output quietly and changes nothing else: what the command does goes on, and its exit code stays. Any other
//! failure to write is trouble that is reported, since a script would take half of a list for the whole. Colour is
//! for terminals only, and never without a word that says the same.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use anstream::ColorChoice;
use anstyle::{AnsiColor, Style};
use lariat_config::{Diagnostic, Look, render};
use lariat_sys::poll::{PollFd, PollFlags, poll};
use serde::Serialize;

use crate::exit_code::ExitCode;

/// The command could not do what it was asked to.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// What the process ends with.
    pub(crate) code: ExitCode,
    /// What could not be done, lower case and without a full stop.
    pub(crate) message: String,
    /// Why, the nearest reason first; one line each.
    pub(crate) causes: Vec<String>,
    /// What to do, where there is something.
    pub(crate) hint: Option<String>,
    /// What is wrong with a configuration, shown before the message.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Failure {
    /// Returns a failure without causes and hint.
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hint: None, diagnostics: Vec::new() }
    }

    /// Adds a cause of what was said before.
    pub(crate) fn because(mut self, cause: impl ToString) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Sets what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Standard output took not all of what was written.
pub(crate) const UNWRITTEN: &str = "could not write to standard output";

const RED: Style = AnsiColor::Red.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default().bold();

/// Standard output and standard error of one command.
pub(crate) struct Output {
    is_out_styled: bool,
    is_err_styled: bool,
    held: Vec<u8>,
    /// The first failure to write. Nothing is written after it.
    broken: Option<ErrorKind>,
    /// Characters of the line that is shown for a while ([`Output::show_line`]).
    shown: usize,
}

/// Output is written out when this much of it is held, in bytes.
const HELD_MAX: usize = 64 * 1024;

impl Output {
    /// Returns the output of a command; `is_plain` is for `--no-color`.
    pub(crate) fn new(is_plain: bool) -> Self {
        let is_styled = |choice| !is_plain && choice != ColorChoice::Never;
        Self {
            is_out_styled: is_styled(anstream::AutoStream::choice(&io::stdout())),
            is_err_styled: is_styled(anstream::AutoStream::choice(&io::stderr())),
            held: Vec::new(),
            broken: None,
            shown: 0,
        }
    }

    /// Returns whether standard output takes colours.
    pub(crate) fn is_out_styled(&self) -> bool {
        self.is_out_styled
    }

    /// Returns whether standard error takes colours.
    pub(crate) fn is_err_styled(&self) -> bool {
        self.is_err_styled
    }

    /// Returns whether nobody takes the output any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Says something on standard error, as one line or more. What was printed so far comes before it.
    pub(crate) fn note(&mut self, text: &str) {
        self.write_out();
        // There is no other place to say it.
        let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
    }

    /// Returns whether standard error is a terminal, on which a line can be written over.
    pub(crate) fn is_err_terminal(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// Shows a line on the terminal in place of the last one shown by this; `None` takes it away. A terminal that takes
    /// nothing at the moment (Ctrl-S) is not waited for: the line is not shown then. Returns whether it was.
    pub(crate) fn show_line(&mut self, line: Option<&str>) -> bool {
        // Room is left for the `^C` that a terminal adds.
        let room = width(&io::stderr()).saturating_sub(3);
        let text: String = line.unwrap_or_default().chars().take(room).collect();
        let shown = text.chars().count();
        let is_free = takes_more(&io::stderr());
        if is_free {
            let clear = match self.is_err_styled {
                true => "\r\x1b[K".to_owned(),
                false => format!("\r{}\r", " ".repeat(self.shown)),
            };
            // There is no other place to say it.
            let _ = io::stderr().write_all(format!("{clear}{text}").as_bytes());
            self.shown = shown;
        }
        is_free
    }

    /// Says something on standard error if that takes it at once, and says whether it did: nothing that is being ended
    /// waits for a reader.
    pub(crate) fn try_note(&mut self, text: &str) -> bool {
        let is_clear = !self.is_err_terminal() || self.show_line(None);
        let is_free = is_clear && takes_more(&io::stderr());
        if is_free {
            self.note(text);
        }
        is_free
    }

    /// Shows diagnostics on standard error, beside what the command does.
    pub(crate) fn note_diagnostics(&mut self, diagnostics: &[Diagnostic]) {
        if !diagnostics.is_empty() {
            let look = Look { is_styled: self.is_err_styled, width: width(&io::stderr()) };
            let text = render(diagnostics, look);
            self.note(text.trim_end());
        }
    }

    /// Writes what was printed so far.
    pub(crate) fn flush(&mut self) {
        self.write_out();
    }

    /// Writes data to standard output, at the latest in [`Output::finish`]. May block for a slow reader.
    pub(crate) fn print(&mut self, text: impl AsRef<[u8]>) {
        self.held.extend_from_slice(text.as_ref());
        if self.held.len() >= HELD_MAX {
            self.write_out();
        }
    }

    /// Writes one JSON document and a newline to standard output.
    pub(crate) fn print_json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(value)
            .map_err(|error| Failure::new(ExitCode::Trouble, "could not write JSON").because(error))?;
        self.print(text);
        self.print("\n");
        Ok(())
    }

    /// Shows diagnostics as data, on standard output.
    pub(crate) fn print_diagnostics(&mut self, diagnostics: &[Diagnostic]) {
        let look = Look { is_styled: self.is_out_styled, width: width(&io::stdout()) };
        self.print(render(diagnostics, look));
    }

    /// Writes what is held. To be called last: only then it is known whether the reader got everything.
    ///
    /// # Errors
    /// A failure when standard output took no more, unless its reader went away.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.write_out();
        match self.broken {
            None | Some(ErrorKind::BrokenPipe) => Ok(()),
            Some(kind) => {
                let cause = io::Error::from(kind);
                Err(Failure::new(ExitCode::Trouble, UNWRITTEN).because(cause))
            }
        }
    }

    fn write_out(&mut self) {
        let held = std::mem::take(&mut self.held);
        if self.broken.is_none() && !held.is_empty() {
            // Without a `main` of the standard library nobody flushes its buffer at the end.
            let mut out = io::stdout().lock();
            self.broken = out.write_all(&held).and_then(|()| out.flush()).err().map(|error| error.kind());
        }
    }

    /// Says on standard error what could not be done, why, and what to do. A failure to write it is ignored: there
    /// is no other place to say it, and the exit code says the most important part.
    pub(crate) fn fail(&self, failure: &Failure) {
        let style = |style: Style| if self.is_err_styled { style } else { Style::new() };
        let (red, cyan) = (style(RED), style(CYAN));
        let look = Look { is_styled: self.is_err_styled, width: width(&io::stderr()) };
        let mut text = render(&failure.diagnostics, look);
        text.push_str(&format!("{red}lariat:{red:#} {}\n", failure.message));
        for cause in &failure.causes {
            text.push_str(&format!("  because {cause}\n"));
        }
        if let Some(hint) = &failure.hint {
            text.push_str(&format!("  {cyan}hint:{cyan:#} {hint}\n"));
        }
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Says on standard error what clap found wrong with the command line.
    pub(crate) fn fail_usage(&self, error: &clap::Error) {
        let text = error.render();
        let text = if self.is_err_styled { text.ansi().to_string() } else { text.to_string() };
        let _ = io::stderr().write_all(text.replacen("error:", "lariat:", 1).as_bytes());
    }
}

/// Says whether a line can be written without waiting for whoever takes it.
fn takes_more(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::OUT)];
    // Where the kernel cannot tell, nothing is said.
    poll(&mut fds, Some(Instant::now())).is_ok_and(|ready| ready > 0)
}

/// Returns the width of a terminal in columns, and 140 for everything else.
fn width(stream: &(impl IsTerminal + AsFd)) -> usize {
    let size = if stream.is_terminal() { rustix::termios::tcgetwinsize(stream).ok() } else { None };
    size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(Look::default().width)
}
