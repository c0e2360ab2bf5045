//! The process that decides: it owns all live state of a run.
//!
//! ```text
//! signals, terminal, handles, socket ─┐
//! keepers' notices and deaths ────────┼─ driver (one loop, one thread) ── stack ── machines, plan   (pure)
//! probes, output, time ───────────────┘        │
//!                                              ├─ books:  lock, ledger, history
//!                                              ├─ feed:   events to subscribers
//!                                              └─ server: the run's own socket
//! ```
//!
//! Start reading at [`stack`], then `driver`. The supervisor prints nothing, never exits, reads neither environment nor
//! working directory, and installs no signal handler: an embedding program passes in what it knows ([`Options`]), and
//! its signals by a descriptor or a [`Handle`].

mod books;
mod crashed;
mod driver;
mod feed;
pub mod freeing;
mod handle;
mod held;
pub mod leftovers;
mod lives;
mod poller;
mod probing;
mod readiness;
pub mod recovery;
mod requests;
pub mod runs;
mod server;
pub mod stack;
mod sweeping;
mod unit;
mod unrecorded;

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use lariat_keeper::awake::Awake;
use lariat_keeper::contain::choose::{self, Refusal};
use lariat_keeper::contain::limits::{self, NoLimits, Seat, Way};
use lariat_sys::Errno;
use lariat_sys::identity::Identity;
use lariat_sys::kernel::{self, Missing};
use lariat_sys::process;
use lariat_sys::signal::{SignalFd, SignalSet};

pub use feed::{INBOX_MAX, Next, Subscription};
pub use handle::Handle;

use crate::event::EventKind;
use crate::ledger::index::{IndexEntry, RunIndex, UserDirs};
use crate::ledger::lock::RunLock;
use crate::ledger::record::{RecordedState, RunId, RunRecord, ServiceRecord, StopRecord};
use crate::ledger::recover::Living;
use crate::ledger::{LedgerError, StateDir};
use crate::logs::pump::{Bell, Pump, PumpError};
use crate::logs::{Store, StoreError};
use crate::ports::{self, PortError};
use crate::service::graph::{Graph, GraphError, Place};
use crate::service::spec::{Isolation, Limits, PortSpec, ServiceName, StackSpec};
use crate::shutdown::report::{Report, Tally};
use books::Books;
use driver::Driver;
use feed::{Feed, Subscribers};
use poller::Poller;
use recovery::{Crashed, Finishing, LiveRun, Past};
use server::Server;
use stack::Stack;
use unit::Unit;

/// What a supervisor has to know of the program that it runs in.
#[derive(Debug)]
pub struct Options {
    /// The program that keepers are started from. Its `main` has to call [`lariat_keeper::entry::entry`] first.
    pub executable: PathBuf,
    /// The environment that services are started with; what the configuration sets is put on top.
    pub environment: Vec<(OsString, OsString)>,
    /// The user's directories, for the socket and the list of runs.
    pub dirs: UserDirs,
    /// The services to start, with all they come after; all of the stack if empty.
    pub services: Vec<ServiceName>,
    /// The signals that services start with blocked: what the user had, not what the program blocks for itself.
    pub mask: SignalSet,
    /// The signals that services start with ignored; the same.
    pub ignored: SignalSet,
    /// Signals that the program receives: INT, TERM, HUP and QUIT stop the stack; CHLD makes the end of orphans faster.
    pub signals: Option<SignalFd>,
    /// A terminal whose closing stops the stack.
    pub terminal: Option<OwnedFd>,
    /// Children that the program had before: they are left alone.
    pub children_before: Vec<Identity>,
    /// Become a child subreaper, so that the orphans of a keeper that was killed come to us. Only for a program that has
    /// no other children: those are ended at a keeper's death and at the end.
    pub is_subreaper: bool,
    /// The cgroup directory in which each start of a service gets one of its own ([`crate::containment`]).
    pub cgroup: Option<PathBuf>,
    /// There is none because descent alone was asked for, which is said where services have limits.
    pub is_descent_chosen: bool,
    /// The program may be moved into a cgroup below the one that it is in, where limits of services need that
    /// ([`lariat_keeper::contain::limits`]); it is moved back at the end.
    pub may_be_moved: bool,
}

