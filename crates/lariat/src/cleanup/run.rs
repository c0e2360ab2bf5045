//! Carries out what the stack decides: a thread for each cleanup, and everybody else waits.
//!
//! Whoever triggers first leads: it starts the cleanups and watches their limits. A cleanup's own thread says when it
//! is through. No lock is held while a cleanup, or the destructor of anything that was handed in, runs; the one that
//! is held during [`Registered::borrow`] is that resource's own.
//!
//! HAZARD(stuck-thread): a cleanup that hangs cannot be ended from outside, so it is left behind.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::executor;
use super::report::{Outcome, Report};
use super::stack::{Action, Event, Id, LATE_MAX, LIMIT_DEFAULT, Reason, Spec, Stack};

/// A cleanup with the resource it ends. It is told when it will be given up.
type Job = Box<dyn FnOnce(Instant) -> Outcome + Send>;

/// A job on its way to a thread, and still here if there is none.
///
/// HAZARD(no-thread): a closure for which no thread could be started is dropped with all that it owns.
type Slot = Arc<Mutex<Option<Job>>>;

struct Live {
    stack: Stack<Job>,
    /// What a cleanup's end led to, until whoever leads takes it.
    next: Option<Action<Job>>,
    /// Who runs a cleanup, those left behind among them.
    inside: Vec<ThreadId>,
}

struct Shared {
    live: Mutex<Live>,
    changed: Condvar,
    /// For the threads of cleanups; the standard library's choice, but for tests that want none to be had.
    stack_size: Option<usize>,
}

/// A panic while a lock is held leaves whole values: what is under [`Shared::live`] is changed by code that does not
/// panic, and a resource whose borrower panicked has to be ended more than ever.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Named resources, and how each is ended. See [the module](super) for how to use it.
///
/// A clone is another handle to the same: cheap, and good for another thread, a signal handler's thread, or a cleanup
/// that registers more.
///
/// # Drop
///
/// Dropping runs no cleanup, not even the last clone's: clones are held by other threads and by cleanups, so nobody
/// could say where, when, or whether a wait for all limits would take place. What ends resources by being dropped is a
/// [`Scope`](super::Scope). What is still registered is dropped with the last clone and the last [`Registered`], in the
/// order of the cleaning; a cleanup that holds a clone of what it is registered in keeps all of it alive until
/// [`run`](Self::run).
#[derive(Clone)]
pub struct Cleanup(Arc<Shared>);

impl Default for Cleanup {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cleanup").finish_non_exhaustive()
    }
}

impl Cleanup {
    /// Makes one in which nothing is registered. Starts no thread.
    #[must_use]
    pub fn new() -> Self {
        Self::with_stack_size(None)
    }

    fn with_stack_size(stack_size: Option<usize>) -> Self {
        let live = Live { stack: Stack::new(), next: None, inside: Vec::new() };
        Self(Arc::new(Shared { live: Mutex::new(live), changed: Condvar::new(), stack_size }))
    }

    /// Registers a resource with priority 0 and a limit of [`LIMIT_DEFAULT`]; see [`Named::register`].
    ///
    /// # Errors
    ///
    /// Those of [`Named::register`].
    pub fn register<R, E, F>(
        &self,
        name: impl Into<String>,
        resource: R,
        end: F,
    ) -> Result<Registered<R>, Refused<R>>
    where
        R: Send + 'static,
        E: fmt::Display,
        F: FnOnce(R) -> Result<(), E> + Send + 'static,
    {
        self.named(name).register(resource, end)
    }

    /// Registers a resource that is ended by a future, with priority 0 and a limit of [`LIMIT_DEFAULT`]; see
    /// [`Named::register_async`].
    ///
    /// # Errors
    ///
    /// Those of [`Named::register`].
    pub fn register_async<R, E, T, F>(
        &self,
        name: impl Into<String>,
        resource: R,
        end: F,
    ) -> Result<Registered<R>, Refused<R>>
    where
        R: Send + 'static,
        E: fmt::Display,
        T: Future<Output = Result<(), E>>,
        F: FnOnce(R) -> T + Send + 'static,
    {
        self.named(name).register_async(resource, end)
    }

