//! Processes that cannot be ended, or not by everybody, and some that do not want to be.

use std::io::{Error, ErrorKind};

use crate::args::Args;
use crate::facts::Muster;
use crate::member::Part;
use crate::sys;

/// How often a twin may be replaced over the whole life of a pair.
const TWINS_MAX: u32 = 5_000;

/// A leader and a member that opens `--file` and never gets an answer, if that is what the file is for.
pub(crate) fn reader(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    if sys::fork(part.until).is_none() {
        part.prepare();
        part.facts.announce("reader");
        muster.stand();
        let _ = std::fs::read(args.text("file", "/dev/null"));
        part.live("reader")
    }
    muster.wait_for(1);
    lead(&part)
}

/// A leader that becomes the user `--user` for good, as servers do that were started as root.
pub(crate) fn demoted(args: &Args) -> i32 {
    sys::become_user(args.number("user", 2));
    lead(&Part::of(args))
}

/// A leader that takes every socket of its parent and says `--word` (in hexadecimal) on it. Says how many in `forged`.
/// With `--besides kill` it kills its parent after that, with `--besides repeat` it goes on to say it as well, for as long
/// as anybody can hear it, with `--besides limit` it takes the right to open anything from its
/// parent's parent before.
pub(crate) fn forger(args: &Args) -> i32 {
    let part = Part::of(args);
    let digits = args.text("word", "").as_bytes().chunks(2);
    let word: Option<Vec<u8>> =
        digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect();
    let Some(word) = word else { sys::broken("no hexadecimal") };
    let besides = args.text("besides", "");
    // It is told as soon as its parent is dead.
    part.prepare();
    if besides == "limit" {
        sys::forbid_files_above();
    }
    let sockets = sys::say_for_parent(&word);
    part.facts.state("forged", &sockets.len().to_string());
    if besides == "repeat" {
        // Several at once: whoever listens is never done.
        for socket in sockets.into_iter().flat_map(|socket| [socket; 8]) {
            let word = word.clone();
            std::thread::spawn(move || {
                // A full socket is one that somebody listens to.
                while sys::say(socket, &word) || Error::last_os_error().kind() == ErrorKind::WouldBlock {}
            });
        }
    }
    if besides == "kill" || besides == "repeat" {
        sys::kill_parent();
    }
    lead(&part)
}

/// A leader and a child that executes `--program`, a copy of this one with set-uid root, which becomes root for good.
pub(crate) fn usurper(args: &Args) -> i32 {
    let part = Part::of(args);
    if sys::fork(part.until).is_none() {
        let until = args.until.to_string();
        let facts = args.facts.as_ref().map_or(String::new(), |dir| dir.to_string_lossy().into_owned());
        let program = args.text("program", "");
        sys::execute_bare(program, &["misbehave", "usurper-member", "--until", &until, "--facts", &facts]);
    }
    lead(&part)
}

/// The second half of [`usurper`].
pub(crate) fn usurper_member(args: &Args) -> i32 {
    let part = Part::of(args);
    sys::become_user(0);
    part.prepare();
    part.facts.announce("usurper");
    part.live("usurper")
}

/// A leader and `--n` pairs of twins, each in a session of its own, that replace one another: who sees its twin die forks a
/// new one.
pub(crate) fn twins(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    let pairs: usize = args.number("n", 3);
    for _ in 0..pairs {
        if sys::fork(part.until).is_none() {
            part.prepare();
            sys::new_session();
            muster.stand();
            guard(&part, None)
        }
    }
    muster.wait_for(pairs);
    lead(&part)
}

/// Lives for as long as there is a twin to replace. `held` are the end to hold, whose closing says that we died, and the
/// end on which the other's death is seen.
fn guard(part: &Part, held: Option<(i32, i32)>) -> ! {
    let mut held = held;
    for _ in 0..TWINS_MAX {
        if let Some((own, other)) = held.take() {
            while sys::read_one(other).is_some() {}
            sys::close(own);
            sys::close(other);
            while sys::reap_one(false) {}
        }
        let ((our_read, our_write), (their_read, their_write)) = (sys::pipe(), sys::pipe());
        if sys::fork(part.until).is_none() {
            sys::new_session();
            sys::close(our_write);
            sys::close(their_read);
            held = Some((their_write, our_read));
            continue;
        }
        sys::close(our_read);
        sys::close(their_write);
        held = Some((our_write, their_read));
    }
    sys::exit_now(0)
}

fn lead(part: &Part) -> ! {
    part.prepare();
    part.facts.announce("leader");
    part.facts.state("ready", "");
    part.live("leader")
}
