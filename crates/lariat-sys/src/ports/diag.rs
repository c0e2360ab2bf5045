//! Asks the kernel for its listening sockets by netlink (`sock_diag(7)`, `netlink(7)`).
//!
//! The messages are written and read by hand: a request of 72 bytes, and answers whose fields lie at fixed places. Every
//! read of an answer is checked, so a kernel that answers otherwise gives an error and no panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::text::{STATE_LISTEN, STATE_UNCONNECTED};
use super::{Listener, Proto, Table};
use crate::{Errno, Result, call};

/// `SOCK_DIAG_BY_FAMILY`: the type of request and answer.
const BY_FAMILY: u16 = 20;
/// How often a listing is begun anew when sockets changed while the kernel wrote it.
const ATTEMPTS_MAX: usize = 4;
/// The length of a netlink header, and of `inet_diag_req_v2`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// Room for one answer: the kernel fills up to 32 KiB at a time.
const ANSWER_MAX: usize = 64 << 10;

/// A conversation with the kernel, and room for its answers. After an error it is of no more use: what the kernel had
/// begun to say may still be in it.
pub(super) struct Diag {
    socket: OwnedFd,
    /// Asked for as it is: the kernel writes what is read, and pages that nobody writes cost nothing.
    answer: Vec<u8>,
    /// Marks the answers to one request.
    sequence: u32,
}

impl Diag {
    /// Begins one.
    pub(super) fn open() -> Result<Diag> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) takes integers.
        let socket = call::check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) })?;
        // SAFETY: the kernel has just opened it for us, and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        Ok(Diag { socket, answer: Vec::with_capacity(ANSWER_MAX), sequence: 0 })
    }

    /// Appends the listening sockets of one table.
    pub(super) fn listeners(&mut self, table: Table, found: &mut Vec<Listener>) -> Result<()> {
        let before = found.len();
        for _ in 0..ATTEMPTS_MAX {
            found.truncate(before);
            self.request(table)?;
            // The last attempt counts as it is: on a machine where sockets never stop changing, nothing is better.
            if self.answers(table, found)? {
                break;
            }
        }
        Ok(())
    }

    /// Asks for a listing.
    fn request(&mut self, table: Table) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let (protocol, state) = match table.proto {
            Proto::Tcp => (libc::IPPROTO_TCP, STATE_LISTEN),
            Proto::Udp => (libc::IPPROTO_UDP, STATE_UNCONNECTED),
        };
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        let mut message = Vec::with_capacity(HEADER + REQUEST);
        message.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
        message.extend(BY_FAMILY.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes()); // The kernel fills in our port.
        message.extend([family(table) as u8, protocol as u8, 0, 0]); // Family, protocol, no extensions, padding.
        message.extend((1_u32 << state).to_ne_bytes());
        message.resize(HEADER + REQUEST, 0); // No restriction to certain addresses.
        // SAFETY: the kernel reads as many bytes as `message` has. An unconnected netlink socket sends to the kernel.
        let sent = call::retry(|| unsafe {
            libc::send(self.socket.as_raw_fd(), message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL)
        })?;
        if sent as usize == message.len() { Ok(()) } else { Err(Errno::BADMSG) }
    }

    /// Reads answers until the listing is done, and says whether it is consistent.
    fn answers(&mut self, table: Table, found: &mut Vec<Listener>) -> Result<bool> {
        let mut is_consistent = true;
        loop {
            self.receive()?;
            if read(&self.answer, table, self.sequence, found, &mut is_consistent)? {
                return Ok(is_consistent);
            }
        }
    }

    /// Receives the next answer.
    fn receive(&mut self) -> Result<()> {
        self.answer.clear();
        let (room, socket) = (self.answer.capacity(), self.socket.as_raw_fd());
        let place = self.answer.as_mut_ptr();
        // SAFETY: the kernel writes at most as many bytes as there is room for; with MSG_TRUNC it says how many there were.
        let length = call::retry(|| unsafe { libc::recv(socket, place.cast(), room, libc::MSG_TRUNC) })?;
        let length = usize::try_from(length).ok().filter(|length| *length <= room).ok_or(Errno::MSGSIZE)?;
        // SAFETY: the kernel has just written that many bytes, and they fit.
        unsafe { self.answer.set_len(length) };
        Ok(())
    }
}

