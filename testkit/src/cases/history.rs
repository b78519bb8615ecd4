//! Reading stored events without a consumer, and reading about consumers.

use a3s_event::{ConsumerInfo, Event, HistoryPage, HistoryQuery, StoredEvent};

use crate::Outcome;
use crate::world::{World, ms};

fn topics(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.summary.as_str()).collect()
}

async fn publish_topics(w: &World<'_>, topics: &[&str]) -> Vec<u64> {
    let mut sequences = Vec::new();
    for topic in topics {
        sequences.push(w.publish(topic).await);
    }
    sequences
}

pub(super) async fn history_is_newest_first(w: &World<'_>) {
    publish_topics(w, &["a", "b", "c"]).await;
    w.check_eq("history", &topics(&w.history(Some(&w.all()), 10).await), &vec!["c", "b", "a"]);
}

pub(super) async fn history_is_exactly_the_newest_limit(w: &World<'_>) {
    publish_topics(w, &["a", "b", "c", "d", "e"]).await;
    for (limit, expected) in [(1, vec!["e"]), (3, vec!["e", "d", "c"]), (5, vec!["e", "d", "c", "b", "a"])] {
        w.check_eq(&format!("history of {limit}"), &topics(&w.history(None, limit).await), &expected);
    }
}

pub(super) async fn a_filtered_history_is_exactly_the_newest_matches(w: &World<'_>) {
    publish_topics(w, &["m1", "x.1", "m2", "x.2", "x.3", "x.4"]).await;
    let found = w.history(Some(&w.subject("x.>")), 2).await;
    w.check_eq("two of x.>", &topics(&found), &vec!["x.4", "x.3"]);
    let found = w.history(Some(&w.subject("*")), 2).await;
    w.check_eq("two of *", &topics(&found), &vec!["m2", "m1"]);
}

pub(super) async fn history_does_not_wait_for_more(w: &World<'_>) {
    let read = async |limit| {
        let reading = w.provider.history(None, limit);
        match tokio::time::timeout(ms(2_000), reading).await {
            Ok(found) => w.ok("history", found).len(),
            Err(_) => w.fail(&"expected a history that is too short to return at once, but it waits"),
        }
    };
    w.check_eq("history of an empty stream", &read(10).await, &0);
    w.publish_many("a", 2).await;
    w.check_eq("history of two", &read(10).await, &2);
}

pub(super) async fn history_without_a_filter_is_everything(w: &World<'_>) {
    let elsewhere = Event {
        subject: w.provider.build_subject(&w.name("elsewhere"), "b"),
        summary: "b".to_owned(),
        ..w.event("b")
    };
    w.publish("a").await;
    w.publish_event(&elsewhere).await;
    w.check_eq("history", &topics(&w.history(None, 10).await), &vec!["b", "a"]);
    w.check_eq("of one category", &topics(&w.history(Some(&w.all()), 10).await), &vec!["a"]);
}

pub(super) async fn a_history_of_zero_is_empty(w: &World<'_>) {
    w.publish_many("a", 3).await;
    w.check_eq("history of 0", &w.history(None, 0).await.len(), &0);
}

pub(super) async fn a_huge_history_is_everything(w: &World<'_>) {
    w.publish_many("a", 300).await;
    for limit in [100_000, usize::MAX] {
        w.check_eq(&format!("history of {limit}"), &w.history(None, limit).await.len(), &300);
    }
}

pub(super) async fn history_leaves_no_consumer_behind(w: &World<'_>) {
    let consumers = || async { w.ok("info", w.call("info", w.provider.info()).await).consumers };
    w.publish_many("a", 3).await;
    for _ in 0..3 {
        w.history(Some(&w.all()), 2).await;
    }
    w.eventually("consumers", 0, consumers).await;
}

pub(super) async fn history_settles_nothing(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    let published = w.publish_many("a", 3).await;
    w.history(Some(&w.all()), 10).await;
    w.check_eq("events after reading history", &reader.ack_many(3).await, &published);
}

