//! `ready`: by what a service is seen to be ready.

use std::ops::Range;
use std::time::Duration;

use lariat::service::spec::{
    Endpoint, Pattern, PatternError, READY_EVERY_DEFAULT, READY_TIMEOUT_DEFAULT, ReadyCheck, ReadySpec,
};
use toml::de::{DeTable, DeValue};

use super::node::{self, Keys, Node};
use crate::address;
use crate::diagnostic::{Code, Sink};
use crate::draft::At;
use crate::duration::SHORTEST;
use crate::suggest::listed;

const KEYS: Keys = Keys {
    known: &["tcp", "http", "log", "timeout", "every"],
    guessed: &[
        ("port", "tcp"),
        ("url", "http"),
        ("http_get", "http"),
        ("path", "http"),
        ("regex", "log"),
        ("pattern", "log"),
        ("output", "log"),
        ("ready_log_line", "log"),
        ("interval", "every"),
        ("period", "every"),
        ("period_seconds", "every"),
        ("within", "timeout"),
        ("timeout_seconds", "timeout"),
    ],
    elsewhere: &[
        ("https", "checks are not encrypted: use `http`, or `tcp` for the port alone"),
        ("retries", "a check is repeated until `timeout`"),
        ("command", "a check is `tcp`, `http` or `log`"),
        ("exec", "a check is `tcp`, `http` or `log`"),
    ],
};

const CHECKS: [&str; 3] = ["tcp", "http", "log"];
const EXAMPLE: &str = "ready = { http = \"/healthz\" }";

/// The shortest pause between two probes: more would be load, not knowledge.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// Reads the check of a service; `None` where it is wrong.
pub(super) fn read(found: &Node<'_>, sink: &mut Sink) -> Option<ReadySpec> {
    let DeValue::Table(table) = found.get_ref() else {
        not_a_table(found, sink);
        return None;
    };
    node::only(table, &KEYS, "`ready`", sink);
    let timeout =
        node::get(table, "timeout").and_then(|n| node::duration(sink, "timeout", n, SHORTEST, "60s"));
    let every = node::get(table, "every").and_then(|n| node::duration(sink, "every", n, EVERY_MIN, "200ms"));
    let check = check(found, table, sink);
    times(check.as_ref(), timeout.as_ref(), every.as_ref(), sink);
    Some(ReadySpec {
        check: check?,
        timeout: timeout.map_or(READY_TIMEOUT_DEFAULT, |at| at.value),
        every: every.map_or(READY_EVERY_DEFAULT, |at| at.value),
    })
}

fn not_a_table(found: &Node<'_>, sink: &mut Sink) {
    let written = sink.source().text[sink.source().clamp(&found.span())].to_owned();
    let key = match found.get_ref() {
        DeValue::Integer(_) => Some("tcp"),
        DeValue::String(text) if text.starts_with('/') || text.starts_with("http") => Some("http"),
        DeValue::String(text) if address::endpoint(text).is_ok() => Some("tcp"),
        DeValue::String(_) => Some("log"),
        _ => None,
    };
    let error = node::wrong_type(sink, "ready", found, "a table with one check", EXAMPLE);
    if let Some(key) = key {
        error.fix("if this is meant, write", found.span(), format!("{{ {key} = {written} }}"));
    }
}

fn check(found: &Node<'_>, table: &DeTable<'_>, sink: &mut Sink) -> Option<ReadyCheck> {
    let is_check = |key: &str| CHECKS.contains(&key);
    let mut checks = table.iter().filter(|(key, _)| is_check(key.get_ref()));
    let Some((key, value)) = checks.next() else {
        // An unknown key has its own error, and was probably meant to be the check.
        if table.iter().all(|(key, _)| KEYS.known.contains(&key.get_ref().as_ref())) {
            let message = format!("`ready` needs a check: {}", listed(CHECKS, "or"));
            sink.error(Code::Ready, message, found.span(), "checks nothing")
                .help(format!("for example `{EXAMPLE}`"));
        }
        return None;
    };
    if let Some((second, _)) = checks.next() {
        let message =
            format!("`ready` takes one check, not both `{}` and `{}`", key.get_ref(), second.get_ref());
        sink.error(Code::Ready, message, second.span(), "the second check")
            .related(key.span(), "the first one")
            .help("keep the one that is fulfilled last");
        return None;
    }
    match key.get_ref().as_ref() {
        "tcp" => tcp(value, sink),
        "http" => http(value, sink),
        _ => log(value, sink),
    }
}

