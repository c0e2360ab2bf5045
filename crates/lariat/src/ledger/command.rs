//! The record of a run that has no project: one command of `lariat run`.
//!
//! One small file in the user's runtime directory, without fsync: it is about processes, and does not have to survive a
//! boot. Its first line is the record, written before there is anybody whom it could lead to; when the command has
//! started, a second line says who has come. The file is removed by whoever sees the end; what is left of it after a
//! crash of both says where to look.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lariat_keeper::contain::choose;
use lariat_keeper::stop::StopPlan;
use lariat_sys::identity::{BootId, Identity};
use lariat_sys::process;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::index::{RuntimeDir, UserDirs, error};
use super::record::{LeftRecord, ProcessRecord, RunId, StopRecord, pid_namespace};
use super::recover::{Clues, LeaderClue, place};
use super::{LedgerError, open_plain, read_limited};
use crate::clock;

/// The version of the format that this lariat writes.
pub const COMMAND_RECORD_VERSION: u32 = 1;

/// What is on disk of a run without a project. Values of the environment are never recorded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommandRecord {
    /// [`COMMAND_RECORD_VERSION`] of whoever wrote it.
    pub version: u32,
    /// The run.
    pub run: RunId,
    /// The run whose id the processes carry in `LARIAT_RUN`: this one, or the one around it.
    pub marker: RunId,
    /// The kernel's boot id, as text: identities mean nothing in another boot.
    pub boot: String,
    /// The process that decides.
    pub supervisor: ProcessRecord,
    /// Its keeper; `None` until the command has started.
    #[serde(default)]
    pub keeper: Option<ProcessRecord>,
    /// The command itself; `None` until it has started.
    #[serde(default)]
    pub leader: Option<ProcessRecord>,
    /// The command's session: its own, or the shell's that lariat was started from.
    #[serde(default)]
    pub session: Option<i32>,
    /// The command's process group: its own, or the one that lariat is in.
    #[serde(default)]
    pub pgrp: Option<i32>,
    /// The inode of the pid namespace, outside of which the numbers mean something else.
    #[serde(default)]
    pub pid_namespace: Option<u64>,
    /// The cgroup directory in which the command's own was made, if it has one.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// How it is stopped, for whoever has to do it after a crash.
    #[serde(default)]
    pub stop: Option<StopRecord>,
    /// Who could not be ended after a crash.
    #[serde(default)]
    pub left: Vec<LeftRecord>,
    /// What was executed; what is not UTF-8 is shown with U+FFFD.
    pub command: Vec<String>,
    /// Where.
    pub dir: PathBuf,
    /// When, in milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
}

/// Who has come to a run without a project by its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cast {
    /// The keeper.
    pub keeper: Identity,
    /// The command itself.
    pub leader: Identity,
    /// The command leads a session and a process group of its own.
    pub has_session: bool,
}

/// The cast on disk: the second line of the file.
#[derive(Serialize, Deserialize)]
struct CastLine {
    keeper: ProcessRecord,
    leader: ProcessRecord,
    session: Option<i32>,
    pgrp: Option<i32>,
}

/// A record that lacks its second line, and its file.
#[derive(Debug)]
pub struct OpenRecord {
    file: fs::File,
}

/// What a run without a project does, and where.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Place {
    /// What was executed.
    pub command: Vec<String>,
    /// The working directory.
    pub dir: PathBuf,
    /// The cgroup directory in which the command's own was made.
    pub cgroup: Option<PathBuf>,
}

/// What was found in place of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Loaded {
    /// The record.
    Record(Box<CommandRecord>),
    /// A file of a newer version that cannot be understood.
    Newer,
    /// It cannot be understood. The file's name says which run it was.
    Damaged(String),
}

/// A record's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandFile {
    /// The run, by the file's name.
    pub run: RunId,
    /// Where it is.
    pub path: PathBuf,
    /// What is in it.
    pub loaded: Loaded,
}

/// The largest record that is read, in bytes. A command line has 2 MiB at most, and all of it may need escapes.
const RECORD_BYTES_MAX: u64 = 16 << 20;
/// A record that cannot be understood and is younger than this may be in the middle of being written.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

