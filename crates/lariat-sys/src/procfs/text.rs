//! Parses the text of `/proc/PID` files. Every function here is total: any bytes give a value or `None`, never a panic,
//! because a process chooses its own name and thereby part of what is parsed.

use std::fmt;
use std::str::FromStr;

use super::{SignalSets, Stat, Status};
use crate::signal::SignalSet;

/// The name of a process's main thread: up to 16 arbitrary bytes, cut where the kernel gave more.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Comm {
    bytes: [u8; 16],
    length: u8,
}

impl Comm {
    /// Takes the first 16 bytes.
    pub fn new(name: &[u8]) -> Comm {
        let mut bytes = [0; 16];
        let length = name.len().min(16);
        for (to, from) in bytes.iter_mut().zip(name) {
            *to = *from;
        }
        Comm { bytes, length: length as u8 }
    }

    /// Returns the bytes as the kernel has them; they need not be UTF-8.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

impl fmt::Display for Comm {
    /// Writes the name with `?` for control characters and U+FFFD for what is no UTF-8, so that it is safe to print.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = String::from_utf8_lossy(self.as_bytes())
            .chars()
            .map(|character| if character.is_control() { '?' } else { character })
            .collect();
        out.pad(&text)
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// What the main thread of a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// On a processor or ready for one (`R`).
    Running,
    /// Waiting, and a signal wakes it (`S`).
    Sleeping,
    /// Waiting in the kernel, deaf to signals (`D`).
    Uninterruptible,
    /// Stopped by a signal (`T`).
    Stopped,
    /// Stopped by a debugger (`t`).
    Traced,
    /// Ended, not reaped (`Z`).
    Zombie,
    /// Being removed (`X`).
    Dead,
    /// An idle kernel thread (`I`).
    Idle,
    /// A letter that this version does not know.
    Other(u8),
}

impl State {
    /// Takes the kernel's letter.
    pub fn from_letter(letter: u8) -> State {
        match letter {
            b'R' => State::Running,
            b'S' => State::Sleeping,
            b'D' => State::Uninterruptible,
            b'T' => State::Stopped,
            b't' => State::Traced,
            b'Z' => State::Zombie,
            b'X' | b'x' => State::Dead,
            b'I' => State::Idle,
            other => State::Other(other),
        }
    }

