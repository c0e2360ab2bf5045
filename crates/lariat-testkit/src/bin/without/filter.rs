//! The seccomp filter: rules on system calls as a program for the kernel's packet filter (`seccomp(2)`).

use std::os::fd::{FromRawFd as _, OwnedFd};

/// What a call gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// This error, without anything being done.
    Errno(i32),
    /// Whatever the listener says.
    Ask,
}

/// Which calls are meant, by an argument: those that have this value in the bits of the mask. The lower half of the
/// argument is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Argument {
    pub(crate) index: u8,
    pub(crate) mask: u32,
    pub(crate) value: u32,
}

/// One rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rule {
    pub(crate) call: libc::c_long,
    pub(crate) argument: Option<Argument>,
    pub(crate) answer: Answer,
}

/// Where `struct seccomp_data` has the call's number, and the first of its arguments, 8 bytes each.
const NUMBER_AT: u32 = 0;
const ARGUMENTS_AT: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn step(code: u32, k: u32, on_true: u8, on_false: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: on_true, jf: on_false, k }
}

/// Appends one rule: falls through to the next where it does not apply.
fn append(rule: &Rule, program: &mut Vec<libc::sock_filter>) {
    let answer = match rule.answer {
        Answer::Errno(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
        Answer::Ask => libc::SECCOMP_RET_USER_NOTIF,
    };
    program.push(step(LOAD, NUMBER_AT, 0, 0));
    let Some(Argument { index, mask, value }) = rule.argument else {
        program.push(step(JUMP_EQUAL, rule.call as u32, 0, 1));
        program.push(step(RETURN, answer, 0, 0));
        return;
    };
    // The lower half of an argument comes first where the least significant byte does.
    let half = if cfg!(target_endian = "little") { 0 } else { 4 };
    program.push(step(JUMP_EQUAL, rule.call as u32, 0, 4));
    program.push(step(LOAD, ARGUMENTS_AT + u32::from(index) * 8 + half, 0, 0));
    program.push(step(AND, mask, 0, 0));
    program.push(step(JUMP_EQUAL, value, 0, 1));
    program.push(step(RETURN, answer, 0, 0));
}

/// Puts the calling process, and all that it will start, under these rules. Returns the descriptor that questions come
/// to, if there are any.
pub(crate) fn install(rules: &[Rule]) -> Result<Option<OwnedFd>, String> {
    let mut program = Vec::new();
    rules.iter().for_each(|rule| append(rule, &mut program));
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    let length = u16::try_from(program.len()).map_err(|_| "too many rules")?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let asks = rules.iter().any(|rule| rule.answer == Answer::Ask);
    let flags = if asks { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    // SAFETY: the prctl takes integers. The filter and its program live for the call.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter)
    };
    if installed < 0 {
        return Err(format!("could not install the filter: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: with the flag the result is a new descriptor, which nobody else knows.
    Ok(asks.then(|| unsafe { OwnedFd::from_raw_fd(installed as i32) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_skips_to_the_next_where_it_does_not_apply() {
        for argument in [None, Some(Argument { index: 2, mask: 15, value: 7 })] {
            let mut program = Vec::new();
            append(&Rule { call: 42, argument, answer: Answer::Errno(1) }, &mut program);
            let end = program.len();
            for (at, step) in program.iter().enumerate().filter(|(_, step)| step.jf > 0) {
                assert_eq!(at + 1 + usize::from(step.jf), end, "{argument:?}");
            }
        }
    }
}
