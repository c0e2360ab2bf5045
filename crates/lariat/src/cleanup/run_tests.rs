use std::cell::Cell;
use std::convert::Infallible;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::task::{Context, Poll};

use super::*;
use crate::cleanup::{LIMIT_MIN, Scope};

const SHORT: Duration = Duration::from_millis(50);
/// Longer than anything here takes on a machine that is starved, shorter than a test runner waits.
const PATIENCE: Duration = Duration::from_secs(60);

type Never = Result<(), Infallible>;

/// A stack size that no machine has room for, so that no thread can be had.
const TOO_LARGE: usize = 1 << 62;

/// Hangs until its other half is gone.
fn hang() -> (Sender<()>, impl FnOnce(()) -> Never + Send) {
    let (release, released) = mpsc::channel::<()>();
    (release, move |()| {
        let _ = released.recv();
        Ok(())
    })
}

/// Registers what is not to be given up, also where the text of a panic takes seconds.
fn patient<'a>(cleanup: &'a Cleanup, name: &str) -> Named<'a> {
    cleanup.named(name).limit(PATIENCE)
}

fn names(report: &Report) -> Vec<&str> {
    report.ended.iter().map(|ended| ended.name.as_str()).collect()
}

fn outcomes(report: &Report) -> Vec<&Outcome> {
    report.ended.iter().map(|ended| &ended.outcome).collect()
}

/// Calls a closure on a thread of its own and fails the test if it does not return.
fn in_time<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(what()));
    receiver.recv_timeout(PATIENCE).expect("it comes to an end")
}

#[test]
fn a_hang_a_panic_and_an_error_stop_nobody_and_each_is_told() {
    let cleanup = Cleanup::new();
    let (ended, order) = mpsc::channel();
    let note = |name: &'static str| {
        let ended = ended.clone();
        move |()| ended.send(name)
    };
    patient(&cleanup, "first").register((), note("first")).unwrap();
    patient(&cleanup, "error").register((), |()| Err("connection refused")).unwrap();
    patient(&cleanup, "between").register((), note("between")).unwrap();
    patient(&cleanup, "panic").register((), |()| -> Never { panic!("number {}", 7) }).unwrap();
    patient(&cleanup, "static panic").register((), |()| -> Never { panic!("oh") }).unwrap();
    patient(&cleanup, "odd panic").register((), |()| -> Never { std::panic::panic_any(7) }).unwrap();
    let (_release, hangs) = hang();
    cleanup.named("hang").limit(SHORT).register((), hangs).unwrap();
    patient(&cleanup, "last").register((), note("last")).unwrap();

    let report = in_time(move || cleanup.run());

    assert_eq!(order.try_iter().collect::<Vec<_>>(), ["last", "between", "first"]);
    let all = ["last", "hang", "odd panic", "static panic", "panic", "between", "error", "first"];
    assert_eq!(names(&report), all);
    let panicked = |message: &str| Outcome::Panicked(message.to_owned());
    assert_eq!(
        outcomes(&report),
        [
            &Outcome::Cleaned,
            &Outcome::TimedOut,
            &panicked("a panic without a text"),
            &panicked("oh"),
            &panicked("number 7"),
            &Outcome::Cleaned,
            &Outcome::Failed("connection refused".to_owned()),
            &Outcome::Cleaned,
        ]
    );
    assert_eq!((report.cleaned_count(), report.failed_count()), (3, 5));
    assert!(report.ended[1].took >= SHORT && report.took >= SHORT);
    assert!(report.is_complete && !report.is_clean());
    assert!(report.ended.iter().all(|ended| !ended.is_on_callers_thread));
}

#[test]
fn the_whole_error_is_told_where_its_text_has_causes() {
    struct Nested;
    impl fmt::Display for Nested {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(if f.alternate() { "outer: inner" } else { "outer" })
        }
    }
    let cleanup = Cleanup::new();
    patient(&cleanup, "a").register((), |()| Err(Nested)).unwrap();
    assert_eq!(outcomes(&cleanup.run()), [&Outcome::Failed("outer: inner".to_owned())]);
}

