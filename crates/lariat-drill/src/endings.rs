//! The ways in which lariat can end, as a table.

/// A way to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The leader exits by itself.
    Exits,
    /// The leader crashes.
    Crashes,
    /// The leader gets KILL.
    LeaderKilled,
    /// TERM to lariat.
    Term,
    /// INT to lariat.
    Int,
    /// HUP to lariat.
    Hup,
    /// QUIT to lariat.
    Quit,
    /// A second signal to lariat.
    Second,
    /// A third signal to lariat.
    Third,
    /// Ctrl-C typed at the terminal.
    Typed,
    /// The terminal is closed.
    Closed,
    /// KILL to the supervisor.
    Killed,
    /// The supervisor crashes.
    Aborted,
    /// KILL to the supervisor's process group, on a terminal.
    GroupKilled,
    /// KILL to the keeper.
    KeeperKilled,
    /// STOP to the keeper, then KILL to the supervisor.
    KeeperStopped,
    /// KILL to every process of lariat in the same instant.
    AllKilled,
    /// KILL to the caller, with `--die-with-parent`.
    CallerKilled,
    /// The lifeline is closed.
    LifelineClosed,
    /// KILL to the caller that holds the lifeline.
    LifelineKilled,
    /// `lariat down` for a stack.
    Down,
    /// A stack's supervisor gets TERM.
    StackTerm,
    /// A stack's supervisor gets KILL.
    StackKilled,
    /// A stack's keeper gets KILL.
    StackKeeperKilled,
    /// Every process of a stack's lariat gets KILL in the same instant; then `lariat down`.
    StackAllKilled,
    /// A stack's only service exits.
    StackExits,
}

/// What a row of the table says of an ending.
#[derive(Clone, Copy, Debug)]
pub struct Fact {
    /// Which.
    pub ending: Ending,
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens, as a sentence without a full stop.
    pub what: &'static str,
    /// Whether it is among those of `--quick`.
    pub is_quick: bool,
}

const fn fact(ending: Ending, name: &'static str, what: &'static str) -> Fact {
    Fact { ending, name, what, is_quick: false }
}

const fn quick(ending: Ending, name: &'static str, what: &'static str) -> Fact {
    Fact { ending, name, what, is_quick: true }
}

/// Every ending, in the order of the matrix.
pub const ENDINGS: &[Fact] = &[
    quick(Ending::Exits, "exits", "the command exits by itself"),
    fact(Ending::Crashes, "crashes", "the command crashes (SEGV)"),
    fact(Ending::LeaderKilled, "leader-killed", "the command gets KILL"),
    quick(Ending::Term, "term", "lariat gets TERM"),
    fact(Ending::Int, "int", "lariat gets INT"),
    fact(Ending::Hup, "hup", "lariat gets HUP"),
    fact(Ending::Quit, "quit", "lariat gets QUIT"),
    fact(Ending::Second, "second", "lariat gets a second signal while it stops"),
    fact(Ending::Third, "third", "Ctrl-C is typed a third time while lariat kills"),
    fact(Ending::Typed, "typed", "Ctrl-C is typed at the terminal, again if it does not help"),
    fact(Ending::Closed, "closed", "the terminal is closed"),
    quick(Ending::Killed, "killed", "lariat gets KILL"),
    fact(Ending::Aborted, "aborted", "lariat crashes (ABRT)"),
    fact(Ending::GroupKilled, "group-killed", "lariat's process group on the terminal gets KILL"),
    quick(Ending::KeeperKilled, "keeper-killed", "the keeper gets KILL"),
    fact(Ending::KeeperStopped, "keeper-stopped", "the keeper gets STOP, then lariat gets KILL"),
    quick(Ending::AllKilled, "all-killed", "every lariat process gets KILL in the same instant"),
    fact(Ending::CallerKilled, "caller-killed", "the caller gets KILL (`--die-with-parent`)"),
    fact(Ending::LifelineClosed, "lifeline-closed", "the caller closes the lifeline (`--lifeline`)"),
    fact(Ending::LifelineKilled, "lifeline-killed", "the caller gets KILL (`--lifeline`)"),
    fact(Ending::Down, "down", "a stack: `lariat down`"),
    fact(Ending::StackTerm, "up-term", "a stack: `lariat up` gets TERM"),
    fact(Ending::StackKilled, "up-killed", "a stack: `lariat up` gets KILL"),
    fact(Ending::StackKeeperKilled, "up-keeper-killed", "a stack: a keeper gets KILL"),
    fact(Ending::StackAllKilled, "up-all-killed", "a stack: every lariat process gets KILL"),
    fact(Ending::StackExits, "up-exits", "a stack: its service exits"),
];

