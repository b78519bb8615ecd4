//! Publishes one week of real earthquakes and delivers them to four subscribers.
//!
//! ```text
//! cargo run --example quickstart [provider URL]
//! cargo run --example quickstart --features sqlite
//! ```
//!
//! The URL is the first argument, or `A3S_EVENT_URL`. The default is `memory://`. With the feature `sqlite` the default
//! is a file in the folder for temporary files. A second run then finds the events of the first. Nothing else here
//! depends on the provider.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::time::Duration;

use a3s_event::provider::ProviderUrl;
use a3s_event::subject::subject_matches;
use a3s_event::{DeliverPolicy, Event, EventBus, SubscribeOptions, Subscription, SubscriptionFilter};
use comfy_table::{Cell, CellAlignment, LineStyle, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::{Deserialize, Serialize};

const FEED: &str = include_str!("data/usgs-earthquakes.geojson");
/// The subscribers and their filters. Subjects have the form `events.<quake or blast>.<reporting network>.<class>`.
const SUBSCRIBERS: [(&str, &str); 4] = [
    ("archive", "events.>"),
    ("california", "events.quake.ci.>"),
    ("alarm", "events.quake.*.strong"),
    ("blasts", "events.blast.>"),
];
/// The durable subscriber. It leaves `LEFT_FOR_NEXT_RUN` events to the next run of this program.
const DURABLE: &str = "archive";
const LEFT_FOR_NEXT_RUN: usize = 10;
/// Timeout of every wait in this program.
const DEADLINE: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let url = std::env::args().nth(1).or_else(|| std::env::var("A3S_EVENT_URL").ok());
    let url = url.unwrap_or_else(default_url);
    let bus = EventBus::connect(&url).await?;
    let week = read_feed()?;
    // A parsed URL hides its credentials when it is printed.
    let place = ProviderUrl::parse(&url)?;
    println!("{} events of earlier runs are stored at {place}", bus.info().await?.messages);

    // Subscribe first: every subscriber works in its own task while this one publishes.
    let mut desks = Vec::new();
    for (name, filter) in SUBSCRIBERS {
        let wanted = |event: &&Event| subject_matches(&event.subject, filter);
        let mut expected = week.iter().filter(wanted).count();
        for subscription in subscribe(&bus, name, filter).await? {
            if name == DURABLE {
                let left = subscription.lag().await.map_or(0, |lag| usize::try_from(lag).unwrap_or(0));
                println!("{name} goes on where it stopped: {left} events are left to it");
                expected = left + expected - LEFT_FOR_NEXT_RUN;
            }
            desks.push((name, filter, tokio::spawn(work(subscription, expected))));
        }
    }

    for result in bus.publish_batch(&week).await {
        result?;
    }
    let provider = bus.info().await?.provider;
    println!("{} events published to the {provider} provider\n", week.len());

    let mut report =
        table(["subscriber", "filter", "delivered", "refused", "came again", "acked", "strongest"]);
    for (name, filter, desk) in desks {
        let tally = desk.await??;
        let mut row = vec![Cell::new(name), Cell::new(filter)];
        row.extend([tally.delivered, tally.refused, tally.again, tally.acked].map(right));
        row.push(right(format!("{:.1}", tally.strongest)));
        report.add_row(row);
    }
    println!("{report}\n");

    let quakes = week.iter().filter(|event| event.category == "quake").count();
    println!("The strongest five, read back from history:\n");
    let history = bus.list_events(Some("quake"), quakes).await?;
    println!("{}", strongest_five(history)?);

    bus.close().await?;
    Ok(())
}

#[cfg(feature = "sqlite")]
fn default_url() -> String {
    format!("sqlite:{}", std::env::temp_dir().join("a3s-event-quickstart.db").display())
}

#[cfg(not(feature = "sqlite"))]
fn default_url() -> String {
    "memory://".to_owned()
}

async fn subscribe(
    bus: &EventBus,
    name: &str,
    filter: &str,
) -> a3s_event::Result<Vec<Box<dyn Subscription>>> {
    bus.update_subscription(SubscriptionFilter {
        subscriber_id: name.to_owned(),
        subjects: vec![filter.to_owned()],
        durable: name == DURABLE,
        // A durable backend may hold the weeks of earlier runs; a new subscriber wants only the new one.
        options: Some(SubscribeOptions { deliver_policy: DeliverPolicy::New, ..Default::default() }),
    })
    .await?;
    bus.create_subscriber(name).await
}

