//! Rules on what may use what: crates, modules, pure files, unsafe code.

use super::source::{line_of, words};
use super::{Finding, SourceFile, Tree};

/// The floors of the crates; a crate may depend on lower ones only. The testkit may look at every floor but is
/// depended on by tests alone.
const CRATES: &[(&str, u8)] = &[
    ("lariat-sys", 0),
    ("lariat-keeper", 1),
    ("lariat-drill", 1),
    ("lariat", 2),
    ("lariat-config", 3),
    ("lariat-server", 3),
    ("lariat-cli", 4),
    ("lariat-testkit", 4),
    ("xtask", 0),
];

/// What the lowest floors may depend on besides lariat's own crates. Others may use the workspace's list.
const LEAN: &[(&str, &[&str])] =
    &[("lariat-sys", &["libc", "rustix"]), ("lariat-keeper", &["libc", "rustix"])];

/// The floors of the modules of `lariat`. Facts (1) import only what is below; behaviour (2) may import its equals.
const MODULES: &[(&str, u8)] = &[
    ("clock", 0),
    ("process", 0),
    ("error", 0),
    ("event", 0),
    ("process", 0),
    ("containment", 1),
    ("isolation", 1),
    ("ports", 1),
    ("ledger", 1),
    ("logs", 1),
    ("cleanup", 2),
    ("service", 2),
    ("shutdown", 2),
    ("api", 2),
    ("supervisor", 3),
];

/// Where unsafe code may be: the lowest floor of what is shipped, and fixtures that misbehave on purpose.
const UNSAFE: &[&str] = &["lariat-sys", "lariat-testkit"];

/// Crates that have files that decide and do nothing.
const DECIDING: &[&str] = &["lariat-keeper", "lariat"];
/// Those files.
const PURE: &[&str] = &["machine.rs", "plan.rs", "stack.rs", "graph.rs", "restart.rs", "stop.rs", "probe.rs"];

/// What a pure file does not say outside its tests.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os",
    "std::process",
    "std::thread",
    "std::env",
    "std::io",
    "Instant::now",
    "SystemTime::now",
    ".elapsed()",
    "rustix::",
    "libc::",
    "File::open",
    "async fn",
    ".await",
    "println!",
    "OwnedFd",
    "BorrowedFd",
];

/// What the command's entry point may say: that it is the entry point, and where its arguments are.
const ENTRY: (&str, &[&str]) =
    ("crates/lariat-cli/src/main.rs", &["unsafe(no_mangle)", "unsafe { process::remember_argv("]);

/// Unsafe code is on the lowest floor; tests and the command's entry point may do what they cannot do without.
pub(crate) fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust().filter(|file| !file.crate_name().is_some_and(|name| UNSAFE.contains(&name))) {
        for at in words(&file.code, "unsafe") {
            let line = line_of(file.code.as_bytes(), at);
            let is_entry =
                file.path == ENTRY.0 && ENTRY.1.iter().any(|word| file.code[at..].starts_with(word));
            if !is_entry && !file.is_test(line) {
                findings.push(file.finding(line, "unsafe code outside lariat-sys"));
            }
        }
    }
    findings
}

/// Crates depend on lower floors only, and the lowest on little else.
pub(crate) fn crate_floors(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.values().filter(|file| file.name() == "Cargo.toml") {
        let Some(name) = file.crate_name() else { continue };
        let Some(own) = floor(CRATES, name) else {
            findings
                .push(file.finding(0, format!("`{name}` has no floor: add it to the table of this rule")));
            continue;
        };
        for (line, dependency) in dependencies(&file.text) {
            let is_lower =
                dependency != "lariat-testkit" && floor(CRATES, dependency).is_none_or(|below| below < own);
            let lean = LEAN.iter().find(|(lean, _)| *lean == name).map(|(_, allowed)| *allowed);
            let is_lean =
                lean.is_none_or(|list| list.contains(&dependency) || floor(CRATES, dependency).is_some());
            if !is_lower || !is_lean {
                findings.push(file.finding(line, format!("`{name}` must not depend on `{dependency}`")));
            }
        }
    }
    findings
}

/// Returns the names under `[dependencies]` with their lines, from 0.
fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut is_inside = false;
    let mut found = Vec::new();
    for (number, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            is_inside = line.trim() == "[dependencies]";
        } else if is_inside {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.extend((!name.is_empty() && !name.starts_with('#')).then_some((number, name)));
        }
    }
    found
}

/// Modules of `lariat` import lower floors only.
pub(crate) fn module_floors(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let Some(own) = module_of(&file.path).filter(|own| *own != "lib") else { continue };
        let Some(own_floor) = floor(MODULES, own) else {
            findings.push(file.finding(0, format!("`{own}` has no floor: add it to the table of this rule")));
            continue;
        };
        for (line, other) in imports(file) {
            let is_allowed = match floor(MODULES, other) {
                None => true,
                Some(2) if own_floor == 2 => true,
                Some(below) => other == own || below < own_floor,
            };
            if !is_allowed {
                findings.push(file.finding(line, format!("`{own}` must not import `{other}`")));
            }
        }
    }
    findings
}

