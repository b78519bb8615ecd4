//! Plans a dry run: the events to copy, and the room for them on the target.

use a3s_event::provider::StreamLimits;
use a3s_event::subject::subject_matches;
use a3s_event::{Event, EventProvider, ProviderInfo, duration};

use super::Copied;
use super::positions::Before;
use crate::commands::subscribe::eprint_note;
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::limits::own_stream;
use crate::moment;
use crate::text;

/// Maximum number of bytes that a backend counts for an event beside its JSON and its subject, such as headers.
const OVERHEAD: u64 = 100;

/// The events that a copy would add to the target.
pub(super) struct Plan {
    /// Time of storing of the oldest event.
    oldest: Option<u64>,
    /// Maximum size of the events in bytes, as any backend counts it.
    at_most: u64,
    /// The first event whose subject the target refuses: its sequence and subject.
    outside: Option<(u64, String)>,
}

impl Plan {
    pub(super) async fn make(
        mut forward: Forward,
        target: &dyn EventProvider,
        before: &mut Before,
        copied: &mut Copied,
    ) -> Outcome<Self> {
        let mut plan = Self { oldest: None, at_most: 0, outside: None };
        let stored_there = format!("{}.>", target.subject_prefix());
        let mut bytes = 0;
        loop {
            let page = forward.page().await?;
            if page.is_empty() {
                copied.bytes = Some(bytes);
                return Ok(plan);
            }
            let events = copied.events_of(page);
            before.count(&events);
            for stored in events {
                copied.events += 1;
                let size = size(&stored.event)?;
                bytes += size;
                plan.at_most += size + stored.event.subject.len() as u64 + OVERHEAD;
                plan.oldest.get_or_insert(stored.stored_at);
                if plan.outside.is_none() && !subject_matches(&stored.event.subject, &stored_there) {
                    plan.outside = Some((stored.sequence, stored.event.subject.clone()));
                }
            }
        }
    }

    /// Fails if the target refuses an event, or has no room for its own events and the copied ones.
    pub(super) async fn check_target(
        &self,
        target: &dyn EventProvider,
        held: &ProviderInfo,
        copied: &Copied,
    ) -> Outcome {
        if let Some((sequence, subject)) = &self.outside {
            return Err(Failure::Found(format!(
                "the target refuses event {sequence}: its subject '{}' is outside the target's prefix '{}'. Copy into a \
                 stream with the prefix of the source, or select events with --filter",
                text::line(subject),
                target.subject_prefix()
            )));
        }
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
                "it holds {} and would get at least {}, and its limit is {}",
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
        if is_over(limits.max_bytes, held.bytes + self.at_most).is_some() {
            eprint_note(
                "the copy nearly fills the target: some backends count more bytes for an event than its JSON has",
            );
        }
        self.note_age(&limits);
        Ok(())
    }

    /// Prints a note if the target keeps events for a shorter time than the source did. Their age begins with the copy.
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

/// Returns the limits of the stream of a bus, if it reports them.
pub(crate) async fn limits_of(target: &dyn EventProvider) -> Outcome<Option<StreamLimits>> {
    Ok(own_stream(target).await?.and_then(|stream| stream.limits))
}

/// Returns the size of an event in bytes of JSON.
fn size(event: &Event) -> Outcome<u64> {
    let json = serde_json::to_vec(event).map_err(|error| Failure::Other(error.to_string()))?;
    Ok(json.len() as u64)
}