/// Why a supervisor could not be made. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The dependencies make no graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// No service has this name.
    #[error("no service of this stack is named `{0}`")]
    UnknownService(ServiceName),
    /// The state directory or the ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A run of this project is alive.
    #[error("{0}")]
    Live(LiveRun),
    /// The supervisor of this project's run is dead, and its keepers are ending the services.
    #[error("{0}")]
    Finishing(Finishing),
    /// The last run of this project was not closed; see what is left of it first.
    #[error("the last run of this project did not end by itself")]
    Crashed(Box<Crashed>),
    /// A port is in use.
    #[error("{0}")]
    PortInUse(String),
    /// No port was found, or the kernel does not say who listens.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A service is to be in a pid namespace, and none can be had.
    #[error("`{service}` cannot be isolated: {refusal}")]
    Isolation {
        /// The first service that is to be isolated.
        service: ServiceName,
        /// Why not.
        refusal: Refusal,
    },
    /// A service's output cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The output cannot be pumped.
    #[error(transparent)]
    Pump(#[from] PumpError),
    /// The kernel lacks what nothing works without.
    #[error("cannot work here: {0}")]
    Kernel(Missing),
    /// Something else of lariat's own.
    #[error("could not {step}: {errno}")]
    System {
        /// What.
        step: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

/// A supervisor, ready to run: it holds the project's lock and claimed the ports, and nothing was started.
///
/// Dropping it closes everything again.
#[derive(Debug)]
pub struct Supervisor {
    driver: Driver,
    chosen: Vec<Place>,
    index: Option<RunIndex>,
}

impl Supervisor {
    /// Takes the project's lock, looks what the last run left, claims ports, and makes ledger, stores and socket.
    ///
    /// Blocks on the disk, and up to a quarter of a second for the lock.
    ///
    /// # Errors
    /// [`StartError`]; nothing was started, and nothing is held.
    pub fn new(spec: StackSpec, options: Options) -> Result<Self, StartError> {
        let system = |step| move |errno| StartError::System { step, errno };
        if let Some(missing) = kernel::missing() {
            return Err(StartError::Kernel(missing));
        }
        let graph = Graph::new(&spec.services)?;
        let chosen = chosen(&spec, &options.services)?;
        let index = options.dirs.runs().map(|directory| RunIndex::at(&directory));
        let (state, lock, notes) = take_project(&spec.root, index.as_ref(), &options.dirs)?;
        let places = graph.closure(&chosen);
        let ports = claim(&spec, &places, &vec![None; spec.services.len()])?;
        try_isolation(&spec, &places, &options)?;
        let run = RunId::new_random().map_err(system("make a run id"))?;
        let socket = options.dirs.socket(&run)?;
        let record = first_record(&run, &spec, &socket, &options).map_err(system("read the boot id"))?;
        let (seat, no_limits) = place_for_limits(&spec, &options, run.as_str());
        let units = make_units(&spec, &state, ports)?;
        let pump = Pump::start()?;
        let bell: Arc<Bell> = pump.bell()?;
        // The ledger names the socket before it is there: whoever finds the one removes the other.
        let mut books = Books::open(state, lock, record)?;
        let server = Server::bind(&socket).inspect_err(|_| books.abandon());
        let server =
            server.map_err(|e| system("make the socket")(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        let subscribers = Subscribers::default();
        let handle = Handle::new(subscribers.clone()).map_err(system("make a handle"))?;
        if options.is_subreaper {
            process::set_subreaper(true).map_err(system("become a subreaper"))?;
        }
        let mut tally = Tally::new(spec.services.iter().map(|service| service.name.to_string()));
        notes.into_iter().for_each(|note| tally.note(note));
        let mut driver = Driver {
            stack: Stack::new(&spec, graph, seed().map_err(system("get random bytes"))?),
            books,
            queue: VecDeque::new(),
            poller: Poller::new().map_err(system("make an event queue"))?,
            units,
            leaving: Vec::new(),
            pump,
            bell,
            has_more_output: false,
            flows: Vec::new(),
            server,
            waits: Vec::new(),
            handle,
            feed: Feed::new(subscribers),
            tally,
            sweep: None,
            hunt: None,
            verify: None,
            is_blind: false,
            living: Living::of(&options.dirs),
            terminal_key: None,
            began: Instant::now(),
            stop: None,
            has_left: false,
            has_finished: false,
            awake: Awake::default(),
            seat,
            no_limits,
            spec,
            options,
        };
        driver.watch_all().map_err(system("wait for events"))?;
        Ok(Self { driver, chosen, index })
    }

    /// Returns a handle for other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.driver.handle.clone()
    }

    /// Returns the run's id.
    #[must_use]
    pub fn run_id(&self) -> &str {
        self.driver.books.run()
    }

    /// Returns a bell that rings when output arrived.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn bell(&self) -> Result<Arc<Bell>, PumpError> {
        self.driver.pump.bell()
    }

    /// Starts the services and runs until the stack has stopped and the proof is taken, or a third signal made it leave.
    ///
    /// Blocks the calling thread for as long as the run lasts. Once the stop has begun, it is bounded by the stack's
    /// deadline and seven seconds more ([`crate::shutdown::plan`]).
    #[must_use]
    pub fn run(mut self) -> Report {
        let run = self.driver.books.record().run.clone();
        let entry = IndexEntry::of(self.driver.books.record());
        let listed = self.index.as_ref().map(|index| index.add(&entry));
        self.driver.publish(EventKind::RunStarted {
            run: run.to_string(),
            stack: self.driver.spec.name.clone(),
            root: self.driver.spec.root.display().to_string(),
            pid: process::pid(),
        });
        if let Some(Err(error)) = listed {
            self.driver.trouble(format!("this run is not in the list of runs: {error}"));
        }
        let report = self.driver.run(&self.chosen);
        if report.is_clean()
            && let Some(index) = &self.index
        {
            // A run that is listed and gone is recognized as such; nothing depends on this.
            let _ = index.remove(&run);
        }
        report
    }
}

fn seed() -> lariat_sys::Result<u64> {
    let mut seed = [0; 8];
    process::fill_random(&mut seed)?;
    Ok(u64::from_ne_bytes(seed))
}

fn chosen(spec: &StackSpec, names: &[ServiceName]) -> Result<Vec<Place>, StartError> {
    if names.is_empty() {
        return Ok((0..spec.services.len()).collect());
    }
    let find = |name: &ServiceName| {
        let place = spec.services.iter().position(|service| service.name == *name);
        place.ok_or_else(|| StartError::UnknownService(name.clone()))
    };
    names.iter().map(find).collect()
}

/// Makes sure that whoever is to be isolated can be, before anything is started.
fn try_isolation(spec: &StackSpec, places: &[Place], options: &Options) -> Result<(), StartError> {
    let mut services = places.iter().map(|place| &spec.services[*place]);
    let Some(service) = services.find(|service| service.isolation == Isolation::Pid) else {
        return Ok(());
    };
    let failed = |refusal| StartError::Isolation { service: service.name.clone(), refusal };
    choose::probe_namespaces(&options.executable).map(drop).map_err(failed)
}

/// Takes the project's state directory and lock, where nothing of an earlier run is in the way.
fn take_project(
    root: &Path,
    index: Option<&RunIndex>,
    dirs: &UserDirs,
) -> Result<(StateDir, RunLock, Vec<String>), StartError> {
    let listed = index.and_then(|index| index.list().ok()).unwrap_or_default();
    let others = recovery::Others { listed, living: Living::of(dirs), ..recovery::Others::default() };
    match recovery::look(root, recovery::Access::Create, &others)? {
        Past::Nothing { state, lock, notes } => Ok((state, lock, notes)),
        Past::Absent => Err(StartError::System { step: "make the state directory", errno: Errno::NOENT }),
        Past::Live(live) => Err(StartError::Live(live)),
        Past::Finishing(finishing) => Err(StartError::Finishing(finishing)),
        Past::Crashed(crashed) => Err(StartError::Crashed(crashed)),
    }
}

/// Makes limits have an effect, where services have some; or says why they have none.
fn place_for_limits(spec: &StackSpec, options: &Options, run: &str) -> (Option<Seat>, Option<String>) {
    let wanted = limits_of(spec).controllers();
    if wanted.is_empty() {
        return (None, None);
    }
    let seat = match &options.cgroup {
        None if options.is_descent_chosen => Err(NoLimits::DescentAlone),
        None => Err(NoLimits::NoCgroup),
        Some(base) if !options.may_be_moved && matches!(limits::look(base, wanted), Ok(Way::MakeRoom(_))) => {
            Err(NoLimits::Others { count: 1, base: base.clone() })
        }
        Some(base) => Seat::take(base, run, wanted),
    };
    let (seat, reason, word) = match seat {
        Ok(seat) => {
            let reason = seat.lacks();
            (Some(seat), reason, "all ")
        }
        Err(reason) => (None, Some(reason), ""),
    };
    let on = seat.as_ref().map(Seat::controllers).unwrap_or_default();
    let lacking = spec.services.iter().filter(|service| service.limits != service.limits.by(on));
    let names: Vec<&str> = lacking.map(|service| service.name.as_str()).collect();
    let names = names.join(", ");
    let say = |reason: NoLimits| {
        format!("the limits of {names} are not {word}applied: {reason}; {}", reason.hint())
    };
    (seat, reason.map(say))
}

/// Returns limits of every kind that a service of the stack has, whatever their values: what has to be possible.
#[must_use]
pub fn limits_of(spec: &StackSpec) -> Limits {
    spec.services.iter().fold(Limits::default(), |all, service| Limits {
        memory: all.memory.or(service.limits.memory),
        processes: all.processes.or(service.limits.processes),
        cpu: all.cpu.or(service.limits.cpu),
    })
}

fn first_record(
    run: &RunId,
    spec: &StackSpec,
    socket: &std::path::Path,
    options: &Options,
) -> lariat_sys::Result<RunRecord> {
    let mut record = RunRecord::begin(run.clone(), &spec.name, &spec.root, socket)?;
    record.cgroup.clone_from(&options.cgroup);
    record.services = spec
        .services
        .iter()
        .map(|service| ServiceRecord {
            name: service.name.to_string(),
            state: RecordedState::Stopped,
            keeper: None,
            leader: None,
            pgrp: None,
            session: None,
            command: Vec::new(),
            dir: service.dir.clone(),
            started_unix_ms: None,
            ports: Vec::new(),
            stop: Some(StopRecord::new(service.stop.signal, service.stop.grace)),
            restarts: 0,
            output: None,
            earlier: Vec::new(),
        })
        .collect();
    Ok(record)
}

fn make_units(spec: &StackSpec, state: &StateDir, ports: Vec<Option<u16>>) -> Result<Vec<Unit>, StoreError> {
    let logs = state.logs();
    let unit = |(service, port): (&crate::service::spec::ServiceSpec, Option<u16>)| {
        let store = Store::create(&logs, service.name.as_str())?;
        Ok(Unit::new(service.name.to_string(), port, store))
    };
    spec.services.iter().zip(ports).map(unit).collect()
}

/// Claims the ports of the services at `places`, keeping what they have, and returns the ports of all services.
fn claim(spec: &StackSpec, places: &[Place], known: &[Option<u16>]) -> Result<Vec<Option<u16>>, StartError> {
    let mut ports = known.to_vec();
    let fixed = |place: Place| match spec.services[place].port {
        Some(PortSpec::Fixed(port)) => Some(port),
        _ => None,
    };
    let mut taken: BTreeSet<u16> = (0..spec.services.len()).filter_map(fixed).collect();
    taken.extend(known.iter().flatten());
    let wanted: BTreeSet<u16> =
        places.iter().copied().filter(|place| known[*place].is_none()).filter_map(fixed).collect();
    let held = ports::explain_tcp(&wanted)?;
    for place in places.iter().copied().filter(|place| known[*place].is_none()) {
        ports[place] = match spec.services[place].port {
            None => None,
            Some(PortSpec::Fixed(port)) => match held.get(&port) {
                Some(holders) => {
                    let (name, words) = (&spec.services[place].name, ports::in_words(holders));
                    return Err(StartError::PortInUse(format!(
                        "port {port} of `{name}` is in use by {words}"
                    )));
                }
                None => Some(port),
            },
            Some(PortSpec::Auto) => {
                let port = ports::pick(&taken)?;
                taken.insert(port);
                Some(port)
            }
        };
    }
    Ok(ports)
}

impl Driver {
    /// Claims the ports of services that are about to be started for the first time.
    fn claim_ports(&mut self, places: &[Place]) -> Result<(), String> {
        let known: Vec<Option<u16>> = self.units.iter().map(|unit| unit.port).collect();
        let ports = claim(&self.spec, places, &known).map_err(|error| error.to_string())?;
        for (unit, port) in self.units.iter_mut().zip(ports) {
            unit.port = port;
        }
        Ok(())
    }
}
