//! What other programs can do to the keys.

use super::*;

#[test]
fn another_stream_of_the_name_is_told_apart() {
    on_every_server(|stream| {
        stream.publish(["events.a"]);
        stream.consumer("c", "events.>", &options());
        let delivered = stream.fetch("c", 1);
        cmd("HSET").arg(stream.keys.meta()).arg("epoch").arg("new").exec(&mut stream.connection).unwrap();
        let before = stream.stored();
        assert_eq!(stream.try_publish(&[record("events.a", b"{}")]).unwrap(), Published::StreamReplaced);
        assert_eq!(stream.try_fetch("c", 1).unwrap(), Fetched::StreamReplaced);
        let config = config("events.>", &options());
        assert_eq!(stream.open_consumer(&wanted("c", &config)), OpenedConsumer::StreamReplaced);
        let calls = [
            retain::retain(&stream.keys, EPOCH),
            purge::purge(&stream.keys, EPOCH, "", 0, None),
            newest::newest(&stream.keys, EPOCH, &["events.a"], 1),
            reset::reset(&stream.keys, EPOCH, "c", ConsumerPosition::First),
        ];
        for call in calls {
            assert_eq!(
                stream.call(call).unwrap(),
                Value::Array(vec![Value::BulkString(b"replaced".to_vec())])
            );
        }
        assert_eq!(stream.stored(), before);
        cmd("DEL").arg(stream.keys.consumer("c")).exec(&mut stream.connection).unwrap();
        assert_eq!(stream.settle("c", &AckKind::Ack, &leases(&delivered)), [Settled::StreamReplaced]);
    });
}

#[test]
fn a_record_of_another_program_raises_the_sequences_and_is_delivered() {
    on_every_server(|stream| {
        stream.publish(["events.a"]);
        stream.consumer("c", "events.b", &options());
        let foreign: String =
            cmd("XADD").arg(stream.keys.log()).arg(&["*", "k", "v"]).query(&mut stream.connection).unwrap();
        let sequence: u64 = foreign.split_once('-').unwrap().0.parse().unwrap();
        stream.publish(["events.b", "events.c"]);
        let delivered = stream.fetch("c", 9);
        assert_eq!(sequences_of(&delivered), [sequence, sequence + 1]);
        let [first, second] = &*delivered.deliveries else { panic!("{delivered:?}") };
        assert_eq!((first.subject.as_str(), &*first.json, &first.id), ("", &b"k v"[..], &foreign));
        assert_eq!(second.subject, "events.b");
        let list: Vec<u64> = cmd("LRANGE")
            .arg(stream.keys.subject("events.b"))
            .arg(&[0, -1])
            .query(&mut stream.connection)
            .unwrap();
        assert_eq!(list, [sequence + 1], "the entry of the sequence that was refused is taken back");
        // A deleted one raises them, too.
        let foreign: String = cmd("XADD")
            .arg(stream.keys.log())
            .arg(&["9000000000000-1", "k", "v"])
            .query(&mut stream.connection)
            .unwrap();
        cmd("XDEL").arg(stream.keys.log()).arg(&foreign).exec(&mut stream.connection).unwrap();
        stream.publish(["events.b"]);
        assert_eq!(sequences_of(&stream.fetch("c", 9)), [9_000_000_000_001]);
        let gap: u64 = cmd("HGET").arg(stream.keys.meta()).arg("gap").query(&mut stream.connection).unwrap();
        assert_eq!(gap, 9_000_000_000_000);
        stream.open(Limits { max_events: Some(1), ..Limits::default() });
        assert_eq!(stream.retain().unwrap(), retain::Retained { dropped: 4, has_surplus: false });
        let bytes: u64 =
            cmd("HGET").arg(stream.keys.meta()).arg("bytes").query(&mut stream.connection).unwrap();
        assert_eq!(bytes, 2, "a record of another program was never counted");
    });
}

#[test]
fn an_event_does_not_get_the_sequence_of_a_record_of_another_program() {
    on_every_server(|stream| {
        stream.publish(["events.a"]);
        stream.consumer("c", "events.>", &options());
        // The log would take 2 again, with a later time.
        cmd("XADD").arg(stream.keys.log()).arg(&["2-7", "k", "v"]).exec(&mut stream.connection).unwrap();
        stream.publish(["events.a", "events.b"]);
        assert_eq!(sequences_of(&stream.fetch("c", 9)), [1, 2, 3, 4]);
        let list: Vec<u64> = cmd("LRANGE")
            .arg(stream.keys.subject("events.a"))
            .arg(&[0, -1])
            .query(&mut stream.connection)
            .unwrap();
        assert_eq!(list, [1, 3]);
    });
}

