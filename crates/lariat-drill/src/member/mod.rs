//! The hostile trees: what the executable becomes when it is started as a member of one.
//!
//! Every process ends itself when its time is over, by a timer of the kernel that sends KILL and that no signal holds
//! up. Storms are bounded by count besides. Members speak to the judge alone, by datagrams whose sender the kernel
//! names; they use nothing of what lariat knows of them.

mod attacks;
mod births;
mod cgroups;
mod deceits;
mod part;
mod places;
mod roles;
mod shapes;
mod storms;

use lariat_sys::process;

pub(crate) use part::{CRASH, LEAVE, Manner, Part, monotonic_ms};
pub(crate) use {attacks::*, births::*, cgroups::*, deceits::*, places::*, shapes::*, storms::*};

/// The first argument of a process that is a member of a drill's tree.
pub const MEMBER_ARG: &str = "lariat-drill-member";

/// Becomes a member and never returns, if the process was started as one; otherwise returns at once. To be called at the
/// top of `main`, before anything starts a thread.
pub fn entry() {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_none_or(|word| word != MEMBER_ARG) {
        return;
    }
    // Started by hand, without a judge: there is no tree to build.
    let Some(part) = Part::parse(words) else { process::exit_now(2) };
    part.arm();
    match roles::find(&part.role).or_else(|| crate::trees::find(&part.role).map(|tree| tree.build)) {
        Some(build) => build(&part),
        None => process::exit_now(2),
    }
}
