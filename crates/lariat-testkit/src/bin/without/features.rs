//! What a kernel can lack, by name: the system calls of it, and what they answer then.

use crate::filter::{Answer, Argument, Rule};

/// Something that not every kernel has.
pub(crate) struct Feature {
    /// How it is called on the command line.
    pub(crate) name: &'static str,
    /// The system call of it.
    call: libc::c_long,
    /// Which calls of that are meant: those with one of these bits in this argument; all of them if absent.
    argument: Option<Argument>,
    /// What a kernel without it answers.
    answer: Answer,
}

const fn all(name: &'static str, call: libc::c_long, errno: i32) -> Feature {
    Feature { name, call, argument: None, answer: Answer::Errno(errno) }
}

/// Calls with this bit in an argument.
const fn with(name: &'static str, call: libc::c_long, index: u8, bit: u32, errno: i32) -> Feature {
    let argument = Some(Argument { index, mask: bit, value: bit });
    Feature { name, call, argument, answer: Answer::Errno(errno) }
}

/// Calls with this value of an argument.
const fn equal(name: &'static str, call: libc::c_long, index: u8, value: u32, errno: i32) -> Feature {
    let argument = Some(Argument { index, mask: u32::MAX, value });
    Feature { name, call, argument, answer: Answer::Errno(errno) }
}

/// `PIDFD_SIGNAL_PROCESS_GROUP` of linux/pidfd.h.
const PROCESS_GROUP: u32 = 1 << 2;

/// What `lariat` may meet. The kernel that brought each is in its comment.
pub(crate) const FEATURES: &[Feature] = &[
    // 3.4
    equal("subreaper", libc::SYS_prctl, 0, libc::PR_SET_CHILD_SUBREAPER as u32, libc::EINVAL),
    // 5.1
    all("pidfd-send-signal", libc::SYS_pidfd_send_signal, libc::ENOSYS),
    // 5.2
    with("clone-pidfd", libc::SYS_clone, 0, libc::CLONE_PIDFD as u32, libc::EINVAL),
    // Always there; refused by sandboxes that emulate a kernel, but for threads.
    Feature {
        name: "clone-vm",
        call: libc::SYS_clone,
        argument: Some(Argument {
            index: 0,
            mask: (libc::CLONE_VM | libc::CLONE_THREAD) as u32,
            value: libc::CLONE_VM as u32,
        }),
        answer: Answer::Errno(libc::EINVAL),
    },
    // 5.3
    all("pidfd-open", libc::SYS_pidfd_open, libc::ENOSYS),
    all("clone3", libc::SYS_clone3, libc::ENOSYS),
    // 5.4: `P_PIDFD`
    equal("waitid-pidfd", libc::SYS_waitid, 0, libc::P_PIDFD, libc::EINVAL),
    // 4.11
    all("statx", libc::SYS_statx, libc::ENOSYS),
    // 5.9, and 5.11 for `CLOSE_RANGE_CLOEXEC`
    all("close-range", libc::SYS_close_range, libc::ENOSYS),
    with("close-range-cloexec", libc::SYS_close_range, 2, libc::CLOSE_RANGE_CLOEXEC, libc::EINVAL),
    // 5.11
    all("epoll-pwait2", libc::SYS_epoll_pwait2, libc::ENOSYS),
    // 6.9
    with("group-signal", libc::SYS_pidfd_send_signal, 3, PROCESS_GROUP, libc::EINVAL),
    // 6.9: without it, a pidfd's file system is another one. That no type can be had comes to the same.
    all("pidfs", libc::SYS_fstatfs, libc::ENOSYS),
    // 6.14
    all("file-handles", libc::SYS_name_to_handle_at, libc::EOPNOTSUPP),
    // `CONFIG_INET_DIAG`
    equal("sock-diag", libc::SYS_socket, 0, libc::AF_NETLINK as u32, libc::EPROTONOSUPPORT),
    // `CONFIG_PID_NS`, and what containers refuse.
    with("unshare-pid", libc::SYS_unshare, 0, libc::CLONE_NEWPID as u32, libc::EPERM),
    with("clone-pid", libc::SYS_clone, 0, libc::CLONE_NEWPID as u32, libc::EPERM),
    // Some file systems, and emulated kernels.
    all("splice", libc::SYS_splice, libc::EINVAL),
    all("madvise", libc::SYS_madvise, libc::EINVAL),
    // `CONFIG_PROC_CHILDREN`: a file in /proc, so it takes somebody who reads paths.
    Feature { name: "children-lists", call: libc::SYS_openat, argument: None, answer: Answer::Ask },
];

/// Returns the rules of `NAME` or `NAME=ERRNO`.
pub(crate) fn rules(word: &str) -> Result<Vec<Rule>, String> {
    let (name, errno) = word.split_once('=').map_or((word, None), |(name, errno)| (name, Some(errno)));
    let named = FEATURES.iter().filter(|feature| feature.name == name);
    let errno = errno.map(errno_named).transpose()?;
    let rules: Vec<Rule> = named
        .map(|feature| Rule {
            call: feature.call,
            argument: feature.argument,
            answer: errno.map_or(feature.answer, Answer::Errno),
        })
        .collect();
    if rules.is_empty() { Err(format!("no feature is called `{name}`")) } else { Ok(rules) }
}

fn errno_named(name: &str) -> Result<i32, String> {
    Ok(match name {
        "ENOSYS" => libc::ENOSYS,
        "EPERM" => libc::EPERM,
        "EINVAL" => libc::EINVAL,
        _ => return Err(format!("no error is called `{name}`: ENOSYS, EPERM or EINVAL")),
    })
}

/// Says whether the filter of a feature catches its call: by an error that no kernel gives for it.
pub(crate) fn is_caught(name: &str) -> bool {
    const NOBODY_ELSES: i32 = libc::EXFULL;
    let Some(feature) = FEATURES.iter().find(|feature| feature.name == name) else { return false };
    let rule = Rule { answer: Answer::Errno(NOBODY_ELSES), call: feature.call, argument: feature.argument };
    let mut arguments: [libc::c_long; 6] = [0; 6];
    if let Some(Argument { index, value, .. }) = feature.argument {
        arguments[usize::from(index)] = libc::c_long::from(value as i32);
    }
    if crate::filter::install(&[rule]).is_err() {
        return false;
    }
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the call is not made: the filter answers it. Were it made, with null pointers and zeroes it could do
    // nothing but fail, or fork a copy that exits with the same answer.
    let result = unsafe { libc::syscall(feature.call, a, b, c, d, e, f) };
    result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(NOBODY_ELSES)
}
