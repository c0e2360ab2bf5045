//! What the tests of this crate share: processes to look at, and waiting for facts.
//!
//! The tests change what a process has only one of (mask, subreaper, children), so each needs a process of its own:
//! `cargo nextest` gives them one.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::ffi::{CString, c_char, c_int};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::procfs::{self, State};
use lariat_sys::reap::{self, Exit};
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{Child, Program, SpawnError, SpawnOptions, spawn};

/// The longest that any fact may take to become true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never so: {what}");
        std::thread::yield_now();
    }
}

/// Says what a test leaves out, and why.
#[allow(clippy::print_stdout, reason = "a skip is never silent")]
pub(crate) fn skip(what: &str) {
    println!("skipped: {what}");
}

/// Returns a program with these arguments and a small environment.
pub(crate) fn program(argv: &[&str]) -> Program {
    Program {
        argv: argv.iter().map(|word| CString::new(*word).unwrap()).collect(),
        env: vec![c"PATH=/bin:/usr/bin".to_owned()],
        search_path: true,
        ..Program::default()
    }
}

/// Returns a program that runs a script.
pub(crate) fn shell(script: &str) -> Program {
    program(&["/bin/sh", "-c", script])
}

/// The variable that names the fixture to run instead of the tests.
const FIXTURE: &str = "LARIAT_SYS_FIXTURE";

/// Returns this very test program, so that it runs one of its fixtures instead of its tests.
pub(crate) fn fixture(name: &str, arguments: &[&str]) -> Program {
    let exe = std::env::current_exe().unwrap();
    let mut program = program(&[&[exe.to_str().unwrap()], arguments].concat());
    program.env.push(CString::new(format!("{FIXTURE}={name}")).unwrap());
    program
}

/// What a fixture does, given main's arguments; it returns its exit code.
pub(crate) type Fixture = fn(c_int, *const *const c_char) -> u8;

/// Runs the fixture that the environment names, if any: called before `main`, when there is one thread.
///
/// A fixture ends by `exit_now`, because the C library has not finished starting the program.
pub(crate) fn run_fixture(argc: c_int, argv: *const *const c_char, fixtures: &[(&str, Fixture)]) {
    let Ok(name) = std::env::var(FIXTURE) else { return };
    let (_, run) = fixtures.iter().find(|(known, _)| *known == name).expect("a fixture of that name");
    lariat_sys::process::exit_now(run(argc, argv));
}

/// Makes a program of tests able to run fixtures.
#[macro_export]
macro_rules! fixtures {
    ($($name:ident),* $(,)?) => {
        extern "C" fn before_main(argc: std::ffi::c_int, argv: *const *const std::ffi::c_char) {
            support::run_fixture(argc, argv, &[$((stringify!($name), $name)),*]);
        }

        // SAFETY: the C library calls the functions of this section before main, with main's arguments.
        #[used]
        #[unsafe(link_section = ".init_array")]
        static BEFORE_MAIN: extern "C" fn(std::ffi::c_int, *const *const std::ffi::c_char) = before_main;
    };
}

/// A child that is killed and reaped when dropped.
pub(crate) struct Guard {
    pub(crate) child: Child,
    is_reaped: bool,
}

impl Guard {
    pub(crate) fn start(program: &Program, options: &SpawnOptions) -> Guard {
        Guard::try_start(program, options).unwrap()
    }

    pub(crate) fn try_start(program: &Program, options: &SpawnOptions) -> Result<Guard, SpawnError> {
        let guard = Guard { child: spawn(program, options)?, is_reaped: false };
        // HAZARD(exec-not-finished): the arguments are laid out last.
        eventually("it executes its program", || {
            let is_over =
                procfs::read_stat(guard.pid()).unwrap().is_none_or(|stat| stat.state == State::Zombie);
            is_over || procfs::cmdline(guard.pid()).unwrap().is_none_or(|arguments| !arguments.is_empty())
        });
        Ok(guard)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.pid
    }

    pub(crate) fn identity(&self) -> Identity {
        self.child.identity
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.child.pidfd.signal(signal).unwrap();
    }

    /// Waits for the end and reaps.
    #[track_caller]
    pub(crate) fn exit(&mut self) -> Exit {
        let is_over = self.child.pidfd.wait_exit(Some(Instant::now() + PATIENCE)).unwrap();
        assert!(is_over, "process {} does not end", self.child.pid);
        let (exit, _) = reap::reap(self.child.pid).unwrap().unwrap();
        self.is_reaped = true;
        exit
    }

    /// Waits until the process waits.
    pub(crate) fn settle(&self) {
        eventually("the process waits", || {
            procfs::read_stat(self.pid()).unwrap().is_some_and(|stat| stat.state == State::Sleeping)
        });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = self.child.pidfd.signal(Signal::KILL);
            let _ = self.child.pidfd.wait_exit(Some(Instant::now() + PATIENCE));
            let _ = reap::reap(self.child.pid);
        }
    }
}

/// Ends every descendant of the calling process, which is their subreaper, until the kernel says that none is left.
pub(crate) fn end_descendants() {
    eventually("no descendant is left", || {
        let mut found = Vec::new();
        lariat_sys::tree::walk(lariat_sys::process::pid(), &[], &mut found).unwrap();
        for stat in &found {
            if let Ok(process) = lariat_sys::pidfd::PidFd::open(stat.identity()) {
                let _ = process.signal(Signal::KILL);
            }
        }
        while let Ok(Some(reap::ChildEvent::Exited { pid, .. })) = reap::peek() {
            let _ = reap::reap(pid);
        }
        !reap::has_children()
    });
}

/// Runs a program to its end and returns what it wrote to its output and how it ended.
#[track_caller]
pub(crate) fn output(program: &Program, options: &SpawnOptions) -> Result<(String, Exit), SpawnError> {
    let (read, write) = lariat_sys::files::pipe(0).unwrap();
    let mut options = options.clone();
    options.fds.push((write.as_raw_fd(), 1));
    let mut guard = Guard::try_start(program, &options)?;
    drop(write);
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    Ok((text, guard.exit()))
}

/// Writes a line to descriptor 1, from a fixture.
pub(crate) fn say(text: &str) {
    let line = format!("{text}\n");
    rustix::io::write(rustix::stdio::stdout(), line.as_bytes()).unwrap();
}
