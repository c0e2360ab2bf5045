//! What is wrong with a text, where, and what to write instead: data only.
//!
//! A [`Diagnostic`] knows the text it is about, so a list of them is all that a command needs to show
//! ([`crate::render`]) or to print as JSON. This file does not decide how anything looks.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// The text that a diagnostic is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The file as the user named it, for display.
    pub file: PathBuf,
    /// Its text without a byte order mark; bytes that are not UTF-8 are replaced by U+FFFD.
    pub text: String,
}

impl Source {
    /// Returns the place of a byte offset. An offset beyond the text is its end; one inside a character its start.
    #[must_use]
    pub fn place(&self, offset: usize) -> Place {
        let before = &self.text[..self.floor(offset)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Place { line, column: before[line_start..].chars().count() + 1 }
    }

    /// Returns a span cut to the text and to whole characters, so that the text can be sliced with it.
    #[must_use]
    pub fn clamp(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.floor(span.start);
        start..self.floor(span.end).max(start)
    }

    fn floor(&self, offset: usize) -> usize {
        self.text.floor_char_boundary(offset.min(self.text.len()))
    }
}

/// A place in a text as people count: both from 1, columns in characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The column in Unicode characters, from 1.
    pub column: usize,
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Nothing can be started from this text.
    Error,
    /// The text is used, but probably not as it was meant.
    Warning,
}

impl Severity {
    /// Returns the word used in output and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Declares the codes once: variant, text, meaning.
macro_rules! codes {
    ($($variant:ident $text:literal $meaning:literal)*) => {
        /// The kind of a diagnostic: stable words for scripts and for searching, as printed in brackets.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the stable word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

codes! {
    Unreadable "unreadable" "The file could not be read."
    NotFound "not-found" "There is no configuration here or above."
    Untrusted "untrusted" "A configuration was found that belongs to another user."
    Format "format" "The file is of a format that is not read."
    TooLarge "too-large" "The file is larger than the limit."
    NotUtf8 "not-utf8" "The file is not UTF-8 text."
    Empty "empty" "The file defines no service."
    Syntax "syntax" "The text is not TOML, or not a Procfile."
    Duplicate "duplicate" "A key or a service is there twice."
    UnknownKey "unknown-key" "A key that lariat does not know."
    WrongType "wrong-type" "A value of another type than the key takes."
    MissingCommand "missing-command" "A service without a command."
    Command "command" "A command that cannot be run as written."
    Name "name" "A name with characters that names may not have."
    Environment "environment" "A variable that cannot be set, or is set by lariat."
    Directory "directory" "A working directory that is not there, or cannot be one."
    Duration "duration" "A text that is not a duration, or one out of range."
    Signal "signal" "A signal that does not exist or cannot stop anything politely."
    Port "port" "A port that is none, is shared by two services, or is used without being set."
    UnknownService "unknown-service" "A dependency that is not a service of this stack."
    SelfDependency "self-dependency" "A service that waits for itself."
    Cycle "cycle" "Services that wait for each other in a circle."
    Condition "condition" "A condition that cannot hold or is none."
    Ready "ready" "A readiness check that is none, or more than one."
    Address "address" "An address that lariat cannot connect to."
    Url "url" "A URL that lariat cannot ask."
    Pattern "pattern" "A regular expression that does not compile, or a pattern of commands that is none."
    Scope "scope" "An unknown scope of a stop signal."
    Isolation "isolation" "An unknown isolation."
    Limit "limit" "A limit that is none, or out of range."
    Restart "restart" "A restart policy that is none, or contradicts the rest."
    Grace "grace" "Grace periods that cannot fit in the stack's deadline."
    TooMany "too-many" "There was more than is shown."
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A marked piece of the text, with what there is to say about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// Bytes of [`Source::text`].
    pub span: Range<usize>,
    /// What is said beside the caret; may be empty.
    pub text: String,
}

/// What to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Help {
    /// In words.
    pub message: String,
    /// The same as a change of the text, where it is certain enough to be shown as one.
    pub fix: Option<Fix>,
}

/// A change of the text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fix {
    /// The bytes of [`Source::text`] that are replaced; empty for an insertion.
    pub span: Range<usize>,
    /// What is written there instead.
    pub replacement: String,
}

/// One thing that is wrong, or probably not meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// Whether the text can be used all the same.
    pub severity: Severity,
    /// Its kind.
    pub code: Code,
    /// What is wrong, in one line, lower case and without a full stop.
    pub message: String,
    /// The text that this is about.
    pub source: Arc<Source>,
    /// Where; `None` when it is about the file as a whole.
    pub label: Option<Label>,
    /// Other places that have to do with it.
    pub related: Vec<Label>,
    /// Why it is so, and what follows from it.
    pub notes: Vec<String>,
    /// What to do.
    pub help: Option<Help>,
}

impl Diagnostic {
    /// Returns a diagnostic about a text as a whole.
    #[must_use]
    pub fn new(severity: Severity, code: Code, message: impl Into<String>, source: Arc<Source>) -> Self {
        let message = message.into();
        Self { severity, code, message, source, label: None, related: vec![], notes: vec![], help: None }
    }

