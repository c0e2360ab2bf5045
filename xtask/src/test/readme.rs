//! The README's first command, as a new user types it: the stack comes up, and a polite signal leaves nothing.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use super::{Outcome, RUN_COMMAND, Session, steps};
use crate::{commands, processes};

/// The service of the first stack that starts last: its first words mean that the stack is up.
const LAST_LOG: &str = "examples/first/.lariat/logs/worker.log";
/// Longest time until the stack is up, and until it is gone.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs the command, waits until the stack is up, ends it and looks for what is left.
pub(super) fn run(session: &Session) -> Result<Outcome> {
    let built = commands::status(
        &mut session.cargo(&["build", "--release", "--locked", "--quiet"]),
        steps::CARGO_LIMIT,
    )?;
    ensure!(built.success(), "the release build failed");
    let value = format!("{}", std::process::id());
    let marker = format!("LARIAT_README_CHECK={value}");
    let words: Vec<&str> = RUN_COMMAND.split(' ').skip(1).collect();
    let mut command = session.cargo(&words);
    command.env("LARIAT_README_CHECK", value).stdin(Stdio::null()).stdout(Stdio::piped());
    let result = life(&session.root.join(LAST_LOG), &mut command, &marker);
    processes::kill_marked(&marker);
    result.map(|()| Outcome::check(true))
}

fn life(log: &Path, command: &mut Command, marker: &str) -> Result<()> {
    // Words of an earlier life would be taken for this one's.
    if let Err(error) = fs::remove_file(log) {
        ensure!(error.kind() == io::ErrorKind::NotFound, "could not remove {}: {error}", log.display());
    }
    let mut child = command.spawn().with_context(|| format!("could not start `{RUN_COMMAND}`"))?;
    let mut output = child.stdout.take().context("no output")?;
    let shown = thread::spawn(move || io::copy(&mut output, &mut io::stdout()));
    wait_until_up(&mut child, log)?;
    ensure!(processes::marked(marker).len() > 3, "the stack is up but has no processes");
    let held = processes::Held::open(i32::try_from(child.id())?)?;
    held.signal(Signal::TERM);
    let status = commands::wait(&mut child, command, LIMIT)?;
    ensure!(status.success(), "a polite end of the first stack ended with {status}");
    processes::wait_none_marked(marker, Duration::from_secs(2))?;
    // The output is at its end: nobody is left to hold it.
    shown.join().ok().context("the output could not be read")??;
    Ok(())
}

fn wait_until_up(child: &mut Child, log: &Path) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !log.metadata().is_ok_and(|meta| meta.len() > 0) {
        if let Some(status) = child.try_wait()? {
            bail!("`{RUN_COMMAND}` ended with {status} before the stack was up");
        }
        ensure!(Instant::now() < deadline, "the first stack was not up after {LIMIT:?}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
