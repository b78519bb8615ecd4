//! Measures the NATS provider, that of 0.3.0, and async-nats with the same JetStream work. They share a server and have
//! a stream each.

use std::sync::Arc;
use std::time::Duration;

use a3s_event::{Event, EventProvider, NatsConfig, NatsProvider, Subscription};
use a3s_event_testkit::NatsServer;
use async_nats::jetstream::consumer::{self, pull};
use async_nats::jetstream::{self, stream};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream as futures};
use published::provider::EventProvider as _;

use crate::board::Board;
use crate::earlier::{published as v0_3_0, published_0_2_0 as v0_2_0, published_0_4_0 as v0_4_0};
use crate::memory::publish_theirs;
use crate::ours;
use crate::support::{self, Receipts};
use crate::{
    BATCH, BURST, CALLERS, CONSUME, FAN_OUT, FILTER, HISTORY, IN_BATCHES, MANY_CALLERS, NEWEST, NEXT,
    ONE_CALLER, ONE_TO_ONE, OURS, PUBLISHED, READERS, STORED, SUBJECT, events,
};

const RAW: &str = "async-nats";
const RAW_UNCONFIRMED: &str = "async-nats, ack unconfirmed";
const RAW_IN_BATCHES: &str = "async-nats, batches of 500";
const IN_BATCHES_OF_OURS: &str = "a3s-event, next_batch";
/// Number of publishes in flight, equal to the default of this library.
const WINDOW: usize = 256;
const FEW: usize = 2_000;
const MANY: usize = 20_000;

/// The contenders on one server.
struct Sides {
    ours: Arc<NatsProvider>,
    theirs: Arc<published::NatsProvider>,
    raw: jetstream::Context,
    raw_stream: stream::Stream,
    raw_subject: String,
    event: Event,
    their_event: published::Event,
    v0_2_0: v0_2_0::Side,
    v0_3_0: v0_3_0::Side,
    v0_4_0: v0_4_0::Side,
    _server: NatsServer,
}

impl Sides {
    async fn start() -> Self {
        let server = NatsServer::start().await;
        let config = NatsConfig {
            url: server.url(),
            stream_name: "OURS".to_owned(),
            subject_prefix: "events".to_owned(),
            max_events: 0,
            ..NatsConfig::default()
        };
        let ours = NatsProvider::connect(config).await.unwrap();
        let config = published::NatsConfig {
            url: server.url(),
            stream_name: "THEIRS".to_owned(),
            subject_prefix: "theirs".to_owned(),
            max_events: 0,
            request_timeout_secs: 1,
            ..published::NatsConfig::default()
        };
        let theirs = published::NatsProvider::connect(config).await.unwrap();
        let raw = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        let alike = raw.get_stream("OURS").await.unwrap().cached_info().config.clone();
        let alike = stream::Config { name: "RAW".to_owned(), subjects: vec!["raw.>".to_owned()], ..alike };
        let raw_stream = raw.create_stream(alike).await.unwrap();
        let (event, mut their_event) = events();
        their_event.subject = SUBJECT.replace("events", "theirs");
        Self {
            ours: Arc::new(ours),
            theirs: Arc::new(theirs),
            raw,
            raw_stream,
            raw_subject: SUBJECT.replace("events", "raw"),
            v0_2_0: v0_2_0::Side::connect(&server.url(), &event).await,
            v0_3_0: v0_3_0::Side::connect(&server.url(), &event).await,
            v0_4_0: v0_4_0::Side::connect(&server.url(), &event).await,
            event,
            their_event,
            _server: server,
        }
    }

    async fn purge(&self) {
        let earlier = [self.v0_2_0.stream(), self.v0_3_0.stream(), self.v0_4_0.stream()];
        for name in earlier.iter().map(String::as_str).chain(["OURS", "THEIRS", "RAW"]) {
            self.raw.get_stream(name).await.unwrap().purge().await.unwrap();
        }
    }

