//! Registry of subscriptions and their consumers, and its persistence.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, RwLock};

use crate::error::Result;
use crate::hash::fnv1a_128;
use crate::poison::IgnorePoison;
use crate::state::{InvalidSubscription, StateStore};
use crate::subject::{MAX_NAME_LEN, validate_consumer_name};
use crate::text::shorten;
use crate::types::SubscriptionFilter;

/// The subscriptions of one bus.
#[derive(Default)]
pub(super) struct Registry {
    subscriptions: RwLock<HashMap<String, SubscriptionFilter>>,
    /// Stored subscriptions that are not in force, by the id under which they are stored. Saved with the others. Lock
    /// order: `subscriptions`, then this.
    set_aside: RwLock<HashMap<String, InvalidSubscription>>,
    /// Durable consumers that this bus opened: name to subscriber and subject.
    consumers: Mutex<HashMap<String, (String, String)>>,
    /// Subscribers whose other consumers were looked for.
    looked_at: Mutex<HashSet<String>>,
    /// Held while the store is written, so that the last save writes the last state.
    saving: Mutex<()>,
}

impl Registry {
    /// Replaces all subscriptions with the valid ones of `stored`, and sets the others aside.
    pub(super) fn replace(
        &self,
        stored: HashMap<String, SubscriptionFilter>,
        check: impl Fn(&SubscriptionFilter) -> Result<()>,
    ) {
        let mut valid = HashMap::with_capacity(stored.len());
        let mut set_aside = HashMap::new();
        for (id, filter) in stored {
            let checked = check(&filter).map_err(|error| error.to_string());
            match checked.and_then(|()| check_id(&id, &filter)) {
                Ok(()) => {
                    valid.insert(id, filter);
                }
                Err(reason) => {
                    tracing::warn!(
                        subscriber = shorten(&id),
                        reason,
                        "a stored subscription is invalid and was set aside"
                    );
                    set_aside.insert(id, InvalidSubscription::new(filter, reason));
                }
            }
        }
        let mut subscriptions = self.subscriptions.write().ignore_poison();
        *self.set_aside.write().ignore_poison() = set_aside;
        *subscriptions = valid;
    }

    /// Registers a subscription, and returns the one that it replaces.
    pub(super) fn insert(&self, filter: SubscriptionFilter) -> Option<SubscriptionFilter> {
        let mut subscriptions = self.subscriptions.write().ignore_poison();
        self.set_aside.write().ignore_poison().remove(&filter.subscriber_id);
        subscriptions.insert(filter.subscriber_id.clone(), filter)
    }

    /// Returns the subjects for which a subscriber needs durable consumers: those registered, or else those that this
    /// bus has opened for it. Returns `None` for a subscriber that this bus does not know.
    pub(super) fn durable_subjects(&self, subscriber_id: &str) -> Option<Vec<String>> {
        if let Some(filter) = self.get(subscriber_id) {
            return Some(if filter.durable { filter.subjects } else { Vec::new() });
        }
        let consumers = self.consumers.lock().ignore_poison();
        let opened = consumers.values().filter(|(id, _)| id == subscriber_id);
        let subjects: Vec<_> = opened.map(|(_, subject)| subject.clone()).collect();
        (!subjects.is_empty()).then_some(subjects)
    }

    pub(super) fn remove(&self, subscriber_id: &str) -> Option<SubscriptionFilter> {
        let mut subscriptions = self.subscriptions.write().ignore_poison();
        let set_aside = self.set_aside.write().ignore_poison().remove(subscriber_id);
        subscriptions.remove(subscriber_id).or(set_aside.map(|invalid| invalid.filter))
    }

    /// Returns the stored subscriptions that are not in force, sorted by id.
    pub(super) fn set_aside(&self) -> Vec<InvalidSubscription> {
        let set_aside = self.set_aside.read().ignore_poison();
        let mut found: Vec<_> = set_aside.iter().collect();
        found.sort_unstable_by_key(|(id, _)| *id);
        found.into_iter().map(|(_, invalid)| invalid.clone()).collect()
    }

    pub(super) fn get(&self, subscriber_id: &str) -> Option<SubscriptionFilter> {
        self.subscriptions.read().ignore_poison().get(subscriber_id).cloned()
    }

    pub(super) fn all(&self) -> Vec<SubscriptionFilter> {
        self.subscriptions.read().ignore_poison().values().cloned().collect()
    }

