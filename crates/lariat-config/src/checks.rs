//! What can only be seen with all services read: dependencies, circles, shared ports, grace periods, directories.
//!
//! Used for every format. Only [`directories`] looks at the disk, and only because a missing directory is found
//! sooner by the person who wrote the file than by the service that starts in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lariat::service::spec::{CommandSpec, Condition, PortSpec, RestartWhen, ServiceName};

use crate::diagnostic::{Code, Severity, Sink};
use crate::draft::{At, ServiceDraft, StackDraft, joined};
use crate::suggest::{listed, nearest, quoted};
use crate::{Origin, duration, graph};

/// Reports everything that is wrong between services.
pub(crate) fn all(stack: &StackDraft, sink: &mut Sink) {
    dependencies(stack, sink);
    circles(stack, sink);
    ports(stack, sink);
    variables(stack, sink);
    grace_periods(stack, sink);
}

/// Reports a name that is none, and returns whether it is one.
pub(crate) fn name(name: &At<String>, sink: &mut Sink) -> bool {
    if ServiceName::new(name.value.as_str()).is_ok() {
        return true;
    }
    let message = format!("{} cannot be the name of a service", quoted(&name.value));
    let odd = name.value.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-' && *c != '_');
    let label = match odd {
        Some(c) => format!("has {}", character(c)),
        None if name.value.is_empty() => "is empty".to_owned(),
        None if name.value.len() > 63 => format!("has {} characters", name.value.len()),
        None => "starts with neither a letter nor a digit".to_owned(),
    };
    let plain: String = name
        .value
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
        .take(63)
        .collect();
    let plain = plain.trim_matches(['-', '_']);
    let error = sink.error(Code::Name, message, name.span.clone(), label);
    error.note("a name has 1 to 63 letters, digits, `-` or `_`, and starts with a letter or a digit");
    error.note("it becomes part of file names and of variables such as `LARIAT_PORT_WEB`");
    if !plain.is_empty() {
        error.fix("a name that is close to it", name.span.clone(), plain);
    }
    false
}

fn character(c: char) -> String {
    match c {
        ' ' => "a space".to_owned(),
        '\t' => "a tab".to_owned(),
        '.' => "a dot".to_owned(),
        '/' => "a slash".to_owned(),
        c if c.is_control() => format!("the control character U+{:04X}", u32::from(c)),
        c => format!("the character `{c}`"),
    }
}

fn dependencies(stack: &StackDraft, sink: &mut Sink) {
    let services: BTreeMap<&str, &ServiceDraft> =
        stack.services.iter().map(|service| (service.name.value.as_str(), service)).collect();
    for service in &stack.services {
        let name = service.name.value.as_str();
        let mut seen: BTreeMap<&str, &At<String>> = BTreeMap::new();
        for after in &service.after {
            let other = after.service.value.as_str();
            if let Some(first) = seen.insert(other, &after.service) {
                let message = format!("`{name}` waits for {} twice", quoted(other));
                sink.error(Code::Duplicate, message, after.service.span.clone(), "the second time")
                    .related(first.span.clone(), "the first time")
                    .help("leave one of them out");
            } else if other == name {
                let message = format!("`{name}` waits for itself, so it would never start");
                sink.error(Code::SelfDependency, message, after.service.span.clone(), "its own name")
                    .help("leave it out, or name the service that it needs");
            } else if let Some(other) = services.get(other) {
                let Some(condition) = &after.condition else { continue };
                unlikely(name, other, condition, sink);
            } else {
                unknown(name, &after.service, services.keys().copied().filter(|known| *known != name), sink);
            }
        }
    }
}

fn unknown<'a>(
    name: &str,
    other: &At<String>,
    known: impl Iterator<Item = &'a str> + Clone,
    sink: &mut Sink,
) {
    let is_quoted = sink.source().text[sink.source().clamp(&other.span)].starts_with(['"', '\'']);
    let message =
        format!("`{name}` waits for {}, which is not a service of this stack", quoted(&other.value));
    let error = sink.error(Code::UnknownService, message, other.span.clone(), "no such service");
    if let Some(near) = nearest(&other.value, known.clone()) {
        let replacement = if is_quoted { format!("\"{near}\"") } else { near.to_owned() };
        error.fix("a service with a similar name exists", other.span.clone(), replacement);
        return;
    }
    let known: Vec<_> = known.take(13).collect();
    match known.len() {
        0 => error.note("the stack has no other service"),
        1..=12 => error.note(format!("the other services are {}", listed(known, "and"))),
        _ => error,
    };
    error.help(format!("add a table `[service.{}]`, or leave the dependency out", other.value));
}

