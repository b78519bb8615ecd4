//! NATS JetStream, on real servers: each case has its own, which starts in milliseconds and can be restarted.

#![allow(clippy::unwrap_used, reason = "a server that cannot be set up fails the case, as it should")]

use std::path::PathBuf;
use std::sync::Arc;

use a3s_event::provider::nats::NatsProviderBuilder;
use a3s_event::{Event, EventProvider, NatsConfig, NatsProvider};
use a3s_event_testkit::servers::nats::{OLDEST, reference, unpacked};
use a3s_event_testkit::{
    Case, Clock, Fixture, Harness, NatsServer, Need, Outcome, Settings, async_trait, cases, run_case,
};
use tokio::sync::Mutex;

/// Where the cases run.
enum Nats {
    /// Each on a server of its own, which can be restarted.
    Own(PathBuf),
    /// On a server that runs already, each with a stream and a prefix of its own. It is not restarted.
    Shared(String),
}

/// The server that `A3S_EVENT_NATS_URL` names, else the reference.
fn nats() -> Nats {
    match std::env::var("A3S_EVENT_NATS_URL") {
        Ok(url) => Nats::Shared(url),
        Err(_) => Nats::Own(reference()),
    }
}

struct Running {
    server: Option<Mutex<NatsServer>>,
    builder: NatsProviderBuilder,
    provider: Arc<NatsProvider>,
}

impl Running {
    async fn reconnect(&self) -> Arc<NatsProvider> {
        Arc::new(self.builder.clone().connect().await.unwrap())
    }
}

#[async_trait]
impl Harness for Nats {
    async fn start(&self) -> Box<dyn Fixture> {
        self.start_with(&Settings::default()).await.unwrap()
    }

    async fn start_with(&self, settings: &Settings) -> Option<Box<dyn Fixture>> {
        if settings.max_bytes.is_some() {
            // The server refuses an event that is larger than its limit in bytes, where others drop all but that event.
            return None;
        }
        let (server, mut config) = match self {
            Self::Own(binary) => {
                let server = NatsServer::start_binary(binary, "").await;
                let config = NatsConfig { url: server.url(), ..NatsConfig::default() };
                (Some(Mutex::new(server)), config)
            }
            Self::Shared(url) => {
                let unique = Event::new("", "", "", "", serde_json::Value::Null).id.replace('-', "");
                let (stream_name, subject_prefix) =
                    (format!("TESTKIT_{unique}"), format!("testkit_{unique}"));
                (None, NatsConfig { url: url.clone(), stream_name, subject_prefix, ..NatsConfig::default() })
            }
        };
        if let Some(max) = settings.max_events {
            config.max_events = i64::try_from(max).unwrap();
        }
        let mut builder = NatsProvider::builder(config);
        if let Some(window) = settings.dedup_window {
            builder = builder.dedup_window(window);
        }
        let provider = Arc::new(builder.clone().connect().await.unwrap());
        Some(Box::new(Running { server, builder, provider }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.server.is_some() {
            return;
        }
        let builder = self.builder.clone();
        let deleting = async {
            let provider = builder.connect().await.unwrap();
            let client = provider.client();
            client.jetstream_context().delete_stream(&client.config().stream_name).await.unwrap();
        };
        // A runtime of its own: that of the case is busy with this.
        let deleted = std::thread::scope(|scope| {
            scope.spawn(|| tokio::runtime::Runtime::new().unwrap().block_on(deleting)).join()
        });
        assert!(deleted.is_ok() || std::thread::panicking(), "the stream of the case was not deleted");
    }
}

#[async_trait]
impl Fixture for Running {
    fn provider(&self) -> Arc<dyn EventProvider> {
        Arc::<NatsProvider>::clone(&self.provider)
    }

    async fn connect(&self) -> Arc<dyn EventProvider> {
        self.reconnect().await
    }

    async fn restart(&self) -> Option<Arc<dyn EventProvider>> {
        self.server.as_ref()?.lock().await.restart().await;
        Some(self.reconnect().await)
    }

    async fn store_undecodable(&self, subject: &str, raw: &[u8]) -> Option<u64> {
        let jetstream = self.provider.client().jetstream_context();
        let stored = jetstream.publish(subject.to_owned(), raw.to_vec().into()).await.unwrap();
        Some(stored.await.unwrap().sequence)
    }
}

mod contract {
    a3s_event_testkit::conformance_tests!(super::nats(), clock = Real);
}

/// The outcomes of all cases that were not kept, and of those that panicked.
fn not_kept(harness: &Nats) -> Vec<(&'static str, Option<Outcome>)> {
    // The cases wait more than they work.
    const THREADS: usize = 16;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let run = |case: &'static Case| {
        let outcome = std::panic::catch_unwind(|| run_case(case.name, harness, Clock::Real)).ok();
        (outcome != Some(Outcome::Kept)).then_some((case.name, outcome))
    };
    let work = || {
        let take = || cases().get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        std::iter::from_fn(take).filter_map(run).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let mut found: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        found.sort_unstable_by_key(|(name, _)| *name);
        found
    })
}

