//! Measures the SQLite provider, and rusqlite with the tables that the same work needs. 0.3.0 has no such provider.

use std::sync::{Arc, Mutex};

use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
use a3s_event::{Event, EventProvider};
use futures_util::future::join_all;
use rusqlite::{Connection, params};
use tempfile::TempDir;

use crate::board::Board;
use crate::ours;
use crate::raw_sqlite::Raw;
use crate::support;
use crate::{
    BATCH, BURST, CALLERS, CONSUME, FAN_OUT, FILTER, HISTORY, IN_BATCHES, MANY_CALLERS, NEWEST, ONE_CALLER,
    ONE_TO_ONE, OURS, READERS, STORED, events,
};

const RAW: &str = "rusqlite";
/// The same off the runtime, as a program calls it that must not block its other tasks.
const RAW_OFF_RUNTIME: &str = "rusqlite, in spawn_blocking";
const OURS_ONE_BY_ONE: &str = "a3s-event, one by one";
const FEW: usize = 500;
const MANY: usize = 20_000;

/// The contenders, each with its own file.
struct Sides {
    ours: Arc<SqliteProvider>,
    raw: Raw,
    event: Event,
    _folder: TempDir,
}

impl Sides {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ours =
            SqliteProvider::connect(SqliteConfig::file(folder.path().join("events.db"))).await.unwrap();
        let raw = Raw::new();
        raw.connection
            .execute_batch("CREATE TABLE position (name TEXT PRIMARY KEY, sequence INTEGER NOT NULL) STRICT, WITHOUT ROWID")
            .unwrap();
        Self { ours: Arc::new(ours), raw, event: events().0, _folder: folder }
    }

    async fn publish_ours_in_batches(&self, count: usize) {
        ours::publish_in_batches(&*self.ours, &self.event, count).await;
    }

    fn store_position_raw(&self, sequence: i64) {
        let store = "INSERT INTO position VALUES ('worker', ?1) ON CONFLICT DO UPDATE SET sequence = excluded.sequence";
        self.raw.connection.prepare_cached(store).unwrap().execute([sequence]).unwrap();
    }
}

/// Returns the events after a sequence, in the given order.
fn read_raw(connection: &Connection, behind: i64, order: &str, limit: usize) -> Vec<(i64, Event)> {
    let query = format!(
        "SELECT sequence, record FROM events WHERE subject = 1 AND sequence > ?1 ORDER BY sequence {order} LIMIT ?2"
    );
    let mut statement = connection.prepare_cached(&query).unwrap();
    let rows = statement
        .query_map(params![behind, i64::try_from(limit).unwrap()], |row| {
            Ok((row.get(0)?, row.get_ref(1)?.as_blob()?.to_vec()))
        })
        .unwrap();
    rows.map(|row| {
        row.map(|(sequence, record)| (sequence, serde_json::from_slice(&record).unwrap())).unwrap()
    })
    .collect()
}

pub(crate) fn measure(board: &mut Board) {
    support::runtime().block_on(async {
        for _ in 0..board.rounds {
            publishing(board, &Sides::start().await).await;
            one_to_one(board, &Sides::start().await).await;
            fan_out(board, &Sides::start().await).await;
            history_and_consume(board, &Sides::start().await).await;
        }
    });
}

