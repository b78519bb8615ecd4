//! A dry run: what would be copied, and whether the target has room for it.

use std::collections::BTreeMap;

use a3s_event::provider::StreamLimits;
use a3s_event::subject::subject_matches;
use a3s_event::{Event, EventError, EventProvider, ProviderInfo, duration};

use super::Copied;
use crate::commands::subscribe::eprint_note;
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::moment;
use crate::text;

/// Bytes that JetStream stores with an event beside its JSON and its subject: headers and the head of the record.
const JETSTREAM_OVERHEAD: u64 = 80;

/// What a copy would bring to the target.
pub(super) struct Plan {
    /// Number of events per filter of a durable consumer.
    arriving: BTreeMap<String, u64>,
    /// When the oldest of the events was stored.
    oldest: Option<u64>,
}

impl Plan {
    pub(super) async fn make(
        mut forward: Forward,
        source: &dyn EventProvider,
        target: &dyn EventProvider,
        copied: &mut Copied,
    ) -> Outcome<Self> {
        let is_jetstream = target.name() == "nats";
        let consumers = match source.capabilities().consumer_info.is_no() {
            true => Vec::new(),
            false => source.consumers().await?,
        };
        let filters =
            consumers.into_iter().filter(|consumer| consumer.durable).map(|consumer| (consumer.filter, 0));
        let mut plan = Self { arriving: filters.collect(), oldest: None };
        let mut bytes = 0;
        loop {
            let page = forward.page().await?;
            if page.is_empty() {
                copied.bytes = Some(bytes);
                return Ok(plan);
            }
            for stored in copied.events_of(page) {
                copied.events += 1;
                bytes += size(&stored.event, is_jetstream)?;
                plan.oldest.get_or_insert(stored.stored_at);
                for (filter, events) in &mut plan.arriving {
                    *events += u64::from(subject_matches(&stored.event.subject, filter));
                }
            }
        }
    }

    /// Number of events that a consumer with this filter would get more.
    pub(super) fn arriving(&self, filter: &str) -> u64 {
        self.arriving.get(filter).copied().unwrap_or_default()
    }

    /// Fails if the target would not hold all that it has and would get.
    pub(super) async fn check_limits(
        &self,
        target: &dyn EventProvider,
        held: &ProviderInfo,
        copied: &Copied,
    ) -> Outcome {
        let Some(limits) = limits_of(target).await? else {
            eprint_note("the target does not report its limits, so a copy may end at one of them");
            return Ok(());
        };
        let bytes = copied.bytes.unwrap_or_default();
        let is_over = |limit: Option<u64>, total: u64| limit.filter(|limit| total > *limit);
        let mut reasons = Vec::new();
        if let Some(limit) = is_over(limits.max_events, held.messages + copied.events) {
            reasons.push(format!(
                "it holds {} and would get {}, and its limit is {}",
                text::count(held.messages, "event"),
                text::number(copied.events),
                text::number(limit)
            ));
        }
        if let Some(limit) = is_over(limits.max_bytes, held.bytes + bytes) {
            reasons.push(format!(
                "it holds {} and would get about {}, and its limit is {}",
                text::bytes(held.bytes),
                text::bytes(bytes),
                text::bytes(limit)
            ));
        }
        if !reasons.is_empty() {
            return Err(Failure::Found(format!(
                "the target is too small for the copy: {}. Copy into a stream without limits, which max_events=0, \
                 max_bytes=0 and max_age=0 in its URL make",
                reasons.join("; ")
            )));
        }
        self.note_age(&limits);
        Ok(())
    }

    /// Notes that the target keeps events for a shorter time than the source did. Their age begins with the copy.
    fn note_age(&self, limits: &StreamLimits) {
        let age = self.oldest.map(|oldest| moment::now().saturating_sub(oldest));
        if let (Some(age), Some(max_age)) = (age, limits.max_age)
            && u128::from(age) > max_age.as_millis()
        {
            eprint_note(&format!(
                "the target keeps events for {0}, and the source has older ones: the target drops them {0} after the copy. \
                 max_age=0 in its URL keeps them",
                duration::format(max_age)
            ));
        }
    }
}

/// The limits of the stream of a bus, if it reports them.
pub(crate) async fn limits_of(target: &dyn EventProvider) -> Outcome<Option<StreamLimits>> {
    match target.streams().await {
        Ok(streams) => Ok(streams.into_iter().find(|stream| stream.is_own).and_then(|stream| stream.limits)),
        Err(EventError::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The size of an event, as its backend counts it: its JSON, and on JetStream about what is around it.
fn size(event: &Event, is_jetstream: bool) -> Outcome<u64> {
    let json = serde_json::to_vec(event).map_err(|error| Failure::Other(error.to_string()))?;
    let around = if is_jetstream { event.subject.len() as u64 + JETSTREAM_OVERHEAD } else { 0 };
    Ok(json.len() as u64 + around)
}
