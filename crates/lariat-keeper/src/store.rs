//! The log store's file format, and the way bytes take from a service's pipe into it.
//!
//! A store is two files: `NAME.log`, the service's bytes as they came, and `NAME.idx`, records of 16 bytes that say
//! when they came ([`IndexRecord`]). [`Drain`] moves bytes from an output pipe into both. The supervisor drains while
//! it lives; after its death the keeper, which holds the same descriptors, goes on where it was.
//!
//! No byte is lost or doubled by a SIGKILL at whatever moment: each of the two steps of a drain is one system call
//! in which the kernel takes from one side exactly what it gives to the other.
//!
//! 1. pipe → *stage*, a second pipe that only drains touch. Pages change their owner, nothing is copied.
//! 2. stage → store, at the store's *shared file offset*: the supervisor's and the keeper's descriptor are one open
//!    file description, so whoever goes on finds the offset where the last call left it. (For the same reason it is
//!    not opened with O_APPEND, which splice(2) refuses.)
//!
//! Why not in one step: splice(2) holds the source pipe's lock while it writes to the disk. A writer waits for that
//! lock uninterruptibly, and so does an exit that closes the pipe: with a stuck disk, SIGKILL could not end the
//! service. With the stage, the service's pipe is only locked while page references move
//! (docs/design/003-log-store.md, where the figures are as well).
//!
//! What this module does not do: wait, poll, rotate, look into the bytes, or decide who may drain. INVARIANT: at any
//! time at most one process drains a pipe; the keeper starts only when the supervisor's death is proven.
//!
//! Hazards handled: `stuck-disk`, `full-disk`. A write beyond RLIMIT_FSIZE counts as a full disk, provided the
//! process ignores SIGXFSZ.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use lariat_sys::files;
use lariat_sys::{Errno, Result};

/// The size of one index record in bytes.
pub const RECORD_BYTES: usize = 16;
/// The least time between two index records of one drain while bytes keep coming.
pub const RECORD_EVERY: Duration = Duration::from_millis(1);
/// The size that a service's pipe and its stage grow to once the service writes fast, in bytes.
pub const PIPE_BYTES_GROWN: usize = 256 * 1024;
/// The size of a service's pipe at the start, in bytes: the kernel's usual one.
pub const PIPE_BYTES: usize = 64 * 1024;
/// The size of a stage at the start, in bytes. Small, because all pipes of a user share one limit.
pub const STAGE_BYTES: usize = 4 * 1024;

/// One call that moves at least this many bytes shows a service that writes fast.
const GROW_AT: usize = 4 * 1024;
/// One move of less than this, and the rest is left for a later call.
const TRICKLE_BYTES: usize = 16 * 1024;
/// The block in which bytes are copied or thrown away where splice(2) cannot be used.
const BLOCK_BYTES: usize = 16 * 1024;
/// Marks a record that counts dropped bytes; no time stamp has it before the year 2262.
const DROPPED_FLAG: u64 = 1 << 63;

/// One record of a store's index. On disk: two little-endian 64-bit numbers, the second one an offset in the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndexRecord {
    /// The bytes up to `end` were in the store at this time.
    Stored {
        /// Nanoseconds since the Unix epoch.
        unix_ns: u64,
        /// Offset in the store behind the last of these bytes.
        end: u64,
    },
    /// Bytes that belong at offset `end` are missing: the store could not be written.
    Dropped {
        /// How many.
        bytes: u64,
        /// Offset in the store where they would have begun.
        end: u64,
    },
}

impl IndexRecord {
    /// Returns the record as it stands on disk.
    #[must_use]
    pub fn encode(self) -> [u8; RECORD_BYTES] {
        let (first, second) = match self {
            Self::Stored { unix_ns, end } => (unix_ns & !DROPPED_FLAG, end),
            Self::Dropped { bytes, end } => (bytes | DROPPED_FLAG, end),
        };
        let mut out = [0; RECORD_BYTES];
        out[..8].copy_from_slice(&first.to_le_bytes());
        out[8..].copy_from_slice(&second.to_le_bytes());
        out
    }

