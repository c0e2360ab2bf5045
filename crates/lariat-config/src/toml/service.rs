//! `[service.NAME]`: what is started, where, with which variables and port.

use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;

use lariat::service::spec::{CommandSpec, Endpoint, PortSpec, ReadyCheck, ReadySpec, RestartWhen};
use toml::de::{DeTable, DeValue};

use super::node::{self, Keys, Node};
use super::{after, isolation, limits, ready, stack, stop};
use crate::diagnostic::{Code, Sink};
use crate::draft::{At, ServiceDraft};
use crate::suggest::quoted;

pub(super) const KEYS: Keys = Keys {
    known: &[
        "run",
        "shell",
        "dir",
        "env",
        "port",
        "after",
        "ready",
        "stop",
        "restart",
        "daemon",
        "isolation",
        "limits",
    ],
    guessed: &[
        ("command", "run"),
        ("cmd", "run"),
        ("exec", "run"),
        ("start", "run"),
        ("script", "run"),
        ("entrypoint", "run"),
        ("args", "run"),
        ("cwd", "dir"),
        ("directory", "dir"),
        ("workdir", "dir"),
        ("working_dir", "dir"),
        ("working_directory", "dir"),
        ("path", "dir"),
        ("environment", "env"),
        ("ports", "port"),
        ("depends_on", "after"),
        ("depends", "after"),
        ("dependencies", "after"),
        ("needs", "after"),
        ("requires", "after"),
        ("wait_for", "after"),
        ("readiness", "ready"),
        ("readiness_probe", "ready"),
        ("health", "ready"),
        ("healthcheck", "ready"),
        ("restart_policy", "restart"),
        ("availability", "restart"),
        ("autorestart", "restart"),
        ("shutdown", "stop"),
        ("is_daemon", "daemon"),
        ("daemonize", "daemon"),
        ("background", "daemon"),
        ("isolate", "isolation"),
        ("isolated", "isolation"),
        ("namespace", "isolation"),
        ("namespaces", "isolation"),
        ("sandbox", "isolation"),
        ("limit", "limits"),
        ("resources", "limits"),
        ("ulimits", "limits"),
    ],
    elsewhere: &[
        ("signal", "it belongs to `stop`: `stop = { signal = \"INT\" }`"),
        ("stop_signal", "it belongs to `stop`: `stop = { signal = \"INT\" }`"),
        ("kill_signal", "it belongs to `stop`: `stop = { signal = \"INT\" }`"),
        ("grace", "it belongs to `stop`: `stop = { grace = \"8s\" }`"),
        ("grace_period", "it belongs to `stop`: `stop = { grace = \"8s\" }`"),
        ("stop_grace_period", "it belongs to `stop`: `stop = { grace = \"8s\" }`"),
        ("scope", "it belongs to `stop`: `stop = { scope = \"leader\" }`"),
        (
            "timeout",
            "it belongs to `ready` or `stop`: `ready = { …, timeout = \"60s\" }`, `stop = { grace = \"8s\" }`",
        ),
        ("tcp", "it belongs to `ready`: `ready = { tcp = 5432 }`"),
        ("http", "it belongs to `ready`: `ready = { http = \"/healthz\" }`"),
        ("log", "it belongs to `ready`: `ready = { log = \"listening on\" }`"),
        ("max", "it belongs to `restart`: `restart = { when = \"on-failure\", max = 5 }`"),
        ("max_restarts", "it belongs to `restart`: `restart = { when = \"on-failure\", max = 5 }`"),
        ("deadline", "it belongs to the stack: `[stack]` with `deadline = \"30s\"`"),
        ("memory", "it belongs to `limits`: `limits = { memory = \"512MiB\" }`"),
        ("mem_limit", "it belongs to `limits`: `limits = { memory = \"512MiB\" }`"),
        ("processes", "it belongs to `limits`: `limits = { processes = 200 }`"),
        ("pids_limit", "it belongs to `limits`: `limits = { processes = 200 }`"),
        ("cpu", "it belongs to `limits`: `limits = { cpu = 1.5 }`"),
        ("cpus", "it belongs to `limits`: `limits = { cpu = 1.5 }`"),
        ("env_file", "files with variables are not read: put them in `env`, or start lariat with them set"),
        ("name", "the name is in the table's title: `[service.NAME]`"),
    ],
};

