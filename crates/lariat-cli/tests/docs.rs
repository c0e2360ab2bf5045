//! The documentation's examples, run as they stand.
//!
//! - A `console` block is a session: each line after `$ ` is run by `sh` in a copy of the repository's examples, and
//!   must print the lines below it. All blocks of a document are one session. `^C` on a line of its own is typed at the
//!   terminal when everything above it has been shown.
//! - A `toml` block is a whole `lariat.toml`, a `procfile` block a whole Procfile: `lariat check` must like it.
//! - A `sh` block holds commands of a few known kinds, which are not run here. A `text` block is a picture.
//!
//! What differs from run to run is compared by kind: run ids, times, durations, sizes, and numbers of two and more
//! digits. `...` stands for lines that are left out; where it is used, the order of lines counts only for the phases
//! of a stop. A process number or run id that was shown may be used in later
//! commands, and means the same one.
//!
//! Documents that are wrong fail: that is tested as well.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lariat_testkit::wait::wait_at_most;
use lariat_testkit::{Arena, PATIENCE, Pty, subject};
use regex::Regex;

const LARIAT: &str = env!("CARGO_BIN_EXE_lariat");
/// What the documents say for the directory that the repository was cloned into.
const CLONE: &str = "/home/you/lariat";
/// Commands that may be shown without being run here: cargo's, which other steps of the tests run, and those for the
/// example of real servers, which tests of its own run.
const SHOWN: [&str; 3] = ["cargo ", "apt-get install ", "curl http://127.0.0.1:"];

/// One fenced block.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Block {
    kind: String,
    /// The line of its opening fence, from 1.
    line: usize,
    lines: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in ["", "docs", "docs/design", "examples/first", "examples/shop"] {
        let entries = fs::read_dir(root().join(directory)).expect("a directory of documents");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    found.sort();
    found
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        match (open.take(), line.strip_prefix("```")) {
            (Some(block), Some(_)) => blocks.push(block),
            (Some(mut block), None) => {
                block.lines.push(line.to_owned());
                open = Some(block);
            }
            (None, Some(kind)) => {
                open = Some(Block { kind: kind.trim().to_owned(), line: number + 1, lines: Vec::new() });
            }
            (None, None) => {}
        }
    }
    blocks
}

/// Runs everything in a document; the first thing that is wrong is the error.
fn run(arena: &Arena, text: &str) -> Result<(), String> {
    let mut session = Session::new(arena);
    for block in blocks(text) {
        let at = |wrong: String| format!("line {}, {}: {wrong}", block.line, block.kind);
        match block.kind.as_str() {
            "console" => session.block(&block).map_err(at)?,
            "toml" => check(arena, "lariat.toml", &block).map_err(at)?,
            "procfile" => check(arena, "Procfile", &block).map_err(at)?,
            "sh" => {
                let unknown = |line: &&String| !SHOWN.iter().any(|shown| line.starts_with(shown));
                if let Some(line) = block.lines.iter().find(unknown) {
                    return Err(at(format!("`{line}` is run by nobody")));
                }
            }
            "text" => {}
            _ => return Err(at("what kind of block is this?".to_owned())),
        }
    }
    Ok(())
}

/// Asks `lariat check` about a block.
fn check(arena: &Arena, name: &str, block: &Block) -> Result<(), String> {
    let file = arena.write(&format!("checked-{}/{name}", block.line), &(block.lines.join("\n") + "\n"));
    // What a configuration names need not be there, and that is worth a warning of its own.
    fs::create_dir_all(file.with_file_name("web")).expect("the arena is writable");
    let ending = arena.command(subject::lariat(LARIAT)).arg("check").arg("-f").arg(&file).run();
    let said = ending.out();
    let is_good = ending.code() == Some(0) && !said.contains("warning");
    if is_good { Ok(()) } else { Err(format!("`lariat check` says:\n{said}{}", ending.err())) }
}

/// A person at a shell.
struct Session<'a> {
    arena: &'a Arena,
    dir: PathBuf,
    code: i32,
    /// Numbers as the document shows them, and as they are.
    numbers: BTreeMap<String, String>,
}

/// One command and what it prints.
struct Step<'a> {
    command: &'a str,
    shown: Vec<&'a str>,
}

