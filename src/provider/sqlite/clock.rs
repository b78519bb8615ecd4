//! The wall clock, because times must mean the same in every process. It may be wrong, and may be corrected.

use super::SqliteConfig;

impl SqliteConfig {
    /// Returns the time in Unix milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        self.clock.unix_millis()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::provider::sqlite::{SqliteConfig, SqliteProvider};
    use crate::provider::support::{Clock, unix_millis};
    use crate::provider::{EventProvider, HistoryQuery, Subscription};
    use crate::types::{Event, PublishOptions, SubscribeOptions};

    const HOUR_MS: i64 = 3_600_000;

    fn of_a_wrong_clock(config: SqliteConfig) -> SqliteConfig {
        SqliteConfig { clock: Clock::of_system(), ..config }
    }

    fn event() -> Event {
        Event::new("events.test", "test", "", "test", serde_json::json!(1))
    }

    async fn durable(provider: &SqliteProvider) -> Box<dyn Subscription> {
        let options = SubscribeOptions { ack_wait_secs: Some(1), ..Default::default() };
        provider.subscribe_durable_with_options("worker", "events.>", &options).await.unwrap()
    }

    /// Events that were leased, nacked or released while the clock was ahead are redelivered when they are due by a
    /// correct clock. This applies to the same process and to the next one.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_clock_that_was_ahead_strands_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for (name, reopens) in [("same", false), ("next", true)] {
            let config = of_a_wrong_clock(SqliteConfig::file(folder.path().join(name)));
            let mut provider = SqliteProvider::connect(config.clone()).await.unwrap();
            config.clock.set_error(HOUR_MS);
            for _ in 0..4 {
                provider.publish(&event()).await.unwrap();
            }
            let mut subscription = durable(&provider).await;
            let mut held = Vec::new();
            for _ in 0..4 {
                held.push(subscription.next_delivery().await.unwrap().unwrap());
            }
            let leased = held.pop();
            held.pop().unwrap().nak_after(Duration::from_secs(3_600)).await.unwrap();
            held.pop().unwrap().release().await.unwrap();
            held.pop().unwrap().nak().await.unwrap();
            drop(leased);
            config.clock.set_error(0);
            if reopens {
                drop(subscription);
                provider.close().await.unwrap();
                provider = SqliteProvider::connect(config.clone()).await.unwrap();
                subscription = durable(&provider).await;
            }
            let mut came = Vec::new();
            for _ in 0..3 {
                let next = tokio::time::timeout(Duration::from_secs(10), subscription.next_delivery());
                let delivery = next.await.expect("it comes soon").unwrap().unwrap();
                came.push((delivery.sequence(), delivery.num_delivered()));
                delivery.ack().await.unwrap();
            }
            assert_eq!(came, [(1, 2), (2, 1), (4, 2)], "{name}");
            config.clock.set_error(HOUR_MS + 1_000);
            let next = tokio::time::timeout(Duration::from_secs(10), subscription.next_delivery());
            assert_eq!(next.await.unwrap().unwrap().unwrap().sequence(), 3, "{name}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_clock_that_was_ahead_keeps_no_id() {
        let config = of_a_wrong_clock(SqliteConfig::in_memory());
        let provider = SqliteProvider::connect(config.clone()).await.unwrap();
        let publish = async |msg_id: &str| {
            let options = PublishOptions { msg_id: Some(msg_id.to_owned()), ..Default::default() };
            provider.publish_with_receipt(&event(), &options).await.unwrap().duplicate
        };
        config.clock.set_error(HOUR_MS);
        assert!(!publish("a").await);
        config.clock.set_error(0);
        assert!(!publish("b").await);
        assert!(publish("a").await, "within the window");
        config.clock.set_error(121_000);
        assert!(!publish("a").await, "behind the window");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_clock_that_was_ahead_keeps_no_event_and_falsifies_no_time() {
        // More events than one step corrects.
        const EVENTS: usize = 700;
        let config = of_a_wrong_clock(SqliteConfig::in_memory().max_age(Duration::from_secs(100)));
        let provider = SqliteProvider::connect(config.clone()).await.unwrap();
        config.clock.set_error(HOUR_MS);
        for _ in 0..EVENTS {
            provider.publish(&event()).await.unwrap();
        }
        config.clock.set_error(0);
        provider.publish(&event()).await.unwrap();
        let times = async || {
            let stored = provider.query(&HistoryQuery::new(usize::MAX)).await.unwrap();
            let times: Vec<u64> = stored.iter().rev().map(|stored| stored.stored_at).collect();
            assert!(times.is_sorted(), "storage times never fall");
            times
        };
        tokio::time::timeout(Duration::from_secs(20), async {
            while times().await.last().is_none_or(|newest| *newest > unix_millis() + 1_000) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the times are brought back although nobody does anything");
        assert_eq!(times().await.len(), EVENTS + 1);
        assert!(provider.integrity_check().await.unwrap().is_empty());
        config.clock.set_error(101_000);
        tokio::time::timeout(Duration::from_secs(20), async {
            while provider.info().await.unwrap().messages > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("what is too old goes");
    }
}
