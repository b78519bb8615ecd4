//! Checks before any I/O, and the meaning of wildcards.

use a3s_event::{DeliverPolicy, ErrorKind, Event, PublishOptions, SubscribeOptions};

use crate::Outcome;
use crate::world::{A_WHILE, World};

/// Publishes each event and expects a refusal. Then nothing may be stored.
async fn all_refused(w: &World<'_>, what: &str, events: Vec<Event>) {
    for event in events {
        let answer = w.call("publish", w.provider.publish(&event)).await;
        let shown: String = event.subject.chars().take(60).collect();
        let error = w.refused(&format!("{what}, subject {shown:?}"), answer);
        w.check_eq(what, &error.kind(), &ErrorKind::InvalidInput);
        w.check("may_be_stored is false", !error.may_be_stored());
    }
    w.check_eq("stored events", &w.history(None, 10).await.len(), &0);
}

fn events_at(w: &World<'_>, subjects: &[String]) -> Vec<Event> {
    let at = |subject: &String| Event { subject: subject.clone(), ..w.event("a") };
    subjects.iter().map(at).collect()
}

pub(super) async fn bad_subjects_are_refused(w: &World<'_>) {
    let mut subjects = vec![String::new(), ".".to_owned(), format!(".{}", w.subject("a"))];
    let many = vec!["t"; 40].join(".");
    let long = "x".repeat(300);
    let bad = [
        "a..b",
        "a.",
        "a b",
        "a\tb",
        "a\r\nb",
        "a\0b",
        "a\u{3000}b",
        "a\u{200b}b",
        "*",
        ">",
        "a*",
        "a.*.b",
        &many,
        &long,
    ];
    subjects.extend(bad.map(|topic| w.subject(topic)));
    all_refused(w, "a bad subject", events_at(w, &subjects)).await;
}

pub(super) async fn subjects_outside_the_prefix_are_refused(w: &World<'_>) {
    let prefix = w.provider.subject_prefix().to_owned();
    let subjects = [
        prefix.clone(),
        format!("{prefix}x.a.b"),
        format!("other{}", w.subject("a")),
        "$JS.API.INFO".to_owned(),
    ];
    all_refused(w, "a subject outside the prefix", events_at(w, &subjects)).await;
}

pub(super) async fn bad_filters_are_refused(w: &World<'_>) {
    let prefix = w.provider.subject_prefix();
    let outside = [String::new(), "*".to_owned(), "other.>".to_owned(), prefix.to_owned()];
    let inside = ["a..b", "a.", "a b", ">.a", "a>", "a*", "*a", "a\nb"].map(|topic| w.subject(topic));
    for filter in outside.iter().chain(&inside) {
        let check = |call: &str, failure: Option<ErrorKind>| {
            let what = format!("{call} with the filter {filter:?}");
            w.check_eq(&what, &failure, &Some(ErrorKind::InvalidInput));
        };
        let opened = w.call("subscribe", w.provider.subscribe(filter)).await;
        check("subscribe", opened.err().map(|error| error.kind()));
        let read = w.call("history", w.provider.history(Some(filter), 1)).await;
        check("history", read.err().map(|error| error.kind()));
        if !w.provider.capabilities().durable.is_no() {
            let name = w.name("filter");
            let opened = w.call("subscribe_durable", w.provider.subscribe_durable(&name, filter)).await;
            check("subscribe_durable", opened.err().map(|error| error.kind()));
        }
    }
}

pub(super) async fn bad_consumer_names_are_refused(w: &World<'_>) {
    let long = "n".repeat(300);
    for name in ["", "a.b", "a b", "a*", "a>", "a/b", "a\\b", "a\nb", "a\u{200b}", &long] {
        let opened = w.call("subscribe_durable", w.provider.subscribe_durable(name, &w.all())).await;
        let error = w.refused(&format!("the consumer name {name:?}"), opened.map(drop));
        w.check_eq("kind of the error", &error.kind(), &ErrorKind::InvalidInput);
    }
    let info = w.ok("info", w.call("info", w.provider.info()).await);
    w.check_eq("consumers", &info.consumers, &0);
}

pub(super) async fn bad_events_are_refused(w: &World<'_>) {
    let deep = (0..150).fold(serde_json::Value::Null, |inner, _| serde_json::json!([inner]));
    let changes: [fn(&mut Event); 6] = [
        |event| event.id = String::new(),
        |event| event.id = "a\nb".to_owned(),
        |event| event.id = "x".repeat(600),
        |event| event.version = 0,
        |event| event.version = u32::MAX,
        |event| drop(event.metadata.insert("key".to_owned(), "v".repeat(40_000))),
    ];
    let changed = |change: fn(&mut Event)| {
        let mut event = w.event("a");
        change(&mut event);
        event
    };
    let mut events: Vec<_> = changes.into_iter().map(changed).collect();
    events.push(Event { payload: deep, ..w.event("a") });
    all_refused(w, "an event that cannot be stored", events).await;
}

pub(super) async fn an_event_over_the_size_limit_is_refused(w: &World<'_>) -> Outcome {
    let Some(limit) = w.provider.capabilities().max_event_bytes else {
        return Outcome::NotApplicable("the provider declares no size limit");
    };
    let mut event = w.event("a");
    event.payload = serde_json::Value::String(String::new());
    let empty = serde_json::to_vec(&event).expect("an event is JSON").len();
    event.payload = serde_json::Value::String("x".repeat(limit - empty));
    w.publish_event(&event).await;
    event.payload = serde_json::Value::String("x".repeat(limit - empty + 1));
    let answer = w.call("publish", w.provider.publish(&event)).await;
    let error = w.refused("an event one byte over the limit", answer);
    w.check_eq("kind of the error", &error.kind(), &ErrorKind::InvalidInput);
    w.check_eq("stored events", &w.stored().await, &1);
    Outcome::Kept
}

