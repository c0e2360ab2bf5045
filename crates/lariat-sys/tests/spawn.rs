//! A new process gets exactly what was asked for, and a failure says at which step.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::fs::{self, Permissions};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use lariat_sys::files::{memfd, pipe};
use lariat_sys::identity::Identity;
use lariat_sys::procfs;
use lariat_sys::reap::{self, ChildEvent, Exit};
use lariat_sys::signal::{self, Signal, SignalSet};
use lariat_sys::spawn::{Program, SpawnError, SpawnOptions, SpawnStep, spawn};
use lariat_sys::{Errno, process};

use support::{Guard, eventually, fixture, output, program, say, shell};

fixtures!(leaves_its_session, rests, searches, spawns_and_waits, spawns_in_a_storm);

fn sleeper() -> Program {
    program(&["/bin/sleep", "1000"])
}

fn failure(program: &Program, options: &SpawnOptions) -> SpawnError {
    let error = Guard::try_start(program, options).map(|_| ()).unwrap_err();
    assert_eq!(reap::peek(), Err(Errno::CHILD), "a failed spawn left a child");
    error
}

fn error(step: SpawnStep, errno: Errno) -> SpawnError {
    SpawnError { step, errno }
}

#[test]
fn every_failure_names_its_step() {
    let default = SpawnOptions::default();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text");
    fs::write(&file, "echo never").unwrap();
    let text = file.to_str().unwrap();

    assert_eq!(failure(&program(&[]), &default), error(SpawnStep::Prepare, Errno::INVAL));
    assert_eq!(failure(&program(&["/missing"]), &default), error(SpawnStep::Exec, Errno::NOENT));
    assert_eq!(failure(&program(&["missing-program"]), &default), error(SpawnStep::Exec, Errno::NOENT));
    assert_eq!(failure(&program(&[""]), &default), error(SpawnStep::Exec, Errno::NOENT));
    assert_eq!(failure(&program(&[text]), &default), error(SpawnStep::Exec, Errno::ACCESS));
    assert_eq!(failure(&program(&["/bin"]), &default), error(SpawnStep::Exec, Errno::ACCESS));
    fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    let exact = Program { search_path: false, ..program(&[text]) };
    assert_eq!(failure(&exact, &default), error(SpawnStep::Exec, Errno::NOEXEC));
    let huge = program(&["/bin/true", &"x".repeat(200 << 10)]);
    assert_eq!(failure(&huge, &default), error(SpawnStep::Exec, Errno::TOOBIG));

    for (dir, errno) in [(c"/missing", Errno::NOENT), (c"/etc/passwd", Errno::NOTDIR)] {
        let elsewhere = Program { dir: Some(dir.to_owned()), ..sleeper() };
        assert_eq!(failure(&elsewhere, &default), error(SpawnStep::Directory, errno));
    }
    for (fds, errno) in [
        (vec![(1_000_000, 3)], Errno::BADF),
        (vec![(-1, 3)], Errno::BADF),
        (vec![(0, 3), (1, 3)], Errno::INVAL),
    ] {
        let options = SpawnOptions { fds, ..SpawnOptions::default() };
        assert_eq!(failure(&sleeper(), &options), error(SpawnStep::Descriptors, errno));
    }
    let message = failure(&program(&["/missing"]), &default).to_string();
    assert!(message.starts_with("could not execute the program: "), "{message}");
}

#[test]
fn the_child_is_who_it_says() {
    let mut child = Guard::start(&sleeper(), &SpawnOptions::default());
    let stat = procfs::read_stat(child.pid()).unwrap().unwrap();
    assert_eq!(stat.identity(), child.identity());
    assert_eq!(stat.ppid, process::pid());
    assert_eq!(procfs::cmdline(child.pid()).unwrap().unwrap(), b"/bin/sleep\x001000\0");
    assert_eq!(procfs::environ(child.pid()).unwrap().unwrap(), b"PATH=/bin:/usr/bin\0");
    child.signal(Signal::TERM);
    assert_eq!(child.exit(), Exit::Signal { signal: Signal::TERM, core: false });
}

#[test]
fn name_and_file_may_differ() {
    let named = Program { file: Some(c"/bin/sleep".to_owned()), ..program(&["lariat-keeper", "1000"]) };
    let child = Guard::start(&named, &SpawnOptions::default());
    assert_eq!(procfs::cmdline(child.pid()).unwrap().unwrap(), b"lariat-keeper\x001000\0");
}

