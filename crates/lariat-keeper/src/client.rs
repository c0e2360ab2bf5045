//! The supervisor's side: starts a keeper, gives it orders, hears its notices.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use lariat_sys::identity::Identity;
use lariat_sys::outside::Outside;
use lariat_sys::pidfd::PidFd;
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{self, Namespaces, Program, SpawnOptions, SpawnStep};
use lariat_sys::{Errno, files, process, reap, sockets};

use crate::KEEPER_ARG0;
use crate::entry::slot;
use crate::store::Output;
use crate::wire::{GO_AHEAD, Notice, Order, PACKET_MAX, Plan};

/// What a keeper is started with. Everything is duplicated into the keeper; the caller keeps its own.
#[derive(Debug)]
pub struct KeeperSpec<'a> {
    /// The executable, usually `/proc/self/exe`. Its `main` has to call [`crate::entry::entry`] first.
    pub executable: CString,
    /// What to do.
    pub plan: &'a Plan,
    /// The run's lock: while the keeper lives, the lock is taken.
    pub lock: Option<BorrowedFd<'a>>,
    /// The leader's output. Drop [`Output::write`] once this keeper has it: then only the service writes there.
    pub output: Option<&'a Output>,
    /// The store of that output: an open file description whose offset both sides share.
    pub store: Option<BorrowedFd<'a>>,
    /// The store's index, opened for appending.
    pub index: Option<BorrowedFd<'a>>,
    /// The file of end records, opened for appending.
    pub ends: Option<BorrowedFd<'a>>,
    /// The cgroup directory that the service is to be born in, made for this start alone.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The namespaces of which the keeper is number 1.
    pub namespaces: Option<Namespaces>,
}

/// A keeper at the other end of a socket.
///
/// Dropping it closes the conversation, which the keeper takes as its supervisor's death: it stops the service with
/// the plan's own grace period and exits. The zombie is the owner's to reap ([`Keeper::reap`]).
#[derive(Debug)]
pub struct Keeper {
    identity: Identity,
    control: OwnedFd,
    pidfd: PidFd,
}

/// Why a keeper could not be started or talked to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeeperError {
    /// What was tried.
    pub step: &'static str,
    /// What the kernel said.
    pub errno: Errno,
}

impl fmt::Display for KeeperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}: {}", self.step, self.errno)
    }
}

impl std::error::Error for KeeperError {}

/// What came from a keeper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Received {
    /// It said this.
    Notice(Notice),
    /// Nothing, for now.
    Nothing,
    /// It is gone: it exited after its last word, or was killed before.
    Closed,
}

impl Keeper {
    /// Starts a keeper. Does not wait for the leader: [`Notice::Started`] or [`Notice::SpawnFailed`] follows.
    ///
    /// # Errors
    /// [`KeeperError`] when a descriptor or the process could not be had.
    pub fn spawn(spec: &KeeperSpec<'_>) -> Result<Self, KeeperError> {
        let failed = |step| move |errno| KeeperError { step, errno };
        let (ours, theirs) = sockets::seqpacket_pair().map_err(failed("make a socket pair"))?;
        files::set_nonblocking(&ours, true).map_err(failed("prepare the socket"))?;
        let plan = write_plan(spec.plan).map_err(failed("write the plan"))?;
        let null = files::dev_null().map_err(failed("open /dev/null"))?;
        let supervisor = PidFd::open_pid(process::pid()).map_err(failed("open ourselves"))?;
        let outside = spec.namespaces.as_ref().map(|_| Outside::open());
        let outside = outside.transpose().map_err(failed("open /proc"))?;
        let program = Program {
            file: Some(spec.executable.clone()),
            argv: vec![CString::new(KEEPER_ARG0).unwrap_or_default()],
            ..Program::default()
        };
        let mut options = SpawnOptions {
            new_session: true,
            close_others: true,
            namespaces: spec.namespaces.clone(),
            ..SpawnOptions::default()
        };
        let mut place = |fd: BorrowedFd<'_>, slot| options.fds.push((fd.as_raw_fd(), slot));
        for stream in 0..=2 {
            place(null.as_fd(), stream);
        }
        place(theirs.as_fd(), slot::CONTROL);
        place(plan.as_fd(), slot::PLAN);
        if let Some(output) = spec.output {
            place(output.read.as_fd(), slot::OUTPUT);
            place(output.write.as_fd(), slot::OUTPUT_WRITE);
            place(output.stage.read.as_fd(), slot::STAGE);
            place(output.stage.write.as_fd(), slot::STAGE_WRITE);
        }
        let optional = [
            (spec.lock, slot::LOCK),
            (spec.store, slot::STORE),
            (spec.index, slot::INDEX),
            (spec.ends, slot::ENDS),
            (spec.cgroup, slot::CGROUP),
            (Some(supervisor.as_fd()), slot::SUPERVISOR),
            (outside.as_ref().map(AsFd::as_fd), slot::OUTSIDE),
        ];
        for (fd, slot) in optional {
            if let Some(fd) = fd {
                place(fd, slot);
            }
        }
        let child = spawn::spawn(&program, &options)
            .map_err(|e| KeeperError { step: step_in_words(e.step), errno: e.errno })?;
        Ok(Self { identity: child.identity, control: ours, pidfd: child.pidfd })
    }

