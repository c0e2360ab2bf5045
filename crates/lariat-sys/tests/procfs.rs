//! What `/proc` says of real processes, hostile names included.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::ffi::{CString, c_char, c_int};
use std::os::fd::AsRawFd;

use lariat_sys::files::pipe;
use lariat_sys::procfs::{self, State};
use lariat_sys::signal::{Signal, SignalSet};
use lariat_sys::spawn::{Program, SpawnOptions};
use lariat_sys::{Errno, process};

use support::{Guard, eventually, fixture, program, say, shell};

fixtures!(named);

/// Gives itself a hostile name, and says when that is done.
fn named(_: c_int, _: *const *const c_char) -> u8 {
    process::set_comm(") Z 1 (\n9 \\").unwrap();
    say("ready");
    let mut byte = [0];
    let _ = rustix::io::read(rustix::stdio::stdin(), &mut byte);
    0
}

#[test]
fn a_hostile_name_changes_nothing_else() {
    let (told, tell) = pipe(0).unwrap();
    let (hold, _held) = pipe(0).unwrap();
    let fds = vec![(hold.as_raw_fd(), 0), (tell.as_raw_fd(), 1)];
    let child = Guard::start(&fixture("named", &[]), &SpawnOptions { fds, ..SpawnOptions::default() });
    assert_eq!(rustix::io::read(&told, &mut [0; 16]), Ok(6));
    child.settle();
    let stat = procfs::read_stat(child.pid()).unwrap().unwrap();
    assert_eq!(stat.comm.as_bytes(), b") Z 1 (\n9 \\");
    assert_eq!(stat.comm.to_string(), ") Z 1 (?9 \\");
    assert_eq!((stat.identity(), stat.ppid, stat.state), (child.identity(), process::pid(), State::Sleeping));
    let status = procfs::read_status(child.pid()).unwrap().unwrap();
    assert_eq!(status.effective_user, process::effective_user());
    assert_eq!(procfs::signal_sets(child.pid()), Ok(Some(status.signals)));
}

#[test]
fn states_are_told_apart() {
    let child = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
    let state = || procfs::read_stat(child.pid()).unwrap().unwrap().state;
    child.settle();
    child.signal(Signal::STOP);
    eventually("it is stopped", || state() == State::Stopped);
    child.signal(Signal::KILL);
    eventually("it is a zombie", || state() == State::Zombie);
    // Of a zombie nothing is left but its number and how it ended.
    assert_eq!(procfs::cmdline(child.pid()), Ok(Some(vec![])));
    assert_eq!(procfs::exe(child.pid()), Ok(None));
    assert_eq!(procfs::cwd(child.pid()), Ok(None));
    assert_eq!(procfs::environ_has(child.pid(), b"PATH=/bin:/usr/bin"), Ok(false));
    assert!(procfs::signal_sets(child.pid()).unwrap().is_some());
}

#[test]
fn only_whole_entries_of_an_environment_count() {
    let marked = Program {
        env: vec![c"LARIAT_RUN=0123".to_owned(), c"OTHER=LARIAT_RUN=9".to_owned(), c"EMPTY=".to_owned()],
        ..program(&["/bin/sleep", "1000"])
    };
    let child = Guard::start(&marked, &SpawnOptions::default());
    for entry in ["LARIAT_RUN=0123", "OTHER=LARIAT_RUN=9", "EMPTY="] {
        assert_eq!(procfs::environ_has(child.pid(), entry.as_bytes()), Ok(true), "{entry}");
    }
    for entry in ["LARIAT_RUN=01", "LARIAT_RUN=01234", "LARIAT_RUN=9", "LARIAT_RUN", "RUN=0123", "x"] {
        assert_eq!(procfs::environ_has(child.pid(), entry.as_bytes()), Ok(false), "{entry}");
    }
}

