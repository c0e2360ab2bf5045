//! The fixture's own command line: a kind and `--key value` pairs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use crate::sys;

/// How long a fixture lives at most when nothing else is said, in seconds.
const LIMIT_DEFAULT: u64 = 60;

/// A parsed command line.
pub(crate) struct Args {
    /// Which fixture.
    pub(crate) kind: String,
    /// When every process of this fixture ends itself, in nanoseconds of CLOCK_MONOTONIC.
    pub(crate) until: u64,
    /// Where facts are written; none means that nobody wants to know.
    pub(crate) facts: Option<PathBuf>,
    rest: BTreeMap<String, String>,
}

impl Args {
    /// Reads `argv`, its first entry included.
    pub(crate) fn parse(argv: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut argv = argv.skip(1);
        let kind = argv.next().ok_or("which fixture?")?;
        let mut rest = BTreeMap::new();
        while let Some(key) = argv.next() {
            let name = key.strip_prefix("--").ok_or_else(|| format!("`{key}` is not an option"))?;
            let value = argv.next().ok_or_else(|| format!("`{key}` needs a value"))?;
            rest.insert(name.to_owned(), value);
        }
        let facts = rest.remove("facts").map(PathBuf::from);
        let limit = number_of(&rest, "limit", LIMIT_DEFAULT);
        let until = number_of(&rest, "until", sys::now().saturating_add(limit.saturating_mul(1_000_000_000)));
        Ok(Self { kind, until, facts, rest })
    }

    /// Returns `--name` as a number, or `default` when it is absent or no number.
    pub(crate) fn number<T: FromStr>(&self, name: &str, default: T) -> T {
        number_of(&self.rest, name, default)
    }

    /// Returns `--name` as text, or `default` when it is absent.
    pub(crate) fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.rest.get(name).map_or(default, String::as_str)
    }
}

fn number_of<T: FromStr>(rest: &BTreeMap<String, String>, name: &str, default: T) -> T {
    rest.get(name).and_then(|text| text.parse().ok()).unwrap_or(default)
}
