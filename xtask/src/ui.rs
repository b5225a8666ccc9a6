//! What the developer sees while a command runs: headings, steps with progress, plain lines when there is no terminal.
#![expect(clippy::print_stderr, reason = "this module is where xtask talks to its user")]

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints one line.
pub(crate) fn say(line: impl AsRef<str>) {
    eprintln!("{}", line.as_ref());
}

/// Opens a phase, so that a long log can be read by its headings.
pub(crate) fn heading(name: &str) {
    eprintln!("\n{}", bold(&format!("== {name}")));
}

/// The text in bold, if the output is a terminal.
pub(crate) fn bold(text: &str) -> String {
    if std::io::stderr().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

/// Seconds and minutes as people say them.
pub(crate) fn human(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", elapsed.as_secs_f64()),
        10..120 => format!("{seconds} s"),
        120.. => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// One thing that takes a while: a spinner on a terminal, a line at the start and one at the end elsewhere.
pub(crate) struct Step {
    spinner: Option<ProgressBar>,
    what: String,
    started: Instant,
}

impl Step {
    /// Says what starts now, and how long it usually takes.
    pub(crate) fn start(what: impl Into<String>, expectation: &str) -> Self {
        let what = what.into();
        let line = if expectation.is_empty() { what.clone() } else { format!("{what} ({expectation})") };
        let spinner = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        match &spinner {
            Some(bar) => {
                if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}") {
                    bar.set_style(style);
                }
                bar.set_prefix(line);
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            None => say(format!("   {line} ...")),
        }
        Self { spinner, what, started: Instant::now() }
    }

    /// Shows the latest line of output of the command behind the step; without a terminal it would only be noise.
    pub(crate) fn note(&self, line: &str) {
        if let Some(bar) = &self.spinner {
            bar.set_message(line.to_owned());
        }
    }

    /// Shows a reader without a spinner that the step still runs.
    pub(crate) fn still_alive(&self, last: &str) {
        if self.spinner.is_none() {
            say(format!("   {} ... {}, at: {last}", self.what, human(self.started.elapsed())));
        }
    }

    /// Closes the step with what came out of it.
    pub(crate) fn done(mut self, result: &str) {
        if let Some(bar) = self.spinner.take() {
            bar.finish_and_clear();
        }
        say(format!("   {}: {result} ({})", self.what, human(self.started.elapsed())));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.spinner {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: f64, wanted: &str) {
        assert_eq!(human(Duration::from_secs_f64(seconds)), wanted);
    }

    #[test]
    fn times_are_told_in_the_unit_that_fits() {
        check(0.25, "0.2 s");
        check(75.0, "75 s");
        check(125.0, "2 min 05 s");
    }
}
