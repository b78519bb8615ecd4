//! The same odd inputs on every provider: the same outcome, the same kind of error, or a declared capability.
//!
//! One seed draws ids, names, subjects, options, durations and metadata. Memory is the reference because it is the shortest
//! implementation of the contract. `A3S_EVENT_SEED` repeats a run.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::provider::{PublishReceipt, PublishRequest};
use a3s_event::{
    DeliverPolicy, Delivery, ErrorKind, Event, EventError, EventProvider, HistoryQuery, PublishOptions,
    SubscribeOptions, Subscription,
};
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::random::Random;

/// Drawn publishes, and every fourth as many times something else.
const PUBLISHES: usize = 2_000;
const SEED: u64 = 0x5eed;
/// How long a provider may take to deliver what the reference delivered.
const SOON: Duration = Duration::from_secs(10);
/// How long a provider is watched that must deliver nothing.
const A_MOMENT: Duration = Duration::from_millis(30);
/// Most events that are left to a consumer whose rest is compared.
const MAX_REST: u64 = 40;

/// The providers under comparison; the first one is the reference.
struct Providers {
    names: [&'static str; 3],
    all: [Arc<dyn EventProvider>; 3],
    differences: Vec<String>,
}

/// What an operation did, as far as it has to be the same everywhere.
type Outcome = Result<String, ErrorKind>;

fn outcome<T: Debug>(result: Result<T, EventError>) -> Outcome {
    result.map(|value| format!("{value:?}")).map_err(|error| error.kind())
}

impl Providers {
    /// A provider that declares something absent is not compared.
    fn compare(&mut self, what: impl Fn() -> String, outcomes: &[Outcome; 3]) -> bool {
        let before = self.differences.len();
        for (name, found) in self.names.iter().zip(outcomes).skip(1) {
            if *found != outcomes[0] && *found != Err(ErrorKind::Unsupported) {
                let [reference, found] = excerpts(&outcomes[0], found);
                let difference = format!("{}\n  memory: {reference}\n  {name}: {found}", what());
                self.differences.push(difference);
            }
        }
        self.differences.len() == before
    }

