//! A scope of the user's systemd: where our own cgroup is somebody else's, as after a login by ssh.

use lariat_testkit::census::Seen;
use lariat_testkit::{
    Arena, Command, Containment, Facts, PATIENCE, Running, UserSession, fixture, wait_until,
};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

fn lariat(session: &UserSession<'_>, arena: &Arena, args: &[&str]) -> Command {
    session.command(LARIAT, &arena.work().join("project")).args(args)
}

fn project(arena: &Arena, facts: &Facts, limits: &str) {
    std::os::unix::fs::chown(facts.dir(), Some(2), Some(2)).expect("it is ours to give");
    let run = fixture::line("disguised", facts, "--manner stubborn");
    let toml = format!("[service.web]\nrun = '{run}'\nstop = {{ grace = '200ms' }}\n{limits}");
    let file = arena.write("project/lariat.toml", &toml);
    for path in [file.parent().expect("it has one"), &file] {
        std::os::unix::fs::chown(path, Some(2), Some(2)).expect("it is ours to give");
    }
}

/// Kills lariat and its keepers in one go: none of them sees another's death before its own.
fn kill_all_of_lariat(arena: &Arena, lariat: &Running) {
    let keepers: Vec<Seen> =
        arena.alive().into_iter().filter(|seen| seen.comm.starts_with("keeper:")).collect();
    assert!(!keepers.is_empty());
    lariat.signal(libc::SIGSTOP);
    keepers.iter().for_each(|keeper| keeper.signal(libc::SIGSTOP));
    keepers.iter().for_each(Seen::kill);
    lariat.signal(libc::SIGKILL);
    lariat.wait();
    let is_gone = |keeper: &Seen| !keeper.is_alive_now();
    wait_until("the keepers' end", PATIENCE, || keepers.iter().all(is_gone).then_some(()));
}

#[test]
fn a_stack_is_contained_in_a_scope_that_was_asked_for_and_nothing_is_left_of_it() {
    let arena = Arena::with(Containment::Cgroup);
    let Some(session) = UserSession::start(&arena) else { return };
    let facts = arena.facts("f");
    project(&arena, &facts, "");
    // The control: a cgroup is demanded, and without systemd's answer nothing is started.
    let refused = lariat(&session, &arena, &["up", "--yes"]).env("XDG_RUNTIME_DIR", "").run().expect(9);
    assert!(refused.err().contains("no cgroup can be had"), "{refused:?}");
    assert!(refused.err().contains("a scope of the user's systemd"), "{refused:?}");
    let up = lariat(&session, &arena, &["up", "--yes"]).start();
    wait_until("readiness", PATIENCE, || {
        assert!(up.is_alive(), "`up` ended: {:?}", up.wait());
        facts.has("ready").then_some(())
    });
    let scopes = session.scopes();
    assert_eq!(scopes.len(), 1, "{scopes:?}");
    let inner: Vec<_> = std::fs::read_dir(&scopes[0]).expect("it is there").flatten().collect();
    let of_web = inner.iter().find(|entry| entry.file_name().to_string_lossy().ends_with(".web.0"));
    let members = std::fs::read_to_string(of_web.expect("it has one").path().join("cgroup.procs"));
    let members = members.expect("it can be read");
    for who in ["leader", "disguised"] {
        let pid = facts.pids(who).first().copied();
        assert!(
            pid.is_none_or(|pid| members.lines().any(|line| line == pid.to_string())),
            "{who}: {members}"
        );
    }
    assert!(!members.is_empty());
    lariat(&session, &arena, &["down"]).run().expect(0);
    up.wait().expect(0);
    wait_until("the end of the scope", PATIENCE, || session.scopes().is_empty().then_some(()));
    drop(session);
    arena.finish();
}

