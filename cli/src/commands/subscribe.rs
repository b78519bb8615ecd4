//! `sub`: events as they come, through a consumer.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_event::{DeliverPolicy, Delivery, EventError, EventProvider, SubscribeOptions, Subscription};
use clap::ValueEnum;
use futures_util::future::select_all;

use super::durable;
use crate::bus::{App, asked_to_end, leave};
use crate::failure::{Failure, Outcome};
use crate::moment;
use crate::output::EventRow;
use crate::stored::{StoredRow, Unreadable, UnreadableRow};
use crate::text;

/// Most records that are kept by their leases because they cannot be read.
const MAX_LEASED: usize = 64;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event sub 'events.market.>' --from all --count 10
  a3s-event sub 'events.orders.>' 'events.bills.>' --durable billing --output ndjson";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which subjects; * stands for one token, > for the rest [default: those of the durable consumer, else all]. Several are
    /// in order each, not together
    pub(super) filters: Vec<String>,
    /// Name of a consumer that keeps its position and shares the work, as its program calls it or as `consumers` lists it.
    /// With several filters each has its own, whose names begin like this
    #[arg(long)]
    pub(super) durable: Option<String>,
    /// Where a new consumer starts: now, all, last, last-per-subject, a sequence or a time [default: now, with --durable all]
    #[arg(long, value_parser = start)]
    pub(super) from: Option<DeliverPolicy>,
    /// When events are settled
    #[arg(long, value_enum, default_value_t)]
    ack: Ack,
    /// End after this many events
    #[arg(long)]
    count: Option<u64>,
    /// End when nothing came for this long, for instance 5s
    #[arg(long, value_parser = moment::span)]
    idle: Option<Duration>,
    /// How long an event may stay unsettled, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub(super) ack_wait: Option<u64>,
    /// How often an event may be delivered
    #[arg(long, value_name = "TIMES")]
    pub(super) max_deliver: Option<i64>,
    /// How many events may be unsettled at a time
    #[arg(long, value_name = "EVENTS")]
    pub(super) max_ack_pending: Option<i64>,
    /// Delays before redeliveries in seconds, for instance 1,5,30
    #[arg(long, value_name = "SECONDS", value_delimiter = ',')]
    pub(super) backoff: Vec<u64>,
    /// Refuse or terminate events of a durable consumer that is there already, or change its settings, for all who share it
    #[arg(long, requires = "durable")]
    pub(super) force: bool,
}

impl Args {
    /// What is nobody's to do with a consumer that others share.
    pub(super) fn foreign(&self) -> Option<&'static str> {
        let asked = [
            (self.ack == Ack::Nak, "--ack nak"),
            (self.ack == Ack::Term, "--ack term"),
            (self.max_deliver.is_some(), "--max-deliver"),
            (self.ack_wait.is_some(), "--ack-wait"),
            (self.max_ack_pending.is_some(), "--max-ack-pending"),
            (!self.backoff.is_empty(), "--backoff"),
        ];
        asked.into_iter().find_map(|(is_asked, name)| is_asked.then_some(name))
    }
}

/// When an event is settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Ack {
    /// After it was printed: at least once
    #[default]
    Printed,
    /// Before it is printed: at most once
    Received,
    /// Never: it comes again after the ack wait
    None,
    /// Refused after it was printed: it comes again
    Nak,
    /// Terminated after it was printed: no redelivery
    Term,
}

/// Where a consumer starts.
fn start(text: &str) -> Result<DeliverPolicy, String> {
    Ok(match text {
        "now" | "new" => DeliverPolicy::New,
        "all" => DeliverPolicy::All,
        "last" => DeliverPolicy::Last,
        "last-per-subject" => DeliverPolicy::LastPerSubject,
        text => match text.parse() {
            // A time of today in milliseconds has 13 digits; no stream comes that far.
            Ok(sequence) if sequence < 1_000_000_000_000 => DeliverPolicy::ByStartSequence { sequence },
            _ => DeliverPolicy::ByStartTime {
                timestamp: moment::parse(text).map_err(|_| {
                    "is neither now, all, last, last-per-subject, nor a sequence, nor a time such as 15m"
                        .to_owned()
                })?,
            },
        },
    })
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    refuse_overlap(&args.filters)?;
    let provider = app.connect().await?;
    let mut subscriptions = open(&provider, &args).await?;
    let mut left = Left::default();
    let ended = receive(app, &mut subscriptions, &args, &mut left).await;
    let ended = ended.and(left.ended(args.durable.is_some()).await);
    let closing = async {
        for subscription in &mut subscriptions {
            subscription.close().await?;
        }
        Ok(())
    };
    // What ended it is worth more than what could not be closed after it.
    ended.and(leave(closing).await)
}

