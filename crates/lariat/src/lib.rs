//! Not written yet.

pub mod api;
pub mod clock;
pub mod event;
pub mod ledger;
pub mod logs;
pub mod ports;
pub mod process;
pub mod service;
pub mod shutdown;
pub mod supervisor;
