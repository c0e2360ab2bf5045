//! `lariat run` in a terminal, under a real bash with job control: as if lariat were not there.

use lariat_testkit::census::Seen;
use lariat_testkit::wait::wait_at_most;
use lariat_testkit::{Arena, PATIENCE, Pty, Running, fixture, need, subject, wait_until};

const INTERRUPT: &str = "\x03";
const QUIT: &str = "\x1c";
const STOP: &str = "\x1a";
const END_OF_FILE: &str = "\x04";

fn path() -> String {
    subject::lariat(env!("CARGO_BIN_EXE_lariat")).into_string().expect("a plain path")
}

/// An interactive bash in a terminal, with `L` for `lariat run --` and `I` for the same with isolation.
struct Shell {
    arena: Arena,
    pty: Pty,
    bash: Running,
}

impl Shell {
    fn new(bash: &str) -> Self {
        let arena = Arena::new();
        let mut pty = Pty::new();
        let command = arena.command(bash).args(["--norc", "--noprofile", "--noediting", "-i"]);
        let command =
            command.env("PS1", "prompt> ").env("L", format!("{} run --", path())).env("F", fixture::path());
        let command = command.env("I", format!("{} run --isolate --", path()));
        let bash = pty.start(command.env("HISTFILE", "/dev/null"));
        pty.wait_for("prompt> ");
        Self { arena, pty, bash }
    }

    /// Types a line. What is typed is echoed, so a test waits for what only the output can contain.
    fn line(&mut self, text: &str) {
        self.pty.skip();
        self.pty.send(text);
        self.pty.send("\n");
    }

    /// Types a line and waits for the next prompt; returns what was shown between the two.
    fn answer(&mut self, text: &str) -> String {
        self.line(text);
        let from = self.pty.mark();
        self.pty.wait_for("prompt> ");
        let shown = self.pty.between(from, self.pty.mark());
        // The first line is the echo of what was typed.
        let (_, answer) = shown.split_once('\n').unwrap_or_default();
        answer.trim_end_matches("prompt> ").trim().to_owned()
    }

    /// Waits until the shell has the terminal again.
    fn wait_for_prompt(&mut self) {
        self.pty.wait_for("prompt> ");
        assert_eq!(self.pty.foreground(), Some(self.bash.pid()));
    }

    /// Waits until the program with this name (the kernel's) has the terminal.
    fn wait_for_front(&mut self, comm: &str) {
        let found = wait_at_most(PATIENCE, || {
            self.pty.pump();
            let group = self.pty.foreground()?;
            let alive = self.arena.alive();
            let is_going = |seen: &Seen| seen.group == group && seen.comm == comm && seen.state != 'T';
            alive.iter().any(is_going).then_some(())
        });
        if found.is_none() {
            let alive: Vec<String> = self.arena.alive().iter().map(ToString::to_string).collect();
            panic!("`{comm}` is not in front; {:?}\n{}", self.pty.text(), alive.join("\n"));
        }
    }

    /// Leaves the shell; nothing of it may be left.
    fn finish(mut self) {
        self.line("exit 0");
        self.pty.wait_end(&self.bash);
        self.arena.finish();
    }
}

/// Runs the steps without and with lariat, and with isolation: a test cannot ask more of lariat than of the bare command.
fn both(mut steps: impl FnMut(&mut Shell, &str)) {
    let Some(bash) = lariat_testkit::needs::program("bash") else { return };
    for prefix in ["", "$L ", "$I "] {
        let mut shell = Shell::new(&bash);
        if prefix == "$I " && !shell.arena.has_pid_namespaces() {
            return shell.finish();
        }
        steps(&mut shell, prefix);
        shell.finish();
    }
}

#[test]
fn exit_codes_and_deaths_reach_the_shell() {
    both(|shell, prefix| {
        assert_eq!(shell.answer(&format!("{prefix}sh -c 'exit 41'; echo \"<$?>\"")), "<41>");
        shell.answer(&format!("{prefix}$F die --signal 2"));
        assert_eq!(shell.answer("echo \"<$?>\""), "<130>");
    });
}