    async fn publish_raw(&self, count: usize) {
        for _ in 0..count {
            let body = serde_json::to_vec(&self.event).unwrap();
            self.raw.publish(self.raw_subject.clone(), body.into()).await.unwrap().await.unwrap();
        }
    }

    /// Publishes as users of async-nats and 0.3.0 do, because neither has a batch.
    async fn publish_raw_in_window(&self, count: usize) {
        futures::iter(0..count).map(|_| self.publish_raw(1)).buffered(WINDOW).for_each(async |()| {}).await;
    }

    async fn publish_theirs_in_window(&self, count: usize) {
        let publishes = futures::iter(0..count).map(|_| publish_theirs(&*self.theirs, &self.their_event, 1));
        publishes.buffered(WINDOW).for_each(async |()| {}).await;
    }

    async fn publish_ours_in_batches(&self, count: usize) {
        ours::publish_in_batches(&*self.ours, &self.event, count).await;
    }

    async fn read_raw(&self, is_confirmed: bool) {
        let durable = pull::Config { durable_name: Some("worker".to_owned()), ..Default::default() };
        let mut messages = self.raw_consumer(durable).await.messages().await.unwrap();
        for _ in 0..MANY {
            receive(&mut messages, is_confirmed).await;
        }
        self.raw_stream.delete_consumer("worker").await.unwrap();
    }

    async fn read_raw_in_batches(&self) {
        let durable = pull::Config { durable_name: Some("worker".to_owned()), ..Default::default() };
        let consumer = self.raw_consumer(durable).await;
        let mut left = MANY;
        while left > 0 {
            let mut batch = consumer.batch().max_messages(500).messages().await.unwrap();
            while let Some(message) = batch.next().await {
                let message = message.unwrap();
                let event: Event = serde_json::from_slice(&message.payload).unwrap();
                assert_eq!(event.version, 1);
                message.ack().await.unwrap();
                left -= 1;
            }
        }
        self.raw_stream.delete_consumer("worker").await.unwrap();
    }

    /// Returns a new durable consumer of this library, with the name that the others use.
    async fn worker(&self) -> Box<dyn Subscription> {
        self.ours.unsubscribe("worker").await.unwrap();
        self.ours.subscribe_durable("worker", FILTER).await.unwrap()
    }

    async fn raw_consumer(&self, config: pull::Config) -> consumer::Consumer<pull::Config> {
        self.raw_stream.create_consumer(config).await.unwrap()
    }
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
    board.time(ONE_CALLER, PUBLISHED, FEW, publish_theirs(&*sides.theirs, &sides.their_event, FEW)).await;
    board.time(ONE_CALLER, OURS, FEW, ours::publish(&*sides.ours, &sides.event, FEW)).await;

    let in_batches = async {
        for _ in 0..MANY / BATCH {
            sides.publish_raw_in_window(BATCH).await;
        }
    };
    board.time(IN_BATCHES, RAW, MANY, in_batches).await;
    let in_batches = async {
        for _ in 0..MANY / BATCH {
            sides.publish_theirs_in_window(BATCH).await;
        }
    };
    board.time(IN_BATCHES, PUBLISHED, MANY, in_batches).await;
    board.time(IN_BATCHES, OURS, MANY, sides.publish_ours_in_batches(MANY)).await;

    let each = MANY / CALLERS;
    let count = each * CALLERS;
    let callers = async {
        let caller = |sides: Arc<Sides>| async move { sides.publish_raw(each).await };
        join_all((0..CALLERS).map(|_| tokio::spawn(caller(Arc::clone(sides))))).await;
    };
    board.time(MANY_CALLERS, RAW, count, callers).await;
    let callers = async {
        let caller =
            |sides: Arc<Sides>| async move { publish_theirs(&*sides.theirs, &sides.their_event, each).await };
        join_all((0..CALLERS).map(|_| tokio::spawn(caller(Arc::clone(sides))))).await;
    };
    board.time(MANY_CALLERS, PUBLISHED, count, callers).await;
    let callers = async {
        let caller = |sides: Arc<Sides>| async move { ours::publish(&*sides.ours, &sides.event, each).await };
        join_all((0..CALLERS).map(|_| tokio::spawn(caller(Arc::clone(sides))))).await;
    };
    board.time(MANY_CALLERS, OURS, count, callers).await;
    sides.purge().await;
}

