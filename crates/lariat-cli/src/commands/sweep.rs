//! `lariat sweep`: shows what earlier runs left, asks, ends it, and says what became of it.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat::ledger::index::UserDirs;
use lariat::ledger::recover::Found;
use lariat::ledger::recover::patterns::CommandPattern;
use lariat::supervisor::leftovers::{self, AtWork, Leftover, Request, Search, SearchError};
use lariat::supervisor::recovery::Waited;
use lariat::supervisor::runs::Kind;
use lariat_keeper::stop::KILL_LIMIT;

use super::consent::{Answer, Default, ask};
use super::live;
use super::past::{self, GRACE, KEEPERS_BEYOND, lines, port_line};
use super::show::sweep::{self as show, Document};
use super::show::{count, harmless};
use super::up::{Signals, user_dirs};
use super::waiting::{Manner, Waiting};
use crate::args::sweep::SweepArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};
use crate::settings;

/// The grace period that keepers of an unknown configuration may have.
const GRACE_UNKNOWN: Duration = Duration::from_secs(60);
/// How long another sweep is waited for in silence, and then in all.
const BUSY_SAID_AFTER: Duration = Duration::from_millis(300);
const BUSY_WITHIN: Duration = Duration::from_secs(60);
/// How often keepers are waited for before what they leave is believed to be at work for ever.
const WAITS_MAX: usize = 8;

/// What is to be swept.
struct Target {
    dirs: UserDirs,
    root: Option<PathBuf>,
    patterns: Vec<CommandPattern>,
    cgroup_bases: Vec<PathBuf>,
}

/// Sweeps.
pub(crate) fn run(args: &SweepArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let target = target(args, output)?;
    if args.dry_run {
        return look_only(args, &target, output);
    }
    let signals = Signals::take()?;
    let mut search = search(args, &target, &signals, output)?;
    say_first(&search, args, output);
    let refused = consent(&mut search, args, &signals, output).err();
    let document = Document::of(&search, false);
    if let Some(failure) = refused {
        if args.json {
            output.print_json(&document)?;
        }
        return Err(failure);
    }
    end(&mut search, args, &signals, output)?;
    let troubles = search.troubles.clone();
    let outcomes = search.close();
    let code = show::exit_code(&outcomes, &troubles);
    if args.json {
        output.print_json(&document.with(&outcomes))?;
    } else {
        output.print(show::report(&outcomes, output.is_out_styled()));
    }
    Ok(code)
}

/// Ends what is certain, and says what is waited for.
fn end(search: &mut Search, args: &SweepArgs, signals: &Signals, output: &mut Output) -> Result<(), Failure> {
    let certain: Vec<Found> = search.leftovers.iter().flat_map(Leftover::certain).cloned().collect();
    if !certain.is_empty() && signals.asks_to_end() {
        return Err(Failure::new(ExitCode::Consent, "nothing was ended: a signal came before anything was"));
    }
    let grace = search.longest_grace(GRACE, args.force);
    let manner = if args.json { Manner::Silent } else { Manner::of(output) };
    let mut waiting = Waiting::new(&certain, grace, manner, signals, output);
    search.end(GRACE, args.force, || waiting.pace());
    Ok(())
}

/// The project that is meant, and what its configuration offers.
fn target(args: &SweepArgs, output: &mut Output) -> Result<Target, Failure> {
    let dirs = user_dirs();
    let here = match &args.path {
        None => settings::working_directory()?,
        Some(path) => absolute(path)?,
    };
    let project = live::project_of(&here);
    let is_named = args.path.is_some();
    let root = match (&project, args.all && !is_named) {
        (Some(_), _) | (None, true) => project.clone(),
        // A directory without a project has commands that were run in it all the same.
        (None, false) => Some(here),
    };
    // Everything of a person's is below home: without a project that says so, nothing there is offered.
    let is_wide = project.is_none() && (root == dirs.home || root.as_deref() == Some(Path::new("/")));
    let patterns = match root.as_deref().filter(|_| !args.all && !is_wide) {
        Some(root) => [own_patterns(root, output), CommandPattern::built_in()].concat(),
        None => Vec::new(),
    };
    Ok(Target { dirs, root, patterns, cgroup_bases: settings::cgroup_base().into_iter().collect() })
}