#[test]
fn a_typed_interrupt_is_the_commands_death_and_ends_a_loop() {
    both(|shell, prefix| {
        let facts = shell.arena.facts("f");
        let own = format!("{prefix}$F alone --facts {}", facts.as_arg());
        shell.line(&format!("for i in 1 2 3; do {own}; echo again$i; done"));
        facts.wait_for("ready");
        shell.pty.send(INTERRUPT);
        shell.wait_for_prompt();
        assert!(!shell.pty.text().contains("\nagain1"), "the loop went on: {}", shell.pty.text());
        assert_eq!(shell.answer("echo \"<$?>\""), "<130>");
    });
}

#[test]
fn a_script_that_loops_ends_too() {
    both(|shell, prefix| {
        let facts = shell.arena.facts("f");
        let (own, dir) = (format!("{prefix}$F alone"), facts.as_arg());
        let text =
            format!("#!/bin/bash\nfor i in 1 2 3; do {own} --facts {dir}; echo again; done\necho after\n");
        let script = shell.arena.script("script", &text);
        shell.line(&format!("export L I F; {}", script.display()));
        facts.wait_for("ready");
        shell.pty.send(INTERRUPT);
        shell.wait_for_prompt();
        assert_eq!(facts.pids("leader").len(), 1);
        assert!(!shell.pty.text().contains("\nafter"), "{}", shell.pty.text());
    });
}

#[test]
fn a_typed_quit_is_the_commands_death() {
    both(|shell, prefix| {
        let facts = shell.arena.facts("f");
        shell.line(&format!("ulimit -c 0; {prefix}$F alone --facts {}", facts.as_arg()));
        facts.wait_for("ready");
        shell.pty.send(QUIT);
        shell.wait_for_prompt();
        assert_eq!(shell.answer("echo \"<$?>\""), "<131>");
    });
}

#[test]
fn a_prompt_of_python_survives_an_interrupt() {
    let python = need!("python3");
    both(|shell, prefix| {
        shell.line(&format!("{prefix}{python} -q"));
        shell.pty.wait_for(">>> ");
        // Python shows its prompt before its line editor has set up the terminal, which throws away what came before.
        let is_heard = (0..5).any(|_| {
            shell.pty.send(INTERRUPT);
            shell.pty.shows("KeyboardInterrupt", std::time::Duration::from_secs(4))
        });
        assert!(is_heard, "{:?}", shell.pty.text());
        shell.pty.wait_for(">>> ");
        shell.pty.send("print(6 * 7)\n");
        shell.pty.wait_for("\n42");
        shell.pty.send("exit(5)\n");
        shell.wait_for_prompt();
        assert_eq!(shell.answer("echo \"<$?>\""), "<5>");
    });
}

#[test]
fn three_interrupts_in_a_second_stop_a_command_that_handles_them() {
    let (bash, python) = (need!("bash"), need!("python3"));
    let mut shell = Shell::new(&bash);
    let program = "import os,signal,time\nsignal.signal(signal.SIGINT, lambda *a: os.write(1, b'ca' + b'ught '))\n\
                   print('sta'+'nds', flush=True)\nwhile True: time.sleep(60)\n";
    let script = shell.arena.write("handler.py", program);
    shell.line(&format!("$L {python} {}", script.display()));
    shell.pty.wait_for("stands");
    shell.pty.send(INTERRUPT);
    shell.pty.wait_for("caught");
    // Two more within the second would do; where the machine is too slow for that, the next ones count. What is typed
    // after the end would be the shell's, so each waits for what it leads to.
    let is_over = (0..50).any(|_| {
        shell.pty.send(INTERRUPT);
        shell.pty.shows("prompt> ", std::time::Duration::from_millis(100))
    });
    assert!(is_over, "it was not stopped: {:?}", shell.pty.text());
    shell.line("");
    shell.wait_for_prompt();
    assert_eq!(shell.answer("echo \"<$?>\""), "<143>");
    shell.finish();
}

