//! `lariat init`: a first lariat.toml, from what is in the directory.
//!
//! Deliberately modest: it takes what is written down (a Procfile, a script, a manage.py) and guesses no commands.
//! What it writes always passes `lariat check`.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use lariat::service::spec::{CommandSpec, StackSpec};

use crate::args::InitArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};
use crate::settings;

const FILE: &str = "lariat.toml";

/// Writes the file.
pub(crate) fn run(InitArgs {}: &InitArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let here = settings::working_directory()?;
    // Asked first for the sake of the message; `create_new` is what protects the file.
    if fs::symlink_metadata(here.join(FILE)).is_ok() {
        return Err(there_already());
    }
    let draft = draft(&here)?;
    write(&here.join(FILE), &draft.text)?;
    output.print(format!("wrote {FILE}: {}\n", draft.origin));
    output.print("next: read it, then `lariat check` and `lariat up`\n");
    Ok(ExitCode::Done)
}

fn there_already() -> Failure {
    Failure::new(ExitCode::Config, format!("{FILE} is here already"))
        .hint("`lariat check` looks at it; to start anew, move it away first")
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let trouble = |error| Failure::new(ExitCode::Trouble, format!("could not write {FILE}")).because(error);
    let mut file = match File::create_new(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(there_already()),
        Err(error) => return Err(trouble(error)),
    };
    file.write_all(text.as_bytes()).map_err(|error| {
        // Half a file would be in the way of the next try. That it cannot be removed either changes nothing.
        let _ = fs::remove_file(path);
        trouble(error)
    })
}

/// A file to be written, and where its services come from.
struct Draft {
    text: String,
    origin: String,
}

fn draft(dir: &Path) -> Result<Draft, Failure> {
    if dir.join("Procfile").is_file() {
        let stack = settings::stack(Path::new("Procfile"))?.spec;
        return Ok(Draft { text: from_procfile(&stack), origin: "the processes of the Procfile".to_owned() });
    }
    if let Some(found) = script(dir) {
        let text = format!("{HEAD}{}{MORE}", found.service);
        return Ok(Draft { text, origin: found.origin });
    }
    if dir.join("manage.py").is_file() {
        let text = format!("{HEAD}{DJANGO}{MORE}");
        return Ok(Draft { text, origin: "the server of manage.py".to_owned() });
    }
    Ok(Draft { text: format!("{HEAD}{EXAMPLE}{MORE}"), origin: "an example to start from".to_owned() })
}

const HEAD: &str = "\
# The stack of this directory: `lariat up` starts it, Ctrl-C or `lariat down` ends it with everything it started.
# `lariat check` looks at this file without starting anything.
";

const EXAMPLE: &str = "
[service.hello]
run = \"while :; do date; sleep 1; done\"   # by /bin/sh; a list, [\"npm\", \"start\"], runs without a shell
";

const DJANGO: &str = "
[service.web]
run   = \"python3 manage.py runserver $PORT\"
port  = 8000                  # claimed before the start, exported as PORT, proven free at the end
ready = { tcp = true }        # ready when its port accepts connections
";

const MORE: &str = "
# What a service can have besides:
#
# dir     = \"web\"                                   # where it runs; this file's directory by default
# env     = { LEVEL = \"debug\" }                      # on top of lariat's own environment
# port    = \"auto\"                                  # a free one, exported as PORT; or a number
# after   = { db = \"ready\" }                         # started | ready | completed
# ready   = { http = \"/healthz\", timeout = \"30s\" }   # or { tcp = 5432 }, { log = 'listening on' }
# stop    = { signal = \"INT\", grace = \"8s\" }         # TERM and 10 s by default, then KILL
# restart = \"on-failure\"                            # no | on-failure | always
# daemon  = true                                    # for a program that goes to the background by itself
# limits  = { memory = \"512MiB\", processes = 200, cpu = 1.5 }   # of all its processes together
# isolation = \"pid\"                                 # none | pid: ended by the kernel should lariat be killed
#
# [stack]
# deadline = \"15s\"                                  # for a stop of the whole stack
";