async fn query(w: &World<'_>, query: HistoryQuery) -> Vec<StoredEvent> {
    let query = query.filter(w.all());
    let found = w.call("query", w.provider.query(&query)).await;
    w.ok("query", found)
}

fn sequences(found: &[StoredEvent]) -> Vec<u64> {
    found.iter().map(|stored| stored.sequence).collect()
}

fn newest_first(published: &[u64]) -> Vec<u64> {
    published.iter().rev().copied().collect()
}

pub(super) async fn a_query_reads_a_sequence_range(w: &World<'_>) {
    let p = w.publish_many("a", 6).await;
    let since = query(w, HistoryQuery::new(100).since_sequence(p[3])).await;
    w.check_eq("since the fourth", &sequences(&since), &newest_first(&p[3..]));
    let before = query(w, HistoryQuery::new(100).before_sequence(p[3])).await;
    w.check_eq("before the fourth", &sequences(&before), &newest_first(&p[..3]));
    let between = HistoryQuery::new(100).since_sequence(p[1]).before_sequence(p[4]);
    w.check_eq("between", &sequences(&query(w, between).await), &newest_first(&p[1..4]));
    let newest = HistoryQuery::new(2).since_sequence(p[1]).before_sequence(p[4]);
    w.check_eq("the newest two in the range", &sequences(&query(w, newest).await), &newest_first(&p[2..4]));
}

pub(super) async fn a_query_reads_a_time_range(w: &World<'_>) {
    let misdated = |timestamp| Event { timestamp, ..w.event("a") };
    let mut p = vec![w.publish_event(&misdated(4_000_000_000_000)).await];
    let first = w.storage_time_between().await;
    p.push(w.publish_event(&misdated(1)).await);
    let second = w.storage_time_between().await;
    p.push(w.publish_event(&misdated(first)).await);
    let since = query(w, HistoryQuery::new(100).since_time(first)).await;
    w.check_eq("since the first time", &sequences(&since), &newest_first(&p[1..]));
    let before = query(w, HistoryQuery::new(100).before_time(second)).await;
    w.check_eq("before the second time", &sequences(&before), &newest_first(&p[..2]));
    let between = HistoryQuery::new(100).since_time(first).before_time(second);
    w.check_eq("between", &sequences(&query(w, between).await), &newest_first(&p[1..2]));
}

pub(super) async fn a_query_combines_its_conditions(w: &World<'_>) {
    let wanted_and_other = async || {
        let wanted = w.publish("wanted").await;
        w.publish("other").await;
        wanted
    };
    let mut wanted = vec![wanted_and_other().await];
    let since = w.storage_time_between().await;
    for _ in 0..3 {
        wanted.push(wanted_and_other().await);
    }
    let before = w.storage_time_between().await;
    wanted.push(wanted_and_other().await);
    let filter = w.subject("wanted");
    let read = async |query: HistoryQuery| {
        let found = w.call("query", w.provider.query(&query.filter(&filter))).await;
        sequences(&w.ok("query", found))
    };
    let in_time = |limit| HistoryQuery::new(limit).since_time(since).before_time(before);
    w.check_eq("matches in a time range", &read(in_time(100)).await, &newest_first(&wanted[1..4]));
    w.check_eq("the newest two in the range", &read(in_time(2)).await, &newest_first(&wanted[2..4]));
    let also_by_sequence = in_time(100).since_sequence(wanted[0]).before_sequence(wanted[3]);
    w.check_eq(
        "matches in a time and sequence range",
        &read(also_by_sequence).await,
        &newest_first(&wanted[1..3]),
    );
}

pub(super) async fn a_query_pages_through_everything(w: &World<'_>) {
    let published = w.publish_many("a", 11).await;
    let mut found = Vec::new();
    let mut page = query(w, HistoryQuery::new(4)).await;
    while let Some(oldest) = page.last() {
        let next = HistoryQuery::new(4).before_sequence(oldest.sequence);
        w.check("pages come to an end", found.len() <= published.len());
        found.extend(sequences(&page));
        page = query(w, next).await;
    }
    w.check_eq("all pages", &found, &newest_first(&published));
}

