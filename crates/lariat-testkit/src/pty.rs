//! A terminal with a program in it: keys in, screen out, closed or left unread at will.
//!
//! Nothing reads the terminal by itself: output is taken while the test waits for something, so "a terminal that
//! nobody reads" needs no more than not waiting.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};

use crate::command::{Command, Ending, Running};
use crate::wait::{PATIENCE, wait_at_most};

/// A pseudo-terminal's master side.
pub struct Pty {
    master: Option<File>,
    name: std::path::PathBuf,
    seen: Vec<u8>,
    /// Where [`Pty::wait_for`] goes on looking.
    mark: usize,
}

impl Default for Pty {
    fn default() -> Self {
        Self::new()
    }
}

impl Pty {
    /// Opens a terminal of 24 rows and 80 columns.
    ///
    /// # Panics
    /// When the kernel has no terminal to give.
    #[must_use]
    pub fn new() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master: OwnedFd = openpt(flags).expect("the kernel has terminals");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("the terminal is ours");
        let name = ptsname(&master, Vec::new()).expect("the terminal has a name");
        let name = std::path::PathBuf::from(std::ffi::OsStr::from_bytes(name.as_bytes()));
        rustix::io::ioctl_fionbio(&master, true).expect("a terminal can be made non-blocking");
        let pty = Self { master: Some(master.into()), name, seen: Vec::new(), mark: 0 };
        pty.resize(24, 80);
        pty
    }

    /// Starts a program as the leader of a session whose controlling terminal this is, with all three standard
    /// descriptors on it.
    #[track_caller]
    pub fn start(&mut self, command: Command) -> Running {
        let (stdin, stdout, stderr) = (self.program_side(), self.program_side(), self.program_side());
        self.start_beside(command.stdin(stdin).stdout(stdout).stderr(stderr))
    }

    /// Starts a program as the leader of a session whose controlling terminal this is, with the standard descriptors that
    /// it was given.
    #[track_caller]
    pub fn start_beside(&mut self, command: Command) -> Running {
        let terminal = self.program_side();
        let number = terminal.as_raw_fd();
        let command = command.in_child(move || {
            rustix::process::setsid()?;
            // SAFETY: `number` is open in the child until exec; the call takes no memory.
            if unsafe { libc::ioctl(number, libc::TIOCSCTTY, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
        command.start()
    }

    /// Opens the program's side.
    ///
    /// # Panics
    /// When the terminal is closed.
    #[must_use]
    pub fn program_side(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.name).expect("the terminal is ours")
    }

    /// Sets the size of the window.
    ///
    /// # Panics
    /// When the terminal is closed.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.master(), size).expect("a terminal has a size");
    }

    fn master(&self) -> &File {
        self.master.as_ref().expect("the terminal is open")
    }

    /// Types. Control characters are characters: Ctrl-C is `\x03`, Ctrl-Z `\x1a`, Ctrl-\ `\x1c`, Ctrl-S `\x13`.
    ///
    /// # Panics
    /// When the terminal takes nothing.
    pub fn send(&mut self, keys: &str) {
        self.master().write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Returns the process group in the foreground.
    #[must_use]
    pub fn foreground(&self) -> Option<i32> {
        tcgetpgrp(self.master()).ok().map(|group| group.as_raw_nonzero().get())
    }

    /// Closes the terminal, as a closed window does: its session is hung up.
    pub fn close(&mut self) {
        self.pump();
        self.master = None;
    }

    /// Takes what the terminal shows by now.
    pub fn pump(&mut self) {
        let Some(master) = &mut self.master else { return };
        let mut block = [0; 65536];
        while let Ok(count @ 1..) = master.read(&mut block) {
            self.seen.extend_from_slice(&block[..count]);
        }
    }

    /// Returns everything shown so far, without escape sequences.
    #[must_use]
    pub fn text(&self) -> String {
        plain(&self.seen)
    }

    /// Returns what stands there in the end: the same without what was erased to be written over.
    #[must_use]
    pub fn standing(&self) -> String {
        plain(&standing(&self.seen))
    }

    /// Returns what was shown since the last [`Pty::wait_for`] matched, without escape sequences.
    #[must_use]
    pub fn fresh(&self) -> String {
        plain(&self.seen[self.mark.min(self.seen.len())..])
    }

    /// Returns the place up to which the last [`Pty::wait_for`] or [`Pty::skip`] came, for [`Pty::between`].
    #[must_use]
    pub fn mark(&self) -> usize {
        self.mark
    }

    /// Returns what was shown between two marks, without escape sequences.
    #[must_use]
    pub fn between(&self, from: usize, to: usize) -> String {
        plain(self.seen.get(from..to).unwrap_or_default())
    }

    /// Forgets what was shown up to now, so that the next [`Pty::wait_for`] looks at later output only.
    pub fn skip(&mut self) {
        self.pump();
        self.mark = self.seen.len();
    }

    /// Waits until `text` is shown, counted from the end of the last match.
    ///
    /// # Panics
    /// After [`PATIENCE`], with what is shown.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        if !self.shows(text, PATIENCE) {
            panic!("waited {PATIENCE:?} for {text:?} on the terminal; it shows: {:?}", self.fresh());
        }
    }

    /// Waits up to `patience` until `text` is shown after the last match; returns whether it was.
    pub fn shows(&mut self, text: &str, patience: Duration) -> bool {
        let found = wait_at_most(patience, || {
            self.pump();
            // Escape sequences may stand between any two characters, so the raw offset is found by growing the view.
            self.fresh().contains(text).then_some(())
        });
        if found.is_some() {
            self.mark = self.end_of(text);
        }
        found.is_some()
    }

    /// The raw offset just behind the first appearance of `text` after the mark.
    fn end_of(&self, text: &str) -> usize {
        let shown = |upto: usize| plain(&self.seen[self.mark..upto]).contains(text);
        let ends: Vec<usize> = (self.mark..=self.seen.len()).collect();
        let at = ends.partition_point(|upto| !shown(*upto));
        ends.get(at).copied().unwrap_or(self.seen.len())
    }

    /// Waits for a program's end while it may write to the terminal.
    ///
    /// # Panics
    /// After [`PATIENCE`], with what the terminal shows.
    #[track_caller]
    pub fn wait_end(&mut self, running: &Running) -> Ending {
        let ending = wait_at_most(PATIENCE, || {
            self.pump();
            running.ended(Duration::ZERO)
        });
        self.pump();
        match ending {
            Some(ending) => ending,
            None => panic!("{} did not end; the terminal shows: {:?}", running.pid(), self.text()),
        }
    }

    /// Returns whether the terminal takes no more output at the moment: writers to it block.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        let mut wanted = [PollFd::new(self.master(), PollFlags::IN)];
        poll(&mut wanted, Some(&rustix::event::Timespec::default())).is_ok_and(|count| count > 0)
    }
}

