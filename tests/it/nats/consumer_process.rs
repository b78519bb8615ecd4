//! A consumer process that is killed while it handles an event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use a3s_event::{EventProvider, NatsConfig, NatsProvider, SubscribeOptions, Subscription};
use a3s_event_testkit::NatsServer;

use super::{SOON, connect, event};
use crate::process::{Process, Role, role_to_play, say};
use crate::slow_tier;

const ACK_WAIT: Duration = Duration::from_secs(2);
const HANDLING: Duration = Duration::from_millis(15);

async fn join(provider: &NatsProvider, name: &str) -> Box<dyn Subscription> {
    let options = SubscribeOptions { ack_wait_secs: Some(ACK_WAIT.as_secs()), ..SubscribeOptions::default() };
    provider.subscribe_durable_with_options(name, "events.>", &options).await.unwrap()
}

/// Handles events until it is killed, and says what it does. With a number behind its name, it never gets on with the event
/// that this counts to.
#[test]
#[ignore = "what the other process runs"]
fn role() {
    let Some(Role { role, target, name }) = role_to_play() else { return };
    assert_eq!(role, "handle");
    let (name, last) = name.split_once(' ').unwrap_or((&name, ""));
    let last: Option<usize> = last.parse().ok();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let config = NatsConfig { url: target, ..NatsConfig::default() };
        let mut member = join(&NatsProvider::connect(config).await.unwrap(), name).await;
        say("ready");
        for handled in 1.. {
            let delivery = member.next_delivery().await.unwrap().unwrap();
            let number = delivery.event().payload.as_u64().unwrap();
            say(&format!("handling {number}"));
            if last == Some(handled) {
                say("hangs");
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(HANDLING).await;
            if number % 2 == 0 {
                delivery.ack_confirmed().await.unwrap();
                say(&format!("acked {number}"));
            } else {
                delivery.ack().await.unwrap();
                say(&format!("sent {number}"));
            }
        }
    });
}

fn numbers_after(said: &[String], word: &str) -> BTreeSet<u64> {
    said.iter().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_was_handling_goes_to_another() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    let (total, kills) = if slow_tier() { (4_000, 200_u64) } else { (200, 4) };
    for number in 1..=total {
        provider.publish(&event("a", number)).await.unwrap();
    }
    let (mut acked, mut sent, mut interrupted) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for kill in 1..=kills {
        let url = server.url();
        let said = tokio::task::spawn_blocking(move || {
            let start = |name| Process::start("nats::consumer_process::role", "handle", url, name);
            if kill == kills {
                // Behind an ack and in the handling of an event, however slow the machine is.
                return start("workers 3").kill_when("hangs");
            }
            let process = start("workers");
            process.expect("ready");
            // Anywhere in the handling of an event.
            process.kill_after(Duration::from_millis(40 + 7 * (kill % 30)))
        });
        let said = said.await.unwrap();
        acked.extend(numbers_after(&said, "acked"));
        sent.extend(numbers_after(&said, "sent"));
        interrupted.extend(numbers_after(&said, "handling"));
    }
    interrupted.retain(|number| !acked.contains(number) && !sent.contains(number));
    assert!(!acked.is_empty() && !sent.is_empty(), "{acked:?} {sent:?}");
    assert!(!interrupted.is_empty(), "{acked:?} {sent:?}");

    let mut member = join(&provider, "workers").await;
    let mut delivered = BTreeMap::new();
    let started = Instant::now();
    loop {
        let consumer = provider.consumers().await.unwrap().remove(0);
        if consumer.lag + consumer.pending == 0 {
            break;
        }
        assert!(started.elapsed() < ACK_WAIT + 2 * SOON, "not settled: {consumer:?}");
        let Ok(delivery) = tokio::time::timeout(ACK_WAIT, member.next_delivery()).await else { continue };
        let delivery = delivery.unwrap().unwrap();
        let number = delivery.event().payload.as_u64().unwrap();
        let again = delivered.insert(number, delivery.num_delivered());
        assert_eq!(again, None, "{number} came twice to the same process");
        delivery.ack().await.unwrap();
    }
    let lost = sent.iter().filter(|number| delivered.contains_key(number)).count();
    println!("{} acked, {} sent acks of which {lost} were lost", acked.len(), sent.len());
    // Each life has one ack at a time that the client has not sent yet, unless the machine is very slow.
    assert!(lost as u64 <= 2 * kills, "{lost} sent acks were lost, after {kills} kills");
    for number in 1..=total {
        match delivered.get(&number) {
            // A kill can also come between the confirmation and the word about it.
            None => assert!(
                acked.contains(&number) || sent.contains(&number) || interrupted.contains(&number),
                "{number} is lost"
            ),
            Some(times) if acked.contains(&number) => panic!("{number} was settled and came {times} times"),
            Some(times) if interrupted.contains(&number) || sent.contains(&number) => {
                assert!(*times >= 2, "{number} came {times} times");
            }
            Some(_) => {}
        }
    }
    // Also what was on its way to a process that could not say so any more.
    let again = delivered.values().filter(|times| **times >= 2).count();
    assert!(again > 0, "none came a second time: {interrupted:?}");
}
