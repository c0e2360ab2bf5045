//! Containment by cgroup, from outside: what it adds to descent, and what happens where it cannot be had.

use lariat_testkit::census::{self, Seen};
use lariat_testkit::{Arena, Containment, Facts, PATIENCE, Running, Stack, fixture, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

fn stack(arena: &Arena, kind: &str, args: &str, more: &str) -> (Stack, Facts) {
    let facts = arena.facts("f");
    let toml = format!("[service.web]\nrun = '{}'\n{more}\n", fixture::line(kind, &facts, args));
    (Stack::new(arena, LARIAT, "project", &toml), facts)
}

/// Kills lariat and its keepers in one go: none of them sees another's death before its own.
fn kill_all_of_lariat(lariat: &Running) {
    let own = lariat.seen().expect("it is alive");
    let keepers: Vec<Seen> = census::children_of(own.pid).into_iter().filter_map(Seen::of).collect();
    assert!(!keepers.is_empty());
    keepers.iter().chain([&own]).for_each(|seen| seen.signal(libc::SIGSTOP));
    keepers.iter().for_each(Seen::kill);
    lariat.signal(libc::SIGKILL);
    wait_until("the keepers' end", PATIENCE, || {
        keepers.iter().all(|seen| Seen::of(seen.pid).is_none_or(|now| !now.is_alive())).then_some(())
    });
}

fn inner(arena: &Arena) -> usize {
    arena.boundary().map_or(0, |boundary| boundary.inner().len())
}

#[test]
fn every_start_has_a_directory_and_none_is_left() {
    let Some(arena) = Arena::bounded() else { return };
    let (stack, facts) = stack(&arena, "new-session", "", "");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let members = arena.boundary().expect("it is there").members();
    assert!(members.contains(&facts.pid("leader")) && members.contains(&facts.pid("child")));
    assert_eq!(inner(&arena), 1);
    let before = stack.count("service-ready");
    stack.run(&arena, &["restart", "web"]).expect(0);
    stack.wait_event("service-ready", before);
    assert_eq!(inner(&arena), 1, "the last one's is gone, the new one's is there");
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    assert_eq!(inner(&arena), 0);
    arena.finish();
}

/// The end of the last life's keeper may be reported when the next one is at work already.
#[test]
fn a_restart_does_not_take_the_new_keeper_for_the_old_one() {
    let arena = Arena::new();
    let (stack, facts) = stack(&arena, "new-session", "", "");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    for _ in 0..60 {
        let before = stack.count("service-ready");
        stack.run(&arena, &["restart", "web"]).expect(0);
        stack.wait_event("service-ready", before);
    }
    assert_eq!(stack.count("keeper-lost"), 0);
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    arena.finish();
}

#[test]
fn whom_nothing_else_tells_is_found_after_every_lariat_process_was_killed() {
    // No name, no environment, no descriptors, a session and a parent of its own: under descent alone it could only be
    // guessed. In the directory it is certain.
    let Some(arena) = Arena::bounded() else { return };
    let (stack, facts) = stack(&arena, "disguised", "--manner stubborn", "stop = { grace = '200ms' }");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let disguised = facts.pid("disguised");
    kill_all_of_lariat(&up);
    up.wait();
    let alive = |pid: i32| Seen::of(pid).is_some_and(|seen| seen.is_alive());
    assert!(alive(disguised), "the kernel ends nobody here");
    let ended = stack.run(&arena, &["down", "--yes"]).expect(0);
    let said = ended.out() + &ended.err();
    assert!(said.contains("cgroup") && said.contains(&disguised.to_string()), "{said}");
    assert!(!alive(disguised));
    assert_eq!(inner(&arena), 0, "the directory is gone as well");
    arena.finish();
}

#[test]
fn descent_alone_does_not_find_the_disguised() {
    // The control of the test above: without the directory nobody is certain, and nobody unsure is ended.
    let mut arena = Arena::with(Containment::Lineage);
    let (stack, facts) = stack(&arena, "disguised", "--manner stubborn", "stop = { grace = '200ms' }");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    kill_all_of_lariat(&up);
    up.wait();
    stack.run(&arena, &["down", "--yes"]).expect(0);
    let leaks = arena.check();
    assert!(leaks.processes.iter().any(|seen| seen.pid == facts.pid("disguised")), "{leaks}");
}

#[test]
fn a_keepers_death_ends_the_service_and_its_directory() {
    let Some(arena) = Arena::bounded() else { return };
    let (stack, facts) = stack(&arena, "disguised", "--manner stubborn", "stop = { grace = '200ms' }");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    stack.keepers(&arena).iter().for_each(Seen::kill);
    up.wait().expect(1);
    assert_eq!(inner(&arena), 0);
    arena.finish();
}

fn command(arena: &Arena) -> (Running, Facts) {
    let facts = arena.facts("f");
    let run = arena.command(LARIAT).args(["run", "--grace", "5s", "--", fixture::path(), "alone"]);
    let run = run.facts(&facts).own_session().start();
    facts.wait_for("ready");
    (run, facts)
}

/// Told to end, and after a leader that ended by itself and left no child.
#[test]
fn who_is_moved_in_from_outside_ends_with_the_command() {
    for is_told in [true, false] {
        let Some(arena) = Arena::bounded() else { return };
        let (run, facts) = command(&arena);
        let stranger = arena.command("/bin/sleep").arg("600").own_session().start();
        let directories = arena.boundary().expect("it is there").inner();
        let entrance = directories.first().expect("the command has one").join("cgroup.procs");
        std::fs::write(entrance, stranger.pid().to_string()).expect("we may move our own");
        if is_told {
            run.signal(libc::SIGTERM);
        } else {
            Seen::of(facts.pid("leader")).expect("it is alive").kill();
        }
        run.wait();
        assert_eq!(stranger.wait().signal(), Some(libc::SIGTERM), "it was told like any member");
        assert_eq!(inner(&arena), 0);
        arena.finish();
    }
}

/// They are no children of the keeper, and outlive a leader that ends by itself as its children do.
#[test]
fn who_is_moved_in_is_counted_and_named_as_one_who_outlives_the_leader() {
    let Some(arena) = Arena::bounded() else { return };
    let facts = arena.facts("f");
    let line = fixture::line("alone", &facts, "--manner graceful");
    let stack = Stack::new(&arena, LARIAT, "project", &format!("[service.web]\nrun = '{line}'\n"));
    let up = stack.up(&arena);
    let strangers =
        [600, 601].map(|time| arena.command("/bin/sleep").arg(time.to_string()).own_session().start());
    let directories = arena.boundary().expect("it is there").inner();
    let entrance = directories.first().expect("the service has one").join("cgroup.procs");
    for stranger in &strangers {
        std::fs::write(&entrance, stranger.pid().to_string()).expect("we may move our own");
    }
    Seen::of(facts.pid("leader")).expect("it is alive").kill();
    up.wait();
    let events = stack.events();
    assert!(events.contains("\"event\":\"stragglers-found\",\"service\":\"web\",\"alive\":2"), "{events}");
    for stranger in strangers {
        assert!(events.contains(&format!("\"pid\":{},\"name\":\"sleep\"", stranger.pid())), "{events}");
        assert_eq!(stranger.wait().signal(), Some(libc::SIGTERM));
    }
    assert_eq!(inner(&arena), 0);
    arena.finish();
}

#[test]
fn a_commands_directory_goes_with_it_whoever_is_left_to_remove_it() {
    for victim in [None, Some("lariat"), Some("its keeper")] {
        let Some(arena) = Arena::bounded() else { return };
        let (run, _) = command(&arena);
        assert_eq!(inner(&arena), 1);
        let keeper = census::children_of(run.pid()).into_iter().find_map(Seen::of).expect("it is there");
        match victim {
            None => run.signal(libc::SIGTERM),
            Some("lariat") => run.signal(libc::SIGKILL),
            Some(_) => keeper.kill(),
        }
        run.wait();
        if victim == Some("lariat") {
            arena.wait_until_empty(PATIENCE);
        }
        assert_eq!(inner(&arena), 0, "{victim:?}");
        arena.finish();
    }
}

#[test]
fn who_moves_out_is_ended_by_descent() {
    let Some(arena) = Arena::bounded() else { return };
    let outside = arena.boundary().expect("it is there").path().join("cgroup.procs");
    let script = format!(
        "(trap '' TERM; echo 0 > {}; setsid sleep 600 & exec sleep 600) & echo on; wait",
        outside.display()
    );
    let run = arena
        .command(LARIAT)
        .args(["run", "--grace", "300ms", "--", "sh", "-c", &script])
        .own_session()
        .start();
    wait_until("two sleepers outside", PATIENCE, || {
        let text = std::fs::read_to_string(&outside).unwrap_or_default();
        (text.lines().count() >= 2).then_some(())
    });
    run.signal(libc::SIGTERM);
    run.wait();
    assert_eq!(inner(&arena), 0);
    arena.finish();
}

/// Who was frozen has its grace period like who was stopped: with all of its directory, or below it.
#[test]
fn the_frozen_are_thawed_to_hear_of_the_stop() {
    for below in ["", "mine/inner"] {
        let Some(arena) = Arena::bounded() else { return };
        let facts = arena.facts("f");
        let command = arena.command(LARIAT).args(["run", "--grace", "20s", "--", fixture::path(), "alone"]);
        let run = command.args(["--manner", "graceful"]).facts(&facts).own_session().start();
        facts.wait_for("ready");
        let mut directory = arena.boundary().expect("it is there").inner().remove(0);
        if !below.is_empty() {
            directory.push(below);
            std::fs::create_dir_all(&directory).expect("the command may do so too");
            std::fs::write(directory.join("cgroup.procs"), facts.pid("leader").to_string())
                .expect("it is ours");
        }
        std::fs::write(directory.join("cgroup.freeze"), "1").expect("it is ours");
        wait_until("the freeze", PATIENCE, || {
            let events = std::fs::read_to_string(directory.join("cgroup.events")).unwrap_or_default();
            events.contains("frozen 1").then_some(())
        });
        run.signal(libc::SIGTERM);
        run.wait();
        assert!(facts.has("clean-leader"), "it had no grace, frozen in `{below}`");
        assert_eq!(inner(&arena), 0);
        arena.finish();
    }
}

#[test]
fn the_frozen_are_thawed_after_every_lariat_process_was_killed() {
    let Some(arena) = Arena::bounded() else { return };
    let (stack, facts) = stack(&arena, "alone", "--manner graceful", "stop = { grace = '20s' }");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let directory = arena.boundary().expect("it is there").inner().remove(0);
    // Frozen first: the stop signal that comes with its keeper's death is not heard, and no second one follows.
    std::fs::write(directory.join("cgroup.freeze"), "1").expect("it is ours");
    wait_until("the freeze", PATIENCE, || {
        let events = std::fs::read_to_string(directory.join("cgroup.events")).unwrap_or_default();
        events.contains("frozen 1").then_some(())
    });
    kill_all_of_lariat(&up);
    up.wait();
    assert!(!facts.has("clean-leader"), "it did not freeze");
    stack.run(&arena, &["down", "--yes"]).expect(0);
    assert!(facts.has("clean-leader"));
    assert_eq!(inner(&arena), 0);
    arena.finish();
}

#[test]
fn what_cannot_be_had_is_said_only_where_it_was_asked_for() {
    let arena = Arena::with(Containment::Lineage);
    let (stack, _) = stack(&arena, "alone", "--ms 1", "");
    let with = |containment: &str, cgroup: &str, args: &[&str]| {
        stack.lariat(&arena, args).env("LARIAT_CONTAINMENT", containment).env("LARIAT_CGROUP", cgroup).run()
    };
    let nowhere = "/nowhere/at/all";
    let quiet = with("auto", nowhere, &["run", "--", "true"]).expect(0);
    assert_eq!(quiet.err(), "");
    let refused = with("cgroup", nowhere, &["run", "--", "true"]).expect(125);
    assert!(refused.err().contains("could not make a cgroup"), "{refused:?}");
    let no_group = with("cgroup", "/tmp", &["run", "--", "true"]).expect(125);
    assert!(!no_group.err().is_empty());
    for (containment, cgroup, word) in [("magic", "", "magic"), ("auto", "relative/path", "absolute")] {
        let wrong = with(containment, cgroup, &["run", "--", "true"]).expect(125);
        assert!(wrong.err().contains(word), "{wrong:?}");
        let wrong = with(containment, cgroup, &["up", "--yes"]).expect(2);
        assert!(wrong.err().contains(word), "{wrong:?}");
    }
    arena.finish();
}

#[test]
fn an_ordinary_user_with_a_delegated_directory_has_it_too() {
    // As in a desktop's terminal: the directory is the user's, and so are those below.
    let Some(arena) = Arena::bounded() else { return };
    if !lariat_testkit::is_root() {
        // The directory of the tests is a delegated one already.
        return;
    }
    let boundary = arena.boundary().expect("it is there").path().to_owned();
    for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        std::os::unix::fs::chown(boundary.join(name), Some(2), Some(2)).expect("it is ours to give");
    }
    for name in ["home", "tmp", "runtime", "work", "facts-f"] {
        let path = arena.dir().join(name);
        std::fs::create_dir_all(&path).expect("the arena is writable");
        std::os::unix::fs::chown(path, Some(2), Some(2)).expect("it is ours to give");
    }
    let facts = arena.facts("f");
    let script = format!(
        "echo 0 > {}/cgroup.procs && exec setpriv --reuid 2 --regid 2 --clear-groups \"$@\"",
        boundary.display()
    );
    let run = arena
        .command("/bin/sh")
        .args(["-c", &script, "sh", LARIAT, "run", "--grace", "300ms", "--", fixture::path(), "disguised"])
        .args(["--manner", "stubborn"])
        .facts(&facts)
        .own_session()
        .start();
    facts.wait_for("ready");
    assert_eq!(inner(&arena), 1, "LARIAT_CONTAINMENT demands it, and it is there");
    run.signal(libc::SIGTERM);
    run.wait();
    assert_eq!(inner(&arena), 0);
    arena.finish();
}
