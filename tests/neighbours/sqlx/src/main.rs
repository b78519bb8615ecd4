//! A table with sqlx, and a bus in a file beside it.

use a3s_event::EventBus;
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let shop = SqliteConnectOptions::new().filename(folder.path().join("shop.db")).create_if_missing(true);
    let shop = SqlitePool::connect_with(shop).await?;
    let bus = EventBus::connect(&format!("sqlite:{}", folder.path().join("events.db").display())).await?;

    sqlx::query("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL)").execute(&shop).await?;
    let order = sqlx::query("INSERT INTO orders (item) VALUES (?)").bind("a book").execute(&shop).await?;
    let payload = serde_json::json!({ "order": order.last_insert_rowid() });
    bus.publish("orders", "placed", "a book was ordered", "shop", payload).await?;

    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&shop).await?;
    let events = bus.list_events(None, 10).await?;
    assert_eq!((orders, events.len()), (1, 1));
    println!("sqlx has {orders} order, the bus has {} event", events.len());
    Ok(())
}
