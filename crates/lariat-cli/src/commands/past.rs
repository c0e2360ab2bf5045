//! What the last run left: shown, waited for, ended after a yes.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use lariat::ledger::index::RunIndex;
use lariat::ledger::recover::{Found, Living};
use lariat::service::spec::StackSpec;
use lariat::shutdown::report::{HeldPort, Report};
use lariat::shutdown::verify;
use lariat::supervisor::recovery::{self, Access, Crashed, Finishing, Others, Past, Waited};
use lariat::supervisor::runs::Runs;
use lariat_keeper::stop::KILL_LIMIT;

use super::consent::{Answer, Default, ask};
use super::show::{duration, harmless, report};
use super::up::{Signals, user_dirs};
use super::users::Users;
use super::waiting::{Manner, Waiting};
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};
use crate::settings;

/// Processes that are listed at most; the others are counted.
const LISTED_MAX: usize = 30;
/// The grace period of what a crash left, where the ledger does not say what was configured.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How long keepers have beyond the longest grace period and their own killing.
pub(crate) const KEEPERS_BEYOND: Duration = Duration::from_secs(5);

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
        match look(&spec.root, Access::Create)? {
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
                let (report, is_given_up) = end(*crashed, yes, false, false, signals, output)?;
                output.note(report::crash(&report, output.is_err_styled()).trim_end());
                if let Some(failure) = in_the_way(&report) {
                    return Err(failure);
                }
                if is_given_up {
                    return Err(Failure::new(
                        ExitCode::Consent,
                        "nothing was started: a signal asked to end",
                    ));
                }
            }
        }
    }
}

/// Says what of the last run is in the way of another one, if anything is, and what to do.
fn in_the_way(report: &Report) -> Option<Failure> {
    if report.is_ledger_closed {
        None
    } else if report::is_only_unseen(report) {
        let message = "what is left of the last run is not known, so nothing was started";
        Some(Failure::new(ExitCode::Trouble, message).hint(report::BLIND_HINT))
    } else if report::is_only_the_ledger(report) {
        let failure =
            Failure::new(ExitCode::Trouble, "nothing is left of the last run, but it could not be closed");
        Some(
            failure.hint(
                "`.lariat` in the project has to take a file: see its disk and its owner, then try again",
            ),
        )
    } else {
        let failure = Failure::new(ExitCode::Left, "something of the last run is left");
        Some(failure.hint("end it by hand as shown, then try again"))
    }
}

/// Looks what became of the project's last run. Other runs of the user are asked for only where there is something to
/// end, since their projects may be on a disk that does not answer.
pub(crate) fn look(root: &Path, access: Access) -> Result<Past, Failure> {
    let found = recovery::look(root, access, &listed()).map_err(ledger_failure)?;
    Ok(match found {
        Past::Crashed(crashed) if !crashed.findings().is_empty() => {
            Past::Crashed(Box::new(crashed.look(&Runs::read(&user_dirs()).living())))
        }
        past => past,
    })
}

/// Returns what the list of runs says of others, without a look at their projects.
pub(crate) fn listed() -> Others {
    let dirs = user_dirs();
    let index = dirs.runs().map(|directory| RunIndex::at(&directory));
    let listed = index.and_then(|index| index.list().ok()).unwrap_or_default();
    Others { listed, cgroup_bases: settings::cgroup_base().into_iter().collect(), living: Living::of(&dirs) }
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
            // It may be another command that is at work, and that one is left to it.
            if finishing.kill_keepers() > 0 {
                output.note("keepers are still at work after all their time, and were killed");
            }
            let deadline = Instant::now() + KEEPERS_BEYOND;
            match finishing.wait(deadline, Some(signals.queue.as_fd())).map_err(ledger_failure)? {
                Waited::Finished => Ok(()),
                Waited::TimedOut | Waited::Cancelled => Err(Failure::new(
                    ExitCode::Left,
                    "keepers do not die of KILL, or somebody else has the run's lock",
                )
                .hint("`lariat ps --all` names the run; `lariat down` tries again")),
            }
        }
    }
}

