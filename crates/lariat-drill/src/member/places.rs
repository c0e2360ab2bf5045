//! Trees that hold something or have gone somewhere: ports, terminals, namespaces, other users.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use lariat_sys::signal::{self, Signal, SignalSet};
use lariat_sys::unusual::{self, Namespaces};
use lariat_sys::{files, process};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr, tcsetpgrp};

use super::part::{POLITE, Part};

/// A child in a session of its own that listens on TCP (v4, v6), UDP and a unix socket.
pub(crate) fn ports(part: &Part) -> ! {
    part.child(|| {
        part.new_session();
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let six = TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let path = part.dir.join("listener");
        let unix = UnixListener::bind(&path);
        match &tcp {
            Ok(tcp) => say_port(part, "tcp4", tcp.local_addr()),
            Err(error) => part.broken("listen", error),
        }
        // No v6 on this machine is no fault of the tree.
        if let Ok(six) = &six {
            say_port(part, "tcp6", six.local_addr());
        }
        if let Ok(udp) = &udp {
            say_port(part, "udp4", udp.local_addr());
        }
        if unix.is_ok() {
            part.say(&format!("holds unix {}", path.display()));
        }
        part.member("holder")
    });
    part.lead(1)
}

fn say_port(part: &Part, kind: &str, at: std::io::Result<std::net::SocketAddr>) {
    if let Ok(at) = at {
        part.say(&format!("holds {kind} {}", at.port()));
    }
}

/// A listening socket that three processes share, one of them a daemon.
pub(crate) fn shared_listener(part: &Part) -> ! {
    let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(listener) => listener,
        Err(error) => part.broken("listen", error),
    };
    say_port(part, "tcp4", listener.local_addr());
    for _ in 0..2 {
        part.child(|| part.member("worker"));
    }
    part.daemon(|| part.member("daemon"));
    part.lead(3)
}

/// A member in a user and a pid namespace of its own, as the first process there, and a daemon inside.
pub(crate) fn namespace(part: &Part) -> ! {
    part.child(|| {
        let user = process::effective_user() != 0;
        if let Err(errno) = unusual::unshare(Namespaces { user, pid: true, mount: true }) {
            part.skip(&format!("no namespaces of one's own are allowed here: {errno}"));
        }
        part.child(|| {
            // Without one it goes on with the outer /proc, and its own numbers mean others there.
            let _ = unusual::mount_proc();
            part.daemon(|| {
                part.nullify();
                // The kernel ends it with the first process of its namespace, whatever it had to do.
                part.stand_wild("inner-daemon");
                part.prepare();
                part.live("inner-daemon")
            });
            part.member("first")
        });
        part.member("outside")
    });
    part.lead(3)
}

/// A process that is not lariat's, and the first of a pid namespace that it has made.
pub(super) fn neighbour(part: &Part) -> ! {
    let user = process::effective_user() != 0;
    if let Err(errno) = unusual::unshare(Namespaces { user, pid: true, mount: false }) {
        part.skip(&format!("no namespaces of one's own are allowed here: {errno}"));
    }
    part.child(|| {
        // The timer of a first process does not end it.
        let _ = process::set_parent_death(Signal::KILL);
        // Whoever is handed on to it is collected by the kernel.
        let _ = signal::set_ignored(Signal::CHLD);
        part.say("neighbour");
        part.rest_until_the_end()
    });
    part.rest_until_the_end()
}

/// A member that joins that namespace, and a daemon that it leaves there.
pub(crate) fn joined(part: &Part) -> ! {
    let Some(neighbour) = part.neighbour() else { part.skip("nobody has made a namespace") };
    part.child(|| {
        if let Err(errno) = unusual::join(neighbour, process::effective_user() != 0) {
            part.skip(&format!("the namespaces of another process may not be joined here: {errno}"));
        }
        part.daemon(|| {
            part.nullify();
            part.member("daemon")
        });
        part.member("between")
    });
    part.lead(2)
}

