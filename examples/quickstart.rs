//! The main job in one program: publish, handle with retries, dead-letter what fails, and read history.
//!
//! ```text
//! cargo run --example quickstart --features sqlite
//! cargo run --example quickstart [provider URL]
//! ```
//!
//! The URL is the first argument, or `A3S_EVENT_URL`. With the feature `sqlite` the default is the file `quickstart.db` of the
//! checkout, so that a second run continues where the first one stopped. Without it the default is `memory://`.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use a3s_event::consumer::{Backoff, HandlerError, HandlerResult, RetryPolicy};
use a3s_event::dlq::DeadLetterFilter;
use a3s_event::provider::ProviderUrl;
use a3s_event::{Delivery, Event, EventBus, EventBusBuilder, ProviderDlqHandler};
use comfy_table::{Cell, CellAlignment, LineStyle, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A week of real earthquakes.
const FEED: &str = include_str!("data/usgs-earthquakes.geojson");
/// The consumer keeps its position under this name.
const CONSUMER: &str = "seismologist";
/// Number of events that are published after the consumer has stopped.
const LEFT_FOR_THE_NEXT_RUN: usize = 10;
/// Timeout of every wait in this program.
const TIMEOUT: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let url = std::env::args().nth(1).or_else(|| std::env::var("A3S_EVENT_URL").ok());
    let url = url.unwrap_or_else(default_url);
    let builder = EventBusBuilder::connect(&url).await?;
    let dead_letters = Arc::new(ProviderDlqHandler::new(builder.provider())?);
    let bus = builder.dlq_handler(Arc::clone(&dead_letters) as _).build()?;
    // A parsed URL hides its credentials when it is printed.
    println!("the bus at {} holds {} events", ProviderUrl::parse(&url)?, bus.info().await?.messages);

    // A durable consumer. Its handler runs up to 4 events at a time; a failed one is retried after 100 ms.
    let policy = RetryPolicy::default().attempts(3).backoff(Backoff::list([Duration::from_millis(100)]));
    let consumer = bus.consumer(CONSUMER).subject("events.quake.>").concurrency(4).policy(policy);
    println!("{CONSUMER} continues with {} events that earlier runs left\n", unhandled(&bus).await?);
    let consumer = consumer.handle_typed(assess).await?;

    let mut quakes = read_feed()?;
    let later = quakes.split_off(quakes.len() - LEFT_FOR_THE_NEXT_RUN);
    publish(&bus, &quakes).await?;
    // An event that no retry can help: the handler gives it up at once.
    bus.publish("quake", "xx.unknown", "a report without a magnitude", "nobody", json!({"mag": null}))
        .await?;

    // Orderly shutdown: running handlers end, and every ack is stored.
    until_all_is_handled(&bus).await?;
    consumer.shutdown().await?;
    let stats = consumer.stats();
    let (handled, failed, given_up) = (stats.handled, stats.failed, stats.dead_lettered);
    println!("\nhandled {handled} events; {failed} attempts failed, {given_up} event was dead-lettered");

    println!("\nDead letters, which `a3s-event dlq` lists and replays:\n");
    let mut letters = table(["event", "class", "reason"]);
    for stored in dead_letters.find(&DeadLetterFilter::default(), 3).await? {
        let letter = stored.letter;
        letters.add_row([letter.event.event.summary, letter.class.to_string(), letter.reason]);
    }
    println!("{letters}");

    println!("\nThe strongest five, read back from history:\n");
    println!("{}", strongest_five(bus.list_events(Some("quake"), quakes.len()).await?));

    publish(&bus, &later).await?;
    println!("\n{} more events are stored. Run this again: {CONSUMER} starts with them.", later.len());
    bus.close().await?;
    Ok(())
}

/// Assesses an earthquake. `Ok` acks the event, an error has it retried, and a fatal error dead-letters it.
async fn assess(quake: Quake, delivery: Delivery) -> HandlerResult {
    /// A dependency that fails for a moment, as dependencies do.
    static PAGER_HAS_FAILED: AtomicBool = AtomicBool::new(false);
    let magnitude = quake.mag.ok_or_else(|| HandlerError::fatal("the report has no magnitude"))?;
    if magnitude < 6.0 {
        return Ok(());
    }
    if !PAGER_HAS_FAILED.swap(true, Ordering::Relaxed) {
        println!("{}: the pager does not answer", delivery.event().summary);
        return Err("the pager does not answer".into());
    }
    println!("{}: paged at attempt {}", delivery.event().summary, delivery.num_delivered());
    Ok(())
}

async fn publish(bus: &EventBus, events: &[Event]) -> Outcome<()> {
    for result in bus.publish_batch(events).await {
        result?;
    }
    Ok(())
}

/// Returns the number of events that the consumer has not handled.
async fn unhandled(bus: &EventBus) -> a3s_event::Result<u64> {
    let consumers = bus.consumers_of(CONSUMER).await?;
    Ok(consumers.iter().map(|consumer| consumer.lag + consumer.pending).sum())
}

async fn until_all_is_handled(bus: &EventBus) -> Outcome<()> {
    let handled = async {
        while unhandled(bus).await? > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, a3s_event::EventError>(())
    };
    Ok(tokio::time::timeout(TIMEOUT, handled).await??)
}

#[cfg(feature = "sqlite")]
fn default_url() -> String {
    concat!("sqlite:", env!("CARGO_MANIFEST_DIR"), "/quickstart.db").to_owned()
}

#[cfg(not(feature = "sqlite"))]
fn default_url() -> String {
    "memory://".to_owned()
}

/// Payload of the events.
#[derive(Serialize, Deserialize)]
struct Quake {
    mag: Option<f64>,
    #[serde(default)]
    place: String,
}

/// Reads the feed, one event per earthquake.
fn read_feed() -> Outcome<Vec<Event>> {
    #[derive(Deserialize)]
    struct Feed {
        features: Vec<Feature>,
    }
    #[derive(Deserialize)]
    struct Feature {
        id: String,
        properties: Properties,
    }
    #[derive(Deserialize)]
    struct Properties {
        mag: f64,
        place: String,
        time: u64,
        net: String,
        r#type: String,
    }

    let features = serde_json::from_str::<Feed>(FEED)?.features.into_iter();
    let quakes = features.filter(|feature| feature.properties.r#type == "earthquake");
    quakes
        .map(|Feature { id, properties: Properties { mag, place, time, net, .. } }| {
            let event = Event::builder(format!("events.quake.{net}"))
                .summary(format!("M {mag:.1}, {place}"))
                .source(format!("usgs/{net}"))
                .metadata("usgs_id", id)
                .timestamp(time)
                .payload(serde_json::to_value(Quake { mag: Some(mag), place })?);
            Ok(event.build())
        })
        .collect()
}

fn strongest_five(history: Vec<Event>) -> Table {
    let quakes = history.into_iter().filter_map(|event| Quake::deserialize(event.payload).ok());
    let mut quakes: Vec<_> = quakes.filter_map(|quake| Some((quake.mag?, quake.place))).collect();
    quakes.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut table = table(["magnitude", "place"]);
    for (magnitude, place) in quakes.into_iter().take(5) {
        let magnitude = Cell::new(format!("{magnitude:.1}")).set_alignment(CellAlignment::Right);
        table.add_row([magnitude, Cell::new(place)]);
    }
    table
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none())).set_header(header);
    table
}
