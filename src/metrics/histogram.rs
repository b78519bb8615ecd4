//! Latency histograms with fixed buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Logarithm of the first bucket's bound: times below 2^7 ns share the first bucket.
const FIRST_OCTAVE: u32 = 7;
/// Number of octaves. Times of 2^37 ns (137 s) and more share the last bucket.
const OCTAVES: usize = 30;
/// Number of buckets per octave, which is a doubling of the time.
const PER_OCTAVE: usize = 4;
const BUCKETS: usize = 1 + OCTAVES * PER_OCTAVE + 1;

/// A lock-free histogram of latencies with a fixed size.
///
/// The buckets are those of a floating-point number with two bits of mantissa. Each doubling of the time between 128 ns
/// and 137 s has four buckets of equal width. A result in this range is wrong by at most a quarter. Recording takes two
/// relaxed additions.
///
/// ```
/// use std::time::Duration;
/// use a3s_event::metrics::LatencyHistogram;
///
/// let histogram = LatencyHistogram::new();
/// for millis in 1..=100 {
///     histogram.record(Duration::from_millis(millis));
/// }
/// let snapshot = histogram.snapshot();
/// assert_eq!(snapshot.count, 100);
/// let median = snapshot.quantile(0.5).unwrap();
/// assert!(median >= Duration::from_millis(50) && median <= Duration::from_millis(63));
/// ```
pub struct LatencyHistogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl LatencyHistogram {
    /// Creates an empty histogram.
    pub fn new() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }

    /// Records one time.
    pub fn record(&self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(ns)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Returns a snapshot of the counts. Each is read separately, so the snapshot is not one consistent instant.
    pub fn snapshot(&self) -> LatencySnapshot {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        LatencySnapshot {
            count: counts.iter().sum(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            buckets: counts
                .into_iter()
                .enumerate()
                .filter(|(_, count)| *count > 0)
                .map(|(index, count)| LatencyBucket { below_ns: upper_bound(index), count })
                .collect(),
        }
    }
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LatencyHistogram").field(&self.snapshot()).finish()
    }
}

/// Returns the bucket of a time: its octave, then the two bits after the leading one.
fn bucket_of(ns: u64) -> usize {
    let Some(octave) = ns.checked_ilog2().and_then(|log| log.checked_sub(FIRST_OCTAVE)) else { return 0 };
    let quarter = (ns >> (octave + FIRST_OCTAVE - 2)) & 3;
    let index = 1 + octave as usize * PER_OCTAVE + quarter as usize;
    index.min(BUCKETS - 1)
}

/// Returns the exclusive upper bound of a bucket in nanoseconds; `None` for the last bucket, which has no bound.
fn upper_bound(index: usize) -> Option<u64> {
    if index + 1 >= BUCKETS {
        return None;
    }
    let (octave, quarter) = (index / PER_OCTAVE, index % PER_OCTAVE);
    let octave = u32::try_from(octave).ok()? + FIRST_OCTAVE;
    Some((4 + quarter as u64) << (octave - 2))
}

/// Snapshot of a [`LatencyHistogram`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct LatencySnapshot {
    /// Number of recorded times.
    pub count: u64,
    /// Sum of the recorded times in nanoseconds.
    pub sum_ns: u64,
    /// Buckets that are not empty, from the shortest time to the longest.
    pub buckets: Vec<LatencyBucket>,
}

/// One bucket of a histogram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct LatencyBucket {
    /// Exclusive upper bound in nanoseconds; `None` for the last bucket, which has no bound.
    pub below_ns: Option<u64>,
    /// Number of times in the bucket.
    pub count: u64,
}

