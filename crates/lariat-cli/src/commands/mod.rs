//! One file per verb, and the table that leads to them.

mod check;
mod completions;
mod consent;
mod doctor;
mod down;
mod init;
mod live;
mod logs;
mod man;
mod past;
pub(crate) mod port;
mod ps;
mod ps_all;
pub(crate) mod run;
mod service;
mod show;
mod sweep;
mod up;
mod users;
mod waiting;

use crate::args::Command;
use crate::exit_code::ExitCode;
use crate::output::{Failure, Output};

/// Does what was asked for.
pub(crate) fn dispatch(command: &Command, output: &mut Output) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Up(args) => up::run(args, output),
        Command::Down(args) => down::run(args, output),
        Command::Ps(args) if args.all => ps_all::run(args, output),
        Command::Ps(args) => ps::run(args, output),
        Command::Sweep(args) => sweep::run(args, output),
        Command::Logs(args) => logs::run(args, output),
        Command::Start(args) => service::start(&args.order, output),
        Command::Stop(args) => service::stop(&args.order, output),
        Command::Restart(args) => service::restart(&args.order, output),
        Command::Port(args) => port::run(args, output),
        Command::Check(args) => check::run(args, output),
        Command::Doctor(args) => doctor::run(args, output),
        Command::Init(args) => init::run(args, output),
        Command::Completions(args) => completions::run(args, output),
        Command::Man(args) => man::run(args, output),
    }
}
