//! Pipes, splicing at a shared offset, locks over exec, directories that are ours alone.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::ffi::{c_char, c_int};
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use lariat_sys::Errno;
use lariat_sys::files::{
    DirError, dev_null, dir_private, lock_exclusive, memfd, open_tty, pipe, pipe_fill, set_nonblocking,
    signal_when_readable, splice_to_file,
};
use lariat_sys::process;
use lariat_sys::reap::Exit;
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{Namespaces, SpawnOptions, inherit};

use support::{Guard, eventually, fixture, output, say, shell, skip};

/// Where the fixtures find the description whose signals they ask for.
const SHARED: RawFd = 9;

fixtures!(asks, asks_and_dies);

#[test]
fn a_pipe_has_the_size_asked_for_or_less() {
    for (asked, least) in [(0, 4096), (1 << 20, 4096), (usize::MAX, 4096), (i32::MAX as usize, 4096)] {
        let (read, write) = pipe(asked).unwrap();
        assert!(rustix::pipe::fcntl_getpipe_size(&read).unwrap() >= least, "{asked}");
        for end in [&read, &write] {
            assert!(rustix::io::fcntl_getfd(end).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
    }
    let (read, _write) = pipe(256 << 10).unwrap();
    assert_eq!(rustix::pipe::fcntl_getpipe_size(&read), Ok(256 << 10));
}

/// Two descriptors of one description write on where the other has stopped: supervisor and keeper.
#[test]
fn splicing_goes_on_at_the_shared_offset() {
    let mut store = tempfile::tempfile().unwrap();
    let shared = store.try_clone().unwrap();
    let (read, write) = pipe(0).unwrap();
    rustix::io::write(&write, b"one two ").unwrap();
    assert_eq!(pipe_fill(&read), Ok(8));
    assert_eq!(splice_to_file(&read, &store, 4), Ok(4));
    assert_eq!(splice_to_file(&read, &shared, 100), Ok(4));
    assert_eq!(pipe_fill(&read), Ok(0));
    rustix::io::write(&write, b"three").unwrap();
    assert_eq!(splice_to_file(&read, &store, 100), Ok(5));
    assert_eq!(splice_to_file(&read, &store, 100), Err(Errno::AGAIN));
    drop(write);
    assert_eq!(splice_to_file(&read, &store, 100), Ok(0));
    let mut text = String::new();
    store.rewind().unwrap();
    store.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one two three");
}

#[test]
fn splicing_refuses_files_opened_for_appending() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::options().create(true).append(true).open(dir.path().join("log")).unwrap();
    let (read, write) = pipe(0).unwrap();
    rustix::io::write(&write, b"kept").unwrap();
    assert_eq!(splice_to_file(&read, &file, 100), Err(Errno::INVAL));
    assert_eq!(pipe_fill(&read), Ok(4), "what could not be stored must stay");
}

#[test]
fn a_full_device_keeps_the_bytes_in_the_pipe_or_says_so() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (read, write) = pipe(0).unwrap();
    rustix::io::write(&write, b"kept").unwrap();
    assert!(splice_to_file(&read, &full, 100).is_err());
}

#[test]
fn blocking_is_switched() {
    let (read, write) = pipe(0).unwrap();
    set_nonblocking(&read, true).unwrap();
    assert_eq!(rustix::io::read(&read, &mut [0; 4]), Err(Errno::AGAIN));
    set_nonblocking(&read, false).unwrap();
    rustix::io::write(&write, b"x").unwrap();
    assert_eq!(rustix::io::read(&read, &mut [0; 4]), Ok(1));
}

#[test]
fn small_descriptors_do_what_they_say() {
    let mut plan = File::from(memfd(c"plan").unwrap());
    plan.write_all(b"text").unwrap();
    plan.rewind().unwrap();
    assert_eq!(std::io::read_to_string(plan).unwrap(), "text");
    let mut null = File::from(dev_null().unwrap());
    null.write_all(b"text").unwrap();
    assert_eq!(null.read(&mut [0; 4]).unwrap(), 0);
}

#[test]
fn without_a_terminal_there_is_none_to_open() {
    // The test may have one; a process in a new session has none.
    let _ = rustix::process::setsid();
    assert_eq!(open_tty().unwrap_err(), Errno::NXIO);
}

