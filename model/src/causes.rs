//! Errors with their causes on one line.

use std::error::Error;

/// The error and its causes, as `a: b: c`. Some libraries repeat a cause in their own text; it is printed once.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Nested {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    #[track_caller]
    fn check(texts: &[&'static str], expected: &str) {
        let nested = texts.iter().rev().fold(None, |source, text| Some(Box::new(Nested { text, source })));
        assert_eq!(with_causes(&*nested.unwrap()), expected);
    }

    #[test]
    fn each_cause_is_printed_once() {
        check(&["a"], "a");
        check(&["a", "b", "c"], "a: b: c");
        check(&["a", "b: c", "c"], "a: b: c");
    }
}
