//! The keeper process: from `exec` or `fork` to its exit.
//!
//! Two ways in. A supervisor with threads starts the executable again ([`entry`]); `lariat run`, which has none, forks
//! ([`become_keeper`]). Both end in the same driver. A keeper exits with 0 when its containment was proven empty and
//! with 1 when something is left or the leader never started.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use lariat_sys::cgroup::Cgroup;
use lariat_sys::identity::Identity;
use lariat_sys::outside::Outside;
use lariat_sys::pidfd::PidFd;
use lariat_sys::poll::{self, PollFd, PollFlags};
use lariat_sys::signal::{Signal, SignalFd};
use lariat_sys::spawn::{self, Program, SpawnError, SpawnOptions, SpawnStep, inherit};
use lariat_sys::{Errno, files, process, sockets};

use crate::contain::lineage::KEEPER_COMM;
use crate::contain::{cgroup, choose};
use crate::driver::{Driver, Parts, catch_children};
use crate::machine::Machine;
use crate::names::Names;
use crate::record;
use crate::store::{Drain, Output, Stage};
use crate::wire::{GO_AHEAD, Notice, Plan};
use crate::{KEEPER_ARG0, PROBE_ARG0};

/// The descriptors of a keeper that was started by exec. From [`LOCK`](slot::LOCK) on each is optional, and absent when
/// its number is closed.
pub mod slot {
    use std::os::fd::RawFd;

    /// The conversation.
    pub const CONTROL: RawFd = 3;
    /// The plan, in a memory file.
    pub const PLAN: RawFd = 4;
    /// The run's lock.
    pub const LOCK: RawFd = 5;
    /// The output pipe's read end.
    pub const OUTPUT: RawFd = 6;
    /// The output pipe's write end: the leader's standard output and error.
    pub const OUTPUT_WRITE: RawFd = 7;
    /// The stage between that pipe and the store, read end.
    pub const STAGE: RawFd = 8;
    /// The stage's write end.
    pub const STAGE_WRITE: RawFd = 9;
    /// The store.
    pub const STORE: RawFd = 10;
    /// The store's index.
    pub const INDEX: RawFd = 11;
    /// The file of end records.
    pub const ENDS: RawFd = 12;
    /// The cgroup directory that the leader is to be born in.
    pub const CGROUP: RawFd = 13;
    /// The supervisor, as a pidfd.
    pub const SUPERVISOR: RawFd = 14;
    /// `/proc` as it is outside, for a keeper that is number 1 of a pid namespace.
    pub const OUTSIDE: RawFd = 15;
}

/// What a keeper holds besides its plan.
#[derive(Debug, Default)]
pub struct Holdings {
    /// The run's lock, held by being open.
    pub lock: Option<OwnedFd>,
    /// The leader's output, on its way to the store.
    pub output: Option<Output>,
    /// The store of that output.
    pub store: Option<OwnedFd>,
    /// The store's index.
    pub index: Option<OwnedFd>,
    /// Where the end record goes.
    pub ends: Option<OwnedFd>,
    /// The directory that the leader is to be born in; the keeper removes it once it is empty.
    pub cgroup: Option<Cgroup>,
    /// The supervisor has the directory open as well, and removes it when it has heard the last word: while the keeper
    /// exits. It does so only if the leader was started.
    pub leaves_cgroup: bool,
    /// The leader starts when the supervisor [says so](crate::client::Keeper::go_ahead), and not at all if it is gone before.
    /// Everything else is prepared meanwhile.
    pub waits: bool,
    /// The supervisor: by a descriptor, since a keeper in a pid namespace cannot name it, and one that has no descriptor
    /// left to open it with must not take that for its death.
    pub supervisor: Option<PidFd>,
    /// `/proc` as it is outside, for a keeper that is number 1 of a pid namespace.
    pub outside: Option<Outside>,
}

