//! Not written yet.

pub mod clock;
pub mod ledger;
pub mod logs;
pub mod ports;
