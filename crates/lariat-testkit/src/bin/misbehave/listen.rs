//! Sockets that listen, of every kind and in many hands.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::args::Args;
use crate::facts::Muster;
use crate::member::Part;
use crate::sys;
use crate::tree::{lead, member};

/// A leader that listens: `--at ADDRESS --port N --proto tcp|udp`. `--sharers N` children have its socket too;
/// `--group N` children have one of their own on the same port (SO_REUSEPORT), and the leader has none.
pub(crate) fn listener(args: &Args) -> i32 {
    let part = Part::of(args);
    let muster = Muster::new();
    let (sharers, group): (usize, usize) = (args.number("sharers", 0), args.number("group", 0));
    let _held = (group == 0).then(|| socket(args));
    for number in 0..sharers + group {
        if sys::fork(part.until).is_none() {
            let _own = (number >= sharers).then(|| shared_port(args));
            member(&part, "sharer", &muster);
        }
    }
    muster.wait_for(sharers + group);
    lead(&part)
}

fn address(args: &Args) -> SocketAddr {
    let Ok(ip) = args.text("at", "127.0.0.1").parse::<IpAddr>() else { sys::broken("no address") };
    SocketAddr::new(ip, args.number("port", 0))
}

fn socket(args: &Args) -> OwnedFd {
    let address = address(args);
    let socket = match args.text("proto", "tcp") {
        "udp" => UdpSocket::bind(address).map(OwnedFd::from),
        _ => TcpListener::bind(address).map(OwnedFd::from),
    };
    socket.unwrap_or_else(|_| sys::broken("could not listen"))
}

/// A v4 TCP socket that shares its port with others that say the same.
fn shared_port(args: &Args) -> OwnedFd {
    let SocketAddr::V4(address) = address(args) else { sys::broken("v4 only") };
    // SAFETY: socket(2) takes integers; the descriptor is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)) };
    let on: libc::c_int = 1;
    let name = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    };
    let (int, size) =
        (size_of::<libc::c_int>() as libc::socklen_t, size_of::<libc::sockaddr_in>() as libc::socklen_t);
    // SAFETY: option and address live for the calls, and their sizes are theirs.
    let is_open = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_REUSEPORT,
            (&raw const on).cast(),
            int,
        ) == 0
            && libc::bind(socket.as_raw_fd(), (&raw const name).cast(), size) == 0
            && libc::listen(socket.as_raw_fd(), 8) == 0
    };
    if is_open { socket } else { sys::broken("could not listen") }
}
