//! One of the listed projects lies on a file system that does not answer: `sweep` and `ps --all` say so, leave that run
//! alone, and do everything else (HAZARD(deaf-file-system)).
//!
//! Only root can mount such a file system; as a user that nobody else has.

mod crash;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crash::{
    User, at_runtime, crash, directory, is_alive, lariat, listed, names, project, said, wait_ledger,
};
use lariat_testkit::census::Seen;
use lariat_testkit::stuck::DeafServer;
use lariat_testkit::{Arena, Containment, Ending, Facts, PATIENCE, Stack, needs, wait_until};
use serde_json::Value;

/// What is asked is given up after two seconds; all else is done in less than this.
const AT_MOST: Duration = Duration::from_secs(30);

/// The user, where there can be such a file system.
fn take() -> Option<User> {
    let user = User::take()?;
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    device.map_err(|error| needs::skip(&format!("there is no FUSE: {error}"))).ok().map(|_| user)
}

/// Mounts a file system over the project, of which only this test and what it starts from here on know.
fn deafen(stack: &Stack) -> DeafServer {
    DeafServer::mount(stack.dir()).expect("there is FUSE")
}

/// Runs it, for as long as it takes where nothing waits for ever.
#[track_caller]
fn in_time(arena: &Arena, user: User, args: &[&str], code: i32) -> Ending {
    user.runs(lariat(arena, args)).start().wait_at_most(AT_MOST).expect(code)
}

/// Lets the file system fail whoever has asked it, and waits for their end: whom they asked for is gone by now.
fn stop(mut server: DeafServer, arena: &Arena) {
    server.stop();
    let is_asker = |seen: &Seen| seen.comm.starts_with("lariat");
    wait_until("the askers' end", PATIENCE, || (!arena.alive().iter().any(is_asker)).then_some(()));
}

fn state_of(ps: &Ending, dir: &str) -> Value {
    let json: Value = serde_json::from_str(&ps.out()).expect("one object");
    let runs = json["runs"].as_array().expect("a list").clone();
    runs.into_iter().find(|run| run["dir"] == dir).unwrap_or_else(|| panic!("no run of {dir}: {json:#}"))
}

/// Two stacks, both killed with all of lariat, and what is left of them.
fn two_crashed(arena: &Arena, user: User) -> [(Stack, Facts); 2] {
    let both = ["far", "near"].map(|name| project(arena, name, "new-session", "--manner stubborn"));
    user.own(arena);
    let up = both.each_ref().map(|(stack, facts)| {
        let up = user.up(arena, stack);
        facts.wait_for("ready");
        wait_ledger(stack, facts.pid("leader"));
        up
    });
    crash(arena, &[&up[0], &up[1]]);
    both
}

fn pids(facts: &Facts) -> [i32; 2] {
    [facts.pid("leader"), facts.pid("child")]
}

#[test]
fn a_crashed_run_on_a_deaf_file_system_is_left_alone_and_all_others_are_ended() {
    let Some(user) = take() else { return };
    let arena = Arena::with(Containment::Lineage);
    let [(far, far_facts), (near, near_facts)] = two_crashed(&arena, user);
    let server = deafen(&far);
    let (far_dir, near_dir) = (far.dir().to_str().expect("a path"), near.dir().to_str().expect("a path"));
    let ps = in_time(&arena, user, &["ps", "--all", "--json"], 0);
    let shown = state_of(&ps, far_dir);
    assert_eq!(shown["state"], "unknown", "{shown:#}");
    assert!(shown["note"].as_str().is_some_and(|note| note.contains("did not answer")), "{shown:#}");
    assert_eq!(state_of(&ps, near_dir)["left"], 2);
    let dry = in_time(&arena, user, &["sweep", "--all", "--dry-run"], 9);
    names(&dry.out(), &pids(&near_facts));
    // Without `--all` the list is read as well, for the sake of who is alive.
    user.runs(lariat(&arena, &["sweep", "--dry-run"]).dir(near.dir()))
        .start()
        .wait_at_most(AT_MOST)
        .expect(0);
    let swept = in_time(&arena, user, &["sweep", "--all", "--yes", "--force"], 9);
    assert!(swept.err().contains(far_dir) && swept.err().contains("did not answer"), "{}", said(&swept));
    assert!(!pids(&near_facts).iter().any(|pid| is_alive(*pid)), "{}", said(&swept));
    assert!(
        pids(&far_facts).iter().all(|pid| is_alive(*pid)),
        "nobody knows whose they are: {}",
        said(&swept)
    );
    assert_eq!(listed(&arena).len(), 1, "it has to be found when it answers: {}", said(&swept));
    stop(server, &arena);
    in_time(&arena, user, &["sweep", "--all", "--yes", "--force"], 0);
    assert!(arena.alive().is_empty() && listed(&arena).is_empty() && at_runtime(&arena).is_empty());
    arena.finish();
}

