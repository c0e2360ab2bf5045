//! Tells what happens, as lines for people. Pure: events in, text out.

use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use lariat::event::{EventKind, ServiceEnded};

use super::report::UNSEEN;
use super::{count, duration, harmless, styled};

/// Silence of a start-up or a stop, after which it is said who is waited for.
const REMIND_AFTER: Duration = Duration::from_secs(2);
/// How often that is said again.
const REMIND_EVERY: Duration = Duration::from_secs(10);
/// Services that are named at most.
const NAMED_MAX: usize = 3;

/// What is known of a service that has started, for the summary.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    service: String,
    pid: i32,
    port: Option<u16>,
    ready_after: Option<Duration>,
}

/// Tells the events of one run.
#[derive(Clone, Debug)]
pub(crate) struct Narrator {
    is_styled: bool,
    /// A signal typed now ends the grace periods.
    can_hurry: bool,
    rows: Vec<Row>,
    /// Services that were told to stop with the stack, and when they are killed.
    stopping: Vec<(String, Instant)>,
    remind_at: Option<Instant>,
    has_started_up: bool,
    is_stopping: bool,
    has_force_begun: bool,
    last_phase: u8,
    orphans: String,
}

impl Narrator {
    pub(crate) fn new(is_styled: bool) -> Self {
        Self {
            is_styled,
            can_hurry: false,
            rows: Vec::new(),
            stopping: Vec::new(),
            remind_at: None,
            has_started_up: false,
            is_stopping: false,
            has_force_begun: false,
            last_phase: 0,
            orphans: String::new(),
        }
    }

    /// The same for whoever sits at the run's own terminal, where Ctrl-C ends the grace periods.
    pub(crate) fn at_terminal(self, is_terminal: bool) -> Self {
        Self { can_hurry: is_terminal, ..self }
    }

    /// Returns what there is to say about an event that is heard of now, as whole lines; often nothing.
    pub(crate) fn tell(&mut self, kind: &EventKind, now: Instant) -> String {
        self.note_wait(kind, now);
        self.say(kind)
    }

    /// Returns when [`Self::remind`] has something to say, if nothing happens before.
    pub(crate) fn remind_at(&self) -> Option<Instant> {
        self.remind_at
    }

    /// Says who is waited for, if nobody has heard of that for long.
    pub(crate) fn remind(&mut self, now: Instant) -> String {
        if self.remind_at.is_none_or(|at| now < at) {
            return String::new();
        }
        self.remind_at = Some(now + REMIND_EVERY);
        if !self.is_stopping {
            let late = self.rows.iter().filter(|row| row.ready_after.is_none());
            let late: Vec<&str> = late.map(|row| row.service.as_str()).collect();
            return if late.is_empty() {
                String::new()
            } else {
                line(&format!("waiting until ready: {}", names(&late)))
            };
        }
        let Some(last) = self.stopping.iter().map(|(_, killed_at)| *killed_at).max() else {
            return String::new();
        };
        let named: Vec<&str> = self.stopping.iter().map(|(service, _)| service.as_str()).collect();
        let most = last.saturating_duration_since(now).as_secs_f64().ceil();
        let hurry = if self.can_hurry { " (Ctrl-C: at once)" } else { "" };
        line(&format!("      waiting at most {most} s, then KILL{hurry}: {}", names(&named)))
    }

    fn note_wait(&mut self, kind: &EventKind, now: Instant) {
        let again_at = Some(now + REMIND_AFTER);
        match kind {
            EventKind::ServiceStarted { .. } if !self.has_started_up => self.remind_at = again_at,
            EventKind::ShutdownStarted { .. } => self.remind_at = again_at,
            EventKind::ServiceStopping { service, grace } if self.is_stopping => {
                self.stopping.push((service.clone(), now + *grace));
                self.remind_at = again_at;
            }
            EventKind::ServiceEnded(ServiceEnded { service, .. }) | EventKind::ServiceKilled { service } => {
                self.stopping.retain(|(stopping, _)| stopping != service);
            }
            EventKind::StartupFinished { .. } | EventKind::ShutdownForced | EventKind::PhaseEnded { .. } => {
                self.remind_at = None;
            }
            _ => {}
        }
    }

