//! What is dropped while someone reads.

use std::time::Duration;

use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
use a3s_event::provider::{DiscardPolicy, LimitSource, PublishRequest};
use a3s_event::{ErrorKind, Event, EventError, EventProvider, PublishOptions, Subscription};

use crate::{DEADLINE, event, publish};

async fn take(subscription: &mut dyn Subscription) -> Result<u64, EventError> {
    let answer = tokio::time::timeout(DEADLINE, subscription.next_delivery()).await.unwrap();
    let delivery = answer?.unwrap();
    let sequence = delivery.sequence();
    delivery.ack().await.unwrap();
    Ok(sequence)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_has_counts_and_limits() {
    let config = SqliteConfig::in_memory().stream_name("lab").max_events(5).max_age(Duration::from_secs(60));
    let provider = SqliteProvider::connect(config).await.unwrap();
    publish(&provider, "a").await;
    let _consumer = provider.subscribe_durable("worker", "events.>").await.unwrap();
    let (streams, info) = (provider.streams().await.unwrap(), provider.info().await.unwrap());
    let [stream] = streams.as_slice() else { panic!("expected one stream, found {streams:?}") };
    assert_eq!(
        (&*stream.name, &*stream.subjects, stream.is_own),
        ("lab", &["events.>".to_owned()][..], true)
    );
    assert_eq!((stream.events, stream.bytes, stream.consumers), (1, info.bytes, 1));
    let limits = stream.limits.unwrap();
    assert_eq!((limits.max_events, limits.max_bytes, limits.discard), (Some(5), None, DiscardPolicy::Old));
    assert_eq!(limits.max_age, Some(Duration::from_secs(60)));

    let provider = SqliteProvider::connect(SqliteConfig::in_memory()).await.unwrap();
    let limits = provider.streams().await.unwrap()[0].limits.unwrap();
    assert!(limits.is_unlimited());
    assert_eq!(limits.source, LimitSource::Stream, "only one connection sees a database in memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_file_are_reported_as_those_of_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let service = SqliteProvider::connect(SqliteConfig::file(&path).max_events(5)).await.unwrap();
    let tool = SqliteProvider::connect(SqliteConfig::file(&path)).await.unwrap();
    for (provider, max_events) in [(&service, Some(5)), (&tool, None)] {
        let limits = provider.streams().await.unwrap()[0].limits.unwrap();
        assert_eq!((limits.max_events, limits.source), (max_events, LimitSource::Connection));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_drops_all_events_and_consumers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let provider = crate::open(&path).await;
    let mut durable = provider.subscribe_durable("worker", "events.>").await.unwrap();
    for _ in 0..200 {
        publish(&provider, "early").await;
    }
    assert_eq!(take(&mut *durable).await.unwrap(), 1);
    let held = tokio::time::timeout(DEADLINE, durable.next_delivery()).await.unwrap().unwrap().unwrap();
    let refused = provider.purge(Some("events.test.early")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(provider.purge(None).await.unwrap(), 200);
    let info = provider.info().await.unwrap();
    assert_eq!((info.messages, info.bytes), (0, 0));
    assert!(provider.history(None, 10).await.unwrap().is_empty());
    assert_eq!(publish(&provider, "late").await, 201, "sequences go on");
    held.ack().await.unwrap();
    match take(&mut *durable).await {
        Err(EventError::Lagged { missed, .. }) => assert_eq!(missed, 198),
        other => panic!("expected Lagged, found {other:?}"),
    }
    assert_eq!(take(&mut *durable).await.unwrap(), 201);
    assert_eq!(provider.purge(Some("events.>")).await.unwrap(), 1);
    assert_eq!(provider.purge(None).await.unwrap(), 0);
    provider.close().await.unwrap();
    assert!(crate::open(&path).await.integrity_check().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_overtaken_in_the_middle_is_told_and_goes_on() {
    let provider = SqliteProvider::connect(SqliteConfig::in_memory().max_events(5)).await.unwrap();
    for filter in ["events.>", "events.test.*"] {
        let before = provider.info().await.unwrap().messages;
        let mut durable =
            provider.subscribe_durable(&filter.replace(['.', '*', '>'], "_"), filter).await.unwrap();
        let mut ephemeral = provider.subscribe(filter).await.unwrap();
        for _ in before..5 {
            publish(&provider, "early").await;
        }
        let mut first = 0;
        for subscription in [&mut durable, &mut ephemeral] {
            first = take(&mut **subscription).await.unwrap();
        }
        let mut last = 0;
        for _ in 0..20 {
            last = publish(&provider, "late").await;
        }
        for subscription in [&mut durable, &mut ephemeral] {
            match take(&mut **subscription).await {
                Err(EventError::Lagged { missed, .. }) => assert_eq!(missed, last - 5 - first, "{filter}"),
                other => panic!("{filter}: expected Lagged, found {other:?}"),
            }
            for sequence in last - 4..=last {
                assert_eq!(take(&mut **subscription).await.unwrap(), sequence, "{filter}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_is_gone_without_anyone_doing_anything() {
    let config = SqliteConfig::in_memory().max_age(Duration::from_millis(300));
    let provider = SqliteProvider::connect(config).await.unwrap();
    for _ in 0..3 {
        publish(&provider, "a").await;
    }
    assert_eq!(provider.history(None, 9).await.unwrap().len(), 3);
    tokio::time::timeout(DEADLINE, async {
        while !provider.history(None, 9).await.unwrap().is_empty()
            || provider.info().await.unwrap().messages > 0
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(publish(&provider, "a").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rare_filter_is_found_behind_many_other_events() {
    let provider = SqliteProvider::connect(SqliteConfig::in_memory()).await.unwrap();
    let mut rare = Vec::new();
    for round in 0..4 {
        rare.push(publish(&provider, "rare").await);
        let common: Vec<_> =
            (0..700).map(|_| event(if round % 2 == 0 { "common" } else { "other" })).collect();
        let batch: Vec<_> = common.iter().map(PublishRequest::from).collect();
        for stored in provider.publish_batch(&batch).await {
            stored.unwrap();
        }
    }
    let mut subscription = provider.subscribe("events.test.rare").await.unwrap();
    assert_eq!(subscription.lag().await.unwrap(), 4);
    for sequence in rare {
        assert_eq!(take(&mut *subscription).await.unwrap(), sequence);
    }
    let live = publish(&provider, "rare").await;
    assert_eq!(take(&mut *subscription).await.unwrap(), live);
    assert_eq!(provider.history(Some("events.test.rare"), 9).await.unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_that_fails_does_not_fail_those_beside_it() {
    let provider = SqliteProvider::connect(SqliteConfig::in_memory()).await.unwrap();
    let provider = std::sync::Arc::new(provider);
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let provider = provider.clone();
            tokio::spawn(async move {
                let options = PublishOptions { expected_sequence: Some(0), ..Default::default() };
                (
                    provider.publish_with_options(&event("a"), &options).await,
                    provider.publish(&event("a")).await,
                )
            })
        })
        .collect();
    let mut expected_won = 0;
    for call in calls {
        let (expecting, plain) = call.await.unwrap();
        plain.unwrap();
        expected_won += usize::from(expecting.is_ok());
    }
    assert!(expected_won <= 1);
    assert_eq!(provider.info().await.unwrap().messages, 50 + expected_won as u64);
}

/// A consumer, and the matches that it has not got.
struct Reader {
    subscription: Box<dyn Subscription>,
    suffix: &'static str,
    open: Vec<u64>,
}

/// A sequence that looks random and is always the same.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// Durable and ephemeral consumers of several filters, some of which nobody uses for long, in two processes.
#[tokio::test(flavor = "multi_thread")]
async fn everyone_is_told_exactly_what_it_missed() {
    const KEPT: u64 = 30;
    let folder = tempfile::tempdir().unwrap();
    let config = SqliteConfig::file(folder.path().join("events.db")).max_events(KEPT);
    let providers = [
        SqliteProvider::connect(config.clone()).await.unwrap(),
        SqliteProvider::connect(config).await.unwrap(),
    ];
    let filters = [
        ("events.>", ""),
        ("events.test.a", "a"),
        ("events.test.*", ""),
        ("events.test.b", "b"),
        ("events.test.a", "a"),
    ];
    let mut readers = Vec::new();
    for number in 0..20_usize {
        let (filter, suffix) = filters[number % filters.len()];
        let provider = &providers[number / 2 % 2];
        // An ephemeral one of a part of the stream is not told what another process dropped.
        let subscription = if number % 10 == 5 {
            provider.subscribe(filter).await.unwrap()
        } else {
            provider.subscribe_durable(&format!("c{number}"), filter).await.unwrap()
        };
        readers.push(Reader { subscription, suffix, open: Vec::new() });
    }
    let mut random = Random(7);
    let mut last = 0;
    for round in 0..600 {
        for _ in 0..random.below(6) {
            let topic = if random.below(2) == 0 { "a" } else { "b" };
            last = publish(&providers[random.below(2)], topic).await;
            readers
                .iter_mut()
                .filter(|reader| topic.ends_with(reader.suffix))
                .for_each(|reader| reader.open.push(last));
        }
        if last == 0 {
            continue;
        }
        // Most of the time only the first few are read.
        let read = if round % 100 == 99 { readers.len() } else { 4 };
        let reader = &mut readers[random.below(read)];
        for _ in 0..random.below(8) {
            let first = last.saturating_sub(KEPT) + 1;
            let missed = reader.open.iter().filter(|sequence| **sequence < first).count() as u64;
            if reader.open.is_empty() {
                break;
            }
            match take(&mut *reader.subscription).await {
                Ok(sequence) => {
                    assert_eq!(missed, 0);
                    assert_eq!(sequence, reader.open.remove(0));
                }
                Err(EventError::Lagged { missed: told, .. }) => {
                    assert_eq!(told, missed);
                    reader.open.retain(|sequence| *sequence >= first);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    for reader in &mut readers {
        let first = last - KEPT + 1;
        let missed = reader.open.iter().filter(|sequence| **sequence < first).count() as u64;
        if missed > 0 {
            match take(&mut *reader.subscription).await {
                Err(EventError::Lagged { missed: told, .. }) => assert_eq!(told, missed),
                other => panic!("expected Lagged({missed}), found {other:?}"),
            }
        }
    }
    let connection = rusqlite::Connection::open(folder.path().join("events.db")).unwrap();
    let left: i64 = connection.query_row("SELECT count(*) FROM overtaken", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0, "what everyone was told is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_few_bytes_beyond_its_events() {
    const EVENTS: u64 = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let provider = crate::open(&folder.path().join("events.db")).await;
    let events: Vec<_> = (0..EVENTS)
        .map(|number| Event {
            payload: serde_json::json!("x".repeat(300)),
            ..event(&(number % 100).to_string())
        })
        .collect();
    for events in events.chunks(1_000) {
        let batch: Vec<_> = events.iter().map(PublishRequest::from).collect();
        assert!(provider.publish_batch(&batch).await.iter().all(Result::is_ok));
    }
    provider.checkpoint().await.unwrap();
    let (file, info) = (provider.file_info().await.unwrap(), provider.info().await.unwrap());
    let (of_file, of_json) = (file.file_bytes / EVENTS, info.bytes / EVENTS);
    println!("{of_file} bytes of file for {of_json} bytes of JSON per event");
    assert!(of_file <= of_json + 128, "{of_file} bytes of file for {of_json} bytes of JSON per event");
}