/// Removes lines, or what there is of them, that were erased from their beginning on.
fn standing(bytes: &[u8]) -> Vec<u8> {
    const ERASED: &[u8] = b"\r\x1b[K";
    let mut text: Vec<u8> = Vec::with_capacity(bytes.len());
    for byte in bytes {
        text.push(*byte);
        if text.ends_with(ERASED) {
            let line = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            text.truncate(line);
        }
    }
    text
}

/// Removes escape sequences and carriage returns.
fn plain(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        rest = match first {
            0x1b => past_escape(after),
            b'\r' => after,
            _ => {
                text.push(first);
                after
            }
        };
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Returns what follows an escape sequence whose ESC was taken already.
fn past_escape(after: &[u8]) -> &[u8] {
    let Some((kind, rest)) = after.split_first() else { return &[] };
    let end = match kind {
        b'[' => rest.iter().position(|byte| (0x40..=0x7e).contains(byte)),
        b']' | b'P' => rest.iter().position(|byte| *byte == 0x07 || *byte == b'\\'),
        b'(' | b')' | b'#' => Some(0),
        _ => return rest,
    };
    end.map_or(&[][..], |at| &rest[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::{plain, standing};

    #[test]
    fn escape_sequences_are_taken_out() {
        assert_eq!(plain(b"\x1b[1;31mred\x1b[0m\r\n\x1b]0;title\x07x\x1b(By\x1b=z"), "red\nxyz");
    }

    #[test]
    fn what_was_written_over_does_not_stand() {
        let text = b"one\r\nwaiting\r\x1b[Kwaiting still\r\x1b[Ktwo\x1b[K\r\nthree\r\n";
        assert_eq!(plain(&standing(text)), "one\ntwo\nthree\n");
        assert_eq!(standing(b"a\r\x1b[Kb"), b"b");
    }

    #[test]
    fn a_cut_sequence_hides_nothing_before_it() {
        assert_eq!(plain(b"a\x1b[3"), "a");
    }
}
