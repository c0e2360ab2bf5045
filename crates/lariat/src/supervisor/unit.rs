//! One service as the driver holds it: its keeper, its output, its port.
//!
//! It starts keepers and understands their notices. What follows from a notice is decided by the machines.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::time::Instant;

use lariat_keeper::client::{Keeper, KeeperSpec};
use lariat_keeper::contain::cgroup;
use lariat_keeper::stop::StopPlan;
use lariat_keeper::store::Output;
use lariat_keeper::wire::{End, Order, Plan};
use lariat_sys::cgroup::Cgroup;
use lariat_sys::cgroup::text::Controllers;
use lariat_sys::identity::Identity;
use lariat_sys::signal::Signal;
use lariat_sys::spawn::Namespaces;

use super::Options;
use super::poller::Key;
use super::probing::Probe;
use crate::logs::Store;
use crate::logs::pump::{Flow, Pump};
use crate::process::{Mark, SERVICE_VARIABLE};
use crate::service::spec::{Isolation, ServiceSpec, StackSpec};

/// One service.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) name: String,
    /// Its port; one that was chosen stays the same over restarts.
    pub(super) port: Option<u16>,
    pub(super) store: Store,
    pub(super) life: Option<Life>,
    pub(super) probe: Option<Probe>,
    /// Why it was not started, or not ready, in words.
    pub(super) trouble: Option<String>,
    /// How the orphans of its dead keeper were ended.
    pub(super) swept: Option<End>,
    /// Somebody of its last life could not be ended.
    pub(super) has_left_members: bool,
    /// Every leader that it had in this run, and the number of the pipe that took its output: with the leader, its
    /// session and its group.
    pub(super) leaders: Vec<(Identity, Option<u64>)>,
}

/// One start of a service, from its keeper's start to the proof of its end.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) keeper: Keeper,
    /// The conversation, until it is closed.
    pub(super) talk: Option<Key>,
    /// The keeper's death.
    pub(super) death: Key,
    /// It has been taken notice of.
    pub(super) is_lost: bool,
    pub(super) leader: Option<Identity>,
    pub(super) began: Instant,
    pub(super) flow: Arc<Flow>,
    pub(super) end: Option<End>,
    pub(super) has_failed_to_spawn: bool,
    pub(super) stop_began: Option<Instant>,
    /// The directory that it was born in.
    pub(super) cgroup: Option<Cgroup>,
    /// The number of the pipe that takes its output.
    pub(super) output: Option<u64>,
}

/// What a start needs from the run.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub(super) spec: &'a ServiceSpec,
    pub(super) options: &'a Options,
    /// By which limits have an effect in the directories of this run.
    pub(super) controllers: Controllers,
    pub(super) run: &'a str,
    pub(super) supervisor: Identity,
    /// `LARIAT_PORT_*` of the whole stack.
    pub(super) ports: &'a BTreeMap<String, u16>,
    pub(super) pump: &'a Pump,
    pub(super) lock: std::os::fd::BorrowedFd<'a>,
    pub(super) ends: std::os::fd::BorrowedFd<'a>,
}

/// A keeper that was started, and its service's output on its way into the store.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) keeper: Keeper,
    pub(super) flow: Arc<Flow>,
    pub(super) cgroup: Option<Cgroup>,
    /// Why there is no directory where there was to be one.
    pub(super) no_cgroup: Option<String>,
    /// Why its limits are not applied where they were to be.
    pub(super) no_limits: Option<String>,
    pub(super) output: Option<u64>,
}

impl Unit {
    /// Makes a unit with nothing alive.
    pub(super) fn new(name: String, port: Option<u16>, store: Store) -> Self {
        Self {
            name,
            port,
            store,
            life: None,
            probe: None,
            trouble: None,
            swept: None,
            has_left_members: false,
            leaders: Vec::new(),
        }
    }

