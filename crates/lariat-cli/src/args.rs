//! The command line as it is typed: names, help and examples, nothing that it leads to.
//!
//! Help, man pages and completions are made from these types. A verb is here when its command is: `run` and the verbs
//! of a stack have their files below, each hooked up with one line in [`Command`].

pub(crate) mod doctor;
pub(crate) mod port;
pub(crate) mod run;
pub(crate) mod stack;
pub(crate) mod sweep;

use std::path::PathBuf;

use anstyle::AnsiColor;
use clap::builder::Styles;
use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default())
    .error(AnsiColor::Red.on_default().bold())
    .valid(AnsiColor::Cyan.on_default().bold())
    .invalid(AnsiColor::Yellow.on_default().bold());

const ABOUT: &str = "Starts programs, and ends them with everything they started";

const LONG_ABOUT: &str = "\
Starts programs, and ends them with everything they started.

Whatever was started under lariat is gone when lariat says so, and it is gone when lariat itself dies, at whatever \
moment and by whatever signal. Every stop is graceful first, bounded in time, and proven: the kernel says that nothing \
is left.";

const AFTER_HELP: &str = "\
`lariat help VERB` says more about each one.
Exit codes have a table in the man page: `lariat man | man -l -`.";

/// The whole command line.
#[derive(Parser, Clone, PartialEq, Eq, Debug)]
#[command(
    name = "lariat", version, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER_HELP, styles = STYLES,
    max_term_width = 100, arg_required_else_help = true, subcommand_required = true,
    disable_help_subcommand = false
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// No colours; NO_COLOR in the environment does the same
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

/// Adds the verb that was probably meant to an error that names none. The similarity that clap goes by finds no `run` in
/// `rn`: it looks for no letter in another place of a word as short as that.
pub(crate) fn suggest(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(written)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    if error.get(ContextKind::SuggestedSubcommand).is_none() {
        let command = Cli::command();
        let verbs = command
            .get_subcommands()
            .flat_map(|verb| std::iter::once(verb.get_name()).chain(verb.get_all_aliases()));
        if let Some(verb) = lariat_config::nearest(written, verbs) {
            let verb = ContextValue::Strings(vec![verb.to_owned()]);
            error.insert(ContextKind::SuggestedSubcommand, verb);
        }
    }
    error
}

/// What is to be done.
#[derive(Subcommand, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Run(run::RunArgs),
    Up(stack::UpArgs),
    Down(stack::DownArgs),
    Ps(stack::PsArgs),
    Sweep(sweep::SweepArgs),
    Logs(stack::LogsArgs),
    Start(stack::StartArgs),
    Stop(stack::StopArgs),
    Restart(stack::RestartArgs),
    Port(port::PortArgs),
    Check(CheckArgs),
    Doctor(doctor::DoctorArgs),
    Init(InitArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Look whether the configuration is good, without starting anything
///
/// Shows every error at once, each with its place, the reason and what to write instead, and warnings about what
/// works but was probably not meant. The exit code is 3 when there is an error; warnings leave it at 0.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat check                    the nearest lariat.toml or Procfile, here or above
  lariat check -f ci/lariat.toml  this one
  lariat check --json | jq -r '.diagnostics[] | \"\\(.file):\\(.line): \\(.message)\"'")]
pub(crate) struct CheckArgs {
    /// The configuration; without it, the nearest lariat.toml or Procfile, here or above
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// One JSON object, with line and column of each place
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write a lariat.toml for this directory
///
/// What is here already decides what goes in: the lines of a Procfile, the `dev` or `start` script of a package.json,
/// a manage.py; otherwise an example that runs anywhere. Comments explain every key. A lariat.toml that is here
/// already is never touched.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat init && lariat check && lariat up")]
pub(crate) struct InitArgs {}

/// Print a script that completes lariat's arguments in a shell
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat completions bash > ~/.local/share/bash-completion/completions/lariat
  lariat completions zsh  > ~/.zfunc/_lariat        with `fpath+=~/.zfunc` in ~/.zshrc, before `compinit`
  lariat completions fish > ~/.config/fish/completions/lariat.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

/// Print the man page, or write all of them into a directory
///
/// Without a directory, lariat(1) goes to standard output. With one, lariat.1 and a page for each verb are written
/// into it; the directory is made if it is not there, and pages of lariat's that are there are replaced.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat man | man -l -
  lariat man ~/.local/share/man/man1 && man lariat-check")]
pub(crate) struct ManArgs {
    /// Where to write the pages
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_help_with_an_example_or_nothing_to_show() {
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
            assert!(verb.get_after_help().is_some(), "{}", verb.get_name());
            for argument in verb.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", verb.get_name(), argument.get_id());
            }
        }
    }
}
