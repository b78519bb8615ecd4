//! What happens at the bounds of numbers, and of the work of one call.

use super::*;

#[test]
fn sequences_end_where_scripts_cannot_count() {
    on_every_server(|stream| {
        let last = (1_u64 << 53) - 2;
        cmd("HSET")
            .arg(stream.keys.meta())
            .arg(&[("last", last), ("first", last)])
            .exec(&mut stream.connection)
            .unwrap();
        let before = stream.stored();
        let two = [record("events.a", b"{}"), record("events.a", b"{}")];
        assert_eq!(stream.try_publish(&two).unwrap(), Published::Exhausted);
        assert_eq!(stream.stored(), before);
        let stored = Published::Done { outcomes: vec![Outcome::Stored(last + 1)], has_surplus: false };
        assert_eq!(stream.try_publish(&two[..1]).unwrap(), stored);
        stream.consumer("c", "events.a", &options());
        assert_eq!(sequences_of(&stream.fetch("c", 9)), [last + 1]);
        assert_eq!(stream.fetch("c", 9).deliveries, []);
    });
}

#[test]
fn a_delay_may_have_any_length() {
    on_every_server(|stream| {
        stream.publish(["events.a"]);
        stream.consumer("c", "events.>", &options());
        let delivered = stream.fetch("c", 1);
        assert_eq!(
            stream.settle("c", &AckKind::Nak(Some(Duration::MAX)), &leases(&delivered)),
            [Settled::Done]
        );
        let waiting = stream.fetch("c", 1);
        assert_eq!((waiting.deliveries.len(), waiting.due), (0, Some(Duration::from_millis(1 << 52))));
        // The clock is set back.
        stream.now -= 1_000;
        assert_eq!(stream.fetch("c", 1).due, Some(Duration::from_millis(1 << 52)));
        stream.now += 1 << 52;
        let delivered = stream.fetch("c", 1);
        assert_eq!(leases(&delivered), [Lease::new(1, 2)]);
        assert_eq!(
            stream.settle("c", &AckKind::Nak(Some(Duration::from_nanos(1))), &leases(&delivered)),
            [Settled::Done]
        );
        assert_eq!(stream.fetch("c", 1).due, Some(Duration::from_millis(1)), "it is not redelivered earlier");
    });
}

#[test]
fn a_drop_costs_work_for_each_filter_and_a_call_is_bounded() {
    const CONSUMERS: usize = 200;
    on_every_server(|stream| {
        let subjects: Vec<String> = (0..512).map(|number| format!("events.s{number}.x")).collect();
        let filters: Vec<String> = (0..CONSUMERS)
            .map(|number| match number % 4 {
                0 => format!("events.s{number}.*"),
                1 => format!("events.s{number}.x"),
                2 => "events.>".to_owned(),
                _ => "events.*.x".to_owned(),
            })
            .collect();
        for (number, filter) in filters.iter().enumerate() {
            stream.consumer(&format!("c{number}"), filter, &options());
        }
        for _ in 0..2 {
            stream.publish(subjects.iter().map(String::as_str));
        }
        stream.open(Limits { max_events: Some(24), ..Limits::default() });
        let mut steps = Vec::new();
        while let retain::Retained { dropped, has_surplus: true } = stream.retain().unwrap() {
            steps.push(dropped);
        }
        let [first, second, ..] = &*steps else { panic!("{steps:?}") };
        assert_eq!(*first, 4096 / 200, "all consumers may have filters of their own");
        assert_eq!(*second, 4096 / 51, "50 have a wildcard of their own, the others share one");
        for (number, filter) in filters.iter().enumerate() {
            let dropped = subjects.iter().chain(&subjects).take(1_000);
            let missed =
                dropped.filter(|subject| crate::subject::subject_matches(subject, filter)).count() as u64;
            let fetched = stream.try_fetch(&format!("c{number}"), 1).unwrap();
            assert_eq!(fetched, Fetched::Missed(missed), "{filter}");
        }
        let left: usize = cmd("HLEN").arg(stream.keys.overtaken()).query(&mut stream.connection).unwrap();
        assert_eq!(left, 1, "only the list of patterns, which is empty");
    });
}

