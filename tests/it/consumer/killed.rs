//! A worker that is killed in the last attempt that an event is allowed.

#![cfg(any(feature = "nats", feature = "sqlite"))]

use std::time::Duration;

use a3s_event::consumer::RetryPolicy;
use a3s_event::dlq::DeadLetterFilter;
use a3s_event::{Delivery, DlqHandler, EventBus, FailureClass, ProviderDlqHandler, ProviderRegistry};

use super::support::{assert_settled, policy, publish, short_lease};
use crate::backend::{Backend, on_every_server};
use crate::process::{Process, Role, role_to_play, say};
use crate::{eventually, number};

const ATTEMPTS: u64 = 2;

on_every_server! {
    what_dies_with_its_worker_in_the_last_attempt_is_dead_lettered_once
}

fn retry_policy() -> RetryPolicy {
    policy(ATTEMPTS)
}

/// A bus on the two URLs of a target.
pub(crate) async fn bus_of(target: &str) -> EventBus {
    let (events, letters) = target.split_once(' ').unwrap();
    let connect = async |url: &str| ProviderRegistry::builtin().connect(url).await.unwrap();
    let mut bus = EventBus::from_provider(connect(events).await);
    bus.set_dlq_handler(std::sync::Arc::new(ProviderDlqHandler::new(connect(letters).await).unwrap()));
    bus
}

/// Fails the event at first, and hangs in its last attempt.
#[test]
#[ignore = "what the other process runs"]
fn role() {
    let Some(Role { target, .. }) = role_to_play() else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let bus = bus_of(&target).await;
        let consumer = bus
            .consumer("worker")
            .subject("events.>")
            .options(short_lease())
            .policy(retry_policy())
            .handle(|delivery: Delivery| async move {
                if number(&delivery) != 1 {
                    return Ok(());
                }
                if delivery.num_delivered() < ATTEMPTS {
                    return Err("not yet".into());
                }
                say("last attempt");
                std::future::pending().await
            })
            .await
            .unwrap();
        let _ = consumer.stopped().await;
    });
}

async fn what_dies_with_its_worker_in_the_last_attempt_is_dead_lettered_once(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=3).await;
    let target = backend.urls.as_ref().unwrap().join(" ");
    tokio::task::spawn_blocking(move || {
        let process = Process::start("consumer::killed::role", "handle", target, "");
        process.expect("last attempt");
        process.kill_after(Duration::ZERO);
    })
    .await
    .unwrap();
    let letters = backend.letters().await;
    assert_eq!(letters.count().await.unwrap(), 0);

    let start = || {
        let consumer = bus.consumer("worker").subject("events.>").options(short_lease());
        consumer.policy(retry_policy()).handle(|delivery: Delivery| async move {
            assert_ne!(number(&delivery), 1, "it has no attempt left");
            Ok(())
        })
    };
    let consumer = start().await.unwrap();
    eventually("one letter", async || letters.count().await.unwrap() == 1).await;
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    assert_eq!((consumer.stats().failed, consumer.stats().dead_lettered), (0, 1));
    let letter = letters.find(&DeadLetterFilter::default(), 10).await.unwrap().remove(0).letter;
    assert_eq!((letter.class, letter.attempts), (FailureClass::Exhausted, Some(ATTEMPTS)));
    assert_eq!((letter.event.sequence, letter.reason.as_str()), (1, "not processed in 2 deliveries"));

    // And it stays like this.
    let consumer = start().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    consumer.shutdown().await.unwrap();
    assert_eq!((letters.count().await.unwrap(), consumer.stats().dead_lettered), (1, 0));
}
