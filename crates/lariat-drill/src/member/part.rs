//! How one process of a hostile tree lives: what it tells the judge, and what it does about signals until it ends.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lariat_sys::signal::{self, Signal, SignalSet};
use lariat_sys::unusual::{self, Birth};
use lariat_sys::{process, reap};
use rustix::time::{ClockId, clock_gettime};

/// The signals that ask a process to end.
pub(super) const POLITE: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];
/// The judge's word for "leave by yourself now".
pub(crate) const LEAVE: Signal = Signal::USR1;
/// The judge's word for "crash now".
pub(crate) const CRASH: Signal = Signal::USR2;
/// What a leader exits with when it leaves by itself.
const LEAVING_CODE: u8 = 7;
/// The exit code of a member that could not become what it should be.
const BROKEN: u8 = 70;

/// What a process does about the polite signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Works for a moment, says that it was allowed to, exits.
    Graceful,
    /// Ignores them.
    Stubborn,
}

/// One process's part.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// What it is to become.
    pub(super) role: String,
    /// The judge's socket.
    pub(super) judge: PathBuf,
    /// The judge's number, which nobody attacks.
    pub(super) judge_pid: i32,
    /// The inode of the judge's pid namespace; 0 where it could not be read.
    judge_namespace: u64,
    /// When it ends by itself, in milliseconds of CLOCK_MONOTONIC.
    until: u64,
    pub(super) manner: Manner,
    /// How long it works when it is graceful.
    work: Duration,
    /// A directory of the cell's own.
    pub(super) dir: PathBuf,
    /// Whatever else this role needs.
    pub(super) rest: Vec<OsString>,
}

/// Returns the milliseconds of CLOCK_MONOTONIC, which mean the same in all processes.
pub(crate) fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Returns the inode of the caller's pid namespace.
fn pid_namespace() -> Option<u64> {
    std::fs::metadata("/proc/self/ns/pid").ok().map(|found| found.ino())
}

impl Part {
    /// Makes a part that the judge hands out.
    pub(crate) fn new(role: &str, judge: PathBuf, until: u64, manner: Manner, dir: PathBuf) -> Self {
        let (judge_pid, judge_namespace) = (process::pid(), pid_namespace().unwrap_or_default());
        let (work, rest) = (Duration::from_millis(30), Vec::new());
        Self { role: role.to_owned(), judge, judge_pid, judge_namespace, until, manner, work, dir, rest }
    }

    /// Returns the same part in another role.
    pub(crate) fn as_role(&self, role: &str, rest: Vec<OsString>) -> Self {
        Self { role: role.to_owned(), rest, ..self.clone() }
    }

    /// Returns the same part, deaf to the polite signals.
    pub(super) fn stubborn(&self) -> Self {
        Self { manner: Manner::Stubborn, ..self.clone() }
    }

