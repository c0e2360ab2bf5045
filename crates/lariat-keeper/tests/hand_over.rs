//! A drain that is SIGKILLed at any moment loses and doubles nothing: another process goes on with the same pipe,
//! stage and store.
//!
//! The seed of the moments is printed; `LARIAT_TEST_SEED` sets it.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a test")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lariat_keeper::store::{Drain, Output, Stage};

const KILLS: usize = 300;
const WORD_BYTES: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

/// The process that is killed. It is this test program again; without its variables, this test does nothing.
#[test]
fn draining_process() {
    let Ok(pipes) = std::env::var("LARIAT_TEST_PIPES") else { return };
    // A pipe opened again by its name is the same pipe. The store must not be: it is shared as stdin.
    let mut ends = pipes.split(',').zip([true, true, false]).map(|(path, is_read)| -> OwnedFd {
        OpenOptions::new().read(is_read).write(!is_read).open(path).unwrap().into()
    });
    let mut next = || ends.next().unwrap();
    let (pipe, stage) = (next(), Stage { read: next(), write: next() });
    let store = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut drain = Drain::new(pipe, stage, store, None).unwrap();
    while !drain.drain(1 << 20).is_closed {
        let mut polled =
            [rustix::event::PollFd::from_borrowed_fd(drain.pipe(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, None).unwrap();
    }
}

fn start_draining(output: &Output, store: &File) -> Child {
    let name = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let pipes = [name(&output.read), name(&output.stage.read), name(&output.stage.write)].join(",");
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "draining_process", "--test-threads=1", "--quiet"])
        .env("LARIAT_TEST_PIPES", pipes)
        .stdin(store.try_clone().unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Returns where the store's next byte goes. A clone of the file shares the offset.
fn offset(store: &File) -> u64 {
    rustix::fs::tell(store).unwrap()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

struct Random(u64);

impl Random {
    fn from_environment() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let given = std::env::var("LARIAT_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or(now.as_nanos() as u64) | 1;
        println!("LARIAT_TEST_SEED={seed}");
        Self(seed)
    }

    /// xorshift64*
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// Writes consecutive numbers, `at_once` bytes in one call, until told to stop, and returns how many numbers.
fn write_numbers(mut pipe: File, at_once: usize, has_to_stop: &AtomicBool) -> u64 {
    let mut block = vec![0; at_once];
    let mut number = 0_u64;
    while !has_to_stop.load(Ordering::Relaxed) {
        for word in block.as_chunks_mut::<WORD_BYTES>().0 {
            *word = number.to_le_bytes();
            number += 1;
        }
        pipe.write_all(&block).unwrap();
    }
    number
}

/// Checks the numbers between two offsets and returns how far it got: the end of the last whole one.
fn check(store: &File, from: u64, to: u64) -> Result<u64, String> {
    let mut block = vec![0; 1 << 20];
    let mut at = from;
    while at + WORD_BYTES as u64 <= to {
        let length = (to - at).min(block.len() as u64) as usize;
        store.read_exact_at(&mut block[..length], at).unwrap();
        for word in block[..length].as_chunks::<WORD_BYTES>().0 {
            let (found, expected) = (u64::from_le_bytes(*word), at / WORD_BYTES as u64);
            if found != expected {
                return Err(format!("at offset {at}: {found} instead of {expected}"));
            }
            at += WORD_BYTES as u64;
        }
    }
    Ok(at)
}

fn kill_at_random(dir: &Path, at_once: usize) {
    let mut random = Random::from_environment();
    let output = Output::new().unwrap();
    let store = OpenOptions::new().read(true).write(true).create_new(true).open(dir.join("store")).unwrap();
    let has_to_stop = Arc::new(AtomicBool::new(false));
    let (pipe, told) = (File::from(output.write.try_clone().unwrap()), Arc::clone(&has_to_stop));
    let numbers = std::thread::spawn(move || write_numbers(pipe, at_once, &told));

    let (mut checked, mut kills_with_stage) = (0, 0);
    for _ in 0..KILLS {
        let before = offset(&store);
        let mut child = start_draining(&output, &store);
        wait_for("the drain moves", || offset(&store) > before);
        let moment = Instant::now() + Duration::from_micros(random.below(700));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills_with_stage += u32::from(rustix::io::ioctl_fionread(&output.stage.read).unwrap() > 0);
        checked = check(&store, checked, offset(&store)).unwrap();
    }
    has_to_stop.store(true, Ordering::Relaxed);
    // The last one drains to the end: every writer is gone then.
    let Output { read, write, stage } = output;
    let mut last = Drain::new(read, stage, store.try_clone().unwrap().into(), None).unwrap();
    drop(write);
    wait_for("the pipe is closed", || last.drain(1 << 20).is_closed);
    let numbers = numbers.join().unwrap();
    let end = offset(&store);
    assert_eq!(check(&store, checked, end), Ok(end));
    assert_eq!(end, numbers * WORD_BYTES as u64, "every number is there once");
    println!("{KILLS} kills, {kills_with_stage} of them with bytes in the stage, {} MB", end / 1_000_000);
}

#[test]
fn nothing_is_lost_when_the_drain_of_a_buffered_writer_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    kill_at_random(dir.path(), 64 * 1024);
}

#[test]
fn nothing_is_lost_when_the_drain_of_an_unbuffered_writer_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    kill_at_random(dir.path(), 104);
}

/// The negative control: a gap and a repetition of one number are noticed.
#[test]
fn the_check_notices_gaps_and_repetitions() {
    let store = tempfile::tempfile().unwrap();
    for (numbers, is_whole) in [([0_u64, 1, 2, 3], true), ([0, 1, 3, 4], false), ([0, 1, 1, 2], false)] {
        store.write_all_at(&numbers.map(u64::to_le_bytes).concat(), 0).unwrap();
        assert_eq!(check(&store, 0, 32).is_ok(), is_whole, "{numbers:?}");
    }
}
