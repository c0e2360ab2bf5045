//! Resources that end with a piece of code, however it is left.

use std::ops::Deref;

use super::report::Report;
use super::run::Cleanup;

/// Calls a closure, ends what it registered, and returns what it returned, with the report.
///
/// Everything registered is ended when the closure returns, leaves by `?`, or panics; a panic goes on after the
/// cleanups. Blocks as [`Cleanup::run`] does. To read the report of a closure that panicked, make the [`Cleanup`]
/// outside, keep a clone, and use a [`Scope`]: its `run` returns the report again.
///
/// A program that is built with `panic = "abort"`, or ends by `exit` or a signal, does not get here.
///
/// ```
/// use lariat::cleanup;
/// use std::num::ParseIntError;
///
/// let (result, report) = cleanup::scope(|cleanup| -> Result<u32, Box<dyn std::error::Error>> {
///     cleanup.register("answer", 41, |_| Ok::<(), ParseIntError>(()))?;
///     Ok("no number".parse()?)
/// });
/// assert!(result.is_err());
/// assert_eq!(report.cleaned_count(), 1);
/// ```
pub fn scope<T>(body: impl FnOnce(&Cleanup) -> T) -> (T, Report) {
    let scope = Scope::new();
    let result = body(&scope);
    (result, scope.end())
}

/// A [`Cleanup`] that is run when this is dropped: at the end of a block, by `?`, by a panic, and by the end of a
/// future, if it is cancelled too.
///
/// # Drop
///
/// Dropping **blocks** until all cleanups are done, at most for the sum of their limits, on the thread that drops: in an
/// async program a worker of the runtime, for which limits should be short. A cleanup that waits for that very worker
/// ends at its limit. On the way out that is planned, call [`end`](Self::end) by the runtime's way to block. Dropped
/// where the cleaning is under way already, it waits for that; dropped by one of its own cleanups, it does not block.
/// [`std::mem::forget`] runs nothing.
///
/// ```
/// use lariat::cleanup::Scope;
/// use std::sync::mpsc;
///
/// let (told, hears) = mpsc::channel();
/// let serve = async {
///     let scope = Scope::new();
///     scope.register("server", told, |told| told.send("closed"))?;
///     std::future::pending::<()>().await;
///     Ok::<(), Box<dyn std::error::Error>>(())
/// };
/// let mut serve = Box::pin(serve);
/// let mut context = std::task::Context::from_waker(std::task::Waker::noop());
/// assert!(serve.as_mut().poll(&mut context).is_pending());
/// drop(serve); // cancelled
/// assert_eq!(hears.try_recv(), Ok("closed"));
/// ```
#[derive(Debug, Default)]
#[must_use = "what is registered in a scope that is not kept is ended at once"]
pub struct Scope(Cleanup);

impl Scope {
    /// Makes one in which nothing is registered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends everything now, and returns the report. Blocks as [`Cleanup::run`] does.
    pub fn end(self) -> Report {
        self.run()
    }
}

/// Everything registered in it, through whichever clone, ends with this scope.
impl From<Cleanup> for Scope {
    fn from(cleanup: Cleanup) -> Self {
        Self(cleanup)
    }
}

impl Deref for Scope {
    type Target = Cleanup;

    fn deref(&self) -> &Cleanup {
        &self.0
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.0.run();
    }
}

#[cfg(test)]
#[path = "scope_tests.rs"]
mod tests;
