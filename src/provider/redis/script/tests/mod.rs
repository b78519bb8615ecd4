//! Tests of single scripts, against every server.

mod bounds;
mod foreign;
mod mirror;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use redis::{Connection, RedisResult, Value, cmd};

use super::fetch::{self, Events, Fetched};
use super::open_consumer::{self, Backlog, OpenedConsumer, Wanted};
use super::open_stream::{self, Limits, OpenedStream};
use super::publish::{self, Outcome, Published, Record};
use super::server::{Server, run};
use super::settle::{self, Settled, Settling};
use super::{Call, close_consumer, heartbeat, newest, purge, reset, retain};
use crate::provider::group::{ConsumerConfig, Lease};
use crate::provider::redis::keys::Keys;
use crate::provider::redis::pattern::lua_pattern;
use crate::provider::{AckKind, ConsumerPosition};
use crate::types::{DeliverPolicy, SubscribeOptions};

const EPOCH: &str = "epoch";
const NOW: u64 = 1_790_000_000_000;

/// A stream of its own on a server.
struct Stream {
    version: &'static str,
    connection: Connection,
    keys: Keys,
    now: u64,
}

/// Runs a test on a new stream of every server.
fn on_every_server(test: impl Fn(&mut Stream)) {
    static STREAMS: AtomicU32 = AtomicU32::new(0);
    for server in Server::all() {
        let keys = Keys::new("test", &format!("s{}", STREAMS.fetch_add(1, Ordering::Relaxed)));
        let mut stream = Stream { version: server.version, connection: server.connect(), keys, now: NOW };
        stream.open(Limits::default());
        println!("{}", server.version);
        test(&mut stream);
    }
}

impl Stream {
    fn call(&mut self, call: Call) -> RedisResult<Value> {
        run(&mut self.connection, &call)
    }

    fn open(&mut self, limits: Limits) -> OpenedStream {
        let call = open_stream::open_stream(&self.keys, "events", EPOCH, true, limits);
        open_stream::read(self.call(call).unwrap()).unwrap()
    }

    fn try_publish(&mut self, records: &[Record<'_>]) -> RedisResult<Published> {
        let call = publish::publish(&self.keys, EPOCH, records).at(self.now);
        self.call(call).map(|reply| publish::read(reply, records.len()).unwrap())
    }

    /// Publishes events of these subjects. Returns whether there is more to drop.
    fn publish<'a>(&mut self, subjects: impl IntoIterator<Item = &'a str>) -> bool {
        let records: Vec<_> = subjects.into_iter().map(|subject| record(subject, b"{}")).collect();
        match self.try_publish(&records).unwrap() {
            Published::Done { has_surplus, outcomes } => {
                assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Stored(_))), "{outcomes:?}");
                has_surplus
            }
            other => panic!("{other:?}"),
        }
    }

    fn open_consumer(&mut self, wanted: &Wanted<'_>) -> OpenedConsumer {
        let call = open_consumer::open_consumer(&self.keys, EPOCH, wanted).unwrap().at(self.now);
        open_consumer::read(self.call(call).unwrap(), &wanted.config.filter).unwrap()
    }

    fn consumer(&mut self, name: &str, filter: &str, options: &SubscribeOptions) {
        let opened = self.open_consumer(&wanted(name, &config(filter, options)));
        assert!(matches!(opened, OpenedConsumer::Opened { is_new: true, .. }), "{opened:?}");
    }

    fn try_fetch(&mut self, name: &str, max: usize) -> RedisResult<Fetched> {
        let request = fetch::Request { name, generation: name, max, max_bytes: 1 << 20, is_ephemeral: false };
        let call = fetch::fetch(&self.keys, EPOCH, request).at(self.now);
        self.call(call).map(|reply| fetch::read(reply).unwrap())
    }

    fn fetch(&mut self, name: &str, max: usize) -> Events {
        match self.try_fetch(name, max).unwrap() {
            Fetched::Events(events) => events,
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self, name: &str, kind: &AckKind, leases: &[Lease]) -> Vec<Settled> {
        self.settle_id(name, kind, leases, None)
    }

    fn settle_id(&mut self, name: &str, kind: &AckKind, leases: &[Lease], id: Option<&str>) -> Vec<Settled> {
        let settlings: Vec<_> =
            leases.iter().map(|lease| Settling { lease: *lease, kind, id: id.unwrap_or_default() }).collect();
        let moves = leases.first().map_or(0, |lease| lease.generation);
        let checks_ids = id.is_some();
        let request = settle::Request { name, generation: name, moves, checks_ids, settlings: &settlings };
        let call = settle::settle(&self.keys, EPOCH, request).at(self.now);
        settle::read(self.call(call).unwrap()).unwrap()
    }

    fn retain(&mut self) -> RedisResult<retain::Retained> {
        let call = retain::retain(&self.keys, EPOCH).at(self.now);
        self.call(call).map(|reply| retain::read(reply).unwrap().unwrap())
    }

    fn purge(&mut self, pattern: &str, from: u64, through: Option<u64>) -> purge::Purged {
        let call = purge::purge(&self.keys, EPOCH, pattern, from, through);
        purge::read(self.call(call).unwrap()).unwrap().unwrap()
    }

    /// Returns everything that is stored.
    fn stored(&mut self) -> BTreeMap<String, Vec<Value>> {
        let keys: Vec<String> =
            cmd("KEYS").arg(format!("{}*", self.keys.base())).query(&mut self.connection).unwrap();
        keys.into_iter().map(|key| (key.clone(), self.content(&key))).collect()
    }

    fn content(&mut self, key: &str) -> Vec<Value> {
        let kind: String = cmd("TYPE").arg(key).query(&mut self.connection).unwrap();
        let (command, arguments): (&str, &[&str]) = match kind.as_str() {
            "hash" => ("HGETALL", &[]),
            "zset" => ("ZRANGE", &["0", "-1", "WITHSCORES"]),
            "list" => ("LRANGE", &["0", "-1"]),
            "stream" => ("XRANGE", &["-", "+"]),
            _ => return vec![cmd("GET").arg(key).query(&mut self.connection).unwrap()],
        };
        let mut content: Vec<Value> =
            cmd(command).arg(key).arg(arguments).query(&mut self.connection).unwrap();
        if kind == "hash" {
            // The fields have no order.
            let mut fields: Vec<_> = content.chunks(2).map(<[Value]>::to_vec).collect();
            fields.sort_by_key(|field| format!("{field:?}"));
            content = fields.concat();
        }
        content
    }
}

