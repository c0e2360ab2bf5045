//! Typed access to a TOML tree: what is there, or a diagnostic that says what was found and what belongs there.
//!
//! Nothing here knows what a key is for. All functions go on after an error, so that one run finds all of them.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Code, Diagnostic, Sink};
use crate::draft::At;
use crate::duration;
use crate::suggest::{listed, nearest, quoted};

/// A value with its place.
pub(super) type Node<'a> = Spanned<DeValue<'a>>;

/// The keys that a table takes.
pub(super) struct Keys {
    pub(super) known: &'static [&'static str],
    /// What other programs call it, or what one might guess → what it is called here.
    pub(super) guessed: &'static [(&'static str, &'static str)],
    /// Keys that have a place, but not here → where, as a piece of help.
    pub(super) elsewhere: &'static [(&'static str, &'static str)],
}

/// Returns the value of a key.
pub(super) fn get<'a>(table: &'a DeTable<'a>, key: &str) -> Option<&'a Node<'a>> {
    table.iter().find(|(found, _)| found.get_ref() == key).map(|(_, value)| value)
}

/// Reports the keys of a table that it does not take. `title` says which table, as in "`[service.web]`".
pub(super) fn only(table: &DeTable<'_>, keys: &Keys, title: &str, sink: &mut Sink) {
    for (key, _) in table {
        let written: &str = key.get_ref();
        if keys.known.contains(&written) {
            continue;
        }
        let message = format!("unknown key {} in {title}", quoted(written));
        let error = sink.error(Code::UnknownKey, message, key.span(), "");
        let guessed = keys.guessed.iter().find(|(guess, _)| guess.eq_ignore_ascii_case(written));
        if let Some((_, help)) = keys.elsewhere.iter().find(|(elsewhere, _)| *elsewhere == written) {
            error.at(key.span(), "not here").help(*help);
        } else if let Some((_, meant)) = guessed {
            error.at(key.span(), "unknown key").fix(
                format!("it is called `{meant}` here"),
                key.span(),
                *meant,
            );
        } else if let Some(near) = nearest(written, keys.known.iter().copied()) {
            error.at(key.span(), "unknown key").fix("a key with a similar name exists", key.span(), near);
        } else if let Some(near) = nearest(written, keys.guessed.iter().map(|(guess, _)| *guess)) {
            let meant =
                keys.guessed.iter().find(|(guess, _)| *guess == near).map_or(near, |(_, meant)| *meant);
            error.at(key.span(), "unknown key").fix(
                format!("`{near}` is called `{meant}` here"),
                key.span(),
                meant,
            );
        } else {
            error
                .at(key.span(), "unknown key")
                .note(format!("it takes {}", listed(keys.known.iter().copied(), "and")));
        }
    }
}

/// Returns what a value is, for "found …".
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "`true` or `false`",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Reports a value of the wrong type and returns the error, for more help. `example` is a whole line.
pub(super) fn wrong_type<'s>(
    sink: &'s mut Sink,
    key: &str,
    node: &Node<'_>,
    expected: &str,
    example: &str,
) -> &'s mut Diagnostic {
    let found = match node.get_ref() {
        DeValue::Boolean(value) => format!("`{value}`"),
        other => kind(other).to_owned(),
    };
    let message = format!("`{key}` takes {expected}, not {found}");
    sink.error(Code::WrongType, message, node.span(), format!("this is {found}"))
        .help(format!("for example `{example}`"))
}

/// Returns a string.
pub(super) fn string<'a>(
    sink: &mut Sink,
    key: &str,
    node: &'a Node<'a>,
    example: &str,
) -> Option<At<&'a str>> {
    if let DeValue::String(text) = node.get_ref() {
        return without_nul(sink, key, At::new(text.as_ref(), node.span()));
    }
    wrong_type(sink, key, node, "a string", example);
    None
}

/// Returns a string that may hold any text, so that a number or truth value was most likely meant as one: quotes are
/// the suggested change.
pub(super) fn free_string<'a>(
    sink: &mut Sink,
    key: &str,
    node: &'a Node<'a>,
    example: &str,
) -> Option<At<&'a str>> {
    if matches!(node.get_ref(), DeValue::String(_)) {
        return string(sink, key, node, example);
    }
    let written = sink.source().text[sink.source().clamp(&node.span())].to_owned();
    let is_scalar = !matches!(node.get_ref(), DeValue::Array(_) | DeValue::Table(_));
    let error = wrong_type(sink, key, node, "a string", example);
    if is_scalar {
        error.fix("write it in quotes", node.span(), format!("\"{written}\""));
    }
    None
}

