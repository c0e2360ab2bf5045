//! Whose keepers and marks are whose, of runs around and within each other.

use super::tests::{ANOTHER, RUN, foreign, marked, of_another, process, snapshot};
use super::*;
use crate::process::Mark;

const THIRD: &str = "00000000000000cc";

fn of_third(pid: i32) -> Process {
    Process { mark: Some(Mark { run: THIRD.into(), ..Mark::default() }), ..process(pid) }
}

#[test]
fn only_its_own_keepers_are_waited_for() {
    // Its own is born after it began (50), and carries what was around it.
    let own = Process { is_keeper: true, ..process(400) };
    let of = |keeper: Process| {
        let member = Process { ppid: keeper.identity.pid, ..marked(401) };
        let mut all = snapshot(&[keeper, member]);
        all.living.own.insert(Identity::new(402, 60));
        all.keepers_above(RUN, Some(50)).into_iter().map(|keeper| keeper.pid).collect::<Vec<_>>()
    };
    assert_eq!(of(own.clone()), [400]);
    assert_eq!(of(Process { mark: of_another(1).mark, ..own.clone() }), [400], "its own, within another run");
    let of_inner = Process { mark: marked(1).mark, ..own.clone() };
    let of_outer = Process { identity: Identity::new(400, 49), ..own.clone() };
    let above_us = Process { identity: Identity::new(500, 60), ..own.clone() };
    let of_living = Process { identity: Identity::new(402, 60), ..own.clone() };
    for keeper in [of_inner, of_outer, above_us, of_living, foreign(own)] {
        assert!(of(keeper.clone()).is_empty(), "{keeper:?}");
    }
}

#[test]
fn marks_that_nobody_knows_are_lost_unless_a_keeper_or_a_supervisor_has_them() {
    let supervisor = Identity::new(500, 40);
    let keeper = Process { is_keeper: true, ..process(400) };
    let processes = [
        marked(300),
        of_another(301),
        keeper.clone(),
        Process { ppid: 400, ..of_another(401) },
        // What lost its keeper, and who is still below one.
        Process { supervisor: Some(supervisor), ppid: 500, ..of_third(303) },
        Process { ppid: 400, ..of_third(304) },
        foreign(Process { mark: Some(Mark { run: "x".into(), ..Mark::default() }), ..process(302) }),
    ];
    // Who names one that he is not below, or init, which everybody is.
    for named in [Identity::new(600, 40), Identity::new(1, 1)] {
        let forger = Process { supervisor: Some(named), ..of_third(305) };
        let marks = snapshot(&[forger, process(600)]).unknown_marks(&BTreeSet::new());
        assert_eq!(marks, [(THIRD.to_owned(), Guard::Nobody)].into(), "{named:?}");
    }
    let mut snapshot = snapshot(&processes);
    let marks = snapshot.unknown_marks(&BTreeSet::new());
    let expected = [(RUN, Guard::Nobody), (ANOTHER, Guard::Keeper), (THIRD, Guard::Supervisor(supervisor))];
    assert_eq!(marks, expected.map(|(run, guard)| (run.to_owned(), guard)).into());
    let known = expected.map(|(run, _)| run.to_owned()).into();
    assert!(snapshot.unknown_marks(&known).is_empty());
    assert_eq!(snapshot.keepers_above(ANOTHER, None), [keeper.identity]);
    assert!(snapshot.keepers_above(RUN, None).is_empty());
    // The eldest whose place could be read.
    snapshot.processes[1].dir = Some("/p".into());
    assert_eq!(snapshot.place_of(ANOTHER), Some(Path::new("/p")));
    assert_eq!(snapshot.place_of("x"), None, "another user's");
}
