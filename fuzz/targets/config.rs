//! A `lariat.toml`: any text gives a stack that can be ordered, or errors that can be shown.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "shared/reading.rs"]
mod reading;

fuzz_target!(|text: &str| reading::check(&lariat_config::parse_toml(text, &reading::origin("lariat.toml"))));
