//! Shutdowns of random stacks with random services under random signals. A failure prints its seed; to see it again,
//! put the seed into `replay`.

use super::tests::graph;
use super::*;

/// A small generator, so that a seed means the same for ever (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn millis(&mut self, max: u64) -> Duration {
        Duration::from_millis(self.below(max + 1))
    }
}

/// How a simulated service behaves.
struct Service {
    /// How long it takes to heed a stop; never, if absent.
    heeds_after: Option<Duration>,
    /// How long it takes to die of a kill; never, if absent.
    dies_after: Option<Duration>,
    told: Option<(Instant, Duration)>,
    killed: bool,
    ends_at: Option<Instant>,
    is_alive: bool,
    is_given_up: bool,
}

struct World {
    chance: Chance,
    now: Instant,
    begin: Option<Instant>,
    forced: Option<Instant>,
    budget: Duration,
    grace: Vec<Duration>,
    edges: Vec<Vec<usize>>,
    services: Vec<Service>,
    orphans_answer: Option<Instant>,
    verify_answer: Option<Instant>,
    phases: Vec<(Phase, bool)>,
    is_over: bool,
    has_left: bool,
}

impl World {
    fn new(seed: u64) -> (Self, Plan) {
        let mut chance = Chance(seed);
        let count = 1 + chance.below(8) as usize;
        let edges: Vec<Vec<usize>> =
            (0..count).map(|n| (0..n).filter(|_| chance.one_in(3)).collect()).collect();
        let grace: Vec<Duration> = (0..count).map(|_| chance.millis(12_000)).collect();
        let budget = chance.millis(20_000);
        let now = Instant::now();
        let services = (0..count)
            .map(|_| Service {
                heeds_after: (!chance.one_in(4)).then(|| chance.millis(8_000)),
                dies_after: (!chance.one_in(10)).then(|| chance.millis(300)),
                told: None,
                killed: false,
                // Some end by themselves in the middle of it.
                ends_at: chance.one_in(5).then(|| now + chance.millis(10_000)),
                is_alive: true,
                is_given_up: false,
            })
            .collect();
        let edge_slices: Vec<&[usize]> = edges.iter().map(Vec::as_slice).collect();
        let plan = Plan::new(graph(&edge_slices), grace.clone(), budget);
        let world = Self {
            chance,
            now,
            begin: None,
            forced: None,
            budget,
            grace,
            edges,
            services,
            orphans_answer: None,
            verify_answer: None,
            phases: Vec::new(),
            is_over: false,
            has_left: false,
        };
        (world, plan)
    }

    fn deadline(&self) -> Instant {
        self.begin.unwrap() + self.budget
    }

    fn dependents_are_gone(&self, place: usize) -> bool {
        let after = self.edges.iter().enumerate().filter(|(_, before)| before.contains(&place));
        after.into_iter().all(|(other, _)| !self.services[other].is_alive)
    }

    fn apply(&mut self, action: Action) {
        let is_urgent = self.forced.is_some() || self.begin.is_some_and(|_| self.now >= self.deadline());
        match action {
            Action::Begin(_) => assert!(self.begin.replace(self.now).is_none(), "begins once"),
            Action::Stop { place, grace } => {
                assert!(self.begin.is_some() && self.dependents_are_gone(place), "dependents first: {place}");
                assert!(
                    grace <= self.grace[place] && self.now + grace <= self.deadline(),
                    "grace of {place}"
                );
                let service = &mut self.services[place];
                assert!(service.is_alive && service.told.is_none() && !service.killed, "told once: {place}");
                service.told = Some((self.now, grace));
                let heeds_at = service.heeds_after.map(|after| self.now + after);
                let dies_at = service.dies_after.map(|after| self.now + grace + after);
                let ends = [heeds_at.filter(|at| *at < self.now + grace), dies_at, service.ends_at];
                service.ends_at = ends.into_iter().flatten().min();
            }
            Action::Kill(place) => {
                let has_no_time = self.grace[place].is_zero() && self.dependents_are_gone(place);
                assert!(is_urgent || has_no_time, "{place} is killed unasked");
                let service = &mut self.services[place];
                assert!(service.is_alive && !service.killed, "killed once: {place}");
                service.killed = true;
                let dies_at = service.dies_after.map(|after| self.now + after);
                service.ends_at = [dies_at, service.ends_at].into_iter().flatten().min();
            }
            Action::GiveUp(place) => {
                let service = &mut self.services[place];
                assert!(service.is_alive && service.dies_after.is_none(), "{place} would have died");
                service.is_given_up = true;
            }
            Action::PhaseBegan(phase) => self.phases.push((phase, true)),
            Action::PhaseEnded(phase, took) => {
                assert!(self.begin.is_some_and(|begin| took <= self.now - begin));
                self.phases.push((phase, false));
            }
            Action::EndOrphans { grace, give_up_at } => {
                assert!(self.services.iter().all(|s| !s.is_alive || s.is_given_up), "services first");
                assert!(self.now + grace <= give_up_at);
                self.orphans_answer = self.answer();
            }
            Action::HurryOrphans => {}
            Action::Verify { .. } => self.verify_answer = self.answer(),
            Action::Leave => {
                assert!(self.forced.is_some(), "nobody leaves before the second signal");
                self.has_left = true;
                self.is_over = true;
            }
            Action::Finish => self.is_over = true,
        }
    }

