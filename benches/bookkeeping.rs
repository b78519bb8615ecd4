//! Benchmarks of the code without I/O: the consumer state machine and subject matching.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

use std::hint::black_box;
use std::time::Duration;

use a3s_event::SubscribeOptions;
use a3s_event::provider::group::{ConsumerConfig, Fetched, GroupState, Lease, Start, Time};
use a3s_event::subject::{SubjectIndex, subject_matches};
use criterion::{Criterion, criterion_group, criterion_main};

fn consumer_with(pending: u64) -> (GroupState, Vec<Lease>) {
    let options = SubscribeOptions { max_ack_pending: Some(1_000_000), ..SubscribeOptions::default() };
    let mut consumer = GroupState::new(ConsumerConfig::new("events.>", &options).unwrap(), Start::after(0));
    let leases = (0..pending).map(|_| fetch(&mut consumer, Time::ZERO)).collect();
    (consumer, leases)
}

fn fetch(consumer: &mut GroupState, now: Time) -> Lease {
    match consumer.fetch(now, 1, |cursor| Some(cursor + 1)) {
        Fetched::Deliver(lease) => lease,
        other => panic!("nothing to deliver: {other:?}"),
    }
}

/// Baseline: the same work with ten events pending.
fn redelivery(c: &mut Criterion) {
    for (name, pending) in [("baseline_10_pending", 10), ("100000_pending", 100_000)] {
        c.benchmark_group("fetch_and_ack").bench_function(name, |b| {
            let (mut consumer, _) = consumer_with(pending);
            b.iter(|| {
                let lease = fetch(&mut consumer, Time::ZERO);
                consumer.ack(black_box(lease)).unwrap();
            });
        });
        c.benchmark_group("nak_and_redeliver").bench_function(name, |b| {
            let (mut consumer, mut leases) = consumer_with(pending);
            let mut turn = 0;
            b.iter(|| {
                let lease = &mut leases[turn];
                consumer.nak(*lease, None, Time::ZERO).unwrap();
                *lease = fetch(&mut consumer, Time::ZERO);
                turn = (turn + 7) % usize::try_from(pending).unwrap();
            });
        });
        c.benchmark_group("expire_and_redeliver").bench_function(name, |b| {
            let (mut consumer, _) = consumer_with(pending);
            let mut now = Time::ZERO;
            b.iter(|| {
                now = now.max(consumer.next_due().unwrap());
                black_box(fetch(&mut consumer, now));
            });
        });
    }
}

/// Baseline: an index of ten filters.
fn subjects(c: &mut Criterion) {
    c.bench_function("subject_matches", |b| {
        b.iter(|| subject_matches(black_box("events.market.forex.usd_cny"), black_box("events.*.forex.>")));
    });
    for (name, filters) in [("baseline_10_filters", 10), ("100000_filters", 100_000)] {
        let mut index = SubjectIndex::new();
        for number in 0..filters {
            index.insert(&format!("events.market.topic-{number}.>"), number).unwrap();
        }
        c.benchmark_group("index_match").bench_function(name, |b| {
            b.iter(|| {
                index.for_each_match(black_box("events.market.topic-7.tick"), |value| {
                    black_box(value);
                });
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = redelivery, subjects
}
criterion_main!(benches);
