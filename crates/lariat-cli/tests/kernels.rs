//! `lariat` on kernels that lack something: each way around a missing feature is really taken, and the promise holds on
//! it; what there is no way around is refused before anything is started, by name.

use std::fs;
use std::time::Duration;

use lariat_sys::identity::Identity;
use lariat_testkit::census::{self, Seen};
use lariat_testkit::{Arena, Facts, Kernel, PATIENCE, Running, fixture, subject, wait_until};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// What ends a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    LeaderExits,
    Term,
    KillLariat,
    KillKeeper,
}

const ENDS: [End; 4] = [End::LeaderExits, End::Term, End::KillLariat, End::KillKeeper];

/// A daemon that is told and has to get its grace period, one that has to be killed, and a storm.
const SHAPES: [&[&str]; 3] = [
    &["daemon", "--manner", "graceful", "--ms", "100"],
    &["new-session", "--manner", "stubborn"],
    &["forks-while-dying"],
];

/// Starts `lariat run` of a fixture and brings about its end. Whatever was started must be gone then.
fn run_cell(features: &[&str], shape: &[&str], end: End) {
    let mut arena = Arena::new();
    let facts = arena.facts("f");
    let kernel = Kernel::without(&arena, features);
    let command = kernel.command(&arena, subject::lariat(LARIAT)).args(["run", "--grace"]);
    let grace = if shape.contains(&"stubborn") { "300ms" } else { "20s" };
    let command = command.args([grace, "--", fixture::path()]).args(shape).facts(&facts);
    let running = command.own_session().start();
    facts.wait_for("ready");
    bring_about(end, &running, &facts);
    let ending = running.wait();
    if end == End::KillLariat {
        arena.wait_until_empty(PATIENCE);
    }
    let leaks = arena.check();
    let what = format!("without {features:?}: {shape:?} {end:?}: {ending:?}");
    assert!(leaks.is_empty(), "{what}: {leaks}");
    if shape.contains(&"graceful") {
        assert!(facts.has("clean-daemon"), "the daemon had no grace: {what}");
        facts.assert_told("daemon", &[1], &what);
    }
    match end {
        End::KillKeeper => assert_eq!(ending.code(), Some(125), "{what}"),
        End::LeaderExits if shape[0] != "forks-while-dying" => assert_eq!(ending.code(), Some(7), "{what}"),
        _ => {}
    }
}

fn bring_about(end: End, running: &Running, facts: &Facts) {
    let tell = |pid: i32, signal: i32| Seen::of(pid).expect("it is there").signal(signal);
    match end {
        End::LeaderExits => tell(facts.pid("leader"), libc::SIGUSR1),
        End::Term => running.signal(libc::SIGTERM),
        End::KillLariat => running.signal(libc::SIGKILL),
        End::KillKeeper => tell(census::children_of(running.pid())[0], libc::SIGKILL),
    }
}

/// A project, and `lariat` in it under a kernel.
struct Project {
    arena: Arena,
    kernel: Kernel,
    facts: Facts,
    port: u16,
}

impl Project {
    fn new(features: &[&str]) -> Self {
        let mut arena = Arena::new();
        let (facts, port) = (arena.facts("f"), arena.port());
        let run = fixture::line("port-holder", &facts, &format!("--manner stubborn --port {port}"));
        let service = format!("run = '{run}'\nport = {port}\nready = {{ tcp = {port} }}");
        let toml = format!("[service.web]\n{service}\nstop = {{ grace = '300ms' }}\n");
        arena.write("project/lariat.toml", &toml);
        let kernel = Kernel::without(&arena, features);
        Self { arena, kernel, facts, port }
    }

    fn start(&self, args: &[&str]) -> Running {
        let command = self.kernel.command(&self.arena, subject::lariat(LARIAT)).args(args);
        command.dir(self.arena.work().join("project")).own_session().start()
    }

    fn ledger(&self) -> String {
        fs::read_to_string(self.arena.work().join("project/.lariat/run.json")).unwrap_or_default()
    }

    /// Starts the stack and waits until it is ready, by the ledger.
    fn up(&self) -> Running {
        let before = self.facts.pids("leader").len();
        let up = self.start(&["up", "--yes"]);
        wait_until("readiness", PATIENCE, || {
            assert!(up.ended(Duration::ZERO).is_none(), "`up` ended: {:?}", up.wait());
            (self.facts.pids("leader").len() > before && self.ledger().contains("\"ready\"")).then_some(())
        });
        up
    }

    fn keepers(&self) -> Vec<Seen> {
        self.arena.alive().into_iter().filter(|seen| seen.comm.starts_with("keeper:")).collect()
    }
}

