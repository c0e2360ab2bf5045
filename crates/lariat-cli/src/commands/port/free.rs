//! `lariat port --free`: ends what dead runs left on the ports, and says of everybody else how to end it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lariat::ports::{Holder, HolderProcess};
use lariat::service::spec::ServiceName;
use lariat::shutdown::verify;
use lariat::supervisor::freeing::{Leftover, Life, Standing, Standpoint, wait_until_free};
use lariat_sys::identity::Identity;

use super::show::{self, Ended};
use super::{Found, unknown};
use crate::args::port::PortArgs;
use crate::commands::past::{self, GRACE};
use crate::commands::show::{count, duration, harmless};
use crate::commands::up::{Signals, own_trouble};
use crate::commands::waiting::{Manner, Waiting};
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// How long a port may be held after everybody who held it was ended. The kernel closes sockets as it ends processes.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);

/// Those who are left alone.
#[derive(Default)]
struct Spared {
    processes: BTreeSet<Identity>,
    /// Why nobody ended them; the first reason in the order of [`code`] counts.
    codes: Vec<ExitCode>,
}

pub(super) fn run(args: &PortArgs, mut found: Found, output: &mut Output) -> Result<ExitCode, Failure> {
    Identity::own().map_err(|errno| {
        own_trouble("could not find lariat in /proc", errno)
            .hint("/proc has to be mounted, and of the pid namespace that lariat is in")
    })?;
    found.from = Standpoint::own();
    if !args.json {
        output.print(show::text(&found, output.is_out_styled()));
    }
    let mut spared = spare(&found, output);
    let leftovers = leftovers(&found, &mut spared, output)?;
    let ended = if leftovers.is_empty() { Vec::new() } else { end(&leftovers, args, output)? };
    // The locks are held until here, so that nobody starts anything in between.
    let left = if ended.is_empty() {
        found.holders.clone()
    } else {
        let deadline = Instant::now() + CLOSED_WITHIN;
        wait_until_free(&found.ports, &spared.processes, deadline).map_err(|error| unknown(&error))?
    };
    drop(leftovers);
    let now = Found { holders: left, ..found };
    if args.json {
        output.print_json(&show::json(&now, &ended))?;
    } else if !ended.is_empty() {
        say(&now, &ended, output);
    }
    Ok(code(&now.holders, &spared))
}

/// 0 where nobody is left, 4 where one is who should not be, otherwise the reason why somebody was left alone.
fn code(left: &[Holder], spared: &Spared) -> ExitCode {
    let mut processes = left.iter().flat_map(|holder| &holder.processes);
    if left.is_empty() {
        ExitCode::Done
    } else if processes.any(|process| !spared.processes.contains(&process.identity)) {
        ExitCode::Left
    } else if spared.codes.contains(&ExitCode::LiveRun) {
        ExitCode::LiveRun
    } else {
        ExitCode::PortInUse
    }
}

/// Why a process is left alone.
#[derive(PartialEq, Eq)]
struct Why {
    code: ExitCode,
    what: String,
    /// What to do; signals by hand where it does not say.
    how: Option<String>,
}

/// Says of everybody who is left alone why, and what to do. Once for those who share a socket, and once for each
/// process, whatever it has open.
fn spare(found: &Found, output: &mut Output) -> Spared {
    let mut spared = Spared::default();
    for holder in &found.holders {
        let port = holder.addr.port();
        if holder.processes.is_empty() {
            output.note(&format!("port {port}: {}", unseen(found.from.user, port)));
            spared.codes.push(ExitCode::PortInUse);
        }
        let mut groups: Vec<(Why, Vec<&HolderProcess>)> = Vec::new();
        for process in &holder.processes {
            let Some(why) = why_spared(found, process) else { continue };
            spared.codes.push(why.code);
            if spared.processes.insert(process.identity) {
                match groups.iter_mut().find(|(known, _)| *known == why) {
                    Some((_, processes)) => processes.push(process),
                    None => groups.push((why, vec![process])),
                }
            }
        }
        groups.iter().for_each(|(why, group)| output.note(&note(port, why, group, found.from.user)));
    }
    spared
}

/// Says why these processes are left alone.
fn note(port: u16, why: &Why, group: &[&HolderProcess], user: u32) -> String {
    let pids: Vec<String> = group.iter().map(|process| process.identity.pid.to_string()).collect();
    let command = group.first().map(|process| show::short(&process.command)).unwrap_or_default();
    let others = pids.get(1..).filter(|others| !others.is_empty());
    let others = others.map(|others| format!(" and with it by {}", others.join(", "))).unwrap_or_default();
    let how = why.how.clone().unwrap_or_else(|| {
        let is_ours = group.iter().all(|process| process.uid == Some(user));
        let sudo = if user == 0 || is_ours { "" } else { "sudo " };
        format!("by hand: {sudo}kill {}", pids.join(" "))
    });
    let first = pids.first().cloned().unwrap_or_default();
    format!("port {port} is held by {first} `{command}`{others}: {}\n  {how}", why.what)
}

/// Returns why a process is left alone; `None` for one that may be ended.
fn why_spared(found: &Found, process: &HolderProcess) -> Option<Why> {
    let foreign = |what: &str| Some(Why { code: ExitCode::PortInUse, what: what.to_owned(), how: None });
    match found.standing(process) {
        Standing::Marked { run, service } => {
            let life = found.lives.get(&run)?;
            let how = to_stop(life, service.as_deref())?;
            let service =
                service.map(|name| format!("service `{}` of ", harmless(&name))).unwrap_or_default();
            let what = format!("{service}run {run}, which {}", show::in_words(life));
            Some(Why { code: ExitCode::LiveRun, what, how })
        }
        Standing::Init => Some(init(found.from.user, process)),
        Standing::Above => foreign("this command was started from it; it is left alone"),
        Standing::OtherUser(_) => foreign("another user's, and left alone"),
        Standing::Stranger => foreign("not started by lariat, and left alone"),
    }
}

