//! The bare calls of a stop: what whoever ends a tree in order has to ask of the kernel, and nothing besides.
//!
//! Find everybody by the children lists, hold each by a descriptor, read who it is; tell the leader; when that one is
//! gone, tell the others; collect all until there is no child. Nobody guards it, nothing is written down, and it takes a
//! closed pipe for its order. `lariat` is held against this: an init wrapper that signals a group finds and proves
//! nothing, and is quicker by that.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, getpid, set_child_subreaper, wait};

use crate::processes::Held;

/// How long the leader may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Starts the command, waits for the end of standard input, and ends everybody.
///
/// # Errors
/// The system refuses, or the leader does not end.
pub(super) fn run(command: &[String]) -> Result<()> {
    let (program, args) = command.split_first().context("a command is needed")?;
    let me = getpid();
    set_child_subreaper(Some(me)).context("could not become a subreaper")?;
    let mut leader = Command::new(program);
    let leader =
        leader.args(args).stdin(Stdio::null()).process_group(0).spawn().context("could not start")?;
    let leader = Held::open(i32::try_from(leader.id())?)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;

    let mut others = Vec::new();
    find(me.as_raw_nonzero().get(), &mut others)?;
    leader.signal(Signal::TERM);
    ensure!(leader.wait(Instant::now() + LIMIT)?, "the leader does not end");
    for other in others.iter().filter(|other| other.pid != leader.pid) {
        other.signal(Signal::TERM);
    }
    loop {
        match wait(WaitOptions::empty()) {
            Err(Errno::CHILD) => return Ok(()),
            Err(errno) => return Err(errno).context("could not collect"),
            Ok(_) => {}
        }
    }
}

/// Holds everybody below a process of one thread, and reads who it is, as a walk does.
fn find(pid: i32, out: &mut Vec<Held>) -> Result<()> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_ascii_whitespace() {
        let child = child.parse()?;
        out.push(Held::open(child)?);
        let _stat = fs::read(format!("/proc/{child}/stat")).unwrap_or_default();
        find(child, out)?;
    }
    Ok(())
}
