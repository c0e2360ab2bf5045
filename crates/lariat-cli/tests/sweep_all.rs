//! `lariat sweep --all` and `lariat ps --all`: every run of a user, and nobody who is alive.
//!
//! As a user that nobody else has: other tests' processes are not this one's to end.

mod crash;

use std::fs;
use std::time::{Duration, SystemTime};

use crash::{
    LARIAT, User, at_runtime, is_alive, kill_at_once, lariat, listed, mark_of, names, project, said, service,
    wait_records,
};
use lariat_testkit::census::Seen;
use lariat_testkit::{Arena, Containment, Facts, PATIENCE, Running, Stack, fixture, wait_until};
use serde_json::Value;

/// Starts `lariat run` of a fixture as the user, and waits for its record, the `count`th.
fn run(arena: &Arena, user: User, name: &str, fixture_args: &[&str], count: usize) -> (Running, Facts) {
    let facts = arena.facts(name);
    user.own(arena);
    let command = lariat(arena, &["run", "--grace", "300ms", "--", fixture::path()]);
    let running = user.runs(command.args(fixture_args).facts(&facts)).start();
    facts.wait_for("ready");
    wait_records(arena, count);
    (running, facts)
}

/// The supervisor and the keeper of a running command.
fn lariats(running: &Running) -> Vec<Seen> {
    let own = running.seen().expect("it is alive");
    let keepers = lariat_testkit::census::children_of(own.pid);
    keepers.into_iter().filter_map(Seen::of).chain([own]).collect()
}

fn runs(arena: &Arena, user: User) -> Vec<Value> {
    let ps = user.runs(lariat(arena, &["ps", "--all", "--json"])).run().expect(0);
    let json: Value = serde_json::from_str(&ps.out()).expect("one object");
    json["runs"].as_array().expect("a list").clone()
}

#[test]
fn everything_that_crashed_is_ended_and_nothing_that_lives() {
    let Some(user) = User::take() else { return };
    let mut arena = Arena::with(Containment::Lineage);
    let port = arena.port();
    // A stack and a command that crash, two that live, a run inside a live one, one whose record was lost.
    let (dead, dead_facts) = project(&arena, "dead", "daemon", "--manner stubborn");
    let (live, live_facts) = project(&arena, "live", "port-holder", &format!("--port {port}"));
    user.own(&arena);
    let dead_up = user.up(&arena, &dead);
    dead_facts.wait_for("ready");
    let live_up = user.up(&arena, &live);
    live_facts.wait_for("ready");
    // A stack's socket stands beside the records.
    wait_until("two sockets", PATIENCE, || (at_runtime(&arena).len() == 2).then_some(()));
    let (dead_run, dead_run_facts) = run(&arena, user, "dr", &["new-session", "--manner", "stubborn"], 1);
    let (live_run, live_run_facts) = run(&arena, user, "lr", &["daemon"], 2);
    let (lost_run, lost_facts) = run(&arena, user, "lost", &["new-session", "--manner", "stubborn"], 3);
    let mark = mark_of(live_run_facts.pid("leader"));
    // It carries the mark of a live run and hangs on nobody of it.
    let marked =
        user.runs(arena.command("/bin/sleep").arg("60").env("LARIAT_RUN", &mark).own_session()).start();
    let stranger =
        arena.command("/bin/sleep").arg("61").env("LARIAT_RUN", "00000000000000aa").own_session().start();
    let lost_mark = mark_of(lost_facts.pid("leader"));
    let supervisors = [dead_up.seen().expect("it is alive")];
    let keepers = lariat_testkit::census::children_of(dead_up.pid()).into_iter().filter_map(Seen::of);
    let all: Vec<Seen> = supervisors.into_iter().chain(keepers).collect();
    kill_at_once(&[all, lariats(&dead_run), lariats(&lost_run)].concat());
    let record = at_runtime(&arena).into_iter().find(|path| path.to_string_lossy().contains(&lost_mark));
    fs::remove_file(record.expect("its record")).expect("root may");
    let left: Vec<i32> = [dead_facts.pid("leader"), dead_facts.pid("daemon")]
        .into_iter()
        .chain([dead_run_facts.pid("leader"), dead_run_facts.pid("child")])
        .chain([lost_facts.pid("leader"), lost_facts.pid("child")])
        .collect();
    assert!(left.iter().all(|pid| is_alive(*pid)), "the negative control");
    let dry = user.runs(lariat(&arena, &["sweep", "--all", "--dry-run"])).run().expect(0);
    names(&dry.out(), &left);
    let swept =
        user.runs(lariat(&arena, &["sweep", "--all", "--yes", "--possible", "--force"])).run().expect(0);
    assert!(!left.iter().any(|pid| is_alive(*pid)), "{}", said(&swept));
    let alive = [
        live_facts.pid("leader"),
        live_facts.pid("port"),
        live_run_facts.pid("leader"),
        live_run_facts.pid("daemon"),
    ];
    assert!(alive.iter().all(|pid| is_alive(*pid)), "a live run was touched: {}", said(&swept));
    assert!(live_up.is_alive() && live_run.is_alive() && marked.is_alive() && stranger.is_alive());
    assert_eq!((listed(&arena).len(), at_runtime(&arena).len()), (1, 2), "{:?}", at_runtime(&arena));
    for running in [&dead_up, &dead_run, &lost_run] {
        running.wait();
    }
    for running in [&live_up, &live_run, &marked] {
        running.signal(libc::SIGTERM);
        running.wait();
    }
    stranger.signal(libc::SIGKILL);
    stranger.wait();
    arena.finish();
}

