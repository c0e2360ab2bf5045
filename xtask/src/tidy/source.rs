//! Source files as the rules see them: text, code without comments and literals, functions.
//!
//! A small lexer of Rust, no parser: it blanks what is not code, so that rules can look for words and count braces.

use std::ops::Range;

/// One file of the repository.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    /// The file as it is.
    pub(crate) text: String,
    /// For Rust: the same lines, with comments and the insides of literals turned into blanks. Otherwise empty.
    pub(crate) code: String,
    /// For Rust: the same lines, with everything but comments turned into blanks. Otherwise empty.
    pub(crate) comments: String,
    /// The line, from 0, where the test module starts; the number of lines where there is none.
    pub(crate) tests_from: usize,
}

/// A function's name and its lines, from 0, from `fn` to the closing brace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// Its lines.
    pub(crate) lines: Range<usize>,
}

impl SourceFile {
    /// Takes a file's text apart.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let is_rust = path.ends_with(".rs");
        let (code, comments) = if is_rust { split(text) } else { (String::new(), String::new()) };
        let is_test_start = |line: &str| line.trim_start().starts_with("#[cfg(test)]");
        let tests_from = code.lines().position(is_test_start).unwrap_or_else(|| text.lines().count());
        Self { path: path.to_owned(), text: text.to_owned(), code, comments, tests_from }
    }

    /// Whether it is Rust.
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Returns the file's name without its folder.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Returns the folder of its crate: `lariat-sys` for `crates/lariat-sys/src/tree.rs`.
    pub(crate) fn crate_name(&self) -> Option<&str> {
        let rest = self
            .path
            .strip_prefix("crates/")
            .or_else(|| self.path.starts_with("xtask/").then_some(&self.path))?;
        rest.split('/').next()
    }

    /// Whether the whole file is a test: under `tests/`, or a test module of its own.
    pub(crate) fn is_test_file(&self) -> bool {
        self.path.contains("/tests/") || self.name() == "tests.rs" || self.name().ends_with("_tests.rs")
    }

    /// Whether the line, from 0, belongs to a test.
    pub(crate) fn is_test(&self, line: usize) -> bool {
        self.is_test_file() || line >= self.tests_from
    }

    /// Returns the functions that have a body, in order, nested ones too.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let bytes = self.code.as_bytes();
        let mut found = Vec::new();
        for start in words(&self.code, "fn") {
            let name: String = self.code[start + 2..]
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let Some(open) = body_start(bytes, start).filter(|_| !name.is_empty()) else { continue };
            let lines = line_of(bytes, start)..line_of(bytes, block_end(bytes, open)) + 1;
            found.push(Function { name, lines });
        }
        found
    }
}

/// Returns where `word` stands as a whole word.
pub(crate) fn words(text: &str, word: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let is_part = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at)).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
    };
    let stands_alone = |at: &usize| !is_part(at.checked_sub(1)) && !is_part(Some(at + word.len()));
    text.match_indices(word).map(|(at, _)| at).filter(stands_alone).collect()
}

/// Returns the line, from 0, of a byte.
pub(crate) fn line_of(bytes: &[u8], at: usize) -> usize {
    bytes[..at.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// Finds the brace that opens a body: none where a `;` outside brackets ends the declaration first.
fn body_start(bytes: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, byte) in bytes.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth <= 0 => return Some(at),
            b';' if depth <= 0 => return None,
            _ => {}
        }
        // A bare `fn` type in a field or an argument ends before any body does.
        if depth < 0 {
            return None;
        }
    }
    None
}

fn block_end(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0;
    for (at, byte) in bytes.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// Splits Rust into code and comments: two texts of the same length and lines. The quotes of a literal stay in the
/// code, its inside does not.
fn split(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let (mut code, mut comments) = (blank(bytes), blank(bytes));
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => line_end(bytes, at),
            [b'/', b'*', ..] => comment_end(bytes, at),
            rest => {
                let end = literal_end(rest).map_or(at + 1, |length| at + length);
                code[at] = bytes[at];
                code[end - 1] = bytes[end - 1];
                at = end;
                continue;
            }
        };
        comments[at..end].copy_from_slice(&bytes[at..end]);
        at = end;
    }
    (String::from_utf8_lossy(&code).into_owned(), String::from_utf8_lossy(&comments).into_owned())
}

