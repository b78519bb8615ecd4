//! Capabilities of a provider, and the checks that refuse options it lacks.

use std::time::Duration;

use super::support::unsupported;
use crate::error::Result;
use crate::types::{DeliverPolicy, PublishOptions, SubscribeOptions};

/// Declaration about one capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Support {
    /// Not declared. Options pass through, and the bus warns once.
    #[default]
    Unknown,
    /// Supported: the guarantee holds, and the conformance kit tests it.
    Yes,
    /// Absent: calls that need it fail with [`EventError::Unsupported`](crate::EventError::Unsupported) before any I/O.
    No,
}

impl Support {
    /// Returns `true` if the capability is declared present.
    pub const fn is_yes(self) -> bool {
        matches!(self, Self::Yes)
    }

    /// Returns `true` if the capability is declared absent.
    pub const fn is_no(self) -> bool {
        matches!(self, Self::No)
    }
}

/// Failure that an acknowledged publish survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Not declared.
    #[default]
    Unknown,
    /// No failure: the event is lost when the process or server that keeps it restarts.
    None,
    /// Acknowledged before it is safe: a crash of the process or server that keeps it can lose the most recent events.
    Deferred,
    /// Survives `kill -9` of the process.
    ProcessCrash,
    /// Survives the loss of the page cache.
    PowerLoss,
    /// Survives the loss of a minority of nodes.
    NodeLoss,
}

/// Capabilities of a provider. Start from [`Capabilities::unknown`], [`all`](Capabilities::all) or
/// [`none`](Capabilities::none) and set the fields that differ.
///
/// ```
/// use a3s_event::provider::{Capabilities, Durability, Support};
///
/// let mut capabilities = Capabilities::all(Durability::None);
/// capabilities.dedup = Support::No;
/// assert!(capabilities.redelivery.is_yes());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Failure that an acknowledged publish survives.
    pub durability: Durability,
    /// Named consumers keep their position and the attempts of pending events across a disconnect. They also keep them
    /// across a restart if stored events do.
    pub durable: Support,
    /// Several subscriptions of one durable consumer share its events.
    pub shared_consumers: Support,
    /// Unsettled and nacked events are redelivered: `ack_wait_secs`, `max_deliver`, `nak`.
    pub redelivery: Support,
    /// A nak can delay the redelivery: `nak_after`, `backoff_secs`.
    pub nak_with_delay: Support,
    /// `term` settles an event without redelivery.
    pub term: Support,
    /// `extend` restarts a lease.
    pub extend: Support,
    /// Publishes with the same `msg_id` are deduplicated.
    pub dedup: Support,
    /// `expected_sequence` is checked.
    pub expected_sequence: Support,
    /// All six deliver policies are supported.
    pub start_policies: Support,
    /// `max_ack_pending` limits the unsettled events.
    pub max_ack_pending: Support,
    /// `publish_batch` publishes events together instead of one after the other.
    pub batch_publish: Support,
    /// `query` reads history by sequence and time.
    pub history_query: Support,
    /// `consumers` lists every consumer with its lag.
    pub consumer_info: Support,
    /// A settlement whose lease went to another delivery is refused. Without this capability it takes effect on the
    /// current delivery.
    pub fenced_settlement: Support,
    /// `release` and `close` count no attempt for the released events. Without this capability, a released event counts
    /// one delivery more.
    pub release_keeps_attempt: Support,
    /// If retention drops events before a consumer reads them, the consumer receives the number of matching events
    /// missed, with any filter.
    pub reports_gaps: Support,
    /// `reset_consumer` moves a durable consumer to another position.
    pub reset_consumer: Support,
    /// Sequences, first deliveries and history follow one order over the whole stream. Without this capability they
    /// follow one order per subject.
    pub total_order: Support,
    /// The members of a durable consumer share its events across connections, so that a busy member delays no other.
    /// Without this capability, each connection has its own part of the subjects.
    pub event_sharing: Support,
    /// Maximum size of one event in bytes of JSON; `None` if unknown. Without it a [driver](super::driver::Driver) has
    /// the limit [`DEFAULT_MAX_EVENT_BYTES`](super::validate::DEFAULT_MAX_EVENT_BYTES).
    pub max_event_bytes: Option<usize>,
    /// Minimum time for which a `msg_id` is remembered; `None` if unknown.
    pub dedup_window: Option<Duration>,
}

impl Capabilities {
    /// Returns capabilities that declare nothing, as for a provider written before capabilities existed.
    pub const fn unknown() -> Self {
        Self::uniform(Support::Unknown, Durability::Unknown)
    }

    /// Returns capabilities that are all present.
    pub const fn all(durability: Durability) -> Self {
        Self::uniform(Support::Yes, durability)
    }

    /// Returns capabilities that are all absent: only plain publish, subscribe and history remain.
    pub const fn none(durability: Durability) -> Self {
        Self::uniform(Support::No, durability)
    }

