//! `isolation = "pid"`: real servers in a pid namespace, their ports reached from outside; every way to end them; the
//! numbers that people see; and what happens where there are no namespaces.

use std::fmt::Write as _;

use lariat_testkit::census::{self, Seen};
use lariat_testkit::{Arena, Facts, PATIENCE, Stack, fixture, need, needs, net, subject, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Down,
    Interrupt,
    KillSupervisor,
    KillKeeper,
    KillAll,
}

/// A server: how it is run at a port, how that is asked, and what its output must say if it was allowed to finish.
struct Server {
    toml: String,
    port: u16,
    answer: fn(u16) -> bool,
    last_words: &'static str,
}

fn redis(arena: &mut Arena) -> Option<Server> {
    let (program, port) = (needs::program("redis-server")?, arena.port());
    let run = format!("['{program}', '--port', '{port}', '--bind', '127.0.0.1', '--save', '']");
    let toml = format!("run = {run}\nport = {port}\nready = {{ tcp = {port} }}\n");
    Some(Server { toml, port, answer: |port| net::connect(port).is_some(), last_words: "bye bye" })
}

fn python(arena: &mut Arena) -> Option<Server> {
    let (program, port) = (needs::program("python3")?, arena.port());
    let toml = format!(
        "run = 'exec {program} -m http.server $PORT --bind 127.0.0.1'\nport = {port}\nready = {{ http = '/' }}\n"
    );
    let answer = |port| net::get(port, "/lariat.toml").is_some_and(|(status, _)| status == 200);
    Some(Server { toml, port, answer, last_words: "" })
}

const CLUSTER: &str = "
const cluster = require('cluster'), http = require('http');
if (cluster.isPrimary) {
  const workers = [cluster.fork(), cluster.fork()];
  process.once('SIGTERM', () => workers.forEach(worker => worker.process.kill('SIGTERM')));
  let gone = 0;
  cluster.on('exit', () => { if (++gone == workers.length) { console.log('all workers left'); process.exit(0); } });
} else {
  const server = http.createServer((q, a) => a.end('from node')).listen(process.env.PORT, '127.0.0.1');
  process.once('SIGTERM', () => { server.close(); setTimeout(() => process.exit(0), 200); });
}
";

fn node(arena: &mut Arena) -> Option<Server> {
    let (program, port) = (needs::program("node")?, arena.port());
    arena.write("isolated/server.js", CLUSTER);
    let toml = format!("run = '{program} server.js'\nport = {port}\nready = {{ http = '/' }}\n");
    let answer = |port| net::get(port, "/") == Some((200, "from node".to_owned()));
    Some(Server { toml, port, answer, last_words: "all workers left" })
}

fn drive(make: fn(&mut Arena) -> Option<Server>, end: End) {
    let mut arena = Arena::new();
    let Some(server) = make(&mut arena).filter(|_| arena.has_pid_namespaces()) else { return };
    let toml = format!("[service.server]\nisolation = 'pid'\n{}", server.toml);
    let stack = Stack::new(&arena, LARIAT, "isolated", &toml);
    let up = stack.up(&arena);
    assert!((server.answer)(server.port), "it is called ready and does not answer");
    let keepers = stack.keepers(&arena);
    match end {
        End::Down => {
            let down = stack.run(&arena, &["down"]).expect(0);
            for phase in 1..=5 {
                assert!(down.out().contains(&format!("[{phase}/5]")), "{}\n{}", down.out(), down.err());
            }
            up.wait().expect(0);
        }
        End::Interrupt => {
            up.signal(libc::SIGINT);
            up.wait().expect(0);
        }
        End::KillSupervisor => {
            up.signal(libc::SIGKILL);
            arena.wait_until_empty(PATIENCE);
            let next = stack.run(&arena, &["down", "--yes"]);
            let said = format!("{}{}", next.out(), next.err());
            assert!(matches!(next.code(), Some(0 | 6)) && said.contains("server"), "{next:?}");
        }
        End::KillKeeper => {
            keepers.iter().for_each(Seen::kill);
            let ending = up.wait();
            assert_eq!(ending.code(), Some(1), "{ending:?}");
        }
        End::KillAll => {
            let all: Vec<Seen> = keepers.iter().cloned().chain(up.seen()).collect();
            for signal in [libc::SIGSTOP, libc::SIGKILL] {
                all.iter().for_each(|seen| seen.signal(signal));
            }
            up.wait();
            arena.wait_until_empty(PATIENCE);
            // The next command finds nobody to ask for, and closes the books.
            stack.run(&arena, &["down"]).expect(0);
        }
    }
    let leaks = arena.check();
    assert!(leaks.is_empty(), "{end:?}: {leaks}");
    let has_finished = !matches!(end, End::KillKeeper | End::KillAll);
    let store = String::from_utf8_lossy(&stack.store("server")).into_owned();
    let says_so = store.contains(server.last_words) || server.last_words.is_empty();
    assert!(says_so || !has_finished, "it was not allowed to finish: {store}");
}

