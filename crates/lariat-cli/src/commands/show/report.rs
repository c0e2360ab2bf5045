//! The report of a shutdown, as text. Pure.

use anstyle::{AnsiColor, Style};
use lariat::shutdown::report::{Outcome, Report};
use lariat::supervisor::recovery::outcome_in_words;

use super::{count, duration, harmless, styled};
use crate::exit_code::ExitCode;

/// What to do where the processes could not be read.
pub(crate) const BLIND_HINT: &str =
    "once `ls /proc` lists processes again, `lariat down` looks for them and closes the run";
/// What the last look saw then.
pub(super) const UNSEEN: &str = "who is alive is not known";

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
        (false, false) if is_only_unseen(report) => {
            format!("{red}what is left is not known{red:#}, after {took}\n      {BLIND_HINT}\n")
        }
        (false, false) if is_only_the_ledger(report) => {
            format!("nothing is left, after {took}, but {red}the ledger could not be closed{red:#}\n")
        }
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
        if !matches!(service.outcome, Outcome::NotRunning | Outcome::Swept) {
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
    for phase in &report.phases {
        let (services, processes) = (
            count(u64::from(phase.services), "service", "services"),
            count(u64::from(phase.processes), "process", "processes"),
        );
        let said = match phase.number {
            1 => format!("{services} stopped by their keepers"),
            2 if phase.processes == 0 => "nobody had to be killed".to_owned(),
            2 => format!("{processes} killed by keepers"),
            3 if phase.processes == 0 => "none".to_owned(),
            3 => format!("{processes} ended now in {}", duration(phase.took)),
            4 => phase.note.clone(),
            _ if is_only_unseen(report) => UNSEEN.to_owned(),
            _ if report.left.is_empty() && report.ports.is_empty() => {
                "nothing is alive, ports are free".to_owned()
            }
            _ => "something is left".to_owned(),
        };
        text.push_str(&format!("{bold}[{}/5] {}{bold:#}: {said}\n", phase.number, phase.phase));
    }
    text + &ending(report, is_styled)
}

/// Nothing was seen that is left.
fn has_nothing_to_show(report: &Report) -> bool {
    report.left.is_empty() && !report.ports.iter().any(|port| port.is_ours) && !report.is_left_early
}

/// Nothing was seen that is left, for want of a look at the processes.
pub(crate) fn is_only_unseen(report: &Report) -> bool {
    has_nothing_to_show(report) && report.is_blind
}

/// Everything is proven gone, and only the disk did not take the last word about it.
pub(crate) fn is_only_the_ledger(report: &Report) -> bool {
    has_nothing_to_show(report) && !report.is_blind && !report.is_ledger_closed
}

/// Returns what a run that is over means for the exit code. `is_asked` says that somebody asked for the end.
pub(crate) fn exit_code(report: &Report, is_asked: bool) -> ExitCode {
    if is_only_unseen(report) || is_only_the_ledger(report) {
        ExitCode::Trouble
    } else if !report.is_clean() {
        ExitCode::Left
    } else if report.has_failed_to_start || (!is_asked && report.has_failures()) {
        ExitCode::ServiceFailed
    } else {
        ExitCode::Done
    }
}

#[cfg(test)]
mod tests {
    use lariat::shutdown::report::{Head, LeftProcess, Tally};

    use super::*;

    fn blind(left: &[LeftProcess]) -> Report {
        let mut tally = Tally::new([]);
        tally.note("/proc could not be read (permission denied): what is left of the run is not known");
        left.iter().for_each(|left| tally.left(left.clone()));
        tally.finish(Head { run: "r".into(), is_blind: true, ..Head::default() })
    }

    #[test]
    fn what_nobody_could_see_is_not_called_gone() {
        let report = blind(&[]);
        for text in [ending(&report, false), crash(&report, false)] {
            assert!(text.contains("note: /proc could not be read (permission denied)"), "{text}");
            assert!(text.contains("what is left is not known, after") && text.contains(BLIND_HINT), "{text}");
            assert!(!text.contains("nothing is") && !text.contains("by hand"), "{text}");
        }
        assert!(crash(&report, false).contains("verify: who is alive is not known"));
        assert_eq!(exit_code(&report, true), ExitCode::Trouble);
    }

    /// What the keepers wrote down is known all the same.
    #[test]
    fn what_is_known_to_be_left_is_shown_though_nobody_could_look() {
        let left = LeftProcess {
            service: None,
            pid: 7,
            start: 8,
            inode: None,
            command: "stuck".into(),
            age: std::time::Duration::ZERO,
            parents: Vec::new(),
            reason: "it does not die of KILL".into(),
        };
        let report = blind(&[left]);
        let text = crash(&report, false);
        assert!(
            text.contains("by hand: kill -KILL 7") && text.contains("something is left, after"),
            "{text}"
        );
        assert_eq!(exit_code(&report, true), ExitCode::Left);
    }

    #[test]
    fn a_ledger_that_alone_is_open_is_another_matter() {
        let report = Tally::new([]).finish(Head::default());
        assert!(ending(&report, false).contains("but the ledger could not be closed"));
        assert_eq!(exit_code(&report, true), ExitCode::Trouble);
    }
}
