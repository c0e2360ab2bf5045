//! Text to a TOML tree, and what is no TOML to diagnostics.
//!
//! The parser recovers after an error, and then reports what follows from it too. So only the first error of a line
//! is shown, at most [`SYNTAX_MAX`] of them, and the tree is looked at only when nothing but duplicates was found.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Code, Diagnostic, Sink};
use crate::suggest::quoted;

/// How many syntax errors are shown.
const SYNTAX_MAX: usize = 5;

/// Parses a text. `None` when the tree is not worth looking at; the errors are in the sink.
pub(super) fn tree<'a>(text: &'a str, sink: &mut Sink) -> Option<Spanned<DeTable<'a>>> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let mut lines = BTreeSet::new();
    let mut is_sound = true;
    let mut errors: Vec<_> =
        errors.iter().map(|error| (error.span().unwrap_or_default(), error.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    // A table that is there twice makes each of its keys a duplicate as well.
    let mut repeated_until = 0;
    for (span, message) in errors {
        let span = sink.source().clamp(&span);
        if message == "duplicate key" {
            if span.start >= repeated_until {
                repeated_until = duplicate(text, &tree, span, sink).unwrap_or(repeated_until);
            }
            continue;
        }
        is_sound = false;
        let line_start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
        if lines.len() < SYNTAX_MAX && lines.insert(line_start) {
            unreadable(text, line_start, span, message, sink);
        }
    }
    is_sound.then_some(tree)
}

fn unreadable(text: &str, line_start: usize, span: Range<usize>, message: &str, sink: &mut Sink) {
    let line = text[line_start..].lines().next().unwrap_or_default();
    let (what, expected) = match message.split_once(", expected ") {
        Some((what, "nothing")) => (what, String::new()),
        Some((what, expected)) => (what, format!("expected {expected}")),
        None => (message, String::new()),
    };
    if let Some(value) = bare_value(text, line_start, &span) {
        bare_word(text, line_start, value, sink);
        return;
    }
    if what == "unexpected leading zero" {
        let whole = text[span.start..].split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        let plain = whole.trim_start_matches('0');
        let plain = if plain.is_empty() { "0" } else { plain };
        let whole = span.start..span.start + whole.len();
        sink.error(Code::Syntax, "a number must not start with `0`", whole.clone(), "").fix(
            "write it without",
            whole,
            plain,
        );
        return;
    }
    if what.contains("escape") {
        let odd: String = text[..span.start].chars().next_back().filter(|c| *c == '\\').into_iter().collect();
        let odd: String = odd.chars().chain(text[span.start..].chars().take(1)).collect();
        let from = span.start - (odd.len() - odd.trim_start_matches('\\').len());
        sink.error(
            Code::Syntax,
            format!("{} is not an escape in a text", quoted(&odd)),
            from..from + odd.len(),
            "",
        )
        .help("write `\\\\` for a backslash, or use single quotes, which take everything as it is");
        return;
    }
    let yaml = line.trim().split_once(':').filter(|(key, _)| !key.contains(['=', '"', '\'', '#', ' ']));
    let is_unclosed = what.starts_with("invalid") && what.ends_with(" string") && !expected.is_empty();
    let error = match is_unclosed {
        true => sink.error(Code::Syntax, "a text is not closed", span.clone(), expected),
        false => sink.error(Code::Syntax, what, span.clone(), expected),
    };
    if let Some((key, value)) = yaml.filter(|(key, _)| !key.is_empty()) {
        looks_like_yaml(error, key, value.trim());
    } else if what.starts_with("unclosed table") {
        error.help(format!("close it: `{}]`", line.trim()));
    } else if what.starts_with("key with no value") {
        error.help("a line is `key = value`, a table `[service.NAME]`, a comment `# …`");
    } else if what.contains("recurs") {
        error.help("no key of this file needs tables in tables in tables");
    } else if what.starts_with("missing comma")
        && text[span.start..].lines().next().is_some_and(|l| l.contains('='))
    {
        error.help("is the list or table above closed, with `]` or `}`?");
    }
}

fn looks_like_yaml(error: &mut Diagnostic, key: &str, value: &str) {
    let key = if matches!(key, "services" | "processes" | "service") { "NAME" } else { key };
    match value.is_empty() {
        true => error.help(format!("this looks like YAML; TOML starts a table with `[service.{key}]`")),
        false => error.help(format!("this looks like YAML; TOML writes `{key} = …`, with text in quotes")),
    };
}

/// Returns the value around an error when it is text without quotes, or nothing at all: the parser takes such text
/// for a misspelled number, date or truth value, depending on its first letter.
fn bare_value(text: &str, line_start: usize, span: &Range<usize>) -> Option<Range<usize>> {
    let line = text[line_start..].lines().next().unwrap_or_default();
    let before = line.get(..span.start - line_start)?;
    let start = before.rfind('=').map(|at| at + 1)?;
    let after = &line[start..];
    let value = after.trim_start();
    let start = line_start + start + (after.len() - value.len());
    let is_in_table = before.contains('{');
    let end = value.find(|c| c == '#' || is_in_table && matches!(c, ',' | '}')).unwrap_or(value.len());
    let value = value[..end].trim_end();
    let is_bare =
        value.starts_with(|c: char| c.is_alphabetic() || matches!(c, '.' | '/' | '~' | '$' | '-' | '*'));
    let is_unit =
        value.starts_with(|c: char| c.is_ascii_digit()) && value.ends_with(|c: char| c.is_alphabetic());
    let is_plain = !value.contains(['"', '\'', '[', ']', '{', '=']);
    (span.start <= start + value.len() && is_plain && (is_bare || is_unit || value.is_empty()))
        .then_some(start..start + value.len())
}

fn bare_word(text: &str, line_start: usize, span: Range<usize>, sink: &mut Sink) {
    let written = &text[span.clone()];
    if written.is_empty() {
        let before = text[line_start..span.start].trim_end().trim_end_matches('=').trim_end();
        let key = before.rsplit([' ', '{', ',']).next().unwrap_or_default();
        sink.error(Code::Syntax, format!("the key {} has no value", quoted(key)), span, "expected a value")
            .help("write one, or leave the key out");
        return;
    }
    let truth = match written.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some("true"),
        "false" | "no" | "off" => Some("false"),
        _ => None,
    };
    let message = format!("the text {} has no quotes", quoted(written));
    let error = sink.error(Code::Syntax, message, span.clone(), "");
    match truth {
        Some(truth) => error.fix("if a truth value is meant, write", span, truth),
        None if written.contains('\\') => error.fix("write it in quotes", span, format!("'{written}'")),
        None => error.fix("write it in quotes", span, format!("\"{written}\"")),
    };
}

