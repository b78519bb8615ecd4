//! Positions of durable consumers: each is put on the target at the event that it would get next.

use a3s_event::provider::ConsumerPosition;
use a3s_event::{ConsumerInfo, DeliverPolicy, EventError, EventProvider, SubscribeOptions};

use super::Copied;
use super::plan::Plan;
use crate::commands::diff::is_same;
use crate::commands::show::newest_where;
use crate::commands::subscribe::eprint_warning;
use crate::failure::{Failure, Outcome};
use crate::text::count;

/// Where consumers are copied from and to.
pub(super) struct Positions<'a> {
    pub(super) source: &'a dyn EventProvider,
    pub(super) target: &'a dyn EventProvider,
    /// Filter of the copied events.
    pub(super) filter: Option<&'a str>,
    /// The plan of a dry run, which changes no consumer.
    pub(super) plan: Option<&'a Plan>,
}

/// What a consumer gets next on the target.
enum Next {
    /// The event with this sequence; 0 in a dry run, which does not publish it.
    Event(u64),
    /// What is published from now on.
    New,
}

/// Why a consumer cannot be mapped.
type Reason = String;

impl Positions<'_> {
    /// Makes the durable consumers of the source on the target, or moves on those that are there.
    pub(super) async fn copy(&self, copied: &mut Copied) -> Outcome {
        if self.source.capabilities().consumer_info.is_no() || self.target.capabilities().durable.is_no() {
            return Ok(());
        }
        let there = match self.target.capabilities().consumer_info.is_no() {
            true => Vec::new(),
            false => self.target.consumers().await?,
        };
        for consumer in self.source.consumers().await?.into_iter().filter(|consumer| consumer.durable) {
            let mapped = match there.iter().find(|there| there.name == consumer.name) {
                Some(there) => self.move_on(&consumer, there, copied.first_sequence).await?,
                None => self.create(&consumer, copied.first_sequence).await?,
            };
            match mapped {
                Ok(()) => copied.consumers.push(consumer.name),
                Err(why) => {
                    let would = if self.plan.is_some() { "would not be" } else { "is not" };
                    let warning = format!("consumer '{}' {would} mapped: {why}", consumer.name);
                    eprint_warning(&Failure::Other(warning));
                    copied.not_mapped.push((consumer.name, why));
                }
            }
        }
        Ok(())
    }

    /// Makes a consumer of the source on the target.
    async fn create(&self, here: &ConsumerInfo, first: u64) -> Outcome<Result<(), Reason>> {
        let next = match self.next_on_target(here, first).await? {
            Ok(next) => next,
            Err(why) => return Ok(Err(why)),
        };
        if self.plan.is_some() {
            return Ok(Ok(()));
        }
        let deliver_policy = match next {
            Next::Event(sequence) => DeliverPolicy::ByStartSequence { sequence },
            Next::New => DeliverPolicy::New,
        };
        let options = SubscribeOptions { deliver_policy, ..SubscribeOptions::default() };
        match self.target.subscribe_durable_with_options(&here.name, &here.filter, &options).await {
            Ok(mut subscription) => Ok(Ok(subscription.close().await?)),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// Moves a consumer that is on the target forward to where it stands in the source. It keeps the settings that its
    /// program gave it.
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
        // Both sides hold the same events, so that the number of events before a consumer says where it stands.
        let lag = there.lag + self.plan.map_or(0, |plan| plan.arriving(&here.filter));
        if here.pending == 0 && there.pending == 0 && here.lag == lag {
            return Ok(Ok(()));
        }
        if there.pending > 0 || there.members.is_some_and(|members| members > 0) {
            return Ok(Err(format!(
                "a program reads it on the target, where {} not settled: stop that program first",
                are(there.pending)
            )));
        }
        if lag < here.lag {
            return Ok(Err(format!(
                "it stands further on the target, and is moved forward only: there {} before it, here {}",
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
        if self.plan.is_some() {
            return Ok(Ok(()));
        }
        let position = match next {
            Next::Event(sequence) => ConsumerPosition::Sequence(sequence),
            Next::New => ConsumerPosition::Last,
        };
        match self.target.reset_consumer(&here.name, position).await {
            Ok(()) => Ok(Ok(())),
            Err(error @ EventError::Unsupported { .. }) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// What a consumer of the source gets next on the target. Events from sequence `first` of the source on are copied.
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
        if self.plan.is_some() && next.sequence >= first {
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

/// So many events, with a verb.
fn are(events: u64) -> String {
    format!("{} {}", count(events, "event"), if events == 1 { "is" } else { "are" })
}
