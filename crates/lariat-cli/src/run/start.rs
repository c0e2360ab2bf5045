//! What is done before there is a command: its surroundings, its plan, its cgroup, its record, its keeper.
//!
//! Steps only: their order, and what is undone after one that failed, is [`super::driver`]'s. Nobody is waited for here.
//! Handles HAZARD(sigchld-ignored) and, for the ties, HAZARD(keeper-stopped).

use std::ffi::OsString;
use std::os::fd::OwnedFd;

use lariat::ledger::command::{CommandLedger, OpenRecord, Place};
use lariat::ledger::record::RunId;
use lariat::process::Mark;
use lariat_keeper::contain::cgroup;
use lariat_keeper::contain::choose;
use lariat_keeper::contain::limits::NoLimits;
use lariat_keeper::entry::{Holdings, become_keeper};
use lariat_keeper::stop::StopPlan;
use lariat_keeper::wire::Plan;
use lariat_sys::cgroup::Cgroup;
use lariat_sys::identity::Identity;
use lariat_sys::signal::{self, Signal, SignalSet};
use lariat_sys::spawn::{Forked, Namespaces, SpawnError};
use lariat_sys::{Errno, files, process, reap, spawn, tree};

use super::ties::{Ties, take_stdin};
use super::{RunError, RunOptions, c_string};
use crate::settings::Boundary;

/// Signals that the kernel raises for a fault of ours; they have to end us.
const FAULTS: [Signal; 7] =
    [Signal::SEGV, Signal::BUS, Signal::ILL, Signal::FPE, Signal::TRAP, Signal::ABRT, Signal::SYS];

/// Ties the run to its surroundings, as was asked for.
pub(super) fn tied(options: &RunOptions) -> Result<Ties, RunError> {
    let own = |step| move |errno: Errno| RunError::Own { step, errno: errno.raw_os_error() };
    let mut ties = Ties { terminal: files::open_tty().ok(), ..Ties::default() };
    if options.has_lifeline {
        let lifeline = take_stdin().map_err(own("take standard input as the lifeline"))?;
        // HAZARD(keeper-stopped): so may we be, and then its end would have to wait.
        ties.lifeline_wakes = files::signal_when_readable(&lifeline, Signal::CONT).ok();
        ties.lifeline = Some(lifeline);
    }
    if options.dies_with_parent {
        // The same of the caller's death. It does no harm that the kernel says so of the thread that called us, too.
        process::set_parent_death(Signal::CONT).map_err(own("hear of the caller's death"))?;
        if !ties.hold_caller().map_err(own("watch the caller"))? {
            return Err(own("watch the caller, which is gone")(Errno::SRCH));
        }
    }
    Ok(ties)
}

/// Forks the keeper, into namespaces of its own if that is asked for.
pub(super) fn fork_keeper(options: &RunOptions) -> Result<Option<Forked>, RunError> {
    if !options.is_isolated {
        let errno = |errno: Errno| RunError::Own { step: "fork the keeper", errno: errno.raw_os_error() };
        return spawn::fork_alone().map_err(errno);
    }
    spawn::fork_isolated(&Namespaces::choose())
        .map_err(|SpawnError { step, errno }| RunError::Isolate { step, errno: errno.raw_os_error() })
}

/// Is the keeper that was forked. It shares its start and its end with us: we write the record while it prepares the
/// command, which waits for our word, and remove the command's directory while it exits.
pub(super) fn be_keeper(plan: Plan, control: OwnedFd, holdings: Holdings) -> ! {
    let holdings = Holdings { leaves_cgroup: true, waits: true, ..holdings };
    process::exit_now(become_keeper(plan, control, holdings))
}

/// How things were when lariat began, which is how the command has to find them.
pub(super) struct Before {
    pub(super) mask: SignalSet,
    pub(super) ignored: SignalSet,
    /// Children that were there before: a shell that started helpers and then exec'd us.
    pub(super) children: Vec<i32>,
}

pub(super) fn before() -> Before {
    let ignored = signal::ignored();
    // HAZARD(sigchld-ignored): with CHLD ignored the kernel reaps for us and no exit code is ever seen.
    let _ = signal::set_default(Signal::CHLD);
    let mask = signal::block(heard());
    let mut children = Vec::new();
    if reap::has_children() {
        let _ = tree::children(process::pid(), &mut children);
    }
    Before { mask, ignored, children }
}

