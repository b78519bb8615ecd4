//! CloudEvents on the wire: written on request, read always.

use a3s_event::cloudevents::{AcceptedFormats, nats};
use a3s_event::provider::nats::EventFormat;
use a3s_event::{CloudEvent, Delivery};

use super::*;

async fn cloud_events(server: &NatsServer) -> NatsProvider {
    NatsProvider::builder(config(server)).format(EventFormat::CloudEvents).connect().await.unwrap()
}

async fn next(subscription: &mut dyn Subscription) -> Delivery {
    tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap().unwrap().unwrap()
}

fn comparable(event: &Event) -> serde_json::Value {
    serde_json::to_value(event).unwrap()
}

#[tokio::test]
async fn either_form_is_read_whatever_is_written() {
    let server = NatsServer::start().await;
    let (native, foreign) = (connect(&server).await, cloud_events(&server).await);
    let mut sent = vec![event("a", 1), event("b", 2).with_metadata("Any Key", "two\nlines")];
    native.publish(&sent[0]).await.unwrap();
    foreign.publish(&sent[1]).await.unwrap();
    // A batch announces what it holds too.
    let more: Vec<Event> = (3..8).map(|number| event("c", number)).collect();
    publish_all(&foreign, &more).await;
    sent.extend(more);

    for reader in [&native, &foreign] {
        let mut subscription = reader.subscribe("events.>").await.unwrap();
        for event in &sent {
            let delivery = next(subscription.as_mut()).await;
            assert_eq!(comparable(delivery.event()), comparable(event));
            delivery.ack().await.unwrap();
        }
        let history = reader.history(None, 10).await.unwrap();
        let newest_first: Vec<_> = sent.iter().rev().map(comparable).collect();
        assert_eq!(history.iter().map(comparable).collect::<Vec<_>>(), newest_first);
    }
}

#[tokio::test]
async fn what_is_written_is_a_cloud_event_for_everybody() {
    let server = NatsServer::start().await;
    let provider = cloud_events(&server).await;
    let event = event("a", 1);
    provider.publish(&event).await.unwrap();
    let stream = provider.client().jetstream_context().get_stream("A3S_EVENTS").await.unwrap();
    let raw = stream.get_raw_message(1).await.unwrap();
    assert_eq!(raw.headers.get("content-type").unwrap().as_str(), "application/cloudevents+json");
    let none: [(&str, &str); 0] = [];
    let read = nats::from_message(none, &raw.payload, AcceptedFormats::Conformant).unwrap();
    assert_eq!(read, CloudEvent::from(event));
}

#[tokio::test]
async fn an_event_of_others_arrives_and_a_broken_one_surfaces_once() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    let client = provider.client().nats_client().clone();
    let send = |event: CloudEvent, id: &str| {
        let message = nats::to_binary(&event).unwrap();
        let mut headers = async_nats::HeaderMap::new();
        for (name, value) in &message.headers {
            headers.insert(name.as_str(), if name == "ce-id" { id } else { value.as_str() });
        }
        let body = message.body.unwrap_or_default().into();
        client.publish_with_headers("events.it.raw", headers, body)
    };
    let other = CloudEvent::new("7", "/shop", "order.placed")
        .with_data(json!({"cents": 1}))
        .with_subject("order 7")
        .with_extension("tenant", "acme");
    send(other.clone(), "").await.unwrap();
    send(other, "7").await.unwrap();
    client.flush().await.unwrap();

    let mut subscription = provider.subscribe("events.>").await.unwrap();
    let error = tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap().unwrap_err();
    assert!(matches!(error, EventError::Undecodable { sequence: 1, .. }), "{error:?}");
    let delivery = next(subscription.as_mut()).await;
    let event = delivery.event();
    assert_eq!((event.id.as_str(), event.subject.as_str()), ("7", "events.it.raw"));
    assert_eq!(
        (event.metadata["ce-subject"].as_str(), event.metadata["ce-tenant"].as_str()),
        ("order 7", "acme")
    );
    delivery.ack().await.unwrap();
}

/// The server counts headers as it counts the body, and so does the error.
#[tokio::test]
async fn what_is_too_large_only_with_its_headers_says_so() {
    let server = NatsServer::start_with("max_payload: 65536").await;
    let provider = connect(&server).await;
    let mut large = event("a", 1);
    large.payload = serde_json::json!("");
    let room = 65_536 - serde_json::to_vec(&large).unwrap().len();
    large.payload = serde_json::json!("x".repeat(room - 100));
    provider.publish(&large).await.unwrap();
    let options = PublishOptions { msg_id: Some("m".repeat(100)), ..PublishOptions::default() };
    let error = provider.publish_with_options(&large, &options).await.unwrap_err();
    let EventError::TooLarge { what, actual, limit } = error else { panic!("{error}") };
    let on_the_wire = format!("NATS/1.0\r\nNats-Msg-Id: {}\r\n\r\n", "m".repeat(100));
    assert_eq!((what, actual, limit), ("event with its headers", 65_436 + on_the_wire.len(), 65_536));
}

/// As it was before NATS had headers, and as others write it.
#[tokio::test]
async fn a_structured_cloud_event_is_read_with_and_without_a_header() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    let client = provider.client().nats_client().clone();
    let body =
        json!({"specversion": "1.0", "id": "7", "source": "/s", "type": "t", "data": {"n": 1}}).to_string();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Content-Type", "application/cloudevents+json; charset=UTF-8");
    client.publish_with_headers("events.f.ce", headers, body.clone().into()).await.unwrap();
    client.publish("events.f.ce", body.into()).await.unwrap();
    // A header of the server's own name does not move it to another subject.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Subject", "events.other");
    let other = json!({"specversion": "1.0", "id": "8", "source": "/s", "type": "t"}).to_string();
    client.publish_with_headers("events.f.ce", headers, other.into()).await.unwrap();
    client.publish("events.f.junk", r#"{"specversion": "1.0", "id": "9"}"#.into()).await.unwrap();
    client.flush().await.unwrap();

    let mut subscription = provider.subscribe("events.>").await.unwrap();
    for id in ["7", "7", "8"] {
        let delivery = next(subscription.as_mut()).await;
        assert_eq!((delivery.event().id.as_str(), delivery.event().subject.as_str()), (id, "events.f.ce"));
        delivery.ack().await.unwrap();
    }
    let error = tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap().unwrap_err();
    assert!(
        matches!(&error, EventError::Undecodable { sequence: 4, reason, .. } if reason.contains("source")),
        "{error:?}"
    );
    let page = provider.query_page(&HistoryQuery::new(10)).await.unwrap();
    let read: Vec<_> = page.events.iter().map(|stored| stored.event.id.as_str()).collect();
    assert_eq!((read, page.unreadable.len()), (vec!["8", "7", "7"], 1));
    assert!(page.events.iter().all(|stored| stored.event.subject == "events.f.ce"));
}
