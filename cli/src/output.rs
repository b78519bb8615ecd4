//! The output, in the requested format.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use a3s_event::{Event, ProviderInfo};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::keys::encrypted_with;
use crate::layout;
use crate::limits::Limits;
use crate::moment;
use crate::text;

/// The escape sequence that starts bold text; `PLAIN` ends it.
const BOLD: &str = "\u{1b}[1m";
const PLAIN: &str = "\u{1b}[0m";
/// Maximum length of a payload in a table.
const PAYLOAD: usize = 60;

/// The form of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// Indented JSON: one value, or one after the other for a sequence of events.
    Json,
    /// One line of JSON per row.
    Ndjson,
}

/// A row of the output.
pub(crate) trait Row: Serialize {
    /// The columns of the table.
    const COLUMNS: &'static [&'static str];
    /// The column that is shortened to fit the terminal.
    const CUT: Option<usize> = None;

    /// If true, a table that does not fit the terminal becomes a block per row, without wrapped cells.
    const IS_BLOCK: bool = false;

    /// The cells of the row.
    fn cells(&self) -> Vec<String>;
}

/// Stdout. It does not use `println!`, which panics if stdout is closed.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    stdout: BufWriter<StdoutLock<'static>>,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, stdout: BufWriter::new(io::stdout().lock()) }
    }

    /// Returns `true` if stdout is a terminal.
    pub(crate) fn is_terminal() -> bool {
        io::stdout().is_terminal()
    }

    /// Returns `true` if the terminal gets styles: <https://no-color.org>.
    fn is_styled() -> bool {
        let is_unset = |variable| std::env::var_os(variable).is_none_or(|value| value.is_empty());
        Self::is_terminal() && is_unset("NO_COLOR") && !layout::is_dumb()
    }

    /// Prints a complete list of rows.
    pub(crate) fn rows<R: Row>(&mut self, rows: &[R]) -> Outcome {
        match self.format {
            Format::Table => self.table(rows)?,
            Format::Json => self.pretty(&rows)?,
            Format::Ndjson => {
                for row in rows {
                    self.compact(row)?;
                }
            }
        }
        self.flush()
    }

    /// Prints values that have no table, as JSON.
    pub(crate) fn values(&mut self, values: &[impl Serialize]) -> Outcome {
        match self.format {
            Format::Ndjson => values.iter().try_for_each(|value| self.compact(value))?,
            Format::Table | Format::Json => self.pretty(&values)?,
        }
        self.flush()
    }

    /// Prints one row of a sequence.
    pub(crate) fn row<R: Row>(&mut self, row: &R) -> Outcome {
        match self.format {
            Format::Table => self.line(&layout::row(&row.cells(), R::CUT, layout::stdout_width()))?,
            Format::Json => self.pretty(row)?,
            Format::Ndjson => self.compact(row)?,
        }
        self.flush()
    }

    /// Prints one value: its fields one below the other.
    pub(crate) fn one(&mut self, value: &impl Serialize) -> Outcome {
        match self.format {
            Format::Table => {
                let value = serde_json::to_value(value).map_err(unprintable)?;
                self.fields(&value)?;
            }
            Format::Json => self.pretty(value)?,
            Format::Ndjson => self.compact(value)?,
        }
        self.flush()
    }

    /// Prints a sentence in the form for people; nothing in the others.
    pub(crate) fn say(&mut self, text: &str) -> Outcome {
        if self.format == Format::Table {
            let text = text::escape(text);
            match layout::stdout_width() {
                Some(width) => self.line(&layout::wrap(&text, width, ""))?,
                None => self.line(&text)?,
            }
        }
        self.flush()
    }

    /// Prints a paragraph for people, always wrapped. Its further lines begin with `indent`.
    pub(crate) fn paragraph(&mut self, text: &str, indent: &str) -> Outcome {
        let width = layout::stdout_width().unwrap_or(layout::PIPED);
        self.line(&layout::wrap(&text::escape(text), width, indent))?;
        self.flush()
    }

    /// Prints text unchanged, in any form.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Outcome {
        self.stdout.write_all(bytes)?;
        self.flush()
    }

    /// Prints a line of NDJSON, in any form, without a flush.
    pub(crate) fn line_of_json(&mut self, value: &impl Serialize) -> Outcome {
        self.compact(value)
    }

    fn table<R: Row>(&mut self, rows: &[R]) -> Outcome {
        let cells: Vec<_> = rows.iter().map(Row::cells).collect();
        let width = layout::stdout_width();
        let table = match R::IS_BLOCK {
            true => layout::table_or_blocks(R::COLUMNS, &cells, width),
            false => layout::table(R::COLUMNS, &cells, R::CUT, width),
        };
        let is_header = |line: &str| R::COLUMNS.iter().all(|column| line.contains(column));
        match table.split_once('\n') {
            Some((header, rows)) if Self::is_styled() && is_header(header) => {
                self.line(&format!("{BOLD}{header}{PLAIN}\n{rows}"))
            }
            _ => self.line(&table),
        }
    }

    fn fields(&mut self, value: &Value) -> Outcome {
        let Value::Object(fields) = value else { return self.line(&plain(value)) };
        let width = fields.keys().map(String::len).max().unwrap_or_default();
        for (key, value) in fields {
            self.line(&layout::field(key, width, &field(key, value), layout::stdout_width()))?;
        }
        Ok(())
    }

    fn pretty(&mut self, value: &impl Serialize) -> Outcome {
        let json = serde_json::to_string_pretty(value).map_err(unprintable)?;
        self.line(&text::json(json))
    }

    fn compact(&mut self, value: &impl Serialize) -> Outcome {
        let json = serde_json::to_string(value).map_err(unprintable)?;
        self.line(&text::json(json))
    }

    fn line(&mut self, line: &str) -> Outcome {
        Ok(writeln!(self.stdout, "{line}")?)
    }

    pub(crate) fn flush(&mut self) -> Outcome {
        Ok(self.stdout.flush()?)
    }
}

