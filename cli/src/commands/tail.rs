//! `tail`: shows the last events and follows new ones. Its only trace on the bus is its own consumer.

use std::pin::pin;
use std::sync::Arc;

use a3s_event::{DeliverPolicy, EventError, HistoryQuery, SubscribeOptions, Subscription};

use super::subscribe::eprint_warning;
use crate::bus::{App, asked_to_end, leave};
use crate::failure::{Failure, Outcome};
use crate::filter::Filter;
use crate::output::EventRow;
use crate::stored::{Stored, StoredRow, Unreadable, UnreadableRow, newest, newest_sequence};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event tail -n 20 'events.market.>'
  a3s-event tail --no-follow --output ndjson";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Number of stored events to show first
    #[arg(long, short = 'n', alias = "lines", default_value_t = 10)]
    limit: usize,
    /// End after the stored events
    #[arg(long)]
    no_follow: bool,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let mut asked = pin!(asked_to_end());
    let mut unreadable = Unreadable::default();
    let opened = tokio::select! {
        () = &mut asked => return Ok(()),
        opened = open(app, &args, &mut unreadable) => opened?,
    };
    let Some(mut subscription) = opened else {
        return unreadable.ended();
    };
    let ended = tokio::select! {
        () = asked => Ok(()),
        ended = follow(app, &mut *subscription, &mut unreadable) => ended,
    };
    ended.and(leave(subscription.close()).await).and(unreadable.ended())
}

/// Shows the last events, and subscribes to the later ones if requested.
async fn open(
    app: &mut App,
    args: &Args,
    unreadable: &mut Unreadable,
) -> Outcome<Option<Box<dyn Subscription>>> {
    let provider = app.connect_to_look().await?;
    let everything = format!("{}.>", provider.subject_prefix());
    let filter = args.filter.get().unwrap_or(&everything);
    let last = newest_sequence(&*provider, None).await?.unwrap_or_default();
    let query = HistoryQuery::new(args.limit).filter(filter).before_sequence(last.saturating_add(1));
    let (mut records, _) = newest(&*provider, query).await?;
    app.keys.decrypt_all(&mut records);
    for stored in records.iter().rev() {
        unreadable.meet(stored);
        app.out.row(&Stored::row(stored))?;
    }
    if args.no_follow {
        return Ok(None);
    }
    let options = SubscribeOptions {
        deliver_policy: DeliverPolicy::ByStartSequence { sequence: last.saturating_add(1) },
        ..SubscribeOptions::default()
    };
    Ok(Some(provider.subscribe_with_options(filter, &options).await?))
}

async fn follow(app: &mut App, subscription: &mut dyn Subscription, unreadable: &mut Unreadable) -> Outcome {
    loop {
        match subscription.next().await {
            Ok(Some(received)) => {
                let mut event = Arc::new(received.event);
                app.keys.decrypt(&mut event);
                app.out.row(&EventRow {
                    sequence: received.sequence,
                    stored_at: None,
                    num_delivered: None,
                    event: &event,
                })?;
            }
            Ok(None) => return Ok(()),
            // The consumer belongs to this command, so that settling affects only this command.
            Err(EventError::Undecodable { sequence, reason, .. }) => {
                unreadable.add(sequence);
                app.out.row(&StoredRow::Unreadable(UnreadableRow {
                    sequence,
                    stored_at: None,
                    num_delivered: None,
                    subject: None,
                    unreadable: &reason,
                }))?;
            }
            Err(error @ EventError::Lagged { .. }) => eprint_warning(&Failure::from(error)),
            Err(error) => return Err(error.into()),
        }
    }
}
