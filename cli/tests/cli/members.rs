//! Tests of `sub --durable` beside the program that owns the consumer.

use std::time::Duration;

use a3s_event::{EventBus, SubscribeOptions, Subscription, SubscriptionFilter};
use serde_json::json;

use crate::bus::{Bus, numbers};
use crate::on_every_bus;

on_every_bus! { the_name_of_a_program_means_its_consumer nothing_is_taken_from_a_program_unless_that_is_forced
a_member_keeps_the_settings_of_a_consumer a_stored_name_means_that_consumer }

/// Runs the program `billing`, with this number of pending events.
pub(crate) async fn billing(bus: &Bus, events: u64, options: Option<SubscribeOptions>) -> EventBus {
    let program = EventBus::connect(&bus.url).await.unwrap();
    program
        .update_subscription(SubscriptionFilter {
            subscriber_id: "billing".to_owned(),
            subjects: vec!["events.orders.>".to_owned()],
            durable: true,
            options,
        })
        .await
        .unwrap();
    drop(program.create_subscriber("billing").await.unwrap());
    bus.publish("events.orders.placed", events);
    program
}

async fn next(subscription: &mut dyn Subscription) -> (u64, u64) {
    let next = tokio::time::timeout(Duration::from_secs(20), subscription.next_delivery()).await;
    let delivery = next.expect("an event").unwrap().unwrap();
    let number = (delivery.event().payload["n"].as_u64().unwrap(), delivery.num_delivered());
    delivery.ack().await.unwrap();
    number
}

async fn the_name_of_a_program_means_its_consumer(bus: &Bus) {
    let program = billing(bus, 3, None).await;
    let names = || bus.rows(&["consumers"]).iter().map(|row| row["name"].clone()).collect::<Vec<_>>();
    let before = names();
    assert_eq!(before.len(), 1);
    let take = |filters: &[&str]| {
        numbers(&bus.rows(&[&["sub"], filters, &["--durable", "billing", "--count", "1"]].concat()))
    };
    assert_eq!(take(&["events.orders.>"]), [1]);
    assert_eq!(take(&[]), [2]);
    assert_eq!(names(), before, "no consumer was made beside it");
    let ran = bus.run(&["sub", "events.orders.placed", "--durable", "billing", "--count", "1"]);
    assert!(ran.code == 2 && ran.stderr.contains("events.orders.>"), "{}", ran.stderr);
    assert_eq!(names(), before);
    let mut of_program = program.create_subscriber("billing").await.unwrap().remove(0);
    assert_eq!(next(&mut *of_program).await, (3, 1), "they share the work");
    // A new one gets the given name, and a note reports it.
    let ran = bus.run(&["sub", "--durable", "audit", "--count", "1"]);
    assert!(ran.code == 0 && ran.stderr.contains("'audit'"), "{}", ran.stderr);
    assert!(names().contains(&json!("audit")));
}

async fn nothing_is_taken_from_a_program_unless_that_is_forced(bus: &Bus) {
    let program = billing(bus, 3, None).await;
    for asked in [
        &["--ack", "nak"][..],
        &["--ack", "term"],
        &["--max-deliver", "1"],
        &["--max-deliver", "1", "--ack", "nak"],
        &["--ack-wait", "1"],
        &["--max-ack-pending", "1"],
        &["--backoff", "1"],
    ] {
        let sub = [&["sub", "--durable", "billing", "--count", "1"], asked].concat();
        let ran = bus.run(&sub);
        assert!(ran.code == 2 && ran.stderr.contains("--force"), "{asked:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
    let mut of_program = program.create_subscriber("billing").await.unwrap().remove(0);
    assert_eq!(next(&mut *of_program).await, (1, 1));
    of_program.close().await.unwrap();
    let force = ["sub", "--durable", "billing", "--count", "1", "--ack", "term", "--force"];
    assert_eq!(numbers(&bus.rows(&force)), [2]);
    let mut of_program = program.create_subscriber("billing").await.unwrap().remove(0);
    assert_eq!(next(&mut *of_program).await, (3, 1));
    assert_eq!(bus.run(&["sub", "--force", "--count", "1"]).code, 2, "there is nothing to be forced");
}

async fn a_member_keeps_the_settings_of_a_consumer(bus: &Bus) {
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() };
    let program = billing(bus, 2, Some(options)).await;
    let sub = ["sub", "--durable", "billing", "--count", "1", "--from", "all"];
    assert_eq!(numbers(&bus.rows(&sub)), [1]);
    let consumer = bus.rows(&["consumers"])[0]["name"].as_str().unwrap().to_owned();
    let provider = program.provider();
    let mut subscription = provider.subscribe_durable(&consumer, "events.orders.>").await.unwrap();
    drop(subscription.next_delivery().await.unwrap().unwrap());
    assert_eq!(next(&mut *subscription).await, (2, 2), "after the ack wait of its program");
}

async fn a_stored_name_means_that_consumer(bus: &Bus) {
    billing(bus, 2, None).await;
    let stored = bus.rows(&["consumers"])[0]["name"].as_str().unwrap().to_owned();
    let take = |name: &str| numbers(&bus.rows(&["sub", "--durable", name, "--count", "1"]));
    assert_eq!(take(&stored), [1]);
    // A consumer is stored under the name of the program.
    bus.prints(&["sub", "events.a", "--durable", "d", "--from", "now", "--idle", "100ms"]);
    let ran = bus.run(&["sub", "events.b", "--durable", "d", "--count", "1"]);
    assert!(ran.code == 1 && ran.stderr.contains("conflict"), "{}", ran.stderr);
    let ran = bus.run(&["sub", "events.b", "events.c", "--durable", "d", "--count", "1"]);
    assert!(ran.code == 2 && ran.stderr.contains("another name"), "{}", ran.stderr);
    bus.prints(&["sub", "events.a", "events.b", "--durable", "d", "--idle", "100ms"]);
    let names: Vec<_> = bus.rows(&["consumers"]).iter().map(|row| row["name"].clone()).collect();
    assert!(names.contains(&json!("d-events-b")) && !names.contains(&json!("d-events-a")), "{names:?}");
}