async fn one_to_one(board: &mut Board, sides: &Sides) {
    for (contender, is_confirmed) in [(RAW, true), (RAW_UNCONFIRMED, false)] {
        let mut messages = sides.raw_consumer(pull::Config::default()).await.messages().await.unwrap();
        board
            .time(ONE_TO_ONE, contender, FEW, async {
                for _ in 0..FEW {
                    sides.publish_raw(1).await;
                    receive(&mut messages, is_confirmed).await;
                }
            })
            .await;
        sides.purge().await;
    }
    board.time(ONE_TO_ONE, v0_2_0::NAME, FEW, sides.v0_2_0.publish_and_read(FEW)).await;
    board.time(ONE_TO_ONE, v0_3_0::NAME, FEW, sides.v0_3_0.publish_and_read(FEW)).await;
    board.time(ONE_TO_ONE, v0_4_0::NAME, FEW, sides.v0_4_0.publish_and_read(FEW)).await;
    ours::one_to_one(board, &*sides.ours, &sides.event, FEW).await;
    sides.purge().await;
}

async fn receive(messages: &mut pull::Stream, is_confirmed: bool) {
    let message = messages.next().await.unwrap().unwrap();
    let event: Event = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!(event.version, 1);
    if is_confirmed {
        message.double_ack().await.unwrap();
    } else {
        message.ack().await.unwrap();
    }
}

async fn fan_out(board: &mut Board, sides: &Sides) {
    const BURSTS: usize = 5;
    let deliveries = BURSTS * BURST * READERS;

    for (contender, is_confirmed) in [(RAW, true), (RAW_UNCONFIRMED, false)] {
        let receipts = Arc::new(Receipts::default());
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let mut messages = sides.raw_consumer(pull::Config::default()).await.messages().await.unwrap();
            let receipts = Arc::clone(&receipts);
            readers.push(tokio::spawn(async move {
                loop {
                    receive(&mut messages, is_confirmed).await;
                    receipts.one();
                }
            }));
        }
        board
            .time(FAN_OUT, contender, deliveries, async {
                for _ in 0..BURSTS {
                    receipts.wait_for(READERS * BURST, async || sides.publish_raw(BURST).await).await;
                }
            })
            .await;
        readers.iter().for_each(tokio::task::JoinHandle::abort);
        sides.purge().await;
    }

    let receipts = Arc::new(Receipts::default());
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut subscription = sides.theirs.subscribe("theirs.>").await.unwrap();
        let receipts = Arc::clone(&receipts);
        readers.push(tokio::spawn(async move {
            while let Ok(Some(pending)) = subscription.next_manual_ack().await {
                pending.ack().await.unwrap();
                receipts.one();
            }
        }));
    }
    board
        .time(FAN_OUT, PUBLISHED, deliveries, async {
            for _ in 0..BURSTS {
                let publish = async || publish_theirs(&*sides.theirs, &sides.their_event, BURST).await;
                receipts.wait_for(READERS * BURST, publish).await;
            }
        })
        .await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);

    ours::fan_out(board, &*sides.ours, &sides.event, BURSTS).await;
    sides.purge().await;
}

/// Publishes `MANY` events, `WINDOW` at a time.
macro_rules! store {
    ($side:expr) => {
        futures::iter(0..MANY).map(|_| $side.publish()).buffered(WINDOW).for_each(async |()| {}).await
    };
}

