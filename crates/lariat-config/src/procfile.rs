//! A Procfile: one `name: command` per line.
//!
//! Read as foreman and its kin read it, except that a line which is neither a process, a comment nor empty is an
//! error instead of being passed over. Two things that those programs do besides are left out: no ports are handed
//! out (`$PORT` is what lariat was started with), and a `.env` file beside it is not read.

use std::collections::BTreeMap;

use lariat::service::spec::CommandSpec;

use crate::checks;
use crate::diagnostic::{Code, Severity, Sink};
use crate::draft::{At, ServiceDraft, StackDraft};
use crate::suggest::quoted;

/// Reads a text. What is wrong is in the sink.
pub(crate) fn read(text: &str, sink: &mut Sink) -> StackDraft {
    let mut services: Vec<ServiceDraft> = Vec::new();
    let mut first: BTreeMap<&str, std::ops::Range<usize>> = BTreeMap::new();
    let mut offset = 0;
    for whole in text.split_inclusive('\n') {
        let start = offset;
        offset += whole.len();
        let line = whole.trim_end_matches(['\n', '\r']);
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let start = start + (line.len() - line.trim_start().len());
        let Some(service) = service(trimmed, start, sink) else { continue };
        let name = &trimmed[..service.name.span.len()];
        if let Some(first) = first.get(name) {
            let message = format!("the service {} is there twice", quoted(name));
            sink.error(Code::Duplicate, message, service.name.span, "the second time")
                .related(first.clone(), "the first time")
                .help("give it another name, or leave one of them out");
            continue;
        }
        first.insert(name, service.name.span.clone());
        services.push(service);
    }
    if services.is_empty() && !sink.has_errors() {
        let message = format!("{} has no service", sink.source().file.display());
        sink.add(Severity::Error, Code::Empty, message).help("add a line such as `web: npm run dev`");
    }
    StackDraft { services, ..StackDraft::default() }
}

/// Reads one line that is not empty. `start` is its place in the text.
fn service(line: &str, start: usize, sink: &mut Sink) -> Option<ServiceDraft> {
    let span = start..start + line.len();
    let Some((name, command)) = line.split_once(':') else {
        let error = sink.error(Code::Syntax, "this line is not `name: command`", span, "has no `:`");
        let is_variable = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match line.split_once('=') {
            _ if line.starts_with('[') => error.help("this looks like TOML: name the file lariat.toml"),
            Some((name, value)) if name.chars().all(is_variable) && !value.starts_with(' ') => {
                error.note("variables are not set in a Procfile").help(format!(
                    "set it in front of a command (`web: {name}={value} npm start`), or in `env` of a lariat.toml"
                ))
            }
            _ => error.help("a line is `web: npm run dev`, a comment `# …`"),
        };
        return None;
    };
    let name = At::new(name.trim_end().to_owned(), start..start + name.trim_end().len());
    let is_name = checks::name(&name, sink);
    let text = command.trim_start();
    let command_start = start + line.len() - text.len();
    if text.is_empty() {
        let message = format!("the command of {} is empty", quoted(&name.value));
        // The caret goes to the colon, where the command would follow.
        let colon = start + line.find(':').unwrap_or_default();
        sink.error(Code::MissingCommand, message, colon..colon + 1, "nothing to run")
            .help(format!("for example `{}: npm run dev`", name.value));
        return None;
    }
    let command_span = command_start..command_start + text.len();
    if text.contains('\0') {
        sink.error(Code::Command, "the command holds a NUL character", command_span, "NUL in here")
            .note("the kernel ends every argument at the first NUL");
        return None;
    }
    let mut service = ServiceDraft::new(name);
    let shell = vec!["/bin/sh".into(), "-c".into()];
    service.command = Some(At::new(CommandSpec::Shell { shell, text: text.into() }, command_span));
    is_name.then_some(service)
}

/// Reports `$PORT`, which other programs set for each line of a Procfile. Said once, not for each line.
pub(crate) fn ports(stack: &StackDraft, sink: &mut Sink) {
    let mut using = stack.services.iter().filter(|service| {
        matches!(&service.command, Some(At { value: CommandSpec::Shell { text, .. }, .. })
            if checks::uses_port(&text.to_string_lossy()))
    });
    let Some(first) = using.next() else { return };
    let Some(command) = &first.command else { return };
    let rest = using.count();
    let message = match rest {
        0 => format!("`{}` uses `$PORT`, which is not set for the lines of a Procfile", first.name.value),
        _ => format!(
            "`{}` and {rest} more use `$PORT`, which is not set for the lines of a Procfile",
            first.name.value
        ),
    };
    sink.warning(Code::Port, message, command.span.clone(), "is what lariat itself was started with, or empty")
        .help("a lariat.toml gives each service its port (`port = \"auto\"`); `lariat init` makes one of a Procfile");
}