fn module_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("crates/lariat/src/")?;
    rest.split('/').next().map(|first| first.trim_end_matches(".rs"))
}

/// Returns the modules that follow `crate::`, in a list or alone, outside tests, with their lines from 0.
fn imports(file: &SourceFile) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for at in words(&file.code, "crate") {
        let line = line_of(file.code.as_bytes(), at);
        let Some(path) = file.code[at + 5..].strip_prefix("::").filter(|_| !file.is_test(line)) else {
            continue;
        };
        let names: Vec<&str> = path.strip_prefix('{').map_or_else(|| vec![path], |list| first_level(list));
        found.extend(names.into_iter().map(|name| {
            (line, name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default())
        }));
    }
    found
}

/// Splits the inside of a use list at its own commas, up to its closing brace.
fn first_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' | b',' if depth == 0 => {
                parts.push(list[start..at].trim());
                start = at + 1;
                if byte == b'}' {
                    break;
                }
            }
            b'}' => depth -= 1,
            _ => {}
        }
    }
    parts
}

/// Pure files do no I/O and read no clock.
pub(crate) fn pure_files(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let decides = |name: Option<&str>| name.is_some_and(|name| DECIDING.contains(&name));
    let is_pure = |file: &&SourceFile| PURE.contains(&file.name()) && decides(file.crate_name());
    for file in tree.rust().filter(is_pure) {
        for (number, line) in file.code.lines().enumerate().take_while(|(number, _)| !file.is_test(*number)) {
            let said = IMPURE.iter().find(|word| line.contains(**word));
            findings.extend(said.map(|word| file.finding(number, format!("a pure file says `{word}`"))));
        }
    }
    findings
}

fn floor(table: &[(&str, u8)], name: &str) -> Option<u8> {
    table.iter().find(|(entry, _)| *entry == name).map(|(_, floor)| *floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import_findings(path: &str, text: &str) -> usize {
        module_floors(&Tree::of([(path.to_owned(), text.to_owned())])).len()
    }

    #[test]
    fn a_fact_imports_no_other_fact_in_any_spelling() {
        let ports = "crates/lariat/src/ports.rs";
        assert_eq!(import_findings(ports, "use crate::clock::Clock;\nuse crate::ports::Port;\n"), 0);
        assert_eq!(import_findings(ports, "use crate::ledger::Run;\n"), 1);
        assert_eq!(import_findings(ports, "fn a() { crate::service::spec::b() }\n"), 1);
        assert_eq!(import_findings(ports, "use crate::{\n    clock::{A, B},\n    logs,\n};\n"), 1);
        assert_eq!(import_findings(ports, "#[cfg(test)]\nmod tests { use crate::ledger::Run; }\n"), 0);
    }

    #[test]
    fn behaviour_may_import_facts_and_its_equals_but_not_the_supervisor() {
        let run = "crates/lariat/src/shutdown/run.rs";
        assert_eq!(import_findings(run, "use crate::service::A;\nuse crate::ledger::B;\n"), 0);
        assert_eq!(import_findings(run, "use crate::supervisor::A;\n"), 1);
    }

    #[test]
    fn the_entry_point_may_say_two_unsafe_things_and_tests_all() {
        let findings =
            |path: &str, text: &str| unsafe_code(&Tree::of([(path.to_owned(), text.to_owned())])).len();
        assert_eq!(
            findings(ENTRY.0, "#[unsafe(no_mangle)]\nfn a() { unsafe { process::remember_argv(1, b) } }\n"),
            0
        );
        assert_eq!(findings(ENTRY.0, "fn a() { unsafe { b() } }\n"), 1);
        assert_eq!(findings("crates/lariat/src/a.rs", "#[unsafe(no_mangle)]\nfn a() {}\n"), 1);
        assert_eq!(findings("crates/lariat-cli/tests/a.rs", "fn a() { unsafe { b() } }\n"), 0);
    }

    #[test]
    fn a_module_or_a_crate_without_a_floor_is_a_finding() {
        assert_eq!(import_findings("crates/lariat/src/novelty.rs", ""), 1);
        let tree = Tree::of([("crates/lariat-novelty/Cargo.toml".to_owned(), String::new())]);
        assert_eq!(crate_floors(&tree).len(), 1);
    }

    #[test]
    fn the_lowest_floors_take_nothing_heavy_and_the_testkit_is_for_tests() {
        let findings = |name: &str, text: &str| {
            crate_floors(&Tree::of([(format!("crates/{name}/Cargo.toml"), text.to_owned())])).len()
        };
        assert_eq!(findings("lariat-keeper", "[dependencies]\nlariat-sys.workspace = true\n"), 0);
        assert_eq!(findings("lariat-keeper", "[dependencies]\nserde.workspace = true\n"), 1);
        assert_eq!(findings("lariat-cli", "[dependencies]\nlariat-testkit.workspace = true\n"), 1);
        assert_eq!(findings("lariat-cli", "[dev-dependencies]\nlariat-testkit.workspace = true\n"), 0);
    }
}
