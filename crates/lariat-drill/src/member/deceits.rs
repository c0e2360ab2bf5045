//! Members that deceive lariat when they are told to end: they say what it goes by, or remove what it remembers by.
//!
//! What lariat's processes say to each other is not known here: the subject brings the words. Nothing is removed but what
//! is below the cell's own directory.

use std::path::PathBuf;

use lariat_sys::signal::Signal;
use rustix::net::{SendFlags, send};

use super::attacks::{attackers, keeper, lead, steal};
use super::part::{LEAVE, Part};
use crate::census::MARKER;
use crate::stage::{PREFIX, WORDS_VARIABLE, words_of};

/// Members with descriptors of the keeper's. Each says another last word in the keeper's place when it is told to end, and
/// lives on; so does the leader when it shall leave.
pub(crate) fn false_words(part: &Part) -> ! {
    let words = std::env::var(WORDS_VARIABLE).map(|text| words_of(&text)).unwrap_or_default();
    let Some(keeper) = keeper(part) else { part.skip("it is not known who the keeper is") };
    let stolen = steal(keeper.pid);
    if stolen.is_empty() {
        part.skip("the descriptors of others may not be taken here");
    }
    if words.is_empty() {
        part.skip("what a keeper says is not known");
    }
    let say = |word: &[u8]| {
        for end in &stolen {
            // What is no socket, or one whose other side is gone, takes no word.
            let _ = send(end, word, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    };
    attackers(part, words.len(), |number, _| say(&words[number]));
    lead(part, words.len(), |told| {
        if told == LEAVE {
            say(&words[0]);
            let stubborn = part.stubborn();
            stubborn.prepare();
            stubborn.live("leader")
        }
    })
}

/// Removes what lariat remembers the run by when the first is told or the leader leaves: the project's directory of state,
/// or the record of the run.
pub(crate) fn removes_ledger(part: &Part) -> ! {
    let run = std::env::var("LARIAT_RUN").unwrap_or_default();
    let remove = || {
        let Some(cell) = cell(part) else { return };
        // Of the two a run has one, and who is first has removed it.
        let _ = std::fs::remove_dir_all(cell.join("project/.lariat"));
        if run.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') && !run.is_empty() {
            let _ = std::fs::remove_file(cell.join("runtime/lariat").join(format!("{run}.json")));
        }
    };
    attackers(part, 1, |_, _| remove());
    lead(part, 1, |_: Signal| remove())
}

/// The cell's own directory, if it surely is one: its name and the one above are those of the marker that all in the
/// cell carry.
fn cell(part: &Part) -> Option<PathBuf> {
    let marker = std::env::var(MARKER).ok()?;
    let (token, number) = marker.rsplit_once('-')?;
    let dir = std::fs::canonicalize(&part.dir).ok()?;
    let expected = PathBuf::from(format!("{PREFIX}{token}")).join(number);
    dir.ends_with(expected).then_some(dir)
}
