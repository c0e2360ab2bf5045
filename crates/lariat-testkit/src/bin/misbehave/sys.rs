//! The system calls of the fixtures, each with just the meaning they need. Failures that would make a fixture
//! another fixture end it with code 70.

use std::ffi::CString;

/// The exit code of a fixture that could not become what it should be.
const BROKEN: i32 = 70;

/// Writes to standard error.
pub(crate) fn complain(text: &str) {
    write_all(2, text.as_bytes());
}

/// Returns this process's id.
pub(crate) fn pid() -> i32 {
    // SAFETY: no argument, no memory.
    unsafe { libc::getpid() }
}

/// Returns CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn now() -> u64 {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `at` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut at) };
    at.tv_sec.unsigned_abs().saturating_mul(1_000_000_000).saturating_add(at.tv_nsec.unsigned_abs())
}

fn timespec(nanos: u64) -> libc::timespec {
    let seconds = i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX);
    libc::timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanos % 1_000_000_000).unwrap_or(0) }
}

/// Arms the timer that ends this process at `until`. Timers are inherited over neither fork nor exec, so every
/// process of a fixture arms its own; [`fork`] does it for the child.
pub(crate) fn arm(until: u64) {
    // SAFETY: an all-zero `sigevent` is valid; the two fields that matter are set below.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    let mut timer: libc::timer_t = std::ptr::null_mut();
    let when = libc::itimerspec { it_interval: timespec(0), it_value: timespec(until.max(1)) };
    // SAFETY: `event`, `timer` and `when` outlive the calls, which keep none of them.
    let is_armed = unsafe {
        libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) == 0
            && libc::timer_settime(timer, libc::TIMER_ABSTIME, &raw const when, std::ptr::null_mut()) == 0
    };
    if !is_armed {
        broken("could not arm the timer that ends it");
    }
}

/// Ends the fixture because it could not become what it should be.
pub(crate) fn broken(what: &str) -> ! {
    complain(&format!("misbehave: {what}: {}\n", std::io::Error::last_os_error()));
    exit_now(BROKEN)
}

/// Ends this process with `code`, running nothing.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: does not return; nothing of ours needs an orderly end.
    unsafe { libc::_exit(code) }
}

/// Forks; returns the child's id in the parent and `None` in the child, whose own timer is armed already.
pub(crate) fn fork(until: u64) -> Option<i32> {
    // SAFETY: fixtures have one thread, so the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        0 => {
            arm(until);
            None
        }
        child if child > 0 => Some(child),
        _ => broken("could not fork"),
    }
}

/// Becomes the leader of a session of its own.
pub(crate) fn new_session() {
    // SAFETY: no argument, no memory.
    if unsafe { libc::setsid() } < 0 {
        broken("could not make a session");
    }
}

/// Becomes the leader of a process group of its own.
pub(crate) fn new_group() {
    // SAFETY: no memory.
    if unsafe { libc::setpgid(0, 0) } < 0 {
        broken("could not make a process group");
    }
}

/// Takes a second descriptor of each socket of the parent, says `word` on it, and returns those on which it could.
pub(crate) fn say_for_parent(word: &[u8]) -> Vec<i32> {
    // SAFETY: takes nothing.
    let parent = unsafe { libc::getppid() };
    let is_socket = |path: &std::path::Path| {
        std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    let open = std::fs::read_dir(format!("/proc/{parent}/fd")).into_iter().flatten().flatten();
    let sockets = open.filter(|entry| is_socket(&entry.path()));
    let numbers = sockets.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let take = |number: i32| {
        // SAFETY: numbers.
        unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, parent, 0);
            libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) as i32
        }
    };
    numbers.map(take).filter(|socket| say(*socket, word)).collect()
}

/// Says whether `word` could be said on a socket.
pub(crate) fn say(socket: i32, word: &[u8]) -> bool {
    // SAFETY: a number, and a pointer to bytes of the length given.
    unsafe { libc::send(socket, word.as_ptr().cast(), word.len(), libc::MSG_NOSIGNAL) >= 0 }
}

