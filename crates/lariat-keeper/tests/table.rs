//! Every state of the keeper's machine × every event: one line each says what follows.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use lariat_keeper::machine::{Action, Event, Machine};
use lariat_keeper::stop::{Life, Member, Now, Role, StopPlan};
use lariat_keeper::wire::{Notice, Order};
use lariat_sys::identity::Identity;
use lariat_sys::procfs::Comm;
use lariat_sys::reap::Exit;
use lariat_sys::signal::Signal;

const LEADER: Identity = Identity::new(10, 100);
const CHILD: Identity = Identity::new(11, 101);
const GRACE: Duration = Duration::from_secs(5);
const STATES: [&str; 5] = ["up", "daemon", "stopping", "killing", "over"];
const EVENTS: [&str; 12] = [
    "stop",
    "kill",
    "signal",
    "gone",
    "stopped",
    "continued",
    "exited",
    "reaped",
    "walked-empty",
    "refused",
    "woke",
    "empty",
];

fn member(identity: Identity, role: Role) -> Member {
    Member { identity, role, life: Life::Going, pgrp: 10, comm: Comm::new(b"member"), wants_hangup: false }
}

fn at(base: Instant, after: Duration) -> Now {
    Now { instant: base + after, ticks: 1000 + after.as_millis() as u64 / 10 }
}

fn machine_in(state: &str, base: Instant) -> Machine {
    let now = at(base, Duration::ZERO);
    let plan = StopPlan { grace: GRACE, ..StopPlan::default() };
    let mut machine = Machine::new(plan, state == "daemon", LEADER);
    let child = [member(CHILD, Role::Root)];
    let took = Duration::from_micros(10);
    match state {
        "up" => {}
        "daemon" => {
            machine.step(now, Event::LeaderExited(Exit::Code(0)));
            machine.step(now, Event::Walked { members: &child, took });
        }
        "stopping" => drop(machine.step(now, Event::Order(Order::Stop { grace: GRACE }))),
        "killing" => drop(machine.step(now, Event::Order(Order::Kill))),
        "over" => {
            machine.step(now, Event::LeaderExited(Exit::Code(0)));
            machine.step(now, Event::Empty);
        }
        other => unreachable!("{other}"),
    }
    machine
}

fn event(name: &str) -> Event<'static> {
    match name {
        "stop" => Event::Order(Order::Stop { grace: GRACE }),
        "kill" => Event::Order(Order::Kill),
        "signal" => Event::Order(Order::Signal(Signal::USR1)),
        "gone" => Event::SupervisorGone,
        "stopped" => Event::LeaderStopped(Signal::TSTP),
        "continued" => Event::LeaderContinued,
        "exited" => Event::LeaderExited(Exit::Code(3)),
        "reaped" => Event::Reaped,
        "walked-empty" => Event::Walked { members: &[], took: Duration::from_micros(10) },
        "refused" => Event::Refused { member: CHILD, errno: 1 },
        "woke" => Event::Woke,
        "empty" => Event::Empty,
        other => unreachable!("{other}"),
    }
}

/// What follows, in words. The first walk of a stop is asked for by the step that begins it, so `stopping` and
/// `killing` have one under way here.
fn shown(actions: &[Action]) -> String {
    let words: Vec<&str> = actions
        .iter()
        .map(|action| match action {
            Action::Walk { examine: false } => "walk",
            Action::Walk { examine: true } => "examine",
            Action::Signal { signal: Signal::KILL, .. } => "KILL",
            Action::Signal { .. } => "signal",
            Action::Tell(Notice::LeaderExited { .. }) => "tell-exited",
            Action::Tell(_) => "tell",
            Action::KillAll => "KILL-all",
            Action::KillGroup { .. } => "KILL-group",
            Action::ReapAll => "reap",
            Action::Exit(_) => "exit",
        })
        .collect();
    words.join(" ")
}

