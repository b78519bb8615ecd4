//! Text and tables that fit a terminal: lines break only between words.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use terminal_size::{Width, terminal_size_of};
use textwrap::core::{Word, display_width};
use textwrap::{Options, WordSeparator, WordSplitter};

use crate::text;

/// Space between two columns.
const GAP: &str = "  ";
/// Minimum width of a column that is shortened to fit.
const SMALLEST_CUT: usize = 20;
/// Width of paragraphs without a terminal.
pub(crate) const PIPED: usize = 80;

/// Returns the columns of the terminal at stdout; `None` for a pipe or a file.
pub(crate) fn stdout_width() -> Option<usize> {
    let stdout = io::stdout();
    width(stdout.is_terminal(), terminal_size_of(stdout).map(|(width, _)| width))
}

/// Returns the columns of the terminal at stderr.
pub(crate) fn stderr_width() -> Option<usize> {
    let stderr = io::stderr();
    width(stderr.is_terminal(), terminal_size_of(stderr).map(|(width, _)| width))
}

/// Returns the width of a terminal, which is 80 columns if it reports none.
fn width(is_terminal: bool, told: Option<Width>) -> Option<usize> {
    is_terminal.then(|| told.map_or(PIPED, |Width(columns)| usize::from(columns).max(1)))
}

/// Returns `true` for a terminal that shows escape sequences as text.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Prints a message on stderr, wrapped on a terminal.
pub(crate) fn eprint(message: &str) {
    let message = match stderr_width() {
        Some(width) => wrap(message, width, "  "),
        None => message.to_owned(),
    };
    // If stderr is closed, the message is lost.
    let _ = writeln!(io::stderr(), "{message}");
}

/// Wraps text at spaces. Lines after the first begin with `indent`. A word that is longer than a line stays whole.
pub(crate) fn wrap(text: &str, width: usize, indent: &str) -> String {
    let fill = |(number, line): (usize, &str)| {
        let options = Options::new(width)
            .initial_indent(if number == 0 { "" } else { indent })
            .subsequent_indent(indent)
            .break_words(false)
            .word_splitter(WordSplitter::NoHyphenation);
        textwrap::fill(line, options)
    };
    text.split('\n').enumerate().map(fill).collect::<Vec<_>>().join("\n")
}

/// Formats a table without lines. To fit `width` it wraps cells between words and shortens the column `cut`.
///
/// If that is not enough, each row becomes a block with a line per column.
pub(crate) fn table(
    header: &[&str],
    rows: &[Vec<String>],
    cut: Option<usize>,
    width: Option<usize>,
) -> String {
    let natural = widest(header, rows, display_width);
    let Some(width) = width.filter(|width| needed(&natural) > *width) else {
        return lines(header, rows, &natural);
    };
    let mut widths = natural;
    if let Some(cut) = cut.and_then(|cut| widths.get_mut(cut)) {
        let others = needed(&widest(header, rows, display_width)) - *cut;
        *cut = (*cut).min(width.saturating_sub(others).max(SMALLEST_CUT));
    }
    let smallest = widest(header, rows, longest_piece);
    while needed(&widths) > width {
        let is_cut = |column: usize| cut == Some(column);
        let shrinkable = widths.iter_mut().zip(&smallest).enumerate();
        let widest = shrinkable
            .filter(|(column, (width, smallest))| !is_cut(*column) && **width > **smallest)
            .map(|(_, (width, _))| width)
            .max_by_key(|width| **width);
        match widest {
            Some(widest) => *widest -= 1,
            None => return blocks(header, rows, width),
        }
    }
    let cells = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).enumerate();
        cells
            .map(
                |(column, (cell, width))| {
                    if cut == Some(column) { shorten(cell, *width) } else { cell.clone() }
                },
            )
            .collect()
    });
    lines(header, &cells.collect::<Vec<_>>(), &widths)
}