macro_rules! servers {
    ($($name:ident)*) => {$(
        mod $name {
            use super::{End, drive};
            #[test] fn stack_goes_down() { drive(super::$name, End::Down); }
            #[test] fn stack_is_interrupted() { drive(super::$name, End::Interrupt); }
            #[test] fn supervisor_is_killed() { drive(super::$name, End::KillSupervisor); }
            #[test] fn keeper_is_killed() { drive(super::$name, End::KillKeeper); }
            #[test] fn everything_of_lariat_is_killed() { drive(super::$name, End::KillAll); }
        }
    )*};
}

servers! { redis python node }

fn project(arena: &Arena, kind: &str, args: &str, more: &str) -> (Stack, Facts) {
    let facts = arena.facts("f");
    let run = fixture::line(kind, &facts, args);
    let toml = format!("[service.web]\nrun = '''{run}'''\nisolation = 'pid'\n{more}");
    (Stack::new(arena, LARIAT, "isolated", &toml), facts)
}

fn keeper(arena: &Arena, stack: &Stack) -> Seen {
    let keepers = stack.keepers(arena);
    assert_eq!(keepers.len(), 1, "{keepers:#?}");
    keepers.into_iter().next().expect("one")
}

/// A service knows only its own small numbers; everything that lariat shows and writes has those of the machine.
#[test]
fn people_and_the_ledger_see_the_machines_numbers() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let (stack, facts) = project(&arena, "daemon", "--leave 1", "stop = { grace = '20s' }\n");
    let up = stack.lariat(&arena, &["up", "--yes"]).start();
    let ending = up.wait();
    // The daemon outlived its leader: a straggler, by its number outside, as the leader's was.
    let events = stack.events();
    for kind in ["service-started", "straggler-named"] {
        let line = events.lines().find(|line| line.contains(&format!("\"{kind}\"")));
        let line = line.unwrap_or_else(|| panic!("no {kind} in {events}"));
        let pid = line.split("\"pid\":").nth(1).and_then(|rest| rest.split([',', '}']).next());
        let pid: i32 = pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("no pid in {line}"));
        let inside = [facts.pids("leader"), facts.pids("daemon")].concat();
        assert!(pid > 20 && !inside.contains(&pid), "{pid} is a number of inside {inside:?}: {line}");
    }
    assert_eq!(ending.code(), Some(1), "{ending:?}");
    arena.finish();
}

#[test]
fn ps_and_the_ledger_name_the_leader_by_its_number_outside() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let (stack, facts) = project(&arena, "alone", "--manner graceful", "");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let leader = census::inside(keeper(&arena, &stack).pid, facts.pid("leader")).expect("a leader");
    let shown = stack.run(&arena, &["ps"]).expect(0).out();
    assert!(shown.contains(&leader.pid.to_string()), "no {} in {shown}", leader.pid);
    let pair = format!("{} {}", leader.pid, leader.start);
    wait_until("the leader in the ledger", PATIENCE, || {
        let ledger = std::fs::read_to_string(stack.dir().join(".lariat/run.json")).ok()?;
        let numbers: Vec<&str> =
            ledger.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty()).collect();
        numbers.windows(2).any(|two| format!("{} {}", two[0], two[1]) == pair).then_some(())
    });
    up.signal(libc::SIGKILL);
    arena.wait_until_empty(PATIENCE);
    assert!(facts.has("clean-leader"));
    stack.run(&arena, &["down"]);
    arena.finish();
}