/// A run inside a run carries the outer one's mark, and is what the outer one leaves when that is killed.
#[test]
fn a_run_inside_a_crashed_one_is_left_of_it() {
    let Some(user) = User::take() else { return };
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    user.own(&arena);
    let inner =
        [LARIAT, "run", "--grace", "20s", "--", fixture::path(), "new-session", "--manner", "graceful"];
    let script = "trap '' TERM; \"$@\" & wait; wait";
    let command = lariat(&arena, &["run", "--", "/bin/sh", "-c", script, "sh"]).args(inner);
    let outer = user.runs(command.args(["--ms", "100"]).facts(&facts)).start();
    facts.wait_for("ready");
    wait_records(&arena, 2);
    kill_at_once(&lariats(&outer));
    assert!(is_alive(facts.pid("leader")));
    user.runs(lariat(&arena, &["sweep", "--all", "--yes"])).run().expect(0);
    assert!(arena.alive().is_empty(), "{:?}", arena.alive());
    ["leader", "child"].into_iter().for_each(|role| facts.assert_told(role, &[1], "by its own supervisor"));
    assert!(facts.has("clean-leader") && facts.has("clean-child") && at_runtime(&arena).is_empty());
    outer.wait();
    arena.finish();
}

#[test]
fn records_that_say_nothing_are_removed_and_said() {
    let Some(user) = User::take() else { return };
    let arena = Arena::with(Containment::Lineage);
    let (damaged, facts) = run(&arena, user, "f", &["new-session", "--manner", "stubborn"], 1);
    let record = at_runtime(&arena).pop().expect("a record");
    let text = fs::read_to_string(&record).expect("it is whole");
    let text = text.lines().next().expect("the record itself");
    kill_at_once(&lariats(&damaged));
    damaged.wait();
    fs::write(&record, &text[..text.len() / 2]).expect("root may");
    // Of another boot, of another pid namespace.
    let of = |key: &str, value: Value, run: &str| {
        let mut json: Value = serde_json::from_str(text).expect("it is whole");
        json["run"] = run.into();
        json[key] = value;
        fs::write(record.with_file_name(format!("{run}.json")), json.to_string()).expect("root may");
    };
    of("boot", "00000000-0000-0000-0000-000000000000".into(), "00000000000000b0");
    of("pid_namespace", 1.into(), "00000000000000e0");
    fs::write(record.with_file_name("00000000000000d0.sock"), "").expect("root may");
    user.own(&arena);
    let long_ago = SystemTime::now() - Duration::from_secs(60);
    for path in at_runtime(&arena) {
        fs::File::options()
            .append(true)
            .open(path)
            .and_then(|file| file.set_modified(long_ago))
            .expect("root may");
    }
    let swept = user.runs(lariat(&arena, &["sweep", "--all", "--yes", "--force"])).run().expect(0);
    assert!(!is_alive(facts.pid("leader")) && !is_alive(facts.pid("child")), "{}", said(&swept));
    for words in ["damaged", "started anew", "another pid namespace"] {
        assert!(said(&swept).contains(words), "no {words:?}: {}", said(&swept));
    }
    let left = at_runtime(&arena);
    assert!(left.len() == 1 && left[0].ends_with("00000000000000e0.json"), "{left:?}");
    arena.finish();
}

