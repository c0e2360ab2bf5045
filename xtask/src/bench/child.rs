//! The workload: what lariat and its peers run while they are measured.
//!
//! Each kind does one thing, dies of TERM by the default action and ends by itself after five minutes, so that a
//! bench that was interrupted leaves nothing for long.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::bare_calls;
use super::sample::monotonic;

/// One line of the flood; ends in a line feed.
const LINE: usize = 100;
/// The last words of a flood, for whoever sees it only after it was prefixed.
pub(super) const LAST_WORDS: &[u8] = b"these are the last words of the flood";
const LIFETIME: Duration = Duration::from_secs(300);

/// Runs a workload: `tree N`, `flood BYTES CHUNK STAMP`, `hello FIFO`, `greet FIFO`, `listen` or
/// `bare-calls COMMAND`.
///
/// # Errors
/// The arguments are wrong, or the system refuses.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tree", count] => tree(count.parse()?)?,
        ["flood", bytes, chunk, stamp] => flood(bytes.parse()?, chunk.parse()?, stamp)?,
        ["hello", fifo] => hello(fifo)?,
        ["listen"] => listen()?,
        ["bare-calls", ..] => return bare_calls::run(&args[1..]).map(|()| true),
        ["greet", fifo] => return hello(fifo).map(|()| true),
        _ => bail!("unknown workload: {args:?}"),
    }
    thread::sleep(LIFETIME);
    Ok(true)
}

/// Starts `count` processes that wait, and names itself and them, one number per line, then `ready`.
fn tree(count: usize) -> Result<()> {
    let mut pids = vec![std::process::id()];
    for _ in 0..count {
        let mut sleep = Command::new("/bin/sleep");
        sleep.arg(LIFETIME.as_secs().to_string());
        sleep.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        pids.push(sleep.spawn().context("could not start sleep")?.id());
    }
    let lines: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
    let mut out = std::io::stdout().lock();
    out.write_all(lines.as_bytes())?;
    out.write_all(b"ready\n")?;
    Ok(out.flush()?)
}

/// Writes `bytes` in lines of [`LINE`] bytes, `chunk` bytes per call, the start's time to the file `stamp`.
fn flood(bytes: usize, chunk: usize, stamp: &str) -> Result<()> {
    ensure!(
        chunk > 0 && chunk.is_multiple_of(LINE) && bytes.is_multiple_of(chunk),
        "sizes are whole lines and whole chunks"
    );
    let line = [vec![b'x'; LINE - 1], vec![b'\n']].concat();
    let block = line.repeat(chunk / LINE);
    let mut last = block.clone();
    let at = chunk - LINE;
    last[at..at + LAST_WORDS.len()].copy_from_slice(LAST_WORDS);
    // Without the buffer of `Stdout`: one call per chunk is what is asked for.
    let mut out = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    fs::write(stamp, monotonic()?.as_nanos().to_string())?;
    for _ in 1..bytes / chunk {
        out.write_all(&block)?;
    }
    Ok(out.write_all(&last)?)
}

/// Listens on a port of its own, which it names.
fn listen() -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{}\n", listener.local_addr()?.port()).as_bytes())?;
    out.flush()?;
    thread::sleep(LIFETIME);
    Ok(())
}

/// Writes one byte to a fifo.
fn hello(fifo: &str) -> Result<()> {
    let mut fifo =
        OpenOptions::new().write(true).open(fifo).with_context(|| format!("could not open {fifo}"))?;
    Ok(fifo.write_all(b".")?)
}
