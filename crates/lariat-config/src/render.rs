//! Diagnostics as text for people: source line, caret, notes and the suggested change.
//!
//! The look is that of Rust's compiler, which many know and which every editor's problem matcher reads. Nothing is
//! printed here, and no terminal is asked: the caller says how wide and whether in colour.

use std::ops::Range;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Patch, Renderer, Snippet};

use crate::diagnostic::{Diagnostic, Help, Severity, Source};

/// How the text is to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// Colours and bold as ANSI sequences.
    pub is_styled: bool,
    /// Longer lines of the user's file are cut around the caret.
    pub width: usize,
}

impl Default for Look {
    fn default() -> Self {
        Self { is_styled: false, width: 140 }
    }
}

/// Longest note or message that is shown, in characters.
const MESSAGE_MAX: usize = 2000;

/// Returns diagnostics as text: one after the other, with an empty line after each.
///
/// Control characters of the user's file come out as visible symbols, never as themselves. Spans that lie outside
/// the text are cut to it, so this never panics.
#[must_use]
pub fn render(diagnostics: &[Diagnostic], look: Look) -> String {
    let renderer = if look.is_styled { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.term_width(look.width.max(40));
    let mut out = String::new();
    for diagnostic in diagnostics {
        out.push_str(renderer.render(&groups(diagnostic)).trim_end());
        out.push_str("\n\n");
    }
    out
}

fn groups(diagnostic: &Diagnostic) -> Vec<Group<'_>> {
    let source = &*diagnostic.source;
    let path = source.file.to_string_lossy().into_owned();
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(visible(&diagnostic.message)).id(diagnostic.code.as_str());
    let mut group = Group::with_title(title);
    let has_source = diagnostic.label.is_some();
    if has_source {
        let snippet = Snippet::source(&*source.text).path(path.clone()).annotations(annotations(diagnostic));
        group = group.element(snippet);
    }
    for note in &diagnostic.notes {
        group = group.element(Level::NOTE.message(visible(note)));
    }
    match &diagnostic.help {
        Some(Help { message, fix: Some(fix) }) => {
            let patch = Patch::new(source.clamp(&fix.span), fix.replacement.clone());
            let help = Group::with_title(Level::HELP.secondary_title(visible(message)))
                .element(Snippet::source(&*source.text).path(path).patch(patch));
            vec![group, help]
        }
        Some(Help { message, fix: None }) => vec![group.element(Level::HELP.message(visible(message)))],
        None => vec![group],
    }
}

fn annotations(diagnostic: &Diagnostic) -> Vec<Annotation<'_>> {
    let source = &*diagnostic.source;
    let primary = diagnostic.label.iter().map(|label| (AnnotationKind::Primary, label));
    let related = diagnostic.related.iter().map(|label| (AnnotationKind::Context, label));
    primary
        .chain(related)
        .map(|(kind, label)| {
            let annotation = kind.span(caret(source, &label.span));
            if label.text.is_empty() { annotation } else { annotation.label(visible(&label.text)) }
        })
        .collect()
}

/// Returns what the caret marks: never beyond the text, and only the first line of a longer piece, since a bracket
/// down the side of a whole table hides the message more than it shows the place.
fn caret(source: &Source, span: &Range<usize>) -> Range<usize> {
    let span = source.clamp(span);
    let first = source.text[span.clone()].split(['\n', '\r']).next().map_or(0, str::len);
    span.start..span.start + first
}

/// Returns a message with control characters made visible and its length limited.
fn visible(text: &str) -> String {
    let shown = text.chars().take(MESSAGE_MAX).map(|c| match c {
        '\n' => '\n',
        '\u{7f}' => '␡',
        c if u32::from(c) < 0x20 => char::from_u32(0x2400 + u32::from(c)).unwrap_or('?'),
        c if c.is_control() || is_direction(c) => '\u{fffd}',
        c => c,
    });
    shown.collect()
}

/// Characters that change the direction of what follows them, and so could make a message say something else.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::diagnostic::Code;

    fn shown(text: &str, span: Range<usize>) -> String {
        let source = Arc::new(Source { file: "lariat.toml".into(), text: text.to_owned() });
        let mut diagnostic = Diagnostic::new(Severity::Error, Code::Syntax, "bad", source);
        diagnostic.at(span.clone(), "here").related(span.clone(), "and \x1b[31m").fix("do", span, "x");
        render(&[diagnostic], Look::default())
    }

    #[test]
    fn any_span_of_any_text_is_shown_without_a_panic() {
        for text in ["", "a", "a€b", "a\nb\n", "\r\n\r\n", "\u{feff}", "\t\x1b[0m\0"] {
            for start in 0..8 {
                for end in 0..12 {
                    let text = shown(text, start..end);
                    assert!(text.contains("error[syntax]: bad") && !text.contains('\x1b'), "{text}");
                }
            }
        }
    }

    #[test]
    fn the_caret_stays_on_the_first_line() {
        let text = shown("ab\ncd\n", 1..5);
        assert!(text.contains("lariat.toml:1:2"), "{text}");
        assert!(!text.contains("|_"), "{text}");
    }
}