    fn say(&mut self, kind: &EventKind) -> String {
        match kind {
            EventKind::ServiceStarted { service, pid, port } => {
                self.started(service, *pid, *port);
                String::new()
            }
            EventKind::ServiceReady { service, after } => self.ready(service, *after),
            EventKind::StartupFinished { after } => self.started_up(*after),
            EventKind::StartupFailed { service, reason } => {
                let reason = harmless(reason);
                self.bad(&format!("start-up failed: {service}: {reason}"))
            }
            EventKind::ServiceNotStarted { service, reason } => {
                self.bad(&format!("{service} could not be started: {}", harmless(reason)))
            }
            EventKind::ServiceNotReady { service, after, reason } => {
                let (after, reason) = (duration(*after), harmless(reason));
                self.bad(&format!("{service} was not ready after {after}: {reason}"))
            }
            EventKind::ServiceDaemonized { service, members } => {
                let members = count(u64::from(*members), "process", "processes");
                line(&format!("{service} went to the background with {members}"))
            }
            EventKind::StragglersFound { service, alive } if !self.is_stopping => {
                let alive = count(u64::from(*alive), "process", "processes");
                line(&format!("{service} left {alive}, which are stopped now"))
            }
            EventKind::ServiceEnded(end) => self.ended(end),
            EventKind::RestartScheduled { service, after, restarts } => {
                line(&format!("{service} is started again in {} (restart {restarts})", duration(*after)))
            }
            EventKind::ServiceGaveUp { service, restarts } => {
                let restarts = count(u64::from(*restarts), "restart", "restarts");
                self.bad(&format!("{service} is not started again after {restarts}"))
            }
            EventKind::KeeperLost { service, is_isolated } => {
                let then = match is_isolated {
                    true => "the kernel ended everything in its pid namespace",
                    false => "what it left is being ended",
                };
                self.bad(&format!("the keeper of {service} was killed; {then}"))
            }
            EventKind::MemberLeft { pid, name, reason, .. } => {
                self.bad(&format!("{pid} {} could not be ended: {}", harmless(name), harmless(reason)))
            }
            EventKind::OrphanFound { pid, name, reason } => {
                // Named under the line of their phase, which is told when it is over.
                self.orphans.push_str(&format!("      {pid} {}: {}\n", harmless(name), harmless(reason)));
                String::new()
            }
            EventKind::Trouble { what } | EventKind::LimitReached { what } => self.bad(&harmless(what)),
            _ => self.tell_shutdown(kind),
        }
    }

    fn tell_shutdown(&mut self, kind: &EventKind) -> String {
        match kind {
            EventKind::ShutdownStarted { why, deadline } => {
                self.is_stopping = true;
                let deadline = duration(*deadline);
                self.phase(1, "graceful", &format!("{}; within {deadline}", harmless(why)))
            }
            EventKind::ShutdownForced if self.is_stopping => line("      killing everything now"),
            EventKind::ShutdownLeft => self.bad("leaving; keepers finish the work"),
            EventKind::PhaseStarted { number: 2, .. } if self.last_phase < 2 && !self.has_force_begun => {
                self.has_force_begun = true;
                String::new()
            }
            EventKind::PhaseEnded { number, phase, took, services, processes } => {
                self.phase_ended(*number, phase, *took, *services, *processes)
            }
            EventKind::RunEnded { is_clean, left, is_blind, .. } => {
                let seen = match (is_clean, left) {
                    (true, _) => "nothing is alive, ports are free".to_owned(),
                    (false, 0) if *is_blind => UNSEEN.to_owned(),
                    (false, 0) => "something is left".to_owned(),
                    (false, left) => count(u64::from(*left), "process is left", "processes are left"),
                };
                if self.last_phase == 5 { self.phase(5, "verify", &seen) } else { String::new() }
            }
            _ => String::new(),
        }
    }

    fn phase_ended(
        &mut self,
        number: u8,
        phase: &str,
        took: Duration,
        services: u32,
        processes: u32,
    ) -> String {
        self.last_phase = number;
        let processes_in_words = count(u64::from(processes), "process", "processes");
        let took = duration(took);
        match number {
            1 if services == 0 => String::new(),
            // Told when it began; the services told of themselves since.
            1 => {
                let services = count(u64::from(services), "service", "services");
                line(&format!("      {services} stopped in {took}"))
            }
            2 if processes == 0 && services == 0 => self.phase(2, phase, "nobody had to be killed"),
            2 => self.phase(2, phase, &format!("{processes_in_words} killed in {took}")),
            3 => {
                let orphans = std::mem::take(&mut self.orphans);
                let said = if processes == 0 && orphans.is_empty() {
                    "none".to_owned()
                } else {
                    format!("{processes_in_words} ended in {took}")
                };
                self.phase(3, phase, &said) + &orphans
            }
            4 => self.phase(4, phase, "the stack has no containers"),
            // What was seen is known a moment later.
            _ => String::new(),
        }
    }

