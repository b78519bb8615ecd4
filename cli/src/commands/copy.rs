//! `copy`: the events of one bus to another.
//!
//! The target itself says how far a copy came: its newest events are looked for in the source. Each event is published on
//! the condition that the one before it is the newest, so that a failure leaves no gap. A second writer ends the copy: its
//! event takes the place of one of ours, and because a page is on its way at a time, others of ours may be behind it. The
//! next copy compares more than a page, finds that and refuses to go on.

use std::cmp::Ordering;
use std::sync::Arc;

use a3s_event::{
    ConsumerInfo, DeliverPolicy, Event, EventError, EventProvider, HistoryQuery, PublishOptions,
    PublishRequest, StoredEvent, SubscribeOptions,
};
use serde::Serialize;

use super::diff::is_same;
use super::import::progress;
use super::show::newest_where;
use super::subscribe::eprint_warning;
use crate::bus::{App, warn_of_credentials};
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::stored::{PAGE, Stored, Unreadable, newest};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event copy sqlite:///var/lib/events.db nats://127.0.0.1:4222
  a3s-event diff sqlite:///var/lib/events.db nats://127.0.0.1:4222";

/// How many of the target's newest events have to be found in a row in the source to go on behind them.
const TAIL: usize = 2 * PAGE;
/// Most records that are listed because they cannot be read; all are counted.
const MAX_LISTED: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The bus to copy from: a URL, or a name of the config file
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::complete::buses))]
    from: String,
    /// The bus to copy to, which is empty or holds the beginning of a copy
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::complete::buses))]
    to: String,
    /// Only these subjects
    #[arg(long)]
    filter: Option<String>,
    /// Leave the positions of durable consumers behind
    #[arg(long)]
    no_positions: bool,
    /// Only say what would be copied
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    /// Sequence in the source from which on was copied.
    first_sequence: u64,
    events: u64,
    /// Durable consumers whose position is kept.
    consumers: Vec<String>,
    /// Those whose position cannot be mapped, and why.
    not_mapped: Vec<(String, String)>,
    /// Records that were left out because they cannot be read, and why: the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<(u64, String)>,
    #[serde(skip)]
    left_out: Unreadable,
}

impl Copied {
    /// The events of a page; what cannot be read is noted.
    fn events_of(&mut self, page: Vec<Stored>) -> Vec<StoredEvent> {
        let mut events = Vec::with_capacity(page.len());
        for stored in page {
            self.left_out.meet(&stored);
            match stored {
                Stored::Event(stored) => events.push(stored),
                Stored::Unreadable(record) if self.unreadable.len() < MAX_LISTED => {
                    self.unreadable.push((record.sequence, record.reason));
                }
                Stored::Unreadable(_) => {}
            }
        }
        events
    }

    /// Fails when something was left out.
    fn ended(&self) -> Outcome {
        let mut left_out = Vec::new();
        if let Some(told) = self.left_out.told() {
            left_out.push(format!("not copied: {told}"));
        }
        if !self.not_mapped.is_empty() {
            let names: Vec<_> = self.not_mapped.iter().map(|(name, _)| name.as_str()).collect();
            left_out.push(format!(
                "not mapped: {} {}; --no-positions copies events only",
                if names.len() == 1 { "consumer" } else { "consumers" },
                names.join(", ")
            ));
        }
        if left_out.is_empty() { Ok(()) } else { Err(Failure::Found(left_out.join("; "))) }
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    for url in [&args.from, &args.to] {
        warn_of_credentials(url, None);
    }
    let source = app.connect_to_look_at(&args.from).await?;
    let target = app.connect_to(&args.to).await?;
    let filter = args.filter.as_deref();
    let tail = tail(&*target).await?;
    let first = first_missing(&source, &tail, filter).await?;
    if !tail.is_empty() {
        refuse_without_beginning(&source, &target, filter).await?;
    }
    let forward = Forward::new(&source, filter, first).await?;
    let mut copied = Copied { first_sequence: first, ..Copied::default() };
    if args.dry_run {
        count(forward, &mut copied).await?;
        app.out.one(&copied)?;
        return copied.ended();
    }
    let last = tail.first().map(|newest| newest.sequence);
    let held = target.info().await?.messages;
    copy_events(forward, &*target, last, held, &mut copied).await?;
    if !args.no_positions {
        copy_positions(&*source, &*target, filter, &mut copied).await?;
    }
    app.out.one(&copied)?;
    copied.ended()
}

/// The newest events of the target.
async fn tail(target: &dyn EventProvider) -> Outcome<Vec<StoredEvent>> {
    let (records, _) = newest(target, HistoryQuery::new(TAIL)).await?;
    if let Some(told) = Unreadable::of(&records).told() {
        // Nobody can say of which events of the source these are the copy.
        return Err(Failure::Other(format!("of the target, {told}: copy into an empty stream")));
    }
    let event = |stored| match stored {
        Stored::Event(stored) => Some(stored),
        Stored::Unreadable(_) => None,
    };
    Ok(records.into_iter().filter_map(event).collect())
}

async fn count(mut forward: Forward, copied: &mut Copied) -> Outcome {
    loop {
        let page = forward.page().await?;
        if page.is_empty() {
            return Ok(());
        }
        copied.events += copied.events_of(page).len() as u64;
    }
}

/// The sequence in the source behind what the target has.
async fn first_missing(
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
        "the target holds events that are not the beginning of this copy (diff shows which): copy into an empty stream"
            .to_owned(),
    ))
}

