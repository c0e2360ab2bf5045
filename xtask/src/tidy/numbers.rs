//! Rules on process numbers: whoever acts on one has to be named here, with the reason why it cannot be a stranger's.

use super::{Finding, Tree};

/// Ways to act on whoever has a number, and the files that may.
const ACTING: &[(&[&str], &[Allowed])] = &[
    // Signals to a number: there is one in what is shipped.
    (
        &[
            "libc::kill(",
            "libc::killpg(",
            "libc::tgkill(",
            "SYS_kill",
            "SYS_tkill",
            "SYS_tgkill",
            "SYS_rt_sigqueueinfo",
            "SYS_rt_tgsigqueueinfo",
            "kill_process(",
            "kill_process_group(",
            "sigqueue(",
        ],
        &[
            ("crates/lariat-sys/src/spawn/mod.rs", "our own unreaped child"),
            ("crates/lariat-sys/src/ask.rs", "our own unreaped child"),
            (
                "crates/lariat-sys/src/process.rs",
                "signal 0: asks whether a group has members, and tells nobody",
            ),
        ],
    ),
    // A descriptor of whoever has a number. What is compared afterwards is safe, and so is what cannot change hands.
    (
        &["open_pid(", "pidfd_open("],
        &[
            ("crates/lariat-sys/src/pidfd.rs", "compared by inode or start after it was opened"),
            ("crates/lariat-sys/src/identity.rs", "the calling process itself"),
            ("crates/lariat-sys/src/kernel.rs", "the calling process itself"),
            ("crates/lariat-sys/src/spawn/mod.rs", "our own unreaped child"),
            ("crates/lariat-sys/src/ask.rs", "our own unreaped child"),
            (
                "crates/lariat-keeper/src/contain/lineage.rs",
                "held only if it has its number after its stat was read",
            ),
            (
                "crates/lariat/src/ledger/recover/snapshot.rs",
                "its inode counts only if it kept its number; the newborn are judged after they were opened",
            ),
            ("crates/lariat-keeper/src/client.rs", "the calling process itself"),
            ("crates/lariat-sys/src/cgroup/mod.rs", "still listed as a member after it was opened"),
            (
                "crates/lariat-cli/src/commands/doctor/machine.rs",
                "the calling process, and our own unreaped child",
            ),
            ("crates/lariat-drill/src/act.rs", "an actor that holds still until the drill has opened it"),
            (
                "crates/lariat-drill/src/member/attacks.rs",
                "a hostile member, which is to attack lariat by its number",
            ),
            ("crates/lariat-cli/src/run/ties.rs", "the parent, asked for again after it was opened"),
        ],
    ),
];

/// A file, and why it may.
type Allowed = (&'static str, &'static str);

/// Crates that are not shipped; they have strangers to make and harm to show.
const NOT_SHIPPED: &[&str] = &["lariat-testkit", "xtask"];

/// Nothing that is shipped acts on a bare number, but where the number cannot be a stranger's.
pub(crate) fn bare_numbers(tree: &Tree) -> Vec<Finding> {
    let is_shipped = |name: Option<&str>| name.is_some_and(|name| !NOT_SHIPPED.contains(&name));
    let mut findings = Vec::new();
    for file in tree.rust().filter(|file| is_shipped(file.crate_name())) {
        for (number, line) in file.code.lines().enumerate() {
            if file.is_test(number) {
                continue;
            }
            for (words, allowed) in ACTING {
                let is_allowed = allowed.iter().any(|(path, _)| *path == file.path);
                if let Some(word) = words.iter().find(|word| line.contains(**word)).filter(|_| !is_allowed) {
                    let what = format!(
                        "`{word}` acts on whoever has a number: use an Identity, or say why not here"
                    );
                    findings.push(file.finding(number, what));
                }
            }
        }
    }
    // Benches are measured, not shipped.
    findings.retain(|finding| !finding.path.contains("/benches/"));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, code: &str) -> usize {
        bare_numbers(&Tree::of([(path.to_owned(), format!("//! A.\n{code}\n"))])).len()
    }

    #[test]
    fn a_signal_to_a_number_is_found_wherever_it_is_shipped() {
        let kill = "fn a() { unsafe { libc::kill(pid, 9) }; }";
        assert_eq!(findings("crates/lariat/src/ports.rs", kill), 1);
        assert_eq!(findings("crates/lariat-sys/src/signal.rs", kill), 1);
        assert_eq!(findings("crates/lariat-sys/src/spawn/mod.rs", kill), 0);
        assert_eq!(findings("crates/lariat-testkit/src/census.rs", kill), 0);
        assert_eq!(findings("crates/lariat/tests/ports.rs", kill), 0);
        assert_eq!(findings("crates/lariat/src/ports.rs", "// libc::kill(pid, 9)\nfn kill(a: u8) {}"), 0);
    }

    #[test]
    fn a_descriptor_of_a_number_is_opened_only_where_it_is_compared() {
        let open = "fn a() { PidFd::open_pid(pid); }";
        assert_eq!(findings("crates/lariat-cli/src/commands/down.rs", open), 1);
        assert_eq!(findings("crates/lariat-cli/src/run/ties.rs", open), 0);
        assert_eq!(findings("crates/lariat-cli/src/commands/down.rs", "fn a() { PidFd::open(who); }"), 0);
    }
}