#[test]
fn ps_all_shows_where_and_how_everything_is() {
    let Some(user) = User::take() else { return };
    let arena = Arena::with(Containment::Lineage);
    user.own(&arena);
    let none = user.runs(lariat(&arena, &["ps", "--all"])).run().expect(0);
    assert_eq!(none.out(), "no run of yours is known\n");
    // Long enough for its keeper to be at work for as long as this test takes.
    let facts = arena.facts("shop");
    let toml = service("server", "daemon", &facts, "--manner stubborn").replace("300ms", "9m");
    let stack = Stack::new(&arena, LARIAT, "shop", &toml);
    user.own(&arena);
    let up = user.up(&arena, &stack);
    facts.wait_for("ready");
    let (command, _) = run(&arena, user, "f", &["alone"], 1);
    let state = |what: &str| {
        let found = runs(&arena, user);
        let run = found.into_iter().find(|run| run["kind"] == what).unwrap_or_else(|| panic!("no {what}"));
        (run["state"].as_str().expect("a word").to_owned(), run)
    };
    let (alive, shop) = state("stack");
    assert_eq!((alive.as_str(), shop["stack"].as_str()), ("alive", Some("shop")));
    assert_eq!(shop["dir"].as_str(), stack.dir().to_str());
    assert_eq!(shop["supervisor"].as_i64(), Some(up.pid().into()));
    assert!(shop["age"].as_f64().is_some_and(|age| age < 600.0), "{shop}");
    let (alive, one) = state("command");
    assert_eq!((alive.as_str(), one["supervisor"].as_i64()), ("alive", Some(command.pid().into())));
    assert_eq!(one["command"][1].as_str(), Some("alone"));
    // Its keeper has to wait for who ignores the stop signal.
    let keepers = lariat_testkit::census::children_of(up.pid());
    let keepers: Vec<Seen> = keepers.into_iter().filter_map(Seen::of).collect();
    up.signal(libc::SIGKILL);
    up.wait();
    assert_eq!(state("stack").0, "finishing");
    keepers.iter().for_each(Seen::kill);
    wait_until("the keepers' end", PATIENCE, || keepers.iter().all(|k| !k.is_alive_now()).then_some(()));
    let (crashed, shop) = state("stack");
    assert_eq!((crashed.as_str(), shop["left"].as_i64()), ("crashed", Some(2)));
    let table = user.runs(lariat(&arena, &["ps", "--all"])).run().expect(0);
    let columns =
        |text: &str| text.find("where").or_else(|| text.find(stack.dir().to_str().expect("a path")));
    let lines = table.out();
    let line = lines.lines().find(|line| line.contains(" shop ")).expect("a line");
    assert!(line.contains("crashed, 2 processes left"), "{lines}");
    assert_eq!(columns(lines.lines().next().expect("a title")), columns(line), "{lines}");
    assert!(table.err().contains("lariat sweep --all"), "{}", table.err());
    command.signal(libc::SIGTERM);
    command.wait();
    user.runs(lariat(&arena, &["sweep", "--all", "--yes", "--force"])).run().expect(0);
    assert!(runs(&arena, user).is_empty());
    arena.finish();
}

