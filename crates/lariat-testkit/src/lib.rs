//! The judge of lariat's tests: an arena in which programs run, and a census that finds whatever they leave behind.
//!
//! # How it works
//! A test opens an [`Arena`], starts programs in it and closes it with [`Arena::finish`]. The test's process makes
//! itself a *child subreaper*, so whatever a program starts, however often it forks and whatever it hides, stays this
//! process's descendant: at the end the [`census`] looks for descendants through the kernel's children lists, through
//! a scan of all of `/proc` by parent, and through the arena's token in environments; the kernel's ECHILD
//! ([`reaper`]) is the proof that nobody is left. Anything alive fails the test by pid, name, command line, state and parent, and is then killed, so that no test disturbs the next one.
//!
//! Nothing here asks lariat whether lariat did its work, and nothing here uses lariat's code.
//!
//! ```no_run
//! use lariat_testkit::{Arena, fixture};
//!
//! let mut arena = Arena::new();
//! let facts = arena.facts("leaky");
//! let leaky = arena.command(fixture::path()).args(["daemon", "--leave", "1"]).facts(&facts).start();
//! facts.wait_for("ready");
//! assert_eq!(leaky.wait().code(), Some(7));
//! arena.finish(); // Panics: the daemon is alive. It is killed, and named in the message.
//! ```

pub mod arena;
pub mod boundary;
pub mod census;
pub mod chance;
pub mod command;
pub mod facts;
pub mod fixture;
pub mod kernel;
pub mod needs;
pub mod net;
pub mod numbers;
pub mod project;
pub mod pty;
pub mod reaper;
pub mod stuck;
pub mod subject;
pub mod trace;
pub mod user_session;
pub mod wait;

pub use arena::{Arena, Containment, is_root};
pub use chance::Chance;
pub use command::{Command, Ending, Running};
pub use facts::Facts;
pub use kernel::Kernel;
pub use project::Stack;
pub use pty::Pty;
pub use user_session::UserSession;
pub use wait::{PATIENCE, wait_at_most, wait_until};