#[test]
fn an_editor_is_stopped_continued_and_saves() {
    let Some(vim) = ["vim.tiny", "vim"].iter().find_map(|name| lariat_testkit::needs::found(name)) else {
        return lariat_testkit::needs::skip("`vim` is not installed");
    };
    both(|shell, prefix| {
        let file = shell.arena.work().join("text");
        let before = shell.answer("stty -g");
        shell.line(&format!("{prefix}{} -u NONE -N -n {}", vim.display(), file.display()));
        shell.pty.wait_for("~");
        shell.pty.send("ifirst\x1b");
        shell.pty.wait_for("first");
        shell.pty.send(STOP);
        shell.pty.wait_for("Stopped");
        shell.wait_for_prompt();
        shell.line("fg");
        shell.pty.wait_for("first");
        shell.pty.send("asecond\x1b:wq\r");
        shell.wait_for_prompt();
        assert_eq!(shell.answer("echo \"<$?>\""), "<0>");
        assert_eq!(std::fs::read_to_string(file).expect("it was saved"), "firstsecond\n");
        assert_eq!(shell.answer("stty -g"), before, "the terminal's settings changed");
    });
}

#[test]
fn a_pager_works_alone_and_behind_a_pipe() {
    let less = need!("less");
    both(|shell, prefix| {
        let text: String = (1..1000).map(|line| format!("line-{line}\n")).collect();
        let file = shell.arena.write("lines", &text);
        for line in [
            format!("{prefix}{less} {}", file.display()),
            format!("{prefix}cat {} | {less}", file.display()),
            format!("cat {} | {prefix}{less}", file.display()),
        ] {
            shell.line(&line);
            shell.pty.wait_for("line-5\n");
            shell.pty.send("G");
            shell.pty.wait_for("line-999");
            shell.pty.send("q");
            shell.wait_for_prompt();
        }
    });
}

#[test]
fn the_head_of_a_pipeline_may_leave() {
    both(|shell, prefix| {
        assert_eq!(
            shell.answer(&format!("{prefix}yes | head -1; echo \"<${{PIPESTATUS[*]}}>\"")),
            "y\n<141 0>"
        );
    });
}

#[test]
fn a_shell_inside_has_jobs_of_its_own() {
    let bash = need!("bash");
    both(|shell, prefix| {
        // Written so that the echo of this line does not look like the prompt.
        shell.line(&format!("PS1='inn''er> ' {prefix}{bash} --norc --noprofile --noediting -i"));
        shell.pty.wait_for("inner> ");
        shell.line("cat");
        shell.wait_for_front("cat");
        shell.pty.send("hello\n");
        shell.pty.wait_for("hello\nhello");
        shell.pty.send(STOP);
        shell.pty.wait_for("Stopped");
        shell.pty.wait_for("inner> ");
        shell.line("jobs");
        shell.pty.wait_for("Stopped");
        shell.line("fg");
        shell.pty.wait_for("cat\n");
        // The shell says so before it has put it in front.
        shell.wait_for_front("cat");
        shell.pty.send(INTERRUPT);
        shell.pty.wait_for("inner> ");
        shell.line("exit 9");
        shell.wait_for_prompt();
        assert_eq!(shell.answer("echo \"<$?>\""), "<9>");
    });
}

/// A shell gives the terminal back to the group that had it, which it cannot name from within a namespace.
#[test]
fn a_script_reads_on_after_a_shell_inside() {
    let bash = need!("bash");
    both(|shell, prefix| {
        let text = format!(
            "#!/bin/bash\nPS1='inn''er> ' {prefix}{bash} --norc --noprofile --noediting -i\nread -r word\necho \"<$word>\"\n"
        );
        let script = shell.arena.script("script", &text);
        shell.line(&format!("export L I F; {}", script.display()));
        shell.pty.wait_for("inner> ");
        shell.line("exit 9");
        shell.pty.wait_for("exit");
        shell.pty.send("word\n");
        shell.pty.wait_for("<word>");
        shell.wait_for_prompt();
    });
}

