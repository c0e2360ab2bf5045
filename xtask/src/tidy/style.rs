//! Rules on the shape of single files.

use super::source::{line_of, words};
use super::{Finding, Tree};

/// Longest function, in lines.
const FUNCTION_MAX: usize = 70;
/// Longest file without its tests, in lines, before it is talked about.
const FILE_MAX: usize = 600;
/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "manager", "misc"];
/// Tags that are not among the four.
const OTHER_TAGS: &[&str] = &["TODO", "FIXME", "XXX", "HACK", "NOTE:", "WARNING:"];
/// Functions tolerated over the limit, at most as long as written there: `PATH NAME LINES` per line.
const RATCHET: &str = "xtask/function-length.txt";

/// No function is longer than the limit, but for those in the ratchet, which may only shrink.
pub(crate) fn function_length(tree: &Tree) -> Vec<Finding> {
    let mut ratchet: Vec<(&str, &str, usize)> =
        tree.text(RATCHET).unwrap_or_default().lines().filter_map(entry).collect();
    let mut findings = Vec::new();
    for file in tree.rust() {
        for function in file.functions() {
            let length = function.lines.len();
            let known =
                ratchet.iter().position(|(path, name, _)| *path == file.path && *name == function.name);
            let allowed = known.map_or(FUNCTION_MAX, |at| ratchet.swap_remove(at).2);
            if length > allowed {
                let what = format!("`{}` has {length} lines, {allowed} are allowed", function.name);
                findings.push(file.finding(function.lines.start, what));
            } else if known.is_some() && length < allowed {
                let what = format!("`{}` shrank to {length} lines: lower or drop its line", function.name);
                findings.push(Finding { path: RATCHET.to_owned(), line: 0, what });
            }
        }
    }
    let gone = ratchet.iter().map(|(path, name, _)| format!("`{name}` is not in {path}: drop its line"));
    findings.extend(gone.map(|what| Finding { path: RATCHET.to_owned(), line: 0, what }));
    findings
}

fn entry(line: &str) -> Option<(&str, &str, usize)> {
    let mut words = line.split_whitespace();
    Some((words.next()?, words.next()?, words.next()?.parse().ok()?))
}

/// Files over the limit are talked about.
pub(crate) fn file_length(tree: &Tree) -> Vec<Finding> {
    let long = tree.rust().filter(|file| file.tests_from > FILE_MAX);
    long.map(|file| file.finding(0, format!("{} lines without tests: could it be two?", file.tests_from)))
        .collect()
}

/// Files are named by what is inside.
pub(crate) fn file_names(tree: &Tree) -> Vec<Finding> {
    let is_empty = |part: &str| EMPTY_NAMES.contains(&part.trim_end_matches(".rs"));
    let broken = tree.rust().filter(|file| file.path.split('/').any(is_empty));
    broken.map(|file| file.finding(0, "the name says nothing about what is inside")).collect()
}

/// A module opens with what it is responsible for.
pub(crate) fn module_intro(tree: &Tree) -> Vec<Finding> {
    let opens_well =
        |text: &str| text.lines().find(|line| !line.starts_with("#!")).is_some_and(|l| l.starts_with("//!"));
    // A module's own tests are about what the module opens with.
    let is_own_test = |file: &&super::SourceFile| file.is_test_file() && file.path.contains("/src/");
    let broken = tree.rust().filter(|file| !is_own_test(file) && !opens_well(&file.text));
    broken.map(|file| file.finding(0, "does not open with `//!` and what it is responsible for")).collect()
}

/// Comments carry no tags but SAFETY, INVARIANT, HAZARD and KERNEL.
pub(crate) fn comment_tags(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        for (number, line) in file.comments.lines().enumerate() {
            // In backquotes it is spoken of, not used.
            let used = |tag: &&&str| line.contains(**tag) && !line.contains(&format!("`{tag}"));
            let tag = OTHER_TAGS.iter().find(used);
            findings.extend(tag.map(|tag| file.finding(number, format!("`{tag}` is none of the four tags"))));
        }
    }
    findings
}

/// No test is switched off.
pub(crate) fn ignored_tests(tree: &Tree) -> Vec<Finding> {
    in_code(tree, "#[ignore", |_, _| true, "a test that never runs proves nothing")
}

/// Tests wait for facts, not for time to pass.
pub(crate) fn sleeping_tests(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let lines = words(&file.code, "sleep").into_iter().filter(|at| file.code[at + 5..].starts_with('('));
        let lines = lines.map(|at| line_of(file.code.as_bytes(), at)).filter(|line| file.is_test(*line));
        findings
            .extend(lines.map(|line| file.finding(line, "a test sleeps; wait for a fact with a deadline")));
    }
    findings
}

fn in_code(
    tree: &Tree,
    needle: &str,
    applies: fn(&super::SourceFile, usize) -> bool,
    what: &str,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let lines = file
            .code
            .lines()
            .enumerate()
            .filter(|(number, line)| line.contains(needle) && applies(file, *number));
        findings.extend(lines.map(|(number, _)| file.finding(number, what)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(ratchet: &str, lines: usize) -> Vec<Finding> {
        let text = format!("//! A.\nfn a() {{\n{}}}\n", "b();\n".repeat(lines - 2));
        function_length(&Tree::of([("a.rs".to_owned(), text), (RATCHET.to_owned(), ratchet.to_owned())]))
    }

    #[test]
    fn the_ratchet_tolerates_and_tightens() {
        assert_eq!(findings("", FUNCTION_MAX), []);
        assert_eq!(findings("", FUNCTION_MAX + 1).len(), 1);
        assert_eq!(findings("a.rs a 80\n", 80), []);
        assert_eq!(findings("a.rs a 80\n", 81).len(), 1);
        assert_eq!(findings("a.rs a 80\n", 79)[0].path, RATCHET);
        assert_eq!(findings("a.rs gone 80\n", 3)[0].path, RATCHET);
    }

    #[test]
    fn a_sleep_outside_tests_is_none_of_this_rule() {
        let tree = Tree::of([("crates/a/src/a.rs".to_owned(), "//! A.\nfn a() { sleep(B) }\n".to_owned())]);
        assert_eq!(sleeping_tests(&tree), []);
    }
}
