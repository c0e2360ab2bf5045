//! What the exit codes of `lariat` mean: the one table that code, man page and `docs/exit-codes.md` share.
//!
//! A code once published keeps its meaning. Scripts ask for the number, so each has one meaning across all verbs.

/// Declares the codes once: variant, number, short name, meaning.
macro_rules! exit_codes {
    ($($variant:ident $number:literal $meaning:literal)*) => {
        /// How a `lariat` command ended.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum ExitCode {
            $(#[doc = $meaning] $variant,)*
        }

        impl ExitCode {
            /// Every code of lariat's own, in the order of the table.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the number that the process ends with.
            pub(crate) const fn number(self) -> u8 {
                match self { $(Self::$variant => $number,)* }
            }

            /// Returns the code with this number.
            pub(crate) fn of(number: u8) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.number() == number)
            }

            /// Returns what it means, in one sentence without a full stop.
            pub(crate) const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

exit_codes! {
    Done 0 "Done; nothing is left of what was to end"
    ServiceFailed 1 "A service failed, was never ready, or could not be started"
    Usage 2 "The command line was wrong; nothing was done"
    Config 3 "The configuration is wrong or missing; nothing was started"
    Left 4 "Something is left alive that could not be ended, or a port of the stack is still held"
    LiveRun 5 "A live run is in the way"
    NoRun 6 "There is no run here"
    PortInUse 7 "A port is in use by somebody else; of `port`, without `--free`: by anybody"
    Consent 8 "Consent was needed and not given (nobody could be asked at a terminal and no `--yes`, or the answer was no)"
    Trouble 9 "Trouble of lariat's own: its state directory, a full disk, the system"
    RunTrouble 125 "`run`: trouble of lariat's own, or survivors of a command that succeeded"
    NotExecutable 126 "`run`: the command was found and could not be executed"
    NotFound 127 "`run`: the command was not found"
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Returns `docs/exit-codes.md`.
    fn document() -> String {
        let mut text =
            "# Exit codes\n\n<!-- Written by the test of crates/lariat-cli/src/exit_code.rs. -->\n\n"
                .to_owned();
        text.push_str("| code | meaning |\n|---|---|\n");
        for code in ExitCode::ALL {
            text.push_str(&format!("| {} | {}. |\n", code.number(), code.meaning()));
        }
        text.push_str(
            "\n`lariat run` ends with the exit code of its command. A command that died of a signal gives ",
        );
        text.push_str("128 and the signal's\nnumber, as in a shell; after INT and QUIT lariat dies of the same signal, ");
        text.push_str("so that a script around it stops too.\n\n");
        text.push_str(
            "`lariat up` that was ended by Ctrl-C, TERM or HUP and left nothing behind ends with 0. `lariat up -d` ends with 0 only\n",
        );
        text.push_str("when the stack goes on in the background, or all of it has completed; ended by a signal or `lariat down` before that, it\n");
        text.push_str("ends with 1.\n\n");
        text.push_str("`lariat port` ends with 0 when nobody listens on any of the ports, and otherwise with 7. With `--free` it ends with\n");
        text.push_str("0 when the ports are free at its end; 4: what it tried to end still has one; 5: a service of a live run has one; 7: a\n");
        text.push_str("foreign process has one; 8: nobody said yes.\n");
        text
    }

    #[test]
    fn the_document_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/exit-codes.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, document()).expect("the document");
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(found, document(), "with UPDATE=1 in the environment the document is written anew");
    }

    #[test]
    fn numbers_are_distinct() {
        let numbers: BTreeSet<_> = ExitCode::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers.len(), ExitCode::ALL.len());
    }
}
