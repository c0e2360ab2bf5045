//! `lariat logs`: what services wrote, in this run or the last.
//!
//! The stores are read like by everybody else; no supervisor is needed, and none is held up.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use lariat::ledger::{STATE_DIR, StateDir, lock};
use lariat::logs::LogFiles;
use lariat::logs::read::{Ending, Follower, LogReader, ReadError};
use lariat::logs::sanitize::{Colour, sanitize};
use serde::Serialize;

use super::live;
use super::past::ledger_failure;
use super::show::colour;
use super::show::screen::{Lead, Prefix};
use crate::args::stack::LogsArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Lines of one service that are shown before the others have their turn, when following.
const TURN_LINES: usize = 512;

/// Shows the output of the project's services.
pub(crate) fn run(args: &LogsArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let root = live::project_root()?;
    let logs = root.join(STATE_DIR).join("logs");
    // Before the stores are opened, so that nothing in between is missed.
    let mut follower = args.follow.then(|| Follower::new(&logs));
    let mut columns = open(&logs, args)?;
    if columns.is_empty() {
        return Err(Failure::new(
            ExitCode::NoRun,
            format!("no run of {} has written anything", root.display()),
        )
        .hint("`lariat up` starts one"));
    }
    if let Some(lines) = args.lines {
        let lines = usize::try_from(lines).unwrap_or(usize::MAX);
        columns
            .iter_mut()
            .try_for_each(|column| column.reader.seek_last(lines))
            .map_err(|e| unreadable(&e))?;
    }
    let mut show = Show::new(args, &columns, output.is_out_styled());
    show_by_time(&mut columns, &mut show, output)?;
    while let Some(follower) = &mut follower {
        // Looked at before the stores: a run that ends in between has its last words shown in the next turn.
        let is_over = !is_alive(&root)?;
        let has_more = show_turn(&mut columns, &mut show, output)?;
        output.flush();
        if output.is_broken() || (is_over && !has_more) {
            break;
        }
        if !has_more {
            let due = columns.iter().filter_map(|column| column.reader.due()).min();
            follower
                .wait(due, None)
                .map_err(|e| Failure::new(ExitCode::Trouble, "could not wait for more output").because(e))?;
        }
    }
    for column in &mut columns {
        if let Some(line) = column.reader.take_open() {
            let line = Shown { bytes: line.bytes.to_vec(), time: line.time, is_continued: line.is_continued };
            show.line(column.place, &column.name, &line, output);
        }
    }
    Ok(ExitCode::Done)
}

/// One service's store.
struct Column {
    name: String,
    place: usize,
    reader: LogReader,
    /// A line that was read and not shown yet.
    next: Option<Shown>,
}

struct Shown {
    bytes: Vec<u8>,
    time: Option<Duration>,
    is_continued: bool,
}

fn open(logs: &Path, args: &LogsArgs) -> Result<Vec<Column>, Failure> {
    let mut names: Vec<String> = std::fs::read_dir(logs)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".log").map(str::to_owned))
        .filter(|name| !name.ends_with(".prev"))
        .collect();
    names.sort();
    if let Some(unknown) = args.services.iter().find(|service| !names.contains(service)) {
        let known = names.join(", ");
        return Err(Failure::new(ExitCode::Usage, format!("no service `{unknown}` has written anything"))
            .hint(format!("there are: {known}")));
    }
    let mut columns = Vec::new();
    for (place, name) in names.into_iter().enumerate() {
        if !args.services.is_empty() && !args.services.contains(&name) {
            continue;
        }
        if let Some(reader) = LogReader::open(&LogFiles::current(logs, &name)).map_err(|e| unreadable(&e))? {
            columns.push(Column { name, place, reader, next: None });
        }
    }
    Ok(columns)
}

fn unreadable(error: &ReadError) -> Failure {
    Failure::new(ExitCode::Trouble, error.to_string())
}

impl Column {
    /// Makes sure that the next line, if there is one, is read.
    fn peek(&mut self, now: Instant) -> Result<Option<&Shown>, Failure> {
        if self.next.is_none() {
            let line = self.reader.next_line(now).map_err(|e| unreadable(&e))?;
            self.next = line.and_then(|line| {
                let is_end_only =
                    line.is_continued && line.bytes.is_empty() && line.ending == Ending::Newline;
                let shown =
                    Shown { bytes: line.bytes.to_vec(), time: line.time, is_continued: line.is_continued };
                (!is_end_only).then_some(shown)
            });
        }
        Ok(self.next.as_ref())
    }
}

