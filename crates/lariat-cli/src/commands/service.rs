//! `lariat start`, `stop` and `restart`: one service of the run.

use lariat::api::{Answer, Request};

use super::{live, ps};
use crate::args::stack::OrderArgs;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Starts a service and returns when it is ready.
pub(crate) fn start(args: &OrderArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    order(args, |services| Request::Start { services }, output)
}

/// Stops a service and returns when nothing of it is left.
pub(crate) fn stop(args: &OrderArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    order(args, |services| Request::Stop { services }, output)
}

/// Stops a service, starts it again, and returns when it is ready.
pub(crate) fn restart(args: &OrderArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    order(args, |services| Request::Restart { services }, output)
}

fn order(
    args: &OrderArgs,
    request: impl FnOnce(Vec<String>) -> Request,
    output: &mut Output,
) -> Result<ExitCode, Failure> {
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
    Ok(ExitCode::Done)
}
