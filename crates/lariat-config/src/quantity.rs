//! Amounts of memory and shares of processors as people write them: `512MiB`, `1.5`.
//!
//! Sizes are read as the kernel, systemd and containers read them: `512M` is `512MiB`. What has a decimal unit by name
//! (`MB`) is taken at its word. A number without a unit is refused: it may be bytes, or megabytes.

use lariat::service::spec::Cpu;

use crate::duration::Refused;
use crate::suggest::quoted;

/// The most processes that a limit can be: the kernel has no more numbers (`PID_MAX_LIMIT`).
pub const PROCESSES_MAX: u32 = 4_194_304;
/// The least memory that is accepted: with less no program can be started.
const MEMORY_MIN: u64 = 1 << 20;
/// The most: a pebibyte.
const MEMORY_MAX: u64 = 1 << 50;

/// Units by their names in lower case; `b` alone is bytes.
const UNITS: [(&str, u64); 17] = [
    ("b", 1),
    ("k", 1 << 10),
    ("ki", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mi", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gi", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("ti", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
];

/// Reads an amount of memory, in bytes.
pub(crate) fn memory(text: &str) -> Result<u64, Refused> {
    let (trimmed, shown) = (text.trim(), quoted(text));
    let refuse = |message: String, label, meant| Err(Refused { message, label, meant });
    let number_ends = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(number_ends);
    let unit = unit.trim().to_ascii_lowercase();
    let Some((whole, thousandths)) = decimal(number) else {
        return refuse(format!("{shown} is not an amount of memory"), "not an amount of memory", None);
    };
    if unit.is_empty() {
        let meant = (number.len() < 6 && whole > 0 && thousandths == 0).then(|| format!("{number}MiB"));
        return refuse(format!("the amount of memory {shown} has no unit"), "bytes, mebibytes?", meant);
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return refuse(format!("{shown} has a unit that is none of memory"), "MiB, GiB?", None);
    };
    let bytes = (u128::from(whole) * 1000 + u128::from(thousandths)) * u128::from(*factor) / 1000;
    match u64::try_from(bytes) {
        Ok(bytes) if bytes < MEMORY_MIN => refuse(
            format!("{shown} is less than a mebibyte"),
            "too little for any program",
            Some("1MiB".into()),
        ),
        Ok(bytes) if bytes <= MEMORY_MAX => Ok(bytes),
        _ => refuse(format!("{shown} is more than a pebibyte"), "too much", None),
    }
}

/// Reads a share of the processors.
pub(crate) fn cpu(text: &str) -> Result<Cpu, Refused> {
    let refuse = |message: String| Refused { message, label: "out of range", meant: None };
    let range = || format!("a number of processors from {} to {}, like `1.5`", Cpu::MIN, Cpu::MAX);
    let not = || refuse(format!("{} is not {}", quoted(text), range()));
    let (whole, thousandths) = decimal(text.trim()).ok_or_else(not)?;
    let all = u32::try_from(whole).ok().and_then(|whole| whole.checked_mul(1000)?.checked_add(thousandths));
    all.and_then(Cpu::from_thousandths).ok_or_else(not)
}

/// Returns a decimal number as its whole part and thousandths; further digits are cut off.
fn decimal(text: &str) -> Option<(u64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let thousandths = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    Some((whole.parse().ok()?, thousandths))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write_is_read() {
        let mib = 1 << 20;
        let cases = [
            ("512MiB", 512 * mib),
            ("512 MiB", 512 * mib),
            ("512m", 512 * mib),
            ("512M", 512 * mib),
            ("512Mi", 512 * mib),
            (" 2gib ", 2048 * mib),
            ("1.5GiB", 1536 * mib),
            ("500MB", 500_000_000),
            ("2048K", 2 * mib),
            ("1048576b", mib),
            ("1024TiB", 1 << 50),
        ];
        for (text, bytes) in cases {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for (text, thousandths) in
            [("1.5", 1500), ("2", 2000), ("0.25", 250), ("0.01", 10), ("10000", 10_000_000)]
        {
            assert_eq!(cpu(text).ok(), Cpu::from_thousandths(thousandths), "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_why_and_what_was_meant() {
        let cases = [
            ("512", "the amount of memory `512` has no unit", Some("512MiB")),
            ("536870912", "the amount of memory `536870912` has no unit", None),
            ("0", "the amount of memory `0` has no unit", None),
            ("0MiB", "`0MiB` is less than a mebibyte", Some("1MiB")),
            ("4k", "`4k` is less than a mebibyte", Some("1MiB")),
            ("-1GiB", "`-1GiB` is not an amount of memory", None),
            ("half", "`half` is not an amount of memory", None),
            ("50%", "`50%` has a unit that is none of memory", None),
            ("1..5GiB", "`1..5GiB` is not an amount of memory", None),
            ("2000TiB", "`2000TiB` is more than a pebibyte", None),
            ("99999999999999999999GiB", "`99999999999999999999GiB` is not an amount of memory", None),
            ("", "an empty text is not an amount of memory", None),
        ];
        for (text, message, meant) in cases {
            let refused = memory(text).expect_err(text);
            assert_eq!((refused.message.as_str(), refused.meant.as_deref()), (message, meant), "{text}");
        }
        for text in ["0", "0.009", "-1", "1.5.2", "10000.001", "150%", "", ".5", "1.", "1e3", "inf"] {
            assert!(cpu(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = (memory(&text), cpu(&text));
        }

        #[test]
        fn amounts_are_read_back(mebibytes in 1_u64..1 << 30, thousandths in 10_u32..10_000_000) {
            prop_assert_eq!(memory(&format!("{mebibytes}MiB")), Ok(mebibytes << 20));
            let share = Cpu::from_thousandths(thousandths).expect("in range");
            prop_assert_eq!(cpu(&share.to_string()), Ok(share));
        }
    }
}