    /// Starts a keeper with the service.
    pub(super) fn begin(&self, start: &Start<'_>) -> Result<Begun, String> {
        let output = Output::new().map_err(|errno| format!("could not make a pipe: {errno}"))?;
        let (read, stage) = (output.read.try_clone(), output.stage.try_clone());
        let drain = read
            .and_then(|read| self.store.drain(read, stage?))
            .map_err(|error| format!("could not open the store: {error}"))?;
        let (cgroup, no_cgroup) = match &start.options.cgroup {
            None => (None, None),
            Some(base) => match cgroup::create(base, start.run, &self.name) {
                Ok(group) => (Some(group), None),
                Err(errno) => (None, Some(format!("could not make a cgroup in {}: {errno}", base.display()))),
            },
        };
        let limits = start.spec.limits.by(start.controllers);
        let limited = cgroup.as_ref().filter(|_| !limits.is_empty()).map(|group| limits.apply(group));
        let no_limits = limited.as_ref().and_then(|limited| Some(limited.as_ref().err()?.to_string()));
        let plan = Plan { is_limited: limited.is_some(), ..plan(start, self.port)? };
        let executable = CString::new(start.options.executable.as_os_str().as_bytes())
            .map_err(|_| "the keeper's path has a NUL in it".to_owned())?;
        let keeper = Keeper::spawn(&KeeperSpec {
            executable,
            plan: &plan,
            lock: Some(start.lock),
            output: Some(&output),
            store: Some(self.store.log()),
            index: Some(self.store.index()),
            ends: Some(start.ends),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            namespaces: (start.spec.isolation == Isolation::Pid).then(Namespaces::choose),
        });
        match keeper {
            Ok(keeper) => {
                // Without the number a leftover has one clue less.
                let number = rustix::fs::fstat(&output.read).ok().map(|pipe| pipe.st_ino);
                Ok(Begun {
                    keeper,
                    flow: start.pump.add(drain),
                    cgroup,
                    no_cgroup,
                    no_limits,
                    output: number,
                })
            }
            Err(error) => {
                cgroup.iter().for_each(cgroup::remove);
                Err(error.to_string())
            }
        }
    }
}

impl Life {
    /// Gives an order. A keeper that somebody stopped goes on first: it could not hear anything.
    pub(super) fn order(&self, order: &Order) {
        let _ = self.keeper.pidfd().signal(Signal::CONT);
        // A keeper that is gone says so by its death; one that reads nothing is found out by its silence.
        let _ = self.keeper.order(order);
    }
}

fn plan(start: &Start<'_>, port: Option<u16>) -> Result<Plan, String> {
    let spec = start.spec;
    let text = |text: &OsStr| {
        CString::new(text.as_bytes()).map_err(|_| format!("NUL in {}", text.to_string_lossy()))
    };
    let argv = spec.command.argv();
    Ok(Plan {
        label: spec.name.to_string(),
        run: start.run.to_owned(),
        record: None,
        argv: argv.iter().map(|argument| text(argument)).collect::<Result<_, _>>()?,
        env: environment(start, port).iter().map(|entry| text(entry)).collect::<Result<_, _>>()?,
        dir: Some(text(spec.dir.as_os_str())?),
        has_session: true,
        is_daemon: spec.daemon,
        has_null_stdin: true,
        is_limited: false,
        stop: StopPlan { signal: spec.stop.signal, scope: spec.stop.scope, grace: spec.stop.grace },
        mask: start.options.mask,
        ignored: start.options.ignored,
    })
}

/// The environment of a service: the user's own, then the configuration's, then what lariat says of the run.
fn environment(start: &Start<'_>, port: Option<u16>) -> Vec<OsString> {
    let mut variables: BTreeMap<OsString, OsString> = start.options.environment.iter().cloned().collect();
    variables.extend(start.spec.env.clone());
    for (name, port) in start.ports {
        variables.insert(format!("LARIAT_PORT_{name}").into(), port.to_string().into());
    }
    if let Some(port) = port {
        variables.insert("PORT".into(), port.to_string().into());
    }
    let mark = Mark::variables(start.run, start.supervisor);
    variables.extend(mark.map(|(name, value)| (name.into(), value.into())));
    variables.insert(SERVICE_VARIABLE.into(), start.spec.name.as_str().into());
    let entry = |(name, value): (OsString, OsString)| {
        let mut bytes = name.into_vec();
        bytes.push(b'=');
        bytes.extend(value.into_vec());
        OsString::from_vec(bytes)
    };
    variables.into_iter().map(entry).collect()
}

/// Names the ports of a stack as its services see them.
pub(super) fn port_variables(spec: &StackSpec, units: &[Unit]) -> BTreeMap<String, u16> {
    let named = spec.services.iter().zip(units).filter_map(|(service, unit)| Some((service, unit.port?)));
    named.map(|(service, port)| (service.name.as_env(), port)).collect()
}

/// Lends the keeper's socket.
impl AsFd for Life {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.keeper.as_fd()
    }
}
