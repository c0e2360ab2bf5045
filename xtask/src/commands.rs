//! Other programs, run with a deadline.
//!
//! A program that is not done in time is ended with everything below it, and that is an error: nothing in a
//! development task waits for ever. No shell is involved.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::processes::{self, Held};

/// Time between the polite signal and the last one, for a program past its deadline.
const GRACE: Duration = Duration::from_secs(5);

/// Runs a program with our own output and returns how it ended.
///
/// # Errors
/// It cannot be started, or is not done within `limit`.
pub(crate) fn status(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = spawn(command.stdin(Stdio::null()))?;
    wait(&mut child, command, limit)
}

/// Runs a program, passes its output on as it comes and returns all of it, standard error after standard output.
///
/// # Errors
/// As [`status`].
pub(crate) fn tee(command: &mut Command, limit: Duration) -> Result<(ExitStatus, String)> {
    capture(command, limit, true)
}

/// Runs a program silently and returns its output, standard error after standard output.
///
/// # Errors
/// As [`status`].
pub(crate) fn output(command: &mut Command, limit: Duration) -> Result<(ExitStatus, String)> {
    capture(command, limit, false)
}

/// Returns whether a program can be found in `PATH`.
pub(crate) fn is_installed(program: &str) -> bool {
    find(program).is_some()
}

/// Returns where a program is, by `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Waits for a child until `limit` is over, then ends it and everything below it.
///
/// # Errors
/// It was not done in time.
pub(crate) fn wait(child: &mut Child, command: &Command, limit: Duration) -> Result<ExitStatus> {
    let held = Held::open(i32::try_from(child.id())?)?;
    if held.wait(Instant::now() + limit)? {
        return Ok(child.wait()?);
    }
    end_tree(&held)?;
    child.wait()?;
    bail!("{} was not done after {} s and was ended", display(command), limit.as_secs())
}

/// Ends a process and everything below it: politely, then not.
///
/// # Errors
/// poll(2) fails.
pub(crate) fn end_tree(top: &Held) -> Result<()> {
    let below: Vec<Held> =
        processes::descendants(top.pid).iter().filter_map(|process| Held::open(process.pid).ok()).collect();
    top.signal(Signal::TERM);
    top.wait(Instant::now() + GRACE)?;
    for process in below.iter().chain([top]) {
        process.signal(Signal::KILL);
    }
    Ok(())
}

/// Returns a command as a person would type it.
pub(crate) fn display(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("could not start `{}`", display(command)))
}

fn capture(command: &mut Command, limit: Duration, is_shown: bool) -> Result<(ExitStatus, String)> {
    let mut child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let out = child.stdout.take().map(|pipe| read_aside(pipe, is_shown.then(std::io::stdout)));
    let err = child.stderr.take().map(|pipe| read_aside(pipe, is_shown.then(std::io::stderr)));
    let status = wait(&mut child, command, limit)?;
    let mut text = String::new();
    for reader in [out, err].into_iter().flatten() {
        // End of file comes when the last holder of the pipe is gone, which need not be the program.
        let said = reader.recv_timeout(GRACE);
        text +=
            &said.with_context(|| format!("{} left something that holds its output", display(command)))?;
    }
    Ok((status, text))
}

fn read_aside(
    pipe: impl Read + Send + 'static,
    shown: Option<impl Write + Send + 'static>,
) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    // Nobody receives after a timeout; the text is of no use then.
    thread::spawn(move || sender.send(copy(pipe, shown)).ok());
    receiver
}

fn copy(pipe: impl Read, mut shown: Option<impl Write>) -> String {
    let mut text = String::new();
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        if let Some(shown) = &mut shown {
            // A terminal that is gone does not change what the program said.
            let _ = shown.write_all(&line);
        }
        text += &String::from_utf8_lossy(&line);
        line.clear();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_both_streams_and_the_status_come_back() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let (status, text) = output(&mut command, Duration::from_secs(10)).unwrap();
        assert_eq!((status.code(), text.as_str()), (Some(3), "out\nerr\n"));
    }

    #[test]
    fn a_program_past_its_deadline_is_ended_with_its_children() {
        let marker = format!("XTASK_TEST=deadline-{}", std::process::id());
        let (name, value) = marker.split_once('=').unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & wait"]).env(name, value);
        let error = status(&mut command, Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("was not done"), "{error}");
        processes::wait_none_marked(&marker, Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn a_missing_program_is_an_error_and_not_installed() {
        assert!(status(&mut Command::new("no-such-program"), GRACE).is_err());
        assert!(is_installed("sh") && !is_installed("no-such-program"));
    }
}
