//! What a sweep found and did, as text and as JSON.

use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use lariat::ledger::LedgerError;
use lariat::ledger::recover::Found;
use lariat::shutdown::report::{HeldPort, LeftProcess};
use lariat::supervisor::leftovers::{Closed, Leftover, Outcome, Search};
use lariat::supervisor::runs::Kind;
use serde::Serialize;

use super::{count, duration, harmless, styled};
use crate::exit_code::ExitCode;

/// How all groups came out.
pub(crate) type Outcomes = [(Closed, Result<Outcome, LedgerError>)];

/// What `--json` prints.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Document {
    version: u32,
    is_dry_run: bool,
    /// Nothing certain is left; of a dry run: nothing certain was found.
    is_clean: bool,
    groups: Vec<Group>,
    /// Runs that are alive and were left alone.
    alive: Vec<String>,
    /// Runs that keepers are ending at this moment.
    at_work: Vec<String>,
    notes: Vec<String>,
    troubles: Vec<String>,
}

/// One group.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Group {
    run: Option<String>,
    /// `stack`, `command`, `lost`, or `project`.
    kind: &'static str,
    stack: Option<String>,
    command: Option<Vec<String>>,
    dir: Option<String>,
    started_unix_ms: Option<u64>,
    certain: Vec<Process>,
    possible: Vec<Process>,
    ports: Vec<HeldPort>,
    /// Cgroup directories that are removed with it.
    directories: Vec<String>,
    notes: Vec<String>,
    outcome: Option<Done>,
}

/// One process. Times are in seconds.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Process {
    pid: i32,
    start: u64,
    parent: i32,
    uid: Option<u32>,
    service: Option<String>,
    command: String,
    age: f64,
    why: String,
}

/// How a group came out.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Done {
    ended: u32,
    killed: u32,
    took: f64,
    left: Vec<LeftProcess>,
    ports: Vec<HeldPort>,
    notes: Vec<String>,
    /// Cgroup directories that were removed.
    removed: Vec<String>,
    is_closed: bool,
    error: Option<String>,
}

impl Document {
    /// Makes the document of what was found.
    pub(crate) fn of(search: &Search, is_dry_run: bool) -> Self {
        Self {
            version: 1,
            is_dry_run,
            is_clean: search.leftovers.iter().all(|leftover| leftover.certain().is_empty()),
            groups: search.leftovers.iter().map(group).collect(),
            alive: search.alive.clone(),
            at_work: search.at_work.iter().map(ToString::to_string).collect(),
            notes: search.notes.clone(),
            troubles: search.troubles.clone(),
        }
    }

    /// Adds how the groups came out, which are the same in the same order.
    pub(crate) fn with(mut self, outcomes: &Outcomes) -> Self {
        for (group, (_, outcome)) in self.groups.iter_mut().zip(outcomes) {
            group.outcome = Some(done(outcome));
        }
        self.is_clean = outcomes.iter().all(|(_, outcome)| outcome.as_ref().is_ok_and(Outcome::is_clean));
        self
    }
}

fn group(leftover: &Leftover) -> Group {
    let (kind, stack, command) = match &leftover.kind {
        Kind::Stack(name) => ("stack", name.clone(), None),
        Kind::Command(words) => ("command", None, Some(words.clone())),
        Kind::Lost => ("lost", None, None),
        Kind::Project => ("project", None, None),
    };
    Group {
        run: leftover.run.as_ref().map(ToString::to_string),
        kind,
        stack,
        command,
        dir: leftover.dir.as_ref().map(|dir| dir.to_string_lossy().into_owned()),
        started_unix_ms: leftover.started_unix_ms,
        certain: leftover.certain().iter().map(process).collect(),
        possible: leftover.possible().iter().map(process).collect(),
        ports: leftover.held_ports(),
        directories: paths(&leftover.directories()),
        notes: leftover.notes.clone(),
        outcome: None,
    }
}

