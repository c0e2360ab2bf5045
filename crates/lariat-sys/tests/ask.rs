//! Asking in a child: every answer is one, nothing of ours is held by who asks, and who waits for ever holds up nobody.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use lariat_sys::ask::Asker;
use lariat_sys::files;
use lariat_sys::reap::{self, ChildEvent};
use lariat_testkit::stuck::DeafServer;
use support::PATIENCE;

fn path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL")
}

fn later() -> Instant {
    Instant::now() + PATIENCE
}

/// Waits until all have been answered, or no more are to come.
fn all(asker: &mut Asker) -> usize {
    while asker.wait(later()).expect("the kernel waits") {}
    asker.answered()
}

#[test]
fn files_directories_and_what_is_not_there_are_answers() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, vec![7; 100_000]).expect("it is ours");
    let questions =
        vec![vec![path(dir.path()), path(&file)], vec![path(&dir.path().join("not there/x"))], Vec::new()];
    let mut asker = Asker::start(&questions).expect("a child");
    assert_eq!((all(&mut asker), asker.is_over()), (3, true));
    drop(asker);
    assert!(!reap::has_children(), "it was reaped");
}

/// A pipe without a writer is no answer to whoever opens it without O_NONBLOCK, and it is opened with that.
#[test]
fn a_pipe_with_a_name_is_no_trap() {
    let dir = tempfile::tempdir().expect("a directory");
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).expect("it is ours");
    assert_eq!(all(&mut Asker::start(&[vec![path(&fifo)]]).expect("a child")), 1);
}

/// The kernel hands a directory's lock on to every copy; this one closes it before it asks anybody.
#[test]
fn nothing_that_was_open_is_held_by_who_asks() {
    let dir = tempfile::tempdir().expect("a directory");
    let lock = std::fs::File::create(dir.path().join("lock")).expect("it is ours");
    assert!(files::lock_exclusive(lock.as_fd()).expect("it can be locked"));
    let mut asker = Asker::start(&[Vec::new(), Vec::new()]).expect("a child");
    assert_eq!(all(&mut asker), 2);
    drop(lock);
    let again = std::fs::File::open(dir.path().join("lock")).expect("it is there");
    assert!(files::lock_exclusive(again.as_fd()).expect("it can be locked"));
}

/// HAZARD(deaf-file-system): SIGKILL does not end who asks there.
#[test]
fn a_file_system_that_does_not_answer_holds_up_nobody() {
    if !lariat_testkit::is_root() {
        return support::skip("a FUSE server that does not answer: it takes root");
    }
    let (dir, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let Ok(mut server) = DeafServer::mount(dir.path()) else {
        return support::skip("a FUSE server that does not answer: there is no FUSE");
    };
    let questions = [other.path(), &dir.path().join("x"), other.path()].map(|place| vec![path(place)]);
    let mut asker = Asker::start(&questions).expect("a child");
    let soon = || Instant::now() + Duration::from_millis(300);
    while asker.wait(soon()).expect("the kernel waits") {}
    assert_eq!((asker.answered(), asker.is_over()), (1, false));
    let began = Instant::now();
    drop(asker);
    assert!(began.elapsed() < Duration::from_secs(2), "it was left behind: {:?}", began.elapsed());
    assert!(reap::has_children(), "the negative control: nothing ends it");
    server.stop();
    support::eventually("the end of who was killed", || {
        if let Ok(Some(ChildEvent::Exited { pid, .. })) = reap::peek() {
            let _ = reap::reap(pid);
        }
        !reap::has_children()
    });
}