/// An event that two filters match would come twice.
fn refuse_overlap(filters: &[String]) -> Outcome {
    for (place, a) in filters.iter().enumerate() {
        if let Some(b) = filters.iter().skip(place + 1).find(|b| overlap(a, b)) {
            return Err(Failure::Usage(format!(
                "the filters '{a}' and '{b}' overlap: an event of both would come twice; leave one out"
            )));
        }
    }
    Ok(())
}

/// Whether a subject can match both filters.
fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
            _ => return false,
        }
    }
}

async fn open(provider: &Arc<dyn EventProvider>, args: &Args) -> Outcome<Vec<Box<dyn Subscription>>> {
    if let Some(name) = &args.durable {
        return durable::open(provider, name, args).await;
    }
    let everything = [format!("{}.>", provider.subject_prefix())];
    let filters = if args.filters.is_empty() { &everything[..] } else { &args.filters };
    let options = options(args).unwrap_or_default();
    let mut subscriptions = Vec::with_capacity(filters.len());
    for filter in filters {
        subscriptions.push(provider.subscribe_with_options(filter, &options).await?);
    }
    Ok(subscriptions)
}

/// What is asked of the consumer. A durable one of which nothing is asked keeps the settings that it has.
pub(super) fn options(args: &Args) -> Option<SubscribeOptions> {
    let asks_for_nothing = args.from.is_none()
        && args.max_deliver.is_none()
        && args.backoff.is_empty()
        && args.max_ack_pending.is_none()
        && args.ack_wait.is_none();
    if args.durable.is_some() && asks_for_nothing {
        return None;
    }
    let unless_said = if args.durable.is_some() { DeliverPolicy::All } else { DeliverPolicy::New };
    Some(SubscribeOptions {
        max_deliver: args.max_deliver,
        backoff_secs: args.backoff.clone(),
        max_ack_pending: args.max_ack_pending,
        deliver_policy: args.from.clone().unwrap_or(unless_said),
        ack_wait_secs: args.ack_wait,
    })
}

/// The next event of any subscription; they take turns. `None` when all have ended.
async fn next_of_any(
    subscriptions: &mut Vec<Box<dyn Subscription>>,
    turn: &mut usize,
) -> a3s_event::Result<Option<Delivery>> {
    while !subscriptions.is_empty() {
        let count = subscriptions.len();
        *turn = (*turn + 1) % count;
        let (last, first) = subscriptions.split_at_mut(*turn);
        let all = first.iter_mut().chain(last).map(|subscription| subscription.next_delivery());
        let (next, place, _) = select_all(all).await;
        match next {
            Ok(None) => drop(subscriptions.remove((*turn + place) % count)),
            next => return next,
        }
    }
    Ok(None)
}