#[test]
fn a_panic_that_panics_when_it_is_dropped_is_one_panic() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::panic_any(Bomb)
        }
    }
    let cleanup = Cleanup::new();
    patient(&cleanup, "after").register((), |()| Never::Ok(())).unwrap();
    patient(&cleanup, "bomb").register((), |()| -> Never { std::panic::panic_any(Bomb) }).unwrap();
    let report = in_time(move || cleanup.run());
    assert_eq!(
        outcomes(&report),
        [&Outcome::Panicked("a panic without a text".to_owned()), &Outcome::Cleaned]
    );
}

#[test]
fn cleanups_run_one_at_a_time_on_threads_with_their_names_whatever_is_in_these() {
    let cleanup = Cleanup::new();
    let caller = thread::current().id();
    let (told, threads) = mpsc::channel();
    let is_busy = Arc::new(AtomicBool::new(false));
    for name in ["a\0b", ""] {
        let (told, is_busy) = (told.clone(), Arc::clone(&is_busy));
        let end = move |()| {
            assert!(!is_busy.swap(true, Ordering::SeqCst), "two at a time");
            thread::yield_now();
            is_busy.store(false, Ordering::SeqCst);
            told.send((thread::current().id(), thread::current().name().map(str::to_owned)))
        };
        patient(&cleanup, name).register((), end).unwrap();
    }
    let report = cleanup.run();
    assert!(report.is_clean(), "{report}");
    let threads: Vec<_> = threads.try_iter().collect();
    assert_eq!(threads[0].1.as_deref(), Some("cleanup:"));
    assert_eq!(threads[1].1.as_deref(), Some("cleanup:ab"));
    assert!(threads[0].0 != threads[1].0 && threads.iter().all(|(id, _)| *id != caller));
    assert_eq!(report.ended[1].name, "a\0b");
}

#[test]
fn one_registered_during_the_cleaning_is_ended_in_its_order_and_one_after_it_comes_back() {
    let cleanup = Cleanup::new();
    let clone = cleanup.clone();
    cleanup.named("last").priority(-5).register((), |()| Never::Ok(())).unwrap();
    patient(&cleanup, "old").register((), |()| Never::Ok(())).unwrap();
    let registers = move |()| {
        clone.named("very late").priority(-9).register((), |()| Never::Ok(()))?;
        patient(&clone, "late").register((), |()| Never::Ok(()))?;
        clone.named("urgent").priority(3).register((), |()| Never::Ok(())).map(drop)
    };
    patient(&cleanup, "registers").register((), registers).unwrap();

    let report = cleanup.run();
    assert_eq!(names(&report), ["registers", "urgent", "late", "old", "last", "very late"]);
    assert!(report.is_clean(), "{report}");

    let is_called = Arc::new(AtomicBool::new(false));
    let (called, resource) = (Arc::clone(&is_called), Arc::new(()));
    let refused = cleanup.register("too late", Arc::clone(&resource), move |_| {
        called.store(true, Ordering::SeqCst);
        Never::Ok(())
    });
    let refused = refused.expect_err("all is done");
    assert_eq!(refused.reason(), Reason::Done);
    assert_eq!(refused.to_string(), "could not register `too late`: all cleanups are done");
    assert!(Arc::ptr_eq(&refused.into_resource(), &resource), "another resource came back");
    assert_eq!(Arc::strong_count(&resource), 1, "a copy was kept");
    assert!(!is_called.load(Ordering::SeqCst) && cleanup.run() == report);
}

#[test]
fn one_that_registers_itself_for_ever_does_not_keep_the_caller_for_ever() {
    fn again(cleanup: &Cleanup, count: &Arc<AtomicUsize>) -> Result<(), Refused<()>> {
        let (clone, counted) = (cleanup.clone(), Arc::clone(count));
        let end = move |()| {
            counted.fetch_add(1, Ordering::SeqCst);
            again(&clone, &counted)
        };
        patient(cleanup, "again").register((), end).map(drop)
    }
    let (cleanup, count) = (Cleanup::new(), Arc::new(AtomicUsize::new(0)));
    again(&cleanup, &count).unwrap();
    let report = in_time(move || cleanup.run());
    assert_eq!(count.load(Ordering::SeqCst), LATE_MAX + 1);
    assert!(matches!(outcomes(&report).last(), Some(Outcome::Failed(_))));
}

