//! Tests of `dlq`.

use std::sync::Arc;

use a3s_event::dlq::{DeadLetter, FailureClass, REPLAYS_KEY};
use a3s_event::{DlqHandler as _, Event, ProviderDlqHandler, ProviderRegistry, ReceivedEvent};
use serde_json::{Value, json};

use crate::bus::Bus;
use crate::on_every_bus;

on_every_bus! { letters_are_listed_shown_replayed_and_discarded what_fails_again_and_again_is_not_replayed replay_wants_to_know_which an_event_of_several_letters_is_one_row a_dry_run_shows_the_letters what_is_done_already_is_said }

/// Publishes events and stores dead letters of them, like a consumer that gives them up.
async fn give_up(bus: &Bus, subjects: &[&str], replays: u64) {
    let provider = ProviderRegistry::builtin().connect(&bus.url).await.unwrap();
    let letters = ProviderDlqHandler::new(Arc::clone(&provider)).unwrap();
    for subject in subjects {
        let event = Event::new(*subject, "orders", "", "test", json!({"of": subject}))
            .with_metadata(REPLAYS_KEY, replays.to_string());
        let sequence = provider.publish(&event).await.unwrap();
        letters.handle_letter(letter(event, sequence)).await.unwrap();
    }
    provider.close().await.unwrap();
}

/// Stores dead letters of events on another bus.
pub(crate) async fn keep(bus: &Bus, subjects: &[&str]) {
    let provider = ProviderRegistry::builtin().connect(&bus.url).await.unwrap();
    let letters = ProviderDlqHandler::new(Arc::clone(&provider)).unwrap();
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
    assert_eq!(bus.rows(&["dlq", "list", "--filter", "events.orders.>"]).len(), 2);
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
    let dry = &bus.rows(&["dlq", "replay", "--filter", "events.orders.>", "--dry-run"])[0];
    assert_eq!((dry["replayed"].as_array().unwrap().len(), of("events.orders.>")), (2, 2));
    let replayed = &bus.rows(&["dlq", "replay", "--filter", "events.orders.>", "--per-second", "100"])[0];
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
    assert_eq!(bus.rows(&["dlq", "list"])[0]["replays"], 3, "the number that the refusal counts");
    let allowed = &bus.rows(&["dlq", "replay", "--all", "--max-replays", "4"])[0];
    assert_eq!(allowed["replayed"].as_array().unwrap().len(), 1);
}

async fn replay_wants_to_know_which(bus: &Bus) {
    for command in ["discard", "replay"] {
        let ran = bus.run(&["dlq", command]);
        let names_all = ["numbers", "--filter", "--all"].iter().all(|way| ran.stderr.contains(way));
        assert!(ran.code == 2 && names_all, "{}", ran.stderr);
    }
    assert_eq!(bus.run(&["dlq", "replay", "1", "--all"]).code, 2);
    bus.publish("events.a", 1);
    assert_eq!(bus.run(&["dlq", "replay", "--all"]).code, 0);
}

async fn an_event_of_several_letters_is_one_row(bus: &Bus) {
    let provider = ProviderRegistry::builtin().connect(&bus.url).await.unwrap();
    let letters = ProviderDlqHandler::new(Arc::clone(&provider)).unwrap();
    let event = Event::new("events.orders.a", "orders", "", "test", json!({"n": 1}));
    let sequence = provider.publish(&event).await.unwrap();
    for consumer in ["billing", "audit", "mail"] {
        let mut letter = letter(event.clone(), sequence);
        letter.consumer = Some(consumer.to_owned());
        letters.handle_letter(letter).await.unwrap();
    }
    provider.close().await.unwrap();
    let ids: Vec<_> = bus.rows(&["dlq", "list"]).iter().map(|row| row["id"].to_string()).collect();

    let table = bus.prints(&["dlq", "replay", "--all", "--dry-run"]);
    let planned = table.clone();
    let table = bus.prints(&["dlq", "replay", &ids[0]]);
    let as_planned = table
        .replace("published once", "would be published once")
        .replace("event published", "event would be published")
        .replace(" marked as", " would be marked as")
        .replace(" refused", " would be refused");
    let words = |table: &str| table.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&planned), words(&as_planned), "a dry run prints the same table");
    let row = table.lines().find(|line| line.contains(&event.id)).unwrap();
    assert!(row.contains("events.orders.a") && row.contains("published once, 3 letters marked"), "{table}");
    assert!(ids.iter().all(|id| row.contains(id)), "{table}");
    assert!(
        table.ends_with("1 event published, 3 letters marked as replayed, 0 letters refused\n"),
        "{table}"
    );
    assert_eq!(bus.rows(&["history", "events.orders.a"]).len(), 2);
    assert_eq!(bus.rows(&["dlq", "list"]).len(), 0);

    let row = &bus.rows(&["dlq", "replay", &ids[1]])[0];
    assert_eq!((&row["events"][0]["replays"], &row["events"][0]["published"]), (&json!(2), &json!(true)));
    let again: Vec<_> = ["dlq", "replay"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    bus.prints(&again);
    let table = bus.prints(&again);
    let refused: Vec<_> = table.lines().filter(|line| line.contains("refused: it was replayed 3")).collect();
    assert!(refused.len() == 1 && ids.iter().all(|id| refused[0].contains(id)), "{table}");
    assert!(
        table.ends_with("0 events published, 0 letters marked as replayed, 3 letters refused\n"),
        "{table}"
    );
    assert_eq!(bus.rows(&["history", "events.orders.a"]).len(), 4);
}