fn record<'a>(subject: &'a str, json: &'a [u8]) -> Record<'a> {
    Record { subject, msg_id: None, expected_sequence: None, json }
}

fn config(filter: &str, options: &SubscribeOptions) -> ConsumerConfig {
    ConsumerConfig::new(filter, options).unwrap()
}

/// A consumer whose generation is its name.
fn wanted<'a>(name: &'a str, config: &'a ConsumerConfig) -> Wanted<'a> {
    Wanted {
        name,
        generation: name,
        config,
        prefix: "events",
        applies: true,
        is_ephemeral: false,
        mirrors: false,
        start: None,
    }
}

fn options() -> SubscribeOptions {
    SubscribeOptions::default()
}

fn leases(events: &Events) -> Vec<Lease> {
    events.deliveries.iter().map(|delivery| delivery.lease).collect()
}

fn sequences_of(events: &Events) -> Vec<u64> {
    events.deliveries.iter().map(|delivery| delivery.lease.sequence).collect()
}

#[test]
fn a_stream_keeps_its_prefix_its_limits_and_its_format() {
    on_every_server(|stream| {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        stream.open(Limits { max_events: Some(7), max_age: seconds(9), ..Limits::default() });
        let opened = stream.open(Limits { max_bytes: Some(8), ..Limits::default() });
        let limits =
            Limits { max_events: Some(7), max_bytes: Some(8), max_age: seconds(9), dedup_window: seconds(0) };
        assert_eq!(opened, OpenedStream::Opened { epoch: EPOCH.to_owned(), is_new: false, limits });
        let open = |stream: &mut Stream, prefix, creates| {
            let call = open_stream::open_stream(&stream.keys, prefix, "other", creates, Limits::default());
            open_stream::read(stream.call(call).unwrap()).unwrap()
        };
        assert_eq!(open(stream, "others", true), OpenedStream::OtherPrefix("events".to_owned()));
        cmd("HSET").arg(stream.keys.meta()).arg("v").arg(2).exec(&mut stream.connection).unwrap();
        assert_eq!(open(stream, "events", true), OpenedStream::OtherFormat("2".to_owned()));
        cmd("DEL").arg(stream.keys.meta()).exec(&mut stream.connection).unwrap();
        assert_eq!(open(stream, "events", false), OpenedStream::Absent);
    });
}

#[test]
fn an_event_that_was_lost_in_a_failover_does_not_settle_its_successor() {
    on_every_server(|stream| {
        stream.publish(["events.a"]);
        stream.consumer("c", "events.>", &options());
        let delivered = stream.fetch("c", 1);
        let [delivery] = &*delivered.deliveries else { panic!("{delivered:?}") };
        let lost = format!("1-{}", NOW - 1);
        assert_eq!(stream.settle_id("c", &AckKind::Ack, &[delivery.lease], Some(&lost)), [Settled::Lost]);
        assert_eq!(
            stream.settle_id("c", &AckKind::Ack, &[delivery.lease], Some(&delivery.id)),
            [Settled::Done]
        );
    });
}