/// Reads the messages of one answer, and says whether the listing is done.
fn read(
    mut rest: &[u8],
    table: Table,
    sequence: u32,
    found: &mut Vec<Listener>,
    is_consistent: &mut bool,
) -> Result<bool> {
    while !rest.is_empty() {
        let message = Message::first(rest).ok_or(Errno::BADMSG)?;
        rest = rest.get(message.aligned_length()..).unwrap_or_default();
        if message.sequence != sequence {
            continue;
        }
        *is_consistent &= message.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
        match libc::c_int::from(message.kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => return Err(message.error()),
            _ if message.kind == BY_FAMILY => found.extend(message.listener(table)),
            _ => {}
        }
    }
    Ok(false)
}

#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8], table: Table) {
    let mut found = Vec::new();
    // Whatever it says: its end, its error, or that more is to come.
    let _ = read(bytes, table, 1, &mut found, &mut true);
    assert!(found.iter().all(|listener| listener.addr.is_ipv6() == table.is_v6));
}

/// One netlink message.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads the first message of what was received; `None` if it is not whole.
    fn first(bytes: &'a [u8]) -> Option<Message<'a>> {
        let length = u32::from_ne_bytes(array(bytes, 0)?) as usize;
        Some(Message {
            kind: u16::from_ne_bytes(array(bytes, 4)?),
            flags: u16::from_ne_bytes(array(bytes, 6)?),
            sequence: u32::from_ne_bytes(array(bytes, 8)?),
            payload: bytes.get(HEADER..length)?,
        })
    }

    /// Messages begin at multiples of four bytes.
    fn aligned_length(&self) -> usize {
        (HEADER + self.payload.len()).next_multiple_of(4)
    }

    /// Reads the error number of an error message.
    fn error(&self) -> Errno {
        match array(self.payload, 0).map(i32::from_ne_bytes) {
            Some(negative @ -4095..=-1) => Errno::from_raw_os_error(-negative),
            _ => Errno::BADMSG,
        }
    }

    /// Reads an `inet_diag_msg`: family, state, timer, retransmits; ports (big-endian), addresses, interface, cookie;
    /// expiry, two queues, user, inode.
    fn listener(&self, table: Table) -> Option<Listener> {
        let [found, ..] = array::<4>(self.payload, 0)?;
        if i32::from(found) != family(table) {
            return None;
        }
        let port = u16::from_be_bytes(array(self.payload, 4)?);
        let ip = if table.is_v6 {
            IpAddr::V6(Ipv6Addr::from(array::<16>(self.payload, 8)?))
        } else {
            IpAddr::V4(Ipv4Addr::from(array::<4>(self.payload, 8)?))
        };
        Some(Listener {
            proto: table.proto,
            addr: SocketAddr::new(ip, port),
            uid: u32::from_ne_bytes(array(self.payload, 64)?),
            inode: u64::from(u32::from_ne_bytes(array(self.payload, 68)?)),
        })
    }
}

fn family(table: Table) -> libc::c_int {
    if table.is_v6 { libc::AF_INET6 } else { libc::AF_INET }
}

/// Returns the `N` bytes at an offset; `None` if there are fewer.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_messages_are_none() {
        let mut bytes = vec![0; HEADER + 72];
        bytes[0] = bytes.len() as u8;
        let table = Table { proto: Proto::Tcp, is_v6: false };
        assert!(Message::first(&bytes).is_some());
        for cut in 0..bytes.len() {
            assert!(Message::first(&bytes[..cut]).is_none(), "cut at {cut}");
        }
        for length in 0..HEADER {
            bytes[0] = length as u8;
            assert!(Message::first(&bytes).is_none(), "length {length}");
        }
        let short = Message { kind: BY_FAMILY, flags: 0, sequence: 1, payload: &[2; 71] };
        assert_eq!(short.listener(table), None);
        assert_eq!(Message { payload: &[], ..short }.error(), Errno::BADMSG);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), length in 0..200_u8) {
            let mut bytes = bytes;
            if let [first, second, third, fourth, ..] = bytes.as_mut_slice() {
                // A plausible length, so that more than the first check is reached.
                (*first, *second, *third, *fourth) = (length, 0, 0, 0);
            }
            if let Some(message) = Message::first(&bytes) {
                proptest::prop_assert!(message.aligned_length() >= HEADER);
                let _ = message.error();
                for table in Table::ALL {
                    let _ = message.listener(table);
                }
            }
        }
    }
}
