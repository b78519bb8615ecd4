//! The bus's subscriptions: registry, names, state.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::{
    ConsumerInfo, ErrorKind, EventBus, EventError, MemoryProvider, MemoryStateStore, StateStore,
    SubscribeOptions, SubscriptionFilter,
};

use super::{assert_idle, bus, event, next, number};

fn durable(subscriber_id: &str, subjects: &[&str]) -> SubscriptionFilter {
    SubscriptionFilter {
        subscriber_id: subscriber_id.to_owned(),
        subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
        durable: true,
        options: None,
    }
}

async fn consumer_names(bus: &EventBus) -> Vec<String> {
    bus.consumers().await.unwrap().into_iter().map(|info: ConsumerInfo| info.name).collect()
}

#[tokio::test(start_paused = true)]
async fn one_subscription_per_subject_in_order() {
    let bus = bus();
    bus.update_subscription(durable("analyst", &["events.market.forex", "events.system.>"])).await.unwrap();
    let mut subscriptions = bus.create_subscriber("analyst").await.unwrap();
    assert_eq!(subscriptions.len(), 2);
    bus.publish_event(&event("events.system.deploy", 1)).await.unwrap();
    bus.publish_event(&event("events.market.forex", 2)).await.unwrap();
    let deliveries = [next(&mut subscriptions[0]).await, next(&mut subscriptions[1]).await];
    assert_eq!(deliveries.map(|delivery| number(&delivery)), [2, 1]);
    assert!(consumer_names(&bus).await.contains(&"analyst-events-market-forex".to_owned()));
    assert_eq!(bus.metrics().snapshot().subscribe_count, 1, "one per registration, and not per open subject");
}