    async fn each<T>(&self, call: impl AsyncFn(&dyn EventProvider) -> T) -> [T; 3] {
        let [memory, sqlite, nats] = &self.all;
        [call(&**memory).await, call(&**sqlite).await, call(&**nats).await]
    }
}

/// The two from a little before the place where they begin to differ.
fn excerpts(one: &Outcome, other: &Outcome) -> [String; 2] {
    let texts = [one, other].map(|outcome| Vec::from_iter(format!("{outcome:?}").chars()));
    let same = texts[0].iter().zip(&texts[1]).take_while(|(one, other)| one == other).count();
    texts.map(|text| text.into_iter().skip(same.saturating_sub(100)).take(300).collect())
}

/// Draws inputs, most of them odd in one place only, so that one rule does not hide another.
struct Oddities {
    random: Random,
    msg_ids: Vec<String>,
}

impl Oddities {
    fn one_in(&mut self, chance: u64) -> bool {
        self.random.below(chance) == 0
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.random.below(choices.len() as u64)).unwrap()].clone()
    }

    /// A string that some parser, header or file name could take for something else.
    fn text(&mut self) -> String {
        const ODD: [&str; 34] = [
            "",
            " ",
            "a",
            "a ",
            " a",
            "a b",
            "\t",
            "a\n",
            "a\r\nb",
            "\0",
            "\u{7f}",
            "é",
            "e\u{301}",
            "日本語",
            "😀",
            "\u{200b}",
            "a\u{200b}b",
            "\u{feff}a",
            "\u{202e}a",
            "null",
            "true",
            "0",
            "-1",
            "1e400",
            "%20",
            "a=b",
            "a:b",
            "a,b",
            "\"a\"",
            "\\",
            "'; DROP TABLE events;--",
            "<a&b>",
            "=?utf-8?q?a?=",
            "A",
        ];
        match self.random.below(12) {
            0 => "x".repeat(self.pick(&[255, 256, 511, 512, 513])),
            1 => "é".repeat(self.pick(&[127, 128, 255, 256, 257])),
            _ => self.pick(&ODD).to_owned(),
        }
    }

    fn name(&mut self) -> String {
        match self.random.below(4) {
            0 => self.text(),
            1 => self.pick(&["a.b", "a*", "a>", "a/b", "a\\b", ".", "..", "-", "_", "a-b_C9"]).to_owned(),
            _ => self.pick(&["billing", "Billing", "audit", "mail-1"]).to_owned(),
        }
    }

    fn subject(&mut self) -> String {
        const ODD: [&str; 22] = [
            "",
            "events",
            "events.",
            ".events.a",
            "events..a",
            "events.a.",
            "events.*",
            "events.>",
            "events.a>",
            "events.a*b",
            "other.a",
            "event.a",
            "Events.a",
            "events.a b",
            "events.a\n",
            "events.\u{200b}a",
            "$JS.a",
            "_INBOX.a",
            "events.$JS",
            "events.é",
            "events.日本",
            "events.a\u{a0}b",
        ];
        match self.random.below(6) {
            0 => self.pick(&ODD).to_owned(),
            1 => format!("events.{}", self.text()),
            2 => format!("events{}", ".a".repeat(self.pick(&[30, 31, 32, 124, 125, 126]))),
            _ => self.pick(&["events.a", "events.a.b", "events.b", "events.b.c.d"]).to_owned(),
        }
    }

    fn filter(&mut self) -> String {
        match self.random.below(3) {
            0 => self.subject(),
            _ => self
                .pick(&[
                    "events.>",
                    ">",
                    "*",
                    "*.a",
                    "events.*",
                    "events.*.b",
                    "events.a.>",
                    "events.a",
                    "*.>",
                    "events.>.a",
                ])
                .to_owned(),
        }
    }

    fn number(&mut self) -> u64 {
        self.pick(&[
            0,
            1,
            2,
            3,
            1_000,
            u64::from(u32::MAX),
            i64::MAX.unsigned_abs(),
            1 << 63,
            u64::MAX - 1,
            u64::MAX,
        ])
    }

    fn payload(&mut self) -> Value {
        let text = self.text();
        let number = self.number();
        let nested = |depth: usize| (0..depth).fold(json!(0), |inner, _| json!([inner]));
        match self.random.below(10) {
            0 => Value::Null,
            1 => json!(number),
            2 => json!({ (text): number }),
            3 => json!([1.5, -0.0, 1e300, i64::MIN, 0.1, 123_456_789.123_456_78]),
            4 => nested(self.pick(&[1, 99, 100, 101])),
            5 => json!({ "encrypted": true, "keyId": text }),
            6 => json!({ "specversion": "1.0", "id": text, "source": "/s", "type": "t" }),
            7 => json!("x".repeat(self.pick(&[1_000, 70_000]))),
            _ => json!({ "n": number, "t": text }),
        }
    }

    fn event(&mut self) -> Event {
        let mut event = Event::new("events.a", "a", "", "it", json!(1));
        event.id = format!("event-{}", self.random.below(1 << 40));
        for _ in 0..=self.random.below(2) {
            match self.random.below(9) {
                0 => event.id = self.text(),
                1 => event.category = self.text(),
                2 => event.event_type = self.text(),
                3 => event.version = u32::try_from(self.number() & 0xffff_ffff).unwrap(),
                4 => event.summary = self.text(),
                5 => event.source = self.text(),
                6 => event.timestamp = self.number(),
                7 => event.payload = self.payload(),
                _ => {
                    let (key, value) = (self.text(), self.text());
                    event.metadata.insert(key, value);
                }
            }
        }
        event.subject = self.subject();
        event
    }

    fn publish_options(&mut self, last: u64) -> PublishOptions {
        let mut options = PublishOptions::default();
        if self.one_in(2) {
            let id =
                if self.one_in(3) { self.text() } else { format!("order-{}", self.random.below(1 << 40)) };
            self.msg_ids.push(id);
            options.msg_id = Some(self.pick(&self.msg_ids.clone()));
        }
        if self.one_in(4) {
            let number = self.number();
            let expected = self.pick(&[last, last, last.saturating_sub(1), last + 1, number]);
            options.expected_sequence = Some(expected);
        }
        if self.one_in(4) {
            options.timeout_secs = Some(self.pick(&[0, 30, u64::from(u32::MAX), u64::MAX]));
        }
        options
    }

    fn subscribe_options(&mut self, last: u64) -> SubscribeOptions {
        let mut options = SubscribeOptions::default();
        match self.random.below(6) {
            0 => options.max_deliver = Some(self.pick(&[-1, 0, 1, 2, i64::MAX, i64::MIN])),
            1 => {
                options.backoff_secs = self.pick(&[
                    vec![0],
                    vec![3_600],
                    vec![0, 3_600],
                    vec![2, 1],
                    vec![u64::MAX],
                    vec![31_536_000],
                    vec![31_536_001],
                ]);
            }
            2 => options.max_ack_pending = Some(self.pick(&[-1, 0, 1, 3, 1_000_000, 1_000_001, i64::MAX])),
            3 => options.ack_wait_secs = Some(self.pick(&[0, 30, 3_600, 86_400, 86_401, u64::MAX])),
            _ => {}
        }
        let number = self.number();
        options.deliver_policy = self.pick(&[
            DeliverPolicy::All,
            DeliverPolicy::All,
            DeliverPolicy::New,
            DeliverPolicy::Last,
            DeliverPolicy::LastPerSubject,
            DeliverPolicy::ByStartSequence { sequence: last.saturating_sub(2) },
            DeliverPolicy::ByStartSequence { sequence: number },
            DeliverPolicy::ByStartTime { timestamp: 0 },
            DeliverPolicy::ByStartTime { timestamp: 1 },
            DeliverPolicy::ByStartTime { timestamp: 4_000_000_000_000 },
            DeliverPolicy::ByStartTime { timestamp: number },
        ]);
        options
    }

    fn query(&mut self, last: u64) -> HistoryQuery {
        let mut query = HistoryQuery::new(self.pick(&[0, 1, 2, 5, 40]));
        let filter = self.filter();
        let number = self.number();
        let near = self.pick(&[last, last.saturating_sub(5), last + 1, number]);
        if self.one_in(2) {
            query = query.filter(filter);
        }
        match self.random.below(6) {
            0 => query.since_sequence(near),
            1 => query.before_sequence(near),
            2 => query.since_time(self.pick(&[0, 1, 4_000_000_000_000, number])),
            3 => query.before_time(self.pick(&[0, 1, 4_000_000_000_000, number])),
            _ => query,
        }
    }
}