    fn started(&mut self, service: &str, pid: i32, port: Option<u16>) {
        self.rows.retain(|row| row.service != service);
        self.rows.push(Row { service: service.to_owned(), pid, port, ready_after: None });
    }

    fn ready(&mut self, service: &str, after: Duration) -> String {
        let Some(row) = self.rows.iter_mut().find(|row| row.service == service) else { return String::new() };
        row.ready_after = Some(after);
        let port = row.port.map(|port| format!(", port {port}")).unwrap_or_default();
        let pid = row.pid;
        line(&format!("{service} is ready after {} (pid {pid}{port})", duration(after)))
    }

    fn started_up(&mut self, after: Duration) -> String {
        self.has_started_up = true;
        let (bold, dim) = (self.style(Style::new().bold()), self.style(Style::new().dimmed()));
        let width = self.rows.iter().map(|row| row.service.len()).max().unwrap_or(0).max(7);
        let mut text =
            format!("{bold}{:width$}  {:>7}  {:>5}  ready after{bold:#}\n", "service", "pid", "port");
        for row in &self.rows {
            let port = row.port.map_or_else(|| "-".to_owned(), |port| port.to_string());
            let ready = row.ready_after.map_or_else(|| "-".to_owned(), duration);
            text.push_str(&format!("{:width$}  {:>7}  {port:>5}  {ready}\n", row.service, row.pid));
        }
        text.push_str(&format!("{dim}up after {}{dim:#}\n", duration(after)));
        text
    }

    fn ended(&mut self, end: &ServiceEnded) -> String {
        self.rows.retain(|row| row.service != end.service || !self.has_started_up);
        let (service, cause) = (&end.service, harmless(&end.cause));
        let killed = match end.killed {
            0 => String::new(),
            killed => format!(", {killed} killed"),
        };
        let dropped = match end.dropped_bytes {
            0 => String::new(),
            bytes => {
                format!(", {} of output dropped: the disk did not take it", count(bytes, "byte", "bytes"))
            }
        };
        if self.is_stopping {
            let took = duration(end.stop_time);
            return line(&format!("      {service} ended after {took}: {cause}{killed}{dropped}"));
        }
        let text = format!("{service} ended: {cause}{killed}{dropped}");
        if end.is_failure { self.bad(&text) } else { line(&text) }
    }

    fn phase(&mut self, number: u8, name: &str, text: &str) -> String {
        let bold = self.style(Style::new().bold());
        format!("{bold}[{number}/5] {name}{bold:#}: {text}\n")
    }

    fn bad(&self, text: &str) -> String {
        let red = self.style(AnsiColor::Red.on_default());
        format!("{red}{text}{red:#}\n")
    }

    fn style(&self, style: Style) -> Style {
        styled(style, self.is_styled)
    }
}

