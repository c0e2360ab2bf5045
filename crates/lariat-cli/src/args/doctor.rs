//! `doctor`: what this machine can guarantee, and the proof.

use std::path::PathBuf;

use clap::Args;

/// Say what this machine can guarantee, or prove it with a drill
///
/// Without options: which containments there are here and why not the others, what each ending of lariat leads to under
/// them, what the kernel offers, limits and directories, and what to do about what is missing. The exit code is 0 when
/// lariat can do its work.
///
/// With `--drill`: builds hostile process trees on this machine, ends lariat in every way it can end, and prints what was
/// left of each tree after each ending. The exit code is 4 when anything is left that the table does not declare. All of
/// it happens in temporary directories and on loopback; runs of yours are neither seen nor touched.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat doctor
  lariat doctor --drill --quick                       in a few seconds
  lariat doctor --drill                               everything, in some minutes
  lariat doctor --drill daemon storm --ending killed  two trees under one ending")]
pub(crate) struct DoctorArgs {
    /// Build hostile trees, end lariat in every way, and show what is left
    #[arg(long)]
    pub(crate) drill: bool,
    /// Only the trees and endings that differ most
    #[arg(long, requires = "drill")]
    pub(crate) quick: bool,
    /// Only under this ending; may be given several times
    #[arg(long = "ending", value_name = "ENDING", requires = "drill")]
    pub(crate) endings: Vec<String>,
    /// Only under this containment; may be given several times
    #[arg(long = "containment", value_name = "NAME", requires = "drill")]
    pub(crate) containments: Vec<String>,
    /// Choose the moments of the endings; a finding names the seed it came with
    #[arg(long, value_name = "NUMBER", requires = "drill")]
    pub(crate) seed: Option<u64>,
    /// Do everything that often, with other moments each time [default: 1]
    #[arg(long, value_name = "TIMES", requires = "drill")]
    pub(crate) repeat: Option<u64>,
    /// Show the names of trees and endings
    #[arg(long, requires = "drill")]
    pub(crate) list: bool,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// A program that is drilled in lariat's place, for tests of the drill itself
    #[arg(long, value_name = "PROGRAM", requires = "drill", hide = true)]
    pub(crate) subject: Option<PathBuf>,
    /// Only these trees
    #[arg(value_name = "TREE", requires = "drill")]
    pub(crate) trees: Vec<String>,
}