/// Reads one service. The name has been checked.
pub(super) fn read(name: At<String>, table: &DeTable<'_>, sink: &mut Sink) -> ServiceDraft {
    let title = format!("`[service.{}]`", name.value.chars().take(63).collect::<String>());
    let mut service = ServiceDraft::new(name);
    if dotted(&service.name.value, table, sink) {
        return service;
    }
    node::only(table, &KEYS, &title, sink);
    service.command = command(&service.name, table, sink);
    service.dir = node::get(table, "dir").and_then(|found| dir(found, sink));
    if let Some(found) = node::get(table, "env") {
        service.env = stack::env(found, title.trim_matches('`'), sink);
    }
    service.port = node::get(table, "port").and_then(|found| port(found, sink));
    if let Some(found) = node::get(table, "after") {
        service.after = after::read(found, sink);
    }
    if let Some(found) = node::get(table, "ready") {
        service.ready = ready::read(found, sink);
        // Without a port of its own only because that one was wrong, there is nothing more to say.
        if let Some(ready) = &service.ready.as_ref().filter(|_| node::get(table, "port").is_none()) {
            needs_port(ready, found, &service.name.value, sink);
        }
    }
    if let Some(found) = node::get(table, "stop") {
        stop::read(found, &mut service, sink);
    }
    let restart = node::get(table, "restart");
    if let Some(found) = restart {
        service.restart = stop::restart(found, sink);
    }
    let daemon = node::get(table, "daemon");
    service.daemon = daemon.and_then(|found| node::boolean(sink, "daemon", found)).unwrap_or_default();
    if let (true, Some(restart), Some(daemon)) = (service.daemon, restart, daemon) {
        daemon_restart(&service, restart.span(), daemon.span(), sink);
    }
    if let Some(found) = node::get(table, "isolation") {
        service.isolation = isolation::read(found, sink);
    }
    if let Some(found) = node::get(table, "limits") {
        service.limits = limits::read(found, sink);
    }
    port_variable(&service, sink);
    service
}

/// Reports `[service.web.dev]`, which is a table `dev` in the service `web` to TOML; returns whether it was that.
fn dotted(name: &str, table: &DeTable<'_>, sink: &mut Sink) -> bool {
    let is_service = |(key, value): &(&toml::Spanned<_>, &Node<'_>)| {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        let has_run = value.get_ref().as_table().is_some_and(|table| node::get(table, "run").is_some());
        has_run && !KEYS.known.contains(&key.as_ref())
    };
    let Some((key, _)) = table.iter().find(is_service).filter(|_| node::get(table, "run").is_none()) else {
        return false;
    };
    let message = format!("a service's name has no dot, as `{name}.{}` has", key.get_ref());
    sink.error(Code::Name, message, key.span(), format!("taken as a part of `{name}`"))
        .help(format!("write `[service.{name}-{}]`", key.get_ref()));
    true
}

fn needs_port(ready: &ReadySpec, found: &Node<'_>, name: &str, sink: &mut Sink) {
    let (key, instead) = match &ready.check {
        ReadyCheck::Tcp(Endpoint::OwnPort) => ("tcp", "or name the port: `tcp = 5432`"),
        ReadyCheck::Http { endpoint: Endpoint::OwnPort, .. } => {
            ("http", "or write a whole URL: `http = \"http://localhost:8000/healthz\"`")
        }
        _ => return,
    };
    let span =
        found.get_ref().as_table().and_then(|table| node::get(table, key)).map_or(found.span(), |n| n.span());
    let message = format!("the check of `{name}` is made at its own port, but it has none");
    sink.error(Code::Ready, message, span, "asked at which port?")
        .help(format!("add `port = 8000` or `port = \"auto\"` to the service, {instead}"));
}

