//! What holds for every reader of a configuration.

use lariat::service::graph::Graph;
use lariat_config::{Diagnostic, Loaded, Look, Origin, render};

pub(crate) fn origin(file: &str) -> Origin {
    Origin { file: file.into(), root: "/srv/shop".into() }
}

/// Looks at what a reader says of a text.
pub(crate) fn check(result: &Result<Loaded, Vec<Diagnostic>>) {
    let diagnostics = match result {
        Ok(loaded) => {
            assert!(Graph::new(&loaded.spec.services).is_ok(), "the stack cannot be ordered");
            &loaded.warnings
        }
        Err(diagnostics) => {
            assert!(diagnostics.iter().any(Diagnostic::is_error), "refused without a reason");
            diagnostics
        }
    };
    let _ = render(diagnostics, Look::default());
}