/// The signals that are blocked and taken from a descriptor.
pub(super) fn heard() -> SignalSet {
    FAULTS.into_iter().fold(SignalSet::full(), SignalSet::without)
}

pub(super) fn plan(options: &RunOptions, me: Identity, before: &Before, has_terminal: bool) -> Plan {
    let name = options.command.first().map(|c| std::path::Path::new(c).file_name().unwrap_or(c));
    Plan {
        label: name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        run: String::new(),
        record: options.ledger.as_ref().map(|ledger| c_string(ledger.path().as_os_str())),
        argv: options.command.iter().map(|a| c_string(a)).collect(),
        env: environment(options.ledger.as_ref(), me),
        dir: None,
        has_session: !has_terminal,
        is_daemon: false,
        has_null_stdin: options.has_lifeline,
        is_limited: false,
        stop: StopPlan { signal: options.signal, scope: options.scope, grace: options.grace },
        mask: before.mask,
        ignored: before.ignored,
    }
}

/// Applies the limits to the directory of the command, and says whether it has any.
pub(super) fn limit(options: &RunOptions, group: Option<&Cgroup>, notes: &mut Vec<String>) -> bool {
    if options.limited_in.is_none() {
        return false;
    }
    let Some(group) = group else {
        notes.push(format!("its limits were not applied: {}", NoLimits::NoCgroup));
        return false;
    };
    if let Err(reason) = options.limits.apply(group) {
        notes.push(format!("its limits were not all applied: {reason}"));
    }
    true
}

/// Writes down that there is about to be a command: whoever kills us as soon as it has begun leaves enough to find it by.
/// A disk that is full, or a directory that is not ours, stops no command.
pub(super) fn write_record(
    options: &RunOptions,
    me: Identity,
    stop: StopPlan,
    group: Option<&Cgroup>,
) -> Option<OpenRecord> {
    let command = options.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let dir = std::env::current_dir().unwrap_or_default();
    let own = group.and_then(|group| group.path().ok());
    let cgroup = own.and_then(|own| Some(own.parent()?.to_owned()));
    options.ledger.as_ref()?.write(me, stop, Place { command, dir, cgroup }).ok()
}

/// Makes the directory that the command is to be born in; `None` where that is not possible and not demanded.
pub(super) fn cgroup(options: &RunOptions, label: &str) -> lariat_sys::Result<Option<Cgroup>> {
    let base = match &options.boundary {
        Boundary::Lineage => return Ok(None),
        Boundary::Any { given } | Boundary::Cgroup { given } => {
            let place = options.limited_in.as_ref().or(given.as_ref());
            place.cloned().map_or_else(choose::own, Ok)
        }
    };
    let made = base.map_err(|_| Errno::NOENT).and_then(|base| {
        // Without a record the run has no id, and the directory needs a name all the same.
        let run = match &options.ledger {
            Some(ledger) => ledger.run().clone(),
            None => RunId::new_random()?,
        };
        cgroup::create(&base, run.as_str(), label)
    });
    match (made, &options.boundary) {
        (Err(errno), Boundary::Cgroup { .. }) => Err(errno),
        (made, _) => Ok(made.ok()),
    }
}

/// The environment that lariat was started with, and the mark of the run, unless that of a run around it is there.
fn environment(ledger: Option<&CommandLedger>, me: Identity) -> Vec<std::ffi::CString> {
    let pair = |(name, value): (OsString, OsString)| {
        let mut entry = name;
        entry.push("=");
        entry.push(value);
        c_string(&entry)
    };
    let own = ledger.filter(|ledger| ledger.marker() == ledger.run());
    let mark = own.map(|ledger| Mark::variables(ledger.run().as_str(), me));
    let is_other = |(name, _): &(OsString, OsString)| {
        !name.is_empty() && !mark.iter().flatten().any(|(marking, _)| name == marking)
    };
    let others = std::env::vars_os().filter(is_other).map(pair);
    others.chain(mark.iter().flatten().map(|(name, value)| pair((name.into(), value.into())))).collect()
}