/// Shows everything that is there, the lines of all services in the order of their times.
fn show_by_time(columns: &mut [Column], show: &mut Show, output: &mut Output) -> Result<(), Failure> {
    let now = Instant::now();
    while !output.is_broken() {
        let mut first: Option<(Duration, usize)> = None;
        for (index, column) in columns.iter_mut().enumerate() {
            if let Some(line) = column.peek(now)? {
                let time = line.time.unwrap_or_default();
                if first.is_none_or(|(earliest, _)| time < earliest) {
                    first = Some((time, index));
                }
            }
        }
        let Some((_, index)) = first else { return Ok(()) };
        let column = &mut columns[index];
        if let Some(line) = column.next.take() {
            show.line(column.place, &column.name, &line, output);
        }
    }
    Ok(())
}

/// Shows what has come. Returns whether there is more.
fn show_turn(columns: &mut [Column], show: &mut Show, output: &mut Output) -> Result<bool, Failure> {
    let now = Instant::now();
    let mut has_more = false;
    for column in columns {
        for turn in 0..=TURN_LINES {
            if turn == TURN_LINES {
                has_more = true;
            } else if column.peek(now)?.is_none() {
                break;
            } else if let Some(line) = column.next.take() {
                show.line(column.place, &column.name, &line, output);
            }
        }
    }
    Ok(has_more)
}

/// Whether a lariat process of the project's run is alive.
fn is_alive(root: &Path) -> Result<bool, Failure> {
    match StateDir::open(root).map_err(ledger_failure)? {
        Some(state) => lock::is_held(&state).map_err(ledger_failure),
        None => Ok(false),
    }
}

/// How lines are shown.
struct Show {
    prefix: Prefix,
    /// By the service's place in the configuration.
    leads: BTreeMap<usize, Lead>,
    has_prefix: bool,
    has_time: bool,
    is_json: bool,
    is_styled: bool,
    text: String,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    service: &'a str,
    /// Microseconds since 1970 UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<u64>,
    /// Bytes that are no text are shown as U+FFFD.
    line: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_continued: bool,
}

impl Show {
    fn new(args: &LogsArgs, columns: &[Column], is_styled: bool) -> Self {
        let prefix = Prefix::new(columns.iter().map(|column| column.name.as_str()), is_styled);
        let lead =
            |column: &Column| (column.place, prefix.lead(&column.name, colour(column.place, is_styled)));
        Self {
            leads: columns.iter().map(lead).collect(),
            prefix,
            has_prefix: args.services.len() != 1,
            has_time: args.time,
            is_json: args.json,
            is_styled,
            text: String::new(),
        }
    }

    fn line(&mut self, place: usize, service: &str, line: &Shown, output: &mut Output) {
        self.text.clear();
        if self.is_json {
            let time = line.time.and_then(|time| u64::try_from(time.as_micros()).ok());
            let text = String::from_utf8_lossy(&line.bytes);
            let json = JsonLine { service, time, line: text, is_continued: line.is_continued };
            // A struct of texts and numbers is always JSON.
            self.text = serde_json::to_string(&json).unwrap_or_default();
            self.text.push('\n');
        } else {
            if self.has_time {
                self.text.push_str(&clock(line.time));
                self.text.push(' ');
            }
            if let (true, Some(lead)) = (self.has_prefix, self.leads.get(&place)) {
                self.prefix.line(lead, line.is_continued, &line.bytes, &mut self.text);
            } else {
                let colours = if self.is_styled { Colour::Keep } else { Colour::Strip };
                sanitize(&line.bytes, colours, &mut self.text);
                self.text.push('\n');
            }
        }
        output.print(&self.text);
    }
}

/// Returns a time as `2026-11-21T14:29:00.123Z`; spaces where there is none.
fn clock(time: Option<Duration>) -> String {
    let Some(time) = time else { return " ".repeat(24) };
    let moment = SystemTime::UNIX_EPOCH + time;
    match jiff::Timestamp::try_from(moment) {
        Ok(timestamp) => format!("{timestamp:.3}"),
        Err(_) => " ".repeat(24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_width() {
        assert_eq!(clock(Some(Duration::from_millis(1_795_271_340_120))), "2026-11-21T14:29:00.120Z");
        assert_eq!(clock(Some(Duration::ZERO)).len(), clock(None).len());
    }
}
