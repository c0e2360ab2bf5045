use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lariat_sys::reap::Exit;

use super::*;
use crate::service::spec::{
    CommandSpec, Condition, Dependency, Endpoint, Isolation, ReadyCheck, ReadySpec, RestartSpec, RestartWhen,
    ServiceName, ServiceSpec, StopSpec,
};
use crate::shutdown::plan::Phase;

const GRACE: Duration = Duration::from_secs(10);

fn name(place: Place) -> ServiceName {
    ServiceName::new(format!("s{place}")).unwrap()
}

fn service(place: Place, after: &[(Place, Condition)]) -> ServiceSpec {
    ServiceSpec {
        name: name(place),
        command: CommandSpec::Argv(vec!["true".into()]),
        dir: PathBuf::from("/"),
        env: BTreeMap::new(),
        port: None,
        after: after
            .iter()
            .map(|(other, condition)| Dependency { service: name(*other), condition: *condition })
            .collect(),
        ready: Some(ReadySpec {
            check: ReadyCheck::Tcp(Endpoint::OwnPort),
            timeout: Duration::from_secs(60),
            every: Duration::from_millis(100),
        }),
        stop: StopSpec { grace: GRACE, ..StopSpec::default() },
        restart: RestartSpec::default(),
        daemon: false,
        isolation: Isolation::None,
        limits: crate::service::spec::Limits::default(),
    }
}

fn stack_of(services: Vec<ServiceSpec>) -> Stack {
    let graph = Graph::new(&services).unwrap();
    let spec = StackSpec {
        name: "test".into(),
        root: PathBuf::from("/"),
        deadline: Duration::from_secs(15),
        services,
        sweep: Vec::new(),
    };
    Stack::new(&spec, graph, 1)
}

fn stack(dependencies: &[&[(Place, Condition)]]) -> Stack {
    stack_of(dependencies.iter().enumerate().map(|(place, after)| service(place, after)).collect())
}

/// A stack and its clock, told things in short.
struct Bench {
    stack: Stack,
    now: Instant,
}

impl Bench {
    fn new(stack: Stack) -> Self {
        Self { stack, now: Instant::now() }
    }

    fn start(&mut self, chosen: &[Place]) -> Vec<String> {
        words(&self.stack.start(self.now, chosen).1)
    }

    fn tell(&mut self, place: Place, event: machine::Event) -> Vec<String> {
        words(&self.stack.step(self.now, Event::Service(place, event)))
    }

    fn up(&mut self, place: Place) -> Vec<String> {
        let mut all = self.tell(place, machine::Event::Started);
        all.extend(self.tell(place, machine::Event::ReadySeen));
        all
    }

    fn ended(&mut self, place: Place, code: u8) -> Vec<String> {
        self.tell(place, machine::Event::KeeperEnded { exit: Some(Exit::Code(code)), is_empty: true })
    }

    fn shutdown(&mut self, event: plan::Event) -> Vec<String> {
        words(&self.stack.step(self.now, Event::Shutdown(event)))
    }
}

fn words(actions: &[Action]) -> Vec<String> {
    let word = |action: &Action| match action {
        Action::Service(place, action) => match action {
            machine::Action::Spawn => Some(format!("spawn {place}")),
            machine::Action::OrderStop { .. } => Some(format!("stop {place}")),
            machine::Action::OrderKill => Some(format!("kill {place}")),
            machine::Action::Ended(end) => Some(match end.cause {
                Cause::DependencyLost => format!("lost {place}"),
                _ => format!("ended {place}"),
            }),
            machine::Action::Ready => Some(format!("ready {place}")),
            _ => None,
        },
        Action::Shutdown(plan::Action::Begin(why)) => Some(format!("begin {why:?}")),
        Action::Shutdown(plan::Action::EndOrphans { .. }) => Some("orphans".into()),
        Action::Shutdown(plan::Action::Finish) => Some("finish".into()),
        Action::Shutdown(_) => None,
        Action::StartupFinished => Some("up".into()),
        Action::StartupFailed(place) => Some(format!("failed {place}")),
    };
    actions.iter().filter_map(word).collect()
}

use Condition::{Completed, Ready, Started};

#[test]
fn services_start_when_their_conditions_hold() {
    let mut bench = Bench::new(stack(&[&[], &[(0, Ready)], &[(0, Started)], &[(1, Ready), (2, Ready)]]));
    assert_eq!(bench.start(&[3]), ["spawn 0"]);
    assert_eq!(bench.tell(0, machine::Event::Started), ["spawn 2"]);
    assert_eq!(bench.tell(0, machine::Event::ReadySeen), ["ready 0", "spawn 1"]);
    assert_eq!(bench.up(1), ["ready 1"]);
    assert_eq!(bench.up(2), ["ready 2", "spawn 3"]);
    assert_eq!(bench.up(3), ["ready 3", "up"]);
    assert!(bench.stack.has_started_up());
}

