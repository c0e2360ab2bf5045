//! One table between the numbers and the names of signals.

use std::fmt;
use std::str::FromStr;

/// A signal, from 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(
    // INVARIANT: from 1 to 64, so that it has a bit in a set.
    i32,
);

/// Makes the constants and the table from one list, so that neither can miss what the other has.
macro_rules! signals {
    ($($name:ident = $number:ident, $meaning:literal;)*) => {
        impl Signal {
            $(#[doc = concat!("`SIG", stringify!($name), "`: ", $meaning, ".")]
            pub const $name: Signal = Signal(libc::$number);)*
        }

        /// Every signal that has a name of its own.
        const NAMED: &[(Signal, &str)] = &[$((Signal::$name, stringify!($name)),)*];
    };
}

signals! {
    HUP = SIGHUP, "the terminal is gone";
    INT = SIGINT, "typed Ctrl-C";
    QUIT = SIGQUIT, "typed Ctrl-\\";
    ILL = SIGILL, "an illegal instruction";
    TRAP = SIGTRAP, "a breakpoint";
    ABRT = SIGABRT, "`abort` was called";
    BUS = SIGBUS, "an access beyond a mapped file";
    FPE = SIGFPE, "an arithmetic error";
    KILL = SIGKILL, "ends a process without asking it";
    USR1 = SIGUSR1, "left to programs";
    SEGV = SIGSEGV, "an access to memory that is not there";
    USR2 = SIGUSR2, "left to programs";
    PIPE = SIGPIPE, "a write to a pipe that nobody reads";
    ALRM = SIGALRM, "a timer of `alarm`";
    TERM = SIGTERM, "asks a process to end";
    STKFLT = SIGSTKFLT, "unused";
    CHLD = SIGCHLD, "a child ended, stopped or went on";
    CONT = SIGCONT, "lets a stopped process go on";
    STOP = SIGSTOP, "stops a process without asking it";
    TSTP = SIGTSTP, "typed Ctrl-Z";
    TTIN = SIGTTIN, "a background process reads the terminal";
    TTOU = SIGTTOU, "a background process writes to the terminal";
    URG = SIGURG, "urgent data on a socket";
    XCPU = SIGXCPU, "the limit of processor time";
    XFSZ = SIGXFSZ, "the limit of file size";
    VTALRM = SIGVTALRM, "a timer of processor time";
    PROF = SIGPROF, "a timer of a profiler";
    WINCH = SIGWINCH, "the terminal's size changed";
    IO = SIGIO, "a descriptor is ready";
    PWR = SIGPWR, "a power failure";
    SYS = SIGSYS, "a call that a filter refuses";
}

/// Other names that people use for signals of the table.
const ALIASES: &[(&str, Signal)] = &[("IOT", Signal::ABRT), ("CLD", Signal::CHLD), ("POLL", Signal::IO)];

/// The last real-time signal.
const REAL_TIME_MAX: i32 = 64;
/// The first real-time signal that programs may use: the C library keeps 32 and 33.
const REAL_TIME_MIN: i32 = 34;

impl Signal {
    /// Returns the signal of this number: 1 to 31, or a real-time one up to 64.
    pub const fn from_number(number: i32) -> Option<Signal> {
        if 1 <= number && number <= REAL_TIME_MAX { Some(Signal(number)) } else { None }
    }

    /// Returns its number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// Returns its name without `SIG`, if it has one of its own; real-time signals have none.
    pub fn name(self) -> Option<&'static str> {
        NAMED.iter().find(|(signal, _)| *signal == self).map(|(_, name)| *name)
    }
}

