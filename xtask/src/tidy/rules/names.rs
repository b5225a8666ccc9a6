//! Rule IDs in names of functions: `_in_2` may mean IN-2, HM-2 or two of something, so IDs stand in comments only.

use std::collections::BTreeSet;

/// The functions that a line of Rust defines and whose names have a number behind one of `families`, in lower case.
pub(super) fn ids_in_names<'l>(line: &'l str, families: &BTreeSet<String>) -> Vec<&'l str> {
    let names = line.split("fn ").skip(1).filter_map(|rest| rest.split(|letter| !is_word(letter)).next());
    names.filter(|name| has_id(name, families)).collect()
}

fn has_id(name: &str, families: &BTreeSet<String>) -> bool {
    let words: Vec<&str> = name.split('_').collect();
    words.windows(2).any(|pair| {
        let [family, number] = pair else { return false };
        families.contains(*family) && is_number(number)
    })
}

/// `22` or `10a`.
fn is_number(word: &str) -> bool {
    let number = word.strip_suffix(|letter: char| letter.is_ascii_lowercase()).unwrap_or(word);
    !number.is_empty() && number.chars().all(|letter| letter.is_ascii_digit())
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, wanted: &[&str]) {
        let families = ["in", "hm", "dns"].map(str::to_owned).into();
        assert_eq!(ids_in_names(line, &families), wanted, "{line}");
    }

    #[test]
    fn a_number_behind_a_family_is_an_id() {
        check("fn ranges_restrict_it_in_17() {", &["ranges_restrict_it_in_17"]);
        check("    async fn the_answer_in_2_to_6() {", &["the_answer_in_2_to_6"]);
        check("pub(super) fn it_is_taken_hm_10a<T>(a: T) {}", &["it_is_taken_hm_10a"]);
        check("fn dns_6_3_holds() {", &["dns_6_3_holds"]);
        check("fn a_in_1() {} fn b_in_2() {}", &["a_in_1", "b_in_2"]);
    }

    #[test]
    fn other_numbers_are_none() {
        check("fn an_unhealthy_proxy_gives_503() { // HM-4", &[]);
        check("fn one_in_many_of_64() {}", &[]);
        check("fn begin_2() {}", &[]);
        check("fn in_4th_place() {}", &[]);
        check("    let in_2 = 1; // a function in 2 parts", &[]);
        check("fn in_order(in_2: u8) {}", &[]);
    }
}
