//! Each fault does what its documentation says, and a run depends on nothing but its seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use a3s_event::broker::{DeliverySettings, TriggerSpec};
use a3s_event::consumer::{Backoff, HandlerError, HandlerResult, RetryPolicy};
use a3s_event::dlq::Replay;
use a3s_event::testing::{Checks as _, Ledger, TestBus};
use a3s_event::{
    Broker, DeliverPolicy, Delivery, ErrorKind, Event, HistoryQuery, InProcessSink, MemoryProvider, Trigger,
    TriggerFilter,
};
use tokio::sync::Semaphore;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Returns a handler that records the number of each event.
fn record(handled: &Ledger<u64>) -> impl Fn(Delivery) -> std::future::Ready<HandlerResult> + use<> {
    let handled = handled.clone();
    move |delivery| {
        handled.record(delivery.event().payload.as_u64().unwrap());
        std::future::ready(Ok(()))
    }
}

/// Returns the message with which a test fails.
fn failure(test: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(test)).expect_err("it passes");
    panic.downcast_ref::<String>().unwrap().clone()
}

#[test]
fn nothing_fails_without_a_planned_fault_and_the_clock_stands_still() {
    TestBus::explore(0..20, |t| async move {
        let begin = t.clock().unix_millis();
        let handled = Ledger::default();
        t.consumer("worker").subject("events.>").handle(record(&handled)).await?;
        for number in 0..10 {
            t.publish("events.a", number).await?;
        }
        t.settle().await;
        assert_eq!(handled.entries(), (0..10).collect::<Vec<_>>());
        assert_eq!(t.clock().unix_millis(), begin);
        t.assert("worker").settled().no_dead_letters()
    });
}

#[test]
fn storage_times_timestamps_ages_and_deduplication_follow_the_clock() {
    let provider = |clock| {
        let builder = MemoryProvider::builder().max_age(MINUTE).dedup_window(10 * SECOND).clock(clock);
        builder.build().unwrap()
    };
    TestBus::explorer(0..5).provider(provider).run(|t| async move {
        let begin = t.clock().unix_millis();
        let options = || a3s_event::PublishOptions { msg_id: Some("a".into()), ..Default::default() };
        let event = || Event::builder("events.a").build();
        let publish = async |event: Event| t.provider().publish_with_receipt(&event, &options()).await;
        assert!(!publish(event()).await?.duplicate);
        t.advance(9 * SECOND).await;
        assert!(publish(event()).await?.duplicate);
        t.advance(2 * SECOND).await;
        let late = event();
        assert_eq!(late.timestamp, begin + 11_000);
        assert!(!publish(late).await?.duplicate);
        let stored = t.provider().query(&HistoryQuery::new(9)).await?;
        assert_eq!(stored.iter().map(|stored| stored.stored_at - begin).collect::<Vec<_>>(), [11_000, 0]);
        t.advance(50 * SECOND).await;
        assert_eq!(t.provider().info().await?.messages, 1);
        t.faults().clock_forward(MINUTE);
        assert_eq!(t.provider().info().await?.messages, 0);
        t.faults().clock_back(MINUTE);
        assert_eq!(t.clock().unix_millis(), begin + 61_000);
        Ok(())
    });
}

#[test]
fn a_crash_loses_what_is_not_acknowledged_until_its_lease_ends() {
    for (point, handled_twice) in [(0, false), (1, true), (2, false)] {
        TestBus::explore(0..20, move |t| async move {
            let handled = Ledger::default();
            t.consumer("worker").subject("events.>").handle(record(&handled)).await?;
            match point {
                0 => t.faults().crash_before_handling("worker", 1),
                1 => t.faults().crash_before_ack("worker", 1),
                _ => t.faults().crash_after_ack("worker", 1),
            };
            t.publish("events.a", 7).await?;
            t.advance(29 * SECOND).await;
            assert_eq!(handled.len(), usize::from(point > 0), "the lease holds");
            t.advance(MINUTE).await;
            assert_eq!(handled.len(), 1 + usize::from(handled_twice));
            t.assert("worker").settled().no_dead_letters()
        });
    }
}

#[test]
fn a_frozen_consumer_loses_its_leases() {
    TestBus::explore(0..20, |t| async move {
        let handled = Ledger::default();
        let worker = t.consumer("worker").subject("events.>").handle(record(&handled)).await?;
        t.settle().await;
        t.faults().freeze("worker", 45 * SECOND);
        t.publish("events.a", 1).await?;
        t.advance(44 * SECOND).await;
        let stuck = t.assert("worker").settled();
        assert!(stuck.is_err(), "{stuck:?}");
        t.advance(MINUTE).await;
        assert!(worker.stats().is_some());
        t.assert("worker").settled().no_dead_letters()
    });
}

