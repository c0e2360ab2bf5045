//! The hostile trees, as a table: what each is, who builds it, and what it needs.

use crate::member::{self, Part};

/// Who attacks lariat itself in a tree, once it is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Nobody.
    None,
    /// A member stops keeper and supervisor, or hampers them.
    Stops,
    /// A member hampers the keeper, or says or removes what lariat goes by; the supervisor goes on.
    Hampers,
    /// A member kills the keeper.
    Keeper,
    /// A member holds the keeper as a debugger does, as long as it lives itself.
    Holds,
    /// A member kills the supervisor.
    Supervisor,
    /// A member kills both in one go: as if every process of lariat had been killed.
    All,
}

impl Attack {
    /// Says whether lariat lives on, so that nothing may be alive once it has exited.
    pub(crate) fn leaves_witness(self) -> bool {
        matches!(self, Self::None | Self::Hampers)
    }
}

/// One hostile tree.
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    /// Its name on the command line and in the matrix.
    pub name: &'static str,
    /// What it is, as the end of the sentence "this tree is …".
    pub what: &'static str,
    /// Builds it in the leader's process.
    pub(crate) build: fn(&Part) -> !,
    /// Whether its members end when they are told, so that the grace period may be long. Otherwise it has to run out.
    pub is_cooperative: bool,
    /// Whether its leader can leave and crash on demand.
    pub(crate) leader_obeys: bool,
    /// Whether it is among those of `--quick`.
    pub is_quick: bool,
    /// Whether a stack runs it as well.
    pub is_for_stacks: bool,
    /// Who attacks lariat.
    pub attack: Attack,
    /// Whether its leader took back the signal by which it hears of its keeper's death.
    pub is_deaf_to_death: bool,
    /// Whether one of its members goes to somebody else's pid namespace, out of descent.
    pub has_neighbour: bool,
}

const fn tree(name: &'static str, what: &'static str, build: fn(&Part) -> !) -> Tree {
    Tree {
        name,
        what,
        build,
        is_cooperative: true,
        leader_obeys: true,
        is_quick: false,
        is_for_stacks: false,
        attack: Attack::None,
        is_deaf_to_death: false,
        has_neighbour: false,
    }
}

impl Tree {
    /// Says whether members of it carry nothing by which they are surely found once every process of lariat is dead. Root
    /// sees the environment of those whose files are root's, and what a process of another user has in it proves nothing.
    #[must_use]
    pub fn hides_from_sweep(&self) -> bool {
        match self.name {
            "disguised" | "unmarked" | "other-user" => true,
            "undumpable" => lariat_sys::process::effective_user() != 0,
            _ => false,
        }
    }

    const fn deaf(self) -> Self {
        Self { is_cooperative: false, ..self }
    }

    const fn quick(self) -> Self {
        Self { is_quick: true, ..self }
    }

    const fn stacks(self) -> Self {
        Self { is_for_stacks: true, ..self }
    }

    const fn deaf_to_death(self) -> Self {
        Self { is_deaf_to_death: true, ..self }
    }

    const fn beside_a_neighbour(self) -> Self {
        Self { has_neighbour: true, ..self }
    }

    const fn attacks(self, attack: Attack) -> Self {
        Self { attack, is_cooperative: false, ..self }
    }
}

