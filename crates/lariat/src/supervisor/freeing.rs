//! Frees ports: who of those that hold one may be ended for it, and their end.
//!
//! Ours is a process that carries a run's mark under our user, and only if nothing of lariat's own is alive of that run:
//! a supervisor would only start its service again. Then the whole service is ended, the holder with its kin, by the stop
//! signal and grace period of the run's ledger where there is one. Everybody else is named and never signalled.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_keeper::ending::Ending;
use lariat_keeper::stop::StopPlan;
use lariat_keeper::wire::End;
use lariat_sys::identity::{BootId, Identity};
use lariat_sys::{poll, procfs};

use crate::ledger::command::{self, CommandRecord};
use crate::ledger::index::{IndexEntry, RunIndex, UserDirs};
use crate::ledger::lock::{self, LockWait, RunLock};
use crate::ledger::record::{RunId, RunRecord};
use crate::ledger::recover::{Clues, Found};
use crate::ledger::store::{self, Loaded};
use crate::ledger::{LedgerError, StateDir, answers};
use crate::ports::{self, Holder, HolderProcess, PortError};
use crate::shutdown::endings::{Ended, Pace, end_all};
use crate::shutdown::found::FoundSet;

/// How long a lock that somebody only looks at is waited for.
const LOCK_WITHIN: Duration = Duration::from_millis(250);
/// The pause between two looks at a port.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Processes above one that are looked at, for a keeper.
const ABOVE_MAX: usize = 64;
/// What the kernel's name of a keeper begins with.
const KEEPER: &[u8] = b"keeper:";

/// Whether lariat is at work for a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Life {
    /// Nothing of lariat's own is alive of it.
    Over {
        /// The project's root, if the list of runs has it.
        root: Option<PathBuf>,
    },
    /// Its supervisor lives, or one that just begins in the same project.
    Stack {
        /// The project's root.
        root: PathBuf,
    },
    /// Its supervisor is dead, and its keepers are ending it.
    Finishing {
        /// The project's root.
        root: PathBuf,
    },
    /// Its ledger cannot be read, for the project's file system does not answer, and its supervisor is not known to be alive.
    Unanswered {
        /// The project's root.
        root: PathBuf,
    },
    /// It is one command under `lariat run`.
    Command {
        /// The process that decides; while that one is dead, the keeper.
        guard: Identity,
    },
    /// It is on no list of ours, and its mark names the process that decides.
    Supervised {
        /// That process.
        supervisor: Identity,
    },
    /// Nothing is known of it, but that a keeper is above the process.
    Kept {
        /// The keeper.
        keeper: Identity,
    },
}

impl Life {
    /// Returns the project's root, if it is known.
    #[must_use]
    pub fn root(&self) -> Option<&Path> {
        match self {
            Self::Over { root } => root.as_deref(),
            Self::Stack { root } | Self::Finishing { root } | Self::Unanswered { root } => Some(root),
            Self::Command { .. } | Self::Supervised { .. } | Self::Kept { .. } => None,
        }
    }

    /// Says whether nothing of lariat's own is alive of it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Over { .. })
    }
}