fn paths(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

fn process(found: &Found) -> Process {
    Process {
        pid: found.identity.pid,
        start: found.identity.start,
        parent: found.ppid,
        uid: found.uid,
        service: found.service.clone(),
        command: found.command.clone(),
        age: found.age.as_secs_f64(),
        why: found.reason(),
    }
}

fn done(outcome: &Result<Outcome, LedgerError>) -> Done {
    let (outcome, error) = match outcome {
        Ok(outcome) => (outcome.clone(), None),
        Err(error) => (Outcome::default(), Some(error.to_string())),
    };
    Done {
        ended: outcome.ended,
        killed: outcome.killed,
        took: outcome.took.as_secs_f64(),
        left: outcome.left,
        ports: outcome.ports,
        notes: outcome.notes,
        removed: paths(&outcome.removed),
        is_closed: outcome.is_closed,
        error,
    }
}

/// Returns what the sweep's end means for the exit code.
pub(crate) fn exit_code(outcomes: &Outcomes, troubles: &[String]) -> ExitCode {
    let is_any =
        |is_so: fn(&Outcome) -> bool| outcomes.iter().any(|(_, outcome)| outcome.as_ref().is_ok_and(is_so));
    if is_any(Outcome::is_something_left) {
        ExitCode::Left
    } else if !troubles.is_empty()
        || outcomes.iter().any(|(_, outcome)| outcome.is_err())
        || is_any(|outcome| outcome.is_blind)
    {
        ExitCode::Trouble
    } else {
        ExitCode::Done
    }
}

/// Names a group.
pub(crate) fn title(leftover: &Leftover) -> String {
    named(&leftover.run.as_ref().map(ToString::to_string), &leftover.kind, leftover.dir.as_deref())
}

fn named(run: &Option<String>, kind: &Kind, dir: Option<&std::path::Path>) -> String {
    let run = run.as_deref().unwrap_or("?");
    let place = dir.map(|dir| harmless(&dir.to_string_lossy()));
    let in_place = place.as_ref().map(|place| format!(" in {place}")).unwrap_or_default();
    match kind {
        Kind::Stack(Some(name)) => {
            let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
            format!("run {run} of {}{place}", harmless(name))
        }
        Kind::Stack(None) => format!("run {run}{in_place}"),
        Kind::Command(words) if words.is_empty() => format!("run {run}"),
        Kind::Command(words) => format!("run {run}, `{}`{in_place},", harmless(&words.join(" "))),
        Kind::Lost => format!("run {run}, of which there is no record,"),
        Kind::Project => format!("at work{in_place}"),
    }
}

/// What to do where the processes could not be read.
const BLIND_HINT: &str = "once `ls /proc` lists processes again, `lariat sweep` looks for them";

/// Returns the report of a sweep.
pub(crate) fn report(outcomes: &Outcomes, is_styled: bool) -> String {
    let (red, green) =
        (styled(AnsiColor::Red.on_default(), is_styled), styled(AnsiColor::Green.on_default(), is_styled));
    let mut text = String::new();
    let (mut is_clean, mut has_ended, mut is_all_seen) = (true, false, true);
    for (closed, outcome) in outcomes {
        let run = closed.run.as_ref().map(ToString::to_string);
        let name = named(&run, &closed.kind, closed.dir.as_deref());
        let name = name.trim_end_matches(',');
        match outcome {
            Ok(outcome) => {
                text.push_str(&one(name, closed, outcome, red));
                is_clean &= !outcome.is_something_left();
                is_all_seen &= !outcome.is_blind;
                has_ended |= outcome.ended > 0;
            }
            Err(error) => {
                text.push_str(&format!("{red}{name} could not be closed{red:#}: {error}\n"));
                is_clean = false;
            }
        }
    }
    let removed: usize =
        outcomes.iter().filter_map(|(_, done)| done.as_ref().ok()).map(|o| o.removed.len()).sum();
    if removed > 0 {
        let removed = count(removed as u64, "cgroup directory", "cgroup directories");
        text.push_str(&format!("removed {removed} of runs that are over\n"));
    }
    text.push_str(&match (is_clean, has_ended) {
        (true, _) if !is_all_seen => format!("{red}what is left is not known{red:#}\n      {BLIND_HINT}\n"),
        (true, true) => format!("{green}nothing is left{green:#}\n"),
        (true, false) => format!("{green}nothing is left{green:#} of earlier runs\n"),
        (false, _) => format!("{red}something is left{red:#}\n"),
    });
    text
}

fn one(name: &str, closed: &Closed, outcome: &Outcome, red: Style) -> String {
    let mut text = String::new();
    if outcome.ended > 0 {
        let ended = count(u64::from(outcome.ended), "process", "processes");
        let killed = match outcome.killed {
            0 => String::new(),
            killed => format!(", {killed} of them killed"),
        };
        text.push_str(&format!("{name}: {ended} ended in {}{killed}\n", duration(outcome.took)));
    } else if outcome.left.is_empty() && outcome.is_closed && has_books(&closed.kind) {
        text.push_str(&format!("{name}: nothing was left; closed\n"));
    }
    for left in &outcome.left {
        let service = left.service.as_ref().map(|service| format!(" of {}", harmless(service)));
        let (command, reason, age) = (harmless(&left.command), harmless(&left.reason), duration(left.age));
        let (pid, service) = (left.pid, service.unwrap_or_default());
        text.push_str(&format!("{red}left: {pid}{service}{red:#} `{command}`, {age} old: {reason}\n"));
        if !left.parents.is_empty() {
            text.push_str(&format!("      below {}\n", harmless(&left.parents.join(" < "))));
        }
    }
    if !outcome.left.is_empty() {
        text.push_str(&format!("      by hand: {}\n", by_hand(&outcome.left)));
    }
    for port in &outcome.ports {
        let (holder, service) = (harmless(&port.holder), &port.service);
        text.push_str(&format!("{red}port {} of {service}{red:#} is held by {holder}\n", port.port));
    }
    outcome.notes.iter().for_each(|note| text.push_str(&format!("note: {}\n", harmless(note))));
    if !outcome.is_closed && outcome.is_clean() && closed.kind != Kind::Project {
        let how = match closed.kind {
            Kind::Stack(_) => "`lariat down` there closes it",
            _ => "a no to the question closes it",
        };
        text.push_str(&format!("{name} stays open, for what may be of it; {how}\n"));
    }
    text
}

/// Says whether there is more to close than what is removed.
fn has_books(kind: &Kind) -> bool {
    matches!(kind, Kind::Stack(_) | Kind::Command(_))
}

/// Returns the command that does by hand what could not be done.
fn by_hand(left: &[LeftProcess]) -> String {
    let pids: Vec<String> = left.iter().map(|left| left.pid.to_string()).collect();
    let is_refused = left.iter().any(|left| left.reason.starts_with("it could not be signalled"));
    let sudo = if is_refused { "sudo " } else { "" };
    format!("{sudo}kill -KILL {}", pids.join(" "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn closed(kind: Kind) -> Closed {
        let run = lariat::ledger::record::RunId::try_from("0123456789abcdef".to_owned()).ok();
        Closed { run, kind, dir: Some("/p".into()) }
    }

    fn left(reason: &str) -> LeftProcess {
        LeftProcess {
            service: Some("web".into()),
            pid: 7,
            inode: None,
            start: 8,
            command: "stuck".into(),
            age: Duration::from_secs(2),
            parents: vec!["1 init".into()],
            reason: reason.into(),
        }
    }

    #[test]
    fn a_report_counts_names_and_says_what_to_do() {
        let took = Duration::from_millis(12);
        let good = Outcome { ended: 3, killed: 1, took, is_closed: true, ..Outcome::default() };
        let bad = Outcome {
            ended: 1,
            took,
            left: vec![left("it could not be signalled: operation not permitted")],
            ..Outcome::default()
        };
        let outcomes = [
            (closed(Kind::Stack(Some("shop".into()))), Ok(good.clone())),
            (closed(Kind::Command(vec!["npm".into(), "run".into(), "dev".into()])), Ok(bad)),
        ];
        assert_eq!(
            report(&outcomes, false),
            "run 0123456789abcdef of shop (/p): 3 processes ended in 12 ms, 1 of them killed\n\
             run 0123456789abcdef, `npm run dev` in /p: 1 process ended in 12 ms\n\
             left: 7 of web `stuck`, 2.0 s old: it could not be signalled: operation not permitted\n      \
             below 1 init\n      by hand: sudo kill -KILL 7\n\
             something is left\n"
        );
        assert_eq!(exit_code(&outcomes, &[]), ExitCode::Left);
        assert_eq!(exit_code(&outcomes[..1], &[]), ExitCode::Done);
        assert_eq!(exit_code(&outcomes[..1], &["a newer ledger".into()]), ExitCode::Trouble);
        assert_eq!(by_hand(&[left("it does not die of KILL")]), "kill -KILL 7");
    }

    #[test]
    fn what_nobody_could_see_is_not_called_gone() {
        let note = "/proc could not be read (permission denied): what is left of the run is not known";
        let blind = Outcome { is_blind: true, notes: vec![note.into()], ..Outcome::default() };
        let outcomes = [(closed(Kind::Lost), Ok(blind))];
        assert_eq!(
            report(&outcomes, false),
            format!("note: {note}\nwhat is left is not known\n      {BLIND_HINT}\n")
        );
        assert_eq!(exit_code(&outcomes, &[]), ExitCode::Trouble);
    }

    #[test]
    fn what_stays_open_is_said() {
        let open = Outcome::default();
        let text = report(&[(closed(Kind::Stack(None)), Ok(open))], false);
        assert!(text.contains("stays open"), "{text}");
        assert_eq!(report(&[], false), "nothing is left of earlier runs\n");
    }
}