/// Names the first few.
fn names(services: &[&str]) -> String {
    let named = services[..services.len().min(NAMED_MAX)].join(", ");
    match services.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn line(text: &str) -> String {
    format!("{text}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(events: &[EventKind]) -> String {
        let mut narrator = Narrator::new(false);
        events.iter().map(|event| narrator.tell(event, Instant::now())).collect()
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ended(service: &str, killed: u32) -> EventKind {
        EventKind::ServiceEnded(ServiceEnded {
            service: service.into(),
            cause: "stopped".into(),
            is_failure: false,
            exit: None,
            life: Duration::from_secs(9),
            stop_time: Duration::from_millis(300),
            told: 2,
            killed,
            stragglers: 0,
            left: 0,
            dropped_bytes: 0,
        })
    }

    fn phase(number: u8, processes: u32) -> EventKind {
        let names = ["graceful", "force", "orphans", "containers", "verify"];
        EventKind::PhaseEnded {
            number,
            phase: names[usize::from(number) - 1].into(),
            took: Duration::from_millis(310),
            services: processes,
            processes,
        }
    }

    #[test]
    fn a_start_up_ends_with_a_table() {
        let started =
            |service: &str, pid, port| EventKind::ServiceStarted { service: service.into(), pid, port };
        let ready = |service: &str, millis| EventKind::ServiceReady {
            service: service.into(),
            after: Duration::from_millis(millis),
        };
        let text = told(&[
            started("db", 41, Some(5432)),
            ready("db", 120),
            started("web", 42, None),
            ready("web", 1_400),
            EventKind::StartupFinished { after: Duration::from_millis(1_530) },
        ]);
        assert_eq!(
            text,
            "db is ready after 120 ms (pid 41, port 5432)\n\
             web is ready after 1.4 s (pid 42)\n\
             service      pid   port  ready after\n\
             db            41   5432  120 ms\n\
             web           42      -  1.4 s\n\
             up after 1.5 s\n"
        );
    }

    #[test]
    fn a_stop_is_told_in_five_phases() {
        let why =
            EventKind::ShutdownStarted { why: "received INT".into(), deadline: Duration::from_secs(15) };
        let end = |is_clean| EventKind::RunEnded {
            is_clean,
            took: Duration::from_secs(1),
            left: 0,
            is_blind: !is_clean,
        };
        let text = told(&[
            why,
            ended("web", 0),
            phase(1, 1),
            phase(2, 0),
            phase(3, 0),
            phase(4, 0),
            phase(5, 0),
            end(true),
        ]);
        assert_eq!(
            text,
            "[1/5] graceful: received INT; within 15.0 s\n\
             \x20     web ended after 300 ms: stopped\n\
             \x20     1 service stopped in 310 ms\n\
             [2/5] force: nobody had to be killed\n\
             [3/5] orphans: none\n\
             [4/5] containers: the stack has no containers\n\
             [5/5] verify: nothing is alive, ports are free\n"
        );
        assert_eq!(told(&[phase(5, 0), end(false)]), "[5/5] verify: who is alive is not known\n");
    }

    #[test]
    fn who_is_waited_for_is_said_after_a_silence() {
        let began = Instant::now();
        let mut narrator = Narrator::new(false).at_terminal(true);
        let name = |number: u64| format!("s{number}");
        for number in 0..5 {
            let started = EventKind::ServiceStarted { service: name(number), pid: 9, port: None };
            narrator.tell(&started, began);
        }
        narrator.tell(&EventKind::ServiceReady { service: name(0), after: secs(0) }, began);
        assert_eq!(narrator.remind(began + secs(1)), "", "too soon");
        assert_eq!(narrator.remind_at(), Some(began + secs(2)));
        assert_eq!(narrator.remind(began + secs(2)), "waiting until ready: s1, s2, s3 and 1 more\n");
        assert_eq!(narrator.remind(began + secs(11)), "", "said");
        narrator.tell(&EventKind::StartupFinished { after: secs(11) }, began + secs(11));
        assert_eq!((narrator.remind_at(), narrator.remind(began + secs(999))), (None, String::new()));

        let stopped = began + secs(1000);
        narrator.tell(&EventKind::ShutdownStarted { why: "x".into(), deadline: secs(15) }, stopped);
        for (number, grace) in [(1, 5), (2, 8)] {
            narrator.tell(&EventKind::ServiceStopping { service: name(number), grace: secs(grace) }, stopped);
        }
        let said = narrator.remind(stopped + Duration::from_millis(2_100));
        assert_eq!(said, "      waiting at most 6 s, then KILL (Ctrl-C: at once): s1, s2\n");
        narrator.tell(&ended("s2", 0), stopped + secs(3));
        narrator.tell(&EventKind::ServiceKilled { service: name(1) }, stopped + secs(5));
        assert_eq!(narrator.remind(stopped + secs(13)), "", "one is gone, one is killed");
        narrator.tell(&EventKind::ServiceStopping { service: name(3), grace: secs(8) }, stopped + secs(14));
        narrator.tell(&EventKind::ShutdownForced, stopped + secs(15));
        assert_eq!(narrator.remind(stopped + secs(99)), "");
    }

    #[test]
    fn names_from_outside_cannot_move_the_cursor() {
        let orphan = EventKind::OrphanFound { pid: 1, name: "\u{1b}[2J".into(), reason: "x\ny".into() };
        let text = told(&[orphan, phase(3, 1)]);
        assert_eq!(text, "[3/5] orphans: 1 process ended in 310 ms\n      1 \u{fffd}[2J: x\u{fffd}y\n");
    }
}
