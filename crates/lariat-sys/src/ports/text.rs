//! Reads `/proc/net/{tcp,tcp6,udp,udp6}`. The parser is total: any bytes give a value or `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{Listener, Proto, Table};
use crate::{Errno, Result};

/// `TCP_LISTEN` in the kernel's numbering of states.
pub(super) const STATE_LISTEN: u8 = 10;
/// `TCP_CLOSE`: what an unconnected UDP socket is in.
pub(super) const STATE_UNCONNECTED: u8 = 7;

/// Appends the listening sockets of one table; a table that the kernel does not have is empty.
pub(super) fn listeners(table: Table, found: &mut Vec<Listener>) -> Result<()> {
    let path = match (table.proto, table.is_v6) {
        (Proto::Tcp, false) => "/proc/net/tcp",
        (Proto::Tcp, true) => "/proc/net/tcp6",
        (Proto::Udp, false) => "/proc/net/udp",
        (Proto::Udp, true) => "/proc/net/udp6",
    };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    };
    found.extend(parse_all(&text, table));
    Ok(())
}

/// Parses a whole table; its first line is a heading.
fn parse_all(text: &[u8], table: Table) -> impl Iterator<Item = Listener> {
    text.split(|byte| *byte == b'\n').skip(1).filter_map(move |line| parse(line, table))
}

#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8], table: Table) {
    parse_all(bytes, table).for_each(|listener| assert_eq!(listener.addr.is_ipv6(), table.is_v6));
}

/// Parses one line; `None` for what is no socket, or none that listens.
fn parse(line: &[u8], table: Table) -> Option<Listener> {
    // sl, local address, remote address, state, queues, timer, retransmits, uid, timeout, inode.
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.next()?;
    let addr = address(words.next()?, table.is_v6)?;
    words.next()?;
    let state = hexadecimal::<u8>(words.next()?, 2)?;
    let wanted = match table.proto {
        Proto::Tcp => STATE_LISTEN,
        Proto::Udp => STATE_UNCONNECTED,
    };
    if state != wanted {
        return None;
    }
    let mut words = words.skip(3);
    let uid = number(words.next()?)?;
    let mut words = words.skip(1);
    let inode = number(words.next()?)?;
    Some(Listener { proto: table.proto, addr, inode, uid })
}

/// Parses `0100007F:1F90`: the address as 32-bit words in the machine's byte order, the port as people write it.
fn address(word: &[u8], is_v6: bool) -> Option<SocketAddr> {
    let colon = word.iter().position(|byte| *byte == b':')?;
    let (ip, port) = (word.get(..colon)?, word.get(colon + 1..)?);
    let port = hexadecimal::<u16>(port, 4)?;
    let ip = if is_v6 {
        let mut octets = [0; 16];
        if ip.len() != 32 {
            return None;
        }
        for (to, from) in octets.chunks_exact_mut(4).zip(ip.chunks_exact(8)) {
            to.copy_from_slice(&hexadecimal::<u32>(from, 8)?.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(octets))
    } else {
        IpAddr::V4(Ipv4Addr::from(hexadecimal::<u32>(ip, 8)?.to_ne_bytes()))
    };
    Some(SocketAddr::new(ip, port))
}

/// Parses exactly `digits` hexadecimal digits.
fn hexadecimal<T: TryFrom<u64>>(word: &[u8], digits: usize) -> Option<T> {
    if word.len() != digits || !word.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let number = u64::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
    T::try_from(number).ok()
}

/// Parses what a descriptor in `/proc` points to: the inode of a socket, `None` for anything else.
pub(super) fn socket(target: &[u8]) -> Option<u64> {
    number(target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?)
}

/// Parses decimal digits and nothing else.
fn number<T: FromStr>(word: &[u8]) -> Option<T> {
    if !word.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: Table = Table { proto: Proto::Tcp, is_v6: false };
    const TCP6: Table = Table { proto: Proto::Tcp, is_v6: true };
    const UDP: Table = Table { proto: Proto::Udp, is_v6: false };

    #[cfg(target_endian = "little")]
    #[test]
    fn lines_as_the_kernel_writes_them() {
        let line = b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0";
        let found = parse(line, TCP).unwrap();
        assert_eq!((found.addr, found.uid, found.inode), ("127.0.0.1:8080".parse().unwrap(), 1000, 4242));
        let line = b"  1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(parse(line, TCP6).unwrap().addr, "[::1]:80".parse().unwrap());
        let line = b"  9: 00000000:14E9 00000000:0000 07 0:0 00:0 0  0  0 99 2 0 0";
        assert_eq!(parse(line, UDP).unwrap().addr, "0.0.0.0:5353".parse().unwrap());
    }

    #[test]
    fn what_does_not_listen_is_left_out() {
        let line = b"   0: 0100007F:1F90 0100007F:0000 01 0:0 00:0 0 1000 0 4242 1";
        assert_eq!(parse(line, TCP), None);
        assert_eq!(parse(line, UDP), None);
    }

    #[test]
    fn damaged_lines_are_left_out() {
        for line in [
            &b""[..],
            b"sl",
            b"0: 0100007F",
            b"0: 0100007F:1F90",
            b"0: X100007F:1F90 0 0A 0 0 0 0 0 0",
            b"0: 0100007F:1F90 0 0A 0 0 0 +1 0 0",
            b"0: 0100007F:1F90 0 0A 0 0 0 1 0",
            b"0: 0100007F:11F90 0 0A 0 0 0 1 0 0",
        ] {
            assert_eq!(parse(line, TCP), None, "{}", line.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for table in Table::ALL {
                let _ = parse(&bytes, table);
            }
        }

        #[test]
        fn any_line_like_text_is_survived(text in "[0-9]: [0-9A-F]{0,34}:?[0-9A-F]{0,5} [0-9A-F:]{0,8} (0A|07|..) ([0-9:]{1,4} ){0,8}") {
            for table in Table::ALL {
                let _ = parse(text.as_bytes(), table);
            }
        }

        #[test]
        fn any_address_is_read_back(ip in any::<IpAddr>(), port in any::<u16>(), uid in any::<u32>(), inode in any::<u64>()) {
            let octets = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let mut word = String::new();
            for chunk in octets.chunks(4) {
                word += &format!("{:08X}", u32::from_ne_bytes(chunk.try_into().unwrap()));
            }
            let line = format!("  1: {word}:{port:04X} {word}:0000 0A 0:0 00:0 0 {uid} 0 {inode} 1 0 100 0 0 10 0");
            let table = Table { proto: Proto::Tcp, is_v6: ip.is_ipv6() };
            let expected = Listener { proto: Proto::Tcp, addr: SocketAddr::new(ip, port), inode, uid };
            prop_assert_eq!(parse(line.as_bytes(), table), Some(expected));
        }
    }
}
