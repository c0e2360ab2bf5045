//! One program that misbehaves in every way a supervised program can: the fixtures of lariat's tests.
//!
//! `misbehave KIND [--facts DIR] [--limit SECONDS] [--key value]…`. A fixture says what it has reached by *facts*,
//! files in `DIR` (see [`facts`]), so that no test needs to sleep. **Every process of a fixture ends itself** when
//! the limit (60 s unless said) is over, by a kernel timer that sends SIGKILL, which reaches stopped and stubborn
//! processes too: nothing outlives a broken test.
//!
//! It deliberately does not use lariat's own crates: it has to misbehave the same way whatever lariat does. It has
//! no Rust `main`, because the runtime would change SIGPIPE and closed standard descriptors before we see them.

#![no_main]

mod args;
mod facts;
mod listen;
mod member;
mod output;
mod report;
mod strange;
mod sys;
mod tree;

use args::Args;

/// What every usage message starts with.
const USAGE: &str = "misbehave KIND [--facts DIR] [--limit SECONDS] [--key value]...";

/// The entry the C library calls.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    let args = match Args::parse(std::env::args()) {
        Ok(args) => args,
        Err(what) => {
            sys::complain(&format!("misbehave: {what}\nusage: {USAGE}\n"));
            return 2;
        }
    };
    sys::arm(args.until);
    run(&args)
}

fn run(args: &Args) -> libc::c_int {
    match args.kind.as_str() {
        "alone" => tree::alone(args),
        "own-group" => tree::with_child(args, tree::Escape::Group),
        "new-session" => tree::with_child(args, tree::Escape::Session),
        "child" => tree::with_child(args, tree::Escape::None),
        "daemon" => tree::with_daemon(args),
        "disguised" => tree::with_disguised(args),
        "disguised-member" => tree::disguised_member(args),
        "stopped" => tree::with_stopped(args),
        "port-holder" => tree::with_port(args),
        "listener" => listen::listener(args),
        "wide" => tree::wide(args),
        "deep" => tree::deep(args),
        "forker" => tree::forker(args),
        "runners" => tree::runners(args),
        "forks-while-dying" => tree::forks_while_dying(args),
        "daemonize-on-term" => tree::daemonize_on_term(args),
        "twins" => strange::twins(args),
        "reader" => strange::reader(args),
        "demoted" => strange::demoted(args),
        "forger" => strange::forger(args),
        "usurper" => strange::usurper(args),
        "usurper-member" => strange::usurper_member(args),
        "flood" => output::flood(args),
        "no-newline" => output::no_newline(args),
        "binary" => output::binary(args),
        "last-words" => output::last_words(args),
        "pipe-holder" => output::pipe_holder(args),
        "self" => report::whole(args),
        "window" => report::window(args),
        "exit" => args.number("code", 0),
        "die" => sys::die_of(args.number("signal", libc::SIGTERM)),
        other => {
            sys::complain(&format!("misbehave: no fixture is called `{other}`\nusage: {USAGE}\n"));
            2
        }
    }
}
