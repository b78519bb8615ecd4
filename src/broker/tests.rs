use super::*;
use crate::sink::{CollectorSink, FailingSink, InProcessSink};
use crate::{EventBus, MemoryProvider};
use proptest::prelude::*;
use serde_json::json;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn event() -> Event {
    Event::typed("events.orders.eu.new", "orders", "order.created", 1, "", "shop", json!({}))
        .with_metadata("region", "eu")
}

/// Adds a trigger for all events.
async fn add(broker: &Broker, name: &str, sink: Arc<impl EventSink + 'static>) {
    broker.add_trigger(Trigger::new(name, TriggerFilter::default(), sink)).await;
}

fn all(name: &str, sink: Arc<impl EventSink + 'static>, settings: DeliverySettings) -> TriggerSpec {
    Trigger::new(name, TriggerFilter::default(), sink).with_delivery(settings)
}

fn hanging_sink() -> Arc<InProcessSink> {
    Arc::new(InProcessSink::new("hanging", |_| std::future::pending()))
}

fn working_sink() -> Arc<CollectorSink> {
    Arc::new(CollectorSink::new("working"))
}

/// Creates a sink that fails this often and then works.
fn flaky_sink(failures: u64) -> Arc<InProcessSink> {
    let calls = Arc::new(AtomicU64::new(0));
    Arc::new(InProcessSink::new("flaky", move |_| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        async move { if call < failures { Err(EventError::Timeout("not yet".to_owned())) } else { Ok(()) } }
    }))
}

fn result(delivered: usize, failed: usize) -> RouteResult {
    RouteResult { matched: delivered + failed, delivered, failed }
}

#[tokio::test]
async fn an_event_goes_to_the_sinks_of_matching_triggers_only() {
    let broker = Broker::new().with_route_timeout(Duration::MAX);
    let [wanted, other] = ["wanted", "other"].map(|name| Arc::new(CollectorSink::new(name)));
    for (event_type, sink) in [("order.created", &wanted), ("order.paid", &other)] {
        let filter = TriggerFilter::by_type(event_type);
        broker.add_trigger(Trigger::new("name", filter, sink.clone())).await;
    }
    assert_eq!(broker.route(&event()).await, result(1, 0));
    assert_eq!((wanted.count().await, other.count().await), (1, 0));
    assert_eq!(Broker::default().route(&event()).await, result(0, 0));
}

#[tokio::test]
async fn triggers_are_removed_by_name_all_at_once() {
    let broker = Broker::new();
    let sink = Arc::new(CollectorSink::new("sink"));
    for name in ["a", "b", "a"] {
        add(&broker, name, sink.clone()).await;
    }
    assert_eq!(broker.trigger_count().await, 3);
    assert!(broker.remove_trigger("a").await);
    assert!(!broker.remove_trigger("a").await);
    assert_eq!(broker.trigger_count().await, 1);
    assert_eq!(broker.route(&event()).await, result(1, 0));
}

#[tokio::test]
async fn putting_a_trigger_replaces_those_of_its_name_or_changes_nothing() {
    let broker = Broker::new();
    let [old, new] = [working_sink(), working_sink()];
    add(&broker, "a", old.clone()).await;
    add(&broker, "a", old.clone()).await;
    let bad_pattern = Trigger::new("a", TriggerFilter::by_subject("a..b"), new.clone());
    let bad_filter =
        Trigger::new("a", TriggerFilter::default(), new.clone()).with_filter(EventFilter::all([]));
    let bad_setting = all("a", new.clone(), DeliverySettings::durable().concurrency(0));
    let lease = |wait| DeliverySettings::durable().ack_wait(wait);
    let no_lease = all("a", new.clone(), lease(Duration::ZERO));
    let odd_lease = all("a", new.clone(), lease(Duration::from_millis(1_500)));
    let bad_name = Trigger::new("", TriggerFilter::default(), new.clone());
    for bad in [bad_pattern.into(), bad_filter, bad_setting, no_lease, odd_lease, bad_name.into()] {
        broker.put_trigger(bad).await.unwrap_err();
    }
    assert_eq!(broker.trigger_count().await, 2);
    assert!(broker.put_trigger(Trigger::new("a", TriggerFilter::default(), new.clone())).await.unwrap());
    assert_eq!(broker.route(&event()).await, result(1, 0));
    assert_eq!((old.count().await, new.count().await), (0, 1));
}