    /// Writes the subscriptions to the store on a blocking thread. A failure is logged, because the subscription is in
    /// force either way.
    pub(super) async fn save(self: &Arc<Self>, store: Arc<dyn StateStore>) {
        let registry = Arc::clone(self);
        match tokio::task::spawn_blocking(move || registry.save_now(&*store)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "saving the subscriptions failed"),
            Err(error) => tracing::warn!(%error, "saving the subscriptions failed"),
        }
    }

    fn save_now(&self, store: &dyn StateStore) -> Result<()> {
        let _last_save_wins = self.saving.lock().ignore_poison();
        store.save(&self.stored())
    }

    /// Returns all subscriptions to store. It includes those set aside, so that a save does not lose them.
    fn stored(&self) -> HashMap<String, SubscriptionFilter> {
        let subscriptions = self.subscriptions.read().ignore_poison();
        let set_aside = self.set_aside.read().ignore_poison();
        let set_aside = set_aside.iter().map(|(id, invalid)| (id, &invalid.filter));
        set_aside.chain(&*subscriptions).map(|(id, filter)| (id.clone(), filter.clone())).collect()
    }

    /// Returns the name under which this bus opened, or can open, the durable consumer of a subscriber and subject. If
    /// the plain name belongs to another pair, it is the distinct one.
    pub(super) fn consumer_name(&self, subscriber_id: &str, subject: &str) -> String {
        let consumers = self.consumers.lock().ignore_poison();
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
        let mut consumers = self.consumers.lock().ignore_poison();
        consumers.insert(name.to_owned(), (subscriber_id.to_owned(), subject.to_owned()));
    }

    /// Returns true at the first call for a subscriber.
    pub(super) fn is_first_look(&self, subscriber_id: &str) -> bool {
        self.looked_at.lock().ignore_poison().insert(subscriber_id.to_owned())
    }

    pub(super) fn forget_consumer(&self, name: &str) {
        self.consumers.lock().ignore_poison().remove(name);
    }
}

fn check_id(id: &str, filter: &SubscriptionFilter) -> std::result::Result<(), String> {
    if id == filter.subscriber_id {
        return Ok(());
    }
    Err(format!(
        "its subscriber id is '{}', but it is stored under another id",
        shorten(&filter.subscriber_id)
    ))
}

/// Returns true if a bus gives this name to the consumer of this subscriber and subject.
pub(super) fn is_name_of(name: &str, subscriber_id: &str, subject: &str) -> bool {
    plain_name(subscriber_id, subject).is_some_and(|plain| plain == name)
        || distinct_name(subscriber_id, subject) == name
}

/// Returns the subscriber to whose consumer of this subject a bus gives this name.
pub(super) fn subscriber_in_name(name: &str, subject: &str) -> Option<String> {
    // A name starts with the id, in which other characters than letters, digits and `_` may be dashes.
    const REPLACED: [&str; 5] = ["-", ".", ":", "/", " "];
    let heads =
        name.match_indices('-').filter_map(|(end, _)| name.get(..end)).filter(|head| !head.is_empty());
    heads
        .flat_map(|head| REPLACED.map(|replaced| head.replace('-', replaced)))
        .find(|id| is_name_of(name, id, subject))
}

/// Returns `{subscriber}-{subject with dots as dashes}`, the name of deployed consumers. Returns `None` if that
/// contains wildcards or other characters that are illegal in a consumer name.
fn plain_name(subscriber_id: &str, subject: &str) -> Option<String> {
    let name = format!("{subscriber_id}-{}", subject.replace('.', "-"));
    validate_consumer_name(&name).is_ok().then_some(name)
}

/// Returns a legal name that is unique to this subscriber and subject: readable characters, then a hash of both.
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
        let names: HashSet<String> =
            pairs.iter().map(|(id, subject)| registry.consumer_name(id, subject)).collect();
        assert_eq!(names.len(), pairs.len());
        for name in names {
            validate_consumer_name(&name).unwrap();
        }
    }

    #[test]
    fn a_name_tells_its_subscriber() {
        let registry = Registry::default();
        let long = "x".repeat(150);
        for id in ["billing", "a-b", "acme.eu", "svc:billing", "a b", "x_1", &long] {
            for subject in ["events.a", "events.orders.>", "events.*.re-try", &format!("events.{long}")] {
                let name = registry.consumer_name(id, subject);
                assert_eq!(subscriber_in_name(&name, subject).as_deref(), Some(id), "{name}");
                assert_eq!(subscriber_in_name(&name, "events.other"), None, "{name}");
            }
        }
        let mixed = registry.consumer_name("acme.eu/billing", "events.>");
        let cut = registry.consumer_name(&"x".repeat(300), "events.a");
        for name in [&mixed, &cut, "billing", "-events-a", "", "größe-events-b"] {
            assert_eq!(subscriber_in_name(name, "events.a"), None, "{name}");
        }
        assert_eq!(subscriber_in_name(&mixed, "events.>"), None);
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