/// Shows what a crashed run left, asks, and ends it. Nothing is asked when nothing is left. Says as well whether a signal
/// asked to end meanwhile.
pub(crate) fn end(
    mut crashed: Crashed,
    yes: bool,
    force: bool,
    is_silent: bool,
    signals: &Signals,
    output: &mut Output,
) -> Result<(Report, bool), Failure> {
    let mut is_given_up = false;
    if !crashed.findings().certain.is_empty() {
        show(&crashed, output);
        consent(yes, "what is left of the last run", signals)?;
        let grace = if force { Duration::ZERO } else { crashed.grace().unwrap_or(GRACE) };
        if signals.asks_to_end() {
            return Err(Failure::new(
                ExitCode::Consent,
                "nothing was ended: a signal came before anything was",
            ));
        }
        let manner = if is_silent { Manner::Silent } else { Manner::of(output) };
        let certain = crashed.findings().certain.clone();
        let mut waiting = Waiting::new(&certain, grace, manner, signals, output);
        crashed.end(grace, || waiting.pace());
        is_given_up = waiting.is_hurried();
    }
    let index = user_dirs().runs().map(|directory| RunIndex::at(&directory));
    let report = crashed.close(index.as_ref()).map_err(ledger_failure)?;
    Ok((report, is_given_up))
}

fn show(crashed: &Crashed, output: &mut Output) {
    let findings = crashed.findings();
    output.note(&format!("run {} did not end by itself; this is left of it:", crashed.run()));
    lines(&findings.certain).iter().for_each(|line| output.note(line));
    for port in verify::held_ports(&crashed.ports(), crashed.run().as_str(), &findings.certain) {
        output.note(&port_line(&port));
    }
    let users = Users::read();
    for found in &findings.possible {
        let user = other_user(found, &users);
        let (pid, why) = (found.identity.pid, found.reason());
        let command = harmless(&found.command);
        output.note(&format!(
            "  possibly also {pid}{user} `{command}`: {why}; it is left alone, `lariat sweep` asks about it"
        ));
    }
}

/// Returns words that name the user of a process that is not ours.
fn other_user(found: &Found, users: &Users) -> String {
    let other = found.uid.filter(|uid| *uid != lariat_sys::process::effective_user());
    other.map(|uid| format!(" of user {}", harmless(&users.shown(uid)))).unwrap_or_default()
}

/// Returns a line for each of the first processes, and one that counts the others.
pub(crate) fn lines(found: &[Found]) -> Vec<String> {
    let users = Users::read();
    let line = |found: &Found| {
        let service = found.service.as_ref().map(|service| format!(" {}", harmless(service)));
        let (pid, age) = (found.identity.pid, duration(found.age));
        let (command, why) = (harmless(&found.command), found.reason());
        let (service, user) = (service.unwrap_or_default(), other_user(found, &users));
        format!("  {pid}{service}{user} `{command}`, {age} old: {why}")
    };
    let more = found.len().saturating_sub(LISTED_MAX);
    let more = (more > 0).then(|| format!("  and {more} more"));
    found.iter().take(LISTED_MAX).map(line).chain(more).collect()
}

/// Says who holds a port.
pub(crate) fn port_line(port: &HeldPort) -> String {
    format!("  port {} of {} is held by {}", port.port, port.service, harmless(&port.holder))
}

/// Asks on the terminal; yes is the default. Without a terminal only `--yes` is a yes.
pub(crate) fn consent(yes: bool, what: &str, signals: &Signals) -> Result<(), Failure> {
    let answer = if yes { Answer::Yes } else { ask("End all of it?", Default::Yes, signals) };
    let message = match answer {
        Answer::Yes => return Ok(()),
        Answer::No => format!("{what} was not ended"),
        Answer::Nobody => format!("{what} was not ended: nobody can be asked"),
    };
    Err(Failure::new(ExitCode::Consent, message).hint("`--yes` ends it without asking"))
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
