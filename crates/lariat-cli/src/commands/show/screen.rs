//! Shows the output of all services together, each line with its service's name, and what happens in between.
//!
//! A thread of its own that reads the stores like everybody else: a terminal under Ctrl-S, or a pipe that nobody reads,
//! stops this thread in a write and nothing else. When the reader is gone, or what is written to takes no more, it says
//! so, and goes on in silence.

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
use rustix::fs::FileType;

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
    /// It is a terminal that is written to.
    pub(crate) is_terminal: bool,
}

/// The thread, seen from the command.
pub(crate) struct Screen {
    last: Sender<String>,
    done: Receiver<Option<Errno>>,
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
            // Dropped here or with a panic: either way nobody waits any longer.
            let _ = is_done.send(Show::new(parts, last_words).run());
        })?;
        Ok(Self { last, done })
    }

    /// Shows the last words, and waits for them to be shown, but no longer than `patience`: a terminal that takes
    /// nothing does not hold up the end. Returns why not all of the output was written, if that is because of anything
    /// but its reader.
    pub(crate) fn finish(self, text: String, patience: Duration) -> Option<Errno> {
        // A thread that panicked takes no last words.
        let _ = self.last.send(text);
        self.done.recv_timeout(patience).ok().flatten()
    }
}

struct Show {
    parts: Parts,
    columns: Vec<Column>,
    prefix: Prefix,
    narrator: Narrator,
    out: String,
    sink: Sink,
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
        let narrator = Narrator::new(is_styled).at_terminal(parts.is_terminal);
        Self { parts, columns, prefix, narrator, out: String::new(), sink: Sink::Open, last_words }
    }

    /// Shows everything. Returns why that was not possible, if not because nobody reads.
    fn run(mut self) -> Option<Errno> {
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
        match self.sink {
            Sink::Open | Sink::Closed => None,
            Sink::Failed(errno) => Some(errno),
        }
    }

    fn wait(&self) {
        let due = self.columns.iter().filter_map(|column| column.reader.due());
        let due = due.chain(self.narrator.remind_at()).min();
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
                    self.sink.write(&self.parts.handle, self.out.as_bytes());
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
            let kind = match self.parts.subscription.next() {
                Next::Event(event) => event.kind,
                Next::Lost(count) => EventKind::LimitReached {
                    what: format!("{count} events were not shown: the terminal is too slow"),
                },
                Next::Nothing => break,
                Next::Closed => return true,
            };
            self.out.push_str(&self.narrator.tell(&kind, Instant::now()));
        }
        self.out.push_str(&self.narrator.remind(Instant::now()));
        false
    }

    fn flush(&mut self) {
        self.sink.write(&self.parts.handle, self.out.as_bytes());
        self.out.clear();
    }
}

/// Standard output, and what became of it.
#[derive(Clone, Copy, Debug)]
enum Sink {
    Open,
    /// Nobody reads it any more.
    Closed,
    /// It takes no more, for this reason: the disk is full, or its server does not answer.
    Failed(Errno),
}

impl Sink {
    /// Writes for as long as it is open. Not through the standard library: a thread that hangs in a write must hold no
    /// lock that the last message of the command would wait for.
    fn write(&mut self, handle: &Handle, mut bytes: &[u8]) {
        while !bytes.is_empty() && matches!(self, Self::Open) {
            match rustix::io::write(rustix::stdio::stdout(), bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::OUT)];
                    let _ = poll(&mut fds, None);
                }
                // A file says EIO as well, where its disk is broken.
                Err(errno) if errno == Errno::PIPE || (errno == Errno::IO && is_device()) => {
                    *self = Self::Closed;
                    handle.output_closed();
                }
                Err(errno) => {
                    *self = Self::Failed(errno);
                    handle.output_failed();
                }
            }
        }
    }
}

/// Says whether standard output is a device, as a terminal is: one that is gone cannot be asked more.
fn is_device() -> bool {
    let kind = rustix::fs::fstat(rustix::stdio::stdout()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind.is_ok_and(|kind| kind == FileType::CharacterDevice)
}