async fn a_dry_run_shows_the_letters(bus: &Bus) {
    give_up(bus, &["events.orders.a"], 0).await;
    give_up(bus, &["events.orders.b"], 3).await;
    let table = bus.prints(&["dlq", "replay", "--all", "--dry-run"]);
    let row = |subject: &str| table.lines().find(|line| line.contains(subject)).unwrap().to_owned();
    assert!(row("events.orders.a").contains("would be published once, 1 letter marked"), "{table}");
    assert!(row("events.orders.b").contains("would be refused: it was replayed 3 times already"), "{table}");
    let list = bus.prints(&["dlq", "list"]);
    assert!(list.contains("open, 3 replays") && list.contains("exhausted: no "), "{list}");
    let table = bus.prints(&["dlq", "discard", "--filter", "events.orders.a", "--dry-run"]);
    assert!(table.contains("stock") && table.contains("discarded") && !table.contains("orders.b"), "{table}");
    assert_eq!(bus.rows(&["dlq", "list"]).len(), 2);
}

async fn what_is_done_already_is_said(bus: &Bus) {
    give_up(bus, &["events.orders.a", "events.orders.b"], 0).await;
    let open = bus.rows(&["dlq", "list"]);
    let [first, second] = [0, 1].map(|place: usize| open[place]["id"].to_string());
    let discard = |ids: &[&String]| {
        let ids: Vec<_> = ids.iter().map(|id| id.as_str()).collect();
        let row = bus.rows(&[&["dlq", "discard"], &ids[..]].concat()).remove(0);
        (row["discarded"].to_string(), row["alreadyDiscarded"].to_string())
    };
    assert_eq!(discard(&[&first]), (format!("[{first}]"), "[]".to_owned()));
    assert_eq!(discard(&[&first, &second]), (format!("[{second}]"), format!("[{first}]")));
    assert_eq!(bus.run(&["dlq", "discard", "999999"]).code, 1);
}

#[test]
fn where_the_letters_are_can_be_said_anywhere_and_is_hinted_at() {
    let (bus, letters) = (Bus::sqlite(), Bus::sqlite());
    for bus in [&bus, &letters] {
        bus.publish("events.a", 1);
    }
    for arguments in [["dlq", "--dlq-url", &letters.url, "list"], ["dlq", "list", "--dlq-url", &letters.url]]
    {
        let ran = bus.run(&arguments);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("no open dead letters") && !ran.stderr.contains("--dlq-url"),
            "{}",
            ran.stderr
        );
    }
    let ran = bus.run(&["dlq", "list"]);
    assert!(ran.stderr.contains("--dlq-url") && ran.stderr.contains("bus.db"), "{}", ran.stderr);
    assert_eq!(bus.run(&["dlq", "list", "--output", "json"]).stderr, "");
    let ran = bus.run(&["dlq", "list", "--status", "replayed", "--class", "schema_invalid"]);
    assert!(ran.code == 0 && ran.stderr.contains("no such dead letters"), "{}", ran.stderr);
    assert_eq!(bus.run(&["dlq", "list", "--class", "schema-invalid"]).code, 0);
}
