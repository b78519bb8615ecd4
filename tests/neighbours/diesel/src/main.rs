//! A table with diesel, and a bus in a file beside it.

use a3s_event::EventBus;
use diesel::prelude::*;

diesel::table! {
    orders (id) {
        id -> Integer,
        item -> Text,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let mut shop = SqliteConnection::establish(&folder.path().join("shop.db").to_string_lossy())?;
    let bus = EventBus::connect(&format!("sqlite:{}", folder.path().join("events.db").display())).await?;

    diesel::sql_query("CREATE TABLE orders (id INTEGER PRIMARY KEY NOT NULL, item TEXT NOT NULL)")
        .execute(&mut shop)?;
    diesel::insert_into(orders::table).values(orders::item.eq("a book")).execute(&mut shop)?;
    let order: i32 = orders::table.select(orders::id).first(&mut shop)?;
    let payload = serde_json::json!({ "order": order });
    bus.publish("orders", "placed", "a book was ordered", "shop", payload).await?;

    let orders: i64 = orders::table.count().get_result(&mut shop)?;
    let events = bus.list_events(None, 10).await?;
    assert_eq!((orders, events.len()), (1, 1));
    println!("diesel has {orders} order, the bus has {} event", events.len());
    Ok(())
}
