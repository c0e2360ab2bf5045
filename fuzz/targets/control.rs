//! The negative control: a fault that only a fuzzer with feedback finds. The run counts only if this target fails.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let [b'n', b'o', b'o', b's', b'e', ..] = bytes {
        panic!("found what was hidden");
    }
});
