//! Lines that stay, with a table under them that is redrawn on a terminal and printed now and then elsewhere.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// How often the table is redrawn on a terminal.
const REDRAW: Duration = Duration::from_millis(150);
/// How often its sums are printed where nothing can be redrawn.
const REPEAT: Duration = Duration::from_secs(2);

/// One kind of traffic: who answered how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Who connects how.
    pub(super) label: String,
    /// Answers, in the order of the columns.
    pub(super) answers: Vec<usize>,
    /// Attempts that failed.
    pub(super) failed: usize,
}

/// Standard output.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: bool,
    begun: Instant,
    drawn: usize,
    last: Option<Instant>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { terminal: stdout().is_terminal(), begun: Instant::now(), drawn: 0, last: None }
    }

    /// Prints a line that stays, with the time since the start.
    pub(super) fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let erase = self.erase();
        if line.is_empty() {
            return write(&format!("{erase}\n"));
        }
        write(&format!("{erase}{:5.1}s  {line}\n", self.begun.elapsed().as_secs_f64()))
    }

    /// Shows the table, if it is time to.
    pub(super) fn show(&mut self, columns: &[String], rows: &[Row]) -> anyhow::Result<()> {
        let pause = if self.terminal { REDRAW } else { REPEAT };
        if self.last.is_some_and(|last| last.elapsed() < pause) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        if !self.terminal {
            return self.say(&format!("  answers so far: {}", sums(columns, rows)));
        }
        let lines = table(columns, rows);
        let erase = self.erase();
        self.drawn = lines.len();
        write(&format!("{erase}{}\n", lines.join("\n")))
    }

    /// Prints the table so that it stays.
    pub(super) fn keep(&mut self, columns: &[String], rows: &[Row]) -> anyhow::Result<()> {
        let erase = self.erase();
        write(&format!("{erase}{}\n", table(columns, rows).join("\n")))
    }

    /// Leaves what is drawn where it is.
    pub(super) fn finish(&mut self) {
        self.drawn = 0;
    }

    /// Moves up over the table and clears it; the next output takes its place.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to standard output")
}

fn table(columns: &[String], rows: &[Row]) -> Vec<String> {
    let head: String = columns.iter().map(|column| format!("{column:>9}")).collect();
    let mut lines = vec![format!("        {:<34}{head}{:>9}", "who connects", "failed")];
    lines.extend(rows.iter().map(|row| {
        let cells: String = row.answers.iter().map(|count| format!("{count:>9}")).collect();
        format!("        {:<34}{cells}{:>9}", row.label, row.failed)
    }));
    lines
}

fn sums(columns: &[String], rows: &[Row]) -> String {
    let sum = |index: usize| rows.iter().filter_map(|row| row.answers.get(index)).sum::<usize>();
    let cells = columns.iter().enumerate().map(|(index, column)| format!("{column} {}", sum(index)));
    let failed: usize = rows.iter().map(|row| row.failed).sum();
    cells.chain([format!("failed {failed}")]).collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::{Row, sums, table};

    #[test]
    fn the_table_has_a_column_per_pod_and_the_sums_add_its_rows() {
        let columns = ["web-1".to_owned(), "web-2".to_owned()];
        let row =
            |label: &str, answers: &[usize], failed| Row { label: label.to_owned(), answers: answers.to_vec(), failed };
        let rows = [row("client-1", &[3, 4], 0), row("client-2", &[5, 0], 1)];
        assert_eq!(sums(&columns, &rows), "web-1 8  web-2 4  failed 1");
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines = table(&columns, &rows);
        assert_eq!(cells(&lines[1]), ["client-1", "3", "4", "0"]);
        assert_eq!(cells(&lines[2]), ["client-2", "5", "0", "1"]);
    }
}