#[test]
fn sixteen_threads_that_trigger_at_once_start_each_once_and_get_the_same_report() {
    const THREADS: usize = 16;
    let (cleanup, count) = (Cleanup::new(), Arc::new(AtomicUsize::new(0)));
    for number in 0..5 {
        let count = Arc::clone(&count);
        let end = move |()| {
            count.fetch_add(1, Ordering::SeqCst);
            Never::Ok(())
        };
        patient(&cleanup, &format!("number {number}")).register((), end).unwrap();
    }
    let (_release, hangs) = hang();
    cleanup.named("hang").priority(1).limit(SHORT).register((), hangs).unwrap();
    let (barrier, (sender, reports)) = (Arc::new(Barrier::new(THREADS)), mpsc::channel());
    for _ in 0..THREADS {
        let (cleanup, barrier, sender, count) =
            (cleanup.clone(), Arc::clone(&barrier), sender.clone(), Arc::clone(&count));
        thread::spawn(move || {
            barrier.wait();
            let report = cleanup.run();
            let _ = sender.send((report, count.load(Ordering::SeqCst)));
        });
    }
    let all: Vec<_> =
        (0..THREADS).map(|_| reports.recv_timeout(PATIENCE).expect("nobody waits for ever")).collect();
    for (report, seen) in &all {
        assert_eq!(*seen, 5, "somebody did not wait until the end");
        assert_eq!(report, &all[0].0);
    }
    assert_eq!(all[0].0.ended.len(), 6);
}

#[test]
fn a_cleanup_that_runs_it_again_gets_an_answer_at_once_and_so_does_one_left_behind() {
    let cleanup = Cleanup::new();
    let (sender, answers) = mpsc::channel();
    let (inner, told) = (cleanup.clone(), sender.clone());
    patient(&cleanup, "nested").register((), move |()| told.send(inner.run())).unwrap();
    patient(&cleanup, "before").register((), |()| Never::Ok(())).unwrap();
    let (release, released) = mpsc::channel::<()>();
    let inner = cleanup.clone();
    let left_behind = move |()| {
        let _ = released.recv();
        sender.send(inner.run())
    };
    cleanup.named("left behind").limit(SHORT).register((), left_behind).unwrap();

    let report = in_time(move || cleanup.run());
    let answer = answers.recv_timeout(PATIENCE).expect("the nested call returns");
    assert_eq!(names(&answer), ["left behind", "before"]);
    assert!(!answer.is_complete && !answer.is_clean());
    assert_eq!(report.ended[2].outcome, Outcome::Cleaned, "it waited for itself");

    drop(release);
    assert_eq!(answers.recv_timeout(PATIENCE), Ok(report), "afterwards there is the whole");
}

#[test]
fn a_cleanup_that_waits_for_another_thread_to_run_it_ends_at_its_limit() {
    let cleanup = Cleanup::new();
    let inner = cleanup.clone();
    let waits = move |()| -> Never {
        let _ = thread::spawn(move || inner.run()).join();
        Ok(())
    };
    patient(&cleanup, "after").register((), |()| Never::Ok(())).unwrap();
    cleanup.named("waits").limit(SHORT).register((), waits).unwrap();
    let report = in_time(move || cleanup.run());
    assert_eq!(outcomes(&report), [&Outcome::TimedOut, &Outcome::Cleaned]);
}

#[test]
fn what_is_taken_back_is_the_resource_itself_and_its_cleanup_is_not_called() {
    let cleanup = Cleanup::new();
    let (resource, captured) = (Arc::new(()), Arc::new(()));
    let kept = Arc::clone(&captured);
    let registered = cleanup.register("mine", Arc::clone(&resource), move |_| {
        drop(kept);
        Err("is not called")
    });
    let back = registered.unwrap().take().expect("it is still there");
    assert!(Arc::ptr_eq(&back, &resource));
    assert_eq!((Arc::strong_count(&resource), Arc::strong_count(&captured)), (2, 1), "something was kept");
    assert!(cleanup.run().ended.is_empty());
}

