//! Which boundary services get on this machine, besides the one that is always there.
//!
//! Descent from a subreaper holds everywhere. A cgroup adds to it where a directory can be had: the one that the user
//! names, a new one below our own, or one below a scope that the user's systemd delegates to us. Each candidate is
//! tried out before it is used ([`lariat_keeper::contain::choose`]); why it was not taken is kept for people.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_keeper::contain::choose;
use lariat_keeper::contain::limits::{self, NoLimits};
use lariat_sys::cgroup::text::Controllers;
use lariat_sys::signal::Signal;
use lariat_sys::spawn::{self, Program, SpawnOptions};
use lariat_sys::{files, process, reap};

use crate::process::RUN_VARIABLE;

/// How long systemd may take to answer.
const SYSTEMD_WITHIN: Duration = Duration::from_secs(2);

/// Where a directory comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The user named it.
    Given,
    /// It is the cgroup that we are in.
    Own,
    /// It is a scope that systemd made for us and delegated.
    Scope,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given => "the directory that LARIAT_CGROUP names",
            Self::Own => "our own cgroup",
            Self::Scope => "a scope of the user's systemd",
        })
    }
}

/// A directory in which every start of a service gets one of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// Where it is.
    pub path: PathBuf,
    /// Where it comes from.
    pub source: Source,
    /// Why the limits that are wanted have no effect in it.
    pub no_limits: Option<NoLimits>,
}

/// A candidate that was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Which.
    pub source: Source,
    /// Where it is, if it was found.
    pub path: Option<PathBuf>,
    /// Why not.
    pub reason: String,
}

/// What was chosen, and what was not.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The directory; `None` leaves descent alone.
    pub base: Option<Base>,
    /// Those tried before it.
    pub refused: Vec<Refused>,
}

/// What may be tried.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// The directory that the user names.
    pub given: Option<&'a Path>,
    /// Whether systemd may be asked for a scope; the calling process is moved into it then.
    pub may_ask_systemd: bool,
    /// The environment, in which the user's bus is named.
    pub environment: &'a [(OsString, OsString)],
    /// A program whose `main` calls [`lariat_keeper::entry::entry`] first.
    pub executable: &'a Path,
    /// What is to be limited. A candidate in which that has an effect is taken before one in which it has none.
    pub wanted: Controllers,
}

/// Tries one candidate after the other and returns the first that holds what it promises.
///
/// Blocks for a few milliseconds; for systemd, two seconds at most. Starts a process of ours in each candidate, and
/// leaves none. The caller must not reap children that it does not know meanwhile.
#[must_use]
pub fn choose(candidates: &Candidates<'_>) -> Choice {
    let mut choice = Choice::default();
    if let Some(given) = candidates.given {
        choice.consider(Source::Given, Ok(given.to_owned()), candidates);
    }
    // Whoever names a directory wants that one, whatever it lacks.
    if choice.base.is_some() {
        return choice;
    }
    choice.consider(Source::Own, choose::own().map_err(|refusal| refusal.to_string()), candidates);
    let asks = match &choice.base {
        None => true,
        // Within another run we would leave what its services are contained and limited by.
        Some(base) => base.no_limits.is_some() && !is_in_a_run(candidates.environment),
    };
    if asks && candidates.may_ask_systemd {
        choice.consider(Source::Scope, ask_systemd(candidates.environment), candidates);
    }
    choice
}

fn is_in_a_run(environment: &[(OsString, OsString)]) -> bool {
    environment.iter().any(|(name, _)| name == RUN_VARIABLE)
}