    /// Reads a record. Every 16 bytes are one; whether it makes sense beside its neighbours is the reader's to judge.
    #[must_use]
    pub fn decode(bytes: [u8; RECORD_BYTES]) -> Self {
        let both = u128::from_le_bytes(bytes);
        let (first, end) = (both as u64, (both >> 64) as u64);
        if first & DROPPED_FLAG == 0 {
            Self::Stored { unix_ns: first, end }
        } else {
            Self::Dropped { bytes: first & !DROPPED_FLAG, end }
        }
    }

    /// Returns the offset in the store that the record is about.
    #[must_use]
    pub fn end(self) -> u64 {
        match self {
            Self::Stored { end, .. } | Self::Dropped { end, .. } => end,
        }
    }
}

/// The pipe between a service's pipe and its store. Supervisor and keeper share both ends, and nobody else has any.
#[derive(Debug)]
pub struct Stage {
    /// Where drains take from.
    pub read: OwnedFd,
    /// Where drains put into.
    pub write: OwnedFd,
}

impl Stage {
    /// Makes an empty stage, close-on-exec.
    ///
    /// # Errors
    /// EMFILE and ENFILE when there are too many open files.
    pub fn new() -> Result<Self> {
        let (read, write) = files::pipe(STAGE_BYTES)?;
        Ok(Self { read, write })
    }

    /// Duplicates both descriptors. The copy is the same pipe.
    ///
    /// # Errors
    /// EMFILE and ENFILE when there are too many open files.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { read: self.read.try_clone()?, write: self.write.try_clone()? })
    }
}

/// Everything between one start of a service and its store: the pipe that is its stdout and stderr, and the stage.
#[derive(Debug)]
pub struct Output {
    /// What a drain reads. The supervisor drains; the keeper holds it too.
    pub read: OwnedFd,
    /// What the service writes to. The supervisor closes its own once the keeper has it.
    pub write: OwnedFd,
    /// The stage of the drain, for the keeper as well.
    pub stage: Stage,
}

impl Output {
    /// Makes pipe and stage, all close-on-exec.
    ///
    /// # Errors
    /// EMFILE and ENFILE when there are too many open files.
    pub fn new() -> Result<Self> {
        let (read, write) = files::pipe(PIPE_BYTES)?;
        Ok(Self { read, write, stage: Stage::new()? })
    }
}

/// What one call of [`Drain::drain`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// Bytes that are in the store now.
    pub moved: usize,
    /// Bytes that were read away because the store could not be written.
    pub dropped: usize,
    /// Nothing was left in the pipe at some moment of the call.
    pub is_empty: bool,
    /// Every writer has closed the pipe, and all of it is in the store or dropped.
    pub is_closed: bool,
}

