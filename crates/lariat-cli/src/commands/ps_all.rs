//! `lariat ps --all`: every run of this user on the machine.

use std::path::Path;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use lariat::clock;
use lariat::ledger::recover::Snapshot;
use lariat::supervisor::runs::{Kind, KnownRun, Runs, State};
use serde::Serialize;

use super::show::{count, duration, harmless, styled};
use super::up::{own_trouble, user_dirs};
use crate::args::stack::PsArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};
use crate::settings;

/// The longest command that is shown, in characters.
const COMMAND_MAX: usize = 40;

/// One run, as it is printed.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Line {
    run: String,
    /// `stack`, `command`, or `lost`.
    kind: &'static str,
    /// The stack's name.
    stack: Option<String>,
    /// The command and its arguments.
    command: Option<Vec<String>>,
    /// Where it was started.
    dir: Option<String>,
    started_unix_ms: Option<u64>,
    /// Seconds since then.
    age: Option<f64>,
    /// `alive`, `finishing`, `crashed`, `ended`, or `unknown`.
    state: &'static str,
    /// Processes that are left of a run that crashed.
    left: Option<usize>,
    /// The process that decides, or did.
    supervisor: Option<i32>,
    /// The run around it.
    inside: Option<String>,
    note: Option<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    runs: &'a [Line],
    notes: &'a [String],
}

/// Shows all runs.
pub(crate) fn run(args: &PsArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let dirs = user_dirs();
    let mut runs = Runs::read(&dirs);
    let snapshot = Snapshot::take(&runs.living());
    let mut snapshot =
        snapshot.map_err(|errno| own_trouble("could not read the list of processes", errno))?;
    let bases: Vec<_> = settings::cgroup_base().into_iter().collect();
    runs.complete(&snapshot, &bases);
    snapshot.living = runs.living();
    let now = clock::unix_millis();
    let mut lines: Vec<Line> = runs.known.iter().map(|run| line(run, &snapshot, now)).collect();
    // The newest first; what began nobody knows when is last.
    lines.sort_by_key(|line| (std::cmp::Reverse(line.started_unix_ms), line.run.clone()));
    if args.json {
        output.print_json(&Document { version: 1, runs: &lines, notes: &runs.notes })?;
        return Ok(ExitCode::Done);
    }
    runs.notes.iter().for_each(|note| output.note(&format!("note: {}", harmless(note))));
    lines.retain(|line| line.state != "ended");
    if lines.is_empty() {
        output.print("no run of yours is known\n");
        return Ok(ExitCode::Done);
    }
    output.print(table(&lines, dirs.home.as_deref(), output.is_out_styled()));
    if lines.iter().any(|line| line.state == "crashed") {
        output.note("`lariat sweep --all` ends what is left, after a yes, and closes what is over");
    }
    Ok(ExitCode::Done)
}

fn line(run: &KnownRun, snapshot: &Snapshot, now: u64) -> Line {
    let (kind, stack, command) = match &run.kind {
        Kind::Stack(name) => ("stack", name.clone(), None),
        Kind::Command(words) => ("command", None, Some(words.clone())),
        Kind::Lost | Kind::Project => ("lost", None, None),
    };
    let state = match run.state {
        State::Alive => "alive",
        State::Finishing => "finishing",
        State::Crashed => "crashed",
        State::Ended => "ended",
        State::Unknown => "unknown",
    };
    let age = run.started_unix_ms.map(|started| now.saturating_sub(started) as f64 / 1000.0);
    Line {
        run: run.run.to_string(),
        kind,
        stack,
        command,
        dir: run.dir.as_ref().map(|dir| dir.to_string_lossy().into_owned()),
        started_unix_ms: run.started_unix_ms,
        age,
        state,
        left: (run.state == State::Crashed).then(|| Runs::left_of(run, snapshot)),
        supervisor: run.supervisor.map(|supervisor| supervisor.pid),
        inside: run.inside.as_ref().map(ToString::to_string),
        note: run.note.clone(),
    }
}

