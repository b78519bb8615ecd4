//! Reopens a subscription that has ended, if that loses no event and handles none again silently.

use std::sync::Arc;

use super::Command;
use super::fetch::Fetcher;
use super::health::Part;
use super::queue::Source;
use crate::bus::subscription::BusSubscription;
use crate::error::{ErrorKind, EventError, Result};
use crate::provider::{ConsumerPosition, Subscription, SubscriptionEnd};
use crate::text::shorten;
use crate::types::{DeliverPolicy, SubscribeOptions};

/// Start position of the new consumer.
#[derive(Debug, Clone, Copy)]
enum Begin {
    /// The consumer still exists and knows its position.
    AsItIs,
    /// The old consumer is gone, and everything below this sequence is settled.
    At(u64),
    /// The stream was replaced by another one, of which nothing was handled.
    AtFirst,
    /// The old consumer is gone and has delivered nothing.
    AsFirst,
}

/// Why a consumer that is gone is not recreated.
const DELETED_OR_LOST: &str =
    "was deleted or lost; it is not recreated, because it would process the stream again";

impl Fetcher {
    /// Continues after the end of the subscription. Returns an error if the consumer must not be recreated.
    pub(super) async fn go_on_behind_end(&mut self, why: &str) -> Result<()> {
        let end = self.subscription.end();
        let (subscriber, consumer) = (&self.filter.subscriber_id, self.name());
        tracing::warn!(subscriber, consumer, why, ?end, "subscription ended");
        if self.filter.durable {
            self.go_on_with_durable(end).await
        } else {
            self.go_on_with_ephemeral(end).await
        }
    }

    /// Continues after errors that do not say that the subscription has ended.
    pub(super) async fn go_on_behind_errors(&mut self, why: &str) -> Result<()> {
        if !self.filter.durable {
            return self.go_on_behind_end(why).await;
        }
        match self.opener.exists(self.name()).await {
            Ok(Some(true)) => self.open_as_it_is().await,
            Ok(Some(false)) => self.go_on_behind_end(why).await,
            // Keep the subscription: an error does not mean that it has ended.
            Ok(None) | Err(_) => {
                self.pause().await;
                Ok(())
            }
        }
    }

    /// Reopens a durable consumer that still exists.
    pub(super) async fn open_as_it_is(&mut self) -> Result<()> {
        self.open_again(Begin::AsItIs).await
    }

    async fn go_on_with_durable(&mut self, end: Option<SubscriptionEnd>) -> Result<()> {
        if end == Some(SubscriptionEnd::Deleted) {
            return Err(
                self.gone("was deleted; it is not recreated, because it would process the stream again")
            );
        }
        while self.runtime.command.current() < Command::Drain {
            let begin = match (self.opener.exists(self.name()).await, end) {
                (Ok(Some(true)), _) => Begin::AsItIs,
                (Ok(_), Some(SubscriptionEnd::StreamReplaced)) => Begin::AtFirst,
                (Ok(_), Some(SubscriptionEnd::Lost)) => match self.open_position() {
                    Some(sequence) => Begin::At(sequence),
                    None => {
                        return Err(self.gone(
                            "was lost by its backend; its position is unknown, because this process has fetched nothing",
                        ));
                    }
                },
                (Ok(None), Some(SubscriptionEnd::Closed)) => Begin::AsItIs,
                (Ok(Some(false)), _) => {
                    return Err(self.gone(DELETED_OR_LOST));
                }
                (Ok(None), _) => {
                    return Err(EventError::Consumer(format!(
                        "subscription of consumer '{}' (stored as '{}') ended, and the provider reports neither the cause nor whether the consumer exists",
                        shorten(&self.filter.subscriber_id),
                        self.name()
                    )));
                }
                (Err(error), _) if is_permanent(&error) => return Err(error),
                (Err(error), _) => {
                    let (subscriber, consumer) = (&self.filter.subscriber_id, self.name());
                    tracing::warn!(subscriber, consumer, %error, "looking up the consumer failed; retrying");
                    self.failed(&error);
                    self.pause().await;
                    continue;
                }
            };
            return self.open_again(begin).await;
        }
        Ok(())
    }

