//! Hands every event to the subscribers within the process, in one order.
//!
//! Publishing never blocks and never fails. A subscriber that does not keep up loses the oldest events and is told how
//! many.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::{EventfdFlags, eventfd};

use crate::event::{Event, EventKind, Sequence};

/// Events that wait for a subscriber at most.
pub const INBOX_MAX: usize = 65_536;

#[derive(Debug, Default)]
struct Inbox {
    events: VecDeque<Event>,
    lost: u64,
    is_closed: bool,
}

#[derive(Debug)]
struct Shared {
    bell: OwnedFd,
    inbox: Mutex<Inbox>,
}

impl Shared {
    /// The inbox is whole between any two statements, so it is used on after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // A counter that is full rings already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

/// What a subscriber gets.
#[derive(Clone, PartialEq, Debug)]
pub enum Next {
    /// This happened.
    Event(Event),
    /// So many events were lost, because they were not taken.
    Lost(u64),
    /// Nothing for now. The descriptor becomes readable when there is more.
    Nothing,
    /// The run is over and all was taken.
    Closed,
}

/// The events of a run from some moment on. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription(Arc<Shared>);

impl Subscription {
    /// Takes the next event. Never blocks; wait for the descriptor ([`AsFd`]) to become readable.
    #[must_use]
    pub fn next(&self) -> Next {
        let mut inbox = self.0.lock();
        if inbox.lost > 0 {
            return Next::Lost(std::mem::take(&mut inbox.lost));
        }
        if let Some(event) = inbox.events.pop_front() {
            return Next::Event(event);
        }
        if inbox.is_closed {
            return Next::Closed;
        }
        // The lock is held: nobody rings between this and the look that found nothing.
        let _ = rustix::io::read(&self.0.bell, &mut [0; 8]);
        Next::Nothing
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }
}

/// A list of subscribers that handles can add to from any thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Subscribers(Arc<Mutex<Vec<Weak<Shared>>>>);

impl Subscribers {
    /// Adds one.
    pub(super) fn add(&self) -> lariat_sys::Result<Subscription> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { bell, inbox: Mutex::default() });
        self.lock().push(Arc::downgrade(&shared));
        Ok(Subscription(shared))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn each(&self, tell: impl Fn(&mut Inbox)) {
        self.lock().retain(|shared| {
            let Some(shared) = shared.upgrade() else { return false };
            tell(&mut shared.lock());
            shared.ring();
            true
        });
    }
}

/// The one place where events come into being.
#[derive(Debug, Default)]
pub(super) struct Feed {
    sequence: Sequence,
    subscribers: Subscribers,
}

impl Feed {
    /// Begins a stream for these subscribers.
    pub(super) fn new(subscribers: Subscribers) -> Self {
        Self { sequence: Sequence::default(), subscribers }
    }

    /// Gives what happened its number and its time, and hands it to every subscriber.
    pub(super) fn publish(&mut self, kind: EventKind) -> Event {
        let event = self.sequence.next(kind);
        self.subscribers.each(|inbox| {
            if inbox.events.len() >= INBOX_MAX {
                inbox.events.pop_front();
                inbox.lost += 1;
            }
            inbox.events.push_back(event.clone());
        });
        event
    }

    /// Tells all subscribers that nothing follows.
    pub(super) fn close(&mut self) {
        self.subscribers.each(|inbox| inbox.is_closed = true);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use lariat_sys::poll::{PollFd, PollFlags, poll};

    use super::*;

    fn rings(subscription: &Subscription) -> bool {
        let mut fds = [PollFd::new(subscription, PollFlags::IN)];
        poll(&mut fds, Some(Instant::now())).unwrap() > 0
    }

    #[test]
    fn every_subscriber_gets_everything_from_its_beginning_on() {
        let subscribers = Subscribers::default();
        let mut feed = Feed::new(subscribers.clone());
        let first = subscribers.add().unwrap();
        feed.publish(EventKind::ShutdownForced);
        let second = subscribers.add().unwrap();
        feed.publish(EventKind::ShutdownLeft);
        assert!(rings(&first) && rings(&second));
        let number = |next| if let Next::Event(event) = next { event.sequence } else { 0 };
        assert_eq!([first.next(), first.next()].map(number), [1, 2]);
        assert_eq!(number(second.next()), 2);
        assert_eq!(first.next(), Next::Nothing);
        assert!(!rings(&first));
        drop(feed);
        assert!(rings(&first));
        assert_eq!((first.next(), second.next()), (Next::Closed, Next::Closed));
    }

    #[test]
    fn one_who_does_not_take_loses_the_oldest_and_holds_up_nobody() {
        let subscribers = Subscribers::default();
        let mut feed = Feed::new(subscribers.clone());
        let lazy = subscribers.add().unwrap();
        for _ in 0..INBOX_MAX + 3 {
            feed.publish(EventKind::ShutdownForced);
        }
        assert_eq!(lazy.next(), Next::Lost(3));
        assert!(matches!(lazy.next(), Next::Event(event) if event.sequence == 4));
    }

    #[test]
    fn a_thread_that_waits_is_woken() {
        let subscribers = Subscribers::default();
        let mut feed = Feed::new(subscribers.clone());
        let subscription = subscribers.add().unwrap();
        let waiter = std::thread::spawn(move || {
            let mut fds = [PollFd::new(&subscription, PollFlags::IN)];
            poll(&mut fds, Some(Instant::now() + Duration::from_secs(10))).unwrap();
            subscription.next()
        });
        feed.publish(EventKind::ShutdownForced);
        assert!(matches!(waiter.join().unwrap(), Next::Event(_)));
    }
}
