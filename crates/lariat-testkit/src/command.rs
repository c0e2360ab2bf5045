//! Programs under test: started with a known environment, waited for with a deadline, output captured in files.
//!
//! Output goes to files, not pipes, so that a leaked process that holds the descriptor cannot hold up the test, and
//! so that a test may read it while the program runs.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

use crate::Facts;
use crate::census::Seen;
use crate::reaper;
use crate::wait::PATIENCE;

/// A program to be started. Made by [`crate::Arena::command`] with the arena's environment and nothing else.
pub struct Command {
    inner: std::process::Command,
    stdout: PathBuf,
    stderr: PathBuf,
    has_stdout: bool,
    has_stderr: bool,
    name: String,
}

impl Command {
    pub(crate) fn new(program: &OsStr, env: &[(OsString, OsString)], capture: &Path) -> Self {
        let mut inner = std::process::Command::new(program);
        inner.env_clear().envs(env.iter().cloned()).stdin(Stdio::null());
        let name = program.to_string_lossy().into_owned();
        let (stdout, stderr) = (capture.with_extension("out"), capture.with_extension("err"));
        Self { inner, stdout, stderr, has_stdout: false, has_stderr: false, name }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.inner.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.inner.args(args);
        self
    }

    /// Adds `--facts DIR` for a fixture.
    #[must_use]
    pub fn facts(self, facts: &Facts) -> Self {
        self.arg("--facts").arg(facts.dir())
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.inner.current_dir(dir);
        self
    }

    /// Sets standard input; it is `/dev/null` otherwise.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.inner.stdin(stdin);
        self
    }

    /// Sets standard output instead of capturing it.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.inner.stdout(stdout);
        self.has_stdout = true;
        self
    }

    /// Sets standard error instead of capturing it.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.inner.stderr(stderr);
        self.has_stderr = true;
        self
    }

    /// Makes it the leader of a process group of its own, so that the group can be signalled.
    #[must_use]
    pub fn own_group(mut self) -> Self {
        self.inner.process_group(0);
        self
    }

    /// Makes it the leader of a session of its own, without a terminal.
    #[must_use]
    pub fn own_session(self) -> Self {
        self.in_child(|| rustix::process::setsid().map(drop).map_err(Into::into))
    }

    /// Runs it as another user and group, without supplementary groups. Only root can.
    #[must_use]
    pub fn as_user(mut self, uid: u32, gid: u32) -> Self {
        self.inner.uid(uid).gid(gid);
        self
    }

    /// Starts it with these signals ignored.
    #[must_use]
    pub fn ignoring(self, signals: &'static [i32]) -> Self {
        self.in_child(move || {
            for signal in signals {
                // SAFETY: a disposition without a handler; signal(2) is async-signal-safe.
                unsafe { libc::signal(*signal, libc::SIG_IGN) };
            }
            Ok(())
        })
    }

    /// Starts it with these signals blocked.
    #[must_use]
    pub fn blocking(self, signals: &'static [i32]) -> Self {
        self.in_child(move || {
            // SAFETY: a zeroed set is made valid by sigemptyset; all calls are async-signal-safe.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                for signal in signals {
                    libc::sigaddset(&raw mut set, *signal);
                }
                libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            }
            Ok(())
        })
    }

    /// Starts it with these descriptors closed.
    #[must_use]
    pub fn closing(self, descriptors: &'static [i32]) -> Self {
        self.in_child(move || {
            for descriptor in descriptors {
                // SAFETY: this happens in the child just before exec; nothing there uses the descriptor again.
                unsafe { libc::close(*descriptor) };
            }
            Ok(())
        })
    }

    /// Runs `step` in the child between fork and exec: async-signal-safe calls only.
    pub(crate) fn in_child(mut self, step: impl Fn() -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        // SAFETY: callers are in this crate and keep to async-signal-safe calls without allocation.
        unsafe { self.inner.pre_exec(step) };
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(mut self) -> Running {
        if !self.has_stdout {
            self.inner.stdout(File::create(&self.stdout).expect("the arena is writable"));
        }
        if !self.has_stderr {
            self.inner.stderr(File::create(&self.stderr).expect("the arena is writable"));
        }
        let started = Instant::now();
        let child = match self.inner.spawn() {
            Ok(child) => child,
            Err(error) => panic!("could not start {}: {error}", self.name),
        };
        let pid = i32::try_from(child.id()).expect("a pid is positive");
        reaper::know(pid);
        Running { child, pid, started, stdout: self.stdout, stderr: self.stderr, name: self.name }
    }

    /// Starts it and waits for its end, [`PATIENCE`] long.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    #[track_caller]
    pub fn run(self) -> Ending {
        self.start().wait()
    }
}

