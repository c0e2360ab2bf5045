//! Moves the output of all services into their stores, on one thread.
//!
//! The thread sleeps in epoll(7) while nobody writes. A pipe that keeps writing is taken out of the set and drained by
//! the clock, at most [`PAUSE_MAX`] apart: bytes gather, the writer is not woken or interrupted for each line, and the
//! pauses adapt to how full the pipe was.
//!
//! Everybody else talks to the thread without waiting for it: requests go into a list, answers come as numbers that
//! only grow ([`Flow`]) and as a [`Bell`]. So a stuck disk (HAZARD(stuck-disk)) holds up this thread and nobody else;
//! whoever waits for a pipe to be finished has a deadline of its own.
//!
//! What this module does not do: look into the bytes, wait for EOF (a grandchild may hold a pipe for ever), or decide
//! when a service's output is complete.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lariat_keeper::store::{Drain, PIPE_BYTES_GROWN};
use lariat_sys::signal::{self, SignalSet};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// The longest time that bytes of a busy service wait in its pipe.
pub const PAUSE_MAX: Duration = Duration::from_millis(1);
/// The shortest pause between two drains of a pipe that is neither empty nor nearly full.
const PAUSE_MIN: Duration = Duration::from_micros(50);
/// How long a pipe that the kernel will not watch rests between two looks at it.
const PAUSE_UNWATCHED: Duration = Duration::from_millis(50);
/// The most that is drained of one pipe before the others have their turn.
const TURN_BYTES: usize = 1 << 20;
/// How long dropping the pump waits for its thread before it leaves the thread to itself.
const LEAVE_AFTER: Duration = Duration::from_secs(1);
/// The epoll token of the request list; pipes count from one.
const REQUESTS: u64 = 0;

/// Why the pump could not be started.
#[derive(Debug, thiserror::Error)]
#[error("could not start the log pump: {step}: {cause}")]
pub struct PumpError {
    step: &'static str,
    #[source]
    cause: io::Error,
}

impl PumpError {
    fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self { step, cause: cause.into() }
    }
}

/// What has become of a pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowState {
    /// It is being drained.
    Open,
    /// Every writer has closed it, and all of it was drained.
    Closed,
    /// It was finished on request: what was in it then was drained.
    Finished,
    /// It was finished on request, but its deadline passed first. What was in it is lost to the store.
    Abandoned,
}

/// One pipe in the pump, seen from outside. Dropping it changes nothing: the pipe is drained on.
#[derive(Debug)]
pub struct Flow {
    id: u64,
    end: AtomicU64,
    moved: AtomicU64,
    dropped: AtomicU64,
    state: AtomicU8,
}

impl Flow {
    /// Returns the store's end behind the last byte that came through this pipe, as an offset in the store.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::SeqCst)
    }

    /// Returns how many bytes went from this pipe to the store.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::SeqCst)
    }

    /// Returns how many bytes were read away because the store could not be written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::SeqCst)
    }

    /// Returns what has become of the pipe.
    #[must_use]
    pub fn state(&self) -> FlowState {
        match self.state.load(Ordering::SeqCst) {
            0 => FlowState::Open,
            1 => FlowState::Closed,
            2 => FlowState::Finished,
            _ => FlowState::Abandoned,
        }
    }

    /// Says whether the pump is done with the pipe and has closed its descriptors.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state() != FlowState::Open
    }

    fn set_state(&self, state: FlowState) {
        self.state.store(state as u8, Ordering::SeqCst);
    }
}