    /// Begins a registration with a priority or a limit of its own. Nothing is registered until
    /// [`Named::register`] or [`Named::register_async`].
    ///
    /// The name is for reports and for the thread; several resources may have the same.
    pub fn named(&self, name: impl Into<String>) -> Named<'_> {
        Named { cleanup: self, spec: Spec { name: name.into(), priority: 0, limit: LIMIT_DEFAULT } }
    }

    /// Ends everything that is registered, one after the other, and says what became of it.
    ///
    /// Blocks until all is done: at most the sum of the limits, and the time it takes to start threads. Whoever calls
    /// it while the cleaning is under way blocks until that is done; whoever calls it later does not block. All get the
    /// same report, and each cleanup is started once.
    ///
    /// A cleanup that calls it gets an answer at once: what has been done so far, with
    /// [`is_complete`](Report::is_complete) false. One that waits for another thread to call it waits for itself, until
    /// its limit.
    ///
    /// Each cleanup runs on a thread of its own, with the signal mask of the caller. Where no thread can be had, it
    /// runs on the caller's, where nothing can enforce its limit; the report says so.
    ///
    /// In an async function, call it by the runtime's way to block (tokio: `spawn_blocking`). It locks, allocates and
    /// starts threads, so it must be called neither in a signal handler nor in a forked child.
    pub fn run(&self) -> Report {
        let mut live = lock(&self.0.live);
        let now = Instant::now();
        if let Some(first) = live.stack.step(now, Event::Begin) {
            drop(live);
            return self.lead(first);
        }
        let is_inside = live.inside.contains(&thread::current().id());
        while !live.stack.is_done() && !is_inside {
            live = self.0.changed.wait(live).unwrap_or_else(PoisonError::into_inner);
        }
        live.stack.report(now)
    }

    fn lead(&self, first: Action<Job>) -> Report {
        let mut action = first;
        while let Action::Start { id, name, deadline, job } = action {
            start(&self.0, id, &name, deadline, job);
            action = self.0.next_action();
        }
        self.0.changed.notify_all();
        lock(&self.0.live).stack.report(Instant::now())
    }
}

impl Shared {
    /// Waits for the end of what is running, or for its limit.
    fn next_action(&self) -> Action<Job> {
        let mut live = lock(&self.live);
        loop {
            let now = Instant::now();
            let ended = live.next.take();
            if let Some(action) = ended.or_else(|| live.stack.step(now, Event::Woke)) {
                return action;
            }
            let left = live.stack.wake_at().map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
            live = self.changed.wait_timeout(live, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Runs a job on this thread and tells the stack.
    fn carry_out(&self, id: Id, deadline: Instant, job: Job, is_on_callers_thread: bool) {
        let me = thread::current().id();
        lock(&self.live).inside.push(me);
        let outcome = outcome_of(job, deadline);
        let mut live = lock(&self.live);
        if let Some(at) = live.inside.iter().rposition(|inside| *inside == me) {
            live.inside.swap_remove(at);
        }
        let finished = Event::Finished { id, outcome, is_on_callers_thread };
        if let Some(action) = live.stack.step(Instant::now(), finished) {
            live.next = Some(action);
            drop(live);
            self.changed.notify_all();
        }
    }
}

/// Starts a job on a thread of its own, or runs it here where none can be had.
fn start(shared: &Arc<Shared>, id: Id, name: &str, deadline: Instant, job: Job) {
    let slot: Slot = Arc::new(Mutex::new(Some(job)));
    let (theirs, of_thread) = (Arc::clone(&slot), Arc::clone(shared));
    let spawned = builder(name, shared.stack_size).spawn(move || {
        let job = lock(&theirs).take();
        if let Some(job) = job {
            of_thread.carry_out(id, deadline, job, false);
        }
    });
    // The thread ends by itself, or is left behind: it is not joined, as what it keeps for itself may hang too.
    if spawned.is_err() {
        let job = lock(&slot).take();
        if let Some(job) = job {
            shared.carry_out(id, deadline, job, true);
        }
    }
}

fn builder(name: &str, stack_size: Option<usize>) -> thread::Builder {
    // A thread with a NUL in its name is a panic.
    let builder = thread::Builder::new().name(format!("cleanup:{}", name.replace('\0', "")));
    match stack_size {
        Some(size) => builder.stack_size(size),
        None => builder,
    }
}

/// Runs a job; nothing that it does to itself gets out.
fn outcome_of(job: Job, deadline: Instant) -> Outcome {
    // After a panic nobody but its own destructors sees what the job had, so nothing half-changed is looked at.
    match catch_unwind(AssertUnwindSafe(|| job(deadline))) {
        Ok(outcome) => outcome,
        Err(payload) => {
            let message = message_of(&*payload);
            drop_quietly(payload);
            Outcome::Panicked(message)
        }
    }
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a text").to_owned()
}

/// Drops what somebody panicked with. Its destructor may panic as well, with something whose destructor does.
#[expect(clippy::mem_forget, reason = "the alternative is to drop payloads until one does not panic")]
fn drop_quietly(payload: Box<dyn Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(another);
    }
}

/// A registration that is being made: [`Cleanup::named`].
#[derive(Clone, Debug)]
#[must_use = "nothing is registered until `register` or `register_async`"]
pub struct Named<'a> {
    cleanup: &'a Cleanup,
    spec: Spec,
}

impl Named<'_> {
    /// Sets the priority: any `i32`, 0 if it is not set. Higher ones are ended first, whenever they were registered.
    pub fn priority(mut self, priority: i32) -> Self {
        self.spec.priority = priority;
        self
    }

