//! `lariat up -d`: the supervisor in the background, and the command that waits until it is up.
//!
//! The supervisor is this executable again, in a session of its own. Until the stack is up it tells the waiting command
//! through a pipe what happens: the same events that everybody gets. After that nobody listens, and it closes the pipe.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lariat::event::{Event, EventKind};
use lariat::shutdown::plan::Why;
use lariat::shutdown::report::Report;
use lariat::supervisor::{Next, Subscription};
use lariat_sys::poll::{PollFd, PollFlags, poll};
use lariat_sys::reap::{self, Exit};
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{self, Child, Program, SpawnOptions};
use lariat_sys::{Errno, files};
use serde::{Deserialize, Serialize};

use super::own_trouble;
use super::signals::Signals;
use crate::args::stack::UpArgs;
use crate::commands::show::narrator::Narrator;
use crate::commands::show::report;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Where the supervisor finds its pipe.
const SLOT: RawFd = 3;
/// The room in that pipe, in bytes.
const PIPE_BYTES: usize = 64 * 1024;

/// A service without a readiness check counts as up when its program was executed. One that ends so soon after that
/// was never up, and whoever waits is told so.
const SETTLES_WITHIN: Duration = Duration::from_millis(250);

/// What the supervisor says to the command that waits.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    /// Something happened.
    Event(Event),
    /// It did not come to a run.
    Failure { message: String, causes: Vec<String>, hint: Option<String> },
    /// The run is over already.
    Report(Box<Report>),
}

/// Starts the supervisor and waits until the stack is up, or has failed to come up.
pub(super) fn start(
    file: &Path,
    args: &UpArgs,
    signals: &Signals,
    output: &mut Output,
) -> Result<ExitCode, Failure> {
    let failed = |errno| own_trouble("could not start the supervisor", errno);
    let (read, write) = files::pipe(PIPE_BYTES).map_err(failed)?;
    let child = spawn_supervisor(file, args, signals, write)?;
    let mut wait = Wait::new(output.is_out_styled());
    let mut pipe = File::from(read);
    let mut passed = None;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.queue.as_fd(), PollFlags::IN),
        ];
        poll(&mut fds, wait.narrator.remind_at()).map_err(failed)?;
        let (has_words, has_signals) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        // Words first: once it is up and has said so, a signal here is only ours.
        if has_words {
            let mut buffer = [0; 16 * 1024];
            match pipe.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => wait.take(&buffer[..n], output).map_err(goes_on)?,
            }
        }
        if has_signals {
            passed = passed.or(pass_on(signals, &child));
        }
        wait.remind(output).map_err(goes_on)?;
    }
    if passed.is_some() {
        // It may have taken it after its last word.
        wait_for_end(signals, &child).map_err(failed)?;
    }
    wait.end(&child, passed, output)
}

/// Passes on what came and asks for the end: the supervisor stops by its plan, and says so; the next one makes it hurry.
/// Returns which one came.
fn pass_on(signals: &Signals, child: &Child) -> Option<Signal> {
    // One that is gone already was ended by something else.
    signals.next_end().filter(|signal| child.pidfd.signal(*signal).is_ok())
}

/// Waits until a supervisor that was told to end has ended; it has a deadline of its own.
fn wait_for_end(signals: &Signals, child: &Child) -> Result<(), Errno> {
    while !child.pidfd.wait_exit(Some(Instant::now()))? {
        let mut fds = [
            PollFd::from_borrowed_fd(child.pidfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.queue.as_fd(), PollFlags::IN),
        ];
        poll(&mut fds, None)?;
        pass_on(signals, child);
    }
    Ok(())
}

/// Adds to what went wrong here that the supervisor, which does not need us, knows nothing of it.
fn goes_on(failure: Failure) -> Failure {
    failure.hint("the stack goes on in the background all the same; `lariat down` stops it")
}

fn spawn_supervisor(file: &Path, args: &UpArgs, signals: &Signals, write: OwnedFd) -> Result<Child, Failure> {
    let failed = |errno| own_trouble("could not start the supervisor", errno);
    let null = files::dev_null().map_err(failed)?;
    let mut argv: Vec<OsString> = ["lariat", "up", "--supervise", "--file"].map(OsString::from).into();
    argv.push(file.as_os_str().to_owned());
    argv.push("--".into());
    argv.extend(args.services.iter().map(OsString::from));
    let env = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    // What came from the kernel as arguments and environment holds no NUL.
    let text = |text: OsString| CString::new(text.into_vec()).unwrap_or_default();
    let program = Program {
        file: Some(c"/proc/self/exe".to_owned()),
        argv: argv.into_iter().map(text).collect(),
        env: env.map(text).collect(),
        ..Program::default()
    };
    let null = null.as_raw_fd();
    let options = SpawnOptions {
        new_session: true,
        mask: signals.mask,
        ignored: signals.ignored,
        fds: vec![(null, 0), (null, 1), (null, 2), (write.as_raw_fd(), SLOT)],
        close_others: true,
        ..SpawnOptions::default()
    };
    spawn::spawn(&program, &options).map_err(|error| own_trouble("could not start the supervisor", error))
}

/// What the waiting command has heard.
struct Wait {
    narrator: Narrator,
    input: Vec<u8>,
    run: String,
    is_up: bool,
    report: Option<Box<Report>>,
    failure: Option<Failure>,
}

impl Wait {
    fn new(is_styled: bool) -> Self {
        let narrator = Narrator::new(is_styled);
        Self { narrator, input: Vec::new(), run: String::new(), is_up: false, report: None, failure: None }
    }

