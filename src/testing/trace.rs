//! The trace of a run: one line per step.

use std::fmt::{self, Write as _};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::poison::IgnorePoison;

/// Maximum number of lines that a failure shows.
const SHOWN: usize = 200;
/// Maximum number of lines that are kept.
const KEPT: usize = 100_000;

/// The steps of a run.
#[derive(Default)]
pub(super) struct Trace {
    lines: Mutex<Vec<String>>,
}

impl Trace {
    pub(super) fn add(&self, at: Duration, who: &str, what: fmt::Arguments<'_>) {
        let mut lines = self.lock();
        if lines.len() < KEPT {
            lines.push(format!("{:>10}.{:03} s  {who:<12} {what}", at.as_secs(), at.subsec_millis()));
        }
    }

    pub(super) fn all(&self) -> String {
        let mut text = String::new();
        for line in &*self.lock() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// Returns the last lines, and the number of those before.
    pub(super) fn end(&self) -> String {
        let lines = self.lock();
        let earlier = lines.len().saturating_sub(SHOWN);
        let mut text = String::new();
        if earlier > 0 {
            let _ = writeln!(text, "... {earlier} earlier steps");
        }
        for line in lines.iter().skip(earlier) {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().ignore_poison()
    }
}
