//! `dlq`.

use std::sync::Arc;

use a3s_event::dlq::{DeadLetter, FailureClass, REPLAYS_KEY};
use a3s_event::{DlqHandler as _, Event, ProviderDlq, ProviderRegistry, ReceivedEvent};
use serde_json::{Value, json};

use crate::bus::Bus;
use crate::on_every_bus;

on_every_bus! { letters_are_listed_shown_replayed_and_discarded what_fails_again_and_again_is_not_replayed replay_wants_to_know_which }

/// Publishes events and keeps letters of them, as a consumer does that gives events up.
async fn give_up(bus: &Bus, subjects: &[&str], replays: u64) {
    let provider = ProviderRegistry::builtin().connect(&bus.url).await.unwrap();
    let letters = ProviderDlq::new(Arc::clone(&provider)).unwrap();
    for subject in subjects {
        let event = Event::new(*subject, "orders", "", "test", json!({"of": subject}))
            .with_metadata(REPLAYS_KEY, replays.to_string());
        let sequence = provider.publish(&event).await.unwrap();
        letters.handle_letter(letter(event, sequence)).await.unwrap();
    }
    provider.close().await.unwrap();
}

/// Keeps letters of events that are elsewhere.
pub(crate) async fn keep(bus: &Bus, subjects: &[&str]) {
    let provider = ProviderRegistry::builtin().connect(&bus.url).await.unwrap();
    let letters = ProviderDlq::new(Arc::clone(&provider)).unwrap();
    for subject in subjects {
        let event = Event::new(*subject, "orders", "", "test", json!({"of": subject}));
        letters.handle_letter(letter(event, 1)).await.unwrap();
    }
    provider.close().await.unwrap();
}

fn letter(event: Event, sequence: u64) -> DeadLetter {
    let received = ReceivedEvent { event, sequence, num_delivered: 3, stream: "s".to_owned() };
    let mut letter = DeadLetter::new(received, FailureClass::Exhausted, "no \u{1b}[31mstock");
    letter.consumer = Some("billing-events-orders---1b473a9e05f7f0d2ac2f2b0d2d2f0c11".to_owned());
    letter.subscriber = Some("billing".to_owned());
    letter
}

async fn letters_are_listed_shown_replayed_and_discarded(bus: &Bus) {
    give_up(bus, &["events.orders.a", "events.orders.b", "events.bills.c"], 0).await;
    let ids = |rows: &[Value]| rows.iter().map(|row| row["id"].to_string()).collect::<Vec<_>>();
    let open = bus.rows(&["dlq", "list"]);
    assert_eq!(open.len(), 3);
    assert_eq!(bus.rows(&["dlq", "list", "--subject", "events.orders.>"]).len(), 2);
    assert_eq!(bus.rows(&["dlq", "list", "--class", "fatal"]).len(), 0);
    assert_eq!(bus.rows(&["dlq", "list", "--consumer", "billing", "--limit", "1"]).len(), 1);
    let table = bus.prints(&["dlq", "list"]);
    assert!(!table.contains('\u{1b}') && table.contains("stock"), "{table}");
    assert!(table.contains(" billing ") && !table.contains("1b473a9e"), "{table}");
    assert_eq!(open[0]["subscriber"], "billing");
    let shown: Value = serde_json::from_str(&bus.prints(&["dlq", "show", &ids(&open)[0]])).unwrap();
    assert_eq!(
        (&shown["class"], &shown["event"]["subject"]),
        (&json!("exhausted"), &json!("events.bills.c"))
    );

    let of = |subject: &str| bus.rows(&["history", subject]).len();
    let dry = &bus.rows(&["dlq", "replay", "--subject", "events.orders.>", "--dry-run"])[0];
    assert_eq!((dry["replayed"].as_array().unwrap().len(), of("events.orders.>")), (2, 2));
    let replayed = &bus.rows(&["dlq", "replay", "--subject", "events.orders.>", "--per-second", "100"])[0];
    assert_eq!((replayed["replayed"].as_array().unwrap().len(), of("events.orders.>")), (2, 4));
    assert_eq!(bus.rows(&["dlq", "list", "--status", "replayed"]).len(), 2);

    let dry = &bus.rows(&["dlq", "discard", "--class", "exhausted", "--dry-run"])[0];
    assert_eq!((dry["discarded"].as_array().unwrap().len(), bus.rows(&["dlq", "list"]).len()), (1, 1));
    bus.prints(&["dlq", "discard", &ids(&open)[0]]);
    assert_eq!(bus.rows(&["dlq", "list"]).len(), 0);
    assert_eq!(bus.rows(&["dlq", "list", "--status", "all"]).len(), 3);

    assert_eq!(bus.run(&["dlq", "show", "999999"]).code, 1);
}

async fn what_fails_again_and_again_is_not_replayed(bus: &Bus) {
    give_up(bus, &["events.orders.a"], 3).await;
    let refused = &bus.rows(&["dlq", "replay", "--all"])[0];
    assert_eq!(
        (refused["replayed"].as_array().unwrap().len(), refused["refused"].as_array().unwrap().len()),
        (0, 1)
    );
    let allowed = &bus.rows(&["dlq", "replay", "--all", "--max-replays", "4"])[0];
    assert_eq!(allowed["replayed"].as_array().unwrap().len(), 1);
}

async fn replay_wants_to_know_which(bus: &Bus) {
    assert_eq!(bus.run(&["dlq", "discard"]).code, 2);
    assert_eq!(bus.run(&["dlq", "replay"]).code, 2);
    assert_eq!(bus.run(&["dlq", "replay", "1", "--all"]).code, 2);
    assert_eq!(bus.run(&["dlq", "replay", "--all"]).code, 0);
}