#[test]
fn stopped_in_the_background_and_in_front_again() {
    both(|shell, prefix| {
        shell.line(&format!("{prefix}cat"));
        shell.wait_for_front("cat");
        // Several times: the news of a stop may come to lariat when the command goes on already, and must not stop it.
        for round in 0..6 {
            shell.pty.send(STOP);
            shell.pty.wait_for("Stopped");
            shell.wait_for_prompt();
            shell.line("bg");
            // It reads from the terminal in the background, and the kernel stops it for that.
            shell.wait_for_prompt();
            wait_until("the job's being stopped again", PATIENCE, || {
                shell.answer("jobs").contains("Stopped").then_some(())
            });
            shell.line("fg");
            shell.wait_for_front("cat");
            shell.pty.send(&format!("line{round}\n"));
            shell.pty.wait_for(&format!("line{round}\nline{round}"));
        }
        shell.pty.send(END_OF_FILE);
        shell.wait_for_prompt();
        assert_eq!(shell.answer("echo \"<$?>\""), "<0>");
    });
}

#[test]
fn a_stopped_job_ends_when_it_is_told_to() {
    both(|shell, prefix| {
        let facts = shell.arena.facts("f");
        shell.line(&format!("{prefix}$F alone --manner graceful --facts {}", facts.as_arg()));
        facts.wait_for("ready");
        shell.pty.send(STOP);
        shell.pty.wait_for("Stopped");
        shell.wait_for_prompt();
        shell.line("kill %1; fg; echo \"<$?>\"");
        shell.pty.wait_for("<0>");
        assert!(facts.has("clean-leader"));
    });
}

#[test]
fn started_in_the_background_and_brought_to_the_front() {
    both(|shell, prefix| {
        let facts = shell.arena.facts("f");
        shell.line(&format!("{prefix}$F alone --facts {} &", facts.as_arg()));
        facts.wait_for("ready");
        assert!(shell.answer("jobs").contains("Running"));
        shell.line("fg");
        wait_until("the job's being in front", PATIENCE, || {
            shell.pty.pump();
            (shell.pty.foreground() != Some(shell.bash.pid())).then_some(())
        });
        shell.pty.send(INTERRUPT);
        shell.wait_for_prompt();
        assert_eq!(shell.answer("echo \"<$?>\""), "<130>");
    });
}

#[test]
fn the_window_has_its_size_and_changes_of_it_are_told() {
    both(|shell, prefix| {
        shell.line(&format!("{prefix}$F window"));
        shell.pty.wait_for("window 24 80");
        shell.pty.resize(40, 132);
        shell.pty.wait_for("window 40 132");
        shell.pty.send(INTERRUPT);
        shell.wait_for_prompt();
    });
}

#[test]
fn two_under_one_runner_both_end_and_the_runner_hears_it() {
    let python = need!("python3");
    both(|shell, prefix| {
        let (one, two) = (shell.arena.facts("one"), shell.arena.facts("two"));
        let program = "import os,subprocess,sys\n\
                       import signal\n\
                       signal.signal(signal.SIGINT, lambda *a: os.write(1, b'hea' + b'rd '))\n\
                       a = [subprocess.Popen(['/bin/bash','-c','exec '+c]) for c in sys.argv[1:]]\n\
                       print('en'+'ded', [p.wait() for p in a])\n";
        let script = shell.arena.write("runner.py", program);
        let own = |dir: String| format!("\"{prefix}$F alone --facts {dir}\"");
        let line = format!("{python} {} {} {}", script.display(), own(one.as_arg()), own(two.as_arg()));
        shell.line(&line);
        one.wait_for("ready");
        two.wait_for("ready");
        shell.pty.send(INTERRUPT);
        shell.pty.wait_for("heard");
        shell.pty.wait_for("ended [-2, -2]");
        shell.wait_for_prompt();
    });
}