async fn page(w: &World<'_>, query: &HistoryQuery) -> HistoryPage {
    let found = w.call("query_page", w.provider.query_page(query)).await;
    w.ok("query_page", found)
}

/// Reads all pages of a query, each from where the previous one says. Returns their events and unreadable records.
async fn pages(w: &World<'_>, query: HistoryQuery, most: usize) -> (Vec<u64>, Vec<u64>) {
    let (mut events, mut unreadable) = (Vec::new(), Vec::new());
    let mut next = Some(query);
    let mut searched_from = u64::MAX;
    for _ in 0..most {
        let Some(query) = next else { break };
        let page = page(w, &query).await;
        w.check("a page has at most as many events as its limit", page.events.len() <= query.limit);
        events.extend(sequences(&page.events));
        unreadable.extend(page.unreadable.iter().map(|record| record.sequence));
        if let Some(from) = page.searched_from {
            w.check("every page searches further back", from < searched_from);
            searched_from = from;
        }
        next = page.next.map(|before| query.before_sequence(before));
    }
    w.check("the pages come to an end", next.is_none());
    (events, unreadable)
}

pub(super) async fn a_page_says_how_far_it_searched(w: &World<'_>) {
    let p = w.publish_many("a", 6).await;
    let all = HistoryQuery::new(100).filter(w.all());
    let whole = page(w, &all).await;
    w.check_eq("all events", &sequences(&whole.events), &newest_first(&p));
    w.check_eq("start of the next page", &whole.next, &None);
    w.check("is_complete of a whole page", whole.is_complete());
    w.check(
        "the page searched from the first event or before it",
        whole.searched_from.is_some_and(|from| from <= p[0]),
    );

    let two = page(w, &HistoryQuery::new(2).filter(w.all())).await;
    w.check_eq("the newest two", &sequences(&two.events), &newest_first(&p[4..]));
    w.check(
        "the next page begins after the found events",
        two.next.is_some_and(|next| next > p[3] && next <= p[4]),
    );
    w.check_eq("lowest sequence that the page searched", &two.searched_from, &two.next);
    w.check("is_complete is false for a part", !two.is_complete());

    let range = all.clone().since_sequence(p[1]).before_sequence(p[4]);
    let ranged = page(w, &range).await;
    w.check_eq("a range", &sequences(&ranged.events), &newest_first(&p[1..4]));
    w.check_eq("start of the next page of the range", &ranged.next, &None);
    w.check_eq("lowest sequence searched in the range", &ranged.searched_from, &Some(p[1]));

    let nothing = page(w, &all.before_sequence(p[0]).since_sequence(p[0])).await;
    w.check_eq("an empty range", &(nothing.events.len(), nothing.unreadable.len()), &(0, 0));
    w.check_eq("start of the page after an empty range", &nothing.next, &None);
    w.check_eq("lowest sequence searched in an empty range", &nothing.searched_from, &None);
}

pub(super) async fn pages_cover_everything_once(w: &World<'_>) {
    let mut wanted = Vec::new();
    for round in 0..12 {
        wanted.push(w.publish("wanted").await);
        // Gaps without a match, shorter and longer than a page.
        w.publish_many("other", round % 5).await;
    }
    for limit in [1, 3, 4, 100] {
        let query = HistoryQuery::new(limit).filter(w.subject("wanted"));
        let (events, unreadable) = pages(w, query, 1_000).await;
        w.check_eq(&format!("events on pages of {limit}"), &events, &newest_first(&wanted));
        w.check_eq("unreadable records", &unreadable, &Vec::new());
    }
    let range =
        HistoryQuery::new(2).filter(w.subject("wanted")).since_sequence(wanted[2]).before_sequence(wanted[9]);
    w.check_eq("events of a range", &pages(w, range, 1_000).await.0, &newest_first(&wanted[2..9]));
}

