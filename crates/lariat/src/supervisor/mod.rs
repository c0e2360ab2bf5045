//! The process that decides: it owns all live state of a run.

mod poller;
mod readiness;
pub mod stack;
