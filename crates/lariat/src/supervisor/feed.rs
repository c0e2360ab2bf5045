//! Hands every event to everybody who listens, in one order: the history file and subscribers within the process.
//!
//! Publishing never blocks and never fails. A subscriber that does not keep up loses the oldest events and is told how
//! many.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
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
#[derive(Debug)]
pub(super) struct Feed {
    sequence: Sequence,
    history: Option<File>,
    has_told_trouble: bool,
    subscribers: Subscribers,
}

impl Feed {
    /// Begins a stream that is appended to `history` as well.
    pub(super) fn new(history: Option<File>, subscribers: Subscribers) -> Self {
        Self { sequence: Sequence::default(), history, has_told_trouble: false, subscribers }
    }

    /// Publishes what happened and returns it with its number and time, once for each event that came of it.
    pub(super) fn publish(&mut self, kind: EventKind) -> Vec<Event> {
        let event = self.sequence.next(kind);
        let mut all = vec![event];
        if let Err(error) = self.write(&all[0])
            && !std::mem::replace(&mut self.has_told_trouble, true)
        {
            // Said once; a disk that is full stays full for a while, and everything else goes on.
            let what = format!("could not write the history of events: {error}");
            all.push(self.sequence.next(EventKind::Trouble { what }));
        }
        for event in &all {
            self.subscribers.each(|inbox| {
                if inbox.events.len() >= INBOX_MAX {
                    inbox.events.pop_front();
                    inbox.lost += 1;
                }
                inbox.events.push_back(event.clone());
            });
        }
        all
    }

    /// Tells all subscribers that nothing follows.
    pub(super) fn close(&mut self) {
        self.subscribers.each(|inbox| inbox.is_closed = true);
    }

    fn write(&mut self, event: &Event) -> std::io::Result<()> {
        let Some(history) = &mut self.history else { return Ok(()) };
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        // One write, so that a crash leaves whole lines.
        history.write_all(&line)
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
        let mut feed = Feed::new(None, subscribers.clone());
        let first = subscribers.add().unwrap();
        feed.publish(EventKind::ShutdownForced);
        let second = subscribers.add().unwrap();
        feed.publish(EventKind::ShutdownLeft);
        assert!(rings(&first) && rings(&second));
        let number = |next| if let Next::Event(event) = next { event.number } else { 0 };
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
        let mut feed = Feed::new(None, subscribers.clone());
        let lazy = subscribers.add().unwrap();
        for _ in 0..INBOX_MAX + 3 {
            feed.publish(EventKind::ShutdownForced);
        }
        assert_eq!(lazy.next(), Next::Lost(3));
        assert!(matches!(lazy.next(), Next::Event(event) if event.number == 4));
    }

    #[test]
    fn the_history_has_one_line_for_each_and_a_full_disk_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut feed = Feed::new(Some(File::create(&path).unwrap()), Subscribers::default());
        feed.publish(EventKind::ShutdownForced);
        feed.publish(EventKind::ShutdownLeft);
        let text = std::fs::read_to_string(&path).unwrap();
        let numbers: Vec<u64> =
            text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().number).collect();
        assert_eq!(numbers, [1, 2]);

        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut feed = Feed::new(Some(full), Subscribers::default());
        assert_eq!(feed.publish(EventKind::ShutdownForced).len(), 2);
        assert_eq!(feed.publish(EventKind::ShutdownForced).len(), 1);
    }

    #[test]
    fn a_thread_that_waits_is_woken() {
        let subscribers = Subscribers::default();
        let mut feed = Feed::new(None, subscribers.clone());
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
