//! `lariat start`, `stop` and `restart`: one service of the run.

use lariat::api::{Answer, Request, ServiceStatus};

use super::{live, ps};
use crate::args::stack::OrderArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Starts a service and returns when it is ready.
pub(crate) fn start(args: &OrderArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    order(args, |services| Request::Start { services }, output).map(|_| ExitCode::Done)
}

/// Stops a service and returns when nothing of it is left.
pub(crate) fn stop(args: &OrderArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let stopped = order(args, |services| Request::Stop { services }, output)?;
    for service in stopped.iter().filter(|service| !service.needed_by.is_empty() && !args.json) {
        let (name, others) = (&service.service, service.needed_by.join(", "));
        output.note(&format!("note: left without it: {others}; `lariat start {name}` brings it back"));
    }
    Ok(ExitCode::Done)
}

/// Stops a service, starts it again, and returns when it is ready.
pub(crate) fn restart(args: &OrderArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    order(args, |services| Request::Restart { services }, output).map(|_| ExitCode::Done)
}

/// Orders it and shows how the service is then.
fn order(
    args: &OrderArgs,
    request: impl FnOnce(Vec<String>) -> Request,
    output: &mut Output,
) -> Result<Vec<ServiceStatus>, Failure> {
    let (mut client, run) = live::connect()?;
    let Answer::Done { services } = live::ask(&mut client, &run, &request(vec![args.service.clone()]))?
    else {
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