/// Kills the parent.
pub(crate) fn kill_parent() {
    // SAFETY: numbers; a parent keeps its number for as long as it is one.
    unsafe { libc::kill(libc::getppid(), libc::SIGKILL) };
}

/// Takes the right to open files from the parent's parent.
pub(crate) fn forbid_files_above() {
    // SAFETY: takes nothing.
    let parent = unsafe { libc::getppid() };
    let stat = std::fs::read_to_string(format!("/proc/{parent}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let above = after_name.split_whitespace().nth(1).and_then(|ppid| ppid.parse().ok()).unwrap_or(-1);
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live limit to read, and no place for the old one.
    let result = unsafe { libc::prlimit(above, libc::RLIMIT_NOFILE, &raw const none, std::ptr::null_mut()) };
    if above <= 1 || result != 0 {
        broken("nobody above to limit");
    }
}

/// Becomes this user and group for good.
pub(crate) fn become_user(user: u32) {
    // SAFETY: plain numbers.
    let is_done = unsafe { libc::setresgid(user, user, user) == 0 && libc::setresuid(user, user, user) == 0 };
    if !is_done {
        broken("could not become another user");
    }
}

/// Sets the kernel's name of this process.
pub(crate) fn rename(name: &str) {
    let Ok(name) = CString::new(name) else { return };
    // SAFETY: the kernel copies at most 16 bytes of a string that ends in NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Overwrites arguments and environment in this process's own memory, as `perl -e '$0 = …'` does.
pub(crate) fn wipe_arguments(shown: &str) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    let Some((_, rest)) = stat.rsplit_once(')') else { return };
    // Fields 48 to 51 of proc_pid_stat(5): where arguments and environment start and end. `rest` starts at field 3.
    let fields: Vec<usize> =
        rest.split_whitespace().skip(45).take(4).filter_map(|field| field.parse().ok()).collect();
    let &[arguments, arguments_end, environment, environment_end] = fields.as_slice() else { return };
    fill(arguments, arguments_end, shown.as_bytes());
    fill(environment, environment_end, b"");
}

fn fill(start: usize, end: usize, text: &[u8]) {
    for offset in 0..end.saturating_sub(start) {
        let byte = text.get(offset).copied().unwrap_or(0);
        // SAFETY: the kernel said that this range holds our arguments or environment; it is ours and writable, and
        // this process reads neither again.
        unsafe { std::ptr::write_volatile((start + offset) as *mut u8, byte) };
    }
}

/// Executes `path` with these arguments and an empty environment.
pub(crate) fn execute_bare(path: &str, argv: &[&str]) -> ! {
    let owned: Vec<CString> = argv.iter().filter_map(|text| CString::new(*text).ok()).collect();
    let mut pointers: Vec<*const libc::c_char> = owned.iter().map(|text| text.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [std::ptr::null::<libc::c_char>()];
    let path = CString::new(path).unwrap_or_default();
    // SAFETY: all arrays end in null and outlive the call.
    unsafe { libc::execve(path.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
    broken("could not execute itself")
}

/// Closes every descriptor.
pub(crate) fn close_all() {
    // SAFETY: nothing in this process owns a descriptor that it would use again.
    unsafe { libc::close_range(0, u32::MAX, 0) };
}

/// Puts `/dev/null` in the place of these descriptors.
pub(crate) fn nullify(targets: &[i32]) {
    // SAFETY: the path ends in NUL; dup2 takes plain numbers.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for target in targets {
            libc::dup2(null, *target);
        }
        if !targets.contains(&null) {
            libc::close(null);
        }
    }
}

/// Opens a pipe whose ends are kept over exec.
pub(crate) fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } < 0 {
        broken("could not open a pipe");
    }
    (ends[0], ends[1])
}

/// Closes one descriptor.
pub(crate) fn close(descriptor: i32) {
    // SAFETY: the caller owns it and does not use it again.
    unsafe { libc::close(descriptor) };
}

/// Reads one byte; `None` at the end.
pub(crate) fn read_one(descriptor: i32) -> Option<u8> {
    let mut byte = 0_u8;
    loop {
        // SAFETY: room for one byte.
        match unsafe { libc::read(descriptor, (&raw mut byte).cast(), 1) } {
            1 => return Some(byte),
            0 => return None,
            _ if errno() == libc::EINTR => {}
            _ => return None,
        }
    }
}

/// Writes all of it; returns how many bytes went out before an error.
pub(crate) fn write_all(descriptor: i32, bytes: &[u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        // SAFETY: the slice is valid for its length.
        let wrote = unsafe { libc::write(descriptor, bytes[done..].as_ptr().cast(), bytes.len() - done) };
        match usize::try_from(wrote) {
            Ok(count) => done += count,
            Err(_) if errno() == libc::EINTR => {}
            Err(_) => break,
        }
    }
    done
}

/// Returns the last error's number.
pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// A set of signals.
pub(crate) fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset makes the zeroed set valid; the numbers are the kernel's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Blocks these signals, and only these.
pub(crate) fn block(signals: &[i32]) {
    let set = set_of(signals);
    // SAFETY: `set` is valid; the old mask is not wanted.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
}

/// Ignores a signal.
pub(crate) fn ignore(signal: i32) {
    // SAFETY: a disposition without a handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Restores the default action of a signal.
pub(crate) fn default(signal: i32) {
    // SAFETY: a disposition without a handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Waits for one of these (blocked) signals until `deadline` in nanoseconds of CLOCK_MONOTONIC, or without end.
pub(crate) fn wait_signal(signals: &[i32], deadline: Option<u64>) -> Option<i32> {
    wait_signal_from(signals, deadline).map(|(signal, _)| signal)
}

/// Waits as [`wait_signal`] does, and returns who sent it as well: 0 if that one has no number here.
pub(crate) fn wait_signal_from(signals: &[i32], deadline: Option<u64>) -> Option<(i32, i32)> {
    let set = set_of(signals);
    // SAFETY: an all-zero value is valid.
    let mut details: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        let left = deadline.map(|at| timespec(at.saturating_sub(now())));
        let limit = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `set`, `details` and `left` outlive the call.
        let signal = unsafe { libc::sigtimedwait(&raw const set, &raw mut details, limit) };
        if signal > 0 {
            // SAFETY: the field is there for what a process sent, the kernel for a dying parent included; for what else there
            // is, any number is a valid one.
            return Some((signal, unsafe { details.si_pid() }));
        }
        if errno() != libc::EINTR {
            return None;
        }
    }
}

/// Waits for nothing: only a signal ends this process.
pub(crate) fn pause_for_ever() -> ! {
    loop {
        // SAFETY: no argument.
        unsafe { libc::pause() };
    }
}

/// Stops this process until it is continued.
pub(crate) fn stop_self() {
    // SAFETY: no memory.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Waits until this child has stopped.
pub(crate) fn wait_stopped(child: i32) {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED) };
}

/// Collects one child that has ended, if there is one.
pub(crate) fn reap_one(is_blocking: bool) -> bool {
    let mut status = 0;
    let options = if is_blocking { 0 } else { libc::WNOHANG };
    // SAFETY: `status` is a valid place for the result.
    unsafe { libc::waitpid(-1, &raw mut status, options) > 0 }
}

/// Dies of this signal's default action.
pub(crate) fn die_of(signal: i32) -> ! {
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain numbers and a valid struct. A core file would land in the test's directory.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) };
    default(signal);
    block(&[]);
    // SAFETY: no memory.
    unsafe { libc::raise(signal) };
    pause_for_ever()
}