/// The record is written right after the start: what is killed before that is known by its mark.
#[test]
fn a_command_without_a_record_is_found_where_it_works() {
    let Some(user) = User::take() else { return };
    let arena = Arena::with(Containment::Lineage);
    let (lost, facts) = run(&arena, user, "f", &["new-session", "--manner", "stubborn"], 1);
    kill_at_once(&lariats(&lost));
    lost.wait();
    at_runtime(&arena).iter().for_each(|path| fs::remove_file(path).expect("root may"));
    let elsewhere = arena.dir().join("home");
    user.runs(lariat(&arena, &["sweep", "--yes", "--force"]).dir(&elsewhere)).run().expect(0);
    assert!(is_alive(facts.pid("leader")), "it is not of that directory");
    user.runs(lariat(&arena, &["sweep", "--yes", "--force"])).run().expect(0);
    assert!(arena.alive().is_empty());
    arena.finish();
}

/// What a keeper left is in its supervisor's hands while that is alive, though no list of this home's names either.
#[test]
fn who_is_alive_is_seen_from_another_home() {
    let Some(user) = User::take() else { return };
    let mut arena = Arena::with(Containment::Lineage);
    let port = arena.port().to_string();
    let other = arena.dir().join("home/other");
    fs::create_dir(&other).expect("root may");
    let (stack, shop) = project(&arena, "shop", "daemon", "--manner stubborn");
    let toml = service("server", "daemon", &shop, "--manner stubborn").replace("300ms", "9m");
    fs::write(stack.dir().join("lariat.toml"), toml).expect("root may");
    user.own(&arena);
    let up = user.up(&arena, &stack);
    shop.wait_for("ready");
    let single = arena.facts("single");
    user.own(&arena);
    let words = ["run", "--grace", "9m", "--", fixture::path(), "port-holder", "--manner", "stubborn"];
    let run = user.runs(lariat(&arena, &words).args(["--port", &port]).facts(&single)).start();
    single.wait_for("ready");
    let from_there = |args: &[&str]| {
        let command = user.runs(lariat(&arena, args)).dir(&other);
        command.env("XDG_RUNTIME_DIR", &other).env("XDG_STATE_HOME", &other).env("HOME", &other).run()
    };
    let of_shop = ["leader", "daemon"].map(|role| shop.pid(role));
    let of_single = ["leader", "port"].map(|role| single.pid(role));
    let members = [of_shop, of_single].concat();
    for (running, leader) in [(&up, of_shop[0]), (&run, of_single[0])] {
        let keepers = lariat_testkit::census::children_of(running.pid()).into_iter().filter_map(Seen::of);
        let keeper = keepers.into_iter().find(|seen| seen.comm.starts_with("keeper:")).expect("it is alive");
        keeper.kill();
        let is_orphan = || Seen::of(leader).is_some_and(|leader| leader.parent == running.pid());
        wait_until("its orphans", PATIENCE, || is_orphan().then_some(()));
    }
    let swept = from_there(&["sweep", "--all", "--yes", "--possible", "--force"]).expect(0);
    assert!(members.iter().all(|pid| is_alive(*pid)), "{}", said(&swept));
    let freed = from_there(&["port", &port, "--free", "--yes"]).expect(5);
    assert!(said(&freed).contains(&format!("its supervisor is process {}", run.pid())), "{}", said(&freed));
    assert!(is_alive(of_single[1]), "{}", said(&freed));
    let ps = from_there(&["ps", "--all", "--json"]).expect(0);
    let json: Value = serde_json::from_str(&ps.out()).expect("one object");
    let shown = json["runs"].as_array().expect("a list").iter();
    let mut shown: Vec<_> = shown.map(|run| (run["state"].clone(), run["supervisor"].as_i64())).collect();
    shown.sort_by_key(|(_, supervisor)| *supervisor);
    let expected = [&up, &run].map(|running| ("alive".into(), Some(i64::from(running.pid()))));
    assert_eq!(shown, expected, "{json:#}");
    // The negative control: nobody has them in hand any more.
    kill_at_once(&[&up, &run].map(|running| running.seen().expect("it is alive")));
    let swept = from_there(&["sweep", "--all", "--yes", "--force"]).expect(0);
    assert!(!members.iter().any(|pid| is_alive(*pid)), "{}", said(&swept));
    for running in [&up, &run] {
        running.wait();
    }
    arena.finish();
}