    fn take(&mut self, bytes: &[u8], output: &mut Output) -> Result<(), Failure> {
        self.input.extend_from_slice(bytes);
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            // It is this very executable on the other side.
            let word = serde_json::from_slice(&line)
                .map_err(|error| own_trouble("the supervisor said something strange", error))?;
            self.word(word, output)?;
        }
        Ok(())
    }

    fn remind(&mut self, output: &mut Output) -> Result<(), Failure> {
        output.print(self.narrator.remind(Instant::now()));
        output.finish()
    }

    fn word(&mut self, word: Word, output: &mut Output) -> Result<(), Failure> {
        match word {
            Word::Event(event) => {
                match &event.kind {
                    EventKind::RunStarted { run, .. } => self.run.clone_from(run),
                    EventKind::StartupFinished { .. } => self.is_up = true,
                    _ => {}
                }
                output.print(self.narrator.tell(&event.kind, Instant::now()));
            }
            Word::Failure { message, causes, hint } => {
                self.failure = Some(Failure { causes, hint, ..Failure::new(ExitCode::Trouble, message) });
            }
            Word::Report(report) => {
                output.print(report::ending(&report, output.is_out_styled()));
                self.report = Some(report);
            }
        }
        output.finish()
    }

    /// The pipe is closed: it is up, or over. `passed` is the first signal that was passed on.
    fn end(self, child: &Child, passed: Option<Signal>, output: &mut Output) -> Result<ExitCode, Failure> {
        let is_dead = child.pidfd.wait_exit(Some(Instant::now())).unwrap_or(false);
        if self.is_up && self.report.is_none() && !is_dead {
            output.print(format!("run {} goes on in the background; `lariat down` stops it\n", self.run));
            return output.finish().map_err(goes_on).map(|()| ExitCode::Done);
        }
        // It has nothing left to do but to exit.
        let _ = child.pidfd.wait_exit(None);
        let code = match reap::reap(child.pid) {
            Ok(Some((Exit::Code(code), _))) => ExitCode::of(code),
            Ok(Some((Exit::Signal { signal, .. }, _))) if passed == Some(signal) => {
                // It takes these signals from a queue before it makes anything: this one came earlier.
                let message = "the stack was ended before anything of it was started";
                return Err(
                    Failure::new(ExitCode::ServiceFailed, message).because(format!("received {signal}"))
                );
            }
            _ => None,
        };
        match (self.failure, self.report, code) {
            (Some(failure), _, code) => Err(Failure { code: code.unwrap_or(failure.code), ..failure }),
            // Who asked for the end of a run finds it ended; who waits for a stack finds none.
            (None, Some(report), Some(ExitCode::Done)) if report.why != Why::AllEnded.describe() => {
                let message = "the stack was ended before this command saw it up";
                Err(Failure::new(ExitCode::ServiceFailed, message).because(report.why))
            }
            (None, Some(_), Some(code)) => Ok(code),
            (None, None, Some(code)) if self.is_up => {
                let code = if code == ExitCode::Done { ExitCode::ServiceFailed } else { code };
                Err(Failure::new(code, "the stack was ended as soon as it was up"))
            }
            _ => Err(Failure::new(ExitCode::Trouble, "the supervisor died while the stack came up")
                .hint("its keepers end what was started; `lariat down` shows the report")),
        }
    }
}

/// The supervisor's end of the pipe.
pub(super) struct Teller(File);

impl Teller {
    /// Takes the pipe that the waiting command left for us. To be called before anything else is opened.
    pub(super) fn take() -> Result<Self, Failure> {
        let pipe = spawn::inherit(SLOT);
        let pipe = pipe.ok_or_else(|| Failure::new(ExitCode::Usage, "`--supervise` is for lariat itself"))?;
        Ok(Self(pipe.into()))
    }

    /// Says that it did not come to a run.
    pub(super) fn fail(mut self, failure: &Failure) {
        let (message, causes, hint) = (failure.message.clone(), failure.causes.clone(), failure.hint.clone());
        self.say(&Word::Failure { message, causes, hint });
    }

    /// Tells events from a thread of its own, until the stack is up and stays so, or the run is over. Whoever waits does
    /// not hold up the run.
    pub(super) fn tell(
        mut self,
        subscription: Subscription,
    ) -> std::io::Result<thread::JoinHandle<Option<Self>>> {
        thread::Builder::new().name("lariat-teller".to_owned()).spawn(move || {
            let mut until = None;
            loop {
                match subscription.next() {
                    Next::Event(event) => {
                        match event.kind {
                            EventKind::StartupFinished { .. } => {
                                until = Some(Instant::now() + SETTLES_WITHIN)
                            }
                            // It ends already: how, says the report.
                            EventKind::ShutdownStarted { .. } => until = None,
                            _ => {}
                        }
                        if !self.say(&Word::Event(event)) {
                            return None;
                        }
                    }
                    Next::Lost(_) => {}
                    Next::Nothing if until.is_some_and(|until| Instant::now() >= until) => return None,
                    Next::Nothing => {
                        let mut fds = [PollFd::from_borrowed_fd(subscription.as_fd(), PollFlags::IN)];
                        let _ = poll(&mut fds, until);
                    }
                    Next::Closed => return Some(self),
                }
            }
        })
    }

    /// Says that the run is over already.
    pub(super) fn report(mut self, report: &Report) {
        self.say(&Word::Report(Box::new(report.clone())));
    }

    /// Returns whether somebody listens.
    fn say(&mut self, word: &Word) -> bool {
        let Ok(mut line) = serde_json::to_vec(word) else { return true };
        line.push(b'\n');
        self.0.write_all(&line).is_ok()
    }
}