/// Formats a table without lines. If it does not fit `width`, each row becomes a block with a line per column.
pub(crate) fn table_or_blocks(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let natural = widest(header, rows, display_width);
    match width {
        Some(width) if needed(&natural) > width => blocks(header, rows, width),
        _ => lines(header, rows, &natural),
    }
}

/// Returns the width of a table with columns of these widths.
fn needed(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
}

/// Formats one row of a table that is printed row by row. To fit `width` it shortens the column `cut`.
pub(crate) fn row(cells: &[String], cut: Option<usize>, width: Option<usize>) -> String {
    let mut cells = cells.to_vec();
    let whole = display_width(&cells.join(GAP));
    if let (Some(width), Some(cell)) = (width, cut.and_then(|cut| cells.get_mut(cut))) {
        let others = whole - display_width(cell);
        *cell = shorten(cell, width.saturating_sub(others).max(SMALLEST_CUT));
    }
    match width {
        Some(width) => wrap(&cells.join(GAP), width, "    "),
        None => cells.join(GAP),
    }
}

/// Formats `key  value`, with the value wrapped below itself.
pub(crate) fn field(key: &str, key_width: usize, value: &str, width: Option<usize>) -> String {
    let indent = " ".repeat(key_width + GAP.len());
    let value = match width {
        Some(width) => wrap_cell(value, width.saturating_sub(indent.len()).max(SMALLEST_CUT)).join("\n"),
        None => value.to_owned(),
    };
    format!("{key:key_width$}{GAP}{}", value.replace('\n', &format!("\n{indent}")))
}

fn shorten(cell: &str, width: usize) -> String {
    if display_width(cell) <= width {
        return cell.to_owned();
    }
    let mut most = width.saturating_sub(1);
    loop {
        let shortened = text::shorten(cell, most);
        if display_width(&shortened) <= width || most == 0 {
            return shortened;
        }
        most -= 1;
    }
}

fn longest_piece(text: &str) -> usize {
    pieces(text).map(|piece| display_width(&piece)).max().unwrap_or_default()
}

/// Wraps a cell. Names and subjects may also end a line behind a `.`, `/`, `_` or `-`.
fn wrap_cell(cell: &str, width: usize) -> Vec<String> {
    let options = Options::new(width)
        .break_words(false)
        .word_separator(WordSeparator::Custom(|line| Box::new(pieces(line))))
        .word_splitter(WordSplitter::NoHyphenation);
    textwrap::wrap(cell, options).into_iter().map(Cow::into_owned).collect()
}

/// Splits a line at the places where it may break.
fn pieces(line: &str) -> impl Iterator<Item = Word<'_>> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let next = rest.chars().skip(1);
        let ends = rest.char_indices().zip(next).find(|((_, c), next)| match c {
            ' ' => *next != ' ',
            '.' | '/' | '_' | '-' => next.is_alphabetic(),
            _ => false,
        });
        let end = ends.map_or(rest.len(), |((at, c), _)| at + c.len_utf8());
        let (piece, others) = rest.split_at_checked(end)?;
        rest = others;
        (!piece.is_empty()).then(|| Word::from(piece))
    })
}

/// Returns the greatest measure of each column.
fn widest(header: &[&str], rows: &[Vec<String>], measure: impl Fn(&str) -> usize) -> Vec<usize> {
    let of_column = |(column, title): (usize, &&str)| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let lines = cells.flat_map(|cell| cell.lines()).map(&measure);
        lines.chain([measure(title)]).max().unwrap_or_default()
    };
    header.iter().enumerate().map(of_column).collect()
}

fn lines(header: &[&str], rows: &[Vec<String>], widths: &[usize]) -> String {
    let header: Vec<_> = header.iter().map(|title| (*title).to_owned()).collect();
    let mut printed = Vec::with_capacity(rows.len() + 1);
    for row in [&header].into_iter().chain(rows) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| wrap_cell(cell, *width)).collect();
        for line in 0..cells.iter().map(Vec::len).max().unwrap_or_default().max(1) {
            let parts = cells.iter().zip(widths).map(|(cell, width)| {
                let part = cell.get(line).map_or("", String::as_str);
                format!("{part}{}", " ".repeat(width.saturating_sub(display_width(part))))
            });
            printed.push(parts.collect::<Vec<_>>().join(GAP).trim_end().to_owned());
        }
    }
    printed.join("\n")
}