/// A member that leads a session on a terminal of its own, with a job in the foreground.
pub(crate) fn terminal_job(part: &Part) -> ! {
    on_terminal(part, |name| {
        let job = part.child(|| {
            let _ = rustix::process::setpgid(None, None);
            part.member("job")
        });
        bring_to_front(name, job);
        part.member("shell")
    });
    part.lead(3)
}

/// A job in the background that the terminal has stopped, because it wrote (TTOU).
pub(crate) fn terminal_stopped(part: &Part) -> ! {
    on_terminal(part, |name| {
        set_tostop(name);
        let job = part.child(|| {
            let _ = rustix::process::setpgid(None, None);
            for signal in POLITE.into_iter().chain([Signal::TTOU]) {
                let _ = signal::set_default(signal);
            }
            // Continued, it writes again and is stopped again: a signal that is blocked would wait for ever.
            signal::set_mask(SignalSet::empty());
            part.stand_wild("job");
            if let Ok(mut terminal) = OpenOptions::new().write(true).open(name) {
                let _ = terminal.write_all(b"x");
            }
            part.live("job")
        });
        part.wait_stop(job);
        part.member("shell")
    });
    part.lead(3)
}

/// Runs `body` as the leader of a session on a new terminal, whose other side a second child holds.
fn on_terminal(part: &Part, body: impl FnOnce(&PathBuf)) {
    let made = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).and_then(|master| {
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        Ok((master, PathBuf::from(std::ffi::OsStr::from_bytes(name.as_bytes()))))
    });
    let (master, name): (OwnedFd, PathBuf) = match made {
        Ok(made) => made,
        Err(errno) => part.skip(&format!("no terminal can be opened: {errno}")),
    };
    part.child(|| {
        part.new_session();
        // A session without a terminal takes the first one that it opens.
        let terminal = OpenOptions::new().read(true).write(true).open(&name);
        if let Err(error) = &terminal {
            part.broken("open the terminal", error);
        }
        body(&name);
    });
    part.child(|| {
        let _held = master;
        part.member("emulator")
    });
}

fn bring_to_front(name: &PathBuf, job: i32) {
    if let (Ok(terminal), Some(group)) = (OpenOptions::new().read(true).open(name), Pid::from_raw(job)) {
        let _ = rustix::process::setpgid(Some(group), Some(group));
        let _ = tcsetpgrp(&terminal, group);
    }
}

fn set_tostop(name: &PathBuf) {
    if let Ok(terminal) = OpenOptions::new().read(true).write(true).open(name)
        && let Ok(mut modes) = tcgetattr(&terminal)
    {
        modes.local_modes |= LocalModes::TOSTOP;
        let _ = tcsetattr(&terminal, OptionalActions::Now, &modes);
    }
}

/// A daemon that has become another user; only root can.
pub(crate) fn other_user(part: &Part) -> ! {
    /// `nobody`, on every system.
    const NOBODY: u32 = 65_534;
    if process::effective_user() != 0 {
        part.skip("only root can become another user");
    }
    part.daemon(|| {
        part.nullify();
        let nobody = rustix::process::Uid::from_raw(NOBODY);
        // Without any other thread, the thread's user is the process's.
        if let Err(errno) = rustix::thread::set_thread_res_uid(nobody, nobody, nobody) {
            part.broken("become another user", errno);
        }
        part.member("nobody")
    });
    part.lead(1)
}

/// A member that a sibling traces and holds.
pub(crate) fn traced(part: &Part) -> ! {
    let (standing, stands) = match files::pipe(0) {
        Ok(ends) => ends,
        Err(errno) => part.broken("open a pipe", errno),
    };
    let traced = part.child(|| {
        part.stand_wild("traced");
        part.prepare();
        let _ = rustix::io::write(&stands, b"+");
        part.live("traced")
    });
    // Once it is held it says nothing any more.
    let _ = files::read(&standing, &mut [0]);
    part.child(|| {
        if let Err(errno) = unusual::trace(traced) {
            part.skip(&format!("a sibling may not be traced here: {errno}"));
        }
        part.stand_wild("tracer");
        let stubborn = part.stubborn();
        stubborn.prepare();
        stubborn.live("tracer")
    });
    part.lead(2)
}
