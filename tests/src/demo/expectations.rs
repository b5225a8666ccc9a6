//! What the demo expects, and whether it came true.

use super::screen::Screen;

/// Every expectation so far.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    list: Vec<(bool, String)>,
}

impl Expectations {
    /// Notes and shows one; `seen` is what was seen, shown in both cases.
    pub(super) fn expect(&mut self, screen: &mut Screen, held: bool, what: &str, seen: &str) -> anyhow::Result<()> {
        let text = if seen.is_empty() { what.to_owned() } else { format!("{what} ({seen})") };
        screen.say(&format!("  {} {text}", if held { "ok    " } else { "FAILED" }))?;
        self.list.push((held, text));
        Ok(())
    }

    /// How many there were.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// The expectations that failed.
    pub(super) fn failed(&self) -> Vec<&str> {
        self.list.iter().filter(|(held, _)| !held).map(|(_, text)| text.as_str()).collect()
    }
}
