//! `lariat ps`: the services of the run.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use lariat::api::{Answer, Request, RunStatus, ServiceStatus};

use super::live;
use super::show::{count, duration, harmless, styled};
use crate::args::stack::PsArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Shows the services of the project's run.
pub(crate) fn run(args: &PsArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let (mut client, run) = live::connect()?;
    let Answer::Status(status) = live::ask(&mut client, &run, &Request::Ps { processes: args.json }, || {})?
    else {
        return Err(Failure::new(ExitCode::Trouble, "the supervisor gave another answer than was asked for"));
    };
    if args.json {
        output.print_json(&status)?;
    } else {
        output.print(table(&status, output.is_out_styled()));
    }
    Ok(ExitCode::Done)
}

/// Returns the run as a table.
fn table(status: &RunStatus, is_styled: bool) -> String {
    let bold = styled(Style::new().bold(), is_styled);
    let head = ["service", "state", "pid", "port", "age", "restarts", "processes", "memory", "last end"];
    let rows: Vec<[String; 9]> = status.services.iter().map(row).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = format!(
        "{} ({}): run {}, {}, supervisor {}, {} old\n",
        harmless(&status.stack),
        harmless(&status.root),
        status.run,
        status.state,
        status.pid,
        duration(status.age)
    );
    let line: Vec<String> = head.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    text.push_str(&format!("{bold}{}{bold:#}\n", line.join("  ").trim_end()));
    for (row, service) in rows.iter().zip(&status.services) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let style = if column == 1 { state_style(service, is_styled) } else { Style::new() };
            format!("{style}{cell:width$}{style:#}")
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(service: &ServiceStatus) -> [String; 9] {
    let dash = || "-".to_owned();
    let age = service.age.and_then(|age| Duration::try_from_secs_f64(age).ok());
    [
        service.service.clone(),
        service.state.clone(),
        service.pid.map_or_else(dash, |pid| pid.to_string()),
        service.port.map_or_else(dash, |port| port.to_string()),
        age.map_or_else(dash, duration),
        service.restarts.to_string(),
        service.members.to_string(),
        if service.members == 0 { dash() } else { format!("{} MiB", service.memory_kib.div_ceil(1024)) },
        service.last_end.as_deref().map(harmless).unwrap_or_else(dash),
    ]
}

fn state_style(service: &ServiceStatus, is_styled: bool) -> Style {
    let colour = match service.state.as_str() {
        "ready" | "completed" => AnsiColor::Green,
        "failed" | "gave-up" => AnsiColor::Red,
        _ => AnsiColor::Yellow,
    };
    styled(colour.on_default(), is_styled)
}

/// Says in one line how a service is.
pub(crate) fn line(service: &ServiceStatus) -> String {
    let pid = service.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let port = service.port.map(|port| format!(", port {port}")).unwrap_or_default();
    let members = count(u64::from(service.members), "process", "processes");
    let members = if service.members == 0 { String::new() } else { format!(", {members}") };
    format!("{} is {}{pid}{port}{members}\n", service.service, service.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_is_trailing() {
        let service = |name: &str, state: &str, pid| ServiceStatus {
            service: name.into(),
            state: state.into(),
            pid,
            port: pid.map(|_| 8000),
            age: pid.map(|_| 75.0),
            members: u32::from(pid.is_some()) * 3,
            memory_kib: 10_300,
            last_end: pid.is_none().then(|| "exit code 1".into()),
            ..ServiceStatus::default()
        };
        let status = RunStatus {
            run: "0123456789abcdef".into(),
            stack: "shop".into(),
            root: "/p".into(),
            pid: 7,
            state: "up".into(),
            age: Duration::from_secs(80),
            services: vec![service("db", "ready", Some(12_345)), service("worker", "failed", None)],
        };
        assert_eq!(
            table(&status, false),
            "shop (/p): run 0123456789abcdef, up, supervisor 7, 1 min 20 s old\n\
             service  state   pid    port  age         restarts  processes  memory  last end\n\
             db       ready   12345  8000  1 min 15 s  0         3          11 MiB  -\n\
             worker   failed  -      -     -           0         0          -       exit code 1\n"
        );
    }
}