#[test]
fn only_the_chosen_and_what_they_need_start() {
    let mut bench = Bench::new(stack(&[&[], &[(0, Ready)], &[]]));
    assert_eq!(bench.start(&[1]), ["spawn 0"]);
    bench.up(0);
    assert_eq!(bench.up(1), ["ready 1", "up"]);
    assert_eq!(bench.stack.service(2).state(), State::Down);
    assert_eq!(bench.start(&[2]), ["spawn 2"]);
}

#[test]
fn a_task_is_waited_for_and_done_once() {
    let mut bench = Bench::new(stack(&[&[], &[(0, Completed)]]));
    assert_eq!(bench.start(&[0, 1]), ["spawn 0"]);
    bench.tell(0, machine::Event::Started);
    assert_eq!(bench.ended(0, 0), ["ended 0", "spawn 1"]);
    assert_eq!(bench.up(1), ["ready 1", "up"]);
    bench.tell(1, machine::Event::Stop { grace: GRACE });
    bench.ended(1, 0);
    assert_eq!(bench.start(&[1]), ["spawn 1"], "the task stays done");
    bench.up(1);
    assert_eq!(bench.start(&[0]), ["spawn 0"], "unless it is named");
}

#[test]
fn a_service_that_fails_in_the_start_up_ends_it_and_everything_that_was_started() {
    let mut bench = Bench::new(stack(&[&[], &[(0, Ready)], &[(1, Ready)]]));
    bench.start(&[2]);
    bench.up(0);
    bench.tell(1, machine::Event::Started);
    let expected = ["ended 1", "lost 2", "failed 1", "begin StartupFailed", "stop 0"];
    assert_eq!(bench.ended(1, 1), expected);
    assert_eq!(bench.stack.startup_failure(), Some(1));
    assert_eq!(bench.ended(0, 0), ["ended 0", "orphans"]);
    bench.shutdown(plan::Event::OrphansEnded);
    assert_eq!(bench.shutdown(plan::Event::Verified), ["finish"]);
    assert!(bench.stack.is_over());
}

#[test]
fn one_that_exits_well_before_it_was_ready_loses_those_who_wait_for_it() {
    let mut bench = Bench::new(stack(&[&[], &[(0, Ready)]]));
    bench.start(&[1]);
    bench.tell(0, machine::Event::Started);
    let seen = bench.ended(0, 0);
    assert_eq!(seen, ["ended 0", "lost 1", "failed 1", "begin StartupFailed", "orphans"]);
}

#[test]
fn nothing_starts_while_stopping_whatever_comes() {
    let mut bench = Bench::new(stack(&[&[], &[(0, Ready)]]));
    bench.start(&[1]);
    bench.tell(0, machine::Event::Started);
    let seen = bench.shutdown(plan::Event::Begin(Why::Asked));
    assert_eq!(seen, ["begin Asked", "stop 0"]);
    assert_eq!(bench.tell(0, machine::Event::ReadySeen), Vec::<String>::new());
    assert_eq!(bench.stack.start(bench.now, &[1]), (false, vec![]));
    assert_eq!(bench.tell(1, machine::Event::Start), Vec::<String>::new());
    assert_eq!(bench.ended(0, 0), ["ended 0", "orphans"]);
}

#[test]
fn the_stack_ends_when_all_ended_by_themselves_but_not_when_somebody_stopped_one() {
    let mut bench = Bench::new(stack(&[&[], &[]]));
    bench.start(&[0, 1]);
    bench.up(0);
    bench.up(1);
    assert_eq!(bench.ended(0, 1), ["ended 0"], "after the start-up one failure does not end the others");
    assert_eq!(bench.ended(1, 0), ["ended 1", "begin AllEnded", "orphans"]);

    let mut bench = Bench::new(stack(&[&[], &[]]));
    bench.start(&[0, 1]);
    bench.up(0);
    bench.up(1);
    bench.tell(0, machine::Event::Stop { grace: GRACE });
    bench.ended(0, 0);
    assert_eq!(bench.ended(1, 0), ["ended 1"]);
    assert!(!bench.stack.is_stopping());
}

#[test]
fn a_backoff_that_is_due_starts_again_and_one_in_a_shutdown_does_not() {
    let restarting = |place| ServiceSpec {
        restart: RestartSpec { when: RestartWhen::Always, max: 3 },
        ..service(place, &[])
    };
    let mut bench = Bench::new(stack_of(vec![restarting(0), service(1, &[])]));
    bench.start(&[0, 1]);
    bench.up(0);
    bench.up(1);
    assert_eq!(bench.ended(0, 1), ["ended 0"]);
    bench.now = bench.stack.wake_at().unwrap();
    assert_eq!(words(&bench.stack.step(bench.now, Event::Woke)), ["spawn 0"]);
    bench.up(0);
    bench.ended(0, 1);
    assert_eq!(bench.shutdown(plan::Event::Begin(Why::Asked)), ["begin Asked", "stop 1"]);
    assert_eq!(bench.stack.service(0).state(), State::Down);
}

/// Small generator with a meaning that never changes (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What a random run has shown so far.
#[derive(Default)]
struct Seen {
    verdicts: u32,
    begins: u32,
    phases: Vec<(Phase, bool)>,
    finished: bool,
}

