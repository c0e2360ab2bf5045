//! Real servers: up, ready, down; and up, ready, SIGKILL of the supervisor or of the keeper. Each time nothing is
//! alive and every port is free, by the harness's own look at `/proc`.
//!
//! All of it once more with `isolation = "pid"` (`…::isolated`), and with one ending more: all of lariat is killed at once.

use std::path::Path;

use lariat_testkit::census::Seen;
use lariat_testkit::{Arena, Containment, PATIENCE, Stack, is_root, needs, net, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// How the server's run ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Down,
    Interrupt,
    KillSupervisor,
    KillKeeper,
    KillAll,
}

impl End {
    /// Whether a namespace ends with it, at once and without a word to anybody.
    fn is_the_keepers_death(self) -> bool {
        matches!(self, Self::KillKeeper | Self::KillAll)
    }
}

/// A look at what the server left, after its end.
type Proof = Box<dyn Fn(&Arena, &Stack)>;

/// A server in a stack of its own.
struct Server {
    stack: Stack,
    /// Whether it answers.
    answers: Box<dyn Fn() -> bool>,
    /// How many processes it has at least.
    processes: usize,
    /// What its own log or files must say after any end in which it was told.
    proof: Proof,
}

fn drive(make: fn(&mut Arena) -> Option<Server>, end: End, containment: Containment) {
    let mut arena = Arena::with(containment);
    if arena.is_isolated() && !arena.has_pid_namespaces() {
        return;
    }
    let Some(server) = make(&mut arena) else { return };
    let stack = &server.stack;
    let up = stack.up(&arena);
    assert!((server.answers)(), "it is called ready but does not answer");
    let lariats = 1 + stack.keepers(&arena).len();
    assert!(arena.alive().len() >= lariats + server.processes, "{:#?}", arena.alive());
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
            assert!(matches!(next.code(), Some(0 | 6)), "{next:?}");
            assert!(
                next.out().contains("server") || next.err().contains("server"),
                "{}{}",
                next.out(),
                next.err()
            );
        }
        End::KillKeeper => {
            stack.keepers(&arena).iter().for_each(Seen::kill);
            stack.wait_event("keeper-lost", 0);
            let ending = up.wait();
            assert_eq!(ending.code(), Some(1), "{ending:?}");
            let is_the_kernels = ending.out().contains("the kernel ended everything in its pid namespace");
            assert_eq!(is_the_kernels, arena.is_isolated(), "{ending:?}");
        }
        End::KillAll => {
            // Stopped first, so that none of them sees the other's death.
            let all: Vec<Seen> = stack.keepers(&arena).into_iter().chain(up.seen()).collect();
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
    if arena.is_isolated() && end.is_the_keepers_death() {
        return;
    }
    (server.proof)(&arena, stack);
    let leaks = arena.check();
    assert!(leaks.is_empty(), "the proof itself: {leaks}");
}

/// Makes the stack of one service, the last in `toml`, isolated where the arena wants that.
fn stack(arena: &Arena, name: &str, toml: &str) -> Stack {
    Stack::new(arena, LARIAT, name, &format!("{toml}{}", arena.isolation_key()))
}

fn no_proof() -> Proof {
    Box::new(|_, _| {})
}

/// The last lines of the server's own log must contain this.
fn last_words(text: &'static str) -> Proof {
    Box::new(move |_, stack| {
        let store = String::from_utf8_lossy(&stack.store("server")).into_owned();
        assert!(store.contains(text), "it was not allowed to finish: {store}");
    })
}

/// Opens a directory and its parents to every user.
fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(path).expect("the arena is writable");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
}

fn redis(arena: &mut Arena) -> Option<Server> {
    let program = needs::program("redis-server")?;
    let port = arena.port();
    let run = format!("['{program}', '--port', '{port}', '--bind', '127.0.0.1', '--save', '']");
    let toml = format!("[service.server]\nrun = {run}\nport = {port}\nready = {{ tcp = {port} }}\n");
    let stack = stack(arena, "redis", &toml);
    let answers = Box::new(move || {
        use std::io::{Read as _, Write as _};
        let Some(mut stream) = net::connect(port) else { return false };
        let mut answer = [0; 7];
        stream.write_all(b"PING\r\n").is_ok()
            && stream.read_exact(&mut answer).is_ok()
            && answer == *b"+PONG\r\n"
    });
    Some(Server { stack, answers, processes: 1, proof: last_words("bye bye") })
}

