use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use redis::{cmd, pipe};

use super::*;
use crate::provider::redis::script::server::{Server, cases};
use crate::provider::redis::stored::{Content, Kind, Local, Stored, content_of};

const PREFIX: &str = "events";
/// Works in so small parts that a short stream takes many.
const SMALL: Work = Work { records: 5, bytes: 2_000, looked: 12, lists: 3 };

fn filter() -> impl Strategy<Value = &'static str> {
    let filters = [
        "events.>",
        ">",
        "events.*",
        "events.*.x",
        "events.a",
        "events.a.>",
        "events.b.*",
        "events.*.*",
        "events.c.z",
        "events.none",
        "events.none.>",
        "*.*.y",
    ];
    prop::sample::select(filters.to_vec())
}

fn kind(foreign: u32) -> impl Strategy<Value = Kind> {
    prop_oneof![
        20 => Just(Kind::Event),
        1 => Just(Kind::NoEvent),
        1 => Just(Kind::Purged),
        1 => Just(Kind::OnlyEntry),
        foreign => Just(Kind::Foreign),
    ]
}

/// A query, with sequences as places in the stream and times as numbers of steps ago.
#[derive(Debug, Clone)]
struct Drawn {
    filter: Option<&'static str>,
    limit: usize,
    since: Option<usize>,
    before: Option<usize>,
    since_time: Option<u64>,
    before_time: Option<u64>,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let place = || prop::option::weighted(0.3, 0..170_usize);
    let steps = || prop::option::weighted(0.3, 0..25_u64);
    let limit = prop_oneof![8 => 1..12_usize, 1 => Just(0), 1 => 100..200_usize, 1 => Just(usize::MAX)];
    (prop::option::weighted(0.9, filter()), limit, place(), place(), steps(), steps()).prop_map(
        |(filter, limit, since, before, since_time, before_time)| Drawn {
            filter,
            limit,
            since,
            before,
            since_time,
            before_time,
        },
    )
}

impl Drawn {
    fn query(&self, content: &Content) -> HistoryQuery {
        let at = |place: usize| content.records.get(place).map_or(u64::MAX >> 11, |record| record.sequence);
        let mut query = HistoryQuery::new(self.limit);
        query.filter = self.filter.map(str::to_owned);
        query.since_sequence = self.since.map(at);
        query.before_sequence = self.before.map(at);
        query.since_time = self.since_time.map(Content::steps_ago);
        query.before_time = self.before_time.map(Content::steps_ago);
        query
    }
}

/// The range of a query in a stream, and what it should find there, newest first.
struct Expected {
    since: u64,
    before: u64,
    events: Vec<u64>,
    unreadable: Vec<u64>,
}

fn expected(content: &Content, query: &HistoryQuery) -> Expected {
    let mut since = content.first().max(query.since_sequence.unwrap_or_default());
    let mut before = content.behind().min(query.before_sequence.unwrap_or(u64::MAX));
    if let Some(ms) = query.since_time {
        since = content.first_since(since, before, ms);
    }
    if let Some(ms) = query.before_time {
        before = content.first_since(since, before, ms);
    }
    let (mut events, mut unreadable) = (Vec::new(), Vec::new());
    let retained = content.retained().into_iter().rev();
    for record in retained.filter(|record| (since..before).contains(&record.sequence)) {
        let is_match = query.filter.as_deref().is_none_or(|filter| subject_matches(&record.subject, filter));
        match record.kind {
            Kind::Event if is_match => events.push(record.sequence),
            Kind::NoEvent if is_match => unreadable.push(record.sequence),
            Kind::Foreign => unreadable.push(record.sequence),
            _ => {}
        }
    }
    Expected { since, before, events, unreadable }
}

fn sequences(page: &HistoryPage) -> (Vec<u64>, Vec<u64>) {
    let events = page.events.iter().map(|stored| stored.sequence).collect();
    (events, page.unreadable.iter().map(|record| record.sequence).collect())
}

type Checked = std::result::Result<(), TestCaseError>;

/// Reads all pages of a query, and compares each with what it should be.
async fn check(local: &Local, keys: &Keys, content: &Content, query: &HistoryQuery) -> Checked {
    let calls = local.calls();
    let mut rest = query.clone();
    for _ in 0..200 {
        let page = page_by(local, keys, PREFIX, &rest, SMALL).await;
        let page = page.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        let all = expected(content, &rest);
        let (events, unreadable) = sequences(&page);
        let on_page: Vec<u64> = all.events.iter().copied().take(query.limit).collect();
        prop_assert_eq!(&events, &on_page);
        for stored in &page.events {
            prop_assert_eq!(&stored.event.payload, &serde_json::json!(stored.sequence));
            let record = content.records.iter().find(|record| record.sequence == stored.sequence).unwrap();
            prop_assert_eq!((&stored.event.subject, stored.stored_at), (&record.subject, record.ms));
        }
        let is_full = events.len() == query.limit;
        let from = match events.last() {
            _ if all.since >= all.before => None,
            Some(oldest) if is_full => Some(*oldest),
            _ if is_full => Some(all.before),
            _ => Some(all.since),
        };
        prop_assert_eq!(page.searched_from, from);
        prop_assert_eq!(page.next, from.filter(|from| *from > all.since));
        let searched = |sequence: &u64| from.is_some_and(|from| *sequence >= from);
        prop_assert_eq!(unreadable, all.unreadable.into_iter().filter(searched).collect::<Vec<_>>());
        prop_assert!(local.calls() - calls < 1_000, "too many calls");
        let Some(next) = page.next.filter(|_| query.limit > 0) else { return Ok(()) };
        rest = rest.before_sequence(next);
    }
    Err(TestCaseError::fail("the pages do not come to an end"))
}

