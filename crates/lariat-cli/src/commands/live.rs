//! Finds the project's run and talks to it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat::api::{Answer, Client, ClientError, Refusal, Request};
use lariat::ledger::STATE_DIR;
use lariat::shutdown::report::{Outcome, Report};
use lariat::supervisor::recovery::{self, LiveRun};
use lariat_sys::identity::Identity;
use lariat_sys::procfs::{self, State};

use super::past::{ledger_failure, listed};
use super::show::harmless;
use crate::exit_code::ExitCode;
use crate::output::Failure;
use crate::settings;

/// Returns the project that the command was started in: the nearest directory upward with a state directory or a
/// configuration, whichever is nearer. A project inside another one is not the other one's.
///
/// # Errors
/// There is neither.
pub(crate) fn project_root() -> Result<PathBuf, Failure> {
    let here = settings::working_directory()?;
    project_of(&here).ok_or_else(|| no_run(&here))
}

/// Returns the project that an absolute directory is in, itself or above.
pub(crate) fn project_of(here: &Path) -> Option<PathBuf> {
    let has_state = |directory: &&Path| directory.join(STATE_DIR).is_dir();
    let state = here.ancestors().find(has_state).map(Path::to_owned);
    let file = lariat_config::find(here).ok();
    let configured = file.as_deref().and_then(Path::parent).map(Path::to_owned);
    // Both are above us, so the longer path is the nearer one.
    [state, configured].into_iter().flatten().max_by_key(|root| root.components().count())
}

/// Says that there is no run.
pub(crate) fn no_run(root: &Path) -> Failure {
    Failure::new(ExitCode::NoRun, format!("no run of {} is alive", root.display()))
        .hint("`lariat up` starts one; `lariat logs` shows what the last one wrote")
}

/// Says that the supervisor is dead and its keepers are at work.
fn finishing(root: &Path) -> Failure {
    let message =
        format!("the supervisor of {} is dead, and its keepers are ending the services", root.display());
    Failure::new(ExitCode::NoRun, message).hint("`lariat down` waits for them and shows what they did")
}

/// Says that the last run crashed, and what became of its services.
fn crashed(report: &Report) -> Failure {
    let failure = Failure::new(ExitCode::NoRun, format!("run {} did not end by itself", report.run))
        .because(&report.why)
        .hint("`lariat down` ends what is left and closes it; `lariat up` does so before it starts");
    let ended = report.services.iter().filter(|service| service.outcome != Outcome::NotRunning);
    let failure = ended.fold(failure, |failure, service| {
        failure.because(format!("{} {}", service.service, recovery::outcome_in_words(service.outcome)))
    });
    report.notes.iter().fold(failure, |failure, note| failure.because(harmless(note)))
}

/// Connects to the project's run.
///
/// # Errors
/// There is none, or its supervisor does not answer.
pub(crate) fn connect() -> Result<(Client, LiveRun), Failure> {
    let root = project_root()?;
    let others = listed();
    let Some(live) = recovery::find_live(&root, &others).map_err(ledger_failure)? else {
        return Err(match recovery::peek(&root, &others).map_err(ledger_failure)? {
            Some(report) => crashed(&report),
            None if recovery::is_finishing(&root).map_err(ledger_failure)? => finishing(&root),
            None => no_run(&root),
        });
    };
    let Some(socket) = &live.socket else {
        return Err(Failure::new(ExitCode::NoRun, live.to_string()).hint("try again in a moment"));
    };
    let client = Client::connect(socket).map_err(|error| trouble(&error))?;
    Ok((client, live))
}

/// Asks and returns the one answer. Blocks until it comes, or the supervisor dies or is found stopped; `waits` is called
/// again and again meanwhile.
///
/// # Errors
/// The request was refused, or the supervisor does not answer.
pub(crate) fn ask(
    client: &mut Client,
    run: &LiveRun,
    request: &Request,
    mut waits: impl FnMut(),
) -> Result<Answer, Failure> {
    client.ask(request).map_err(|error| trouble(&error))?;
    loop {
        match client.next(Some(Instant::now() + LOOK_EVERY)) {
            Ok(Answer::Refused { reason, message }) => return Err(refused(reason, message)),
            Ok(answer) => return Ok(answer),
            // What was asked for may take as long as it takes; a supervisor that cannot work on it is another matter.
            Err(ClientError::TimedOut) => match run.supervisor.filter(|id| is_stopped(*id)) {
                Some(supervisor) => return Err(stopped(supervisor)),
                None => waits(),
            },
            Err(error) => return Err(trouble(&error)),
        }
    }
}

/// How often a supervisor that says nothing is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Says whether a process was stopped, as by Ctrl-Z.
pub(crate) fn is_stopped(process: Identity) -> bool {
    let stat = procfs::read_stat(process.pid).ok().flatten();
    stat.is_some_and(|stat| stat.identity() == process && stat.state == State::Stopped)
}

fn stopped(supervisor: Identity) -> Failure {
    Failure::new(
        ExitCode::Trouble,
        format!("the supervisor, process {supervisor}, was stopped and does not answer"),
    )
    .hint(format!(
        "`fg` in its terminal or `kill -CONT {supervisor}` lets it go on; `lariat down` does so too"
    ))
}

/// Says that a request was refused.
pub(crate) fn refused(reason: Refusal, message: String) -> Failure {
    let code = match reason {
        Refusal::UnknownService => ExitCode::Usage,
        Refusal::ServiceFailed => ExitCode::ServiceFailed,
        Refusal::ShuttingDown => ExitCode::LiveRun,
        Refusal::NotEnded => ExitCode::Left,
        Refusal::PortInUse => ExitCode::PortInUse,
        Refusal::BadRequest | Refusal::Overloaded => ExitCode::Trouble,
    };
    Failure::new(code, message)
}

/// Says that talking to the supervisor did not work.
pub(crate) fn trouble(error: &ClientError) -> Failure {
    let failure = Failure::new(ExitCode::Trouble, error.to_string());
    match error {
        ClientError::Closed | ClientError::Connect { .. } => {
            failure.hint("the supervisor may have died; `lariat down` shows what became of the run")
        }
        _ => failure,
    }
}