impl Holdings {
    /// Gives up the directory, in which nobody is.
    fn leave_cgroup(&mut self) {
        if let Some(group) = self.cgroup.take() {
            cgroup::remove(&group);
        }
    }

    /// Closes what was inherited for the leader's sake: it has its own copies now, and nobody may wait for us to close
    /// ours. Where the kernel cannot, such a reader waits until the keeper is done.
    fn keep_only(&self, control: &OwnedFd, signals: &SignalFd, names: &Names) {
        let mut keep = vec![control.as_fd(), signals.as_fd()];
        keep.extend(
            [&self.lock, &self.store, &self.index, &self.ends].into_iter().flatten().map(AsFd::as_fd),
        );
        keep.extend(self.cgroup.as_ref().map(AsFd::as_fd));
        keep.extend(self.supervisor.as_ref().map(AsFd::as_fd));
        keep.extend(names.outside().map(AsFd::as_fd));
        if let Some(Output { read, write, stage }) = &self.output {
            keep.extend([read.as_fd(), write.as_fd(), stage.read.as_fd(), stage.write.as_fd()]);
        }
        let _ = files::close_all_but(&keep);
    }
}

/// Becomes a keeper and never returns, if the process was started as one; otherwise returns at once. Call it first in
/// `main`, after [`process::remember_argv`] and before anything opens a descriptor or starts a thread.
pub fn entry() {
    match process::first_argument() {
        Some(name) if name == KEEPER_ARG0.as_bytes() => {}
        Some(name) if name == PROBE_ARG0.as_bytes() => choose::wait_to_be_killed(),
        _ => return,
    }
    let code = match take_over() {
        Some((plan, control, holdings)) => hold(plan, control, holdings, process::forget_startup_pages),
        // Started by hand: there is no supervisor on the other side and nothing to hold.
        None => 2,
    };
    process::exit_now(code)
}

fn take_over() -> Option<(Plan, OwnedFd, Holdings)> {
    let mut bytes = Vec::new();
    File::from(inherit(slot::PLAN)?).read_to_end(&mut bytes).ok()?;
    let plan = Plan::decode(&bytes).ok()?;
    let control = inherit(slot::CONTROL)?;
    let holdings = Holdings {
        lock: inherit(slot::LOCK),
        output: take_output(),
        store: inherit(slot::STORE),
        index: inherit(slot::INDEX),
        ends: inherit(slot::ENDS),
        // What is no cgroup is no boundary; descent holds without one.
        cgroup: inherit(slot::CGROUP).and_then(|directory| cgroup::take(directory).ok()),
        leaves_cgroup: false,
        waits: false,
        supervisor: inherit(slot::SUPERVISOR).map(PidFd::from_owned),
        outside: inherit(slot::OUTSIDE).map(Outside::from_owned),
    };
    if let Some(outside) = &holdings.outside {
        // HAZARD(numbers-inside): of our descriptors this is the one that shows what the namespace is to hide.
        outside.hide();
    }
    Some((plan, control, holdings))
}

fn take_output() -> Option<Output> {
    let stage = Stage { read: inherit(slot::STAGE)?, write: inherit(slot::STAGE_WRITE)? };
    Some(Output { read: inherit(slot::OUTPUT)?, write: inherit(slot::OUTPUT_WRITE)?, stage })
}

/// What a keeper exits with that could not spawn its leader.
pub const SPAWN_FAILED: u8 = 1;

/// Spawns the leader, holds it until its containment is empty, and returns the keeper's exit code.
///
/// The process becomes a child subreaper, blocks all signals, leaves its session for one of its own (after the spawn,
/// when the leader is to stay), renames itself and gives up its standard streams.
pub fn become_keeper(plan: Plan, control: OwnedFd, holdings: Holdings) -> u8 {
    hold(plan, control, holdings, || {})
}

