//! The top of the file: `[stack]` and the list of services.

use std::collections::BTreeMap;
use std::ffi::OsString;

use lariat::ledger::recover::patterns::CommandPattern;
use toml::de::{DeTable, DeValue};

use super::node::{self, Keys, Node};
use super::service;
use crate::checks;
use crate::diagnostic::{Code, Severity, Sink};
use crate::draft::{At, StackDraft};
use crate::suggest::quoted;

const TOP: Keys = Keys {
    known: &["stack", "service", "sweep"],
    guessed: &[
        ("services", "service"),
        ("processes", "service"),
        ("process", "service"),
        ("procs", "service"),
        ("tasks", "service"),
        ("app", "service"),
        ("project", "stack"),
        ("lariat", "stack"),
        ("cleanup", "sweep"),
    ],
    elsewhere: &[
        ("patterns", "put `[sweep]` above it"),
        ("run", "a command belongs to a service: put `[service.NAME]` above it"),
        ("port", "a port belongs to a service: put `[service.NAME]` above it"),
        ("name", "put `[stack]` above it"),
        ("deadline", "put `[stack]` above it"),
        ("env", "put `[stack]` above it for all services, or `[service.NAME]` for one"),
        ("version", "the file needs no version"),
    ],
};

const STACK: Keys = Keys {
    known: &["name", "deadline", "env"],
    guessed: &[
        ("environment", "env"),
        ("timeout", "deadline"),
        ("shutdown_timeout", "deadline"),
        ("title", "name"),
    ],
    elsewhere: &[
        ("grace", "each service has its own: `stop = { grace = \"8s\" }`"),
        ("services", "services are tables of their own: `[service.NAME]`"),
        ("env_file", "files with variables are not read"),
    ],
};

const SWEEP: Keys = Keys {
    known: &["patterns"],
    guessed: &[("pattern", "patterns"), ("match", "patterns"), ("commands", "patterns")],
    elsewhere: &[],
};
/// How a key of `[sweep]` is written.
const SWEEP_EXAMPLE: &str = "patterns = [\"my-server --dev\"]";

/// Reads the whole tree.
pub(super) fn read(tree: &DeTable<'_>, sink: &mut Sink) -> StackDraft {
    node::only(tree, &TOP, "the file", sink);
    let mut stack = StackDraft::default();
    if let Some(found) = node::get(tree, "stack") {
        match found.get_ref() {
            DeValue::Table(table) => settings(table, &mut stack, sink),
            _ => {
                node::wrong_type(sink, "stack", found, "a table", "[stack]");
            }
        }
    }
    if let Some(found) = node::get(tree, "sweep") {
        match found.get_ref() {
            DeValue::Table(table) => stack.sweep = sweep(table, sink),
            _ => {
                node::wrong_type(sink, "sweep", found, "a table", "[sweep]");
            }
        }
    }
    match node::get(tree, "service") {
        Some(found) => match found.get_ref() {
            DeValue::Table(table) => services(table, &mut stack, sink),
            _ => not_a_table(found, sink),
        },
        None if sink.has_errors() => {}
        None => no_service(sink),
    }
    stack
}

fn settings(table: &DeTable<'_>, stack: &mut StackDraft, sink: &mut Sink) {
    node::only(table, &STACK, "`[stack]`", sink);
    let name =
        node::get(table, "name").and_then(|found| node::free_string(sink, "name", found, "name = \"shop\""));
    if let Some(name) = name {
        if name.value.trim().is_empty() || name.value.chars().any(char::is_control) {
            sink.error(Code::Name, "a stack's name must be visible text", name.span, "")
                .help("leave it out to use the name of the directory");
        } else {
            stack.name = Some(name.value.to_owned());
        }
    }
    if let Some(found) = node::get(table, "deadline") {
        stack.deadline = node::duration(sink, "deadline", found, crate::duration::SHORTEST, "30s");
    }
    if let Some(found) = node::get(table, "env") {
        stack.env = env(found, "[stack]", sink);
    }
}

