use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use super::*;
use crate::provider::redis::consumers;
use crate::provider::redis::script::infos;
use crate::provider::redis::script::server::{Server, cases};
use crate::provider::redis::stored::{Consumer, Content, Kind, Local, Position, content_of};
use crate::subject::subject_matches;

const PREFIX: &str = "events";
/// Reads lists for few consumers already, and in many small parts.
const SMALL: Work = Work { lists: 3, entries: 7, lookups: 4, lookups_per_list: 1 };

fn content() -> impl Strategy<Value = Content> {
    let kind = prop_oneof![20 => Just(Kind::Event), 1 => Just(Kind::NoEvent), 1 => Just(Kind::Purged)];
    // In many streams nothing was purged and no other program wrote.
    let foreign = prop_oneof![20 => Just(Kind::Event), 1 => Just(Kind::Purged), 1 => Just(Kind::Foreign)];
    prop_oneof![content_of(kind), content_of(Just(Kind::Event)), content_of(foreign)].prop_map(
        |mut content| {
            // A count trusts the entries of what is retained.
            content.records.iter_mut().for_each(|record| record.also_in = None);
            content
        },
    )
}

/// A consumer, with its position and its backlog as places in the stream.
#[derive(Debug, Clone)]
struct Drawn {
    filter: &'static str,
    position: Option<Option<usize>>,
    backlog: Vec<usize>,
    pending: u64,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let filters = [
        "events.>",
        ">",
        "events.*",
        "events.*.x",
        "events.a",
        "events.b.*",
        "events.c.z",
        "events.none",
        "*.*.*",
    ];
    let position = prop_oneof![
        6 => (0..170_usize).prop_map(|place| Some(Some(place))),
        1 => Just(Some(None)),
        1 => Just(None),
    ];
    let backlog = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(0..170_usize, 1..9)];
    (prop::sample::select(filters.to_vec()), position, backlog, 0..5_u64)
        .prop_map(|(filter, position, backlog, pending)| Drawn { filter, position, backlog, pending })
}

impl Drawn {
    fn consumer(&self, number: usize, content: &Content) -> Consumer {
        let at = |place: &usize| {
            content.records.get(*place).map_or(content.behind() + 3, |record| record.sequence)
        };
        let mut backlog: Vec<u64> = self.backlog.iter().map(at).collect();
        backlog.sort_unstable();
        backlog.dedup();
        Consumer {
            name: format!("consumer-{number}"),
            filter: self.filter.to_owned(),
            position: match &self.position {
                Some(Some(place)) => Position::After(at(place)),
                Some(None) => Position::NotStarted,
                None => Position::Overtaken,
            },
            backlog,
            pending: self.pending,
            redelivered: self.pending / 2,
            exhausted: self.pending * 3,
            progress: (self.pending > 0).then_some(1_700_000_000_000 + self.pending),
            is_durable: !number.is_multiple_of(3),
        }
    }
}

/// Returns the lag of a consumer. Near the end, as many records as there are subjects are read themselves.
fn expected_lag(content: &Content, consumer: &Consumer, subjects: u64) -> u64 {
    let retained = content.retained();
    let (Some(oldest), Some(newest)) = (retained.first(), retained.last()) else { return 0 };
    let backlog = consumer.backlog.iter().filter(|sequence| **sequence >= oldest.sequence).count() as u64;
    let after = match consumer.position {
        Position::After(sequence) => sequence,
        Position::NotStarted => newest.sequence,
        Position::Overtaken => 0,
    };
    let is_everything = subjects::is_everything(&consumer.filter, PREFIX);
    let unread = newest.sequence.saturating_sub(after.max(oldest.sequence - 1));
    // A record of another program has no entry.
    let counts_foreign = (is_everything && content.is_gapless())
        || (subjects::has_wildcard(&consumer.filter) && unread <= subjects);
    let is_unread = |kind: Kind, subject: &str| match kind {
        Kind::Foreign => counts_foreign,
        _ => is_everything || subject_matches(subject, &consumer.filter),
    };
    let unread =
        retained.iter().filter(|record| record.sequence > after && is_unread(record.kind, &record.subject));
    backlog + unread.count() as u64
}

type Checked = std::result::Result<(), TestCaseError>;

async fn check(local: &Local, keys: &Keys, content: &Content, consumers: &[Consumer]) -> Checked {
    let failed = |error| TestCaseError::fail(format!("{error:?}"));
    let expected = |subjects| -> Vec<u64> {
        consumers.iter().map(|consumer| expected_lag(content, consumer, subjects)).collect()
    };
    let found = consumers::infos(local, keys, PREFIX).await.map_err(failed)?;
    prop_assert_eq!(found.len(), consumers.len());
    for (info, (consumer, lag)) in found.iter().zip(consumers.iter().zip(expected(content.subjects()))) {
        prop_assert_eq!((&info.name, &info.filter), (&consumer.name, &consumer.filter));
        prop_assert_eq!(info.lag, lag, "{}", &consumer.name);
        prop_assert_eq!((info.durable, info.pending), (consumer.is_durable, consumer.pending));
        prop_assert_eq!((info.redelivered, info.given_up), (consumer.redelivered, Some(consumer.exhausted)));
        prop_assert_eq!((info.last_progress, info.members), (consumer.progress, None));
        let alone = consumers::lag(local, keys, PREFIX, &consumer.name).await.map_err(failed)?;
        prop_assert_eq!(alone, lag, "{} alone", &consumer.name);
    }
    let names: Vec<String> = consumers.iter().map(|consumer| consumer.name.clone()).collect();
    let reply = local.run("consumers", &infos::infos(keys, &names)).await.map_err(failed)?;
    let infos = infos::read(reply).map_err(failed)?;
    let states: Vec<_> = names.iter().map(String::as_str).zip(infos.states.iter().flatten()).collect();
    prop_assert_eq!(infos.log.subjects, content.subjects());
    for subjects in [0, 20, u64::MAX] {
        let log = Log { subjects, ..infos.log };
        let lags = lags_by(local, keys, "consumers", PREFIX, log, &states, SMALL).await.map_err(failed)?;
        prop_assert_eq!(lags, expected(subjects), "{} subjects", subjects);
    }
    Ok(())
}

#[test]
fn random_consumers_lag_by_what_they_have_not_received() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for server in Server::all() {
        let local = Local::of(server);
        let mut runner = TestRunner::new(ProptestConfig::with_cases(cases(60, 3_000)));
        let passed = runner.run(&(content(), prop::collection::vec(drawn(), 0..9)), |(content, drawn)| {
            let keys = local.empty("lag");
            content.fill(&local, &keys);
            let consumers = drawn.iter().enumerate().map(|(number, drawn)| drawn.consumer(number, &content));
            let consumers: Vec<Consumer> = consumers.collect();
            consumers.iter().for_each(|consumer| consumer.add(&local, &keys));
            runtime.block_on(check(&local, &keys, &content, &consumers))
        });
        passed.unwrap_or_else(|error| panic!("{}: {error}", server.version));
    }
}

#[test]
fn the_common_start_ends_at_the_first_difference() {
    for (a, b, common) in [
        ("events.a", "events.b", "events."),
        ("events.a", "events.ab", "events.a"),
        ("", "events.", ""),
        ("events.é", "events.è", "events."),
        ("a", "a", "a"),
    ] {
        assert_eq!(common_start(a, b), common);
        assert_eq!(common_start(b, a), common);
    }
}
