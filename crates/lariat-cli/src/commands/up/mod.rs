//! `lariat up`: starts the stack and stays with it, in front or in the background.

mod detach;
mod signals;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lariat::containment::{self, Candidates, Source};
use lariat::isolation;
use lariat::ledger::STATE_DIR;
use lariat::ledger::index::UserDirs;
use lariat::logs::LogFiles;
use lariat::service::spec::{ServiceName, StackSpec};
use lariat::shutdown::plan::Why;
use lariat::shutdown::report::Report;
use lariat::supervisor::{Options, StartError, Supervisor, limits_of};
use lariat_config::Loaded;
use lariat_sys::cgroup::text::Controllers;
use lariat_sys::identity::Identity;
use lariat_sys::kernel::Missing;
use lariat_sys::signal::Signal;
use lariat_sys::{Errno, files, kernel, process, tree};

use super::past;
use super::show::report;
use super::show::screen::{Parts, Screen};
use crate::args::stack::UpArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output, UNWRITTEN};
use crate::settings::{self, Boundary};
use detach::Teller;
pub(crate) use signals::Signals;

/// How long the last words wait for a terminal that takes nothing.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// Starts the stack and returns when it is over; with `-d`, when it is up.
pub(crate) fn run(args: &UpArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    Identity::own().map_err(|errno| {
        own_trouble("could not find lariat in /proc", errno)
            .hint("/proc has to be mounted, and of the pid namespace that lariat is in")
    })?;
    if let Some(missing) = kernel::missing() {
        return Err(lacking(ExitCode::Trouble, &missing));
    }
    if args.supervise {
        return run_behind(args, output);
    }
    let (file, spec, services) = configuration(args, output)?;
    let signals = Signals::take()?;
    // Before anything goes to the background: what a crashed run left may need an answer from a person.
    past::clear(&spec, args.yes, &signals, output)?;
    if args.detach {
        return detach::start(&file, args, &signals, output);
    }
    run_in_front(spec, services, signals, output)
}

/// Says that the kernel lacks what nothing works without.
pub(crate) fn lacking(code: ExitCode, missing: &Missing) -> Failure {
    Failure::new(code, format!("cannot work here: {missing}")).hint(format!(
        "lariat needs Linux {} or newer, and a sandbox that lets these calls through",
        kernel::OLDEST
    ))
}

fn configuration(
    args: &UpArgs,
    output: &mut Output,
) -> Result<(PathBuf, StackSpec, Vec<ServiceName>), Failure> {
    let file = settings::config_file(args.file.as_deref())?;
    let Loaded { spec, warnings } = settings::stack(&file)?;
    output.note_diagnostics(&warnings);
    let name = |text: &String| {
        ServiceName::new(text.clone()).map_err(|error| Failure::new(ExitCode::Usage, error.to_string()))
    };
    let services = args.services.iter().map(name).collect::<Result<_, _>>()?;
    Ok((file, spec, services))
}

fn run_in_front(
    spec: StackSpec,
    services: Vec<ServiceName>,
    signals: Signals,
    output: &mut Output,
) -> Result<ExitCode, Failure> {
    let logs = spec.root.join(STATE_DIR).join("logs");
    let stores = |name: String| (name.clone(), LogFiles::current(&logs, &name));
    let stores = spec.services.iter().map(|service| stores(service.name.to_string())).collect();
    let options = options(&spec, services, signals, output)?;
    let supervisor = Supervisor::new(spec, options).map_err(start_failure)?;
    let handle = supervisor.handle();
    let subscription = handle.subscribe().map_err(|e| own_trouble("could not listen to the run", e))?;
    let bell = supervisor.bell().map_err(|e| own_trouble("could not listen to the output", e))?;
    let is_styled = output.is_out_styled();
    let is_terminal = std::io::stdout().is_terminal();
    let screen =
        Screen::start(Parts { subscription, bell, handle, services: stores, is_styled, is_terminal })
            .map_err(|e| own_trouble("could not start a thread", e))?;
    let report = supervisor.run();
    match screen.finish(report::ending(&report, is_styled), LAST_WORDS_WITHIN) {
        Some(errno) => Err(unwritten(&report, errno, output)),
        None => Ok(exit_code(&report)),
    }
}

/// Makes the failure of a run whose output could not be written, and shows what that would have ended with.
fn unwritten(report: &Report, errno: Errno, output: &mut Output) -> Failure {
    output.note(report::ending(report, output.is_err_styled()).trim_end());
    let code = match exit_code(report) {
        // That something is alive weighs more than that a line is missing.
        ExitCode::Left => ExitCode::Left,
        _ => ExitCode::Trouble,
    };
    Failure::new(code, UNWRITTEN).because(std::io::Error::from(errno).kind())
}

