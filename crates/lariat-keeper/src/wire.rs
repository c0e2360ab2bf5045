//! What supervisor and keeper say to each other, and how it looks in bytes.
//!
//! One message is one packet of a `SOCK_SEQPACKET` pair: a tag, then fields in a fixed order, integers little-endian,
//! texts as a `u32` length and bytes. Both ends are one executable, so there is no version negotiation; a keeper that
//! outlived an upgrade of the file still runs the image it was started from.
//!
//! The plan travels in a memory file, since an environment may be larger than a packet. Nothing here does I/O.
//! Reading is total: any bytes give a message or [`WireError`], never a panic and never an allocation larger than
//! the input.

use std::ffi::CString;
use std::time::Duration;

use lariat_sys::identity::Identity;
use lariat_sys::procfs::Comm;
use lariat_sys::reap::{Exit, Usage};
use lariat_sys::signal::{Signal, SignalSet};
use lariat_sys::spawn::SpawnStep;

use crate::contain::limits::OutOfMemory;
use crate::stop::{StopPlan, StopScope};

/// The largest packet either side sends, in bytes.
pub const PACKET_MAX: usize = 512;

/// What a keeper is told when it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Shown in `ps` as `keeper:LABEL`, and named in end records.
    pub label: String,
    /// The run this belongs to, for end records; empty when there is none.
    pub run: String,
    /// A file that is removed once the containment is empty, if the supervisor is not there to do it.
    pub record: Option<CString>,
    /// The leader's argument vector; never empty.
    pub argv: Vec<CString>,
    /// The leader's whole environment, `NAME=value` each.
    pub env: Vec<CString>,
    /// The leader's working directory; the keeper's own if absent.
    pub dir: Option<CString>,
    /// The leader leads a session of its own. Otherwise it stays in the session and group of the keeper's parent.
    pub has_session: bool,
    /// The leader may exit with code 0 and leave a daemon.
    pub is_daemon: bool,
    /// The leader gets `/dev/null` as its standard input.
    pub has_null_stdin: bool,
    /// The leader's directory has limits: whether they strike is looked at.
    pub is_limited: bool,
    /// How to stop.
    pub stop: StopPlan,
    /// The signal mask that the leader starts with.
    pub mask: SignalSet,
    /// The signals that the leader ignores at its start; all others have their default action.
    pub ignored: SignalSet,
}

/// What a keeper that [waits](crate::entry::Holdings::waits) is told when its leader may start. No order begins so.
pub const GO_AHEAD: &[u8] = b"!";

/// What a supervisor tells a keeper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Stop, with this grace period from now on. A second one can only shorten what is left.
    Stop {
        /// Time from now to the first kill pass.
        grace: Duration,
    },
    /// Kill now.
    Kill,
    /// Send this signal to the leader.
    Signal(Signal),
}

/// What a keeper tells its supervisor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The leader was spawned.
    Started {
        /// Who it is.
        leader: Identity,
    },
    /// The leader could not be spawned; the keeper exits.
    SpawnFailed {
        /// Where it failed.
        step: SpawnStep,
        /// The kernel's error number.
        errno: i32,
    },
    /// The leader was stopped by a signal (Ctrl-Z).
    LeaderStopped {
        /// Which.
        signal: Signal,
    },
    /// The leader goes on.
    LeaderContinued,
    /// The leader exited; the containment may have members still.
    LeaderExited {
        /// How.
        exit: Exit,
    },
    /// The leader left a daemon by design; the service goes on without it.
    Daemonized {
        /// Members alive now.
        members: u32,
    },
    /// A stop begins that the supervisor did not ask for: the leader left stragglers.
    Stragglers {
        /// How many are alive.
        alive: u32,
    },
    /// One of them, by name; at most [`crate::machine::NAMED_MAX`] are named.
    Straggler {
        /// Who, and why not (0).
        named: Named,
    },
    /// A member that could not be ended.
    Left {
        /// Who, and the error that a signal to it gave last, or 0.
        named: Named,
    },
    /// A member could not fork for its limit of processes; said once.
    ForksRefused,
    /// The leader could not be born in its directory, and has no limits.
    Unlimited,
    /// The keeper's last word: the containment is empty, or `left` says how many could not be ended.
    Ended(End),
}

/// A process by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named {
    /// Who.
    pub identity: Identity,
    /// The kernel's name for it.
    pub comm: Comm,
    /// An error number, or 0.
    pub errno: i32,
}

/// How a containment ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct End {
    /// How the leader exited; absent when it never started or could not be ended.
    pub exit: Option<Exit>,
    /// What the leader and the children that it waited for used.
    pub usage: Usage,
    /// Members that got the stop signal.
    pub told: u32,
    /// Members that got KILL.
    pub killed: u32,
    /// Members that outlived the leader.
    pub stragglers: u32,
    /// Members that could not be ended.
    pub left: u32,
    /// From the begin of the stop to the proof of emptiness; zero if nothing had to be stopped.
    pub stop_time: Duration,
    /// Bytes of output that the keeper could not store.
    pub dropped_bytes: u64,
    /// Members were killed by the kernel for want of memory.
    pub out_of_memory: Option<OutOfMemory>,
}

