//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the current time in Unix milliseconds, or 0 if the clock is before 1970.
pub fn unix_millis() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
