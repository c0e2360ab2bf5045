//! The program that is judged.

use std::ffi::OsString;

/// Returns the `lariat` to test: `built`, or what `LARIAT_TEST_BINARY` names, so that the same tests can judge a
/// packaged executable.
#[must_use]
pub fn lariat(built: &str) -> OsString {
    std::env::var_os("LARIAT_TEST_BINARY").unwrap_or_else(|| built.into())
}
