//! Deadlines hold, whatever interrupts.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::time::{Duration, Instant};

use lariat_sys::files::pipe;
use lariat_sys::poll::{PollFd, PollFlags, poll};

#[test]
fn a_deadline_in_the_past_looks_once() {
    let (read, write) = pipe(0).unwrap();
    let past = Some(Instant::now());
    assert_eq!(poll(&mut [PollFd::new(&read, PollFlags::IN)], past), Ok(0));
    rustix::io::write(&write, b"x").unwrap();
    assert_eq!(poll(&mut [PollFd::new(&read, PollFlags::IN)], past), Ok(1));
}

#[test]
fn what_is_ready_is_marked() {
    let (read, write) = pipe(0).unwrap();
    let (other, _kept) = pipe(0).unwrap();
    let mut watched = [PollFd::new(&other, PollFlags::IN), PollFd::new(&read, PollFlags::IN)];
    drop(write);
    assert_eq!(poll(&mut watched, None), Ok(1));
    assert!(watched[0].revents().is_empty());
    assert!(watched[1].revents().contains(PollFlags::HUP));
}

#[test]
fn signals_do_not_shorten_a_wait() {
    extern "C" fn nothing(_: libc::c_int) {}
    let every = libc::timeval { tv_sec: 0, tv_usec: 2000 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the handler does nothing; the timer lives for the call. The process is this test's own.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()), 0);
    }
    let (read, _write) = pipe(0).unwrap();
    let deadline = Instant::now() + Duration::from_millis(50);
    assert_eq!(poll(&mut [PollFd::new(&read, PollFlags::IN)], Some(deadline)), Ok(0));
    assert!(Instant::now() >= deadline);
}

#[test]
fn a_deadline_beyond_all_time_is_none() {
    let (read, write) = pipe(0).unwrap();
    let far = Instant::now().checked_add(Duration::from_secs(i64::MAX as u64 / 2));
    rustix::io::write(&write, b"x").unwrap();
    assert_eq!(poll(&mut [PollFd::new(&read, PollFlags::IN)], far), Ok(1));
}

/// HAZARD(limits-from-outside): whoever has our user may take our limits away. In a process of its own.
#[test]
fn who_may_open_nothing_any_more_waits_all_the_same() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let (read, write) = pipe(0).unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let soon = || Instant::now() + Duration::from_millis(20);
    let mut watched = [PollFd::new(&read, PollFlags::IN)];
    let plainly = rustix::event::poll(&mut watched, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    let (began, nothing) = (Instant::now(), poll(&mut watched, Some(soon())));
    let waited = began.elapsed();
    rustix::io::write(&write, b"x").unwrap();
    let something = poll(&mut watched, Some(soon()));
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(plainly, Err(rustix::io::Errno::INVAL), "the kernel refuses, or this shows nothing");
    assert_eq!((nothing, something), (Ok(0), Ok(1)));
    assert!(waited >= Duration::from_millis(20) && watched[0].revents().contains(PollFlags::IN));
}