/// Reads what `lariat sweep` is to offer besides the commands that it knows.
fn sweep(table: &DeTable<'_>, sink: &mut Sink) -> Vec<CommandPattern> {
    node::only(table, &SWEEP, "`[sweep]`", sink);
    let Some(found) = node::get(table, "patterns") else { return Vec::new() };
    let DeValue::Array(list) = found.get_ref() else {
        let error = node::wrong_type(sink, "patterns", found, "a list of commands", SWEEP_EXAMPLE);
        if matches!(found.get_ref(), DeValue::String(_)) {
            let written = error.source.text[error.source.clamp(&found.span())].to_owned();
            error.fix("if there is only one, write", found.span(), format!("[{written}]"));
        }
        return Vec::new();
    };
    let mut patterns = Vec::new();
    for node in list {
        let Some(text) = node::free_string(sink, "patterns", node, SWEEP_EXAMPLE) else { continue };
        match CommandPattern::new(text.value) {
            Ok(pattern) => patterns.push(pattern),
            Err(problem) => {
                let message = format!("{} is no pattern of a command", quoted(text.value));
                sink.error(Code::Pattern, message, text.span, problem.to_string())
                    .help("name a program, then the arguments that tell it apart: `\"my-server --dev\"`");
            }
        }
    }
    patterns
}

fn services(table: &DeTable<'_>, stack: &mut StackDraft, sink: &mut Sink) {
    for (key, value) in table {
        let name = At::new(key.get_ref().as_ref().to_owned(), key.span());
        let DeValue::Table(keys) = value.get_ref() else {
            loose_value(&name, value, sink);
            continue;
        };
        checks::name(&name, sink);
        stack.services.push(service::read(name, keys, sink));
    }
    if table.is_empty() && !sink.has_errors() {
        no_service(sink);
    }
}

/// Reports a value where a service's table belongs: `[service]` with `run = …` below it, or `web = "npm start"`.
fn loose_value(name: &At<String>, value: &Node<'_>, sink: &mut Sink) {
    let kind = node::kind(value.get_ref());
    let shown = quoted(&name.value);
    if service::KEYS.known.contains(&name.value.as_str()) {
        sink.error(
            Code::WrongType,
            format!("{shown} stands in `[service]`, which has no name"),
            name.span.clone(),
            "",
        )
        .help("give the service a name: `[service.web]`");
        return;
    }
    let message = format!("the service {shown} takes a table, not {kind}");
    let error = sink.error(Code::WrongType, message, value.span(), format!("this is {kind}"));
    match value.get_ref() {
        DeValue::String(_) | DeValue::Array(_) => {
            let written = error.source.text[error.source.clamp(&value.span())].to_owned();
            error.fix("if this is its command, write", value.span(), format!("{{ run = {written} }}"))
        }
        _ => error.help("for example `[service.web]` with `run = \"npm run dev\"` below it"),
    };
}

fn not_a_table(found: &Node<'_>, sink: &mut Sink) {
    let error = node::wrong_type(sink, "service", found, "a table for each service", "[service.web]");
    if matches!(found.get_ref(), DeValue::Array(_)) {
        error.help("the name is part of the table's title: `[service.web]`, not `[[service]]`");
    }
}

fn no_service(sink: &mut Sink) {
    sink.add(Severity::Error, Code::Empty, format!("{} has no service", sink.source().file.display())).help(
        "add one: `[service.web]` and below it `run = \"npm run dev\"`; `lariat init` writes an example",
    );
}

/// Reads a table of variables. `title` says whose.
pub(super) fn env(found: &Node<'_>, title: &str, sink: &mut Sink) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::new();
    let DeValue::Table(table) = found.get_ref() else {
        let error = node::wrong_type(sink, "env", found, "a table", "env = { LEVEL = \"debug\" }");
        if matches!(found.get_ref(), DeValue::Array(_)) {
            error.help("write `env = { LEVEL = \"debug\" }` instead of `[\"LEVEL=debug\"]`");
        }
        return env;
    };
    for (key, value) in table {
        let name: &str = key.get_ref();
        if !variable(name, key.span(), title, sink) {
            continue;
        }
        if let Some(text) = node::free_string(sink, name, value, "LEVEL = \"debug\"") {
            env.insert(name.into(), text.value.into());
        }
    }
    env
}

/// Reports a name that no variable can have, or that lariat sets itself; returns whether it can be set.
fn variable(name: &str, span: std::ops::Range<usize>, title: &str, sink: &mut Sink) -> bool {
    if name.is_empty() || name.contains(['=', '\0']) {
        let message = format!("{} cannot be the name of a variable in `{title}`", quoted(name));
        let label = if name.is_empty() { "is empty" } else { "has `=` or NUL in it" };
        sink.error(Code::Environment, message, span, label);
        return false;
    }
    if matches!(name, "LARIAT_RUN" | "LARIAT_SERVICE" | "LARIAT_SUPERVISOR")
        || name.starts_with("LARIAT_PORT_")
    {
        let error =
            sink.error(Code::Environment, format!("`{name}` is set by lariat"), span, "cannot be set here");
        error.help("choose another name");
        if !name.starts_with("LARIAT_PORT_") {
            error.note("it is how what a run started is found again after a crash");
        }
        return false;
    }
    true
}