impl End {
    /// Returns what the keeper exits with after it has said this.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        u8::from(self.left > 0)
    }
}

/// Bytes that are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WireError;

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a message between supervisor and keeper")
    }
}

impl std::error::Error for WireError {}

type Read<T> = Result<T, WireError>;

/// Builds a message.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }
    fn bool(&mut self, v: bool) -> &mut Self {
        self.u8(u8::from(v))
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    fn i32(&mut self, v: i32) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.u32(u32::try_from(v.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(v);
        self
    }
    fn duration(&mut self, v: Duration) -> &mut Self {
        self.u64(u64::try_from(v.as_nanos()).unwrap_or(u64::MAX))
    }
    fn identity(&mut self, v: Identity) -> &mut Self {
        self.i32(v.pid).u64(v.start).u64(v.inode().unwrap_or(0))
    }
    fn named(&mut self, v: &Named) -> &mut Self {
        self.identity(v.identity).bytes(v.comm.as_bytes()).i32(v.errno)
    }
    fn exit(&mut self, v: Option<Exit>) -> &mut Self {
        match v {
            None => self.u8(0),
            Some(Exit::Code(code)) => self.u8(1).u8(code),
            Some(Exit::Signal { signal, core }) => self.u8(2).i32(signal.number()).bool(core),
        }
    }
    fn texts(&mut self, v: &[CString]) -> &mut Self {
        self.u32(u32::try_from(v.len()).unwrap_or(u32::MAX));
        for text in v {
            self.bytes(text.as_bytes());
        }
        self
    }
}

/// Takes a message apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(WireError)?;
        self.0 = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| WireError)
    }
    fn u8(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }
    fn bool(&mut self) -> Read<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError),
        }
    }
    fn u32(&mut self) -> Read<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn i32(&mut self) -> Read<i32> {
        Ok(i32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Read<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn bytes(&mut self) -> Read<&'a [u8]> {
        let n = self.u32()?;
        self.take(usize::try_from(n).map_err(|_| WireError)?)
    }
    fn text(&mut self) -> Read<CString> {
        CString::new(self.bytes()?).map_err(|_| WireError)
    }
    fn optional_text(&mut self) -> Read<Option<CString>> {
        let is_there = self.bool()?;
        let text = self.text()?;
        Ok(is_there.then_some(text))
    }
    fn string(&mut self) -> Read<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| WireError)
    }
    fn texts(&mut self) -> Read<Vec<CString>> {
        let n = self.u32()?;
        // Not `with_capacity(n)`: the number comes from outside and may promise more than follows.
        let mut texts = Vec::new();
        for _ in 0..n {
            texts.push(self.text()?);
        }
        Ok(texts)
    }
    fn duration(&mut self) -> Read<Duration> {
        Ok(Duration::from_nanos(self.u64()?))
    }
    fn signal(&mut self) -> Read<Signal> {
        Signal::from_number(self.i32()?).ok_or(WireError)
    }
    fn identity(&mut self) -> Read<Identity> {
        Ok(Identity::new(self.i32()?, self.u64()?).with_inode(Some(self.u64()?)))
    }
    fn named(&mut self) -> Read<Named> {
        Ok(Named { identity: self.identity()?, comm: Comm::new(self.bytes()?), errno: self.i32()? })
    }
    fn exit(&mut self) -> Read<Option<Exit>> {
        match self.u8()? {
            0 => Ok(None),
            1 => Ok(Some(Exit::Code(self.u8()?))),
            2 => Ok(Some(Exit::Signal { signal: self.signal()?, core: self.bool()? })),
            _ => Err(WireError),
        }
    }
    fn end<T>(self, value: T) -> Read<T> {
        if self.0.is_empty() { Ok(value) } else { Err(WireError) }
    }
}

impl Plan {
    /// Returns the plan as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.bytes(self.label.as_bytes()).bytes(self.run.as_bytes());
        w.bool(self.record.is_some()).bytes(self.record.as_deref().unwrap_or_default().to_bytes());
        w.texts(&self.argv).texts(&self.env);
        w.bool(self.dir.is_some()).bytes(self.dir.as_deref().unwrap_or_default().to_bytes());
        w.bool(self.has_session).bool(self.is_daemon).bool(self.has_null_stdin).bool(self.is_limited);
        w.i32(self.stop.signal.number()).u8(scope_tag(self.stop.scope)).duration(self.stop.grace);
        w.u64(self.mask.bits()).u64(self.ignored.bits());
        w.0
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not exactly one plan with at least one argument.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader(bytes);
        let plan = Self {
            label: r.string()?,
            run: r.string()?,
            record: r.optional_text()?,
            argv: r.texts()?,
            env: r.texts()?,
            dir: r.optional_text()?,
            has_session: r.bool()?,
            is_daemon: r.bool()?,
            has_null_stdin: r.bool()?,
            is_limited: r.bool()?,
            stop: StopPlan { signal: r.signal()?, scope: scope_from(r.u8()?)?, grace: r.duration()? },
            mask: SignalSet::from_bits(r.u64()?),
            ignored: SignalSet::from_bits(r.u64()?),
        };
        if plan.argv.is_empty() { Err(WireError) } else { r.end(plan) }
    }
}