impl Drained {
    /// Returns how many bytes left the pipe, in the store or not.
    #[must_use]
    pub fn total(&self) -> usize {
        self.moved + self.dropped
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Splice,
    /// For stores whose file system has no splice. A SIGKILL between read and write loses up to one block here.
    Copy,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Growth {
    NotYet,
    Done,
    Refused,
}

/// Moves the output of one service from its pipe into its store.
///
/// Dropping it writes an index record that is still due and closes the descriptors; bytes in the pipe stay there for
/// whoever else holds it.
#[derive(Debug)]
pub struct Drain {
    pipe: OwnedFd,
    stage_read: File,
    stage_write: OwnedFd,
    store: File,
    index: Option<File>,
    way: Way,
    growth: Growth,
    /// Bytes in the stage, as far as we know; the kernel's count settles every doubt.
    staged: usize,
    recorded_at: Option<Instant>,
    is_record_due: bool,
    /// Lost in a block that was read and could not be written; counted by the next `discard_stage`.
    dropped_in_copy: usize,
    dropped_unrecorded: u64,
}

impl Drain {
    /// Takes over an output. Bytes that an earlier drain left in the stage come first.
    ///
    /// `store` is a file opened for writing without O_APPEND, at the offset where it goes on; `index` one with O_APPEND.
    ///
    /// # Errors
    /// Those of FIONREAD: `stage` is not a pipe.
    pub fn new(pipe: OwnedFd, stage: Stage, store: OwnedFd, index: Option<OwnedFd>) -> Result<Self> {
        let staged = files::pipe_fill(stage.read.as_fd())?;
        Ok(Self {
            pipe,
            stage_read: File::from(stage.read),
            stage_write: stage.write,
            store: File::from(store),
            index: index.map(File::from),
            way: Way::Splice,
            growth: Growth::NotYet,
            staged,
            recorded_at: None,
            is_record_due: false,
            dropped_in_copy: 0,
            dropped_unrecorded: 0,
        })
    }

    /// Returns the pipe, to be polled for reading.
    #[must_use]
    pub fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Returns the store's offset: where the next byte goes.
    #[must_use]
    pub fn end(&self) -> u64 {
        // lseek(2) on a regular file with SEEK_CUR and 0 has no way to fail.
        (&self.store).stream_position().unwrap_or(0)
    }

    /// Returns how many bytes wait in pipe and stage.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let fill = |pipe| files::pipe_fill(pipe).unwrap_or(0);
        fill(self.stage_read.as_fd()) + fill(self.pipe.as_fd())
    }

    /// Moves what is there, but not much more than `max_bytes`, into the store.
    ///
    /// Returns early, without having seen the pipe empty, when bytes come in small portions: the caller lets them
    /// gather for up to a millisecond, which makes the service faster.
    ///
    /// Never waits for the pipe, whatever its O_NONBLOCK flag is; waits for the disk as long as the disk takes. When
    /// the store cannot be written (full disk, quota, I/O error), the bytes are read away and counted, so that the
    /// service does not block; the next call tries the store again.
    pub fn drain(&mut self, max_bytes: usize) -> Drained {
        self.move_bytes(max_bytes, true)
    }

    /// Does the same, but returns only when the pipe was seen empty, or `max_bytes` were moved: for the last call, when
    /// nobody is left who writes.
    pub fn drain_to_empty(&mut self, max_bytes: usize) -> Drained {
        self.move_bytes(max_bytes, false)
    }

    fn move_bytes(&mut self, max_bytes: usize, may_leave_a_trickle: bool) -> Drained {
        let mut done = Drained::default();
        let mut last = 0;
        loop {
            if self.staged > 0 {
                self.empty_stage(&mut done);
            }
            // A grown stage takes whatever the pipe holds. If that was little, the writer makes many small writes, and
            // coming back at once would cost it a wake-up for each of them.
            let is_trickle = self.growth == Growth::Done && done.total() > 0 && last < TRICKLE_BYTES;
            if done.total() >= max_bytes || (is_trickle && may_leave_a_trickle) {
                break;
            }
            match files::splice_to_file(self.pipe.as_fd(), self.stage_write.as_fd(), PIPE_BYTES_GROWN) {
                Ok(moved) if moved > 0 => {
                    self.staged += moved;
                    // A stage that was full says nothing about the pipe.
                    last = if self.grow_after(done.total() + moved) { TRICKLE_BYTES } else { moved };
                }
                Err(Errno::INTR) => {}
                // Closed, empty, or a stage that is full although we believed it empty. The stage may have filled since
                // we last looked: a keeper makes its drain long before the supervisor's last one ends.
                result => {
                    self.recount();
                    if self.staged == 0 {
                        done.is_empty = true;
                        done.is_closed = result.is_ok();
                        break;
                    }
                }
            }
        }
        self.record(&done);
        done
    }

    /// Says whether the index is up to date. If not, another call of `drain` or `settle` is due.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.is_record_due
    }

    /// Writes the index record that is due, if there is one. Called by `drain` when it found nothing, and by drop.
    pub fn settle(&mut self) {
        if self.is_record_due || self.dropped_unrecorded > 0 {
            self.write_record();
        }
    }

