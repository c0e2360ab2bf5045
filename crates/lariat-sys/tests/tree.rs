//! Finding descendants: both walks agree, threads have children too, dying trees are no error.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::collections::BTreeSet;

use lariat_sys::process;
use lariat_sys::procfs::Stat;
use lariat_sys::spawn::SpawnOptions;
use lariat_sys::tree::{children, some_children, walk, walk_by_scan};

use support::{Guard, eventually, shell};

type Walk = fn(i32, &[i32], &mut Vec<Stat>) -> lariat_sys::Result<()>;

const WALKS: [(&str, Walk); 2] = [("lists", walk), ("scan", walk_by_scan)];

fn found(how: Walk, root: i32, skip: &[i32]) -> Vec<Stat> {
    let mut out = Vec::new();
    how(root, skip, &mut out).unwrap();
    out
}

fn pids(stats: &[Stat]) -> BTreeSet<i32> {
    stats.iter().map(|stat| stat.pid).collect()
}

/// Starts a tree of a shell with three shells with `leaves` sleepers each, and waits until it is complete.
fn grove(leaves: usize) -> Guard {
    let script = format!(
        "for branch in 1 2 3; do sh -c 'for leaf in $(seq {leaves}); do sleep 1000 & done; wait' & done; wait"
    );
    let root = Guard::start(&shell(&script), &SpawnOptions { new_session: true, ..SpawnOptions::default() });
    eventually("the tree is complete", || {
        let sleepers = found(walk, root.pid(), &[]);
        sleepers.iter().filter(|stat| stat.comm.as_bytes() == b"sleep").count() == 3 * leaves
    });
    root
}

#[test]
fn both_walks_agree_and_go_nearest_first() {
    process::set_subreaper(true).unwrap();
    let root = grove(7);
    for (name, how) in WALKS {
        let all = found(how, root.pid(), &[]);
        assert_eq!(all.len(), 3 + 3 * 7, "{name}");
        assert_eq!(pids(&all).len(), all.len(), "{name}: twice the same");
        assert!(!pids(&all).contains(&root.pid()), "{name}: the root itself");
        assert!(all[..3].iter().all(|stat| stat.ppid == root.pid()), "{name}: not nearest first");
    }
    assert_eq!(pids(&found(walk, root.pid(), &[])), pids(&found(walk_by_scan, root.pid(), &[])));
    support::end_descendants();
}

#[test]
fn skipped_subtrees_are_not_entered() {
    process::set_subreaper(true).unwrap();
    let root = grove(2);
    let branch = found(walk, root.pid(), &[])[0].pid;
    for (name, how) in WALKS {
        let rest = found(how, root.pid(), &[branch]);
        assert_eq!(rest.len(), 2 + 2 * 2, "{name}");
        assert!(rest.iter().all(|stat| stat.pid != branch && stat.ppid != branch), "{name}");
        assert!(found(how, branch, &[root.pid()]).len() == 2, "{name}: the other way");
    }
    support::end_descendants();
}

#[test]
fn a_list_that_has_members_is_added_to() {
    let child = Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default());
    for (name, how) in WALKS {
        let mut out = found(how, process::pid(), &[]);
        assert_eq!(out.len(), 1, "{name}");
        how(process::pid(), &[], &mut out).unwrap();
        assert_eq!(out.iter().map(|stat| stat.pid).collect::<Vec<_>>(), [child.pid(); 2], "{name}");
    }
}

#[test]
fn children_of_another_thread_are_found() {
    // The test itself runs in a thread beside main; here is one more.
    let (own, other) = std::thread::scope(|scope| {
        let options = SpawnOptions::default();
        let own = Guard::start(&shell("exec sleep 1000"), &options);
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            tell.send(Guard::start(&shell("exec sleep 1000"), &SpawnOptions::default())).unwrap();
            let _ = ended.recv();
        });
        let other = told.recv().unwrap();
        let both = BTreeSet::from([own.pid(), other.pid()]);
        let mut listed = Vec::new();
        children(process::pid(), &mut listed).unwrap();
        assert_eq!(BTreeSet::from_iter(listed), both);
        for (name, how) in WALKS {
            assert_eq!(pids(&found(how, process::pid(), &[])), both, "{name}");
        }
        drop(end);
        (own, other)
    });
    // A thread that ended has left its children to the others. A scope ends a moment before its threads do, and a walk is no
    // snapshot.
    let both = BTreeSet::from([own.pid(), other.pid()]);
    eventually("both are found", || pids(&found(walk, process::pid(), &[])) == both);
}

#[test]
fn nobody_has_no_children() {
    for (name, how) in WALKS {
        assert_eq!(found(how, i32::MAX, &[]), [], "{name}");
    }
    let mut out = vec![7];
    children(i32::MAX, &mut out).unwrap();
    assert_eq!(out, [7]);
}

/// HAZARD(vanishing-process), HAZARD(fork-while-walking): walks over a tree whose members come and go at full speed.
#[test]
fn who_asks_for_some_gets_as_many_and_all_where_there_are_fewer() {
    process::set_subreaper(true).unwrap();
    let root =
        Guard::start(&shell("for leaf in $(seq 40); do sleep 1000 & done; wait"), &SpawnOptions::default());
    eventually("all are there", || found(walk, root.pid(), &[]).len() == 40);
    let mut all = Vec::new();
    children(root.pid(), &mut all).unwrap();
    for enough in [1, 2, 7, 39, 40, 41, usize::MAX] {
        let mut some = vec![7];
        some_children(root.pid(), enough, &mut some).unwrap();
        assert_eq!(some.remove(0), 7, "what was there is kept");
        assert!(some.len() >= enough.min(40) && all.starts_with(&some), "{enough}: {some:?} of {all:?}");
    }
    let mut none = Vec::new();
    some_children(all[0], 2, &mut none).unwrap();
    assert!(none.is_empty());
    support::end_descendants();
}

#[test]
fn a_walk_over_a_dying_tree_is_no_error() {
    process::set_subreaper(true).unwrap();
    let script = "for runner in 1 2 3 4; do (i=0; while [ $i -lt 300 ]; do i=$((i+1)); (sleep 0 & sleep 0) & wait; done) & done; wait";
    let root = Guard::start(&shell(script), &SpawnOptions { new_session: true, ..SpawnOptions::default() });
    let mut walks = 0;
    let mut seen = 0;
    while !root.child.pidfd.has_exited().unwrap() {
        let (_, how) = WALKS[walks % WALKS.len()];
        let all = found(how, process::pid(), &[]);
        assert_eq!(pids(&all).len(), all.len(), "twice the same");
        seen = seen.max(all.len());
        walks += 1;
        if walks >= 2000 {
            break;
        }
    }
    assert!(walks > 10 && seen > 4, "{walks} walks saw at most {seen}");
    support::end_descendants();
}