/// Finds out whether lariat is at work for a run, of which `process` is one, whose mark names this supervisor. Takes nothing,
/// not even the lock. Blocks for some seconds at most where the project's file system does not answer ([`answers::deaf`]).
#[must_use]
pub fn life_of(run: &RunId, dirs: &UserDirs, process: Identity, named: Option<Identity>) -> Life {
    let entry = entry_of(run, dirs);
    let boot = BootId::read().ok().map(|boot| boot.to_string());
    if let Some(entry) = &entry
        && let Some(life) = life_in(run, entry, boot.as_deref())
    {
        return life;
    }
    let root = entry.map(|entry| entry.root);
    // A directory that cannot be read says nothing of anybody.
    let files = dirs.at_runtime_all().into_iter().flat_map(|place| command::list(&place).unwrap_or_default());
    let records: Vec<CommandRecord> = files
        .filter_map(|file| match file.loaded {
            command::Loaded::Record(record) => Some(*record),
            _ => None,
        })
        .collect();
    let records =
        records.iter().filter(|record| record.marker == *run && Some(&record.boot) == boot.as_ref());
    if let Some(guard) = records.flat_map(CommandRecord::guards).find(Identity::is_alive) {
        return Life::Command { guard };
    }
    // Anybody may name one. Who has lost his keeper is below his supervisor, and init, which everybody is below, is none.
    let is_named = |stat: &procfs::Stat| stat.pid > 1 && named == Some(stat.identity());
    let is_keeper = |stat: &procfs::Stat| stat.comm.as_bytes().starts_with(KEEPER);
    if let Some(supervisor) = from_here_up(process.pid).find(is_named) {
        return Life::Supervised { supervisor: supervisor.identity() };
    }
    match from_here_up(process.pid).find(is_keeper) {
        Some(keeper) => Life::Kept { keeper: keeper.identity() },
        None => Life::Over { root },
    }
}

/// Returns the entry of a run that is on the list. A list that cannot be read is an empty one.
fn entry_of(run: &RunId, dirs: &UserDirs) -> Option<IndexEntry> {
    let list = RunIndex::at(&dirs.runs()?).list().ok()?;
    list.into_iter().find(|entry| entry.run == *run)
}

/// What the project's lock and ledger say; `None` where they are not there or cannot be used.
fn life_in(run: &RunId, entry: &IndexEntry, boot: Option<&str>) -> Option<Life> {
    let root = entry.root.clone();
    if !answers::deaf(&BTreeSet::from([root.clone()])).is_empty() {
        return Some(match entry.has_live_supervisor(boot) {
            true => Life::Stack { root },
            false => Life::Unanswered { root },
        });
    }
    let state = StateDir::open(&root).ok()??;
    if !lock::is_held(&state).ok()? {
        return Some(Life::Over { root: Some(root) });
    }
    Some(match store::load(&state).ok()? {
        Loaded::Record(record) if record.run != *run => Life::Over { root: Some(root) },
        Loaded::Record(record) if Identity::from(record.supervisor).is_alive() => Life::Stack { root },
        Loaded::Record(_) => Life::Finishing { root },
        // Whoever holds the lock has not written its ledger yet, or one that we cannot read.
        Loaded::Absent | Loaded::Damaged { .. } | Loaded::Newer { .. } => Life::Stack { root },
    })
}

/// Returns a process and all above it. Bounded: parents that are read one after the other may lead in circles.
fn from_here_up(pid: i32) -> impl Iterator<Item = procfs::Stat> {
    let read = |pid: i32| procfs::read_stat(pid).ok().flatten();
    std::iter::successors(read(pid), move |stat| read(stat.ppid)).take(ABOVE_MAX)
}

/// Who we are, to those who hold ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standpoint {
    /// The user that we are.
    pub user: u32,
    /// Ourselves and everybody above.
    pub above: BTreeSet<i32>,
}

impl Standpoint {
    /// Looks without regard to who is above: enough where nothing is ended.
    #[must_use]
    pub fn of_user() -> Self {
        Self { user: lariat_sys::process::effective_user(), above: BTreeSet::new() }
    }

    /// Looks from the calling process.
    #[must_use]
    pub fn own() -> Self {
        let above = from_here_up(lariat_sys::process::pid()).map(|stat| stat.pid).collect();
        Self { above, ..Self::of_user() }
    }
}

/// What a process that holds a port is to us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It carries the mark of this run under our user.
    Marked {
        /// The run.
        run: RunId,
        /// The service.
        service: Option<String>,
    },
    /// It is init: systemd that holds the socket of a unit, or the first process of a container.
    Init,
    /// It is the calling process, or one that started it.
    Above,
    /// It runs as another user, or as one that cannot be told.
    OtherUser(Option<u32>),
    /// It carries no mark.
    Stranger,
}