/// Returns how to stop a service of a live run, signals by hand where there is no better way; `None` for one that is over.
fn to_stop(life: &Life, service: Option<&str>) -> Option<Option<String>> {
    let how = match life {
        Life::Over { .. } => return None,
        Life::Unanswered { .. } => return Some(None),
        Life::Stack { .. } => {
            let service = service.filter(|name| ServiceName::new(*name).is_ok()).unwrap_or("SERVICE");
            format!("there: `lariat stop {service}`, or `lariat down` for all of it")
        }
        Life::Finishing { .. } => "there: `lariat down` waits for them".into(),
        Life::Command { guard: decides } | Life::Supervised { supervisor: decides } => {
            format!("by hand: kill {decides}")
        }
        Life::Kept { keeper } => format!("its supervisor is above process {keeper}: end that one"),
    };
    Some(Some(how))
}

fn init(user: u32, process: &HolderProcess) -> Why {
    let is_systemd = ["systemd", "/sbin/init"].iter().any(|name| process.command.contains(name));
    if !is_systemd {
        let what = "the first process here, whose end is everybody's; it is left alone".to_owned();
        return Why {
            code: ExitCode::PortInUse,
            what,
            how: Some("end what it listens for, or its container".into()),
        };
    }
    let sudo = if user == 0 { "" } else { "sudo " };
    let what = "systemd, which starts a unit when somebody connects; it is left alone".to_owned();
    let how = format!("`systemctl list-sockets` shows which one; by hand: {sudo}systemctl stop NAME.socket");
    Why { code: ExitCode::PortInUse, what, how: Some(how) }
}

fn unseen(user: u32, port: u16) -> String {
    if user == 0 {
        return format!(
            "its holder is {}\n  a container's is in `docker ps` or `podman ps`",
            show::unseen(0)
        );
    }
    format!("its holder {}\n  by hand: sudo lariat port {port}", show::unseen(user))
}

/// Prepares the end of every run that is over.
fn leftovers(found: &Found, spared: &mut Spared, output: &mut Output) -> Result<Vec<Leftover>, Failure> {
    let mut leftovers = Vec::new();
    let runs = lariat::supervisor::freeing::runs_of(&found.holders, &found.from);
    for (run, (_, services)) in runs {
        let Some(life) = found.lives.get(&run).filter(|life| life.is_over()) else { continue };
        match Leftover::open(&run, services, life.root()).map_err(past::ledger_failure)? {
            Some(leftover) => leftovers.push(leftover),
            None => {
                output.note(&format!("run {run}: another lariat is at work in its project in this moment"));
                let processes = found.holders.iter().flat_map(|holder| &holder.processes);
                let of_run =
                    processes.filter(|process| found.life(process).is_some_and(|(of, _)| *of == run));
                spared.processes.extend(of_run.map(|process| process.identity));
                spared.codes.push(ExitCode::LiveRun);
            }
        }
    }
    Ok(leftovers)
}

/// Shows who is to be ended, asks, and ends it.
fn end(leftovers: &[Leftover], args: &PortArgs, output: &mut Output) -> Result<Vec<Ended>, Failure> {
    let signals = Signals::take()?;
    let mut shown = Vec::new();
    for leftover in leftovers {
        output.note(&format!("{} is over; this is left of it:", name(leftover)));
        let found = leftover.look();
        past::lines(&found).iter().for_each(|line| output.note(line));
        shown.push(found);
    }
    past::consent(args.yes, "what holds the port", &signals)?;
    let mut ended = Vec::new();
    let manner = if args.json { Manner::Silent } else { Manner::of(output) };
    for (leftover, certain) in leftovers.iter().zip(&shown) {
        let began = Instant::now();
        let grace = leftover.longest_grace(GRACE);
        let end = {
            let mut waiting = Waiting::new(certain, grace, manner, &signals, output);
            leftover.end(GRACE, || waiting.pace())
        };
        for found in leftover.look() {
            if let Some(left) = verify::describe(found.identity, "it does not end") {
                let (command, reason) = (harmless(&left.command), harmless(&left.reason));
                output.note(&format!("left: {} `{command}`: {reason}", left.pid));
            }
        }
        let services = leftover.services().cloned().unwrap_or_default();
        let took = began.elapsed().as_secs_f64();
        ended.push(Ended::new(leftover.run().to_string(), services, &end, took));
    }
    Ok(ended)
}

fn name(leftover: &Leftover) -> String {
    let run = format!("run {}", leftover.run());
    match leftover.services() {
        Some(services) => {
            let names: Vec<String> = services.iter().map(|name| format!("`{}`", harmless(name))).collect();
            format!("{} of {run}", names.join(", "))
        }
        None => run,
    }
}

/// Says what was ended, and how the ports are now.
fn say(now: &Found, ended: &[Ended], output: &mut Output) {
    for one in ended {
        let took = duration(Duration::try_from_secs_f64(one.took).unwrap_or_default());
        let killed = if one.killed == 0 { String::new() } else { format!(", {} killed", one.killed) };
        let told = count(u64::from(one.told), "process", "processes");
        output.print(format!("ended after {took}: {told} told{killed}\n"));
    }
    for port in &now.ports {
        match now.on(*port).map(|holder| harmless(&holder.to_string())).collect::<Vec<_>>().as_slice() {
            [] => output.print(format!("port {port} is free\n")),
            holders => output.print(format!("port {port} is held by {}\n", holders.join(", "))),
        }
    }
}
