//! The settings of a consumer, validated and with every default filled in.

use std::time::Duration;

use crate::error::{EventError, Result};
use crate::subject::validate_filter;
use crate::types::{DeliverPolicy, SubscribeOptions};

/// Default ack wait, the duration of a lease.
pub const DEFAULT_ACK_WAIT: Duration = Duration::from_secs(30);
/// Default maximum number of unsettled events of a consumer.
pub const DEFAULT_MAX_ACK_PENDING: usize = 1_000;

const MAX_ACK_WAIT_SECS: u64 = 24 * 60 * 60;
const MAX_BACKOFF_SECS: u64 = 365 * 24 * 60 * 60;
const MAX_MAX_ACK_PENDING: i64 = 1_000_000;

/// The settings of a consumer. Options that [`SubscribeOptions`] leaves out have the same defaults on every provider.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerConfig {
    /// Subject filter.
    pub filter: String,
    /// Start position of a new consumer.
    pub deliver_policy: DeliverPolicy,
    /// Duration of a lease.
    pub ack_wait: Duration,
    /// Delays before redelivery after a nak, one per attempt. The last one repeats. Without any, redelivery is
    /// immediate.
    pub backoff: Vec<Duration>,
    /// Maximum number of deliveries of one event; `None` is unlimited.
    pub max_deliver: Option<u64>,
    /// Maximum number of unsettled events.
    pub max_ack_pending: usize,
}

impl ConsumerConfig {
    /// Validates a filter and options, and fills in the defaults.
    ///
    /// # Errors
    ///
    /// [`EventError::InvalidSubject`] for the filter; [`EventError::Config`], which names the option, its value and its
    /// rule.
    pub fn new(filter: &str, options: &SubscribeOptions) -> Result<Self> {
        validate_filter(filter)?;
        let max_deliver = in_range("max_deliver", options.max_deliver, 1, i64::MAX)?;
        let max_ack_pending = in_range("max_ack_pending", options.max_ack_pending, 1, MAX_MAX_ACK_PENDING)?;
        if let Some(secs) = options.ack_wait_secs
            && !(1..=MAX_ACK_WAIT_SECS).contains(&secs)
        {
            return Err(EventError::Config(format!(
                "ack_wait_secs {secs}: must be between 1 and {MAX_ACK_WAIT_SECS}"
            )));
        }
        check_backoff(&options.backoff_secs, max_deliver)?;
        if options.deliver_policy == (DeliverPolicy::ByStartSequence { sequence: 0 }) {
            return Err(EventError::Config("deliver_policy start sequence 0: must be at least 1".to_owned()));
        }
        Ok(Self {
            filter: filter.to_owned(),
            deliver_policy: options.deliver_policy.clone(),
            ack_wait: options.ack_wait_secs.map_or(DEFAULT_ACK_WAIT, Duration::from_secs),
            backoff: options.backoff_secs.iter().copied().map(Duration::from_secs).collect(),
            max_deliver,
            max_ack_pending: max_ack_pending
                .and_then(|max| usize::try_from(max).ok())
                .unwrap_or(DEFAULT_MAX_ACK_PENDING),
        })
    }

    /// Returns options from which [`new`](ConsumerConfig::new) makes these settings.
    pub fn to_options(&self) -> SubscribeOptions {
        SubscribeOptions {
            max_deliver: self.max_deliver.and_then(|max| i64::try_from(max).ok()),
            backoff_secs: self.backoff.iter().map(Duration::as_secs).collect(),
            max_ack_pending: i64::try_from(self.max_ack_pending).ok(),
            deliver_policy: self.deliver_policy.clone(),
            ack_wait_secs: Some(self.ack_wait.as_secs()),
        }
    }

    /// Returns the delay before the redelivery that follows a nak of this attempt.
    pub fn backoff_after(&self, attempt: u32) -> Duration {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        self.backoff.get(index).or(self.backoff.last()).copied().unwrap_or_default()
    }

    /// Applies the settings that may change while a consumer exists: all except its filter and start.
    ///
    /// # Errors
    ///
    /// [`EventError::Conflict`], which names the field; nothing is changed then.
    pub fn change_to(&mut self, consumer: &str, wanted: Self) -> Result<()> {
        self.check_filter(consumer, &wanted.filter)?;
        if self.deliver_policy != wanted.deliver_policy {
            return Err(conflict(
                consumer,
                "deliver_policy",
                &format!("{:?}", self.deliver_policy),
                &format!("{:?}", wanted.deliver_policy),
            ));
        }
        *self = wanted;
        Ok(())
    }

    /// Refuses to open an existing consumer with another filter.
    ///
    /// # Errors
    ///
    /// [`EventError::Conflict`], which names the field `filter`.
    pub fn check_filter(&self, consumer: &str, filter: &str) -> Result<()> {
        if self.filter == filter { Ok(()) } else { Err(conflict(consumer, "filter", &self.filter, filter)) }
    }
}

