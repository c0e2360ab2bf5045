//! How a run is shown to people: its events as sentences, its output with prefixes, its report.

pub(crate) mod narrator;
pub(crate) mod report;
pub(crate) mod screen;
pub(crate) mod sweep;

use std::time::Duration;

use anstyle::{AnsiColor, Style};

/// Colours of services, given out in turn.
const PALETTE: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightRed,
];

/// Returns the colour of the service at `place`; none where there are no colours.
pub(crate) fn colour(place: usize, is_styled: bool) -> Style {
    if is_styled { PALETTE[place % PALETTE.len()].on_default() } else { Style::new() }
}

/// Returns a style where there are colours.
pub(crate) fn styled(style: Style, is_styled: bool) -> Style {
    if is_styled { style } else { Style::new() }
}

/// Returns a duration as people say it: `120 ms`, `1.4 s`, `2 min 5 s`, `3 h 12 min`, `4 d 2 h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", (duration.as_secs_f64() * 10.0).floor() / 10.0),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// Returns a number with its noun: `1 process`, `3 processes`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

/// Returns text from outside without what would move a terminal's cursor.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let table = [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (1_460, "1.4 s"),
            (59_990, "59.9 s"),
            (60_000, "1 min 0 s"),
            (3_725_000, "1 h 2 min"),
            (90_000_000, "1 d 1 h"),
        ];
        for (millis, text) in table {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }
}
