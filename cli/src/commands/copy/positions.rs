//! Copies the positions of durable consumers: each one starts on the target at its next event.

use std::collections::BTreeMap;

use a3s_event::provider::ConsumerPosition;
use a3s_event::subject::subject_matches;
use a3s_event::{ConsumerInfo, DeliverPolicy, EventError, EventProvider, StoredEvent, SubscribeOptions};

use super::Copied;
use crate::commands::diff::is_same;
use crate::commands::show::newest_where;
use crate::commands::subscribe::eprint_warning;
use crate::failure::{Failure, Outcome};
use crate::text::count;

/// The durable consumers of the target before a copy, and the number of copied events for each.
///
/// A server reports the lag of a consumer with a delay, so the lag after a copy is computed from these.
#[derive(Default)]
pub(super) struct Before {
    there: Vec<ConsumerInfo>,
    /// Number of copied events per filter.
    arriving: BTreeMap<String, u64>,
}

impl Before {
    pub(super) async fn read(target: &dyn EventProvider) -> Outcome<Self> {
        let there = durable_consumers(target).await?;
        let arriving = there.iter().map(|consumer| (consumer.filter.clone(), 0)).collect();
        Ok(Self { there, arriving })
    }

    /// Counts copied events.
    pub(super) fn count(&mut self, events: &[StoredEvent]) {
        for (filter, number) in &mut self.arriving {
            let matching = events.iter().filter(|stored| subject_matches(&stored.event.subject, filter));
            *number += matching.count() as u64;
        }
    }

    fn find(&self, name: &str) -> Option<&ConsumerInfo> {
        self.there.iter().find(|consumer| consumer.name == name)
    }

    /// Returns the lag of a consumer after the copy.
    fn lag(&self, consumer: &ConsumerInfo) -> u64 {
        consumer.lag + self.arriving.get(&consumer.filter).copied().unwrap_or_default()
    }
}

/// Lists the durable consumers of a bus; empty if it does not list them.
async fn durable_consumers(provider: &dyn EventProvider) -> Outcome<Vec<ConsumerInfo>> {
    if provider.capabilities().consumer_info.is_no() {
        return Ok(Vec::new());
    }
    Ok(provider.consumers().await?.into_iter().filter(|consumer| consumer.durable).collect())
}

/// The source and target of the consumers.
pub(super) struct Positions<'a> {
    pub(super) source: &'a dyn EventProvider,
    pub(super) target: &'a dyn EventProvider,
    /// Filter of the copied events.
    pub(super) filter: Option<&'a str>,
    pub(super) before: &'a Before,
    /// If true, no consumer is changed.
    pub(super) is_dry_run: bool,
}

/// The next event of a consumer on the target.
enum Next {
    /// The event with this sequence; 0 in a dry run, which does not publish it.
    Event(u64),
    /// The first event published from now on.
    New,
}

impl Next {
    fn position(&self) -> ConsumerPosition {
        match self {
            Self::Event(sequence) => ConsumerPosition::Sequence(*sequence),
            Self::New => ConsumerPosition::Last,
        }
    }
}

/// The reason why a consumer cannot be mapped.
type Reason = String;