#[tokio::test]
async fn a_trigger_with_a_pattern_that_breaks_the_grammar_matches_nothing() {
    let broker = Broker::new();
    broker.add_trigger(Trigger::new("bad", TriggerFilter::by_subject("a..b"), working_sink())).await;
    assert_eq!((broker.trigger_count().await, broker.route(&event()).await), (1, result(0, 0)));
    assert!(broker.remove_trigger("bad").await);
}

#[tokio::test]
async fn a_sink_that_fails_or_panics_is_counted_and_harms_nobody() {
    let broker = Broker::new();
    let collector = working_sink();
    add(&broker, "fails", Arc::new(FailingSink::new("failing", "on purpose"))).await;
    add(&broker, "panics", Arc::new(InProcessSink::new("panicking", |_| async { panic!("on purpose") })))
        .await;
    add(&broker, "works", collector.clone()).await;
    for _ in 0..3 {
        assert_eq!(broker.route(&event()).await, result(1, 2));
    }
    assert_eq!(collector.count().await, 3);
    assert_eq!(broker.trigger_stats("panics").unwrap().failed, 3);
    assert_eq!(broker.stats().delivered, 3);
    assert_eq!(broker.trigger_stats("absent"), None);
}

#[tokio::test(start_paused = true)]
async fn sinks_run_side_by_side() {
    let broker = Broker::new();
    for name in ["a", "b", "c"] {
        let sink = InProcessSink::new(name, |_| async {
            tokio::time::sleep(SECOND).await;
            Ok(())
        });
        add(&broker, name, Arc::new(sink)).await;
    }
    let begin = Instant::now();
    assert_eq!(broker.route(&event()).await, result(3, 0));
    assert_eq!(begin.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_hangs_holds_up_a_publisher_once_and_no_other_trigger() {
    for (broker, seconds) in [(Broker::new(), 5), (Broker::new().with_route_timeout(2 * SECOND), 2)] {
        add(&broker, "hangs", hanging_sink()).await;
        let working = working_sink();
        add(&broker, "works", working.clone()).await;
        for waited in [seconds, 0, 0] {
            let begin = Instant::now();
            assert_eq!(broker.route(&event()).await, result(1, 1));
            assert_eq!(begin.elapsed().as_secs(), waited);
        }
        assert_eq!(working.count().await, 3);
        assert_eq!(broker.trigger_stats("hangs").unwrap().pending, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivery_goes_on_behind_the_deadline_and_a_publisher_waits_again_when_it_has_ended() {
    let broker = Broker::new().with_route_timeout(SECOND);
    let sink = InProcessSink::new("slow", |_| async {
        tokio::time::sleep(3 * SECOND / 2).await;
        Ok(())
    });
    add(&broker, "slow", Arc::new(sink)).await;
    assert_eq!(broker.route(&event()).await, result(0, 1));
    broker.shutdown(10 * SECOND).await.unwrap();
    let stats = broker.trigger_stats("slow").unwrap();
    assert_eq!((stats.delivered, stats.failed, stats.pending), (1, 0, 0));
    let begin = Instant::now();
    assert_eq!(broker.route(&event()).await, result(0, 1));
    assert_eq!(begin.elapsed(), SECOND);
    let late = broker.shutdown(SECOND / 10).await.unwrap_err();
    assert!(late.to_string().contains("1 deliveries"), "{late}");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_dropped_and_counted() {
    let broker = Broker::new().with_route_timeout(SECOND);
    let settings = DeliverySettings::fire_and_forget().concurrency(2).queue(3).timeout(100 * SECOND);
    broker.put_trigger(all("hangs", hanging_sink(), settings)).await.unwrap();
    for _ in 0..9 {
        assert_eq!(broker.route(&event()).await, result(0, 1));
    }
    let stats = broker.trigger_stats("hangs").unwrap();
    assert_eq!((stats.pending, stats.dropped), (5, 4));
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_over_all_triggers_and_a_quick_one_needs_no_place() {
    let broker = Broker::new().with_route_timeout(SECOND).with_queue(5);
    let settings = || DeliverySettings::fire_and_forget().concurrency(1).timeout(100 * SECOND);
    for name in ["a", "b", "c"] {
        broker.put_trigger(all(name, hanging_sink(), settings())).await.unwrap();
    }
    let quick = working_sink();
    broker.put_trigger(all("quick", quick.clone(), settings())).await.unwrap();
    for _ in 0..10 {
        assert_eq!(broker.route(&event()).await, result(1, 3));
    }
    let stats = broker.stats();
    assert_eq!((stats.pending, stats.dropped), (3 + 5, 30 - 8));
    assert_eq!(quick.count().await, 10);
    // A place becomes free when its delivery begins: the three that ran failed, and three others run.
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(broker.stats().pending, 5);
    broker.route(&event()).await;
    assert_eq!(broker.stats().pending, 5 + 3);
}

#[tokio::test(start_paused = true)]
async fn events_that_are_given_up_at_the_hop_limit_are_bounded_too() {
    let broker = Broker::new().with_hop_limit(0).with_dead_letter_sink(hanging_sink());
    let settings = DeliverySettings::fire_and_forget().concurrency(2).queue(3);
    broker.put_trigger(all("t", working_sink(), settings)).await.unwrap();
    for _ in 0..9 {
        assert_eq!(broker.route(&event()).await, result(0, 1));
    }
    let stats = broker.stats();
    assert_eq!((stats.pending, stats.dropped), (5, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_blocks_its_thread_does_not_hold_the_route() {
    let (release, blocked) = mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let sink = InProcessSink::new("blocking", move |_| {
        let blocked = Arc::clone(&blocked);
        async move {
            let _ = blocked.lock().unwrap().recv();
            Ok(())
        }
    });
    let broker = Arc::new(Broker::new().with_route_timeout(Duration::from_millis(20)));
    add(&broker, "blocks", Arc::new(sink)).await;
    let routed = tokio::spawn(async move { broker.route(&event()).await });
    assert_eq!(routed.await.unwrap(), result(0, 1));
    drop(release);
}

#[tokio::test(start_paused = true)]
async fn triggers_change_while_a_delivery_runs() {
    let broker = Broker::new();
    add(&broker, "hangs", hanging_sink()).await;
    let begin = Instant::now();
    let change = async {
        tokio::time::sleep(SECOND).await;
        add(&broker, "late", working_sink()).await;
        assert!(broker.remove_trigger("hangs").await);
        assert_eq!(broker.route(&event()).await, result(1, 0));
        begin.elapsed().as_secs()
    };
    let sample = event();
    let (first, changed_after) = tokio::join!(broker.route(&sample), change);
    assert_eq!((first, changed_after), (result(0, 1), 1));
}

#[tokio::test]
async fn dropping_a_broker_stops_its_sinks() {
    let alive = Arc::new(());
    let sink = InProcessSink::new("hanging", {
        let alive = Arc::clone(&alive);
        move |_| {
            let alive = Arc::clone(&alive);
            async move {
                let _alive = alive;
                std::future::pending().await
            }
        }
    });
    let broker = Broker::new().with_route_timeout(Duration::from_millis(10));
    add(&broker, "hangs", Arc::new(sink)).await;
    assert_eq!(broker.route(&event()).await, result(0, 1));
    assert_eq!(Arc::strong_count(&alive), 3);
    drop(broker);
    tokio::task::yield_now().await;
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[tokio::test(start_paused = true)]
async fn ordered_deliveries_keep_the_order_of_routes_through_failures() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let calls = Arc::new(AtomicU64::new(0));
    let sink = InProcessSink::new("ordered", {
        let seen = Arc::clone(&seen);
        move |event: Event| {
            let (seen, call) = (Arc::clone(&seen), calls.fetch_add(1, Ordering::Relaxed));
            async move {
                tokio::time::sleep(SECOND / 10).await;
                if call % 3 == 0 {
                    return Err(EventError::Timeout("every third".to_owned()));
                }
                seen.lock().unwrap().push(event.payload.as_u64().unwrap());
                Ok(())
            }
        }
    });
    let broker = Broker::new().with_route_timeout(Duration::from_millis(1));
    let settings = DeliverySettings::fire_and_forget().ordered().retries(2);
    broker.put_trigger(all("ordered", Arc::new(sink), settings)).await.unwrap();
    for number in 0..20 {
        broker.route(&Event::new("events.a", "a", "", "", json!(number))).await;
    }
    broker.shutdown(1_000 * SECOND).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), (0..20).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_sink_says_when_to_try_again_and_that_no_retry_helps() {
    for (failure, attempts, seconds) in [
        (crate::sink::SinkFailure::retry("busy").retry_after(7 * SECOND), 4, 21),
        (crate::sink::SinkFailure::fatal("gone"), 1, 0),
    ] {
        let calls = Arc::new(AtomicU64::new(0));
        let sink = InProcessSink::new("sink", {
            let calls = Arc::clone(&calls);
            move |_| {
                calls.fetch_add(1, Ordering::Relaxed);
                let error = failure.clone().into_error("sink");
                async move { Err(error) }
            }
        });
        let broker = Broker::new().with_route_timeout(Duration::MAX);
        broker
            .put_trigger(all("t", Arc::new(sink), DeliverySettings::fire_and_forget().retries(3)))
            .await
            .unwrap();
        let begin = Instant::now();
        broker.route(&event()).await;
        assert_eq!((calls.load(Ordering::Relaxed), begin.elapsed().as_secs()), (attempts, seconds));
    }
}

/// Knative's table. Columns: dead-letter sink of the broker, of the trigger, failures of the subscriber, retries. Then
/// the events that the subscriber, the broker's sink and the trigger's sink get.
#[rustfmt::skip]
const KNATIVE: [(bool, bool, u64, u32, [usize; 3]); 12] = [
    // No dead-letter sink.
    (false, false, 0, 0, [1, 0, 0]),
    (false, false, 1, 0, [0, 0, 0]),
    (false, false, 2, 2, [1, 0, 0]),
    // The broker's.
    (true,  false, 0, 0, [1, 0, 0]),
    (true,  false, 3, 2, [0, 1, 0]),
    (true,  false, 3, 3, [1, 0, 0]),
    // The trigger's.
    (false, true,  0, 0, [1, 0, 0]),
    (false, true,  3, 2, [0, 0, 1]),
    (false, true,  3, 3, [1, 0, 0]),
    // Both: the trigger's alone.
    (true,  true,  0, 0, [1, 0, 0]),
    (true,  true,  3, 2, [0, 0, 1]),
    (true,  true,  3, 3, [1, 0, 0]),
];

struct Row {
    broker: Arc<Broker>,
    sinks: [Arc<CollectorSink>; 3],
}

async fn row(durable: bool, broker_has: bool, trigger_has: bool, failures: u64, retries: u32) -> Row {
    let sinks = ["subscriber", "broker", "trigger"].map(|name| Arc::new(CollectorSink::new(name)));
    let [taken, of_broker, of_trigger] = &sinks;
    let mut broker = Broker::new().with_route_timeout(Duration::MAX);
    if broker_has {
        broker = broker.with_dead_letter_sink(of_broker.clone());
    }
    let kind = if durable { DeliverySettings::durable() } else { DeliverySettings::fire_and_forget() };
    let mut settings = kind.retries(retries);
    if trigger_has {
        settings = settings.dead_letter_sink(of_trigger.clone());
    }
    let (flaky, taken) = (flaky_sink(failures), taken.clone());
    let subscriber = InProcessSink::new("subscriber", move |event: Event| {
        let (flaky, taken) = (flaky.clone(), taken.clone());
        async move {
            flaky.deliver(&event).await?;
            taken.deliver(&event).await
        }
    });
    broker.put_trigger(all("t", Arc::new(subscriber), settings)).await.unwrap();
    Row { broker: Arc::new(broker), sinks }
}

impl Row {
    async fn counts(&self) -> [usize; 3] {
        let [a, b, c] = &self.sinks;
        [a.count().await, b.count().await, c.count().await]
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_delivered_as_in_knatives_table() {
    for (broker_has, trigger_has, failures, retries, expected) in KNATIVE {
        let row = row(false, broker_has, trigger_has, failures, retries).await;
        row.broker.route(&event()).await;
        assert_eq!(row.counts().await, expected, "{broker_has} {trigger_has} {failures} {retries}");
        check_letters(&row, retries).await;
    }
}

#[tokio::test(start_paused = true)]
async fn durable_triggers_deliver_failures_as_in_knatives_table() {
    for (broker_has, trigger_has, failures, retries, expected) in KNATIVE {
        let row = row(true, broker_has, trigger_has, failures, retries).await;
        let bus = Arc::new(EventBus::new(MemoryProvider::default()));
        let mut running = row.broker.run(Arc::clone(&bus)).await.unwrap();
        bus.publish_event(&event()).await.unwrap();
        while bus.consumers().await.unwrap().iter().any(|consumer| consumer.lag + consumer.pending > 0) {
            tokio::time::sleep(SECOND).await;
        }
        running.shutdown().await;
        assert_eq!(row.counts().await, expected, "{broker_has} {trigger_has} {failures} {retries}");
        check_letters(&row, retries).await;
    }
}

/// Checks that a dead letter is the event with the failure in its metadata.
async fn check_letters(row: &Row, retries: u32) {
    for letter in row.sinks[1].events().await.iter().chain(&row.sinks[2].events().await) {
        assert_eq!(
            (letter.subject.as_str(), letter.event_type.as_str()),
            ("events.orders.eu.new", "order.created")
        );
        assert_eq!((&*letter.metadata["dlq_trigger"], &*letter.metadata["region"]), ("t", "eu"));
        assert!(letter.metadata["dlq_reason"].contains("not yet"), "{letter:?}");
        assert_eq!(letter.metadata["dlq_delivery_attempts"], (retries + 1).to_string());
    }
}

#[tokio::test]
async fn a_loop_ends_at_the_hop_limit_and_in_the_dead_letters() {
    let letters = working_sink();
    let broker = Arc::new(Broker::new().with_hop_limit(4).with_dead_letter_sink(letters.clone()));
    let passes = Arc::new(AtomicU64::new(0));
    let weak = Arc::downgrade(&broker);
    let sink = InProcessSink::new("loop", {
        let passes = Arc::clone(&passes);
        move |event: Event| {
            let broker = weak.upgrade().unwrap();
            passes.fetch_add(1, Ordering::Relaxed);
            async move {
                broker.route(&event).await;
                Ok(())
            }
        }
    });
    add(&broker, "loop", Arc::new(sink)).await;
    assert_eq!(broker.route(&event()).await, result(1, 0));
    broker.shutdown(SECOND).await.unwrap();
    assert_eq!(passes.load(Ordering::Relaxed), 4);
    let letter = &letters.events().await[0];
    assert_eq!((&*letter.metadata["dlq_reason"], letters.count().await), (HOP_LIMIT_REASON, 1));
    // An event that returns from the dead letters causes no other dead letter.
    assert_eq!(broker.route(letter).await, result(0, 1));
    broker.shutdown(SECOND).await.unwrap();
    assert_eq!(letters.count().await, 1);
}

fn part() -> impl Strategy<Value = Option<String>> {
    prop_oneof![2 => Just(None), 3 => "[abc]".prop_map(Some)]
}

fn filter() -> impl Strategy<Value = TriggerFilter> {
    let pattern = prop_oneof![
        Just(None),
        prop::sample::select(vec!["e.a", "e.*", "e.>", "e.a.b", "e.*.b", ">", "e..a"])
            .prop_map(|pattern| Some(pattern.to_owned())),
    ];
    (part(), part(), pattern, prop::option::of("[ab]")).prop_map(
        |(event_type, source, subject_pattern, key)| {
            let attributes = key.map(|key| ("k".to_owned(), key)).into_iter().collect();
            TriggerFilter { event_type, source, subject_pattern, attributes }
        },
    )
}

fn dialect() -> impl Strategy<Value = Option<EventFilter>> {
    let simple =
        (prop::sample::select(vec!["type", "source", "k"]), "[abc]", 0..3).prop_map(|(name, value, kind)| {
            match kind {
                0 => EventFilter::exact(name, value),
                1 => EventFilter::prefix(name, value),
                _ => EventFilter::suffix(name, value),
            }
        });
    let nested = simple.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..3).prop_map(EventFilter::all),
            prop::collection::vec(inner.clone(), 1..3).prop_map(EventFilter::any),
            inner.prop_map(EventFilter::not),
        ]
    });
    prop::option::of(nested)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_index_finds_what_a_loop_over_all_triggers_finds(
        triggers in prop::collection::vec((filter(), dialect(), any::<bool>()), 0..30),
        events in prop::collection::vec(("[abc]?", "[abcd]", prop::sample::select(vec!["e.a", "e.b", "e.a.b", "e", "", "e.", "x.y"]), "[abc]"), 1..10),
    ) {
        let mut index = Index::default();
        let mut naive = Vec::new();
        for (number, (filter, dialect, stays)) in triggers.into_iter().enumerate() {
            let name = number.to_string();
            let mut spec = TriggerSpec::from(Trigger::new(name.clone(), filter.clone(), working_sink()));
            spec.filter.clone_from(&dialect);
            index.insert(Arc::new(Lane::new(spec, None, Arc::new(Semaphore::new(1)))));
            if stays {
                naive.push((name, filter, dialect));
            } else {
                prop_assert_eq!(index.remove(&name).len(), 1);
            }
            prop_assert_eq!(index.len(), naive.len());
        }
        for (event_type, source, subject, key) in events {
            let event = Event::typed(subject, "", event_type, 1, "", source, json!(null)).with_metadata("k", key);
            let mut found = Vec::new();
            index.for_each_match(&event, |lane| found.push(lane.name().to_owned()));
            found.sort();
            let mut expected: Vec<String> = naive
                .iter()
                .filter(|(_, filter, dialect)| {
                    filter.matches(&event) && dialect.as_ref().is_none_or(|dialect| dialect.matches(&event))
                })
                .map(|(name, ..)| name.clone())
                .collect();
            expected.sort();
            prop_assert_eq!(found, expected);
        }
    }
}
