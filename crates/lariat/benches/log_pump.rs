//! Log throughput: the pump beside `cat > file` and a plain read-and-write loop, for a buffered and an unbuffered writer
//! of 100-byte lines.
//!
//! `cargo bench -p lariat --bench log_pump [-- DIRECTORY…]`. Rounds are interleaved, the median is printed.

// A benchmark prints.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lariat::logs::Store;
use lariat::logs::pump::Pump;
use lariat_keeper::store::Output;

const ROUNDS: usize = 7;
const LINE: &[u8; 100] = &{
    let mut line = [b'x'; 100];
    line[99] = b'\n';
    line
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [kind, chunk, total] = &arguments[..]
        && kind == "--writer"
    {
        return write_lines(chunk.parse().unwrap(), total.parse().unwrap());
    }
    let directories: Vec<PathBuf> = match &arguments[..] {
        [] => vec![std::env::temp_dir(), PathBuf::from("/dev/shm")],
        given => given.iter().map(PathBuf::from).collect(),
    };
    for directory in directories {
        let directory = tempfile::tempdir_in(directory).unwrap();
        println!("{}", directory.path().display());
        for (name, chunk, total) in [
            ("buffered (64 KiB)", 65_500, 400_000_000),
            ("buffered (4 KiB)", 4_000, 200_000_000),
            ("unbuffered", 100, 40_000_000),
        ] {
            compare(directory.path(), name, chunk, total);
        }
    }
}

fn write_lines(chunk: usize, total: usize) {
    let block: Vec<u8> = LINE.iter().copied().cycle().take(chunk).collect();
    let mut stdout = File::from(std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned().unwrap());
    for _ in 0..total / chunk {
        stdout.write_all(&block).unwrap();
    }
}

fn writer(chunk: usize, total: usize, stdout: impl Into<Stdio>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--writer", &chunk.to_string(), &total.to_string()]).stdout(stdout).spawn().unwrap()
}

fn compare(directory: &Path, name: &str, chunk: usize, total: usize) {
    type Way = fn(&Path, usize, usize) -> u64;
    let ways: [(&str, Way); 3] = [("cat > file", by_cat), ("read and write", by_copy), ("pump", by_pump)];
    let mut times = [const { Vec::<Duration>::new() }; 3];
    for _ in 0..ROUNDS {
        for ((_, way), times) in ways.iter().zip(&mut times) {
            let start = Instant::now();
            let stored = way(directory, chunk, total);
            times.push(start.elapsed());
            assert_eq!(stored, (total / chunk * chunk) as u64);
            for entry in std::fs::read_dir(directory).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
    }
    let rates = times.map(|mut times| {
        times.sort();
        total as f64 / 1e6 / times[ROUNDS / 2].as_secs_f64()
    });
    for ((way, _), rate) in ways.iter().zip(rates) {
        println!(
            "  {name:18} {way:15} {rate:7.0} MB/s   {:.2} of cat, {:.2} of read and write",
            rate / rates[0],
            rate / rates[1]
        );
    }
}

fn by_cat(directory: &Path, chunk: usize, total: usize) -> u64 {
    let path = directory.join("cat");
    let mut writer = writer(chunk, total, Stdio::piped());
    let output = writer.stdout.take().unwrap();
    let mut cat = Command::new("cat").stdin(output).stdout(File::create(&path).unwrap()).spawn().unwrap();
    cat.wait().unwrap();
    writer.wait().unwrap();
    path.metadata().unwrap().len()
}

fn by_copy(directory: &Path, chunk: usize, total: usize) -> u64 {
    let path = directory.join("copy");
    let (read, write) = lariat_sys::files::pipe(256 * 1024).unwrap();
    let mut writer = writer(chunk, total, write);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
    let (mut read, mut block) = (File::from(read), vec![0; 256 * 1024]);
    loop {
        match read.read(&mut block).unwrap() {
            0 => break,
            length => file.write_all(&block[..length]).unwrap(),
        }
    }
    writer.wait().unwrap();
    path.metadata().unwrap().len()
}

fn by_pump(directory: &Path, chunk: usize, total: usize) -> u64 {
    let pump = Pump::start().unwrap();
    let bell = pump.bell().unwrap();
    let store = Store::create(directory, "bench").unwrap();
    let Output { read, write, stage } = Output::new().unwrap();
    let flow = pump.add(store.drain(read, stage).unwrap());
    let write: OwnedFd = write;
    let mut writer = writer(chunk, total, write);
    bell.set_wanted(false);
    writer.wait().unwrap();
    bell.set_wanted(true);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !flow.is_done() {
        assert!(Instant::now() < deadline, "the pump did not see the end of the pipe");
        let flags = lariat_sys::poll::PollFlags::IN;
        let mut polled = [lariat_sys::poll::PollFd::new(&bell, flags)];
        lariat_sys::poll::poll(&mut polled, Some(Instant::now() + Duration::from_millis(1))).unwrap();
        bell.clear();
    }
    flow.moved()
}
