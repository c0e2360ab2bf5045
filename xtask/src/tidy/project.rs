//! Rules on the repository as a whole: hazards, dependencies, words, the README's commands.

use std::collections::BTreeMap;

use super::{Finding, Tree};
use crate::test::TEST_COMMAND;

/// Every hazard that code cites is described in HAZARDS.md, and every one described is cited.
pub(crate) fn hazards(tree: &Tree) -> Vec<Finding> {
    let described: BTreeMap<&str, usize> =
        tree.text("HAZARDS.md").unwrap_or_default().lines().enumerate().filter_map(heading).collect();
    let mut cited = Vec::new();
    let mut findings = Vec::new();
    for file in tree.rust() {
        for (number, line) in file.comments.lines().enumerate() {
            for name in citations(line) {
                cited.push(name);
                if !described.contains_key(name) {
                    findings.push(file.finding(number, format!("HAZARDS.md does not describe `{name}`")));
                }
            }
        }
    }
    let forgotten = described.iter().filter(|(name, _)| !cited.contains(*name));
    findings.extend(forgotten.map(|(name, number)| Finding {
        path: "HAZARDS.md".to_owned(),
        line: number + 1,
        what: format!("no code cites `{name}`"),
    }));
    findings
}

/// Returns the hazards that a line of comment cites. One in backquotes is spoken of, not cited.
fn citations(line: &str) -> impl Iterator<Item = &str> {
    let starts = line.match_indices("HAZARD(").filter(|(at, _)| !line[..*at].ends_with('`'));
    starts.filter_map(|(at, tag)| line[at + tag.len()..].split_once(')')).map(|(name, _)| name)
}

/// Returns the hazard that a heading of the second or a lower level names: one word of small letters and dashes.
fn heading((number, line): (usize, &str)) -> Option<(&str, usize)> {
    let title = line.strip_prefix("##")?.trim_start_matches('#').trim();
    let name = title.split([':', ' ']).next()?.trim_matches('`');
    (is_name(name)).then_some((name, number))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Each dependency of the workspace says what it saves.
pub(crate) fn dependency_reasons(tree: &Tree) -> Vec<Finding> {
    let Some(manifest) = tree.files.get("Cargo.toml") else { return Vec::new() };
    let mut is_inside = false;
    let mut findings = Vec::new();
    for (number, line) in manifest.text.lines().enumerate() {
        if line.starts_with('[') {
            is_inside = line.trim() == "[workspace.dependencies]";
        } else if is_inside && line.contains('=') && !line.contains("path =") && !line.contains("# ") {
            findings
                .push(manifest.finding(number, "a dependency needs a comment that says what it saves us"));
        }
    }
    findings
}

/// Nothing names what only its makers know: tracker numbers, their machines, package hosts.
pub(crate) fn forbidden_words(tree: &Tree) -> Vec<Finding> {
    // Written in halves, so that this file does not break its own rule.
    let words = [
        concat!("/wo", "rk/"),
        concat!("/tmp/", "lariat-contract"),
        concat!("crates", ".io"),
        concat!("registry.npm", "js"),
        concat!("pypi", ".org"),
        concat!("deb.deb", "ian.org"),
    ];
    let mut findings = Vec::new();
    for file in tree.files.values().filter(|file| file.name() != "Cargo.lock") {
        for (number, line) in file.text.lines().enumerate() {
            let word = words.iter().find(|word| line.contains(**word)).map(|word| (*word).to_owned());
            let word = word.or_else(|| tracker_number(&line.to_lowercase()));
            findings.extend(
                word.map(|word| file.finding(number, format!("`{word}` has no place in the project"))),
            );
        }
    }
    findings
}

/// Finds the word for a tracker's entry with a number after it.
fn tracker_number(line: &str) -> Option<String> {
    let word = concat!("iss", "ue");
    let number = |rest: &str| {
        let rest = rest.trim_start_matches('s').strip_prefix(' ')?.trim_start_matches('#');
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        (!digits.is_empty()).then(|| format!("{word} {digits}"))
    };
    line.split(word).skip(1).find_map(number)
}

/// The README shows both commands, and CI runs exactly the test command.
pub(crate) fn readme_commands(tree: &Tree) -> Vec<Finding> {
    let readme = tree.text("README.md").unwrap_or_default();
    let mut findings = Vec::new();
    let mut miss = |path: &str, what: String| findings.push(Finding { path: path.to_owned(), line: 0, what });
    for command in [TEST_COMMAND, crate::test::RUN_COMMAND] {
        if !readme.lines().any(|line| line.trim().trim_start_matches("$ ") == command) {
            miss("README.md", format!("does not show `{command}` on a line of its own"));
        }
    }
    let is_code = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
    let run: Vec<&str> = tree.text(".ci/run").unwrap_or_default().lines().filter(is_code).collect();
    if run.last().map(|line| line.trim_start_matches("exec ")) != Some(TEST_COMMAND) {
        miss(".ci/run", format!("does not end with `{TEST_COMMAND}`"));
    }
    if run.iter().rev().skip(1).any(|line| !line.starts_with("cd ") && !line.starts_with("set ")) {
        miss(".ci/run", "does more than the README's test command".to_owned());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hazard_findings(code: &str, page: &str) -> Vec<Finding> {
        hazards(&Tree::of([("a.rs".to_owned(), code.to_owned()), ("HAZARDS.md".to_owned(), page.to_owned())]))
    }

    #[test]
    fn hazards_are_compared_both_ways() {
        assert_eq!(hazard_findings("// HAZARD(pid-reuse): checked.\n", "# Hazards\n## `pid-reuse`\n"), []);
        assert_eq!(hazard_findings("// HAZARD(pid-reuse): checked.\n", "")[0].path, "a.rs");
        assert_eq!(hazard_findings("// The tag `HAZARD(name)` cites.\n", ""), []);
        assert_eq!(hazard_findings("", "## pid-reuse: a number comes back\n")[0].path, "HAZARDS.md");
    }

    #[test]
    fn a_number_makes_the_word_a_reference() {
        assert!(tracker_number(concat!("see iss", "ue #12")).is_some());
        assert!(tracker_number(concat!("iss", "ues 3 and 4")).is_some());
        assert!(tracker_number("a known issue of kernels").is_none());
    }

    #[test]
    fn ci_may_do_nothing_else() {
        let readme = format!("{TEST_COMMAND}\n{}\n", crate::test::RUN_COMMAND);
        let findings = |ci: String| {
            readme_commands(&Tree::of([("README.md".to_owned(), readme.clone()), (".ci/run".to_owned(), ci)]))
                .len()
        };
        assert_eq!(findings(format!("#!/bin/sh\ncd \"$(dirname \"$0\")/..\"\nexec {TEST_COMMAND}\n")), 0);
        assert_eq!(findings(format!("#!/bin/sh\napt-get install all\nexec {TEST_COMMAND}\n")), 1);
        assert_eq!(findings("#!/bin/sh\nexec cargo test\n".to_owned()), 1);
    }
}