impl LatencySnapshot {
    /// Returns the upper bound of the bucket that holds this quantile, for instance 0.99. The bound is at most a
    /// quarter too long, and the last bucket counts as 137 s. Returns `None` if no time was recorded or if the quantile
    /// is outside 0 to 1.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        if self.count == 0 || !(0.0..=1.0).contains(&quantile) {
            return None;
        }
        let mut seen = 0;
        let bucket = self.buckets.iter().find(|bucket| {
            seen += bucket.count;
            seen as f64 >= quantile * self.count as f64
        })?;
        Some(Duration::from_nanos(bucket.below_ns.unwrap_or(1 << (FIRST_OCTAVE as usize + OCTAVES))))
    }

    /// Returns the average time; zero if none was recorded.
    pub fn average(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.checked_div(self.count).unwrap_or(0))
    }

    /// Returns each power of two from 2^7 to 2^37 nanoseconds with the number of times below it.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        (0..=OCTAVES).map(|octave| {
            let bound = 1 << (octave + FIRST_OCTAVE as usize);
            let below = |bucket: &&LatencyBucket| bucket.below_ns.is_some_and(|end| end <= bound);
            (bound, self.buckets.iter().filter(below).map(|bucket| bucket.count).sum())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_one_bucket_that_holds_it() {
        let mut edges: Vec<u64> = vec![0, 1, 127, u64::MAX];
        for shift in 7..64 {
            for quarter in 4..8_u64 {
                let edge = quarter << (shift - 2);
                edges.extend([edge - 1, edge, edge + 1]);
            }
        }
        for ns in edges {
            let index = bucket_of(ns);
            assert!(upper_bound(index).is_none_or(|end| ns < end), "{ns} in {index}");
            if let Some(before) = index.checked_sub(1).and_then(upper_bound) {
                assert!(ns >= before, "{ns} in {index}");
            }
        }
    }

    #[test]
    fn a_bucket_is_never_wider_than_a_quarter_of_its_times() {
        for index in 1..BUCKETS - 1 {
            let (from, to) = (upper_bound(index - 1).unwrap(), upper_bound(index).unwrap());
            assert!(to > from && (to - from) * 4 <= from, "bucket {index}: {from} to {to}");
        }
        assert_eq!(upper_bound(0), Some(128));
        assert_eq!(upper_bound(BUCKETS - 2), Some(1 << 37));
    }

    #[test]
    fn quantiles_are_of_the_bucket_that_holds_them() {
        let histogram = LatencyHistogram::new();
        assert_eq!(histogram.snapshot().quantile(0.5), None);
        for _ in 0..99 {
            histogram.record(Duration::from_nanos(1_000));
        }
        histogram.record(Duration::from_secs(3_600));
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count, 100);
        assert_eq!(snapshot.quantile(0.5), Some(Duration::from_nanos(1_024)));
        assert_eq!(snapshot.quantile(0.99), Some(Duration::from_nanos(1_024)));
        assert_eq!(snapshot.quantile(1.0), Some(Duration::from_nanos(1 << 37)));
        assert_eq!(snapshot.quantile(1.1), None);
        assert_eq!(snapshot.average(), Duration::from_nanos((99 * 1_000 + 3_600_000_000_000) / 100));
    }

    #[test]
    fn cumulative_counts_grow_to_all_that_have_an_end() {
        let histogram = LatencyHistogram::default();
        for ns in [1, 200, 300, 5_000, u64::MAX] {
            histogram.record(Duration::from_nanos(ns));
        }
        let cumulative: Vec<_> = histogram.snapshot().cumulative().collect();
        assert_eq!(cumulative[..4], [(128, 1), (256, 2), (512, 3), (1_024, 3)]);
        assert_eq!(cumulative.last(), Some(&(1 << 37, 4)));
    }

    #[test]
    fn counts_are_exact_under_contention() {
        let histogram = LatencyHistogram::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let histogram = &histogram;
                scope.spawn(move || {
                    (0..1_000).for_each(|n| histogram.record(Duration::from_nanos(n * 1_000 + thread)));
                });
            }
        });
        assert_eq!(histogram.snapshot().count, 4_000);
    }
}
