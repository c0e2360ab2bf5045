//! The readers are total: any text gives a stack or errors that point into it, and never a panic.

use std::fs;
use std::path::Path;

use lariat::service::graph::Graph;
use lariat_config::{Diagnostic, Loaded, Look, Origin, load, parse_procfile, parse_toml, render};
use proptest::prelude::*;

/// Pieces that get further into the readers than random text does.
const PIECES: [&str; 44] = [
    "[service.a]\n",
    "[service.b]\n",
    "[stack]\n",
    "[[service]]\n",
    "[service.a.stop]\n",
    "run = ",
    "after = ",
    "ready = ",
    "stop = ",
    "restart = ",
    "port = ",
    "deadline = ",
    "env = ",
    "dir = ",
    "shell = ",
    "daemon = ",
    "\"x\"",
    "'y'",
    "\"10s\"",
    "\"-1s\"",
    "\"a\"",
    "\"b\"",
    "\"auto\"",
    "8000",
    "-1",
    "1e9",
    "true",
    "{ ",
    " }",
    "[",
    "]",
    ", ",
    "tcp = ",
    "http = ",
    "log = ",
    "signal = ",
    "grace = ",
    "when = ",
    "a = ",
    "\"ready\"",
    "\n",
    "\"(\\\\d\\u00e4[\"",
    "€",
    "\"\"\"\n",
];

fn origin() -> Origin {
    Origin { file: "lariat.toml".into(), root: "/srv/shop".into() }
}

/// Looks at what a reader says of a text: errors have a place in it, and can be shown.
fn check(text: &str, result: &Result<Loaded, Vec<Diagnostic>>) {
    let diagnostics = match result {
        Ok(loaded) => {
            assert!(loaded.warnings.iter().all(|warning| !warning.is_error()), "{text:?}");
            assert!(!loaded.spec.services.is_empty(), "{text:?}");
            // What this crate lets pass, the supervisor can order.
            assert!(Graph::new(&loaded.spec.services).is_ok(), "{text:?}");
            &loaded.warnings
        }
        Err(diagnostics) => {
            assert!(diagnostics.iter().any(Diagnostic::is_error), "{text:?}");
            diagnostics
        }
    };
    for diagnostic in diagnostics {
        let source = &diagnostic.source;
        let fix = diagnostic.help.iter().filter_map(|help| help.fix.as_ref()).map(|fix| &fix.span);
        let labels = diagnostic.label.iter().chain(&diagnostic.related).map(|label| &label.span);
        for span in labels.chain(fix) {
            assert_eq!(source.clamp(span), *span, "{text:?}: {diagnostic:?}");
            assert!(source.place(span.start) <= source.place(span.end), "{text:?}");
        }
    }
    for is_styled in [false, true] {
        let shown = render(diagnostics, Look { is_styled, width: 100 });
        assert_eq!(shown.is_empty(), diagnostics.is_empty(), "{text:?}");
        assert!(is_styled || !shown.contains('\x1b'), "{text:?}");
    }
}

fn check_all(text: &str) {
    check(text, &parse_toml(text, &origin()));
    check(text, &parse_procfile(text, &origin()));
}

fn good_files() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let names = [
        "good-full.toml",
        "cycle.toml",
        "wrong-types.toml",
        "good.procfile",
        "bom-crlf.toml",
        "patterns.toml",
    ];
    names.iter().map(|name| fs::read(dir.join(name)).expect("a case")).collect()
}

/// A change of a file: where (as a share of its length), how much is taken out, and what is put in.
fn changes() -> impl Strategy<Value = Vec<(f64, usize, Vec<u8>)>> {
    let piece = prop::sample::select(&PIECES[..]).prop_map(|piece| piece.as_bytes().to_vec());
    let inserted = prop_oneof![piece, prop::collection::vec(any::<u8>(), 0..4)];
    prop::collection::vec((0.0..1.0, 0_usize..40, inserted), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_text(text in any::<String>()) {
        check_all(&text);
    }

    #[test]
    fn random_lines(text in "([a-z\\[\\]{}=:.,#\"'\\\\ \t\r\n0-9$-]|\\PC){0,200}") {
        check_all(&text);
    }

    #[test]
    fn random_pieces(pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..60)) {
        check_all(&pieces.concat());
    }

    #[test]
    fn changed_files(file in prop::sample::select(good_files()), changes in changes()) {
        let mut bytes = file;
        for (share, removed, inserted) in changes {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let at = (share * bytes.len() as f64) as usize;
            let end = bytes.len().min(at + removed);
            bytes.splice(at..end, inserted);
        }
        check_all(&String::from_utf8_lossy(&bytes));
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["lariat.toml", "Procfile"] {
            let path = dir.path().join(name);
            fs::write(&path, &bytes).expect("a file");
            let _ = load(&path);
        }
    }
}

#[test]
fn nesting_and_length_are_no_trouble() {
    let texts = [
        format!("x = {}", "[".repeat(100_000)),
        format!("x = {}", "{a=".repeat(50_000)),
        format!("{}b = 1", "a.".repeat(100_000)),
        format!("[{}b]", "a.".repeat(100_000)),
        format!("[service.{}]\nrun = 'x'", "a".repeat(200_000)),
        format!("[service.a]\nrun = '{}'\nprot = 1", "x".repeat(500_000)),
        format!("{} = 1", "k".repeat(500_000)),
        "[service.a]\nx = 1\n".repeat(2_000),
        "a\n".repeat(50_000),
    ];
    for text in texts {
        check_all(&text);
    }
}

#[test]
fn a_chain_of_thousands_of_services_is_read() {
    let mut text = "[service.s0]\nrun = 'x'\n".to_owned();
    for at in 1..5_000 {
        text += &format!("[service.s{at}]\nrun = 'x'\nafter = ['s{}']\n", at - 1);
    }
    let loaded = parse_toml(&text, &origin()).expect("a chain has no circle");
    assert_eq!(loaded.spec.services.len(), 5_000);
    text += "[service.last]\nrun = 'x'\nafter = ['s4999', 'last2']\n[service.last2]\nrun = 'x'\nafter = ['last']\n";
    assert_eq!(parse_toml(&text, &origin()).expect_err("a circle").len(), 1);
}
