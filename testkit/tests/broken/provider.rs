//! A provider that breaks one promise.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::provider::validate::{validate_event, validate_publish_options};
use a3s_event::provider::{ConsumerPosition, HistoryPage, PublishReceipt, PublishRequest, UnreadableRecord};
use a3s_event::subject::{validate_consumer_name, validate_filter_under, validate_published};
use a3s_event::{
    Capabilities, ConsumerInfo, DeliverPolicy, Event, EventError, EventProvider, HistoryQuery,
    MemoryProvider, ProviderInfo, PublishOptions, Result, StoredEvent, SubscribeOptions, Subscription,
};
use async_trait::async_trait;

use crate::defect::Defect;
use crate::subscription::{FaultySubscription, Kept, UNDECODABLE};

/// The memory provider with a defect, or without one.
pub(crate) struct Faulty {
    pub(crate) inner: Arc<MemoryProvider>,
    pub(crate) defect: Option<Defect>,
    pub(crate) capabilities: Capabilities,
    state: Arc<State>,
}

/// What the defects remember.
#[derive(Default)]
pub(crate) struct State {
    published: AtomicU64,
    names: AtomicU64,
    msg_ids: Mutex<HashMap<String, u64>>,
    last_of_subject: Mutex<HashMap<String, u64>>,
    /// The filters of the durables that were ever opened.
    durables: Mutex<HashMap<String, String>>,
    /// How many subscriptions each durable has.
    pub(crate) open: Mutex<HashMap<String, usize>>,
    pub(crate) kept: Kept,
    /// How long every settlement takes, as on a server that answers it.
    pub(crate) settling_takes: Duration,
}

pub(crate) fn unsupported(option: &str) -> EventError {
    EventError::Unsupported { option: option.to_owned(), provider: "faulty".to_owned() }
}

async fn for_ever() {
    tokio::time::sleep(Duration::from_secs(1_000_000)).await;
}

