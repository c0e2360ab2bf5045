//! The judge's older kernels: what is taken away is away, and nothing else is.

use std::process::Command;

use lariat_testkit::{Arena, Kernel, fixture};

/// All features, from the program's own usage message.
fn features() -> Vec<String> {
    let said = Command::new(fixture::without()).output().expect("it can be started").stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    let line = said.lines().find_map(|line| line.strip_prefix("features: ")).expect("it names them");
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn the_filter_of_every_feature_catches_its_call() {
    let features = features();
    assert!(features.len() > 10, "{features:?}");
    for feature in features {
        let status = Command::new(fixture::without()).args(["--check", &feature]).status();
        assert!(status.is_ok_and(|status| status.success()), "{feature} is not caught");
    }
    let unknown = Command::new(fixture::without()).args(["--check", "unheard-of"]).status();
    assert!(!unknown.expect("it can be started").success());
}

#[test]
fn a_call_gets_the_error_that_was_asked_for_and_others_go_on() {
    let arena = Arena::new();
    // `cat` needs no pidfd, and `true` no netlink.
    let run = |features: &[&str], words: &[&str]| {
        Kernel::without(&arena, features).command(&arena, words[0]).args(&words[1..]).run()
    };
    run(&["pidfd-open", "sock-diag=EPERM"], &["cat", "/proc/self/stat"]).expect(0);
    for (feature, expected) in [("splice", "Invalid argument"), ("splice=EPERM", "Operation not permitted")] {
        let script =
            "import os; r, w = os.pipe()\ntry: os.splice(r, w, 1)\nexcept OSError as e: print(e.strerror)";
        let _python = lariat_testkit::need!("python3");
        let ending = run(&[feature], &["python3", "-c", script]).expect(0);
        assert_eq!(ending.out().trim_end(), expected, "{feature}");
    }
    arena.finish();
}

#[test]
fn a_hidden_file_is_hidden_from_children_too_and_others_are_not() {
    let arena = Arena::new();
    let kernel = Kernel::without(&arena, &["children-lists"]);
    let script =
        "cat /proc/self/stat && ! cat /proc/self/task/$$/children && (! cat /proc/thread-self/children)";
    let ending = kernel.command(&arena, "sh").args(["-c", script]).run().expect(0);
    assert!(ending.err().contains("No such file or directory"), "{ending:?}");
    // The control: this kernel has the file.
    arena.command("cat").arg("/proc/thread-self/children").run().expect(0);
    arena.finish();
}