impl Positions<'_> {
    /// Creates the durable consumers of the source on the target, or moves existing ones forward.
    pub(super) async fn copy(&self, copied: &mut Copied) -> Outcome {
        if self.target.capabilities().durable.is_no() {
            return Ok(());
        }
        for consumer in durable_consumers(self.source).await? {
            let mapped = match self.before.find(&consumer.name) {
                Some(there) => self.move_on(&consumer, there, copied.first_sequence).await?,
                None => self.create(&consumer, copied.first_sequence).await?,
            };
            match mapped {
                Ok(()) => copied.consumers.push(consumer.name),
                Err(why) => {
                    let would = if self.is_dry_run { "would not be" } else { "is not" };
                    let warning = format!("consumer '{}' {would} mapped: {why}", consumer.name);
                    eprint_warning(&Failure::Other(warning));
                    copied.not_mapped.push((consumer.name, why));
                }
            }
        }
        Ok(())
    }

    /// Creates a consumer of the source on the target.
    async fn create(&self, here: &ConsumerInfo, first: u64) -> Outcome<Result<(), Reason>> {
        let next = match self.next_on_target(here, first).await? {
            Ok(next) => next,
            Err(why) => return Ok(Err(why)),
        };
        if self.is_dry_run {
            return Ok(Ok(()));
        }
        // NATS moves no consumer before its start, so a consumer that starts in the middle could not be reset later.
        let can_move = !self.target.capabilities().reset_consumer.is_no();
        let deliver_policy = match next {
            _ if can_move => DeliverPolicy::All,
            Next::Event(sequence) => DeliverPolicy::ByStartSequence { sequence },
            Next::New => DeliverPolicy::New,
        };
        let options = SubscribeOptions { deliver_policy, ..SubscribeOptions::default() };
        match self.target.subscribe_durable_with_options(&here.name, &here.filter, &options).await {
            Ok(mut subscription) => subscription.close().await?,
            Err(error) => return Ok(Err(error.to_string())),
        }
        if can_move && let Err(error) = self.target.reset_consumer(&here.name, next.position()).await {
            // At its start, the consumer would receive events again that it has settled in the source.
            self.target.unsubscribe(&here.name).await?;
            return Ok(Err(error.to_string()));
        }
        Ok(Ok(()))
    }

    /// Moves a consumer of the target forward to its position in the source. It keeps the settings of its program.
    async fn move_on(
        &self,
        here: &ConsumerInfo,
        there: &ConsumerInfo,
        first: u64,
    ) -> Outcome<Result<(), Reason>> {
        if there.filter != here.filter {
            return Ok(Err(format!(
                "on the target it reads '{}' instead of '{}'",
                there.filter, here.filter
            )));
        }
        // Both sides hold the same events, so that the number of events before a consumer is its position.
        let lag = self.before.lag(there);
        if here.pending == 0 && there.pending == 0 && here.lag == lag {
            return Ok(Ok(()));
        }
        if self.is_read(there).await? {
            return Ok(Err("a program reads it on the target: stop that program first".to_owned()));
        }
        if lag < here.lag {
            return Ok(Err(format!(
                "it is further ahead on the target, and is moved forward only: there {} before it, here {}",
                are(lag),
                are(here.lag)
            )));
        }
        let next = match self.next_on_target(here, first).await? {
            Ok(next) => next,
            Err(why) => return Ok(Err(why)),
        };
        if self.target.capabilities().reset_consumer.is_no() {
            return Ok(Err(format!(
                "the target cannot move it: there {} before it, here {}",
                are(lag),
                are(here.lag)
            )));
        }
        if self.is_dry_run {
            return Ok(Ok(()));
        }
        match self.target.reset_consumer(&here.name, next.position()).await {
            Ok(()) => Ok(Ok(())),
            Err(error @ EventError::Unsupported { .. }) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns `true` if a program reads through a consumer of the target, or has done so during the copy.
    async fn is_read(&self, there: &ConsumerInfo) -> Outcome<bool> {
        let now = durable_consumers(self.target).await?.into_iter().find(|now| now.name == there.name);
        Ok(now.is_none_or(|now| {
            now.pending > 0
                || now.members.is_some_and(|members| members > 0)
                || now.last_progress != there.last_progress
        }))
    }

    /// Returns the next event of a consumer on the target. The copy begins at sequence `first` of the source.
    async fn next_on_target(&self, consumer: &ConsumerInfo, first: u64) -> Outcome<Result<Next, Reason>> {
        if consumer.pending > 0 {
            return Ok(Err(format!(
                "{} delivered and not settled: let it finish first",
                are(consumer.pending)
            )));
        }
        if self.filter.is_some() {
            return Ok(Err("its events may not all be copied with --filter".to_owned()));
        }
        if consumer.lag == 0 {
            return Ok(Ok(Next::New));
        }
        let mut left = consumer.lag;
        let search = newest_where(self.source, Some(&consumer.filter), |_| {
            left -= 1;
            left == 0
        })
        .await?;
        if let Some(told) = search.passed.told() {
            // The lag counts events that the filter matches, and an unreadable record may or may not be one of them.
            return Ok(Err(format!("of the events that it would get next, {told}")));
        }
        let Some(next) = search.found else {
            return Ok(Err("retention dropped the event that it would get next".to_owned()));
        };
        if self.is_dry_run && next.sequence >= first {
            return Ok(Ok(Next::Event(0)));
        }
        let copy =
            newest_where(self.target, Some(&consumer.filter), |stored| is_same(&stored.event, &next.event))
                .await?;
        Ok(copy
            .found
            .map(|copy| Next::Event(copy.sequence))
            .ok_or_else(|| "the event that it would get next is not on the target".to_owned()))
    }
}

/// Formats a number of events with its verb.
fn are(events: u64) -> String {
    format!("{} {}", count(events, "event"), if events == 1 { "is" } else { "are" })
}