#[test]
fn an_ephemeral_consumer_goes_an_hour_after_its_process() {
    on_every_server(|stream| {
        let config = config("events.*", &options());
        let names = ["dead", "fetches", "beats"];
        for name in names {
            stream.open_consumer(&Wanted { is_ephemeral: true, ..wanted(name, &config) });
        }
        stream.publish(["events.a"; 3]);
        stream.open(Limits { max_events: Some(1), ..Limits::default() });
        stream.retain().unwrap();
        let beat = |stream: &mut Stream, names: &[&str]| {
            let call = heartbeat::heartbeat(&stream.keys, names).at(stream.now);
            heartbeat::read(stream.call(call).unwrap()).unwrap()
        };
        stream.now += 3_000_000;
        let request = fetch::Request {
            name: "fetches",
            generation: "fetches",
            max: 1,
            max_bytes: 1,
            is_ephemeral: true,
        };
        let call = fetch::fetch(&stream.keys, EPOCH, request).at(stream.now);
        assert_eq!(fetch::read(stream.call(call).unwrap()).unwrap(), Fetched::Missed(2));
        assert_eq!(beat(stream, &["beats"]), [] as [&str; 0]);
        let consumers = stream.keys.consumers();
        let is_known: bool = cmd("HEXISTS").arg(consumers).arg("dead").query(&mut stream.connection).unwrap();
        assert!(is_known, "not before the hour is over");
        stream.now += 1_000_000;
        assert_eq!(beat(stream, &["fetches", "beats"]), [] as [&str; 0]);
        assert_eq!(beat(stream, &["dead"]), ["dead"]);
        assert_eq!(stream.try_fetch("dead", 1).unwrap(), Fetched::Gone);
        let left: Vec<String> =
            cmd("HKEYS").arg(stream.keys.consumers()).query(&mut stream.connection).unwrap();
        assert_eq!(left.len(), 2);
        let overtaken: BTreeMap<String, String> =
            cmd("HGETALL").arg(stream.keys.overtaken()).query(&mut stream.connection).unwrap();
        assert_eq!(overtaken["#^events%.[^.]+$"], "1", "only the one that beats is still overtaken");
    });
}

#[test]
fn what_gives_members_work_wakes_them() {
    on_every_server(|stream| {
        let mut listener =
            Server::all().iter().find(|server| server.version == stream.version).unwrap().connect();
        let mut channel = listener.as_pubsub();
        channel.subscribe(stream.keys.channel()).unwrap();
        let mut told = |stream: &mut Stream| {
            // What is published last ends what came before.
            cmd("PUBLISH").arg(stream.keys.channel()).arg("end").exec(&mut stream.connection).unwrap();
            let messages = std::iter::from_fn(|| channel.get_message().unwrap().get_payload::<String>().ok());
            messages.take_while(|message| message != "end").collect::<Vec<_>>()
        };
        let nothing = [] as [&str; 0];
        stream.publish(["events.a", "events.b", "events.a"]);
        assert_eq!(told(stream), ["e events.a\nevents.b"]);
        let many: Vec<String> = (0..65).map(|number| format!("events.{number}")).collect();
        stream.publish(many.iter().map(String::as_str));
        assert_eq!(told(stream), ["e *"]);
        let options = SubscribeOptions { max_ack_pending: Some(3), max_deliver: Some(2), ..options() };
        stream.consumer("c", "events.>", &options);
        let leased = leases(&stream.fetch("c", 2));
        assert_eq!(told(stream), nothing);
        stream.settle("c", &AckKind::Ack, &leased[..1]);
        stream.settle("c", &AckKind::Extend, &leased[1..]);
        assert_eq!(told(stream), nothing);
        stream.settle("c", &AckKind::Nak(None), &leased[1..]);
        assert_eq!(told(stream), ["c c"]);
        let again = leases(&stream.fetch("c", 1));
        stream.settle("c", &AckKind::Release, &again);
        assert_eq!(told(stream), ["c c"]);
        let full = leases(&stream.fetch("c", 9));
        assert_eq!(full.len(), 3);
        stream.settle("c", &AckKind::Term(String::new()), &full[2..]);
        assert_eq!(told(stream), ["c c"], "there is room again");
        let changed = SubscribeOptions { max_ack_pending: Some(4), ..options };
        for expected in [&["m c"][..], &[]] {
            let config = config("events.>", &changed);
            let opened = stream.open_consumer(&wanted("c", &config));
            assert!(
                matches!(opened, OpenedConsumer::Opened { is_new: false, revision: 1, .. }),
                "{opened:?}"
            );
            assert_eq!(told(stream), expected);
        }
        let reset = reset::reset(&stream.keys, EPOCH, "c", ConsumerPosition::Last);
        assert_eq!(reset::read(stream.call(reset).unwrap()).unwrap(), reset::Moved::Done);
        assert_eq!(told(stream), ["m c"]);
        for existed in [true, false] {
            let close = close_consumer::close_consumer(&stream.keys, "c", None);
            assert_eq!(close_consumer::read(stream.call(close).unwrap()).unwrap(), existed);
            assert_eq!(told(stream), if existed { &["m c"][..] } else { &[] });
        }
    });
}