#[tokio::test(start_paused = true)]
async fn subjects_that_look_alike_have_consumers_of_their_own() {
    let bus = bus();
    let subjects = ["events.a.b", "events.a-b", "events.a.*", "events.a.>", "events.*.b"];
    bus.update_subscription(durable("m", &subjects)).await.unwrap();
    bus.update_subscription(durable("acme.eu", &["events.x"])).await.unwrap();
    bus.update_subscription(durable("acme-eu", &["events.x"])).await.unwrap();
    let mut subscriptions = bus.create_subscriber("m").await.unwrap();
    subscriptions.extend(bus.create_subscriber("acme.eu").await.unwrap());
    subscriptions.extend(bus.create_subscriber("acme-eu").await.unwrap());
    let names: HashSet<_> = consumer_names(&bus).await.into_iter().collect();
    assert_eq!(names.len(), 7);
    for plain in ["m-events-a-b", "acme-eu-events-x"] {
        assert!(names.contains(plain), "{names:?}");
    }
    bus.publish_event(&event("events.a.b", 1)).await.unwrap();
    bus.publish_event(&event("events.a-b", 2)).await.unwrap();
    bus.publish_event(&event("events.x", 3)).await.unwrap();
    for (subscription, expected) in subscriptions.iter_mut().zip([1, 2, 1, 1, 1, 3, 3]) {
        assert_eq!(number(&next(subscription).await), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn another_bus_that_took_the_plain_name_is_left_alone() {
    let provider = Arc::new(MemoryProvider::default());
    let (first, second) = (EventBus::from_provider(provider.clone()), EventBus::from_provider(provider));
    first.update_subscription(durable("s", &["events.a.b"])).await.unwrap();
    second.update_subscription(durable("s", &["events.a-b"])).await.unwrap();
    let mut of_first = first.create_subscriber("s").await.unwrap();
    let mut of_second = second.create_subscriber("s").await.unwrap();
    first.publish_event(&event("events.a-b", 2)).await.unwrap();
    first.publish_event(&event("events.a.b", 1)).await.unwrap();
    assert_eq!(number(&next(&mut of_first[0]).await), 1);
    assert_eq!(number(&next(&mut of_second[0]).await), 2);

    // Removing the one does not forget the other's consumer, nor does a bus that never opened its own.
    second.remove_subscription("s").await.unwrap();
    assert_eq!(consumer_names(&first).await, ["s-events-a-b"]);
    second.update_subscription(durable("s", &["events.a-b"])).await.unwrap();
    second.remove_subscription("s").await.unwrap();
    assert_eq!(consumer_names(&first).await, ["s-events-a-b"]);
}

#[tokio::test(start_paused = true)]
async fn removing_after_a_restart_finds_every_consumer() {
    let provider = Arc::new(MemoryProvider::default());
    let filter = durable("s", &["events.a.b", "events.a-b", "events.a.*"]);
    let before = EventBus::from_provider(provider.clone());
    before.update_subscription(filter.clone()).await.unwrap();
    before.create_subscriber("s").await.unwrap();
    assert_eq!(consumer_names(&before).await.len(), 3);

    let after = EventBus::from_provider(provider);
    after.update_subscription(filter).await.unwrap();
    after.remove_subscription("s").await.unwrap();
    assert!(consumer_names(&after).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_removed_subscription_is_forgotten_and_ends() {
    let bus = bus();
    bus.update_subscription(durable("s", &["events.a.>"])).await.unwrap();
    let mut subscriptions = bus.create_subscriber("s").await.unwrap();
    bus.publish_event(&event("events.a.b", 1)).await.unwrap();
    next(&mut subscriptions[0]).await.ack().await.unwrap();
    bus.remove_subscription("s").await.unwrap();
    assert!(subscriptions[0].next().await.unwrap().is_none());
    assert!(bus.get_subscription("s").await.is_none());
    assert!(matches!(bus.create_subscriber("s").await, Err(EventError::NotFound(_))));
    bus.remove_subscription("unknown").await.unwrap();
    assert_eq!(bus.info().await.unwrap().consumers, 0);

    bus.update_subscription(durable("s", &["events.a.>"])).await.unwrap();
    let mut anew = bus.create_subscriber("s").await.unwrap();
    assert_eq!(number(&next(&mut anew[0]).await), 1, "a new consumer starts from what is retained");
}

#[tokio::test(start_paused = true)]
async fn opening_again_shares_the_work_and_keeps_the_position() {
    let bus = bus();
    bus.update_subscription(durable("s", &["events.a.>"])).await.unwrap();
    let mut one = bus.create_subscriber("s").await.unwrap();
    let mut other = bus.create_subscriber("s").await.unwrap();
    for number in 1..=2 {
        bus.publish_event(&event("events.a.b", number)).await.unwrap();
    }
    let (first, second) = (next(&mut one[0]).await, next(&mut other[0]).await);
    assert_eq!((number(&first), number(&second)), (1, 2));
    first.ack().await.unwrap();
    second.ack().await.unwrap();
    drop((one, other));
    let mut again = bus.create_subscriber("s").await.unwrap();
    assert_idle(&mut again[0], Duration::from_secs(60)).await;
}

#[tokio::test]
async fn bad_subscriptions_are_refused_and_not_kept() {
    let bus = bus();
    let many = vec!["events.a"; 257];
    let with = |options| SubscriptionFilter { options: Some(options), ..durable("s", &["events.a"]) };
    for (filter, kind) in [
        (durable("", &["events.a"]), ErrorKind::InvalidInput),
        (durable("s", &[]), ErrorKind::InvalidInput),
        (durable("s", &many), ErrorKind::InvalidInput),
        (durable("s", &["events.ma*"]), ErrorKind::InvalidInput),
        (durable("s", &["events.a", "a..b"]), ErrorKind::InvalidInput),
        (with(SubscribeOptions { max_deliver: Some(0), ..Default::default() }), ErrorKind::Config),
        (with(SubscribeOptions { ack_wait_secs: Some(0), ..Default::default() }), ErrorKind::Config),
    ] {
        assert_eq!(bus.update_subscription(filter).await.unwrap_err().kind(), kind);
    }
    assert!(bus.list_subscriptions().await.is_empty());
    bus.update_subscription(durable("s", &["elsewhere.a"])).await.unwrap();
    assert_eq!(bus.create_subscriber("s").await.err().unwrap().kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn subscriptions_are_kept_in_the_state_store() {
    let store: Arc<dyn StateStore> = Arc::new(MemoryStateStore::default());
    let mut bus = bus();
    bus.update_subscription(durable("before", &["events.a"])).await.unwrap();
    bus.set_state_store(store.clone()).unwrap();
    assert!(bus.get_subscription("before").await.is_some(), "an empty store replaces nothing");
    bus.update_subscription(durable("kept", &["events.a", "events.b"])).await.unwrap();

    let restarted = EventBus::builder(MemoryProvider::default()).state_store(store.clone()).build().unwrap();
    assert_eq!(restarted.get_subscription("kept").await.unwrap().subjects, ["events.a", "events.b"]);
    assert_eq!(restarted.list_subscriptions().await.len(), 2);
    restarted.remove_subscription("kept").await.unwrap();
    assert!(!store.load().unwrap().contains_key("kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_many_saves_has_the_last_state() {
    let folder = std::env::temp_dir().join(format!("a3s-event-it-{}", std::process::id()));
    let path = folder.join("subscriptions.json");
    let store = Arc::new(a3s_event::FileStateStore::new(&path));
    let mut bus = bus();
    bus.set_state_store(store.clone()).unwrap();
    let bus = Arc::new(bus);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let bus = Arc::clone(&bus);
        tasks.spawn(
            async move { bus.update_subscription(durable(&format!("s{number}"), &["events.a"])).await },
        );
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap().unwrap();
    }
    assert_eq!(store.load().unwrap().len(), 20);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_consumers_of_a_subscriber_are_found_by_its_name() {
    let provider = Arc::new(MemoryProvider::default());
    let (first, second) = (EventBus::from_provider(provider.clone()), EventBus::from_provider(provider));
    first.update_subscription(durable("billing", &["events.orders.>", "events.bills.paid"])).await.unwrap();
    first.create_subscriber("billing").await.unwrap();
    let subscription = first.provider().subscribe_durable("billing", "events.orders.>").await.unwrap();
    drop(subscription);
    let filters_of = async |name: &str| {
        let mut filters: Vec<_> =
            second.consumers_of(name).await.unwrap().into_iter().map(|consumer| consumer.filter).collect();
        filters.sort();
        filters
    };
    assert_eq!(filters_of("billing").await, ["events.bills.paid", "events.orders.>"]);
    assert!(filters_of("bill").await.is_empty());
    assert!(filters_of("billing-events").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn consumers_of_subjects_that_are_no_longer_wanted_are_listed_and_removed() {
    let bus = bus();
    let all = ["events.a.b", "events.a-b", "events.c.>"];
    bus.update_subscription(durable("s", &all)).await.unwrap();
    bus.update_subscription(durable("s-events", &["events.x"])).await.unwrap();
    let old = bus.create_subscriber("s").await.unwrap();
    bus.create_subscriber("s-events").await.unwrap();
    assert!(bus.unused_consumers("s").await.unwrap().is_empty());

    bus.update_subscription(durable("s", &["events.a.b"])).await.unwrap();
    bus.publish_event(&event("events.c.d", 1)).await.unwrap();
    let unused = bus.unused_consumers("s").await.unwrap();
    let mut filters: Vec<_> =
        unused.iter().map(|consumer| (consumer.filter.as_str(), consumer.lag)).collect();
    filters.sort_unstable();
    assert_eq!(filters, [("events.a-b", 0), ("events.c.>", 1)]);
    assert!(bus.unused_consumers("s-events").await.unwrap().is_empty());
    assert!(matches!(bus.unused_consumers("unknown").await, Err(EventError::NotFound(_))));

    assert_eq!(bus.remove_unused_consumers("s").await.unwrap(), unused);
    assert_eq!(consumer_names(&bus).await, ["s-events-a-b", "s-events-events-x"]);
    assert!(bus.remove_unused_consumers("s").await.unwrap().is_empty());
    drop(old);

    let mut ephemeral = durable("s", &["events.a.b"]);
    ephemeral.durable = false;
    bus.update_subscription(ephemeral).await.unwrap();
    assert_eq!(bus.unused_consumers("s").await.unwrap().len(), 1, "nor does an ephemeral one need it");
}