fn scope_tag(scope: StopScope) -> u8 {
    match scope {
        StopScope::Staged => 0,
        StopScope::Leader => 1,
        StopScope::Group => 2,
        StopScope::All => 3,
    }
}

fn scope_from(tag: u8) -> Read<StopScope> {
    [StopScope::Staged, StopScope::Leader, StopScope::Group, StopScope::All]
        .into_iter()
        .find(|scope| scope_tag(*scope) == tag)
        .ok_or(WireError)
}

fn memory_tag(found: Option<OutOfMemory>) -> u8 {
    match found {
        None => 0,
        Some(OutOfMemory::OwnLimit) => 1,
        Some(OutOfMemory::Around) => 2,
    }
}

fn memory_from(tag: u8) -> Read<Option<OutOfMemory>> {
    [None, Some(OutOfMemory::OwnLimit), Some(OutOfMemory::Around)]
        .into_iter()
        .find(|found| memory_tag(*found) == tag)
        .ok_or(WireError)
}

impl Order {
    /// Returns the order as one packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        match self {
            Self::Stop { grace } => w.u8(0).duration(*grace),
            Self::Kill => w.u8(1),
            Self::Signal(signal) => w.u8(2).i32(signal.number()),
        };
        w.0
    }

    /// Reads one packet.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not exactly one order.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader(bytes);
        let order = match r.u8()? {
            0 => Self::Stop { grace: r.duration()? },
            1 => Self::Kill,
            2 => Self::Signal(r.signal()?),
            _ => return Err(WireError),
        };
        r.end(order)
    }
}

impl Notice {
    /// Returns the notice as one packet of at most [`PACKET_MAX`] bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        match self {
            Self::Started { leader } => w.u8(0).identity(*leader),
            Self::SpawnFailed { step, errno } => w.u8(1).i32(step.number()).i32(*errno),
            Self::LeaderStopped { signal } => w.u8(2).i32(signal.number()),
            Self::LeaderContinued => w.u8(3),
            Self::LeaderExited { exit } => w.u8(4).exit(Some(*exit)),
            Self::Daemonized { members } => w.u8(5).u32(*members),
            Self::Stragglers { alive } => w.u8(6).u32(*alive),
            Self::Straggler { named } => w.u8(7).named(named),
            Self::Left { named } => w.u8(8).named(named),
            Self::Ended(end) => {
                w.u8(9).exit(end.exit).duration(end.usage.user).duration(end.usage.system);
                w.u64(end.usage.max_rss_kib).u32(end.told).u32(end.killed).u32(end.stragglers);
                w.u32(end.left).duration(end.stop_time).u64(end.dropped_bytes);
                w.u8(memory_tag(end.out_of_memory))
            }
            Self::ForksRefused => w.u8(10),
            Self::Unlimited => w.u8(11),
        };
        w.0
    }

    /// Reads one packet.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not exactly one notice.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader(bytes);
        let notice = match r.u8()? {
            0 => Self::Started { leader: r.identity()? },
            1 => {
                let step = SpawnStep::from_number(r.i32()?).ok_or(WireError)?;
                Self::SpawnFailed { step, errno: r.i32()? }
            }
            2 => Self::LeaderStopped { signal: r.signal()? },
            3 => Self::LeaderContinued,
            4 => Self::LeaderExited { exit: r.exit()?.ok_or(WireError)? },
            5 => Self::Daemonized { members: r.u32()? },
            6 => Self::Stragglers { alive: r.u32()? },
            7 => Self::Straggler { named: r.named()? },
            8 => Self::Left { named: r.named()? },
            9 => Self::Ended(End {
                exit: r.exit()?,
                usage: Usage { user: r.duration()?, system: r.duration()?, max_rss_kib: r.u64()? },
                told: r.u32()?,
                killed: r.u32()?,
                stragglers: r.u32()?,
                left: r.u32()?,
                stop_time: r.duration()?,
                dropped_bytes: r.u64()?,
                out_of_memory: memory_from(r.u8()?)?,
            }),
            10 => Self::ForksRefused,
            11 => Self::Unlimited,
            _ => return Err(WireError),
        };
        r.end(notice)
    }
}
