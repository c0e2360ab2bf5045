//! Polls one future on the thread it is called on.
//!
//! No reactor and no timers: whoever wakes it is the future's own business.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

/// Unparking alone would not do: the future's own code may park, and take the token that was meant for us.
struct Bell {
    is_rung: AtomicBool,
    thread: Thread,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_rung.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Returns what the future comes to, or `None` at the deadline, when it has been dropped.
///
/// It is polled at least once. A poll that blocks is not interrupted.
pub(super) fn block_on<T>(future: impl Future<Output = T>, deadline: Instant) -> Option<T> {
    let bell = Arc::new(Bell { is_rung: AtomicBool::new(false), thread: thread::current() });
    let waker = Waker::from(Arc::clone(&bell));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        // Looked at before each wait, so a ring during the poll is not slept over.
        while !bell.is_rung.swap(false, Ordering::Acquire) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            thread::park_timeout(left);
        }
        // A future that wakes itself for ever is not to outlive its limit either.
        if Instant::now() >= deadline {
            return None;
        }
    }
}