impl Step<'_> {
    /// Returns the lines that must be there, before `^C` (all of them where nothing is typed) and in all.
    fn expected(&self) -> (Vec<&str>, Vec<&str>) {
        let is_output = |line: &&&str| **line != "..." && **line != "^C";
        let typed = self.shown.iter().position(|line| *line == "^C").unwrap_or(self.shown.len());
        let before = self.shown[..typed].iter().filter(is_output).copied().collect();
        (before, self.shown.iter().filter(is_output).copied().collect())
    }

    fn is_typed_at(&self) -> bool {
        self.shown.contains(&"^C")
    }

    fn leaves_out(&self) -> bool {
        self.shown.contains(&"...")
    }
}

impl<'a> Session<'a> {
    fn new(arena: &'a Arena) -> Self {
        let dir = arena.work().join("lariat");
        for example in ["first"] {
            let from = root().join("examples").join(example);
            for entry in fs::read_dir(from).expect("an example") {
                let path = entry.expect("an entry").path();
                if path.is_file() {
                    let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
                    let text = fs::read_to_string(&path).expect("a text");
                    arena.write(&format!("lariat/examples/{example}/{name}"), &text);
                }
            }
        }
        let bin = arena.work().join("bin");
        fs::create_dir_all(&bin).expect("the arena is writable");
        // A second session in the same arena finds it there.
        let _ = std::os::unix::fs::symlink(subject::lariat(LARIAT), bin.join("lariat"));
        Self { arena, dir, code: 0, numbers: BTreeMap::new() }
    }

    fn block(&mut self, block: &Block) -> Result<(), String> {
        let mut steps: Vec<Step<'_>> = Vec::new();
        for line in &block.lines {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step { command, shown: Vec::new() }),
                (None, Some(step)) => step.shown.push(line),
                (None, None) => return Err(format!("`{line}` comes before any command")),
            }
        }
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn step(&mut self, step: &Step<'_>) -> Result<(), String> {
        if let Some(dir) = step.command.strip_prefix("cd ") {
            self.dir = self.dir.join(dir);
            return if self.dir.is_dir() {
                Ok(())
            } else {
                Err(format!("there is no {}", self.dir.display()))
            };
        }
        self.knows_whom_it_kills(step.command)?;
        let command = self.translated(step.command);
        let mut output = self.output(&command, step)?;
        // Looking for what is alive is done until it is so, as a person would: ends take a moment.
        if step.command.starts_with("grep ") {
            wait_at_most(PATIENCE, || {
                // Reaps who is dead, which is init's work elsewhere.
                let _ = self.arena.alive();
                output = self.output(&command, step).ok()?;
                self.compare(step, &output).is_ok().then_some(())
            });
        }
        self.compare(step, &output)
    }

    fn output(&mut self, command: &str, step: &Step<'_>) -> Result<Vec<String>, String> {
        let path = self.arena.environment().into_iter().find(|(name, _)| name == "PATH");
        let path = path.map(|(_, value)| value.to_string_lossy().into_owned()).unwrap_or_default();
        let path = format!("{}:{path}", self.arena.work().join("bin").display());
        let script = format!("(exit {}); {command}", self.code);
        let shell = self.arena.command("/bin/sh").arg("-c").arg(script).env("PATH", path).dir(&self.dir);
        let mut pty = Pty::new();
        pty.resize(50, 200);
        let running = pty.start(shell);
        if step.is_typed_at() {
            let (before, _) = step.expected();
            let is_shown = wait_at_most(PATIENCE, || {
                pty.pump();
                missing(&before, &self.lines(&pty.text())).is_none().then_some(())
            });
            if is_shown.is_none() {
                running.signal(libc::SIGTERM);
                pty.wait_end(&running);
                return Err(format!("before ^C, `{command}` shows:\n{}", pty.text()));
            }
            pty.send("\x03");
        }
        let ending = pty.wait_end(&running);
        self.code = ending.code().or(ending.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        Ok(self.lines(&pty.standing()))
    }

    /// Returns the lines of an output as the document would show them.
    fn lines(&self, text: &str) -> Vec<String> {
        let here = self.arena.work().join("lariat").display().to_string();
        let lines = text.lines().filter(|line| *line != "^C");
        lines.map(|line| line.trim_start_matches("^C").replace(&here, CLONE)).collect()
    }

    /// A number that no output showed is somebody else's process here.
    fn knows_whom_it_kills(&self, command: &str) -> Result<(), String> {
        let mut numbers = NUMBER.find_iter(command).map(|found| found.as_str());
        match numbers.find(|number| !self.numbers.contains_key(*number)) {
            Some(number) if command.contains("kill") => Err(format!("`{command}`: who is {number}?")),
            _ => Ok(()),
        }
    }

    /// Returns a command with the numbers and run ids that are meant.
    fn translated(&self, command: &str) -> String {
        let real = |found: &regex::Captures<'_>| {
            self.numbers.get(&found[0]).cloned().unwrap_or_else(|| found[0].to_owned())
        };
        ID_OR_NUMBER.replace_all(command, real).into_owned()
    }

    fn compare(&mut self, step: &Step<'_>, output: &[String]) -> Result<(), String> {
        let (_, expected) = step.expected();
        let wrong =
            |what: String| Err(format!("`{}`: {what}\nit prints:\n{}", step.command, output.join("\n")));
        if step.leaves_out() {
            if let Some(line) = missing(&expected, output) {
                return wrong(format!("there is no line `{line}`"));
            }
            let is_phase = |line: &&str| line.starts_with('[') || line.starts_with("nothing is left");
            let phases: Vec<String> = expected.iter().copied().filter(is_phase).map(alike).collect();
            let shown: Vec<String> = output.iter().map(String::as_str).filter(is_phase).map(alike).collect();
            if phases != shown {
                return wrong(format!("the phases are {shown:?}"));
            }
        } else {
            let (expected, output): (Vec<String>, Vec<String>) =
                (expected.iter().map(|l| alike(l)).collect(), output.iter().map(|l| alike(l)).collect());
            if expected != output {
                return wrong(format!("expected:\n{}", step.shown.join("\n")));
            }
        }
        for line in &expected {
            let kind = alike(line);
            if let Some(real) = output.iter().find(|real| alike(real) == kind) {
                self.numbers.extend(numbers(line).into_iter().zip(numbers(real)));
            }
        }
        Ok(())
    }
}

