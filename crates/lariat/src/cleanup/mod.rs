//! Named resources of a program, each ended once, in order, within its limit, whatever the others do.
//!
//! # How it works
//!
//! A resource outlives the code that made it wherever that code can be left: by an early return, by `?`, by a panic, by
//! a future that is dropped. Rust drops values on all of these ways, and for memory that is enough. For a server it is
//! not: dropping a `JoinHandle` lets the thread run on; a destructor cannot say that it failed, may hang for ever, and
//! comes in an order that depends on where the variables stand.
//!
//! So a resource is *registered* with the closure that ends it, and the whole is *run* once:
//!
//! - **Order.** Higher [priorities](Named::priority) first; within one, the last registered first. What a resource was
//!   built on is still there when it is ended, since one cleanup runs after the other.
//! - **Isolation.** Each runs on a thread of its own and has a [limit](Named::limit), 5 s if none is set. One that
//!   returns an error or panics is reported, and the next one runs; the panic hook is as it was. One that hangs is left
//!   behind at its limit, and the next one runs. What cannot be had: to end a thread from outside. So a resource whose
//!   cleanup hangs is *not* ended, and the [report](Report) says so.
//! - **Once.** However many threads [run](Cleanup::run) it, each cleanup starts once, all of them wait until the end,
//!   and get the same report. A cleanup that runs it again does not wait for itself.
//! - **Late comers.** A cleanup may register more, which is ended in the same cleaning. When all is done, a
//!   registration is [refused](Refused), with the resource handed back: nothing is silently kept.
//! - **Back again.** [`Registered::take`] unregisters and returns the resource itself; of it and the cleaning, exactly
//!   one gets it.
//!
//! No global state, no environment, no output, no signal handler, no async runtime. When to run is the caller's
//! business: by hand, by [`scope()`], or by dropping a [`Scope`]. The end of the process by a signal, by `exit`, or by
//! a panic under `panic = "abort"` runs nothing.
//!
//! # A program that leaks
//!
//! `answer` stops its server on the way out that its author thought of. On the other one the thread runs on, and with
//! it the port stays taken:
//!
//! ```
//! use std::error::Error;
//! use std::net::{SocketAddr, TcpListener, TcpStream};
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//! use std::thread::{self, JoinHandle};
//!
//! /// Accepts connections on a thread, until it is told to stop.
//! struct Server {
//!     address: SocketAddr,
//!     is_told: Arc<AtomicBool>,
//!     thread: JoinHandle<()>,
//! }
//!
//! impl Server {
//!     fn start() -> std::io::Result<Self> {
//!         let listener = TcpListener::bind("127.0.0.1:0")?;
//!         let address = listener.local_addr()?;
//!         let is_told = Arc::new(AtomicBool::new(false));
//!         let told = Arc::clone(&is_told);
//!         let thread = thread::spawn(move || {
//!             while !told.load(Ordering::Acquire) {
//!                 drop(listener.accept());
//!             }
//!         });
//!         Ok(Self { address, is_told, thread })
//!     }
//!
//!     fn stop(self) -> std::io::Result<()> {
//!         self.is_told.store(true, Ordering::Release);
//!         TcpStream::connect(self.address)?; // so that it looks
//!         self.thread.join().map_err(|_| std::io::Error::other("the server panicked"))
//!     }
//! }
//!
//! fn answer(server: Server, input: &str) -> Result<u32, Box<dyn Error>> {
//!     let number: u32 = input.parse()?; // leaves; nobody stops the server
//!     server.stop()?;
//!     Ok(number + 1)
//! }
//!
//! # fn main() -> Result<(), Box<dyn Error>> {
//! let server = Server::start()?;
//! let address = server.address;
//! assert!(answer(server, "no number").is_err());
//! assert!(TcpListener::bind(address).is_err(), "somebody still listens there");
//! # Ok(())
//! # }
//! ```
//!
//! # The same without the leak
//!
//! Registered, the server is stopped on every way out, and whether that went well is said:
//!
//! ```
//! # use std::error::Error;
//! # use std::net::{SocketAddr, TcpListener, TcpStream};
//! # use std::sync::Arc;
//! # use std::sync::atomic::{AtomicBool, Ordering};
//! # use std::thread::{self, JoinHandle};
//! #
//! # /// Accepts connections on a thread, until it is told to stop.
//! # struct Server {
//! #     address: SocketAddr,
//! #     is_told: Arc<AtomicBool>,
//! #     thread: JoinHandle<()>,
//! # }
//! #
//! # impl Server {
//! #     fn start() -> std::io::Result<Self> {
//! #         let listener = TcpListener::bind("127.0.0.1:0")?;
//! #         let address = listener.local_addr()?;
//! #         let is_told = Arc::new(AtomicBool::new(false));
//! #         let told = Arc::clone(&is_told);
//! #         let thread = thread::spawn(move || {
//! #             while !told.load(Ordering::Acquire) {
//! #                 drop(listener.accept());
//! #             }
//! #         });
//! #         Ok(Self { address, is_told, thread })
//! #     }
//! #
//! #     fn stop(self) -> std::io::Result<()> {
//! #         self.is_told.store(true, Ordering::Release);
//! #         TcpStream::connect(self.address)?; // so that it looks
//! #         self.thread.join().map_err(|_| std::io::Error::other("the server panicked"))
//! #     }
//! # }
//! use lariat::cleanup::{self, Report};
//!
//! fn answer(server: Server, input: &str) -> (Result<u32, Box<dyn Error>>, Report) {
//!     cleanup::scope(|cleanup| {
//!         cleanup.register("server", server, Server::stop)?;
//!         let number: u32 = input.parse()?; // leaves; the server is stopped
//!         Ok(number + 1)
//!     })
//! }
//!
//! # fn main() -> Result<(), Box<dyn Error>> {
//! let server = Server::start()?;
//! let address = server.address;
//! let (result, report) = answer(server, "no number");
//! assert!(result.is_err());
//! assert!(report.is_clean(), "{report}");
//! assert!(TcpListener::bind(address).is_ok(), "nobody listens there any more");
//! # Ok(())
//! # }
//! ```
//!
//! # More than one
//!
//! ```
//! use lariat::cleanup::{Cleanup, Outcome};
//! use std::convert::Infallible;
//! use std::sync::mpsc;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cleanup = Cleanup::new();
//! let (order, ended) = mpsc::channel();
//!
//! cleanup.register("database", order.clone(), |order| order.send("database"))?;
//! cleanup.register("server", order.clone(), |order| order.send("server"))?;
//! cleanup.named("lamp").priority(-1).register(order, |order| order.send("lamp"))?;
//! let (_keep, never) = mpsc::channel::<Infallible>();
//! cleanup.named("watcher").priority(9).limit(Duration::from_millis(20)).register(never, |never| {
//!     never.recv().map(|_| ()) // hangs
//! })?;
//! let spare = cleanup.register("spare", vec![1, 2, 3], |_| Err("is not called"))?;
//! assert_eq!(spare.take(), Some(vec![1, 2, 3]));
//!
//! let report = cleanup.run();
//! assert_eq!(ended.try_iter().collect::<Vec<_>>(), ["server", "database", "lamp"]);
//! assert_eq!(report.ended[0].name, "watcher");
//! assert_eq!(report.ended[0].outcome, Outcome::TimedOut);
//! assert_eq!((report.cleaned_count(), report.failed_count()), (3, 1));
//! # Ok(())
//! # }
//! ```

mod executor;
mod report;
mod run;
mod scope;
mod stack;

pub use report::{Ended, Outcome, Report};
pub use run::{Cleanup, Named, Refused, Registered};
pub use scope::{Scope, scope};
pub use stack::{LATE_MAX, LIMIT_DEFAULT, LIMIT_MAX, LIMIT_MIN, Reason};