/// Reports conditions that are fulfilled never, or sooner than they read.
fn unlikely(name: &str, other: &ServiceDraft, condition: &At<Condition>, sink: &mut Sink) {
    let other_name = &other.name.value;
    if condition.value == Condition::Ready && other.ready.is_none() {
        let message =
            format!("`{other_name}` has no readiness check, so it counts as ready when it has started");
        sink.warning(Code::Condition, message, condition.span.clone(), "means no more than `started`")
            .related(other.name.span.clone(), "has no `ready`")
            .help(format!(
                "give `{other_name}` a check, such as `ready = {{ tcp = 5432 }}`, or write `started`"
            ));
    }
    if condition.value == Condition::Completed && other.daemon {
        let message = format!("`{name}` waits until `{other_name}` has completed, which a daemon never does");
        sink.error(Code::Condition, message, condition.span.clone(), "would wait for ever")
            .related(other.name.span.clone(), "has `daemon = true`")
            .note("nobody sees the exit code of a daemon, so each of its ends counts as a failure")
            .help("wait for `ready` or `started`");
    } else if condition.value == Condition::Completed && other.restart.when == RestartWhen::Always {
        let message = format!(
            "`{name}` waits until `{other_name}` has completed, but `{other_name}` is always restarted"
        );
        sink.warning(Code::Condition, message, condition.span.clone(), "never stays completed")
            .related(other.name.span.clone(), "has `restart = \"always\"`")
            .help("use `restart = \"on-failure\"` for a service that others wait for to complete");
    }
}

fn circles(stack: &StackDraft, sink: &mut Sink) {
    for circle in graph::cycles(&stack.edges()) {
        let name = |node: usize| stack.services[node].name.value.as_str();
        let path = if circle.len() > 8 {
            let start: Vec<_> = circle[..6].iter().map(|node| name(*node)).collect();
            format!("{} → … → {} → {}", start.join(" → "), name(circle[circle.len() - 1]), name(circle[0]))
        } else {
            circle.iter().chain(circle.first()).map(|node| name(*node)).collect::<Vec<_>>().join(" → ")
        };
        let steps: Vec<_> = (0..circle.len()).filter_map(|at| step(stack, &circle, at)).collect();
        let Some(((span, label), rest)) = steps.split_first() else { continue };
        let error = sink.error(
            Code::Cycle,
            format!("services wait for each other in a circle: `{path}`"),
            span.clone(),
            label,
        );
        for (span, label) in rest.iter().take(7) {
            error.related(span.clone(), label);
        }
        error.note("none of them could start first").help("remove one of these dependencies");
    }
}

/// Returns the place where the circle's service number `at` names the next one.
fn step(stack: &StackDraft, circle: &[usize], at: usize) -> Option<(std::ops::Range<usize>, String)> {
    let service = &stack.services[circle[at]];
    let next = &stack.services[circle[(at + 1) % circle.len()]].name.value;
    let after = service.after.iter().find(|after| after.service.value == *next)?;
    Some((after.service.span.clone(), format!("`{}` waits for `{next}`", service.name.value)))
}

fn ports(stack: &StackDraft, sink: &mut Sink) {
    let mut owners: BTreeMap<u16, (&str, &At<PortSpec>)> = BTreeMap::new();
    let mut variables: BTreeMap<String, &At<String>> = BTreeMap::new();
    for service in &stack.services {
        let name = service.name.value.as_str();
        let Some(port) = &service.port else { continue };
        let variable = name.to_ascii_uppercase().replace('-', "_");
        if let Some(other) = variables.get(&variable) {
            let message =
                format!("`{}` and `{name}` share the variable `LARIAT_PORT_{variable}`", other.value);
            sink.warning(Code::Name, message, service.name.span.clone(), "too similar")
                .related(other.span.clone(), "to this one")
                .note("it can hold the port of one of them only")
                .help("rename one of them");
        }
        variables.entry(variable).or_insert(&service.name);
        let PortSpec::Fixed(number) = port.value else { continue };
        let Some((other, first)) = owners.get(&number) else {
            owners.insert(number, (name, port));
            continue;
        };
        let message = format!("`{other}` and `{name}` have the same port, {number}");
        sink.error(Code::Port, message, port.span.clone(), format!("`{name}` would find it in use"))
            .related(first.span.clone(), format!("`{other}` has it"))
            .fix("let lariat choose a free one, in `PORT`", port.span.clone(), "\"auto\"");
    }
}

/// Reports a `$PORT` that nobody sets or nobody replaces.
fn variables(stack: &StackDraft, sink: &mut Sink) {
    for service in &stack.services {
        let Some(command) = &service.command else { continue };
        let name = &service.name.value;
        let is_set = service.port.is_some()
            || [&stack.env, &service.env].into_iter().any(|env| env.keys().any(|name| name == "PORT"));
        match &command.value {
            CommandSpec::Shell { text, .. } if !is_set && uses_port(&text.to_string_lossy()) => {
                let message = format!("`{name}` uses `$PORT`, but has no port");
                sink.warning(Code::Port, message, command.span.clone(), "`$PORT` is not set by lariat here")
                    .note("it is whatever lariat itself was started with, or empty")
                    .help("add `port = 8000`, or `port = \"auto\"` for a free one");
            }
            CommandSpec::Argv(argv) if argv.iter().any(|word| uses_port(&word.to_string_lossy())) => {
                let message = format!("`{name}` gets the text `$PORT`, not the port");
                sink.warning(Code::Command, message, command.span.clone(), "a list runs without a shell")
                    .help("write the command as one string, which a shell runs and replaces variables in");
            }
            _ => {}
        }
    }
}

