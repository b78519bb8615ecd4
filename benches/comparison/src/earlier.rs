//! Code that users of the published versions write to read from NATS. The versions have the same API but different
//! types.

use a3s_event::Event;

/// Defines a module that reads the stored events of a stream through one published version.
macro_rules! reader {
    ($version:ident, $name:literal) => {
        pub(crate) mod $version {
            use super::Event;
            use $version::provider::nats::{NatsConfig, NatsProvider};
            use $version::provider::{EventProvider as _, Subscription};

            pub(crate) const NAME: &str = $name;

            pub(crate) struct Side {
                provider: NatsProvider,
                event: $version::Event,
                filter: String,
            }

            impl Side {
                /// Connects with its own stream and a subject prefix, both named after the version.
                pub(crate) async fn connect(url: &str, event: &Event) -> Self {
                    let prefix = stringify!($version);
                    let config = NatsConfig {
                        url: url.to_owned(),
                        stream_name: prefix.to_uppercase(),
                        subject_prefix: prefix.to_owned(),
                        max_events: 0,
                        request_timeout_secs: 1,
                        ..NatsConfig::default()
                    };
                    let json = serde_json::to_value(event).unwrap();
                    let mut event: $version::Event = serde_json::from_value(json).unwrap();
                    event.subject = event.subject.replace("events", prefix);
                    let provider = NatsProvider::connect(config).await.unwrap();
                    Self { provider, event, filter: format!("{prefix}.>") }
                }

                pub(crate) fn stream(&self) -> String {
                    stringify!($version).to_uppercase()
                }

                pub(crate) async fn publish(&self) {
                    self.provider.publish(&self.event).await.unwrap();
                }

                async fn worker(&self) -> Box<dyn Subscription> {
                    self.provider.subscribe_durable("worker", &self.filter).await.unwrap()
                }

                /// Reads with `next`, which acks each event.
                pub(crate) async fn read(&self, count: usize) {
                    let mut subscription = self.worker().await;
                    for _ in 0..count {
                        subscription.next().await.unwrap().unwrap();
                    }
                    self.provider.unsubscribe("worker").await.unwrap();
                }

                /// Reads with `next_manual_ack` and `ack`.
                pub(crate) async fn read_and_ack(&self, count: usize) {
                    let mut subscription = self.worker().await;
                    for _ in 0..count {
                        subscription.next_manual_ack().await.unwrap().unwrap().ack().await.unwrap();
                    }
                    self.provider.unsubscribe("worker").await.unwrap();
                }

                /// Publishes, receives and acks one event after the other.
                pub(crate) async fn publish_and_read(&self, count: usize) {
                    let mut subscription = self.worker().await;
                    for _ in 0..count {
                        self.publish().await;
                        subscription.next_manual_ack().await.unwrap().unwrap().ack().await.unwrap();
                    }
                    self.provider.unsubscribe("worker").await.unwrap();
                }
            }
        }
    };
}

reader!(published_0_2_0, "a3s-event 0.2.0");
reader!(published, "a3s-event 0.3.0");
reader!(published_0_4_0, "a3s-event 0.4.0");
