//! "Did you mean": the nearest of the words that would have been right.

/// Returns the word that was most likely meant, or `None` when nothing is near enough to be worth a guess.
///
/// Near is: equal but for case and `-`/`_`, or one edit for every three characters (a swap of two counts as one).
pub fn nearest<'a>(written: &str, right: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance takes time and space of length × length, and nobody misspells a word of this length.
    if written.len() > 64 {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let wanted = plain(written);
    let edits_max = (wanted.chars().count() / 3).max(1);
    right
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&wanted, &plain(word)), word))
        // One edit turns every word of one letter into every other one.
        .filter(|(edits, word)| *edits <= edits_max && *edits < word.chars().count())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, word)| word)
}

/// Returns a list of words for a sentence: `a`, `b` and `c`.
pub(crate) fn listed<'a>(words: impl IntoIterator<Item = &'a str>, last: &str) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((end, [])) => end.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
        None => String::new(),
    }
}

/// Returns a user's text in backquotes, cut after 60 characters.
pub(crate) fn quoted(text: &str) -> String {
    if text.is_empty() {
        return "an empty text".to_owned();
    }
    let mut shown: String = text.chars().take(60).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("`{shown}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let words = ["run", "port", "ready", "restart", "after", "on-failure"];
        let cases = [
            ("restrat", Some("restart")),
            ("Ready", Some("ready")),
            ("prot", Some("port")),
            ("on_failure", Some("on-failure")),
            ("runn", Some("run")),
            ("rn", Some("run")),
            ("healthy", None),
            ("x", None),
            ("", None),
        ];
        for (written, meant) in cases {
            assert_eq!(nearest(written, words), meant, "{written}");
        }
    }

    #[test]
    fn a_word_of_one_letter_is_no_suggestion_for_another() {
        assert_eq!(nearest("b", ["a"]), None);
    }

    #[test]
    fn lists_read_as_a_sentence() {
        assert_eq!(listed(["a"], "or"), "`a`");
        assert_eq!(listed(["a", "b", "c"], "or"), "`a`, `b` or `c`");
        assert_eq!(quoted(&"é".repeat(61)), format!("`{}…`", "é".repeat(60)));
    }
}
