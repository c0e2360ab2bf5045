//! A program that says what it was started with, to be compared with a bare start, and one that watches its window.

use std::fmt::Write as _;
use std::fs;

use crate::args::Args;
use crate::facts::Facts;
use crate::sys;

/// Writes everything a program inherits, one `key value` per line, to standard output and as the fact `self`.
pub(crate) fn whole(args: &Args) -> i32 {
    let mut text = String::new();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines() {
        let is_wanted =
            ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd", "Umask", "Uid", "Gid", "Groups", "CapEff"]
                .iter()
                .any(|key| line.starts_with(key));
        if is_wanted {
            let _ = writeln!(text, "{line}");
        }
    }
    for (at, argument) in std::env::args().enumerate() {
        let _ = writeln!(text, "argument {at} {argument}");
    }
    for entry in fs::read("/proc/self/environ").unwrap_or_default().split(|byte| *byte == 0) {
        let _ = writeln!(text, "environment {}", String::from_utf8_lossy(entry));
    }
    let _ = writeln!(text, "directory {}", fs::read_link("/proc/self/cwd").unwrap_or_default().display());
    text.push_str(&descriptors());
    for name in ["limits", "oom_score_adj", "timerslack_ns", "comm"] {
        let _ =
            writeln!(text, "{name} {}", fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default());
    }
    let _ = writeln!(text, "{}", place());
    sys::write_all(1, text.as_bytes());
    Facts::of(args).state("self", &text);
    0
}

/// Descriptors and what they are, without the numbers that differ from run to run.
fn descriptors() -> String {
    let mut lines = Vec::new();
    for number in 0..256 {
        let Ok(target) = fs::read_link(format!("/proc/self/fd/{number}")) else { continue };
        lines.push(format!("descriptor {number} {}\n", target.display()));
    }
    lines.concat()
}

/// Nice value, and whether this process leads its group and session or has a terminal.
fn place() -> String {
    // SAFETY: numbers in, numbers out.
    let (group, session, nice) =
        unsafe { (libc::getpgrp(), libc::getsid(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
    let (leads_group, leads_session) = (group == sys::pid(), session == sys::pid());
    let has_terminal = fs::File::open("/dev/tty").is_ok();
    format!(
        "place leads_group={leads_group} leads_session={leads_session} nice={nice} terminal={has_terminal}"
    )
}

/// Writes `window ROWS COLUMNS` at the start and at every WINCH.
pub(crate) fn window(args: &Args) -> i32 {
    let facts = Facts::of(args);
    let heard = [libc::SIGWINCH, libc::SIGTERM, libc::SIGINT, libc::SIGUSR1];
    // A blocked signal whose default action is to be ignored is dropped all the same unless it has a handler; WINCH
    // is of that kind, but sigtimedwait(2) on a blocked one does get it on Linux.
    sys::block(&heard);
    facts.announce("leader");
    loop {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: room for one window size.
        unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) };
        let text = format!("window {} {}\n", size.ws_row, size.ws_col);
        facts.state("window", &text);
        sys::write_all(1, text.as_bytes());
        facts.state("ready", "");
        if sys::wait_signal(&heard, None) != Some(libc::SIGWINCH) {
            return 0;
        }
    }
}
