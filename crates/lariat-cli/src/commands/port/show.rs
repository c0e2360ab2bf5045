//! Holders as a table, and as data.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anstyle::Style;
use lariat::ports::{Holder, HolderProcess, Proto};
use lariat::supervisor::freeing::Life;
use lariat_keeper::wire::End;
use serde::Serialize;

use super::Found;
use crate::commands::show::{duration, harmless, styled};

const HEAD: [&str; 8] = ["port", "proto", "address", "pid", "user", "age", "service", "command"];

/// Returns who listens as a table, what is known of their runs, and the ports on which nobody does.
pub(super) fn text(found: &Found, is_styled: bool) -> String {
    let bold = styled(Style::new().bold(), is_styled);
    let rows: Vec<[String; 8]> = found.holders.iter().flat_map(|holder| rows(found, holder)).collect();
    let mut text = String::new();
    if !rows.is_empty() {
        let cells = |column: usize| rows.iter().map(move |row| row[column].chars().count());
        let widths: Vec<usize> = (0..HEAD.len())
            .map(|column| cells(column).chain([HEAD[column].len()]).max().unwrap_or(0))
            .collect();
        let line = |row: &[String]| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        };
        text.push_str(&format!("{bold}{}{bold:#}\n", line(&HEAD.map(str::to_owned))));
        rows.iter().for_each(|row| text.push_str(&(line(row) + "\n")));
    }
    for (run, life) in &found.lives {
        text.push_str(&format!("run {run} {}\n", in_words(life)));
    }
    for port in found.ports.iter().filter(|port| found.on(**port).next().is_none()) {
        text.push_str(&format!("nobody listens on port {port}\n"));
    }
    text
}

/// Says what became of a run, to be put behind its name.
pub(super) fn in_words(life: &Life) -> String {
    let place = life.root().map(|root| format!(" ({})", harmless(&root.display().to_string())));
    let place = place.unwrap_or_default();
    match life {
        Life::Over { .. } => format!("is over{place}: this is left of it"),
        Life::Stack { .. } => format!("is alive{place}"),
        Life::Unanswered { .. } => format!("may be alive{place}, whose file system does not answer"),
        Life::Finishing { .. } => format!("is being ended by its keepers{place}"),
        Life::Command { guard } => format!("is alive: `lariat run`, process {guard}"),
        Life::Supervised { supervisor } => format!("is alive: its supervisor is process {supervisor}"),
        Life::Kept { keeper } => format!("is alive: its keeper is process {keeper}"),
    }
}

/// One line for each process that has the socket; what they share stands in the first.
fn rows(found: &Found, holder: &Holder) -> Vec<[String; 8]> {
    let dash = || "-".to_owned();
    let socket = [holder.addr.port().to_string(), proto(holder.proto).to_owned(), holder.addr.to_string()];
    if holder.processes.is_empty() {
        let [port, proto, addr] = socket;
        let user = harmless(&found.users.shown(holder.uid));
        return vec![[
            port,
            proto,
            addr,
            dash(),
            user,
            dash(),
            dash(),
            format!("({})", unseen(found.from.user)),
        ]];
    }
    let row = |(index, process): (usize, &HolderProcess)| {
        let [port, proto, addr] = if index == 0 { socket.clone() } else { [(); 3].map(|()| String::new()) };
        let user = harmless(&found.users.shown(process.uid.unwrap_or(holder.uid)));
        let service = process.mark.as_ref().map(|mark| mark.service.as_ref().unwrap_or(&mark.run));
        let service = service.map_or_else(dash, |service| harmless(service));
        let (pid, age) = (process.identity.pid.to_string(), duration(process.age));
        [port, proto, addr, pid, user, age, service, short(&process.command)]
    };
    holder.processes.iter().enumerate().map(row).collect()
}

/// Characters of a command that are shown at most; `--json` has more.
const COMMAND_SHOWN: usize = 80;

/// Returns the beginning of a command, harmless.
pub(super) fn short(command: &str) -> String {
    let mut shown = harmless(command);
    if let Some((cut, _)) = shown.char_indices().nth(COMMAND_SHOWN) {
        shown.truncate(cut);
        shown.push('…');
    }
    shown
}

/// Says who has a socket that no process we see has.
pub(super) fn unseen(user: u32) -> &'static str {
    // Root may look into everybody, so whoever is not seen is not there to be seen.
    if user == 0 { "in another pid namespace, or the kernel" } else { "may not be looked into" }
}

fn proto(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}

/// What `--json` prints.
#[derive(Serialize)]
pub(super) struct Ports<'a> {
    ports: Vec<OnePort<'a>>,
    /// What was ended, with `--free`.
    ended: &'a [Ended],
}

#[derive(Serialize)]
struct OnePort<'a> {
    port: u16,
    is_free: bool,
    holders: Vec<OneSocket<'a>>,
}

#[derive(Serialize)]
struct OneSocket<'a> {
    protocol: &'static str,
    address: SocketAddr,
    uid: u32,
    user: Option<&'a str>,
    processes: Vec<OneProcess<'a>>,
}