/// Every tree, in the order of the matrix.
pub const TREES: &[Tree] = &[
    tree("alone", "the leader alone", member::alone).quick(),
    tree("child", "a leader and a child", member::child),
    tree("own-group", "a child in a process group of its own", member::own_group),
    tree("new-session", "a child in a session of its own", member::new_session),
    tree("daemon", "a daemon: forked twice, session of its own", member::daemon).quick().stacks(),
    tree("disguised", "a daemon without environment, descriptors and name, in /", member::disguised)
        .quick()
        .stacks(),
    tree("unmarked", "a daemon without the run's mark, in the project", member::unmarked).stacks(),
    tree("closed", "a child that has closed every descriptor", member::closed),
    tree("undumpable", "a daemon whose files in /proc are root's", member::undumpable).quick().stacks(),
    tree("other-user", "a daemon that has become another user", member::other_user).stacks(),
    tree("odd-name", "a daemon whose name forges /proc/PID/stat", member::odd_name),
    tree("impostor", "a daemon that calls itself a keeper, and its child", member::impostor).deaf().stacks(),
    tree("deleted", "a child whose executable was removed", member::deleted),
    tree("stopped", "a child that was stopped", member::stopped_member).quick(),
    tree("stopped-leader", "a leader that was stopped", member::stopped_leader),
    tree("held-down", "a child that another one stops again and again", member::held_down).deaf(),
    tree("traced", "a child that a sibling traces and holds", member::traced).deaf(),
    tree("stubborn", "a leader and a child that ignore TERM, INT, HUP, QUIT", member::stubborn)
        .deaf()
        .quick()
        .stacks(),
    tree("blocked", "a leader and a child that block every signal", member::blocked).deaf(),
    tree("shell", "a child that ignores TERM and ends on HUP", member::shell).quick(),
    tree("ports", "a holder of TCP v4 and v6, UDP and a unix socket", member::ports).quick().stacks(),
    tree("shared-port", "a listening socket shared by three forks", member::shared_listener),
    tree("pipe-holder", "a daemon that keeps standard output open", member::pipe_holder),
    tree("thread-child", "a child of a thread that is not the main one", member::thread_fork),
    tree("headless", "a daemon whose main thread has ended", member::headless).quick().stacks(),
    tree("thread-exec", "a leader that a thread of it has replaced", member::thread_exec)
        .stacks()
        .deaf_to_death(),
    tree("vfork", "a parent that sleeps in the kernel for its child", member::vfork),
    tree("sibling", "children made siblings of their makers, one the keeper's own", member::sibling).quick(),
    tree("subreaper", "a subreaper inside, with daemons below it", member::subreaper).stacks(),
    tree("shared-memory", "processes that share one memory", member::shared_memory),
    tree("silent", "children whose end sends no signal", member::silent).quick(),
    tree("odd-signal", "children whose end sends URG, not CHLD", member::odd_signal),
    tree("unwaited", "a parent that ignores CHLD", member::unwaited),
    tree("zombies", "a parent of fifty zombies that it never collects", member::zombies),
    tree("parent-death", "a leader without its parent-death signal", member::parent_death)
        .stacks()
        .deaf_to_death(),
    tree("group-thief", "a child that moves between process groups", member::group_thief),
    tree("nested", "lariat in lariat, with a daemon inside", member::nested).quick(),
    tree("namespace", "a user and pid namespace made by a member", member::namespace).stacks(),
    tree("joined", "a daemon in a pid namespace of somebody else's", member::joined)
        .beside_a_neighbour()
        .stacks(),
    tree("sub-cgroup", "a daemon in a cgroup that it made, three below", member::sub_cgroup).stacks(),
    tree("moved-away", "a daemon that has left lariat's cgroup", member::moved_away).stacks(),
    tree("frozen", "a child in a cgroup that its leader has frozen", member::frozen).deaf().quick().stacks(),
    tree("half-frozen", "a daemon one of whose threads is frozen", member::half_frozen),
    tree("terminal", "a session on a terminal of its own, with a job", member::terminal_job),
    tree("tty-stopped", "a background job that its terminal has stopped", member::terminal_stopped),
    tree("deep", "a chain of 200 processes", member::deep),
    tree("wide", "300 children", member::wide),
    tree("burners", "four that use all of the processor", member::burners),
    tree("idle", "one that runs only when nobody else wants to", member::idle).deaf(),
    tree("real-time", "one that runs before everybody else, deaf", member::real_time).deaf(),
    tree("executor", "a child that executes itself again and again", member::executor),
    tree("late-daemon", "a leader that leaves a daemon when told", member::late_daemon).quick().stacks(),
    tree("late-fork", "a leader that forks when told; the child ignores TERM", member::late_fork).deaf(),
    tree("multiplying", "a leader that forks three when told, twice over", member::multiplying),
    tree("guardian", "a daemon that restarts its leader", member::guardian).quick().stacks(),
    tree("phoenix", "two that restart one another, deaf", member::phoenix).deaf().quick().stacks(),
    tree("runner", "one that forks and exits, for ever", member::runner),
    tree("sessions", "four of these, each generation in a new session", member::session_runners)
        .quick()
        .stacks(),
    tree("storm", "a storm of forks into new sessions, deaf", member::storm).deaf().quick().stacks(),
    tree("bomb", "a bomb of 256 processes, deaf", member::bomb).deaf(),
    tree("churn", "20,000 short lives, as fast as can be", member::churn).deaf(),
    tree("thief", "a daemon that holds all descriptors of lariat", member::thief).stacks(),
    tree("floods", "a member that floods lariat with real-time signals", member::floods).deaf(),
    tree("stops-lariat", "a member that stops keeper and supervisor", member::stops_both)
        .attacks(Attack::Stops)
        .stacks(),
    tree("stops-keeper", "a member that stops its keeper once", member::stops_keeper)
        .attacks(Attack::Hampers)
        .quick()
        .stacks(),
    tree("limits-lariat", "a member that forbids lariat files and forks", member::limits_lariat)
        .attacks(Attack::Stops)
        .stacks(),
    tree("starves-lariat", "a member that makes lariat the last to run", member::starves_lariat)
        .attacks(Attack::Stops),
    tree("traces-keeper", "a member that holds its keeper as a debugger", member::traces_keeper)
        .attacks(Attack::Holds)
        .stacks(),
    tree("false-words", "members that say their keeper's last words", member::false_words)
        .attacks(Attack::Hampers)
        .stacks(),
    tree("removes-ledger", "a member that removes what lariat remembers", member::removes_ledger)
        .attacks(Attack::Hampers)
        .stacks(),
    tree("kills-keeper", "a member that kills its keeper", member::kills_keeper).attacks(Attack::Keeper),
    tree("kills-lariat", "a member that kills the supervisor", member::kills_supervisor)
        .attacks(Attack::Supervisor),
    tree("kills-all", "a member that kills keeper and supervisor", member::kills_both).attacks(Attack::All),
];

/// Finds a tree by its name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Tree> {
    TREES.iter().find(|tree| tree.name == name)
}
