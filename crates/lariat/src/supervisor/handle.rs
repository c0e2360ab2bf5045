//! How others talk to a supervisor that runs in their process, from any thread and without waiting for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use lariat_sys::signal::Signal;
use rustix::event::{EventfdFlags, eventfd};

use super::feed::{Subscribers, Subscription};
use crate::shutdown::plan::{self, Why};

/// Requests that wait at most; what a person or a program asks beyond that says nothing new.
const REQUESTS_MAX: usize = 1_024;

#[derive(Debug)]
struct Shared {
    bell: OwnedFd,
    requests: Mutex<Vec<plan::Event>>,
    subscribers: Subscribers,
}

/// A handle to a supervisor. Clones are the same. Nothing here blocks, and after the end of the run nothing happens.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

impl Handle {
    pub(super) fn new(subscribers: Subscribers) -> lariat_sys::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared { bell, requests: Mutex::default(), subscribers })))
    }

    /// Asks for the stack to stop. Asking again changes nothing.
    pub fn stop(&self) {
        self.request(plan::Event::Begin(Why::Asked));
    }

    /// Asks for everything to be killed now.
    pub fn force(&self) {
        self.request(plan::Event::Force);
    }

    /// Passes a signal on that the program received: the first runs the plan, a second kills, a third leaves
    /// ([`crate::shutdown::plan`]). `is_typed` says that it came from a key press and not from a process.
    pub fn signal(&self, signal: Signal, is_typed: bool) {
        self.request(plan::Event::Signal { signal, is_typed });
    }

    /// Says that nobody can read the output any more; the stack stops.
    pub fn output_closed(&self) {
        self.request(plan::Event::Begin(Why::OutputClosed));
    }

    /// Says that the output can be written no more, as on a full disk; the stack stops.
    pub fn output_failed(&self) {
        self.request(plan::Event::Begin(Why::OutputFailed));
    }

    /// Subscribes to everything that happens from now on.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn subscribe(&self) -> lariat_sys::Result<Subscription> {
        self.0.subscribers.add()
    }

    fn request(&self, event: plan::Event) {
        let mut requests = self.0.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() < REQUESTS_MAX {
            requests.push(event);
        }
        // A counter that is full rings already.
        let _ = rustix::io::write(&self.0.bell, &1_u64.to_ne_bytes());
    }

    /// Takes what was asked for since the last time.
    pub(super) fn take(&self) -> Vec<plan::Event> {
        let mut requests = self.0.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = rustix::io::read(&self.0.bell, &mut [0; 8]);
        std::mem::take(&mut *requests)
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }
}