/// Becomes readable when output arrived or a pipe's state changed; however much did, it rings once.
#[derive(Debug)]
pub struct Bell {
    event: OwnedFd,
    is_wanted: AtomicBool,
    is_rung: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        if self.is_wanted.load(Ordering::SeqCst) && !self.is_rung.swap(true, Ordering::SeqCst) {
            // The counter cannot overflow at one per clearing, and nothing else can fail.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Makes the bell silent until the next arrival. Look at the flows *after* this call, or an arrival may be missed.
    pub fn clear(&self) {
        // The read comes first: the other way round, a ring in between would be read away and still count as rung.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        self.is_rung.store(false, Ordering::SeqCst);
    }

    /// Switches the bell off or on, so that nobody is woken who is not interested. It is on at first. After switching it
    /// on, look at the flows once.
    pub fn set_wanted(&self, is_wanted: bool) {
        self.is_wanted.store(is_wanted, Ordering::SeqCst);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

enum Request {
    Add(Drain, Arc<Flow>),
    Finish(u64, Instant),
    Leave,
}

struct Shared {
    wake: OwnedFd,
    requests: Mutex<Vec<Request>>,
    bells: Mutex<Vec<Weak<Bell>>>,
    has_ended: Mutex<bool>,
    ended: Condvar,
}

/// A lock whose holder panicked guards lists that are whole between any two statements, so it is used on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn request(&self, request: Request) {
        lock(&self.requests).push(request);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn ring(&self) {
        lock(&self.bells).retain(|bell| bell.upgrade().inspect(|bell| bell.ring()).is_some());
    }
}

/// The pump: a thread and the list of what it is asked for.
///
/// Dropping it stops the thread, waiting up to a second for a slow disk; pipes that are not finished keep their bytes for
/// whoever else holds them.
pub struct Pump {
    shared: Arc<Shared>,
    next_id: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pump").field("next_id", &self.next_id).finish_non_exhaustive()
    }
}

impl Pump {
    /// Starts the thread. It takes no signals.
    ///
    /// # Errors
    /// When there are too many open files or threads.
    pub fn start() -> Result<Self, PumpError> {
        let wake = new_event().map_err(PumpError::at("eventfd"))?;
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(PumpError::at("epoll"))?;
        epoll::add(&set, &wake, EventData::new_u64(REQUESTS), EventFlags::IN)
            .map_err(PumpError::at("epoll"))?;
        let shared = Arc::new(Shared {
            wake,
            requests: Mutex::default(),
            bells: Mutex::default(),
            has_ended: Mutex::new(false),
            ended: Condvar::new(),
        });
        let work = Work { set, shared: Arc::clone(&shared), pipes: BTreeMap::new(), has_news: false };
        // HAZARD(full-disk): a write beyond RLIMIT_FSIZE sends SIGXFSZ to the writing thread, and that would be the end
        // of the process. Blocked, it is the error EFBIG. A new thread has its maker's mask: there is no gap.
        let mask = signal::block(SignalSet::full());
        let thread = std::thread::Builder::new().name("lariat-pump".to_owned()).spawn(move || work.run());
        signal::set_mask(mask);
        let thread = thread.map_err(PumpError::at("thread"))?;
        Ok(Self { shared, next_id: AtomicU64::new(REQUESTS + 1), thread: Some(thread) })
    }

    /// Begins to drain a pipe. Returns at once.
    pub fn add(&self, drain: Drain) -> Arc<Flow> {
        let flow = Arc::new(Flow {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            end: AtomicU64::new(drain.end()),
            moved: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            state: AtomicU8::new(FlowState::Open as u8),
        });
        self.shared.request(Request::Add(drain, Arc::clone(&flow)));
        flow
    }

    /// Asks for what is in a pipe now to be drained, and the pipe to be closed without waiting for its writers. Returns
    /// at once.
    ///
    /// Once it is done, [`Flow::is_done`] says so and the bells ring. `deadline` limits the pump's own work; with a stuck
    /// disk nothing happens at all, so the caller keeps a deadline as well. A pipe that is done already stays as it is.
    pub fn finish(&self, flow: &Flow, deadline: Instant) {
        self.shared.request(Request::Finish(flow.id, deadline));
    }

    /// Makes a bell that rings for all pipes. It is forgotten when the last owner drops it.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn bell(&self) -> Result<Arc<Bell>, PumpError> {
        let event = new_event().map_err(PumpError::at("eventfd"))?;
        let bell =
            Arc::new(Bell { event, is_wanted: AtomicBool::new(true), is_rung: AtomicBool::new(false) });
        lock(&self.shared.bells).push(Arc::downgrade(&bell));
        Ok(bell)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.request(Request::Leave);
        let deadline = Instant::now() + LEAVE_AFTER;
        let mut has_ended = lock(&self.shared.has_ended);
        while !*has_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.ended.wait_timeout(has_ended, left);
            has_ended = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(has_ended);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

fn new_event() -> rustix::io::Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
}

/// Where a pipe is between two drains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    /// In the epoll set, until somebody writes.
    Watched,
    /// Out of it, until this moment.
    Until(Instant),
}

struct Pipe {
    drain: Drain,
    flow: Arc<Flow>,
    rest: Rest,
    pause: Duration,
    drained_at: Option<Instant>,
}

/// Returns the pause after a drain of `total` bytes that followed a pause of `pause`, so that the next one finds the pipe
/// between a sixteenth and an eighth full.
fn next_pause(pause: Duration, total: usize) -> Duration {
    let pause = match total {
        t if t >= PIPE_BYTES_GROWN / 4 => return Duration::ZERO,
        t if t >= PIPE_BYTES_GROWN / 8 => pause / 2,
        t if t < PIPE_BYTES_GROWN / 16 => pause * 2,
        _ => pause,
    };
    pause.clamp(PAUSE_MIN, PAUSE_MAX)
}

struct Work {
    set: OwnedFd,
    shared: Arc<Shared>,
    pipes: BTreeMap<u64, Pipe>,
    has_news: bool,
}

/// Says that the thread is gone, whichever way it went.
struct EndNote(Arc<Shared>);

impl Drop for EndNote {
    fn drop(&mut self) {
        *lock(&self.0.has_ended) = true;
        self.0.ended.notify_all();
        self.0.ring();
    }
}

