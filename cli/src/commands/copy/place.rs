//! Finds the place where a copy resumes: the newest events of the target, in the source.

use std::cmp::Ordering;
use std::sync::Arc;

use a3s_event::{Event, EventProvider, HistoryQuery, StoredEvent};

use crate::commands::diff::is_same;
use crate::commands::show::newest_where;
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::stored::{PAGE, Stored, Unreadable, newest};

/// Number of the target's newest events that must follow each other in the source before a copy resumes.
const TAIL: usize = 2 * PAGE;

/// Reads the newest events of the target.
pub(super) async fn tail(target: &dyn EventProvider) -> Outcome<Vec<StoredEvent>> {
    let (records, _) = newest(target, HistoryQuery::new(TAIL)).await?;
    if let Some(told) = Unreadable::of(&records).told() {
        // An unreadable record cannot be compared with the source.
        return Err(Failure::Other(format!(
            "of the target, {told}: copy into an empty stream; `streams rm` deletes this one"
        )));
    }
    let event = |stored| match stored {
        Stored::Event(stored) => Some(stored),
        Stored::Unreadable(_) => None,
    };
    Ok(records.into_iter().filter_map(event).collect())
}

/// Returns the sequence in the source after the events of the target.
pub(super) async fn first_missing(
    source: &Arc<dyn EventProvider>,
    tail: &[StoredEvent],
    filter: Option<&str>,
) -> Outcome<u64> {
    let Some(newest) = tail.first() else { return Ok(1) };
    let mut candidates = Candidates { source, filter, tail, before: u64::MAX };
    let mut is_part = false;
    while let Some(candidate) = candidates.next(&newest.event).await? {
        match candidates.fit(candidate).await? {
            Fit::Whole => return Ok(candidate + 1),
            Fit::Part => is_part = true,
            Fit::No => {}
        }
    }
    if is_part {
        return Err(too_small());
    }
    Err(Failure::Input(
        "the target holds events that are not the beginning of this copy (diff shows which): copy into an empty stream, or \
         delete this one with `streams rm` or its events with `streams purge`"
            .to_owned(),
    ))
}

/// Fails if the target no longer holds the oldest event of the source, but a later one.
pub(super) async fn refuse_without_beginning(
    source: &Arc<dyn EventProvider>,
    target: &Arc<dyn EventProvider>,
    filter: Option<&str>,
) -> Outcome {
    let (Some(here), Some(there)) = (oldest(source, filter).await?, oldest(target, None).await?) else {
        return Ok(());
    };
    if is_same(&here.event, &there.event) {
        return Ok(());
    }
    // The source may have dropped events that the target still holds, which is valid.
    match newest_where(&**source, filter, |stored| is_same(&stored.event, &there.event)).await?.found {
        Some(_) => Err(too_small()),
        None => Ok(()),
    }
}

/// Returns the error for a stream whose limits have dropped its oldest events.
pub(super) fn too_small() -> Failure {
    Failure::Other(
        "the target has dropped the oldest of the copied events, because its limits are smaller than the source: delete it \
         with `streams rm` or name another stream in its URL, and copy with max_events=0 and max_age=0 in that URL"
            .to_owned(),
    )
}

/// The fit of the end of the target at a place in the source.
enum Fit {
    /// All events that both still hold are the same.
    Whole,
    /// The source holds the events of the target, and earlier ones are missing on the target.
    Part,
    No,
}

/// Places in the source where the target may end.
struct Candidates<'a> {
    source: &'a Arc<dyn EventProvider>,
    filter: Option<&'a str>,
    /// The newest events of the target, newest first.
    tail: &'a [StoredEvent],
    before: u64,
}

impl Candidates<'_> {
    async fn next(&mut self, newest: &Event) -> Outcome<Option<u64>> {
        let before = self.before;
        let found = newest_where(&**self.source, self.filter, |stored| {
            stored.sequence < before && stored.event.id == newest.id
        })
        .await?
        .found;
        let sequence = found.map(|stored| stored.sequence);
        self.before = sequence.unwrap_or_default();
        Ok(sequence)
    }

    /// Compares the end of the target with the source up to this event. Ids alone are not enough: an event published twice
    /// has the same id twice.
    async fn fit(&self, sequence: u64) -> Outcome<Fit> {
        let mut query = HistoryQuery::new(TAIL).before_sequence(sequence + 1);
        query.filter = self.filter.map(str::to_owned);
        let before = self.source.query(&query).await?;
        let same = before.iter().zip(self.tail).all(|(a, b)| is_same(&a.event, &b.event));
        Ok(match before.len().cmp(&self.tail.len()) {
            _ if !same => Fit::No,
            Ordering::Equal => Fit::Whole,
            Ordering::Greater => Fit::Part,
            Ordering::Less if self.has_dropped().await? => Fit::Whole,
            Ordering::Less => Fit::No,
        })
    }

    async fn has_dropped(&self) -> Outcome<bool> {
        Ok(oldest(self.source, None).await?.is_some_and(|oldest| oldest.sequence > 1))
    }
}

async fn oldest(provider: &Arc<dyn EventProvider>, filter: Option<&str>) -> Outcome<Option<StoredEvent>> {
    let mut forward = Forward::new(provider, filter, 1).await?;
    loop {
        let page = forward.page().await?;
        if page.is_empty() {
            return Ok(None);
        }
        let event = page.into_iter().find_map(|stored| match stored {
            Stored::Event(stored) => Some(stored),
            Stored::Unreadable(_) => None,
        });
        if event.is_some() {
            return Ok(event);
        }
    }
}