#[test]
fn sessions_groups_and_nice_are_as_asked() {
    let own = procfs::read_stat(process::pid()).unwrap().unwrap();
    let of = |options: SpawnOptions| {
        let child = Guard::start(&sleeper(), &options);
        let stat = procfs::read_stat(child.pid()).unwrap().unwrap();
        (
            stat.session == stat.pid,
            stat.pgrp == stat.pid,
            stat.session == own.session,
            stat.pgrp == own.pgrp,
            stat.nice,
        )
    };
    let default = SpawnOptions::default;
    assert_eq!(of(default()), (false, false, true, true, own.nice));
    assert_eq!(of(SpawnOptions { new_group: true, ..default() }), (false, true, true, false, own.nice));
    assert_eq!(of(SpawnOptions { new_session: true, ..default() }), (true, true, false, false, own.nice));
    let both = SpawnOptions { new_session: true, new_group: true, nice: Some(19), ..default() };
    assert_eq!(of(both), (true, true, false, false, 19));
}

#[test]
fn the_masks_of_parent_and_child_are_as_asked() {
    signal::set_ignored(Signal::USR1).unwrap();
    signal::block(SignalSet::empty().with(Signal::USR2));
    let before = signal::mask();
    let asked = SignalSet::empty().with(Signal::HUP).with("RTMAX-1".parse().unwrap());
    let ignored = SignalSet::empty().with(Signal::CHLD).with(Signal::PIPE).with(Signal::KILL);
    let options = SpawnOptions { mask: asked, ignored, ..SpawnOptions::default() };
    for (options, mask, ignored) in [
        (options, asked, ignored.without(Signal::KILL)),
        (SpawnOptions::default(), SignalSet::empty(), SignalSet::empty()),
    ] {
        let child = Guard::start(&sleeper(), &options);
        let sets = procfs::signal_sets(child.pid()).unwrap().unwrap();
        assert_eq!((sets.blocked, sets.ignored, sets.caught), (mask, ignored, SignalSet::empty()));
        assert_eq!(signal::mask(), before, "the parent's mask changed");
        assert!(
            signal::disposition_is_ignored(Signal::USR1) && !signal::disposition_is_ignored(Signal::CHLD)
        );
    }
    failure(&program(&["/missing"]), &SpawnOptions::default());
    assert_eq!(signal::mask(), before, "the parent's mask changed by a failure");
}

/// Waits to be killed. Unlike a program of the system it needs no shared libraries, so it opens nothing of its own.
fn rests(_: c_int, _: *const *const c_char) -> u8 {
    loop {
        std::thread::park();
    }
}

/// Returns what a process's descriptors are.
fn descriptors(pid: i32) -> BTreeMap<RawFd, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            (number, fs::read_link(path).unwrap().to_str().unwrap().to_owned())
        })
        .collect()
}

fn named(name: &str) -> (OwnedFd, String) {
    (memfd(&CString::new(name).unwrap()).unwrap(), format!("/memfd:{name} (deleted)"))
}