fn hold(plan: Plan, control: OwnedFd, mut holdings: Holdings, before_the_wait: impl FnOnce()) -> u8 {
    let _ = files::set_nonblocking(&control, true);
    match start(&plan, &control, &mut holdings) {
        Err(SpawnError { step, errno }) => {
            holdings.leave_cgroup();
            if let Some(record) = plan.record.as_ref().filter(|_| errno == Errno::CANCELED) {
                // There was no command, and nobody else is left to say so.
                record::forget(record);
            }
            let notice = Notice::SpawnFailed { step, errno: errno.raw_os_error() };
            // A supervisor that is gone needs no answer.
            let _ = sockets::send(&control, &notice.encode());
            SPAWN_FAILED
        }
        Ok(Started { leader, names, signals }) => {
            holdings.keep_only(&control, &signals, &names);
            let Holdings { lock, output, store, index, ends, cgroup, leaves_cgroup, supervisor, .. } =
                holdings;
            let drain = match (output, store) {
                // The write end is the leader's alone from here on.
                (Some(Output { read, stage, .. }), Some(store)) => Drain::new(read, stage, store, index).ok(),
                _ => None,
            };
            settle(&plan.label);
            let (label, run, record, is_limited) = (plan.label, plan.run, plan.record, plan.is_limited);
            let parts = Parts {
                control,
                supervisor,
                signals,
                drain,
                ends,
                record,
                cgroup,
                leaves_cgroup,
                label,
                run,
                names,
                is_limited,
            };
            let machine = Machine::new(plan.stop, plan.is_daemon, leader);
            let end = Driver::new(parts, machine, leader, plan.stop.signal).run(before_the_wait);
            // The lock is let go of by our exit, after the last word.
            drop(lock);
            end.exit_code()
        }
    }
}

/// A leader that was spawned, and what is known then.
struct Started {
    leader: Identity,
    names: Names,
    signals: SignalFd,
}

fn start(plan: &Plan, control: &OwnedFd, holdings: &mut Holdings) -> Result<Started, SpawnError> {
    let prepare = |errno| SpawnError { step: SpawnStep::Prepare, errno };
    if plan.has_session {
        // The leader makes a session of its own, so nothing binds us to the caller's: out of it before the leader can
        // do anything, or SIGKILL of the caller's group finds us there.
        let _ = process::setsid();
    }
    // HAZARD(keeper-stopped): our supervisor's death must find us awake.
    process::set_parent_death(Signal::CONT).map_err(prepare)?;
    process::set_subreaper(true).map_err(prepare)?;
    let signals = catch_children().map_err(prepare)?;
    let null = files::dev_null().map_err(prepare)?;
    let program = Program {
        argv: plan.argv.clone(),
        env: plan.env.clone(),
        dir: plan.dir.clone(),
        search_path: true,
        ..Program::default()
    };
    let mut options = SpawnOptions {
        new_session: plan.has_session,
        mask: plan.mask,
        ignored: plan.ignored,
        parent_death: Some(plan.stop.signal),
        // HAZARD(keeper-in-reach): out of the caller's session, in which the leader stays.
        leaves_session: !plan.has_session,
        ..SpawnOptions::default()
    };
    if plan.has_null_stdin {
        options.fds.push((null.as_raw_fd(), 0));
    }
    if let Some(output) = &holdings.output {
        options.fds.push((output.write.as_raw_fd(), 1));
        options.fds.push((output.write.as_raw_fd(), 2));
    }
    options.cgroup = holdings.cgroup.as_ref().map(|cgroup| cgroup.as_fd().as_raw_fd());
    if holdings.waits && !may_start(control, holdings.supervisor.as_ref()) {
        return Err(prepare(Errno::CANCELED));
    }
    let spawned = match spawn::spawn(&program, &options) {
        // A directory that may be made and not be entered: the hierarchy above it belongs to somebody else.
        Err(SpawnError { step: SpawnStep::Cgroup, .. }) => {
            options.cgroup = None;
            spawn::spawn(&program, &options)
        }
        spawned => spawned,
    };
    if options.cgroup.is_none() {
        holdings.leave_cgroup();
    }
    let spawned = spawned?;
    match Names::new(holdings.outside.take(), spawned.identity, &spawned.pidfd) {
        Ok(names) => Ok(Started { leader: spawned.identity, names, signals }),
        Err(errno) => {
            // As for any spawn: who cannot be named cannot be looked after. What it has started by now ends with us: only
            // number 1 of a namespace has names to look up.
            let _ = spawned.pidfd.signal(Signal::KILL);
            Err(SpawnError { step: SpawnStep::Identity, errno })
        }
    }
}