/// An event as it has to come back. Metadata has no order.
fn content(event: &Event) -> String {
    let mut metadata: Vec<_> = event.metadata.iter().collect();
    metadata.sort();
    let Event { id, subject, category, event_type, version, payload, summary, source, timestamp, .. } = event;
    format!(
        "{id:?} {subject:?} {category:?} {event_type:?} {version} {payload} {summary:?} {source:?} {timestamp} {metadata:?}"
    )
}

/// The stream's last sequence; `None` when the streams differ from now on.
async fn publish(providers: &mut Providers, odd: &mut Oddities, last: u64) -> Option<u64> {
    let batch: Vec<(Event, PublishOptions)> = match odd.random.below(8) {
        0 => (0..odd.random.below(5)).map(|_| (odd.event(), odd.publish_options(last))).collect(),
        _ => vec![(odd.event(), odd.publish_options(last))],
    };
    let receipts = providers
        .each(async |provider| match &batch[..] {
            [(event, options)] => vec![provider.publish_with_receipt(event, options).await],
            several => {
                let requests: Vec<_> = several
                    .iter()
                    .map(|(event, options)| PublishRequest::new(event, options.clone()))
                    .collect();
                provider.publish_batch(&requests).await
            }
        })
        .await;
    let reached = receipts[0].iter().flatten().map(|PublishReceipt { sequence, .. }| *sequence).max();
    let outcomes =
        receipts.map(|receipts| Ok(format!("{:?}", receipts.into_iter().map(outcome).collect::<Vec<_>>())));
    let same = providers.compare(
        || {
            let shown: Vec<_> =
                batch.iter().map(|(event, options)| format!("{} {options:?}", content(event))).collect();
            format!("publish {shown:?} behind {last}")
        },
        &outcomes,
    );
    same.then(|| last.max(reached.unwrap_or_default()))
}