impl Ending {
    /// Returns what the table says of it.
    #[must_use]
    pub fn fact(self) -> &'static Fact {
        // INVARIANT: a test asks for every ending.
        ENDINGS.iter().find(|fact| fact.ending == self).unwrap_or(&ENDINGS[0])
    }

    /// Returns its letter in the matrix.
    #[must_use]
    pub fn letter(self) -> char {
        let at = ENDINGS.iter().position(|fact| fact.ending == self).unwrap_or(0);
        // INVARIANT: there are no more endings than letters, which a test sees to.
        char::from(b'a' + u8::try_from(at % 26).unwrap_or(0))
    }

    /// Finds an ending by its name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        ENDINGS.iter().find(|fact| fact.name == name).map(|fact| fact.ending)
    }

    /// Says whether a stack is ended, not a command.
    #[must_use]
    pub fn is_of_stack(self) -> bool {
        matches!(
            self,
            Self::Down
                | Self::StackTerm
                | Self::StackKilled
                | Self::StackKeeperKilled
                | Self::StackAllKilled
                | Self::StackExits
        )
    }

    /// Says whether every process of lariat is killed in the same instant.
    #[must_use]
    pub fn kills_all(self) -> bool {
        matches!(self, Self::AllKilled | Self::StackAllKilled)
    }

    /// Says whether lariat lives to see the end, so that nothing may be alive once it has exited.
    #[must_use]
    pub fn has_witness(self) -> bool {
        !matches!(
            self,
            Self::Killed
                | Self::Aborted
                | Self::GroupKilled
                | Self::KeeperStopped
                | Self::AllKilled
                | Self::StackKilled
                | Self::StackAllKilled
                | Self::Third
                // Typed again and again, the last one makes lariat leave; keepers finish.
                | Self::Typed
        )
    }

    /// Says whether it happens on a terminal.
    #[must_use]
    pub fn is_on_terminal(self) -> bool {
        matches!(self, Self::Typed | Self::Third | Self::Closed | Self::GroupKilled)
    }

    /// Says whether a caller stands between the judge and lariat.
    #[must_use]
    pub fn has_caller(self) -> bool {
        matches!(self, Self::CallerKilled | Self::LifelineClosed | Self::LifelineKilled)
    }

    /// Says whether the leader has to do something for it.
    #[must_use]
    pub fn asks_the_leader(self) -> bool {
        matches!(self, Self::Exits | Self::Crashes | Self::StackExits)
    }

    /// Says whether it takes the grace period away on purpose.
    #[must_use]
    pub fn hurries(self) -> bool {
        matches!(self, Self::Second | Self::Third)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_letters_are_distinct() {
        let names: BTreeSet<_> = ENDINGS.iter().map(|fact| fact.name).collect();
        let letters: BTreeSet<_> = ENDINGS.iter().map(|fact| fact.ending.letter()).collect();
        assert_eq!((names.len(), letters.len()), (ENDINGS.len(), ENDINGS.len()));
    }

    #[test]
    fn every_ending_is_found_by_its_name() {
        for fact in ENDINGS {
            assert_eq!(Ending::find(fact.name), Some(fact.ending));
            assert_eq!(fact.ending.fact().name, fact.name);
        }
    }
}