#[test]
fn a_provider_that_hangs_holds_up_no_handler_and_no_timeout() {
    TestBus::explore(0..20, |t| async move {
        let (begun, ended) = (Ledger::default(), Ledger::default());
        let handler = {
            let (begun, ended) = (begun.clone(), ended.clone());
            move |delivery: Delivery| {
                let (begun, ended) = (begun.clone(), ended.clone());
                async move {
                    let seconds = delivery.event().payload.as_u64().unwrap();
                    begun.record(seconds);
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    ended.record(seconds);
                    Ok(())
                }
            }
        };
        let options = a3s_event::SubscribeOptions { ack_wait_secs: Some(4), ..Default::default() };
        let policy = RetryPolicy::default().attempts(1).timeout(30 * SECOND);
        let builder = t.consumer("worker").subject("events.>").options(options).policy(policy).concurrency(2);
        let worker = builder.handle(handler).await?;
        t.publish("events.a", 10).await?;
        t.publish("events.a", 100).await?;
        t.settle().await;
        assert_eq!(begun.len(), 2);
        t.faults().freeze("worker", 60 * SECOND);
        t.advance(11 * SECOND).await;
        assert_eq!(ended.entries(), [10]);
        t.advance(20 * SECOND).await;
        let Some(stats) = worker.stats() else { return Err("it is down".into()) };
        assert_eq!((stats.failed, stats.running), (1, 2), "{stats:?}");
        Ok(())
    });
}

#[test]
fn an_ack_of_the_handler_that_fails_is_repeated() {
    TestBus::explore(0..50, |t| async move {
        let handled = Ledger::default();
        let handler = {
            let (t, handled) = (t.clone(), handled.clone());
            move |delivery: Delivery| {
                let (t, handled) = (t.clone(), handled.clone());
                async move {
                    handled.record(delivery.sequence());
                    t.faults().unavailable(Duration::from_millis(120));
                    assert!(delivery.ack_confirmed().await.is_err());
                    Ok(())
                }
            }
        };
        let worker = t.consumer("worker").subject("events.>").handle(handler).await?;
        t.publish("events.a", 1).await?;
        t.advance(MINUTE).await;
        assert_eq!(handled.entries(), [1]);
        assert_eq!(worker.last_error(), None);
        t.assert("worker").settled().no_dead_letters()
    });
}

#[test]
fn a_shutdown_without_a_provider_says_that_events_come_again() {
    TestBus::explore(0..50, |t| async move {
        let handled = Ledger::default();
        let handler = {
            let handled = handled.clone();
            move |delivery: Delivery| {
                let (handled, number) = (handled.clone(), delivery.event().payload.as_u64().unwrap());
                async move {
                    tokio::time::sleep(SECOND).await;
                    handled.record(number);
                    Ok(())
                }
            }
        };
        let worker = t.consumer("worker").subject("events.>").ordered_by_subject().handle(handler).await?;
        for number in 0..5 {
            t.publish("events.a", number).await?;
        }
        t.settle().await;
        t.faults().unavailable(MINUTE);
        let error = worker.shutdown().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
        t.advance(MINUTE).await;
        worker.start().await?;
        t.advance(MINUTE).await;
        assert_eq!(handled.entries().split_off(1), (0..5).collect::<Vec<_>>());
        t.assert("worker").settled().no_dead_letters()
    });
}

#[test]
fn a_consumer_that_is_deleted_during_a_pause_does_not_come_back() {
    TestBus::explore(0..200, |t| async move {
        let handled = Ledger::default();
        let worker = t.consumer("worker").subject("events.>").handle(record(&handled)).await?;
        t.publish("events.a", 1).await?;
        t.settle().await;
        t.faults().fail_fetch(20).unavailable(Duration::from_millis(1));
        t.advance(Duration::from_millis(t.draw(60_000))).await;
        worker.delete_behind_its_back().await?;
        t.faults().stop();
        t.publish("events.a", 2).await?;
        t.advance(5 * MINUTE).await;
        assert!(t.provider().consumers().await?.is_empty());
        assert_eq!(worker.state(), Some(a3s_event::consumer::ConsumerState::Failed));
        assert_eq!(handled.entries(), [1]);
        Ok(())
    });
}

