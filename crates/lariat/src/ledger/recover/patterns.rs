//! Commands that development leaves behind: servers, watchers and bundlers that are started by hand or by a script.
//!
//! A pattern is a few words: the program, then arguments that have to follow it in this order, others between them or
//! not. `*` in a word stands for any text. The program is found where people and interpreters put it: `vite` is also
//! `node /project/node_modules/.bin/vite`, `python3 -m flask` is `flask`. That a command matches says nothing about who
//! started it: it is a reason to ask, never one to end it.

use std::fmt;

/// The built-in patterns: `docs/sweep-patterns.md` lists them.
pub const BUILT_IN: &[&str] = &[
    "npm start",
    "npm run dev*",
    "npm run start*",
    "npm run serve*",
    "npm run watch*",
    "pnpm start",
    "pnpm dev*",
    "pnpm run dev*",
    "pnpm run start*",
    "pnpm run watch*",
    "yarn start",
    "yarn dev*",
    "yarn run dev*",
    "yarn run start*",
    "yarn run watch*",
    "bun dev*",
    "bun run dev*",
    "bun --hot",
    "bun --watch",
    "deno task dev*",
    "node --watch",
    "tsx watch",
    "ts-node-dev",
    "nodemon",
    "tsc --watch",
    "tsc -w",
    "vite",
    "vitest",
    "jest --watch*",
    "turbo run *",
    "turbo dev*",
    "turbo watch *",
    "esbuild",
    "webpack serve",
    "webpack --watch",
    "webpack-dev-server",
    "rollup --watch",
    "rollup -w",
    "rollup -cw",
    "parcel",
    "next dev",
    "next-server",
    "nuxt dev",
    "nuxi dev",
    "astro dev",
    "remix dev",
    "react-router dev",
    "react-scripts start",
    "vue-cli-service serve",
    "ng serve",
    "nx serve*",
    "gatsby develop",
    "storybook dev*",
    "start-storybook",
    "wrangler dev",
    "tailwindcss --watch",
    "sass --watch",
    "concurrently",
    "live-server",
    "http-server",
    "browser-sync start",
    "json-server",
    "uvicorn --reload",
    "hypercorn --reload",
    "gunicorn --reload",
    "flask run",
    "fastapi dev",
    "manage.py runserver*",
    "http.server",
    "watchmedo",
    "rails server",
    "rails s",
    "puma",
    "jekyll serve",
    "foreman start",
    "php -S",
    "artisan serve",
    "cargo-watch",
    "cargo watch",
    "trunk serve",
    "air",
    "hugo server",
    "mix phx.server",
];

/// The most words that a pattern may have.
pub const WORDS_MAX: usize = 16;

/// Programs that run another one, which is the one that counts.
const INTERPRETERS: &[&str] =
    &["node", "nodejs", "bun", "deno", "python*", "ruby*", "php*", "perl*", "npx", "bunx", "env", "nice"];
/// Endings that a program's file may have, and that people leave out.
const ENDINGS: &[&str] = &[".js", ".mjs", ".cjs", ".ts", ".rb"];
/// Names of files that say nothing of the program: its package does (`node_modules/vitest/dist/cli.js`).
const IMPLICIT: &[&str] = &["cli", "index", "main", "bin"];

/// Words that a command has to have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandPattern {
    words: Vec<String>,
}

/// Why a text is no pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatternError {
    /// There is no word in it.
    #[error("a pattern needs a word")]
    Empty,
    /// It would match any program.
    #[error("the first word of a pattern names a program; `{0}` would match any")]
    AnyProgram(String),
    /// It has too many words.
    #[error("a pattern has {WORDS_MAX} words at most")]
    TooLong,
    /// It has a character in it that no command line has.
    #[error("a pattern is one line of text")]
    Control,
}

