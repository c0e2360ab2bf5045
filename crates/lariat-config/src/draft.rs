//! A stack as it was read, with the place of everything that can clash with something else in the file.
//!
//! Readers fill drafts; [`crate::checks`] looks at them together; [`StackDraft::finish`] makes the specification.
//! A draft may hold placeholders for what was wrong: an error has been reported then, and no specification is made.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lariat::ledger::recover::patterns::CommandPattern;
use lariat::service::spec::{
    CommandSpec, Condition, DEADLINE_DEFAULT, Dependency, Isolation, Limits, PortSpec, ReadySpec,
    RestartSpec, ServiceName, ServiceSpec, StackSpec, StopSpec,
};

use crate::diagnostic::{Diagnostic, Sink};
use crate::{Loaded, Origin};

/// A value and its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Range<usize>,
}

impl<T> At<T> {
    pub(crate) fn new(value: T, span: Range<usize>) -> Self {
        Self { value, span }
    }
}

/// A dependency as it was written.
#[derive(Clone, Debug)]
pub(crate) struct AfterDraft {
    /// The name, and the place of the name alone.
    pub(crate) service: At<String>,
    /// `None`: ready where the other service has a check, else started.
    pub(crate) condition: Option<At<Condition>>,
}

/// A service as it was read.
#[derive(Clone, Debug)]
pub(crate) struct ServiceDraft {
    pub(crate) name: At<String>,
    /// `None` where it is missing or wrong, which has been reported.
    pub(crate) command: Option<At<CommandSpec>>,
    /// As written; `None` is the project's root.
    pub(crate) dir: Option<At<PathBuf>>,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) port: Option<At<PortSpec>>,
    pub(crate) after: Vec<AfterDraft>,
    pub(crate) ready: Option<ReadySpec>,
    pub(crate) stop: StopSpec,
    /// Where the grace period was set; `None` for the default one.
    pub(crate) grace_span: Option<Range<usize>>,
    pub(crate) restart: RestartSpec,
    pub(crate) daemon: bool,
    pub(crate) isolation: Isolation,
    pub(crate) limits: Limits,
}

impl ServiceDraft {
    /// Returns a service that has nothing but a name.
    pub(crate) fn new(name: At<String>) -> Self {
        Self {
            name,
            command: None,
            dir: None,
            env: BTreeMap::new(),
            port: None,
            after: Vec::new(),
            ready: None,
            stop: StopSpec::default(),
            grace_span: None,
            restart: RestartSpec::default(),
            daemon: false,
            isolation: Isolation::None,
            limits: Limits::default(),
        }
    }
}

/// A stack as it was read.
#[derive(Clone, Default, Debug)]
pub(crate) struct StackDraft {
    pub(crate) name: Option<String>,
    pub(crate) deadline: Option<At<Duration>>,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) services: Vec<ServiceDraft>,
    pub(crate) sweep: Vec<CommandPattern>,
}

impl StackDraft {
    /// Returns the stack's deadline, set or not.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline.as_ref().map_or(DEADLINE_DEFAULT, |deadline| deadline.value)
    }

    /// Returns which services each one waits for, as indices in the order of the file. Unknown names and the
    /// service itself are left out: they are reported by themselves.
    pub(crate) fn edges(&self) -> Vec<Vec<usize>> {
        let index: BTreeMap<&str, usize> =
            self.services.iter().enumerate().map(|(i, s)| (s.name.value.as_str(), i)).collect();
        let of = |(i, service): (usize, &ServiceDraft)| {
            let known =
                service.after.iter().filter_map(|after| index.get(after.service.value.as_str()).copied());
            known.filter(|other| *other != i).collect()
        };
        self.services.iter().enumerate().map(of).collect()
    }

    /// Makes the specification, or hands out what is wrong.
    pub(crate) fn finish(self, sink: Sink, origin: &Origin) -> Result<Loaded, Vec<Diagnostic>> {
        if sink.has_errors() {
            return Err(sink.finish());
        }
        let has_check: BTreeMap<String, bool> =
            self.services.iter().map(|s| (s.name.value.clone(), s.ready.is_some())).collect();
        let deadline = self.deadline();
        let services =
            self.services.into_iter().filter_map(|s| service(s, &self.env, &has_check, &origin.root));
        let spec = StackSpec {
            name: self.name.unwrap_or_else(|| default_name(&origin.root)),
            root: origin.root.clone(),
            deadline,
            services: services.collect(),
            sweep: self.sweep,
        };
        Ok(Loaded { spec, warnings: sink.finish() })
    }
}

/// Returns the service's specification; `None` only for what has been reported as an error.
fn service(
    draft: ServiceDraft,
    env: &BTreeMap<OsString, OsString>,
    has_check: &BTreeMap<String, bool>,
    root: &Path,
) -> Option<ServiceSpec> {
    let dependency = |after: AfterDraft| {
        let is_checked = has_check.get(&after.service.value).copied().unwrap_or_default();
        let default = if is_checked { Condition::Ready } else { Condition::Started };
        let condition = after.condition.map_or(default, |condition| condition.value);
        Some(Dependency { service: ServiceName::new(after.service.value).ok()?, condition })
    };
    Some(ServiceSpec {
        name: ServiceName::new(draft.name.value).ok()?,
        command: draft.command?.value,
        dir: draft.dir.map_or_else(|| root.to_owned(), |dir| joined(root, &dir.value)),
        env: env.iter().chain(&draft.env).map(|(name, value)| (name.clone(), value.clone())).collect(),
        port: draft.port.map(|port| port.value),
        after: draft.after.into_iter().filter_map(dependency).collect(),
        ready: draft.ready,
        stop: draft.stop,
        restart: draft.restart,
        daemon: draft.daemon,
        isolation: draft.isolation,
        limits: draft.limits,
    })
}

/// Returns a directory below the root without `.` components; `..` stays, since it may follow a link.
pub(crate) fn joined(root: &Path, dir: &Path) -> PathBuf {
    root.join(dir).components().collect()
}

fn default_name(root: &Path) -> String {
    root.file_name().map_or_else(|| "stack".to_owned(), |name| name.to_string_lossy().into_owned())
}
