//! The process that decides: it owns all live state of a run.

pub mod stack;