/// Takes what the reference hands out, and the same number from the others, which may need a round trip.
async fn fetch(subscription: &mut Box<dyn Subscription>, max: usize, expected: Option<usize>) -> Deliveries {
    let mut found = Vec::new();
    let end = tokio::time::Instant::now() + SOON;
    while found.len() < expected.unwrap_or(max) {
        let wait = match expected {
            Some(_) => end.saturating_duration_since(tokio::time::Instant::now()),
            None => Duration::ZERO,
        };
        let batch = subscription.next_batch(max - found.len(), wait).await.expect("an open subscription");
        if batch.is_empty() {
            break;
        }
        found.extend(batch.into_iter().map(|item| item.map_err(|error| error.kind().to_string())));
    }
    if expected == Some(0) {
        let more = subscription.next_batch(max, A_MOMENT).await.expect("an open subscription");
        found.extend(more.into_iter().map(|item| item.map_err(|error| error.kind().to_string())));
    }
    found
}

type Deliveries = Vec<Result<Delivery, String>>;

fn shown(deliveries: &Deliveries) -> Outcome {
    let shown = deliveries
        .iter()
        .map(|item| item.as_ref().map(|one| (one.sequence(), one.num_delivered(), content(one.event()))));
    Ok(format!("{:?}", shown.collect::<Vec<_>>()))
}

async fn settle(deliveries: Deliveries, settlements: &[(u64, Duration)]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (delivery, (how, delay)) in deliveries.into_iter().flatten().zip(settlements) {
        outcomes.push(match how {
            0 => outcome(delivery.nak().await),
            1 => outcome(delivery.nak_after(*delay).await),
            2 => outcome(delivery.term("odd").await),
            3 => outcome(delivery.extend().await),
            _ => outcome(delivery.ack().await),
        });
    }
    outcomes
}