#[test]
fn overlapping_slots_get_their_own_sources() {
    let files = ["a", "b", "c", "d"].map(named);
    let number = |index: usize| files[index].0.as_raw_fd();
    let cases: [&[(usize, RawFd)]; 6] = [
        &[(0, number(1)), (1, number(0))],
        &[(1, number(0)), (0, number(1))],
        &[(0, number(1)), (1, number(2)), (2, number(3)), (3, number(0))],
        &[(0, number(0)), (1, number(2)), (2, number(1))],
        &[(0, number(1)), (0, number(2)), (0, 700)],
        &[(3, 3), (2, 4), (1, 5), (0, 6), (0, 0), (1, 1), (2, 2)],
    ];
    for close_others in [false, true] {
        for case in cases {
            let fds = case.iter().map(|(source, slot)| (number(*source), *slot)).collect();
            let child = Guard::start(
                &fixture("rests", &[]),
                &SpawnOptions { fds, close_others, ..SpawnOptions::default() },
            );
            let found = descriptors(child.pid());
            for (source, slot) in case {
                assert_eq!(found.get(slot), Some(&files[*source].1), "slot {slot} of {case:?}");
            }
            if close_others {
                let expected = case.iter().filter(|(_, slot)| *slot > 2).count();
                assert_eq!(found.keys().filter(|number| **number > 2).count(), expected, "{found:?}");
            }
        }
    }
    for (file, name) in &files {
        assert_eq!(descriptors(process::pid()).get(&file.as_raw_fd()), Some(name), "the parent lost its own");
        assert!(rustix::io::fcntl_getfd(file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn others_are_inherited_unless_closed() {
    let (file, name) = named("stray");
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let number = file.as_raw_fd();
    let with = |close_others| {
        let child =
            Guard::start(&fixture("rests", &[]), &SpawnOptions { close_others, ..SpawnOptions::default() });
        descriptors(child.pid())
    };
    assert_eq!(with(false).get(&number), Some(&name));
    assert!(with(true).keys().all(|number| *number <= 2));
}

#[test]
fn the_directory_is_entered_before_the_program_is_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "tool", "#!/bin/sh\npwd\n");
    let there = Program {
        dir: Some(CString::new(dir.path().to_str().unwrap()).unwrap()),
        env: vec![c"PATH=.".to_owned()],
        ..program(&["tool"])
    };
    let (text, exit) = output(&there, &SpawnOptions::default()).unwrap();
    assert_eq!(
        (Path::new(text.trim_end()), exit),
        (dir.path().canonicalize().unwrap().as_path(), Exit::Code(0))
    );
}

fn script(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
}

/// Executes its arguments by the C library's own execvp, and exits with the error where that fails.
fn searches(_: c_int, _: *const *const c_char) -> u8 {
    let arguments: Vec<CString> = std::env::args().skip(1).map(|word| CString::new(word).unwrap()).collect();
    let pointers: Vec<_> = arguments.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: the strings end in NUL and the vector in null; there is one thread. The fixture's own name for itself is
    // taken from the environment, so that both programs see the same.
    unsafe {
        libc::unsetenv(c"LARIAT_SYS_FIXTURE".as_ptr());
        libc::execvp(pointers[0], pointers.as_ptr());
        *libc::__errno_location() as u8
    }
}

/// What became of a search: the output of what was found, or the error.
type Found = Result<String, Errno>;

fn search_by_execvp(path: Option<&str>, dir: &Path, argv: &[&str]) -> Found {
    let mut reference = fixture("searches", argv);
    set_path(&mut reference, path, dir);
    // Found programs exit with 0.
    match output(&reference, &SpawnOptions::default()).unwrap() {
        (text, Exit::Code(0)) => Ok(text),
        (_, Exit::Code(errno)) => Err(Errno::from_raw_os_error(i32::from(errno))),
        (_, exit) => panic!("{exit:?}"),
    }
}

fn search_by_us(path: Option<&str>, dir: &Path, argv: &[&str]) -> Found {
    let mut ours = program(argv);
    set_path(&mut ours, path, dir);
    match output(&ours, &SpawnOptions::default()) {
        Ok((text, exit)) => {
            assert_eq!(exit, Exit::Code(0));
            Ok(text)
        }
        Err(SpawnError { step, errno }) => {
            assert_eq!(step, SpawnStep::Exec);
            Err(errno)
        }
    }
}

fn set_path(program: &mut Program, path: Option<&str>, dir: &Path) {
    program.env.retain(|entry| !entry.to_bytes().starts_with(b"PATH="));
    program.env.extend(path.map(|path| CString::new(format!("PATH={path}")).unwrap()));
    program.dir = Some(CString::new(dir.to_str().unwrap()).unwrap());
}

/// A directory of places to look in, each with something else that is wrong or right.
fn places() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let dir = root.path().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    let say = "#!/bin/sh\necho \"$0\" \"$@\"\n";
    script(&at("good"), "tool", say);
    script(&at("also"), "tool", say);
    script(&at("bare"), "tool", "echo bare \"$0\" \"$@\"\n");
    script(&at("broken"), "tool", "#!/missing/interpreter\n");
    fs::write(at("denied").join("tool"), say).unwrap();
    fs::create_dir(at("folder").join("tool")).unwrap();
    std::os::unix::fs::symlink("tool", at("circle").join("tool")).unwrap();
    script(root.path(), "file", say);
    script(root.path(), "tool", say);
    at("empty");
    root
}

/// Whatever execvp(3) of the C library does, in each of many places and orders, is what we do.
#[test]
fn the_search_is_execvps() {
    let root = places();
    let dir = root.path();
    let paths = [
        "good",
        "empty:good",
        "good:also",
        "denied:good",
        "denied",
        "denied:empty",
        "empty:denied",
        "folder",
        "folder:good",
        "bare",
        "bare:good",
        "denied:bare",
        "broken",
        "broken:good",
        "circle:good",
        "circle",
        "file:good",
        "file",
        "missing:good",
        "missing",
        "",
        ":",
        ":empty",
        "empty:",
        "empty::missing",
        ":denied",
        "denied:",
        "good/",
        "./good",
        "empty:missing:file",
    ];
    let mut seen = (0, 0);
    for path in paths.map(Some).into_iter().chain([None]) {
        for argv in [&["tool"][..], &["tool", "one", "two"], &["tool-that-is-missing"]] {
            let expected = search_by_execvp(path, dir, argv);
            assert_eq!(search_by_us(path, dir, argv), expected, "PATH {path:?}, {argv:?}");
            if expected.is_ok() { seen.0 += 1 } else { seen.1 += 1 }
        }
    }
    // The comparison would be worth nothing if all had failed, or none.
    assert!(seen.0 > 10 && seen.1 > 10, "{seen:?}");
    assert!(search_by_us(None, dir, &["true"]).is_ok(), "without PATH the default is searched");
}

/// As above, for names that are not looked for along `PATH`, and for the one case where we differ.
#[test]
fn names_that_are_no_search_are_execvps_too() {
    let root = places();
    let dir = root.path();
    let name = "x".repeat(300);
    for file in [
        "good/tool",
        "./tool",
        "bare/tool",
        "denied/tool",
        "missing/tool",
        "circle/tool",
        "",
        ".",
        "/",
        &name,
    ] {
        for path in [Some("good"), None] {
            let expected = search_by_execvp(path, dir, &[file, "one"]);
            assert_eq!(search_by_us(path, dir, &[file, "one"]), expected, "PATH {path:?}, {file:?}");
        }
    }
    let long = "y".repeat(5000);
    // The C library tries the working directory after an element that is too long; that is a slip of its own, and a
    // program in the working directory that nobody asked for is what we do not run. With nothing but such elements it
    // leaves the error of whatever failed before.
    assert_eq!(search_by_us(Some(&long), dir, &["tool"]), Err(Errno::NOENT));
    assert_eq!(search_by_us(Some(&format!("{long}:good")), dir, &["tool"]), Ok("good/tool\n".to_owned()));
}

/// Starts a sleeper that is to die with it, says who that is, and waits.
fn spawns_and_waits(_: c_int, _: *const *const c_char) -> u8 {
    let signal = std::env::args().nth(1).unwrap().parse().unwrap();
    let child =
        spawn(&sleeper(), &SpawnOptions { parent_death: Some(signal), ..SpawnOptions::default() }).unwrap();
    say(&child.pid.to_string());
    child.pidfd.wait_exit(None).unwrap();
    0
}

#[test]
fn the_parent_death_signal_comes() {
    process::set_subreaper(true).unwrap();
    for signal in [Signal::TERM, Signal::KILL, Signal::USR1] {
        let (read, write) = pipe(0).unwrap();
        let options = SpawnOptions { fds: vec![(write.as_raw_fd(), 1)], ..SpawnOptions::default() };
        let mut parent = Guard::start(&fixture("spawns_and_waits", &[&signal.to_string()]), &options);
        let mut line = [0; 32];
        let length = rustix::io::read(&read, &mut line).unwrap();
        let pid: i32 = std::str::from_utf8(&line[..length]).unwrap().trim().parse().unwrap();
        let sleeper = Identity::of(pid).unwrap().unwrap();
        parent.signal(Signal::KILL);
        parent.exit();
        let exit = Exit::Signal { signal, core: false };
        eventually("the orphan died of it", || {
            reap::peek() == Ok(Some(ChildEvent::Exited { pid: sleeper.pid, exit }))
        });
        reap::reap(sleeper.pid).unwrap();
    }
}

/// In which process the handler below ran last that is not the one that installed it; 0 for none.
static STRANGER: AtomicI32 = AtomicI32::new(0);
/// How often it ran in the right one.
static RUNS: AtomicI32 = AtomicI32::new(0);
static OWNER: AtomicI32 = AtomicI32::new(0);

extern "C" fn count(_: c_int) {
    // SAFETY: getpid(2) has no preconditions. It is asked raw, because a library may remember the answer.
    let pid = unsafe { libc::syscall(libc::SYS_getpid) } as i32;
    if pid == OWNER.load(Ordering::Relaxed) {
        RUNS.fetch_add(1, Ordering::Relaxed);
    } else {
        STRANGER.store(pid, Ordering::Relaxed);
    }
}

/// Spawns while a thread signals the whole group, children between clone and exec included.
fn spawns_in_a_storm(_: c_int, _: *const *const c_char) -> u8 {
    OWNER.store(process::pid(), Ordering::Relaxed);
    // SAFETY: the handler only touches atomics. kill(2) takes integers; the fixture leads a session of its own.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
    std::thread::spawn(|| {
        loop {
            // SAFETY: as above.
            unsafe { libc::kill(0, libc::SIGUSR1) };
        }
    });
    let options = SpawnOptions::default();
    let mut died = 0;
    for _ in 0..200 {
        // A child that dies of the storm before it executes anything looks like one that executed.
        match spawn(&program(&["/bin/true"]), &options) {
            Ok(child) => {
                child.pidfd.wait_exit(None).unwrap();
                let (exit, _) = reap::reap(child.pid).unwrap().unwrap();
                died += i32::from(exit == Exit::Signal { signal: Signal::USR1, core: false });
            }
            Err(error) => say(&error.to_string()),
        }
    }
    say(&format!("stranger {}", STRANGER.load(Ordering::Relaxed)));
    say(&format!("storm {}", died > 0 && RUNS.load(Ordering::Relaxed) > 100));
    0
}

#[test]
fn handlers_do_not_run_in_the_child() {
    let options = SpawnOptions { new_session: true, ..SpawnOptions::default() };
    let (text, exit) = output(&fixture("spawns_in_a_storm", &[]), &options).unwrap();
    assert_eq!((text.as_str(), exit), ("stranger 0\nstorm true\n", Exit::Code(0)));
}

#[test]
fn many_threads_spawn_at_once() {
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for round in 0..25 {
                    let code = (thread * 25 + round) as u8;
                    let child = spawn(&shell(&format!("exit {code}")), &SpawnOptions::default()).unwrap();
                    child.pidfd.wait_exit(None).unwrap();
                    assert_eq!(reap::reap(child.pid).unwrap().unwrap().0, Exit::Code(code));
                    let missing = spawn(&program(&["/missing"]), &SpawnOptions::default());
                    assert_eq!(missing.unwrap_err(), error(SpawnStep::Exec, Errno::NOENT));
                }
            });
        }
    });
    assert_eq!(reap::peek(), Err(Errno::CHILD));
}

