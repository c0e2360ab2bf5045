//! Programs that break when they are stopped carelessly end clean under the default stop, within their grace.
//!
//! Each writes a marker of its own when, and only when, it finished the way its author meant it to. The grace period
//! is longer than any test waits, so that nobody passes by being killed.

use std::time::Duration;

use lariat_testkit::{Arena, Facts, PATIENCE, Running, Stack, is_root, need, needs, net, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// The stack of one service, `server`, with a grace period that does not end before the test.
fn stack(arena: &Arena, service: &str) -> Stack {
    let toml = format!(
        "[stack]\ndeadline = '5m'\n[service.server]\n{service}\n[service.server.stop]\ngrace = '4m'\n"
    );
    Stack::new(arena, LARIAT, "project", &toml)
}

/// Runs the program until it says `ready`, ends the stack in both graceful ways, and looks at its marker.
fn ends_clean(service: impl Fn(&Arena, &Facts) -> Option<String>, is_clean: impl Fn(&Facts, &str)) {
    for is_killed in [false, true] {
        let arena = Arena::new();
        let facts = arena.facts("f");
        let Some(service) = service(&arena, &facts) else { return };
        let stack = stack(&arena, &service);
        let up = stack.up(&arena);
        facts.wait_for("ready");
        finish(&arena, &stack, &up, is_killed);
        is_clean(&facts, &String::from_utf8_lossy(&stack.store("server")));
        arena.finish();
    }
}

/// Ends a stack by `down`, or by the supervisor's death, and waits until nobody is alive.
fn finish(arena: &Arena, stack: &Stack, up: &Running, is_killed: bool) {
    if is_killed {
        up.signal(libc::SIGKILL);
    } else {
        stack.run(arena, &["down"]).expect(0);
        up.wait().expect(0);
    }
    arena.wait_until_empty(PATIENCE);
}

fn states(facts: &Facts, name: &str) -> String {
    facts.dir().join(name).display().to_string()
}

const CLUSTER: &str = "
const cluster = require('cluster'), fs = require('fs');
const facts = process.argv[2];
if (cluster.isPrimary) {
  const workers = [0, 1, 2].map(() => cluster.fork());
  let online = 0, gone = 0;
  cluster.on('message', () => { if (++online == workers.length) fs.writeFileSync(facts + '/ready', ''); });
  process.once('SIGTERM', () => workers.forEach(w => w.process.kill('SIGTERM')));
  cluster.on('exit', () => { if (++gone == workers.length) { fs.writeFileSync(facts + '/clean', ''); process.exit(0); } });
} else {
  setInterval(() => {}, 1000);
  process.once('SIGTERM', () => setTimeout(() => {
    fs.writeFileSync(facts + '/clean-' + process.pid, ''); process.exit(0);
  }, 400));
  process.send('online');
}
";

#[test]
fn a_node_cluster_whose_workers_handle_term_once() {
    ends_clean(
        |arena, facts| {
            let node = needs::program("node")?;
            arena.write("project/cluster.js", CLUSTER);
            Some(format!("run = ['{node}', 'cluster.js', '{}']", facts.as_arg()))
        },
        |facts, log| {
            let workers = facts.names().iter().filter(|name| name.starts_with("clean-")).count();
            assert!(workers == 3 && facts.has("clean"), "{workers} workers finished: {log}");
        },
    );
}

const POOL: &str = "
import multiprocessing, signal, sys, time, concurrent.futures as futures
facts, kind, stop = sys.argv[1], sys.argv[2], False
def work(number):
    time.sleep(0.25)
    return number * number
def on_term(*_):
    global stop
    stop = True
def main():
    wanted = [number * number for number in range(8)]
    if kind == 'pool':
        pool = multiprocessing.Pool(4)
        batch, end = (lambda: pool.map(work, range(8), 1)), (lambda: (pool.close(), pool.join()))
    else:
        pool = futures.ProcessPoolExecutor(4)
        batch, end = (lambda: list(pool.map(work, range(8)))), pool.shutdown
    batch()
    signal.signal(signal.SIGTERM, on_term)
    open(facts + '/ready', 'w').close()
    while not stop:
        assert batch() == wanted
    end()
    open(facts + '/clean', 'w').close()
if __name__ == '__main__':
    main()
";

fn python_pool(kind: &'static str) {
    ends_clean(
        |arena, facts| {
            let python = needs::program("python3")?;
            arena.write("project/pool.py", POOL);
            Some(format!("run = ['{python}', 'pool.py', '{}', '{kind}']", facts.as_arg()))
        },
        |facts, log| {
            assert!(facts.has("clean"), "it was not allowed to finish its batch: {log}");
            assert!(!log.contains("Traceback"), "{log}");
        },
    );
}

#[test]
fn a_python_multiprocessing_pool_at_work() {
    python_pool("pool");
}

#[test]
fn a_python_process_pool_executor_at_work() {
    python_pool("executor");
}

#[test]
fn a_bash_trap_with_a_foreground_child() {
    ends_clean(
        |arena, facts| {
            let bash = needs::program("bash")?;
            // The child says it: one that bash forks after the signal is taken for a helper of its trap.
            let text = format!(
                "trap 'echo trapped; : >{}; exit 0' TERM\nsh -c ': >{}; exec sleep 600'\n",
                states(facts, "clean"),
                states(facts, "ready")
            );
            arena.write("project/trap.sh", &text);
            Some(format!("run = ['{bash}', 'trap.sh']"))
        },
        |facts, log| assert!(facts.has("clean"), "the trap did not run: {log}"),
    );
}

#[test]
fn a_bash_trap_with_a_helper_of_its_own() {
    ends_clean(
        |arena, facts| {
            let bash = needs::program("bash")?;
            let text = format!(
                "trap 'sleep 1.5 && : >{}; exit 0' TERM\n: >{}\nwhile :; do sleep 0.05; done\n",
                states(facts, "clean"),
                states(facts, "ready")
            );
            arena.write("project/trap.sh", &text);
            Some(format!("run = ['{bash}', 'trap.sh']"))
        },
        |facts, log| assert!(facts.has("clean"), "the trap's helper was told as well: {log}"),
    );
}

const NPM_SERVER: &str = "
const fs = require('fs'), facts = process.argv[2];
setInterval(() => {}, 1000);
process.once('SIGTERM', () => setTimeout(() => { fs.writeFileSync(facts + '/clean', ''); process.exit(0); }, 500));
fs.writeFileSync(facts + '/ready', '');
";

#[test]
fn npm_around_a_server() {
    ends_clean(
        |arena, facts| {
            let (npm, _node) = (needs::program("npm")?, needs::program("node")?);
            arena.write("project/server.js", NPM_SERVER);
            let script = format!("node server.js {}", facts.as_arg());
            let package =
                format!("{{\"name\":\"x\",\"version\":\"1.0.0\",\"scripts\":{{\"serve\":\"{script}\"}}}}");
            arena.write("project/package.json", &package);
            let env = "env = { NO_UPDATE_NOTIFIER = '1', npm_config_update_notifier = 'false' }";
            Some(format!("run = ['{npm}', 'run', 'serve']\n{env}"))
        },
        |facts, log| assert!(facts.has("clean"), "the server was not allowed to finish: {log}"),
    );
}

const APPLICATION: &str = "
import os, time
def application(environ, start_response):
    if environ['PATH_INFO'] == '/slow':
        open(os.environ['FACTS'] + '/begun', 'w').close()
        time.sleep(1.5)
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [b'whole answer']
";

#[test]
fn gunicorn_with_a_request_in_flight() {
    for is_killed in [false, true] {
        let mut arena = Arena::new();
        let gunicorn = need!("gunicorn");
        let (facts, port) = (arena.facts("f"), arena.port());
        arena.write("project/application.py", APPLICATION);
        let options = "'--workers', '2', '--no-control-socket'";
        let options = if takes_control_socket(&gunicorn) { options } else { "'--workers', '2'" };
        let service = format!(
            "run = ['{gunicorn}', '--bind', '127.0.0.1:{port}', {options}, 'application:application']\n\
             port = {port}\nready = {{ http = '/' }}\nenv = {{ FACTS = '{}' }}",
            facts.as_arg()
        );
        let stack = stack(&arena, &service);
        let up = stack.up(&arena);
        let request = std::thread::spawn(move || net::get(port, "/slow"));
        facts.wait_for("begun");
        finish(&arena, &stack, &up, is_killed);
        let answer = request.join().expect("the request's thread does not panic");
        let log = String::from_utf8_lossy(&stack.store("server")).into_owned();
        assert_eq!(answer, Some((200, "whole answer".to_owned())), "killed: {is_killed}\n{log}");
        arena.finish();
    }
}

/// Newer versions open a socket in the home directory unless told not to.
fn takes_control_socket(gunicorn: &str) -> bool {
    let help = std::process::Command::new(gunicorn).arg("--help").output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--no-control-socket"))
}

#[test]
fn postgres_with_a_running_query() {
    for (signal, is_killed) in [("INT", false), ("TERM", false), ("INT", true), ("TERM", true)] {
        let mut arena = Arena::new();
        let (initdb, postgres, psql) = (need!("initdb"), need!("postgres"), need!("psql"));
        let port = arena.port();
        let dir = arena.work().join("project");
        let prefix = unprivileged(&dir);
        let data = dir.join("data").display().to_string();
        let init = [
            initdb.as_str(),
            "--no-sync",
            "-A",
            "trust",
            "-U",
            "me",
            "-E",
            "UTF8",
            "--locale=C",
            "-D",
            &data,
        ];
        let argv: Vec<&str> = prefix.iter().copied().chain(init).collect();
        arena.command(argv[0]).args(&argv[1..]).dir(&dir).run().expect(0);
        let (place, port_text) = (dir.display().to_string(), port.to_string());
        let own = [postgres.as_str(), "-D", &data, "-k", &place, "-h", "127.0.0.1", "-p", &port_text];
        let argv: Vec<&str> = prefix.iter().copied().chain(own).collect();
        let toml = format!(
            "[stack]\ndeadline = '5m'\n[service.server]\nrun = {argv:?}\nport = {port}\n\
             ready = {{ log = 'ready to accept connections' }}\nstop = {{ signal = '{signal}', grace = '4m' }}\n"
        );
        let stack = Stack::new(&arena, LARIAT, "project", &toml);
        let up = stack.up(&arena);
        let query =
            ["-h", "127.0.0.1", "-p", &port_text, "-U", "me", "-d", "postgres", "-c", "select pg_sleep(600)"];
        let client = arena.command(psql).args(query).own_session().start();
        wait_until("the running query", PATIENCE, || {
            arena.alive().iter().any(|seen| seen.command.ends_with("SELECT")).then_some(())
        });
        finish(&arena, &stack, &up, is_killed);
        assert_eq!(client.wait().code(), Some(2), "the client was not told");
        let log = String::from_utf8_lossy(&stack.store("server")).into_owned();
        assert!(log.contains("database system is shut down"), "{signal}, killed: {is_killed}: {log}");
        let control =
            needs::program("pg_controldata").map(|program| arena.command(program).arg(&data).run().expect(0));
        assert!(
            control.is_none_or(|said| said.out().contains("shut down\n")),
            "the data were not left clean"
        );
        arena.finish();
    }
}

/// PostgreSQL refuses to run as root: there it gets a user of its own, to whom the directory is opened.
fn unprivileged(dir: &std::path::Path) -> Vec<&'static str> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(dir).expect("the arena is writable");
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    if is_root() { vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] } else { Vec::new() }
}

#[test]
fn a_whole_stack_of_them_ends_side_by_side() {
    // Four services that each take 1.2 s to stop and do not depend on one another end in much less than their sum.
    let arena = Arena::new();
    let facts: Vec<Facts> = (0..4).map(|number| arena.facts(&number.to_string())).collect();
    let services = facts.iter().enumerate().map(|(number, facts)| {
        let line = lariat_testkit::fixture::line("alone", facts, "--manner graceful --ms 1200");
        format!("[service.s{number}]\nrun = '{line}'\n")
    });
    let stack = Stack::new(&arena, LARIAT, "project", &services.collect::<String>());
    let up = stack.up(&arena);
    facts.iter().for_each(|facts| drop(facts.wait_for("ready")));
    let before = std::time::Instant::now();
    stack.run(&arena, &["down"]).expect(0);
    let took = before.elapsed();
    up.wait().expect(0);
    assert!(facts.iter().all(|facts| facts.has("clean-leader")));
    assert!(took < Duration::from_millis(4_800), "one after the other: {took:?}");
    arena.finish();
}
