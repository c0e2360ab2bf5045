//! `sweep`: what earlier runs left.

use std::path::PathBuf;

use clap::Args;

/// Find and end what earlier runs left
///
/// Of the project here or above: its last run, if that did not end by itself, and commands of `lariat run` that were
/// started in it. A run that is alive is never touched. Each process is shown with the reason why it is thought to be
/// the run's, and ended after a yes: asked at the terminal, or `--yes`.
///
/// What only may be a run's is shown as "possibly yours": daemons that work in the project and hang on nobody, who
/// listens on a port of the run, development servers of the project (`npm run dev`, `vite`, `nodemon` and so on; lariat.toml
/// can name more). Those are ended only after a yes of their own, or with `--possible`.
///
/// The exit code is 0 if nothing certain is left, and 4 otherwise.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(
    visible_alias = "cleanup",
    after_help = "\
Examples:
  lariat sweep                   what is left of this project, after a yes
  lariat sweep --dry-run         only look
  lariat sweep --all --yes       of all runs of yours on this machine, without asking
  lariat sweep --dry-run --json | jq -r '.groups[].certain[].pid'"
)]
pub(crate) struct SweepArgs {
    /// The project; without it, the nearest one, here or above
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::DirPath)]
    pub(crate) path: Option<PathBuf>,
    /// Kill at once, without grace periods
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would be ended and why, and change nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Of all runs of yours on this machine
    #[arg(short, long)]
    pub(crate) all: bool,
    /// End without asking what is certainly left
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// End without asking what is only possibly left as well
    #[arg(long)]
    pub(crate) possible: bool,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
