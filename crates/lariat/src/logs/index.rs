//! Reads a store's index: when the byte at an offset came, and what is missing around it.
//!
//! Whatever the file holds, there is an answer and no panic: an index that is missing, cut or damaged gives no times or
//! wrong ones, and never hides a line.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use lariat_keeper::store::{IndexRecord, RECORD_BYTES};

/// How many records are read at once.
const BLOCK_RECORDS: u64 = 256;

/// What the index says of a stretch of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Facts {
    /// When the bytes were stored, since the Unix epoch.
    pub(super) time: Option<Duration>,
    /// How many bytes are missing before them.
    pub(super) dropped: u64,
}

/// A place in the index that moves forward with the lines that are read.
#[derive(Debug)]
pub(super) struct IndexCursor {
    file: Option<File>,
    /// The number of the record that is looked at next.
    next: u64,
    /// The records from `block_start` on.
    block: Vec<IndexRecord>,
    block_start: u64,
}

impl IndexCursor {
    pub(super) fn new(file: Option<File>) -> Self {
        Self { file, next: 0, block: Vec::new(), block_start: 0 }
    }

    /// Moves to the first record about a byte at or behind `offset`.
    pub(super) fn seek(&mut self, offset: u64) {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.record(middle) {
                Some(record) if record.end() <= offset => low = middle + 1,
                Some(_) => high = middle,
                None => break,
            }
        }
        self.next = low;
    }

    /// Returns what is known of the byte at `offset`, counting what is missing since the last call.
    pub(super) fn facts_at(&mut self, offset: u64) -> Facts {
        let mut facts = Facts::default();
        while let Some(record) = self.record(self.next) {
            match record {
                IndexRecord::Stored { unix_ns, end } if end > offset => {
                    facts.time = Some(Duration::from_nanos(unix_ns));
                    break;
                }
                IndexRecord::Stored { .. } => {}
                IndexRecord::Dropped { bytes, .. } => facts.dropped = facts.dropped.saturating_add(bytes),
            }
            self.next += 1;
        }
        facts
    }

    fn count(&self) -> u64 {
        let length = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |m| m.len());
        length / RECORD_BYTES as u64
    }

    fn record(&mut self, number: u64) -> Option<IndexRecord> {
        let in_block = |start: u64| usize::try_from(number.checked_sub(start)?).ok();
        if let Some(record) = in_block(self.block_start).and_then(|at| self.block.get(at)) {
            return Some(*record);
        }
        let file = self.file.as_ref()?;
        let mut bytes = [0; BLOCK_RECORDS as usize * RECORD_BYTES];
        let start = number - number % BLOCK_RECORDS;
        let length = file.read_at(&mut bytes, start.checked_mul(RECORD_BYTES as u64)?).ok()?;
        let records = bytes[..length].as_chunks::<RECORD_BYTES>().0;
        self.block.clear();
        self.block.extend(records.iter().map(|record| IndexRecord::decode(*record)));
        self.block_start = start;
        in_block(start).and_then(|at| self.block.get(at)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn cursor(bytes: &[u8]) -> IndexCursor {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        IndexCursor::new(Some(file))
    }

    fn stored(n: u64) -> [u8; RECORD_BYTES] {
        IndexRecord::Stored { unix_ns: n * 1_000, end: n * 10 }.encode()
    }

    #[test]
    fn times_are_found_going_forward_and_after_a_jump() {
        let mut cursor = cursor(&(1..=1_000).flat_map(stored).collect::<Vec<u8>>());
        for (offset, micros) in [(0, 1), (9, 1), (10, 2), (11, 2), (5_000, 501), (9_999, 1_000)] {
            assert_eq!(cursor.facts_at(offset).time, Some(Duration::from_micros(micros)), "going, {offset}");
        }
        assert_eq!(cursor.facts_at(10_000).time, None);
        for (offset, micros) in [(9_999, 1_000), (0, 1), (2_560, 257), (2_559, 256)] {
            cursor.seek(offset);
            assert_eq!(
                cursor.facts_at(offset).time,
                Some(Duration::from_micros(micros)),
                "jumping, {offset}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_counted_once() {
        let dropped = |bytes, end| IndexRecord::Dropped { bytes, end }.encode();
        let records = [stored(1), dropped(7, 10), dropped(8, 20), stored(2), stored(3)].concat();
        let mut cursor = cursor(&records);
        assert_eq!(cursor.facts_at(5).dropped, 0);
        assert_eq!(cursor.facts_at(15).dropped, 15);
        assert_eq!(cursor.facts_at(25).dropped, 0);
    }

    #[test]
    fn no_index_gives_no_times() {
        let mut cursor = IndexCursor::new(None);
        cursor.seek(7);
        assert_eq!(cursor.facts_at(7), Facts::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_index(bytes in prop::collection::vec(any::<u8>(), 0..500), offsets in prop::collection::vec(any::<u64>(), 1..5)) {
            let mut cursor = cursor(&bytes);
            for offset in offsets {
                cursor.seek(offset);
                cursor.facts_at(offset);
            }
        }
    }
}