fn nginx(arena: &mut Arena, is_daemon: bool) -> Option<Server> {
    let program = needs::program("nginx")?;
    let port = arena.port();
    let dir = arena.work().join("nginx");
    open_to_all(&dir);
    let user = if is_root() { "user nobody nogroup;" } else { "" };
    let switch = if is_daemon { "on" } else { "off" };
    let place = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {place}/{kind};\n"))
        .concat();
    let text = format!(
        "{user}\ndaemon {switch};\nworker_processes 2;\npid {place}/nginx.pid;\nerror_log {place}/error.log notice;\n\
         events {{ worker_connections 64; }}\nhttp {{\n  access_log off;\n{temporary}  server {{\n    \
         listen 127.0.0.1:{port};\n    location / {{ return 200 'from nginx'; }}\n  }}\n}}\n"
    );
    arena.write("nginx/nginx.conf", &text);
    let toml = format!(
        "[service.server]\nrun = ['{program}', '-p', '{place}', '-e', '{place}/error.log', '-c', '{place}/nginx.conf']\n\
         port = {port}\nready = {{ http = '/' }}\ndaemon = {is_daemon}\n"
    );
    let stack = stack(arena, "nginx", &toml);
    let answers = Box::new(move || net::get(port, "/") == Some((200, "from nginx".to_owned())));
    let proof: Proof = Box::new(|_, stack| {
        let log = std::fs::read_to_string(stack.dir().join("error.log")).unwrap_or_default();
        assert!(log.contains("exit"), "it was not allowed to finish: {log}");
        assert!(!stack.dir().join("nginx.pid").exists(), "its pid file is left: {log}");
    });
    Some(Server { stack, answers, processes: 3, proof })
}

fn nginx_in_front(arena: &mut Arena) -> Option<Server> {
    nginx(arena, false)
}

fn nginx_daemonizing(arena: &mut Arena) -> Option<Server> {
    nginx(arena, true)
}

fn postgres(arena: &mut Arena) -> Option<Server> {
    let (initdb, program) = (needs::program("initdb")?, needs::program("postgres")?);
    let port = arena.port();
    let dir = arena.work().join("postgres");
    open_to_all(&dir);
    // It refuses to run as root: there it is a user of its own, with the consequences for signals and /proc.
    let prefix: &[&str] =
        if is_root() { &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] } else { &[] };
    let data = dir.join("data").display().to_string();
    let init = ["--no-sync", "-A", "trust", "-E", "UTF8", "--locale=C", "-D", &data];
    let argv: Vec<&str> = prefix.iter().copied().chain([initdb.as_str()]).chain(init).collect();
    arena.command(argv[0]).args(&argv[1..]).dir(&dir).run().expect(0);
    let place = dir.display().to_string();
    let port_text = port.to_string();
    let own = [program.as_str(), "-D", &data, "-k", &place, "-h", "127.0.0.1", "-p", &port_text];
    let argv: Vec<&str> = prefix.iter().copied().chain(own).collect();
    let toml = format!(
        "[service.server]\nrun = {argv:?}\nport = {port}\n\
         ready = {{ log = 'ready to accept connections' }}\nstop = {{ signal = 'INT' }}\n"
    );
    let stack = stack(arena, "postgres", &toml);
    let proof: Proof = Box::new(move |arena, stack| {
        let log = String::from_utf8_lossy(&stack.store("server")).into_owned();
        assert!(log.contains("database system is shut down"), "it was not allowed to finish: {log}");
        // The data directory itself remembers how it was left.
        let up = stack.up(arena);
        let log = String::from_utf8_lossy(&stack.store("server")).into_owned();
        for word in ["recovery", "interrupted", "not properly shut down"] {
            assert!(!log.contains(word), "its data were not left clean: {log}");
        }
        stack.run(arena, &["down"]).expect(0);
        up.wait().expect(0);
    });
    let answers = Box::new(move || net::connect(port).is_some());
    Some(Server { stack, answers, processes: 5, proof })
}