impl Choice {
    /// Takes a candidate if it holds what it promises. It then comes before an earlier one, which lacks something.
    fn consider(&mut self, source: Source, place: Result<PathBuf, String>, candidates: &Candidates<'_>) {
        let refused = match place {
            Err(reason) => Refused { source, path: None, reason },
            // The ledger has to name it.
            Ok(path) if path.to_str().is_none() => {
                Refused { source, path: Some(path), reason: "its name is not UTF-8".into() }
            }
            Ok(path) => match choose::probe(&path, candidates.executable) {
                Ok(()) => {
                    let is_wanted = !candidates.wanted.is_empty();
                    let look = || limits::look(&path, candidates.wanted).err();
                    let no_limits = is_wanted.then(look).flatten();
                    self.base = Some(Base { path, source, no_limits });
                    return;
                }
                Err(refusal) => Refused { source, path: Some(path), reason: refusal.to_string() },
            },
        };
        self.refused.push(refused);
    }
}

/// Has the user's systemd put the calling process into a delegated scope (`StartTransientUnit` of
/// `org.freedesktop.systemd1(5)`), and returns the scope's directory.
fn ask_systemd(environment: &[(OsString, OsString)]) -> Result<PathBuf, String> {
    let has_bus =
        |(name, _): &(OsString, OsString)| name == "XDG_RUNTIME_DIR" || name == "DBUS_SESSION_BUS_ADDRESS";
    if !environment.iter().any(has_bus) {
        return Err("no user session: XDG_RUNTIME_DIR is not set".into());
    }
    let before = choose::own().map_err(|refusal| refusal.to_string())?;
    let pid = process::pid().to_string();
    let name = format!("lariat-{pid}-{}.scope", lariat_sys::identity::boot_ticks());
    let call = [
        "busctl",
        "--user",
        "--quiet",
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        &name,
        "fail",
        "3",
        "Delegate",
        "b",
        "true",
        "CollectMode",
        "s",
        "inactive-or-failed",
        "PIDs",
        "au",
        "1",
        &pid,
        "0",
    ];
    let deadline = Instant::now() + SYSTEMD_WITHIN;
    run(&call, environment, deadline)?;
    // The call answers when the job is queued; it is done when we are somewhere else.
    loop {
        match choose::own() {
            Ok(now) if now != before => return Ok(now),
            _ if Instant::now() >= deadline => {
                return Err("systemd did not move us into the scope in time".into());
            }
            _ => {
                let soon = deadline.min(Instant::now() + Duration::from_millis(2));
                lariat_sys::poll::poll(&mut [], Some(soon)).map_err(|errno| errno.to_string())?;
            }
        }
    }
}

/// Runs a program to its end, which has to be code 0 before the deadline.
fn run(words: &[&str], environment: &[(OsString, OsString)], deadline: Instant) -> Result<(), String> {
    let text = |text: &OsStr| CString::new(text.as_bytes()).unwrap_or_default();
    let entry = |(name, value): &(OsString, OsString)| {
        text(&OsString::from_vec([name.as_bytes(), b"=", value.as_bytes()].concat()))
    };
    let program = Program {
        argv: words.iter().map(|word| text(OsStr::new(word))).collect(),
        env: environment.iter().map(entry).collect(),
        search_path: true,
        ..Program::default()
    };
    let null = files::dev_null().map_err(|errno| format!("could not open /dev/null: {errno}"))?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&null);
    let options = SpawnOptions {
        new_session: true,
        parent_death: Some(Signal::KILL),
        fds: vec![(fd, 0), (fd, 1), (fd, 2)],
        close_others: true,
        ..SpawnOptions::default()
    };
    let name = words.first().copied().unwrap_or_default();
    let child = spawn::spawn(&program, &options).map_err(|error| format!("`{name}`: {error}"))?;
    if !child.pidfd.wait_exit(Some(deadline)).unwrap_or(false) {
        let _ = child.pidfd.signal(Signal::KILL);
        let _ = child.pidfd.wait_exit(Some(Instant::now() + Duration::from_secs(1)));
        let _ = reap::reap(child.pid);
        return Err(format!("`{name}` did not answer in time"));
    }
    match reap::reap(child.pid) {
        Ok(Some((reap::Exit::Code(0), _))) => Ok(()),
        Ok(Some((exit, _))) => Err(format!("`{name}` was refused by systemd ({exit:?})")),
        Ok(None) | Err(_) => Err(format!("`{name}` was reaped by somebody else")),
    }
}
