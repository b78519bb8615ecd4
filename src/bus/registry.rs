//! Who subscribes to what, which consumers that makes, and where it is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::error::Result;
use crate::hash::fnv1a_128;
use crate::state::StateStore;
use crate::subject::{MAX_NAME_LEN, validate_consumer_name};
use crate::types::SubscriptionFilter;

/// The subscriptions of one bus.
#[derive(Default)]
pub(super) struct Registry {
    subscriptions: RwLock<HashMap<String, SubscriptionFilter>>,
    /// Durable consumers that this bus opened: name to subscriber and subject.
    consumers: Mutex<HashMap<String, (String, String)>>,
    /// Held while the store is written, so that the last save has the last state.
    saving: Mutex<()>,
}

impl Registry {
    /// Replaces all subscriptions.
    pub(super) fn replace(&self, subscriptions: HashMap<String, SubscriptionFilter>) {
        *self.subscriptions.write().unwrap_or_else(PoisonError::into_inner) = subscriptions;
    }

    pub(super) fn insert(&self, filter: SubscriptionFilter) {
        let mut subscriptions = self.subscriptions.write().unwrap_or_else(PoisonError::into_inner);
        subscriptions.insert(filter.subscriber_id.clone(), filter);
    }

    pub(super) fn remove(&self, subscriber_id: &str) -> Option<SubscriptionFilter> {
        self.subscriptions.write().unwrap_or_else(PoisonError::into_inner).remove(subscriber_id)
    }

    pub(super) fn get(&self, subscriber_id: &str) -> Option<SubscriptionFilter> {
        self.subscriptions.read().unwrap_or_else(PoisonError::into_inner).get(subscriber_id).cloned()
    }

    pub(super) fn all(&self) -> Vec<SubscriptionFilter> {
        self.subscriptions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Writes the subscriptions to the store, outside the async runtime. A failure is logged: the subscription itself is
    /// in force.
    pub(super) async fn save(self: &Arc<Self>, store: Arc<dyn StateStore>) {
        let registry = Arc::clone(self);
        match tokio::task::spawn_blocking(move || registry.save_now(&*store)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "subscriptions not saved"),
            Err(error) => tracing::warn!(%error, "subscriptions not saved"),
        }
    }

    fn save_now(&self, store: &dyn StateStore) -> Result<()> {
        let _last_save_wins = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let subscriptions = self.subscriptions.read().unwrap_or_else(PoisonError::into_inner).clone();
        store.save(&subscriptions)
    }

    /// The name under which this bus opened, or can open, the durable consumer of a subscriber and subject. Where the
    /// plain name stands for another pair, it is the distinct one.
    pub(super) fn consumer_name(&self, subscriber_id: &str, subject: &str) -> String {
        let consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |(id, filter): &(String, String)| id == subscriber_id && filter == subject;
        let distinct = distinct_name(subscriber_id, subject);
        match plain_name(subscriber_id, subject) {
            Some(plain)
                if !consumers.contains_key(&distinct) && consumers.get(&plain).is_none_or(is_ours) =>
            {
                plain
            }
            _ => distinct,
        }
    }

    pub(super) fn remember_consumer(&self, name: &str, subscriber_id: &str, subject: &str) {
        let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        consumers.insert(name.to_owned(), (subscriber_id.to_owned(), subject.to_owned()));
    }

    pub(super) fn forget_consumer(&self, name: &str) {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// `{subscriber}-{subject with dots as dashes}`: the name that deployed consumers have. Not for wildcards and other
/// characters that a consumer name must not have.
fn plain_name(subscriber_id: &str, subject: &str) -> Option<String> {
    let name = format!("{subscriber_id}-{}", subject.replace('.', "-"));
    validate_consumer_name(&name).is_ok().then_some(name)
}

/// A legal name that no other subscriber and subject have: readable characters, then a hash of both parts.
pub(super) fn distinct_name(subscriber_id: &str, subject: &str) -> String {
    const HASH_LEN: usize = 33;
    let readable = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let text: String = subscriber_id
        .chars()
        .chain(['-'])
        .chain(subject.chars())
        .map(readable)
        .take(MAX_NAME_LEN - HASH_LEN)
        .collect();
    format!("{text}-{:032x}", fnv1a_128(&[subscriber_id, subject]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_subjects_keep_the_deployed_name() {
        let registry = Registry::default();
        assert_eq!(registry.consumer_name("analyst", "events.market.forex"), "analyst-events-market-forex");
        assert_eq!(registry.consumer_name("a-b", "events.re-try"), "a-b-events-re-try");
    }

    #[test]
    fn wildcards_and_odd_subscribers_get_legal_distinct_names() {
        let registry = Registry::default();
        let long = "x".repeat(300);
        let pairs = [
            ("s", "events.m.*"),
            ("s", "events.m.>"),
            ("s", "events.*.m"),
            ("acme.eu", "events.a"),
            ("acme/eu", "events.a"),
            ("a b", "events.a"),
            (long.as_str(), "events.a"),
        ];
        let names: std::collections::HashSet<String> =
            pairs.iter().map(|(id, subject)| registry.consumer_name(id, subject)).collect();
        assert_eq!(names.len(), pairs.len());
        for name in names {
            validate_consumer_name(&name).unwrap();
        }
    }

    #[test]
    fn two_subjects_never_share_one_name() {
        let registry = Registry::default();
        let first = registry.consumer_name("s", "events.a.b");
        registry.remember_consumer(&first, "s", "events.a.b");
        let second = registry.consumer_name("s", "events.a-b");
        registry.remember_consumer(&second, "s", "events.a-b");
        assert_eq!(first, "s-events-a-b");
        assert_ne!(first, second);
        assert_eq!(registry.consumer_name("s", "events.a.b"), first);
        registry.forget_consumer(&first);
        assert_eq!(registry.consumer_name("s", "events.a-b"), second, "a name in use is kept");
    }
}