fn python(arena: &mut Arena) -> Option<Server> {
    let program = needs::program("python3")?;
    let port = arena.port();
    let toml = format!(
        "[service.server]\nrun = 'exec {program} -m http.server $PORT --bind 127.0.0.1'\nport = {port}\n\
         ready = {{ http = '/' }}\n"
    );
    let stack = stack(arena, "python", &toml);
    let answers = Box::new(move || net::get(port, "/lariat.toml").is_some_and(|(status, _)| status == 200));
    Some(Server { stack, answers, processes: 1, proof: no_proof() })
}

const CLUSTER: &str = "
const cluster = require('cluster'), http = require('http');
if (cluster.isPrimary) {
  const workers = [cluster.fork(), cluster.fork()];
  process.once('SIGTERM', () => { workers.forEach(w => w.process.kill('SIGTERM')); console.log('primary told'); });
  let gone = 0;
  cluster.on('exit', (w, code) => {
    console.log('worker left with', code);
    if (++gone == workers.length) { console.log('all workers left'); process.exit(0); }
  });
} else {
  const server = http.createServer((q, a) => a.end('from node')).listen(process.env.PORT, '127.0.0.1');
  process.once('SIGTERM', () => { server.close(); setTimeout(() => process.exit(0), 200); });
}
";

fn node(arena: &mut Arena) -> Option<Server> {
    let program = needs::program("node")?;
    let port = arena.port();
    arena.write("node/server.js", CLUSTER);
    let toml =
        format!("[service.server]\nrun = '{program} server.js'\nport = {port}\nready = {{ http = '/' }}\n");
    let stack = stack(arena, "node", &toml);
    Some(Server { stack, answers: answers_node(port), processes: 3, proof: last_words("all workers left") })
}

fn answers_node(port: u16) -> Box<dyn Fn() -> bool> {
    Box::new(move || net::get(port, "/") == Some((200, "from node".to_owned())))
}

fn npm(arena: &mut Arena) -> Option<Server> {
    let (program, _node) = (needs::program("npm")?, needs::program("node")?);
    let port = arena.port();
    arena.write("npm/server.js", CLUSTER);
    arena.write(
        "npm/package.json",
        "{\"name\":\"x\",\"version\":\"1.0.0\",\"scripts\":{\"serve\":\"node server.js\"}}",
    );
    let toml = format!(
        "[stack]\nenv = {{ NO_UPDATE_NOTIFIER = '1', npm_config_update_notifier = 'false', npm_config_offline = 'true' }}\n\
         [service.server]\nrun = ['{program}', 'run', 'serve']\nport = {port}\nready = {{ http = '/' }}\n"
    );
    let stack = stack(arena, "npm", &toml);
    Some(Server { stack, answers: answers_node(port), processes: 4, proof: last_words("all workers left") })
}

macro_rules! endings {
    ($server:expr, $containment:expr) => {
        #[test]
        fn stack_goes_down() {
            drive($server, End::Down, $containment);
        }
        #[test]
        fn stack_is_interrupted() {
            drive($server, End::Interrupt, $containment);
        }
        #[test]
        fn supervisor_is_killed() {
            drive($server, End::KillSupervisor, $containment);
        }
        #[test]
        fn keeper_is_killed() {
            drive($server, End::KillKeeper, $containment);
        }
    };
}

macro_rules! servers {
    ($($name:ident)*) => {$(
        mod $name {
            use super::{Containment, End, drive};
            endings!(super::$name, Containment::wanted());

            mod isolated {
                use super::{Containment, End, drive};
                endings!(super::super::$name, Containment::Namespace);
                #[test] fn everything_of_lariat_is_killed() {
                    drive(super::super::$name, End::KillAll, Containment::Namespace);
                }
            }
        }
    )*};
}

servers! { redis nginx_in_front nginx_daemonizing postgres python node npm }

#[test]
fn a_crashed_worker_does_not_end_its_server_stack() {
    let mut arena = Arena::new();
    let Some(server) = nginx_in_front(&mut arena) else { return };
    let up = server.stack.up(&arena);
    let worker = || arena.alive().into_iter().find(|seen| seen.command.starts_with("nginx: worker"));
    let first = wait_until("a worker", PATIENCE, worker);
    first.kill();
    wait_until("another worker in its place", PATIENCE, || {
        worker().filter(|seen| *seen != first && !first.is_alive_now())
    });
    assert!((server.answers)() && up.is_alive());
    up.signal(libc::SIGTERM);
    up.wait().expect(0);
    arena.finish();
}