/// HAZARD(shared-lock): the lock of a run, held by whoever has the description, over exec too.
#[test]
fn a_lock_is_held_until_its_last_holder_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let first = File::create(&path).unwrap();
    let second = File::open(&path).unwrap();
    assert_eq!(lock_exclusive(&first), Ok(true));
    assert_eq!(lock_exclusive(&first), Ok(true), "again by the same description");
    assert_eq!(lock_exclusive(&second), Ok(false));

    let options = SpawnOptions { fds: vec![(first.as_raw_fd(), 5)], ..SpawnOptions::default() };
    let mut holder = Guard::start(&shell("exec sleep 1000"), &options);
    let stranger = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
    drop(first);
    assert_eq!(lock_exclusive(&second), Ok(false), "the child holds it");
    holder.signal(Signal::KILL);
    assert_eq!(holder.exit(), Exit::Signal { signal: Signal::KILL, core: false });
    eventually("the lock is free", || lock_exclusive(&second).unwrap());
    drop(stranger);
}

#[test]
fn a_private_directory_is_made_or_verified() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("state");
    let made = dir_private(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(rustix::io::fcntl_getfd(made.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    fs::write(path.join("kept"), "").unwrap();
    dir_private(&path).unwrap();
    assert!(path.join("kept").exists());
}

#[test]
fn a_umask_takes_nothing_from_a_private_directory() {
    let parent = tempfile::tempdir().unwrap();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o777));
    let made = dir_private(&parent.path().join("state"));
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // A directory without any bits cannot be opened but by root.
    match made {
        Ok(_) => {
            let mode = fs::metadata(parent.path().join("state")).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700);
        }
        Err(error) => assert_eq!(error, DirError::System(Errno::ACCESS)),
    }
}

#[test]
fn what_others_can_reach_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("state");
    fs::create_dir(&path).unwrap();
    for mode in [0o755, 0o710, 0o701, 0o777, 0o1770] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        assert_eq!(dir_private(&path).unwrap_err(), DirError::Mode { mode });
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode, "it was changed");
    }
}

#[test]
fn what_is_no_directory_of_ours_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let real = parent.path().join("real");
    dir_private(&real).unwrap();
    let link = parent.path().join("link");
    symlink(&real, &link).unwrap();
    assert_eq!(dir_private(&link).unwrap_err(), DirError::NotADirectory);
    let dangling = parent.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    assert_eq!(dir_private(&dangling).unwrap_err(), DirError::NotADirectory);
    let file = parent.path().join("file");
    File::create(&file).unwrap();
    assert_eq!(dir_private(&file).unwrap_err(), DirError::NotADirectory);
    assert_eq!(dir_private(&file.join("below")).unwrap_err(), DirError::System(Errno::NOTDIR));
    assert_eq!(dir_private(&parent.path().join("a/b")).unwrap_err(), DirError::System(Errno::NOENT));
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("state");
    dir_private(&path).unwrap();
    if chown(&path, Some(1), None).is_ok() {
        assert_eq!(dir_private(&path).unwrap_err(), DirError::Owner { owner: 1 });
        assert_eq!(Errno::from(DirError::Owner { owner: 1 }), Errno::PERM);
    } else {
        // Without root's rights: what is root's is not ours.
        assert_eq!(dir_private("/usr".as_ref()).unwrap_err(), DirError::Owner { owner: 0 });
    }
}

/// The description is the caller's: it is as before afterwards, and who owns its signals keeps them.
#[test]
fn a_description_that_signals_us_is_given_back() {
    let (read, _write) = pipe(0).unwrap();
    let before = asked_of(&read);
    let asked = signal_when_readable(&read, Signal::URG).unwrap();
    assert_eq!(asked_of(&read), ((1, process::pid()), Signal::URG.number(), libc::O_ASYNC));
    assert_eq!(signal_when_readable(&read, Signal::CONT).map(drop), Err(Errno::BUSY));
    drop(asked);
    assert_eq!(asked_of(&read), before);
    drop(signal_when_readable(&read, Signal::CONT).unwrap());
    assert_eq!(asked_of(&read), before);
}

