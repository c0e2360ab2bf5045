//! How one process of a fixture lives: what it does about signals until it ends.

use crate::args::Args;
use crate::facts::Facts;
use crate::sys;

/// The signals that ask a process to end.
const POLITE: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// What a process does about the polite signals.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Dies of them.
    Plain,
    /// Ignores them.
    Stubborn,
    /// Works for some milliseconds, writes `clean-ROLE`, exits 0.
    Graceful,
}

/// One process's part.
#[derive(Clone)]
pub(crate) struct Part {
    manner: Manner,
    pub(crate) facts: Facts,
    pub(crate) until: u64,
    /// How long a graceful one works, in milliseconds.
    work: u64,
    /// What it exits with when it gets SIGUSR1, the test's word for "leave by yourself now".
    code: i32,
}

impl Part {
    /// Takes the part from the command line: `--manner plain|stubborn|graceful`, `--ms N`, `--code N`.
    pub(crate) fn of(args: &Args) -> Self {
        let manner = match args.text("manner", "plain") {
            "stubborn" => Manner::Stubborn,
            "graceful" => Manner::Graceful,
            _ => Manner::Plain,
        };
        let (work, code) = (args.number("ms", 50), args.number("code", 7));
        Self { manner, facts: Facts::of(args), until: args.until, work, code }
    }

    /// Sets the signals up. From here on the process behaves as its manner says.
    pub(crate) fn prepare(&self) {
        sys::default(libc::SIGPIPE);
        for signal in POLITE {
            if self.manner == Manner::Stubborn { sys::ignore(signal) } else { sys::default(signal) }
        }
        sys::block(self.waited_for());
    }

    /// Returns the signals this part waits for; [`Part::prepare`] has blocked them.
    pub(crate) fn waited_for(&self) -> &'static [i32] {
        match self.manner {
            Manner::Graceful => &[libc::SIGUSR1, libc::SIGTERM, libc::SIGINT, libc::SIGHUP],
            Manner::Plain | Manner::Stubborn => &[libc::SIGUSR1],
        }
    }

    /// Lives until a signal ends it. SIGUSR1 means: exit now with the code that was asked for.
    pub(crate) fn live(&self, role: &str) -> ! {
        match sys::wait_signal_from(self.waited_for(), None) {
            Some((libc::SIGUSR1, _)) => sys::exit_now(self.code),
            Some(heard) => self.end_gracefully(role, heard),
            None => sys::broken("could not wait for a signal"),
        }
    }

    fn end_gracefully(&self, role: &str, first: (i32, i32)) -> ! {
        let name = format!("told-{role}-{}", sys::pid());
        let line = |(signal, sender): (i32, i32)| format!("{signal} from {sender}\n");
        let mut told = line(first);
        self.facts.state(&name, &told);
        let done_at = sys::now() + self.work * 1_000_000;
        while let Some(heard) = sys::wait_signal_from(self.waited_for(), Some(done_at)) {
            told.push_str(&line(heard));
            self.facts.state(&name, &told);
        }
        self.facts.state(&format!("clean-{role}"), "");
        sys::exit_now(0)
    }
}
