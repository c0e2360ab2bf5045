//! Durations as people write them: `8s`, `500ms`, `1m 30s`.
//!
//! Reading is jiff's; what is refused on top is what would be a mistake in this file: no unit, negative, zero, days
//! (which jiff leaves to calendars) and lengths that no stop or start can have.

use std::time::Duration;

use jiff::SignedDuration;

use crate::suggest::quoted;

/// The longest duration that is accepted anywhere: a week.
pub(crate) const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The shortest, because waits are counted in milliseconds.
pub(crate) const SHORTEST: Duration = Duration::from_millis(1);

/// Why a text is no duration here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    /// What is wrong, as in "`x` is …", lower case.
    pub(crate) message: String,
    /// Beside the caret.
    pub(crate) label: &'static str,
    /// What was probably meant, as a duration without quotes.
    pub(crate) meant: Option<String>,
}

/// Reads a duration of at least a millisecond and at most a week.
pub(crate) fn parse(text: &str) -> Result<Duration, Refused> {
    let trimmed = text.trim();
    let shown = quoted(text);
    let refuse = |message: String, label, meant| Err(Refused { message, label, meant });
    if !trimmed.is_empty() && trimmed.bytes().all(|byte| byte.is_ascii_digit()) {
        let meant = (trimmed.len() < 5 && trimmed != "0").then(|| format!("{trimmed}s"));
        return refuse(format!("the duration {shown} has no unit"), "seconds, milliseconds, hours?", meant);
    }
    let Ok(signed) = trimmed.parse::<SignedDuration>() else {
        return match in_days(trimmed) {
            Some(hours) => refuse(
                format!("the duration {shown} is in days, which can be 23 or 25 hours long"),
                "write hours",
                Some(format!("{hours}h")),
            ),
            None => refuse(format!("{shown} is not a duration"), "not a duration", None),
        };
    };
    if signed.is_negative() {
        return refuse(format!("the duration {shown} is negative"), "must be longer than zero", None);
    }
    let duration = signed.unsigned_abs();
    if duration.is_zero() {
        return refuse(format!("the duration {shown} is zero"), "must be longer than zero", None);
    }
    if duration < SHORTEST {
        let meant = Some("1ms".to_owned());
        return refuse(format!("the duration {shown} is shorter than a millisecond"), "too short", meant);
    }
    if duration > LONGEST {
        return refuse(format!("the duration {shown} is longer than a week"), "too long", None);
    }
    Ok(duration)
}

/// Returns a duration as it is written in the file: `1m 30s`.
pub(crate) fn text(duration: Duration) -> String {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    format!("{:#}", SignedDuration::from_millis(millis))
}

/// Returns the hours of `2d` and `1w`.
fn in_days(text: &str) -> Option<u32> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let days = match text[digits.len()..].trim() {
        "d" | "day" | "days" => 1,
        "w" | "week" | "weeks" => 7,
        _ => return None,
    };
    digits.parse::<u32>().ok()?.checked_mul(days)?.checked_mul(24).filter(|hours| (1..=168).contains(hours))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write_is_read() {
        let cases = [
            ("8s", 8_000),
            ("500ms", 500),
            ("1.5s", 1_500),
            ("1m 30s", 90_000),
            ("1m30s", 90_000),
            (" 2 minutes ", 120_000),
            ("PT10S", 10_000),
            ("168h", 604_800_000),
            ("1ms", 1),
        ];
        for (text, millis) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_why_and_what_was_meant() {
        let cases = [
            ("10", "the duration `10` has no unit", Some("10s")),
            ("0", "the duration `0` has no unit", None),
            ("0s", "the duration `0s` is zero", None),
            ("-5s", "the duration `-5s` is negative", None),
            ("5s ago", "the duration `5s ago` is negative", None),
            ("2d", "the duration `2d` is in days, which can be 23 or 25 hours long", Some("48h")),
            ("1 week", "the duration `1 week` is in days, which can be 23 or 25 hours long", Some("168h")),
            ("1us", "the duration `1us` is shorter than a millisecond", Some("1ms")),
            ("169h", "the duration `169h` is longer than a week", None),
            ("soon", "`soon` is not a duration", None),
            ("", "an empty text is not a duration", None),
            ("9999999999999999999999s", "`9999999999999999999999s` is not a duration", None),
        ];
        for (text, message, meant) in cases {
            let refused = parse(text).expect_err(text);
            assert_eq!((refused.message.as_str(), refused.meant.as_deref()), (message, meant), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_shown_is_read_back(millis in 1_u64..604_800_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&text(duration)), Ok(duration));
        }
    }
}
