//! Finds the consumers to wake after another process wrote.

use std::collections::HashMap;
use std::sync::Arc;

use super::cells::Wakeups;
use super::error::Sql;
use super::store::{Store, signed};

/// Maximum number of events of other processes whose subjects are looked up. With more, every consumer is woken.
const MAX_EVENTS: u64 = 1_000;
/// Number of open consumers below which their rows are read one by one.
const FEW: usize = 16;

impl Store {
    /// Records that the wakeups of a committed write cover every new event, unless another process wrote as well.
    pub(super) fn note_told(&mut self) {
        if let Some(last) = self.known_last().filter(|_| !self.wakeups.foreign) {
            self.told = Some(last);
        }
    }

    /// Adds the consumers that a write of another process concerns: those that match a new event, and open consumers
    /// whose row has changed.
    pub(super) fn add_foreign(&mut self, wakeups: &mut Wakeups, durables: &[i64]) -> Sql<()> {
        let last = self.counters()?.last;
        match self.told.replace(last) {
            Some(told) if last.saturating_sub(told) <= MAX_EVENTS => {
                let mut statement = self.connection.prepare_cached(
                    "SELECT DISTINCT name FROM events JOIN subjects ON id = subject WHERE sequence > ?1",
                )?;
                let mut rows = statement.query([signed(told)])?;
                while let Some(row) = rows.next()? {
                    wakeups.subjects.push(Arc::from(row.get_ref(0)?.as_str()?));
                }
            }
            _ => wakeups.everyone = true,
        }
        if !wakeups.everyone && !durables.is_empty() {
            let versions = self.stored_versions(durables)?;
            let is_known = |id: &i64| {
                let stored = versions.get(id).copied();
                stored.is_some() && stored == self.consumers.version(*id)
            };
            wakeups.consumers.extend(durables.iter().filter(|id| !is_known(id)));
        }
        Ok(())
    }

    fn stored_versions(&self, durables: &[i64]) -> Sql<HashMap<i64, i64>> {
        let pair = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        if durables.len() >= FEW {
            let mut statement = self.connection.prepare_cached("SELECT id, version FROM consumers")?;
            return statement.query_map([], pair)?.collect();
        }
        let mut statement =
            self.connection.prepare_cached("SELECT id, version FROM consumers WHERE id = ?1")?;
        let mut found = HashMap::new();
        for id in durables {
            found.extend(statement.query_map([id], pair)?.collect::<Sql<Vec<(i64, i64)>>>()?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::provider::EventProvider;
    use crate::provider::sqlite::cells::Wakeups;
    use crate::provider::sqlite::schema::open_writer;
    use crate::provider::sqlite::store::Store;
    use crate::provider::sqlite::{SqliteConfig, SqliteProvider};
    use crate::types::Event;

    /// Returns the wakeups for what other processes wrote since the last look.
    fn look(store: &mut Store, durables: &[i64]) -> Wakeups {
        store.look_for_changes().unwrap();
        let mut wakeups = store.take_wakeups();
        assert!(std::mem::take(&mut wakeups.foreign), "somebody wrote");
        store.add_foreign(&mut wakeups, durables).unwrap();
        wakeups
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_those_are_woken_whom_it_concerns() {
        let folder = tempfile::tempdir().unwrap();
        let config = SqliteConfig::file(folder.path().join("events.db"));
        let other = SqliteProvider::connect(config.clone()).await.unwrap();
        let mut store = Store::new(open_writer(&config, true).unwrap(), None, Arc::new(config));
        let mut first = other.subscribe_durable("first", "events.a").await.unwrap();
        let _second = other.subscribe_durable("second", "events.a").await.unwrap();
        assert!(look(&mut store, &[1, 2]).everyone, "nothing is known yet");
        for id in [1, 2] {
            assert!(store.consumer(id).unwrap().is_some());
        }

        let event = |subject: &str| Event::new(subject, "", "", "", serde_json::Value::Null);
        for subject in ["events.a", "events.b", "events.a"] {
            other.publish(&event(subject)).await.unwrap();
        }
        let woken = look(&mut store, &[1, 2]);
        let mut subjects: Vec<_> = woken.subjects.iter().map(|subject| &**subject).collect();
        subjects.sort_unstable();
        assert_eq!(
            (subjects, woken.consumers, woken.everyone),
            (vec!["events.a", "events.b"], vec![], false)
        );

        drop(first.next_delivery().await.unwrap());
        let woken = look(&mut store, &[1, 2]);
        assert_eq!((woken.subjects.len(), woken.consumers, woken.everyone), (0, vec![1], false));

        other.unsubscribe("second").await.unwrap();
        assert_eq!(look(&mut store, &[2]).consumers, [2], "it is gone");
    }
}
