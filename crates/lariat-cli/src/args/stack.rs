//! The verbs of a stack: `up`, `down`, `ps`, `logs`, `start`, `stop`, `restart`.

use std::path::PathBuf;

use clap::Args;

/// Start the stack and stay with it until it is ended
///
/// Services start in the order of their dependencies, each when those it waits for are ready. Their output is shown
/// together, each line with its service's name. Ctrl-C stops the stack in five phases and proves that nothing is left.
/// A second Ctrl-C kills what is still there.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat up              the whole stack
  lariat up web          web and what it waits for
  lariat up -d           in the background; see `lariat ps`, `lariat logs -f`, `lariat down`")]
pub(crate) struct UpArgs {
    /// Only these services and those they wait for
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
    /// Go to the background when all services are ready
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// The configuration; without it, the nearest lariat.toml or Procfile, here or above
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// End what a crashed run left without asking
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Be the supervisor of a detached run; for lariat itself
    #[arg(long, hide = true)]
    pub(crate) supervise: bool,
}

/// Stop the stack and prove that nothing is left
///
/// Five phases: ask, kill what did not go in time, end what escaped, remove containers, verify. The exit code is 0
/// only if nothing is left; what could not be ended is named with the reason, and the code is 4.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat down
  lariat down --force    without waiting for anybody to end cleanly")]
pub(crate) struct DownArgs {
    /// Kill at once, without grace periods
    #[arg(long)]
    pub(crate) force: bool,
    /// End what a crashed run left without asking
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// The report as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show the services of the run: state, readiness, pid, port, restarts, age
///
/// With `--all`, every run of yours on this machine instead: stacks and commands, where each was started, how old it is,
/// whether it is alive, and what is left of those that are not.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat ps
  lariat ps --all
  lariat ps --json | jq -r '.services[] | select(.state != \"ready\") | .name'")]
pub(crate) struct PsArgs {
    /// Every run of yours on this machine
    #[arg(short, long)]
    pub(crate) all: bool,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what services wrote
///
/// Works during a run and after it: the output of the last run is kept until the next one.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat logs                 everything of all services
  lariat logs -f api          what api writes, as it comes
  lariat logs -n 20 --time    the last 20 lines of each, with the time")]
pub(crate) struct LogsArgs {
    /// Only of these services
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
    /// Go on as more is written
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last N lines of each service
    #[arg(short = 'n', long = "lines", value_name = "N")]
    pub(crate) lines: Option<u64>,
    /// One JSON object per line, with service and time
    #[arg(long)]
    pub(crate) json: bool,
    /// The time in front of each line
    #[arg(long)]
    pub(crate) time: bool,
}

/// Start a service that is not running
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat start api")]
pub(crate) struct StartArgs {
    #[command(flatten)]
    pub(crate) order: OrderArgs,
}

/// Stop a service, gracefully, with everything it started
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat stop api")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) order: OrderArgs,
}

/// Stop a service, prove that nothing of it is left, and start it again
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat restart api")]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    pub(crate) order: OrderArgs,
}

/// What `start`, `stop` and `restart` have in common.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub(crate) struct OrderArgs {
    /// The service
    #[arg(value_name = "SERVICE")]
    pub(crate) service: String,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser, Subcommand};

    use super::*;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(subcommand)]
        verb: Verb,
    }

    #[derive(Subcommand, Debug)]
    enum Verb {
        Up(UpArgs),
        Down(DownArgs),
        Ps(PsArgs),
        Logs(LogsArgs),
        Start(StartArgs),
        Stop(StopArgs),
        Restart(RestartArgs),
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_documented_is_read() {
        let lines = [
            "up",
            "up web api -d -f x.toml --yes",
            "down --force --yes --json",
            "ps --json",
            "ps --all --json",
            "logs web -f -n 5 --json --time",
            "start web --json",
            "stop web",
            "restart web",
        ];
        for line in lines {
            let parsed = Cli::try_parse_from(std::iter::once("lariat").chain(line.split(' ')));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
        assert!(Cli::try_parse_from(["lariat", "stop"]).is_err());
    }
}