    /// Sets how long the cleanup may take until it is given up, from when its turn comes:
    /// [`LIMIT_MIN`](super::LIMIT_MIN) to [`LIMIT_MAX`](super::LIMIT_MAX); what is shorter or longer is taken as these.
    /// [`LIMIT_DEFAULT`] if it is not set.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.spec.limit = limit;
        self
    }

    /// Registers a resource with the closure that ends it. Does not block.
    ///
    /// The closure gets the resource itself, on a thread of its own, and is called at most once; what it captured is
    /// dropped there too. What it returns and how it panics is reported and stops no other. Both have to be [`Send`] for
    /// that thread, without which a limit could not be kept: of what has to stay on its thread, register something that
    /// tells that thread, such as the sender of a channel. The error is turned to text by its `{:#}` where it arises and
    /// need not be `Send`.
    ///
    /// May be called from any thread, and from cleanups: what is registered while the cleaning is under way is ended in
    /// it, next in its order. Of two registrations with the same priority, the one made first is ended last; made at
    /// the same time by two threads, either may be first.
    ///
    /// # Errors
    ///
    /// All cleanups are done, or too many were registered while the cleaning was under way. [`Refused`] hands the
    /// resource back; the closure is dropped.
    pub fn register<R, E, F>(self, resource: R, end: F) -> Result<Registered<R>, Refused<R>>
    where
        R: Send + 'static,
        E: fmt::Display,
        F: FnOnce(R) -> Result<(), E> + Send + 'static,
    {
        self.insert(resource, move |resource, _| outcome(end(resource)))
    }

    /// Registers a resource with the closure whose future ends it. Does not block.
    ///
    /// As [`register`](Self::register), and the future is polled on the cleanup's thread until it is ready; it need not
    /// be `Send`. At the limit it is dropped there: it is cancelled, not left behind, unless its poll is what blocks.
    ///
    /// No runtime is there: a future that needs a reactor or timers has to bring it. With tokio, take a handle where the
    /// resource is registered (`let handle = Handle::current();`) and enter it inside
    /// (`move |server| async move { let _inside = handle.enter(); server.close().await }`). Its runtime has to be driven
    /// until the cleaning is done, by a thread that the cleaning does not block.
    ///
    /// # Errors
    ///
    /// Those of [`register`](Self::register).
    pub fn register_async<R, E, T, F>(self, resource: R, end: F) -> Result<Registered<R>, Refused<R>>
    where
        R: Send + 'static,
        E: fmt::Display,
        T: Future<Output = Result<(), E>>,
        F: FnOnce(R) -> T + Send + 'static,
    {
        self.insert(resource, move |resource, deadline| {
            executor::block_on(end(resource), deadline).map_or(Outcome::TimedOut, outcome)
        })
    }

    fn insert<R, F>(self, resource: R, end: F) -> Result<Registered<R>, Refused<R>>
    where
        R: Send + 'static,
        F: FnOnce(R, Instant) -> Outcome + Send + 'static,
    {
        let place = Arc::new(Mutex::new(Some(resource)));
        let theirs = Arc::clone(&place);
        let job: Job = Box::new(move |deadline| {
            let resource = lock(&theirs).take();
            end(resource.expect("a job is run or handed back, and nobody else takes the resource"), deadline)
        });
        let shared = Arc::clone(&self.cleanup.0);
        let name = self.spec.name.clone();
        let registered = lock(&shared.live).stack.register(self.spec, job);
        match registered {
            Ok(id) => Ok(Registered { id, name, place, shared }),
            Err((reason, job)) => {
                drop(job);
                let resource = lock(&place).take().expect("a refused job was not run");
                Err(Refused { name, reason, resource: Mutex::new(resource) })
            }
        }
    }
}

