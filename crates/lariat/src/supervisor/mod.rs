//! The process that decides: it owns all live state of a run.

mod feed;
mod poller;
mod readiness;
mod server;
pub mod stack;