/// Returns whether a text has `$PORT` or `${PORT}`, the commonest mistake by far; other variables are the user's.
pub(crate) fn uses_port(text: &str) -> bool {
    text.match_indices("$PORT").any(|(at, found)| {
        let next = text[at + found.len()..].chars().next();
        !next.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
    }) || text.contains("${PORT}")
}

/// Reports grace periods that were set and cannot be kept. Default ones are left out of the sum: they are cut to
/// the deadline by design, and a warning in every stack of two services would be read by nobody.
fn grace_periods(stack: &StackDraft, sink: &mut Sink) {
    let deadline = stack.deadline();
    let weight = |s: &ServiceDraft| s.grace_span.as_ref().map_or(Duration::ZERO, |_| s.stop.grace);
    let weights: Vec<_> = stack.services.iter().map(weight).collect();
    let Some((sum, path)) = graph::heaviest_path(&stack.edges(), &weights) else { return };
    if sum <= deadline {
        return;
    }
    let set: Vec<_> =
        path.iter().map(|node| &stack.services[*node]).filter(|s| s.grace_span.is_some()).collect();
    let Some((last, _)) = set.split_last() else { return };
    let Some(span) = last.grace_span.clone() else { return };
    let (limit, total) = (duration::text(deadline), duration::text(sum));
    let message = if set.len() == 1 {
        format!("the grace period of `{}` does not fit in the stack's deadline of {limit}", last.name.value)
    } else {
        let names: Vec<_> = set.iter().take(8).map(|s| s.name.value.as_str()).collect();
        format!(
            "{} stop one after the other, which does not fit in the stack's deadline of {limit}",
            listed(names, "and")
        )
    };
    let label = if set.len() == 1 { String::new() } else { format!("{total} in all") };
    let warning = sink.warning(Code::Grace, message, span, label);
    for other in set.iter().rev().skip(1).take(7) {
        warning.related(other.grace_span.clone().unwrap_or_default(), "");
    }
    warning.note("what is still there at the deadline is killed");
    match &stack.deadline {
        Some(deadline) => {
            let span = deadline.span.clone();
            warning.related(span.clone(), "the deadline").fix(
                "raise the deadline",
                span,
                format!("\"{total}\""),
            );
        }
        None => {
            let what = "raise the deadline, which is 15 s when it is not set: add a table";
            warning.help(format!("{what} `[stack]` with `deadline = \"{total}\"`"));
        }
    }
}

/// Reports working directories that are not there. A missing one is a warning, since a service that starts earlier
/// may make it; something else in its place is an error.
pub(crate) fn directories(stack: &StackDraft, origin: &Origin, sink: &mut Sink) {
    for service in &stack.services {
        let Some(dir) = &service.dir else { continue };
        let path = joined(&origin.root, &dir.value);
        let name = &service.name.value;
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                let message = format!("the directory of `{name}` is a file");
                sink.error(Code::Directory, message, dir.span.clone(), "not a directory")
                    .note(format!("it is {}", path.display()));
            }
            Err(error) => {
                let message = format!("the directory of `{name}` cannot be entered now");
                let label = crate::read::cause(&error);
                let near = sibling(&path);
                let warning = sink.warning(Code::Directory, message, dir.span.clone(), label);
                warning.note(format!(
                    "it is {}; a relative one starts at the file's own directory",
                    path.display()
                ));
                if let Some(near) = near {
                    warning.help(format!("there is a directory `{near}` beside it"));
                }
            }
        }
    }
}

/// Reports a `.env` file, which other programs read beside a Procfile and lariat does not.
pub(crate) fn unread_variables(origin: &Origin, sink: &mut Sink) {
    if origin.root.join(".env").is_file() {
        sink.add(Severity::Warning, Code::Environment, "the file .env is not read".to_owned())
            .note("other programs set its variables for all lines of a Procfile")
            .help("set them before: `set -a; . ./.env; set +a`, or put them in `env` of a lariat.toml");
    }
}

fn sibling(path: &std::path::Path) -> Option<String> {
    let wanted = path.file_name()?.to_str()?;
    let entries = std::fs::read_dir(path.parent()?).ok()?.take(1000).flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let names: BTreeSet<_> = dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    nearest(wanted, names.iter().map(String::as_str)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_variable_port_itself_counts() {
        for text in ["x $PORT", "x ${PORT}", "$PORT/x", "-p$PORT"] {
            assert!(uses_port(text), "{text}");
        }
        for text in ["", "PORT", "$PORTS", "$PORT_WEB", "${PORTS}", "$ PORT"] {
            assert!(!uses_port(text), "{text}");
        }
    }
}
