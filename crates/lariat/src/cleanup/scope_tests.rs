use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc::{self, Sender};
use std::task::{Context, Waker};
use std::time::Duration;

use super::*;
use crate::cleanup::Outcome;

/// Longer than anything here takes on a machine that is starved, shorter than a test runner waits.
const PATIENCE: Duration = Duration::from_secs(60);

fn note(
    name: &'static str,
) -> impl FnOnce(Sender<&'static str>) -> Result<(), mpsc::SendError<&'static str>> {
    move |told| told.send(name)
}

#[test]
fn a_scope_ends_on_return_and_on_a_question_mark_and_returns_both_results() {
    let (told, hears) = mpsc::channel();
    let body = |input: &'static str| {
        let told = told.clone();
        move |cleanup: &Cleanup| -> Result<u32, Box<dyn Error>> {
            cleanup.register("a", told.clone(), note("a"))?;
            let number = input.parse()?;
            cleanup.register("b", told, |_| Err("no"))?;
            Ok(number)
        }
    };
    let (result, report) = scope(body("7"));
    assert_eq!((result.unwrap(), report.cleaned_count(), report.failed_count()), (7, 1, 1));
    assert_eq!(hears.try_recv(), Ok("a"));
    let (result, report) = scope(body("x"));
    assert!(result.is_err() && report.is_clean() && report.ended.len() == 1);
    assert_eq!(hears.try_recv(), Ok("a"));
}

#[test]
fn a_scope_left_by_panic_is_ended_before_the_same_panic_goes_on() {
    let (told, hears) = mpsc::channel();
    let outer = told.clone();
    let cleanup = Cleanup::new();
    let kept = cleanup.clone();
    let payload = catch_unwind(AssertUnwindSafe(move || {
        let _outer = Noted(outer);
        let scope = Scope::from(cleanup);
        scope.register("first", told.clone(), note("first")).unwrap();
        scope
            .named("panics")
            .limit(PATIENCE)
            .register((), |()| -> Result<(), Infallible> { panic!("another") })
            .unwrap();
        scope.register("last", told, note("last")).unwrap();
        std::panic::panic_any(41_u8);
    }))
    .expect_err("the panic goes on");
    assert_eq!(payload.downcast_ref(), Some(&41_u8));
    assert_eq!(hears.try_iter().collect::<Vec<_>>(), ["last", "first", "outer"]);
    let report = kept.run();
    assert_eq!(report.ended[1].outcome, Outcome::Panicked("another".to_owned()));
    assert_eq!(report.ended.len(), 3);

    let panics = catch_unwind(|| scope(|_| -> u8 { panic!("through the function") }));
    assert_eq!(panics.expect_err("it goes on").downcast_ref(), Some(&"through the function"));
}

/// Tells when it is dropped.
struct Noted(Sender<&'static str>);

impl Drop for Noted {
    fn drop(&mut self) {
        let _ = self.0.send("outer");
    }
}

#[test]
fn a_future_that_is_dropped_while_it_waits_ends_what_it_registered() {
    let (told, hears) = mpsc::channel();
    let serve = async move {
        let scope = Scope::new();
        scope.register("server", told.clone(), note("server")).unwrap();
        std::future::pending::<()>().await;
        drop(told);
    };
    let mut serve: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(serve);
    assert!(serve.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(hears.try_recv().is_err(), "ended too early");
    drop(serve);
    assert_eq!(hears.try_recv(), Ok("server"));
}

#[test]
fn a_scope_is_ended_by_the_end_of_a_thread_that_keeps_it() {
    thread_local! {
        static KEPT: Scope = Scope::new();
    }
    let (told, hears) = mpsc::channel();
    std::thread::spawn(move || {
        KEPT.with(|scope| scope.register("kept", told, note("kept")).map(drop).unwrap())
    });
    assert_eq!(hears.recv_timeout(PATIENCE), Ok("kept"));
}

#[test]
fn a_scope_that_was_ended_is_not_ended_again_by_its_drop() {
    let (told, hears) = mpsc::channel();
    let scope = Scope::new();
    scope.register("a", told, note("a")).unwrap();
    let clone = scope.clone();
    let report = scope.end();
    assert_eq!(report.ended.len(), 1);
    assert_eq!(hears.try_iter().count(), 1);
    assert_eq!(clone.run(), report);
}
