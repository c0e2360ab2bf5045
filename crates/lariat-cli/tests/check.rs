//! `lariat check`.

mod place;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use place::{LARIAT, Place, has};

const GOOD: &str = "\
[service.db]
run   = \"postgres -D data\"
ready = { tcp = 5432 }

[service.web]
run   = [\"npm\", \"start\"]
port  = \"auto\"
after = { db = \"ready\" }
";

const BAD: &str = "[service.wéb]\n[service.db]\nrun = \"ü\"\nprot = 5432\n";

#[test]
fn a_good_file_is_summed_up() {
    let place = Place::new();
    place.write("lariat.toml", GOOD);
    let ran = place.lariat(["check"]).expect(0).quiet();
    let lines = "\
lariat.toml is good: 2 services
  db   postgres -D data
  web  npm start  (a free port; after db ready)
";
    assert_eq!(ran.stdout, lines);
}

#[test]
fn a_bad_file_is_shown_with_place_caret_and_suggestion() {
    let place = Place::new();
    place.write("lariat.toml", "[service.db]\nrun  = \"postgres\"\nprot = 5432\n");
    let ran = place.lariat(["check"]).expect(3).quiet();
    let text = "\
error[unknown-key]: unknown key `prot` in `[service.db]`
 --> lariat.toml:3:1
  |
3 | prot = 5432
  | ^^^^ unknown key
  |
help: a key with a similar name exists
  |
3 - prot = 5432
3 + port = 5432
  |

lariat.toml: 1 error
";
    assert_eq!(ran.stdout, text);
}

#[test]
fn warnings_leave_the_exit_code_alone() {
    let place = Place::new();
    place.write("Procfile", "web: npm start --port $PORT\n");
    let ran = place.lariat(["check"]).expect(0).quiet();
    has(&ran.stdout, &["warning[port]", "Procfile:1:6", "Procfile is good: 1 service, 1 warning"]);
}

#[test]
fn json_has_places_in_lines_and_characters() {
    let place = Place::new();
    place.write("lariat.toml", BAD);
    let ran = place.lariat(["check", "--json"]).expect(3).quiet();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&report["is_good"], &report["file"]), (&false.into(), &"lariat.toml".into()));
    assert!(report.get("stack").is_none());
    let found = report["diagnostics"].as_array().expect("a list");
    let codes: Vec<_> = found.iter().map(|d| d["code"].as_str().unwrap_or_default()).collect();
    assert_eq!(codes, ["syntax"], "é is no bare key");

    place.write(
        "lariat.toml",
        "# é\n[service.db]\nrun = \"ü\"\nenv = { É = \"é\", \"É=\" = \"x\" }\n".replace("É =", "E ="),
    );
    let ran = place.lariat(["check", "--json"]).expect(3).quiet();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let place_of =
        |d: &serde_json::Value| ["line", "column", "end_line", "end_column"].map(|key| d[key].as_u64());
    assert_eq!(place_of(&report["diagnostics"][0]), [Some(4), Some(18), Some(4), Some(22)]);
}

#[test]
fn json_of_a_good_file_says_what_it_defines() {
    let place = Place::new();
    place.write("lariat.toml", GOOD);
    let ran = place.lariat(["check", "--json"]).expect(0).quiet();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(report["stack"]["root"].as_str(), place.work().to_str());
    let web = &report["stack"]["services"][1];
    assert_eq!((web["port"].as_str(), web["after"]["db"].as_str()), (Some("auto"), Some("ready")));
    assert_eq!(report["diagnostics"], serde_json::json!([]));
}

#[test]
fn json_has_the_fix() {
    let place = Place::new();
    place.write("lariat.toml", "[service.db]\nrun = \"x\"\nprot = 1\n");
    let ran = place.lariat(["check", "--json"]).expect(3);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let fix = &report["diagnostics"][0]["fix"];
    assert_eq!(
        (fix["line"].as_u64(), fix["end_column"].as_u64(), fix["replacement"].as_str()),
        (Some(3), Some(5), Some("port"))
    );
}

#[test]
fn the_nearest_file_upward_is_taken() {
    let place = Place::new();
    place.write("Procfile", "web: npm start\n");
    place.write("deep/down/here", "");
    let mut command = Command::new(LARIAT);
    command.arg("check").current_dir(place.work().join("deep/down"));
    let ran = place.run(command).expect(0);
    let file = place.work().join("Procfile");
    has(&ran.stdout, &[&format!("{} is good: 1 service", file.display())]);
}

#[test]
fn a_wrong_file_is_said_so() {
    let place = Place::new();
    let ran = place.lariat(["check"]).expect(3);
    has(
        &ran.stderr,
        &["lariat: there is no lariat.toml or Procfile in ", "hint: write one with `lariat init`"],
    );
    assert_eq!(ran.stdout, "");

    let ran = place.lariat(["check", "-f", "no.toml"]).expect(3);
    has(&ran.stdout, &["error[unreadable]: cannot read no.toml: there is no such file or directory"]);
    let ran = place.lariat(["check", "-f", "."]).expect(3);
    has(&ran.stdout, &["cannot read .: it is a directory"]);
    let ran = place.lariat(["check", "-f", "x.yaml"]).expect(3);
    has(&ran.stdout, &["error[format]: the format of x.yaml is not read"]);
    place.write("empty.toml", "");
    let ran = place.lariat(["check", "-f", "empty.toml"]).expect(3);
    has(&ran.stdout, &["error[empty]: empty.toml has no service"]);
}

#[test]
fn a_file_name_needs_not_be_utf8() {
    let place = Place::new();
    let name = OsStr::from_bytes(b"st\xffck.toml");
    place.write(name, GOOD);
    let ran = place.lariat([OsStr::new("check"), OsStr::new("-f"), name]).expect(0).quiet();
    has(&ran.stdout, &["st\u{fffd}ck.toml is good"]);
    place.lariat([OsStr::new("check"), OsStr::new("-f"), name, OsStr::new("--json")]).expect(0).quiet();
}

#[test]
fn colour_is_for_terminals_and_for_who_asks() {
    let place = Place::new();
    place.write("lariat.toml", "[service.web]\n");
    let with = |env: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(LARIAT);
        command.args(args).envs(env.iter().copied());
        place.run(command).expect(3).stdout.contains('\x1b')
    };
    assert!(!with(&[], &["check"]), "a file is no terminal");
    assert!(with(&[("CLICOLOR_FORCE", "1")], &["check"]));
    assert!(!with(&[("CLICOLOR_FORCE", "1")], &["check", "--no-color"]));
    assert!(!with(&[("CLICOLOR_FORCE", "1")], &["--no-color", "check"]));
    assert!(!with(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], &["check", "--no-color"]));
    assert!(!with(&[("NO_COLOR", "1")], &["check"]));
}

#[test]
fn a_directory_that_was_removed_is_no_reason_to_panic() {
    let place = Place::new();
    let ran = place.script("mkdir gone && cd gone && rmdir ../gone && exec \"$@\"", &["check"]).expect(9);
    has(&ran.stderr, &["lariat: could not tell the working directory\n  because ", "hint: "]);
}