    async fn go_on_with_ephemeral(&mut self, end: Option<SubscriptionEnd>) -> Result<()> {
        let begin = match (end, self.open_position()) {
            (Some(SubscriptionEnd::StreamReplaced), _) => Begin::AtFirst,
            (_, Some(sequence)) => Begin::At(sequence),
            (_, None) => Begin::AsFirst,
        };
        self.open_again(begin).await
    }

    /// Reopens the subscription, with retries unless the error is permanent.
    async fn open_again(&mut self, begin: Begin) -> Result<()> {
        self.prepare(begin);
        // Position to which a recreated consumer must be moved before it is fetched from.
        let mut unmoved = None;
        while self.runtime.command.current() < Command::Drain {
            self.trouble += 1;
            if self.trouble > 1 {
                self.pause().await;
            }
            // Looked up anew after each pause: opening would recreate a consumer that was deleted meanwhile.
            let opened = match self.is_deleted(begin).await {
                Ok(false) => self.open_at(begin, &mut unmoved).await,
                Ok(true) => return Err(self.gone(DELETED_OR_LOST)),
                Err(error) => Err(error),
            };
            match opened {
                Ok(subscription) => {
                    self.adopt(subscription);
                    // The delays keep growing until a fetch succeeds.
                    self.runtime.health.works(Part::Fetching(self.source.index));
                    return Ok(());
                }
                Err(error) if is_permanent(&error) => return Err(error),
                Err(error) => {
                    let (subscriber, consumer) = (&self.filter.subscriber_id, self.name());
                    tracing::warn!(subscriber, consumer, %error, "opening the subscription failed; retrying");
                    self.runtime.health.failed(Part::Fetching(self.source.index), &error);
                }
            }
        }
        Ok(())
    }

    /// Returns true if a durable consumer that is to continue as it is does not exist any more.
    async fn is_deleted(&self, begin: Begin) -> Result<bool> {
        if !self.filter.durable || !matches!(begin, Begin::AsItIs) {
            return Ok(false);
        }
        Ok(self.opener.exists(self.name()).await? == Some(false))
    }

    /// Drops fetched events of the old consumer that the new one redelivers.
    fn prepare(&mut self, begin: Begin) {
        let index = self.source.index;
        match begin {
            Begin::AsItIs => {}
            Begin::At(sequence) => {
                tracing::warn!(
                    subscriber = self.filter.subscriber_id,
                    consumer = self.name(),
                    sequence,
                    "consumer lost; it is recreated at this sequence, and events may be handled again"
                );
                self.runtime.queue.forget_waiting(index);
            }
            Begin::AtFirst => {
                tracing::warn!(
                    subscriber = self.filter.subscriber_id,
                    consumer = self.name(),
                    "stream replaced by another one; continuing from its start"
                );
                // The old stream's events are not redelivered: those already fetched are still handled.
                self.runtime.queue.forget_all_refused(index);
                self.newest = 0;
                let Source { epoch, ref stream, ref letters, .. } = *self.source;
                let (stream, letters) = (Arc::clone(stream), Arc::clone(letters));
                self.source = Arc::new(Source { index, epoch: epoch + 1, stream, letters });
            }
            Begin::AsFirst => self.runtime.queue.forget_waiting(index),
        }
    }

