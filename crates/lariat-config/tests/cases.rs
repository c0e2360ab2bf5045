//! Every bad input has its text: `cases/NAME.toml` or `.procfile` beside `cases/NAME.expected`.
//!
//! With `UPDATE=1` in the environment the expected files are written anew; read the difference before committing.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use lariat_config::{Diagnostic, Loaded, Look, Origin, parse_procfile, parse_toml, render};

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let entries = fs::read_dir(dir).expect("the directory of cases");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension != "expected"));
    paths.sort();
    paths
}

fn read(path: &Path) -> Result<Loaded, Vec<Diagnostic>> {
    let text = fs::read_to_string(path).expect("a case");
    let is_toml = path.extension().is_some_and(|extension| extension == "toml");
    let file = if is_toml { "lariat.toml" } else { "Procfile" };
    let origin = Origin { file: file.into(), root: "/srv/shop".into() };
    if is_toml { parse_toml(&text, &origin) } else { parse_procfile(&text, &origin) }
}

fn shown(result: &Result<Loaded, Vec<Diagnostic>>) -> String {
    match result {
        Ok(loaded) => {
            let mut text = render(&loaded.warnings, Look::default());
            writeln!(text, "good, services: {}", loaded.spec.services.len()).expect("a string takes all");
            text
        }
        Err(diagnostics) => render(diagnostics, Look::default()),
    }
}

#[test]
fn every_case_is_shown_as_expected() {
    let is_update = std::env::var_os("UPDATE").is_some();
    let mut wrong = String::new();
    let cases = cases();
    assert!(cases.len() > 50, "the cases are gone");
    for path in cases {
        let shown = shown(&read(&path));
        let expected_path = path.with_extension("expected");
        if is_update {
            fs::write(&expected_path, &shown).expect("an expected file");
            continue;
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if shown != expected {
            let name = path.file_name().unwrap_or_default().display();
            write!(wrong, "--- {name}: expected\n{expected}\n--- {name}: found\n{shown}\n")
                .expect("a string takes all");
        }
    }
    assert!(wrong.is_empty(), "{wrong}\nwith UPDATE=1 in the environment the files are written anew");
}

#[test]
fn every_error_has_a_place_and_something_to_do_or_to_know() {
    for path in cases() {
        let Err(diagnostics) = read(&path) else { continue };
        for diagnostic in diagnostics.iter().filter(|d| d.is_error()) {
            let has_way =
                diagnostic.help.is_some() || !diagnostic.notes.is_empty() || !diagnostic.related.is_empty();
            let says_expected = diagnostic.label.as_ref().is_some_and(|label| !label.text.is_empty());
            assert!(has_way || says_expected, "{}: {diagnostic:#?}", path.display());
            assert!(!diagnostic.message.ends_with('.'), "{}: {}", path.display(), diagnostic.message);
        }
    }
}
