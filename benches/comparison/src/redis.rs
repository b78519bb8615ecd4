//! Measures the Redis provider, and the redis crate with the same work on a stream and its consumer groups. They share a
//! server and have a stream each.

use std::sync::Arc;

use a3s_event::provider::PublishRequest;
use a3s_event::provider::redis::{RedisConfig, RedisProvider};
use a3s_event::{Event, EventProvider, PublishOptions, Subscription};
use a3s_event_testkit::RedisServer;
use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, cmd};

use crate::board::Board;
use crate::ours;
use crate::support::{self, Receipts};
use crate::{
    BATCH, BURST, CALLERS, CONSUME, CONSUME_IN_BATCHES, FAN_OUT, FILTER, HISTORY, IN_BATCHES,
    IN_BATCHES_WITH_IDS, MANY_CALLERS, NEWEST, ONE_CALLER, ONE_TO_ONE, OURS, READERS, SERVER_CPU, STORED,
    events,
};

const RAW: &str = "redis";
const STREAM: &str = "raw";
/// Number of events in one call, equal to the default of this library.
const CALL: usize = 500;
/// Number of events that a reader fetches ahead when it takes them one by one.
const AHEAD: usize = 16;
const FEW: usize = 2_000;
const MANY: usize = 20_000;

/// The reply of `XREADGROUP`: streams of entries, each with its id and its fields.
type Read = Option<Vec<(String, Vec<(String, Vec<Vec<u8>>)>)>>;

/// The contenders on one server.
struct Sides {
    ours: Arc<RedisProvider>,
    raw: MultiplexedConnection,
    client: Client,
    event: Event,
    server: RedisServer,
}

impl Sides {
    async fn start() -> Self {
        let server = RedisServer::start().await;
        let config = RedisConfig::at(server.address().to_string()).max_events(0);
        let ours = Arc::new(RedisProvider::connect(config).await.unwrap());
        let client = Client::open(server.url()).unwrap();
        let raw = connection(&client).await;
        Self { ours, raw, client, event: events().0, server }
    }

    fn entry(&self, into: &mut Pipeline) {
        let body = serde_json::to_vec(&self.event).unwrap();
        into.cmd("XADD").arg(STREAM).arg("*").arg("s").arg(&self.event.subject).arg("e").arg(body).ignore();
    }

    async fn publish_raw(&self, count: usize) {
        let mut raw = self.raw.clone();
        for _ in 0..count {
            let body = serde_json::to_vec(&self.event).unwrap();
            let mut add = cmd("XADD");
            add.arg(STREAM).arg("*").arg("s").arg(&self.event.subject).arg("e").arg(body);
            add.exec_async(&mut raw).await.unwrap();
        }
    }

    async fn publish_raw_in_batches(&self, count: usize) {
        let mut raw = self.raw.clone();
        for _ in 0..count / CALL {
            let mut batch = redis::pipe();
            (0..CALL).for_each(|_| self.entry(&mut batch));
            batch.exec_async(&mut raw).await.unwrap();
        }
    }

    async fn publish_ours_in_batches(&self, count: usize) {
        ours::publish_in_batches(&*self.ours, &self.event, count).await;
    }

    async fn publish_ours_with_ids(&self, count: usize) {
        let events = vec![self.event.clone(); BATCH];
        for batch in 0..count / BATCH {
            let requests = events.iter().enumerate().map(|(index, event)| {
                let msg_id = Some(format!("{batch}-{index}"));
                PublishRequest::new(event, PublishOptions { msg_id, ..PublishOptions::default() })
            });
            for answer in self.ours.publish_batch(&requests.collect::<Vec<_>>()).await {
                answer.unwrap();
            }
        }
    }

    async fn create_group(&self, group: &str, from: &str) {
        let mut raw = self.raw.clone();
        let mut create = cmd("XGROUP");
        create.arg(&["CREATE", STREAM, group, from, "MKSTREAM"]).exec_async(&mut raw).await.unwrap();
    }

    async fn destroy_group(&self, group: &str) {
        let mut raw = self.raw.clone();
        cmd("XGROUP").arg(&["DESTROY", STREAM, group]).exec_async(&mut raw).await.unwrap();
    }

    /// Returns a new durable consumer of this library.
    async fn worker(&self) -> Box<dyn Subscription> {
        self.ours.unsubscribe("worker").await.unwrap();
        self.ours.subscribe_durable("worker", FILTER).await.unwrap()
    }

