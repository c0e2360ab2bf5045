//! The stop of a whole stack: its plan, the phases, and the report.
//!
//! What is decided here is pure; [`crate::supervisor`] carries it out.

pub mod endings;
pub mod found;
pub mod plan;
pub mod report;
pub mod verify;