#[test]
fn faults_of_a_publish_are_told_to_the_publisher() {
    TestBus::explore(0..20, |t| async move {
        t.faults().fail_publish(1);
        let refused = t.publish("events.a", 1).await.unwrap_err();
        assert!(refused.is_retryable() && !refused.may_be_stored(), "{refused:?}");
        t.faults().lose_publish_answer(1);
        let lost = t.publish("events.a", 2).await.unwrap_err();
        assert!(lost.may_be_stored(), "{lost:?}");
        t.faults().duplicate_publish(1).delay_publish_answer(3_000..3_001);
        let before = t.clock().unix_millis();
        assert_eq!(t.publish("events.a", 3).await?.sequence, 2);
        assert_eq!(t.clock().unix_millis() - before, 3_000);
        let stored = t.provider().history(None, 9).await?;
        let payloads: Vec<_> = stored.iter().map(|event| event.payload.as_u64().unwrap()).collect();
        assert_eq!(payloads, [3, 3, 2]);
        Ok(())
    });
}

#[test]
fn an_outage_fails_every_call_and_ends() {
    TestBus::explore(0..20, |t| async move {
        let handled = Ledger::default();
        let worker = t.consumer("worker").subject("events.>").handle(record(&handled)).await?;
        t.settle().await;
        t.faults().unavailable(MINUTE);
        assert!(!t.bus()?.health().await?);
        assert_eq!(t.publish("events.a", 1).await.unwrap_err().kind(), ErrorKind::Connection);
        t.advance(5 * SECOND).await;
        assert_eq!(
            worker.state(),
            Some(a3s_event::consumer::ConsumerState::Retrying),
            "{:?}",
            worker.last_error()
        );
        t.advance(MINUTE).await;
        assert!(t.bus()?.health().await?);
        t.publish("events.a", 2).await?;
        t.advance(MINUTE).await;
        assert_eq!(handled.entries(), [2]);
        assert_eq!(worker.state(), Some(a3s_event::consumer::ConsumerState::Running));
        t.assert("worker").settled().no_dead_letters()
    });
}

#[test]
fn dead_letters_are_kept_in_spite_of_a_failing_queue_and_can_be_replayed() {
    TestBus::explore(0..20, |t| async move {
        let handled = Ledger::default();
        let is_mended = Ledger::default();
        let handler = {
            let (handled, is_mended) = (handled.clone(), is_mended.clone());
            move |delivery: Delivery| {
                let (handled, is_mended) = (handled.clone(), is_mended.clone());
                async move {
                    if is_mended.is_empty() {
                        return Err(HandlerError::fatal("no such customer"));
                    }
                    handled.record(delivery.event().payload.as_u64().unwrap());
                    Ok(())
                }
            }
        };
        t.consumer("worker").subject("events.>").handle(handler).await?;
        t.faults().fail_dead_letter(2);
        t.publish("events.a", 7).await?;
        t.advance(MINUTE).await;
        t.assert("worker").settled().dead_letters(1)?;
        let told = t.assert("worker").no_dead_letters().unwrap_err().to_string();
        assert!(told.contains("no such customer"), "{told}");

        is_mended.record(());
        let report = t.dead_letters()?.replay(t.provider(), &Replay::default()).await?;
        assert_eq!(report.replayed.len(), 1);
        t.advance(MINUTE).await;
        assert_eq!(handled.entries(), [7]);
        t.assert("worker").settled().dead_letters(0)
    });
}

#[test]
fn an_orderly_restart_hands_nothing_out_twice() {
    TestBus::explore(0..50, |t| async move {
        let handled = Ledger::default();
        let worker = t
            .consumer("worker")
            .subject("events.>")
            .concurrency(3)
            .ordered_by_subject()
            .handle(record(&handled));
        let worker = worker.await?;
        for number in 0..20 {
            t.publish(format!("events.k{}", number % 3), number).await?;
            if number == 10 {
                worker.shutdown().await?;
                assert!(worker.state().is_none() && worker.shutdown().await.is_err());
                worker.start().await?;
            }
        }
        t.settle().await;
        let mut all = handled.entries();
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
        t.assert("worker").settled().no_dead_letters()
    });
}

#[test]
fn a_failure_names_its_seed_and_shows_the_steps() {
    let message = failure(|| {
        TestBus::explore(0..1_000, |t| async move {
            t.publish("events.a", 1).await?;
            assert!(t.draw(10) != 3, "drew a three");
            Ok(())
        });
    });
    assert!(message.starts_with("seed ") && message.contains(": drew a three"), "{message}");
    assert!(message.contains("publish events.a -> 1"), "{message}");
    assert!(message.contains("cargo test faults::a_failure_names_its_seed"), "{message}");

    let error = failure(|| TestBus::explore(0..1, |_| async move { Err::<(), _>("of no use".into()) }));
    assert!(error.starts_with("seed 0: of no use"), "{error}");
    let unknown = failure(|| TestBus::explore(0..1, |t| async move { t.assert("nobody").settled() }));
    assert!(unknown.contains("consumer \"nobody\": no such consumer was started"), "{unknown}");
}

