//! The machines against a simulated kernel, many seeds: whatever the dice make of the tree, the rules hold.
//!
//! A failure prints its seed; `LARIAT_SEED=n` runs that one alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod sim;

use std::collections::HashMap;
use std::time::Duration;

use lariat_keeper::machine::{Event, Machine};
use lariat_keeper::stop::{KILL_LIMIT, Life, StopPlan, StopScope};
use lariat_keeper::wire::{End, Order};
use lariat_sys::reap::Exit;
use lariat_sys::signal::Signal;
use sim::{Dice, Kernel, Manner, World};

const SEEDS: u64 = 300;
const GRACE: Duration = Duration::from_secs(3);

fn seeds() -> Vec<u64> {
    match std::env::var("LARIAT_SEED") {
        Ok(seed) => vec![seed.parse().expect("LARIAT_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    }
}

fn world(seed: u64, change: impl FnOnce(&mut Kernel)) -> World {
    let mut kernel = Kernel::new(seed, Signal::TERM);
    change(&mut kernel);
    let mut dice = Dice::new(seed ^ 0x5eed);
    let scopes = [StopScope::Staged, StopScope::Leader, StopScope::Group, StopScope::All];
    let scope = scopes[usize::try_from(dice.roll(4)).unwrap()];
    let plan = StopPlan { signal: Signal::TERM, scope, grace: GRACE };
    let machine = Machine::new(plan, dice.chance(20), kernel.leader);
    World { kernel, machine, notices: Vec::new(), leader_seen: false }
}

/// Begins the end in one of the ways there are, and returns when.
fn begin(world: &mut World, way: u64) -> Option<End> {
    // Some time to fork first.
    let start = world.kernel.now + Duration::from_millis(world.kernel.dice.roll(60));
    if let Some(end) = world.run_until(start) {
        return Some(end);
    }
    match way {
        0 => world.handle(Event::Order(Order::Stop { grace: GRACE })),
        1 => world.handle(Event::SupervisorGone),
        2 => {
            let leader = world.kernel.leader.pid;
            world.kernel.die(leader, Exit::Signal { signal: Signal::SEGV, core: false });
            None
        }
        _ => {
            let leader = world.kernel.leader.pid;
            world.kernel.die(leader, Exit::Code(0));
            let later = world.kernel.now + Duration::from_millis(50);
            world.run_until(later).or_else(|| world.handle(Event::SupervisorGone))
        }
    }
}

fn check_signals(world: &World, seed: u64, grace_end: std::time::Instant) {
    let mut told: HashMap<_, u32> = HashMap::new();
    for (at, to, signal) in &world.kernel.signals {
        if *signal == Signal::TERM {
            *told.entry(*to).or_default() += 1;
        }
        let is_early = *signal == Signal::KILL && *at < grace_end;
        assert!(!is_early, "seed {seed}: {to} was killed within its grace period");
    }
    let twice: Vec<_> = told.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "seed {seed}: told twice: {twice:?}");
}

#[test]
fn every_tree_is_ended_within_bounds_and_told_once() {
    for seed in seeds() {
        let mut world = world(seed, |_| {});
        let way = seed % 4;
        let began_after = world.kernel.now;
        let end = begin(&mut world, way);
        let limit = world.kernel.now + GRACE + KILL_LIMIT + Duration::from_secs(1);
        let end = end.or_else(|| world.run_until(limit));
        let end = end.unwrap_or_else(|| panic!("seed {seed}: way {way} did not end"));
        assert_eq!(end.left, 0, "seed {seed}: way {way} left {} of them", end.left);
        assert!(world.kernel.is_empty(), "seed {seed}: said to be empty, but is not");
        check_signals(&world, seed, began_after + GRACE);
        let killed = world.kernel.history.values().filter(|p| p.killed > 0).count();
        assert_eq!(end.killed as usize, killed, "seed {seed}: the report's count of the killed");
    }
}

/// Whoever ends within its grace is never killed: the cooperative who were there when the stop began.
#[test]
fn the_cooperative_are_never_killed() {
    for seed in seeds() {
        let mut world = world(seed, |kernel| {
            for process in kernel.processes.values_mut() {
                process.manner = Manner::Cooperative(Duration::from_millis(500));
                process.forks_every = None;
            }
        });
        let end = begin(&mut world, seed % 3);
        let limit = world.kernel.now + GRACE + KILL_LIMIT;
        let end = end.or_else(|| world.run_until(limit)).expect("it ends");
        assert_eq!(end.killed, 0, "seed {seed}");
        assert!(end.stop_time <= Duration::from_millis(1_700), "seed {seed}: took {:?}", end.stop_time);
    }
}

/// A stop never hangs on one that does not die, and names it.
#[test]
fn the_stuck_are_given_up_in_time_and_counted() {
    for seed in seeds().into_iter().filter(|seed| seed % 10 == 0 || seeds().len() == 1) {
        let mut world = world(seed, |kernel| {
            kernel.forks_left = 0;
            for (i, process) in kernel.processes.values_mut().enumerate() {
                process.manner = match i % 3 {
                    0 => Manner::Stuck,
                    1 => Manner::Foreign,
                    _ => Manner::Cooperative(Duration::ZERO),
                };
            }
        });
        let stuck =
            world.kernel.alive().filter(|p| matches!(p.manner, Manner::Stuck | Manner::Foreign)).count();
        let end = world.handle(Event::Order(Order::Stop { grace: GRACE }));
        let limit = world.kernel.now + GRACE + KILL_LIMIT + Duration::from_secs(1);
        let end = end.or_else(|| world.run_until(limit));
        let end = end.unwrap_or_else(|| panic!("seed {seed}: hangs on the stuck"));
        assert_eq!(end.left as usize, stuck, "seed {seed}");
        assert!(
            world.kernel.alive().all(|p| p.life != Life::Zombie && p.told + p.killed <= 4),
            "seed {seed}"
        );
    }
}

/// Negative control: a kernel in which the stubborn exist and KILL is never sent would be noticed.
#[test]
fn the_simulation_notices_survivors() {
    let mut world = world(1, |kernel| {
        for process in kernel.processes.values_mut() {
            process.manner = Manner::Stubborn;
        }
    });
    world.handle(Event::Order(Order::Stop { grace: GRACE }));
    let before_kill = world.kernel.now + GRACE / 2;
    assert!(world.run_until(before_kill).is_none(), "it ended without having killed");
    assert!(world.kernel.alive().count() > 0);
}
