//! The wall clock.

#[cfg(any(test, feature = "testing"))]
use std::sync::Arc;
#[cfg(any(test, feature = "testing"))]
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the current time in Unix milliseconds, or 0 if the clock is before 1970.
pub fn unix_millis() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(unix_ms) = ambient::unix_millis() {
        return unix_ms;
    }
    of_system()
}

fn of_system() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock of a provider: the one of its thread, or one that a test controls. Clones are the same clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    #[cfg(any(test, feature = "testing"))]
    controlled: Option<Arc<Controlled>>,
}

/// A clock that a test controls.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
struct Controlled {
    /// A point in time on tokio's clock, and the Unix milliseconds at that point. `None` follows the system's clock.
    begin: Option<(tokio::time::Instant, u64)>,
    error_ms: AtomicI64,
}

impl Clock {
    /// Returns the current time in Unix milliseconds.
    pub fn unix_millis(&self) -> u64 {
        #[cfg(any(test, feature = "testing"))]
        if let Some(controlled) = &self.controlled {
            return controlled.unix_millis();
        }
        unix_millis()
    }
}

#[cfg(any(test, feature = "testing"))]
impl Clock {
    /// Returns a clock that follows the system's clock and can be [set wrong](Clock::set_error).
    pub fn of_system() -> Self {
        Self::controlled_from(None)
    }

    /// Returns a clock that shows `unix_ms` now and follows tokio's clock, which a test can pause and advance. It can
    /// be [set wrong](Clock::set_error), too.
    #[cfg(feature = "testing")]
    pub fn of_tokio(unix_ms: u64) -> Self {
        Self::controlled_from(Some((tokio::time::Instant::now(), unix_ms)))
    }

    fn controlled_from(begin: Option<(tokio::time::Instant, u64)>) -> Self {
        Self { controlled: Some(Arc::new(Controlled { begin, error_ms: AtomicI64::new(0) })) }
    }

    /// Sets the error of the clock in milliseconds: positive if it is ahead. No effect on the system's own clock.
    pub fn set_error(&self, error_ms: i64) {
        if let Some(controlled) = &self.controlled {
            controlled.error_ms.store(error_ms, Ordering::Relaxed);
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl Controlled {
    fn unix_millis(&self) -> u64 {
        let right = match self.begin {
            Some((begin, unix_ms)) => {
                let since = begin.elapsed().as_millis();
                unix_ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
            }
            None => of_system(),
        };
        right.saturating_add_signed(self.error_ms.load(Ordering::Relaxed))
    }
}

/// The clock is not part of the settings that contain it.
impl PartialEq for Clock {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Clock {}

/// The clock of a thread that simulates.
#[cfg(feature = "testing")]
pub(crate) mod ambient {
    use std::cell::RefCell;

    use super::Clock;

    thread_local! {
        static AMBIENT: RefCell<Option<Clock>> = const { RefCell::new(None) };
    }

    pub(super) fn unix_millis() -> Option<u64> {
        AMBIENT.with_borrow(|clock| clock.as_ref().map(Clock::unix_millis))
    }

    /// Sets or removes the clock of this thread.
    pub(crate) fn set(clock: Option<Clock>) {
        AMBIENT.set(clock);
    }
}