#[test]
fn closing_the_terminal_ends_what_ran_in_front_and_behind() {
    let bash = need!("bash");
    for suffix in ["", " &"] {
        let mut shell = Shell::new(&bash);
        let facts = shell.arena.facts("f");
        shell.line(&format!("$L $F daemon --manner graceful --facts {}{suffix}", facts.as_arg()));
        facts.wait_for("ready");
        shell.pty.close();
        shell.arena.wait_until_empty(PATIENCE);
        assert!(facts.has("clean-leader") && facts.has("clean-daemon"), "{suffix:?}: {:?}", facts.names());
        shell.arena.finish();
    }
}

#[test]
fn the_shells_death_ends_a_command_that_ignores_hang_ups() {
    let bash = need!("bash");
    let mut shell = Shell::new(&bash);
    let facts = shell.arena.facts("f");
    let own =
        format!("{} run --grace 300ms -- $F alone --manner stubborn --facts {}", path(), facts.as_arg());
    shell.line(&own);
    facts.wait_for("ready");
    shell.bash.signal(libc::SIGKILL);
    shell.pty.close();
    shell.arena.wait_until_empty(PATIENCE);
    shell.arena.finish();
}

#[test]
fn a_stopped_job_ends_with_its_terminal() {
    let bash = need!("bash");
    let mut shell = Shell::new(&bash);
    let facts = shell.arena.facts("f");
    shell.line(&format!("$L $F daemon --facts {}", facts.as_arg()));
    facts.wait_for("ready");
    shell.pty.send(STOP);
    shell.pty.wait_for("Stopped");
    shell.wait_for_prompt();
    shell.pty.close();
    shell.arena.wait_until_empty(PATIENCE);
    shell.arena.finish();
}

#[test]
fn the_shell_is_usable_after_lariat_was_killed() {
    let bash = need!("bash");
    let mut shell = Shell::new(&bash);
    let facts = shell.arena.facts("f");
    shell.line(&format!("$L $F daemon --manner graceful --facts {}", facts.as_arg()));
    facts.wait_for("ready");
    let leader = Seen::of(facts.pid("leader")).expect("it is alive");
    let lariats = shell.arena.alive().into_iter().filter(|seen| seen.pid == leader.group);
    lariats.for_each(|seen| seen.kill());
    shell.pty.wait_for("Killed");
    shell.wait_for_prompt();
    assert_eq!(shell.answer("echo \"<$?>\""), "<137>");
    // The keeper, whom nobody waits for, ends last.
    wait_until("the end of all but the shell", PATIENCE, || {
        shell.arena.alive().iter().all(|seen| seen.pid == shell.bash.pid()).then_some(())
    });
    assert!(facts.has("clean-leader") && facts.has("clean-daemon"));
    shell.finish();
}

#[test]
fn started_without_a_shell_it_leads_the_session_and_can_be_stopped_and_continued() {
    // As `xterm -e lariat run …` does.
    let arena = Arena::new();
    let facts = arena.facts("f");
    let mut pty = Pty::new();
    let command = arena.command(path()).args(["run", "--", fixture::path(), "alone", "--manner", "graceful"]);
    let running = pty.start(command.facts(&facts));
    facts.wait_for("ready");
    // Its group is orphaned: the kernel ignores a typed stop, with lariat as without it.
    pty.send(STOP);
    pty.send(INTERRUPT);
    assert_eq!(pty.wait_end(&running).code(), Some(0));
    assert!(facts.has("clean-leader"));
    arena.finish();
}

#[test]
fn in_a_pid_namespace_made_at_the_terminal_the_command_is_in_front() {
    let bash = need!("bash");
    let unshare = need!("unshare");
    let mut shell = Shell::new(&bash);
    let user = if rustix::process::geteuid().is_root() { "" } else { "-Ur" };
    // Its group is led by unshare, which has no number in the namespace.
    shell.line(&format!("{unshare} {user} --pid --fork --mount-proc sh -c '$L cat; echo left with $?'"));
    shell.wait_for_front("cat");
    shell.pty.send("typed\n");
    shell.pty.wait_for("typed\ntyped");
    shell.pty.send(END_OF_FILE);
    shell.pty.wait_for("left with 0");
    shell.wait_for_prompt();
    shell.finish();
}
