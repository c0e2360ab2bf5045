//! The judge of one cell: builds the tree under lariat, ends lariat, watches until nobody is alive, and says what was
//! not kept.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::identity::Identity;
use lariat_sys::poll::{PollFd, PollFlags, poll};
use lariat_sys::procfs;
use lariat_sys::signal::{self, Signal, SignalFd, SignalSet};
use lariat_sys::spawn::{self, Program, SpawnOptions};
use lariat_sys::{files, process, unusual};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::act::{self, Actor, Cast};
use crate::census;
use crate::endings::Ending;
use crate::hall::Hall;
use crate::member::{Manner, Part, monotonic_ms};
use crate::promise::{Containment, Grace, Promise, Survivors, promise_for};
use crate::stage::{Stage, Subject};
use crate::trees::{Attack, Tree};
use crate::verdict::Verdict;

mod watch;

/// How long a tree may take to stand.
const STANDS_WITHIN: Duration = Duration::from_secs(25);
/// The grace period of trees that end when they are told: long, so that nobody is killed by its end.
const GRACE_LONG: &str = "8s";
/// The grace period of the others: it has to run out.
const GRACE_SHORT: &str = "300ms";
/// How long everything may take to be gone: the longest grace period, all the time for killing, and some.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// How long members of a cell live at most, by their own timers.
const LIVES_WITHIN: Duration = Duration::from_secs(100);
/// How often everything is looked at although nothing was heard: a process that was stopped is heard of by nobody.
const LOOKS_EVERY: Duration = Duration::from_millis(250);
/// The file in a cell's directory that names the first process of somebody else's pid namespace.
pub(crate) const NEIGHBOUR_FILE: &str = "neighbour";

/// What is to be judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) number: usize,
    pub(crate) containment: Containment,
    pub(crate) tree: &'static Tree,
    pub(crate) ending: Ending,
    pub(crate) seed: u64,
}

impl Spec {
    pub(crate) fn verdict(&self) -> Verdict {
        Verdict {
            containment: self.containment.name().to_owned(),
            tree: self.tree.name.to_owned(),
            ending: self.ending.fact().name.to_owned(),
            seed: self.seed,
            ..Verdict::default()
        }
    }

    /// Returns the marker of the cell.
    pub(crate) fn marker(&self, stage: &Stage) -> String {
        format!("{}-{}", stage.token(), self.number)
    }

    /// Returns why there is nothing to judge here, as far as the tables know.
    pub(crate) fn does_not_apply(&self) -> Option<String> {
        if self.ending.asks_the_leader() && !self.tree.leader_obeys {
            return Some("the leader of this tree cannot".to_owned());
        }
        if self.tree.attack == Attack::Holds && self.ending.hurries() {
            return Some("lariat leaves before it has given its held keeper up".to_owned());
        }
        (self.ending.is_of_stack() && !self.tree.is_for_stacks)
            .then(|| "this tree is not run as a stack".to_owned())
    }

    fn promise(&self) -> Promise {
        promise_for(self.containment, self.ending, self.tree)
    }

    fn grace(&self) -> &'static str {
        match self.ending.hurries() {
            // Who takes lariat away before its second signal is met by the end of the grace period.
            true if self.tree.attack == Attack::None => "10m",
            true => GRACE_SHORT,
            false if self.tree.is_cooperative => GRACE_LONG,
            false => GRACE_SHORT,
        }
    }

    fn manner(&self) -> Manner {
        // Only who ignores the first signal is there at the second.
        if self.ending.hurries() { Manner::Stubborn } else { Manner::Graceful }
    }
}

/// A failure of the drill's own.
type Trouble = String;

/// Judges one cell. The process must be the cell's own, with one thread; afterwards nothing of the cell is left.
pub(crate) fn judge(spec: &Spec, stage: &Stage, subject: &Subject) -> Verdict {
    let mut verdict = spec.verdict();
    match Judge::open(spec, stage, subject) {
        Ok(mut judge) => {
            if let Err(trouble) = judge.run(&mut verdict) {
                verdict.trouble = Some(trouble);
            }
            judge.close(&mut verdict);
        }
        Err(trouble) => verdict.trouble = Some(trouble),
    }
    verdict
}

struct Judge<'a> {
    spec: &'a Spec,
    subject: &'a Subject,
    marker: String,
    dir: PathBuf,
    env: Vec<CString>,
    hall: Hall,
    children: SignalFd,
    cast: Option<Cast>,
    terminal: Option<OwnedFd>,
    /// Children of ours that are no members, with the namespace that they have made.
    neighbours: Vec<i32>,
}

