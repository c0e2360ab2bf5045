//! What was measured and whether the budgets are met: printed as it comes, then as a table, and as JSON.

use anyhow::Result;
use serde_json::{Value, json};

use super::sample::Sample;

/// How a measured value is judged.
#[derive(Clone, Debug)]
pub(super) enum Budget {
    /// At most this many times the peer's median.
    AtMostTimes(f64, &'static str),
    /// At least this many times the peer's median.
    AtLeastTimes(f64, &'static str),
    /// At most this, in the row's unit.
    AtMost(f64),
    /// Shown, not judged.
    None,
}

/// One comparison.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The part it belongs to.
    pub(super) part: &'static str,
    /// What was done.
    pub(super) what: String,
    /// The unit of the samples.
    pub(super) unit: &'static str,
    /// Everyone measured; the names of lariat's begin with `lariat`.
    pub(super) samples: Vec<Sample>,
    /// What each of lariat's is held against.
    pub(super) budget: Budget,
}

/// The verdict on one of lariat's samples.
struct Verdict {
    /// The sample's name.
    who: String,
    /// The number that is compared, with its unit.
    value: String,
    budget: String,
    /// `None`: there is nothing to compare with.
    is_met: Option<bool>,
}

/// All rows, and what could not be measured.
#[derive(Default, Debug)]
pub(super) struct Report {
    rows: Vec<Row>,
    unavailable: Vec<(String, String)>,
}

impl Row {
    fn median(&self, name: &str) -> Option<f64> {
        let sample = self.samples.iter().find(|sample| sample.name == name)?;
        Some(sample.median()).filter(|median| median.is_finite())
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let ours = self.samples.iter().filter(|sample| sample.name.starts_with("lariat"));
        ours.filter_map(|sample| self.verdict(sample)).collect()
    }

    fn verdict(&self, ours: &Sample) -> Option<Verdict> {
        let median = self.median(&ours.name);
        let against = |peer: &str| Some(median? / self.median(peer)?);
        let (value, sign, limit, of) = match self.budget {
            Budget::None => return None,
            Budget::AtMost(limit) => (median, "≤", limit, self.unit.to_owned()),
            Budget::AtMostTimes(limit, peer) => (against(peer), "≤", limit, format!("× {peer}")),
            Budget::AtLeastTimes(limit, peer) => (against(peer), "≥", limit, format!("× {peer}")),
        };
        let is_met = value.map(|value| if sign == "≤" { value <= limit } else { value >= limit });
        let value = value.map_or_else(|| "–".to_owned(), |value| format!("{} {of}", short(value)));
        Some(Verdict { who: ours.name.clone(), value, budget: format!("{sign} {}", short(limit)), is_met })
    }
}

impl Report {
    /// Takes a row and prints it.
    pub(super) fn add(&mut self, row: Row) {
        println!("{}: {}", row.part, row.what);
        let cell = |sample: &Sample| format!("{} {} {}", sample.name, short(sample.median()), row.unit);
        println!("    {}", row.samples.iter().map(cell).collect::<Vec<_>>().join(" · "));
        for verdict in row.verdicts() {
            let word = word(verdict.is_met);
            println!("    {}: {}, budget {}: {word}", verdict.who, verdict.value, verdict.budget);
        }
        self.rows.push(row);
    }

    /// Notes and prints what could not be measured.
    pub(super) fn unavailable(&mut self, part: &str, what: &str, error: &anyhow::Error) {
        println!("{part}: {what}: not available: {error:#}");
        self.unavailable.push((format!("{part} {what}"), format!("{error:#}")));
    }

    /// Prints every budget with its verdict.
    pub(super) fn print_summary(&self) {
        println!("\n{:<68} {:>20} {:>9}  verdict", "budget", "measured", "budget");
        for row in &self.rows {
            for verdict in row.verdicts() {
                let which = verdict.who.trim_start_matches("lariat");
                let what = format!("{}: {}{which}", row.part, row.what);
                println!("{what:<68} {:>20} {:>9}  {}", verdict.value, verdict.budget, word(verdict.is_met));
            }
        }
        for (what, why) in &self.unavailable {
            println!("{what}: not available: {why}");
        }
    }

    /// Returns all of it as JSON.
    ///
    /// # Errors
    /// A number is not finite.
    pub(super) fn json(&self) -> Result<String> {
        let rows: Vec<Value> = self.rows.iter().map(json_row).collect();
        let missing = |(what, why): &(String, String)| json!({"what": what, "why": why});
        let missing: Vec<Value> = self.unavailable.iter().map(missing).collect();
        Ok(serde_json::to_string_pretty(&json!({"rows": rows, "unavailable": missing}))? + "\n")
    }
}

fn json_row(row: &Row) -> Value {
    let sample = |s: &Sample| json!({"name": s.name, "median": s.median(), "values": s.values});
    let verdict =
        |v: Verdict| json!({"name": v.who, "budget": v.budget, "measured": v.value, "met": v.is_met});
    json!({
        "part": row.part,
        "what": row.what,
        "unit": row.unit,
        "samples": row.samples.iter().map(sample).collect::<Vec<_>>(),
        "verdicts": row.verdicts().into_iter().map(verdict).collect::<Vec<_>>(),
    })
}

fn word(is_met: Option<bool>) -> &'static str {
    match is_met {
        Some(true) => "met",
        Some(false) => "NOT MET",
        None => "not judged: nothing to compare",
    }
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_met(ours: f64, budget: Budget) -> Option<bool> {
        let samples = vec![Sample::of("lariat", ours), Sample::of("tini", 2.0)];
        let row = Row { part: "run", what: String::new(), unit: "ms", samples, budget };
        row.verdicts().pop().and_then(|verdict| verdict.is_met)
    }

    #[test]
    fn budgets_are_judged_by_ratio_or_by_value() {
        assert_eq!(is_met(3.0, Budget::AtMostTimes(1.5, "tini")), Some(true));
        assert_eq!(is_met(3.1, Budget::AtMostTimes(1.5, "tini")), Some(false));
        assert_eq!(is_met(1.7, Budget::AtLeastTimes(0.9, "tini")), Some(false));
        assert_eq!(is_met(1.7, Budget::AtMost(2.0)), Some(true));
    }

    #[test]
    fn each_of_ours_is_judged_and_nobody_else() {
        let samples = vec![
            Sample::of("lariat by descent", 4.0),
            Sample::of("tini", 2.0),
            Sample::of("lariat in a cgroup", 2.0),
        ];
        let budget = Budget::AtMostTimes(1.5, "tini");
        let row = Row { part: "run", what: String::new(), unit: "ms", samples, budget };
        let met: Vec<_> = row.verdicts().into_iter().map(|verdict| (verdict.who, verdict.is_met)).collect();
        assert_eq!(
            met,
            [("lariat by descent".into(), Some(false)), ("lariat in a cgroup".into(), Some(true))]
        );
    }

    #[test]
    fn a_missing_peer_or_measurement_is_never_met() {
        assert_eq!(is_met(3.0, Budget::AtMostTimes(1.5, "absent")), None);
        assert_eq!(is_met(f64::NAN, Budget::AtMost(1.5)), None);
    }
}
