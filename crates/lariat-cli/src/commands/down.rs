//! `lariat down`: stops the run, or finishes what a dead one left, and shows the proof.

use std::time::{Duration, Instant};

use lariat::api::{Answer, Client, ClientError, Request};
use lariat::shutdown::report::Report;
use lariat::supervisor::recovery::{Access, LiveRun, Past};
use lariat_keeper::contain::lineage::signal_identity;
use lariat_sys::pidfd::PidFd;
use lariat_sys::signal::Signal;

use super::show::narrator::Narrator;
use super::show::{harmless, report};
use super::up::Signals;
use super::{live, past};
use crate::args::stack::DownArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// The grace period that keepers of an unknown configuration may have.
const GRACE_UNKNOWN: Duration = Duration::from_secs(60);

/// How long the supervisor may take to say that it has heard. It says so before it does anything.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long the supervisor may take to exit after its last word.
const EXIT_WITHIN: Duration = Duration::from_secs(2);

/// Stops the project's run.
pub(crate) fn run(args: &DownArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let root = live::project_root()?;
    let mut signals = None;
    loop {
        let report = match past::look(&root, Access::Open)? {
            Past::Absent => return Err(live::no_run(&root)),
            Past::Nothing { notes, .. } => {
                notes.iter().for_each(|note| output.note(&format!("note: {}", harmless(note))));
                return Err(live::no_run(&root));
            }
            Past::Live(run) => match stop(&run, args, output)? {
                Some(report) => report,
                // The supervisor died in the middle: its keepers go on, and the next look finds them.
                None => continue,
            },
            Past::Finishing(finishing) if args.force => {
                finishing.kill_keepers();
                let signals = taken(&mut signals)?;
                past::wait(&finishing, Duration::ZERO, signals, output)?;
                continue;
            }
            Past::Finishing(finishing) => {
                let signals = taken(&mut signals)?;
                past::wait(&finishing, finishing.grace().unwrap_or(GRACE_UNKNOWN), signals, output)?;
                continue;
            }
            Past::Crashed(crashed) => {
                let signals = taken(&mut signals)?;
                let (report, _) = past::end(*crashed, args.yes, args.force, args.json, signals, output)?;
                if !args.json {
                    output.print(report::crash(&report, output.is_out_styled()));
                }
                report
            }
        };
        if args.json {
            output.print_json(&report)?;
        }
        return Ok(report::exit_code(&report, true));
    }
}

/// Signals are taken only where something is waited for here: a `down` that only watches may be left at any time.
fn taken(signals: &mut Option<Signals>) -> Result<&Signals, Failure> {
    if signals.is_none() {
        *signals = Some(Signals::take()?);
    }
    signals.as_ref().ok_or_else(|| Failure::new(ExitCode::Trouble, "could not prepare signals"))
}

/// Asks a live run to stop, and tells what happens. `None` when its supervisor died before the report.
fn stop(run: &LiveRun, args: &DownArgs, output: &mut Output) -> Result<Option<Report>, Failure> {
    let Some(socket) = &run.socket else {
        return Err(Failure::new(ExitCode::LiveRun, run.to_string()).hint("try again in a moment"));
    };
    let mut client = match Client::connect(socket) {
        Ok(client) => client,
        // It died, or ended, since we looked.
        Err(ClientError::Connect { .. }) if !is_alive(run) => return Ok(None),
        Err(error) => return Err(live::trouble(&error)),
    };
    client.ask(&Request::Down { force: args.force }).map_err(|error| live::trouble(&error))?;
    let mut narrator = Narrator::new(output.is_out_styled());
    let mut silence = Some(Instant::now() + ANSWER_WITHIN);
    loop {
        let answer = match client.next(Some(Instant::now() + live::LOOK_EVERY)) {
            Ok(answer) => answer,
            Err(ClientError::TimedOut) => {
                if !args.json {
                    output.print(narrator.remind(Instant::now()));
                    output.flush();
                }
                if silence.is_some_and(|until| Instant::now() >= until) {
                    output
                        .note("the supervisor does not answer and was killed; its keepers end the services");
                    signal(run, Signal::KILL);
                    wait_exit(run);
                    return Ok(None);
                }
                if run.supervisor.is_some_and(live::is_stopped) {
                    signal(run, Signal::CONT);
                }
                continue;
            }
            Err(ClientError::Closed) => return Ok(None),
            Err(error) => return Err(live::trouble(&error)),
        };
        silence = None;
        match answer {
            Answer::Event(event) if !args.json => {
                output.print(narrator.tell(&event.kind, Instant::now()));
                output.flush();
            }
            Answer::Report(report) => {
                wait_exit(run);
                if !args.json {
                    output.print(report::ending(&report, output.is_out_styled()));
                }
                return Ok(Some(*report));
            }
            Answer::Refused { reason, message } => return Err(live::refused(reason, message)),
            Answer::Event(_) | Answer::Accepted | Answer::Status(_) | Answer::Done { .. } => {}
        }
    }
}

fn signal(run: &LiveRun, signal: Signal) {
    // A supervisor that is gone by now is what the next read says.
    let _ = run.supervisor.map(|supervisor| signal_identity(supervisor, signal));
}

fn is_alive(run: &LiveRun) -> bool {
    run.supervisor.is_some_and(|supervisor| supervisor.is_alive())
}

/// Waits until the supervisor, which has said its last word, has exited: when `down` returns, nothing is there.
fn wait_exit(run: &LiveRun) {
    let process = run.supervisor.and_then(|supervisor| PidFd::open(supervisor).ok());
    if let Some(process) = process {
        // One that takes longer is stuck behind its terminal, and holds nothing but that.
        let _ = process.wait_exit(Some(Instant::now() + EXIT_WITHIN));
    }
}
