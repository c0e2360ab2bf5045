//! `limits`: how much memory, how many processes and how much of the processors a service may use.

use lariat::service::spec::{Cpu, Limits};
use toml::de::DeValue;

use super::node::{self, Keys, Node};
use crate::diagnostic::{Code, Sink};
use crate::quantity::{self, PROCESSES_MAX};

const EXAMPLE: &str = "limits = { memory = \"512MiB\", processes = 200, cpu = 1.5 }";

const KEYS: Keys = Keys {
    known: &["memory", "processes", "cpu"],
    guessed: &[
        ("mem", "memory"),
        ("mem_limit", "memory"),
        ("memory_max", "memory"),
        ("MemoryMax", "memory"),
        ("ram", "memory"),
        ("pids", "processes"),
        ("pids_limit", "processes"),
        ("pids_max", "processes"),
        ("tasks", "processes"),
        ("tasks_max", "processes"),
        ("TasksMax", "processes"),
        ("nproc", "processes"),
        ("threads", "processes"),
        ("cpus", "cpu"),
        ("cores", "cpu"),
        ("cpu_max", "cpu"),
    ],
    elsewhere: &[
        ("CPUQuota", "it is a number of processors here: `cpu = 1.5` for 150%"),
        ("swap", "a service with a limit of memory has no swap"),
        ("memory_swap", "a service with a limit of memory has no swap"),
        ("nofile", "only memory, processes and cpu can be limited; for others there is `ulimit` in a shell"),
    ],
};

/// Reads `limits`; what is wrong stays unlimited.
pub(super) fn read(found: &Node<'_>, sink: &mut Sink) -> Limits {
    let DeValue::Table(table) = found.get_ref() else {
        node::wrong_type(sink, "limits", found, "a table", EXAMPLE);
        return Limits::default();
    };
    node::only(table, &KEYS, "`limits`", sink);
    if table.is_empty() {
        sink.warning(Code::Limit, "`limits` limits nothing", found.span(), "empty")
            .help(format!("for example `{EXAMPLE}`"));
    }
    Limits {
        memory: node::get(table, "memory").and_then(|found| memory(found, sink)),
        processes: node::get(table, "processes")
            .and_then(|found| node::integer(sink, "processes", found, 1..=PROCESSES_MAX, Code::Limit)),
        cpu: node::get(table, "cpu").and_then(|found| cpu(found, sink)),
    }
}

fn memory(found: &Node<'_>, sink: &mut Sink) -> Option<u64> {
    let DeValue::String(text) = found.get_ref() else {
        let written = found.get_ref().as_integer().map(|number| number.as_str().to_owned());
        let expected = "an amount of memory, a string with a unit";
        let error = node::wrong_type(sink, "memory", found, expected, "memory = \"512MiB\"");
        if let Some(number) = written.filter(|number| quantity::memory(&format!("{number}MiB")).is_ok()) {
            error.fix("if mebibytes are meant, write", found.span(), format!("\"{number}MiB\""));
        }
        return None;
    };
    let refused = match quantity::memory(text) {
        Ok(bytes) => return Some(bytes),
        Err(refused) => refused,
    };
    let error = sink.error(Code::Limit, refused.message, found.span(), refused.label);
    match refused.meant {
        Some(meant) => error.fix("if this is meant, write", found.span(), format!("\"{meant}\"")),
        None => error.help("write it like `memory = \"512MiB\"`, `\"1.5GiB\"`"),
    };
    None
}

fn cpu(found: &Node<'_>, sink: &mut Sink) -> Option<Cpu> {
    let is_number = matches!(found.get_ref(), DeValue::Integer(_) | DeValue::Float(_));
    let written = sink.source().text[sink.source().clamp(&found.span())].to_owned();
    if !is_number {
        let number = found.get_ref().as_str().filter(|text| quantity::cpu(text).is_ok()).map(str::to_owned);
        let expected = "a number of processors";
        let error = node::wrong_type(sink, "cpu", found, expected, "cpu = 1.5");
        if let Some(number) = number {
            error.fix("write it without quotes", found.span(), number);
        }
        return None;
    }
    match quantity::cpu(&written) {
        Ok(cpu) => Some(cpu),
        Err(refused) => {
            sink.error(Code::Limit, refused.message, found.span(), refused.label)
                .help("for example `cpu = 1.5`: one and a half of the machine's processors");
            None
        }
    }
}
