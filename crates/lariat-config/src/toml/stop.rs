//! `stop` and `restart`: how a service is ended, and what follows an end that nobody asked for.

use lariat::service::spec::{RestartSpec, RestartWhen, StopScope};
use lariat_sys::signal::Signal;
use toml::de::{DeTable, DeValue};

use super::node::{self, Keys, Node, Words};
use crate::diagnostic::{Code, Sink};
use crate::draft::ServiceDraft;
use crate::duration::SHORTEST;
use crate::suggest::{listed, nearest, quoted};

const STOP: Keys = Keys {
    known: &["signal", "grace", "scope"],
    guessed: &[
        ("timeout", "grace"),
        ("grace_period", "grace"),
        ("timeout_seconds", "grace"),
        ("wait", "grace"),
        ("sig", "signal"),
        ("kill_signal", "signal"),
        ("mode", "scope"),
        ("kill_mode", "scope"),
        ("who", "scope"),
    ],
    elsewhere: &[
        ("deadline", "it belongs to the stack: `[stack]` with `deadline = \"30s\"`"),
        ("command", "a service is stopped by a signal: `stop = { signal = \"INT\" }`"),
        ("run", "a service is stopped by a signal: `stop = { signal = \"INT\" }`"),
    ],
};

const SCOPES: Words<StopScope> = Words {
    noun: "a scope of the stop signal",
    code: Code::Scope,
    known: &[
        ("staged", StopScope::Staged),
        ("leader", StopScope::Leader),
        ("group", StopScope::Group),
        ("all", StopScope::All),
    ],
    guessed: &[
        ("mixed", "staged"),
        ("process", "leader"),
        ("main", "leader"),
        ("parent", "leader"),
        ("control-group", "all"),
    ],
};

/// Reads `stop` into the service.
pub(super) fn read(found: &Node<'_>, service: &mut ServiceDraft, sink: &mut Sink) {
    let DeValue::Table(table) = found.get_ref() else {
        let text = found.get_ref().as_str().map(str::to_owned);
        let error =
            node::wrong_type(sink, "stop", found, "a table", "stop = { signal = \"INT\", grace = \"8s\" }");
        if let Some(text) = text {
            let key = if text.parse::<Signal>().is_ok() { "signal" } else { "grace" };
            let is_meant = key == "signal" || crate::duration::parse(&text).is_ok();
            if is_meant {
                error.fix("if this is meant, write", found.span(), format!("{{ {key} = \"{text}\" }}"));
            }
        }
        return;
    };
    node::only(table, &STOP, "`stop`", sink);
    if let Some(signal) = node::get(table, "signal").and_then(|found| signal(found, sink)) {
        service.stop.signal = signal;
    }
    if let Some(grace) =
        node::get(table, "grace").and_then(|n| node::duration(sink, "grace", n, SHORTEST, "8s"))
    {
        service.stop.grace = grace.value;
        service.grace_span = Some(grace.span);
    }
    if let Some(scope) = node::get(table, "scope").and_then(|found| scope(found, sink)) {
        service.stop.scope = scope;
    }
}

fn signal(found: &Node<'_>, sink: &mut Sink) -> Option<Signal> {
    let text = node::string(sink, "signal", found, "stop = { signal = \"INT\" }")?;
    let Ok(signal) = text.value.parse::<Signal>() else {
        let message = format!("{} is not a signal", quoted(text.value));
        let error = sink.error(Code::Signal, message, text.span.clone(), "no such signal");
        let plain = text.value.to_ascii_uppercase();
        let plain = plain.strip_prefix("SIG").unwrap_or(&plain);
        let common = ["TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH", "ABRT", "ALRM"];
        match nearest(plain, common) {
            Some(near) => error.fix("a signal with a similar name exists", text.span, format!("\"{near}\"")),
            None => error.help(format!("commonly used are {}", listed(common.into_iter().take(4), "and"))),
        };
        return None;
    };
    if signal == Signal::KILL || signal == Signal::STOP {
        let message = format!("{signal} cannot be the stop signal");
        let reason = if signal == Signal::KILL {
            "no program can catch it, so nothing could end cleanly; it is sent anyway when the grace period is over"
        } else {
            "it suspends a process and never ends one, and no program can catch it"
        };
        let error = sink.error(Code::Signal, message, text.span.clone(), "not a polite signal");
        error.note(reason);
        match signal == Signal::KILL {
            true => error.help("leave it out and shorten the grace period: `stop = { grace = \"100ms\" }`"),
            false => error.help("leave it out to use `TERM`"),
        };
        return None;
    }
    let suspends = [Signal::TSTP, Signal::TTIN, Signal::TTOU].contains(&signal);
    if suspends || signal == Signal::CONT || signal == Signal::CHLD {
        let effect = if suspends { "suspends" } else { "is ignored by" };
        let message = format!("{signal} {effect} a program that does not handle it");
        sink.warning(Code::Signal, message, text.span, "ends nothing by itself")
            .note("such a service is killed when its grace period is over");
    }
    Some(signal)
}