/// A program that goes to the background by itself is held, and ended, as without isolation.
#[test]
fn a_daemon_by_design_is_up_while_it_lives() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let (stack, facts) = project(&arena, "daemon", "--leave 1 --code 0 --manner graceful", "daemon = true\n");
    let up = stack.up(&arena);
    stack.wait_event("service-daemonized", 0);
    let inner = facts.pid("daemon");
    let daemon = census::inside(keeper(&arena, &stack).pid, inner).expect("a daemon");
    assert!(daemon.is_alive_now());
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    assert!(facts.has("clean-daemon"));
    arena.finish();
}

/// A keeper that was killed is a failure like any other: the service comes back, in a namespace of its own.
#[test]
fn a_service_comes_back_after_its_keeper_was_killed() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let (stack, facts) = project(&arena, "disguised", "--manner stubborn", "restart = 'on-failure'\n");
    let up = stack.up(&arena);
    facts.wait_for("ready");
    let first = keeper(&arena, &stack);
    let members: Vec<Seen> = census::by_parent(first.pid).into_iter().filter(Seen::is_alive).collect();
    assert_eq!(members.len(), 2, "{members:#?}");
    first.kill();
    stack.wait_event("service-started", 1);
    assert!(members.iter().all(|member| !member.is_alive_now()), "{members:#?}");
    let second = keeper(&arena, &stack);
    assert_ne!(first.pid, second.pid);
    stack.run(&arena, &["down", "--force"]).expect(0);
    up.wait();
    arena.finish();
}

/// Isolated services beside others, and `lariat run` inside of one.
#[test]
fn services_of_both_kinds_live_in_one_stack() {
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let own = subject::lariat(LARIAT).into_string().expect("a plain path");
    let (inside, beside) = (arena.facts("inside"), arena.facts("beside"));
    let mut toml = String::new();
    let line = fixture::line("daemon", &inside, "--manner graceful");
    let line = line.trim_start_matches("exec ");
    write!(toml, "[service.a]\nisolation = 'pid'\nrun = '''exec {own} run --isolate -- {line}'''\n")
        .expect("text");
    let line = fixture::line("daemon", &beside, "--manner graceful");
    write!(toml, "[service.b]\nisolation = 'none'\nrun = '''{line}'''\n").expect("text");
    let stack = Stack::new(&arena, LARIAT, "isolated", &toml);
    let up = stack.up(&arena);
    inside.wait_for("ready");
    beside.wait_for("ready");
    stack.run(&arena, &["down"]).expect(0);
    up.wait().expect(0);
    for facts in [&inside, &beside] {
        assert!(facts.has("clean-leader") && facts.has("clean-daemon"), "{:?}", facts.names());
        assert_eq!(facts.told("daemon"), [1]);
    }
    arena.finish();
}

#[test]
fn without_a_namespace_no_service_of_the_stack_starts() {
    let unshare = need!("unshare");
    let arena = Arena::new();
    if !arena.has_pid_namespaces() {
        return;
    }
    let toml = "[service.a]\nrun = 'touch started'\n[service.b]\nisolation = 'pid'\nrun = 'touch started'\n";
    let stack = Stack::new(&arena, LARIAT, "isolated", toml);
    let script = "echo 0 >/proc/sys/user/max_pid_namespaces && exec \"$0\" up --yes";
    let command = arena.command(unshare).args(["-Ur", "sh", "-c", script]).arg(subject::lariat(LARIAT));
    let ending = command.dir(stack.dir()).own_session().run();
    assert_eq!(ending.code(), Some(9), "{ending:?}");
    assert!(!stack.dir().join("started").exists());
    for words in ["`b` cannot be isolated", "could not make a pid namespace", "max_pid_namespaces"] {
        assert!(ending.err().contains(words), "no {words:?} in {}", ending.err());
    }
    // The others alone are no reason to refuse.
    let script = "echo 0 >/proc/sys/user/max_pid_namespaces && exec \"$0\" up --yes a";
    let command =
        arena.command(need!("unshare")).args(["-Ur", "sh", "-c", script]).arg(subject::lariat(LARIAT));
    command.dir(stack.dir()).own_session().run().expect(0);
    assert!(stack.dir().join("started").exists());
    arena.finish();
}
