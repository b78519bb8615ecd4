//! What lies in the keys of a stream, read as an operator would.

use std::collections::BTreeMap;

use a3s_event::Event;
use a3s_event_testkit::RedisServer;
use a3s_event_testkit::servers::redis::protocol::Reply;

use crate::load::Events;

/// What every key of the stream begins with.
const BASE: &str = "a3s:{events}:";

pub(crate) fn key(name: &str) -> String {
    format!("{BASE}{name}")
}

/// Returns the last sequence of the stream.
pub(crate) async fn last(server: &RedisServer) -> u64 {
    let last = server.command(&["HGET", &key("meta"), "last"]).await;
    last.text().map_or(0, |last| last.parse().unwrap())
}

/// Returns the last sequence of the log, that of the counters, and the number of entries in the index, of one moment.
const COUNTS: &str = "
local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local entries = 0
for _, subject in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  entries = entries + redis.call('LLEN', ARGV[1] .. 's:' .. subject)
end
return { top and top[1]:match('^%d+'), redis.call('HGET', KEYS[2], 'last'), tostring(entries) }
";

/// Fails if log, counters and index of a stream do not agree, in a stream that dropped nothing. Others may publish.
pub(crate) async fn assert_agreed(server: &RedisServer) {
    let counts = server.command(&["EVAL", COUNTS, "3", &key("log"), &key("meta"), &key("subj"), BASE]).await;
    let [top, last, entries] = &texts(&counts)[..] else { panic!("{counts:?}") };
    assert!(
        top == last && last == entries,
        "the log ends with {top}, the counter with {last}, {entries} entries"
    );
}

/// Returns the stored events. Fails if one of them is half stored: log, index, ids and counters must agree, in a stream
/// that dropped nothing and whose events all have an id.
pub(crate) async fn intact(server: &RedisServer) -> Events {
    let log = server.command(&["XRANGE", &key("log"), "-", "+"]).await;
    let (mut events, mut lists) = (Events::new(), BTreeMap::<String, Vec<String>>::new());
    for record in log.list() {
        let [id, fields] = record.list() else { panic!("{record:?}") };
        let sequence = id.text().unwrap().split_once('-').unwrap().0;
        let [_, subject, _, json] = fields.list() else { panic!("{fields:?}") };
        let event: Event = serde_json::from_str(json.text().unwrap()).unwrap();
        let subject = subject.text().unwrap();
        assert_eq!(event.subject, subject);
        lists.entry(subject.to_owned()).or_default().push(sequence.to_owned());
        let known = server.command(&["HGET", &key("ids"), &event.id]).await;
        assert!(known.text().is_some_and(|known| known.starts_with(&format!("{sequence}-"))), "{known:?}");
        events.insert(sequence.parse().unwrap(), event.id);
    }
    let count = i64::try_from(events.len()).unwrap();
    let top = events.keys().last().copied().unwrap_or_default();
    assert!(events.keys().copied().eq(1..=top), "no sequence is missing");
    assert_eq!(last(server).await, top);
    let subjects = server.command(&["ZRANGE", &key("subj"), "0", "-1"]).await;
    assert!(texts(&subjects).into_iter().eq(lists.keys().cloned()), "{subjects:?}");
    for (subject, sequences) in lists {
        let list = server.command(&["LRANGE", &key(&format!("s:{subject}")), "0", "-1"]).await;
        assert_eq!(texts(&list), sequences, "the index of {subject}");
    }
    for command in ["HLEN", "LLEN"] {
        let name = if command == "HLEN" { "ids" } else { "idq" };
        assert_eq!(server.command(&[command, &key(name)]).await, Reply::Integer(count), "{name}");
    }
    events
}

/// Fails unless every acknowledged event is stored under its sequence.
pub(crate) fn assert_stored(acknowledged: &Events, stored: &Events) {
    for (sequence, id) in acknowledged {
        assert_eq!(stored.get(sequence), Some(id), "sequence {sequence} was acknowledged");
    }
}

fn texts(list: &Reply) -> Vec<String> {
    list.list().iter().filter_map(Reply::text).map(str::to_owned).collect()
}