#[test]
fn handles_whose_cleanup_has_begun_give_nothing_and_those_that_wait_still_do() {
    let cleanup = Cleanup::new();
    let (told, hears) = mpsc::channel();
    let waiting = patient(&cleanup, "waiting").register(5, |_| Err("is not called")).unwrap();
    let (release, released) = mpsc::channel::<()>();
    let mut running = patient(&cleanup, "running")
        .register(6, move |_| {
            let _ = told.send(());
            let _ = released.recv();
            Never::Ok(())
        })
        .unwrap();
    let clone = cleanup.clone();
    let runs = thread::spawn(move || clone.run());
    hears.recv_timeout(PATIENCE).expect("the cleanup begins");
    let nothing = in_time(move || (running.borrow(|number| *number), running.take()));
    assert_eq!(nothing, (None, None), "it is being ended");
    assert_eq!(waiting.take(), Some(5));
    drop(release);
    assert_eq!(names(&runs.join().unwrap()), ["running"]);
}

/// Everybody who wants the resource at the same moment: exactly one gets it.
#[test]
fn of_the_cleaning_and_whoever_takes_it_back_exactly_one_gets_the_resource() {
    for round in 0..200 {
        let (cleanup, cleaned) = (Cleanup::new(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&cleaned);
        let registered = patient(&cleanup, "contended").register((), move |()| {
            counted.fetch_add(1, Ordering::SeqCst);
            Never::Ok(())
        });
        let (registered, barrier) = (registered.unwrap(), Arc::new(Barrier::new(2)));
        let theirs = Arc::clone(&barrier);
        let takes = thread::spawn(move || {
            theirs.wait();
            registered.take().is_some()
        });
        barrier.wait();
        let report = cleanup.run();
        let is_taken = takes.join().unwrap();
        assert_eq!(cleaned.load(Ordering::SeqCst), usize::from(!is_taken), "round {round}");
        assert_eq!(report.ended.len(), usize::from(!is_taken), "round {round}");
    }
}

#[test]
fn what_is_borrowed_can_be_changed_and_survives_the_panic_of_its_borrower() {
    let cleanup = Cleanup::new();
    let (told, hears) = mpsc::channel();
    let mut registered = patient(&cleanup, "list").register(vec![1], move |list| told.send(list)).unwrap();
    assert_eq!(registered.borrow(|list| list.push(2)), Some(()));
    let panics = catch_unwind(AssertUnwindSafe(|| registered.borrow(|_| panic!("while borrowed"))));
    assert!(panics.is_err());
    assert_eq!(registered.borrow(|list| list.len()), Some(2));
    assert!(cleanup.run().is_clean());
    assert_eq!(hears.try_recv(), Ok(vec![1, 2]));
}

#[test]
fn a_run_from_inside_a_loan_returns_and_the_resource_is_ended_when_the_loan_is_over() {
    let cleanup = Cleanup::new();
    let (told, hears) = mpsc::channel();
    let end = move |text: String| told.send(text);
    let registered = cleanup.named("lent").limit(SHORT).register("x".to_owned(), end).unwrap();
    let (report, ended_meanwhile) = in_time(move || {
        let mut registered = registered;
        let run = registered.borrow(|text| {
            let report = cleanup.run();
            text.push('y');
            (report, hears.try_recv().ok())
        });
        let (report, meanwhile) = run.expect("it was registered");
        assert_eq!(hears.recv_timeout(PATIENCE).as_deref(), Ok("xy"), "late, but ended");
        (report, meanwhile)
    });
    assert_eq!(outcomes(&report), [&Outcome::TimedOut]);
    assert_eq!(ended_meanwhile, None, "ended while it was lent");
}

#[test]
fn dropping_the_last_clone_runs_nothing_and_drops_everything_on_this_thread() {
    struct Noted(&'static str, Sender<(&'static str, ThreadId)>);
    impl Drop for Noted {
        fn drop(&mut self) {
            let _ = self.1.send((self.0, thread::current().id()));
        }
    }
    let (sender, dropped) = mpsc::channel();
    let cleanup = Cleanup::new();
    let never = |_| Err("is not called");
    let registered = patient(&cleanup, "a").register(Noted("a", sender.clone()), never).unwrap();
    patient(&cleanup, "b").register(Noted("b", sender.clone()), never).unwrap();
    patient(&cleanup, "c").register(Noted("c", sender), never).unwrap();
    drop(cleanup.clone());
    drop(cleanup);
    assert!(dropped.try_recv().is_err(), "the handle keeps it");
    drop(registered);
    let here = thread::current().id();
    assert_eq!(dropped.try_iter().collect::<Vec<_>>(), [("c", here), ("b", here), ("a", here)]);
}

