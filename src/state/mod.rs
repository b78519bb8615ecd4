//! Persistent state: the subscriptions of a bus, kept across restarts.

mod file;
mod lock;

use std::collections::HashMap;
use std::sync::Mutex;

pub use file::FileStateStore;

use crate::error::Result;
use crate::poison::IgnorePoison;
use crate::types::SubscriptionFilter;

/// Store of a bus's subscriptions. Both methods may block: async code calls them on a thread for blocking work.
pub trait StateStore: Send + Sync {
    /// Replaces the stored subscriptions with these, by subscriber id.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`](crate::EventError::Config) if they cannot be stored. The stored state is then complete:
    /// the previous one, or this one if only the flush against a power loss failed.
    fn save(&self, subscriptions: &HashMap<String, SubscriptionFilter>) -> Result<()>;

    /// Returns the stored subscriptions by subscriber id; empty if nothing was ever stored.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`](crate::EventError::Config) if the stored state cannot be read.
    fn load(&self) -> Result<HashMap<String, SubscriptionFilter>>;
}

/// A stored subscription that the bus set aside when it loaded its state, because it is no longer valid.
///
/// It stays in the store until the subscriber is registered again or removed.
/// [`EventBus::invalid_subscriptions`](crate::EventBus::invalid_subscriptions) lists them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct InvalidSubscription {
    /// The subscription as stored.
    pub filter: SubscriptionFilter,
    /// Reason why it is not in force.
    pub reason: String,
}

impl InvalidSubscription {
    /// Creates the record of a subscription that is not in force for this reason.
    pub fn new(filter: SubscriptionFilter, reason: impl Into<String>) -> Self {
        Self { filter, reason: reason.into() }
    }
}

/// State store in memory, for tests.
///
/// ```
/// use a3s_event::{MemoryStateStore, StateStore};
///
/// assert!(MemoryStateStore::default().load().unwrap().is_empty());
/// ```
#[derive(Debug, Default)]
pub struct MemoryStateStore {
    subscriptions: Mutex<HashMap<String, SubscriptionFilter>>,
}

impl StateStore for MemoryStateStore {
    fn save(&self, subscriptions: &HashMap<String, SubscriptionFilter>) -> Result<()> {
        let copy = subscriptions.clone();
        // One assignment is the only change, so that poison can be ignored.
        *self.subscriptions.lock().ignore_poison() = copy;
        Ok(())
    }

    fn load(&self) -> Result<HashMap<String, SubscriptionFilter>> {
        Ok(self.subscriptions.lock().ignore_poison().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_what_was_saved_last() {
        let filter = |id: &str| SubscriptionFilter {
            subscriber_id: id.to_owned(),
            subjects: vec!["events.market.>".to_owned()],
            durable: true,
            options: None,
        };
        let store = MemoryStateStore::default();
        for ids in [["a", "b"].as_slice(), &["c"]] {
            store.save(&ids.iter().map(|id| ((*id).to_owned(), filter(id))).collect()).unwrap();
        }
        assert_eq!(store.load().unwrap().into_keys().collect::<Vec<_>>(), ["c"]);
    }
}
