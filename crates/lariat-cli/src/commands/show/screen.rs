//! Shows the output of all services together, each line with its service's name, and what happens in between.
//!
//! A thread of its own that reads the stores like everybody else: a terminal under Ctrl-S, or a pipe that nobody reads,
//! stops this thread in a write and nothing else. When the reader is gone it says so, and goes on in silence.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anstyle::Style;
use lariat::event::EventKind;
use lariat::logs::LogFiles;
use lariat::logs::pump::Bell;
use lariat::logs::read::{Ending, LogReader};
use lariat::logs::sanitize::{Colour, sanitize};
use lariat::supervisor::{Handle, Next, Subscription};
use lariat_sys::Errno;
use lariat_sys::poll::{PollFd, PollFlags, poll};

use super::colour;
use super::narrator::Narrator;

/// Bytes that are written at once.
const CHUNK: usize = 64 * 1024;
/// Lines of one service that are shown before the others have their turn.
const TURN_LINES: usize = 2048;

/// One service's output as it is shown.
#[derive(Debug)]
pub(crate) struct Column {
    lead: Lead,
    reader: LogReader,
}

/// What stands in front of a service's lines, made once: formatting it for each costs more than the line.
#[derive(Debug)]
pub(crate) struct Lead {
    first: String,
    /// In front of a line that goes on with the one before.
    more: String,
}

/// Formats lines with the name of their service in front.
#[derive(Debug)]
pub(crate) struct Prefix {
    width: usize,
    is_styled: bool,
}

impl Prefix {
    /// Makes room for the longest of these names.
    pub(crate) fn new<'a>(names: impl Iterator<Item = &'a str>, is_styled: bool) -> Self {
        Self { width: names.map(str::len).max().unwrap_or(0), is_styled }
    }

    /// Returns what stands in front of the lines of this service.
    pub(crate) fn lead(&self, name: &str, style: Style) -> Lead {
        let width = self.width;
        let with = |mark| format!("{style}{name:width$} {mark}{style:#} ");
        Lead { first: with('|'), more: with('+') }
    }

    /// Appends one line. One that goes on with the line before has a `+` in front.
    pub(crate) fn line(&self, lead: &Lead, is_continued: bool, bytes: &[u8], out: &mut String) {
        out.push_str(if is_continued { &lead.more } else { &lead.first });
        sanitize(bytes, if self.is_styled { Colour::Keep } else { Colour::Strip }, out);
        out.push('\n');
    }
}

/// What the screen is made of.
pub(crate) struct Parts {
    pub(crate) subscription: Subscription,
    pub(crate) bell: Arc<Bell>,
    pub(crate) handle: Handle,
    /// Names and stores, in the order of the file.
    pub(crate) services: Vec<(String, LogFiles)>,
    pub(crate) is_styled: bool,
}

/// The thread, seen from the command.
pub(crate) struct Screen {
    last: Sender<String>,
    done: Receiver<()>,
}

impl Screen {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there are too many threads.
    pub(crate) fn start(parts: Parts) -> std::io::Result<Self> {
        let (last, last_words) = channel();
        let (is_done, done) = channel();
        let thread = thread::Builder::new().name("lariat-screen".to_owned());
        thread.spawn(move || {
            Show::new(parts, last_words).run();
            // Dropped here or with a panic: either way nobody waits any longer.
            drop(is_done);
        })?;
        Ok(Self { last, done })
    }

    /// Shows the last words, and waits for them to be shown, but no longer than `patience`: a terminal that takes
    /// nothing does not hold up the end.
    pub(crate) fn finish(self, text: String, patience: Duration) {
        // A thread that panicked takes no last words.
        let _ = self.last.send(text);
        let _ = self.done.recv_timeout(patience);
    }
}

struct Show {
    parts: Parts,
    columns: Vec<Column>,
    prefix: Prefix,
    narrator: Narrator,
    out: String,
    is_closed: bool,
    last_words: Receiver<String>,
}

