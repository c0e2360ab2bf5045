//! `after`: which services have to be how far before this one starts.

use lariat::service::spec::Condition;
use toml::de::DeValue;

use super::node::{self, Node, Words};
use crate::diagnostic::{Code, Sink};
use crate::draft::{AfterDraft, At};

const CONDITIONS: Words<Condition> = Words {
    noun: "a condition",
    code: Code::Condition,
    known: &[
        ("started", Condition::Started),
        ("ready", Condition::Ready),
        ("completed", Condition::Completed),
    ],
    guessed: &[
        ("healthy", "ready"),
        ("service_healthy", "ready"),
        ("service_started", "started"),
        ("service_completed_successfully", "completed"),
        ("process_healthy", "ready"),
        ("process_started", "started"),
        ("process_completed_successfully", "completed"),
        ("done", "completed"),
        ("exited", "completed"),
    ],
};

/// Reads a table of names and conditions, or a list of names.
pub(super) fn read(found: &Node<'_>, sink: &mut Sink) -> Vec<AfterDraft> {
    match found.get_ref() {
        DeValue::Table(table) => {
            let entry = |(key, value): (&toml::Spanned<_>, &Node<'_>)| {
                let name: &std::borrow::Cow<'_, str> = key.get_ref();
                let service = At::new(name.as_ref().to_owned(), key.span());
                let condition = condition(&service.value, value, sink);
                AfterDraft { service, condition }
            };
            table.iter().map(entry).collect()
        }
        DeValue::Array(list) => {
            let names = list.iter().filter_map(|node| node::string(sink, "after", node, "after = [\"db\"]"));
            let draft = |name: At<&str>| AfterDraft {
                service: At::new(name.value.to_owned(), name.span),
                condition: None,
            };
            names.map(draft).collect()
        }
        _ => {
            let name = found.get_ref().as_str().map(str::to_owned);
            let expected = "a table of services and conditions, or a list of services";
            let error = node::wrong_type(sink, "after", found, expected, "after = { db = \"ready\" }");
            if name.is_some() {
                let written = error.source.text[error.source.clamp(&found.span())].to_owned();
                error.fix("write it as a list", found.span(), format!("[{written}]"));
            }
            Vec::new()
        }
    }
}

fn condition(service: &str, found: &Node<'_>, sink: &mut Sink) -> Option<At<Condition>> {
    let example = format!("after = {{ {} = \"ready\" }}", if service.is_empty() { "db" } else { service });
    if let DeValue::Table(table) = found.get_ref() {
        let is_compose = node::get(table, "condition").is_some();
        let error = node::wrong_type(sink, service, found, "a condition", &example);
        if is_compose {
            error.note("the condition stands alone here, without a table around it");
        }
        return None;
    }
    let text = node::string(sink, service, found, &example)?;
    Some(At::new(node::word(sink, &text, &CONDITIONS)?, text.span))
}
