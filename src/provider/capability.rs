//! What a provider can do, and the central refusal of what it cannot.

use std::time::Duration;

use super::support::unsupported;
use crate::error::Result;
use crate::types::{DeliverPolicy, PublishOptions, SubscribeOptions};

/// Whether a provider has a capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Support {
    /// The provider does not say. Options pass through, and the bus warns once.
    #[default]
    Unknown,
    /// The promise is honoured, and the conformance kit proves it.
    Yes,
    /// The promise is refused with [`EventError::Unsupported`](crate::EventError::Unsupported) before any I/O.
    No,
}

impl Support {
    /// Whether the capability is declared present.
    pub const fn is_yes(self) -> bool {
        matches!(self, Self::Yes)
    }

    /// Whether the capability is declared absent.
    pub const fn is_no(self) -> bool {
        matches!(self, Self::No)
    }
}

/// What an acknowledged publish survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// The provider does not say.
    #[default]
    Unknown,
    /// Nothing: it is gone when what keeps it restarts.
    None,
    /// It is acknowledged before it is safe: a crash of what keeps it can lose the last moments.
    Deferred,
    /// Survives `kill -9` of the process.
    ProcessCrash,
    /// Survives the loss of the page cache.
    PowerLoss,
    /// Survives the loss of a minority of nodes.
    NodeLoss,
}

/// What a provider can do. Start from [`Capabilities::unknown`], [`all`](Capabilities::all) or
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
    /// What an acknowledged publish survives.
    pub durability: Durability,
    /// Named consumers keep their position and the attempts of what is pending across a disconnect, and across a restart
    /// where stored events outlive one.
    pub durable: Support,
    /// Several subscriptions of one durable share the work.
    pub shared_consumers: Support,
    /// Unsettled and refused events are delivered again: `ack_wait_secs`, `max_deliver`, `nak`.
    pub redelivery: Support,
    /// A refusal can say when: `nak_after`, `backoff_secs`.
    pub nak_with_delay: Support,
    /// `term` settles an event without redelivery.
    pub term: Support,
    /// `extend` restarts a lease.
    pub extend: Support,
    /// `msg_id` is deduplicated.
    pub dedup: Support,
    /// `expected_sequence` is checked.
    pub expected_sequence: Support,
    /// All six deliver policies.
    pub start_policies: Support,
    /// `max_ack_pending` bounds unsettled events.
    pub max_ack_pending: Support,
    /// `publish_batch` is more than one publish after the other.
    pub batch_publish: Support,
    /// `query` reads history by sequence and time.
    pub history_query: Support,
    /// `consumers` lists position and lag.
    pub consumer_info: Support,
    /// A settlement whose lease went to another delivery is refused. Without it, such a settlement takes effect on the
    /// delivery that is in force.
    pub fenced_settlement: Support,
    /// `release` and `close` give events back without counting an attempt. Without it, what was given back counts one
    /// delivery more.
    pub release_keeps_attempt: Support,
    /// A consumer overtaken by retention is told how many matching events it missed, whatever its filter.
    pub reports_gaps: Support,
    /// `reset_consumer` moves a durable consumer to another position.
    pub reset_consumer: Support,
    /// Sequences, first deliveries and history follow one order over the whole stream. Without it they follow one per
    /// subject.
    pub total_order: Support,
    /// The members of a durable consumer share its events across connections, so that a busy one holds up nobody. Without
    /// it each connection has its own part of the subjects.
    pub event_sharing: Support,
    /// Maximum size of one event in bytes of JSON; `None` when it is not known. Under a [driver](super::driver::Driver)
    /// [`DEFAULT_MAX_EVENT_BYTES`](super::validate::DEFAULT_MAX_EVENT_BYTES) is in force then.
    pub max_event_bytes: Option<usize>,
    /// How long a `msg_id` is remembered, at least; `None` when it is not known.
    pub dedup_window: Option<Duration>,
}

impl Capabilities {
    /// Nothing is declared: what a provider reports that was written before capabilities existed.
    pub const fn unknown() -> Self {
        Self::uniform(Support::Unknown, Durability::Unknown)
    }

    /// Everything is honoured.
    pub const fn all(durability: Durability) -> Self {
        Self::uniform(Support::Yes, durability)
    }

    /// Everything optional is refused: plain publish, subscribe and history.
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

    /// Refuses publish options that the provider declares it cannot honour.
    ///
    /// # Errors
    ///
    /// [`EventError::Unsupported`](crate::EventError::Unsupported) that names the first such option.
    pub fn check_publish(&self, provider: &str, options: &PublishOptions) -> Result<()> {
        refuse_first(provider, &self.used_by_publish(options))
    }

    /// Refuses subscribe options that the provider declares it cannot honour.
    ///
    /// # Errors
    ///
    /// [`EventError::Unsupported`](crate::EventError::Unsupported) that names the first such option.
    pub fn check_subscribe(&self, provider: &str, options: &SubscribeOptions) -> Result<()> {
        refuse_first(provider, &self.used_by_subscribe(options))
    }

    /// The first option in use that the provider says nothing about.
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
