//! Rule IDs as they stand in a text: alone (`TP-22`), by their section (`DNS-2.5.4`), and as ranges (`IN-30…39`).

use std::fmt;

/// The ID of a rule, ordered by family and then by number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    /// The letters in front: `TP`.
    pub(super) family: String,
    number: Number,
}

/// `22`, `2.5.4` or `10a`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Number {
    /// One, or more with the sections in front. Compared in order, so that a section comes before its rules.
    parts: Vec<u32>,
    letter: Option<char>,
}

/// Something cited.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cited {
    /// A rule, by itself or as a part of a range.
    Rule(Id),
    /// Two IDs that look like a range and are none.
    NoRange(String),
}

/// What stands between the ends of a range.
const MARKS: [&str; 5] = ["…", "...", "–", " to ", "/"];

/// All that a text cites, in order, ranges as all their rules.
pub(super) fn cited(text: &str) -> Vec<Cited> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        let starts = !(before.is_alphanumeric() || before == '_' || before == '-');
        let after = match Id::read(rest).filter(|_| starts) {
            Some((id, after)) => range(id, rest, after, &mut found),
            None => rest.get(first.len_utf8()..).unwrap_or_default(),
        };
        let taken = rest.len() - after.len();
        before = rest.get(..taken).and_then(|taken| taken.chars().next_back()).unwrap_or(first);
        rest = after;
    }
    found
}

/// Adds `first`, or the whole range that it begins, and returns what follows.
fn range<'t>(first: Id, from: &'t str, after: &'t str, found: &mut Vec<Cited>) -> &'t str {
    let Some((last, end)) = MARKS.iter().find_map(|mark| range_end(&first.family, mark, after)) else {
        found.push(Cited::Rule(first));
        return after;
    };
    match first.number.through(&last) {
        Some(numbers) => {
            found.extend(numbers.into_iter().map(|number| Cited::Rule(Id { family: first.family.clone(), number })));
        }
        None => found.push(Cited::NoRange(from.get(..from.len() - end.len()).unwrap_or(from).to_owned())),
    }
    end
}

/// The second end of a range: `…39`, `…IN-39`, ` to IN-39`.
fn range_end<'t>(family: &str, mark: &str, after: &'t str) -> Option<(Number, &'t str)> {
    let end = after.strip_prefix(mark)?;
    match end.strip_prefix(family).and_then(|end| end.strip_prefix('-')) {
        Some(number) => Number::read(number),
        // `TP-1 to 3` may mean three of something else.
        None => Number::read(end).filter(|_| mark != " to "),
    }
}

impl Id {
    /// Reads an ID at the start of a text, and returns what follows.
    pub(super) fn read(text: &str) -> Option<(Self, &str)> {
        let (family, rest) = text.split_once('-')?;
        let is_family = family.starts_with(|letter: char| letter.is_ascii_uppercase())
            && (2..=3).contains(&family.len())
            && family.chars().all(|letter| letter.is_ascii_uppercase() || letter.is_ascii_digit());
        let (number, rest) = Number::read(rest).filter(|_| is_family)?;
        Some((Self { family: family.to_owned(), number }, rest))
    }
}

impl Number {
    fn read(text: &str) -> Option<(Self, &str)> {
        let (first, mut rest) = digits(text)?;
        let mut parts = vec![first];
        while let Some((next, after)) = rest.strip_prefix('.').and_then(digits) {
            parts.push(next);
            rest = after;
        }
        let mut letters = rest.chars();
        let letter = letters.next().filter(char::is_ascii_lowercase);
        let rest = letter.map_or(rest, |_| letters.as_str());
        let ends = !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
        ends.then_some((Self { parts, letter }, rest))
    }

    /// All numbers from this one to `end`, which may leave out the sections.
    fn through(&self, end: &Self) -> Option<Vec<Self>> {
        let (first, sections) = self.parts.split_last()?;
        let (last, end_sections) = end.parts.split_last()?;
        let same_section = end_sections.is_empty() || end_sections == sections;
        if !same_section || last <= first {
            return None;
        }
        let plain = |last| Self { parts: [sections, &[last]].concat(), letter: None };
        let with_letter = end.letter.map(|letter| Self { letter: Some(letter), ..plain(*last) });
        let later = (first + 1..=*last).map(plain);
        Some([self.clone()].into_iter().chain(later).chain(with_letter).collect())
    }
}

fn digits(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    Some((number.parse().ok()?, rest))
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.family, self.number)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.parts.iter().map(u32::to_string).collect();
        write!(f, "{}{}", parts.join("."), self.letter.map(String::from).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, wanted: &[&str]) {
        let shown = |found: Cited| match found {
            Cited::Rule(id) => id.to_string(),
            Cited::NoRange(range) => format!("? {range}"),
        };
        assert_eq!(cited(text).into_iter().map(shown).collect::<Vec<_>>(), wanted, "{text}");
    }

    #[test]
    fn an_id_is_a_family_and_a_number() {
        check("no rule", &[]);
        check("proves: [E2E-46, TP-26]", &["E2E-46", "TP-26"]);
        check("one (SA-5).", &["SA-5"]);
        check("a section, DNS-2.5.4.", &["DNS-2.5.4"]);
        check("HM-10a", &["HM-10a"]);
        check("\"NE-1\" TP-21/22", &["NE-1", "TP-21", "TP-22"]);
        check("`TP-3`é TP-4", &["TP-3", "TP-4"]);
    }

    #[test]
    fn other_words_with_a_number_are_none() {
        check("T-1, LONG-1, tp-1, Tp-1, TP- 1, TP1, 2E-3", &[]);
        check("x86-64 HMAC-1 A_TP-1 A-TP-1 1TP-1 TP-1st TP-1_", &[]);
    }

    #[test]
    fn a_range_is_all_its_rules() {
        check("IN-3…5, EP-1", &["IN-3", "IN-4", "IN-5", "EP-1"]);
        check("IN-3–4", &["IN-3", "IN-4"]);
        check("IN-3...IN-4", &["IN-3", "IN-4"]);
        check("TP-30 to TP-32", &["TP-30", "TP-31", "TP-32"]);
        check("TP-30 to 32", &["TP-30"]);
        check("HM-9…10a", &["HM-9", "HM-10", "HM-10a"]);
        check("DNS-17.7…17.9", &["DNS-17.7", "DNS-17.8", "DNS-17.9"]);
        check("DNS-17.7…9", &["DNS-17.7", "DNS-17.8", "DNS-17.9"]);
    }

    #[test]
    fn a_range_that_does_not_rise_is_reported() {
        check("IN-5…3, EP-1", &["? IN-5…3", "EP-1"]);
        check("DNS-2.2…3.4", &["? DNS-2.2…3.4"]);
    }
}