pub(super) async fn bad_publish_options_are_refused(w: &World<'_>) {
    let mut bad = vec![PublishOptions { timeout_secs: Some(0), ..Default::default() }];
    if !w.provider.capabilities().dedup.is_no() {
        let long = "m".repeat(600);
        bad.extend(
            ["", "a\nb", "a\u{200b}b", " a", "a ", "a\u{a0}", &long]
                .map(|id| PublishOptions { msg_id: Some(id.to_owned()), ..Default::default() }),
        );
    }
    for options in bad {
        let answer = w.publish_with("a", options.clone()).await;
        let error = w.refused(&format!("{options:?}"), answer);
        w.check_eq(&format!("{options:?}"), &error.kind(), &ErrorKind::Config);
    }
    w.check_eq("stored events", &w.stored().await, &0);
}

pub(super) async fn bad_subscribe_options_are_refused(w: &World<'_>) {
    let plain = SubscribeOptions::default;
    let bad = [
        SubscribeOptions { max_deliver: Some(0), ..plain() },
        SubscribeOptions { max_deliver: Some(-1), ..plain() },
        SubscribeOptions { max_ack_pending: Some(0), ..plain() },
        SubscribeOptions { max_ack_pending: Some(-5), ..plain() },
        SubscribeOptions { ack_wait_secs: Some(0), ..plain() },
        SubscribeOptions { ack_wait_secs: Some(u64::MAX), ..plain() },
        SubscribeOptions { backoff_secs: vec![u64::MAX], ..plain() },
        SubscribeOptions { backoff_secs: vec![5, 1], ..plain() },
        SubscribeOptions { backoff_secs: vec![1, 2, 3], max_deliver: Some(2), ..plain() },
        SubscribeOptions { deliver_policy: DeliverPolicy::ByStartSequence { sequence: 0 }, ..plain() },
    ];
    let filter = w.all();
    for options in bad {
        let opened = w.provider.subscribe_with_options(&filter, &options);
        let opened = w.call("subscribe_with_options", opened).await;
        let mut errors = vec![w.refused(&format!("{options:?}"), opened.map(drop))];
        if !w.provider.capabilities().durable.is_no() {
            let name = w.name("options");
            let opened = w.provider.subscribe_durable_with_options(&name, &filter, &options);
            let opened = w.call("subscribe_durable_with_options", opened).await;
            errors.push(w.refused(&format!("durable with {options:?}"), opened.map(drop)));
        }
        // An option that is declared absent is refused for that reason first.
        let expected = match w.provider.capabilities().check_subscribe("", &options) {
            Ok(()) => ErrorKind::Config,
            Err(_) => ErrorKind::Unsupported,
        };
        for error in errors {
            w.check_eq(&format!("{options:?}"), &error.kind(), &expected);
        }
    }
    let info = w.ok("info", w.call("info", w.provider.info()).await);
    w.check_eq("consumers", &info.consumers, &0);
}

/// Publishes one event per topic and returns the topics that the filter matches.
async fn received(w: &World<'_>, filter: &str, topics: &[&str], expected: usize) -> Vec<String> {
    let mut reader = w.subscribe_to(&w.subject(filter)).await;
    for topic in topics {
        w.publish(topic).await;
    }
    let mut found = Vec::new();
    for _ in 0..expected {
        let delivery = reader.next().await;
        found.push(delivery.event().summary.clone());
        w.ok("ack", delivery.ack().await);
    }
    reader.silent_for(A_WHILE, "only matching events").await;
    found
}

const TOPICS: [&str; 7] = ["a", "a.b", "a.b.c", "a.c", "x.b", "ab", "A.b"];

pub(super) async fn a_star_is_exactly_one_token(w: &World<'_>) {
    let found = received(w, "a.*", &TOPICS, 2).await;
    w.check_eq("received for a.*", &found, &vec!["a.b".to_owned(), "a.c".to_owned()]);
    let found = received(w, "*.b", &["y.b", "y", "y.b.b"], 3 + 1).await;
    let expected = ["a.b", "x.b", "A.b", "y.b"].map(str::to_owned).to_vec();
    w.check_eq("received for *.b", &found, &expected);
}

pub(super) async fn a_rest_is_one_or_more_tokens(w: &World<'_>) {
    let found = received(w, "a.>", &TOPICS, 3).await;
    let expected = ["a.b", "a.b.c", "a.c"].map(str::to_owned).to_vec();
    w.check_eq("received for a.>", &found, &expected);
}

pub(super) async fn a_literal_filter_is_exactly_its_subject(w: &World<'_>) {
    let found = received(w, "a", &TOPICS, 1).await;
    w.check_eq("received for a", &found, &vec!["a".to_owned()]);
}

pub(super) async fn filters_mean_the_same_in_history(w: &World<'_>) {
    for topic in TOPICS {
        w.publish(topic).await;
    }
    for (filter, expected) in [
        ("a", vec!["a"]),
        ("a.*", vec!["a.c", "a.b"]),
        ("*.b", vec!["A.b", "x.b", "a.b"]),
        ("a.>", vec!["a.c", "a.b.c", "a.b"]),
        ("nobody.>", vec![]),
    ] {
        let found = w.history(Some(&w.subject(filter)), 100).await;
        let found: Vec<_> = found.iter().map(|event| event.summary.as_str()).collect();
        w.check_eq(&format!("history of {filter}"), &found, &expected);
    }
}