/// What JetStream has no means for, whatever the version, and what cannot be checked here.
const NOT_KEPT: [(&str, Option<Outcome>); 14] = [
    ("a_late_ack_does_not_settle_the_newer_delivery", Some(Outcome::Refused(Need::FencedSettlement))),
    ("a_late_nak_leaves_the_newer_delivery_alone", Some(Outcome::Refused(Need::FencedSettlement))),
    ("a_late_settlement_says_so", Some(Outcome::Refused(Need::FencedSettlement))),
    ("a_leased_event_that_is_dropped_counts_as_missed", Some(Outcome::Refused(Need::ReportsGaps))),
    (
        "a_limit_in_bytes_never_drops_the_newest",
        Some(Outcome::NotApplicable("the harness provides no stream with this limit")),
    ),
    (
        "a_reset_forgets_what_was_to_come_first",
        Some(Outcome::NotApplicable("the provider does not move consumers with this start policy")),
    ),
    ("an_error_is_not_the_end", Some(Outcome::Refused(Need::ReportsGaps))),
    ("an_overtaken_consumer_learns_how_many_it_missed", Some(Outcome::Refused(Need::ReportsGaps))),
    ("last_per_subject_starts_with_what_is_retained", Some(Outcome::Refused(Need::ReportsGaps))),
    ("only_what_lies_behind_the_start_is_missed", Some(Outcome::Refused(Need::ReportsGaps))),
    ("release_gives_back_without_counting", Some(Outcome::Refused(Need::ReleaseKeepsAttempt))),
    (
        "the_dedup_window_is_120_s_by_default",
        Some(Outcome::NotApplicable("the case takes more than two minutes")),
    ),
    ("what_is_due_comes_in_sequence_order", Some(Outcome::Refused(Need::ReleaseKeepsAttempt))),
    ("what_was_delivered_before_a_reset_cannot_be_settled", Some(Outcome::Refused(Need::FencedSettlement))),
];

/// The cases that restart the server, which is not done to one that others may use.
const RESTARTS: [&str; 4] = [
    "a_position_outlives_a_restart",
    "a_reset_outlives_a_restart",
    "attempts_outlive_a_restart",
    "stored_events_outlive_a_restart",
];

/// The cases that need the server's own reset, which the oldest server has not.
const RESETS: [&str; 8] = [
    "a_reset_forgets_what_was_to_come_first",
    "a_reset_goes_to_a_sequence",
    "a_reset_goes_to_a_time",
    "a_reset_of_an_unknown_consumer_is_not_found",
    "a_reset_outlives_a_restart",
    "a_reset_to_the_first_delivers_everything_again",
    "a_reset_to_the_last_skips_what_is_stored",
    "a_reset_wakes_waiting_members",
];

#[test]
fn what_is_not_kept_is_known() {
    let nats = nats();
    let mut known = NOT_KEPT.to_vec();
    if matches!(nats, Nats::Shared(_)) {
        let why = Outcome::NotApplicable("the provider keeps nothing across a restart");
        known.extend(RESTARTS.map(|name| (name, Some(why))));
        known.sort_unstable_by_key(|(name, _)| *name);
    }
    assert_eq!(not_kept(&nats), known);
}

/// It lacks the reset; the other cases are those that no server keeps.
///
/// Runs where `scripts/fetch-nats-server` could get that server, which needs Debian's package.
#[test]
fn the_oldest_server_keeps_the_same_cases() {
    match unpacked(OLDEST) {
        Some(binary) => {
            let mut known = NOT_KEPT.to_vec();
            known.retain(|(name, _)| !RESETS.contains(name));
            known.extend(RESETS.map(|name| (name, Some(Outcome::Refused(Need::ResetConsumer)))));
            known.sort_unstable_by_key(|(name, _)| *name);
            assert_eq!(not_kept(&Nats::Own(binary)), known);
        }
        None => println!("not checked: there is no nats-server {OLDEST} here"),
    }
}
