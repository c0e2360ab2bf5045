//! `lariat man [DIR]`.

use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::args::{Cli, ManArgs};
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Prints the page of the whole command, or writes all pages.
pub(crate) fn run(args: &ManArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let pages = pages()
        .map_err(|error| Failure::new(ExitCode::Trouble, "could not make the man pages").because(error))?;
    let Some(dir) = &args.dir else {
        output.print(pages.into_iter().next().map(|(_, page)| page).unwrap_or_default());
        return Ok(ExitCode::Done);
    };
    let trouble = |what: &Path, error: io::Error| {
        Failure::new(ExitCode::Trouble, format!("could not write {}", what.display())).because(error)
    };
    std::fs::create_dir_all(dir).map_err(|error| trouble(dir, error))?;
    for (name, page) in pages {
        let path = dir.join(&name);
        std::fs::write(&path, page).map_err(|error| trouble(&path, error))?;
        output.print(format!("{}\n", path.display()));
    }
    Ok(ExitCode::Done)
}

/// Returns the pages with their file names, that of the whole command first.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut whole = Cli::command().disable_help_subcommand(true);
    whole.build();
    let version = format!("lariat {}", whole.get_version().unwrap_or_default());
    let mut pages = vec![("lariat.1".to_owned(), page(&whole, "lariat", &version)?)];
    for verb in whole.get_subcommands() {
        let name = format!("lariat-{}", verb.get_name());
        pages.push((format!("{name}.1"), page(verb, &name, &version)?));
    }
    Ok(pages)
}

fn page(command: &clap::Command, name: &str, version: &str) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone()).title(name).source(version).manual("Lariat");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
        page.extend_from_slice(exit_status().as_bytes());
    } else if let Some(text) = command.get_after_help() {
        page.extend_from_slice(examples(&text.to_string()).as_bytes());
    }
    Ok(page)
}

/// Returns the table of exit codes as a section.
fn exit_status() -> String {
    let mut text = ".SH \"EXIT STATUS\"\n".to_owned();
    for code in ExitCode::ALL {
        text.push_str(&format!(
            ".TP\n\\fB{}\\fR\n{}.\n",
            code.number(),
            escaped(&code.meaning().replace('`', ""))
        ));
    }
    text.push_str(".PP\n\\fBlariat run\\fR ends with the exit code of its command. ");
    text.push_str("A command that died of a signal gives 128 and the signal's number; ");
    text.push_str("after INT and QUIT lariat dies of the same signal.\n");
    text
}

/// Returns what stands below the options in `--help` as a section: indented lines as they are, others as text.
fn examples(help: &str) -> String {
    let mut text = ".SH EXAMPLES\n".to_owned();
    for line in help.lines().filter(|line| *line != "Examples:") {
        match line.strip_prefix("  ") {
            Some(example) => text.push_str(&format!(".nf\n{}\n.fi\n", escaped(example))),
            None if line.is_empty() => text.push_str(".PP\n"),
            None => text.push_str(&format!("{}\n", escaped(line))),
        }
    }
    text
}

/// Returns a line that roff takes as it is.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga");
    if line.starts_with('.') { format!("\\&{line}") } else { line }
}
