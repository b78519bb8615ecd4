//! What the users of other published versions write to read from NATS: their API is the same, their types are not.

use a3s_event::Event;

/// Reads what is stored in a stream, as the users of one version do.
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
                /// A stream of its own, with subjects that begin with its name.
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

                /// `next`, which acks by itself.
                pub(crate) async fn read(&self, count: usize) {
                    let mut subscription = self.worker().await;
                    for _ in 0..count {
                        subscription.next().await.unwrap().unwrap();
                    }
                    self.provider.unsubscribe("worker").await.unwrap();
                }

                /// `next_manual_ack` and `ack`.
                pub(crate) async fn read_and_ack(&self, count: usize) {
                    let mut subscription = self.worker().await;
                    for _ in 0..count {
                        subscription.next_manual_ack().await.unwrap().unwrap().ack().await.unwrap();
                    }
                    self.provider.unsubscribe("worker").await.unwrap();
                }

                /// One after the other.
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
