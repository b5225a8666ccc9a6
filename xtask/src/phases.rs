//! The phases of a long command, and what each of them took.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::ui::{bold, heading, human, say};

/// Runs phases one after the other and remembers how long each took.
pub(crate) struct Phases {
    started: Instant,
    done: Vec<(&'static str, Duration, bool)>,
}

impl Phases {
    /// Starts the clock.
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), done: Vec::new() }
    }

    /// Runs one phase under its heading.
    pub(crate) fn run<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        heading(name);
        let started = Instant::now();
        let result = work();
        self.done.push((name, started.elapsed(), result.is_ok()));
        result
    }

    /// Says what took how long, the failed phase included.
    pub(crate) fn summary(&self) {
        heading("summary");
        for (name, elapsed, ok) in &self.done {
            say(format!("   {name:<22} {:>12}  {}", human(*elapsed), if *ok { "ok" } else { "FAILED" }));
        }
        say(format!("   {:<22} {:>12}  {}", "total", human(self.started.elapsed()), bold(self.verdict())));
    }

    fn verdict(&self) -> &'static str {
        if self.done.iter().all(|(_, _, ok)| *ok) { "everything passed" } else { "failed" }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn one_failed_phase_fails_the_whole() {
        let mut phases = Phases::new();
        assert_eq!(phases.run("first", || Ok(7)).unwrap(), 7);
        assert_eq!(phases.verdict(), "everything passed");
        assert!(phases.run("second", || -> Result<()> { bail!("broken") }).is_err());
        assert_eq!(phases.verdict(), "failed");
    }
}