    /// Returns whether the text cannot be used because of this.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Sets the place and what stands beside the caret.
    pub fn at(&mut self, span: Range<usize>, text: impl Into<String>) -> &mut Self {
        self.label = Some(Label { span, text: text.into() });
        self
    }

    /// Adds another place.
    pub fn related(&mut self, span: Range<usize>, text: impl Into<String>) -> &mut Self {
        self.related.push(Label { span, text: text.into() });
        self
    }

    /// Adds a reason or a consequence.
    pub fn note(&mut self, text: impl Into<String>) -> &mut Self {
        self.notes.push(text.into());
        self
    }

    /// Sets what to do, in words.
    pub fn help(&mut self, message: impl Into<String>) -> &mut Self {
        self.help = Some(Help { message: message.into(), fix: None });
        self
    }

    /// Sets what to do, in words and as a change of the text.
    pub fn fix(
        &mut self,
        message: impl Into<String>,
        span: Range<usize>,
        replacement: impl Into<String>,
    ) -> &mut Self {
        self.help =
            Some(Help { message: message.into(), fix: Some(Fix { span, replacement: replacement.into() }) });
        self
    }
}

/// How many errors are shown of one text, and how many warnings; the rest is counted.
pub const ERRORS_MAX: usize = 20;

/// Collects what is wrong with one text.
pub(crate) struct Sink {
    source: Arc<Source>,
    found: Vec<Diagnostic>,
}

impl Sink {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        Self { source, found: Vec::new() }
    }

    pub(crate) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Adds an error at a place and returns it, for notes and help.
    pub(crate) fn error(
        &mut self,
        code: Code,
        message: impl Into<String>,
        span: Range<usize>,
        label: impl Into<String>,
    ) -> &mut Diagnostic {
        self.add(Severity::Error, code, message.into()).at(span, label)
    }

    /// Adds a warning at a place and returns it, for notes and help.
    pub(crate) fn warning(
        &mut self,
        code: Code,
        message: impl Into<String>,
        span: Range<usize>,
        label: impl Into<String>,
    ) -> &mut Diagnostic {
        self.add(Severity::Warning, code, message.into()).at(span, label)
    }

    /// Adds a diagnostic about the whole text and returns it.
    pub(crate) fn add(&mut self, severity: Severity, code: Code, message: String) -> &mut Diagnostic {
        let at = self.found.len();
        self.found.push(Diagnostic::new(severity, code, message, Arc::clone(&self.source)));
        &mut self.found[at]
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.found.iter().any(Diagnostic::is_error)
    }

    /// Returns everything in the order of the text: at most [`ERRORS_MAX`] errors and as many warnings, the rest
    /// counted in a last one of each.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|d| d.label.as_ref().map_or(usize::MAX, |label| label.span.start));
        let (mut errors, mut warnings) = (0, 0);
        self.found.retain(|d| {
            let count = if d.is_error() { &mut errors } else { &mut warnings };
            *count += 1;
            *count <= ERRORS_MAX
        });
        for (severity, count) in [(Severity::Error, errors), (Severity::Warning, warnings)] {
            if let Some(more @ 1..) = count.checked_sub(ERRORS_MAX) {
                let plural = if more == 1 { " is" } else { "s are" };
                let message = format!("{more} more {}{plural} not shown", severity.as_str());
                self.add(severity, Code::TooMany, message).help("take care of those above first");
            }
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { file: "x".into(), text: text.to_owned() }
    }

    #[test]
    fn places_count_characters_from_one() {
        let source = source("a€b\r\nxy");
        let places: Vec<_> =
            [0, 1, 4, 7, 8, 99].map(|at| source.place(at)).map(|p| (p.line, p.column)).into();
        assert_eq!(places, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]);
    }

    #[test]
    fn a_span_is_cut_to_whole_characters() {
        let source = source("a€b");
        assert_eq!(source.clamp(&(2..300)), 1..5);
        assert_eq!(source.clamp(&(7..9)), 5..5);
        assert_eq!(source.clamp(&Range { start: 4, end: 2 }), 4..4);
    }

    #[test]
    fn what_is_beyond_the_limit_is_counted() {
        let mut sink = Sink::new(Arc::new(source("x")));
        for at in 0..30 {
            sink.error(Code::Syntax, "bad", at..at, "");
        }
        for at in 0..ERRORS_MAX + 1 {
            sink.warning(Code::Port, "odd", at..at, "");
        }
        let found = sink.finish();
        for code in [Code::Port, Code::Syntax] {
            assert_eq!(found.iter().filter(|d| d.code == code).count(), ERRORS_MAX);
        }
        let last: Vec<_> = found.iter().rev().take(2).map(|d| d.message.as_str()).collect();
        assert_eq!(last, ["1 more warning is not shown", "10 more errors are not shown"]);
    }

    #[test]
    fn codes_are_distinct_words() {
        let mut words: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Code::ALL.len());
        assert!(
            words
                .iter()
                .all(|w| w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        );
    }
}