fn from_procfile(stack: &StackSpec) -> String {
    let mut text = HEAD.to_owned();
    for service in &stack.services {
        let CommandSpec::Shell { text: command, .. } = &service.command else { continue };
        let command = command.to_string_lossy();
        text.push_str(&format!("\n[service.{}]\nrun  = {}\n", service.name, toml_text(&command)));
        if command.contains("$PORT") || command.contains("${PORT}") {
            text.push_str("port = \"auto\"   # a free one, exported as PORT; or a number\n");
        }
    }
    text + MORE
}

/// A script of a package.json.
struct Script {
    service: String,
    origin: String,
}

/// The largest package.json that is looked at, in bytes.
const PACKAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;

fn script(dir: &Path) -> Option<Script> {
    let path = dir.join("package.json");
    let is_fitting =
        fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() <= PACKAGE_BYTES_MAX);
    let bytes = if is_fitting { fs::read(path).ok()? } else { return None };
    // A file that npm would refuse as well is no reason to refuse an example.
    let package: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let name = ["dev", "start", "serve"].into_iter().find(|name| package["scripts"][name].is_string())?;
    let locks =
        [("pnpm-lock.yaml", "pnpm"), ("yarn.lock", "yarn"), ("bun.lock", "bun"), ("bun.lockb", "bun")];
    let manager =
        locks.into_iter().find(|(lock, _)| dir.join(lock).exists()).map_or("npm", |(_, manager)| manager);
    let service = format!(
        "\n[service.web]\nrun = [\"{manager}\", \"run\", \"{name}\"]   # a list runs without a shell\n"
    );
    Some(Script { service, origin: format!("the script `{name}` of package.json, by {manager}") })
}

/// Returns a text as TOML: in single quotes where that saves escapes.
fn toml_text(text: &str) -> String {
    let is_literal =
        text.contains(['"', '\\']) && !text.contains('\'') && !text.chars().any(char::is_control);
    if is_literal {
        return format!("'{text}'");
    }
    let escaped = text.chars().fold(String::new(), |mut out, c| {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
        out
    });
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use lariat_config::{Origin, parse_procfile, parse_toml};
    use proptest::prelude::*;

    use super::*;

    fn origin() -> Origin {
        Origin { file: "lariat.toml".into(), root: "/srv/shop".into() }
    }

    #[test]
    fn the_examples_and_the_comments_pass_the_check() {
        for service in [EXAMPLE, DJANGO] {
            let text = format!("{HEAD}{service}{MORE}");
            assert!(parse_toml(&text, &origin()).expect("a good file").warnings.is_empty(), "{text}");
        }
        // With the comment signs taken off, which is what they are for.
        let is_key = |line: &&str| line.contains(" = ") || line.starts_with('[');
        let keys = MORE.lines().filter_map(|line| line.strip_prefix("# ")).filter(is_key);
        let keys: Vec<_> = keys.filter(|line| !line.starts_with("daemon")).collect();
        assert_eq!(keys.len(), 11, "{keys:?}");
        let text = format!(
            "[service.db]\nrun = 'x'\nready = {{ tcp = 1 }}\n[service.x]\nrun = 'x'\n{}",
            keys.join("\n")
        );
        let loaded = parse_toml(&text, &origin());
        assert!(loaded.is_ok_and(|loaded| loaded.warnings.is_empty()), "{text}");
    }

    proptest! {
        #[test]
        fn every_line_of_a_procfile_survives(command in "[^\\s\0]([^\n\r\0]|\\PC){0,40}") {
            let text = format!("web: {command}\n");
            prop_assume!(!command.contains(['\n', '\r', '\0']));
            let stack = parse_procfile(&text, &origin()).expect("a good line").spec;
            let again = parse_toml(&from_procfile(&stack), &origin());
            let again = again.unwrap_or_else(|errors| panic!("{errors:#?}")).spec;
            prop_assert_eq!(&again.services[0].command, &stack.services[0].command);
        }
    }
}
