//! Consumer groups that show other programs where consumers stand.

use std::collections::HashMap;

use super::*;

/// What a group shows.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    last_delivered: String,
    /// Unknown at some positions of a log to which another program wrote.
    lag: Option<u64>,
}

impl Stream {
    fn mirrored(&mut self, name: &str) {
        let config = config("events.>", &options());
        self.open_consumer(&Wanted { mirrors: true, ..wanted(name, &config) });
    }

    fn groups(&mut self) -> HashMap<String, Shown> {
        let groups: Vec<HashMap<String, Value>> =
            cmd("XINFO").arg("GROUPS").arg(self.keys.log()).query(&mut self.connection).unwrap();
        let shown = |group: &HashMap<String, Value>| {
            let text = |field: &str| redis::from_redis_value::<String>(group[field].clone()).unwrap();
            let lag = redis::from_redis_value(group["lag"].clone()).unwrap();
            (text("name"), Shown { last_delivered: text("last-delivered-id"), lag })
        };
        groups.iter().map(shown).collect()
    }

    #[track_caller]
    fn assert_shown(&mut self, name: &str, last_delivered: &str, lag: Option<u64>) {
        let expected = Shown { last_delivered: last_delivered.to_owned(), lag };
        assert_eq!(self.groups().remove(name), Some(expected), "{name}");
    }

    fn foreign_record(&mut self, sequence: u64) {
        let id = format!("{sequence}-0");
        let add = cmd("XADD").arg(self.keys.log()).arg(id).arg("name").arg("someone").take();
        add.exec(&mut self.connection).unwrap();
    }
}

#[test]
fn a_mirror_group_stands_where_its_consumer_stands() {
    on_every_server(|stream| {
        stream.mirrored("c");
        stream.assert_shown("c", "0-0", Some(0));
        stream.publish(["events.a"; 5]);
        stream.assert_shown("c", "0-0", Some(5));
        stream.fetch("c", 2);
        stream.assert_shown("c", &format!("2-{NOW}"), Some(3));
        stream.consumer("plain", "events.>", &options());
        stream.fetch("plain", 9);
        stream.open(Limits { max_events: Some(2), ..Limits::default() });
        stream.retain().unwrap();
        assert_eq!(stream.try_fetch("c", 9).unwrap(), Fetched::Missed(1));
        stream.assert_shown("c", "0-0", Some(2));
        assert_eq!(sequences_of(&stream.fetch("c", 1)), [4]);
        stream.assert_shown("c", &format!("4-{NOW}"), Some(1));
        assert_eq!(stream.groups().len(), 1, "only who asks for it has a group");
        let reset = |stream: &mut Stream, position| {
            let call = reset::reset(&stream.keys, EPOCH, "c", position).at(stream.now);
            assert_eq!(reset::read(stream.call(call).unwrap()).unwrap(), reset::Moved::Done);
        };
        reset(stream, ConsumerPosition::Last);
        stream.assert_shown("c", &format!("5-{NOW}"), Some(0));
        reset(stream, ConsumerPosition::Sequence(5));
        stream.assert_shown("c", &format!("4-{NOW}"), Some(1));
        let config = config("events.>", &options());
        stream.open_consumer(&Wanted { mirrors: true, ..wanted("plain", &config) });
        stream.assert_shown("plain", &format!("5-{NOW}"), Some(0));
        let call = close_consumer::close_consumer(&stream.keys, "c", None);
        assert!(close_consumer::read(stream.call(call).unwrap()).unwrap());
        assert_eq!(stream.groups().into_keys().collect::<Vec<_>>(), ["plain"]);
    });
}

#[test]
fn reading_through_a_mirror_group_changes_nothing() {
    on_every_server(|stream| {
        stream.mirrored("c");
        stream.publish(["events.a"; 4]);
        let leased = leases(&stream.fetch("c", 1));
        let read = |stream: &mut Stream| {
            let mut read = cmd("XREADGROUP");
            read.arg(&["GROUP", "c", "someone", "COUNT", "2", "STREAMS"]).arg(stream.keys.log()).arg(">");
            let read: Value = read.query(&mut stream.connection).unwrap();
            assert_ne!(read, Value::Nil, "the group shows records that the consumer has not passed");
        };
        let own = |stream: &mut Stream| {
            let log = stream.keys.log();
            let mut stored = stream.stored();
            stored.remove(&log);
            stored
        };
        let before = own(stream);
        read(stream);
        assert_eq!(own(stream), before);
        assert_eq!(stream.settle("c", &AckKind::Ack, &leased), [Settled::Done]);
        assert_eq!(sequences_of(&stream.fetch("c", 1)), [2]);
        stream.assert_shown("c", &format!("2-{NOW}"), Some(2));
        read(stream);
        assert_eq!(sequences_of(&stream.fetch("c", 9)), [3, 4]);
    });
}

#[test]
fn a_mirror_group_shows_a_lag_behind_a_record_of_another_program() {
    on_every_server(|stream| {
        stream.mirrored("c");
        stream.publish(["events.a"; 3]);
        stream.foreign_record(500);
        stream.publish(["events.a"; 3]);
        assert_eq!(sequences_of(&stream.fetch("c", 2)), [1, 2]);
        stream.assert_shown("c", &format!("2-{NOW}"), None);
        assert_eq!(sequences_of(&stream.fetch("c", 3)), [3, 500, 501]);
        stream.assert_shown("c", &format!("501-{NOW}"), Some(2));
        stream.foreign_record(900);
        assert_eq!(sequences_of(&stream.fetch("c", 1)), [502]);
        // No publish has met the record yet.
        stream.assert_shown("c", &format!("502-{NOW}"), None);
        assert_eq!(sequences_of(&stream.fetch("c", 9)), [503, 900]);
        stream.assert_shown("c", "900-0", Some(0));
    });
}

#[test]
fn a_mirror_group_that_cannot_be_moved_disturbs_nothing() {
    on_every_server(|stream| {
        stream.mirrored("c");
        stream.publish(["events.a"; 4]);
        cmd("XGROUP").arg("DESTROY").arg(stream.keys.log()).arg("c").exec(&mut stream.connection).unwrap();
        assert_eq!(sequences_of(&stream.fetch("c", 1)), [1]);
        assert_eq!(stream.groups(), HashMap::new(), "who deletes the group does not want it");
        let user = format!("few{}", stream.keys.base().len());
        let allow = ["on", "nopass", "~*", "&*", "+@all", "-xgroup"];
        cmd("ACL").arg("SETUSER").arg(&user).arg(&allow).exec(&mut stream.connection).unwrap();
        cmd("AUTH").arg(&user).arg("any").exec(&mut stream.connection).unwrap();
        assert_eq!(sequences_of(&stream.fetch("c", 1)), [2]);
        let before = stream.stored();
        let config = config("events.>", &options());
        let refused = open_consumer::open_consumer(
            &stream.keys,
            EPOCH,
            &Wanted { mirrors: true, ..wanted("new", &config) },
        );
        let error = stream.call(refused.unwrap().at(stream.now)).unwrap_err().to_string();
        assert!(error.contains("ACL") || error.contains("can't run this command"), "{error}");
        assert_eq!(stream.stored(), before, "nothing is done by halves");
    });
}
