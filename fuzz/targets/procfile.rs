//! A Procfile: as for `lariat.toml`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "shared/reading.rs"]
mod reading;

fuzz_target!(|text: &str| reading::check(&lariat_config::parse_procfile(text, &reading::origin("Procfile"))));
