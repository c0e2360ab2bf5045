//! `run`: one command in front of somebody's every command, so parsed by hand where that is certain.
//!
//! Building and asking clap costs a fresh process a quarter of a millisecond (measured), which is a good part of what
//! `lariat run -- true` may take at all. [`parse`] costs a microsecond. It reads what nearly everybody types and
//! leaves all else (mistakes, `--help`) to clap, whose definition is [`RunArgs`]. A test feeds both the same lines and
//! compares.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::Args;
use lariat::service::spec::Cpu;
use lariat_sys::signal::Signal;

/// Run one command; when it or lariat ends, everything it started is gone
///
/// The command is run as if lariat were not there: same terminal, same input and output, Ctrl-C and Ctrl-Z as usual,
/// and its exit code is lariat's. When it ends, whatever it left running gets the stop signal, the grace period, then
/// KILL. The same happens when lariat is ended, by whatever means.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat run npm test                         nothing that the tests started outlives them
  lariat run --grace 2s -- ./server --port 0  what follows `--` is the command's own
  lariat run --memory 2GiB -- npm run build   with more, the kernel ends the whole build
  lariat run --lifeline -- ./helper           from a program that holds the pipe

The exit code is the command's; 128 + n after signal n, 125 for trouble of lariat's own, 126 and 127 as in a shell.")]
pub(crate) struct RunArgs {
    /// How long the members have to end after the stop signal [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = grace)]
    pub(crate) grace: Option<Duration>,
    /// The stop signal [default: TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = signal)]
    pub(crate) signal: Option<Signal>,
    /// End everything when standard input closes or the caller dies; the command gets /dev/null
    #[arg(long)]
    pub(crate) lifeline: bool,
    /// End everything when the process that started lariat dies
    #[arg(long)]
    pub(crate) die_with_parent: bool,
    /// Run the command in a pid namespace: the kernel ends everything with its keeper
    #[arg(long)]
    pub(crate) isolate: bool,
    /// Most memory of the command and all that it starts (`512MiB`); over it, the kernel ends them all
    #[arg(long, value_name = "SIZE", value_parser = lariat_config::parse_memory)]
    pub(crate) memory: Option<u64>,
    /// Most processes and threads of them at a time; a fork beyond is refused
    #[arg(long, value_name = "COUNT", alias = "pids-limit", value_parser = lariat_config::parse_processes)]
    pub(crate) processes: Option<u32>,
    /// Most processors that they may use (`1.5`); whoever needs more waits
    #[arg(long, value_name = "CPUS", alias = "cpus", value_parser = lariat_config::parse_cpu)]
    pub(crate) cpu: Option<Cpu>,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    #[arg(value_hint = clap::ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// Reads what follows `run`. `None` leaves it to clap.
pub(crate) fn parse(args: &[OsString]) -> Option<RunArgs> {
    let mut found = RunArgs {
        grace: None,
        signal: None,
        lifeline: false,
        die_with_parent: false,
        isolate: false,
        memory: None,
        processes: None,
        cpu: None,
        command: Vec::new(),
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            found.command = args.cloned().collect();
            break;
        }
        if !bytes.starts_with(b"-") {
            found.command = std::iter::once(arg).chain(args).cloned().collect();
            break;
        }
        let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
            None => (bytes, None),
        };
        match (name, value) {
            (b"--lifeline", None) if !found.lifeline => found.lifeline = true,
            (b"--die-with-parent", None) if !found.die_with_parent => found.die_with_parent = true,
            (b"--isolate", None) if !found.isolate => found.isolate = true,
            (b"--grace", value) if found.grace.is_none() => {
                found.grace =
                    Some(grace(text(value.or_else(|| args.next().map(OsString::as_os_str))?)?).ok()?);
            }
            (b"--signal", value) if found.signal.is_none() => {
                found.signal =
                    Some(signal(text(value.or_else(|| args.next().map(OsString::as_os_str))?)?).ok()?);
            }
            _ => return None,
        }
    }
    (!found.command.is_empty()).then_some(found)
}

/// Returns an option's value as text, unless clap might take it for something else.
fn text(value: &OsStr) -> Option<&str> {
    value.to_str().filter(|value| !value.is_empty() && !value.starts_with('-'))
}

fn grace(text: &str) -> Result<Duration, String> {
    // Zero is refused in a file, where it is a mistake; here it is typed by somebody who wants no grace period.
    if matches!(text, "0" | "0s" | "0ms") { Ok(Duration::ZERO) } else { lariat_config::parse_duration(text) }
}

fn signal(text: &str) -> Result<Signal, String> {
    let signal: Signal = text.parse().map_err(|_| "no such signal".to_owned())?;
    if signal == Signal::KILL || signal == Signal::STOP {
        return Err(format!("{signal} cannot be caught, so nothing could end cleanly"));
    }
    Ok(signal)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use clap::{CommandFactory, Parser};
    use proptest::prelude::*;

    use super::*;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(subcommand)]
        verb: Verb,
        #[arg(long, global = true)]
        no_color: bool,
    }

    #[derive(clap::Subcommand, Debug)]
    enum Verb {
        Run(RunArgs),
    }

    fn by_clap(args: &[OsString]) -> Option<RunArgs> {
        let line = ["lariat", "run"].into_iter().map(OsString::from).chain(args.iter().cloned());
        let Verb::Run(args) = Cli::try_parse_from(line).ok()?.verb;
        Some(args)
    }

    fn line(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_people_type_is_read_without_clap() {
        let lines = [
            "true",
            "-- true",
            "npm test",
            "ls -la --color",
            "-- -odd name",
            "x -- y -- z",
            "--grace 2s --signal INT -- x",
            "--grace=500ms --signal=sigint x --grace",
            "--lifeline --die-with-parent -- x",
            "--isolate --grace 1s x --isolate",
        ];
        for text in lines {
            let args = line(text);
            let fast = parse(&args);
            assert!(fast.is_some(), "{text}");
            assert_eq!(fast, by_clap(&args), "{text}");
        }
    }

    #[test]
    fn what_is_odd_is_left_to_clap() {
        for text in [
            "",
            "--",
            "--help",
            "-h x",
            "--no-color x",
            "--grace x",
            "--grace",
            "--grace 10 x",
            "--signal KILL x",
            "--lifeline --lifeline x",
            "--isolate --isolate x",
            "--isolate=1 x",
            "--memory 512MiB x",
            "--processes=5 x",
            "- x",
        ] {
            assert_eq!(parse(&line(text)), None, "{text}");
        }
    }

    /// Returns a word that one of the two might see otherwise than the other.
    fn word() -> impl Strategy<Value = OsString> {
        let known = [
            "--",
            "--grace",
            "--signal",
            "--grace=2s",
            "--signal=INT",
            "--lifeline",
            "--die-with-parent",
            "--isolate",
            "2s",
            "INT",
            "-x",
            "-",
            "",
            "--no-color",
            "--help",
            "--grace=",
            "--signal=9",
            "--lifeline=1",
            "--grac",
            "--grace=-1s",
            "cmd",
            "run",
            "a b",
            "--x=y",
            "é",
        ];
        prop_oneof![
            8 => prop::sample::select(known.map(OsString::from).to_vec()),
            1 => prop::collection::vec(1_u8.., 0..4).prop_map(OsString::from_vec),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn both_agree(args in prop::collection::vec(word(), 0..7)) {
            if let Some(fast) = parse(&args) {
                prop_assert_eq!(Some(fast), by_clap(&args));
            }
        }
    }
}
