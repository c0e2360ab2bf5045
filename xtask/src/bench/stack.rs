//! A stack under `lariat up`, in a folder of its own, for the parts that measure one.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

use super::Bench;
use super::child::LAST_WORDS;
use super::sample::monotonic;
use crate::commands;
use crate::processes::Held;

/// Longest time for a stack to start or to end.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// A stack in its folder. Dropped, everything of it is killed and the folder is removed.
#[derive(Debug)]
pub(super) struct Stack {
    /// Where lariat.toml is.
    pub(super) dir: PathBuf,
    lariat: PathBuf,
    /// The supervisor, while it is in the foreground.
    up: Option<Up>,
}

#[derive(Debug)]
struct Up {
    child: Child,
    held: Held,
    /// When the flood's last words were shown.
    last_words: Receiver<Duration>,
}

impl Stack {
    /// Writes the configuration: one `[service.NAME]` per name, each with the same arguments.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn new(bench: &Bench, name: &str, services: &[(String, Vec<String>)]) -> Result<Self> {
        let dir = bench.dir.join(name);
        fs::create_dir(&dir).with_context(|| format!("could not make {}", dir.display()))?;
        let text: String = services.iter().map(|(name, argv)| service(name, argv)).collect();
        fs::write(dir.join("lariat.toml"), text)?;
        Ok(Self { dir, lariat: bench.lariat.clone(), up: None })
    }

    /// Returns a command of lariat's in the stack's folder, with nothing to read.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.lariat);
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// Runs a command of lariat's to its end.
    ///
    /// # Errors
    /// It fails: its output is the reason.
    pub(super) fn lariat(&self, args: &[&str]) -> Result<String> {
        let (status, text) = commands::output(&mut self.command(args), LIMIT)?;
        let text = text.trim();
        ensure!(status.success(), "`lariat {}` ended with {status}: {text}", args.join(" "));
        Ok(text.to_owned())
    }

    /// Starts `lariat up` in the foreground, its output read away by a thread that looks for the flood's last words.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn up(&mut self) -> Result<()> {
        let mut child =
            self.command(&["up"]).stdout(Stdio::piped()).spawn().context("could not start lariat")?;
        let held = Held::open(i32::try_from(child.id())?)?;
        let output = child.stdout.take().context("no output")?;
        let (sender, last_words) = mpsc::channel();
        thread::spawn(move || watch(output, |at| sender.send(at).is_ok()));
        self.up = Some(Up { child, held, last_words });
        Ok(())
    }

    /// Returns the number of the supervisor in the foreground.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn supervisor(&self) -> Result<i32> {
        Ok(self.up.as_ref().context("the stack is not up")?.held.pid)
    }

    /// Fails where the supervisor in the foreground has ended.
    ///
    /// # Errors
    /// It has.
    pub(super) fn expect_up(&mut self) -> Result<()> {
        let up = self.up.as_mut().context("the stack is not up")?;
        match up.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("`lariat up` ended with {status}"),
        }
    }

    /// Waits for the flood's last words on the foreground's output.
    ///
    /// # Errors
    /// They do not come in time.
    pub(super) fn last_words(&self) -> Result<Duration> {
        let up = self.up.as_ref().context("the stack is not up")?;
        up.last_words.recv_timeout(LIMIT).context("the last words were not shown")
    }

    /// Asks the supervisor in the foreground to end and waits until it has.
    ///
    /// # Errors
    /// It does not, or says that something is left.
    pub(super) fn end(&mut self) -> Result<()> {
        let mut up = self.up.take().context("the stack is not up")?;
        up.held.signal(Signal::TERM);
        let status = commands::wait(&mut up.child, &self.command(&["up"]), LIMIT)?;
        ensure!(status.success(), "`lariat up` ended with {status}");
        Ok(())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            // After an error: the bench looks for what is left anyway.
            let _ = commands::end_tree(&up.held);
            let _ = up.child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn service(name: &str, argv: &[String]) -> String {
    let words: Vec<String> = argv.iter().map(|word| format!("{word:?}")).collect();
    format!("[service.{name}]\nrun = [{}]\n\n", words.join(", "))
}

/// Reads everything and tells when the flood's last words came by; reads on, so that nobody has to wait.
fn watch(mut output: impl std::io::Read, mut tell: impl FnMut(Duration) -> bool) {
    let mut buffer = vec![0; 256 * 1024];
    let mut kept = 0;
    while let Ok(count) = output.read(&mut buffer[kept..]) {
        if count == 0 {
            return;
        }
        let end = kept + count;
        if memchr::memmem::find(&buffer[..end], LAST_WORDS).is_some() {
            let _ = monotonic().map(&mut tell);
            kept = 0;
            continue;
        }
        // The words may straddle two reads.
        kept = end.min(LAST_WORDS.len());
        buffer.copy_within(end - kept..end, 0);
    }
}

/// Makes a fifo and opens it so that neither end waits for the other.
///
/// # Errors
/// The fifo cannot be made.
pub(super) fn make_fifo(path: &Path) -> Result<File> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context("could not make a fifo")?;
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

/// Waits until there is something to read; returns whether there is.
///
/// # Errors
/// poll(2) fails.
pub(super) fn wait_readable(file: &File, limit: Duration) -> Result<bool> {
    let limit = Timespec { tv_sec: i64::try_from(limit.as_secs())?, tv_nsec: limit.subsec_nanos().into() };
    Ok(poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&limit)).context("could not wait")? > 0)
}

/// Reads one byte from each of `count` processes; `check` is asked every now and then whether waiting makes sense.
///
/// # Errors
/// They have not all said hello in time, or the check fails.
pub(super) fn wait_hellos(
    fifo: &mut File,
    count: usize,
    mut check: impl FnMut() -> Result<()>,
) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut seen = 0;
    let mut buffer = [0; 4096];
    while seen < count {
        if wait_readable(fifo, Duration::from_millis(250))? {
            seen += fifo.read(&mut buffer)?;
            continue;
        }
        check()?;
        ensure!(Instant::now() < deadline, "{seen} of {count} have started after {LIMIT:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Chunks(Vec<Vec<u8>>);

    impl std::io::Read for Chunks {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Some(chunk) = (!self.0.is_empty()).then(|| self.0.remove(0)) else { return Ok(0) };
            buffer[..chunk.len()].copy_from_slice(&chunk);
            Ok(chunk.len())
        }
    }

    fn count(chunks: Vec<Vec<u8>>) -> usize {
        let mut seen = 0;
        watch(Chunks(chunks), |_| {
            seen += 1;
            true
        });
        seen
    }

    #[test]
    fn last_words_are_seen_whole_or_cut() {
        let (first, second) = LAST_WORDS.split_at(7);
        assert_eq!(count(vec![b"abc".to_vec(), LAST_WORDS.to_vec(), b"def".to_vec()]), 1);
        assert_eq!(count(vec![[b"abc", first].concat(), [second, b"def"].concat()]), 1);
        assert_eq!(count(vec![b"abc".to_vec(), first.to_vec()]), 0);
    }

    #[test]
    fn a_service_is_written_with_its_words_quoted() {
        assert_eq!(
            service("a", &["b".to_owned(), "c \"d".to_owned()]),
            "[service.a]\nrun = [\"b\", \"c \\\"d\"]\n\n"
        );
    }
}
