//! `isolation`: what a service is cut off from the rest of the machine by.

use lariat::service::spec::Isolation;
use toml::de::DeValue;

use super::node::{self, Node, Words};
use crate::diagnostic::{Code, Sink};

const EXAMPLE: &str = "isolation = \"pid\"";

const KINDS: Words<Isolation> = Words {
    noun: "an isolation",
    code: Code::Isolation,
    known: &[("none", Isolation::None), ("pid", Isolation::Pid)],
    guessed: &[
        ("no", "none"),
        ("off", "none"),
        ("false", "none"),
        ("host", "none"),
        ("yes", "pid"),
        ("on", "pid"),
        ("true", "pid"),
        ("pids", "pid"),
        ("process", "pid"),
        ("namespace", "pid"),
        ("pid-namespace", "pid"),
        ("pidns", "pid"),
        ("private", "pid"),
    ],
};

/// Reads `isolation`; the default where it is wrong.
pub(super) fn read(found: &Node<'_>, sink: &mut Sink) -> Isolation {
    let meant = match found.get_ref() {
        DeValue::String(_) => {
            let text = node::string(sink, "isolation", found, EXAMPLE);
            return text.and_then(|text| node::word(sink, &text, &KINDS)).unwrap_or_default();
        }
        DeValue::Boolean(true) => Some("\"pid\""),
        DeValue::Boolean(false) => Some("\"none\""),
        _ => None,
    };
    let error = node::wrong_type(sink, "isolation", found, "`\"none\"` or `\"pid\"`", EXAMPLE);
    if let Some(meant) = meant {
        error.fix("if this is meant, write", found.span(), meant);
    }
    Isolation::default()
}