#[test]
fn captures_are_dropped_on_the_thread_of_the_cleanup_before_its_end_is_told() {
    struct Noted(Sender<ThreadId>);
    impl Drop for Noted {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }
    let cleanup = Cleanup::new();
    let ((sender, dropped), (told, cleaned_on)) = (mpsc::channel(), mpsc::channel());
    let captured = Noted(sender);
    let end = move |()| {
        let _captured = &captured;
        told.send(thread::current().id())
    };
    patient(&cleanup, "a").register((), end).unwrap();
    cleanup.run();
    assert_eq!(dropped.try_recv().expect("it is dropped"), cleaned_on.try_recv().expect("it was called"));
}

#[test]
fn where_no_thread_can_be_had_it_runs_here_and_says_so() {
    let cleanup = Cleanup::with_stack_size(Some(TOO_LARGE));
    let (told, threads) = mpsc::channel();
    let (nested, clone) = (told.clone(), cleanup.clone());
    let panics = move |()| -> Never {
        assert!(!clone.run().is_complete);
        let _ = nested.send(thread::current().id());
        panic!("here")
    };
    patient(&cleanup, "last").register((), move |()| told.send(thread::current().id())).unwrap();
    let pending = |()| std::future::pending::<Never>();
    cleanup.named("pending").limit(SHORT).register_async((), pending).unwrap();
    patient(&cleanup, "panics").register((), panics).unwrap();

    let (report, caller) = in_time(move || (cleanup.run(), thread::current().id()));
    assert_eq!(threads.try_iter().collect::<Vec<_>>(), [caller, caller]);
    let panicked = Outcome::Panicked("here".to_owned());
    assert_eq!(outcomes(&report), [&panicked, &Outcome::TimedOut, &Outcome::Cleaned]);
    assert!(report.ended.iter().all(|ended| ended.is_on_callers_thread), "{report}");
    assert!(report.to_string().contains("on the caller's thread"));
}

/// A second panic that got out of a destructor would abort this whole test program.
#[test]
fn where_no_thread_can_be_had_a_panic_on_the_way_out_of_a_panic_is_told_too() {
    let cleanup = Cleanup::with_stack_size(Some(TOO_LARGE));
    let kept = cleanup.clone();
    let panics = catch_unwind(AssertUnwindSafe(move || {
        let scope = Scope::from(cleanup);
        patient(&scope, "panics").register((), |()| -> Never { panic!("the second") }).unwrap();
        panic!("the first");
    }));
    assert_eq!(panics.expect_err("it goes on").downcast_ref(), Some(&"the first"));
    let report = kept.run();
    assert_eq!(outcomes(&report), [&Outcome::Panicked("the second".to_owned())]);
    assert!(report.ended[0].is_on_callers_thread);
}

/// Is ready when it is woken by another thread, once for each wait that is left.
struct WokenFromElsewhere(usize);

impl Future for WokenFromElsewhere {
    type Output = Never;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Never> {
        if self.0 == 0 {
            return Poll::Ready(Ok(()));
        }
        self.0 -= 1;
        let (waker, (told, hears)) = (context.waker().clone(), mpsc::channel());
        thread::spawn(move || {
            waker.wake();
            told.send(())
        });
        if self.0.is_multiple_of(2) {
            // The wake comes during the poll, and the poll takes the token that came with it.
            let _ = hears.recv();
            thread::park_timeout(LIMIT_MIN);
        }
        Poll::Pending
    }
}