#[test]
fn each_of_many_events_that_are_due_comes_once() {
    on_every_server(|stream| {
        let options = SubscribeOptions { max_ack_pending: Some(5_000), ..options() };
        stream.consumer("c", "events.>", &options);
        for _ in 0..5 {
            stream.publish(["events.a"; 500]);
        }
        while !stream.fetch("c", 1_000).deliveries.is_empty() {}
        stream.now += 31_000;
        stream.publish(["events.a"]);
        let mut delivered = Vec::new();
        loop {
            let events = stream.fetch("c", 1_200);
            if events.deliveries.is_empty() {
                break;
            }
            delivered.extend(leases(&events));
        }
        let (again, first): (Vec<_>, Vec<_>) = delivered.iter().partition(|lease| lease.attempt == 2);
        assert_eq!((again.len(), first), (2_500, vec![&Lease::new(2_501, 1)]));
        assert_eq!(delivered.last(), Some(&Lease::new(2_501, 1)), "what is due comes first");
        delivered.sort_by_key(|lease| lease.sequence);
        assert!(delivered.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    });
}

#[test]
fn a_backlog_of_many_subjects_comes_in_order_and_is_reported_when_it_is_dropped() {
    on_every_server(|stream| {
        let subjects: Vec<String> = (0..20_000).map(|number| format!("events.s{number}")).collect();
        for part in subjects.chunks(500) {
            stream.publish(part.iter().map(String::as_str));
        }
        let config = config(
            "events.>",
            &SubscribeOptions { deliver_policy: DeliverPolicy::LastPerSubject, ..options() },
        );
        let OpenedConsumer::StartsAtNewest(last) = stream.open_consumer(&wanted("c", &config)) else {
            panic!()
        };
        // These come after the start, even those of subjects that are not yet looked for.
        stream.publish(["events.s0", "events.s19999"]);
        let mut sequences = Vec::new();
        for part in subjects.chunks(newest::MAX_SUBJECTS) {
            let call = newest::newest(&stream.keys, EPOCH, part, last);
            sequences.extend(newest::read(stream.call(call).unwrap()).unwrap().unwrap());
        }
        sequences.sort_unstable();
        assert_eq!(sequences, (1..=20_000).collect::<Vec<_>>());
        let backlog = Backlog { sequences, cursor: last };
        let opened = stream.open_consumer(&Wanted { start: Some(&backlog), ..wanted("c", &config) });
        assert!(matches!(opened, OpenedConsumer::Opened { is_new: true, .. }));
        let first = stream.fetch("c", 300);
        assert_eq!(sequences_of(&first), (1..=300).collect::<Vec<_>>());
        stream.settle("c", &AckKind::Ack, &leases(&first));
        stream.open(Limits { max_events: Some(1_002), ..Limits::default() });
        while stream.retain().unwrap().has_surplus {}
        assert_eq!(stream.try_fetch("c", 1).unwrap(), Fetched::Missed(18_700));
        let mut delivered = Vec::new();
        for _ in 0..3 {
            let events = stream.fetch("c", 500);
            delivered.extend(sequences_of(&events));
            stream.settle("c", &AckKind::Ack, &leases(&events));
        }
        assert_eq!(delivered, (19_001..=20_002).collect::<Vec<_>>());
    });
}

#[test]
fn a_fetch_looks_at_so_many_records_and_bytes() {
    on_every_server(|stream| {
        for _ in 0..5 {
            stream.publish(["events.other"; 500]);
        }
        stream.publish(["events.rare"]);
        stream.consumer("rare", "events.rare", &options());
        let mut calls = 1;
        let found = loop {
            let events = stream.fetch("rare", 9);
            if !events.deliveries.is_empty() {
                break events;
            }
            assert!(events.has_more);
            calls += 1;
        };
        assert_eq!((sequences_of(&found), found.has_more, calls), (vec![2_501], false, 3));
        assert!(!stream.fetch("rare", 9).has_more);

        let large = vec![b'x'; 400_000];
        for _ in 0..20 {
            stream.try_publish(&[record("events.large", &large)]).unwrap();
        }
        stream.consumer("large", "events.large", &options());
        while stream.fetch("large", 9).deliveries.is_empty() {}
        let events = stream.fetch("large", 9);
        assert_eq!(
            (events.deliveries.len(), events.has_more),
            (3, true),
            "1 MiB and the end of the last one"
        );
        let mut calls = 1;
        while stream.fetch("rare", 9).has_more {
            calls += 1;
        }
        assert!(calls > 5, "others' large records are looked at in {calls} calls");
        stream.open(Limits { max_bytes: Some(1), ..Limits::default() });
        let steps = std::iter::from_fn(|| Some(stream.retain().unwrap().has_surplus))
            .take_while(|more| *more)
            .count();
        assert!(steps > 5, "large records are dropped in {steps} calls");
    });
}

#[test]
fn a_purge_goes_in_steps_and_keeps_what_is_stored_meanwhile() {
    on_every_server(|stream| {
        for _ in 0..4 {
            stream.publish(["events.a", "events.b"].repeat(200));
        }
        stream.consumer("c", "events.*", &options());
        let pattern = lua_pattern("events.a", "events");
        let (mut deleted, mut from, mut through, mut steps) = (0, 0, None, 0);
        loop {
            let purged = stream.purge(&pattern, from, through);
            stream.publish(["events.a"]);
            (deleted, steps) = (deleted + purged.deleted, steps + 1);
            through = Some(purged.through);
            let Some(next) = purged.next else { break };
            from = next;
        }
        assert_eq!((deleted, steps, through), (800, 4, Some(1_600)));
        let left: Vec<u64> = cmd("LRANGE")
            .arg(stream.keys.subject("events.a"))
            .arg(&[0, -1])
            .query(&mut stream.connection)
            .unwrap();
        assert_eq!(left, [1_601, 1_602, 1_603, 1_604]);
        assert_eq!(stream.try_fetch("c", 9).unwrap(), Fetched::Missed(800));
        assert_eq!(sequences_of(&stream.fetch("c", 3)), [2, 4, 6]);
    });
}