    fn empty_stage(&mut self, done: &mut Drained) {
        while self.staged > 0 {
            let result = match self.way {
                Way::Splice => {
                    files::splice_to_file(self.stage_read.as_fd(), self.store.as_fd(), self.staged)
                }
                Way::Copy => self.copy_block(),
            };
            match result {
                Ok(moved) if moved > 0 => {
                    done.moved += moved;
                    self.staged = self.staged.saturating_sub(moved);
                }
                Err(Errno::INTR) => {}
                Err(Errno::INVAL) if self.way == Way::Splice => self.way = Way::Copy,
                Ok(_) | Err(_) => {
                    self.recount();
                    done.dropped += self.discard_stage();
                }
            }
        }
        if self.dropped_in_copy > 0 {
            done.dropped += self.discard_stage();
        }
    }

    /// Reads one block from the stage and writes it. What cannot be written of it is dropped, and counted as moved 0.
    fn copy_block(&mut self) -> Result<usize> {
        let mut block = [0; BLOCK_BYTES];
        let length = self.read_stage(&mut block)?;
        let mut written = 0;
        while written < length {
            match self.store.write(&block[written..length]) {
                Ok(0) => break,
                Ok(n) => written += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.dropped_in_copy += length - written;
        self.staged = self.staged.saturating_sub(length - written);
        Ok(written)
    }

    /// Reads what is there, up to the size of the block. Never blocks, as only drains take from the stage.
    fn read_stage(&mut self, block: &mut [u8]) -> Result<usize> {
        let want = self.staged.min(block.len());
        loop {
            match (&self.stage_read).read(&mut block[..want]) {
                Ok(length) => return Ok(length),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)),
            }
        }
    }

    /// Reads away what is in the stage and returns how much was lost, the loss of a copied block included.
    fn discard_stage(&mut self) -> usize {
        let mut block = [0; BLOCK_BYTES];
        let mut dropped = std::mem::take(&mut self.dropped_in_copy);
        while self.staged > 0 {
            match self.read_stage(&mut block) {
                Ok(length) if length > 0 => {
                    dropped += length;
                    self.staged = self.staged.saturating_sub(length);
                }
                // The stage holds less than we thought: there is nothing more to throw away.
                _ => self.staged = 0,
            }
        }
        self.dropped_unrecorded += dropped as u64;
        dropped
    }

    fn recount(&mut self) {
        self.staged = files::pipe_fill(self.stage_read.as_fd()).unwrap_or(0);
    }

    fn grow_after(&mut self, moved: usize) -> bool {
        if self.growth != Growth::NotYet || moved < GROW_AT {
            return false;
        }
        // Refused when the user's pipes have used up their share: slower, but right.
        let stage = files::resize_pipe(self.stage_write.as_fd(), PIPE_BYTES_GROWN);
        let _ = files::resize_pipe(self.pipe.as_fd(), PIPE_BYTES_GROWN);
        self.growth = if stage.is_ok() { Growth::Done } else { Growth::Refused };
        true
    }

    fn record(&mut self, done: &Drained) {
        if done.moved > 0 {
            self.is_record_due = true;
            if self.recorded_at.is_none_or(|at| at.elapsed() >= RECORD_EVERY) {
                self.write_record();
            }
        } else if done.is_empty {
            self.settle();
        }
    }

    fn write_record(&mut self) {
        self.is_record_due = false;
        self.recorded_at = Some(Instant::now());
        let end = self.end();
        let Some(index) = self.index.as_mut() else { return };
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let stored = IndexRecord::Stored { unix_ns: since_epoch.as_nanos() as u64, end };
        let dropped = IndexRecord::Dropped { bytes: self.dropped_unrecorded, end };
        // An index that cannot be written costs times, not bytes: readers show the next time that there is. The
        // count of dropped bytes is kept for the next record.
        if self.dropped_unrecorded > 0 && index.write_all(&dropped.encode()).is_ok() {
            self.dropped_unrecorded = 0;
        }
        let _ = index.write_all(&stored.encode());
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