#[test]
fn whom_only_the_scope_tells_is_found_after_every_lariat_process_was_killed() {
    let arena = Arena::with(Containment::Cgroup);
    let Some(session) = UserSession::start(&arena) else { return };
    let facts = arena.facts("f");
    project(&arena, &facts, "");
    let up = lariat(&session, &arena, &["up", "--yes"]).start();
    wait_until("readiness", PATIENCE, || {
        assert!(up.is_alive(), "`up` ended: {:?}", up.wait());
        facts.has("ready").then_some(())
    });
    let disguised = facts.pid("disguised");
    kill_all_of_lariat(&arena, &up);
    let ended = lariat(&session, &arena, &["down", "--yes"]).run().expect(0);
    let said = ended.out() + &ended.err();
    assert!(said.contains("cgroup") && said.contains(&disguised.to_string()), "{said}");
    wait_until("the end of the scope", PATIENCE, || session.scopes().is_empty().then_some(()));
    drop(session);
    arena.finish();
}

#[test]
fn a_command_in_a_scope_is_swept_by_its_record_after_every_lariat_process_was_killed() {
    let arena = Arena::with(Containment::Auto);
    let Some(session) = UserSession::start(&arena) else { return };
    let facts = arena.facts("f");
    std::os::unix::fs::chown(facts.dir(), Some(2), Some(2)).expect("it is ours to give");
    let arguments = ["run", "--memory", "64MiB", "--", fixture::path(), "disguised", "--manner", "stubborn"];
    let run = session.command(LARIAT, &arena.work()).args(arguments).facts(&facts).start();
    facts.wait_for("ready");
    let disguised = facts.pid("disguised");
    kill_all_of_lariat(&arena, &run);
    let swept = session.command(LARIAT, &arena.work()).args(["sweep", "--all", "--yes"]).run().expect(0);
    let said = swept.out() + &swept.err();
    assert!(said.contains("cgroup") && said.contains(&disguised.to_string()), "{said}");
    wait_until("the end of the scope", PATIENCE, || session.scopes().is_empty().then_some(()));
    drop(session);
    arena.finish();
}

#[test]
fn doctor_names_the_scope_and_leaves_none() {
    let arena = Arena::with(Containment::Cgroup);
    let Some(session) = UserSession::start(&arena) else { return };
    let ending = session.command(LARIAT, &arena.work()).args(["doctor", "--json"]).run().expect(0);
    let report: serde_json::Value = serde_json::from_str(&ending.out()).expect("it is JSON");
    let cgroup =
        report["containments"].as_array().and_then(|all| all.iter().find(|one| one["name"] == "cgroup"));
    let cgroup = cgroup.expect("it is known");
    assert_eq!(cgroup["is_available"], true, "{cgroup}");
    assert!(
        cgroup["state"].as_str().is_some_and(|state| state.contains("a scope of the user's systemd")),
        "{cgroup}"
    );
    wait_until("the end of the scope", PATIENCE, || session.scopes().is_empty().then_some(()));
    drop(session);
    arena.finish();
}

#[test]
fn a_command_with_limits_asks_for_a_scope_and_says_what_it_lacks() {
    let arena = Arena::with(Containment::Auto);
    let Some(session) = UserSession::start(&arena) else { return };
    let arguments = ["run", "--memory", "64MiB", "--", "cat", "/proc/self/cgroup"];
    let ended = session.command(LARIAT, &arena.work()).args(arguments).run().expect(0);
    assert!(ended.out().contains("/app.slice/lariat-"), "{ended:?}");
    let has_memory = arena.boundary().is_some_and(|boundary| {
        let text = std::fs::read_to_string(boundary.path().join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().any(|word| word == "memory")
    });
    let expected = "the controller memory is not available in /sys/fs/cgroup/app.slice/lariat-";
    assert_eq!(ended.err().contains(expected), !has_memory, "{ended:?}");
    // Without limits a command does not pay for a message to systemd.
    let plain = session
        .command(LARIAT, &arena.work())
        .args(["run", "--", "cat", "/proc/self/cgroup"])
        .run()
        .expect(0);
    assert!(plain.out().contains("/session-1.scope"), "{plain:?}");
    wait_until("the end of the scope", PATIENCE, || session.scopes().is_empty().then_some(()));
    drop(session);
    arena.finish();
}