fn expected(state: &str, event: &str) -> &'static str {
    match (state, event) {
        ("over", _) | (_, "refused") => "",
        (_, "stopped" | "continued") => "tell",
        (_, "empty") => "exit",
        // The leader is gone in `daemon`: nobody to pass a signal to.
        ("daemon", "signal") => "",
        (_, "signal") => "signal",
        ("up" | "daemon", "stop" | "kill" | "gone") => "walk",
        ("stopping" | "killing", "stop" | "kill" | "gone" | "woke" | "reaped") => "",
        ("up", "exited") => "tell-exited walk",
        (_, "exited") => "tell-exited",
        ("up" | "daemon", "woke" | "reaped") => "",
        // Nobody is found: for the daemon that is the end. Where the leader was not seen to exit it means nothing.
        ("daemon", "walked-empty") => "reap",
        ("up" | "stopping" | "killing", "walked-empty") => "",
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn every_state_answers_every_event() {
    for state in STATES {
        for name in EVENTS {
            let base = Instant::now();
            let mut machine = machine_in(state, base);
            let actions = machine.step(at(base, Duration::from_micros(1)), event(name));
            assert_eq!(shown(&actions), expected(state, name), "{state} × {name}: {actions:?}");
        }
    }
}

/// A stop while another is under way can only shorten what is left of the grace period.
#[test]
fn a_second_stop_never_lengthens_the_first() {
    let base = Instant::now();
    let mut machine = machine_in("stopping", base);
    let leader = [member(LEADER, Role::Leader)];
    let took = Duration::from_micros(10);
    machine.step(at(base, Duration::ZERO), Event::Walked { members: &leader, took });
    let order = Event::Order(Order::Stop { grace: GRACE * 10 });
    let later = at(base, Duration::from_secs(1));
    machine.step(later, order);
    machine.step(later, Event::Walked { members: &leader, took });
    let late = at(base, GRACE + Duration::from_millis(1));
    assert_eq!(shown(&machine.step(late, Event::Woke)), "walk");
    let actions = machine.step(late, Event::Walked { members: &leader, took });
    assert_eq!(shown(&actions), "KILL-all KILL-group KILL");
}

/// A keeper that is killing already starts no new grace period when its supervisor dies.
#[test]
fn the_supervisors_death_gives_no_new_grace() {
    let base = Instant::now();
    let mut machine = machine_in("killing", base);
    let leader = [member(LEADER, Role::Leader)];
    let now = at(base, Duration::from_micros(5));
    machine.step(now, Event::SupervisorGone);
    let actions = machine.step(now, Event::Walked { members: &leader, took: Duration::from_micros(10) });
    assert_eq!(shown(&actions), "KILL-all KILL-group KILL");
}

/// Walks that see nobody prove nothing: while the kernel says that somebody is there, the end says so too
/// (`/proc` with `hidepid`, of another pid namespace, or unmounted).
#[test]
fn somebody_whom_no_walk_sees_is_left_and_not_gone() {
    let base = Instant::now();
    let mut machine = machine_in("up", base);
    let mut time = Duration::ZERO;
    let mut queue = machine.step(at(base, time), event("exited"));
    let mut walks = 0;
    loop {
        let Some(action) = (!queue.is_empty()).then(|| queue.remove(0)) else {
            time = machine.wake_at().expect("it goes on").duration_since(base);
            queue = machine.step(at(base, time), Event::Woke);
            continue;
        };
        queue.extend(match action {
            Action::Walk { .. } => {
                walks += 1;
                machine.step(at(base, time), event("walked-empty"))
            }
            Action::ReapAll => machine.step(at(base, time), event("reaped")),
            Action::Exit(end) => {
                assert_eq!(end.left, 1);
                break;
            }
            _ => Vec::new(),
        });
    }
    assert!(time <= GRACE + Duration::from_secs(6), "given up after {time:?} only");
    assert!(walks < 200, "{walks} walks");
}

/// One that forks the next and exits is a zombie whenever it is looked at: what is killed is the group it was in.
/// A machine that was asleep, or a walk that took its time: nobody is given up who was never killed.
#[test]
fn a_walk_that_comes_late_kills_before_anybody_is_given_up() {
    let base = Instant::now();
    let mut machine = machine_in("killing", base);
    let members = [member(CHILD, Role::Root)];
    let walked = Event::Walked { members: &members, took: Duration::from_micros(10) };
    let late = Duration::from_secs(60);
    assert!(shown(&machine.step(at(base, late), walked)).contains("KILL"));
    // Found by the next pass only, when the time for the first one is over: it has its KILL as well.
    let other = [member(LEADER, Role::Leader), member(CHILD, Role::Root)];
    let walked = Event::Walked { members: &other, took: Duration::from_micros(10) };
    let said = shown(&machine.step(at(base, late + Duration::from_secs(6)), walked));
    assert!(said.contains("KILL") && !said.contains("reap"), "{said}");
    let walked = Event::Walked { members: &other, took: Duration::from_micros(10) };
    let said = shown(&machine.step(at(base, late + Duration::from_secs(7)), walked));
    assert_eq!(said, "reap", "the last look of one who gives up");
}

#[test]
fn a_kill_pass_takes_the_group_of_one_that_is_gone_already() {
    let base = Instant::now();
    let mut machine = machine_in("killing", base);
    let gone = Member { life: Life::Zombie, pgrp: LEADER.pid, ..member(CHILD, Role::Root) };
    let walked = Event::Walked { members: &[gone], took: Duration::from_micros(10) };
    let actions = machine.step(at(base, Duration::from_micros(5)), walked);
    assert!(actions.contains(&Action::KillGroup { group: LEADER.pid }), "{actions:?}");
}

/// A daemon that was forked while the walk after its leader's exit was on is a daemon all the same.
#[test]
fn a_daemon_that_the_walk_missed_is_not_stopped() {
    let base = Instant::now();
    let now = at(base, Duration::ZERO);
    let mut machine = Machine::new(StopPlan::default(), true, LEADER);
    let nobody = Event::Walked { members: &[], took: Duration::from_micros(10) };
    assert_eq!(shown(&machine.step(now, Event::LeaderExited(Exit::Code(0)))), "tell-exited walk");
    assert_eq!(shown(&machine.step(now, nobody)), "reap");
    let actions = machine.step(now, Event::Reaped);
    assert_eq!(actions, [Action::Tell(Notice::Daemonized { members: 1 }), Action::ReapAll]);
    assert_eq!((machine.step(now, Event::Reaped), machine.wake_at()), (Vec::new(), None));
}

#[test]
fn a_grace_period_without_end_is_waited_for_and_can_be_cut() {
    let base = Instant::now();
    let plan = StopPlan { grace: Duration::MAX, ..StopPlan::default() };
    let mut machine = Machine::new(plan, false, LEADER);
    let leader = [member(LEADER, Role::Leader)];
    let took = Duration::from_micros(10);
    let now = at(base, Duration::ZERO);
    machine.step(now, Event::SupervisorGone);
    assert_eq!(shown(&machine.step(now, Event::Walked { members: &leader, took })), "signal");
    assert!(machine.wake_at().is_some());
    machine.step(now, Event::Order(Order::Stop { grace: Duration::MAX }));
    machine.step(now, Event::Order(Order::Kill));
    let actions = shown(&machine.step(now, Event::Walked { members: &leader, took }));
    assert!(actions.starts_with("KILL"), "{actions}");
}

/// The kernel tells a leader whose keeper dies, and one that is stopped hears nothing of it.
#[test]
fn a_leader_that_the_kernel_told_is_continued_once_and_not_told_again() {
    let base = Instant::now();
    let plan = StopPlan { grace: GRACE, ..StopPlan::default() };
    let mut machine = Machine::for_orphans(plan, Some(LEADER), at(base, Duration::ZERO));
    let stopped = [Member { life: Life::Stopped, ..member(LEADER, Role::Leader) }];
    let took = Duration::from_micros(10);
    let mut sent = Vec::new();
    for turn in 0..3 {
        let now = at(base, Duration::from_millis(400 * turn));
        machine.step(now, Event::Woke);
        for action in machine.step(now, Event::Walked { members: &stopped, took }) {
            if let Action::Signal { member, signal } = action {
                sent.push((member, signal));
            }
        }
    }
    assert_eq!(sent, [(LEADER, Signal::CONT)]);
}
