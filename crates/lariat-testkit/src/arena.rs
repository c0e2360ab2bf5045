//! The place in which a test runs programs, and the check at its end.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::boundary::Boundary;
use crate::census::{self, Seen};
use crate::command::Command;
use crate::facts::Facts;
use crate::needs;
use crate::net::{self, Port};
use crate::reaper::{self, Proof};
use crate::wait::wait_at_most;

/// The variable that carries an arena's token.
pub const TOKEN: &str = "LARIAT_TEST_TOKEN";

/// How long the arena goes on killing what was leaked.
const CLEANING: Duration = Duration::from_secs(20);

/// How long a storm of forks may evade the walks while the kernel says that somebody is there.
const STORM: Duration = Duration::from_secs(10);

/// The census covers all descendants of this process, so two arenas in one process would see each other.
static ONLY_ONE: Mutex<()> = Mutex::new(());

/// A temporary home for programs under test. When it ends, by [`Arena::finish`] or by drop, everything that was
/// started in it must be dead and all its ports free; otherwise it panics and names what is left, after killing it.
pub struct Arena {
    dir: TempDir,
    token: String,
    ports: Vec<Port>,
    captures: Cell<usize>,
    containment: Containment,
    boundary: Option<Boundary>,
    is_finished: bool,
    _alone: MutexGuard<'static, ()>,
}

/// What was left behind.
#[derive(Debug)]
pub struct Leaks {
    /// Processes that were alive. They were killed after they were written down.
    pub processes: Vec<Seen>,
    /// Ports of the arena that were not free.
    pub ports: Vec<u16>,
    /// Whether the kernel, asked before anything was killed, named children although no walk found one.
    pub is_unproven: bool,
}

impl Leaks {
    /// Returns whether nothing was left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.ports.is_empty() && !self.is_unproven
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} processes and {} ports were left behind", self.processes.len(), self.ports.len())?;
        for seen in self.processes.iter().take(40) {
            write!(f, "\n  {seen}")?;
        }
        for port in &self.ports {
            write!(f, "\n  port {port} is not free")?;
        }
        if self.is_unproven {
            write!(f, "\n  the kernel says that there are children, but no walk finds one")?;
        }
        Ok(())
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

/// The containment that lariat is asked for in an arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Containment {
    /// What lariat finds best.
    Auto,
    /// By descent alone.
    Lineage,
    /// By cgroup, or not at all.
    Cgroup,
    /// In a pid namespace, where the test passes [`Arena::isolation_flags`] or [`Arena::isolation_key`] on; what lariat finds
    /// best besides.
    Namespace,
}

impl Containment {
    /// Returns what `LARIAT_TEST_CONTAINMENT` asks for, so that the same tests can run under each.
    ///
    /// # Panics
    /// When it is no containment.
    #[must_use]
    pub fn wanted() -> Self {
        match std::env::var("LARIAT_TEST_CONTAINMENT").as_deref() {
            Err(_) | Ok("" | "auto") => Self::Auto,
            Ok("lineage") => Self::Lineage,
            Ok("cgroup") => Self::Cgroup,
            Ok(other) => panic!("LARIAT_TEST_CONTAINMENT is {other:?}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Auto | Self::Namespace => "auto",
            Self::Lineage => "lineage",
            Self::Cgroup => "cgroup",
        }
    }
}

impl Arena {
    /// Opens an arena in which lariat contains as [`Containment::wanted`] says. See [`Arena::with`].
    ///
    /// # Panics
    /// As [`Arena::with`].
    #[must_use]
    pub fn new() -> Self {
        Self::with(Containment::wanted())
    }

    /// Makes an arena with a cgroup of its own; `None` where none can be made, which is said.
    ///
    /// # Panics
    /// As [`Self::with`], and where nothing may be skipped.
    pub fn bounded() -> Option<Self> {
        let arena = Self::with(Containment::Cgroup);
        if arena.boundary().is_none() {
            needs::skip_as_user("no cgroup directory can be made here");
            return None;
        }
        Some(arena)
    }