    /// Makes a client of the two ends that a fork left: the socket and the keeper's pidfd.
    #[must_use]
    pub fn from_fork(identity: Identity, control: OwnedFd, pidfd: PidFd) -> Self {
        Self { identity, control, pidfd }
    }

    /// Returns who the keeper is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns a descriptor that becomes readable at the keeper's death.
    #[must_use]
    pub fn pidfd(&self) -> &PidFd {
        &self.pidfd
    }

    /// Lets a keeper that [waits](crate::entry::Holdings::waits) start its leader. Never blocks. Dropping this client instead
    /// lets it exit.
    ///
    /// # Errors
    /// `EPIPE` or `ECONNRESET` when it is gone, which [`Self::receive`] says as well.
    pub fn go_ahead(&self) -> Result<(), KeeperError> {
        sockets::send(&self.control, GO_AHEAD)
            .map_err(|errno| KeeperError { step: "start the command", errno })
    }

    /// Gives an order, and wakes the keeper for it should somebody have stopped it. Never blocks.
    ///
    /// # Errors
    /// `EAGAIN` when the keeper has not read for a long time; `EPIPE` or `ECONNRESET` when it is gone, which
    /// [`Self::receive`] says as well.
    pub fn order(&self, order: &Order) -> Result<(), KeeperError> {
        let sent = sockets::send(&self.control, &order.encode());
        // HAZARD(keeper-stopped): to one that is awake this means nothing. One that is gone has no use for it.
        let _ = self.pidfd.signal(Signal::CONT);
        sent.map_err(|errno| KeeperError { step: "order", errno })
    }

    /// Takes the next notice. Never blocks; poll the keeper's [`AsFd`] for readability.
    pub fn receive(&self) -> Received {
        let mut packet = [0; PACKET_MAX];
        loop {
            return match sockets::recv(&self.control, &mut packet) {
                Ok(0) => Received::Closed,
                Ok(n) => match Notice::decode(&packet[..n]) {
                    Ok(notice) => Received::Notice(notice),
                    Err(_) => continue,
                },
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Received::Nothing,
                Err(_) => Received::Closed,
            };
        }
    }

    /// Reaps the keeper if it is dead, and returns whether it was; also when it was reaped before. Never blocks.
    pub fn reap(&self) -> bool {
        !matches!(reap::reap(self.identity.pid), Ok(None))
    }
}

/// Completes "could not …".
fn step_in_words(step: SpawnStep) -> &'static str {
    match step {
        SpawnStep::Namespaces => "make a pid namespace for it",
        SpawnStep::MapUser => "map the user in a user namespace for it",
        SpawnStep::MountProc => "mount /proc in a pid namespace for it",
        _ => "start the keeper",
    }
}

fn write_plan(plan: &Plan) -> lariat_sys::Result<OwnedFd> {
    let mut file = File::from(files::memfd(c"lariat-plan")?);
    let written = file.write_all(&plan.encode()).and_then(|()| file.rewind());
    written.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    Ok(file.into())
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}