#[test]
fn nothing_is_left_open() {
    let before = descriptors(process::pid());
    for _ in 0..50 {
        let mut child = Guard::start(&program(&["/bin/true"]), &SpawnOptions::default());
        child.exit();
        failure(&program(&["/missing"]), &SpawnOptions::default());
    }
    assert_eq!(descriptors(process::pid()), before);
}

/// Leaves its session, in which its child stays; that one's first words are the `stat` of both.
fn leaves_its_session(_: c_int, _: *const *const c_char) -> u8 {
    let script =
        "read -r parent < /proc/$PPID/stat; read -r own < /proc/$$/stat; echo \"$parent\"; echo \"$own\"";
    let child =
        spawn(&shell(script), &SpawnOptions { leaves_session: true, ..SpawnOptions::default() }).unwrap();
    child.pidfd.wait_exit(None).unwrap();
    0
}

/// Group and session in a line of `/proc/PID/stat`.
fn group_and_session(stat: &str) -> (i32, i32) {
    let mut fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(2).map(|field| field.parse().unwrap());
    (fields.next().unwrap(), fields.next().unwrap())
}

#[test]
fn a_caller_has_left_its_session_before_its_child_executes_and_the_child_stays() {
    let own = group_and_session(&fs::read_to_string("/proc/self/stat").unwrap());
    for _ in 0..40 {
        let (said, exit) = output(&fixture("leaves_its_session", &[]), &SpawnOptions::default()).unwrap();
        assert_eq!(exit, Exit::Code(0));
        let [parent, child] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
        let number: i32 = parent.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(group_and_session(parent), (number, number), "{said}");
        assert_eq!(group_and_session(child), own, "{said}");
    }
}
