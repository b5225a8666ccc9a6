//! Rows of text in aligned columns.

use std::fmt::Write as _;

/// Each row on a line, each column as wide as its widest cell.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut width = [0; N];
    for row in rows {
        for (width, cell) in width.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let mut table = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(width) {
            // Writing to a String cannot fail.
            write!(line, "{cell:width$}  ").unwrap_or_default();
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}