    /// A driver that answers, or does not.
    fn answer(&mut self) -> Option<Instant> {
        (!self.chance.one_in(5)).then(|| self.now + self.chance.millis(3_000))
    }

    fn feed(&mut self, plan: &mut Plan, event: Event) {
        let was_forced = plan.is_forced();
        let actions = plan.step(self.now, event);
        if plan.is_forced() && !was_forced {
            self.forced = Some(self.now);
        }
        for action in actions {
            self.apply(action);
        }
    }

    /// What happens next, and when.
    fn next(&mut self, plan: &Plan, signals: &mut Vec<(Instant, Event)>) -> (Instant, Event) {
        let ends = self.services.iter().enumerate().filter(|(_, s)| s.is_alive);
        let mut all: Vec<(Instant, Event)> =
            ends.filter_map(|(place, s)| Some((s.ends_at?, Event::Ended(place)))).collect();
        all.extend(plan.wake_at().map(|at| (at, Event::Woke)));
        all.extend(self.orphans_answer.map(|at| (at, Event::OrphansEnded)));
        all.extend(self.verify_answer.map(|at| (at, Event::Verified)));
        all.extend(signals.first().copied());
        let (at, event) = all.into_iter().min_by_key(|(at, _)| *at).expect("a stop always has a next moment");
        match event {
            Event::OrphansEnded => self.orphans_answer = None,
            Event::Verified => self.verify_answer = None,
            Event::Ended(place) => self.services[place].is_alive = false,
            _ => {
                if signals.first() == Some(&(at, event)) {
                    signals.remove(0);
                }
            }
        }
        (at, event)
    }
}

fn signals(chance: &mut Chance, now: Instant) -> Vec<(Instant, Event)> {
    let first = match chance.below(4) {
        0 => Event::Begin(Why::Asked),
        1 => Event::Force,
        2 => Event::Signal { signal: Signal::INT, is_typed: true },
        _ => Event::Signal { signal: Signal::TERM, is_typed: false },
    };
    let mut all = vec![(now, first)];
    for _ in 0..chance.below(3) {
        let signal = [Signal::INT, Signal::TERM, Signal::HUP][chance.below(3) as usize];
        let event = Event::Signal { signal, is_typed: chance.one_in(2) };
        all.push((now + chance.millis(25_000), event));
    }
    all.sort_by_key(|(at, _)| *at);
    all
}

fn simulate(seed: u64) {
    let (mut world, mut plan) = World::new(seed);
    for place in 0..world.services.len() {
        world.feed(&mut plan, Event::Spawned(place));
    }
    let begin = world.now;
    let mut signals = signals(&mut world.chance, begin);
    for _ in 0..1_000 {
        if world.is_over {
            break;
        }
        let (at, event) = world.next(&plan, &mut signals);
        world.now = world.now.max(at);
        world.feed(&mut plan, event);
    }
    assert!(world.is_over && plan.is_over(), "it never ends");
    let tail = ORPHANS_MIN + VERIFY_WITHIN;
    let by_plan = world.deadline() + KILL_WITHIN + tail;
    assert!(world.now <= by_plan, "late by {:?}", world.now - by_plan);
    if let Some(forced) = world.forced {
        assert!(world.now <= forced + Duration::from_secs(5), "{:?} after force", world.now - forced);
    }
    if world.has_left {
        return;
    }
    let mut numbers: Vec<u8> = Vec::new();
    for phase in Phase::ALL {
        let marks: Vec<bool> = world.phases.iter().filter(|(p, _)| *p == phase).map(|(_, b)| *b).collect();
        assert_eq!(marks, [true, false], "{phase:?} begins once and ends once");
    }
    numbers.extend(world.phases.iter().filter(|(_, began)| !began).map(|(phase, _)| phase.number()));
    assert_eq!(numbers, [1, 2, 3, 4, 5], "phases end in order");
    for (place, service) in world.services.iter().enumerate() {
        assert!(!service.is_alive || service.is_given_up, "{place} is alive and not reported");
    }
}

#[test]
fn random_stacks_stop_in_order_and_in_time() {
    for seed in 0..20_000 {
        let result = std::panic::catch_unwind(|| simulate(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}