/// Waits for the supervisor's word, and says whether it came. Blocks for as long as the supervisor lives and says nothing.
fn may_start(control: &OwnedFd, supervisor: Option<&PidFd>) -> bool {
    let mut packet = [0; GO_AHEAD.len() + 1];
    loop {
        match sockets::recv(control, &mut packet) {
            Ok(length) => return packet.get(..length) == Some(GO_AHEAD),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return false,
        }
        let mut fds = vec![PollFd::new(control, PollFlags::IN)];
        fds.extend(supervisor.map(|supervisor| PollFd::new(supervisor, PollFlags::IN)));
        // Its word may have come before its death. Somebody else may have its end of the conversation: then no end comes.
        let is_ready = poll::poll(&mut fds, None).is_ok();
        let [said, death] = [0, 1].map(|i| fds.get(i).is_some_and(|fd| !fd.revents().is_empty()));
        if is_ready && death && !said {
            return false;
        }
    }
}

/// Leaves the session, where we still are in the caller's, the name and the streams that were only there for the leader.
fn settle(label: &str) {
    // HAZARD(keeper-starved): a session of our own is a scheduling group of our own; a fork storm in the leader's cannot
    // take our share, and SIGKILL of the caller's group does not reach us. It fails where we have one already: given by the
    // supervisor, or taken before the leader executed anything.
    let _ = process::setsid();
    let name = format!("{KEEPER_COMM}{label}");
    let _ = process::set_comm(&name);
    process::overwrite_argv(&name);
    // End-of-file and SIGPIPE have to reach the right process: nobody may wait for us to close a pipe.
    if let Ok(null) = files::dev_null() {
        for slot in 0..=2 {
            let _ = files::replace_stream(&null, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A process that has ended and was not reaped.
    fn dead() -> (std::process::Child, PidFd) {
        let child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pidfd = PidFd::open_pid(i32::try_from(child.id()).unwrap()).unwrap();
        assert_eq!(pidfd.wait_exit(Some(Instant::now() + Duration::from_secs(20))), Ok(true));
        (child, pidfd)
    }

    #[test]
    fn a_leader_starts_when_it_was_said_and_not_when_nobody_can_say_it_any_more() {
        let pair = || {
            let (ours, theirs) = sockets::seqpacket_pair().unwrap();
            files::set_nonblocking(&theirs, true).unwrap();
            (ours, theirs)
        };
        let me = PidFd::open_pid(process::pid()).unwrap();
        let (mut reaped, gone) = dead();
        // Said, by one that lives and by one that has died since.
        for supervisor in [Some(&me), Some(&gone), None] {
            let (ours, theirs) = pair();
            sockets::send(&ours, GO_AHEAD).unwrap();
            assert!(may_start(&theirs, supervisor));
        }
        // Gone before: by its end of the conversation, or by its death alone, where somebody else has that end.
        let (ours, theirs) = pair();
        drop(ours);
        assert!(!may_start(&theirs, Some(&me)));
        let (_held, theirs) = pair();
        assert!(!may_start(&theirs, Some(&gone)));
        // No go-ahead.
        let (ours, theirs) = pair();
        sockets::send(&ours, &crate::wire::Order::Kill.encode()).unwrap();
        assert!(!may_start(&theirs, Some(&me)));
        reaped.wait().unwrap();
    }
}
