//! Help, version, completions, man pages; what a wrong command line gets; and output that cannot be written.

mod place;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use place::{LARIAT, Place, has};

const SIGPIPE: i32 = 13;

#[test]
fn version_and_help_go_to_standard_output() {
    let place = Place::new();
    let version = format!("lariat {}\n", env!("CARGO_PKG_VERSION"));
    for flag in ["--version", "-V"] {
        assert_eq!(place.lariat([flag]).expect(0).quiet().stdout, version);
    }
    for args in
        [&["--help"][..], &["-h"], &["help"], &["help", "check"], &["check", "--help"], &["man", "-h"]]
    {
        let ran = place.lariat(args).expect(0).quiet();
        has(&ran.stdout, &["Usage: lariat"]);
        assert!(!ran.stdout.contains('\x1b'), "a file is no terminal");
    }
    has(&place.lariat(["check", "--help"]).stdout, &["Examples:\n  lariat check "]);
}

#[test]
fn a_wrong_command_line_says_what_was_meant() {
    let place = Place::new();
    let cases = [
        (&["chek"][..], "lariat: unrecognized subcommand 'chek'", "'check'"),
        (&["rn"], "lariat: unrecognized subcommand 'rn'", "'run'"),
        (&["sotp"], "lariat: unrecognized subcommand 'sotp'", "'stop'"),
        (&["port", "abc"], "lariat: invalid value 'abc'", "a port is a number from 1 to 65535"),
        (&["check", "--jsn"], "lariat: unexpected argument '--jsn' found", "'--json'"),
        (&["completions", "bsh"], "lariat: invalid value 'bsh'", "bash"),
        (&["completions"], "lariat: the following required arguments", "<SHELL>"),
        (&["check", "extra"], "lariat: unexpected argument 'extra'", "Usage: lariat check"),
    ];
    for (args, message, hint) in cases {
        let ran = place.lariat(args).expect(2);
        has(&ran.stderr, &[message, hint]);
        assert_eq!(ran.stdout, "");
    }
    let ran = place.lariat([] as [&str; 0]).expect(2);
    has(&ran.stderr, &["Usage: lariat", "check", "init"]);
    let odd = OsStr::from_bytes(b"\xff\xfe");
    place.lariat([odd]).expect(2);
    place.lariat([OsStr::new("check"), odd]).expect(2);
}

#[test]
fn completions_are_made_for_every_shell() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = place.lariat(["completions", shell]).expect(0).quiet();
        has(&ran.stdout, &["lariat", "check", "completions"]);
    }
    place.script("\"$@\" > out && bash -n out", &["completions", "bash"]).expect(0).quiet();
}

#[test]
fn man_pages() {
    let place = Place::new();
    let ran = place.lariat(["man"]).expect(0).quiet();
    has(&ran.stdout, &[".TH lariat 1", "EXIT STATUS", "A live run is in the way", "lariat\\-check(1)"]);
    let ran = place.lariat(["man", "deep/man1"]).expect(0).quiet();
    has(&ran.stdout, &["deep/man1/lariat.1\n", "deep/man1/lariat-check.1\n"]);
    has(
        &place.read("deep/man1/lariat-check.1"),
        &[".TH lariat-check 1", ".SH EXAMPLES", "lariat check \\-f"],
    );
    place.lariat(["man", "deep/man1"]).expect(0).quiet();
    place.write("file", "");
    let ran = place.lariat(["man", "file/man1"]).expect(9);
    has(&ran.stderr, &["lariat: could not write file/man1\n  because "]);
}

#[test]
fn a_reader_that_went_away_ends_the_output_quietly() {
    let place = Place::new();
    // As for every other program: the kernel's signal, inherited as a shell gives it.
    let mut command = Command::new(LARIAT);
    command.args(["completions", "bash"]);
    let ran = place.run_unread(command).quiet();
    assert_eq!(ran.signal, Some(SIGPIPE), "{ran:?}");

    // Where a caller ignores the signal, the write fails instead, which is no failure of the command.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' PIPE; exec \"$@\"", "sh", LARIAT, "completions", "bash"]);
    place.run_unread(command).expect(0).quiet();

    place.write("lariat.toml", "[service.web]\n");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' PIPE; exec \"$@\"", "sh", LARIAT, "check"]);
    place.run_unread(command).expect(3).quiet();

    let ran = place.script("\"$@\" | head -n 1", &["completions", "bash"]).expect(0).quiet();
    assert_eq!(ran.stdout.lines().count(), 1);
}

#[test]
fn output_that_cannot_be_written_is_trouble() {
    let place = Place::new();
    for args in [&["completions", "bash"][..], &["--help"], &["man"]] {
        let ran = place.script("exec \"$@\" > /dev/full", args).expect(9);
        has(&ran.stderr, &["lariat: could not write to standard output\n  because "]);
    }
}

#[test]
fn closed_descriptors_are_no_trouble() {
    let place = Place::new();
    place.script("exec \"$@\" <&- >&- 2>&-", &["--version"]).expect(0);
    place.script("exec \"$@\" 2>&-", &["nonsense"]).expect(2);
}