/// Fails when the target does not hold the oldest event of the source any more, but a later one.
async fn refuse_without_beginning(
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
    // The source may have dropped what the target still holds, which is fine.
    match newest_where(&**source, filter, |stored| is_same(&stored.event, &there.event)).await?.found {
        Some(_) => Err(too_small()),
        None => Ok(()),
    }
}

/// A stream with limits drops its oldest events without a word.
fn too_small() -> Failure {
    Failure::Other(
        "the target has dropped the oldest of the copied events, because its limits are smaller than the source: copy into \
         a stream without limits, which max_events=0 and max_age=0 in its URL make"
            .to_owned(),
    )
}

/// How the target fits to a place in the source.
enum Fit {
    /// In all that both still hold.
    Whole,
    /// What it holds is there, without what is before that.
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

    /// How the source before and with this event fits to the end of the target. Ids alone are not enough: an event that was
    /// published twice has the same id twice.
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

/// Copies behind the sequence `last` of the target, `None` when it is empty, which holds this many events.
async fn copy_events(
    mut forward: Forward,
    target: &dyn EventProvider,
    mut last: Option<u64>,
    held: u64,
    copied: &mut Copied,
) -> Outcome {
    let bar = progress(None);
    loop {
        let page = forward.page().await?;
        if page.is_empty() {
            bar.finish_and_clear();
            return Ok(());
        }
        let page = copied.events_of(page);
        let events: Vec<_> = page.iter().map(|stored| &*stored.event).collect();
        let (first, rest) = events.split_at(usize::from(last.is_none()));
        for event in first {
            last = Some(publish_first(target, event).await?);
            copied.events += 1;
        }
        if let Some(before) = last
            && !rest.is_empty()
        {
            last = Some(publish(target, rest, before).await?);
            copied.events += rest.len() as u64;
        }
        if target.info().await?.messages < held + copied.events {
            return Err(too_small());
        }
        bar.set_position(copied.events);
        bar.set_message(format!("{} events, the last is number {}", copied.events, forward.end()));
    }
}

/// Publishes the first event of an empty stream. A stream that was emptied counts on where it was, and only the event
/// itself shows where that is.
async fn publish_first(target: &dyn EventProvider, event: &Event) -> Outcome<u64> {
    match publish(target, &[event], 0).await {
        Err(Failure::Other(_)) if target.query(&HistoryQuery::new(1)).await?.is_empty() => {
            let published = target.publish(event).await;
            published.map_err(|error| unpublished(&error, event))
        }
        published => published,
    }
}

/// Publishes events behind the sequence `last`, and returns the sequence of the last one.
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

/// Why an event could not be copied, and what to do now.
fn unpublished(error: &EventError, event: &Event) -> Failure {
    if matches!(error, EventError::Conflict { field, .. } if field == "expected_sequence") {
        return Failure::Other(format!(
            "event '{}' was not copied, because somebody else writes to the target ({error}). Stop that writer and \
             empty the target, or copy to another stream: what is there is no longer the beginning of the source",
            event.id
        ));
    }
    match Failure::publish(error, vec![event.id.clone()]) {
        Failure::Unknown { ids, reason, .. } => {
            Failure::Unknown { ids, reason, retry: "The same copy again goes on where it stopped" }
        }
        other => other,
    }
}

/// Makes the durable consumers of the source on the target, each at the event that it would get next.
async fn copy_positions(
    source: &dyn EventProvider,
    target: &dyn EventProvider,
    filter: Option<&str>,
    copied: &mut Copied,
) -> Outcome {
    if source.capabilities().consumer_info.is_no() || target.capabilities().durable.is_no() {
        return Ok(());
    }
    let there = match target.capabilities().consumer_info.is_no() {
        true => Vec::new(),
        false => target.consumers().await?,
    };
    for consumer in source.consumers().await?.into_iter().filter(|consumer| consumer.durable) {
        let mapped = match there.iter().find(|there| there.name == consumer.name) {
            Some(there) => stands_alike(&consumer, there),
            None => match position(source, target, filter, &consumer).await? {
                Ok(policy) => map(target, &consumer, policy).await?,
                Err(why) => Err(why),
            },
        };
        match mapped {
            Ok(()) => copied.consumers.push(consumer.name),
            Err(why) => {
                eprint_warning(&Failure::Other(format!("consumer '{}' is not mapped: {why}", consumer.name)));
                copied.not_mapped.push((consumer.name, why));
            }
        }
    }
    Ok(())
}

/// Makes a consumer of the source on the target.
async fn map(
    target: &dyn EventProvider,
    consumer: &ConsumerInfo,
    policy: DeliverPolicy,
) -> Outcome<Result<(), String>> {
    let options = SubscribeOptions { deliver_policy: policy, ..SubscribeOptions::default() };
    match target.subscribe_durable_with_options(&consumer.name, &consumer.filter, &options).await {
        Ok(mut subscription) => Ok(Ok(subscription.close().await?)),
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// Whether a consumer that is on both sides has as much before it on both. To open it again with a start of its own would
/// take the settings from it that its program gave it.
fn stands_alike(here: &ConsumerInfo, there: &ConsumerInfo) -> Result<(), String> {
    if there.filter != here.filter {
        return Err(format!("on the target it reads '{}' instead of '{}'", there.filter, here.filter));
    }
    if here.pending == 0 && there.pending == 0 && here.lag == there.lag {
        return Ok(());
    }
    Err(format!(
        "it is on the target already and stands elsewhere: there {} events are before it and {} not settled, here {} \
         and {}",
        there.lag, there.pending, here.lag, here.pending
    ))
}

/// Where a consumer starts on the target, or why nobody can say.
async fn position(
    source: &dyn EventProvider,
    target: &dyn EventProvider,
    filter: Option<&str>,
    consumer: &ConsumerInfo,
) -> Outcome<Result<DeliverPolicy, String>> {
    if consumer.pending > 0 {
        return Ok(Err(format!(
            "{} events are delivered and not settled: let it finish first",
            consumer.pending
        )));
    }
    if filter.is_some() {
        return Ok(Err("its events may not all be copied with --filter".to_owned()));
    }
    if consumer.lag == 0 {
        return Ok(Ok(DeliverPolicy::New));
    }
    let mut left = consumer.lag;
    let search = newest_where(source, Some(&consumer.filter), |_| {
        left -= 1;
        left == 0
    })
    .await?;
    if let Some(told) = search.passed.told() {
        // The lag counts what its filter matches, which a record that cannot be read does not say.
        return Ok(Err(format!("of what it would get next, {told}")));
    }
    let Some(first) = search.found else {
        return Ok(Err("retention dropped what it would get next".to_owned()));
    };
    let copy =
        newest_where(target, Some(&consumer.filter), |stored| is_same(&stored.event, &first.event)).await?;
    Ok(copy
        .found
        .map(|copy| DeliverPolicy::ByStartSequence { sequence: copy.sequence })
        .ok_or_else(|| "the event that it would get next is not on the target".to_owned()))
}