fn conflict(consumer: &str, field: &str, existing: &str, requested: &str) -> EventError {
    EventError::Conflict {
        resource: format!("consumer '{consumer}'"),
        field: field.to_owned(),
        existing: existing.to_owned(),
        requested: requested.to_owned(),
    }
}

fn in_range(name: &str, value: Option<i64>, min: i64, max: i64) -> Result<Option<u64>> {
    match value {
        Some(value) if !(min..=max).contains(&value) => Err(EventError::Config(format!(
            "{name} {value}: must be between {min} and {max}; omit it for the default"
        ))),
        other => Ok(other.map(i64::unsigned_abs)),
    }
}

fn check_backoff(backoff: &[u64], max_deliver: Option<u64>) -> Result<()> {
    let rule = if !backoff.is_sorted() {
        "must not decrease".to_owned()
    } else if backoff.last().is_some_and(|last| *last > MAX_BACKOFF_SECS) {
        format!("must be at most {MAX_BACKOFF_SECS}")
    } else if max_deliver.is_some_and(|max| u64::try_from(backoff.len()).is_ok_and(|len| len > max)) {
        format!("has {} delays, but max_deliver is {}", backoff.len(), max_deliver.unwrap_or_default())
    } else {
        return Ok(());
    };
    let shown: Vec<String> = backoff.iter().take(8).map(u64::to_string).collect();
    Err(EventError::Config(format!("backoff_secs [{}]: {rule}", shown.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> SubscribeOptions {
        SubscribeOptions::default()
    }

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        let config = ConsumerConfig::new("events.>", &options()).unwrap();
        assert_eq!(config.ack_wait, Duration::from_secs(30));
        assert_eq!(config.max_ack_pending, 1_000);
        assert_eq!((config.max_deliver, config.backoff.len()), (None, 0));
        assert_eq!(config.deliver_policy, DeliverPolicy::All);
        assert_eq!(config.backoff_after(1), Duration::ZERO);
        assert_eq!(ConsumerConfig::new("events.>", &config.to_options()).unwrap(), config);
    }

    #[test]
    fn the_backoff_goes_by_attempt_and_its_last_entry_repeats() {
        let config =
            ConsumerConfig::new("events.>", &SubscribeOptions { backoff_secs: vec![1, 5], ..options() })
                .unwrap();
        assert_eq!([1, 2, 3, 9].map(|attempt| config.backoff_after(attempt).as_secs()), [1, 5, 5, 5]);
    }

    #[test]
    fn options_out_of_range_are_named() {
        for (bad, name) in [
            (SubscribeOptions { max_deliver: Some(0), ..options() }, "max_deliver 0"),
            (SubscribeOptions { max_deliver: Some(-1), ..options() }, "max_deliver -1"),
            (SubscribeOptions { max_ack_pending: Some(0), ..options() }, "max_ack_pending 0"),
            (
                SubscribeOptions { max_ack_pending: Some(1_000_000_000), ..options() },
                "max_ack_pending 1000000000",
            ),
            (SubscribeOptions { ack_wait_secs: Some(0), ..options() }, "ack_wait_secs 0"),
            (SubscribeOptions { ack_wait_secs: Some(315_360_000), ..options() }, "ack_wait_secs 315360000"),
            (SubscribeOptions { backoff_secs: vec![5, 1], ..options() }, "backoff_secs [5, 1]"),
            (SubscribeOptions { backoff_secs: vec![u64::MAX], ..options() }, "backoff_secs"),
            (
                SubscribeOptions { backoff_secs: vec![1, 2, 3], max_deliver: Some(2), ..options() },
                "3 delays, but max_deliver is 2",
            ),
            (
                SubscribeOptions {
                    deliver_policy: DeliverPolicy::ByStartSequence { sequence: 0 },
                    ..options()
                },
                "start sequence 0",
            ),
        ] {
            let error = ConsumerConfig::new("events.>", &bad).unwrap_err();
            assert!(matches!(&error, EventError::Config(text) if text.contains(name)), "{error}");
        }
    }

    #[test]
    fn only_filter_and_start_may_not_change() {
        let mut config = ConsumerConfig::new("events.a", &options()).unwrap();
        let wanted = SubscribeOptions {
            max_deliver: Some(3),
            backoff_secs: vec![1],
            max_ack_pending: Some(5),
            ack_wait_secs: Some(7),
            ..options()
        };
        config.change_to("c", ConsumerConfig::new("events.a", &wanted).unwrap()).unwrap();
        assert_eq!((config.max_deliver, config.max_ack_pending), (Some(3), 5));

        let before = config.clone();
        let other_filter = ConsumerConfig::new("events.b", &wanted).unwrap();
        let other_start = SubscribeOptions { deliver_policy: DeliverPolicy::New, ..options() };
        for (other, field) in [
            (other_filter, "filter"),
            (ConsumerConfig::new("events.a", &other_start).unwrap(), "deliver_policy"),
        ] {
            let error = config.change_to("c", other).unwrap_err();
            assert!(matches!(&error, EventError::Conflict { field: f, .. } if f == field), "{error}");
            assert_eq!(config, before);
        }
    }
}
