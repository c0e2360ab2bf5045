//! Trees that use cgroups themselves: members that make directories inside of lariat's, leave lariat's, or freeze.
//!
//! Every directory is below the cell's own, which its judge has entered, so it goes with the cell. Where the cell has
//! none, none is made.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lariat_sys::cgroup::{self, Cgroup, Own};
use lariat_sys::{Errno, files};

use super::part::Part;
use crate::ground::CELL_VARIABLE;

/// How long the kernel may take to freeze a process that only sleeps.
const FROZEN_WITHIN: Duration = Duration::from_secs(5);

/// A daemon three directories below the one that it was born in.
pub(crate) fn sub_cgroup(part: &Part) -> ! {
    let mut place = own(part);
    for name in ["member-a", "member-b", "member-c"] {
        make(part, &place, name);
        place.push(name);
    }
    part.daemon(|| {
        enter(part, &place);
        part.nullify();
        part.member("below")
    });
    part.lead(1)
}

/// A daemon that has left lariat's cgroup for a directory beside it.
pub(crate) fn moved_away(part: &Part) -> ! {
    let place = cell(part);
    make(part, &place, "away");
    part.daemon(|| {
        enter(part, &place.join("away"));
        part.nullify();
        part.member("away")
    });
    part.lead(1)
}

/// A child in a directory of its own that its leader has frozen: it hears nothing until somebody thaws it.
pub(crate) fn frozen(part: &Part) -> ! {
    let place = own(part);
    let group = make(part, &place, "frozen");
    let (standing, stands) = match files::pipe(0) {
        Ok(ends) => ends,
        Err(errno) => part.broken("open a pipe", errno),
    };
    part.child(|| {
        enter(part, &place.join("frozen"));
        part.stand_wild("frozen");
        part.prepare();
        let _ = rustix::io::write(&stands, b"+");
        part.live("frozen")
    });
    // Once it is frozen it says nothing any more.
    let _ = files::read(&standing, &mut [0]);
    freeze(part, &group);
    part.lead(1)
}

/// A daemon one of whose threads is in a threaded directory of its own, frozen, while the other one goes on.
pub(crate) fn half_frozen(part: &Part) -> ! {
    let outer = own(part).join("outer");
    make(part, &own(part), "outer");
    let inner = make(part, &outer, "inner");
    if let Err(errno) = inner.write("cgroup.type", "threaded") {
        part.skip(&format!("no threaded cgroup can be made here: {errno}"));
    }
    part.daemon(|| {
        enter(part, &outer);
        part.nullify();
        // Before there is a second thread, which inherits what is blocked.
        part.prepare();
        let (tell, told) = mpsc::channel();
        let place = outer.join("inner");
        std::thread::spawn(move || {
            let entered = Cgroup::open(&place).and_then(|inner| inner.write("cgroup.threads", "0"));
            let _ = tell.send(entered);
            loop {
                std::thread::park();
            }
        });
        if let Err(errno) = told.recv().unwrap_or(Err(Errno::SRCH)) {
            part.skip(&format!("no thread can enter a cgroup of its own here: {errno}"));
        }
        freeze(part, &inner);
        part.member("half-frozen")
    });
    part.lead(1)
}

/// The directory that everything of the cell is in.
fn cell(part: &Part) -> PathBuf {
    match std::env::var_os(CELL_VARIABLE) {
        Some(place) => PathBuf::from(place),
        None => part.skip("no cgroup directory can be made here"),
    }
}

/// The directory that we are in, which has to be the cell's or one below.
fn own(part: &Part) -> PathBuf {
    let cell = cell(part);
    match cgroup::own() {
        Ok(Own::At(place)) if place.starts_with(&cell) => place,
        _ => part.skip("the cgroup that the member is in is out of its reach"),
    }
}

fn make(part: &Part, parent: &Path, name: &str) -> Cgroup {
    match Cgroup::create(parent, name) {
        Ok(group) => group,
        Err(errno) => part.skip(&format!("a member can make no cgroup directory here: {errno}")),
    }
}

fn enter(part: &Part, place: &Path) {
    if let Err(errno) = Cgroup::open(place).and_then(|group| group.enter()) {
        part.skip(&format!("a member may not change its cgroup here: {errno}"));
    }
}

fn freeze(part: &Part, group: &Cgroup) {
    match group.freeze(Instant::now() + FROZEN_WITHIN) {
        Ok(true) => {}
        Ok(false) => part.broken("freeze", "the kernel did not in time"),
        Err(errno) => part.skip(&format!("no cgroup can be frozen here: {errno}")),
    }
}
