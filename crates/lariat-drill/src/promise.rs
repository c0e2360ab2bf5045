//! What is promised: the one table of containment × ending (× attack) that `lariat doctor` shows and that the drill holds
//! lariat to.

use crate::endings::Ending;
use crate::trees::{Attack, Tree};

/// How the members of a service are held together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Containment {
    /// By descent from a subreaper. Always there.
    Lineage,
    /// By a cgroup (version 2) of its own.
    Cgroup,
    /// By a pid namespace whose first process is the keeper.
    Namespace,
}

impl Containment {
    /// Every containment.
    pub const ALL: [Self; 3] = [Self::Lineage, Self::Cgroup, Self::Namespace];

    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lineage => "lineage",
            Self::Cgroup => "cgroup",
            Self::Namespace => "namespace",
        }
    }

    /// Returns what it is, as a sentence without a full stop.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::Lineage => "whatever descends from a command is its keeper's for life",
            Self::Cgroup => "a cgroup of its own, which the kernel kills as one",
            Self::Namespace => "a pid namespace of its own, which ends with its keeper",
        }
    }

    /// Returns the environment that chooses it, where it is chosen so.
    #[must_use]
    pub fn variable(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Lineage => Some(("LARIAT_CONTAINMENT", "lineage")),
            Self::Cgroup => Some(("LARIAT_CONTAINMENT", "cgroup")),
            Self::Namespace => None,
        }
    }

    /// Returns the option of `lariat run` that chooses it, where it is chosen so.
    #[must_use]
    pub fn option(self) -> Option<&'static str> {
        (self == Self::Namespace).then_some("--isolate")
    }

    /// Returns the line of a service in `lariat.toml` that chooses it, where it is chosen so.
    #[must_use]
    pub fn key(self) -> Option<&'static str> {
        (self == Self::Namespace).then_some("isolation = \"pid\"")
    }
}

/// Who may be alive after an ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// Nobody.
    None,
    /// Whoever is not the leader, until the next command finds them; those that hid their environment as well, or became
    /// another user, for good, and named as "possibly yours".
    UntilSweep,
}

/// Whether members that end when they are told have the time for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// All have.
    All,
    /// All but the first process, which gave up the signal that would have told it, and is killed at the end.
    AllButTheFirst,
    /// All but those that share the killed group.
    OutsideTheGroup,
    /// Nobody is asked to wait: it was taken away, or the kernel itself kills.
    Nobody,
    /// Leaders have it now, the others when the next command finds them.
    LeaderFirst,
}

/// What holds after an ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Who may be alive.
    pub survivors: Survivors,
    /// Who has the time to end by itself.
    pub grace: Grace,
}

/// Returns what is promised of an ending, when nobody attacks lariat.
#[must_use]
pub fn promise(containment: Containment, ending: Ending) -> Promise {
    let is_keeper_dead =
        ending.kills_all() || matches!(ending, Ending::KeeperKilled | Ending::StackKeeperKilled);
    let survivors = match containment {
        Containment::Namespace => Survivors::None,
        _ if ending.kills_all() => Survivors::UntilSweep,
        _ => Survivors::None,
    };
    let grace = match (containment, ending) {
        (Containment::Namespace, _) if is_keeper_dead => Grace::Nobody,
        (_, ending) if ending.hurries() => Grace::Nobody,
        (_, ending) if ending.kills_all() => Grace::LeaderFirst,
        (_, Ending::GroupKilled) => Grace::OutsideTheGroup,
        _ => Grace::All,
    };
    Promise { survivors, grace }
}

/// Returns what is promised of an ending of this tree.
#[must_use]
pub fn promise_for(containment: Containment, ending: Ending, tree: &Tree) -> Promise {
    let promised = promise(containment, ending);
    let kills_keeper = matches!(ending, Ending::KeeperKilled | Ending::StackKeeperKilled);
    if tree.is_deaf_to_death && kills_keeper && promised.grace == Grace::All {
        // Nobody can see whether a process has a parent-death signal, and none may be told twice.
        return Promise { grace: Grace::AllButTheFirst, ..promised };
    }
    if tree.has_neighbour && containment == Containment::Lineage {
        // Its orphans go to the first process there. What carries the mark is found: by a supervisor that lives to see the
        // end of its stack, or else by the next command.
        let is_hunted = ending.is_of_stack() && ending.has_witness();
        let survivors = if is_hunted { promised.survivors } else { Survivors::UntilSweep };
        return Promise { survivors, grace: Grace::LeaderFirst };
    }
    match (tree.attack, containment) {
        // Whoever could tell that the keeper is held is dead as well.
        (Attack::Holds, _) if is_supervisor_dead(ending) => {
            Promise { survivors: Survivors::UntilSweep, grace: Grace::LeaderFirst }
        }
        // From inside a pid namespace nobody outside can be named, and its first process not be killed.
        (Attack::None, _) | (_, Containment::Namespace) => promised,
        (Attack::All, _) => Promise { survivors: Survivors::UntilSweep, grace: Grace::LeaderFirst },
        // A member kills one half while the judge ends the other: as if both had been killed. Where the keeper is dead
        // already, the supervisor stands in its place, and is what a member that kills its keeper kills.
        (Attack::Keeper, _) if kills_keeper || is_supervisor_dead(ending) => {
            Promise { survivors: Survivors::UntilSweep, grace: Grace::LeaderFirst }
        }
        (Attack::Keeper | Attack::Holds | Attack::Supervisor | Attack::Stops | Attack::Hampers, _) => {
            promised
        }
    }
}

fn is_supervisor_dead(ending: Ending) -> bool {
    matches!(
        ending,
        Ending::Killed
            | Ending::Aborted
            | Ending::GroupKilled
            | Ending::KeeperStopped
            | Ending::Third
            | Ending::StackKilled
    )
}

impl Promise {
    /// Says it in plain words.
    #[must_use]
    pub fn in_words(self) -> String {
        let survivors = match self.survivors {
            Survivors::None => "nothing is left",
            Survivors::UntilSweep => "what the first process started is left until the next command finds it",
        };
        let grace = match self.grace {
            Grace::All => "everybody has the grace period",
            Grace::AllButTheFirst => "everybody but the first process has the grace period",
            Grace::OutsideTheGroup => "whoever is outside of that group has the grace period",
            Grace::Nobody => "without a grace period",
            Grace::LeaderFirst => "that one has the grace period now, the others then",
        };
        format!("{survivors}; {grace}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endings::ENDINGS;
    use crate::trees::TREES;

    #[test]
    fn only_the_death_of_all_leaves_anybody() {
        for containment in Containment::ALL {
            for fact in ENDINGS {
                let promised = promise(containment, fact.ending);
                let may_leave = fact.ending.kills_all() && containment != Containment::Namespace;
                assert_eq!(
                    promised.survivors == Survivors::UntilSweep,
                    may_leave,
                    "{containment:?} {fact:?}"
                );
            }
        }
    }

    #[test]
    fn only_trees_that_attack_lariat_or_leave_its_descent_may_leave_more() {
        let leaves_no_more = |tree: &&Tree| {
            matches!(tree.attack, Attack::None | Attack::Stops | Attack::Hampers) && !tree.has_neighbour
        };
        for tree in TREES.iter().filter(leaves_no_more) {
            for fact in ENDINGS {
                let containment = Containment::Lineage;
                let (of_tree, of_all) =
                    (promise_for(containment, fact.ending, tree), promise(containment, fact.ending));
                assert_eq!(of_tree.survivors, of_all.survivors, "{}", tree.name);
            }
        }
    }
}
