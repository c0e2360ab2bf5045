//! What the kernel says in `/proc` and by netlink, with whatever processes put into it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| lariat_sys::fuzzing::all(bytes));
