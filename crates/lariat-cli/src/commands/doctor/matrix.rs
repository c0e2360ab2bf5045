//! The drill's matrix as text: a row for each tree, a letter for each ending, then what was found.

use lariat_drill::endings::{ENDINGS, Ending};
use lariat_drill::promise::Containment;
use lariat_drill::trees::{self, TREES};
use lariat_drill::verdict::Verdict;

use super::super::show::duration;

/// The width of the names of trees: the longest one's.
const NAME_WIDTH: usize = 14;

/// Returns the line above the rows of one containment.
pub(super) fn head(containment: Containment, endings: &[Ending]) -> String {
    let letters: Vec<String> = endings.iter().map(|ending| ending.letter().to_string()).collect();
    format!("{:NAME_WIDTH$}  {}  slowest\n", containment.name(), letters.join(" "))
}

/// Returns the row of a tree; `cells` are its verdicts, in any order, maybe several for an ending.
pub(super) fn row(tree: &str, endings: &[Ending], cells: &[Verdict]) -> String {
    let marks: Vec<String> =
        endings.iter().map(|ending| mark(ending.fact().name, cells).to_string()).collect();
    let slowest = cells.iter().filter_map(|cell| cell.gone_after_ms).max();
    let slowest = slowest.map_or("-".to_owned(), |ms| duration(std::time::Duration::from_millis(ms)));
    format!("{tree:NAME_WIDTH$}  {}  {slowest}\n", marks.join(" "))
}

/// One mark for all verdicts of a cell; the worst counts.
fn mark(ending: &str, cells: &[Verdict]) -> char {
    let cells = cells.iter().filter(|cell| cell.ending == ending);
    let marks = cells.map(|cell| match cell {
        cell if cell.trouble.is_some() => '?',
        cell if !cell.is_kept() => '!',
        cell if cell.skipped.is_some() => '-',
        cell if cell.after_sweep.is_some_and(|left| left > 0) => 'p',
        cell if cell.before_sweep.is_some_and(|left| left > 0) => 's',
        _ => '.',
    });
    let rank = |mark: &char| "-.sp?!".find(*mark);
    marks.max_by_key(rank).unwrap_or(' ')
}

/// Returns what the letters and marks mean.
pub(super) fn legend(endings: &[Ending]) -> String {
    let mut text = String::from("\n");
    for ending in endings {
        text.push_str(&format!("  {} {:16}  {}\n", ending.letter(), ending.fact().name, ending.fact().what));
    }
    text.push_str("\n  .  nothing was left; whoever was promised time to end had it\n");
    text.push_str("  s  declared: something was left until the next command found and ended it\n");
    text.push_str("  p  declared: what hides is left after that too, named as possibly yours\n");
    text.push_str("  -  does not apply, or cannot be built here\n");
    text.push_str("  !  a finding    ?  the drill could not judge\n");
    text
}

/// Returns what was found, with the command that runs each cell alone.
pub(super) fn findings(cells: &[Verdict]) -> String {
    let mut text = String::new();
    for cell in cells.iter().filter(|cell| !cell.is_kept()) {
        let what = trees::find(&cell.tree).map_or("", |tree| tree.what);
        text.push_str(&format!("\n{} × {} under {}: {what}\n", cell.tree, cell.ending, cell.containment));
        for finding in cell.findings() {
            text.push_str(&format!("  {finding}\n"));
        }
        for note in &cell.notes {
            text.push_str(&format!("  {note}\n"));
        }
        text.push_str(&format!("  again: {}\n", again(cell)));
    }
    text
}

fn again(cell: &Verdict) -> String {
    format!(
        "lariat doctor --drill {} --ending {} --containment {} --seed {}",
        cell.tree, cell.ending, cell.containment, cell.seed
    )
}

/// Returns why trees could not be built here, each reason once.
pub(super) fn skips(cells: &[Verdict]) -> String {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    let built_nowhere = |cell: &&Verdict| {
        trees::find(&cell.tree).is_some()
            && !cell.skipped.as_deref().unwrap_or_default().contains("this tree")
    };
    for cell in cells.iter().filter(|cell| cell.skipped.is_some()).filter(built_nowhere) {
        let pair = (cell.tree.as_str(), cell.skipped.as_deref().unwrap_or_default());
        if !seen.contains(&pair) {
            seen.push(pair);
        }
    }
    seen.iter().map(|(tree, why)| format!("not built here: {tree}: {why}\n")).collect()
}

/// Returns the names of all trees and endings.
pub(super) fn list() -> String {
    let mut text = String::from("trees\n");
    for tree in TREES {
        text.push_str(&format!("  {:16}  {}\n", tree.name, tree.what));
    }
    text.push_str("\nendings\n");
    for fact in ENDINGS {
        text.push_str(&format!("  {:16}  {}\n", fact.name, fact.what));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_fits_a_hundred_columns_with_every_ending() {
        let all: Vec<Ending> = ENDINGS.iter().map(|fact| fact.ending).collect();
        let longest = TREES.iter().map(|tree| tree.name.len()).max().unwrap();
        assert!(longest <= NAME_WIDTH, "{longest}");
        for line in legend(&all).lines().chain(row("x", &all, &[]).lines()).chain(list().lines()) {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn the_worst_verdict_of_a_cell_is_shown() {
        let fine = Verdict { ending: "term".to_owned(), ..Verdict::default() };
        let swept = Verdict { before_sweep: Some(2), after_sweep: Some(0), ..fine.clone() };
        let hidden = Verdict { before_sweep: Some(2), after_sweep: Some(1), ..fine.clone() };
        let broken = Verdict { survivors: vec!["1".to_owned()], ..fine.clone() };
        assert_eq!(mark("term", &[]), ' ');
        assert_eq!(mark("term", std::slice::from_ref(&fine)), '.');
        assert_eq!(mark("term", &[fine.clone(), swept.clone()]), 's');
        assert_eq!(mark("term", &[swept, hidden.clone()]), 'p');
        assert_eq!(mark("term", &[hidden, broken, fine]), '!');
    }
}
