//! A table with sea-orm, and a bus in a file beside it.

use a3s_event::EventBus;
use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let shop =
        Database::connect(format!("sqlite:{}?mode=rwc", folder.path().join("shop.db").display())).await?;
    let bus = EventBus::connect(&format!("sqlite:{}", folder.path().join("events.db").display())).await?;

    shop.execute_unprepared("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL)").await?;
    let order = shop.execute_unprepared("INSERT INTO orders (item) VALUES ('a book')").await?;
    let payload = serde_json::json!({ "order": order.last_insert_id() });
    bus.publish("orders", "placed", "a book was ordered", "shop", payload).await?;

    let count = Statement::from_string(DbBackend::Sqlite, "SELECT count(*) AS orders FROM orders");
    let orders: i64 = shop.query_one_raw(count).await?.ok_or("no row")?.try_get("", "orders")?;
    let events = bus.list_events(None, 10).await?;
    assert_eq!((orders, events.len()), (1, 1));
    println!("sea-orm has {orders} order, the bus has {} event", events.len());
    Ok(())
}