/// A stack: stopped, left by its supervisor, and left by everybody.
fn stack_cell(features: &[&str]) {
    let project = Project::new(features);
    // What this kernel lacks by itself is lacking as well.
    let has_pidfs = !features.contains(&"pidfs") && Identity::current().inode().is_some();
    let up = project.up();
    let status = project.start(&["ps"]).wait().expect(0);
    assert!(status.out().contains("web"), "{status:?}");
    assert_eq!(project.ledger().contains("\"inode\""), has_pidfs, "{}", project.ledger());
    let second = project.start(&["up", "--yes"]).wait().expect(5);
    assert!(second.err().contains(&up.pid().to_string()), "{second:?}");
    project.start(&["down"]).wait().expect(0);
    up.wait().expect(0);
    assert!(project.arena.alive().is_empty(), "{:?}", project.arena.alive());

    let up = project.up();
    up.signal(libc::SIGKILL);
    up.wait();
    project.arena.wait_until_empty(PATIENCE);

    let up = project.up();
    let keepers = project.keepers();
    assert_eq!(keepers.len(), 1);
    keepers.iter().for_each(|keeper| keeper.signal(libc::SIGSTOP));
    // A supervisor's death would continue its keeper.
    up.signal(libc::SIGSTOP);
    keepers.iter().for_each(Seen::kill);
    up.signal(libc::SIGKILL);
    up.wait();
    wait_until("the keeper's end", PATIENCE, || project.keepers().is_empty().then_some(()));
    assert!(!project.arena.alive().is_empty(), "nothing is left to be ended");
    let down = project.start(&["down", "--yes"]).wait().expect(0);
    assert!(down.out().contains(&project.port.to_string()) || project.arena.alive().is_empty(), "{down:?}");
    project.arena.finish();
}

fn holds_without(features: &[&str]) {
    for end in ENDS {
        run_cell(features, SHAPES[0], end);
    }
    run_cell(features, SHAPES[1], End::Term);
    run_cell(features, SHAPES[2], End::KillLariat);
    stack_cell(features);
}

macro_rules! kernels {
    ($($name:ident: $features:expr;)*) => {$(
        #[test] fn $name() { holds_without(&$features); }
    )*};
}

kernels! {
    without_clone_pidfd: ["clone-pidfd"];
    without_clone_pidfd_by_a_sandbox: ["clone-pidfd=EPERM"];
    without_shared_memory_for_spawning: ["clone-vm"];
    without_any_help_for_spawning: ["clone-vm=EPERM", "clone-pidfd=EPERM", "clone3"];
    without_clone3: ["clone3"];
    without_waitid_of_pidfds: ["waitid-pidfd"];
    without_statx: ["statx"];
    without_close_range: ["close-range"];
    without_close_range_by_a_sandbox: ["close-range=EPERM"];
    without_close_range_at_exec: ["close-range-cloexec"];
    without_epoll_pwait2: ["epoll-pwait2"];
    without_signals_to_groups: ["group-signal"];
    without_pidfs: ["pidfs"];
    without_file_handles: ["file-handles"];
    without_sock_diag: ["sock-diag"];
    without_splice: ["splice"];
    without_madvise: ["madvise"];
    without_children_lists: ["children-lists"];
    // Linux 5.3, as far as calls go: nothing of what came later.
    without_all_that_came_after_the_oldest: [
        "waitid-pidfd", "close-range", "epoll-pwait2", "group-signal", "pidfs", "file-handles", "clone3"
    ];
}

#[test]
fn what_there_is_no_way_around_is_refused_by_name() {
    for (feature, name, since) in [
        ("pidfd-open", "pidfd_open(2)", "5.3"),
        ("pidfd-open=EPERM", "pidfd_open(2)", "5.3"),
        ("pidfd-send-signal", "pidfd_send_signal(2)", "5.1"),
        ("pidfd-send-signal=EPERM", "pidfd_send_signal(2)", "5.1"),
        ("subreaper", "child subreaper", ""),
    ] {
        let project = Project::new(&[feature]);
        let run = project.start(&["run", "--", "touch", "started"]).wait().expect(125);
        assert!(run.err().contains(name) && run.err().contains(since), "{feature}: {run:?}");
        assert!(!project.arena.work().join("project/started").exists(), "{feature}: it was started");
        let up = project.start(&["up", "--yes"]).wait();
        let said = up.out() + &up.err();
        assert!(
            up.code() != Some(0) && said.contains("subreaper") | said.contains(name),
            "{feature}: {up:?}"
        );
        assert!(project.facts.names().is_empty(), "{feature}: it was started");
        project.arena.finish();
    }
}
