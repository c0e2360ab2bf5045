//! Reads a store line by line: the last lines, from an offset, and what comes while it comes.
//!
//! Readers share nothing with the pump but the files, and any number of them may read at once, in this process or in
//! another one. Lines come as the service wrote them; [`super::sanitize`] makes them fit for a terminal.
//!
//! What this module does not do: show, or wait for a service. A reader that stops reading holds up nobody.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lariat_sys::poll::{PollFd, PollFlags, poll};
use rustix::fs::inotify;

use super::LogFiles;
use super::index::{Facts, IndexCursor};

/// The longest line in bytes. A longer one comes in parts.
pub const LINE_MAX: usize = 64 * 1024;
/// How long the beginning of a line waits for its end before it is shown without.
pub const OPEN_LINE_AFTER: Duration = Duration::from_millis(200);
/// How often a follower looks by itself, where the kernel tells of changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it looks where the kernel does not.
const LOOK_EVERY_UNWATCHED: Duration = Duration::from_millis(100);
/// The most bytes that are read at once.
const BLOCK_BYTES: usize = 64 * 1024;

/// Why a store could not be read.
#[derive(Debug, thiserror::Error)]
#[error("could not {step} {}: {cause}", path.display())]
pub struct ReadError {
    step: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// How a line ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// With a newline, which is not among its bytes.
    Newline,
    /// It does not: it is longer than [`LINE_MAX`], and the next one goes on with it.
    Split,
    /// It does not yet: the next one goes on with it.
    Open,
}

/// A line, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line<'a> {
    /// Where in the store it begins.
    pub offset: u64,
    /// Its bytes as the service wrote them, without the newline.
    pub bytes: &'a [u8],
    /// When it was stored, as time since the Unix epoch, to about a millisecond; `None` if the index does not say.
    pub time: Option<Duration>,
    /// How many bytes before it are missing because the store could not be written.
    pub dropped: u64,
    /// It goes on with the line before, which was [`Ending::Split`] or [`Ending::Open`].
    pub is_continued: bool,
    /// How it ends.
    pub ending: Ending,
}

/// Reads one store.
#[derive(Debug)]
pub struct LogReader {
    files: LogFiles,
    log: File,
    index: IndexCursor,
    /// Everything before was returned.
    offset: u64,
    /// What was read from the store; the bytes from `start` on are those at `offset`.
    buffer: Vec<u8>,
    start: usize,
    /// So many bytes behind `start` have no newline.
    searched: usize,
    is_continued: bool,
    open_since: Option<Instant>,
}

impl LogReader {
    /// Opens a store at its beginning. `None` if there is none.
    ///
    /// # Errors
    /// [`ReadError`] when the file is there and cannot be opened. A missing index is no error: lines have no times then.
    pub fn open(files: &LogFiles) -> Result<Option<Self>, ReadError> {
        let log = match File::open(files.log()) {
            Ok(log) => log,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(ReadError { step: "open", path: files.log().to_owned(), cause }),
        };
        let index = IndexCursor::new(File::open(files.index()).ok());
        let files = files.clone();
        Ok(Some(Self {
            files,
            log,
            index,
            offset: 0,
            buffer: Vec::new(),
            start: 0,
            searched: 0,
            is_continued: false,
            open_since: None,
        }))
    }

