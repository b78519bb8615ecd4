//! Copies events, each on the condition that the one before it is the newest.

use a3s_event::{Event, EventError, EventProvider, HistoryQuery, PublishOptions, PublishRequest};

use super::Copied;
use super::place::too_small;
use super::positions::Before;
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::progress::Progress;

/// Copies events after the sequence `last` of the target; `None` if it is empty. The target holds `held` events.
pub(super) async fn copy_events(
    mut forward: Forward,
    target: &dyn EventProvider,
    mut last: Option<u64>,
    held: u64,
    before: &mut Before,
    copied: &mut Copied,
) -> Outcome {
    let progress = Progress::of_events(Some(forward.total()));
    loop {
        let page = forward.page().await?;
        if page.is_empty() {
            return Ok(());
        }
        let page = copied.events_of(page);
        let events: Vec<_> = page.iter().map(|stored| &*stored.event).collect();
        let (first, rest) = events.split_at(usize::from(last.is_none()));
        for event in first {
            last = Some(publish_first(target, event).await?);
            copied.events += 1;
        }
        if let Some(newest) = last
            && !rest.is_empty()
        {
            last = Some(publish(target, rest, newest).await?);
            copied.events += rest.len() as u64;
        }
        before.count(&page);
        if target.info().await?.messages < held + copied.events {
            return Err(too_small());
        }
        progress.set(forward.done());
    }
}

/// Publishes the first event of an empty stream. An emptied stream continues its sequences, and only the receipt holds
/// the next one.
async fn publish_first(target: &dyn EventProvider, event: &Event) -> Outcome<u64> {
    match publish(target, &[event], 0).await {
        Err(Failure::Other(_)) if target.query(&HistoryQuery::new(1)).await?.is_empty() => {
            let published = target.publish(event).await;
            published.map_err(|error| unpublished(&error, event))
        }
        published => published,
    }
}

/// Publishes events after the sequence `last`, and returns the sequence of the last one.
async fn publish(target: &dyn EventProvider, events: &[&Event], mut last: u64) -> Outcome<u64> {
    let is_conditional = !target.capabilities().expected_sequence.is_no();
    let mut requests = Vec::with_capacity(events.len());
    for event in events {
        let expected_sequence = is_conditional.then_some(last);
        requests.push(PublishRequest::new(
            event,
            PublishOptions { expected_sequence, ..PublishOptions::default() },
        ));
        last += 1;
    }
    let results = target.publish_batch(&requests).await;
    for (result, event) in results.into_iter().zip(events) {
        last = result.map_err(|error| unpublished(&error, event))?.sequence;
    }
    Ok(last)
}

/// Returns the failure of an event that was not copied, with the next step.
fn unpublished(error: &EventError, event: &Event) -> Failure {
    if matches!(error, EventError::Conflict { field, .. } if field == "expected_sequence") {
        return Failure::Other(format!(
            "event '{}' was not copied, because another program writes to the target ({error}). Stop that writer and \
             empty the target, or copy to another stream: the target is no longer the beginning of the source",
            event.id
        ));
    }
    match Failure::publish(error, vec![event.id.clone()]) {
        Failure::Unknown { ids, reason, .. } => {
            Failure::Unknown { ids, reason, retry: "Run the same copy again to continue" }
        }
        other => other,
    }
}
