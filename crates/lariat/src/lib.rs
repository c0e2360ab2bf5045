//! Everything started under it is gone when it says so: the supervisor of a stack, its ledger, its logs, its shutdown.
//!
//! ```text
//! supervisor     one loop owns all live state; carries out what the machines decide
//!   ├── service    pure: dependency graph, service, probe and restart machines; the specification types
//!   ├── shutdown   the plan (pure), the five phases' report, what is found without a keeper, the last look
//!   ├── ledger     run.json, events, end records, the lock, recovery after a crash
//!   ├── logs       the pump into the store, readers of it, what a terminal may be shown
//!   └── ports      who listens where
//! api, event     the run's socket, and the one stream of what happened
//! cleanup        for a program's own resources: each ended once, in order, within its limit; stands by itself
//! ```
//!
//! Start with [`service::spec`] for what can be wanted, then [`supervisor`]. The library prints nothing, never exits,
//! installs no signal handlers, and reads neither the environment nor the working directory: the caller passes them
//! in. It uses no async runtime. Processes are held by keepers (`lariat-keeper`), which outlive a supervisor that is
//! killed and finish its work.

pub mod api;
pub mod cleanup;
pub mod clock;
pub mod containment;
pub mod event;
pub mod isolation;
pub mod ledger;
pub mod logs;
pub mod ports;
pub mod process;
pub mod service;
pub mod shutdown;
pub mod supervisor;
