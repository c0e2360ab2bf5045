//! Tests on an older kernel: Debian's own, in a virtual machine of software alone.
//!
//! The tests are those that run here, the same executables under the same paths: everything is linked statically. What
//! they start is copied along with its libraries. No network, no disk, and a deadline for all of it. What cannot be
//! had here (the emulator, the kernel's package) is a skip.

mod archive;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::steps::CARGO_LIMIT;
use super::{Outcome, Session};
use crate::commands;
use archive::Archive;

/// The package whose newest version names the kernel: the smallest that Debian has.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// The emulator.
const EMULATOR: &str = "qemu-system-x86_64";
/// Longest time for the guest, from power-on to power-off.
const GUEST_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Longest time for getting the kernel.
const FETCH_LIMIT: Duration = Duration::from_secs(5 * 60);
/// Modules that a running Debian loads by itself when somebody asks: loaded in this order.
const MODULES: &[&str] = &["inet_diag", "tcp_diag", "udp_diag"];
/// What tests start by name, and `busybox` for the first process.
const PROGRAMS: &[&str] = &[
    "bash", "busybox", "cat", "cp", "dd", "echo", "env", "false", "kill", "ls", "mkdir", "mkfifo", "mount",
    "rm", "sed", "seq", "setpriv", "setsid", "sh", "sleep", "touch", "true", "unshare",
];

/// The tests of a program that are run: those whose name starts with one of these words.
struct Chosen {
    package: &'static str,
    /// The program's name: a file below `tests/`, or the library; all of the package if empty.
    program: &'static str,
    starts: &'static [&'static str],
}

/// Tests that take minutes where processors are emulated, and show nothing there that others do not show.
const TOO_HEAVY: &[&str] = &["a_walk_over_a_dying_tree_is_no_error", "both_walks_agree_and_go_nearest_first"];

const fn chosen(package: &'static str, program: &'static str, starts: &'static [&'static str]) -> Chosen {
    Chosen { package, program, starts }
}

/// All that touches the kernel, and of the command what the promise is made of. Hours of emulation are not worth more.
///
/// No `runners`: members that change their number every half millisecond are caught by being faster, and a keeper in an
/// emulator is not.
const CHOSEN: &[Chosen] = &[
    chosen("lariat-cli", "recycled", &[""]),
    chosen(
        "lariat-cli",
        "run_matrix",
        &[
            "alone::leader_exits",
            "daemon::",
            "new_session::kill",
            "new_session::term",
            "stopped::term",
            "forks_while_dying::kill",
            "wide::term",
        ],
    ),
    chosen("lariat-cli", "up_runs", &["up_after", "down_after", "after_the_supervisors", "a_recycled"]),
    chosen("lariat-cli", "kernels", &["what_", "without_close_range_at_exec"]),
    chosen("lariat-cli", "limits", &[""]),
    chosen("lariat-keeper", "recycled", &[""]),
    chosen("lariat-sys", "", &[""]),
];

/// A test, as the guest runs it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Test {
    dir: PathBuf,
    program: PathBuf,
    name: String,
}

/// What cargo has built.
#[derive(Debug, Default)]
struct Built {
    /// Package, folder of the package, path of a program of tests.
    tests: Vec<(String, PathBuf, PathBuf)>,
    /// Programs that tests start by their path.
    programs: BTreeSet<PathBuf>,
}

/// Runs the chosen tests on Debian's kernel.
pub(super) fn run(session: &Session) -> Result<Outcome> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Outcome::skip("an older kernel: only prepared for x86-64"));
    }
    if let Some(missing) = [EMULATOR, "busybox", "ldd"].iter().find(|name| !commands::is_installed(name)) {
        return Ok(Outcome::skip(format!("an older kernel: `{missing}` is not installed")));
    }
    let kernel = match kernel(&session.root.join("target/needs/kernel")) {
        Ok(kernel) => kernel,
        Err(error) => return Ok(Outcome::skip(format!("an older kernel: {error:#}"))),
    };
    let built = build(session)?;
    let tests = tests(&built)?;
    let memory = session.root.join("target/needs/kernel/guest.cpio");
    let mut guest = guest(&built, &tests)?;
    for name in MODULES {
        let module = fs::read(module(&kernel, name)?).with_context(|| format!("could not read {name}"))?;
        guest.file(&Path::new("/modules").join(name), 0o644, module);
    }
    fs::write(&memory, guest.bytes()).context("could not write the guest's files")?;
    println!("{} tests on {}", tests.len(), kernel.display());
    let (_, said) = commands::tee(&mut emulator(&kernel, &memory), GUEST_LIMIT)?;
    let outcome = outcome(&said, tests.len());
    println!("{} passed, {} failed", outcome.passed, outcome.failed);
    Ok(outcome)
}

