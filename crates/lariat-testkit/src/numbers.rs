//! Pids that come back: a pid namespace of few numbers, and strangers who wear the number that somebody had before.
//!
//! A test calls [`inside`] with its own name. It then runs again in a pid namespace of its own, where a hundred forks
//! use up all numbers, and the number of a process that was reaped comes round to a [`Stranger`] by the kernel's own
//! doing. The namespace ends with the test, and takes along whatever is left in it.

use std::io::{Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::census::Seen;
use crate::wait::wait_at_most;
use crate::{is_root, needs};

/// The variable that says that the test is inside, and whether the namespace has few numbers.
const INSIDE: &str = "LARIAT_TEST_NUMBERS";
/// The first number that the namespace does not give out.
const PID_MAX: i32 = 400;
/// Numbers below are given out once and never again: the kernel's `RESERVED_PIDS`.
const FIRST_TO_COME_BACK: i32 = 300;
/// Longer than one of these tests takes on a machine under load.
const LIMIT: Duration = Duration::from_secs(150);
/// Forks after which a number must have come round, however many were in use on the way.
const FORKS_MAX: u32 = 4000;

/// What runs inside. `$0` says whether the limit of the namespace is its own and may be changed.
const INIT: &str = "\
few=
if [ \"$0\" = own ] && echo 400 > /proc/sys/kernel/pid_max; then few=yes; fi
export LARIAT_TEST_NUMBERS=\"inside $few\"
\"$@\"
exit $?";

/// The numbers of the namespace that the test runs in.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// All of them come round by forking alone. Otherwise (KERNEL(6.14): `pid_max` of a namespace) there are too many,
    /// and the counter is set back to where it would have come round to.
    is_few: bool,
}

/// Runs `body` in a pid namespace of its own with few numbers; `test` is the path of the calling test.
///
/// A skip where a user may not make namespaces.
///
/// # Panics
/// When the test fails inside.
#[track_caller]
pub fn inside(test: &str, body: impl FnOnce(Numbers)) {
    if let Ok(inside) = std::env::var(INSIDE) {
        let numbers = Numbers { is_few: inside.ends_with("yes") };
        numbers.burn();
        return body(numbers);
    }
    let Some(enter) = way_in() else {
        return needs::skip("no pid namespace: neither as root nor as a user");
    };
    let own = std::env::current_exe().expect("/proc is mounted");
    let limit = if has_own_limits() { "own" } else { "shared" };
    let mut command = Command::new(&enter[0]);
    command.args(&enter[1..]).args(["sh", "-c", INIT, limit]);
    command.arg(own).args([test, "--exact", "--nocapture"]);
    let said = run(command);
    // A name that no test has would run nothing, successfully.
    assert!(said.contains("test result: ok. 1 passed"), "inside the namespace `{test}` failed:\n{said}");
}

/// Says whether each pid namespace has a limit of its own.
///
/// KERNEL(6.14): before, the one limit is the whole machine's, and even to try would change it. Hence the version, which
/// is no way to ask for a feature otherwise.
fn has_own_limits() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6_u32), Some(14))
}

/// Runs it to its end and returns all that it said.
fn run(mut command: Command) -> String {
    let mut said = tempfile::tempfile().expect("the temporary directory is writable");
    let copy = || said.try_clone().expect("a descriptor");
    command.stdin(Stdio::null()).stdout(copy()).stderr(copy());
    let mut child = command.spawn().expect("`unshare` was there a moment ago");
    let status = wait_at_most(LIMIT, || child.try_wait().expect("it is our child"));
    if status.is_none() {
        // Its death takes the namespace along.
        let _ = child.kill();
        let _ = child.wait();
    }
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).expect("the file is ours");
    assert!(status.is_some(), "the test inside the namespace did not end within {LIMIT:?}:\n{text}");
    text
}

/// Returns the command in front of what is to run in a new pid namespace with a `/proc` of its own.
fn way_in() -> Option<Vec<String>> {
    let unshare: PathBuf = needs::found("unshare")?;
    let common = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let ways: [&[&str]; 2] = [&[], &["--user", "--map-root-user"]];
    let ways = ways.iter().skip(usize::from(!is_root()));
    let mut commands = ways.map(|way| {
        let words = way.iter().chain(&common).map(|word| (*word).to_owned());
        [unshare.display().to_string()].into_iter().chain(words).collect::<Vec<String>>()
    });
    commands.find(|command| {
        let probe = Command::new(&command[0]).args(&command[1..]).arg("true").output();
        probe.is_ok_and(|probe| probe.status.success())
    })
}

