//! Not written yet.

pub mod api;
pub mod event;
pub mod service;
pub mod shutdown;
pub mod supervisor;