#[derive(Serialize)]
struct OneProcess<'a> {
    pid: i32,
    start: u64,
    command: &'a str,
    uid: Option<u32>,
    user: Option<&'a str>,
    age: f64,
    run: Option<&'a str>,
    service: Option<&'a str>,
    root: Option<String>,
    is_run_alive: Option<bool>,
}

/// What was ended of one run.
#[derive(Serialize)]
pub(super) struct Ended {
    pub(super) run: String,
    /// The services; all of the run if there are none.
    pub(super) services: BTreeSet<String>,
    pub(super) told: u32,
    pub(super) killed: u32,
    pub(super) left: u32,
    pub(super) took: f64,
}

impl Ended {
    pub(super) fn new(run: String, services: BTreeSet<String>, end: &End, took: f64) -> Self {
        Self { run, services, told: end.told, killed: end.killed, left: end.left, took }
    }
}

/// Returns who listens as data.
pub(super) fn json<'a>(found: &'a Found, ended: &'a [Ended]) -> Ports<'a> {
    let process = |process: &'a HolderProcess| {
        let mark = process.mark.as_ref();
        let life = found.life(process).map(|(_, life)| life);
        OneProcess {
            pid: process.identity.pid,
            start: process.identity.start,
            command: &process.command,
            uid: process.uid,
            user: process.uid.and_then(|uid| found.users.name(uid)),
            age: process.age.as_secs_f64(),
            run: mark.map(|mark| mark.run.as_str()),
            service: mark.and_then(|mark| mark.service.as_deref()),
            root: life.and_then(Life::root).map(|root| root.display().to_string()),
            is_run_alive: life.map(|life| !life.is_over()),
        }
    };
    let socket = |holder: &'a Holder| OneSocket {
        protocol: proto(holder.proto),
        address: holder.addr,
        uid: holder.uid,
        user: found.users.name(holder.uid),
        processes: holder.processes.iter().map(process).collect(),
    };
    let port = |port: &u16| {
        let holders: Vec<OneSocket<'a>> = found.on(*port).map(socket).collect();
        OnePort { port: *port, is_free: holders.is_empty(), holders }
    };
    Ports { ports: found.ports.iter().map(port).collect(), ended }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use lariat::ledger::record::RunId;
    use lariat::process::Mark;
    use lariat::supervisor::freeing::Standpoint;
    use lariat_sys::identity::Identity;

    use super::*;
    use crate::commands::users::Users;

    const RUN: &str = "0123456789abcdef";

    fn found() -> Found {
        let process = |pid, command: &str, mark| HolderProcess {
            identity: Identity::new(pid, 9),
            uid: Some(1000),
            command: command.into(),
            age: Duration::from_secs(75),
            mark,
        };
        let mark = Some(Mark { run: RUN.into(), service: Some("web".into()), ..Mark::default() });
        let holder =
            |proto, addr: &str, processes| Holder { proto, addr: addr.parse().unwrap(), uid: 0, processes };
        let holders = vec![
            holder(
                Proto::Tcp,
                "[::1]:80",
                vec![process(40, "serve \u{1b}[2J", mark), process(4100, "worker", None)],
            ),
            holder(Proto::Udp, "0.0.0.0:80", vec![]),
        ];
        let run = RunId::try_from(RUN.to_owned()).unwrap();
        let life = Life::Stack { root: "/home/me/shop".into() };
        Found {
            ports: BTreeSet::from([80, 81]),
            holders,
            from: Standpoint { user: 1000, above: BTreeSet::new() },
            lives: BTreeMap::from([(run, life)]),
            users: Users::default(),
        }
    }

    #[test]
    fn a_socket_is_one_entry_with_its_processes() {
        assert_eq!(
            text(&found(), false),
            "port  proto  address     pid   user  age         service  command\n\
             80    tcp    [::1]:80    40    1000  1 min 15 s  web      serve \u{fffd}[2J\n\
             \x20                        4100  1000  1 min 15 s  -        worker\n\
             80    udp    0.0.0.0:80  -     0     -           -        (may not be looked into)\n\
             run 0123456789abcdef is alive (/home/me/shop)\n\
             nobody listens on port 81\n"
        );
    }

    #[test]
    fn the_same_is_said_as_data() {
        let value = serde_json::to_value(json(&found(), &[])).unwrap();
        assert_eq!(value["ports"][0]["is_free"], false);
        assert_eq!(value["ports"][1]["is_free"], true);
        let socket = &value["ports"][0]["holders"][0];
        assert_eq!(
            (socket["protocol"].as_str(), socket["address"].as_str()),
            (Some("tcp"), Some("[::1]:80"))
        );
        let (first, second) = (&socket["processes"][0], &socket["processes"][1]);
        assert_eq!(first["run"], RUN);
        assert_eq!(first["root"], "/home/me/shop");
        assert_eq!(
            (&first["is_run_alive"], &second["is_run_alive"]),
            (&true.into(), &serde_json::Value::Null)
        );
        assert_eq!(value["ports"][0]["holders"][1]["processes"].as_array().map(Vec::len), Some(0));
    }
}
