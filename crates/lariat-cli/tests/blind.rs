//! `/proc` that nobody may list any more, while a stack is up: what is left is not known then, and is not called gone.
//!
//! Everything happens in a pid namespace of its own, whose `/proc` is nobody else's.

use std::os::unix::fs::PermissionsExt as _;

use lariat_testkit::needs::skip_as_user;
use lariat_testkit::{Arena, Containment, Stack, fixture, is_root, need, subject};

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");

/// Runs commands of an ordinary user, before and after root has shut `/proc`; each says what it wrote and its exit code.
const SCRIPT: &str = r#"
mount -t proc proc /proc && cd "$1" || exit 1
lariat() {
    "$SETPRIV" --reuid 65534 --regid 65534 --clear-groups "$LARIAT" "$@" >said 2>&1 </dev/null
    echo "== $1 $?"; cat said
}
lariat up -d --yes
chmod 0711 /proc
lariat down
lariat up -d --yes
lariat down --yes
lariat sweep --yes
chmod 0555 /proc
lariat up -d --yes
lariat down
"#;

#[test]
fn what_is_left_is_not_known_where_proc_cannot_be_read() {
    let (unshare, setpriv) = (need!("unshare"), need!("setpriv"));
    if !is_root() {
        return skip_as_user("only root may mount /proc");
    }
    // A cgroup of ours would be root's.
    let arena = Arena::with(Containment::Lineage);
    let facts = arena.facts("f");
    let line = fixture::line("daemon", &facts, "--manner graceful --ms 5");
    let toml = format!("[stack]\ndeadline = '8s'\n[service.server]\nrun = '{line}'\n");
    let stack = Stack::new(&arena, LARIAT, "project", &toml);
    std::fs::set_permissions(arena.dir(), std::fs::Permissions::from_mode(0o711)).expect("our own");
    for path in [&arena.dir().join("home"), &arena.dir().join("runtime"), stack.dir()] {
        arena.command("chown").args(["-R", "65534:65534"]).arg(path).run().expect(0);
    }
    let command = arena.command(unshare).args(["-m", "-p", "-f", "--kill-child", "sh", "-c", SCRIPT, "sh"]);
    let command = command.arg(stack.dir()).env("SETPRIV", setpriv).env("LARIAT", subject::lariat(LARIAT));
    let said = command.own_session().run().expect(0).out();
    let steps: Vec<&str> = said.split("== ").skip(1).collect();
    let step = |nth: usize, start: &str| {
        assert!(
            steps.get(nth).is_some_and(|step| step.starts_with(start)),
            "no `{start}` as step {nth}: {said}"
        );
        steps[nth]
    };
    step(0, "up 0\n");
    for (nth, start) in [(1, "down 9\n"), (2, "up 9\n"), (3, "down 9\n")] {
        let step = step(nth, start);
        let note = "note: /proc could not be read (permission denied): what is left of the run is not known";
        for words in
            [note, "what is left is not known", "once `ls /proc` lists processes again, `lariat down`"]
        {
            assert!(step.contains(words), "no `{words}` in step {nth}: {said}");
        }
        for words in ["nothing is left", "nothing is alive", "as shown", "by hand"] {
            assert!(!step.contains(words), "`{words}` in step {nth}: {said}");
        }
    }
    assert!(steps[2].contains("so nothing was started"), "{said}");
    assert!(step(4, "sweep 9\n").contains("could not read the list of processes"), "{said}");
    // The keepers did what they had to without a list, and once there is one, nothing is in the way.
    step(5, "up 0\n");
    let last = step(6, "down 0\n");
    facts.assert_told("daemon", &[1, 1], &said);
    assert!(last.contains("nothing is left"), "{said}");
    arena.finish();
}