    /// Returns the offset up to which lines were returned.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the store's size in bytes now.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn end(&self) -> Result<u64, ReadError> {
        self.log.metadata().map(|m| m.len()).map_err(self.error("look at"))
    }

    /// Goes to an offset. The next line begins there, wherever that is in a line.
    pub fn seek(&mut self, offset: u64) {
        self.offset = offset;
        self.buffer.clear();
        self.start = 0;
        self.searched = 0;
        self.is_continued = false;
        self.open_since = None;
        self.index.seek(offset);
    }

    /// Goes to where the last `lines` lines begin; an unfinished last line counts as one. Reads backwards, so the size
    /// of the store does not matter.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn seek_last(&mut self, lines: usize) -> Result<(), ReadError> {
        let end = self.end()?;
        let mut block = vec![0; BLOCK_BYTES];
        let mut start = end;
        let mut left = lines;
        while start > 0 && left > 0 {
            let length = start.min(BLOCK_BYTES as u64) as usize;
            let block = &mut block[..length];
            let from = start - length as u64;
            self.log.read_exact_at(block, from).map_err(self.error("read"))?;
            let mut searched = length;
            // The newline at the very end ends the last line; it does not begin one.
            if start == end && block[length - 1] == b'\n' {
                searched -= 1;
            }
            while let Some(at) = memchr::memrchr(b'\n', &block[..searched]) {
                left -= 1;
                if left == 0 {
                    self.seek(from + at as u64 + 1);
                    return Ok(());
                }
                searched = at;
            }
            start = from;
        }
        self.seek(if lines == 0 { end } else { 0 });
        Ok(())
    }

    /// Returns the next line that is there, or `None` if nothing is due now. Does not block but on the disk.
    ///
    /// The beginning of a line is returned once it has been there for [`OPEN_LINE_AFTER`]; [`LogReader::due`] says when
    /// that is.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next_line(&mut self, now: Instant) -> Result<Option<Line<'_>>, ReadError> {
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.unread()[self.searched..]) {
                let length = self.searched + at;
                // The newline may be far behind the limit: the store is filled faster than it is read.
                let is_whole = length <= LINE_MAX;
                return Ok(Some(if is_whole {
                    self.take(length, Ending::Newline)
                } else {
                    self.take_part()
                }));
            }
            self.searched = self.unread().len();
            if self.searched > LINE_MAX {
                return Ok(Some(self.take_part()));
            }
            if !self.fill()? {
                break;
            }
        }
        if self.unread().is_empty() {
            return Ok(None);
        }
        let since = *self.open_since.get_or_insert(now);
        Ok(if now >= since + OPEN_LINE_AFTER { Some(self.take_rest()) } else { None })
    }

    /// Returns the beginning of a line that has no end yet, if there is one, without waiting for more.
    pub fn take_open(&mut self) -> Option<Line<'_>> {
        let length = self.unread().len();
        if length == 0 { None } else { Some(self.take(length, Ending::Open)) }
    }

    /// Returns when the beginning of a line is due to be shown without its end.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.open_since.map(|since| since + OPEN_LINE_AFTER)
    }

    /// Says whether the name now belongs to another file, because a new run began. What is left here can still be read.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        let own = self.log.metadata().map(|m| (m.dev(), m.ino()));
        let named = std::fs::metadata(self.files.log()).map(|m| (m.dev(), m.ino()));
        matches!((own, named), (Ok(own), Ok(named)) if own != named)
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Reads a block more and says whether there was any.
    fn fill(&mut self) -> Result<bool, ReadError> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let filled = self.buffer.len();
        self.buffer.resize(filled + BLOCK_BYTES, 0);
        let result = self.log.read_at(&mut self.buffer[filled..], self.offset + filled as u64);
        self.buffer.truncate(filled + result.as_ref().map_or(0, |length| *length));
        match result {
            Ok(length) => Ok(length > 0),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(cause) => Err(self.error("read")(cause)),
        }
    }

    fn take_part(&mut self) -> Line<'_> {
        let length = whole_characters(&self.unread()[..LINE_MAX]);
        self.take(length, Ending::Split)
    }

    fn take_rest(&mut self) -> Line<'_> {
        let length = whole_characters(self.unread());
        self.take(length, Ending::Open)
    }

    /// Takes the next `length` bytes, and the newline behind them if they end with one.
    fn take(&mut self, length: usize, ending: Ending) -> Line<'_> {
        let (offset, start) = (self.offset, self.start);
        let taken = length + usize::from(ending == Ending::Newline);
        self.start += taken;
        self.offset += taken as u64;
        self.searched = 0;
        self.open_since = None;
        // A line came when its last byte did.
        let Facts { time, dropped } = self.index.facts_at(self.offset.saturating_sub(1));
        let is_continued = std::mem::replace(&mut self.is_continued, ending != Ending::Newline);
        Line { offset, bytes: &self.buffer[start..start + length], time, dropped, is_continued, ending }
    }

    fn error(&self, step: &'static str) -> impl FnOnce(io::Error) -> ReadError + use<> {
        let path = self.files.log().to_owned();
        move |cause| ReadError { step, path, cause }
    }
}

/// Returns how many of the bytes can be shown without cutting a character of UTF-8 in two; all, if that would be none.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.iter().rev().take(4).position(|byte| byte & 0xc0 != 0x80);
    let Some(back) = tail else { return bytes.len() };
    let start = bytes.len() - 1 - back;
    let needed = match bytes[start] {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => 1,
    };
    if needed > back + 1 && start > 0 { start } else { bytes.len() }
}

/// Why a wait of a [`Follower`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// Something may have changed: look.
    Changed,
    /// The deadline has passed.
    TimedOut,
    /// The cancel descriptor is readable.
    Cancelled,
}

/// Waits for news in a directory of stores.
#[derive(Debug)]
pub struct Follower {
    inotify: Option<OwnedFd>,
}

