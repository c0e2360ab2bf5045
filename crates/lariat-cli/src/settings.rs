//! What was asked for, made definite: arguments and surroundings to the file that is meant and what is in it.
//!
//! Nothing is started and nothing printed here. All access to the working directory is here.

use std::path::{Path, PathBuf};

use lariat_config::{Diagnostic, Loaded};

use crate::exit_code::ExitCode;
use crate::output::Failure;

/// The boundary that services and commands get besides the one by descent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Boundary {
    /// None.
    Lineage,
    /// A cgroup where one can be had.
    Any {
        /// The directory that the user names for it.
        given: Option<PathBuf>,
    },
    /// A cgroup, or nothing is started.
    Cgroup {
        /// The directory that the user names for it.
        given: Option<PathBuf>,
    },
}

impl Default for Boundary {
    fn default() -> Self {
        Self::Any { given: None }
    }
}

/// Returns the boundary that the environment asks for: `LARIAT_CONTAINMENT` and `LARIAT_CGROUP`.
///
/// # Errors
/// `LARIAT_CONTAINMENT` is no containment, or `LARIAT_CGROUP` no absolute path.
pub(crate) fn boundary() -> Result<Boundary, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let given = set("LARIAT_CGROUP").map(PathBuf::from);
    if given.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err(Failure::new(ExitCode::Usage, "LARIAT_CGROUP is not an absolute path"));
    }
    match set("LARIAT_CONTAINMENT").as_deref().map(std::ffi::OsStr::as_encoded_bytes) {
        None | Some(b"auto") => Ok(Boundary::Any { given }),
        Some(b"lineage") => Ok(Boundary::Lineage),
        Some(b"cgroup") => Ok(Boundary::Cgroup { given }),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            Err(Failure::new(ExitCode::Usage, format!("LARIAT_CONTAINMENT is `{other}`"))
                .hint("it can be `auto`, `lineage` or `cgroup`"))
        }
    }
}

/// Returns the directory that `LARIAT_CGROUP` names, for a search that goes on without it where it names none.
pub(crate) fn cgroup_base() -> Option<PathBuf> {
    let named = std::env::var_os("LARIAT_CGROUP").map(PathBuf::from);
    named.filter(|path| path.is_absolute())
}

/// Returns the directory that the command was started in.
///
/// # Errors
/// It was removed, or may not be looked at.
pub(crate) fn working_directory() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|error| {
        Failure::new(ExitCode::Trouble, "could not tell the working directory")
            .because(error)
            .hint("it may have been removed; go to another one")
    })
}

/// Returns the file that is meant: the one named with `-f`, or the nearest one upward. A found one inside the working
/// directory is named relative to it, as a person would.
///
/// # Errors
/// There is none, or it belongs to another user.
pub(crate) fn config_file(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let here = working_directory()?;
    let found = lariat_config::find(&here).map_err(|mut diagnostics| {
        // One that is about no text reads better as a message of the command itself.
        let first = diagnostics.swap_remove(0);
        let failure = Failure::new(ExitCode::Config, first.message);
        let failure = first.notes.into_iter().fold(failure, Failure::because);
        match first.help {
            Some(help) => failure.hint(help.message),
            None => failure,
        }
    })?;
    Ok(found.strip_prefix(&here).map(Path::to_owned).unwrap_or(found))
}

/// Reads the configuration for a command that is going to use it.
///
/// # Errors
/// Everything that is wrong with it, as diagnostics of the failure.
pub(crate) fn stack(file: &Path) -> Result<Loaded, Failure> {
    lariat_config::load(file).map_err(|diagnostics| {
        let message = format!("{}: {}", file.display(), counted(&diagnostics));
        Failure { diagnostics, ..Failure::new(ExitCode::Config, message).hint("nothing was started") }
    })
}

/// Returns how many there are: `2 errors, 1 warning`.
pub(crate) fn counted(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
    let plural = |count: usize, word: &str| match count {
        0 => None,
        1 => Some(format!("1 {word}")),
        _ => Some(format!("{count} {word}s")),
    };
    let parts = [plural(errors, "error"), plural(diagnostics.len() - errors, "warning")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
