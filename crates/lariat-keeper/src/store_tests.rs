use super::*;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

struct Bench {
    dir: tempfile::TempDir,
    writer: Option<File>,
    drain: Drain,
}

fn open_store(path: &Path) -> OwnedFd {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap().into()
}

fn bench_on(store: OwnedFd) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let output = Output::new().unwrap();
    let index = OpenOptions::new().append(true).create(true).open(dir.path().join("a.idx")).unwrap();
    let drain = Drain::new(output.read, output.stage, store, Some(index.into())).unwrap();
    Bench { dir, writer: Some(File::from(output.write)), drain }
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir.path().join("a.log"));
    Bench { dir, ..bench_on(store) }
}

fn index_of(path: PathBuf) -> Vec<IndexRecord> {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() % RECORD_BYTES, 0);
    bytes.as_chunks::<RECORD_BYTES>().0.iter().map(|r| IndexRecord::decode(*r)).collect()
}

#[test]
fn records_survive_the_disk() {
    for record in [
        IndexRecord::Stored { unix_ns: 1_700_000_000_123_456_789, end: 42 },
        IndexRecord::Dropped { bytes: 7, end: u64::MAX },
        IndexRecord::Stored { unix_ns: 0, end: 0 },
    ] {
        assert_eq!(IndexRecord::decode(record.encode()), record);
    }
    let bytes = IndexRecord::Stored { unix_ns: 0x0102, end: 0x0304 }.encode();
    assert_eq!(bytes, [2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn bytes_go_to_the_store_and_times_to_the_index() {
    let output = Output::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir.path().join("a.log"));
    let index = OpenOptions::new().append(true).create(true).open(dir.path().join("a.idx")).unwrap();
    let mut drain = Drain::new(output.read, output.stage, store, Some(index.into())).unwrap();
    assert_eq!(drain.drain(1 << 20), Drained { is_empty: true, ..Drained::default() });

    let mut writer = File::from(output.write);
    writer.write_all(b"hello\n").unwrap();
    assert_eq!(drain.waiting(), 6);
    assert_eq!(drain.drain(1 << 20), Drained { moved: 6, is_empty: true, ..Drained::default() });
    drop(writer);
    assert_eq!(drain.drain(1 << 20), Drained { is_empty: true, is_closed: true, ..Drained::default() });
    assert_eq!(drain.end(), 6);
    drop(drain);
    assert_eq!(std::fs::read(dir.path().join("a.log")).unwrap(), b"hello\n");
    let index = index_of(dir.path().join("a.idx"));
    assert!(matches!(index[..], [IndexRecord::Stored { unix_ns, end: 6 }] if unix_ns > 1_600_000_000 << 30));
}

#[test]
fn a_flood_is_taken_in_pieces_and_grows_the_pipe() {
    let mut bench = bench();
    let mut writer = bench.writer.take().unwrap();
    let flood = std::thread::spawn(move || {
        let block: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
        for _ in 0..100 {
            writer.write_all(&block).unwrap();
        }
    });
    let mut moved = 0;
    loop {
        let done = bench.drain.drain(64 * 1024);
        assert!(done.total() <= 64 * 1024 + PIPE_BYTES_GROWN, "one call took {}", done.total());
        moved += done.moved;
        if done.is_closed {
            break;
        }
    }
    flood.join().unwrap();
    assert_eq!(moved, 4_000_000);
    assert_eq!(bench.drain.growth, Growth::Done);
    drop(bench.dir);
}

#[test]
fn a_full_disk_costs_the_bytes_and_nothing_else() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut bench = bench_on(full.into());
    let mut writer = bench.writer.take().unwrap();
    writer.write_all(&[b'x'; 50_000]).unwrap();
    let done = bench.drain.drain(1 << 20);
    assert_eq!((done.moved, done.dropped, done.is_empty), (0, 50_000, true));
    writer.write_all(b"more").unwrap();
    assert_eq!(bench.drain.drain(1 << 20).dropped, 4);
    drop(bench.drain);
    let counted: u64 = index_of(bench.dir.path().join("a.idx"))
        .into_iter()
        .map(|r| if let IndexRecord::Dropped { bytes, .. } = r { bytes } else { 0 })
        .sum();
    assert_eq!(counted, 50_004);
}

#[test]
fn a_store_that_refuses_splice_is_written_by_copy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.log");
    let store = OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let mut bench = bench_on(store.into());
    let mut writer = bench.writer.take().unwrap();
    let text: Vec<u8> = (0..60_000_u32).map(|n| n as u8).collect();
    writer.write_all(&text).unwrap();
    assert_eq!(bench.drain.drain(1 << 20).moved, text.len());
    assert_eq!(bench.drain.way, Way::Copy);
    assert_eq!(std::fs::read(path).unwrap(), text);
}

#[test]
fn the_next_drain_starts_with_what_is_in_the_stage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.log");
    let output = Output::new().unwrap();
    let mut stage_writer = File::from(output.stage.write.try_clone().unwrap());
    stage_writer.write_all(b"first ").unwrap();
    let mut writer = File::from(output.write);
    writer.write_all(b"second").unwrap();
    drop(writer);
    let mut drain = Drain::new(output.read, output.stage, open_store(&path), None).unwrap();
    assert_eq!(drain.waiting(), 12);
    let done = drain.drain(1 << 20);
    assert_eq!((done.moved, done.is_closed), (12, true));
    assert_eq!(std::fs::read(path).unwrap(), b"first second");
}

#[test]
fn a_drain_made_early_takes_what_was_staged_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.log");
    let output = Output::new().unwrap();
    let mut stage_writer = File::from(output.stage.write.try_clone().unwrap());
    let mut drain = Drain::new(output.read, output.stage, open_store(&path), None).unwrap();
    stage_writer.write_all(b"first ").unwrap();
    let mut writer = File::from(output.write);
    writer.write_all(b"second").unwrap();
    assert_eq!(drain.waiting(), 12);
    assert_eq!(drain.drain_to_empty(1 << 20).moved, 12);
    stage_writer.write_all(b" third").unwrap();
    drop(writer);
    let done = drain.drain(1 << 20);
    assert_eq!((done.moved, done.is_closed), (6, true));
    assert_eq!(std::fs::read(path).unwrap(), b"first second third");
}

#[test]
fn a_limit_is_kept_while_the_writer_never_pauses() {
    let mut bench = bench();
    let mut writer = bench.writer.take().unwrap();
    writer.write_all(&[b'x'; 60_000]).unwrap();
    let done = bench.drain.drain(1);
    assert!(done.moved >= 1 && done.moved < 60_000, "{done:?}");
    assert!(!done.is_empty);
}