#[test]
fn a_test_that_waits_for_nothing_ends() {
    let message = failure(|| {
        TestBus::explore(0..1, |_| async move {
            std::future::pending::<()>().await;
            Ok(())
        });
    });
    assert!(message.contains("waited for an hour"), "{message}");
}

#[test]
fn a_loop_without_a_pause_ends() {
    let message = failure(|| {
        TestBus::explore(0..1, |t| async move {
            t.faults().unavailable(MINUTE);
            while t.publish("events.a", 1).await.is_err() {}
            Ok(())
        });
    });
    assert!(message.contains("a loop without a pause"), "{message}");
}

/// A run with every kind of fault.
async fn stormy(t: TestBus) -> String {
    let policy = RetryPolicy::default().attempts(3).backoff(Backoff::exponential(SECOND, MINUTE));
    let handler = |delivery: Delivery| async move {
        tokio::time::sleep(SECOND * u32::from(delivery.event().subject.ends_with("2"))).await;
        if delivery.sequence().is_multiple_of(7) { Err("unlucky".into()) } else { Ok(()) }
    };
    let worker = t.consumer("worker").subject("events.>").concurrency(3).ordered_by_subject().policy(policy);
    worker.handle(handler).await.unwrap();
    t.faults()
        .crash_before_ack("worker", 0.05)
        .crash_before_handling("worker", 0.05)
        .duplicate_publish(0.2)
        .lose_publish_answer(0.1)
        .fail_dead_letter(0.3)
        .delay(0..5_000);
    for number in 0..60_u64 {
        let _ = t.publish(format!("events.k{}", t.draw(4)), number).await;
        t.advance(Duration::from_millis(t.draw(3_000))).await;
    }
    t.faults().stop();
    t.advance(30 * MINUTE).await;
    t.trace()
}

fn traces() -> Vec<String> {
    let traces = Ledger::default();
    let written = traces.clone();
    TestBus::explore(0..20, move |t| {
        let traces = written.clone();
        async move {
            traces.record(stormy(t).await);
            Ok(())
        }
    });
    traces.entries()
}

#[test]
fn the_same_seed_gives_the_same_steps() {
    let first = traces();
    assert_eq!(first, traces());
    let elsewhere = std::thread::spawn(traces).join().unwrap();
    assert_eq!(first, elsewhere, "on another thread");
    let distinct: std::collections::BTreeSet<_> = first.iter().collect();
    assert_eq!(distinct.len(), first.len());
}

/// The sink of an ordered trigger, which holds each event until it may go on.
fn gated(gate: &Arc<Semaphore>, log: &Ledger<u64>) -> TriggerSpec {
    let (gate, log) = (Arc::clone(gate), log.clone());
    let sink = InProcessSink::new("gated", move |event: Event| {
        let (gate, log) = (Arc::clone(&gate), log.clone());
        async move {
            gate.acquire().await.unwrap().forget();
            log.record(event.payload.as_u64().unwrap());
            Ok(())
        }
    });
    let settings = DeliverySettings::durable().deliver_policy(DeliverPolicy::All).ordered();
    Trigger::new("billing", TriggerFilter::by_subject("events.a"), Arc::new(sink)).with_delivery(settings)
}

#[test]
fn an_ordered_trigger_does_not_overtake_the_one_that_it_replaces() {
    TestBus::explore(0..1, |t| async move {
        let (broker, log) = (Arc::new(Broker::new()), Ledger::default());
        let (before, after) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(9)));
        broker.put_trigger(gated(&before, &log)).await?;
        let mut running = broker.run(t.bus()?).await?;
        t.publish("events.a", 1).await?;
        t.settle().await;
        broker.put_trigger(gated(&after, &log)).await?;
        running.synced().await?;
        t.publish("events.a", 2).await?;
        t.settle().await;
        assert_eq!(log.entries(), [0; 0], "the first event is still being delivered");
        before.add_permits(1);
        t.settle().await;
        assert_eq!(log.entries(), [1, 2]);
        // One that waits must not hold up a removal.
        before.forget_permits(9);
        broker.put_trigger(gated(&before, &log)).await?;
        t.publish("events.a", 3).await?;
        t.settle().await;
        broker.put_trigger(gated(&after, &log)).await?;
        running.synced().await?;
        assert!(broker.remove_trigger("billing").await);
        running.synced().await?;
        before.add_permits(1);
        running.shutdown().await;
        assert_eq!(log.entries(), [1, 2, 3]);
        Ok(())
    });
}