#[test]
fn a_future_is_driven_by_its_wakes_and_need_not_be_send() {
    let cleanup = Cleanup::new();
    let (told, hears) = mpsc::channel();
    let end = |told: Sender<usize>| async move {
        let not_send = Rc::new(Cell::new(0));
        for _ in 0..20 {
            WokenFromElsewhere(3).await?;
            not_send.set(not_send.get() + 3);
        }
        let _ = told.send(not_send.get());
        Never::Ok(())
    };
    cleanup.named("future").limit(PATIENCE).register_async(told, end).unwrap();
    let report = in_time(move || cleanup.run());
    assert!(report.is_clean(), "{report}");
    assert_eq!(hears.try_recv(), Ok(60));
}

/// Tells when it is dropped.
struct Told(Sender<ThreadId>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().id());
    }
}

fn dropped_on(dropped: &Receiver<ThreadId>) -> ThreadId {
    dropped.recv_timeout(PATIENCE).expect("the future is dropped")
}

#[test]
fn a_future_is_cancelled_at_its_limit_whether_it_waits_or_wakes_itself_for_ever() {
    let cleanup = Cleanup::new();
    let (sender, dropped) = mpsc::channel();
    let waits = |told: Told| async move {
        let _told = told;
        std::future::pending::<Never>().await
    };
    let spins = |told: Told| async move {
        let _told = told;
        std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::<Never>::Pending
        })
        .await
    };
    patient(&cleanup, "after").register_async((), |()| async { Never::Ok(()) }).unwrap();
    cleanup.named("waits").limit(SHORT).register_async(Told(sender.clone()), waits).unwrap();
    cleanup.named("spins").limit(SHORT).register_async(Told(sender), spins).unwrap();
    let report = in_time(move || cleanup.run());
    assert_eq!(outcomes(&report), [&Outcome::TimedOut, &Outcome::TimedOut, &Outcome::Cleaned]);
    assert_ne!(dropped_on(&dropped), dropped_on(&dropped), "each on its own thread");
}

#[test]
fn a_future_that_fails_panics_or_blocks_is_told_as_such() {
    let cleanup = Cleanup::new();
    let (_release, hangs) = hang();
    patient(&cleanup, "fails").register_async((), |()| async { Err("no") }).unwrap();
    patient(&cleanup, "panics").register_async((), |()| async { panic!("in a poll") as Never }).unwrap();
    cleanup.named("blocks").limit(SHORT).register_async((), |()| async { hangs(()) }).unwrap();
    let report = in_time(move || cleanup.run());
    let panicked = Outcome::Panicked("in a poll".to_owned());
    assert_eq!(outcomes(&report), [&Outcome::TimedOut, &panicked, &Outcome::Failed("no".to_owned())]);
}

#[test]
fn handles_may_go_to_other_threads_and_errors_into_boxes() {
    fn shareable<T: Send + Sync>() {}
    fn unwinds<T: UnwindSafe + RefUnwindSafe>() {}
    /// Send, and not Sync.
    type Resource = Cell<u8>;
    shareable::<Cleanup>();
    unwinds::<Cleanup>();
    shareable::<Registered<Resource>>();
    shareable::<Refused<Resource>>();
    let cleanup = Cleanup::new();
    cleanup.run();
    let boxed = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        patient(&cleanup, "a\nb").register(Resource::new(1), |_| Never::Ok(()))?;
        Ok(())
    };
    assert_eq!(boxed().unwrap_err().to_string(), "could not register `a\\nb`: all cleanups are done");
}

/// What it costs. The fastest counts: that of a machine that has nothing else to do stays far below the 5 ms that a start
/// may take.
#[test]
fn to_register_and_run_one_is_cheap() {
    const ROUNDS: usize = 500;
    let mut times: Vec<(Duration, Duration)> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            let cleanup = Cleanup::new();
            cleanup.register("trivial", 1_u8, |_| Never::Ok(())).unwrap();
            let registered = began.elapsed();
            assert!(cleanup.run().is_clean());
            (began.elapsed(), registered)
        })
        .collect();
    times.sort_unstable();
    let ((all_min, _), (all, registered)) = (times[0], times[ROUNDS / 2]);
    println!("register and run one: median {all:?}, of that register {registered:?}; fastest {all_min:?}");
    assert!(all_min < Duration::from_millis(5), "the fastest of {ROUNDS} took {all_min:?}");
}