fn check_random_streams(stream: &str, foreign: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for server in Server::all() {
        let local = Local::of(server);
        let mut runner = TestRunner::new(ProptestConfig::with_cases(cases(40, 2_000)));
        let drawn = (content_of(kind(foreign)), prop::collection::vec(drawn(), 8));
        let passed = runner.run(&drawn, |(content, queries)| {
            let keys = local.empty(stream);
            content.fill(&local, &keys);
            for drawn in queries {
                let query = drawn.query(&content);
                runtime.block_on(check(&local, &keys, &content, &query))?;
            }
            Ok(())
        });
        passed.unwrap_or_else(|error| panic!("{}: {error}", server.version));
    }
}

#[test]
fn random_queries_find_what_is_stored() {
    check_random_streams("queries", 0);
}

#[test]
fn random_queries_name_the_records_of_other_programs() {
    check_random_streams("foreign", 2);
}

/// Returns a stream of events of these subjects, from sequence 1 on.
fn events<'a>(subjects: impl IntoIterator<Item = &'a str>) -> Content {
    let ms = Content::steps_ago(1);
    let stored = (1..).zip(subjects).map(|(sequence, subject)| Stored {
        sequence,
        ms,
        subject: subject.to_owned(),
        kind: Kind::Event,
        also_in: None,
    });
    Content { records: stored.collect(), ..Content::default() }
}

async fn read(local: &Local, keys: &Keys, filter: &str, limit: usize) -> HistoryPage {
    page(local, keys, PREFIX, &HistoryQuery::new(limit).filter(filter)).await.unwrap()
}

async fn is_indexed(local: &Local, keys: &Keys) -> bool {
    let call = history::history(keys, Range::default(), Most { records: 1, bytes: 1, looked: 1 });
    let slice = history::read(local.run(OPERATION, &call).await.unwrap()).unwrap();
    slice.unwrap().is_indexed
}

#[tokio::test]
async fn records_that_no_publish_has_met_are_found_without_lists() {
    for server in Server::all() {
        let local = Local::of(server);
        let keys = local.empty("unmet");
        events(std::iter::repeat_n("events.a", 700)).fill(&local, &keys);
        assert!(is_indexed(&local, &keys).await);
        let own =
            |id: &str| cmd("XADD").arg(keys.log()).arg(id).arg(&[("s", "events.b"), ("e", "[]")]).clone();
        let alien = cmd("XADD").arg(keys.log()).arg("*").arg(&[("name", "value")]).clone();
        local.send(pipe().add_command(own("*")).add_command(alien));
        for filter in ["events.b", "events.none", "events.none.>", "events.*.x"] {
            let page = read(&local, &keys, filter, 3).await;
            let (found, unreadable) = sequences(&page);
            assert_eq!((found.len(), page.next), (0, None), "{filter}");
            assert_eq!(unreadable.len(), if filter == "events.b" { 2 } else { 1 }, "{filter}");
            assert_eq!((page.unreadable[0].subject.as_deref(), page.unreadable[0].stored_at), (None, None));
            assert!(page.unreadable[0].reason.contains("fields"));
        }
        assert_eq!(sequences(&read(&local, &keys, "events.a", 2).await).0, [700, 699]);

        // A publish takes both over.
        let last = u64::MAX >> 20;
        let meta = [("last", last + 1), ("gap", last)];
        local.send(pipe().add_command(own(&format!("{}-9", last + 1))).hset_multiple(keys.meta(), &meta));
        assert!(!is_indexed(&local, &keys).await);
        assert_eq!(sequences(&read(&local, &keys, "events.none", 3).await).1.len(), 1);
        // Retention drops them.
        local.send(pipe().cmd("XTRIM").arg(keys.log()).arg("MINID").arg(last + 1));
        assert!(is_indexed(&local, &keys).await);
    }
}