/// Returns the records in a directory, ordered by run. What is no record by its name is left out, and so is one that is
/// gone before it is read.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(directory: &RuntimeDir) -> Result<Vec<CommandFile>, LedgerError> {
    let failed = |cause: io::Error| error("read", &directory.path, cause);
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory.path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
        let Some(run) = name.and_then(|name| RunId::try_from(name.to_owned()).ok()) else { continue };
        let Ok(file) = open_plain(&path) else { continue };
        let is_new = file.metadata().and_then(|found| found.modified()).is_ok_and(|at| {
            // A time in the future is no age.
            at.elapsed().is_ok_and(|age| age < WRITTEN_WITHIN)
        });
        let Ok(bytes) = read_limited(file, RECORD_BYTES_MAX) else { continue };
        let loaded = parse(&bytes, &run);
        if !(is_new && matches!(loaded, Loaded::Damaged(_))) {
            found.push(CommandFile { run, path, loaded });
        }
    }
    found.sort_by(|a, b| a.run.cmp(&b.run));
    Ok(found)
}

/// Makes a record of the bytes of a file. Pure; never panics, whatever the bytes.
#[must_use]
pub fn parse(bytes: &[u8], run: &RunId) -> Loaded {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    match serde_json::from_slice::<CommandRecord>(first) {
        Ok(mut record) if record.run == *run => {
            // Without a whole second line nobody is known to have come.
            if let Ok(CastLine { keeper, leader, session, pgrp }) = serde_json::from_slice(second) {
                record =
                    CommandRecord { keeper: Some(keeper), leader: Some(leader), session, pgrp, ..record };
            }
            Loaded::Record(Box::new(record))
        }
        Ok(record) => Loaded::Damaged(format!("it is of another run, {}", record.run)),
        Err(problem) => match serde_json::from_slice::<Versioned>(first) {
            Ok(Versioned { version }) if version > COMMAND_RECORD_VERSION => Loaded::Newer,
            _ => Loaded::Damaged(problem.to_string()),
        },
    }
}

impl CommandRecord {
    /// Makes clues of the record. The mark is one only where it is this run's own: that of a run around it is carried by
    /// all of that run.
    #[must_use]
    pub fn clues(&self, home: Option<&Path>) -> Clues {
        let leader = self.leader.map(|leader| LeaderClue {
            service: self.name(),
            leader: leader.into(),
            // In front of a terminal these are the shell's, and their other members strangers.
            has_own_session: self.session == Some(leader.pid),
            has_own_group: self.pgrp == Some(leader.pid),
            output: None,
        });
        Clues {
            has_mark: self.marker == self.run,
            boot: Some(self.boot.clone()),
            pid_namespace: self.pid_namespace,
            leaders: leader.into_iter().collect(),
            left: self.left.iter().map(LeftRecord::identity).collect(),
            spared: self.guards().collect(),
            began: Some(self.supervisor.start),
            // One that was made before the record says where it was is most likely where we would make it.
            cgroup_bases: self.cgroup.iter().cloned().chain(choose::own()).collect(),
            asks_locks: false,
            // Nearly everything of a person's is below home.
            place: place(&self.dir).filter(|dir| Some(dir.as_path()) != home),
            ..Clues::mark_only(self.run.clone())
        }
    }

    /// Returns its supervisor and its keeper, as far as they are known.
    pub fn guards(&self) -> impl Iterator<Item = Identity> {
        [Some(self.supervisor), self.keeper].into_iter().flatten().map(Identity::from)
    }

