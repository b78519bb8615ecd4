//! A chart of one backend: a group of bars per scenario, whose lengths show the speeds.
//!
//! This code writes SVG directly. No plotting library has groups of bars with a scale per group and numbers beside
//! them. Without these a chart is only rectangles and texts.

use std::fmt::Write as _;

use crate::board::Board;
use crate::page::number;
use crate::{OURS, PUBLISHED};

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 16.0;
const LABELS: f64 = 190.0;
/// Width for the number after the longest bar.
const NUMBERS: f64 = 120.0;
const BAR: f64 = 14.0;
const LINE: f64 = 20.0;
const GROUP: f64 = 34.0;

/// Returns the colour of a contender, the same in every group.
fn colour(contender: &str) -> &'static str {
    match contender {
        OURS => "#1f6feb",
        PUBLISHED => "#e3b341",
        other if other.starts_with(OURS) => "#79b8ff",
        // A variant of a contender, such as "async-nats, ack unconfirmed".
        other if other.contains(',') => "#ced5dc",
        _ => "#8b98a5",
    }
}

/// Returns the chart as SVG. A thin line through the end of a bar spans the lowest to the highest round.
pub(crate) fn svg(board: &Board, title: &str) -> String {
    let longest = WIDTH - 2.0 * MARGIN - LABELS - NUMBERS;
    let mut body = String::new();
    let mut y = 58.0;
    for scenario in board.scenarios() {
        let figures: Vec<_> = board.of(scenario).collect();
        let fastest = figures.iter().map(|figure| figure.speed().highest).fold(0.0, f64::max);
        text(&mut body, MARGIN, y, "class=\"group\"", scenario);
        y += 8.0;
        for figure in figures {
            let speed = figure.speed();
            let at = |value: f64| MARGIN + LABELS + value / fastest * longest;
            let colour = colour(&figure.contender);
            text(&mut body, MARGIN + LABELS - 8.0, y + 11.0, "text-anchor=\"end\"", &figure.contender);
            let (x, width) = (at(0.0), (at(speed.median) - at(0.0)).max(1.0));
            rectangle(&mut body, x, y, width, BAR, colour);
            let (low, high) = (at(speed.lowest), at(speed.highest));
            rectangle(&mut body, low, y + BAR / 2.0 - 0.75, (high - low).max(1.0), 1.5, "#24292f");
            text(
                &mut body,
                at(speed.median).max(high) + 6.0,
                y + 11.0,
                "",
                &format!("{}/s", number(speed.median)),
            );
            y += LINE;
        }
        y += GROUP - 8.0;
    }
    let height = y - GROUP / 2.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', sans-serif\" font-size=\"12\" fill=\"#24292f\">\n\
         <title>{title}</title>\n\
         <style>.title {{ font-size: 16px; font-weight: 600 }} .group {{ font-weight: 600 }}</style>\n"
    );
    rectangle(&mut svg, 0.0, 0.0, WIDTH, height, "#ffffff");
    text(&mut svg, MARGIN, 28.0, "class=\"title\"", title);
    svg + &body + "</svg>\n"
}

fn rectangle(svg: &mut String, x: f64, y: f64, width: f64, height: f64, colour: &str) {
    writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    )
    .expect("a text takes what is written");
}

/// Writes a text. `content` is not escaped, so it must not contain markup.
fn text(svg: &mut String, x: f64, y: f64, attributes: &str, content: &str) {
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>")
        .expect("a text takes what is written");
}