impl Faulty {
    /// A page that names the records which stand for those that cannot be read, and looks further for each of them.
    async fn readable_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        let mut found = self.inner.query_page(query).await?;
        let mut rest = query.clone();
        loop {
            let (unreadable, events) = std::mem::take(&mut found.events)
                .into_iter()
                .partition(|stored| stored.event.metadata.contains_key(UNDECODABLE));
            found.events = events;
            let unreadable: Vec<StoredEvent> = unreadable;
            let named =
                unreadable.iter().map(|stored| UnreadableRecord::new(stored.sequence, "not an event"));
            found.unreadable.extend(named);
            let Some(next) = found.next.filter(|_| found.events.len() < query.limit) else {
                return Ok(found);
            };
            rest = rest.before_sequence(next);
            rest.limit = query.limit - found.events.len();
            let mut page = self.inner.query_page(&rest).await?;
            found.events.append(&mut page.events);
            (found.searched_from, found.next) = (page.searched_from.or(found.searched_from), page.next);
        }
    }

    pub(crate) fn new(
        inner: Arc<MemoryProvider>,
        defect: Option<Defect>,
        capabilities: Capabilities,
        settling_takes: Duration,
    ) -> Self {
        let state = Arc::new(State { settling_takes, ..State::default() });
        Self { inner, defect, capabilities, state }
    }

    /// A new handle to a storage.
    pub(crate) fn reopened(&self, storage: Arc<MemoryProvider>) -> Self {
        Self::new(storage, self.defect, self.capabilities, self.state.settling_takes)
    }

    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn knows(&self, name: &str) -> bool {
        self.state.durables.lock().unwrap().contains_key(name)
    }

    fn prefix(&self) -> &str {
        self.inner.subject_prefix()
    }

    /// Refuses what is declared absent, as an honest provider does.
    fn refuse(&self, absent: bool, what: &str) -> Result<()> {
        if absent && !self.has(Defect::IgnoresDeclarations) {
            return Err(unsupported(what));
        }
        Ok(())
    }

    fn spoil_event(&self, event: &mut Event) {
        if self.has(Defect::StoresBadSubjects) && validate_published(&event.subject, self.prefix()).is_err() {
            event.subject = format!("{}.kit.repaired", self.prefix());
        }
        if self.has(Defect::DropsMetadata) {
            event.metadata.clear();
        }
        if self.has(Defect::RepairsBadEvents) && validate_event(event, self.prefix(), usize::MAX).is_err() {
            let repaired = Event::new(&event.subject, &event.category, "", "", serde_json::Value::Null);
            *event = repaired;
        }
        let limit = self.capabilities.max_event_bytes.unwrap_or(usize::MAX);
        if self.has(Defect::TruncatesLargeEvents)
            && matches!(
                validate_event(event, self.prefix(), limit),
                Err(EventError::TooLarge { what: "event", .. })
            )
        {
            event.payload = serde_json::Value::Null;
        }
    }

    async fn spoil_options(&self, event: &Event, options: &mut PublishOptions) -> Result<()> {
        let Some(defect) = self.defect else { return Ok(()) };
        match defect {
            Defect::IgnoresDedup => options.msg_id = None,
            Defect::DedupsEverything if options.msg_id.is_some() => options.msg_id = Some("same".to_owned()),
            Defect::TrimsMsgIds => {
                options.msg_id = options.msg_id.take().map(|id| id.trim().to_owned());
            }
            Defect::FoldsMsgIds => options.msg_id = options.msg_id.take().map(|id| id.to_lowercase()),
            Defect::ChecksExpectedSequenceFirst => {
                let last = Some(self.inner.info().await?.messages);
                if options.expected_sequence.is_some() && options.expected_sequence != last {
                    options.msg_id = None;
                }
            }
            Defect::IgnoresExpectedSequence => options.expected_sequence = None,
            Defect::ExpectsSequencePerSubject => {
                let last = self.state.last_of_subject.lock().unwrap().get(&event.subject).copied();
                if let Some(expected) = options.expected_sequence {
                    let matches = expected == last.unwrap_or(0);
                    options.expected_sequence = if matches { None } else { Some(u64::MAX) };
                }
            }
            Defect::ForgivesBadOptions if validate_publish_options(options).is_err() => {
                *options = PublishOptions::default();
            }
            _ => {}
        }
        Ok(())
    }

    /// Blocks where the defect makes publishers wait.
    async fn before_publish(&self) -> Result<()> {
        if self.has(Defect::BlocksWithoutSubscriber) && self.inner.info().await?.consumers == 0 {
            for_ever().await;
        }
        if self.has(Defect::BlocksForSlowSubscriber)
            && self.inner.consumers().await?.iter().any(|consumer| consumer.lag > 64)
        {
            for_ever().await;
        }
        Ok(())
    }

    fn spoil_name(&self, name: &str) -> String {
        match self.defect {
            Some(Defect::OpensBadNames) if validate_consumer_name(name).is_err() => "repaired".to_owned(),
            Some(Defect::SharesAcrossNames) => "shared".to_owned(),
            Some(Defect::DeliversToEveryMember) => {
                format!("{name}-{}", self.state.names.fetch_add(1, Ordering::SeqCst))
            }
            _ => name.to_owned(),
        }
    }

    fn spoil_settings(&self, options: &mut SubscribeOptions) {
        let Some(defect) = self.defect else { return };
        match defect {
            Defect::ForgivesBadOptions => {
                let checked = a3s_event::provider::group::ConsumerConfig::new(">", options);
                if checked.is_err() {
                    *options = SubscribeOptions::default();
                }
            }
            Defect::ShortDefaultLease => options.ack_wait_secs = options.ack_wait_secs.or(Some(20)),
            Defect::LongDefaultLease => options.ack_wait_secs = options.ack_wait_secs.or(Some(60)),
            Defect::StartsWithNew if options.deliver_policy == DeliverPolicy::All => {
                options.deliver_policy = DeliverPolicy::New;
            }
            Defect::IgnoresStartPolicy => options.deliver_policy = DeliverPolicy::All,
            Defect::IgnoresStartTime | Defect::StartsByEventTimestamp => {
                if matches!(options.deliver_policy, DeliverPolicy::ByStartTime { .. }) {
                    options.deliver_policy = DeliverPolicy::All;
                }
            }
            Defect::NakHasNoDelay => options.backoff_secs.clear(),
            Defect::IgnoresAckWait => options.ack_wait_secs = Some(86_400),
            Defect::CutsLeasesShort => options.ack_wait_secs = options.ack_wait_secs.map(|_| 1),
            Defect::IgnoresMaxDeliver => options.max_deliver = None,
            Defect::IgnoresMaxAckPending => options.max_ack_pending = Some(1_000_000),
            Defect::OtherDefaults => {
                options.max_deliver = options.max_deliver.or(Some(5));
                options.max_ack_pending = options.max_ack_pending.or(Some(5_000));
            }
            _ => {}
        }
    }

    /// The filter to open instead; the subscription sorts out what arrives.
    fn spoil_filter(&self, filter: &str) -> String {
        let everything = format!("{}.>", self.prefix());
        match self.defect {
            Some(Defect::OpensBadFilters) if validate_filter_under(filter, self.prefix()).is_err() => {
                everything
            }
            Some(Defect::StarMatchesMany) => match filter.strip_suffix('*') {
                Some(literal) => format!("{literal}>"),
                None => filter.to_owned(),
            },
            Some(Defect::RestMatchesNone | Defect::LiteralMatchesBelow) => everything,
            _ => filter.to_owned(),
        }
    }

    fn wrap(
        &self,
        inner: Box<dyn Subscription>,
        durable: Option<String>,
        filter: &str,
        options: &SubscribeOptions,
    ) -> Box<dyn Subscription> {
        let state = Arc::clone(&self.state);
        let capabilities = self.capabilities;
        Box::new(FaultySubscription::new(inner, self.defect, capabilities, state, durable, filter, options))
    }

    async fn open_durable(
        &self,
        name: &str,
        filter: &str,
        options: Option<&SubscribeOptions>,
    ) -> Result<Box<dyn Subscription>> {
        self.refuse(self.capabilities.durable.is_no(), "durable")?;
        let name = self.spoil_name(name);
        let opened = self.spoil_filter(filter);
        let known = self.state.durables.lock().unwrap().insert(name.clone(), opened.clone());
        let others = self.state.open.lock().unwrap().get(&name).copied().unwrap_or(0);
        self.refuse(self.capabilities.shared_consumers.is_no() && others > 0, "shared_consumers")?;
        if self.has(Defect::ForgetsPosition) && others == 0 {
            self.inner.unsubscribe(&name).await?;
        }
        let mut settings = options.cloned().unwrap_or_default();
        self.spoil_settings(&mut settings);
        if self.has(Defect::ForgivesBadDurableOptions)
            && a3s_event::provider::group::ConsumerConfig::new(">", &settings).is_err()
        {
            settings = SubscribeOptions::default();
        }
        // A consumer that is new gets the settings of the defect, an existing one keeps those it was made with.
        let as_it_is = options.is_none() && (known.is_some() || self.defect.is_none());
        let subscription = if as_it_is && !self.has(Defect::ResetsSettingsOnOpening) {
            self.open_as_it_is(&name, &opened, known).await?
        } else {
            self.open_with(&name, &opened, known, &settings).await?
        };
        Ok(self.wrap(subscription, Some(name), filter, &settings))
    }

    async fn open_as_it_is(
        &self,
        name: &str,
        filter: &str,
        known: Option<String>,
    ) -> Result<Box<dyn Subscription>> {
        match known {
            Some(old) if self.has(Defect::KeepsOldFilterSilently) => {
                self.inner.subscribe_durable(name, &old).await
            }
            _ => self.inner.subscribe_durable(name, filter).await,
        }
    }

    async fn open_with(
        &self,
        name: &str,
        filter: &str,
        known: Option<String>,
        settings: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        let keeps = self.has(Defect::IgnoresChanges) || self.has(Defect::KeepsOldStartSilently);
        if keeps && known.is_some() {
            return self.inner.subscribe_durable(name, filter).await;
        }
        self.inner.subscribe_durable_with_options(name, filter, settings).await
    }

    /// Publishes without a look at what is declared absent.
    async fn store(&self, event: &Event, options: &PublishOptions) -> Result<PublishReceipt> {
        let (mut event, mut options) = (event.clone(), options.clone());
        self.before_publish().await?;
        self.spoil_event(&mut event);
        self.spoil_options(&event, &mut options).await?;
        let count = self.state.published.fetch_add(1, Ordering::SeqCst);
        if self.has(Defect::LosesOneIn50) && count % 50 == 49 {
            return Ok(PublishReceipt::stored(self.inner.info().await?.messages + 1));
        }
        let remembers = self.has(Defect::DedupsForEver)
            || (self.has(Defect::DuplicatesIgnoreExpectations) && options.expected_sequence.is_some());
        let remembered = options.msg_id.clone().filter(|_| remembers);
        if let Some(msg_id) = &remembered
            && let Some(sequence) = self.state.msg_ids.lock().unwrap().get(msg_id)
        {
            return Ok(PublishReceipt::duplicate(*sequence));
        }
        let mut receipt = self.inner.publish_with_receipt(&event, &options).await?;
        self.state.last_of_subject.lock().unwrap().insert(event.subject, receipt.sequence);
        self.state.msg_ids.lock().unwrap().extend(remembered.map(|id| (id, receipt.sequence)));
        if self.has(Defect::SequencesRepeat) {
            receipt.sequence /= 2;
        }
        if self.has(Defect::HidesDuplicates) {
            receipt.duplicate = false;
        }
        Ok(receipt)
    }

    async fn wait_for_more(&self, found: usize, limit: usize) {
        if self.has(Defect::HistoryWaitsForMore) && found < limit {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

#[async_trait]
impl EventProvider for Faulty {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.publish_with_options(event, &PublishOptions::default()).await
    }

    async fn publish_with_options(&self, event: &Event, options: &PublishOptions) -> Result<u64> {
        Ok(self.publish_with_receipt(event, options).await?.sequence)
    }

    async fn publish_with_receipt(&self, event: &Event, options: &PublishOptions) -> Result<PublishReceipt> {
        if !self.has(Defect::IgnoresDeclarations) {
            self.capabilities.check_publish(self.name(), options)?;
        }
        self.store(event, options).await
    }

    async fn publish_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        let mut answers = Vec::new();
        for PublishRequest { event, options, .. } in batch {
            answers.push(match self.defect {
                Some(Defect::BatchStopsAtFailure) if answers.last().is_some_and(Result::is_err) => {
                    Err(EventError::Provider("stopped".to_owned()))
                }
                Some(Defect::BatchIgnoresOptions) => {
                    self.publish_with_receipt(event, &PublishOptions::default()).await
                }
                Some(Defect::IgnoresDeclarationsInBatches) => self.store(event, options).await,
                _ => self.publish_with_receipt(event, options).await,
            });
        }
        if self.has(Defect::BatchAnswersReversed) {
            answers.reverse();
        }
        answers
    }

    async fn subscribe_durable(&self, name: &str, filter: &str) -> Result<Box<dyn Subscription>> {
        self.open_durable(name, filter, None).await
    }

    async fn subscribe_durable_with_options(
        &self,
        name: &str,
        filter: &str,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        if !self.has(Defect::IgnoresDeclarations) && !self.has(Defect::IgnoresDeclarationsOfDurables) {
            self.capabilities.check_subscribe(self.name(), options)?;
        }
        self.open_durable(name, filter, Some(options)).await
    }

    async fn subscribe(&self, filter: &str) -> Result<Box<dyn Subscription>> {
        self.subscribe_with_options(filter, &SubscribeOptions::default()).await
    }

    async fn subscribe_with_options(
        &self,
        filter: &str,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        if !self.has(Defect::IgnoresDeclarations) {
            self.capabilities.check_subscribe(self.name(), options)?;
        }
        let mut settings = options.clone();
        self.spoil_settings(&mut settings);
        let opened = self.spoil_filter(filter);
        let inner = if self.has(Defect::SharesEphemerals) {
            self.inner.subscribe_durable("shared", &opened).await?
        } else {
            self.inner.subscribe_with_options(&opened, &settings).await?
        };
        Ok(self.wrap(inner, None, filter, options))
    }

    async fn history(&self, filter: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        let everything = format!("{}.>", self.prefix());
        let mut filter = filter;
        let mut limit = limit;
        match self.defect {
            Some(Defect::HistoryOneTooFew) => limit = limit.saturating_sub(1),
            Some(Defect::HistoryZeroIsNoLimit) if limit == 0 => limit = usize::MAX,
            Some(Defect::HistoryCapped) => limit = limit.min(100),
            Some(Defect::HistoryNeedsFilter) if filter.is_none() => return Ok(Vec::new()),
            Some(Defect::OpensBadFilters) => {
                filter = filter.map(|filter| {
                    let bad = validate_filter_under(filter, self.prefix()).is_err();
                    if bad { everything.as_str() } else { filter }
                });
            }
            _ => {}
        }
        let below = filter.and_then(|filter| filter.strip_suffix(".>"));
        let mut found = match (self.defect, below) {
            (Some(Defect::HistoryRestMatchesNone), Some(literal)) => {
                let mut all = self.inner.history(None, limit).await?;
                all.retain(|event| event.subject.starts_with(literal));
                all
            }
            (Some(Defect::HistoryFiltersAfterLimit), _) => {
                let mut newest = self.inner.history(None, limit).await?;
                newest.retain(|event| {
                    filter.is_none_or(|filter| a3s_event::subject::subject_matches(&event.subject, filter))
                });
                newest
            }
            _ => self.inner.history(filter, limit).await?,
        };
        if self.has(Defect::DropsWhatIsOverTheByteLimit) {
            found.retain(|event| serde_json::to_vec(event).is_ok_and(|json| json.len() <= 4_000));
        }
        self.wait_for_more(found.len(), limit).await;
        if self.has(Defect::HistoryOldestFirst) {
            found.reverse();
        }
        if self.has(Defect::HistoryLeavesConsumer) {
            let left = self.inner.subscribe(&everything).await?;
            self.state.kept.subscriptions.lock().unwrap().push(left);
        }
        if self.has(Defect::HistoryMovesConsumers) {
            let newest = self.inner.query(&HistoryQuery::new(1)).await?;
            let newest = newest.first().map_or(0, |stored| stored.sequence);
            self.state.kept.settled_up_to.store(newest, Ordering::SeqCst);
        }
        Ok(found)
    }

    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        self.refuse(self.capabilities.history_query.is_no(), "query")?;
        let mut query = query.clone();
        match self.defect {
            Some(Defect::QueryIgnoresSequences) => {
                (query.since_sequence, query.before_sequence) = (None, None);
            }
            Some(Defect::QueryBeforeIsInclusive) => {
                query.before_sequence = query.before_sequence.map(|sequence| sequence + 1);
            }
            Some(Defect::QueryIgnoresFilterWithTime) if query.since_time.is_some() => query.filter = None,
            Some(Defect::QueryUsesEventTimestamps) => {
                let (since, before) = (query.since_time.take(), query.before_time.take());
                let mut page = self.readable_page(&query).await?;
                for stored in &mut page.events {
                    stored.stored_at = stored.event.timestamp;
                }
                page.events.retain(|stored| {
                    since.is_none_or(|since| stored.stored_at >= since)
                        && before.is_none_or(|before| stored.stored_at < before)
                });
                return Ok(page);
            }
            _ => {}
        }
        let mut page = self.readable_page(&query).await?;
        match self.defect {
            Some(Defect::PagesSayNothing) => page.searched_from = None,
            Some(Defect::PagesEndEarly) => page.next = None,
            Some(Defect::PagesOverlap) => page.next = page.next.map(|next| next + 1),
            Some(Defect::PagesLeaveGaps) => {
                page.next = page.next.map(|next| next.saturating_sub(1)).filter(|next| *next > 0);
            }
            Some(Defect::HidesUnreadable) => page.unreadable.clear(),
            Some(Defect::UnreadableTakesRoom) if !page.unreadable.is_empty() => drop(page.events.pop()),
            _ => {}
        }
        Ok(page)
    }

    async fn unsubscribe(&self, name: &str) -> Result<()> {
        if self.has(Defect::UnsubscribeDoesNothing) {
            return Ok(());
        }
        let known = self.state.durables.lock().unwrap().remove(name);
        if self.has(Defect::UnsubscribeFailsForUnknown) && known.is_none() {
            return Err(EventError::NotFound(name.to_owned()));
        }
        self.inner.unsubscribe(&self.spoil_name(name)).await
    }

    async fn reset_consumer(&self, name: &str, position: ConsumerPosition) -> Result<()> {
        self.refuse(self.capabilities.reset_consumer.is_no(), "reset_consumer")?;
        let position = match (self.defect, position) {
            (Some(Defect::ResetDoesNothing), _) => return Ok(()),
            (Some(Defect::ResetIgnoresPosition), _) => ConsumerPosition::First,
            (Some(Defect::ResetCountsBehindTheSequence), ConsumerPosition::Sequence(sequence)) => {
                ConsumerPosition::Sequence(sequence + 1)
            }
            (Some(Defect::ResetOfUnknownSucceeds), _) if !self.knows(name) => return Ok(()),
            (_, position) => position,
        };
        self.inner.reset_consumer(&self.spoil_name(name), position).await
    }

    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        self.refuse(self.capabilities.consumer_info.is_no(), "consumers")?;
        let mut consumers = self.inner.consumers().await?;
        if self.has(Defect::ConsumersKnowNothing) {
            for consumer in &mut consumers {
                (consumer.lag, consumer.pending, consumer.redelivered) = (0, 0, 0);
            }
        }
        Ok(consumers)
    }

    async fn info(&self) -> Result<ProviderInfo> {
        let mut info = self.inner.info().await?;
        if self.has(Defect::InfoCountsNothing) {
            (info.messages, info.bytes) = (0, 0);
        }
        Ok(info)
    }

    async fn health(&self) -> Result<bool> {
        Ok(!self.has(Defect::NeverHealthy) && self.inner.health().await?)
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.capabilities;
        if self.has(Defect::DeclaresAnotherDedupWindow) {
            capabilities.dedup_window = Some(Duration::from_secs(3_600));
        }
        capabilities
    }

    async fn close(&self) -> Result<()> {
        if self.has(Defect::CloseDoesNothing) {
            return Ok(());
        }
        self.inner.close().await
    }
}