fn scope(found: &Node<'_>, sink: &mut Sink) -> Option<StopScope> {
    let text = node::string(sink, "scope", found, "stop = { scope = \"leader\" }")?;
    node::word(sink, &text, &SCOPES)
}

const RESTART: Keys = Keys {
    known: &["when", "max"],
    guessed: &[
        ("policy", "when"),
        ("on", "when"),
        ("condition", "when"),
        ("max_restarts", "max"),
        ("retries", "max"),
        ("max_attempts", "max"),
        ("times", "max"),
    ],
    elsewhere: &[
        ("delay", "lariat chooses the pause: it grows from restart to restart"),
        ("backoff", "lariat chooses the pause: it grows from restart to restart"),
    ],
};

const WHEN: Words<RestartWhen> = Words {
    noun: "a restart policy",
    code: Code::Restart,
    known: &[
        ("no", RestartWhen::No),
        ("on-failure", RestartWhen::OnFailure),
        ("always", RestartWhen::Always),
    ],
    guessed: &[
        ("never", "no"),
        ("false", "no"),
        ("none", "no"),
        ("exit_on_failure", "no"),
        ("yes", "always"),
        ("true", "always"),
        ("unless-stopped", "always"),
        ("failure", "on-failure"),
    ],
};

const RESTART_EXAMPLE: &str = "restart = \"on-failure\"";

/// Reads `restart`; the default where it is wrong.
pub(super) fn restart(found: &Node<'_>, sink: &mut Sink) -> RestartSpec {
    match found.get_ref() {
        DeValue::String(_) => {
            let when = when("restart", found, sink).unwrap_or(RestartWhen::No);
            RestartSpec { when, ..RestartSpec::default() }
        }
        DeValue::Table(table) => restart_table(found, table, sink),
        _ => {
            let meant = match found.get_ref() {
                DeValue::Boolean(true) => Some("\"always\""),
                DeValue::Boolean(false) => Some("\"no\""),
                _ => None,
            };
            let error = node::wrong_type(
                sink,
                "restart",
                found,
                "`\"no\"`, `\"on-failure\"` or `\"always\"`",
                RESTART_EXAMPLE,
            );
            if let Some(meant) = meant {
                error.fix("if this is meant, write", found.span(), meant);
            }
            RestartSpec::default()
        }
    }
}

fn restart_table(found: &Node<'_>, table: &DeTable<'_>, sink: &mut Sink) -> RestartSpec {
    node::only(table, &RESTART, "`restart`", sink);
    let mut spec = RestartSpec::default();
    let max = node::get(table, "max");
    if let Some(max) = max.and_then(|found| node::integer(sink, "max", found, 1..=1_000_000, Code::Restart)) {
        spec.max = max;
    }
    match node::get(table, "when") {
        Some(found) => spec.when = when("when", found, sink).unwrap_or(RestartWhen::No),
        None if table.iter().all(|(key, _)| RESTART.known.contains(&key.get_ref().as_ref())) => {
            sink.error(Code::Restart, "`restart` does not say when", found.span(), "has no `when`")
                .help("for example `restart = { when = \"on-failure\", max = 5 }`");
        }
        None => {}
    }
    let says_no = node::get(table, "when").filter(|when| when.get_ref().as_str() == Some("no"));
    if let (Some(max), Some(when)) = (max, says_no) {
        sink.warning(Code::Restart, "`max` has no use with `when = \"no\"`", max.span(), "not used")
            .related(when.span(), "nothing is restarted");
    }
    spec
}

fn when(key: &str, found: &Node<'_>, sink: &mut Sink) -> Option<RestartWhen> {
    let text = node::string(sink, key, found, RESTART_EXAMPLE)?;
    node::word(sink, &text, &WHEN)
}