async fn consume(board: &mut Board, sides: &Sides) {
    sides.publish_raw_in_window(MANY).await;
    store!(sides.v0_2_0);
    store!(sides.v0_3_0);
    store!(sides.v0_4_0);
    sides.publish_ours_in_batches(MANY).await;

    board.time(NEXT, RAW_UNCONFIRMED, MANY, sides.read_raw(false)).await;
    board.time(NEXT, v0_2_0::NAME, MANY, sides.v0_2_0.read(MANY)).await;
    board.time(NEXT, v0_3_0::NAME, MANY, sides.v0_3_0.read(MANY)).await;
    board.time(NEXT, v0_4_0::NAME, MANY, sides.v0_4_0.read(MANY)).await;
    let read = async {
        let mut subscription = sides.worker().await;
        for _ in 0..MANY {
            subscription.next().await.unwrap().unwrap();
        }
        subscription.close().await.unwrap();
    };
    board.time(NEXT, OURS, MANY, read).await;

    board.time(CONSUME, RAW, MANY, sides.read_raw(true)).await;
    board.time(CONSUME, RAW_UNCONFIRMED, MANY, sides.read_raw(false)).await;
    board.time(CONSUME, RAW_IN_BATCHES, MANY, sides.read_raw_in_batches()).await;
    board.time(CONSUME, v0_2_0::NAME, MANY, sides.v0_2_0.read_and_ack(MANY)).await;
    board.time(CONSUME, v0_3_0::NAME, MANY, sides.v0_3_0.read_and_ack(MANY)).await;
    board.time(CONSUME, v0_4_0::NAME, MANY, sides.v0_4_0.read_and_ack(MANY)).await;
    let read = async { ours::receive(sides.worker().await, MANY).await };
    board.time(CONSUME, OURS, MANY, read).await;
    let read = async { ours::receive_in_batches(sides.worker().await, 500, MANY).await };
    board.time(CONSUME, IN_BATCHES_OF_OURS, MANY, read).await;
    sides.purge().await;
}

async fn history(board: &mut Board, sides: &Sides) {
    const COUNT: usize = 100;
    sides.publish_raw_in_window(STORED).await;
    sides.publish_ours_in_batches(STORED).await;
    let read = async {
        for _ in 0..COUNT {
            assert_eq!(newest_raw(sides).await, NEWEST);
        }
    };
    board.time(HISTORY, RAW, COUNT, read).await;
    let read = async {
        for _ in 0..COUNT {
            assert_eq!(sides.ours.history(None, NEWEST).await.unwrap().len(), NEWEST);
        }
    };
    board.time(HISTORY, OURS, COUNT, read).await;
    // Checks the page's statement that 0.3.0 has no comparable history.
    sides.publish_theirs_in_window(2 * NEWEST).await;
    assert!(sides.theirs.history(None, NEWEST).await.unwrap().len() < NEWEST);
}

/// Reads the newest events with async-nats, through a consumer that starts there and is then deleted. Returns their
/// number.
async fn newest_raw(sides: &Sides) -> usize {
    let last = sides.raw_stream.get_info().await.unwrap().state.last_sequence;
    let config = pull::Config {
        deliver_policy: consumer::DeliverPolicy::ByStartSequence { start_sequence: last - NEWEST as u64 + 1 },
        ack_policy: consumer::AckPolicy::None,
        ..Default::default()
    };
    let consumer = sides.raw_consumer(config).await;
    let mut messages =
        consumer.fetch().max_messages(NEWEST).expires(Duration::from_secs(5)).messages().await.unwrap();
    let mut found = Vec::with_capacity(NEWEST);
    while let Some(message) = messages.next().await {
        found.push(serde_json::from_slice::<Event>(&message.unwrap().payload).unwrap());
    }
    sides.raw_stream.delete_consumer(&consumer.cached_info().name).await.unwrap();
    found.len()
}