async fn publishing(board: &mut Board, sides: &Sides) {
    board.time(ONE_CALLER, RAW, FEW, async { sides.raw.publish(FEW, 1, &sides.event) }).await;
    board.time(ONE_CALLER, OURS, FEW, ours::publish(&*sides.ours, &sides.event, FEW)).await;

    let transactions = MANY / BATCH;
    board.time(IN_BATCHES, RAW, MANY, async { sides.raw.publish(transactions, BATCH, &sides.event) }).await;
    board.time(IN_BATCHES, OURS, MANY, sides.publish_ours_in_batches(MANY)).await;

    // Transactions of 64 rows, the maximum that 64 waiting callers can share.
    let each = MANY / CALLERS;
    let count = each * CALLERS;
    board.time(MANY_CALLERS, RAW, count, async { sides.raw.publish(each, CALLERS, &sides.event) }).await;
    let callers = async {
        let caller = |ours: Arc<SqliteProvider>, event: Event| async move {
            ours::publish(&*ours, &event, each).await
        };
        join_all((0..CALLERS).map(|_| tokio::spawn(caller(Arc::clone(&sides.ours), sides.event.clone()))))
            .await;
    };
    board.time(MANY_CALLERS, OURS, count, callers).await;
}

async fn one_to_one(board: &mut Board, sides: &Sides) {
    board
        .time(ONE_TO_ONE, RAW, FEW, async {
            for behind in 0..FEW as i64 {
                sides.raw.publish(1, 1, &sides.event);
                let (sequence, _) = read_raw(&sides.raw.connection, behind, "ASC", 1).remove(0);
                sides.store_position_raw(sequence);
            }
        })
        .await;
    ours::one_to_one(board, &*sides.ours, &sides.event, FEW).await;
}

async fn fan_out(board: &mut Board, sides: &Sides) {
    const BURSTS: usize = 10;
    let deliveries = BURSTS * BURST * READERS;
    board
        .time(FAN_OUT, RAW, deliveries, async {
            for burst in 0..BURSTS {
                sides.raw.publish(BURST, 1, &sides.event);
                for _ in 0..READERS {
                    let behind = i64::try_from(burst * BURST).unwrap();
                    assert_eq!(read_raw(&sides.raw.connection, behind, "ASC", BATCH).len(), BURST);
                }
            }
        })
        .await;
    ours::fan_out(board, &*sides.ours, &sides.event, BURSTS).await;
    sides.ours.close().await.unwrap();
}

async fn history_and_consume(board: &mut Board, sides: &Sides) {
    const COUNT: usize = 300;
    sides.raw.publish(STORED / BATCH, BATCH, &sides.event);
    sides.publish_ours_in_batches(STORED).await;
    let read = async {
        for _ in 0..COUNT {
            assert_eq!(read_raw(&sides.raw.connection, 0, "DESC", NEWEST).len(), NEWEST);
        }
    };
    board.time(HISTORY, RAW, COUNT, read).await;
    let reader = Arc::new(Mutex::new(sides.raw.reader()));
    let read = async {
        for _ in 0..COUNT {
            let reader = Arc::clone(&reader);
            let found =
                tokio::task::spawn_blocking(move || read_raw(&reader.lock().unwrap(), 0, "DESC", NEWEST));
            assert_eq!(found.await.unwrap().len(), NEWEST);
        }
    };
    board.time(HISTORY, RAW_OFF_RUNTIME, COUNT, read).await;
    let read = async {
        for _ in 0..COUNT {
            assert_eq!(sides.ours.history(Some("events.market.>"), NEWEST).await.unwrap().len(), NEWEST);
        }
    };
    board.time(HISTORY, OURS, COUNT, read).await;

    let receive = async {
        let mut behind = 0;
        while let Some((last, _)) = read_raw(&sides.raw.connection, behind, "ASC", BATCH).last() {
            behind = *last;
            sides.store_position_raw(behind);
        }
    };
    board.time(CONSUME, RAW, STORED, receive).await;
    let receive = async {
        let subscription = sides.ours.subscribe_durable("worker", FILTER).await.unwrap();
        ours::receive_in_batches(subscription, BATCH, STORED).await;
    };
    board.time(CONSUME, OURS, STORED, receive).await;
    let receive = async {
        let subscription = sides.ours.subscribe_durable("single", FILTER).await.unwrap();
        ours::receive(subscription, MANY).await;
    };
    board.time(CONSUME, OURS_ONE_BY_ONE, MANY, receive).await;
}