fn tcp(found: &Node<'_>, sink: &mut Sink) -> Option<ReadyCheck> {
    let endpoint = match found.get_ref() {
        DeValue::Integer(_) => {
            let number = node::integer(sink, "tcp", found, 1..=65535, Code::Port)?;
            Endpoint::Loopback(u16::try_from(number).ok()?)
        }
        DeValue::Boolean(true) => Endpoint::OwnPort,
        DeValue::String(text) => match address::endpoint(text) {
            Ok(endpoint) => endpoint,
            Err(refused) => {
                let number = text.parse::<u16>().ok().filter(|port| *port != 0);
                let error = sink.error(Code::Address, refused.message, found.span(), refused.label);
                match number {
                    Some(number) => {
                        error.fix("write a port without quotes", found.span(), number.to_string())
                    }
                    None if text.contains("PORT") || text == "auto" => {
                        error.fix("for the service's own port, write", found.span(), "true")
                    }
                    None => error.help(refused.help),
                };
                return None;
            }
        },
        _ => {
            let expected = "a port, `\"host:port\"`, or `true` for the service's own port";
            node::wrong_type(sink, "tcp", found, expected, "ready = { tcp = 5432 }");
            return None;
        }
    };
    Some(ReadyCheck::Tcp(endpoint))
}

fn http(found: &Node<'_>, sink: &mut Sink) -> Option<ReadyCheck> {
    let text = node::string(sink, "http", found, EXAMPLE)?;
    match address::request(text.value) {
        Ok(request) => {
            Some(ReadyCheck::Http { endpoint: request.endpoint, host: request.host, path: request.path })
        }
        Err(refused) => {
            let error = sink.error(Code::Url, refused.message, text.span.clone(), refused.label);
            match refused.meant {
                Some(meant) => {
                    error.note(refused.help).fix("if this is meant, write", text.span, format!("\"{meant}\""))
                }
                None => error.help(refused.help),
            };
            None
        }
    }
}

fn log(found: &Node<'_>, sink: &mut Sink) -> Option<ReadyCheck> {
    let text = node::string(sink, "log", found, "ready = { log = \"listening on\" }")?;
    if text.value.is_empty() {
        sink.error(
            Code::Pattern,
            "the pattern is empty",
            text.span,
            "would match the first output of any kind",
        )
        .help("write a part of the line that the service prints when it is ready: `log = \"listening on\"`");
        return None;
    }
    match Pattern::new(text.value) {
        Ok(pattern) => Some(ReadyCheck::Log(pattern)),
        Err(error) => {
            bad_pattern(&text, &error, sink);
            None
        }
    }
}

fn bad_pattern(text: &At<&str>, error: &PatternError, sink: &mut Sink) {
    let parsed = regex_syntax::ParserBuilder::new().utf8(false).build().parse(text.value);
    let (reason, place) = match parsed {
        Err(regex_syntax::Error::Parse(error)) => (error.kind().to_string(), Some(*error.span())),
        Err(regex_syntax::Error::Translate(error)) => (error.kind().to_string(), Some(*error.span())),
        _ => ("not a regular expression".to_owned(), None),
    };
    let inside = |offset| node::inside(&sink.source().text, &text.span, text.value, offset);
    let place = place.and_then(|place| inside(place.start.offset).zip(inside(place.end.offset)));
    let span: Range<usize> = place.map_or(text.span.clone(), |(start, end)| start..end.max(start + 1));
    let is_syntax = matches!(error, PatternError::Syntax(_));
    let error = sink.error(Code::Pattern, "the pattern is not a regular expression", span, reason);
    if is_syntax {
        error.help("a `\\` makes a character stand for itself, and single quotes keep it: `'\\(ready\\)'`");
    } else {
        error.at(text.span.clone(), "needs too much memory").help("use smaller numbers in `{…}`");
    }
}

fn times(
    check: Option<&ReadyCheck>,
    timeout: Option<&At<Duration>>,
    every: Option<&At<Duration>>,
    sink: &mut Sink,
) {
    let Some(every) = every else { return };
    if matches!(check, Some(ReadyCheck::Log(_))) {
        sink.warning(Code::Ready, "`every` has no use with `log`", every.span.clone(), "not used")
            .note("output is looked at as it comes")
            .help("leave it out");
        return;
    }
    let limit = timeout.map_or(READY_TIMEOUT_DEFAULT, |timeout| timeout.value);
    if every.value >= limit {
        let message = "`every` is not shorter than `timeout`, so there is only one probe";
        let warning = sink.warning(Code::Ready, message, every.span.clone(), "");
        match timeout {
            Some(timeout) => warning.related(timeout.span.clone(), "the service has failed by then"),
            None => warning.note("`timeout` is 60 s when it is not set"),
        };
    }
}
