//! The process that holds one service, ends it, and proves that nothing of it is left.
//!
//! A keeper is a child subreaper: whatever its leader starts, double-forked and re-sessioned processes included,
//! descends from the keeper for life. Only keepers spawn, signal, kill and reap service processes. `waitid(2)`
//! answering `ECHILD` is the kernel's proof that the containment is empty.
//!
//! ```text
//! supervisor ──socket──  driver ── machine ── stop        decides (pure)
//!                          │
//!                          └── contain::lineage           finds, signals
//!                          └── last_words ── store        drains output when the supervisor is gone
//! ```
//!
//! Start reading at [`machine`], then [`stop`], then [`driver`]. No async runtime, no serialiser, no knowledge of
//! configuration; a label is all it knows of a service's name.

pub mod awake;
pub mod client;
pub mod clock;
pub mod contain;
pub mod driver;
pub mod ending;
pub mod entry;
pub mod last_words;
pub mod machine;
pub mod names;
pub mod record;
pub mod stop;
pub mod store;
pub mod wire;

/// The first argument that makes the executable a keeper.
pub const KEEPER_ARG0: &str = "lariat-keeper";
/// The first argument that makes it a process that only waits to be killed, for [`contain::choose`].
pub const PROBE_ARG0: &str = "lariat-probe";