impl Show {
    fn new(parts: Parts, last_words: Receiver<String>) -> Self {
        let is_styled = parts.is_styled;
        let prefix = Prefix::new(parts.services.iter().map(|(name, _)| name.as_str()), is_styled);
        let column = |(place, (name, files)): (usize, &(String, LogFiles))| {
            // A store that cannot be read is not shown; it is written all the same.
            let reader = LogReader::open(files).ok().flatten()?;
            Some(Column { lead: prefix.lead(name, colour(place, is_styled)), reader })
        };
        let columns = parts.services.iter().enumerate().filter_map(column).collect();
        let narrator = Narrator::new(is_styled);
        Self { parts, columns, prefix, narrator, out: String::new(), is_closed: false, last_words }
    }

    fn run(mut self) {
        loop {
            // Silent before the look, so that nothing that comes after the look is missed.
            self.parts.bell.clear();
            let has_more = self.show_output();
            let is_over = self.show_events();
            self.flush();
            if is_over {
                break;
            }
            if !has_more {
                self.wait();
            }
        }
        while self.show_output() {}
        self.show_open_lines();
        self.flush();
        if let Ok(text) = self.last_words.recv() {
            self.out.push_str(&text);
            self.flush();
        }
    }

    fn wait(&self) {
        let due = self.columns.iter().filter_map(|column| column.reader.due()).min();
        let mut fds = [
            PollFd::from_borrowed_fd(self.parts.subscription.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.parts.bell.as_fd(), PollFlags::IN),
        ];
        // It fails only for want of memory; the loop looks again then.
        let _ = poll(&mut fds, due);
    }

    /// Shows a turn of every service's output. Returns whether there is more.
    fn show_output(&mut self) -> bool {
        let now = Instant::now();
        let mut has_more = false;
        for column in &mut self.columns {
            for turn in 0..=TURN_LINES {
                if turn == TURN_LINES {
                    has_more = true;
                    break;
                }
                // A store that cannot be read any more has nothing more to show.
                let Ok(Some(line)) = column.reader.next_line(now) else { break };
                if line.dropped > 0 {
                    let text =
                        format!("({} bytes are missing here: the disk did not take them)", line.dropped);
                    self.prefix.line(&column.lead, false, text.as_bytes(), &mut self.out);
                }
                let is_end_only =
                    line.is_continued && line.bytes.is_empty() && line.ending == Ending::Newline;
                if !is_end_only {
                    self.prefix.line(&column.lead, line.is_continued, line.bytes, &mut self.out);
                }
                if self.out.len() >= CHUNK {
                    write_out(&mut self.is_closed, &self.parts.handle, self.out.as_bytes());
                    self.out.clear();
                }
            }
        }
        has_more
    }

    fn show_open_lines(&mut self) {
        for column in &mut self.columns {
            if let Some(line) = column.reader.take_open() {
                self.prefix.line(&column.lead, line.is_continued, line.bytes, &mut self.out);
            }
        }
    }

    /// Shows what has happened. Returns whether the run is over.
    fn show_events(&mut self) -> bool {
        loop {
            let text = match self.parts.subscription.next() {
                Next::Event(event) => self.narrator.tell(&event.kind),
                Next::Lost(count) => self.narrator.tell(&EventKind::LimitReached {
                    what: format!("{count} events were not shown: the terminal is too slow"),
                }),
                Next::Nothing => return false,
                Next::Closed => return true,
            };
            self.out.push_str(&text);
        }
    }

    fn flush(&mut self) {
        write_out(&mut self.is_closed, &self.parts.handle, self.out.as_bytes());
        self.out.clear();
    }
}

/// Writes to standard output for as long as somebody reads it. Not through the standard library: a thread that hangs in
/// a write must hold no lock that the last message of the command would wait for.
fn write_out(is_closed: &mut bool, handle: &Handle, mut bytes: &[u8]) {
    while !bytes.is_empty() && !*is_closed {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::OUT)];
                let _ = poll(&mut fds, None);
            }
            // Nobody reads (EPIPE), or the terminal is gone (EIO).
            Err(_) => {
                *is_closed = true;
                handle.output_closed();
            }
        }
    }
}