/// Returns the first line that is not among those printed.
fn missing<'a>(expected: &[&'a str], output: &[String]) -> Option<&'a str> {
    let mut left: Vec<String> = output.iter().map(|line| alike(line)).collect();
    expected.iter().copied().find(|line| {
        let wanted = alike(line);
        match left.iter().position(|real| *real == wanted) {
            Some(at) => {
                left.swap_remove(at);
                false
            }
            None => true,
        }
    })
}

/// What differs from run to run, by kind.
static KINDS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let kinds = [
        (r"\b[0-9a-f]{16}\b", "RUN"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "MOMENT"),
        (r"\b\d\d:\d\d:\d\d\b", "CLOCK"),
        (r"\b\d+ min \d+ s\b|\b\d+(\.\d+)? m?s\b", "SPAN"),
        (r"\b\d+ MiB\b", "SIZE"),
    ];
    kinds.map(|(pattern, kind)| (Regex::new(pattern).expect("a pattern"), kind)).into()
});
static RUN_ID: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b[0-9a-f]{16}\b").expect("a pattern"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b\d{2,}\b").expect("a pattern"));
static ID_OR_NUMBER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b[0-9a-f]{16}\b|\b\d{2,}\b").expect("a pattern"));

/// Returns a line with times, durations and sizes replaced by their kind.
fn without_times(line: &str) -> String {
    KINDS.iter().fold(line.to_owned(), |line, (pattern, kind)| pattern.replace_all(&line, *kind).into_owned())
}

