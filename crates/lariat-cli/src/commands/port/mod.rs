//! `lariat port`: who listens on a port, and the end of what a dead run left there.

mod free;
mod show;

use std::collections::{BTreeMap, BTreeSet};

use lariat::ledger::record::RunId;
use lariat::ports::{self, Holder, HolderProcess, PortError};
use lariat::supervisor::freeing::{Life, Standing, Standpoint, life_of, runs_of, standing};

use super::up::user_dirs;
use super::users::Users;
use crate::args::port::PortArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Shows who listens on the ports; with `--free`, ends what may be ended.
pub(crate) fn run(args: &PortArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let ports: BTreeSet<u16> = args.ports.iter().copied().collect();
    let found = Found::look(&ports)?;
    if args.free {
        return free::run(args, found, output);
    }
    if args.json {
        output.print_json(&show::json(&found, &[]))?;
    } else {
        output.print(show::text(&found, output.is_out_styled()));
    }
    Ok(if found.holders.is_empty() { ExitCode::Done } else { ExitCode::PortInUse })
}

/// Who was found on the ports, and what is known of their runs.
struct Found {
    ports: BTreeSet<u16>,
    holders: Vec<Holder>,
    from: Standpoint,
    lives: BTreeMap<RunId, Life>,
    users: Users,
}

impl Found {
    fn look(ports: &BTreeSet<u16>) -> Result<Self, Failure> {
        let holders = ports::explain(ports).map_err(|error| unknown(&error))?;
        // Who we are counts only where somebody else is; for the plainest question it is not worth the time.
        let (mut from, mut lives) = (Standpoint::of_user(), BTreeMap::new());
        if !runs_of(&holders, &from).is_empty() {
            from = Standpoint::own();
            let dirs = user_dirs();
            let runs = runs_of(&holders, &from).into_iter();
            let life = |(run, (process, _)): (RunId, (&HolderProcess, _))| {
                let named = process.mark.as_ref().and_then(|mark| mark.supervisor);
                (run.clone(), life_of(&run, &dirs, process.identity, named))
            };
            lives = runs.map(life).collect();
        }
        let users = if holders.is_empty() { Users::default() } else { Users::read() };
        Ok(Self { ports: ports.clone(), holders, from, lives, users })
    }

    fn standing(&self, process: &HolderProcess) -> Standing {
        standing(process, &self.from)
    }

    /// Returns the run of a process and what is known of it, if its mark may be believed.
    fn life(&self, process: &HolderProcess) -> Option<(&RunId, &Life)> {
        match self.standing(process) {
            Standing::Marked { run, .. } => self.lives.get_key_value(&run),
            _ => None,
        }
    }

    fn on(&self, port: u16) -> impl Iterator<Item = &Holder> {
        self.holders.iter().filter(move |holder| holder.addr.port() == port)
    }
}

/// Says that the kernel does not name listeners.
fn unknown(error: &PortError) -> Failure {
    Failure::new(ExitCode::Trouble, error.to_string())
}