fn daemon_restart(service: &ServiceDraft, restart: Range<usize>, daemon: Range<usize>, sink: &mut Sink) {
    if service.restart.when != RestartWhen::OnFailure {
        return;
    }
    let message = format!("every end of `{}` counts as a failure, since it is a daemon", service.name.value);
    sink.warning(Code::Restart, message, restart, "the same as `always`")
        .related(daemon, "the exit code that is seen is its launcher's")
        .help("write `restart = \"always\"`, or run the program in the foreground and leave `daemon` out");
}

fn port_variable(service: &ServiceDraft, sink: &mut Sink) {
    let (Some(port), true) = (&service.port, service.env.keys().any(|name| name == "PORT")) else { return };
    let message = format!("`{}` has a port and sets `PORT` itself", service.name.value);
    sink.error(Code::Environment, message, port.span.clone(), "is exported as `PORT`")
        .help("leave `PORT` out of `env`, or leave out `port`");
}

fn command(name: &At<String>, table: &DeTable<'_>, sink: &mut Sink) -> Option<At<CommandSpec>> {
    let shell = node::get(table, "shell");
    let Some(found) = node::get(table, "run") else {
        // A misspelled key has its own error, which says all there is to say.
        let is_guessed =
            |key: &str| KEYS.guessed.iter().any(|(guess, meant)| *guess == key && *meant == "run");
        if !table.iter().any(|(key, _)| is_guessed(key.get_ref())) {
            let message = format!("the service {} has no command", quoted(&name.value));
            sink.error(Code::MissingCommand, message, name.span.clone(), "nothing to run")
                .help("add `run = \"npm run dev\"`, or `run = [\"npm\", \"run\", \"dev\"]` to run it without a shell");
        }
        return None;
    };
    let spec = match found.get_ref() {
        DeValue::String(_) => {
            let text = node::string(sink, "run", found, "run = \"npm run dev\"")?;
            if text.value.trim().is_empty() {
                empty(&name.value, text.span, sink);
                return None;
            }
            let shell = match shell {
                Some(found) => self::shell(found, sink)?,
                None => vec!["/bin/sh".into(), "-c".into()],
            };
            CommandSpec::Shell { shell, text: text.value.into() }
        }
        DeValue::Array(list) => {
            if let Some(shell) = shell {
                sink.error(Code::Command, "`shell` has no use here", shell.span(), "never started")
                    .related(found.span(), "a list runs without a shell")
                    .help("leave `shell` out, or write the command as one string");
            }
            argv(&name.value, list, found.span(), sink)?
        }
        _ => {
            let expected = "a string, or a list of strings";
            node::wrong_type(sink, "run", found, expected, "run = \"npm run dev\"");
            return None;
        }
    };
    Some(At::new(spec, found.span()))
}

fn empty(name: &str, span: Range<usize>, sink: &mut Sink) {
    sink.error(Code::MissingCommand, format!("the command of `{name}` is empty"), span, "nothing to run")
        .help("for example `run = \"npm run dev\"`");
}

