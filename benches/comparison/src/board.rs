//! Measured speeds, and the values of the page computed from them.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The speeds of one contender in one scenario, one value per round.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) scenario: String,
    pub(crate) contender: String,
    pub(crate) per_second: Vec<f64>,
}

/// All measurements of one backend.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Board {
    pub(crate) backend: String,
    pub(crate) rounds: usize,
    pub(crate) figures: Vec<Figure>,
}

/// The median, the lowest and the highest of some values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) lowest: f64,
    pub(crate) median: f64,
    pub(crate) highest: f64,
}

impl Board {
    pub(crate) fn new(backend: &str, rounds: usize) -> Self {
        Self { backend: backend.to_owned(), rounds, figures: Vec::new() }
    }

    /// Times `work`, which repeats something `count` times, and stores its speed.
    pub(crate) async fn time(
        &mut self,
        scenario: &str,
        contender: &str,
        count: usize,
        work: impl Future<Output = ()>,
    ) {
        let begin = Instant::now();
        work.await;
        let per_second = count as f64 / begin.elapsed().as_secs_f64();
        self.record(scenario, contender, per_second);
    }

    /// Stores a speed.
    pub(crate) fn record(&mut self, scenario: &str, contender: &str, per_second: f64) {
        eprintln!("{:<8} {scenario:<50} {contender:<24} {per_second:>12.0}/s", self.backend);
        let known = |figure: &&mut Figure| figure.scenario == scenario && figure.contender == contender;
        match self.figures.iter_mut().find(known) {
            Some(figure) => figure.per_second.push(per_second),
            None => self.figures.push(Figure {
                scenario: scenario.to_owned(),
                contender: contender.to_owned(),
                per_second: vec![per_second],
            }),
        }
    }

    /// Returns the scenarios in the order in which they were measured.
    pub(crate) fn scenarios(&self) -> Vec<&str> {
        let mut scenarios: Vec<&str> = Vec::new();
        for figure in &self.figures {
            if !scenarios.contains(&figure.scenario.as_str()) {
                scenarios.push(&figure.scenario);
            }
        }
        scenarios
    }

    pub(crate) fn of(&self, scenario: &str) -> impl Iterator<Item = &Figure> {
        self.figures.iter().filter(move |figure| figure.scenario == scenario)
    }

    pub(crate) fn save(&self, file: &Path) {
        let json = serde_json::to_string_pretty(self).expect("numbers and texts");
        fs::write(file, json).expect("a file that can be written");
    }

    pub(crate) fn load(file: &Path) -> Self {
        let json = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self { lowest: values[0], median: values[values.len() / 2], highest: values[values.len() - 1] }
    }
}

impl Figure {
    pub(crate) fn speed(&self) -> Spread {
        Spread::of(self.per_second.iter().copied())
    }

    /// Returns the speed of this contender divided by that of `other`, round by round.
    pub(crate) fn times_as_fast_as(&self, other: &Figure) -> Spread {
        Spread::of(self.per_second.iter().zip(&other.per_second).map(|(ours, theirs)| ours / theirs))
    }
}
