//! What the tests need besides Rust: read from a list, looked for, installed.
//!
//! Debian packages are installed where we are root; elsewhere each missing one is a skip. What comes from PyPI and
//! npm goes below `target/` and touches nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Outcome, Session, is_root};
use crate::commands;

/// The list: `debian NAME`, `pypi NAME==VERSION` or `npm NAME@VERSION` per line, each with a `# PROGRAM: reason`.
const LIST: &str = "crates/lariat-testkit/needs.txt";
/// Longest time for one package manager.
const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Keeps a package from starting the server it brings. Looked at by Debian's maintainer scripts.
const START_POLICY: &str = "/usr/sbin/policy-rc.d";

/// A Debian package and the program that it is wanted for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Package {
    name: String,
    program: String,
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Needs {
    debian: Vec<Package>,
    pypi: Vec<String>,
    npm: Vec<String>,
}

/// Returns the folders of programs that are installed below `target/`.
pub(super) fn tool_paths(root: &Path) -> [PathBuf; 2] {
    [tools(root).join("venv/bin"), tools(root).join("npm/node_modules/.bin")]
}

fn tools(root: &Path) -> PathBuf {
    root.join("target/needs")
}

/// Installs what is missing.
pub(super) fn run(session: &Session) -> Result<Outcome> {
    let Ok(list) = fs::read_to_string(session.root.join(LIST)) else {
        bail!("{LIST} is missing");
    };
    let mut needs = Needs::parse(&list)?;
    if !needs.pypi.is_empty() && !has_venv() {
        needs.debian.push(Package { name: "python3-venv".to_owned(), program: "python3-venv".to_owned() });
    }
    let mut outcome = Outcome::default();
    outcome.add(debian(&needs.debian)?);
    outcome.add(below_target(session, "pypi", &needs.pypi, pypi)?);
    outcome.add(below_target(session, "npm", &needs.npm, npm)?);
    Ok(outcome)
}

impl Needs {
    fn parse(list: &str) -> Result<Self> {
        let mut needs = Self::default();
        for (number, line) in list.lines().enumerate() {
            let (need, reason) = line.split_once('#').unwrap_or((line, ""));
            let words: Vec<&str> = need.split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            let program = reason.split_once(':').map_or(reason, |(program, _)| program).trim();
            ensure!(!program.is_empty(), "{LIST}:{}: no `# reason`", number + 1);
            match *words {
                ["debian", name] => {
                    needs.debian.push(Package { name: name.to_owned(), program: program.to_owned() });
                }
                ["pypi", spec] if spec.contains("==") => needs.pypi.push(spec.to_owned()),
                ["npm", spec] if spec.len() > 1 && spec[1..].contains('@') => needs.npm.push(spec.to_owned()),
                _ => bail!(
                    "{LIST}:{}: `{line}` is not `debian NAME`, `pypi NAME==VER` or `npm NAME@VER`",
                    number + 1
                ),
            }
        }
        Ok(needs)
    }
}

fn debian(packages: &[Package]) -> Result<Outcome> {
    let missing: Vec<&str> =
        packages.iter().filter(|package| !is_there(package)).map(|p| p.name.as_str()).collect();
    let present = u32::try_from(packages.len() - missing.len())?;
    let mut outcome = Outcome { passed: present, ..Outcome::default() };
    if missing.is_empty() {
        return Ok(outcome);
    }
    if !is_root() || !commands::is_installed("apt-get") {
        let reason = if is_root() { "there is no apt-get" } else { "we are not root" };
        outcome.skips =
            missing.iter().map(|name| format!("Debian package {name} is missing, and {reason}")).collect();
        return Ok(outcome);
    }
    let _policy = StartPolicy::forbid()?;
    apt_get(&["update"])?;
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(&missing);
    apt_get(&args)?;
    outcome.passed += u32::try_from(missing.len())?;
    Ok(outcome)
}