    async fn open_at(
        &mut self,
        begin: Begin,
        unmoved: &mut Option<ConsumerPosition>,
    ) -> Result<BusSubscription> {
        let position = match begin {
            Begin::AsItIs => return self.open_existing().await,
            Begin::AsFirst => {
                let options = self.filter.options.as_ref();
                if options.is_some_and(|options| options.deliver_policy == DeliverPolicy::New) {
                    // Events published since would be skipped.
                    self.begin_by(DeliverPolicy::ByStartTime { timestamp: self.opened_at });
                }
                return self.open().await;
            }
            Begin::At(sequence) => ConsumerPosition::Sequence(sequence),
            Begin::AtFirst => ConsumerPosition::First,
        };
        if self.filter.durable && (unmoved.is_some() || self.can_be_moved(position).await?) {
            // The consumer keeps its start policy, so that opening it later causes no conflict.
            *unmoved = Some(position);
            let subscription = self.open().await?;
            self.opener.reset(&subscription.letters().consumer, position).await?;
            *unmoved = None;
            return Ok(subscription);
        }
        self.begin_by(match position {
            ConsumerPosition::Sequence(sequence) => DeliverPolicy::ByStartSequence { sequence },
            _ => DeliverPolicy::All,
        });
        self.open_existing().await
    }

    /// Returns true if the provider can move consumers. Moves the consumer if another member has already recreated it.
    async fn can_be_moved(&self, position: ConsumerPosition) -> Result<bool> {
        match self.opener.reset(self.name(), position).await {
            Ok(()) | Err(EventError::NotFound(_)) => Ok(true),
            Err(EventError::Unsupported { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens a consumer that another member may have recreated with a different start policy.
    async fn open_existing(&mut self) -> Result<BusSubscription> {
        match self.open().await {
            Err(EventError::Conflict { field, .. }) if self.filter.durable && field == "deliver_policy" => {
                self.filter.options = None;
                let subscription = self.open().await?;
                let start = subscription.settings().map(|settings| settings.deliver_policy);
                match (start, self.lowest_open()) {
                    (Some(DeliverPolicy::ByStartSequence { sequence }), Some(open)) if sequence > open => {
                        Err(EventError::Conflict {
                            resource: format!("consumer '{}'", self.name()),
                            field: "deliver_policy".to_owned(),
                            existing: format!(
                                "start sequence {sequence}, set by another member after a loss"
                            ),
                            requested: format!("start sequence {open}, which is not handled yet"),
                        })
                    }
                    _ => Ok(subscription),
                }
            }
            opened => opened,
        }
    }

    async fn open(&self) -> Result<BusSubscription> {
        let in_force = Arc::clone(&self.in_force);
        self.opener.open_incoming(&self.filter, &self.subject, self.runtime.attempts, in_force).await
    }

    /// Changes the start policy for a recreated consumer, which keeps the other settings of the old one.
    fn begin_by(&mut self, policy: DeliverPolicy) {
        let settings = self.subscription.settings().map(|settings| settings.to_options());
        let options = self.filter.options.get_or_insert_with(|| settings.unwrap_or_default());
        *options = SubscribeOptions { deliver_policy: policy, ..std::mem::take(options) };
    }

    fn adopt(&mut self, subscription: BusSubscription) {
        let Source { index, epoch, ref stream, .. } = *self.source;
        let (stream, letters) = (Arc::clone(stream), Arc::clone(subscription.letters()));
        self.source = Arc::new(Source { index, epoch, stream, letters });
        self.subscription = subscription;
        self.bound_queue();
    }

    /// Returns the sequence to continue from, or `None` if this process has fetched nothing.
    fn open_position(&self) -> Option<u64> {
        self.lowest_open().or((self.newest > 0).then(|| self.newest.saturating_add(1)))
    }

    fn lowest_open(&self) -> Option<u64> {
        self.runtime.queue.lowest_open(self.source.index, self.source.epoch)
    }

    /// Returns the name of the stored consumer.
    pub(super) fn name(&self) -> &str {
        &self.source.letters.consumer
    }

    fn gone(&self, what: &str) -> EventError {
        let subscriber = shorten(&self.filter.subscriber_id);
        EventError::NotFound(format!("consumer '{subscriber}' (stored as '{}') {what}", self.name()))
    }
}

/// Returns true if reopening can never help.
fn is_permanent(error: &EventError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Closed
            | ErrorKind::Conflict
            | ErrorKind::Config
            | ErrorKind::InvalidInput
            | ErrorKind::Unsupported
    )
}
