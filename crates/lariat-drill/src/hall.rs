//! Where members report to the judge: a socket on which the kernel itself says who has sent each word.
//!
//! The sender's number comes with the datagram (`SCM_CREDENTIALS`), translated out of whatever pid namespace it is in, so
//! no member can be mistaken about itself or lie.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use lariat_sys::Errno;
use lariat_sys::identity::Identity;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};

/// A member as it reported itself.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    pub(crate) identity: Identity,
    /// What it calls itself in its tree.
    pub(crate) name: String,
    /// Whether it ends by itself when it is told, and says so.
    pub(crate) is_graceful: bool,
    /// How often it was told to end.
    pub(crate) told: u32,
    /// Whether it had the time to finish.
    pub(crate) is_clean: bool,
}

/// Something that a member holds and that has to be free in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// `tcp4`, `tcp6`, `udp4` or `unix`.
    pub(crate) kind: String,
    /// The port, or the path.
    pub(crate) place: String,
}

/// The judge's ear.
#[derive(Debug)]
pub(crate) struct Hall {
    socket: UnixDatagram,
    pub(crate) members: Vec<Reported>,
    pub(crate) held: Vec<Held>,
    expected: Option<usize>,
    /// Why this machine cannot build the tree.
    pub(crate) skip: Option<String>,
    /// Why a member could not become what it should be.
    pub(crate) broken: Option<String>,
    /// The number of the subject that a caller has started.
    pub(crate) subject: Option<i32>,
    /// The first process of a pid namespace that is not lariat's.
    pub(crate) neighbour: Option<i32>,
}

impl Hall {
    /// Opens the socket at this path, for members of every user.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
        socket.set_nonblocking(true)?;
        sockopt::set_socket_passcred(&socket, true)?;
        Ok(Self {
            socket,
            members: Vec::new(),
            held: Vec::new(),
            expected: None,
            skip: None,
            broken: None,
            subject: None,
            neighbour: None,
        })
    }

    /// Takes every word that has come.
    pub(crate) fn listen(&mut self) {
        let mut text = [0; 512];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut text)];
            let received = recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::DONTWAIT);
            let length = match received {
                Ok(received) => received.bytes,
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            let sender = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmCredentials(credentials) => {
                    Some(credentials.pid.as_raw_nonzero().get())
                }
                _ => None,
            });
            let words = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
            if let Some(sender) = sender {
                self.hear(sender, &words);
            }
        }
    }

    fn hear(&mut self, sender: i32, words: &str) {
        let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
        match verb {
            "born" => self.born(sender, rest),
            "expect" => self.expected = rest.parse().ok(),
            "told" => {
                if let Some(member) = self.member(sender) {
                    member.told += 1;
                }
            }
            "clean" => {
                if let Some(member) = self.member(sender) {
                    member.is_clean = true;
                }
            }
            "holds" => {
                if let Some((kind, place)) = rest.split_once(' ') {
                    self.held.push(Held { kind: kind.to_owned(), place: place.to_owned() });
                }
            }
            "subject" => self.subject = rest.parse().ok(),
            "neighbour" => self.neighbour = Some(sender),
            "skip" => self.skip = Some(rest.to_owned()),
            "broken" => self.broken = Some(rest.to_owned()),
            _ => {}
        }
    }

    fn born(&mut self, sender: i32, rest: &str) {
        let (name, manner) = rest.split_once(' ').unwrap_or((rest, ""));
        // One that is gone already was born all the same.
        let identity = Identity::of(sender).ok().flatten().unwrap_or(Identity::new(sender, 0));
        let is_graceful = manner == "graceful";
        self.members.push(Reported {
            identity,
            name: name.to_owned(),
            is_graceful,
            told: 0,
            is_clean: false,
        });
    }

    /// The latest who was born with this number.
    fn member(&mut self, pid: i32) -> Option<&mut Reported> {
        self.members.iter_mut().rev().find(|member| member.identity.pid == pid)
    }

    /// Says whether everybody stands.
    pub(crate) fn is_complete(&self) -> bool {
        self.expected.is_some_and(|expected| self.members.len() >= expected)
    }

    /// Returns the leader.
    pub(crate) fn leader(&self) -> Option<Identity> {
        self.members.iter().find(|member| member.name == "leader").map(|member| member.identity)
    }

    /// Returns how many stand and how many are waited for, for people.
    pub(crate) fn progress(&self) -> String {
        let expected = self.expected.map_or("an unknown number".to_owned(), |expected| expected.to_string());
        format!("{} of {expected} members stand", self.members.len())
    }
}

impl AsFd for Hall {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Held {
    /// Says whether nobody holds it any more.
    pub(crate) fn is_free(&self) -> bool {
        use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
        let port = self.place.parse().unwrap_or(0);
        match self.kind.as_str() {
            "tcp4" => TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok(),
            "tcp6" => TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok(),
            "udp4" => UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok(),
            _ => std::os::unix::net::UnixStream::connect(&self.place).is_err(),
        }
    }
}