/// Whether a package is there, or its program from elsewhere: another build of Node conflicts with Debian's npm.
fn is_there(package: &Package) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", &package.name]);
    let installed = commands::output(&mut query, Duration::from_secs(30));
    installed.is_ok_and(|(status, text)| status.success() && text.trim() == "installed")
        || commands::is_installed(&package.program)
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["--quiet", "--option=DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");
    let status = commands::status(&mut command, INSTALL_LIMIT)?;
    ensure!(status.success(), "`{}` ended with {status}", commands::display(&command));
    Ok(())
}

/// Forbids new packages to start their servers, until dropped. An existing policy is left alone.
struct StartPolicy {
    is_ours: bool,
}

impl StartPolicy {
    fn forbid() -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(START_POLICY);
        let Ok(mut file) = file else { return Ok(Self { is_ours: false }) };
        std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n").context(START_POLICY)?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for StartPolicy {
    fn drop(&mut self) {
        if self.is_ours {
            // Left behind it would keep later packages from starting theirs: say so.
            if let Err(error) = fs::remove_file(START_POLICY) {
                eprintln!("could not remove {START_POLICY}: {error}");
            }
        }
    }
}

/// Installs a list below `target/`, unless exactly this list was installed before.
fn below_target(
    session: &Session,
    kind: &str,
    specs: &[String],
    install: fn(&Session, &[String]) -> Result<()>,
) -> Result<Outcome> {
    let stamp = tools(&session.root).join(format!("{kind}.txt"));
    let wanted = specs.join("\n");
    let count = u32::try_from(specs.len())?;
    if specs.is_empty() || fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(Outcome { passed: count, ..Outcome::default() });
    }
    if let Err(error) = install(session, specs) {
        let skips = specs.iter().map(|spec| format!("{kind} package {spec} is missing: {error:#}")).collect();
        return Ok(Outcome { skips, ..Outcome::default() });
    }
    fs::write(&stamp, wanted).with_context(|| format!("could not write {}", stamp.display()))?;
    Ok(Outcome { passed: count, ..Outcome::default() })
}

fn pypi(session: &Session, specs: &[String]) -> Result<()> {
    let venv = tools(&session.root).join("venv");
    step(Command::new(python()).args(["-m", "venv"]).arg(&venv))?;
    step(Command::new(venv.join("bin/pip")).args(["install", "--disable-pip-version-check"]).args(specs))
}

fn npm(session: &Session, specs: &[String]) -> Result<()> {
    let folder = tools(&session.root).join("npm");
    fs::create_dir_all(&folder)?;
    let mut command = Command::new("npm");
    command.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&folder).args(specs);
    step(&mut command)
}

fn step(command: &mut Command) -> Result<()> {
    let status = commands::status(command, INSTALL_LIMIT)?;
    ensure!(status.success(), "`{}` ended with {status}", commands::display(command));
    Ok(())
}

/// The system's own Python where there is one: shims of version managers need their owner's home.
fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

fn has_venv() -> bool {
    let mut probe = Command::new(python());
    probe.args(["-c", "import ensurepip, venv"]);
    commands::output(&mut probe, Duration::from_secs(30)).is_ok_and(|(status, _)| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_by_kind() {
        let list = "# what and why\n\ndebian nginx-light # nginx: a server\npypi gunicorn==23.0.0 # forks workers\nnpm @a/b@1.2.3 # c\n";
        let needs = Needs::parse(list).unwrap();
        assert_eq!(needs.debian, [Package { name: "nginx-light".to_owned(), program: "nginx".to_owned() }]);
        assert_eq!(needs.pypi, ["gunicorn==23.0.0"]);
        assert_eq!(needs.npm, ["@a/b@1.2.3"]);
    }

    #[test]
    fn a_version_and_a_reason_are_asked_for() {
        for line in ["pypi gunicorn # w", "npm @a/b # c", "gem x==1 # y", "debian a b # c", "debian tini"] {
            assert!(Needs::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_program_from_elsewhere_counts_as_its_package() {
        let package =
            |program: &str| Package { name: "no-such-package".to_owned(), program: program.to_owned() };
        assert!(is_there(&package("sh")));
        assert!(!is_there(&package("no-such-program")));
    }
}