async fn consume(providers: &mut Providers, odd: &mut Oddities, last: u64) {
    let (name, filter) = (odd.name(), odd.filter());
    let options = (!odd.one_in(3)).then(|| odd.subscribe_options(last));
    let durable = !odd.one_in(4);
    let what = format!("subscribe {name:?} {filter:?} {options:?} durable: {durable}, behind {last}");
    let opened = providers
        .each(async |provider| match (&options, durable) {
            (None, true) => provider.subscribe_durable(&name, &filter).await,
            (Some(options), true) => provider.subscribe_durable_with_options(&name, &filter, options).await,
            (None, false) => provider.subscribe(&filter).await,
            (Some(options), false) => provider.subscribe_with_options(&filter, options).await,
        })
        .await;
    let outcomes = [&opened[0], &opened[1], &opened[2]]
        .map(|opened| opened.as_ref().map(|_| "opened".to_owned()).map_err(EventError::kind));
    providers.compare(|| what.clone(), &outcomes);
    let Ok([mut memory, mut sqlite, mut nats]) =
        <[_; 3]>::try_from(Vec::from_iter(opened.into_iter().flatten()))
    else {
        return;
    };
    let max = odd.pick(&[1, 2, 4]);
    let reference = fetch(&mut memory, max, None).await;
    let expected = Some(reference.len());
    let deliveries =
        [reference, fetch(&mut sqlite, max, expected).await, fetch(&mut nats, max, expected).await];
    let mut same = providers.compare(|| format!("deliveries of {what}"), &deliveries.each_ref().map(shown));
    if same {
        let delays = [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_secs(3_600),
            Duration::from_secs(u64::MAX),
            Duration::MAX,
        ];
        let settlements: Vec<_> =
            deliveries[0].iter().map(|_| (odd.random.below(6), odd.pick(&delays))).collect();
        let mut settled = Vec::new();
        for deliveries in deliveries {
            settled.push(Ok(format!("{:?}", settle(deliveries, &settlements).await)));
        }
        let settled = <[_; 3]>::try_from(settled).unwrap();
        let what = format!("settlements {settlements:?} of {what}");
        same = providers.compare(|| what.clone(), &settled);
        // Refused events may come in between new ones: all that is left is compared, without its order.
        let is_bounded = options.as_ref().is_some_and(|options| options.max_ack_pending.is_some());
        if same && !is_bounded && memory.lag().await.unwrap() <= MAX_REST {
            let rest = fetch(&mut memory, usize::MAX, None).await;
            let expected = Some(rest.len());
            let mut rest = [
                rest,
                fetch(&mut sqlite, usize::MAX, expected).await,
                fetch(&mut nats, usize::MAX, expected).await,
            ];
            for rest in &mut rest {
                rest.sort_by_key(|item| item.as_ref().map(Delivery::sequence).unwrap_or_default());
            }
            providers.compare(|| format!("the rest after {what}"), &rest.each_ref().map(shown));
        }
    }
    for subscription in [&mut memory, &mut sqlite, &mut nats] {
        subscription.close().await.unwrap();
    }
    if durable {
        // Another draw may not meet a lease that this one left.
        for provider in &providers.all {
            provider.unsubscribe(&name).await.unwrap();
        }
    }
}

async fn read(providers: &mut Providers, odd: &mut Oddities, last: u64) {
    let query = odd.query(last);
    let pages = providers.each(async |provider| provider.query(&query).await).await;
    let outcomes = pages.map(|page| {
        let page =
            page.map(|page| page.iter().map(|one| (one.sequence, content(&one.event))).collect::<Vec<_>>());
        outcome(page)
    });
    providers.compare(|| format!("{query:?} behind {last}"), &outcomes);

    let (filter, limit) = (odd.filter(), odd.pick(&[0, 1, 3]));
    let found = providers.each(async |provider| provider.history(Some(&filter), limit).await).await;
    let outcomes =
        found.map(|found| outcome(found.map(|found| found.iter().map(content).collect::<Vec<_>>())));
    providers.compare(|| format!("history of {filter:?}, {limit}, behind {last}"), &outcomes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_oddities_have_the_same_outcome_everywhere() {
    let seed = std::env::var("A3S_EVENT_SEED").map_or(SEED, |seed| seed.parse().expect("a number above 0"));
    let backends = [Backend::memory().await, Backend::sqlite().await, Backend::nats().await];
    let [memory, sqlite, nats] = &backends;
    let mut providers = Providers {
        names: ["memory", "sqlite", "nats"],
        all: [memory.events().await, sqlite.events().await, nats.events().await],
        differences: Vec::new(),
    };
    let mut odd = Oddities { random: Random::new(seed), msg_ids: vec!["order-1".to_owned()] };
    let mut last = 0;
    for _ in 0..PUBLISHES {
        let Some(reached) = publish(&mut providers, &mut odd, last).await else { break };
        last = reached;
        match odd.random.below(12) {
            0 => consume(&mut providers, &mut odd, last).await,
            1 | 2 => read(&mut providers, &mut odd, last).await,
            _ => {}
        }
    }
    let differences = providers.differences.join("\n\n");
    assert!(differences.is_empty(), "A3S_EVENT_SEED={seed} repeats this\n{differences}");
}