/// Returns a line with everything that differs from run to run replaced by its kind. A line that is only a number is
/// an exit code, and stays.
fn alike(line: &str) -> String {
    if line.trim().parse::<u32>().is_ok() {
        return line.trim().to_owned();
    }
    let line = without_times(line);
    let line = NUMBER.replace_all(&line, "N");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the run ids and numbers of a line, without what is a time, a duration or a size.
fn numbers(line: &str) -> Vec<String> {
    let runs = RUN_ID.find_iter(line).map(|found| found.as_str().to_owned());
    let rest = without_times(line);
    let numbers = NUMBER.find_iter(&rest).map(|found| found.as_str().to_owned());
    runs.chain(numbers).collect()
}

#[test]
fn the_readme_is_true() {
    let text = fs::read_to_string(root().join("README.md")).expect("a README");
    let kinds: Vec<String> = blocks(&text).into_iter().map(|block| block.kind).collect();
    assert!(
        ["console", "toml", "sh"].iter().all(|kind| kinds.iter().any(|found| found == kind)),
        "{kinds:?}"
    );
    let arena = Arena::new();
    let result = run(&arena, &text);
    assert_eq!(result.map_err(|wrong| format!("README.md, {wrong}")), Ok(()));
    arena.finish();
}

#[test]
fn the_numbers_of_trees_and_endings_are_those_of_the_drill() {
    let arena = Arena::new();
    let list =
        arena.command(subject::lariat(LARIAT)).args(["doctor", "--drill", "--list"]).run().expect(0).out();
    let names = |title: &str| {
        let below = list.lines().skip_while(|line| *line != title).skip(1);
        below.take_while(|line| line.starts_with(' ')).count()
    };
    // Numbers of two digits are alike everywhere else, which would hide a list that grew.
    let counted = format!("of {} trees, {} endings are known", names("trees"), names("endings"));
    let text = fs::read_to_string(root().join("README.md")).expect("a README");
    assert!(text.contains(&counted), "the README does not say `{counted}`");
    arena.finish();
}

#[test]
fn the_other_documents_are_true() {
    for path in documents()
        .iter()
        .filter(|path| !path.ends_with("README.md") || path.components().any(|c| c.as_os_str() == "examples"))
    {
        let arena = Arena::new();
        let text = fs::read_to_string(path).expect("a document");
        let result = run(&arena, &text);
        assert_eq!(result.map_err(|wrong| format!("{}, {wrong}", path.display())), Ok(()));
        arena.finish();
    }
}

/// Returns the files that a document's links name and that are not there. Places inside a page and the web are left out.
fn broken_links(document: &Path, text: &str) -> Vec<String> {
    let link = Regex::new(r"\]\(([^)#\s]+)").expect("a pattern");
    let targets = link.captures_iter(text).map(|found| found[1].to_owned());
    let local = targets.filter(|target| !target.contains("://"));
    let beside = document.parent().expect("a document is in a directory");
    local.filter(|target| !beside.join(target).exists()).collect()
}

#[test]
fn links_lead_somewhere() {
    for path in documents() {
        let text = fs::read_to_string(&path).expect("a document");
        assert_eq!(broken_links(&path, &text), Vec::<String>::new(), "in {}", path.display());
    }
    let wrong = "[a](docs) [b](docs/nowhere.md) [c](https://example.org/nowhere) [d](#place)";
    assert_eq!(broken_links(&root().join("README.md"), wrong), ["docs/nowhere.md"]);
}

#[test]
fn a_wrong_document_fails() {
    let wrong = [
        ("a kind that nobody runs", "```bash\nlariat up\n```\n"),
        ("a command that nobody runs", "```sh\nlariat up\n```\n"),
        ("an unknown key", "```toml\n[service.web]\nrun = 'x'\nreadiness = 1\n```\n"),
        ("a warning", "```toml\n[service.web]\nrun = 'x $PORT'\n```\n"),
        ("a line that is no process", "```procfile\nweb\n```\n"),
        ("another output", "```console\n$ echo one\ntwo\n```\n"),
        ("more output", "```console\n$ echo one; echo two\none\n```\n"),
        ("less output", "```console\n$ echo one\n...\none\ntwo\n```\n"),
        ("another exit code", "```console\n$ lariat run -- sh -c 'exit 7'\n$ echo $?\n8\n```\n"),
        ("a number that nobody showed", "```console\n$ : kill 4711\n```\n"),
        (
            "another order of phases",
            "```console\n$ echo '[2/5] b'; echo '[1/5] a'\n...\n[1/5] a\n[2/5] b\n```\n",
        ),
        ("a directory that is not there", "```console\n$ cd examples/second\n```\n"),
    ];
    let arena = Arena::new();
    for (what, text) in wrong {
        assert!(run(&arena, text).is_err(), "{what} is not noticed");
    }
    arena.finish();
}

#[test]
fn a_right_document_passes() {
    let text = "```console\n$ cd examples/first\n$ echo \"pid 4711 of $PWD after 12 ms\"\n\
        pid 48213 of /home/you/lariat/examples/first after 3 ms\n$ test 48213 = 4711 && echo same; sh -c 'exit 3'\n...\n\
        same\n$ echo $?\n3\n$ trap 'exit 4' INT; echo on; while :; do sleep 0.1; done\non\n^C\n$ echo $?\n4\n```\n";
    let arena = Arena::new();
    assert_eq!(run(&arena, text), Ok(()));
    arena.finish();
}
