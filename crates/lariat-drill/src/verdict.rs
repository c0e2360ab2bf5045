//! What the judge found in one cell.

use serde::{Deserialize, Serialize};

/// The result of one cell.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// The containment's name.
    pub containment: String,
    /// The tree's name.
    pub tree: String,
    /// The ending's name.
    pub ending: String,
    /// What the moment of the ending was chosen by.
    pub seed: u64,
    /// Why there was nothing to judge: the machine cannot build the tree, or the ending does not apply to it.
    pub skipped: Option<String>,
    /// Why the drill itself could not do its work.
    pub trouble: Option<String>,
    /// How many members reported themselves.
    pub members: usize,
    /// Who was alive when nobody should have been.
    pub survivors: Vec<String>,
    /// Ports and sockets that were still held.
    pub ports: Vec<String>,
    /// Members that end when they are told and had no time to.
    pub denied: Vec<String>,
    /// Members that were told more than once. For people; nothing is promised where the kernel or a terminal tells too.
    pub told_twice: Vec<String>,
    /// How many were alive after the ending and before the next command, where that is declared.
    pub before_sweep: Option<usize>,
    /// How many were alive after the next command.
    pub after_sweep: Option<usize>,
    /// Whether lariat itself did not come to an end.
    pub hung: bool,
    /// From the ending to nobody alive, in milliseconds.
    pub gone_after_ms: Option<u64>,
    /// What else is worth saying.
    pub notes: Vec<String>,
}

impl Verdict {
    /// Says whether everything that is promised was kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.survivors.is_empty()
            && self.ports.is_empty()
            && self.denied.is_empty()
            && self.trouble.is_none()
            && !self.hung
    }

    /// Says what was not kept, one sentence each.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let named = |count: usize, what: &str, who: &[String]| {
            const NAMED_MAX: usize = 6;
            let more = if who.len() > NAMED_MAX { ", …" } else { "" };
            let who = who.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
            format!("{count} {what}: {who}{more}")
        };
        if !self.survivors.is_empty() {
            findings.push(named(self.survivors.len(), "survived", &self.survivors));
        }
        if !self.ports.is_empty() {
            findings.push(named(self.ports.len(), "still held", &self.ports));
        }
        if !self.denied.is_empty() {
            findings.push(named(self.denied.len(), "had no grace period", &self.denied));
        }
        if self.hung {
            findings.push("lariat did not come to an end".to_owned());
        }
        findings.extend(self.trouble.iter().map(|trouble| format!("the drill failed: {trouble}")));
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_broken_is_a_finding() {
        assert!(Verdict::default().is_kept() && Verdict::default().findings().is_empty());
        let one = || vec!["x".to_owned()];
        let broken = [
            Verdict { survivors: one(), ..Verdict::default() },
            Verdict { ports: one(), ..Verdict::default() },
            Verdict { denied: one(), ..Verdict::default() },
            Verdict { trouble: Some("x".to_owned()), ..Verdict::default() },
            Verdict { hung: true, ..Verdict::default() },
        ];
        for verdict in broken {
            assert!(!verdict.is_kept(), "{verdict:?}");
            assert_eq!(verdict.findings().len(), 1, "{verdict:?}");
        }
    }
}