/// The supervisor in the background.
fn run_behind(args: &UpArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let teller = Teller::take()?;
    let prepared = configuration(args, output).and_then(|(_, spec, services)| {
        let signals = Signals::take()?;
        let options = options(&spec, services, signals, output)?;
        let supervisor = Supervisor::new(spec, options).map_err(start_failure)?;
        let listening = supervisor.handle().subscribe();
        let subscription = listening.map_err(|e| own_trouble("could not listen to the run", e))?;
        Ok((supervisor, subscription))
    });
    let (supervisor, subscription) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            teller.fail(&failure);
            return Err(failure);
        }
    };
    let telling = teller.tell(subscription).map_err(|e| own_trouble("could not start a thread", e))?;
    let report = supervisor.run();
    // If the stack never came up, somebody still waits. The thread ends with the events, which are over.
    if let Ok(Some(teller)) = telling.join() {
        teller.report(&report);
    }
    Ok(exit_code(&report))
}

/// A run that somebody ended is done; one that ended by itself failed if a service of it did.
fn exit_code(report: &Report) -> ExitCode {
    report::exit_code(report, report.why != Why::AllEnded.describe())
}

fn options(
    spec: &StackSpec,
    services: Vec<ServiceName>,
    signals: Signals,
    output: &mut Output,
) -> Result<Options, Failure> {
    let mut children = Vec::new();
    // The shell that became us by exec may have had children: they are not ours.
    let _ = tree::children(process::pid(), &mut children);
    let before = children.into_iter().filter_map(|pid| Identity::of(pid).ok().flatten()).collect();
    // Somebody who ignores hang-ups wants to outlive the terminal.
    let ignores_hangup = signals.ignored.contains(Signal::HUP);
    let terminal: Option<OwnedFd> = if ignores_hangup { None } else { files::open_tty().ok() };
    let executable = PathBuf::from("/proc/self/exe");
    let environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let wanted = limits_of(spec).controllers();
    let cgroup = cgroup(wanted, &executable, &environment, output)?;
    Ok(Options {
        executable,
        environment,
        cgroup,
        dirs: user_dirs(),
        services,
        mask: signals.mask,
        ignored: signals.ignored,
        signals: Some(signals.queue),
        terminal,
        children_before: before,
        is_subreaper: true,
        is_descent_chosen: settings::boundary()? == Boundary::Lineage,
        may_be_moved: true,
    })
}

/// Chooses the directory in which services get theirs.
fn cgroup(
    wanted: Controllers,
    executable: &Path,
    environment: &[(OsString, OsString)],
    output: &mut Output,
) -> Result<Option<PathBuf>, Failure> {
    let (given, is_demanded) = match settings::boundary()? {
        Boundary::Lineage => return Ok(None),
        Boundary::Any { given } => (given, false),
        Boundary::Cgroup { given } => (given, true),
    };
    let choice = containment::choose(&Candidates {
        given: given.as_deref(),
        may_ask_systemd: true,
        environment,
        executable,
        wanted,
    });
    let reasons = choice.refused.iter().map(|refused| format!("{}: {}", refused.source, refused.reason));
    if is_demanded && choice.base.is_none() {
        let failure =
            Failure::new(ExitCode::Trouble, "no cgroup can be had, and LARIAT_CONTAINMENT demands one");
        return Err(reasons.fold(failure, Failure::because));
    }
    // Whoever names a directory wants that one; what else is possible is doctor's to say.
    for refused in choice.refused.iter().filter(|refused| refused.source == Source::Given) {
        output.note(&format!("note: {} is not used: {}", refused.source, refused.reason));
    }
    Ok(choice.base.map(|base| base.path))
}

/// Returns the user's directories as the environment names them.
pub(crate) fn user_dirs() -> UserDirs {
    let path =
        |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    UserDirs { runtime: path("XDG_RUNTIME_DIR"), state: path("XDG_STATE_HOME"), home: path("HOME") }
}

/// Says why nothing was started.
fn start_failure(error: StartError) -> Failure {
    let message = error.to_string();
    let failure = |code| Failure::new(code, message.clone());
    match error {
        StartError::Graph(_) => failure(ExitCode::Config).hint("nothing was started"),
        StartError::UnknownService(_) => failure(ExitCode::Usage).hint("`lariat check` lists the services"),
        StartError::Live(_) => past::live_failure(&message),
        StartError::PortInUse(_) => failure(ExitCode::PortInUse).hint(
            "nothing was started; end that process, or give the service another port or `port = \"auto\"`",
        ),
        StartError::Finishing(_) | StartError::Crashed(_) => {
            failure(ExitCode::LiveRun).hint("another lariat was at work here in this moment; try again")
        }
        StartError::Isolation { refusal, .. } => {
            failure(ExitCode::Trouble).hint(isolation::hint_for(&refusal))
        }
        _ => failure(ExitCode::Trouble).hint("nothing was started"),
    }
}

/// Makes a failure of lariat's own.
pub(crate) fn own_trouble(message: &str, cause: impl ToString) -> Failure {
    Failure::new(ExitCode::Trouble, message).because(cause)
}