/// Counts of one subscriber.
#[derive(Default)]
struct Tally {
    delivered: usize,
    refused: usize,
    again: usize,
    acked: usize,
    strongest: f64,
}

/// Works until `expected` events are acked. Naks one in twenty events at first, and acks it when it is redelivered.
async fn work(mut subscription: Box<dyn Subscription>, expected: usize) -> Outcome<Tally> {
    let mut tally = Tally::default();
    while tally.acked < expected {
        let next = tokio::time::timeout(DEADLINE, subscription.next_manual_ack()).await??;
        let pending = next.ok_or("the subscription was closed")?;
        tally.delivered += 1;

        if pending.received.num_delivered > 1 {
            tally.again += 1;
        } else if (tally.delivered - tally.again) % 20 == 1 {
            tally.refused += 1;
            pending.nak().await?;
            continue;
        }
        let quake = Quake::deserialize(&pending.received.event.payload)?;
        tally.strongest = tally.strongest.max(quake.mag);
        tally.acked += 1;
        pending.ack().await?;
    }
    Ok(tally)
}

fn strongest_five(history: Vec<Event>) -> Outcome<Table> {
    let mut quakes = Vec::new();
    for event in history {
        quakes.push((event.timestamp, Quake::deserialize(event.payload)?));
    }
    quakes.sort_by(|(_, a), (_, b)| b.mag.total_cmp(&a.mag));

    let mut table = table(["magnitude", "when", "where", "depth"]);
    for (time, quake) in quakes.into_iter().take(5) {
        table.add_row([
            Cell::new(format!("{:.1}", quake.mag)),
            Cell::new(day_and_time(time)),
            Cell::new(quake.place),
            right(format!("{:.0} km", quake.depth_km)),
        ]);
    }
    Ok(table)
}

/// The payload of the published events.
#[derive(Serialize, Deserialize)]
struct Quake {
    mag: f64,
    place: String,
    longitude: f64,
    latitude: f64,
    depth_km: f64,
}

/// Reads the feed and returns one event per feature.
fn read_feed() -> Outcome<Vec<Event>> {
    #[derive(Deserialize)]
    struct Feed {
        features: Vec<Feature>,
    }
    #[derive(Deserialize)]
    struct Feature {
        id: String,
        properties: Properties,
        geometry: Geometry,
    }
    #[derive(Deserialize)]
    struct Properties {
        mag: f64,
        place: String,
        time: u64,
        net: String,
        r#type: String,
    }
    #[derive(Deserialize)]
    struct Geometry {
        coordinates: [f64; 3],
    }

    let mut events = Vec::new();
    for feature in serde_json::from_str::<Feed>(FEED)?.features {
        let Properties { mag, place, time, net, r#type } = feature.properties;
        let [longitude, latitude, depth_km] = feature.geometry.coordinates;
        let (category, class) = match r#type.as_str() {
            "earthquake" => ("quake", class_of(mag).to_owned()),
            other => ("blast", other.replace(' ', "-")),
        };
        let mut event = Event::new(
            format!("events.{category}.{net}.{class}"),
            category,
            format!("{mag:.1}, {place}"),
            format!("usgs/{net}"),
            serde_json::to_value(Quake { mag, place, longitude, latitude, depth_km })?,
        )
        .with_metadata("usgs_id", feature.id);
        event.timestamp = time;
        events.push(event);
    }
    Ok(events)
}

fn class_of(magnitude: f64) -> &'static str {
    match magnitude {
        ..2.0 => "micro",
        ..4.0 => "minor",
        ..5.0 => "light",
        ..6.0 => "moderate",
        _ => "strong",
    }
}

/// Formats the day of the week and the time of day, in UTC.
fn day_and_time(unix_ms: u64) -> String {
    let minutes = unix_ms / 60_000;
    let day = match minutes / (24 * 60) % 7 {
        0 => "Thu", // 1 January 1970
        1 => "Fri",
        2 => "Sat",
        3 => "Sun",
        4 => "Mon",
        5 => "Tue",
        _ => "Wed",
    };
    format!("{day} {:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none())).set_header(header);
    table
}

fn right(content: impl ToString) -> Cell {
    Cell::new(content).set_alignment(CellAlignment::Right)
}