/// Reports a key or table that is there twice. For a table, returns the end of its repetition.
fn duplicate(text: &str, tree: &Spanned<DeTable<'_>>, span: Range<usize>, sink: &mut Sink) -> Option<usize> {
    let line_start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let key = text[span.clone()].trim_matches(['"', '\'']);
    if !line.trim_start().starts_with('[') {
        let error = sink.error(
            Code::Duplicate,
            format!("the key {} is there twice", quoted(key)),
            span.clone(),
            "the second time",
        );
        if let Some(first) = first_key(text, tree, key, span.start) {
            error.related(first, "the first time");
        }
        error.help("leave one of them out");
        return None;
    }
    let title = title(line);
    let what = match title.trim_matches(['[', ']']).split_once('.') {
        Some(("service", name)) if !name.contains('.') => {
            format!("the service {} is there twice", quoted(name))
        }
        _ => format!("the table {} is there twice", quoted(title)),
    };
    let indent = line.len() - line.trim_start().len();
    let here = line_start + indent..line_start + indent + title.len();
    let error = sink.error(Code::Duplicate, what, here, "the second time");
    let mut offset = 0;
    for other in text[..line_start].split_inclusive('\n') {
        if self::title(other) == title {
            let indent = other.len() - other.trim_start().len();
            error.related(offset + indent..offset + indent + title.len(), "the first time");
            break;
        }
        offset += other.len();
    }
    error.help("give it another name, or move its keys to the first one");
    let rest = &text[line_start + line.len()..];
    let end = rest.match_indices("\n[").next().map_or(rest.len(), |(at, _)| at + 1);
    Some(line_start + line.len() + end)
}

/// Returns the `[table]` of a line without indentation, comment and spaces around it; empty for another line.
fn title(line: &str) -> &str {
    let line = line.trim_start();
    if !line.starts_with('[') {
        return "";
    }
    line.rfind(']').map_or("", |end| &line[..=end])
}

/// Returns where the key that a duplicate repeats is first: in the innermost table around the duplicate.
fn first_key(text: &str, tree: &Spanned<DeTable<'_>>, key: &str, at: usize) -> Option<Range<usize>> {
    let mut found: Option<(usize, Range<usize>)> = None;
    let mut tables: Vec<(Range<usize>, &DeTable<'_>)> = vec![(0..0, tree.get_ref())];
    while let Some((span, table)) = tables.pop() {
        let is_inline = text[span.start..].starts_with('{');
        let is_around = if is_inline { span.contains(&at) } else { span.start <= at };
        for (other, value) in table {
            if let DeValue::Table(table) = value.get_ref() {
                tables.push((value.span(), table));
            }
            if is_around && other.get_ref() == key && other.span().start < at {
                // INVARIANT: tables nest, so of two tables around a place the inner one starts later.
                let is_closer = found.as_ref().is_none_or(|(start, _)| span.start >= *start);
                found = if is_closer { Some((span.start, other.span())) } else { found };
            }
        }
    }
    found.map(|(_, span)| span)
}