impl<'a> Judge<'a> {
    fn open(spec: &'a Spec, stage: &Stage, subject: &'a Subject) -> Result<Self, Trouble> {
        let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let own = |what: &'static str| move |errno: lariat_sys::Errno| format!("{what}: {errno}");
        // A session of its own is a scheduling group of its own: a storm cannot starve the judge.
        process::setsid().map_err(own("starting a session"))?;
        process::set_subreaper(true).map_err(own("becoming a subreaper"))?;
        unusual::die_after(LIVES_WITHIN + GONE_WITHIN).map_err(own("arming the timer"))?;
        signal::set_mask(SignalSet::full());
        let cgroup = stage.enter_cgroup(spec.number).map_err(own("entering the cell's cgroup"))?;
        let children =
            SignalFd::new(SignalSet::empty().with(Signal::CHLD)).map_err(own("hearing of children"))?;
        let dir = stage.cell(spec.number).map_err(failed("making the cell's directory"))?;
        let hall = Hall::open(&dir.join("judge")).map_err(failed("opening the judge's socket"))?;
        let marker = spec.marker(stage);
        let env = stage.environment(&dir, &marker, spec.containment, cgroup, subject);
        let (cast, terminal, neighbours) = (None, None, Vec::new());
        Ok(Self { spec, subject, marker, dir, env, hall, children, cast, terminal, neighbours })
    }

    fn run(&mut self, verdict: &mut Verdict) -> Result<(), Trouble> {
        let first = self.start()?;
        if let Some(why) = self.wait_until_it_stands(first)? {
            verdict.skipped = Some(why);
            return Ok(());
        }
        let mut cast = self.find_cast(first)?;
        // Storms and restarts are met at another moment each time; the seed says which.
        signal::wait(
            SignalSet::empty(),
            Some(Instant::now() + Duration::from_micros(self.spec.seed % 16 * 700)),
        );
        self.hall.listen();
        let taken_along = self.taken_along(&cast);
        let began = Instant::now();
        let down = (self.spec.ending == Ending::Down).then(|| self.lariat(&["down"])).transpose()?;
        let later = act::bring_about(self.spec.ending, &mut cast);
        self.cast = Some(cast);
        match self.spec.promise().survivors {
            Survivors::None => self.watch(later, began, down, verdict),
            Survivors::UntilSweep => self.watch_sweep(later, began, verdict)?,
        }
        self.look_at_ports(verdict);
        self.look_at_grace(&taken_along, verdict);
        Ok(())
    }

    /// Starts lariat with the tree. Returns the first process: the subject, or its caller.
    fn start(&mut self) -> Result<i32, Trouble> {
        let until = monotonic_ms() + u64::try_from(LIVES_WITHIN.as_millis()).unwrap_or(u64::MAX);
        let part = Part::new(
            self.spec.tree.name,
            self.dir.join("judge"),
            until,
            self.spec.manner(),
            self.dir.clone(),
        );
        let mut member = vec![self.subject.members.clone().into_os_string()];
        member.extend(part.arguments());
        if self.spec.tree.has_neighbour {
            self.start_neighbour(&part)?;
        }
        let command = match self.spec.ending.is_of_stack() {
            true => self.stack_command(&member)?,
            false => self.run_command(&member),
        };
        let as_helper = |role: &str, rest: Vec<OsString>| {
            let mut words = vec![self.subject.members.clone().into_os_string()];
            words.extend(part.as_role(role, rest).arguments());
            words
        };
        let words = if self.spec.ending.has_caller() {
            as_helper("caller", command)
        } else if self.spec.ending.is_on_terminal() {
            let (master, name) = open_terminal()?;
            self.terminal = Some(master);
            as_helper("on-terminal", [vec![name.into_os_string()], command].concat())
        } else {
            command
        };
        self.spawn(words, &self.dir.join("project")).map(|child| child.pid)
    }

    /// Starts a process that is not lariat's, and waits until it has a pid namespace, or says that it may have none.
    fn start_neighbour(&mut self, part: &Part) -> Result<(), Trouble> {
        let mut words = vec![self.subject.members.clone().into_os_string()];
        words.extend(part.as_role("neighbour", Vec::new()).arguments());
        self.neighbours.push(self.spawn(words, Path::new("/"))?.pid);
        let deadline = Instant::now() + STANDS_WITHIN;
        while self.hall.neighbour.is_none() && self.hall.skip.is_none() && self.hall.broken.is_none() {
            if Instant::now() >= deadline {
                return Err("the neighbour does not stand".to_owned());
            }
            self.wait_for_something(deadline, None);
            self.hall.listen();
        }
        if let Some(first) = self.hall.neighbour {
            self.neighbours.push(first);
            std::fs::write(self.dir.join(NEIGHBOUR_FILE), first.to_string())
                .map_err(|error| format!("naming the neighbour: {error}"))?;
        }
        Ok(())
    }

