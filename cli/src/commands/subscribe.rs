//! `sub`: receives events through a consumer.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_event::{DeliverPolicy, Delivery, EventError, EventProvider, SubscribeOptions, Subscription};
use clap::ValueEnum;
use clap_complete::ArgValueCandidates;
use futures_util::future::select_all;

use super::durable;
use crate::bus::{App, asked_to_end, leave};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::layout;
use crate::moment::{self, Place};
use crate::output::EventRow;
use crate::stored::{StoredRow, Unreadable, UnreadableRow};
use crate::text;

/// Maximum number of unreadable records with a kept lease.
const MAX_LEASED: usize = 64;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event sub 'events.market.>' --from all --count 10
  a3s-event sub 'events.orders.>' 'events.bills.>' --durable billing";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Subject filters; `*` matches one token, `>` the rest [default: those of the durable consumer, else all]. The events of
    /// each filter come in order
    #[arg(value_name = "FILTER")]
    positional: Vec<String>,
    /// The same as the argument; can be repeated
    #[arg(long = "filter", value_name = "FILTER", conflicts_with = "positional")]
    option: Vec<String>,
    #[arg(skip)]
    pub(super) filters: Vec<String>,
    /// Name of a consumer that keeps its position and shares the work, as its program calls it or as the bus stores it.
    /// Several filters have one consumer each
    #[arg(long, add = ArgValueCandidates::new(complete::consumers))]
    pub(super) durable: Option<String>,
    /// Start of a new consumer: now, all, last, last-per-subject, a sequence or a time [default: now, with --durable all]
    #[arg(long, value_parser = start)]
    pub(super) from: Option<DeliverPolicy>,
    /// Settlement of the events
    #[arg(long, value_enum, default_value_t)]
    ack: Ack,
    /// End after this number of events
    #[arg(long)]
    count: Option<u64>,
    /// End if no event arrives for this time, such as 5s
    #[arg(long, value_parser = moment::span)]
    idle: Option<Duration>,
    /// Time after which an unsettled event is redelivered, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub(super) ack_wait: Option<u64>,
    /// Maximum number of deliveries of an event
    #[arg(long, value_name = "TIMES")]
    pub(super) max_deliver: Option<i64>,
    /// Maximum number of unsettled events
    #[arg(long, value_name = "EVENTS")]
    pub(super) max_ack_pending: Option<i64>,
    /// Delays before redeliveries in seconds, such as 1,5,30
    #[arg(long, value_name = "SECONDS", value_delimiter = ',')]
    pub(super) backoff: Vec<u64>,
    /// Nak or terminate events of an existing durable consumer, or change its settings, for all members
    #[arg(long, requires = "durable")]
    pub(super) force: bool,
}

impl Args {
    /// Returns the first option that would affect other members of the consumer.
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

/// The settlement of an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Ack {
    /// Acknowledge after printing: at least once
    #[default]
    Printed,
    /// Acknowledge before printing: at most once
    Received,
    /// Do not settle: the event is redelivered after the ack wait
    None,
    /// Nak after printing: the event is redelivered
    Nak,
    /// Terminate after printing: the event is not redelivered
    Term,
}

/// Parses the start of a consumer.
fn start(text: &str) -> Result<DeliverPolicy, String> {
    Ok(match text {
        "now" | "new" => DeliverPolicy::New,
        "all" => DeliverPolicy::All,
        "last" => DeliverPolicy::Last,
        "last-per-subject" => DeliverPolicy::LastPerSubject,
        text => match moment::sequence_or_time(text) {
            Ok(Place::Sequence(sequence)) => DeliverPolicy::ByStartSequence { sequence },
            Ok(Place::Time(timestamp)) => DeliverPolicy::ByStartTime { timestamp },
            Err(why) => return Err(format!("{why}; or a sequence, all, last or last-per-subject")),
        },
    })
}

pub(crate) async fn run(app: &mut App, mut args: Args) -> Outcome {
    args.filters = [std::mem::take(&mut args.positional), std::mem::take(&mut args.option)].concat();
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
    // The failure of the command takes precedence over a failure to close.
    ended.and(leave(closing).await)
}

/// Refuses filters that overlap, because an event of both would be delivered twice.
fn refuse_overlap(filters: &[String]) -> Outcome {
    for (place, a) in filters.iter().enumerate() {
        if let Some(b) = filters.iter().skip(place + 1).find(|b| overlap(a, b)) {
            return Err(Failure::Usage(format!(
                "the filters '{a}' and '{b}' overlap: an event of both would be delivered twice; remove one"
            )));
        }
    }
    Ok(())
}

/// Returns `true` if a subject can match both filters.
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

/// Returns the settings of the consumer; `None` without options, so that an existing durable one keeps its settings.
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

/// Returns the next event of any subscription; they take turns. `None` when all have ended.
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
        // An unreadable record is redelivered repeatedly and does not count as an event.
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
            // The consumer belongs to this command, so that settling affects only this command.
            Ok(Err(EventError::Undecodable { sequence, reason, .. })) => {
                left.show(app, sequence, None, &reason)?;
            }
            Ok(Err(error @ EventError::Lagged { .. })) => eprint_warning(&Failure::from(error)),
            Ok(Err(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The unreadable records, which stay unsettled for the program that shares the consumer.
///
/// Their leases are kept until the end, which prevents an early redelivery, and then released.
#[derive(Default)]
struct Left {
    met: Unreadable,
    /// Deliveries by sequence. A record without room here is redelivered when its lease expires.
    leased: BTreeMap<u64, Delivery>,
}

impl Left {
    fn leave(&mut self, app: &mut App, delivery: Delivery) -> Outcome {
        let (sequence, attempt) = (delivery.sequence(), delivery.num_delivered());
        let Some(record) = delivery.undecodable_record() else { return Ok(()) };
        if !self.leased.contains_key(&sequence) {
            self.show(app, sequence, Some(attempt), &record.reason)?;
        } else {
            tracing::debug!(sequence, attempt, "an unreadable record was redelivered");
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

    /// Releases the leases, and fails if there was an unreadable record.
    async fn ended(self, is_shared: bool) -> Outcome {
        let releasing = async {
            for delivery in self.leased.into_values() {
                // A lost lease is already released.
                if let Err(error) = delivery.release().await {
                    tracing::debug!(%error, "releasing a lease failed");
                }
            }
            Ok(())
        };
        leave(releasing).await?;
        match self.met.told() {
            None => Ok(()),
            Some(told) if is_shared => Err(Failure::Found(format!(
                "{told}. They stay unsettled: a program with a dead-letter handler stores them on redelivery"
            ))),
            Some(told) => Err(Failure::Found(told)),
        }
    }
}

async fn handle(app: &mut App, delivery: Delivery, ack: Ack) -> Outcome {
    let mut event = delivery.shared_event();
    app.keys.decrypt(&mut event);
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

/// Prints a warning; the command continues.
pub(super) fn eprint_warning(failure: &Failure) {
    layout::eprint(&format!("warning: {}", failure.message()));
}

/// Prints a note for people.
pub(super) fn eprint_note(text: &str) {
    layout::eprint(&format!("note: {}", text::line(text)));
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