/// Makes a path absolute, without links where it is there. One that is not there may be a project that was removed.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    if let Ok(found) = std::fs::canonicalize(path) {
        let is_file = found.is_file();
        return Ok(found.parent().filter(|_| is_file).map(Path::to_owned).unwrap_or(found));
    }
    let here = settings::working_directory()?;
    Ok(here.join(path).components().collect())
}

/// What the project's own configuration names. One that is wrong stops no sweep.
fn own_patterns(root: &Path, output: &mut Output) -> Vec<CommandPattern> {
    let Ok(file) = lariat_config::find(root) else { return Vec::new() };
    if file.parent() != Some(root) {
        return Vec::new();
    }
    match lariat_config::load(&file) {
        Ok(loaded) => loaded.spec.sweep,
        Err(_) => {
            let file = file.display();
            output.note(&format!(
                "note: {file} has errors, so its patterns are not used; `lariat check` shows them"
            ));
            Vec::new()
        }
    }
}

fn request<'a>(args: &SweepArgs, target: &'a Target) -> Request<'a> {
    Request {
        dirs: &target.dirs,
        project: target.root.as_deref(),
        is_all: args.all,
        patterns: &target.patterns,
        cgroup_bases: &target.cgroup_bases,
        takes: !args.dry_run,
    }
}

/// Shows what a sweep would end, and why.
fn look_only(args: &SweepArgs, target: &Target, output: &mut Output) -> Result<ExitCode, Failure> {
    let search = leftovers::search(&request(args, target), Instant::now(), None).map_err(failure)?;
    if args.json {
        output.print_json(&Document::of(&search, true))?;
    } else {
        say_first(&search, args, output);
        search.at_work.iter().for_each(|work| output.note(&format!("note: {work}")));
        let mut text = String::new();
        for leftover in search.leftovers.iter().filter(|leftover| !leftover.is_empty()) {
            text.push_str(&listing(leftover).join("\n"));
            text.push('\n');
        }
        let empty = search.leftovers.iter().filter(|leftover| leftover.is_empty());
        let directories: Vec<PathBuf> = empty.flat_map(Leftover::directories).collect();
        if !directories.is_empty() {
            text.push_str("nobody is in these cgroup directories of runs that are over:\n");
            directories.iter().for_each(|path| text.push_str(&directory_line(path)));
        }
        if text.is_empty() {
            text.push_str("nothing is left of earlier runs\n");
        } else {
            text.push_str("nothing was changed: this was a dry run\n");
        }
        output.print(text);
    }
    Ok(if search.troubles.is_empty() { ExitCode::Done } else { ExitCode::Trouble })
}

/// Looks until nobody else is ending anything of it.
fn search(
    args: &SweepArgs,
    target: &Target,
    signals: &Signals,
    output: &mut Output,
) -> Result<Search, Failure> {
    let request = request(args, target);
    for _ in 0..WAITS_MAX {
        let mut search = look(&request, signals, output)?;
        let at_work = std::mem::take(&mut search.at_work);
        if at_work.is_empty() {
            return Ok(search);
        }
        // Nothing is held while others are waited for: they may wait for it.
        drop(search);
        at_work.iter().try_for_each(|work| wait(work, signals, output))?;
    }
    Err(Failure::new(ExitCode::Left, "keepers are still at work")
        .hint("`lariat ps --all` shows them; try again when they are done"))
}

fn look(request: &Request<'_>, signals: &Signals, output: &mut Output) -> Result<Search, Failure> {
    let cancel = Some(signals.queue.as_fd());
    match leftovers::search(request, Instant::now() + BUSY_SAID_AFTER, cancel) {
        Err(SearchError::Busy) => output.note("another lariat is sweeping; waiting for it"),
        Err(SearchError::Cancelled) if !signals.asks_to_end() => {}
        other => return other.map_err(failure),
    }
    leftovers::search(request, Instant::now() + BUSY_WITHIN, cancel).map_err(failure)
}

fn wait(work: &AtWork, signals: &Signals, output: &mut Output) -> Result<(), Failure> {
    output.note(&format!("{work}; waiting for it"));
    let deadline = Instant::now() + work.grace().unwrap_or(GRACE_UNKNOWN) + KILL_LIMIT + KEEPERS_BEYOND;
    match work.wait(deadline, Some(signals.queue.as_fd())).map_err(past::ledger_failure)? {
        Waited::Finished => Ok(()),
        // A child's end is no reason to give up, and any other signal is.
        Waited::Cancelled if !signals.asks_to_end() => Ok(()),
        Waited::Cancelled | Waited::TimedOut => {
            Err(Failure::new(ExitCode::Left, "what is left was not ended: its keepers are still at work"))
        }
    }
}