    /// Returns the kernel's letter, as `ps` shows it.
    pub fn letter(self) -> char {
        match self {
            State::Running => 'R',
            State::Sleeping => 'S',
            State::Uninterruptible => 'D',
            State::Stopped => 'T',
            State::Traced => 't',
            State::Zombie => 'Z',
            State::Dead => 'X',
            State::Idle => 'I',
            State::Other(letter) => char::from(letter),
        }
    }
}

/// Parses a decimal number without sign, leading `+` or blanks, or a negative one where the type has them.
pub(super) fn number<T: FromStr>(bytes: &[u8]) -> Option<T> {
    if bytes.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Parses a line of `/proc/PID/stat`.
pub(super) fn stat(line: &[u8]) -> Option<Stat> {
    // The name stands in parentheses and may hold blanks, newlines and parentheses itself; nothing after it does, so
    // the last closing one ends it.
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let pid = number(line.get(..open)?.trim_ascii())?;
    let comm = Comm::new(line.get(open + 1..close)?);
    let mut fields = line.get(close + 1..)?.trim_ascii().split(|byte| *byte == b' ');
    let [letter] = *fields.next()? else { return None };
    // The numbers below are those of proc(5): `skip(n)` names the first field that is not needed.
    let ppid = number(fields.next()?)?; // 4
    let pgrp = number(fields.next()?)?;
    let session = number(fields.next()?)?;
    let tty_nr = number(fields.next()?)?;
    let tty_pgrp = number(fields.next()?)?;
    let mut fields = fields.skip(5); // 9 to 13: flags and page faults.
    let utime = number(fields.next()?)?; // 14
    let stime = number(fields.next()?)?;
    let mut fields = fields.skip(3); // 16 to 18: times of children, priority.
    let nice = number(fields.next()?)?; // 19
    let threads = number(fields.next()?)?;
    let mut fields = fields.skip(1); // 21: always 0.
    let start = number(fields.next()?)?; // 22
    let vsize = number(fields.next()?)?;
    let rss_pages = number(fields.next()?)?;
    Some(Stat {
        pid,
        comm,
        state: State::from_letter(letter),
        ppid,
        pgrp,
        session,
        tty_nr,
        tty_pgrp,
        utime,
        stime,
        nice,
        threads,
        start,
        vsize,
        rss_pages,
    })
}

/// Parses `/proc/PID/status`. The kernel escapes newlines in the name there, so lines are lines.
pub(super) fn status(text: &[u8]) -> Option<Status> {
    let mut users = None;
    let (mut blocked, mut ignored, mut caught) = (None, None, None);
    for line in text.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (Some(key), Some(value)) = (line.get(..colon), line.get(colon + 1..)) else { continue };
        let value = value.trim_ascii();
        match key {
            b"Uid" => users = three_users(value),
            b"SigBlk" => blocked = signals(value),
            b"SigIgn" => ignored = signals(value),
            b"SigCgt" => caught = signals(value),
            _ => {}
        }
    }
    let (real_user, effective_user, saved_user) = users?;
    let signals = SignalSets { blocked: blocked?, ignored: ignored?, caught: caught? };
    Some(Status { real_user, effective_user, saved_user, signals })
}

/// Returns the numbers of the line `NSpid` of `/proc/PID/status`, from the reader's namespace downwards.
pub(super) fn namespace_numbers(text: &[u8]) -> Vec<i32> {
    let lines = text.split(|byte| *byte == b'\n');
    let line = lines.filter_map(|line| line.strip_prefix(b"NSpid:")).next().unwrap_or_default();
    line.split(u8::is_ascii_whitespace).filter_map(number::<i32>).collect()
}

/// Returns the number in the line `Pid` of the `fdinfo` of a pidfd.
pub(super) fn pidfd_number(text: &[u8]) -> Option<i32> {
    let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Pid:"))?;
    number(line.trim_ascii())
}

/// Returns who has taken each of the locks that the `fdinfo` of a file tells; 0 for one of whom we may not know.
pub(super) fn lock_takers(text: &[u8]) -> impl Iterator<Item = i32> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"lock:"));
    // Its place in the list, flock or not, advisory or not, read or write, the number.
    lines.filter_map(|line| {
        line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(4).and_then(number)
    })
}

fn three_users(value: &[u8]) -> Option<(u32, u32, u32)> {
    let mut users = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).map(number::<u32>);
    Some((users.next()??, users.next()??, users.next()??))
}