fn blank(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }).collect()
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    at + bytes[at..].iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len() - at)
}

fn comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut end) = (0, at);
    while end < bytes.len() {
        match &bytes[end..] {
            [b'/', b'*', ..] => (depth, end) = (depth + 1, end + 2),
            [b'*', b'/', ..] => (depth, end) = (depth - 1, end + 2),
            _ => end += 1,
        }
        if depth == 0 {
            break;
        }
    }
    end.min(bytes.len())
}

/// Returns the length of the literal that starts here: a string, raw or not, or a character. A lifetime is none.
fn literal_end(rest: &[u8]) -> Option<usize> {
    match rest {
        [b'"', ..] => Some(quoted_end(rest, b'"')),
        [b'\'', b'\\', ..] => Some(quoted_end(rest, b'\'')),
        [b'\'', ..] => char_end(rest),
        [b'r', b'"' | b'#', ..] => raw_end(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] => raw_end(rest, 2),
        _ => None,
    }
}

fn quoted_end(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn char_end(rest: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .or_else(|error| std::str::from_utf8(&rest[1..1 + error.valid_up_to()]));
    let length = text.ok()?.chars().next()?.len_utf8();
    (rest.get(1 + length) == Some(&b'\'')).then_some(length + 2)
}

fn raw_end(rest: &[u8], prefix: usize) -> Option<usize> {
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.extend(std::iter::repeat_n(b'#', hashes));
    let from = prefix + hashes + 1;
    let length = rest[from..].windows(close.len()).position(|window| window == close)?;
    Some(from + length + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        SourceFile::new("a.rs", text).code
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let text = "let a = \"fn b() {\"; // fn c() {\n/* fn /* d */ { */ let e = '{'; let f = r#\"\"{\"#; let g: &'a u8;";
        let code = code(text);
        assert!(!code.contains("fn") && !code.contains('{'), "{code}");
        assert!(code.contains("let g: &'a u8;"), "{code}");
        assert_eq!(code.len(), text.len());
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn escapes_and_wide_characters_end_where_they_end() {
        assert_eq!(code(r#"f("\"", '\'', '"', 'ä', b'x') + fn"#).trim_end().chars().last(), Some('n'));
        assert_eq!(code(r#"f("\\") {}"#), r#"f("  ") {}"#);
    }

    #[test]
    fn functions_are_found_with_their_lines() {
        let text = "fn one() {}\n\ntrait T { fn two(&self);\n fn three(&self) -> [u8; 2] {\n  [1, 2]\n } }\n\
                    struct S { f: fn(u8) -> u8 }\nfn four<'a>(x: &'a str) {\n  let f: fn() = five;\n}\n";
        let found = SourceFile::new("a.rs", text).functions();
        let found: Vec<(&str, Range<usize>)> =
            found.iter().map(|f| (f.name.as_str(), f.lines.clone())).collect();
        assert_eq!(found, [("one", 0..1), ("three", 3..6), ("four", 7..10)]);
    }

    #[test]
    fn tests_start_at_the_test_module_or_with_the_file() {
        let file = SourceFile::new("crates/a/src/b.rs", "fn a() {}\n#[cfg(test)]\nmod tests {}\n");
        assert!(!file.is_test(0) && file.is_test(1));
        for path in ["crates/a/tests/b.rs", "crates/a/src/b_tests.rs", "crates/a/src/b/tests.rs"] {
            assert!(SourceFile::new(path, "fn a() {}").is_test(0), "{path}");
        }
        assert_eq!(file.crate_name(), Some("a"));
    }

    #[test]
    fn a_word_stands_alone() {
        assert_eq!(words("unsafe_code unsafe", "unsafe"), [12]);
    }
}
