//! The state of a bus in a file: other processes, and stored subscriptions that are not valid any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::{EventBus, FileStateStore, MemoryProvider, MemoryStateStore, StateStore, SubscriptionFilter};

use super::process::{Process, role_to_play, say};

fn filter(id: &str, subject: &str) -> SubscriptionFilter {
    SubscriptionFilter {
        subscriber_id: id.to_owned(),
        subjects: vec![subject.to_owned()],
        durable: true,
        options: None,
    }
}

fn bus(store: Arc<dyn StateStore>) -> EventBus {
    EventBus::builder(MemoryProvider::default()).state_store(store).build().unwrap()
}

/// What the second process does, until it is killed.
#[test]
#[ignore = "a role of another process"]
fn role() {
    let Some(role) = role_to_play() else { return };
    let store = FileStateStore::new(&role.target);
    store.load().unwrap();
    say(&format!("claimed by {}", std::process::id()));
    for number in 1.. {
        match role.role.as_str() {
            "save" => store.save(&whole(number)).unwrap(),
            _ => std::thread::park(),
        }
        say(&number.to_string());
    }
}

/// A state that tells whether it is whole, and which one it is.
fn whole(number: u64) -> HashMap<String, SubscriptionFilter> {
    let ids = (0..200).map(|id| format!("subscriber-{id}"));
    ids.map(|id| (id.clone(), filter(&id, &format!("events.state.n{number}")))).collect()
}

/// The number of a state, which is whole.
fn number_of(state: &HashMap<String, SubscriptionFilter>) -> u64 {
    let subject = &state["subscriber-0"].subjects[0];
    assert!(state.len() == 200 && state.values().all(|filter| filter.subjects[0] == *subject), "{state:?}");
    subject.trim_start_matches("events.state.n").parse().unwrap()
}

#[test]
fn a_process_that_is_killed_while_it_saves_leaves_a_whole_state_and_a_whole_copy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let copy = folder.path().join("state.json.bak");
    let mut random = super::random::Random::new(7);
    for _ in 0..10 {
        let process = Process::start("state::role", "save", &path, "writer");
        process.expect("1");
        let said = process.kill_after(Duration::from_micros(random.below(20_000)));
        let saved = said.last().map_or(1, |number| number.parse().unwrap());
        let stored = number_of(&FileStateStore::new(&path).load().unwrap());
        assert!(stored == saved || stored == saved + 1, "{stored}, and {saved} was saved");
        if copy.exists() {
            number_of(&FileStateStore::new(&copy).load().unwrap());
        }
    }
}

#[test]
fn a_second_process_is_refused_with_the_id_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let process = Process::start("state::role", "hold", &path, "holder");
    process.expect(&format!("claimed by {}", process.id()));
    let store = FileStateStore::new(&path);
    for error in [store.load().unwrap_err(), store.save(&HashMap::new()).unwrap_err()] {
        let text = error.to_string();
        assert!(
            text.contains("state.json") && text.contains(&format!("process {} uses it", process.id())),
            "{text}"
        );
    }
    assert!(!path.exists());
    // A killed process holds nothing.
    drop(process);
    store.save(&HashMap::new()).unwrap();
    assert!(store.load().unwrap().is_empty());
}

#[tokio::test]
async fn a_stored_subscription_that_is_not_valid_is_set_aside_and_kept() {
    let store: Arc<dyn StateStore> = Arc::new(MemoryStateStore::default());
    let stored = [
        ("good", filter("good", "events.a")),
        ("bad-subject", filter("bad-subject", "events..a")),
        ("moved", filter("another", "events.a")),
    ];
    store.save(&stored.into_iter().map(|(id, filter)| (id.to_owned(), filter)).collect()).unwrap();

    let bus = bus(store.clone());
    assert_eq!(bus.list_subscriptions().await.len(), 1);
    assert_eq!(bus.create_subscriber("good").await.unwrap().len(), 1);
    let invalid = bus.invalid_subscriptions();
    let ids: Vec<&str> = invalid.iter().map(|invalid| invalid.filter.subscriber_id.as_str()).collect();
    assert_eq!(ids, ["bad-subject", "another"]);
    assert!(invalid[0].reason.contains("events..a"), "{}", invalid[0].reason);
    assert!(invalid[1].reason.contains("'another'"), "{}", invalid[1].reason);

    // A save of something else does not lose them; a correction and a removal end them.
    bus.update_subscription(filter("new", "events.b")).await.unwrap();
    assert_eq!(store.load().unwrap().len(), 4);
    bus.update_subscription(filter("bad-subject", "events.a")).await.unwrap();
    bus.remove_subscription("moved").await.unwrap();
    assert!(bus.invalid_subscriptions().is_empty());
    let mut left: Vec<String> = store.load().unwrap().into_keys().collect();
    left.sort();
    assert_eq!(left, ["bad-subject", "good", "new"]);
}

#[tokio::test]
async fn all_being_invalid_is_not_being_empty() {
    let store: Arc<dyn StateStore> = Arc::new(MemoryStateStore::default());
    store.save(&HashMap::from([("bad".to_owned(), filter("bad", ""))])).unwrap();
    let bus = bus(store.clone());
    assert!(bus.list_subscriptions().await.is_empty());
    assert_eq!(bus.invalid_subscriptions().len(), 1);
    bus.update_subscription(filter("new", "events.b")).await.unwrap();
    assert_eq!(store.load().unwrap().len(), 2);
}
