//! One service: what the user wants of it, and the pure machines that decide about it.
//!
//! Nothing in here starts, signals or waits; [`crate::supervisor`] carries out what these decide.

pub mod graph;
pub mod machine;
pub mod probe;
pub mod restart;
pub mod spec;
