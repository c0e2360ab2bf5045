//! `lariat start`, `stop` and `restart`: one service of the run.

use std::time::{Duration, Instant};

use lariat::api::{Answer, Request, ServiceStatus};

use super::{live, ps};
use crate::args::stack::OrderArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Starts a service and returns when it is ready.
pub(crate) fn start(args: &OrderArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let until = "is ready";
    order(args, |services| Request::Start { services }, until, output).map(|_| ExitCode::Done)
}

/// Stops a service and returns when nothing of it is left.
pub(crate) fn stop(args: &OrderArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let until = "ends, or its grace period does";
    let stopped = order(args, |services| Request::Stop { services }, until, output)?;
    for service in stopped.iter().filter(|service| !service.needed_by.is_empty() && !args.json) {
        let (name, others) = (&service.service, service.needed_by.join(", "));
        output.note(&format!("note: left without it: {others}; `lariat start {name}` brings it back"));
    }
    Ok(ExitCode::Done)
}

/// Stops a service, starts it again, and returns when it is ready.
pub(crate) fn restart(args: &OrderArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let until = "has ended, or its grace period has, and is ready again";
    order(args, |services| Request::Restart { services }, until, output).map(|_| ExitCode::Done)
}

/// Silence after which it is said what is waited for.
const NOTED_AFTER: Duration = Duration::from_secs(2);

/// Orders it and shows how the service is then. Takes what is waited for, to follow the service's name.
fn order(
    args: &OrderArgs,
    request: impl FnOnce(Vec<String>) -> Request,
    until: &str,
    output: &mut Output,
) -> Result<Vec<ServiceStatus>, Failure> {
    let (mut client, run) = live::connect()?;
    let mut note_at = Some(Instant::now() + NOTED_AFTER);
    let waits = || {
        if !args.json && note_at.take_if(|at| Instant::now() >= *at).is_some() {
            output.try_note(&format!("waiting until {} {until}", args.service));
        }
    };
    let request = request(vec![args.service.clone()]);
    let Answer::Done { services } = live::ask(&mut client, &run, &request, waits)? else {
        return Err(Failure::new(ExitCode::Trouble, "the supervisor gave another answer than was asked for"));
    };
    for service in &services {
        if args.json {
            output.print_json(service)?;
        } else {
            output.print(ps::line(service));
        }
    }
    Ok(services)
}
