//! Programs that are hard on whoever takes their output.
//!
//! What each has written is a pure function of the number of bytes, so a test can say of any store whether a byte is
//! missing, doubled or changed: line N of `flood` and `last-words` is N in twelve digits, `no-newline` repeats the
//! alphabet, `binary` is a seeded xorshift stream.

use crate::args::Args;
use crate::facts::Facts;
use crate::member::Part;
use crate::sys;

/// How much is written at once.
const CHUNK: usize = 64 * 1024;

/// Writes numbered lines as fast as it can, all of them in blocks of whole lines, until TERM or `--lines`; then
/// states `written` (lines). `ready` comes after the first block. `--line-by-line 1`: one write per line.
pub(crate) fn flood(args: &Args) -> i32 {
    let facts = Facts::of(args);
    let limit: u64 = args.number("lines", u64::MAX);
    let per_write: u64 = if args.number("line-by-line", 0) == 1 { 1 } else { 1_000 };
    let heard = [libc::SIGTERM, libc::SIGUSR1];
    sys::block(&heard);
    facts.announce("leader");
    let mut line = 0;
    let mut block = Vec::with_capacity(CHUNK);
    while line < limit {
        block.clear();
        let upto = limit.min(line + per_write);
        for number in line..upto {
            block.extend_from_slice(format!("{number:012}\n").as_bytes());
        }
        if sys::write_all(1, &block) < block.len() {
            facts.state("failed-writes", &sys::errno().to_string());
            return 1;
        }
        if line == 0 {
            facts.state("ready", "");
        }
        line = upto;
        if sys::wait_signal(&heard, Some(0)).is_some() {
            break;
        }
    }
    facts.state("written", &line.to_string());
    if line == limit && args.number("stay", 0) == 1 {
        let _ = sys::wait_signal(&heard, None);
    }
    0
}

/// Writes `--bytes` without a single newline, then lives as its manner says.
pub(crate) fn no_newline(args: &Args) -> i32 {
    let part = Part::of(args);
    part.prepare();
    part.facts.announce("leader");
    let mut at: u64 = 0;
    emit(args.number("bytes", 1_000_000), || {
        let byte = b"abcdefghijklmnopqrstuvwxyz"[usize::try_from(at % 26).unwrap_or(0)];
        at += 1;
        byte
    });
    part.facts.state("ready", "");
    part.live("leader")
}

/// Writes `--bytes` of a seeded pseudo-random stream (every value occurs), then lives as its manner says.
pub(crate) fn binary(args: &Args) -> i32 {
    let part = Part::of(args);
    part.prepare();
    part.facts.announce("leader");
    let mut state: u64 = args.number("seed", 1_u64).max(1);
    emit(args.number("bytes", 1_000_000), || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    });
    part.facts.state("ready", "");
    part.live("leader")
}

fn emit(count: usize, mut next: impl FnMut() -> u8) {
    let mut left = count;
    while left > 0 {
        let block: Vec<u8> = (0..left.min(CHUNK)).map(|_| next()).collect();
        if sys::write_all(1, &block) < block.len() {
            sys::broken("could not write");
        }
        left -= block.len();
    }
}

/// On TERM logs a numbered line every `--every-ms` (50) for `--ms` (1500), then states `clean-leader` with the number
/// of lines it managed to write. SIGPIPE has its default action: losing the reader is fatal, and seen.
pub(crate) fn last_words(args: &Args) -> i32 {
    let facts = Facts::of(args);
    let heard = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1];
    sys::default(libc::SIGPIPE);
    sys::block(&heard);
    facts.announce("leader");
    sys::write_all(1, b"started\n");
    facts.state("ready", "");
    let _ = sys::wait_signal(&heard, None);
    facts.state("told-leader", "");
    let (work, every): (u64, u64) = (args.number("ms", 1_500), args.number("every-ms", 50));
    let end = sys::now() + work * 1_000_000;
    let mut lines = 0_u64;
    while sys::now() < end {
        let text = format!("{lines:012}\n");
        if sys::write_all(1, text.as_bytes()) < text.len() {
            facts.state("failed-writes", &sys::errno().to_string());
            return 1;
        }
        lines += 1;
        let _ = sys::wait_signal(&[libc::SIGUSR2], Some((sys::now() + every * 1_000_000).min(end)));
    }
    sys::write_all(1, b"last words\n");
    facts.state("clean-leader", &lines.to_string());
    0
}

/// The leader exits at once (or at SIGUSR1 with `--wait 1`); its grandchild keeps standard output, and has written
/// `holder N` lines into it by the time the leader leaves.
pub(crate) fn pipe_holder(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = crate::facts::Muster::new();
    if sys::fork(part.until).is_none() {
        if sys::fork(part.until).is_none() {
            part.prepare();
            part.facts.announce("holder");
            sys::write_all(1, b"holder stands\n");
            muster.stand();
            part.live("holder");
        }
        sys::exit_now(0);
    }
    sys::reap_one(true);
    muster.wait_for(1);
    part.facts.announce("leader");
    sys::write_all(1, b"leader leaves\n");
    if args.number("wait", 0) == 1 {
        sys::block(&[libc::SIGUSR1]);
        part.facts.state("ready", "");
        let _ = sys::wait_signal(&[libc::SIGUSR1], None);
    } else {
        part.facts.state("ready", "");
    }
    args.number("code", 0)
}