#[test]
fn whoever_executes_itself_again_and_again_is_known_by_its_environment() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("again");
    std::fs::write(&script, "#!/bin/sh\nexec \"$0\"\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut again = program(&[script.to_str().unwrap()]);
    again.env.push(c"LARIAT_RUN=0123".to_owned());
    let child = Guard::start(&again, &SpawnOptions::default());
    // We go on a moment before the child has a memory of its own, and until then it shows our environment.
    eventually("the first exec", || procfs::environ_has(child.pid(), b"LARIAT_RUN=0123") == Ok(true));
    let stat = procfs::read_stat(child.pid()).unwrap().unwrap();
    for look in 0..300 {
        let environ = procfs::settled_environ(&stat).unwrap().unwrap();
        let is_marked = environ.split(|byte| *byte == 0).any(|entry| entry == b"LARIAT_RUN=0123");
        assert!(is_marked, "at look {look}: {}", environ.escape_ascii());
    }
    // The control: without waiting, somebody in the middle of execve has none.
    eventually("a look in the middle", || procfs::environ(child.pid()).unwrap().unwrap().is_empty());
}

#[test]
fn who_has_no_environment_is_not_waited_for_long() {
    let bare = Program { env: Vec::new(), ..program(&["/bin/sleep", "1000"]) };
    let child = Guard::start(&bare, &SpawnOptions::default());
    child.settle();
    let stat = procfs::read_stat(child.pid()).unwrap().unwrap();
    assert_eq!(procfs::settled_environ(&stat), Ok(Some(Vec::new())));
}

#[test]
fn long_arguments_and_environments_are_read_whole() {
    let long = "x".repeat(100_000);
    let mut wide = program(&["/bin/sh", "-c", "read line", &long]);
    wide.env.push(CString::new(format!("LONG={long}")).unwrap());
    let (hold, _held) = pipe(0).unwrap();
    let fds = vec![(hold.as_raw_fd(), 0)];
    let child = Guard::start(&wide, &SpawnOptions { fds, ..SpawnOptions::default() });
    // HAZARD(exec-not-finished): a part of them may be there before the rest.
    let whole = format!("/bin/sh\0-c\0read line\0{long}\0");
    eventually("the arguments are whole", || {
        procfs::cmdline(child.pid()).unwrap().unwrap() == whole.as_bytes()
    });
    assert_eq!(procfs::environ_has(child.pid(), format!("LONG={long}").as_bytes()), Ok(true));
}

#[test]
fn places_are_those_of_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    let there =
        Program { dir: Some(CString::new(path.to_str().unwrap()).unwrap()), ..shell("exec /bin/sleep 1000") };
    let child = Guard::start(&there, &SpawnOptions::default());
    assert_eq!(procfs::cwd(child.pid()), Ok(Some(path.clone())));
    eventually("it is the sleeper", || {
        procfs::exe(child.pid()).unwrap().is_some_and(|exe| exe.ends_with("sleep"))
    });
    drop(dir);
    let removed = procfs::cwd(child.pid()).unwrap().unwrap();
    assert_eq!(removed.to_str().unwrap(), format!("{} (deleted)", path.display()));
}

#[test]
fn signal_sets_are_those_of_the_process() {
    let ignored = SignalSet::empty().with(Signal::HUP);
    let traps = shell("trap : TERM; echo ready; read line");
    let (told, tell) = pipe(0).unwrap();
    let (hold, _held) = pipe(0).unwrap();
    let fds = vec![(hold.as_raw_fd(), 0), (tell.as_raw_fd(), 1)];
    let child = Guard::start(&traps, &SpawnOptions { ignored, fds, ..SpawnOptions::default() });
    assert_eq!(rustix::io::read(&told, &mut [0; 16]), Ok(6));
    let sets = procfs::signal_sets(child.pid()).unwrap().unwrap();
    assert!(sets.caught.contains(Signal::TERM) && !sets.ignored.contains(Signal::TERM));
    assert!(sets.ignored.contains(Signal::HUP) && !sets.caught.contains(Signal::HUP));
}

#[test]
fn looking_into_another_users_process_is_refused_or_allowed_but_never_wrong() {
    // Pid 1 is root's: root may look, others may not.
    let looked = procfs::environ_has(1, b"LARIAT_SYS_NO_SUCH=1");
    match process::effective_user() {
        0 => assert!(matches!(looked, Ok(false) | Err(Errno::ACCESS | Errno::PERM)), "{looked:?}"),
        _ => assert!(matches!(looked, Err(Errno::ACCESS | Errno::PERM)), "{looked:?}"),
    }
    assert_eq!(procfs::uid(1), Ok(Some(0)));
}