fn unprintable(error: serde_json::Error) -> Failure {
    Failure::Other(error.to_string())
}

/// Formats a JSON value as a cell.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(string) => text::line(string),
        other => text::line(&other.to_string()),
    }
}

/// Fields that are counts, shown with separators. A sequence is none: people copy it.
const COUNTS: [&str; 7] =
    ["consumers", "differences", "duplicates", "events", "messages", "records", "skipped"];

/// Formats the value of a field for people.
fn field(key: &str, value: &Value) -> String {
    match value.as_u64() {
        Some(bytes) if key == "bytes" => text::bytes(bytes),
        Some(number) if COUNTS.contains(&key) => text::number(number),
        _ => readable(value),
    }
}

/// Formats a JSON value for people: lists in words, and fractions with three significant digits.
fn readable(value: &Value) -> String {
    match value {
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => {
            let pair = |item: &Value| match item {
                Value::Array(parts) => parts.iter().map(plain).collect::<Vec<_>>().join(": "),
                item => plain(item),
            };
            let separator = if items.iter().any(Value::is_array) { "; " } else { ", " };
            items.iter().map(pair).collect::<Vec<_>>().join(separator)
        }
        Value::Number(number) if number.is_f64() => number.as_f64().map_or_else(String::new, three_digits),
        other => plain(other),
    }
}

fn three_digits(number: f64) -> String {
    let decimals = (0..12).find(|decimals| number.abs() * 10_f64.powi(*decimals) >= 99.95).unwrap_or(2);
    format!("{number:.*}", usize::try_from(decimals).unwrap_or_default())
}

/// A stored event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventRow<'a> {
    pub(crate) sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stored_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) num_delivered: Option<u64>,
    pub(crate) event: &'a Event,
}

impl Row for EventRow<'_> {
    const COLUMNS: &'static [&'static str] = &["sequence", "time", "subject", "content"];
    const CUT: Option<usize> = Some(3);

    fn cells(&self) -> Vec<String> {
        let event = self.event;
        let content = match encrypted_with(&event.payload) {
            _ if !event.summary.is_empty() => text::line(&event.summary),
            Some(key) => format!("encrypted with key {}", text::line(&key)),
            None => plain(&event.payload),
        };
        vec![
            self.sequence.to_string(),
            moment::show(event.timestamp),
            text::line(&event.subject),
            text::shorten(&content, PAYLOAD),
        ]
    }
}

/// The counts of a stream.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InfoRow {
    pub(crate) provider: String,
    pub(crate) url: String,
    pub(crate) prefix: String,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) consumers: usize,
    pub(crate) newest_sequence: Option<u64>,
    /// Absent if the provider does not know them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<Limits>,
}

impl InfoRow {
    pub(crate) fn new(
        info: ProviderInfo,
        url: String,
        prefix: &str,
        newest_sequence: Option<u64>,
        limits: Option<Limits>,
    ) -> Self {
        let ProviderInfo { provider, messages, bytes, consumers } = info;
        Self { provider, url, prefix: prefix.to_owned(), messages, bytes, consumers, newest_sequence, limits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_and_bytes_have_human_units() {
        for (key, value, shown) in [
            ("bytes", json!(4_524_384), "4.5 MB"),
            ("events", json!(179_000), "179,000"),
            ("newestSequence", json!(179_000), "179000"),
            ("bytes", json!(null), ""),
        ] {
            assert_eq!(field(key, &value), shown, "{key}");
        }
    }

    #[test]
    fn fields_are_readable_without_knowing_json() {
        for (value, cell) in [
            (json!(0.011_834_339), "0.0118"),
            (json!(1.5), "1.50"),
            (json!(84_502.31), "84502"),
            (json!(0.0), "0.00"),
            (json!(12), "12"),
            (json!([]), "none"),
            (json!(["analyst", "billing"]), "analyst, billing"),
            (json!([["analyst", "it is busy"], [3, "refused"]]), "analyst: it is busy; 3: refused"),
            (json!("a\nb"), "a\\nb"),
            (json!({"a": 1}), "{\"a\":1}"),
        ] {
            assert_eq!(readable(&value), cell);
        }
    }
}
