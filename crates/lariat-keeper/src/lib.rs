//! Not written yet.

pub mod store;