fn signals(value: &[u8]) -> Option<SignalSet> {
    u64::from_str_radix(std::str::from_utf8(value).ok()?, 16).ok().map(SignalSet::from_bits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_number_of_a_pidfd_is_read() {
        assert_eq!(pidfd_number(b"pos:\t0\nflags:\t02000002\nPid:\t4242\nNSpid:\t4242\t2\n"), Some(4242));
        assert_eq!(pidfd_number(b"Pid:\t-1\nNSpid:\t-1\n"), Some(-1));
        for text in [&b""[..], b"pos:\t0\n", b"NSpid:\t1\n", b"Pid:\tx\n", b"Pid:\t99999999999\n"] {
            assert_eq!(pidfd_number(text), None);
        }
    }

    #[test]
    fn the_takers_of_locks_are_read() {
        let takers = |text: &[u8]| lock_takers(text).collect::<Vec<_>>();
        let two = b"pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n\
            lock:\t1: POSIX  ADVISORY  READ  4242 00:13:11691 0 9\n";
        assert_eq!(takers(two), [359, 4242]);
        for text in [&b""[..], b"lock:\n", b"lock:\t1: FLOCK  ADVISORY  WRITE\n", b"lock:\t1: A B C D\n"] {
            assert_eq!(takers(text), []);
        }
    }

    const REST: &[u8] =
        b" S 1 4242 4241 34816 -1 4194304 1 2 3 4 55 66 7 8 20 -5 3 0 98765 1048576 256 18446744073709551615 1 1\n";

    fn line(comm: &[u8]) -> Vec<u8> {
        [b"4242 (", comm, b")", REST].concat()
    }

    #[test]
    fn every_field_is_where_proc_5_says() {
        let stat = stat(&line(b"sh")).unwrap();
        assert_eq!(
            (stat.pid, stat.state, stat.ppid, stat.pgrp, stat.session),
            (4242, State::Sleeping, 1, 4242, 4241)
        );
        assert_eq!((stat.tty_nr, stat.tty_pgrp, stat.utime, stat.stime), (34816, -1, 55, 66));
        assert_eq!(
            (stat.nice, stat.threads, stat.start, stat.vsize, stat.rss_pages),
            (-5, 3, 98765, 1_048_576, 256)
        );
    }

    #[test]
    fn hostile_names_are_only_names() {
        for comm in [&b") Z 1 1 1 0"[..], b"(", b")", b"", b" ", b"a b\nc", b"\xff\xfe", b"0123456789abcdef"]
        {
            let stat = stat(&line(comm)).unwrap();
            assert_eq!(stat.comm.as_bytes(), comm);
            assert_eq!(stat.start, 98765);
        }
    }

    #[test]
    fn a_cut_line_is_none() {
        let line = line(b"sh");
        let last_needed = line.len() - b" 18446744073709551615 1 1\n".len();
        for cut in 0..last_needed - b" 256".len() {
            assert_eq!(stat(&line[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn display_of_a_name_is_safe_to_print() {
        assert_eq!(Comm::new(b"a\x1b[2J\xff").to_string(), "a?[2J\u{fffd}");
        assert_eq!(format!("{:5}|", Comm::new(b"sh")), "sh   |");
    }

    #[test]
    fn letters_go_both_ways() {
        for letter in *b"RSDTtZXIqP" {
            assert_eq!(State::from_letter(letter).letter(), char::from(letter));
        }
    }

    #[test]
    fn status_gives_users_and_signals() {
        let text = b"Name:\tUid: 7\nUid:\t1\t2\t3\t4\nSigPnd:\t0\nSigBlk:\t0000000000000001\n\
            SigIgn:\t0000000000001000\nSigCgt:\t0000000180000000\n";
        let status = status(text).unwrap();
        assert_eq!((status.real_user, status.effective_user, status.saved_user), (1, 2, 3));
        assert_eq!(status.signals.ignored, SignalSet::from_bits(1 << 12));
        assert_eq!(super::status(b"Uid:\t1\t2\t3\t4\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = stat(&bytes);
            let _ = status(&bytes);
            let _ = number::<i32>(&bytes);
            prop_assert!(Comm::new(&bytes).as_bytes().len() <= 16);
            prop_assert!(!Comm::new(&bytes).to_string().chars().any(char::is_control));
        }

        #[test]
        fn any_name_leaves_the_fields_alone(name in proptest::collection::vec(any::<u8>(), 0..64)) {
            let parsed = stat(&line(&name)).unwrap();
            prop_assert_eq!(Stat { comm: Comm::new(b"sh"), ..parsed }, stat(&line(b"sh")).unwrap());
            prop_assert_eq!(parsed.comm.as_bytes(), &name[..name.len().min(16)]);
        }

        #[test]
        fn any_damage_is_survived(at in 0..200_usize, byte in any::<u8>(), cut in 0..200_usize) {
            let mut line = line(b"a) S (b");
            if let Some(place) = line.get_mut(at) {
                *place = byte;
            }
            let _ = stat(&line[..cut.min(line.len())]);
        }

        #[test]
        fn any_status_like_text_is_survived(text in "(Uid|SigBlk|SigIgn|SigCgt|X)?:?[\\t 0-9a-f]{0,40}\n?(Uid:.{0,20}\n)?") {
            let _ = status(text.as_bytes());
        }
    }
}
