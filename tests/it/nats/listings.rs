//! Listings: complete, or honest about what they leave out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use a3s_event::HistoryPage;
use a3s_event::provider::DiscardPolicy;
use a3s_event_testkit::servers::fault_proxy::{Direction, FaultProxy, Verdict};
use a3s_event_testkit::servers::nats::protocol::{Message, frame_length};

use super::hostile::publish_malformed;
use super::*;

fn summary(page: &HistoryPage) -> (Vec<u64>, Vec<u64>) {
    let events = page.events.iter().map(|stored| stored.sequence).collect();
    (events, page.unreadable.iter().map(|record| record.sequence).collect())
}

#[tokio::test]
async fn a_page_names_what_cannot_be_read_and_says_where_to_go_on() {
    let server = NatsServer::start().await;
    let direct = connect(&server).await;
    let jetstream = direct.client().jetstream_context();
    for number in 1..=600_u64 {
        if number % 100 == 0 {
            jetstream
                .publish(format!("events.{}", number % 200), "junk".into())
                .await
                .unwrap()
                .await
                .unwrap();
        } else {
            direct.publish(&event("a", number)).await.unwrap();
        }
    }
    let through_consumer = stream_of_an_earlier_version(&server).await;
    for provider in [&direct, &through_consumer] {
        let page = provider.query_page(&HistoryQuery::new(3)).await.unwrap();
        assert_eq!(summary(&page), (vec![599, 598, 597], vec![600]));
        assert_eq!((page.searched_from, page.next, page.is_complete()), (Some(597), Some(597), false));
        let record = &page.unreadable[0];
        assert_eq!(record.subject.as_deref(), Some("events.0"));
        assert!(record.stored_at.is_some_and(|time| time > 1_700_000_000_000), "{record:?}");
        assert!(record.reason.contains("expected"), "{record:?}");

        let everything = provider.query_page(&HistoryQuery::new(10_000)).await.unwrap();
        let (events, unreadable) = summary(&everything);
        assert_eq!((events.len(), unreadable), (594, vec![600, 500, 400, 300, 200, 100]));
        assert_eq!((everything.searched_from, everything.is_complete()), (Some(1), true));
        // The filter applies to what cannot be read too.
        let filtered = HistoryQuery::new(10).filter("events.100").since_sequence(200);
        assert_eq!(summary(&provider.query_page(&filtered).await.unwrap()), (vec![], vec![500, 300]));
        let none = HistoryQuery::new(10).since_sequence(10_000);
        let none = provider.query_page(&none).await.unwrap();
        assert_eq!((summary(&none), none.is_complete()), ((vec![], vec![]), true));
        // A query goes through as many pages as it takes.
        assert_eq!(provider.query(&HistoryQuery::new(500)).await.unwrap().len(), 500);
    }
}

#[tokio::test]
async fn a_page_holds_a_thousand_unreadable_records_at_most() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    provider.publish(&event("a", 1)).await.unwrap();
    let client = provider.client().nats_client();
    for _ in 0..1_500 {
        client.publish("events.junk", "junk".into()).await.unwrap();
    }
    client.flush().await.unwrap();
    let started = Instant::now();
    while provider.info().await.unwrap().messages < 1_501 {
        assert!(started.elapsed() < SOON);
    }
    let page = provider.query_page(&HistoryQuery::new(10)).await.unwrap();
    assert_eq!((page.events.len(), page.unreadable.len(), page.next), (0, 1_000, Some(502)));
    let rest = HistoryQuery::new(10).before_sequence(502);
    let rest = provider.query_page(&rest).await.unwrap();
    assert_eq!((rest.events.len(), rest.unreadable.len(), rest.next), (1, 500, None));
    assert_eq!(numbers(&provider.history(None, 10).await.unwrap()), [1]);
}

