//! The end of a round: what the bus says is stored.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use a3s_event::dlq::{DeadLetterFilter, StoredDeadLetter};
use a3s_event::{EventProvider, FailureClass, HistoryQuery, ProviderDlqHandler, Result};
use serde::{Deserialize, Serialize};

use super::load::Load;

const FILE: &str = "finale.json";

/// What the bus reports at the end of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finale {
    /// The stored events, oldest first.
    pub stored: Vec<Stored>,
    /// The durable consumers.
    pub consumers: Vec<Position>,
    /// The dead letters.
    pub letters: Vec<Letter>,
}

/// A stored event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stored {
    /// Id of the event.
    pub id: String,
    /// Key of the event.
    pub key: String,
    /// Its sequence.
    pub sequence: u64,
    /// Time of storage in Unix milliseconds, by the clock of the provider.
    pub stored_at: u64,
}

impl Stored {
    /// Creates a stored event.
    pub fn new(id: impl Into<String>, key: impl Into<String>, sequence: u64, stored_at: u64) -> Self {
        Self { id: id.into(), key: key.into(), sequence, stored_at }
    }
}

/// The position of a durable consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Position {
    /// Name of the consumer.
    pub consumer: String,
    /// Number of events that were never delivered.
    pub lag: u64,
    /// Number of unsettled events.
    pub pending: u64,
}

impl Position {
    /// Creates a position.
    pub fn new(consumer: impl Into<String>, lag: u64, pending: u64) -> Self {
        Self { consumer: consumer.into(), lag, pending }
    }
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Letter {
    /// Name of the consumer.
    pub consumer: String,
    /// Sequence of the event.
    pub sequence: u64,
    /// Id of the event.
    pub id: String,
    /// Number of attempts.
    pub attempts: u64,
    /// True if the event used up its attempts.
    pub exhausted: bool,
    /// Time of its storage in Unix milliseconds, by the clock of the provider.
    pub written_at: u64,
}

impl Letter {
    /// Creates the letter of an event that a handler gave up at its first attempt.
    pub fn new(consumer: impl Into<String>, sequence: u64, id: impl Into<String>, written_at: u64) -> Self {
        let (consumer, id) = (consumer.into(), id.into());
        Self { consumer, sequence, id, attempts: 1, exhausted: false, written_at }
    }
}

impl Finale {
    /// Reads history, consumers and dead letters. Requires the capabilities `history_query` and `consumer_info`.
    ///
    /// # Errors
    ///
    /// The error of the provider.
    pub async fn read(provider: &dyn EventProvider, letters: Arc<dyn EventProvider>) -> Result<Self> {
        let mut stored = Vec::new();
        for record in provider.query(&HistoryQuery::new(usize::MAX)).await?.into_iter().rev() {
            let key = Load::key(&record.event);
            stored.push(Stored::new(&record.event.id, key, record.sequence, record.stored_at));
        }
        let handler = ProviderDlqHandler::new(Arc::clone(&letters))?;
        let found = handler.find(&DeadLetterFilter::default(), usize::MAX).await?;
        // The handler passes over further copies of a letter, so count them in its stream.
        let copies = letters.query(&HistoryQuery::new(usize::MAX)).await?;
        let id_at: HashMap<u64, &str> =
            copies.iter().map(|copy| (copy.sequence, copy.event.id.as_str())).collect();
        let letters = found.into_iter().flat_map(|StoredDeadLetter { id, letter, .. }| {
            let of_it = copies.iter().filter(|copy| id_at.get(&id) == Some(&copy.event.id.as_str()));
            let written: Vec<u64> = of_it.map(|copy| copy.stored_at).collect();
            written.into_iter().map(move |written_at| Letter {
                consumer: letter.subscriber.clone().or(letter.consumer.clone()).unwrap_or_default(),
                sequence: letter.event.sequence,
                id: letter.event.event.id.clone(),
                attempts: letter.attempts.unwrap_or_default(),
                exhausted: letter.class == FailureClass::Exhausted,
                written_at,
            })
        });
        let letters = letters.collect();
        Ok(Self { stored, consumers: positions(provider).await?, letters })
    }

    /// Writes it beside the journals.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        std::fs::write(folder.join(FILE), serde_json::to_vec(self)?)
    }

    /// Reads what [`save`](Finale::save) wrote.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn load(folder: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(folder.join(FILE))?)?)
    }
}

/// Returns the positions of the durable consumers.
pub(super) async fn positions(provider: &dyn EventProvider) -> Result<Vec<Position>> {
    let consumers = provider.consumers().await?.into_iter().filter(|consumer| consumer.durable);
    Ok(consumers.map(|consumer| Position::new(consumer.name, consumer.lag, consumer.pending)).collect())
}
