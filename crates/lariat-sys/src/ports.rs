//! Who listens on which port of this machine.
//!
//! Responsible for the listening sockets of our network namespace, and for the processes that hold them. Does not judge
//! whose they are. Asks the kernel by `sock_diag(7)`; where that is not there, reads `/proc/net`.

use std::net::SocketAddr;

use crate::Result;

mod diag;
mod holders;
mod text;

use diag::Diag;
pub use holders::{find_holders, holders};

/// The protocol of a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// A stream socket that accepts connections.
    Tcp,
    /// A datagram socket that is bound to a port and connected to nobody.
    Udp,
}

/// A socket that receives what comes to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// Its protocol.
    pub proto: Proto,
    /// Where it listens. A v6 socket on `[::]` takes v4 as well unless it was told not to. Scopes are 0.
    pub addr: SocketAddr,
    /// The number of its socket, as `/proc/PID/fd` names it: see [`holders`].
    pub inode: u64,
    /// The user who made it.
    pub uid: u32,
}

/// The four tables of sockets that a kernel has; those of v6 are missing where it is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    proto: Proto,
    is_v6: bool,
}

impl Table {
    const ALL: [Table; 4] = [
        Table { proto: Proto::Tcp, is_v6: false },
        Table { proto: Proto::Tcp, is_v6: true },
        Table { proto: Proto::Udp, is_v6: false },
        Table { proto: Proto::Udp, is_v6: true },
    ];
}

/// Returns all listening sockets of our network namespace, TCP and UDP, v4 and v6.
///
/// Each table is asked by [`listeners_by_diag`]'s way, or read from `/proc/net` where the kernel refuses that.
pub fn listeners() -> Result<Vec<Listener>> {
    let (mut found, mut kernel) = (Vec::new(), None);
    for table in Table::ALL {
        let before = found.len();
        if by_diag(&mut kernel, table, &mut found).is_err() {
            found.truncate(before);
            kernel = None;
            text::listeners(table, &mut found)?;
        }
    }
    Ok(found)
}

/// Returns what [`listeners`] returns, from the kernel's socket monitoring alone (`sock_diag(7)`).
///
/// # Errors
/// What the kernel says where it was built without it: [`Errno::NOENT`](crate::Errno::NOENT) and others.
pub fn listeners_by_diag() -> Result<Vec<Listener>> {
    let (mut found, mut kernel) = (Vec::new(), None);
    Table::ALL.into_iter().try_for_each(|table| by_diag(&mut kernel, table, &mut found))?;
    Ok(found)
}

/// Asks in the conversation that there is, or begins one.
fn by_diag(kernel: &mut Option<Diag>, table: Table, found: &mut Vec<Listener>) -> Result<()> {
    match kernel {
        Some(kernel) => kernel.listeners(table, found),
        None => kernel.insert(Diag::open()?).listeners(table, found),
    }
}

/// Returns what [`listeners`] returns, from `/proc/net/{tcp,tcp6,udp,udp6}` alone: slower, because the kernel walks all
/// of its connections for it.
pub fn listeners_by_proc() -> Result<Vec<Listener>> {
    let mut found = Vec::new();
    Table::ALL.into_iter().try_for_each(|table| text::listeners(table, &mut found))?;
    Ok(found)
}

/// Reads bytes in every way that this module reads the kernel's.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = text::socket(bytes);
    for table in Table::ALL {
        text::fuzz(bytes, table);
        diag::fuzz(bytes, table);
    }
}