/// One of the answers to a read of many is lost on the way: an error, and not a stream with fewer events.
async fn a_lost_record_is_an_error(proxy: &FaultProxy, provider: &NatsProvider) {
    for lost in [7, 30, 59] {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        proxy.filter(move |frame| {
            let is_record = frame.direction == Direction::ToClient
                && Message::parse(frame.bytes).is_some_and(|message| message.payload.starts_with(b"{\"id\""));
            let is_lost = is_record && counted.fetch_add(1, Ordering::Relaxed) == lost;
            if is_lost { Verdict::Drop } else { Verdict::Forward }
        });
        let error = provider.history(None, 100).await.unwrap_err();
        assert!(error.is_retryable() && count.load(Ordering::Relaxed) > lost, "{error:?}");
        proxy.forward_all();
        assert_eq!(provider.history(None, 100).await.unwrap().len(), 60);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_loses_a_record_on_the_way_is_no_short_answer() {
    let server = NatsServer::start().await;
    let proxy = FaultProxy::start(server.address(), frame_length, 1).await;
    let proxied = || NatsConfig {
        url: format!("nats://{}", proxy.address()),
        request_timeout_secs: 2,
        ..NatsConfig::default()
    };
    let direct = NatsProvider::connect(proxied()).await.unwrap();
    publish_all(&direct, &(1..=60).map(|number| event("a", number)).collect::<Vec<_>>()).await;
    a_lost_record_is_an_error(&proxy, &direct).await;
    stream_of_an_earlier_version(&server).await;
    let through_consumer = NatsProvider::connect(proxied()).await.unwrap();
    a_lost_record_is_an_error(&proxy, &through_consumer).await;
}

/// Headers that end the connection of whoever receives them: history names the record, and reads what lies around it.
#[tokio::test]
async fn history_reads_around_a_record_that_ends_connections() {
    for server in servers().await {
        let provider = connect(&server).await;
        publish_all(&provider, &(1..=20).map(|number| event("a", number)).collect::<Vec<_>>()).await;
        publish_malformed(&server, b"NATS/1.0\r\nkey: a\rb\r\n\r\n");
        publish_malformed(&server, b"NATS/1.0\r\nkey: \xff\r\n\r\n");
        publish_malformed(&server, b"NATS/1.0\r\nno colon\r\n\r\n");
        publish_all(&provider, &(24..=30).map(|number| event("a", number)).collect::<Vec<_>>()).await;
        for _ in 0..2 {
            let page = provider.query_page(&HistoryQuery::new(100)).await.unwrap();
            let (events, unreadable) = summary(&page);
            assert_eq!((events.len(), unreadable), (27, vec![23, 22, 21]));
            assert_eq!(page.unreadable[2].reason, "its headers contain a bare carriage return");
            assert_eq!(page.unreadable[2].subject.as_deref(), Some("events.a"));
        }
        // Once it is known, no connection ends for it.
        let state = provider.client().nats_client().statistics().connects.load(Ordering::Relaxed);
        assert_eq!(provider.history(None, 100).await.unwrap().len(), 27);
        assert_eq!(provider.client().nats_client().statistics().connects.load(Ordering::Relaxed), state);
    }
}

#[tokio::test]
async fn streams_are_listed_purged_and_deleted() {
    let server = NatsServer::start().await;
    let orders = NatsConfig {
        stream_name: "ORDERS".to_owned(),
        subject_prefix: "orders".to_owned(),
        ..config(&server)
    };
    let (events, orders) = (connect(&server).await, NatsProvider::connect(orders).await.unwrap());
    for number in 1..=3 {
        events.publish(&event("a", number)).await.unwrap();
        events.publish(&event("b", number)).await.unwrap();
    }
    let streams = events.streams().await.unwrap();
    let found: Vec<_> = streams.iter().map(|stream| (&*stream.name, stream.events, stream.is_own)).collect();
    assert_eq!(found, [("A3S_EVENTS", 6, true), ("ORDERS", 0, false)]);
    assert_eq!(streams[1].subjects, ["orders.>"]);
    let limits = streams[0].limits.unwrap();
    assert_eq!((limits.max_events, limits.max_bytes), (Some(100_000), None));
    assert_eq!((limits.max_age, limits.discard), (Some(Duration::from_secs(604_800)), DiscardPolicy::Old));
    let full = NatsProvider::builder(NatsConfig {
        stream_name: "FULL".to_owned(),
        subject_prefix: "full".to_owned(),
        max_events: 0,
        max_bytes: 9_000,
        max_age_secs: 0,
        ..config(&server)
    });
    let full = full.discard_new(true).connect().await.unwrap();
    let streams = full.streams().await.unwrap();
    let limits = streams.iter().find(|stream| stream.is_own).unwrap().limits.unwrap();
    assert_eq!((limits.max_events, limits.max_bytes, limits.max_age), (None, Some(9_000), None));
    assert_eq!(limits.discard, DiscardPolicy::New);
    full.delete_stream().await.unwrap();

    assert_eq!(events.purge(Some("events.b")).await.unwrap(), 3);
    assert_eq!(numbers(&events.history(None, 10).await.unwrap()), [3, 2, 1]);
    assert_eq!(events.purge(Some("other.>")).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(events.purge(None).await.unwrap(), 3);

    orders.delete_stream().await.unwrap();
    assert_eq!(events.streams().await.unwrap().len(), 1);
    assert_eq!(orders.delete_stream().await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_consumer_tells_when_it_last_settled_something() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    let mut subscription = provider.subscribe_durable("a", "events.>").await.unwrap();
    provider.publish(&event("a", 1)).await.unwrap();
    assert_eq!(provider.consumers().await.unwrap()[0].last_progress, None);
    let before = event("a", 0).timestamp - 1_000;
    assert_eq!(ack_next(&mut *subscription).await, 1);
    let told = provider.consumers().await.unwrap()[0].last_progress;
    assert!(told.is_some_and(|time| time >= before), "{told:?}");
}