fn outcome<E: fmt::Display>(result: Result<(), E>) -> Outcome {
    result.map_or_else(|error| Outcome::Failed(format!("{error:#}")), |()| Outcome::Cleaned)
}

/// A resource that is registered. It can be borrowed, and taken back.
///
/// Dropping this does not unregister: the resource is ended as if it were still there.
pub struct Registered<R> {
    id: Id,
    name: String,
    /// INVARIANT: emptied by the job, or by whoever got the job back from the stack, so once.
    place: Arc<Mutex<Option<R>>>,
    shared: Arc<Shared>,
}

impl<R> Registered<R> {
    /// Returns the name it was registered with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lends the resource to a closure, or returns `None` if its cleanup has begun.
    ///
    /// Does not block. A cleanup that begins meanwhile waits for the closure, and its limit runs: past it, it is
    /// given up and reported so, and ends the resource when the closure is through. So a closure that calls
    /// [`Cleanup::run`] returns, and the resource is reported as timed out. After a panic in the closure the resource is
    /// still registered, in the state that the panic left it in.
    pub fn borrow<T>(&mut self, borrower: impl FnOnce(&mut R) -> T) -> Option<T> {
        lock(&self.place).as_mut().map(borrower)
    }

    /// Unregisters and returns the resource, or `None` if its cleanup has begun or is over. Does not block.
    ///
    /// Exactly one of both gets the resource: the caller, or its cleanup. The cleanup's closure is dropped on this
    /// thread.
    #[must_use = "what is taken back is nobody else's to end"]
    pub fn take(self) -> Option<R> {
        let job = lock(&self.shared.live).stack.unregister(self.id)?;
        let resource = lock(&self.place).take();
        drop(job);
        resource
    }
}

impl<R> fmt::Debug for Registered<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A registration that came too late, with the resource: it is the caller's again.
pub struct Refused<R> {
    name: String,
    reason: Reason,
    /// The lock makes it shareable between threads whatever it holds, as errors commonly have to be.
    resource: Mutex<R>,
}

impl<R> Refused<R> {
    /// Returns the reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Returns the resource.
    #[must_use = "what is handed back is nobody else's to end"]
    pub fn into_resource(self) -> R {
        self.resource.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> fmt::Debug for Refused<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Refused");
        shown.field("name", &self.name).field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<R> fmt::Display for Refused<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.escape_debug();
        match self.reason {
            Reason::Done => write!(f, "could not register `{name}`: all cleanups are done"),
            Reason::TooManyLate => write!(
                f,
                "could not register `{name}`: {LATE_MAX} were registered since the cleaning began, and it has to end"
            ),
        }
    }
}

impl<R> std::error::Error for Refused<R> {}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