impl Work {
    fn run(mut self) {
        let _note = EndNote(Arc::clone(&self.shared));
        let mut events = Vec::with_capacity(64);
        loop {
            let timeout = self.next_due().map(|due| due.saturating_duration_since(Instant::now()));
            let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
            events.clear();
            // An interruption or an error of the wait is a wait that ended early. EINTR is the only one that an epoll
            // set of our own can have.
            let _ = epoll::wait(&self.set, spare_capacity(&mut events), timeout.as_ref());
            let mut has_requests = false;
            for event in &events {
                match event.data.u64() {
                    REQUESTS => has_requests = true,
                    id => self.drain(id),
                }
            }
            let now = Instant::now();
            let due = |pipe: &Pipe| matches!(pipe.rest, Rest::Until(due) if due <= now);
            let due: Vec<u64> = self.pipes.iter().filter(|(_, pipe)| due(pipe)).map(|(id, _)| *id).collect();
            for id in due {
                self.drain(id);
            }
            if has_requests && self.serve_requests() {
                return;
            }
            if std::mem::take(&mut self.has_news) {
                self.shared.ring();
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.pipes
            .values()
            .filter_map(|pipe| if let Rest::Until(due) = pipe.rest { Some(due) } else { None })
            .min()
    }

    fn serve_requests(&mut self) -> bool {
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        let requests = std::mem::take(&mut *lock(&self.shared.requests));
        for request in requests {
            match request {
                Request::Add(drain, flow) => self.add(drain, flow),
                Request::Finish(id, deadline) => self.finish(id, deadline),
                Request::Leave => return true,
            }
        }
        false
    }

    fn add(&mut self, drain: Drain, flow: Arc<Flow>) {
        let id = flow.id;
        let rest = Rest::Until(Instant::now());
        let pipe = Pipe { drain, flow, rest, pause: PAUSE_MAX, drained_at: None };
        self.pipes.insert(id, pipe);
        self.drain(id);
    }

    fn drain(&mut self, id: u64) {
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        let done = pipe.drain.drain(TURN_BYTES);
        if done.total() > 0 || done.is_closed {
            pipe.publish(done.moved, done.dropped);
            self.has_news = true;
        }
        if done.is_closed {
            self.remove(id, FlowState::Closed);
        } else {
            pipe.rest(&self.set, done.total());
        }
    }

    /// Drains what is in the pipe now, and no more: a writer that goes on must not hold this up.
    fn finish(&mut self, id: u64, deadline: Instant) {
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        let mut left = pipe.drain.waiting();
        let mut state = FlowState::Finished;
        while left > 0 {
            if Instant::now() >= deadline {
                state = FlowState::Abandoned;
                break;
            }
            let done = pipe.drain.drain_to_empty(left);
            pipe.publish(done.moved, done.dropped);
            left = if done.is_empty { 0 } else { left.saturating_sub(done.total()) };
        }
        pipe.drain.settle();
        self.remove(id, state);
    }

    fn remove(&mut self, id: u64, state: FlowState) {
        if let Some(pipe) = self.pipes.remove(&id) {
            if pipe.rest == Rest::Watched {
                // Without this, the set would watch on for as long as the keeper has the pipe open.
                let _ = epoll::delete(&self.set, pipe.drain.pipe());
            }
            let flow = Arc::clone(&pipe.flow);
            drop(pipe);
            flow.set_state(state);
            self.has_news = true;
        }
    }
}

impl Pipe {
    fn publish(&self, moved: usize, dropped: usize) {
        self.flow.moved.fetch_add(moved as u64, Ordering::SeqCst);
        self.flow.dropped.fetch_add(dropped as u64, Ordering::SeqCst);
        self.flow.end.store(self.drain.end(), Ordering::SeqCst);
    }

    /// Chooses how the pipe waits for its next bytes.
    fn rest(&mut self, set: &OwnedFd, total: usize) {
        let now = Instant::now();
        let gap = self.drained_at.replace(now).map(|before| now - before);
        let id = EventData::new_u64(self.flow.id);
        match self.rest {
            // One line now and then: stay in the set. Soon after another one: let the next ones gather.
            Rest::Watched if self.drain.is_settled() && gap.is_none_or(|gap| gap > 2 * PAUSE_MAX) => {}
            Rest::Watched => {
                let _ = epoll::delete(set, self.drain.pipe());
                self.rest = Rest::Until(now + self.pause);
            }
            Rest::Until(_) if total == 0 && self.drain.is_settled() => {
                // epoll tells of what is there already, so nothing is missed between the drain and this.
                let watched = epoll::add(set, self.drain.pipe(), id, EventFlags::IN);
                self.rest = if watched.is_ok() { Rest::Watched } else { Rest::Until(now + PAUSE_UNWATCHED) };
                self.pause = PAUSE_MAX;
            }
            Rest::Until(_) => {
                let pause = next_pause(self.pause, total);
                self.pause = pause.max(PAUSE_MIN);
                self.rest = Rest::Until(now + pause);
            }
        }
    }
}

#[cfg(test)]
#[path = "pump_tests.rs"]
mod tests;
