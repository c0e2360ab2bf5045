//! Not written yet.

pub mod service;
pub mod shutdown;