    /// Returns the arguments that [`Self::parse`] reads.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let manner = if self.manner == Manner::Stubborn { "stubborn" } else { "graceful" };
        let mut words: Vec<OsString> = vec![super::MEMBER_ARG.into(), self.role.clone().into()];
        words.push(self.judge.clone().into());
        words.extend([self.judge_pid.to_string().into(), self.judge_namespace.to_string().into()]);
        words.extend([self.until.to_string().into(), manner.into()]);
        words.extend([self.work.as_millis().to_string().into(), self.dir.clone().into()]);
        words.extend(self.rest.iter().cloned());
        words
    }

    /// Reads what follows [`super::MEMBER_ARG`].
    pub(super) fn parse(mut words: impl Iterator<Item = OsString>) -> Option<Self> {
        let number = |word: OsString| word.to_str()?.parse::<u64>().ok();
        Some(Self {
            role: words.next()?.into_string().ok()?,
            judge: words.next()?.into(),
            judge_pid: i32::try_from(number(words.next()?)?).ok()?,
            judge_namespace: number(words.next()?)?,
            until: number(words.next()?)?,
            manner: if words.next()?.as_bytes() == b"stubborn" { Manner::Stubborn } else { Manner::Graceful },
            work: Duration::from_millis(number(words.next()?)?),
            dir: words.next()?.into(),
            rest: words.collect(),
        })
    }

    /// Says whether this process is in another pid namespace than the judge. Such a one was made in the cell: everybody
    /// here descends from the judge, who has never changed its own. Its first process is of the cell as well, then.
    pub(super) fn is_in_own_namespace(&self) -> bool {
        pid_namespace().is_some_and(|own| ![0, own].contains(&self.judge_namespace))
    }

    /// Returns the first process of somebody else's pid namespace, where the judge has one and it can be named here.
    pub(super) fn neighbour(&self) -> Option<i32> {
        let named = std::fs::read_to_string(self.dir.join(crate::cell::NEIGHBOUR_FILE)).ok()?;
        named.parse().ok().filter(|_| !self.is_in_own_namespace())
    }

    /// Returns how long it has to live.
    pub(super) fn time_left(&self) -> Duration {
        Duration::from_millis(self.until.saturating_sub(monotonic_ms()).max(1))
    }

    /// Arms the timer that ends this process, whatever it will do. Exits where there is none.
    pub(super) fn arm(&self) {
        if unusual::die_after(self.time_left()).is_err() {
            process::exit_now(BROKEN);
        }
    }

    /// Tells the judge something. A judge that is gone is nobody's loss.
    pub(super) fn say(&self, text: &str) {
        if let Ok(socket) = UnixDatagram::unbound() {
            // The kernel says who has sent it, so nobody can speak for another one.
            let _ = socket.send_to(text.as_bytes(), &self.judge);
        }
    }

    /// Says that this machine cannot build the tree, and why.
    pub(super) fn skip(&self, why: &str) -> ! {
        self.say(&format!("skip {why}"));
        process::exit_now(0)
    }

    /// Ends because it could not become what it should be.
    pub(super) fn broken(&self, what: &str, why: impl std::fmt::Display) -> ! {
        self.say(&format!("broken could not {what}: {why}"));
        process::exit_now(BROKEN)
    }

    /// Copies this process; the child's own timer is armed. `None` in the child.
    pub(super) fn fork(&self, birth: Birth) -> Option<i32> {
        match unusual::fork(birth) {
            Ok(None) => {
                self.arm();
                None
            }
            Ok(child) => child,
            // The limit of processes is a limit of the storm, not a fault of the tree.
            Err(lariat_sys::Errno::AGAIN) => Some(0),
            Err(errno) => self.broken("fork", errno),
        }
    }

    /// Starts a child that does this and never returns from it.
    pub(super) fn child(&self, body: impl FnOnce()) -> i32 {
        match self.fork(Birth::Usual) {
            None => {
                body();
                process::exit_now(0)
            }
            Some(child) => child,
        }
    }

    /// Forks twice, so that `body` runs in a session of its own and its parent is gone.
    pub(super) fn daemon(&self, body: impl FnOnce()) {
        let between = self.child(|| {
            self.new_session();
            self.child(body);
        });
        self.wait_end(between);
    }

    /// Leads a session of its own.
    pub(super) fn new_session(&self) {
        if let Err(errno) = process::setsid() {
            self.broken("start a session", errno);
        }
    }

    /// Waits until a child has ended, and collects it.
    pub(super) fn wait_end(&self, child: i32) {
        signal::block(SignalSet::empty().with(Signal::CHLD));
        while let Ok(None) = reap::reap(child) {
            // A signal that came before is still pending; one that was merged costs a moment.
            signal::wait(
                SignalSet::empty().with(Signal::CHLD),
                Some(Instant::now() + Duration::from_millis(5)),
            );
        }
    }

    /// Waits until a child has stopped.
    pub(super) fn wait_stop(&self, child: i32) {
        let chld = SignalSet::empty().with(Signal::CHLD);
        signal::block(chld);
        while let Ok(None) = reap::peek_stops(child) {
            signal::wait(chld, Some(Instant::now() + Duration::from_millis(5)));
        }
    }

    /// Sets the signals up as the manner says and tells the judge that this process stands, under this name.
    pub(super) fn stand(&self, name: &str) {
        self.prepare();
        let manner = if self.manner == Manner::Graceful { "graceful" } else { "stubborn" };
        self.say(&format!("born {name} {manner}"));
    }

    /// As [`Self::stand`], for one that promises nothing about its end.
    pub(super) fn stand_wild(&self, name: &str) {
        self.say(&format!("born {name} wild"));
    }

    /// Sets the signals up as the manner says.
    pub(super) fn prepare(&self) {
        for signal in POLITE {
            let set = match self.manner {
                Manner::Stubborn => signal::set_ignored(signal),
                Manner::Graceful => signal::set_default(signal),
            };
            if let Err(errno) = set {
                self.broken("set a signal", errno);
            }
        }
        signal::set_mask(self.waited_for());
    }

    fn waited_for(&self) -> SignalSet {
        let own = SignalSet::empty().with(LEAVE).with(CRASH);
        match self.manner {
            Manner::Graceful => POLITE.into_iter().fold(own, SignalSet::with),
            Manner::Stubborn => own,
        }
    }

    /// Does nothing more, and is nobody's member.
    pub(super) fn rest_until_the_end(&self) -> ! {
        loop {
            signal::wait(SignalSet::empty(), None);
        }
    }

    /// Lives until a signal ends it.
    pub(super) fn live(&self, name: &str) -> ! {
        loop {
            match signal::wait(self.waited_for(), None) {
                Some(LEAVE) => process::exit_now(LEAVING_CODE),
                Some(CRASH) => signal::raise_to_death(Signal::SEGV),
                Some(told) => self.end_gracefully(name, told),
                None => {}
            }
        }
    }

    fn end_gracefully(&self, name: &str, first: Signal) -> ! {
        self.say(&format!("told {name} {first}"));
        let done_at = Instant::now() + self.work;
        while let Some(again) = signal::wait(self.waited_for(), Some(done_at)) {
            self.say(&format!("told {name} {again}"));
        }
        self.say(&format!("clean {name}"));
        process::exit_now(0)
    }

    /// Stands and lives: a whole life.
    pub(super) fn member(&self, name: &str) -> ! {
        self.stand(name);
        self.live(name)
    }

    /// The life of the leader, once everybody else was started: `others` say that they stand besides.
    pub(super) fn lead(&self, others: usize) -> ! {
        self.say(&format!("expect {}", others + 1));
        self.member("leader")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part() -> Part {
        Part::new("alone", "/judge".into(), 12, Manner::Stubborn, "/cell".into())
    }

    #[test]
    fn a_part_comes_through_the_arguments() {
        let handed_out = part().as_role("caller", vec!["lariat".into(), "run".into()]);
        let parsed = Part::parse(handed_out.arguments().into_iter().skip(1)).unwrap();
        assert_eq!(parsed.arguments(), handed_out.arguments());
        assert_eq!((parsed.judge_pid, parsed.judge_namespace), (process::pid(), pid_namespace().unwrap()));
    }

    #[test]
    fn only_another_namespace_than_the_judges_was_made_in_the_cell() {
        let seen_from = |judge_namespace| Part { judge_namespace, ..part() }.is_in_own_namespace();
        let own = pid_namespace().unwrap();
        assert!(!part().is_in_own_namespace() && !seen_from(own));
        assert!(seen_from(own + 1));
        assert!(!seen_from(0), "where nobody knows, nobody is attacked");
    }
}
