//! Whose project's file system answers.
//!
//! A look at all runs of a user opens the ledgers of all their projects, and one of these may be on a disk, a server or a
//! FUSE program that answers nothing. Each is asked by a child first ([`Asker`]), which reads what is going to be read;
//! only a file system that falls silent in the moment between the two still holds us (HAZARD(deaf-file-system)).

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::ask::Asker;

use super::{STATE_DIR, lock, store};

/// How long one may take.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// After so long without an answer another child goes on with the next one.
const GOES_ON_AFTER: Duration = Duration::from_millis(100);
/// Children that are kept waiting at most. Whoever would be asked after that counts as one that did not answer.
const WAITING_MAX: usize = 16;

/// A child, and which of the projects it began with.
struct Asked {
    first: usize,
    asker: Asker,
    until: Instant,
}

impl Asked {
    /// The one whose answer it waits for.
    fn at(&self) -> usize {
        self.first + self.asker.answered()
    }
}

/// Returns those projects whose file systems do not answer within [`ANSWERS_WITHIN`].
///
/// Blocks until all have answered, or for that long and a tenth of a second for each that does not, of sixteen at most. Starts no child where
/// there is nothing to ask. Where no child can be started, everybody counts as one that answers.
#[must_use]
pub fn deaf(roots: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let questions: Vec<Vec<CString>> = roots.iter().map(|root| question(root)).collect();
    let mut all: Vec<Asked> = Vec::new();
    let mut next = 0;
    while next < questions.len() && all.len() < WAITING_MAX {
        let Ok(asker) = Asker::start(&questions[next..]) else { return BTreeSet::new() };
        let mut asked = Asked { first: next, asker, until: Instant::now() };
        loop {
            asked.until = Instant::now() + ANSWERS_WITHIN;
            if !matches!(asked.asker.wait(Instant::now() + GOES_ON_AFTER), Ok(true)) {
                break;
            }
        }
        next = asked.at() + 1;
        all.push(asked);
    }
    let mut is_deaf = vec![true; roots.len()];
    for asked in &mut all {
        // Those that come after it were asked by others meanwhile. Where the kernel cannot wait, nobody has answered.
        let _ = asked.asker.wait(asked.until);
        is_deaf[asked.first..asked.at()].fill(false);
    }
    roots.iter().zip(is_deaf).filter(|(_, is_deaf)| *is_deaf).map(|(root, _)| root.clone()).collect()
}

/// What is read of a project. A path that no call takes is answered at once.
fn question(root: &Path) -> Vec<CString> {
    let state = root.join(STATE_DIR);
    let read = [state.clone(), state.join(lock::LOCK_FILE), state.join(store::LEDGER_FILE)];
    read.iter().filter_map(|path| CString::new(path.as_os_str().as_bytes()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_and_what_is_not_answers() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(STATE_DIR)).unwrap();
        std::fs::write(dir.path().join(STATE_DIR).join(store::LEDGER_FILE), vec![b' '; 100_000]).unwrap();
        let gone = dir.path().join("gone");
        assert_eq!(deaf(&BTreeSet::from([dir.path().to_owned(), gone, "/a\0b".into()])), BTreeSet::new());
        assert_eq!(deaf(&BTreeSet::new()), BTreeSet::new());
    }
}
