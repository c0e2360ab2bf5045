//! The report of a shutdown, as text. Pure.

use anstyle::{AnsiColor, Style};
use lariat::shutdown::report::{Outcome, Report};
use lariat::supervisor::recovery::outcome_in_words;

use super::{count, duration, harmless, styled};
use crate::exit_code::ExitCode;

/// Returns what is left to say when the phases were told: what is left, and what to do about it.
pub(crate) fn ending(report: &Report, is_styled: bool) -> String {
    let (red, green) =
        (styled(AnsiColor::Red.on_default(), is_styled), styled(AnsiColor::Green.on_default(), is_styled));
    let mut text = String::new();
    for left in &report.left {
        let service = left.service.as_ref().map(|service| format!(" of {service}")).unwrap_or_default();
        let (command, reason) = (harmless(&left.command), harmless(&left.reason));
        let age = duration(left.age);
        text.push_str(&format!("{red}left: {}{service}{red:#} `{command}`, {age} old: {reason}\n", left.pid));
        if !left.parents.is_empty() {
            text.push_str(&format!("      below {}\n", harmless(&left.parents.join(" < "))));
        }
    }
    if !report.left.is_empty() {
        let pids: Vec<String> = report.left.iter().map(|left| left.pid.to_string()).collect();
        text.push_str(&format!("      by hand: kill -KILL {}\n", pids.join(" ")));
    }
    for port in &report.ports {
        let (holder, service) = (harmless(&port.holder), &port.service);
        text.push_str(&format!("{red}port {} of {service}{red:#} is held by {holder}\n", port.port));
    }
    for note in &report.notes {
        text.push_str(&format!("note: {}\n", harmless(note)));
    }
    for service in report.services.iter().filter(|service| service.dropped_bytes > 0) {
        let bytes = count(service.dropped_bytes, "byte", "bytes");
        text.push_str(&format!(
            "note: {bytes} of {} were lost: the disk did not take them\n",
            service.service
        ));
    }
    let took = duration(report.took);
    text.push_str(&match (report.is_clean(), report.is_left_early) {
        (true, _) => format!("{green}nothing is left{green:#}, after {took}\n"),
        (false, true) => format!("{red}left before the end{red:#}; `lariat down` shows what became of it\n"),
        (false, false) => format!("{red}something is left{red:#}, after {took}\n"),
    });
    text
}

/// Returns the report of a run that crashed: what its keepers did, and what was ended since.
pub(crate) fn crash(report: &Report, is_styled: bool) -> String {
    let bold = styled(Style::new().bold(), is_styled);
    let mut text = format!("{bold}run {}{bold:#}: {}\n", report.run, harmless(&report.why));
    for service in &report.services {
        let mut line = format!("  {} {}", service.service, outcome_in_words(service.outcome));
        if service.outcome != Outcome::NotRunning {
            line.push_str(&format!(" by its keeper in {}", duration(service.took)));
            if let Some(exit) = &service.exit {
                line.push_str(&format!(": {exit}"));
            }
            if service.killed > 0 {
                line.push_str(&format!(", {} killed", service.killed));
            }
        }
        text.push_str(&line);
        text.push('\n');
    }
    let ended = report.phases.iter().find(|phase| phase.number == 3).map_or(0, |phase| phase.processes);
    if ended > 0 {
        let ended = count(u64::from(ended), "process", "processes");
        text.push_str(&format!("  {ended} ended now\n"));
    }
    text + &ending(report, is_styled)
}

/// Returns what a run that is over means for the exit code. `is_asked` says that somebody asked for the end.
pub(crate) fn exit_code(report: &Report, is_asked: bool) -> ExitCode {
    if !report.is_clean() {
        ExitCode::Left
    } else if report.has_failed_to_start || (!is_asked && report.has_failures()) {
        ExitCode::ServiceFailed
    } else {
        ExitCode::Done
    }
}
