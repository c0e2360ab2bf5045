//! House rules that no compiler checks.
//!
//! Each rule is a function from the tree to findings, listed in [`RULES`]. A test holds a violation of each and
//! fails where the rule does not notice it.

mod floors;
mod numbers;
mod project;
mod source;
mod style;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

pub(crate) use source::SourceFile;

/// Where a rule is broken, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Finding {
    /// Path from the root.
    pub(crate) path: String,
    /// Line from 1; 0 where the file as a whole is meant.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) what: String,
}

/// The repository's text files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    /// By path.
    pub(crate) files: BTreeMap<String, SourceFile>,
}

/// One house rule.
struct Rule {
    name: &'static str,
    check: fn(&Tree) -> Vec<Finding>,
    /// A note is printed but breaks nothing.
    is_note: bool,
}

impl Rule {
    const fn new(name: &'static str, check: fn(&Tree) -> Vec<Finding>) -> Self {
        Self { name, check, is_note: false }
    }
}

/// Folders that nobody writes by hand.
const MADE: &[&str] = &[".git", "target", ".lariat", ".data", "node_modules"];

const RULES: &[Rule] = &[
    Rule::new("function-length", style::function_length),
    Rule { name: "file-length", check: style::file_length, is_note: true },
    Rule::new("file-names", style::file_names),
    Rule::new("module-intro", style::module_intro),
    Rule::new("comment-tags", style::comment_tags),
    Rule::new("ignored-tests", style::ignored_tests),
    Rule::new("sleeping-tests", style::sleeping_tests),
    Rule::new("unsafe-code", floors::unsafe_code),
    Rule::new("bare-numbers", numbers::bare_numbers),
    Rule::new("crate-floors", floors::crate_floors),
    Rule::new("module-floors", floors::module_floors),
    Rule::new("pure-files", floors::pure_files),
    Rule::new("hazards", project::hazards),
    Rule::new("dependency-reasons", project::dependency_reasons),
    Rule::new("forbidden-words", project::forbidden_words),
    Rule::new("readme-commands", project::readme_commands),
];

impl Tree {
    /// Reads every text file below the root, but for what is made there and not written.
    fn read(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in
                fs::read_dir(&folder).with_context(|| format!("could not list {}", folder.display()))?
            {
                let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
                let is_made = path.file_name().is_some_and(|name| MADE.iter().any(|made| name == *made));
                if is_made {
                    continue;
                }
                if kind.is_dir() {
                    folders.push(path);
                } else if let Some(text) = kind.is_file().then(|| fs::read_to_string(&path).ok()).flatten() {
                    files.push((path.strip_prefix(root)?.display().to_string(), text));
                }
            }
        }
        Ok(Self::of(files))
    }

    /// Makes a tree of paths and texts.
    pub(crate) fn of(files: impl IntoIterator<Item = (String, String)>) -> Self {
        let files = files.into_iter().map(|(path, text)| (path.clone(), SourceFile::new(&path, &text)));
        Self { files: files.collect() }
    }

    /// Returns a file's text.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(|file| file.text.as_str())
    }

    /// Returns the Rust files.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.values().filter(|file| file.is_rust())
    }
}

impl SourceFile {
    /// Makes a finding in this file; the line is from 0.
    pub(crate) fn finding(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line: line + 1, what: what.into() }
    }
}