fn argv(name: &str, list: &[Node<'_>], span: Range<usize>, sink: &mut Sink) -> Option<CommandSpec> {
    let words = node::strings(sink, "run", list, "run = [\"npm\", \"run\", \"dev\"]")?;
    let Some(program) = words.first().filter(|program| !program.value.is_empty()) else {
        empty(name, words.first().map_or(span, |program| program.span.clone()), sink);
        return None;
    };
    if words.len() == 1 && program.value.trim().contains(' ') {
        let message = format!("`{name}` runs a program with spaces in its name");
        let split: Vec<_> = program.value.split_whitespace().map(|word| format!("\"{word}\"")).collect();
        let warning =
            sink.warning(Code::Command, message, program.span.clone(), "taken as the name of one program");
        warning.note("a list runs directly, without a shell that would split it");
        if !program.value.contains(['"', '\'', '\\', '$', '&', '|', ';', '<', '>', '*', '(']) {
            warning.fix(
                "if these are a program and its arguments, write",
                program.span.clone(),
                split.join(", "),
            );
        }
    }
    Some(CommandSpec::Argv(words.iter().map(|word| OsString::from(word.value)).collect()))
}

fn shell(found: &Node<'_>, sink: &mut Sink) -> Option<Vec<OsString>> {
    let example = "shell = [\"bash\", \"-euc\"]";
    let DeValue::Array(list) = found.get_ref() else {
        let text = found
            .get_ref()
            .as_str()
            .map(|text| text.split_whitespace().map(|w| format!("\"{w}\"")).collect());
        let error = node::wrong_type(sink, "shell", found, "a list of strings", example);
        if let Some(words) = text.filter(|words: &Vec<_>| !words.is_empty()) {
            let flag = if words.len() == 1 { ", \"-c\"" } else { "" };
            error.fix("write it as a list", found.span(), format!("[{}{flag}]", words.join(", ")));
        }
        return None;
    };
    let words = node::strings(sink, "shell", list, example)?;
    if words.first().is_none_or(|program| program.value.is_empty()) {
        sink.error(Code::Command, "`shell` is empty", found.span(), "no program")
            .help(format!("for example `{example}`; without it, `/bin/sh -c` is used"));
        return None;
    }
    Some(words.iter().map(|word| OsString::from(word.value)).collect())
}

fn dir(found: &Node<'_>, sink: &mut Sink) -> Option<At<PathBuf>> {
    let dir = node::string(sink, "dir", found, "dir = \"web\"")?;
    if dir.value.is_empty() {
        sink.error(Code::Directory, "`dir` is empty", dir.span, "no directory")
            .help("leave it out for the directory that this file is in");
        return None;
    }
    if dir.value == "~" || dir.value.starts_with("~/") || dir.value.contains('$') {
        let message =
            format!("{} is not replaced in `dir`", if dir.value.starts_with('~') { "`~`" } else { "`$`" });
        sink.error(Code::Directory, message, dir.span, "taken as it is written")
            .help("write a whole path, or one that starts at this file's directory");
        return None;
    }
    Some(At::new(PathBuf::from(dir.value), dir.span))
}

fn port(found: &Node<'_>, sink: &mut Sink) -> Option<At<PortSpec>> {
    let spec = match found.get_ref() {
        DeValue::Integer(_) => {
            let number = node::integer(sink, "port", found, 1..=65535, Code::Port)?;
            PortSpec::Fixed(u16::try_from(number).ok()?)
        }
        DeValue::String(text) if text == "auto" => PortSpec::Auto,
        DeValue::String(text) => {
            let number = text.parse::<u16>().ok().filter(|port| *port != 0);
            let message =
                format!("`port` takes a number from 1 to 65535 or `\"auto\"`, not the text {}", quoted(text));
            let error = sink.error(Code::Port, message, found.span(), "not a port");
            match number {
                Some(number) => error.fix("write it without quotes", found.span(), number.to_string()),
                None if text.contains(':') => {
                    error.help("a service has one port, which is the same inside and outside: `port = 8000`")
                }
                None => error.help("`port = 8000`, or `port = \"auto\"` for a free one, exported as `PORT`"),
            };
            return None;
        }
        DeValue::Array(_) => {
            node::wrong_type(sink, "port", found, "one number, or `\"auto\"`", "port = 8000")
                .note("a service that listens at several ports claims the one that others use");
            return None;
        }
        _ => {
            node::wrong_type(sink, "port", found, "a number from 1 to 65535, or `\"auto\"`", "port = 8000");
            return None;
        }
    };
    Some(At::new(spec, found.span()))
}