/// Judges a process by what is known of it. Pure.
#[must_use]
pub fn standing(process: &HolderProcess, from: &Standpoint) -> Standing {
    let run = process.run(from.user).and_then(|run| RunId::try_from(run.to_owned()).ok());
    let service = process.mark.as_ref().and_then(|mark| mark.service.clone());
    match run {
        _ if process.identity.pid == 1 => Standing::Init,
        _ if from.above.contains(&process.identity.pid) => Standing::Above,
        _ if process.uid != Some(from.user) => Standing::OtherUser(process.uid),
        Some(run) => Standing::Marked { run, service },
        None => Standing::Stranger,
    }
}

/// What is to be ended of a run that is over: the services that hold a port, or all where a holder names none.
#[derive(Debug)]
pub struct Leftover {
    run: RunId,
    /// `None`: all of the run.
    services: Option<BTreeSet<String>>,
    clues: Clues,
    record: Option<Box<RunRecord>>,
    /// Held until the end, so that nothing of the run is started or ended beside us.
    _lock: Option<RunLock>,
}

impl Leftover {
    /// Prepares the end of these services of a run that is over. `None`: somebody took the project's lock meanwhile.
    ///
    /// # Errors
    /// When the project's state directory or ledger cannot be used.
    pub fn open(
        run: &RunId,
        services: BTreeSet<Option<String>>,
        root: Option<&Path>,
    ) -> Result<Option<Self>, LedgerError> {
        let state = root.map(StateDir::open).transpose()?.flatten();
        let (mut record, mut held) = (None, None);
        if let Some(state) = state {
            match lock::wait_until(&state, Instant::now() + LOCK_WITHIN, None)? {
                LockWait::Acquired(lock) => held = Some(lock),
                // A later run of the same project has it, and has nothing to do with this one.
                LockWait::TimedOut | LockWait::Cancelled => match store::load(&state)? {
                    Loaded::Record(record) if record.run != *run => {}
                    _ => return Ok(None),
                },
            }
            if let Loaded::Record(found) = store::load(&state)? {
                record = Some(found).filter(|found| found.run == *run);
            }
        }
        let clues = record.as_ref().map_or_else(|| Clues::mark_only(run.clone()), |record| Clues::of(record));
        let services = services.into_iter().collect::<Option<BTreeSet<String>>>();
        Ok(Some(Self { run: run.clone(), services, clues, record, _lock: held }))
    }

    /// Returns the run.
    #[must_use]
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// Returns the services that are meant; `None` for all of the run.
    #[must_use]
    pub fn services(&self) -> Option<&BTreeSet<String>> {
        self.services.as_ref()
    }

    /// Returns who would be ended now.
    #[must_use]
    pub fn look(&self) -> Vec<Found> {
        self.sets().into_iter().flat_map(|(_, set)| set.look().certain).collect()
    }

    /// Ends them: each service by its own stop signal and grace period as the ledger has them; by TERM and `grace` where it
    /// does not say. Blocks as [`end_all`] does.
    pub fn end(&self, grace: Duration, pace: impl FnMut() -> Pace) -> End {
        let ending =
            |(service, set): (Option<String>, FoundSet)| Ending::new(set, self.plan(service, grace), None);
        Ended::sum(end_all(self.sets().into_iter().map(ending).collect(), pace)).end
    }

    /// Returns the longest grace period that somebody of them has; `grace` where the ledger does not say.
    #[must_use]
    pub fn longest_grace(&self, grace: Duration) -> Duration {
        let services = self.sets().into_iter().map(|(service, _)| service);
        services.map(|service| self.plan(service, grace).grace).max().unwrap_or(grace)
    }

    fn sets(&self) -> Vec<(Option<String>, FoundSet)> {
        let all = FoundSet::new(self.clues.clone());
        match &self.services {
            Some(services) => {
                services.iter().map(|name| (Some(name.clone()), all.clone().of_service(name))).collect()
            }
            None => vec![(None, all)],
        }
    }

    fn plan(&self, service: Option<String>, grace: Duration) -> StopPlan {
        let mut services = self.record.iter().flat_map(|record| &record.services);
        let recorded = services.find(|found| Some(&found.name) == service.as_ref());
        let plan = recorded.and_then(|found| found.stop.as_ref()).map(|stop| stop.plan());
        plan.unwrap_or(StopPlan { grace, ..StopPlan::default() })
    }
}

