//! Plans a copy: the events to copy, and the room for them on the target.

use a3s_event::provider::validate::validate_event;
use a3s_event::provider::{LimitSource, StreamLimits};
use a3s_event::subject::subject_matches;
use a3s_event::{Event, EventError, EventProvider, ProviderInfo, duration};

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
    /// The first event that the target refuses: its sequence and the reason.
    refused: Option<(u64, String)>,
}

impl Plan {
    pub(super) async fn make(
        mut forward: Forward,
        target: &dyn EventProvider,
        before: &mut Before,
        copied: &mut Copied,
    ) -> Outcome<Self> {
        let mut plan = Self { oldest: None, at_most: 0, refused: None };
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
                if plan.refused.is_none() {
                    plan.refused = refusal(&stored.event, target).map(|why| (stored.sequence, why));
                }
            }
        }
    }

    /// Fails if the target refuses an event, or has no room for its own events and the copied ones.
    pub(super) async fn check_target(
        &self,
        target: &dyn EventProvider,
        exists: bool,
        held: &ProviderInfo,
        copied: &Copied,
    ) -> Outcome {
        if let Some((sequence, why)) = &self.refused {
            let mut refusal =
                format!("the target refuses event {sequence}: {why}, or select events with --filter");
            if exists {
                refusal.push_str("; `streams rm` deletes a stream that was created by mistake");
            }
            return Err(Failure::Found(refusal));
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
                "the target is too small for the copy: {}. {}",
                reasons.join("; "),
                way_out(exists && limits.source == LimitSource::Stream)
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

/// Returns the reason why the target refuses an event, with the next step.
fn refusal(event: &Event, target: &dyn EventProvider) -> Option<String> {
    let prefix = target.subject_prefix();
    if !subject_matches(&event.subject, &format!("{prefix}.>")) {
        return Some(format!(
            "its subject '{}' is outside the target's prefix '{prefix}'. Copy into a stream with the prefix of the source",
            text::line(&event.subject)
        ));
    }
    let limit = target.capabilities().max_event_bytes.unwrap_or(usize::MAX);
    match validate_event(event, prefix, limit).err()? {
        error @ EventError::TooLarge { .. } => {
            Some(format!("{error}. Copy into a stream with a larger max_event_bytes"))
        }
        error => Some(error.to_string()),
    }
}

/// Returns the next step for a target without room.
fn way_out(has_limits_of_its_own: bool) -> &'static str {
    if has_limits_of_its_own {
        "A stream keeps its limits: delete it with `streams rm`, or name another stream in the URL of \
         the target; with max_events=0, max_bytes=0 and max_age=0 in that URL, the copy creates it without limits"
    } else {
        "Copy into a stream without limits, which max_events=0, max_bytes=0 and max_age=0 in its URL make"
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