impl fmt::Display for Signal {
    /// Writes the name without `SIG` (`TERM`, `RTMIN+3`), or the number where it has no name.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.0) {
            (Some(name), _) => out.pad(name),
            (None, REAL_TIME_MIN) => out.pad("RTMIN"),
            (None, REAL_TIME_MAX) => out.pad("RTMAX"),
            (None, number @ REAL_TIME_MIN..=49) => out.pad(&format!("RTMIN+{}", number - REAL_TIME_MIN)),
            (None, number @ 50..=REAL_TIME_MAX) => out.pad(&format!("RTMAX-{}", REAL_TIME_MAX - number)),
            (None, number) => out.pad(&number.to_string()),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// The text names no signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseSignalError;

impl fmt::Display for ParseSignalError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("no such signal")
    }
}

impl std::error::Error for ParseSignalError {}

impl FromStr for Signal {
    type Err = ParseSignalError;

    /// Takes `TERM`, `SIGTERM`, `15`, `RTMIN+3` or `RTMAX-3`, in upper or lower case.
    fn from_str(text: &str) -> Result<Signal, ParseSignalError> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(number) = digits(text) {
            return Signal::from_number(number).ok_or(ParseSignalError);
        }
        let named = NAMED.iter().find(|(_, known)| *known == name).map(|(signal, _)| *signal);
        let aliased = || ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, signal)| *signal);
        named.or_else(aliased).or_else(|| real_time(name)).ok_or(ParseSignalError)
    }
}

/// Parses `RTMIN`, `RTMIN+n`, `RTMAX` and `RTMAX-n`.
fn real_time(name: &str) -> Option<Signal> {
    let number = match name {
        "RTMIN" => REAL_TIME_MIN,
        "RTMAX" => REAL_TIME_MAX,
        _ => match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
            (Some(up), _) => REAL_TIME_MIN + digits(up)?,
            (_, Some(down)) => REAL_TIME_MAX - digits(down)?,
            _ => return None,
        },
    };
    Signal::from_number(number).filter(|signal| signal.number() >= REAL_TIME_MIN)
}

/// Parses at most three decimal digits, and nothing else.
fn digits(text: &str) -> Option<i32> {
    let is_number = (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_goes_through_its_name_and_back() {
        for number in 1..=64 {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(signal.number(), number);
            let name = signal.to_string();
            assert_eq!(name.parse(), Ok(signal), "{name}");
            assert_eq!(number.to_string().parse(), Ok(signal));
            if number != 32 && number != 33 {
                assert_eq!(format!("SIG{name}").parse(), Ok(signal));
                assert_eq!(name.to_lowercase().parse(), Ok(signal));
            }
        }
    }

    #[test]
    fn the_first_31_all_have_names() {
        assert!((1..=31).all(|number| Signal::from_number(number).unwrap().name().is_some()));
    }

    #[test]
    fn aliases_and_spellings() {
        assert_eq!("SIGTERM".parse(), Ok(Signal::TERM));
        assert_eq!("sigterm".parse(), Ok(Signal::TERM));
        assert_eq!("Iot".parse(), Ok(Signal::ABRT));
        assert_eq!("SIGCLD".parse(), Ok(Signal::CHLD));
        assert_eq!("rtmin+0".parse(), Ok(Signal(34)));
        assert_eq!("RTMAX-30".parse(), Ok(Signal(34)));
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "",
            "0",
            "65",
            "-1",
            "+15",
            "SIG",
            "SIG15",
            "TERMX",
            "SIGSIGTERM",
            "RTMIN+31",
            "RTMAX-31",
            "RTMIN-1",
            "RTMIN+",
            "99999999999999999999",
            "TÉRM",
            " TERM",
        ] {
            assert_eq!(text.parse::<Signal>(), Err(ParseSignalError), "{text:?}");
        }
        for number in [i32::MIN, -1, 0, 65, i32::MAX] {
            assert_eq!(Signal::from_number(number), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_signal_or_refused(text in ".{0,12}") {
            if let Ok(signal) = text.parse::<Signal>() {
                proptest::prop_assert_eq!(signal.to_string().parse(), Ok(signal));
            }
        }
    }
}
