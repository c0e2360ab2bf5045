//! Where the fixture program is.
//!
//! Cargo builds the binaries of a package only for that package's own tests, and for a workspace run because this
//! package has tests. Somebody who runs the tests of one other package gets it built here.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Returns the path of the fixture program `misbehave`, building it if it is not there.
///
/// # Panics
/// When it is absent and cannot be built.
#[must_use]
pub fn path() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| built("misbehave"))
}

/// Returns the path of the program `without`, which runs others as on an older kernel ([`crate::kernel`]).
///
/// # Panics
/// As [`path`].
#[must_use]
pub fn without() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| built("without"))
}

fn built(name: &str) -> String {
    let path = beside_tests().join(name);
    if !path.exists() {
        build();
    }
    assert!(path.exists(), "there is no fixture program at {}", path.display());
    path.into_os_string().into_string().expect("the target directory's path is plain")
}

/// The directory above `deps/`, where test executables are.
fn beside_tests() -> PathBuf {
    let own = std::env::current_exe().expect("/proc is mounted");
    let deps = own.parent().expect("an executable is in a directory");
    if deps.ends_with("deps") { deps.parent().unwrap_or(deps).to_owned() } else { deps.to_owned() }
}

fn build() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "lariat-testkit", "--bins"]);
    if beside_tests().ends_with("release") {
        command.arg("--release");
    }
    let status = command.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(status.is_ok_and(|status| status.success()), "could not build the fixture program");
}

/// Returns a shell command line that runs the fixture `kind` with these arguments and facts, for configuration files.
#[must_use]
pub fn line(kind: &str, facts: &crate::Facts, args: &str) -> String {
    format!("exec {} {kind} --facts {} {args}", path(), facts.as_arg())
}

/// The bytes of one line of `flood` and `last-words`, its newline included.
const LINE: usize = 13;

/// Returns the number of the first line of a `flood` that is not what it should be; `None` when every line is there,
/// in order, once, and whole.
#[must_use]
pub fn wrong_line(bytes: &[u8]) -> Option<usize> {
    bytes
        .chunks(LINE)
        .enumerate()
        .find(|(number, line)| *line != format!("{number:012}\n").as_bytes())
        .map(|(at, _)| at)
}

/// Returns what `no-newline` writes.
#[must_use]
pub fn alphabet(count: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(count).collect()
}

/// Returns what `binary` writes.
#[must_use]
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.max(1);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(count).collect()
}
