//! Programs that tests need and a machine may lack: found, or skipped loudly.
//!
//! A skip prints `SKIP: …` and, when `LARIAT_TEST_SKIPS` names a file, appends the line to it, so that the skips of a
//! run can be counted although test runners hide the output of tests that pass. With `CI=true` a skip is a failure.
//! What provides the programs is listed in `needs.txt`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Where programs are looked for, beside what [`found`] knows of places outside of it.
pub const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns where a program is: in [`SEARCH`], in Debian's directories of PostgreSQL, or in the environment that
/// `LARIAT_TEST_VENV` (default: `target/needs/venv` of the workspace) names.
#[must_use]
pub fn found(program: &str) -> Option<PathBuf> {
    let mut dirs: Vec<PathBuf> = vec![venv().join("bin")];
    dirs.extend(SEARCH.split(':').map(PathBuf::from));
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    dirs.extend(versions.map(|version| version.path().join("bin")));
    dirs.into_iter().map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn venv() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("LARIAT_TEST_VENV").map_or_else(|| workspace.join("target/needs/venv"), PathBuf::from)
}

/// Returns the path of a program as text, or says that the test is skipped and returns `None`.
///
/// # Panics
/// When the program is missing and `CI` is `true`.
#[must_use]
#[track_caller]
pub fn program(name: &str) -> Option<String> {
    let path = found(name).and_then(|path| path.to_str().map(str::to_owned));
    if path.is_none() {
        skip(&format!("`{name}` is not installed"));
    }
    path
}

/// Says that the calling test is skipped, and why.
///
/// # Panics
/// When `CI` is `true`: there, everything that tests need is installed, and no skip is allowed.
#[track_caller]
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIP: {}: {why}\n", thread.name().unwrap_or("a test"));
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{line}");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(file) = std::env::var_os("LARIAT_TEST_SKIPS") {
        let file = OpenOptions::new().append(true).create(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Says that the calling test needs root. A skip like any other, unless `LARIAT_TEST_ROOT_TOO` says that the same tests
/// run as root as well.
///
/// # Panics
/// As [`skip`].
#[track_caller]
pub fn skip_as_user(why: &str) {
    if std::env::var_os("LARIAT_TEST_ROOT_TOO").is_none() {
        skip(why);
    }
}

/// Says that the calling test needs a kernel set up as that of `cargo xtask kernel`, where it fails instead. A skip like
/// any other, unless `LARIAT_TEST_GUEST_TOO` says that the same tests run there as well.
///
/// # Panics
/// In the guest, and as [`skip`].
#[track_caller]
pub fn skip_here(why: &str) {
    assert!(std::env::var_os("LARIAT_TEST_GUEST").is_none(), "the guest is to have it: {why}");
    if std::env::var_os("LARIAT_TEST_GUEST_TOO").is_none() {
        skip(why);
    }
}

/// Binds the paths of programs, or skips the test: `need!(node, npm = "npm")`.
#[macro_export]
macro_rules! need {
    ($name:expr) => {
        match $crate::needs::program($name) {
            Some(path) => path,
            None => return,
        }
    };
}