async fn receive(
    app: &mut App,
    subscriptions: &mut Vec<Box<dyn Subscription>>,
    args: &Args,
    left: &mut Left,
) -> Outcome {
    let idle = args.idle.unwrap_or(Duration::MAX);
    let mut asked = pin!(asked_to_end());
    let (mut received, mut turn) = (0, 0);
    let mut last = Instant::now();
    while args.count.is_none_or(|count| received < count) {
        // What cannot be read comes again and again, and keeps nobody waiting.
        let idle = idle.saturating_sub(last.elapsed());
        let next = tokio::select! {
            () = &mut asked => return Ok(()),
            next = tokio::time::timeout(idle, next_of_any(subscriptions, &mut turn)) => next,
        };
        match next {
            Err(_idle) => return Ok(()),
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(delivery))) if delivery.undecodable_record().is_some() => left.leave(app, delivery)?,
            Ok(Ok(Some(delivery))) => {
                handle(app, delivery, args.ack).await?;
                received += 1;
                last = Instant::now();
            }
            // Of a consumer that is this command's own: what it settles is settled for nobody else.
            Ok(Err(EventError::Undecodable { sequence, reason, .. })) => {
                left.show(app, sequence, None, &reason)?;
            }
            Ok(Err(error @ EventError::Lagged { .. })) => eprint_warning(&Failure::from(error)),
            Ok(Err(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The records that cannot be read. They belong to whoever shares the consumer, who may know what to do with them, and so
/// nothing is settled: their leases are kept until the end, so that they do not come again at once, and then given back.
#[derive(Default)]
struct Left {
    met: Unreadable,
    /// By sequence. What has no room here is given back by its lease.
    leased: BTreeMap<u64, Delivery>,
}

impl Left {
    fn leave(&mut self, app: &mut App, delivery: Delivery) -> Outcome {
        let (sequence, attempt) = (delivery.sequence(), delivery.num_delivered());
        let Some(record) = delivery.undecodable_record() else { return Ok(()) };
        if !self.leased.contains_key(&sequence) {
            self.show(app, sequence, Some(attempt), &record.reason)?;
        } else {
            tracing::debug!(sequence, attempt, "a record that cannot be read has come again");
        }
        if self.leased.len() < MAX_LEASED || self.leased.contains_key(&sequence) {
            self.leased.insert(sequence, delivery);
        }
        Ok(())
    }

    fn show(&mut self, app: &mut App, sequence: u64, num_delivered: Option<u64>, why: &str) -> Outcome {
        self.met.add(sequence);
        app.out.row(&StoredRow::Unreadable(UnreadableRow {
            sequence,
            stored_at: None,
            num_delivered,
            subject: None,
            unreadable: why,
        }))
    }

    /// Gives the leases back, and fails when there was anything that could not be read.
    async fn ended(self, is_shared: bool) -> Outcome {
        let releasing = async {
            for delivery in self.leased.into_values() {
                // A lease that was lost in the meantime is given back already.
                if let Err(error) = delivery.release().await {
                    tracing::debug!(%error, "lease not given back");
                }
            }
            Ok(())
        };
        leave(releasing).await?;
        match self.met.told() {
            None => Ok(()),
            Some(told) if is_shared => Err(Failure::Found(format!(
                "{told}. They are left unsettled: a program with dead letters keeps them when they come to it"
            ))),
            Some(told) => Err(Failure::Found(told)),
        }
    }
}

async fn handle(app: &mut App, delivery: Delivery, ack: Ack) -> Outcome {
    let event = delivery.shared_event();
    let row = EventRow {
        sequence: delivery.sequence(),
        stored_at: None,
        num_delivered: Some(delivery.num_delivered()),
        event: &event,
    };
    if ack == Ack::Received {
        delivery.ack().await?;
        return app.out.row(&row);
    }
    app.out.row(&row)?;
    match ack {
        Ack::Printed => delivery.ack().await?,
        Ack::Nak => delivery.nak().await?,
        Ack::Term => delivery.term("terminated from the command line").await?,
        Ack::None | Ack::Received => {}
    }
    Ok(())
}

/// What is worth knowing and ends nothing.
pub(super) fn eprint_warning(failure: &Failure) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "warning: {}", failure.message());
}

/// What helps a person who looks at it.
pub(super) fn eprint_note(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "note: {}", text::line(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_overlap_when_a_subject_matches_both() {
        for (a, b, both) in [
            ("events.a", "events.a", true),
            ("events.a", "events.b", false),
            ("events.*", "events.a", true),
            ("events.*.x", "events.a.*", true),
            ("events.>", "events.a.b", true),
            ("events.a.>", "events.a", false),
            ("events.a", "events.a.b", false),
        ] {
            assert_eq!((overlap(a, b), overlap(b, a)), (both, both), "{a} {b}");
        }
    }
}
