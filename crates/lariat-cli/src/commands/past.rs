//! What the last run left: shown, waited for, ended after a yes.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use lariat::ledger::index::RunIndex;
use lariat::ledger::recover::Found;
use lariat::service::spec::StackSpec;
use lariat::shutdown::found::why_in_words;
use lariat::shutdown::report::Report;
use lariat::shutdown::verify;
use lariat::supervisor::recovery::{self, Access, Crashed, Finishing, Past, Waited};
use lariat_keeper::stop::KILL_LIMIT;
use lariat_sys::files;
use lariat_sys::poll::{PollFd, PollFlags, poll};

use super::show::{duration, harmless, report};
use super::up::{Signals, user_dirs};
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Processes that are listed at most; the others are counted.
const LISTED_MAX: usize = 30;
/// The grace period of what a crash left, where the ledger does not say what was configured.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// How long keepers have beyond the longest grace period and their own killing.
const KEEPERS_BEYOND: Duration = Duration::from_secs(5);

/// Makes sure that nothing of an earlier run is in the way: waits for keepers, and ends after a yes what a crash left.
///
/// # Errors
/// A failure when a run is alive, when nobody said yes, or when something is left all the same.
pub(crate) fn clear(
    spec: &StackSpec,
    yes: bool,
    signals: &Signals,
    output: &mut Output,
) -> Result<(), Failure> {
    // Each turn either ends here or has brought it one step further; a run that begins in between is alive then.
    loop {
        let past = recovery::look(&spec.root, Access::Create).map_err(ledger_failure)?;
        match past {
            Past::Absent => return Ok(()),
            Past::Nothing { notes, .. } => {
                notes.iter().for_each(|note| output.note(&format!("note: {}", harmless(note))));
                return Ok(());
            }
            Past::Live(live) => return Err(live_failure(&live.to_string())),
            Past::Finishing(finishing) => {
                let grace = spec.services.iter().map(|service| service.stop.grace).max().unwrap_or_default();
                wait(&finishing, grace, signals, output)?;
            }
            Past::Crashed(crashed) => {
                let report = end(*crashed, yes, false, signals, output)?;
                output.note(report::crash(&report, output.is_err_styled()).trim_end());
                if !report.is_ledger_closed {
                    return Err(Failure::new(ExitCode::Left, "something of the last run is left")
                        .hint("end it by hand as shown, then try again"));
                }
            }
        }
    }
}

/// Waits for the keepers of a dead supervisor.
pub(crate) fn wait(
    finishing: &Finishing,
    grace: Duration,
    signals: &Signals,
    output: &mut Output,
) -> Result<(), Failure> {
    let at_work = finishing.at_work().join(", ");
    let at_work = if at_work.is_empty() { String::new() } else { format!(" ({at_work})") };
    output.note(&format!("{finishing}{at_work}; waiting for them"));
    let deadline = Instant::now() + grace + KILL_LIMIT + KEEPERS_BEYOND;
    match finishing.wait(deadline, Some(signals.queue.as_fd())).map_err(ledger_failure)? {
        Waited::Finished => Ok(()),
        // A child's end is no reason to give up, and any other signal is.
        Waited::Cancelled if !signals.asks_to_end() => Ok(()),
        Waited::Cancelled => Err(Failure::new(ExitCode::Left, "keepers are still at work")),
        Waited::TimedOut => {
            Err(Failure::new(ExitCode::Left, "keepers are still at work after all their time")
                .hint("`lariat down` says what became of it"))
        }
    }
}

/// Shows what a crashed run left, asks, and ends it. Nothing is asked when nothing is left.
pub(crate) fn end(
    mut crashed: Crashed,
    yes: bool,
    force: bool,
    signals: &Signals,
    output: &mut Output,
) -> Result<Report, Failure> {
    if !crashed.findings().certain.is_empty() {
        show(&crashed, output);
        consent(yes, "what is left of the last run", signals)?;
        let grace = if force { Duration::ZERO } else { crashed.grace().unwrap_or(GRACE) };
        crashed.end(grace, || signals.asks_to_end());
    }
    let index = user_dirs().runs().map(|directory| RunIndex::at(&directory));
    crashed.close(index.as_ref()).map_err(ledger_failure)
}

fn show(crashed: &Crashed, output: &mut Output) {
    let findings = crashed.findings();
    output.note(&format!("run {} did not end by itself; this is left of it:", crashed.run()));
    list(&findings.certain, output);
    for port in verify::held_ports(&crashed.ports(), crashed.run().as_str(), &findings.certain) {
        output.note(&format!(
            "  port {} of {} is held by {}",
            port.port,
            port.service,
            harmless(&port.holder)
        ));
    }
    for found in &findings.possible {
        let (pid, why) = (found.identity.pid, why_in_words(found.why));
        output
            .note(&format!("  possibly also {pid} `{}`: {why}; it is left alone", harmless(&found.command)));
    }
}

/// Lists processes that are left of a run.
pub(super) fn list(left: &[Found], output: &mut Output) {
    for found in left.iter().take(LISTED_MAX) {
        let service = found.service.as_ref().map(|service| format!(" {service}")).unwrap_or_default();
        let (pid, age) = (found.identity.pid, duration(found.age));
        let (command, why) = (harmless(&found.command), why_in_words(found.why));
        output.note(&format!("  {pid}{service} `{command}`, {age} old: {why}"));
    }
    if left.len() > LISTED_MAX {
        output.note(&format!("  and {} more", left.len() - LISTED_MAX));
    }
}

/// Asks on the terminal; yes is the default. Without a terminal only `--yes` is a yes.
pub(super) fn consent(yes: bool, what: &str, signals: &Signals) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let refused = |message: &str| {
        Failure::new(ExitCode::Consent, message.to_owned()).hint("`--yes` ends it without asking")
    };
    let not_ended = format!("{what} was not ended");
    let Ok(terminal) = files::open_tty() else {
        return Err(refused(&format!("{not_ended}: nobody can be asked")));
    };
    let mut terminal = std::fs::File::from(terminal);
    let asked = terminal.write_all(b"End all of it? [Y/n] ");
    asked.map_err(|_| refused("the terminal does not take a question"))?;
    let mut line = Vec::new();
    while !line.contains(&b'\n') {
        let mut fds = [
            PollFd::from_borrowed_fd(terminal.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.queue.as_fd(), PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        let is_signalled = !fds[1].revents().is_empty();
        if is_signalled && signals.asks_to_end() {
            return Err(refused(&not_ended));
        }
        if !fds[0].revents().is_empty() {
            let mut buffer = [0; 64];
            match std::io::Read::read(&mut terminal, &mut buffer) {
                Ok(0) | Err(_) => return Err(refused("the terminal closed before an answer came")),
                Ok(n) => line.extend_from_slice(&buffer[..n]),
            }
        }
    }
    match line.trim_ascii().to_ascii_lowercase().as_slice() {
        b"" | b"y" | b"yes" => Ok(()),
        _ => Err(refused(&not_ended)),
    }
}

/// Says that a run is in the way.
pub(crate) fn live_failure(message: &str) -> Failure {
    Failure::new(ExitCode::LiveRun, message.to_owned())
        .hint("`lariat ps` shows it, `lariat down` stops it, `lariat logs -f` follows it")
}

/// Says that the state directory or the ledger cannot be used.
pub(crate) fn ledger_failure(error: lariat::ledger::LedgerError) -> Failure {
    Failure::new(ExitCode::Trouble, error.to_string())
}