/// Returns the runs as a table.
fn table(lines: &[Line], home: Option<&Path>, is_styled: bool) -> String {
    let bold = styled(Style::new().bold(), is_styled);
    let head = ["run", "what", "where", "age", "state", "supervisor"];
    let rows: Vec<[String; 6]> = lines.iter().map(|line| cells(line, home)).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let title: Vec<String> = head.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    let mut text = format!("{bold}{}{bold:#}\n", title.join("  ").trim_end());
    for (row, line) in rows.iter().zip(lines) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let style = if column == 4 { state_style(line, is_styled) } else { Style::new() };
            format!("{style}{cell:width$}{style:#}")
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
        if let Some(note) = &line.note {
            text.push_str(&format!("  {}\n", harmless(note)));
        }
    }
    text
}

fn cells(line: &Line, home: Option<&Path>) -> [String; 6] {
    let dash = || "-".to_owned();
    let command = line.command.as_ref().map(|words| cut(&harmless(&words.join(" "))));
    let command = command.filter(|command| !command.is_empty()).map(|command| format!("`{command}`"));
    let dir = line.dir.as_ref().map(|dir| short(&harmless(dir), home));
    let age = line.age.and_then(|age| Duration::try_from_secs_f64(age).ok());
    let state = match line.left {
        Some(0) => format!("{}, nothing left", line.state),
        Some(left) => format!("{}, {} left", line.state, count(left as u64, "process", "processes")),
        None => line.state.to_owned(),
    };
    [
        line.run.clone(),
        line.stack.as_deref().map(harmless).or(command).unwrap_or_else(dash),
        dir.unwrap_or_else(dash),
        age.map_or_else(dash, duration),
        state,
        line.supervisor.map_or_else(dash, |pid| pid.to_string()),
    ]
}

fn cut(text: &str) -> String {
    if text.chars().count() <= COMMAND_MAX {
        return text.to_owned();
    }
    text.chars().take(COMMAND_MAX - 1).chain(['…']).collect()
}

/// Shortens a path below home, as shells do.
fn short(dir: &str, home: Option<&Path>) -> String {
    let below =
        home.filter(|home| home.parent().is_some()).and_then(|home| Path::new(dir).strip_prefix(home).ok());
    match below {
        Some(below) if below.as_os_str().is_empty() => "~".to_owned(),
        Some(below) => format!("~/{}", below.display()),
        None => dir.to_owned(),
    }
}

fn state_style(line: &Line, is_styled: bool) -> Style {
    let colour = match (line.state, line.left) {
        ("alive", _) => AnsiColor::Green,
        ("crashed", Some(1..)) => AnsiColor::Red,
        _ => AnsiColor::Yellow,
    };
    styled(colour.on_default(), is_styled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(run: &str, kind: &'static str, state: &'static str, left: Option<usize>) -> Line {
        Line {
            run: run.into(),
            kind,
            stack: (kind == "stack").then(|| "shop".into()),
            command: (kind == "command").then(|| vec!["npm".into(), "run".into(), "x".repeat(60)]),
            dir: (kind != "lost").then(|| format!("/home/me/{kind}")),
            started_unix_ms: Some(1),
            age: (kind != "lost").then_some(75.0),
            state,
            left,
            supervisor: (kind != "lost").then_some(12_345),
            inside: None,
            note: (left == Some(3)).then(|| "its ledger is gone".into()),
        }
    }

    #[test]
    fn columns_are_aligned_and_nothing_is_trailing() {
        let lines = [
            line("0123456789abcdef", "stack", "alive", None),
            line("1123456789abcdef", "command", "crashed", Some(0)),
            line("2123456789abcdef", "stack", "crashed", Some(3)),
            line("3123456789abcdef", "lost", "crashed", Some(1)),
        ];
        assert_eq!(
            table(&lines, Some(Path::new("/home/me")), false),
            "run               what                                        where      age         state                      supervisor\n\
             0123456789abcdef  shop                                        ~/stack    1 min 15 s  alive                      12345\n\
             1123456789abcdef  `npm run xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…`  ~/command  1 min 15 s  crashed, nothing left      12345\n\
             2123456789abcdef  shop                                        ~/stack    1 min 15 s  crashed, 3 processes left  12345\n\
             \u{20} its ledger is gone\n\
             3123456789abcdef  -                                           -          -           crashed, 1 process left    -\n"
        );
    }

    #[test]
    fn home_is_a_tilde_and_nothing_else_is() {
        let home = Some(Path::new("/home/me"));
        assert_eq!(short("/home/me", home), "~");
        assert_eq!(short("/home/meadow", home), "/home/meadow");
        assert_eq!(short("/x", Some(Path::new("/"))), "/x");
    }
}