    async fn clear(&self) {
        let mut raw = self.raw.clone();
        cmd("DEL").arg(STREAM).exec_async(&mut raw).await.unwrap();
        self.ours.purge(None).await.unwrap();
    }

    /// Measures how many events the server handles in a second of its CPU time.
    async fn on_server(
        &self,
        board: &mut Board,
        what: &str,
        contender: &str,
        work: impl Future<Output = ()>,
    ) {
        let before = self.server.used_cpu().await;
        work.await;
        let used = self.server.used_cpu().await - before;
        board.record(&format!("{SERVER_CPU}: {what}"), contender, MANY as f64 / used.as_secs_f64());
    }
}

async fn connection(client: &Client) -> MultiplexedConnection {
    // A blocking read takes longer than the crate's own timeout.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

/// Reads new entries of a group and checks them. Returns their ids.
async fn read_raw(raw: &mut MultiplexedConnection, group: &str, count: usize) -> Vec<String> {
    let mut read = cmd("XREADGROUP");
    read.arg(&["GROUP", group, "member", "COUNT"]).arg(count).arg(&["BLOCK", "5000", "STREAMS", STREAM, ">"]);
    let read: Read = read.query_async(raw).await.unwrap();
    let entries = read.unwrap_or_default().into_iter().flat_map(|(_, entries)| entries);
    let id = |(id, fields): (String, Vec<Vec<u8>>)| {
        let event: Event = serde_json::from_slice(&fields[3]).unwrap();
        assert_eq!(event.version, 1);
        id
    };
    entries.map(id).collect()
}

async fn ack_raw(raw: &mut MultiplexedConnection, group: &str, ids: &[String]) {
    cmd("XACK").arg(STREAM).arg(group).arg(ids).exec_async(raw).await.unwrap();
}

pub(crate) fn measure(board: &mut Board) {
    support::runtime().block_on(async {
        for _ in 0..board.rounds {
            let sides = Arc::new(Sides::start().await);
            publishing(board, &sides).await;
            one_to_one(board, &sides).await;
            fan_out(board, &sides).await;
            consume(board, &sides).await;
            history(board, &sides).await;
        }
    });
}

async fn publishing(board: &mut Board, sides: &Arc<Sides>) {
    board.time(ONE_CALLER, RAW, FEW, sides.publish_raw(FEW)).await;
    board.time(ONE_CALLER, OURS, FEW, ours::publish(&*sides.ours, &sides.event, FEW)).await;

    board.time(IN_BATCHES, RAW, MANY, sides.publish_raw_in_batches(MANY)).await;
    board.time(IN_BATCHES, OURS, MANY, sides.publish_ours_in_batches(MANY)).await;
    sides.on_server(board, IN_BATCHES, RAW, sides.publish_raw_in_batches(MANY)).await;
    sides.on_server(board, IN_BATCHES, OURS, sides.publish_ours_in_batches(MANY)).await;
    sides.on_server(board, IN_BATCHES_WITH_IDS, RAW, sides.publish_raw_in_batches(MANY)).await;
    sides.on_server(board, IN_BATCHES_WITH_IDS, OURS, sides.publish_ours_with_ids(MANY)).await;

    let each = MANY / CALLERS;
    let count = each * CALLERS;
    let callers = async {
        let caller = |sides: Arc<Sides>| async move { sides.publish_raw(each).await };
        join_all((0..CALLERS).map(|_| tokio::spawn(caller(Arc::clone(sides))))).await;
    };
    board.time(MANY_CALLERS, RAW, count, callers).await;
    let callers = async {
        let caller = |sides: Arc<Sides>| async move { ours::publish(&*sides.ours, &sides.event, each).await };
        join_all((0..CALLERS).map(|_| tokio::spawn(caller(Arc::clone(sides))))).await;
    };
    board.time(MANY_CALLERS, OURS, count, callers).await;
    sides.clear().await;
}

async fn one_to_one(board: &mut Board, sides: &Sides) {
    sides.create_group("pair", "$").await;
    let mut raw = connection(&sides.client).await;
    board
        .time(ONE_TO_ONE, RAW, FEW, async {
            for _ in 0..FEW {
                sides.publish_raw(1).await;
                let ids = read_raw(&mut raw, "pair", 1).await;
                ack_raw(&mut raw, "pair", &ids).await;
            }
        })
        .await;
    ours::one_to_one(board, &*sides.ours, &sides.event, FEW).await;
    sides.clear().await;
}

async fn fan_out(board: &mut Board, sides: &Sides) {
    const BURSTS: usize = 5;
    let deliveries = BURSTS * BURST * READERS;

    let receipts = Arc::new(Receipts::default());
    let mut readers = Vec::new();
    for reader in 0..READERS {
        let group = format!("reader-{reader}");
        sides.create_group(&group, "$").await;
        // A blocking read holds its connection.
        let mut raw = connection(&sides.client).await;
        let receipts = Arc::clone(&receipts);
        readers.push(tokio::spawn(async move {
            loop {
                let ids = read_raw(&mut raw, &group, AHEAD).await;
                for id in ids {
                    ack_raw(&mut raw, &group, &[id]).await;
                    receipts.one();
                }
            }
        }));
    }
    board
        .time(FAN_OUT, RAW, deliveries, async {
            for _ in 0..BURSTS {
                receipts.wait_for(READERS * BURST, async || sides.publish_raw(BURST).await).await;
            }
        })
        .await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    sides.clear().await;

    ours::fan_out(board, &*sides.ours, &sides.event, BURSTS).await;
    sides.clear().await;
}

async fn consume(board: &mut Board, sides: &Sides) {
    sides.publish_raw_in_batches(MANY).await;
    sides.publish_ours_in_batches(MANY).await;

    board.time(CONSUME, RAW, MANY, one_by_one_raw(sides)).await;
    board.time(CONSUME, OURS, MANY, one_by_one_ours(sides)).await;
    sides.on_server(board, CONSUME, RAW, one_by_one_raw(sides)).await;
    sides.on_server(board, CONSUME, OURS, one_by_one_ours(sides)).await;

    board.time(CONSUME_IN_BATCHES, RAW, MANY, in_batches_raw(sides)).await;
    board.time(CONSUME_IN_BATCHES, OURS, MANY, in_batches_ours(sides)).await;
    sides.on_server(board, CONSUME_IN_BATCHES, RAW, in_batches_raw(sides)).await;
    sides.on_server(board, CONSUME_IN_BATCHES, OURS, in_batches_ours(sides)).await;
    sides.clear().await;
}

/// Takes one after the other, each with an ack of its own, and fetches some ahead.
async fn one_by_one_raw(sides: &Sides) {
    sides.create_group("worker", "0").await;
    let mut raw = sides.raw.clone();
    let mut left = MANY;
    while left > 0 {
        for id in read_raw(&mut raw, "worker", AHEAD).await {
            ack_raw(&mut raw, "worker", &[id]).await;
            left -= 1;
        }
    }
    sides.destroy_group("worker").await;
}

async fn one_by_one_ours(sides: &Sides) {
    ours::receive(sides.worker().await, MANY).await;
}

async fn in_batches_raw(sides: &Sides) {
    sides.create_group("worker", "0").await;
    let mut raw = sides.raw.clone();
    let mut left = MANY;
    while left > 0 {
        let ids = read_raw(&mut raw, "worker", CALL).await;
        ack_raw(&mut raw, "worker", &ids).await;
        left -= ids.len();
    }
    sides.destroy_group("worker").await;
}

async fn in_batches_ours(sides: &Sides) {
    ours::receive_in_batches(sides.worker().await, CALL, MANY).await;
}

async fn history(board: &mut Board, sides: &Sides) {
    const COUNT: usize = 100;
    sides.publish_raw_in_batches(STORED).await;
    sides.publish_ours_in_batches(STORED).await;
    let read = async {
        let mut raw = sides.raw.clone();
        for _ in 0..COUNT {
            let mut newest = cmd("XREVRANGE");
            newest.arg(&[STREAM, "+", "-", "COUNT"]).arg(NEWEST);
            let newest: Vec<(String, Vec<Vec<u8>>)> = newest.query_async(&mut raw).await.unwrap();
            let events =
                newest.iter().map(|(_, fields)| serde_json::from_slice::<Event>(&fields[3]).unwrap());
            assert_eq!(events.count(), NEWEST);
        }
    };
    board.time(HISTORY, RAW, COUNT, read).await;
    let read = async {
        for _ in 0..COUNT {
            assert_eq!(sides.ours.history(None, NEWEST).await.unwrap().len(), NEWEST);
        }
    };
    board.time(HISTORY, OURS, COUNT, read).await;
}