fn without_nul<'a>(sink: &mut Sink, key: &str, text: At<&'a str>) -> Option<At<&'a str>> {
    if !text.value.contains('\0') {
        return Some(text);
    }
    let message = format!("`{key}` holds a NUL character");
    sink.error(Code::Command, message, text.span, "`\\u0000` in here")
        .note("the kernel ends every argument, path and variable at the first NUL");
    None
}

/// The words that a key takes.
pub(super) struct Words<T: 'static> {
    /// What such a word is, as in "`x` is not …".
    pub(super) noun: &'static str,
    pub(super) code: Code,
    pub(super) known: &'static [(&'static str, T)],
    /// What other programs call it → what it is called here.
    pub(super) guessed: &'static [(&'static str, &'static str)],
}

/// Returns the meaning of a word, or reports what it may have been meant to be.
pub(super) fn word<T: Copy>(sink: &mut Sink, text: &At<&str>, words: &Words<T>) -> Option<T> {
    if let Some((_, meaning)) = words.known.iter().find(|(word, _)| *word == text.value) {
        return Some(*meaning);
    }
    let known = || words.known.iter().map(|(word, _)| *word);
    let message = format!("{} is not {}", quoted(text.value), words.noun);
    let error =
        sink.error(words.code, message, text.span.clone(), format!("expected {}", listed(known(), "or")));
    let guessed = words.guessed.iter().find(|(guess, _)| guess.eq_ignore_ascii_case(text.value));
    if let Some(meant) = guessed.map(|(_, meant)| *meant).or_else(|| nearest(text.value, known())) {
        error.fix("if this is meant, write", text.span.clone(), format!("\"{meant}\""));
    }
    None
}

/// Returns a list of strings.
pub(super) fn strings<'a>(
    sink: &mut Sink,
    key: &str,
    list: &'a [Node<'a>],
    example: &str,
) -> Option<Vec<At<&'a str>>> {
    let all: Vec<_> = list.iter().map(|node| free_string(sink, key, node, example)).collect();
    all.into_iter().collect()
}

/// Returns a truth value.
pub(super) fn boolean(sink: &mut Sink, key: &str, node: &Node<'_>) -> Option<bool> {
    if let DeValue::Boolean(value) = node.get_ref() {
        return Some(*value);
    }
    let meant = node.get_ref().as_str().and_then(|text| match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some("true"),
        "false" | "no" | "off" => Some("false"),
        _ => None,
    });
    let error = wrong_type(sink, key, node, "`true` or `false`", &format!("{key} = true"));
    if let Some(meant) = meant {
        error.fix("write it without quotes", node.span(), meant);
    }
    None
}

/// Returns a whole number from `min` to `max`; `code` is for one that is out of range.
pub(super) fn integer(
    sink: &mut Sink,
    key: &str,
    node: &Node<'_>,
    range: std::ops::RangeInclusive<u32>,
    code: Code,
) -> Option<u32> {
    let (min, max) = (*range.start(), *range.end());
    let DeValue::Integer(number) = node.get_ref() else {
        let quoted_number =
            node.get_ref().as_str().filter(|text| text.parse::<u32>().is_ok()).map(str::to_owned);
        let expected = format!("a number from {min} to {max}");
        let error = wrong_type(sink, key, node, &expected, &format!("{key} = {}", min.max(5)));
        if let Some(number) = quoted_number {
            error.fix("write it without quotes", node.span(), number);
        }
        return None;
    };
    let value =
        i64::from_str_radix(number.as_str(), number.radix()).ok().and_then(|value| u32::try_from(value).ok());
    let value = value.filter(|value| range.contains(value));
    if value.is_none() {
        let written = sink.source().text[sink.source().clamp(&node.span())].to_owned();
        let message = format!("`{key}` takes a number from {min} to {max}, not {}", quoted(&written));
        sink.error(code, message, node.span(), "out of range");
    }
    value
}