#[tokio::test]
async fn an_entry_without_its_record_is_passed_over() {
    for server in Server::all() {
        let local = Local::of(server);
        let keys = local.empty("hints");
        let subjects = ["events.a", "events.b"].into_iter().cycle().take(20);
        events(subjects).fill(&local, &keys);
        let hints: &[u64] = &[2, 2, 21, 22];
        let mut change = pipe();
        change.cmd("XDEL").arg(keys.log()).arg("19-0").arg(format!("19-{}", Content::steps_ago(1)));
        change.rpush(keys.subject("events.a"), hints).zadd(keys.subjects(), "events.none", 0);
        change.rpush(keys.subject("events.none"), hints);
        local.send(&change);
        assert_eq!(sequences(&read(&local, &keys, "events.a", 2).await).0, [17, 15]);
        assert_eq!(sequences(&read(&local, &keys, "events.none", 2).await).0, [0; 0]);
        let every = read(&local, &keys, "events.*", 3).await;
        assert_eq!((sequences(&every).0, every.next), (vec![20, 18, 17], Some(17)));
    }
}

#[tokio::test]
async fn an_event_counts_as_dropped_at_the_end_of_its_age() {
    for server in Server::all() {
        let local = Local::of(server);
        let keys = local.empty("age");
        let mut content = events(["events.a"; 3]);
        (1..).zip(&mut content.records).for_each(|(second, record)| record.ms = second * 1_000);
        content.max_age = 10_000;
        content.fill(&local, &keys);
        for (now, since) in [(11_999, Some(2)), (12_000, Some(3)), (12_999, Some(3)), (13_000, None)] {
            let most = Most { records: 9, bytes: 9_999, looked: 9 };
            let call = history::history(&keys, Range::default(), most).argument(now.to_string());
            let slice = history::read(local.run(OPERATION, &call).await.unwrap()).unwrap();
            assert_eq!(slice.map(|slice| slice.since), since, "{now}");
        }
    }
}

#[tokio::test]
async fn long_pages_and_large_records_are_read_in_parts() {
    for server in Server::all() {
        let local = Local::of(server);
        let keys = local.empty("parts");
        let content = events(["events.a", "events.b"].into_iter().cycle().take(1_400));
        content.fill(&local, &keys);
        for (filter, limit, expected) in [
            ("events.>", usize::MAX, 1_400),
            ("events.a", usize::MAX, 700),
            ("events.a", 600, 600),
            ("events.*", 1_000, 1_000),
        ] {
            let page = read(&local, &keys, filter, limit).await;
            assert_eq!(page.events.len(), expected, "{filter}");
            assert!(page.events.is_sorted_by(|a, b| a.sequence > b.sequence));
        }

        let mut large = pipe();
        for sequence in 1_401..=1_412 {
            let json =
                [crate::provider::redis::stored::json("events.a", sequence), vec![b' '; 600_000]].concat();
            large.cmd("XADD").arg(keys.log()).arg(format!("{sequence}-{}", Content::steps_ago(0)));
            large.arg("s").arg("events.a").arg("e").arg(json).ignore();
            large.rpush(keys.subject("events.a"), sequence).ignore();
        }
        large.hset(keys.meta(), "last", 1_412);
        local.send(&large);
        for filter in ["events.a", "events.>", "events.*"] {
            let calls = local.calls();
            let query = HistoryQuery::new(12).filter(filter);
            let found = page(&local, &keys, PREFIX, &query).await.unwrap();
            assert_eq!(sequences(&found).0, (1_401..=1_412).rev().collect::<Vec<_>>(), "{filter}");
            assert_eq!(local.calls() - calls, 6, "each call returns two of them");
        }

        let range = Range { since: Some(1_401), pattern: "^events%.none$", ..Range::default() };
        for looked in [100, 5] {
            let call = history::history(&keys, range, Most { records: 9, bytes: 9, looked });
            let slice = history::read(local.run(OPERATION, &call).await.unwrap()).unwrap().unwrap();
            assert!((4..12.min(looked as u64 + 1)).contains(&slice.looked), "it walks over few bytes");
            assert_eq!(slice.searched_from, 1_413 - slice.looked);
        }
    }
}

#[tokio::test]
async fn a_page_with_very_many_unreadable_records_ends_early() {
    for server in Server::all() {
        let local = Local::of(server);
        let keys = local.empty("unreadable");
        let mut content = events(["events.a"; 1_210]);
        content.records[105..1_205].iter_mut().for_each(|record| record.kind = Kind::NoEvent);
        content.fill(&local, &keys);
        for filter in ["events.a", "events.>", "events.*"] {
            let page = read(&local, &keys, filter, 10).await;
            let (events, unreadable) = sequences(&page);
            assert_eq!((events, page.next), ((1_206..=1_210).rev().collect(), Some(206)), "{filter}");
            assert_eq!(unreadable, (206..=1_205).rev().collect::<Vec<_>>());
            let record = &page.unreadable[0];
            assert_eq!(
                (record.subject.as_deref(), record.stored_at),
                (Some("events.a"), Some(content.records[0].ms))
            );
            assert_eq!(record.reason, "invalid type: integer, expected a string at line 1 column 8");
        }
    }
}
