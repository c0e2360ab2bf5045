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