/// Returns a duration of at least `min`.
pub(super) fn duration(
    sink: &mut Sink,
    key: &str,
    node: &Node<'_>,
    min: Duration,
    example: &str,
) -> Option<At<Duration>> {
    let DeValue::String(text) = node.get_ref() else {
        let seconds = node.get_ref().as_integer().map(|number| number.as_str()).map(str::to_owned);
        let is_plain =
            seconds.as_ref().is_some_and(|text| text.len() < 5 && text.parse::<u32>().is_ok_and(|n| n > 0));
        let expected = "a duration, a string with a unit";
        let error = wrong_type(sink, key, node, expected, &format!("{key} = \"{example}\""));
        if let Some(seconds) = seconds.filter(|_| is_plain) {
            error.fix("if seconds are meant, write", node.span(), format!("\"{seconds}s\""));
        }
        return None;
    };
    let refused = match duration::parse(text) {
        Ok(value) if value >= min => return Some(At::new(value, node.span())),
        Ok(_) => duration::Refused {
            message: format!("`{key}` must be {} or longer", duration::text(min)),
            label: "too short",
            meant: Some(duration::text(min)),
        },
        Err(refused) => refused,
    };
    let error = sink.error(Code::Duration, refused.message, node.span(), refused.label);
    match refused.meant {
        Some(meant) => error.fix("if this is meant, write", node.span(), format!("\"{meant}\"")),
        None => error.help(format!("write it like `{key} = \"{example}\"`: `500ms`, `8s`, `1m 30s`, `2h`")),
    };
    None
}

/// Returns the offset in the file of a byte of a decoded string, for carets inside it: `None` where a line
/// continuation or an unknown escape makes the two drift apart.
pub(super) fn inside(source: &str, span: &Range<usize>, decoded: &str, offset: usize) -> Option<usize> {
    let raw = source.get(span.clone())?;
    let quotes = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quotes| raw.starts_with(quotes))?;
    let inner = raw.strip_prefix(quotes)?.strip_suffix(quotes)?;
    // The first line break after three quotes is not part of the text.
    let body = if quotes.len() == 3 {
        inner.trim_start_matches('\r').strip_prefix('\n').unwrap_or(inner)
    } else {
        inner
    };
    let start = span.start + quotes.len() + (inner.len() - body.len());
    if quotes.starts_with('\'') {
        return (body == decoded).then_some(start + offset);
    }
    let (mut at, mut done) = (0, 0);
    while done < offset {
        let rest = body.get(at..)?;
        let (written, meant) = match rest.strip_prefix('\\') {
            Some(escape) => escape_length(escape)?,
            None => rest.chars().next().map(|c| (c.len_utf8(), c.len_utf8()))?,
        };
        at += written;
        done += meant;
    }
    Some(start + at)
}

/// Returns how long an escape is in the file and as text.
fn escape_length(after_backslash: &str) -> Option<(usize, usize)> {
    let digits = match after_backslash.chars().next()? {
        'b' | 't' | 'n' | 'f' | 'r' | 'e' | '"' | '\\' => return Some((2, 1)),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => return None,
    };
    let number = u32::from_str_radix(after_backslash.get(1..=digits)?, 16).ok()?;
    Some((digits + 2, char::from_u32(number)?.len_utf8()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_inside_a_string_is_found_through_its_escapes() {
        let cases = [
            (r#""a(b""#, "a(b", 1, Some(2)),
            (r"'a(b'", "a(b", 1, Some(2)),
            (r#""\\d(b""#, "\\d(b", 2, Some(4)),
            (r#""\u00e9(b""#, "é(b", 2, Some(7)),
            ("\"\"\"\na(b\"\"\"", "a(b", 1, Some(5)),
            ("'''a(b'''", "a(b", 1, Some(4)),
            ("\"\"\"a\\\n   (b\"\"\"", "a(b", 1, Some(4)),
            ("\"\"\"a\\\n   (b\"\"\"", "a(b", 2, None),
            ("bare", "bare", 1, None),
        ];
        for (source, decoded, offset, place) in cases {
            assert_eq!(inside(source, &(0..source.len()), decoded, offset), place, "{source}");
        }
    }
}
