//! `tail`: the last events and those that come after them, without a trace on the bus but a consumer of its own.

use std::pin::pin;

use a3s_event::{DeliverPolicy, EventError, HistoryQuery, SubscribeOptions};

use super::subscribe::eprint_warning;
use crate::bus::{App, asked_to_end};
use crate::failure::{Failure, Outcome};
use crate::output::EventRow;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event tail -n 20 'events.market.>'
  a3s-event tail --no-follow --output ndjson";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which subjects; * stands for one token, > for the rest [default: all]
    filter: Option<String>,
    /// How many of the last events to begin with
    #[arg(long, short = 'n', default_value_t = 10)]
    lines: usize,
    /// End after the last events
    #[arg(long)]
    no_follow: bool,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let provider = app.connect().await?;
    let everything = format!("{}.>", provider.subject_prefix());
    let filter = args.filter.as_deref().unwrap_or(&everything);
    let newest = provider.query(&HistoryQuery::new(1)).await?.first().map_or(0, |stored| stored.sequence);
    let last = provider
        .query(&HistoryQuery::new(args.lines).filter(filter).before_sequence(newest.saturating_add(1)))
        .await?;
    for stored in last.iter().rev() {
        app.out.row(&EventRow {
            sequence: stored.sequence,
            stored_at: Some(stored.stored_at),
            num_delivered: None,
            event: &stored.event,
        })?;
    }
    if args.no_follow {
        return Ok(provider.close().await?);
    }
    let options = SubscribeOptions {
        deliver_policy: DeliverPolicy::ByStartSequence { sequence: newest + 1 },
        ..SubscribeOptions::default()
    };
    // From here on there is a consumer that should not be left behind.
    let mut asked = pin!(asked_to_end());
    let mut subscription = provider.subscribe_with_options(filter, &options).await?;
    loop {
        let next = tokio::select! {
            () = &mut asked => break,
            next = subscription.next() => next,
        };
        match next {
            Ok(Some(received)) => app.out.row(&EventRow {
                sequence: received.sequence,
                stored_at: None,
                num_delivered: None,
                event: &received.event,
            })?,
            Ok(None) => break,
            Err(error @ (EventError::Lagged { .. } | EventError::Undecodable { .. })) => {
                eprint_warning(&Failure::from(error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    subscription.close().await?;
    Ok(provider.close().await?)
}
