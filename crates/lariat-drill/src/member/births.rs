//! Trees whose processes were born in unusual ways: by other threads, with other parents, without an exit signal.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::process::Command;
use std::time::{Duration, Instant};

use lariat_sys::signal::{self, Signal};
use lariat_sys::spawn::{self, Program, SpawnOptions};
use lariat_sys::unusual::{self, Birth};
use lariat_sys::{process, procfs};

use super::part::Part;

/// A child that was started by a thread that is not the main one.
pub(crate) fn thread_fork(part: &Part) -> ! {
    part.prepare();
    let part_of_thread = part.clone();
    let started = std::thread::spawn(move || {
        let started = spawn_role(&part_of_thread, "plain-member");
        // The thread has to stay: its child would go to another thread otherwise.
        drop(started);
        loop {
            std::thread::park();
        }
    });
    drop(started);
    part.lead(1)
}

/// A daemon whose main thread has ended while another one, which has a child, goes on.
pub(crate) fn headless(part: &Part) -> ! {
    part.daemon(|| {
        part.nullify();
        part.prepare();
        let body = part.clone();
        std::thread::spawn(move || {
            spawn_role(&body, "plain-member");
            body.member("headless")
        });
        let error = unusual::end_main_thread();
        part.broken("end the main thread", error)
    });
    part.lead(2)
}

/// A leader whose main thread has ended, and whose other thread then executes a program: it keeps its number, and was
/// never the parent's own thread, so that the signal of a parent's death is gone.
pub(crate) fn thread_exec(part: &Part) -> ! {
    part.child(|| part.member("child"));
    let part = part.clone();
    std::thread::spawn(move || {
        let main = process::pid();
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Ok(Some(stat)) = procfs::read_stat(main)
            && stat.state != procfs::State::Zombie
            && Instant::now() < deadline
        {
            std::thread::yield_now();
        }
        let words = part.as_role("thread-exec-leader", Vec::new()).arguments();
        // That of the process is its main thread's, and gone.
        let error = Command::new("/proc/thread-self/exe").args(words).exec_as_is();
        part.broken("execute itself", error)
    });
    let error = unusual::end_main_thread();
    process::exit_now(u8::try_from(error.raw_os_error()).unwrap_or(1))
}

/// The second half of [`thread_exec`].
pub(super) fn thread_exec_leader(part: &Part) -> ! {
    part.lead(1)
}

/// A child that is another program, whose parent sleeps in the kernel until it is gone.
pub(crate) fn vfork(part: &Part) -> ! {
    part.child(|| {
        // While it sleeps in the kernel only a signal that ends it gets through.
        part.stand_wild("sleeper");
        if part.fork(Birth::ParentWaits).is_none() {
            part.member("child");
        }
        part.live("sleeper")
    });
    part.lead(2)
}

/// A grandchild that was made a child of the leader, and one that was made a child of the keeper itself.
pub(crate) fn sibling(part: &Part) -> ! {
    part.child(|| {
        if part.fork(Birth::Sibling).is_none() {
            part.member("sibling");
        }
        part.member("child")
    });
    if part.fork(Birth::Sibling).is_none() {
        part.member("uncle");
    }
    part.lead(3)
}

/// A member that adopts orphans itself, with daemons below it.
pub(crate) fn subreaper(part: &Part) -> ! {
    const DAEMONS: usize = 3;
    part.child(|| {
        let _ = process::set_subreaper(true);
        for _ in 0..DAEMONS {
            part.daemon(|| {
                part.nullify();
                part.member("daemon")
            });
        }
        part.member("reaper")
    });
    part.lead(DAEMONS + 1)
}

/// Processes that share their parent's memory.
pub(crate) fn shared_memory(part: &Part) -> ! {
    part.child(|| {
        for _ in 0..2 {
            if let Err(errno) = unusual::share_memory(part.time_left()) {
                part.broken("share memory", errno);
            }
        }
        part.member("child")
    });
    part.lead(1)
}

/// Daemons whose end sends no signal, so that only a wait for all kinds sees it.
pub(crate) fn silent(part: &Part) -> ! {
    odd_children(part, Birth::Silent)
}

/// Daemons whose end sends URG in place of CHLD.
pub(crate) fn odd_signal(part: &Part) -> ! {
    odd_children(part, Birth::OddSignal)
}

fn odd_children(part: &Part, birth: Birth) -> ! {
    part.daemon(|| {
        if part.fork(birth).is_none() {
            part.new_session();
            part.nullify();
            part.member("odd");
        }
    });
    if part.fork(birth).is_none() {
        part.member("odd");
    }
    part.lead(2)
}

/// A parent whose children are reaped by the kernel, since it ignores CHLD.
pub(crate) fn unwaited(part: &Part) -> ! {
    let _ = signal::set_ignored(Signal::CHLD);
    part.child(|| {
        for _ in 0..20 {
            part.child(|| {});
        }
        part.child(|| {
            part.new_session();
            part.member("grandchild")
        });
        part.member("child")
    });
    part.lead(2)
}

/// A run of lariat inside, with a daemon in it.
pub(crate) fn nested(part: &Part) -> ! {
    part.child(|| {
        let inner = part.as_role("inner-daemon", Vec::new()).arguments();
        let exe = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        let error =
            Command::new(&exe).args(["run", "--grace", "20s", "--"]).arg(&exe).args(inner).exec_as_is();
        part.broken("execute lariat", error)
    });
    part.lead(2)
}

/// The command of the run in [`nested`].
pub(super) fn inner_daemon(part: &Part) -> ! {
    part.daemon(|| {
        part.nullify();
        part.member("inner-daemon")
    });
    part.member("inner-leader")
}

/// Executes; a name for the one call that never comes back.
trait ExecAsIs {
    fn exec_as_is(&mut self) -> std::io::Error;
}

impl ExecAsIs for Command {
    fn exec_as_is(&mut self) -> std::io::Error {
        std::os::unix::process::CommandExt::exec(self)
    }
}

/// Starts this executable as a member in this role, from whatever thread.
pub(super) fn spawn_role(part: &Part, role: &str) -> Option<spawn::Child> {
    let text = |words: Vec<std::ffi::OsString>| {
        words.into_iter().filter_map(|word| CString::new(word.into_vec()).ok()).collect::<Vec<_>>()
    };
    let mut argv = vec![std::ffi::OsString::from("/proc/self/exe")];
    argv.extend(part.as_role(role, Vec::new()).arguments());
    let env = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let program = Program { argv: text(argv), env: text(env.collect()), ..Program::default() };
    match spawn::spawn(&program, &SpawnOptions::default()) {
        Ok(child) => Some(child),
        Err(error) => part.broken("start a member", error),
    }
}

/// Says who stands above the caller, the nearest first, up to the judge and without it. Empty where the judge is not
/// above, or its number is another one's: nobody is attacked then.
pub(super) fn above(part: &Part) -> Vec<i32> {
    let mut found = Vec::new();
    if part.is_in_own_namespace() {
        return found;
    }
    let mut at = process::parent_pid();
    for _ in 0..64 {
        if at == part.judge_pid {
            return found;
        }
        found.push(at);
        match procfs::read_stat(at) {
            Ok(Some(stat)) if stat.ppid > 1 => at = stat.ppid,
            _ => break,
        }
    }
    Vec::new()
}
