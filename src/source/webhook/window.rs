//! Validity of signed requests and the deduplication window. A request must expire before the window ends; otherwise a
//! recorded request could be taken twice.

use std::time::Duration;

use super::DEFAULT_TOLERANCE;
use crate::bus::EventBus;
use crate::error::{EventError, Result};

/// Maximum difference between the clocks of receivers, including the error of counting whole seconds.
const CLOCKS: Duration = Duration::from_secs(5);
/// Deduplication window of a provider that does not report one, according to the contract.
const CONTRACT_WINDOW: Duration = Duration::from_secs(120);

/// Returns how long a request can be valid. Its time may be as far ahead as it may be old.
pub(super) fn validity(tolerance: Duration) -> Duration {
    tolerance.saturating_add(CLOCKS).saturating_mul(2)
}

/// Returns the tolerance of a receiver, which fits into the deduplication window of the bus. Another receiver may get
/// the request at the end of its validity, and take as long as `timeout` to publish it.
pub(super) fn tolerance(
    asked: Option<Duration>,
    timeout: Duration,
    bus: Option<&EventBus>,
) -> Result<Duration> {
    let Some(bus) = bus.filter(|bus| bus.provider().capabilities().dedup.is_yes()) else {
        return Ok(asked.unwrap_or(DEFAULT_TOLERANCE));
    };
    let window = bus.provider().capabilities().dedup_window.unwrap_or(CONTRACT_WINDOW);
    let most = window.saturating_sub(timeout) / 2;
    let most = most.checked_sub(CLOCKS).filter(|most| most.as_secs() > 0);
    let refuse = |tolerance: Duration| {
        let needed = validity(tolerance).saturating_add(timeout);
        let provider = bus.provider_name();
        let way_out = match most {
            Some(most) => format!("use a tolerance of at most {} s", most.as_secs()),
            None => format!("use a timeout below {timeout:?}"),
        };
        EventError::Config(format!(
            "webhook tolerance {tolerance:?}: a signed request could be stored twice, because it is valid and under way for up to \
             {needed:?} and the dedup window of provider '{provider}' is {window:?}; {way_out}, or a longer dedup window"
        ))
    };
    match (asked, most) {
        (Some(asked), Some(most)) if asked <= most => Ok(asked),
        (None, Some(most)) => Ok(most.min(DEFAULT_TOLERANCE)),
        (asked, _) => Err(refuse(asked.unwrap_or(Duration::from_secs(1)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryProvider;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn of(asked: Option<u64>, window: u64) -> Result<Duration> {
        let provider = MemoryProvider::builder().dedup_window(seconds(window)).build().unwrap();
        tolerance(asked.map(seconds), TIMEOUT, Some(&EventBus::new(provider)))
    }

    #[test]
    fn what_is_valid_is_remembered() {
        assert_eq!(tolerance(None, TIMEOUT, None).unwrap(), seconds(300), "nobody publishes it");
        assert_eq!(of(None, 120).unwrap(), seconds(40));
        assert_eq!(of(None, 640).unwrap(), seconds(300));
        assert_eq!(of(None, 10_000).unwrap(), seconds(300));
        assert_eq!(of(Some(0), 120).unwrap(), seconds(0));
        assert_eq!(of(Some(40), 120).unwrap(), seconds(40));
        for tolerance in [1, 40, 300] {
            let window = 2 * (tolerance + 5) + 30;
            assert_eq!(of(Some(tolerance), window).unwrap(), seconds(tolerance));
            of(Some(tolerance), window - 1).unwrap_err();
        }
    }

    #[test]
    fn a_tolerance_beyond_the_window_is_refused_with_a_way_out() {
        let refused = |asked, window| of(asked, window).unwrap_err().to_string();
        let text = refused(Some(300), 120);
        assert!(text.contains("640s") && text.contains("120s") && text.contains("at most 40 s"), "{text}");
        assert!(text.contains("'memory'"), "{text}");
        assert!(refused(Some(u64::MAX), 120).contains("at most 40 s"));
        assert!(refused(None, 30).contains("a timeout below 30s"));
    }
}