    /// Opens an arena. This process becomes a child subreaper, so that nothing started in it can get away.
    ///
    /// # Panics
    /// When there is no temporary directory, or the kernel knows no subreapers.
    #[must_use]
    pub fn with(containment: Containment) -> Self {
        let alone = ONLY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        set_subreaper(true);
        let dir =
            tempfile::Builder::new().prefix("lt-").tempdir().expect("the temporary directory is writable");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("the directory is ours");
        for (name, mode) in
            [("home", 0o755), ("tmp", 0o1777), ("runtime", 0o700), ("work", 0o755), ("out", 0o755)]
        {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("the arena is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("the directory is ours");
        }
        let token = format!("{TOKEN}={}", dir.path().display());
        let name = dir.path().file_name().and_then(OsStr::to_str).unwrap_or("lt").to_owned();
        let boundary = if containment == Containment::Lineage { None } else { Boundary::new(&name) };
        Self {
            dir,
            token,
            ports: Vec::new(),
            captures: Cell::new(0),
            containment,
            boundary,
            is_finished: false,
            _alone: alone,
        }
    }

    /// Returns the arena's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the arena's cgroup, in which lariat makes those of its services; `None` where the tests may have none.
    #[must_use]
    pub fn boundary(&self) -> Option<&Boundary> {
        self.boundary.as_ref()
    }

    /// Returns whether commands are to be isolated by a pid namespace.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        self.containment == Containment::Namespace
    }

    /// Returns what `lariat run` is told for that.
    #[must_use]
    pub fn isolation_flags(&self) -> &'static [&'static str] {
        if self.is_isolated() { &["--isolate"] } else { &[] }
    }

