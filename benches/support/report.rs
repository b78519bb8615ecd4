//! A table of figures and their baselines, for benchmarks that measure in turns.

use std::time::Instant;

use comfy_table::Table;

/// A table with a row per figure.
pub(crate) struct Report(Table);

impl Default for Report {
    fn default() -> Self {
        let mut table = Table::new();
        table.set_header([
            "figure",
            "baseline",
            "provider",
            "provider / baseline",
            "lowest-highest",
            "wanted",
        ]);
        Self(table)
    }
}

impl Report {
    /// Adds a figure that has no baseline, or is not a speed.
    pub(crate) fn add(&mut self, figure: &str, baseline: &str, provider: &str, ratio: &str, wanted: &str) {
        self.0.add_row([figure, baseline, provider, ratio, "", wanted]);
    }

    /// Adds speeds that were measured in turns: their medians, and the median, lowest and highest of their ratios.
    pub(crate) fn rates(&mut self, figure: &str, baseline: &[f64], provider: &[f64], wanted: &str) {
        let ratios: Vec<_> =
            provider.iter().zip(baseline).map(|(provider, baseline)| provider / baseline).collect();
        let (lowest, highest) =
            (ratios.iter().copied().fold(f64::MAX, f64::min), ratios.iter().copied().fold(0.0, f64::max));
        let rate = |rates: &[f64]| format!("{:.0}/s", median(rates));
        self.0.add_row([
            figure,
            &rate(baseline),
            &rate(provider),
            &format!("{:.2}", median(&ratios)),
            &format!("{lowest:.2}-{highest:.2}"),
            wanted,
        ]);
    }

    pub(crate) fn print(&self) {
        println!("{}", self.0);
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns repetitions per second of work that repeats `count` times.
pub(crate) fn per_second(count: usize, work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    count as f64 / begin.elapsed().as_secs_f64()
}