    const fn uniform(support: Support, durability: Durability) -> Self {
        Self {
            durability,
            durable: support,
            shared_consumers: support,
            redelivery: support,
            nak_with_delay: support,
            term: support,
            extend: support,
            dedup: support,
            expected_sequence: support,
            start_policies: support,
            max_ack_pending: support,
            batch_publish: support,
            history_query: support,
            consumer_info: support,
            fenced_settlement: support,
            release_keeps_attempt: support,
            reports_gaps: support,
            total_order: support,
            event_sharing: support,
            reset_consumer: support,
            max_event_bytes: None,
            dedup_window: None,
        }
    }

    /// Refuses publish options that the provider declares absent.
    ///
    /// # Errors
    ///
    /// [`EventError::Unsupported`](crate::EventError::Unsupported), which names the first such option.
    pub fn check_publish(&self, provider: &str, options: &PublishOptions) -> Result<()> {
        refuse_first(provider, &self.used_by_publish(options))
    }

    /// Refuses subscribe options that the provider declares absent.
    ///
    /// # Errors
    ///
    /// [`EventError::Unsupported`](crate::EventError::Unsupported), which names the first such option.
    pub fn check_subscribe(&self, provider: &str, options: &SubscribeOptions) -> Result<()> {
        refuse_first(provider, &self.used_by_subscribe(options))
    }

    /// Returns the first option in use whose capability is not declared.
    pub(crate) fn undeclared(
        &self,
        publish: Option<&PublishOptions>,
        subscribe: Option<&SubscribeOptions>,
    ) -> Option<&'static str> {
        let publish = publish.into_iter().flat_map(|options| self.used_by_publish(options));
        let subscribe = subscribe.into_iter().flat_map(|options| self.used_by_subscribe(options));
        publish
            .chain(subscribe)
            .find_map(|(used, option, support)| (used && support == Support::Unknown).then_some(option))
    }

    fn used_by_publish(&self, options: &PublishOptions) -> [(bool, &'static str, Support); 2] {
        [
            (options.msg_id.is_some(), "msg_id", self.dedup),
            (options.expected_sequence.is_some(), "expected_sequence", self.expected_sequence),
        ]
    }

    fn used_by_subscribe(&self, options: &SubscribeOptions) -> [(bool, &'static str, Support); 5] {
        [
            (options.max_deliver.is_some(), "max_deliver", self.redelivery),
            (options.ack_wait_secs.is_some(), "ack_wait_secs", self.redelivery),
            (!options.backoff_secs.is_empty(), "backoff_secs", self.nak_with_delay),
            (options.max_ack_pending.is_some(), "max_ack_pending", self.max_ack_pending),
            (options.deliver_policy != DeliverPolicy::All, "deliver_policy", self.start_policies),
        ]
    }
}

fn refuse_first(provider: &str, used: &[(bool, &'static str, Support)]) -> Result<()> {
    match used.iter().find(|(used, _, support)| *used && support.is_no()) {
        Some((_, option, _)) => Err(unsupported(option, provider)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::EventError;

    #[test]
    fn each_option_is_refused_by_its_own_capability() {
        let all_publish =
            PublishOptions { msg_id: Some("m".into()), expected_sequence: Some(1), timeout_secs: Some(1) };
        let all_subscribe = SubscribeOptions {
            max_deliver: Some(1),
            backoff_secs: vec![1],
            max_ack_pending: Some(1),
            deliver_policy: DeliverPolicy::New,
            ack_wait_secs: Some(1),
        };
        let yes = Capabilities::all(Durability::None);
        yes.check_publish("p", &all_publish).unwrap();
        yes.check_subscribe("p", &all_subscribe).unwrap();
        assert_eq!(yes.undeclared(Some(&all_publish), Some(&all_subscribe)), None);

        let mut refuses = yes;
        refuses.dedup = Support::No;
        assert!(refuses.check_publish("p", &all_publish).unwrap_err().to_string().contains("msg_id"));
        for (field, option) in [
            ((|c: &mut Capabilities| c.redelivery = Support::No) as fn(&mut Capabilities), "max_deliver"),
            (|c| c.nak_with_delay = Support::No, "backoff_secs"),
            (|c| c.max_ack_pending = Support::No, "max_ack_pending"),
            (|c| c.start_policies = Support::No, "deliver_policy"),
        ] {
            let mut refuses = yes;
            field(&mut refuses);
            let error = refuses.check_subscribe("p", &all_subscribe).unwrap_err();
            assert!(matches!(&error, EventError::Unsupported { option: o, .. } if o == option), "{error}");
        }
    }

    #[test]
    fn unknown_passes_and_is_reported() {
        let unknown = Capabilities::unknown();
        let options = PublishOptions { msg_id: Some("m".into()), ..Default::default() };
        unknown.check_publish("p", &options).unwrap();
        assert_eq!(unknown.undeclared(Some(&options), None), Some("msg_id"));
        assert_eq!(
            unknown.undeclared(Some(&PublishOptions::default()), Some(&SubscribeOptions::default())),
            None
        );
    }
}
