//! Text to lariat's specification types, with diagnostics that point at what is wrong.
//!
//! A configuration goes through four steps, and every error of a step is found in one go:
//!
//! 1. [`find()`] looks upward for a `lariat.toml` or a `Procfile`; [`load`] reads it (size, encoding, kind of file).
//! 2. The format's reader makes a draft of the stack. It goes on after an error with what is certain.
//! 3. The checks look at all services together: unknown dependencies, circles, shared ports, grace periods that
//!    cannot fit in the stack's deadline.
//! 4. Without an error, the draft becomes a [`StackSpec`]: resolved, with absolute directories, ready to be run.
//!
//! ```
//! use lariat_config::{Look, Origin, parse_toml, render};
//!
//! let origin = Origin { file: "lariat.toml".into(), root: "/srv/shop".into() };
//! let loaded = parse_toml("[service.web]\nrun = 'npm run dev'\nport = 8000\n", &origin).expect("a good file");
//! assert_eq!(loaded.spec.services[0].name.as_str(), "web");
//!
//! let errors = parse_toml("[service.web]\nrunn = 'npm run dev'\n", &origin).expect_err("a misspelled key");
//! let text = render(&errors, Look::default());
//! assert!(text.contains("unknown key `runn` in `[service.web]`"));
//! assert!(text.contains("lariat.toml:2:1"));
//! ```
//!
//! Not done here: starting anything, printing, reading the environment. `$PORT` and other variables stay as they are
//! written; a shell replaces them. `.env` files are not read.

#![forbid(unsafe_code)]

mod address;
mod checks;
pub mod diagnostic;
mod draft;
mod duration;
mod find;
mod graph;
mod procfile;
mod quantity;
mod read;
mod render;
mod suggest;
mod toml;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lariat::service::spec::{Cpu, StackSpec};

pub use diagnostic::{Code, Diagnostic, ERRORS_MAX, Fix, Help, Label, Place, Severity, Source};
pub use find::{NAMES, find};
pub use quantity::PROCESSES_MAX;
pub use read::FILE_BYTES_MAX;
pub use render::{Look, render};
pub use suggest::nearest;

use diagnostic::Sink;

/// Reads a duration as it is written in `lariat.toml`: `8s`, `500ms`, `1m 30s`; from a millisecond to a week.
///
/// # Errors
/// What is wrong with the text, and what was probably meant, in one line.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    duration::parse(text).map_err(|refused| match refused.meant {
        Some(meant) => format!("{}; did you mean `{meant}`?", refused.message),
        None => format!("{}; write it like `500ms`, `8s`, `1m 30s`", refused.message),
    })
}

/// Reads an amount of memory as it is written in `lariat.toml`: `512MiB`, `1.5GiB`; in bytes.
///
/// # Errors
/// What is wrong with the text, and what was probably meant, in one line.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    quantity::memory(text).map_err(|refused| match refused.meant {
        Some(meant) => format!("{}; did you mean `{meant}`?", refused.message),
        None => format!("{}; write it like `512MiB`, `1.5GiB`", refused.message),
    })
}

/// Reads a share of the processors as it is written in `lariat.toml`: `2`, `1.5`.
///
/// # Errors
/// What is wrong with the text, in one line.
pub fn parse_cpu(text: &str) -> Result<Cpu, String> {
    quantity::cpu(text).map_err(|refused| refused.message)
}

/// Reads a number of processes: 1 to [`PROCESSES_MAX`].
///
/// # Errors
/// What is wrong with the text, in one line.
pub fn parse_processes(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| (1..=PROCESSES_MAX).contains(count));
    count.ok_or_else(|| format!("it takes a number from 1 to {PROCESSES_MAX}"))
}

/// Where a text came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The file as it is shown to people.
    pub file: PathBuf,
    /// The absolute directory that relative ones start from; `.lariat/` will be in it.
    pub root: PathBuf,
}

/// A stack that can be started, and what is odd about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is to run.
    pub spec: StackSpec,
    /// Only warnings, in the order of the text.
    pub warnings: Vec<Diagnostic>,
}

/// A format of configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `lariat.toml`, and any other name than those below.
    Toml,
    /// `Procfile`, `Procfile.dev`, `x.procfile`.
    Procfile,
}

impl Format {
    /// Returns the format that a file's name stands for; `None` for YAML and JSON, which are not read.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if name == "procfile" || name.starts_with("procfile.") || extension == "procfile" {
            return Some(Self::Procfile);
        }
        (!matches!(extension.as_str(), "yaml" | "yml" | "json")).then_some(Self::Toml)
    }
}

/// Reads a file in the format that its name stands for, and looks whether the working directories are there.
///
/// Blocks for as long as the file system does.
///
/// # Errors
/// Everything that is wrong, warnings included, in the order of the text: at most [`ERRORS_MAX`] errors, and at
/// least one.
pub fn load(path: &Path) -> Result<Loaded, Vec<Diagnostic>> {
    let Some(format) = Format::of(path) else {
        let message = format!("the format of {} is not read", path.display());
        let mut diagnostic = read::about(path, Code::Format, message);
        diagnostic
            .note("read are lariat.toml and Procfile")
            .help("`lariat init` writes an example of a lariat.toml");
        return Err(vec![diagnostic]);
    };
    let (origin, bytes) = read::file(path)?;
    let source = read::text(path, bytes)?;
    parse(source, &origin, format, Disk::Asked)
}

/// Reads the text of a `lariat.toml`. Nothing on the disk is looked at.
///
/// # Errors
/// As for [`load`].
pub fn parse_toml(text: &str, origin: &Origin) -> Result<Loaded, Vec<Diagnostic>> {
    parse(source(text, origin), origin, Format::Toml, Disk::Unasked)
}

/// Reads the text of a Procfile. Nothing on the disk is looked at. No ports are handed out: `$PORT` is left to the
/// environment, with a warning.
///
/// # Errors
/// As for [`load`].
pub fn parse_procfile(text: &str, origin: &Origin) -> Result<Loaded, Vec<Diagnostic>> {
    parse(source(text, origin), origin, Format::Procfile, Disk::Unasked)
}

fn source(text: &str, origin: &Origin) -> Arc<Source> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).to_owned();
    Arc::new(Source { file: origin.file.clone(), text })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Disk {
    Asked,
    Unasked,
}

fn parse(
    source: Arc<Source>,
    origin: &Origin,
    format: Format,
    disk: Disk,
) -> Result<Loaded, Vec<Diagnostic>> {
    let mut sink = Sink::new(Arc::clone(&source));
    let stack = match format {
        Format::Toml => match toml::read(&source.text, &mut sink) {
            Some(stack) => stack,
            None => return Err(sink.finish()),
        },
        Format::Procfile => procfile::read(&source.text, &mut sink),
    };
    match format {
        Format::Toml => checks::all(&stack, &mut sink),
        Format::Procfile => procfile::ports(&stack, &mut sink),
    }
    if disk == Disk::Asked {
        checks::directories(&stack, origin, &mut sink);
        if format == Format::Procfile {
            checks::unread_variables(origin, &mut sink);
        }
    }
    stack.finish(sink, origin)
}