/// Checks every rule and prints what it finds. Returns whether all rules hold.
///
/// # Errors
/// The files cannot be listed.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let tree = Tree::read(root)?;
    let mut broken = 0;
    for rule in RULES {
        let findings = (rule.check)(&tree);
        let kind = if rule.is_note { "note" } else { "error" };
        for Finding { path, line, what } in &findings {
            println!("{kind}[{}]: {path}:{line}: {what}", rule.name);
        }
        broken += if rule.is_note { 0 } else { findings.len() };
    }
    println!("tidy: {} rules over {} files, {broken} broken", RULES.len(), tree.files.len());
    Ok(broken == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[workspace.dependencies]\nlibc = \"0.2\" # why\n";

    fn tree(files: &[(&str, &str)]) -> Tree {
        Tree::of(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())))
    }

    /// A small project in which every rule holds. Violations are laid over it.
    fn clean() -> Vec<(&'static str, &'static str)> {
        vec![
            ("Cargo.toml", MANIFEST),
            (
                "README.md",
                "```sh\ncargo run --release -- up -f examples/first/lariat.toml\n```\n```sh\ncargo xtask test\n```\n",
            ),
            (".ci/run", "#!/bin/sh\nexec cargo xtask test\n"),
            ("HAZARDS.md", "## pid-reuse\n"),
            (
                "crates/lariat-sys/src/lib.rs",
                "//! Calls.\n// HAZARD(pid-reuse): checked.\nfn a() { unsafe {} }\n",
            ),
            ("crates/lariat/src/lib.rs", "//! All.\n"),
            ("crates/lariat/src/ports.rs", "//! Ports.\nuse crate::error::Error;\n"),
            ("crates/lariat/src/service/machine.rs", "//! Pure.\nuse std::time::Instant;\n"),
            (
                "crates/lariat/Cargo.toml",
                "[dependencies]\nlariat-sys.workspace = true\n[dev-dependencies]\nlariat-testkit.workspace = true\n",
            ),
        ]
    }

    /// Files that break the rule, and it alone need notice.
    fn violation(rule: &str) -> Vec<(&'static str, String)> {
        let file = |path, text: &str| vec![(path, text.to_owned())];
        match rule {
            "function-length" => {
                file("crates/a/src/a.rs", &format!("//! A.\nfn a() {{\n{}}}\n", "    b();\n".repeat(70)))
            }
            "file-length" => file("crates/a/src/a.rs", &"//! A.\n".repeat(601)),
            "file-names" => file("crates/a/src/utils.rs", "//! A.\n"),
            "module-intro" => file("crates/a/src/a.rs", "fn a() {}\n"),
            "comment-tags" => file("crates/a/src/a.rs", "//! A.\n// TODO: later\n"),
            "ignored-tests" => file("crates/a/src/a.rs", "//! A.\n#[test]\n#[ignore]\nfn a() {}\n"),
            "sleeping-tests" => file("crates/a/tests/a.rs", "//! A.\nfn a() { thread::sleep(B) }\n"),
            "unsafe-code" => file("crates/lariat-keeper/src/a.rs", "//! A.\nfn a() { unsafe {} }\n"),
            "bare-numbers" => file("crates/lariat/src/a.rs", "//! A.\nfn a() { PidFd::open_pid(pid); }\n"),
            "crate-floors" => {
                file("crates/lariat-sys/Cargo.toml", "[dependencies]\nlariat.workspace = true\n")
            }
            "module-floors" => {
                file("crates/lariat/src/ports.rs", "//! P.\nuse crate::{error::Error, ledger::Run};\n")
            }
            "pure-files" => {
                file("crates/lariat/src/service/graph.rs", "//! P.\nfn a() { Instant::now(); }\n")
            }
            "hazards" => file("crates/a/src/a.rs", "//! A.\n// HAZARD(unheard-of): it bites.\n"),
            "dependency-reasons" => file("Cargo.toml", "[workspace.dependencies]\nlibc = \"0.2\"\n"),
            "forbidden-words" => file("crates/a/src/a.rs", concat!("//! See iss", "ue #12.\n")),
            "readme-commands" => file(".ci/run", "#!/bin/sh\nexec cargo test\n"),
            _ => panic!("no violation is written down for the rule `{rule}`"),
        }
    }

    #[test]
    fn a_clean_tree_breaks_no_rule() {
        for rule in RULES {
            assert_eq!((rule.check)(&tree(&clean())), [], "{}", rule.name);
        }
    }

    #[test]
    fn every_rule_notices_its_violation() {
        for rule in RULES {
            let broken = violation(rule.name);
            let mut files = clean();
            files.extend(broken.iter().map(|(path, text)| (*path, text.as_str())));
            let findings = (rule.check)(&tree(&files));
            assert!(
                findings.iter().any(|f| f.path == broken[0].0),
                "`{}` noticed nothing: {findings:?}",
                rule.name
            );
        }
    }

    #[test]
    fn this_repository_is_readable() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let tree = Tree::read(root).unwrap();
        assert!(tree.files.contains_key("xtask/src/tidy/mod.rs"));
        assert!(!tree.files.keys().any(|path| path.starts_with("target/") || path.starts_with(".git/")));
    }
}