/// Waits until nobody but the `spared` listens on these ports. Returns who still does then, or when the deadline has passed.
///
/// # Errors
/// As [`ports::explain`].
pub fn wait_until_free(
    ports: &BTreeSet<u16>,
    spared: &BTreeSet<Identity>,
    deadline: Instant,
) -> Result<Vec<Holder>, PortError> {
    // HAZARD(socket-heirs): the death of those who were known proves nothing; the kernel's list of listeners does.
    loop {
        let holders = ports::explain(ports)?;
        let mut processes = holders.iter().flat_map(|holder| &holder.processes);
        let now = Instant::now();
        if now >= deadline || processes.all(|process| spared.contains(&process.identity)) {
            return Ok(holders);
        }
        // It fails only for want of memory; then the loop turns without a pause until the deadline.
        let _ = poll::poll(&mut [], Some(deadline.min(now + LOOK_EVERY)));
    }
}

/// Returns the runs whose marks are believed, each with one of its processes and the services that hold something.
#[must_use]
pub fn runs_of<'a>(
    holders: &'a [Holder],
    from: &Standpoint,
) -> BTreeMap<RunId, (&'a HolderProcess, BTreeSet<Option<String>>)> {
    let mut runs: BTreeMap<RunId, (&HolderProcess, BTreeSet<Option<String>>)> = BTreeMap::new();
    for process in holders.iter().flat_map(|holder| &holder.processes) {
        if let Standing::Marked { run, service } = standing(process, from) {
            let entry = runs.entry(run).or_insert_with(|| (process, BTreeSet::new()));
            entry.1.insert(service);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Mark;

    const OURS: u32 = 1000;
    const RUN: &str = "0123456789abcdef";

    fn process(pid: i32, uid: Option<u32>, run: Option<&str>) -> HolderProcess {
        let mark =
            run.map(|run| Mark { run: run.to_owned(), service: Some("web".into()), ..Mark::default() });
        let identity = Identity::new(pid, 7);
        HolderProcess { identity, uid, command: "x".into(), age: Duration::ZERO, mark }
    }

    fn standpoint() -> Standpoint {
        Standpoint { user: OURS, above: BTreeSet::from([50, 60]) }
    }

    #[test]
    fn only_a_marked_process_of_our_user_that_is_not_above_us_is_ours() {
        for pid in [1, 50, 60, 70] {
            for uid in [Some(OURS), Some(0), None] {
                for run in [Some(RUN), Some("no run id"), None] {
                    let found = standing(&process(pid, uid, run), &standpoint());
                    let is_ours = pid == 70 && uid == Some(OURS) && run == Some(RUN);
                    assert_eq!(
                        matches!(found, Standing::Marked { .. }),
                        is_ours,
                        "{pid} {uid:?} {run:?}: {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn everybody_else_is_told_apart() {
        let table = [
            (process(1, Some(OURS), Some(RUN)), Standing::Init),
            (process(60, Some(OURS), Some(RUN)), Standing::Above),
            (process(70, Some(0), Some(RUN)), Standing::OtherUser(Some(0))),
            (process(70, None, None), Standing::OtherUser(None)),
            (process(70, Some(OURS), None), Standing::Stranger),
            (process(70, Some(OURS), Some("0123456789ABCDEF")), Standing::Stranger),
        ];
        for (process, expected) in table {
            assert_eq!(standing(&process, &standpoint()), expected);
        }
        assert!(Standpoint::own().above.contains(&lariat_sys::process::pid()));
        assert!(Standpoint::own().above.contains(&lariat_sys::process::parent_pid()));
    }

    #[test]
    fn runs_are_gathered_with_their_services() {
        let holder = |processes| Holder {
            proto: ports::Proto::Tcp,
            addr: "127.0.0.1:80".parse().unwrap(),
            uid: OURS,
            processes,
        };
        let mut other = process(71, Some(OURS), Some(RUN));
        other.mark = Some(Mark { run: RUN.into(), ..Mark::default() });
        let holders = [
            holder(vec![process(70, Some(OURS), Some(RUN)), other]),
            holder(vec![process(72, Some(1), Some(RUN))]),
        ];
        let runs = runs_of(&holders, &standpoint());
        let (first, services) = &runs[&RunId::try_from(RUN.to_owned()).unwrap()];
        assert_eq!(first.identity.pid, 70);
        assert_eq!(services, &BTreeSet::from([None, Some("web".to_owned())]));
        assert_eq!(runs.len(), 1);
    }

    #[test]
    fn a_run_lives_as_long_as_its_lock_is_held_or_its_command_has_a_guard() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(place.path().join(name));
        let dirs = UserDirs { runtime: path("runtime"), state: path("state"), home: None };
        std::fs::create_dir(place.path().join("runtime")).unwrap();
        let (run, me) = (RunId::new_random().unwrap(), Identity::current());
        let life = || life_of(&run, &dirs, me, None);
        assert_eq!(life(), Life::Over { root: None });

        let root = place.path().join("project");
        std::fs::create_dir(&root).unwrap();
        let index = RunIndex::at(&dirs.runs().unwrap());
        let entry = crate::ledger::index::IndexEntry {
            run: run.clone(),
            root: root.clone(),
            stack: None,
            boot: None,
            supervisor: None,
            started_unix_ms: None,
            socket: None,
        };
        index.add(&entry).unwrap();
        assert_eq!(life(), Life::Over { root: Some(root.clone()) });
        let state = StateDir::create(&root).unwrap();
        let lock = lock::try_acquire(&state).unwrap().unwrap();
        assert_eq!(life(), Life::Stack { root: root.clone() }, "a ledger that is not there yet");
        let record = RunRecord::begin(run.clone(), "s", &root, Path::new("/x")).unwrap();
        store::save(&state, &lock, &record).unwrap();
        assert_eq!(life(), Life::Stack { root: root.clone() });
        let dead = RunRecord { supervisor: Identity::new(me.pid, me.start + 1).into(), ..record.clone() };
        store::save(&state, &lock, &dead).unwrap();
        assert_eq!(life(), Life::Finishing { root: root.clone() });
        let later = RunRecord { run: RunId::new_random().unwrap(), ..record };
        store::save(&state, &lock, &later).unwrap();
        assert_eq!(life(), Life::Over { root: Some(root.clone()) }, "the project's live run is another one");
        let services = BTreeSet::from([Some("web".to_owned())]);
        assert!(Leftover::open(&run, services.clone(), Some(&root)).unwrap().is_some());
        assert!(Leftover::open(&later.run, services, Some(&root)).unwrap().is_none(), "that one is alive");
        drop(lock);

        let guarded = RunId::new_random().unwrap();
        let ledger = command::CommandLedger::choose(&dirs, Some(guarded.clone())).unwrap();
        let place = command::Place { command: vec!["x".into()], ..command::Place::default() };
        ledger.write(me, lariat_keeper::stop::StopPlan::default(), place).unwrap();
        assert_eq!(life_of(&guarded, &dirs, me, None), Life::Command { guard: me });
        ledger.remove();
        assert_eq!(life_of(&guarded, &dirs, me, None), Life::Over { root: None });

        // By its mark: who is above it, but not just anybody who is alive, and not init.
        let parent = Identity::of(lariat_sys::process::parent_pid()).unwrap().unwrap();
        let named = |one| life_of(&guarded, &dirs, me, Some(one));
        assert_eq!(named(parent), Life::Supervised { supervisor: parent });
        let mut other = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let beside = Identity::of(i32::try_from(other.id()).unwrap()).unwrap().unwrap();
        let init = Identity::of(1).unwrap().unwrap();
        let lives = [named(beside), named(init)];
        other.kill().and_then(|()| other.wait()).unwrap();
        assert_eq!(lives, [Life::Over { root: None }, Life::Over { root: None }]);
    }
}
