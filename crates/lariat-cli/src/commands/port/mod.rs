//! `lariat port`: who listens on a port, and the end of what a dead run left there.

mod free;
mod show;
mod users;

use std::collections::{BTreeMap, BTreeSet};

use lariat::ledger::record::RunId;
use lariat::ports::{self, Holder, HolderProcess, PortError};
use lariat::supervisor::freeing::{Life, Standing, Standpoint, life_of, runs_of, standing};

use super::up::user_dirs;
use crate::args::port::PortArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};
use users::Users;

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
        if holders.is_empty() {
            let from = Standpoint { user: lariat_sys::process::effective_user(), above: BTreeSet::new() };
            let (lives, users) = (BTreeMap::new(), Users::default());
            return Ok(Self { ports: ports.clone(), holders, from, lives, users });
        }
        let from = Standpoint::own();
        let runs = runs_of(&holders, &from).into_iter();
        let dirs = user_dirs();
        let lives = runs.map(|(run, (process, _))| (run.clone(), life_of(&run, &dirs, process))).collect();
        Ok(Self { ports: ports.clone(), holders, from, lives, users: Users::read() })
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