/// Returns what is known of a description's signals: who owns them (kind and number), which one it is, and whether it is sent.
fn asked_of(file: &OwnedFd) -> ((i32, i32), i32, i32) {
    let mut owner = [-1, -1];
    // SAFETY: F_GETOWN_EX fills in two integers; the other two commands take nothing.
    let (signal, flags) = unsafe {
        assert_eq!(libc::fcntl(file.as_raw_fd(), 16, owner.as_mut_ptr()), 0);
        (libc::fcntl(file.as_raw_fd(), 11), libc::fcntl(file.as_raw_fd(), libc::F_GETFL))
    };
    ((owner[0], owner[1]), signal, flags & libc::O_ASYNC)
}

/// Asks for the description's signals, and says whether that was granted.
fn asks(_: c_int, _: *const *const c_char) -> u8 {
    let shared = inherit(SHARED).unwrap();
    match signal_when_readable(&shared, Signal::URG) {
        Ok(asked) => {
            say("granted");
            drop(asked);
        }
        Err(errno) => say(if errno == Errno::BUSY { "somebody's" } else { "refused" }),
    }
    0
}

/// Asks for them, and dies without giving them back.
fn asks_and_dies(_: c_int, _: *const *const c_char) -> u8 {
    let shared = inherit(SHARED).unwrap();
    let _asked = signal_when_readable(&shared, Signal::URG).unwrap();
    process::exit_now(0)
}

/// Returns what somebody hears who asks for the signals of this description, in these namespaces.
fn answer_to(name: &str, shared: &OwnedFd, namespaces: Option<Namespaces>) -> Option<String> {
    let fds = vec![(shared.as_raw_fd(), SHARED)];
    let options = SpawnOptions { fds, namespaces, ..SpawnOptions::default() };
    match output(&fixture(name, &[]), &options) {
        Ok((text, exit)) => {
            assert_eq!(exit, Exit::Code(0), "{text}");
            Some(text)
        }
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}

/// HAZARD(no-number-here): to whoever asks from another pid namespace, an owner outside of it reads as nobody.
#[test]
fn an_owner_outside_of_our_pid_namespace_is_not_displaced() {
    let apart = || Some(Namespaces::choose());
    let (read, _write) = pipe(0).unwrap();
    let before = asked_of(&read);
    // The control: what is nobody's can be had in there, and is nobody's again afterwards.
    let Some(answer) = answer_to("asks", &read, apart()) else { return };
    assert_eq!((answer.as_str(), asked_of(&read)), ("granted\n", before));

    let asked = signal_when_readable(&read, Signal::CONT).unwrap();
    let owned = asked_of(&read);
    for namespaces in [apart(), None] {
        assert_eq!(answer_to("asks", &read, namespaces).unwrap(), "somebody's\n");
        assert_eq!(asked_of(&read), owned);
    }
    drop(asked);
    assert_eq!(answer_to("asks", &read, apart()).unwrap(), "granted\n", "it was given back");

    // An owner that has not asked for signals yet: urgent data of a socket comes to it all the same.
    // SAFETY: F_SETOWN takes a number.
    assert_eq!(unsafe { libc::fcntl(read.as_raw_fd(), libc::F_SETOWN, process::pid()) }, 0);
    assert_eq!(answer_to("asks", &read, apart()).unwrap(), "somebody's\n");
    assert_eq!(asked_of(&read), ((1, process::pid()), 0, 0));
}

/// KERNEL(5.12): before, the number of a dead owner stays.
#[test]
fn what_a_dead_owner_has_left_is_taken_over_where_everybody_has_a_number() {
    let (read, _write) = pipe(0).unwrap();
    answer_to("asks_and_dies", &read, None).unwrap();
    let ((kind, owner), signal, flag) = asked_of(&read);
    assert_eq!((kind, signal, flag), (1, Signal::URG.number(), libc::O_ASYNC), "it leaves its marks");
    if owner != 0 {
        return skip("this kernel does not say that an owner is dead");
    }
    let expected = if process::is_in_first_pid_namespace() { "granted\n" } else { "somebody's\n" };
    assert_eq!(answer_to("asks", &read, None).unwrap(), expected);
    // In there it may be somebody outside.
    let (read, _write) = pipe(0).unwrap();
    answer_to("asks_and_dies", &read, None).unwrap();
    if let Some(answer) = answer_to("asks", &read, Some(Namespaces::choose())) {
        assert_eq!(answer, "somebody's\n");
    }
}