pub(super) async fn a_page_names_what_cannot_be_read(w: &World<'_>) -> Outcome {
    let mut readable = vec![w.publish("a").await];
    let mut stored = Vec::new();
    for raw in [b"\xff not an event".as_slice(), b"{", b"[]"] {
        let Some(sequence) = w.fixture.store_undecodable(&w.subject("a"), raw).await else {
            return Outcome::NotApplicable("the harness cannot store a record that is not an event");
        };
        stored.push(sequence);
        readable.push(w.publish("a").await);
    }
    let all = |limit| HistoryQuery::new(limit).filter(w.all());
    let whole = page(w, &all(100)).await;
    w.check_eq("events around the unreadable records", &sequences(&whole.events), &newest_first(&readable));
    let named: Vec<u64> = whole.unreadable.iter().map(|record| record.sequence).collect();
    w.check_eq("unreadable records", &named, &newest_first(&stored));
    for record in &whole.unreadable {
        w.check("each unreadable record has a reason", !record.reason.is_empty());
        let subject = record.subject.as_deref();
        w.check(
            "an unreadable record has the subject that it is stored under",
            subject.is_none_or(|s| s == w.subject("a")),
        );
    }
    // A page that is full of events lists the records that it passed. No record is listed twice or lost between pages.
    for limit in [1, 2, 3, 4] {
        let (events, unreadable) = pages(w, all(limit), 100).await;
        w.check_eq(&format!("events on pages of {limit}"), &events, &newest_first(&readable));
        w.check_eq(&format!("unreadable records on pages of {limit}"), &unreadable, &newest_first(&stored));
    }
    let range = all(100).since_sequence(stored[1]).before_sequence(stored[2]);
    let ranged = page(w, &range).await;
    w.check_eq("events of a range", &sequences(&ranged.events), &vec![readable[2]]);
    let named: Vec<u64> = ranged.unreadable.iter().map(|record| record.sequence).collect();
    w.check_eq("unreadable records of a range", &named, &vec![stored[1]]);
    // A query without pages omits them.
    w.check_eq("query", &sequences(&query(w, HistoryQuery::new(4)).await), &newest_first(&readable));
    Outcome::Kept
}

pub(super) async fn a_query_tells_sequence_and_storage_time(w: &World<'_>) {
    let start = w.harness.unix_millis();
    let sequence = w.publish_event(&Event { timestamp: 1, ..w.event("a") }).await;
    let found = query(w, HistoryQuery::new(1)).await;
    w.check_eq("sequence", &sequences(&found), &vec![sequence]);
    let end = w.harness.unix_millis();
    let stored_at = found[0].stored_at;
    w.check(
        &format!("stored_at {stored_at} lies between {start} and {end}"),
        (start.saturating_sub(1)..=end + 1).contains(&stored_at),
    );
}

async fn consumer(w: &World<'_>, name: &str) -> ConsumerInfo {
    let consumers = w.call("consumers", w.provider.consumers()).await;
    let found = w.ok("consumers", consumers).into_iter().find(|consumer| consumer.name == name);
    found.unwrap_or_else(|| w.fail(&format!("expected the consumer {name} in the list, but it is missing")))
}

pub(super) async fn consumers_lists_lag_pending_and_redelivered(w: &World<'_>) {
    let name = w.name("listed");
    let mut reader = w.durable(&name).await;
    w.publish_many("a", 5).await;
    let _held = reader.hold(2).await;
    w.ok("nak", reader.next().await.nak().await);
    let _again = reader.next().await;
    let found = || async {
        let info = consumer(w, &name).await;
        (info.lag, info.pending, info.redelivered)
    };
    w.eventually("lag, pending and redelivered", (2, 3, 1), found).await;
    let info = consumer(w, &name).await;
    w.check_eq("filter and durable", &(info.filter, info.durable), &(w.all(), true));
}

pub(super) async fn a_subscription_knows_its_lag(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    w.publish_many("a", 3).await;
    for expected in [3, 2, 1, 0] {
        let found = || async { w.ok("lag", w.call("lag", reader.subscription.lag()).await) };
        // A server may count a published event a moment later.
        w.eventually("lag", expected, found).await;
        if expected > 0 {
            reader.ack_next().await;
        }
    }
}
