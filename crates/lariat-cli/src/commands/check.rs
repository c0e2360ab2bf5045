//! `lariat check`: what is wrong with a configuration, or what it says.
//!
//! The diagnostics are what was asked for, so they go to standard output.

use std::collections::BTreeMap;
use std::path::Path;

use lariat::service::spec::{Condition, PortSpec, ServiceSpec, StackSpec};
use lariat_config::{Diagnostic, Label, Loaded, Source};
use serde::Serialize;

use crate::args::CheckArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};
use crate::settings;

/// Reads the configuration and shows what came of it.
pub(crate) fn run(args: &CheckArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let file = settings::config_file(args.file.as_deref())?;
    let (stack, diagnostics) = match lariat_config::load(&file) {
        Ok(Loaded { spec, warnings }) => (Some(spec), warnings),
        Err(diagnostics) => (None, diagnostics),
    };
    if args.json {
        output.print_json(&Report::new(&file, stack.as_ref(), &diagnostics))?;
    } else {
        output.print_diagnostics(&diagnostics);
        output.print(summary(&file, stack.as_ref(), &diagnostics));
    }
    Ok(if stack.is_some() { ExitCode::Done } else { ExitCode::Config })
}

fn summary(file: &Path, stack: Option<&StackSpec>, diagnostics: &[Diagnostic]) -> String {
    let file = file.display();
    let counted = settings::counted(diagnostics);
    let Some(stack) = stack else {
        return format!("{file}: {counted}\n");
    };
    let also = if counted.is_empty() { counted } else { format!(", {counted}") };
    let services = match stack.services.len() {
        1 => "1 service".to_owned(),
        many => format!("{many} services"),
    };
    let mut text = format!("{file} is good: {services}{also}\n");
    let width = stack.services.iter().map(|service| service.name.as_str().len()).max().unwrap_or_default();
    for service in &stack.services {
        text.push_str(&format!("  {:width$}  {}\n", service.name, line(service)));
    }
    text
}

/// Returns a service in one line: its command, and what was said about port and order.
fn line(service: &ServiceSpec) -> String {
    let command: String =
        service.command.display().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut shown: String = command.chars().take(60).collect();
    if shown.len() < command.len() {
        shown.push('…');
    }
    let mut facts = Vec::new();
    match service.port {
        Some(PortSpec::Fixed(port)) => facts.push(format!("port {port}")),
        Some(PortSpec::Auto) => facts.push("a free port".to_owned()),
        None => {}
    }
    let after = service.after.iter().map(|after| format!("{} {}", after.service, word(after.condition)));
    let after: Vec<_> = after.collect();
    if !after.is_empty() {
        facts.push(format!("after {}", after.join(", ")));
    }
    if !service.limits.is_empty() {
        facts.push(format!("at most {}", service.limits));
    }
    if facts.is_empty() { shown } else { format!("{shown}  ({})", facts.join("; ")) }
}

fn word(condition: Condition) -> &'static str {
    match condition {
        Condition::Started => "started",
        Condition::Ready => "ready",
        Condition::Completed => "completed",
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    file: String,
    is_good: bool,
    /// Absent when there is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<StackReport>,
    diagnostics: Vec<DiagnosticReport>,
}

#[derive(Serialize)]
struct StackReport {
    name: String,
    root: String,
    services: Vec<ServiceReport>,
}

#[derive(Serialize)]
struct ServiceReport {
    name: String,
    run: String,
    dir: String,
    /// A number, `"auto"`, or absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<serde_json::Value>,
    after: BTreeMap<String, &'static str>,
    /// Absent where nothing is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<LimitsReport>,
}

#[derive(Serialize)]
struct LimitsReport {
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<u32>,
    /// In processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<f64>,
}

/// Lines and columns count from 1, columns in characters; ends are one past the last character.
#[derive(Serialize)]
struct PlaceReport {
    line: usize,
    column: usize,
    end_line: usize,
    end_column: usize,
}

#[derive(Serialize)]
struct LabelReport {
    #[serde(flatten)]
    place: PlaceReport,
    label: String,
}

#[derive(Serialize)]
struct DiagnosticReport {
    severity: &'static str,
    code: &'static str,
    message: String,
    file: String,
    /// Absent when it is about the file as a whole.
    #[serde(flatten)]
    place: Option<LabelReport>,
    related: Vec<LabelReport>,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<FixReport>,
}

#[derive(Serialize)]
struct FixReport {
    #[serde(flatten)]
    place: PlaceReport,
    replacement: String,
}

impl Report {
    fn new(file: &Path, stack: Option<&StackSpec>, diagnostics: &[Diagnostic]) -> Self {
        Self {
            file: file.display().to_string(),
            is_good: stack.is_some(),
            stack: stack.map(StackReport::new),
            diagnostics: diagnostics.iter().map(DiagnosticReport::new).collect(),
        }
    }
}

impl StackReport {
    fn new(stack: &StackSpec) -> Self {
        let service = |service: &ServiceSpec| ServiceReport {
            name: service.name.to_string(),
            run: service.command.display(),
            dir: service.dir.display().to_string(),
            port: service.port.map(|port| match port {
                PortSpec::Fixed(port) => port.into(),
                PortSpec::Auto => "auto".into(),
            }),
            after: service
                .after
                .iter()
                .map(|after| (after.service.to_string(), word(after.condition)))
                .collect(),
            limits: (!service.limits.is_empty()).then(|| LimitsReport {
                memory: service.limits.memory,
                processes: service.limits.processes,
                cpu: service.limits.cpu.map(|cpu| f64::from(cpu.thousandths()) / 1000.0),
            }),
        };
        Self {
            name: stack.name.clone(),
            root: stack.root.display().to_string(),
            services: stack.services.iter().map(service).collect(),
        }
    }
}

impl DiagnosticReport {
    fn new(diagnostic: &Diagnostic) -> Self {
        let source = &diagnostic.source;
        let fix = diagnostic.help.as_ref().and_then(|help| help.fix.as_ref());
        Self {
            severity: diagnostic.severity.as_str(),
            code: diagnostic.code.as_str(),
            message: diagnostic.message.clone(),
            file: source.file.display().to_string(),
            place: diagnostic.label.as_ref().map(|label| LabelReport::new(source, label)),
            related: diagnostic.related.iter().map(|label| LabelReport::new(source, label)).collect(),
            notes: diagnostic.notes.clone(),
            help: diagnostic.help.as_ref().map(|help| help.message.clone()),
            fix: fix.map(|fix| FixReport {
                place: PlaceReport::new(source, &fix.span),
                replacement: fix.replacement.clone(),
            }),
        }
    }
}

impl LabelReport {
    fn new(source: &Source, label: &Label) -> Self {
        Self { place: PlaceReport::new(source, &label.span), label: label.text.clone() }
    }
}

impl PlaceReport {
    fn new(source: &Source, span: &std::ops::Range<usize>) -> Self {
        let (start, end) = (source.place(span.start), source.place(span.end));
        Self { line: start.line, column: start.column, end_line: end.line, end_column: end.column }
    }
}