/// A started program. Dropping it does nothing to the process: the arena's census will find it.
pub struct Running {
    child: Child,
    pid: i32,
    started: Instant,
    stdout: PathBuf,
    stderr: PathBuf,
    name: String,
}

impl Running {
    /// Returns its number, which is another one's as soon as its end was seen.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns the process as it is now; `None` once its end was seen.
    #[must_use]
    pub fn seen(&self) -> Option<Seen> {
        if reaper::has_ended(self.pid) { None } else { Seen::of(self.pid) }
    }

    /// Returns whether it is alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.seen().is_some_and(|seen| seen.is_alive())
    }

    /// Sends it a signal (by number); nothing happens when it has ended.
    pub fn signal(&self, signal: i32) {
        if reaper::has_ended(self.pid) {
            return;
        }
        if let (Some(pid), Some(signal)) = (Pid::from_raw(self.pid), Signal::from_named_raw(signal)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Sends a signal to the process group that it leads.
    ///
    /// # Panics
    /// When it leads none: the signal would hit the test itself.
    pub fn signal_group(&self, signal: i32) {
        let seen = self.seen();
        assert!(seen.is_some_and(|seen| seen.group == self.pid), "{} leads no process group", self.name);
        if let (Some(pid), Some(signal)) = (Pid::from_raw(self.pid), Signal::from_named_raw(signal)) {
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Takes its standard input, if that was set to a pipe.
    pub fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Takes its standard output, if that was set to a pipe.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Returns what it has written to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// Returns what it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Waits for its end, [`PATIENCE`] long.
    ///
    /// # Panics
    /// When it does not end, with what it has said.
    #[track_caller]
    pub fn wait(&self) -> Ending {
        self.wait_at_most(PATIENCE)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within `patience`, with what it has said.
    #[track_caller]
    pub fn wait_at_most(&self, patience: Duration) -> Ending {
        match self.ended(patience) {
            Some(ending) => ending,
            None => panic!(
                "{} ({}) did not end within {patience:?}\nstdout: {}\nstderr: {}",
                self.name,
                self.pid,
                self.stdout(),
                self.stderr()
            ),
        }
    }

    /// Returns its end if it comes within `patience`.
    pub fn ended(&self, patience: Duration) -> Option<Ending> {
        let deadline = Instant::now() + patience;
        let pid = Pid::from_raw(self.pid)?;
        let reference = pidfd_open(pid, PidfdFlags::empty()).ok();
        loop {
            reaper::reap();
            if let Some(status) = reaper::status(self.pid) {
                return Some(self.ending(status));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if let Some(reference) = &reference {
                let limit = rustix::event::Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(left.subsec_nanos()),
                };
                let _ = poll(&mut [PollFd::new(reference, PollFlags::IN)], Some(&limit));
            }
        }
    }

    fn ending(&self, status: ExitStatus) -> Ending {
        let (stdout, stderr) =
            (fs::read(&self.stdout).unwrap_or_default(), fs::read(&self.stderr).unwrap_or_default());
        Ending { status, stdout, stderr, took: self.started.elapsed() }
    }
}

/// How a program ended.
pub struct Ending {
    status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// From its start to the moment its end was noticed.
    pub took: Duration,
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {:?}\nstdout: {}\nstderr: {}", self.status, self.took, self.out(), self.err())
    }
}

impl Ending {
    /// Returns the exit code, or `None` when it died of a signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Returns the signal it died of.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Returns standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Asserts the exit code and returns the ending.
    ///
    /// # Panics
    /// When it ended in another way, with everything it said.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self:?}");
        self
    }
}
