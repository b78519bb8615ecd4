//! Charts of times as SVG: the time that a share of them does not exceed.
//!
//! The axis of shares is stretched towards 100 %, where the slow ones are.

use std::ops::Range;
use std::path::Path;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::failure::{Failure, Outcome};

const SIZE: (u32, u32) = (960, 540);
/// Number of points of a line.
const STEPS: u32 = 200;

/// Times of one kind, sorted, in microseconds.
pub(crate) struct Series<'a> {
    pub(crate) name: &'a str,
    pub(crate) sorted: &'a [u64],
}

impl Series<'_> {
    /// Returns the end of the axis for these times: one nine per decade of them.
    fn nines(&self) -> f64 {
        (self.sorted.len().max(1_000) as f64).log10()
    }

    /// Returns the times by nines: 0 is the fastest, 1 the time that 90 % do not exceed, 2 that of 99 %.
    fn points(&self) -> Vec<(f64, f64)> {
        let steps = (0..=STEPS).map(|step| self.nines() * f64::from(step) / f64::from(STEPS));
        steps.filter_map(|nines| Some((nines, *self.sorted.get(self.place(nines))? as f64))).collect()
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of the length is between zero and the length"
    )]
    fn place(&self, nines: f64) -> usize {
        let share = 1.0 - 10_f64.powf(-nines);
        ((self.sorted.len() as f64 * share) as usize).min(self.sorted.len().saturating_sub(1))
    }
}

/// Writes a chart with one line per series.
pub(crate) fn svg(path: &Path, title: &str, series: &[Series<'_>]) -> Outcome {
    draw(path, title, series).map_err(|error| Failure::Input(format!("{}: {error}", path.display())))
}

fn draw(path: &Path, title: &str, series: &[Series<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    let times = || series.iter().flat_map(|series| series.sorted);
    let (low, high) = (times().min().copied().unwrap_or(1).max(1), times().max().copied().unwrap_or(1));
    let nines = series.iter().map(Series::nines).fold(1.0, f64::max);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(Shares(nines), (low as f64 * 0.8..high.max(low) as f64 * 1.25).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("share of all")
        .y_desc("time at most")
        .y_labels(10)
        .y_label_formatter(&|us| time(*us))
        .draw()?;
    for (place, line) in series.iter().enumerate() {
        let colour = Palette99::pick(place).to_rgba();
        chart
            .draw_series(LineSeries::new(line.points(), colour.stroke_width(2)))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(area.present()?)
}

/// The axis of shares, up to this number of nines.
struct Shares(f64);

impl Ranged for Shares {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, nines: &f64, (from, to): (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range()).map(nines, (from, to))
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        [0.0, 2_f64.log10(), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
            .into_iter()
            .filter(|tick| *tick <= self.0)
            .collect()
    }

    fn range(&self) -> Range<f64> {
        0.0..self.0
    }
}

impl ValueFormatter<f64> for Shares {
    fn format(nines: &f64) -> String {
        percent(*nines)
    }
}

fn percent(nines: f64) -> String {
    let decimals = if nines < 1.5 { 0 } else { 3 };
    let percent = format!("{:.decimals$}", 100.0 * (1.0 - 10_f64.powf(-nines)));
    let short =
        if percent.contains('.') { percent.trim_end_matches('0').trim_end_matches('.') } else { &percent };
    format!("{short} %")
}

fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.1} s", us / 1e6),
        us if us >= 1e3 => format!("{:.1} ms", us / 1e3),
        us => format!("{us:.0} µs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_line_and_a_name_per_series() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chart.svg");
        let (fast, slow): (Vec<u64>, Vec<u64>) =
            ((1..=1_000).collect(), (1..=100).map(|us| us * 5_000).collect());
        let series = [Series { name: "fast ones", sorted: &fast }, Series { name: "slow", sorted: &slow }];
        svg(&file, "a title", &series).unwrap();
        let chart = std::fs::read_to_string(&file).unwrap();
        for shown in ["a title", "fast ones", "slow", "99 %", "99.9 %", "ms", "</svg>"] {
            assert!(chart.contains(shown), "{shown} is not in {chart}");
        }
        assert_eq!(svg(&folder.path().join("no/such"), "", &series).unwrap_err().code(), 3);
        svg(&file, "nothing", &[Series { name: "none", sorted: &[] }]).unwrap();
    }

    #[test]
    fn points_are_the_percentiles() {
        let sorted: Vec<u64> = (1..=1_000).collect();
        let series = Series { name: "", sorted: &sorted };
        let points = series.points();
        assert_eq!((points[0].1, points.last().unwrap().1), (1.0, 1_000.0));
        assert_eq!((series.place(1.0), series.place(2.0)), (900, 990));
    }
}
