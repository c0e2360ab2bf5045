//! Who listens on which port of this machine.
//!
//! Responsible for the listening sockets of our network namespace, and for the processes that hold them. Does not judge
//! whose they are. Asks the kernel by `sock_diag(7)`; where that is not there, reads `/proc/net`.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use rustix::fs::{CWD, Mode, OFlags, RawDir};

use crate::Result;
use crate::procfs::{self, ProcPath};

mod diag;
mod text;

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
    let mut found = Vec::new();
    for table in Table::ALL {
        let before = found.len();
        if diag::listeners(table, &mut found).is_err() {
            found.truncate(before);
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
    let mut found = Vec::new();
    Table::ALL.into_iter().try_for_each(|table| diag::listeners(table, &mut found))?;
    Ok(found)
}

/// Returns what [`listeners`] returns, from `/proc/net/{tcp,tcp6,udp,udp6}` alone: slower, because the kernel walks all
/// of its connections for it.
pub fn listeners_by_proc() -> Result<Vec<Listener>> {
    let mut found = Vec::new();
    Table::ALL.into_iter().try_for_each(|table| text::listeners(table, &mut found))?;
    Ok(found)
}

/// Returns which processes have a descriptor of which of these sockets, once for each pair, ascending.
///
/// Looks at the given processes, or at all. Those that we may not look into, or that vanish, are left out: an empty
/// answer means "nobody that we can see".
pub fn holders(inodes: &[u64], pids: Option<&[i32]>) -> Vec<(u64, i32)> {
    let mut wanted = inodes.to_vec();
    wanted.sort_unstable();
    let listed;
    let pids = match pids {
        Some(pids) => pids,
        None => {
            listed = procfs::pids().unwrap_or_default();
            &listed
        }
    };
    let mut found = Vec::new();
    if !wanted.is_empty() {
        for pid in pids.iter().copied().filter(|pid| *pid > 0) {
            // The result is ignored: a process that we may not look into is one that we do not see.
            let _ = held_by(pid, &wanted, &mut found);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Appends those of the sorted `wanted` sockets that a process has open.
fn held_by(pid: i32, wanted: &[u64], found: &mut Vec<(u64, i32)>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, ProcPath::new(pid, "/fd").as_c_str(), flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(directory.as_fd(), &mut buffer);
    while let Some(entry) = entries.next() {
        // The longest name of a socket is `socket:[` and 20 digits.
        let mut target = [0_u8; 64];
        let Ok(length) = rustix::fs::readlinkat_raw(&directory, entry?.file_name(), &mut target[..]) else {
            continue;
        };
        let target = target.get(..length).unwrap_or_default();
        let inode =
            target.strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]")).and_then(text::number);
        found.extend(inode.filter(|inode| wanted.binary_search(inode).is_ok()).map(|inode| (inode, pid)));
    }
    Ok(())
}
