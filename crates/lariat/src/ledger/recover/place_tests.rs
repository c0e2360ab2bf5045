//! Who is suspected for where it works, although it has the environment of a login.

use super::tests::{
    Row, bare, check, clues, descendant, foreign, leader, of_another, process, reasons, snapshot, traced,
};
use super::*;

/// A daemon in the project that kept its environment but for the mark, as one that a person started has it.
fn unmarked(pid: i32) -> Process {
    Process { has_home: true, ..bare(pid) }
}

fn at(start: u64, process: Process) -> Process {
    Process { identity: Identity::new(process.identity.pid, start), ..process }
}

fn parents_of_unmarked() -> Vec<Row> {
    let below = |parent: Process| vec![Process { ppid: parent.identity.pid, ..unmarked(300) }, parent];
    let found = || vec![(300, Why::Unmarked(Trace::WorkingDirectory))];
    let manager = || at(20, Process { comm: "systemd".into(), ..process(310) });
    let unit = || Process { is_unit: true, ..unmarked(300) };
    let adopter = || Process { ppid: 5, ..at(20, process(310)) };
    let with_leader = |is_alive| {
        let leader = Process { ppid: 310, is_alive, ..leader() };
        let orphan = Process { ppid: 310, ..unmarked(300) };
        vec![adopter(), leader, orphan]
    };
    vec![
        ("init's, unmarked", vec![unmarked(300)], vec![], found()),
        ("of a user's manager", below(manager()), vec![], found()),
        ("and what it has started", [below(manager()), vec![descendant(301, 300)]].concat(), vec![], {
            [found(), vec![(301, Why::Descendant(300))]].concat()
        }),
        ("of a manager that came after the run", below(at(45, manager())), vec![], vec![]),
        ("of another user's manager", below(foreign(manager())), vec![], vec![]),
        ("of one that is called like a manager", below(Process { ppid: 5, ..manager() }), vec![], vec![]),
        ("what init has started as a unit", vec![unit()], vec![], vec![]),
        ("of a shell or an editor that was there before", below(at(20, process(310))), vec![], vec![]),
        ("of one as old as the run", below(at(40, process(310))), vec![], vec![]),
        ("of one outside of the namespace", vec![Process { ppid: 0, ..unmarked(300) }], vec![], vec![]),
        ("of one that cannot be seen", vec![Process { ppid: 310, ..unmarked(300) }], vec![], vec![]),
        ("who got a leader got all", with_leader(true), vec![(100, Why::Recorded)], found()),
        ("a dead one as well", with_leader(false), vec![], found()),
        (
            "but nobody who cannot be seen",
            vec![Process { ppid: 0, ..leader() }, Process { ppid: 0, ..unmarked(300) }],
            vec![(100, Why::Recorded)],
            vec![],
        ),
    ]
}

fn companions_of_unmarked() -> Vec<Row> {
    let found = || vec![(300, Why::Unmarked(Trace::WorkingDirectory))];
    let in_session_of = |leader: Process| vec![Process { session: 310, ..unmarked(300) }, leader];
    let zombie = |process| Process { is_alive: false, ..process };
    let keeper = || Process { is_keeper: true, ..descendant(301, 300) };
    let pane = || Process { ppid: 301, has_terminal: true, ..process(302) };
    let init = || Process { identity: Identity::new(1, 1), ppid: 0, session: 299, ..process(1) };
    let clued = |start| Process { identity: Identity::new(90, start), ..process(90) };
    vec![
        ("unmarked, on a terminal", vec![Process { has_terminal: true, ..unmarked(300) }], vec![], vec![]),
        (
            "lariat's own that asks a file system",
            vec![Process { comm: "lariat-asker".into(), ..unmarked(300) }],
            vec![],
            vec![],
        ),
        ("unmarked, before the run", vec![at(39, unmarked(300))], vec![], vec![]),
        ("unmarked, another user's", vec![foreign(unmarked(300))], vec![], vec![]),
        ("unmarked, elsewhere", vec![traced(unmarked(300), Traces::default())], vec![], vec![]),
        ("of another run", vec![Process { traces: unmarked(300).traces, ..of_another(300) }], vec![], vec![]),
        ("its session was there before", in_session_of(at(20, process(310))), vec![], vec![]),
        ("its session's leader hangs on somebody", in_session_of(descendant(310, 5)), vec![], vec![]),
        ("its session's leader is an orphan", in_session_of(process(310)), vec![], found()),
        (
            "its session's leader is a unit",
            in_session_of(Process { is_unit: true, ..process(310) }),
            vec![],
            { vec![] },
        ),
        ("its session's leader is dead", in_session_of(zombie(descendant(310, 5))), vec![], found()),
        ("in the session of its parent", vec![init(), unmarked(300)], vec![], vec![]),
        (
            "a person's terminals hang on it",
            vec![unmarked(300), descendant(301, 300), pane()],
            vec![],
            vec![],
        ),
        ("a keeper hangs on it", vec![unmarked(300), keeper()], vec![], vec![]),
        ("somebody of the run's lariat lives", vec![unmarked(300), clued(40)], vec![], vec![]),
        ("somebody has the number of one", vec![unmarked(300), clued(41)], vec![], found()),
        ("one is a zombie", vec![unmarked(300), zombie(clued(40))], vec![], found()),
    ]
}

#[test]
fn an_unmarked_daemon_is_possible_if_it_hangs_on_nobody_alive() {
    check([parents_of_unmarked(), companions_of_unmarked()].concat());
}

#[test]
fn where_the_user_is_at_home_everything_is_his() {
    for (home, is_found) in
        [(None, false), (Some("/home/me"), true), (Some("/p"), false), (Some("/p/x"), false)]
    {
        let mut snapshot = snapshot(&[unmarked(300), bare(301)]);
        snapshot.living.home = home.map(Into::into);
        let found = reasons(&find(&clues(), &snapshot).possible);
        let is_offered = |pid| found.iter().any(|(found, _)| *found == pid);
        assert_eq!((is_offered(300), is_offered(301)), (is_found, true), "{home:?}: {found:?}");
    }
}
