//! Opening consumers, and the events with which a consumer starts.

use std::ops::ControlFlow;
use std::sync::Arc;

use uuid::Uuid;

use super::Shared;
use super::consumer::{Consumer, Identity};
use super::error::PROVIDER;
use super::link::{Answer, ServerFacts};
use super::script::newest;
use super::script::open_consumer::{self, Backlog, OpenedConsumer, Wanted};
use super::{history, subjects};
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::HistoryQuery;
use crate::provider::driver::ConsumerSpec;
use crate::provider::group::ConsumerConfig;
use crate::subject::subject_matches;
use crate::types::DeliverPolicy;

/// Maximum number of times that a consumer is opened: the stream may be replaced meanwhile, or its newest events found.
const MAX_TRIES: usize = 4;

/// A consumer on the server.
struct Opened {
    identity: Identity,
    config: ConsumerConfig,
    revision: u64,
    is_new: bool,
    /// The server that has it.
    server: Arc<ServerFacts>,
}

impl Shared {
    /// Opens a consumer, and adds a member.
    pub(super) async fn open(&self, spec: ConsumerSpec) -> Result<Arc<Consumer>> {
        let ConsumerSpec { name, config, applies, .. } = spec;
        let is_durable = name.is_some();
        let operation = if is_durable { "subscribe_durable" } else { "subscribe" };
        let name = name.unwrap_or_else(|| format!("ephemeral-{}", Uuid::now_v7().simple()));
        let opened = self.open_on_server(operation, &name, &config, applies, is_durable, None).await?;
        if is_durable {
            // A failover could lose it otherwise, and its members would take that for a deletion.
            self.stream.link.confirm(operation, &opened.server).await?;
        }
        let Opened { identity, config, revision, .. } = opened;
        let is_it = |consumer: &Consumer| {
            let is_it = *consumer.identity() == identity;
            if is_it {
                consumer.set_config(config.clone(), revision);
            }
            is_it
        };
        let create = || {
            let identity =
                Identity { epoch: Arc::clone(&identity.epoch), generation: identity.generation.clone() };
            Consumer::new(&name, is_durable, identity, config.clone(), revision)
        };
        Ok(self.consumers.join(&name, is_it, create))
    }

    async fn open_on_server(
        &self,
        operation: &'static str,
        name: &str,
        config: &ConsumerConfig,
        applies: bool,
        is_durable: bool,
        mut start: Option<Backlog>,
    ) -> Result<Opened> {
        let stream = &*self.stream;
        let generation = Uuid::now_v7().simple().to_string();
        for _ in 0..MAX_TRIES {
            let epoch = stream.epoch();
            let wanted = Wanted {
                name,
                generation: &generation,
                config,
                prefix: stream.prefix(),
                applies,
                is_ephemeral: !is_durable,
                mirrors: is_durable && stream.config.mirror_groups,
                start: start.as_ref(),
            };
            let call = open_consumer::open_consumer(&stream.keys, &epoch, &wanted)?;
            let answer = stream.link.ask(&call, stream.timeout()).await;
            let Answer { value, server } = answer.map_err(|failure| failure.to_error(operation))?;
            match open_consumer::read(value, &config.filter)? {
                OpenedConsumer::Opened { generation, revision, config, is_new } => {
                    let identity = Identity { epoch, generation };
                    return Ok(Opened { identity, config, revision, is_new, server });
                }
                OpenedConsumer::Conflict(mut existing) => {
                    existing.change_to(name, config.clone())?;
                    return Err(EventError::Conflict {
                        resource: format!("consumer '{name}'"),
                        field: "deliver_policy".to_owned(),
                        existing: format!("{:?}", existing.deliver_policy),
                        requested: format!("{:?}", config.deliver_policy),
                    });
                }
                OpenedConsumer::StartsAtNewest(through) => {
                    start = Some(self.newest(operation, config, &epoch, through).await?);
                }
                OpenedConsumer::StreamReplaced => {
                    stream.replaced(operation, &epoch).await?;
                    start = None;
                }
            }
        }
        let cause = format!("consumer '{name}' could not be opened: the stream is replaced again and again");
        Err(BackendError::new(PROVIDER, operation, ErrorKind::Storage, cause).retryable().into())
    }

    /// Returns the newest events up to `through` that a consumer starts with.
    async fn newest(
        &self,
        operation: &'static str,
        config: &ConsumerConfig,
        epoch: &str,
        through: u64,
    ) -> Result<Backlog> {
        let stream = &*self.stream;
        if config.deliver_policy == DeliverPolicy::Last {
            let mut query = HistoryQuery::new(1).before_sequence(through.saturating_add(1));
            query.filter = Some(config.filter.clone());
            let page = history::page(stream, &stream.keys, stream.prefix(), &query).await?;
            let events = page.events.iter().map(|event| event.sequence);
            let newest = events.chain(page.unreadable.iter().map(|record| record.sequence)).max();
            return Ok(Backlog { sequences: newest.into_iter().collect(), cursor: through });
        }
        let mut matching = Vec::new();
        let literal = subjects::literal_of(&config.filter);
        subjects::visit(stream, &stream.keys, operation, literal, |subject| {
            if subject_matches(&subject, &config.filter) {
                matching.push(subject);
            }
            ControlFlow::Continue(())
        })
        .await?;
        let mut sequences = Vec::new();
        for part in matching.chunks(newest::MAX_SUBJECTS) {
            let call = newest::newest(&stream.keys, epoch, part, through);
            // If the stream was replaced, the consumer is opened again.
            sequences.extend(newest::read(stream.link.call(operation, &call).await?)?.unwrap_or_default());
        }
        sequences.sort_unstable();
        sequences.dedup();
        Ok(Backlog { sequences, cursor: through })
    }

    /// Makes a consumer again after the stream was lost. Each consumer reports the loss once, and continues with the first
    /// event of the new stream.
    pub(super) async fn make_again(&self, consumer: &Consumer, known: &Identity) -> Result<()> {
        const OPERATION: &str = "receive";
        if *consumer.identity() != *known {
            return Ok(());
        }
        self.stream.replaced(OPERATION, &known.epoch).await?;
        let config = consumer.config();
        let first = Backlog { sequences: Vec::new(), cursor: 0 };
        let opened = self
            .open_on_server(OPERATION, &consumer.name, &config, false, consumer.is_durable, Some(first))
            .await?;
        // Several members may have noticed it at the same time.
        match consumer.made_again(known, opened.identity, opened.revision) {
            true => Err(self.stream.lost(OPERATION)),
            false => Ok(()),
        }
    }

    /// Reads the settings of a consumer that another process has changed.
    pub(super) async fn read_settings(&self, consumer: &Consumer) -> Result<()> {
        let (config, identity) = (consumer.config(), consumer.identity());
        let opened =
            self.open_on_server("receive", &consumer.name, &config, false, consumer.is_durable, None).await?;
        if opened.is_new {
            // It was deleted meanwhile, which its members learn with their next call.
            return self.close_consumer("receive", &consumer.name, Some(&opened.identity.generation)).await;
        }
        if opened.identity == *identity {
            consumer.set_config(opened.config, opened.revision);
        }
        Ok(())
    }
}
