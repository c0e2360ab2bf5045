//! `lariat init`.

mod place;

use std::process::Command;

use place::{LARIAT, Place, has};

/// Checks that what was written passes the check without a warning, and returns it.
fn written(place: &Place) -> String {
    let ran = place.lariat(["check"]).expect(0);
    assert!(!ran.stdout.contains("warning"), "{}", ran.stdout);
    place.read("lariat.toml")
}

#[test]
fn an_example_where_there_is_nothing() {
    let place = Place::new();
    let ran = place.lariat(["init"]).expect(0).quiet();
    has(&ran.stdout, &["wrote lariat.toml: an example to start from", "next: read it, then `lariat check`"]);
    has(&written(&place), &["[service.hello]", "# restart = "]);
}

#[test]
fn a_procfile_becomes_services() {
    let place = Place::new();
    place.write("Procfile", "web: node \"a b.js\" -p $PORT\nworker: ruby -e 'p 1'\n");
    let ran = place.lariat(["init"]).expect(0).quiet();
    has(&ran.stdout, &["the processes of the Procfile"]);
    has(
        &written(&place),
        &["run  = 'node \"a b.js\" -p $PORT'\nport = \"auto\"", "run  = \"ruby -e 'p 1'\""],
    );
}

#[test]
fn a_bad_procfile_is_shown_and_nothing_written() {
    let place = Place::new();
    place.write("Procfile", "web npm start\n");
    let ran = place.lariat(["init"]).expect(3);
    has(&ran.stderr, &["error[syntax]", "Procfile:1:1", "lariat: Procfile: 1 error"]);
    assert!(!place.work().join("lariat.toml").exists());
}

#[test]
fn a_script_of_a_package_is_taken() {
    let cases = [
        (r#"{"scripts":{"dev":"vite","start":"x"}}"#, "", "[\"npm\", \"run\", \"dev\"]"),
        (r#"{"scripts":{"start":"x"}}"#, "pnpm-lock.yaml", "[\"pnpm\", \"run\", \"start\"]"),
        (r#"{"scripts":{"start":"x"}}"#, "yarn.lock", "[\"yarn\", \"run\", \"start\"]"),
        (r#"{"scripts":{"test":"x"}}"#, "", "[service.hello]"),
        ("{ not json", "", "[service.hello]"),
    ];
    for (package, lock, piece) in cases {
        let place = Place::new();
        place.write("package.json", package);
        if !lock.is_empty() {
            place.write(lock, "");
        }
        place.lariat(["init"]).expect(0).quiet();
        has(&written(&place), &[piece]);
    }
}

#[test]
fn a_manage_py_is_taken() {
    let place = Place::new();
    place.write("manage.py", "");
    place.lariat(["init"]).expect(0).quiet();
    has(&written(&place), &["python3 manage.py runserver $PORT"]);
}

#[test]
fn what_is_there_is_never_touched() {
    let place = Place::new();
    place.write("lariat.toml", "mine");
    let ran = place.lariat(["init"]).expect(3);
    has(&ran.stderr, &["lariat: lariat.toml is here already\n", "hint: "]);
    assert_eq!(place.read("lariat.toml"), "mine");

    let place = Place::new();
    std::os::unix::fs::symlink("nowhere", place.work().join("lariat.toml")).expect("a link");
    place.lariat(["init"]).expect(3);
    assert!(!place.work().join("nowhere").exists(), "a dangling link is not written through");
}

#[test]
fn a_directory_that_takes_no_files_is_trouble() {
    let place = Place::new();
    let mut command = Command::new(LARIAT);
    // Not even root can create a file there.
    command.arg("init").current_dir("/proc");
    let ran = place.run(command).expect(9);
    has(&ran.stderr, &["lariat: could not write lariat.toml\n  because "]);
}

#[test]
fn closed_standard_output_does_not_put_messages_into_the_file() {
    let place = Place::new();
    place.script("exec \"$@\" <&- >&- 2>&-", &["init"]).expect(0);
    let text = written(&place);
    assert!(text.starts_with("# The stack") && !text.contains("wrote"), "{text}");
}