/// One random life of a random stack: everything that a keeper, a user or a clock may say, in any order that the
/// kernel allows.
fn simulate(seed: u64) {
    let mut chance = Chance(seed);
    let count = 1 + usize::try_from(chance.below(6)).unwrap();
    let services = (0..count).map(|place| random_service(place, &mut chance)).collect();
    let mut bench = Bench::new(stack_of(services));
    let mut seen = Seen::default();
    let chosen: Vec<Place> = (0..count).filter(|_| chance.below(2) == 0).chain([0]).collect();
    let actions = bench.stack.start(bench.now, &chosen).1;
    check(&bench.stack, &actions, &mut seen);
    let stop_at = chance.below(120);
    for step in 0..2_000 {
        if bench.stack.is_over() {
            break;
        }
        bench.now += Duration::from_millis(chance.below(700));
        let event = if step == stop_at {
            Event::Shutdown(
                [plan::Event::Begin(Why::Asked), plan::Event::Force][usize::from(chance.below(2) == 0)],
            )
        } else {
            random_event(&bench.stack, &mut chance)
        };
        let actions = bench.stack.step(bench.now, event);
        check(&bench.stack, &actions, &mut seen);
    }
    assert!(bench.stack.is_over() && seen.finished, "it never ends");
    assert!(seen.verdicts <= 1 && seen.begins == 1);
    let ended: Vec<u8> = seen.phases.iter().filter(|(_, began)| !began).map(|(p, _)| p.number()).collect();
    assert_eq!(ended, [1, 2, 3, 4, 5]);
}

fn random_service(place: Place, chance: &mut Chance) -> ServiceSpec {
    let conditions = [Started, Ready, Completed];
    let mut after: Vec<(Place, Condition)> = Vec::new();
    for other in 0..place {
        if chance.below(3) == 0 {
            after.push((other, conditions[usize::from(chance.below(8) == 0) * 2]));
        }
    }
    let mut service = service(place, &after);
    if chance.below(3) == 0 {
        service.ready = None;
    }
    service.restart.when = [RestartWhen::No, RestartWhen::OnFailure, RestartWhen::Always]
        [usize::try_from(chance.below(3)).unwrap()];
    service.daemon = chance.below(5) == 0;
    service
}

fn random_event(stack: &Stack, chance: &mut Chance) -> Event {
    let place = usize::try_from(chance.below(u64::try_from(stack.graph().len()).unwrap())).unwrap();
    let exit = Exit::Code(u8::try_from(chance.below(2)).unwrap());
    let machine = stack.service(place);
    let keeper_says = match machine.state() {
        State::Starting => {
            [machine::Event::Started, machine::Event::SpawnFailed][usize::from(chance.below(9) == 0)]
        }
        State::Up => match chance.below(5) {
            0 => machine::Event::LeaderExited(exit),
            1 => machine::Event::ReadyTimedOut,
            _ => machine::Event::ReadySeen,
        },
        State::Sweeping => machine::Event::OrphansEnded { is_empty: chance.below(9) > 0 },
        _ => machine::Event::KeeperEnded { exit: Some(exit), is_empty: chance.below(9) > 0 },
    };
    match chance.below(24) {
        0 => Event::Service(place, machine::Event::KeeperGone),
        1 => Event::Service(place, machine::Event::Start),
        2 => Event::Service(place, machine::Event::Restart),
        3 => Event::Service(place, machine::Event::Stop { grace: GRACE }),
        4 | 5 => Event::Woke,
        6 => Event::Shutdown(plan::Event::OrphansEnded),
        7 => Event::Shutdown(plan::Event::Verified),
        _ => Event::Service(place, keeper_says),
    }
}

fn check(stack: &Stack, actions: &[Action], seen: &mut Seen) {
    for action in actions {
        match action {
            Action::Service(place, machine::Action::Spawn) => {
                assert!(seen.begins == 0, "{place} starts while stopping");
                // A dependency may have ended in the same step; it held when the decision was made, so it started.
                let lives = |other: &Machine| other.last_end().is_some() || other.state().is_live();
                let dependencies = stack.graph().dependencies(*place);
                assert!(
                    dependencies.iter().all(|(other, _)| lives(stack.service(*other))),
                    "{place} is too early"
                );
            }
            Action::Shutdown(plan::Action::Begin(_)) => seen.begins += 1,
            Action::Shutdown(plan::Action::PhaseBegan(phase)) => seen.phases.push((*phase, true)),
            Action::Shutdown(plan::Action::PhaseEnded(phase, _)) => seen.phases.push((*phase, false)),
            Action::Shutdown(plan::Action::Finish) => seen.finished = true,
            Action::Shutdown(plan::Action::Stop { .. } | plan::Action::Kill(_)) => panic!("for the services"),
            Action::StartupFinished | Action::StartupFailed(_) => seen.verdicts += 1,
            _ => {}
        }
    }
    assert_eq!(stack.is_stopping(), seen.begins == 1);
    if let Some(place) = stack.startup_failure() {
        assert!(stack.is_stopping(), "{place} failed and nothing stops");
    }
}

#[test]
fn random_lives_of_random_stacks() {
    for seed in 0..10_000 {
        let result = std::panic::catch_unwind(|| simulate(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}