#[test]
fn a_live_run_on_a_deaf_file_system_is_alive() {
    let Some(user) = take() else { return };
    let arena = Arena::with(Containment::Lineage);
    let (far, facts) = project(&arena, "far", "new-session", "--manner graceful");
    user.own(&arena);
    let up = user.up(&arena, &far);
    facts.wait_for("ready");
    let mut server = deafen(&far);
    let ps = in_time(&arena, user, &["ps", "--all", "--json"], 0);
    assert_eq!(state_of(&ps, far.dir().to_str().expect("a path"))["state"], "alive");
    let swept = in_time(&arena, user, &["sweep", "--all", "--yes", "--force"], 0);
    assert!(swept.err().contains("is alive"), "{}", said(&swept));
    assert!(up.is_alive() && pids(&facts).iter().all(|pid| is_alive(*pid)));
    server.stop();
    drop(server);
    up.signal(libc::SIGTERM);
    up.wait().expect(0);
    // Those who asked for the others are nobody's any more.
    arena.wait_until_empty(PATIENCE);
    arena.finish();
}

/// `port` looks whose run it is, and ends nothing of one of which nobody can say that it is over.
#[test]
fn a_port_of_a_run_on_a_deaf_file_system_is_not_freed() {
    let Some(user) = take() else { return };
    let mut arena = Arena::with(Containment::Lineage);
    let port = arena.port();
    let (far, facts) = project(&arena, "far", "port-holder", &format!("--port {port}"));
    user.own(&arena);
    let up = user.up(&arena, &far);
    facts.wait_for("ready");
    wait_ledger(&far, facts.pid("leader"));
    let server = deafen(&far);
    let alive = in_time(&arena, user, &["port", &port.to_string()], 7);
    assert!(alive.out().contains("is alive"), "{}", said(&alive));
    crash(&arena, &[&up]);
    let holder = facts.pid("port");
    let free = in_time(&arena, user, &["port", &port.to_string(), "--free", "--yes"], 5);
    assert!(said(&free).contains("does not answer") && is_alive(holder), "{}", said(&free));
    assert!(said(&free).contains(&format!("by hand: kill {holder}")), "{}", said(&free));
    stop(server, &arena);
    in_time(&arena, user, &["port", &port.to_string(), "--free", "--yes"], 0);
    in_time(&arena, user, &["sweep", "--all", "--yes", "--force"], 0);
    arena.finish();
}

/// Waits do not add up: all are waited for at the same time.
#[test]
fn many_projects_on_a_deaf_file_system_take_no_longer_than_a_few() {
    let Some(user) = take() else { return };
    let arena = Arena::with(Containment::Lineage);
    let dir = arena.dir().join("far");
    let list = directory(&arena, "XDG_STATE_HOME").join("lariat/runs");
    for made in [&dir, &list] {
        std::fs::create_dir_all(made).expect("the arena is ours");
    }
    std::fs::set_permissions(&list, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
    for number in 0..20 {
        let (run, root) = (format!("{number:016x}"), dir.join(number.to_string()));
        let entry = serde_json::json!({ "run": run, "root": root });
        std::fs::write(list.join(&run), entry.to_string()).expect("it is ours");
    }
    user.own(&arena);
    let mut server = DeafServer::mount(&dir).expect("there is FUSE");
    let ps = in_time(&arena, user, &["ps", "--all"], 0);
    assert_eq!(ps.out().matches("did not answer").count(), 20, "{}", said(&ps));
    assert!(ps.took < Duration::from_secs(8), "{:?}", ps.took);
    server.stop();
    arena.wait_until_empty(PATIENCE);
    drop(server);
    arena.finish();
}

/// Ctrl-C reaches whoever asks for such a project by its name, as far as the kernel lets him go: a server that sleeps has
/// not taken the question.
#[test]
fn whoever_waits_for_a_project_that_he_named_can_give_up() {
    let Some(user) = take() else { return };
    let arena = Arena::with(Containment::Lineage);
    let dir = arena.dir().join("far");
    std::fs::create_dir(&dir).expect("the arena is ours");
    user.own(&arena);
    let server = DeafServer::mount_asleep(&dir).expect("there is FUSE");
    let (dir, file) = (dir.display().to_string(), dir.join("lariat.toml").display().to_string());
    let verbs: [&[&str]; 4] = [
        &["sweep", &dir],
        &["sweep", "--dry-run", &dir],
        &["up", "--yes", "-f", &file],
        &["check", "-f", &file],
    ];
    for verb in verbs {
        let waiting = user.runs(lariat(&arena, verb)).start();
        assert!(waiting.ended(Duration::from_millis(500)).is_none(), "nothing was waited for: {verb:?}");
        waiting.signal(libc::SIGINT);
        let ending = waiting.wait_at_most(Duration::from_secs(3));
        assert_eq!(ending.signal(), Some(libc::SIGINT), "{verb:?}: {ending:?}");
    }
    drop(server);
    arena.finish();
}