impl CommandPattern {
    /// Reads a pattern: words with spaces between them.
    ///
    /// # Errors
    /// [`PatternError`] where there is no word, none that names a program, or too many.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.chars().any(char::is_control) {
            return Err(PatternError::Control);
        }
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let first = words.first().ok_or(PatternError::Empty)?;
        if first.chars().all(|c| c == '*' || c == '.') {
            return Err(PatternError::AnyProgram(first.clone()));
        }
        if words.len() > WORDS_MAX {
            return Err(PatternError::TooLong);
        }
        Ok(Self { words })
    }

    /// Returns the built-in patterns.
    #[must_use]
    pub fn built_in() -> Vec<Self> {
        // INVARIANT: each of them is one, as a test shows.
        BUILT_IN.iter().filter_map(|text| Self::new(text).ok()).collect()
    }

    /// Says whether a command line, arguments ended by NUL, is one of these.
    #[must_use]
    pub fn matches(&self, arguments: &[u8]) -> bool {
        let words = words(arguments);
        let Some((program, rest)) = self.words.split_first() else { return false };
        places(&words).into_iter().any(|at| {
            is_program(program, &words[at]) && {
                let mut behind = words[at + 1..].iter();
                rest.iter().all(|wanted| behind.any(|word| glob(wanted, word)))
            }
        })
    }
}

impl fmt::Display for CommandPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.words.join(" "))
    }
}

/// Splits a command line. A program that set its own title has a single argument with spaces in it.
fn words(arguments: &[u8]) -> Vec<String> {
    let mut arguments = arguments;
    while let [rest @ .., 0] = arguments {
        arguments = rest;
    }
    if arguments.is_empty() {
        return Vec::new();
    }
    let words: Vec<String> =
        arguments.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    match words.as_slice() {
        [title] => title.split_whitespace().map(str::to_owned).collect(),
        _ => words,
    }
}

/// Returns where in a command line the program may stand: in front, and behind interpreters and their options.
fn places(words: &[String]) -> Vec<usize> {
    let mut places = Vec::new();
    let mut next = (!words.is_empty()).then_some(0);
    while let Some(at) = next {
        places.push(at);
        let is_interpreter = INTERPRETERS.iter().any(|name| glob(name, file_name(&words[at])));
        let is_option = |word: &String| word.starts_with('-') || word.contains('=');
        let behind = words.iter().skip(at + 1).position(|word| !is_option(word)).map(|count| at + 1 + count);
        next = behind.filter(|_| is_interpreter);
        // What follows an option may be what the option takes: then the program is the word after that.
        if let Some(first) = next {
            let option = &words[first - 1];
            let takes_one = option.starts_with('-') && !option.contains('=') && option != "-m";
            places.extend((takes_one && first + 1 < words.len()).then_some(first + 1));
        }
    }
    places
}

fn file_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

fn is_program(wanted: &str, word: &str) -> bool {
    let name = file_name(word);
    let stem = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
    if glob(wanted, name) || glob(wanted, stem) {
        return true;
    }
    // `…/node_modules/vitest/dist/cli.js`: the package says what it is.
    let package = word.rsplit_once("node_modules/").map(|(_, rest)| rest);
    let package = package.and_then(|rest| rest.split('/').find(|part| !part.starts_with('@')));
    IMPLICIT.contains(&stem) && package.is_some_and(|package| glob(wanted, package))
}