/// Returns the kernel's image, fetched if it is not there.
fn kernel(dir: &Path) -> Result<PathBuf> {
    if let Some(found) = image(dir) {
        return Ok(found);
    }
    ensure!(commands::is_installed("apt-get") && commands::is_installed("dpkg"), "this is no Debian");
    fs::create_dir_all(dir)?;
    let (_, depends) = commands::output(Command::new("apt-cache").args(["depends", PACKAGE]), FETCH_LIMIT)?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let package = format!("linux-image-{}", package.with_context(|| format!("apt knows no {PACKAGE}"))?);
    let mut fetch = Command::new("apt-get");
    let (status, said) = commands::output(fetch.args(["download", &package]).current_dir(dir), FETCH_LIMIT)?;
    ensure!(status.success(), "could not fetch {package}: {}", said.trim());
    let archive = fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let archive = archive.filter(|path| path.extension().is_some_and(|ending| ending == "deb")).last();
    let mut unpack = Command::new("dpkg");
    unpack.arg("--extract").arg(archive.context("nothing was fetched")?).arg(dir);
    ensure!(commands::status(&mut unpack, FETCH_LIMIT)?.success(), "could not unpack {package}");
    image(dir).with_context(|| format!("{package} has no kernel"))
}

fn image(dir: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(dir.join("boot")).ok()?.flatten().map(|entry| entry.path());
    files
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz")))
        .max()
}

/// Returns where a module of the network's fourth version is, beside the kernel's image.
fn module(kernel: &Path, name: &str) -> Result<PathBuf> {
    let version = kernel.file_name().and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"));
    let root = kernel.ancestors().nth(2).context("an image is in a folder")?;
    let modules = root.join("lib/modules").join(version.context("an image has a version")?);
    Ok(modules.join("kernel/net/ipv4").join(name).with_extension("ko"))
}

/// Builds the programs of tests and what they start.
fn build(session: &Session) -> Result<Built> {
    let mut command =
        session.cargo(&["test", "--locked", "--no-run", "--lib", "--bins", "--tests", "--quiet"]);
    command.arg("--message-format=json-render-diagnostics");
    let packages: BTreeSet<&str> = CHOSEN.iter().map(|chosen| chosen.package).collect();
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    // Its tests are not run there; what it is needed for is its programs.
    command.args(["--package", "lariat-testkit"]);
    let (status, messages) = commands::output(&mut command, CARGO_LIMIT)?;
    ensure!(status.success(), "the tests do not build\n{messages}");
    let mut built = Built::default();
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(path), Some(manifest)) =
            (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        let dir = Path::new(manifest).parent().context("a manifest is in a folder")?.to_owned();
        let package = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        match message["profile"]["test"] == true {
            true => built.tests.push((package, dir, path.into())),
            false => drop(built.programs.insert(path.into())),
        }
    }
    Ok(built)
}

/// Lists the chosen tests.
fn tests(built: &Built) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for chosen in CHOSEN {
        let before = tests.len();
        let is_chosen = |name: &str| chosen.program.is_empty() || chosen.program == name;
        for (_, dir, program) in built
            .tests
            .iter()
            .filter(|(package, _, path)| package == chosen.package && is_chosen(&stem(path)))
        {
            let mut list = Command::new(program);
            let (_, names) =
                commands::output(list.args(["--list", "--format", "terse"]), Duration::from_secs(60))?;
            let names = names.lines().filter_map(|line| line.strip_suffix(": test"));
            let is_wanted = |name: &&str| chosen.starts.iter().any(|start| name.starts_with(start));
            let names = names.filter(is_wanted).filter(|name| !TOO_HEAVY.contains(name));
            tests.extend(names.map(|name| Test {
                dir: dir.clone(),
                program: program.clone(),
                name: name.to_owned(),
            }));
        }
        if tests.len() == before {
            bail!("no test of {} {} starts with {:?}", chosen.package, chosen.program, chosen.starts);
        }
    }
    Ok(tests)
}