#[test]
fn a_start_time_is_found_beside_a_record_of_another_program() {
    on_every_server(|stream| {
        stream.publish(["events.a"]);
        stream.now += 1_000;
        stream.publish(["events.a"]);
        let foreign = format!("{}-0", NOW + 1_500);
        cmd("XADD").arg(stream.keys.log()).arg(&[&foreign, "k", "v"]).exec(&mut stream.connection).unwrap();
        stream.now += 1_000;
        stream.publish(["events.a"]);
        for (name, time, first) in [
            ("a", NOW, 1),
            ("b", NOW + 1, 2),
            ("c", NOW + 1_001, NOW + 1_500),
            ("d", NOW + 1_501, NOW + 1_501),
        ] {
            let deliver_policy = DeliverPolicy::ByStartTime { timestamp: time };
            stream.consumer(name, "events.>", &SubscribeOptions { deliver_policy, ..options() });
            assert_eq!(sequences_of(&stream.fetch(name, 1)), [first], "{name}");
        }
    });
}

/// Replaces each key in turn by one of another type.
#[test]
fn a_key_of_another_type_stops_a_script_before_it_writes() {
    on_every_server(|stream| {
        stream.publish(["events.a", "events.b"]);
        stream.consumer("c", "events.>", &SubscribeOptions { max_ack_pending: Some(3), ..options() });
        let delivered = stream.fetch("c", 1);
        let given_back = stream.settle("c", &AckKind::Nak(Some(Duration::from_secs(1))), &leases(&delivered));
        assert_eq!(given_back, [Settled::Done]);
        stream.now += 2_000;
        let keys = stream.keys.clone();
        let of_publish = [
            keys.log(),
            keys.meta(),
            keys.subjects(),
            keys.subject("events.b"),
            keys.ids(),
            keys.id_queue(),
            keys.cursors(),
        ];
        let of_fetch = [
            keys.log(),
            keys.meta(),
            keys.consumer("c"),
            keys.due("c"),
            keys.attempts("c"),
            keys.backlog("c"),
            keys.cursors(),
            keys.lagged(),
        ];
        let of_settle = [keys.consumer("c"), keys.due("c"), keys.attempts("c")];
        let publish = |stream: &mut Stream| {
            let mut records = [record("events.new", b"{}"), record("events.b", b"{}")];
            records[0].msg_id = Some("m");
            stream.try_publish(&records).map(drop)
        };
        let fetch = |stream: &mut Stream| stream.try_fetch("c", 9).map(drop);
        let settle = |stream: &mut Stream| {
            let settlings = [Settling { lease: Lease::new(1, 1), kind: &AckKind::Ack, id: "" }];
            let request = settle::Request {
                name: "c",
                generation: "c",
                moves: 0,
                checks_ids: false,
                settlings: &settlings,
            };
            let call = settle::settle(&stream.keys, EPOCH, request).at(stream.now);
            stream.call(call).map(drop)
        };
        type Work<'a> = &'a dyn Fn(&mut Stream) -> RedisResult<()>;
        let works: [(&str, &[String], Work<'_>); 3] = [
            ("publish", &of_publish, &publish),
            ("fetch", &of_fetch, &fetch),
            ("settle", &of_settle, &settle),
        ];
        for (name, keys, work) in works {
            for key in keys {
                let kept: Option<Vec<u8>> = cmd("DUMP").arg(key).query(&mut stream.connection).unwrap();
                cmd("SET").arg(key).arg("of another type").exec(&mut stream.connection).unwrap();
                let before = stream.stored();
                let error = work(stream).expect_err(key);
                assert!(
                    error.to_string().contains("WRONGTYPE") || error.code() == Some("WRONGTYPE"),
                    "{name} {key}: {error}"
                );
                assert_eq!(stream.stored(), before, "{name} {key}");
                cmd("DEL").arg(key).exec(&mut stream.connection).unwrap();
                if let Some(kept) = kept {
                    cmd("RESTORE").arg(key).arg(0).arg(kept).exec(&mut stream.connection).unwrap();
                }
            }
        }
        assert_eq!(sequences_of(&stream.fetch("c", 9)), [1, 2]);
    });
}

#[test]
fn what_is_stored_is_answered_although_dropping_fails() {
    on_every_server(|stream| {
        stream.open(Limits { max_events: Some(1), ..Limits::default() });
        cmd("SET").arg(stream.keys.overtaken()).arg("of another type").exec(&mut stream.connection).unwrap();
        assert!(stream.publish(["events.a", "events.b"]), "there is more to drop");
        stream.retain().unwrap_err();
        cmd("DEL").arg(stream.keys.overtaken()).exec(&mut stream.connection).unwrap();
        assert_eq!(stream.retain().unwrap(), retain::Retained { dropped: 1, has_surplus: false });
    });
}
