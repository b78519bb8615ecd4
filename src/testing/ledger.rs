//! The record that handlers write of what they did.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::poison::IgnorePoison;

/// A record of what handlers did, in order, for assertions. Clones share the record, which outlives every simulated
/// crash, as the account of another system does.
///
/// ```
/// use a3s_event::testing::Ledger;
///
/// let billed = Ledger::default();
/// billed.record(7);
/// billed.record(8);
/// assert_eq!((billed.count(7), billed.count(9)), (1, 0));
/// assert_eq!(billed.entries(), [7, 8]);
/// ```
pub struct Ledger<K> {
    entries: Arc<Mutex<Vec<K>>>,
}

impl<K> Ledger<K> {
    /// Adds an entry.
    pub fn record(&self, entry: K) {
        self.lock().push(entry);
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns `true` if nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<K>> {
        self.entries.lock().ignore_poison()
    }
}

impl<K: PartialEq> Ledger<K> {
    /// Returns how often this entry was recorded.
    pub fn count(&self, entry: K) -> usize {
        self.lock().iter().filter(|recorded| **recorded == entry).count()
    }
}

impl<K: Clone> Ledger<K> {
    /// Returns all entries in the order in which they were recorded.
    pub fn entries(&self) -> Vec<K> {
        self.lock().clone()
    }
}

impl<K> Clone for Ledger<K> {
    fn clone(&self) -> Self {
        Self { entries: Arc::clone(&self.entries) }
    }
}

impl<K> Default for Ledger<K> {
    fn default() -> Self {
        Self { entries: Arc::default() }
    }
}

impl<K: fmt::Debug> fmt::Debug for Ledger<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ledger").field(&*self.lock()).finish()
    }
}