fn failure(error: SearchError) -> Failure {
    let code = match error {
        SearchError::Busy | SearchError::Cancelled => ExitCode::LiveRun,
        SearchError::Processes(_) | SearchError::Ledger(_) => ExitCode::Trouble,
    };
    Failure::new(code, error.to_string())
}

/// Says what is not about processes that are left.
fn say_first(search: &Search, args: &SweepArgs, output: &mut Output) {
    if args.json {
        return;
    }
    search.notes.iter().for_each(|note| output.note(&format!("note: {}", harmless(note))));
    search.troubles.iter().for_each(|trouble| output.note(&format!("trouble: {}", harmless(trouble))));
    for alive in &search.alive {
        output.note(&format!("note: {}, and is left alone", harmless(alive)));
    }
    for leftover in search.leftovers.iter().filter(|leftover| leftover.is_empty()) {
        for note in &leftover.notes {
            output.note(&format!("note: {}: {}", show::title(leftover), harmless(note)));
        }
    }
}

/// Returns the lines that show a group.
fn listing(leftover: &Leftover) -> Vec<String> {
    let mut text = Vec::new();
    let title = show::title(leftover);
    if !leftover.certain().is_empty() {
        text.push(format!("{title} did not end by itself; this is left of it:"));
        text.extend(lines(leftover.certain()));
    }
    text.extend(leftover.held_ports().iter().map(port_line));
    if !leftover.possible().is_empty() {
        let whose = match leftover.kind {
            Kind::Project => format!("possibly yours, {title}:"),
            _ => format!("possibly of {title}:"),
        };
        text.push(whose);
        text.extend(lines(leftover.possible()));
    }
    text.extend(leftover.directories().iter().map(|path| directory_line(path).trim_end().to_owned()));
    text.extend(leftover.notes.iter().map(|note| format!("  note: {}", harmless(note))));
    text
}

/// Returns the line that shows what is removed besides.
fn directory_line(path: &Path) -> String {
    format!("  {}, to be removed\n", harmless(&path.to_string_lossy()))
}

/// Asks about what is certain, then about what is only possible.
///
/// # Errors
/// What is certain is not to be ended: nothing is then.
fn consent(
    search: &mut Search,
    args: &SweepArgs,
    signals: &Signals,
    output: &mut Output,
) -> Result<(), Failure> {
    let certain: usize = search.leftovers.iter().map(|leftover| leftover.certain().len()).sum();
    let is_silent = args.json && (args.yes || certain == 0);
    for leftover in search.leftovers.iter().filter(|leftover| !leftover.is_empty() && !is_silent) {
        listing(leftover).iter().for_each(|line| output.note(line));
    }
    if certain > 0 {
        let question = format!("End {}?", count(certain as u64, "process", "processes"));
        let answer = if args.yes { Answer::Yes } else { ask(&question, Default::Yes, signals) };
        let message = match answer {
            Answer::Yes => None,
            Answer::No => Some("nothing was ended"),
            Answer::Nobody => Some("nothing was ended: nobody can be asked"),
        };
        if let Some(message) = message {
            return Err(Failure::new(ExitCode::Consent, message).hint("`--yes` ends it without asking"));
        }
    }
    consent_to_possible(search, args, signals, output);
    Ok(())
}

fn consent_to_possible(search: &mut Search, args: &SweepArgs, signals: &Signals, output: &mut Output) {
    let possible: BTreeSet<_> =
        search.leftovers.iter().flat_map(Leftover::possible).map(|found| found.identity).collect();
    if possible.is_empty() {
        return;
    }
    let pids: Vec<String> = possible.iter().map(ToString::to_string).collect();
    let question = format!("End {} as well, which may be of something else?", pids.join(", "));
    let answer = match (args.possible, args.yes) {
        (true, _) => Answer::Yes,
        (false, true) => Answer::Nobody,
        (false, false) => ask(&question, Default::No, signals),
    };
    match answer {
        Answer::Yes => search.leftovers.iter_mut().for_each(|leftover| leftover.choose(&possible)),
        Answer::No => search.leftovers.iter_mut().for_each(Leftover::dismiss),
        Answer::Nobody if args.json => {}
        Answer::Nobody => output.note(&format!("{} left alone; `--possible` ends it", pids.join(", "))),
    }
}