    /// Returns the line that a service in `lariat.toml` has for that.
    #[must_use]
    pub fn isolation_key(&self) -> &'static str {
        if self.is_isolated() { "isolation = 'pid'\n" } else { "" }
    }

    /// Returns the directory in which programs start: empty, on the arena's temporary file system.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Returns `NAME=value` of the token, as it stands in the environment of everything started here.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Writes a file below [`Arena::work`] and returns its path. Missing directories are made.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.work().join(name);
        let parent = path.parent().expect("it is below the arena");
        fs::create_dir_all(parent).and_then(|()| fs::write(&path, text)).expect("the arena is writable");
        path
    }

    /// Writes an executable script below [`Arena::work`] and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.write(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        path
    }

    /// Opens a directory for facts.
    #[must_use]
    pub fn facts(&self, name: &str) -> Facts {
        Facts::new(self.dir.path().join(format!("facts-{name}")))
    }

    /// Claims a port that has to be free again at the end.
    pub fn port(&mut self) -> u16 {
        let port = Port::claim();
        let number = port.number;
        self.ports.push(port);
        number
    }

    /// Prepares a program: started in [`Arena::work`], its environment cleared but for `PATH`, `HOME`, `TMPDIR`, the
    /// XDG directories (all inside the arena), a plain locale and the token.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let number = self.captures.get();
        self.captures.set(number + 1);
        let capture = self.dir.path().join("out").join(number.to_string());
        Command::new(program.as_ref(), &self.environment(), &capture).dir(self.work())
    }

    /// Returns the environment of everything started here.
    #[must_use]
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let dir = self.dir.path();
        let (_, value) = self.token.split_once('=').expect("the token is NAME=value");
        let places = [
            ("HOME", dir.join("home")),
            ("TMPDIR", dir.join("tmp")),
            ("XDG_RUNTIME_DIR", dir.join("runtime")),
            ("XDG_STATE_HOME", dir.join("home/.local/state")),
            ("XDG_CONFIG_HOME", dir.join("home/.config")),
            ("XDG_CACHE_HOME", dir.join("home/.cache")),
        ];
        let texts = [
            ("PATH", needs::SEARCH),
            ("LANG", "C.UTF-8"),
            ("TERM", "xterm"),
            ("LARIAT_CONTAINMENT", self.containment.name()),
            (TOKEN, value),
        ];
        let boundary = self.boundary.as_ref().map(|boundary| ("LARIAT_CGROUP", boundary.path().to_owned()));
        let places = places
            .into_iter()
            .chain(boundary)
            .map(|(name, path)| (OsString::from(name), path.into_os_string()));
        places.chain(texts.map(|(name, text)| (name.into(), text.into()))).collect()
    }

    /// Returns everybody who is alive and was started here, by all three ways of the census. It comes back empty only
    /// if the kernel says that this process has no descendants (or none of them holds still for ten seconds).
    #[must_use]
    pub fn alive(&self) -> Vec<Seen> {
        let found = wait_at_most(STORM, || {
            let proof = reaper::reap();
            let mut found = census::everybody(own_pid(), &self.token);
            found.retain(Seen::is_alive);
            (proof == Proof::Empty || !found.is_empty()).then_some(found)
        });
        found.unwrap_or_default()
    }

    /// Waits until nobody who was started here is alive; for endings after which nobody is there to say so.
    ///
    /// # Panics
    /// When somebody is alive after `patience`; the message names them.
    #[track_caller]
    pub fn wait_until_empty(&self, patience: Duration) {
        if wait_at_most(patience, || self.alive().is_empty().then_some(())).is_none() {
            let names: Vec<String> = self.alive().iter().map(ToString::to_string).collect();
            panic!("still alive after {patience:?}:\n  {}", names.join("\n  "));
        }
    }

    /// Waits until the kernel says that nobody who was started here is there (ECHILD), which is cheaper than a census and
    /// proves as much. Returns who is alive after `patience`.
    #[must_use]
    pub fn left_after(&self, patience: Duration) -> Vec<Seen> {
        let proof = wait_at_most(patience, || (reaper::reap() == Proof::Empty).then_some(()));
        if proof.is_some() { Vec::new() } else { self.alive() }
    }

    /// Kills everybody who was started here, for a test that has seen enough.
    pub fn clear(&self) {
        self.kill_everybody();
    }

    /// Takes down what is left, kills it, and frees the arena for the next test.
    pub fn check(&mut self) -> Leaks {
        let processes = self.alive();
        let is_unproven = processes.is_empty() && reaper::reap() == Proof::Alive;
        // A port is held by somebody; the census above comes first so that the holder is named.
        let ports = self.ports.iter().map(|port| port.number).filter(|port| !net::is_free(*port)).collect();
        self.kill_everybody();
        self.is_finished = true;
        Leaks { processes, ports, is_unproven }
    }

    /// Ends the arena.
    ///
    /// # Panics
    /// When anything that was started in it is alive or a port of it is not free. What was alive has been killed.
    #[track_caller]
    pub fn finish(mut self) {
        let leaks = self.check();
        assert!(leaks.is_empty(), "{leaks}");
    }

    /// Returns whether we are given pid namespaces here, by another program's word; says that the test is skipped
    /// otherwise.
    ///
    /// # Panics
    /// As [`needs::skip`].
    #[track_caller]
    pub fn has_pid_namespaces(&self) -> bool {
        let Some(unshare) = needs::program("unshare") else { return false };
        let user: &[&str] = if is_root() { &[] } else { &["-U", "--map-root-user"] };
        let ending = self.command(unshare).args(user).args(["-fp", "--mount-proc", "true"]).run();
        if ending.code() != Some(0) {
            needs::skip(&format!("no pid namespaces: {}", ending.err()));
        }
        ending.code() == Some(0)
    }

    fn kill_everybody(&self) {
        let _ = wait_at_most(CLEANING, || {
            let left = self.alive();
            left.iter().for_each(Seen::kill);
            (left.is_empty() && reaper::reap() == Proof::Empty).then_some(())
        });
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        let leaks = self.check();
        if leaks.is_empty() {
            return;
        }
        // A test that fails already keeps its own message: a second panic would abort and hide both.
        assert!(std::thread::panicking(), "{leaks}");
        report(&leaks);
    }
}

fn report(leaks: &Leaks) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "besides: {leaks}");
}

/// Returns this process's number.
fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Makes this process adopt its orphaned descendants, or stop doing so.
///
/// # Panics
/// When the kernel refuses.
pub fn set_subreaper(is_on: bool) {
    let who = is_on.then(rustix::process::getpid);
    rustix::process::set_child_subreaper(who).expect("the kernel knows child subreapers");
}

/// Returns whether the tests run as root: some programs then need a user of their own, and only root can give it.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
