//! What a crash may have left on the disk: the ledger, its journals, the record of a command.

#![no_main]

use lariat::event::Event;
use lariat::ledger::record::{EndRecord, RunId};
use lariat::ledger::store::{self, Loaded};
use lariat::ledger::{command, journal, recover::Clues};
use lariat::process::Mark;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Loaded::Record(record) = store::parse(bytes) {
        // Whoever reads a record acts on it.
        let _ = Clues::of(&record);
        for stop in record.services.iter().filter_map(|service| service.stop.as_ref()) {
            let _ = stop.plan();
        }
    }
    for end in journal::parse::<EndRecord>(bytes).records {
        let _ = (end.stop_time(), end.is_graceful());
    }
    let _ = journal::parse::<Event>(bytes);
    if let Ok(run) = RunId::try_from("0123456789abcdef".to_owned()) {
        let _ = command::parse(bytes, &run);
    }
    let _ = Mark::parse(bytes);
});
