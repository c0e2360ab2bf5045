//! The end record: what a keeper writes when nobody is left to be told.
//!
//! One JSON object on one line, appended with a single write, so that records of several keepers never mix
//! (write(2) on a descriptor with `O_APPEND`; the line stays below [`RECORD_MAX`]). The next command that looks at
//! the run makes its report of them. Written by hand since the keeper links no serialiser; read by the library.

use std::ffi::{CStr, OsStr};
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use lariat_sys::identity::Identity;
use lariat_sys::reap::Exit;

use crate::wire::{End, Named};

/// The longest record, in bytes.
pub const RECORD_MAX: usize = 4096;
/// The version in every record.
pub const RECORD_VERSION: u32 = 1;

/// What has come to its end, and who took part. All names are those that hold for the reader.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The run's id.
    pub run: &'a str,
    /// The service's label.
    pub service: &'a str,
    /// The keeper, of which the number is written.
    pub keeper: Identity,
    /// The leader.
    pub leader: Identity,
}

/// Removes the record of a command of which nothing is left: it would name identities that are dead.
pub(crate) fn forget(record: &CStr) {
    // One that cannot be removed is closed by the next sweep.
    let _ = std::fs::remove_file(OsStr::from_bytes(record.to_bytes()));
}

/// Appends the record of one end to `file`. An error is swallowed: the process that would be told is dead, and the
/// containment is empty all the same.
pub fn append(file: BorrowedFd<'_>, subject: Subject<'_>, end: &End, left: &[Named]) {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let mut line = line(subject, end, left, at);
    line.push('\n');
    // One call to write(2), never a second for the rest: a torn line is skipped by readers, a mixed one could lie.
    let Ok(file) = file.try_clone_to_owned() else { return };
    let _ = std::fs::File::from(file).write(line.as_bytes());
}

/// Returns the record as text, without the newline. `at` is in milliseconds since 1970.
#[must_use]
pub fn line(subject: Subject<'_>, end: &End, left: &[Named], at: u128) -> String {
    let Subject { run, service, keeper, leader } = subject;
    let mut s = String::with_capacity(512);
    let _ = write!(s, "{{\"version\":{RECORD_VERSION},\"at_ms\":{at},\"run\":{},", quote(run));
    let _ = write!(s, "\"service\":{},\"keeper\":{keeper},", quote(service));
    let _ = write!(s, "\"leader\":{{{}}},\"exit\":", fields(leader));
    let _ = match end.exit {
        None => write!(s, "null"),
        Some(Exit::Code(code)) => write!(s, "{{\"code\":{code}}}"),
        Some(Exit::Signal { signal, core }) => write!(s, "{{\"signal\":\"{signal}\",\"core\":{core}}}"),
    };
    let _ = write!(s, ",\"told\":{},\"killed\":{},", end.told, end.killed);
    let _ = write!(s, "\"stragglers\":{},\"left_total\":{},\"left\":[", end.stragglers, end.left);
    for (i, named) in left.iter().take(crate::machine::NAMED_MAX).enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let Named { identity, comm, errno } = named;
        let _ = write!(s, "{comma}{{{},", fields(*identity));
        let _ = write!(s, "\"comm\":{},\"errno\":{errno}}}", quote(&comm.to_string()));
    }
    let _ = write!(s, "],\"stop_ms\":{},", end.stop_time.as_millis());
    let _ = write!(s, "\"dropped_bytes\":{}}}", end.dropped_bytes);
    s
}

/// Returns the fields of an identity.
fn fields(identity: Identity) -> String {
    let mut s = format!("\"pid\":{},\"start\":{}", identity.pid, identity.start);
    if let Some(inode) = identity.inode() {
        let _ = write!(s, ",\"inode\":{inode}");
    }
    s
}

/// Returns the text as a JSON string. Anything but plain ASCII becomes an escape.
fn quote(text: &str) -> String {
    let mut s = String::with_capacity(text.len() + 2);
    s.push('"');
    for unit in text.encode_utf16() {
        match u8::try_from(unit) {
            Ok(b @ (b'"' | b'\\')) => s.extend(['\\', char::from(b)]),
            Ok(b @ 0x20..0x7f) => s.push(char::from(b)),
            _ => {
                let _ = write!(s, "\\u{unit:04x}");
            }
        }
    }
    s.push('"');
    s
}
