//! Members that became another user, after every lariat process was killed at once, under descent alone: root sees their
//! mark, and anybody can set one.

mod crash;

use crash::{User, crash, is_alive, lariat, said, service};
use lariat_testkit::census::Seen;
use lariat_testkit::{Arena, Containment, Ending, Facts, PATIENCE, Running, Stack, needs, wait_until};

/// `nobody`, on every system.
const NOBODY: u32 = 65_534;

/// A crashed stack with a member that became `nobody` and left its session.
struct Scene {
    arena: Arena,
    stack: Stack,
    facts: Facts,
    other: Seen,
}

impl Scene {
    fn new() -> Option<Self> {
        if !lariat_testkit::is_root() {
            needs::skip_as_user("only root can become another user, and see what is in his environment");
            return None;
        }
        let arena = Arena::with(Containment::Lineage);
        let facts = arena.facts("f");
        let nobody = format!("setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups");
        let toml = service("server", "alone", &facts, "--manner stubborn")
            .replace("run = '", &format!("run = '(setsid {nobody} sleep 601 &); "));
        let stack = Stack::new(&arena, crash::LARIAT, "project", &toml);
        let up = stack.up(&arena);
        facts.wait_for("ready");
        let is_other = |seen: &Seen| seen.command == "sleep 601";
        let other = wait_until("the other user's", PATIENCE, || {
            arena.alive().into_iter().find(|seen| is_other(seen))
        });
        let left = crash(&arena, &[&up]);
        assert!(left.iter().any(is_other), "the negative control: {left:?}");
        Some(Self { arena, stack, facts, other })
    }

    /// Marked with this run's id by somebody who has nothing to do with it, and one of his that is not.
    fn strangers(&self) -> [Running; 2] {
        let environment = std::fs::read(format!("/proc/{}/environ", self.other.pid)).expect("root may");
        let entries = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let mark = entries.filter_map(|entry| entry.strip_prefix("LARIAT_RUN=").map(str::to_owned)).next();
        let sleeper = |time: &str| self.arena.command("/bin/sleep").arg(time).own_session().as_user(1, 1);
        let forger = sleeper("602").env("LARIAT_RUN", mark.expect("it is marked")).start();
        let is_marked = || forger.seen().is_some_and(|seen| seen.command.ends_with("sleep 602"));
        wait_until("the forger", PATIENCE, || is_marked().then_some(()));
        [forger, sleeper("603").start()]
    }

    fn is_offered(&self, ending: &Ending) {
        let text = said(ending);
        let pid = self.other.pid.to_string();
        let names = |line: &str| ["nobody", "another user's", &pid].iter().all(|word| line.contains(word));
        assert!(text.lines().any(names), "{pid} is not named in:\n{text}");
        assert!(text.contains("possibl"), "{text}");
        assert!(is_alive(self.other.pid), "ended for a mark that anybody can set: {text}");
    }
}

fn end(running: &[Running]) {
    running.iter().for_each(|one| one.signal(libc::SIGKILL));
    running.iter().for_each(|one| drop(one.wait()));
}

#[test]
fn down_names_a_member_that_became_another_user_and_leaves_it() {
    let Some(scene) = Scene::new() else { return };
    let down = scene.stack.run(&scene.arena, &["down", "--yes"]).expect(0);
    scene.is_offered(&down);
    assert!(!is_alive(scene.facts.pid("leader")), "{}", said(&down));
    scene.other.kill();
    scene.arena.wait_until_empty(PATIENCE);
    scene.arena.finish();
}

#[test]
fn a_sweep_offers_it_and_ends_it_after_a_yes_of_its_own() {
    let Some(scene) = Scene::new() else { return };
    let strangers = scene.strangers();
    let forger = strangers[0].pid().to_string();
    let dry = scene.stack.run(&scene.arena, &["sweep", "--dry-run", "--json"]).expect(0);
    let json: serde_json::Value = serde_json::from_str(&dry.out()).expect("one object");
    let pids = |kind: &str| -> Vec<i64> {
        let list = json["groups"][0][kind].as_array().expect("a list");
        list.iter().filter_map(|one| one["pid"].as_i64()).collect()
    };
    let (certain, mut possible) = (pids("certain"), pids("possible"));
    possible.sort_unstable();
    assert_eq!(certain, [i64::from(scene.facts.pid("leader"))], "{json}");
    let mut expected = vec![i64::from(scene.other.pid), i64::from(strangers[0].pid())];
    expected.sort_unstable();
    assert_eq!(possible, expected, "{json}");
    let swept = scene.stack.run(&scene.arena, &["sweep", "--yes"]).expect(0);
    scene.is_offered(&swept);
    // Whoever set the mark is shown with his name, so that nobody says yes unawares.
    let names = |line: &str| line.contains(&forger) && line.contains("daemon");
    assert!(said(&swept).lines().any(names), "{}", said(&swept));
    assert!(strangers.iter().all(Running::is_alive));
    end(&strangers[..1]);
    scene.stack.run(&scene.arena, &["sweep", "--yes", "--possible", "--force"]).expect(0);
    assert!(!is_alive(scene.other.pid) && strangers[1].is_alive());
    end(&strangers[1..]);
    scene.arena.finish();
}

/// A user sees no other one's environment, and is offered nobody for it.
#[test]
fn an_ordinary_user_is_offered_nobody_elses() {
    let Some(user) = User::take() else { return };
    let arena = Arena::with(Containment::Lineage);
    user.own(&arena);
    let mark = "00000000000000ab";
    let stranger = arena.command("/bin/sleep").arg("604").env("LARIAT_RUN", mark).own_session().start();
    let own = user.runs(arena.command("/bin/sleep").arg("605").env("LARIAT_RUN", mark).own_session()).start();
    let is_there = |one: &Running| one.seen().is_some_and(|seen| seen.command.starts_with("/bin/sleep"));
    wait_until("both", PATIENCE, || (is_there(&stranger) && is_there(&own)).then_some(()));
    let swept =
        user.runs(lariat(&arena, &["sweep", "--all", "--yes", "--possible", "--force"])).run().expect(0);
    assert!(!own.is_alive() && stranger.is_alive(), "{}", said(&swept));
    assert!(!said(&swept).contains(&stranger.pid().to_string()), "{}", said(&swept));
    own.wait();
    end(&[stranger]);
    arena.finish();
}