    fn run_command(&self, member: &[OsString]) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![self.subject.program.clone().into(), "run".into()];
        words.extend(["--grace", self.spec.grace()].map(OsString::from));
        words.extend(self.spec.containment.option().map(OsString::from));
        match self.spec.ending {
            Ending::CallerKilled => words.push("--die-with-parent".into()),
            Ending::LifelineClosed | Ending::LifelineKilled => words.push("--lifeline".into()),
            _ => {}
        }
        words.push("--".into());
        words.extend(member.iter().cloned());
        words
    }

    fn stack_command(&self, member: &[OsString]) -> Result<Vec<OsString>, Trouble> {
        let quoted: Vec<String> = member.iter().map(|word| format!("{:?}", word.to_string_lossy())).collect();
        let isolation = self.spec.containment.key().unwrap_or_default();
        let text = format!(
            "[stack]\nname = \"drill\"\ndeadline = \"20s\"\n\n[service.tree]\nrun = [{}]\nstop = {{ grace = \"{}\" }}\n{isolation}\n",
            quoted.join(", "),
            self.spec.grace(),
        );
        let path = self.dir.join("project/lariat.toml");
        std::fs::write(&path, text).map_err(|error| format!("writing the stack: {error}"))?;
        Ok(vec![self.subject.program.clone().into(), "up".into()])
    }

    /// Starts lariat with these arguments in the cell's project.
    fn lariat(&self, arguments: &[&str]) -> Result<spawn::Child, Trouble> {
        let mut words = vec![self.subject.program.clone().into_os_string()];
        words.extend(arguments.iter().map(OsString::from));
        self.spawn(words, &self.dir.join("project"))
    }

    fn spawn(&self, words: Vec<OsString>, dir: &Path) -> Result<spawn::Child, Trouble> {
        let c = |word: OsString| CString::new(word.into_vec()).unwrap_or_default();
        let null = files::dev_null().map_err(|errno| format!("opening /dev/null: {errno}"))?;
        let output = File::options().create(true).append(true).open(self.dir.join("output"));
        let output = output.map_err(|error| format!("opening the output: {error}"))?;
        let program = Program {
            argv: words.into_iter().map(c).collect(),
            env: self.env.clone(),
            dir: Some(c(dir.as_os_str().to_owned())),
            search_path: true,
            ..Program::default()
        };
        let options = SpawnOptions {
            new_session: true,
            fds: vec![(null.as_raw_fd(), 0), (output.as_raw_fd(), 1), (output.as_raw_fd(), 2)],
            close_others: true,
            ..SpawnOptions::default()
        };
        spawn::spawn(&program, &options).map_err(|error| format!("starting the subject: {error}"))
    }

    /// Waits until every member stands. Returns why this machine cannot build the tree, if it cannot.
    fn wait_until_it_stands(&mut self, first: i32) -> Result<Option<String>, Trouble> {
        let deadline = Instant::now() + STANDS_WITHIN;
        let first = Actor::find(first).map_err(|errno| format!("the subject ended at once: {errno}"))?;
        loop {
            self.hall.listen();
            if let Some(why) = self.hall.skip.take() {
                return Ok(Some(why));
            }
            if let Some(why) = self.hall.broken.take() {
                return Err(format!("a member {why}"));
            }
            let is_told = !self.spec.ending.has_caller() || self.hall.subject.is_some();
            if self.hall.is_complete() && self.hall.leader().is_some() && is_told {
                return Ok(None);
            }
            if first.has_ended() {
                return Err(format!("the subject ended before the tree stood; it says: {}", self.output()));
            }
            if Instant::now() >= deadline {
                let progress = self.hall.progress();
                return Err(format!("the tree does not stand: {progress}; it says: {}", self.output()));
            }
            self.wait_for_something(deadline, None);
        }
    }

    fn find_cast(&mut self, first: i32) -> Result<Cast, Trouble> {
        let gone = |what: &'static str| move |errno: lariat_sys::Errno| format!("{what} is gone: {errno}");
        let leader = self.hall.leader().ok_or("there is no leader")?;
        let leader = Actor::find(leader.pid).map_err(gone("the leader"))?;
        let subject = self.hall.subject.unwrap_or(first);
        let subject = Actor::find(subject).map_err(gone("the subject"))?;
        let caller = if self.spec.ending.has_caller() {
            Some(Actor::find(first).map_err(gone("the caller"))?)
        } else {
            None
        };
        let keepers = Cast::keepers(leader.identity, subject.identity);
        Ok(Cast { leader, subject, keepers, caller, terminal: self.terminal.take() })
    }

    /// Returns who shares the group that the ending kills, or the terminal's session that goes with it.
    fn taken_along(&self, cast: &Cast) -> Vec<Identity> {
        let Ok(Some(subject)) = procfs::read_stat(cast.subject.identity.pid) else { return Vec::new() };
        let in_group = |identity: &Identity| matches!(procfs::read_stat(identity.pid), Ok(Some(stat)) if stat.pgrp == subject.pgrp);
        match self.spec.promise().grace {
            Grace::OutsideTheGroup => {
                self.hall.members.iter().map(|member| member.identity).filter(in_group).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Blocks until a child ended, a word or output came, somebody of the cast ended, or the deadline.
    fn wait_for_something(&mut self, deadline: Instant, watched: Option<&spawn::Child>) {
        let mut fds =
            vec![PollFd::new(&self.children, PollFlags::IN), PollFd::new(&self.hall, PollFlags::IN)];
        if let Some(cast) = &self.cast {
            if !cast.subject.has_ended() {
                fds.push(PollFd::new(cast.subject.pidfd(), PollFlags::IN));
            }
            fds.extend(cast.terminal.as_ref().map(|terminal| PollFd::new(terminal, PollFlags::IN)));
        }
        fds.extend(self.terminal.as_ref().map(|terminal| PollFd::new(terminal, PollFlags::IN)));
        fds.extend(watched.map(|child| PollFd::new(&child.pidfd, PollFlags::IN)));
        let deadline = deadline.min(Instant::now() + LOOKS_EVERY);
        // A wait that fails is as good as one that ended: everything is looked at again.
        let _ = poll(&mut fds, Some(deadline));
        drop(fds);
        while let Ok(Some(_)) = self.children.read() {}
        let held = self.cast.as_ref().and_then(|cast| cast.terminal.as_ref()).or(self.terminal.as_ref());
        let mut seen = [0; 4096];
        while held.is_some_and(|terminal| matches!(files::read(terminal, &mut seen), Ok(1..))) {}
    }

    fn excepted(&self) -> Vec<i32> {
        let caller = self.cast.as_ref().and_then(|cast| cast.caller.as_ref());
        let caller = caller.filter(|caller| !caller.has_ended()).map(|caller| caller.identity.pid);
        caller.into_iter().chain(self.neighbours.iter().copied()).collect()
    }

    /// Says whether the kernel says that nobody is below the judge. A walk that finds nobody would prove nothing: who is
    /// handed on while it is made is missed.
    fn is_deserted(&self) -> bool {
        if let (Some(cast), true) = (&self.cast, self.has_subject_ended()) {
            // Whoever held the lifeline has done its part.
            act::dismiss(cast);
        }
        let is_childless = census::reap_all();
        // Where a neighbour goes on living, the kernel does not say it, and a tree that has one forks no more.
        if self.neighbours.is_empty() { is_childless } else { self.everybody().is_empty() }
    }

    fn has_subject_ended(&self) -> bool {
        self.cast.as_ref().is_none_or(|cast| cast.subject.has_ended())
    }

    /// Returns the end of what the subject has said.
    fn output(&self) -> String {
        let text = std::fs::read(self.dir.join("output")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(6).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// Ends what is left, and removes the cell's directory.
    fn close(mut self, verdict: &mut Verdict) {
        if let Some(cast) = self.cast.take() {
            act::dismiss(&cast);
        }
        let members: Vec<Identity> = self.hall.members.iter().map(|member| member.identity).collect();
        if !census::end_everybody(&members, &self.marker, &[]) {
            verdict.notes.push("what is left could not be killed; it ends by its own timers".to_owned());
        }
        // It is a temporary directory; what stays of it goes with the drill's.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn open_terminal() -> Result<(OwnedFd, PathBuf), Trouble> {
    let opened = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).and_then(|master| {
        grantpt(&master)?;
        unlockpt(&master)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let name = ptsname(&master, Vec::new())?;
        Ok((master, PathBuf::from(OsString::from_vec(name.into_bytes()))))
    });
    opened.map_err(|errno| format!("opening a terminal: {errno}"))
}