/// Says whether a text is what a word with `*` stands for.
fn glob(wanted: &str, text: &str) -> bool {
    let Some((head, tail)) = wanted.split_once('*') else { return wanted == text };
    let Some(mut rest) = text.strip_prefix(head) else { return false };
    let mut parts = tail.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Vec<u8> {
        words.iter().flat_map(|word| word.bytes().chain([0])).collect()
    }

    fn matching(words: &[&str]) -> Option<String> {
        CommandPattern::built_in()
            .iter()
            .find(|pattern| pattern.matches(&line(words)))
            .map(ToString::to_string)
    }

    #[test]
    fn what_is_left_behind_matches() {
        let table: &[(&[&str], &str)] = &[
            (&["npm run dev"], "npm run dev*"),
            (&["npm run dev:web --host"], "npm run dev*"),
            (&["npm", "--silent", "run", "dev"], "npm run dev*"),
            (&["node", "/usr/bin/npm", "run", "dev"], "npm run dev*"),
            (&["/usr/bin/node", "/p/node_modules/.bin/vite", "--port", "3000"], "vite"),
            (&["node", "--inspect", "/p/node_modules/vite/bin/vite.js"], "vite"),
            (&["node", "--require", "/p/x.cjs", "/p/node_modules/.bin/tsx", "watch", "a.ts"], "tsx watch"),
            (&["node", "/p/node_modules/.bin/tsx", "watch", "src/main.ts"], "tsx watch"),
            (&["node", "/p/node_modules/vitest/dist/cli.js"], "vitest"),
            (&["node (vitest 1)"], ""),
            (&["/p/node_modules/@esbuild/linux-x64/bin/esbuild", "--service=0.21.5", "--ping"], "esbuild"),
            (&["turbo", "run", "dev"], "turbo run *"),
            (&["next-server (v14.1.0)"], "next-server"),
            (&["node", "/p/node_modules/.bin/next", "dev"], "next dev"),
            (&["python3", "-m", "uvicorn", "app:app", "--reload"], "uvicorn --reload"),
            (&["/p/.venv/bin/python", "/p/.venv/bin/uvicorn", "app:app", "--reload"], "uvicorn --reload"),
            (&["python", "-u", "manage.py", "runserver", "8000"], "manage.py runserver*"),
            (&["python3", "-m", "flask", "--app", "x", "run"], "flask run"),
            (&["python3", "-m", "http.server", "8000"], "http.server"),
            (&["puma 6.4.0 (tcp://localhost:3000) [shop]"], "puma"),
            (&["ruby", "bin/rails", "s"], "rails s"),
            (&["php", "-S", "localhost:8000"], "php -S"),
            (&["php", "artisan", "serve"], "artisan serve"),
            (&["node", "--watch", "server.js"], "node --watch"),
            (&["env", "A=1", "nodemon", "x.js"], "nodemon"),
            (&["npx", "vite"], "vite"),
        ];
        for (words, expected) in table {
            assert_eq!(matching(words).unwrap_or_default(), *expected, "{words:?}");
        }
    }

    #[test]
    fn what_only_names_it_does_not() {
        let table: &[&[&str]] = &[
            &[],
            &["vim", "vite.config.ts"],
            &["less", "/p/node_modules/.bin/vite"],
            &["grep", "-r", "nodemon", "."],
            &["man", "esbuild"],
            &["bash"],
            &["-zsh"],
            &["tail", "-f", "npm run dev"],
            &["git", "commit", "-m", "vite"],
            &["uvicorn", "app:app"],
            &["npm", "run", "build"],
            &["npm", "install"],
            &["node", "server.js", "vite"],
            &["python3", "app.py", "flask", "run"],
            &["code", "."],
            &["webpack", "--mode", "production"],
            &["lariat", "run", "--", "npm", "run", "dev"],
        ];
        for words in table {
            assert_eq!(matching(words), None, "{words:?}");
        }
    }

    #[test]
    fn every_built_in_pattern_is_one_and_none_is_there_twice() {
        assert_eq!(CommandPattern::built_in().len(), BUILT_IN.len());
        let mut all = BUILT_IN.to_vec();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), BUILT_IN.len());
    }

    #[test]
    fn texts_that_are_no_patterns_are_refused() {
        assert_eq!(CommandPattern::new("  "), Err(PatternError::Empty));
        assert_eq!(CommandPattern::new("** dev"), Err(PatternError::AnyProgram("**".into())));
        assert_eq!(CommandPattern::new(&"a ".repeat(WORDS_MAX + 1)), Err(PatternError::TooLong));
        assert_eq!(CommandPattern::new("a\nb"), Err(PatternError::Control));
        assert_eq!(CommandPattern::new(" my-server  --dev ").unwrap().to_string(), "my-server --dev");
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (wanted, text, is_match) in [
            ("dev*", "dev", true),
            ("dev*", "dev:web", true),
            ("dev*", "prod", false),
            ("*dev", "web-dev", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*b*b", "ab", false),
            ("*", "", true),
        ] {
            assert_eq!(glob(wanted, text), is_match, "{wanted} {text}");
        }
    }

    #[test]
    fn the_document_is_the_list() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/sweep-patterns.md");
        let mut text = "# Patterns of `lariat sweep`\n\n<!-- Written by the test of \
            crates/lariat/src/ledger/recover/patterns.rs. -->\n\nProcesses of yours that work in the project's \
            directory and whose command is one of these are offered\nas \"possibly yours\" and never ended unasked. `*` \
            stands for any text; other arguments may stand between the words.\n`[sweep] patterns` in lariat.toml adds \
            to the list.\n\n"
            .to_owned();
        BUILT_IN.iter().for_each(|pattern| text.push_str(&format!("- `{pattern}`\n")));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &text).expect("the document");
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(found, text, "with UPDATE=1 in the environment the document is written anew");
    }
}
