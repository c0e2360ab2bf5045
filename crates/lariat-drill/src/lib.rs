//! The drill: builds hostile process trees on the user's own machine, ends lariat in every way it can end, and says
//! whether anything survived that was not declared to.
//!
//! Responsible for the trees ([`trees`]), the endings ([`endings`]), the table of what is promised ([`promise`]) and the
//! judge that compares. It knows lariat as a program only: the judge shares no code with what it judges but the calls of
//! `lariat-sys`, and believes nothing that lariat says.
//!
//! # Theory of operation
//!
//! One *cell* is one tree under one ending. Each is judged by a process of its own, a child subreaper: everything that
//! is started in the cell is its descendant for life, and `ECHILD` proves that nobody is left. Besides, every member
//! reports its birth over a socket on which the kernel names the sender, and a marker in the environment is searched for
//! on the whole machine.
//!
//! Three processes stand between a hostile tree and the user. The judge of the cell; the *drill*, which starts judges and
//! ends what one of them leaves; and the *guard*, which ends what the drill leaves, whatever becomes of it, and removes its
//! directories. Every member ends itself besides, by a timer of the kernel.

#![forbid(unsafe_code)]

pub mod drill;
pub mod endings;
pub mod guard;
pub mod member;
pub mod promise;
pub mod stage;
pub mod trees;
pub mod verdict;

mod act;
mod cell;
mod census;
mod ground;
mod hall;
