//! What `lariat doctor` says: the machine as data, and as text made from it.

use lariat_drill::endings::ENDINGS;
use lariat_drill::promise::{self, Containment, Grace, Survivors};
use serde::Serialize;

use super::contain::{ENTRIES, Found};
use super::machine::{self, Directory, Feature, Limit, Proc};

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Whether lariat can do its work here.
    pub(super) is_usable: bool,
    containments: Vec<Contained>,
    /// Whether memory, processes and cpu of services can be limited.
    service_limits: ServiceLimits,
    kernel: Vec<Feature>,
    proc: Proc,
    limits: Vec<Limit>,
    directories: Vec<Directory>,
}

/// A containment and what it gives here.
#[derive(Clone, Debug, Serialize)]
struct Contained {
    name: &'static str,
    what: &'static str,
    used: &'static str,
    is_available: bool,
    /// What it is here, or why it is not.
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// What each ending leads to.
    promises: Vec<Promised>,
}

#[derive(Clone, Debug, Serialize)]
struct ServiceLimits {
    is_available: bool,
    /// Where, or why not.
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// What one ending leads to.
#[derive(Clone, Debug, Serialize)]
struct Promised {
    ending: &'static str,
    what: &'static str,
    leaves_nothing: bool,
    grace: &'static str,
    words: String,
}

impl Report {
    /// Looks at the machine.
    pub(super) fn new() -> Self {
        let containments: Vec<Contained> = ENTRIES.iter().map(contained).collect();
        let is_usable =
            containments.iter().any(|one| one.name == Containment::Lineage.name() && one.is_available);
        Self {
            is_usable,
            containments,
            service_limits: ServiceLimits::new(),
            kernel: machine::features(),
            proc: machine::proc(),
            limits: machine::limits(),
            directories: machine::directories(),
        }
    }

    /// Returns why lariat cannot do its work here, and what to do about it.
    pub(super) fn trouble(&self) -> Option<(&str, Option<&str>)> {
        let lineage = self.containments.iter().find(|one| one.name == Containment::Lineage.name())?;
        (!self.is_usable).then_some((lineage.state.as_str(), lineage.hint.as_deref()))
    }

    /// Returns it as text.
    pub(super) fn text(&self) -> String {
        let mut text = String::from("containment\n");
        for one in &self.containments {
            let mark = if one.is_available { "yes" } else { "no " };
            text.push_str(&format!("  {mark} {:10} {}; {}\n", one.name, one.what, one.used));
            let word = if one.is_available { "here" } else { "because" };
            text.push_str(&format!("      {word}: {}\n", one.state));
            text.push_str(&hinted(one.hint.as_deref()));
        }
        let ServiceLimits { is_available, state, hint } = &self.service_limits;
        let (mark, word) = if *is_available { ("yes", "here") } else { ("no ", "because") };
        text.push_str(
            "\nlimits of services: `limits` of a service, or `lariat run --memory --processes --cpu`\n",
        );
        text.push_str(&format!("  {mark} {word}: {state}\n{}", hinted(hint.as_deref())));
        for one in self.containments.iter().filter(|one| one.is_available) {
            text.push_str(&promises(one));
        }
        text.push_str("\nkernel\n");
        for feature in &self.kernel {
            let mark = if feature.is_there { "yes" } else { "no " };
            let why = feature.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            text.push_str(&format!("  {mark} {:15} {}{why}\n", feature.name, feature.meaning));
        }
        text.push_str(&self.surroundings());
        text.push_str("\n`lariat doctor --drill` proves it on this machine; `--quick` takes some seconds.\n");
        text
    }

    fn surroundings(&self) -> String {
        let mut text = String::from("\nsurroundings\n");
        let proc = match &self.proc.hidepid {
            Some(value) if self.proc.hides => {
                format!("mounted with hidepid={value}: processes that change their user are hidden from us")
            }
            Some(value) => format!("mounted with hidepid={value}, which hides nobody from us"),
            None => "shows everybody".to_owned(),
        };
        text.push_str(&format!("  /proc: {proc}\n"));
        if self.proc.hides {
            text.push_str(&hinted(Some("hidden members are ended all the same; they are not named")));
        }
        for limit in &self.limits {
            let value = limit.value.map_or("no limit".to_owned(), |value| value.to_string());
            text.push_str(&format!("  {}: {value}\n{}", limit.name, hinted(limit.hint)));
        }
        for directory in &self.directories {
            let (path, state) = (directory.path.display(), &directory.state);
            let (what, hint) = (directory.what, hinted(directory.hint.as_deref()));
            text.push_str(&format!("  {what}: {path}, {state}\n{hint}"));
        }
        text
    }
}

fn hinted(hint: Option<&str>) -> String {
    hint.map(|hint| format!("      hint: {hint}\n")).unwrap_or_default()
}

impl ServiceLimits {
    fn new() -> Self {
        match super::contain::limits() {
            Found::Available(state) => Self { is_available: true, state, hint: None },
            Found::Missing { why: state, hint } => Self { is_available: false, state, hint },
        }
    }
}

fn contained(entry: &super::contain::Entry) -> Contained {
    let containment = entry.containment;
    let (is_available, state, hint) = match (entry.probe)() {
        Found::Available(what) => (true, what, None),
        Found::Missing { why, hint } => (false, why, hint),
    };
    let promises = ENDINGS.iter().map(|fact| {
        let promised = promise::promise(containment, fact.ending);
        Promised {
            ending: fact.name,
            what: fact.what,
            leaves_nothing: promised.survivors == Survivors::None,
            grace: match promised.grace {
                Grace::All => "all",
                Grace::AllButTheFirst => "all-but-first",
                Grace::OutsideTheGroup => "outside-group",
                Grace::Nobody => "none",
                Grace::LeaderFirst => "first",
            },
            words: promised.in_words(),
        }
    });
    let (name, what) = (containment.name(), containment.what());
    Contained { name, what, used: entry.used, is_available, state, hint, promises: promises.collect() }
}

/// Returns what the endings lead to, those that lead to the same together.
fn promises(one: &Contained) -> String {
    let mut text = format!("\nhow lariat can end, and what that leads to under {}\n", one.name);
    let mut told: Vec<&str> = Vec::new();
    for promised in &one.promises {
        let words = promised.words.as_str();
        if told.contains(&words) {
            continue;
        }
        told.push(words);
        text.push_str(&format!("  {words}:\n"));
        for same in one.promises.iter().filter(|same| same.words == words) {
            text.push_str(&format!("    {}\n", same.what));
        }
    }
    text
}
