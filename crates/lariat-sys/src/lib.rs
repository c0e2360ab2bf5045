//! Linux calls for lariat: one function is one call with an honest errno.
//!
//! This crate knows Linux and nothing of lariat. It is the only crate of the workspace with `unsafe` in it; all others
//! forbid it. It holds no state but what the kernel makes process-wide (signal mask, dispositions, the argument area),
//! starts no thread, and logs nothing.
//!
//! # Theory of operation
//!
//! A pid is a number that the kernel uses again. Whoever keeps a pid and signals it later may hit a stranger:
//!
//! ```no_run
//! # let pid = 4242;
//! // Wrong: between the look and the kill, process 4242 may end and another one may get its number.
//! # #[allow(unused)]
//! let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
//! std::process::Command::new("kill").arg(pid.to_string()).status();
//! ```
//!
//! Here a process is named by its [`Identity`](identity::Identity): its pid, the tick at which it started, and where the
//! kernel has pidfs the inode that no other process of the boot ever has. To signal it, a [`PidFd`](pidfd::PidFd) is
//! opened *first* and compared *afterwards*: if it still matches, the descriptor refers to that very process and to no
//! other one, for as long as it is open.
//!
//! ```no_run
//! use lariat_sys::{identity::Identity, pidfd::PidFd, signal::Signal};
//!
//! # fn main() -> lariat_sys::Result<()> {
//! # let identity = Identity::current();
//! match PidFd::open(identity) {
//!     Ok(process) => process.signal(Signal::TERM)?,
//!     Err(lariat_sys::Errno::SRCH) => {} // It is gone; its number may belong to somebody else by now.
//!     Err(errno) => return Err(errno),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Conventions
//!
//! - A process that vanished is `Ok(None)` where it is looked at, and [`Errno::SRCH`] where it is acted on.
//! - Calls that a signal interrupted are repeated inside; [`Errno::INTR`] never comes out.
//! - Every descriptor made here is close-on-exec.
//! - The hazards named in comments (`HAZARD(name)`) are described in `HAZARDS.md` at the root of the repository.

pub mod ask;
pub mod cgroup;
pub mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod identity;
pub mod kernel;
pub mod outside;
pub mod pidfd;
pub mod poll;
pub mod ports;
pub mod process;
pub mod procfs;
pub mod reap;
pub mod signal;
pub mod sockets;
pub mod spawn;
pub mod tree;
pub mod unusual;

mod call;

pub use rustix::io::Errno;

/// The result of a call: its value, or the kernel's error number.
pub type Result<T> = std::result::Result<T, Errno>;