fn blocks(header: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let key_width = header.iter().map(|title| display_width(title)).max().unwrap_or_default();
    let block = |row: &Vec<String>| {
        let cells = header.iter().zip(row).filter(|(_, cell)| !cell.is_empty());
        cells.map(|(title, cell)| field(title, key_width, cell, Some(width))).collect::<Vec<_>>().join("\n")
    };
    rows.iter().map(block).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[&str] = &["consumer", "what became of it", "content"];

    fn rows(name: &str) -> Vec<Vec<String>> {
        let row = |name: &str| {
            [name, "published once, and 3 letters were marked", "{\"n\":123456789}"]
                .map(str::to_owned)
                .to_vec()
        };
        vec![row(name), row("b")]
    }

    #[test]
    fn a_table_that_fits_is_one_line_per_row() {
        let shown = table(HEADER, &rows("a"), None, Some(80));
        let expected = "consumer  what became of it                          content\n\
                        a         published once, and 3 letters were marked  {\"n\":123456789}\n\
                        b         published once, and 3 letters were marked  {\"n\":123456789}";
        assert_eq!(shown, expected);
        assert_eq!(table(HEADER, &rows(&"x".repeat(200)), None, None).lines().count(), 3);
    }

    #[test]
    fn a_wide_table_is_wrapped_between_words() {
        let shown = table(HEADER, &rows("a"), None, Some(50));
        assert!(shown.lines().all(|line| display_width(line) <= 50), "{shown}");
        assert!(shown.contains("published once, and 3") && shown.contains("letters were marked"), "{shown}");
    }

    #[test]
    fn one_column_may_be_cut() {
        let shown = table(HEADER, &rows("a"), Some(1), Some(50));
        assert!(shown.lines().all(|line| display_width(line) <= 50), "{shown}");
        assert!(shown.contains("published once, and 3 …") && shown.lines().count() == 3, "{shown}");
        let cells = ["1".to_owned(), "日本語".repeat(20)];
        assert!(display_width(&row(&cells, Some(1), Some(40))) <= 40);
        assert_eq!(row(&cells, Some(1), None), cells.join("  "));
    }

    #[test]
    fn a_subject_is_broken_between_its_tokens() {
        let subject = "events.orders.placed_in_the_year_2018.by_a_customer_of_the_first_hour";
        let shown = table(HEADER, &rows(subject), None, Some(80));
        assert!(shown.lines().all(|line| display_width(line) <= 80) && !shown.contains("\n\n"), "{shown}");
        let column: String = shown.lines().skip(1).filter_map(|line| line.split("  ").next()).collect();
        assert!(column.starts_with(subject), "{column}");
        let parts: Vec<_> = pieces("a.b  2018-02-07T01:26:13.840Z --x").map(|piece| piece.word).collect();
        assert_eq!(parts, ["a.", "b", "2018-02-07T01:26:13.840Z", "--", "x"]);
    }

    #[test]
    fn a_table_of_long_names_becomes_blocks_instead_of_wrapped_cells() {
        let shown = table_or_blocks(HEADER, &rows("a"), Some(50));
        assert!(
            shown.starts_with("consumer           a\nwhat became of it  published once, and 3"),
            "{shown}"
        );
        assert_eq!(table_or_blocks(HEADER, &rows("a"), Some(80)), table(HEADER, &rows("a"), None, Some(80)));
    }

    #[test]
    fn a_row_that_cannot_be_wrapped_becomes_a_block() {
        let long = "1b47e6b1f2c3".repeat(6);
        let shown = table(HEADER, &rows(&long), None, Some(80));
        assert!(shown.contains(&format!("consumer           {long}\n")), "{shown}");
        assert!(shown.contains("\n\nconsumer           b\n"), "{shown}");
    }
}