    /// Returns the name of the program.
    #[must_use]
    pub fn name(&self) -> String {
        let program = self.command.first().map(Path::new);
        program.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Puts this record in the place of the one in this file.
    ///
    /// # Errors
    /// When the file cannot be replaced.
    pub fn rewrite(&self, path: &Path) -> Result<(), LedgerError> {
        let new = path.with_extension("new");
        // What a crash left under this name is worthless.
        let _ = fs::remove_file(&new);
        let line = line(self).map_err(|cause| error("write", path, cause))?;
        place_whole(&new, &line).map_err(|cause| error("write", &new, cause))?;
        fs::rename(&new, path).map_err(|cause| error("rename", &new, cause))
    }
}

fn line(what: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(what).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

impl OpenRecord {
    /// Adds who has come.
    ///
    /// # Errors
    /// When the file cannot be written. The record is read as before then.
    pub fn complete(mut self, cast: Cast) -> io::Result<()> {
        let own = |other: Option<i32>| if cast.has_session { Some(cast.leader.pid) } else { other };
        let cast = CastLine {
            keeper: cast.keeper.into(),
            leader: cast.leader.into(),
            session: own(process::session()),
            pgrp: own(process::group()),
        };
        self.file.write_all(&line(&cast)?)
    }
}

impl AsFd for OpenRecord {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The place of one record, chosen before the command starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandLedger {
    run: RunId,
    marker: RunId,
    path: PathBuf,
}

impl CommandLedger {
    /// Chooses an id and a place. `marker` is the `LARIAT_RUN` that was there before, if any: the command goes on
    /// carrying that one, so that whoever ends the run around it finds everything.
    ///
    /// # Errors
    /// As [`UserDirs::command_record`], and when the kernel gives no random bytes. The command runs without a record.
    pub fn choose(dirs: &UserDirs, marker: Option<RunId>) -> Result<Self, LedgerError> {
        let run = RunId::new_random()
            .map_err(|errno| error("choose an id for", Path::new("the run"), errno.into()))?;
        let path = dirs.command_record(&run)?;
        Ok(Self { marker: marker.unwrap_or_else(|| run.clone()), run, path })
    }

    /// Returns the run's own id.
    #[must_use]
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// Returns the id that the command carries in `LARIAT_RUN`.
    #[must_use]
    pub fn marker(&self) -> &RunId {
        &self.marker
    }

    /// Returns where the record is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the record of a command that is about to be started, and returns what completes it.
    ///
    /// # Errors
    /// When the boot id cannot be read or the file not be written. The command goes on without a record.
    pub fn write(
        &self,
        supervisor: Identity,
        stop: StopPlan,
        place: Place,
    ) -> Result<OpenRecord, LedgerError> {
        let failed = |cause: io::Error| error("write", &self.path, cause);
        let record = CommandRecord {
            version: COMMAND_RECORD_VERSION,
            run: self.run.clone(),
            marker: self.marker.clone(),
            boot: BootId::read().map_err(|errno| failed(errno.into()))?.to_string(),
            supervisor: supervisor.into(),
            keeper: None,
            leader: None,
            session: None,
            pgrp: None,
            pid_namespace: pid_namespace(),
            stop: Some(StopRecord::new(stop.signal, stop.grace)),
            left: Vec::new(),
            // What is not UTF-8 cannot be written; a sweep still looks where it would make its own.
            cgroup: place.cgroup.filter(|path| path.to_str().is_some()),
            command: place.command,
            dir: place.dir,
            started_unix_ms: clock::unix_millis(),
        };
        let file = line(&record).and_then(|line| place_whole(&self.path, &line)).map_err(failed)?;
        Ok(OpenRecord { file })
    }

    /// Removes the record, if it is there. The directory stays.
    pub fn remove(&self) {
        // What cannot be removed names identities that are dead, which is all that it can do.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes a file that is there with all of its bytes or not at all, whenever we are killed, and returns it.
///
/// Without a name until it is whole (open(2), `O_TMPFILE`), so that nothing half-written is left under any name; on a
/// file system that knows no such files it is renamed into place.
pub(super) fn place_whole(path: &Path, bytes: &[u8]) -> io::Result<fs::File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let directory = path.parent().unwrap_or(Path::new("/"));
    if let Ok(file) = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        let mut file = fs::File::from(file);
        file.write_all(bytes)?;
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, nameless, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
        return Ok(file);
    }
    let new = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    fs::rename(&new, path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_of(command: &str, dir: &str) -> Place {
        Place { command: vec![command.to_owned()], dir: dir.into(), cgroup: Some("/cgroups".into()) }
    }

    #[test]
    fn a_record_is_written_read_and_removed() {
        let runtime = tempfile::tempdir().unwrap();
        let dirs = UserDirs { runtime: Some(runtime.path().to_owned()), ..UserDirs::default() };
        let outer = RunId::new_random().unwrap();
        let ledger = CommandLedger::choose(&dirs, Some(outer.clone())).unwrap();
        assert_eq!(ledger.marker(), &outer);
        let me = Identity::current();
        let open = ledger.write(me, StopPlan::default(), place_of("true", "/")).unwrap();
        let bytes = || fs::read(ledger.path()).unwrap();
        let read = |bytes: &[u8]| match parse(bytes, &ledger.run) {
            Loaded::Record(record) => record,
            other => panic!("{other:?}"),
        };
        let (first, record) = (bytes(), read(&bytes()));
        assert_eq!((record.marker.clone(), Identity::from(record.supervisor)), (outer, me));
        assert_eq!((record.keeper, record.clues(None).leaders), (None, vec![]), "nobody has come yet");
        assert_eq!(record.clues(None).spared, [me]);
        open.complete(Cast { keeper: me, leader: me, has_session: true }).unwrap();
        let whole = bytes();
        assert_eq!(read(&whole).leader.map(Identity::from), Some(me));
        assert_eq!(read(&whole).session, Some(me.pid));
        // However little of the second line is there.
        for end in first.len()..whole.len() - 1 {
            assert_eq!(read(&whole[..end]), record, "{end}");
        }
        ledger.remove();
        assert!(!ledger.path().exists());
        ledger.remove();
    }

    #[test]
    fn what_is_in_the_directory_is_listed() {
        let runtime = tempfile::tempdir().unwrap();
        let dirs = UserDirs { runtime: Some(runtime.path().to_owned()), ..UserDirs::default() };
        let me = Identity::current();
        // Not ourselves: a test may lead the group that it is in.
        let leader = Identity::new(i32::MAX, 1);
        let ledger = CommandLedger::choose(&dirs, None).unwrap();
        let open = ledger.write(me, StopPlan::default(), place_of("/bin/true", "/p")).unwrap();
        open.complete(Cast { keeper: me, leader, has_session: false }).unwrap();
        let lariat = runtime.path().join("lariat");
        let name = |name: &str| lariat.join(name);
        let damaged = "00000000000000aa.json";
        fs::write(name(damaged), "{\"version\":1,").unwrap();
        fs::write(name("00000000000000bb.json"), "{\"version\":9,\"run\":[]}").unwrap();
        fs::write(name("00000000000000cc.sock"), "").unwrap();
        std::os::unix::fs::symlink(ledger.path(), name("00000000000000dd.json")).unwrap();
        let listed = || {
            let directories = dirs.at_runtime_all();
            let ours = directories.iter().find(|dir| dir.path == lariat).unwrap();
            list(ours).unwrap()
        };
        // It may be in the middle of being written.
        assert!(listed().iter().all(|file| file.path != name(damaged)));
        let long_ago = std::time::SystemTime::now() - WRITTEN_WITHIN * 2;
        fs::File::options().append(true).open(name(damaged)).unwrap().set_modified(long_ago).unwrap();
        let found = listed();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(matches!(&found[0].loaded, Loaded::Damaged(_)) && found[0].run.as_str().ends_with("aa"));
        assert_eq!(found[1].loaded, Loaded::Newer);
        let Loaded::Record(record) = &found[2].loaded else { panic!("{found:?}") };
        let clues = record.clues(None);
        assert!(clues.has_mark && !clues.leaders[0].has_own_group && !clues.leaders[0].has_own_session);
        assert_eq!((clues.place.as_deref(), record.name().as_str()), (Some(Path::new("/p")), "true"));
        assert_eq!(record.clues(Some(Path::new("/p"))).place, None);
    }

    #[test]
    fn a_record_that_is_written_anew_names_who_is_left() {
        let runtime = tempfile::tempdir().unwrap();
        let dirs = UserDirs { runtime: Some(runtime.path().to_owned()), ..UserDirs::default() };
        let me = Identity::current();
        let ledger = CommandLedger::choose(&dirs, None).unwrap();
        let open = ledger.write(me, StopPlan::default(), place_of("true", "/")).unwrap();
        open.complete(Cast { keeper: me, leader: me, has_session: true }).unwrap();
        let read = || parse(&fs::read(ledger.path()).unwrap(), &ledger.run);
        let Loaded::Record(mut record) = read() else { panic!("{:?}", read()) };
        record.left =
            vec![LeftRecord { pid: 7, start: 8, inode: None, comm: "stuck".into(), reason: String::new() }];
        record.rewrite(ledger.path()).unwrap();
        assert_eq!(read(), Loaded::Record(record.clone()));
        assert_eq!(record.clues(None).left, [Identity::new(7, 8)]);
        assert!(record.clues(None).leaders[0].has_own_group);
        assert_eq!(record.clues(None).cgroup_bases.first(), Some(&PathBuf::from("/cgroups")));
    }

    #[test]
    fn records_of_the_first_version_are_read() {
        let text = "{\"version\":1,\"run\":\"0123456789abcdef\",\"marker\":\"0123456789abcdef\",\
            \"boot\":\"b\",\"supervisor\":{\"pid\":2,\"start\":1},\"keeper\":{\"pid\":3,\"start\":1},\
            \"leader\":{\"pid\":4,\"start\":1},\"command\":[\"true\"],\"dir\":\"/\",\"started_unix_ms\":5}";
        let run = RunId::try_from("0123456789abcdef".to_owned()).unwrap();
        let Loaded::Record(record) = parse(text.as_bytes(), &run) else { panic!("it is one") };
        assert_eq!(record.cgroup, None);
        let other = RunId::try_from("f".repeat(16)).unwrap();
        assert!(matches!(parse(text.as_bytes(), &other), Loaded::Damaged(_)));
    }
}