impl Follower {
    /// Begins to watch. What changes from here on is not missed; where the kernel cannot watch (limits, network file
    /// systems), waits look by the clock.
    #[must_use]
    pub fn new(logs: &Path) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE;
        let watched = inotify::init(flags).and_then(|fd| inotify::add_watch(&fd, logs, events).map(|_| fd));
        Self { inotify: watched.ok() }
    }

    /// Waits until something may have changed, the deadline passes, or `cancel` becomes readable.
    ///
    /// Returns [`Woken::Changed`] from time to time without a reason: KERNEL(6.6) tells of data that was spliced into a
    /// file; before, only the index' changes are told, and those of a network file system are never.
    ///
    /// # Errors
    /// When the kernel cannot wait, for lack of memory.
    pub fn wait(
        &mut self,
        deadline: Option<Instant>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Woken, lariat_sys::Errno> {
        let every = if self.inotify.is_some() { LOOK_EVERY } else { LOOK_EVERY_UNWATCHED };
        let look_at = Instant::now() + every;
        let until = deadline.map_or(look_at, |deadline| deadline.min(look_at));
        let mut polled = Vec::with_capacity(2);
        polled.extend(cancel.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        polled.extend(self.inotify.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let ready = poll(&mut polled, Some(until))?;
        if cancel.is_some() && !polled[0].revents().is_empty() {
            return Ok(Woken::Cancelled);
        }
        if ready == 0 && deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(Woken::TimedOut);
        }
        self.forget_events();
        Ok(Woken::Changed)
    }

    fn forget_events(&mut self) {
        let mut events = [0; 4096];
        if let Some(fd) = &self.inotify {
            while matches!(rustix::io::read(fd.as_fd(), &mut events), Ok(length) if length > 0) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lariat_keeper::store::IndexRecord;
    use proptest::prelude::*;
    use std::io::Write;

    struct Written {
        dir: tempfile::TempDir,
        files: LogFiles,
    }

    fn written(bytes: &[u8]) -> Written {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::current(dir.path(), "web");
        std::fs::write(files.log(), bytes).unwrap();
        Written { dir, files }
    }

    impl Written {
        fn reader(&self) -> LogReader {
            LogReader::open(&self.files).unwrap().unwrap()
        }

        fn append(&self, path: &Path, bytes: &[u8]) {
            File::options().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
        }
    }

    fn rest(reader: &mut LogReader) -> Vec<(Vec<u8>, Ending)> {
        let now = Instant::now();
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line(now).unwrap() {
            lines.push((line.bytes.to_vec(), line.ending));
        }
        lines.extend(reader.take_open().map(|line| (line.bytes.to_vec(), line.ending)));
        lines
    }

    #[test]
    fn lines_come_with_their_places_and_times() {
        let store = written(b"one\n\nthree\n");
        let records = [(1_000, 4), (2_000, 5), (3_000, 11)]
            .map(|(unix_ns, end)| IndexRecord::Stored { unix_ns, end }.encode())
            .concat();
        store.append(store.files.index(), &records);
        let mut reader = store.reader();
        let mut seen = Vec::new();
        while let Some(line) = reader.next_line(Instant::now()).unwrap() {
            seen.push((
                line.offset,
                String::from_utf8(line.bytes.to_vec()).unwrap(),
                line.time.unwrap().as_nanos(),
            ));
        }
        assert_eq!(seen, [(0, "one".into(), 1_000), (4, String::new(), 2_000), (5, "three".into(), 3_000)]);
        assert_eq!(reader.offset(), 11);
    }

    #[test]
    fn an_unfinished_line_waits_and_is_then_shown_and_continued() {
        let store = written(b"half");
        let mut reader = store.reader();
        let start = Instant::now();
        assert_eq!(reader.next_line(start).unwrap(), None);
        assert_eq!(reader.due(), Some(start + OPEN_LINE_AFTER));
        let line = reader.next_line(start + OPEN_LINE_AFTER).unwrap().unwrap();
        assert_eq!((line.bytes, line.ending, line.is_continued), (&b"half"[..], Ending::Open, false));
        store.append(store.files.log(), b" whole\nnext\n");
        let line = reader.next_line(start).unwrap().unwrap();
        assert_eq!((line.bytes, line.ending, line.is_continued), (&b" whole"[..], Ending::Newline, true));
        assert!(!reader.next_line(start).unwrap().unwrap().is_continued);
        assert_eq!(reader.due(), None);
    }

    #[test]
    fn bytes_that_come_in_time_complete_the_line() {
        let store = written(b"half");
        let mut reader = store.reader();
        assert_eq!(reader.next_line(Instant::now()).unwrap(), None);
        store.append(store.files.log(), b" whole\n");
        assert_eq!(reader.next_line(Instant::now()).unwrap().unwrap().bytes, b"half whole");
    }

    #[test]
    fn a_long_line_comes_in_parts_that_cut_no_character() {
        let text = "ü".repeat(100_001);
        let store = written(format!("{text}\nnext\n").as_bytes());
        let lines = rest(&mut store.reader());
        let (parts, last) = lines.split_at(lines.len() - 1);
        assert_eq!(last, [(b"next".to_vec(), Ending::Newline)]);
        assert!(parts.iter().all(|(bytes, _)| bytes.len() <= LINE_MAX && std::str::from_utf8(bytes).is_ok()));
        assert_eq!(
            parts.iter().map(|(_, e)| *e).collect::<Vec<_>>(),
            [Ending::Split, Ending::Split, Ending::Split, Ending::Newline]
        );
        assert_eq!(parts.iter().flat_map(|(bytes, _)| bytes.clone()).collect::<Vec<_>>(), text.as_bytes());
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let table: [(&[u8], usize, &[u8]); 9] = [
            (b"a\nb\nc\n", 2, b"b\nc\n"),
            (b"a\nb\nc", 2, b"b\nc"),
            (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
            (b"a\nb\n", 0, b""),
            (b"", 3, b""),
            (b"\n\n\n", 1, b"\n"),
            (b"\n", 1, b"\n"),
            (b"a", 1, b"a"),
            (b"a\n\n", 1, b"\n"),
        ];
        for (bytes, lines, expected) in table {
            let mut reader = written(bytes).reader();
            reader.seek_last(lines).unwrap();
            assert_eq!(
                &bytes[reader.offset() as usize..],
                expected,
                "{lines} of {:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[test]
    fn the_last_line_may_be_far_from_the_end() {
        let store = written(&[&b"first\n"[..], &[b'x'; 200_000], b"\n"].concat());
        let mut reader = store.reader();
        reader.seek_last(1).unwrap();
        assert_eq!(reader.offset(), 6);
    }

    #[test]
    fn a_store_that_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(LogReader::open(&LogFiles::current(dir.path(), "web")).unwrap().is_none());
    }

    #[test]
    fn a_new_run_is_noticed() {
        let store = written(b"old\n");
        let reader = store.reader();
        assert!(!reader.is_replaced());
        super::super::Store::create(store.dir.path(), "web").unwrap();
        assert!(reader.is_replaced());
    }

    #[test]
    fn a_follower_wakes_for_bytes_for_the_deadline_and_when_cancelled() {
        let store = written(b"");
        let mut follower = Follower::new(store.dir.path());
        let soon = Some(Instant::now() + Duration::from_millis(20));
        assert_eq!(follower.wait(soon, None).unwrap(), Woken::TimedOut);
        store.append(store.files.log(), b"news\n");
        let late = Some(Instant::now() + Duration::from_secs(60));
        assert_eq!(follower.wait(late, None).unwrap(), Woken::Changed);
        let (read, write) = lariat_sys::files::pipe(4096).unwrap();
        rustix::io::write(&write, b"!").unwrap();
        assert_eq!(follower.wait(late, Some(read.as_fd())).unwrap(), Woken::Cancelled);
        let mut unwatched = Follower::new(Path::new("/nonexistent"));
        assert_eq!(unwatched.wait(late, None).unwrap(), Woken::Changed, "it looks by itself");
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..20),
            2 => Just(b"\n".to_vec()),
            1 => Just(vec![b'y'; LINE_MAX - 3]),
            1 => Just("ü".repeat(300).into_bytes()),
        ];
        prop::collection::vec(pieces, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn every_byte_is_read_once(bytes in text()) {
            let mut read = Vec::new();
            for (line, ending) in rest(&mut written(&bytes).reader()) {
                prop_assert!(line.len() <= LINE_MAX);
                prop_assert!(ending != Ending::Newline || !line.contains(&b'\n'));
                read.extend(line);
                if ending == Ending::Newline {
                    read.push(b'\n');
                }
            }
            prop_assert_eq!(read, bytes);
        }

        #[test]
        fn the_last_lines_are_the_last_lines(bytes in text(), lines in 0_usize..12) {
            let mut reader = written(&bytes).reader();
            reader.seek_last(lines).unwrap();
            let mut starts: Vec<usize> = std::iter::once(0).chain(memchr::memchr_iter(b'\n', &bytes).map(|at| at + 1)).collect();
            starts.pop_if(|start| *start == bytes.len());
            let expected = if lines == 0 { bytes.len() } else { starts.iter().rev().nth(lines - 1).copied().unwrap_or(0) };
            prop_assert_eq!(reader.offset() as usize, expected);
        }
    }
}
