//! Tables and JSON.

use std::fmt::Write as _;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;

use super::CliError;
use crate::observe::printable::{escaped, printable};

/// How to show an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum OutputFormat {
    /// For people
    #[default]
    Table,
    /// For programs; fields may be added, never removed or renamed
    Json,
}

/// Aligned columns.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(super) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    /// Adds a row; an empty cell is shown as `-`.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let shown = cells.map(|cell| match cell.as_str() {
            "" => "-".to_owned(),
            // Whatever a peer chose, it does not move the cursor.
            cell => printable(cell).into_owned(),
        });
        self.rows.push(shown.to_vec());
    }

    /// The lines; the last column is not padded.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String does not fail.
                _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Indented JSON and a line feed.
pub(super) fn json(value: &impl Serialize) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value).context("the answer can't be shown as JSON")?;
    // Only strings have such characters, and they are the same when they are escaped.
    Ok(escaped(&text, |c| c == '\n').into_owned() + "\n")
}

/// `45s`, `12m`, `3h20m`, `4d3h`; negative durations as `0s`.
pub(super) fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

/// `512 B`, `1.5 KiB`, `3.2 GiB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// An absent value as an empty cell.
pub(super) fn shown(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["UID", "NAME", "X"]);
        table.row(["1".into(), "long-name".into(), String::new()]);
        table.row(["12345".into(), "\x1b[2Jé".into(), "y".into()]);
        assert_eq!(
            table.render(),
            "UID    NAME        X\n1      long-name   -\n12345  \\u001b[2Jé  y\n"
        );
    }

    #[test]
    fn json_is_the_same_value_whatever_is_hidden_in_it() {
        let value = serde_json::json!({"a\u{202e}b": ["\u{9b}2J\n", "é\u{200b}"]});
        let text = json(&value).unwrap();
        assert!(!text.contains(['\u{202e}', '\u{9b}', '\u{200b}']), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        assert!(text.contains('é') && text.lines().count() > 3, "{text}");
    }

    #[test]
    fn quantities_read_well() {
        for (seconds, expected) in
            [(-3, "0s"), (59, "59s"), (61, "1m"), (3_720, "1h2m"), (90_000, "1d1h")]
        {
            assert_eq!(age(seconds), expected);
        }
        for (count, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }
}