impl Numbers {
    /// Says whether all numbers come round by a few hundred forks; a skip where they do not.
    ///
    /// # Panics
    /// As [`needs::skip`].
    #[must_use]
    #[track_caller]
    pub fn are_few(self) -> bool {
        if !self.is_few {
            needs::skip("this kernel has one limit of pids for all namespaces: none has few numbers");
        }
        self.is_few
    }

    /// Uses up the numbers that do not come back, so that everybody who starts from now on has one that does.
    fn burn(self) {
        if !self.is_few {
            return set_last(FIRST_TO_COME_BACK);
        }
        for _ in 0..FORKS_MAX {
            if fork_and_end() >= FIRST_TO_COME_BACK {
                return;
            }
        }
        panic!("no number of {FIRST_TO_COME_BACK} or more in {FORKS_MAX} forks");
    }

    /// Lets the numbers come round until a stranger has `pid`, which must be free. With `leads`, the stranger leads a
    /// session and a group of its number.
    ///
    /// # Panics
    /// When the number does not come back.
    #[must_use]
    pub fn stranger(self, pid: i32, leads: bool) -> Stranger {
        if !self.is_few {
            set_last(pid - 1);
        }
        for _ in 0..FORKS_MAX {
            if let Some(stranger) = fork_stranger(Some(pid), leads) {
                return stranger;
            }
        }
        panic!("number {pid} did not come back in {FORKS_MAX} forks; limit {PID_MAX}, {self:?}");
    }

    /// Starts a stranger with the next free number; `None` where there is none for now.
    #[must_use]
    pub fn next(self) -> Option<Stranger> {
        fork_stranger(None, false)
    }

    /// Lets all numbers come round and says whether `pid` was given to nobody: somebody has it, be it a zombie.
    #[must_use]
    pub fn is_taken(self, pid: i32) -> bool {
        if !self.is_few {
            set_last(pid - 1);
            return fork_and_end() != pid;
        }
        (0..2 * PID_MAX).all(|_| fork_and_end() != pid)
    }

    /// Does what [`Self::stranger`] does by setting the counter back, in much less than a tick.
    #[must_use]
    pub fn stranger_at_once(self, pid: i32, leads: bool) -> Option<Stranger> {
        set_last(pid - 1);
        fork_stranger(Some(pid), leads)
    }
}

/// Makes the next number the one after `pid`: allowed to whoever owns the namespace.
fn set_last(pid: i32) {
    std::fs::write("/proc/sys/kernel/ns_last_pid", pid.to_string()).expect("the namespace is ours");
}

/// A process that has a number that somebody else had before. It waits for any signal to end it; dropping it ends and
/// reaps it.
#[derive(Debug)]
pub struct Stranger {
    /// Who it is.
    pub seen: Seen,
}

impl Stranger {
    /// Returns whether nothing has ended it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.seen.is_alive_now()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.seen.kill();
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result; the child was killed, so the wait is short. Where somebody
        // else has reaped it, the error says so and is ignored.
        let _ = unsafe { libc::waitpid(self.seen.pid, &raw mut status, libc::__WALL) };
    }
}

/// Forks a process that ends at once, and returns the number that it had.
fn fork_and_end() -> i32 {
    // SAFETY: the child makes one call, which is allowed after a fork of a process with threads.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: it ends the process.
        unsafe { libc::_exit(0) }
    }
    assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: `status` is a valid place, and the child ends at once.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    pid
}

/// Signals whoever has a number, as nobody should: what negative controls do.
pub fn kill_number(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // Nobody may have it by now.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Forks a process, which stays if it got the number `wanted`, or if any will do.
fn fork_stranger(wanted: Option<i32>, leads: bool) -> Option<Stranger> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both descriptors.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0, "a pipe");
    // SAFETY: the child makes a few calls, all allowed after a fork of a process with threads, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above; the byte is a live one.
        unsafe {
            if wanted.is_some_and(|wanted| libc::getpid() != wanted) {
                libc::_exit(0);
            }
            if leads {
                libc::setsid();
            }
            libc::write(ends[1], [1_u8].as_ptr().cast(), 1);
            loop {
                libc::pause();
            }
        }
    }
    let error = std::io::Error::last_os_error();
    assert!(pid > 0 || error.raw_os_error() == Some(libc::EAGAIN), "fork: {error}");
    let mut byte = [0_u8];
    // SAFETY: both descriptors are ours; the buffer is a live byte. The read ends with the byte, or with the child.
    let is_there = unsafe {
        libc::close(ends[1]);
        let read = libc::read(ends[0], byte.as_mut_ptr().cast(), 1);
        libc::close(ends[0]);
        read == 1
    };
    if pid < 0 {
        return None;
    }
    if is_there {
        return Seen::of(pid).map(|seen| Stranger { seen });
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place, and the child has ended.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    None
}
