//! `sub`: events as they come, through a consumer.

use std::time::Duration;

use a3s_event::{DeliverPolicy, Delivery, EventError, EventProvider, SubscribeOptions, Subscription};
use clap::ValueEnum;

use crate::bus::{App, asked_to_end};
use crate::failure::{Failure, Outcome};
use crate::moment;
use crate::output::EventRow;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event sub 'events.market.>' --from all --count 10
  a3s-event sub 'events.orders.>' --durable billing --output ndjson";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which subjects; * stands for one token, > for the rest [default: all]
    filter: Option<String>,
    /// Name of a consumer that keeps its position and shares the work
    #[arg(long)]
    durable: Option<String>,
    /// Where a new consumer starts: now, all, last, last-per-subject, a sequence or a time [default: now, with --durable all]
    #[arg(long, value_parser = start)]
    from: Option<DeliverPolicy>,
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
    ack_wait: Option<u64>,
    /// How often an event may be delivered
    #[arg(long, value_name = "TIMES")]
    max_deliver: Option<i64>,
    /// How many events may be unsettled at a time
    #[arg(long, value_name = "EVENTS")]
    max_ack_pending: Option<i64>,
    /// Delays before redeliveries in seconds, for instance 1,5,30
    #[arg(long, value_name = "SECONDS", value_delimiter = ',')]
    backoff: Vec<u64>,
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
    let provider = app.connect().await?;
    let mut subscription = open(&*provider, &args).await?;
    let ended = receive(app, &mut *subscription, &args).await;
    let closed = subscription.close().await;
    ended?;
    closed?;
    Ok(provider.close().await?)
}

async fn open(provider: &dyn EventProvider, args: &Args) -> Outcome<Box<dyn Subscription>> {
    let everything = format!("{}.>", provider.subject_prefix());
    let filter = args.filter.as_deref().unwrap_or(&everything);
    let unless_said = if args.durable.is_some() { DeliverPolicy::All } else { DeliverPolicy::New };
    let options = SubscribeOptions {
        max_deliver: args.max_deliver,
        backoff_secs: args.backoff.clone(),
        max_ack_pending: args.max_ack_pending,
        deliver_policy: args.from.clone().unwrap_or(unless_said),
        ack_wait_secs: args.ack_wait,
    };
    let opened = match &args.durable {
        Some(name) => {
            let asks_for_nothing = args.from.is_none()
                && args.max_deliver.is_none()
                && args.backoff.is_empty()
                && args.max_ack_pending.is_none()
                && args.ack_wait.is_none();
            if asks_for_nothing {
                // An existing consumer keeps its settings.
                provider.subscribe_durable(name, filter).await
            } else {
                provider.subscribe_durable_with_options(name, filter, &options).await
            }
        }
        None => provider.subscribe_with_options(filter, &options).await,
    };
    Ok(opened?)
}

async fn receive(app: &mut App, subscription: &mut dyn Subscription, args: &Args) -> Outcome {
    let idle = args.idle.unwrap_or(Duration::MAX);
    let asked = asked_to_end();
    tokio::pin!(asked);
    let mut received = 0;
    while args.count.is_none_or(|count| received < count) {
        let next = tokio::select! {
            () = &mut asked => return Ok(()),
            next = tokio::time::timeout(idle, subscription.next_delivery()) => next,
        };
        match next {
            Err(_idle) => return Ok(()),
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(delivery))) => {
                handle(app, delivery, args.ack).await?;
                received += 1;
            }
            Ok(Err(error @ (EventError::Lagged { .. } | EventError::Undecodable { .. }))) => {
                eprint_warning(&Failure::from(error));
            }
            Ok(Err(error)) => return Err(error.into()),
        }
    }
    Ok(())
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