/// A program's name without the hash that cargo puts behind it.
fn stem(path: &Path) -> String {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.rsplit_once('-').map_or(name, |(stem, _)| stem).to_owned()
}

/// Puts together what the guest has.
fn guest(built: &Built, tests: &[Test]) -> Result<Archive> {
    let mut archive = Archive::default();
    for place in ["/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/var/tmp"] {
        archive.directory(Path::new(place));
    }
    archive.file(Path::new("/init"), 0o755, include_str!("init.sh"));
    archive.file(
        Path::new("/etc/passwd"),
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nbin:x:2:2:bin:/bin:/bin/sh\n",
    );
    archive.file(Path::new("/etc/group"), 0o644, "root:x:0:\nbin:x:2:\n");
    for name in PROGRAMS {
        with_libraries(&mut archive, name)?;
    }
    let mut lines = String::new();
    for Test { dir, program, name } in tests {
        archive.directory(dir);
        lines += &format!("{}\t{}\t{name}\n", dir.display(), program.display());
    }
    archive.file(Path::new("/tests"), 0o644, lines);
    let programs: BTreeSet<&PathBuf> =
        tests.iter().map(|test| &test.program).chain(&built.programs).collect();
    for program in programs {
        archive.file(program, 0o755, stripped(program)?);
    }
    Ok(archive)
}

/// Adds a program, at `/bin` as well, with the libraries that it loads.
fn with_libraries(archive: &mut Archive, name: &str) -> Result<()> {
    let path = commands::find(name).with_context(|| format!("`{name}` is not installed"))?;
    archive.copy(&path)?;
    archive.file(&Path::new("/bin").join(name), 0o755, fs::read(&path)?);
    // What is static has no list of libraries, and `ldd` says so with an error.
    let (_, list) = commands::output(Command::new("ldd").arg(&path), Duration::from_secs(60))?;
    for word in list.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':')) {
        archive.copy(Path::new(word))?;
    }
    Ok(())
}

/// Returns a program without what only a debugger reads: the guest has all of it in memory.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let thin = program.with_extension("thin");
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg("-o").arg(&thin).arg(program);
    let is_thin =
        commands::output(&mut strip, Duration::from_secs(60)).is_ok_and(|(status, _)| status.success());
    let bytes = fs::read(if is_thin { &thin } else { program });
    // It was only there to be read.
    let _ = fs::remove_file(&thin);
    bytes.with_context(|| format!("could not read {}", program.display()))
}

fn emulator(kernel: &Path, memory: &Path) -> Command {
    let mut command = Command::new(EMULATOR);
    command.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "2048",
        "-nodefaults",
        "-no-reboot",
    ]);
    command.args(["-display", "none", "-serial", "stdio"]);
    command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(memory);
    command
}

/// Counts what the guest has said. A guest that did not come to its end has failed, whatever it said before.
fn outcome(said: &str, expected: usize) -> Outcome {
    let lines = || said.lines().filter_map(|line| line.trim_end().strip_prefix("LARIAT "));
    let count =
        |what: &str| u32::try_from(lines().filter(|line| line.starts_with(what)).count()).unwrap_or(u32::MAX);
    let (passed, mut failed) = (count("pass "), count("fail "));
    let is_complete = lines().any(|line| line == "end") && (passed + failed) as usize == expected;
    failed += u32::from(!is_complete);
    // What the older kernel lacks is the point of it, so a skip there is only told.
    Outcome { passed: passed.saturating_sub(count("skip ")), failed, skips: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_counts_only_if_it_came_to_its_end() {
        let said = "noise\r\nLARIAT pass a\r\nLARIAT fail b: exit code 101\r\nLARIAT pass c\r\nLARIAT skip SKIP: c: no\r\n";
        let whole = format!("{said}LARIAT end\r\n");
        assert_eq!(outcome(&whole, 3), Outcome { passed: 1, failed: 1, skips: Vec::new() });
        assert_eq!(outcome(&whole, 4).failed, 2, "a test was lost");
        assert_eq!(outcome(said, 3).failed, 2, "it did not end");
        assert_eq!(outcome("", 0).failed, 1);
    }

    #[test]
    fn a_program_of_tests_is_known_by_its_name() {
        assert_eq!(stem(Path::new("/t/debug/deps/run_matrix-0a1b")), "run_matrix");
        assert_eq!(stem(Path::new("/t/debug/lariat")), "lariat");
    }
}
