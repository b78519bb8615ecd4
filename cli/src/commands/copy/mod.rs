//! `copy`: copies the events of one bus to another.
//!
//! The target itself holds the progress of a copy: its newest events are searched for in the source. Each event is
//! published on the condition that the one before it is the newest, so that a failure leaves no gap. A second writer ends
//! the copy: its event takes the place of a copied one. A page is published at a time, so that other copied events may
//! follow it. The next copy compares more than a page, finds the foreign event and refuses to resume.
//!
//! A copy reads the source twice: first it checks that the target takes all events, and then it writes.

mod events;
mod place;
mod plan;
mod positions;

use a3s_event::{EventProvider, StoredEvent};
use serde::Serialize;

use self::plan::Plan;
pub(super) use self::plan::limits_of;
use self::positions::{Before, Positions};
use crate::bus::{App, Planned, warn_of_credentials};
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::stored::{Stored, Unreadable};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event copy sqlite:///var/lib/events.db nats://127.0.0.1:4222
  a3s-event diff sqlite:///var/lib/events.db nats://127.0.0.1:4222";

/// Maximum number of unreadable records that are listed; all are counted.
const MAX_LISTED: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The bus to copy from: a URL, or a name of the config file
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::complete::buses))]
    from: String,
    /// The bus to copy to: an empty stream, or one that holds the beginning of this copy
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::complete::buses))]
    to: String,
    /// Subject filter; * matches one token, > the rest
    #[arg(long)]
    filter: Option<String>,
    /// Copy no positions of durable consumers
    #[arg(long)]
    no_positions: bool,
    /// Only report the effect of a copy, and fail where it would: at the limits of the target, or at a consumer that cannot
    /// be mapped
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    /// Sequence of the first copied event in the source.
    first_sequence: u64,
    events: u64,
    /// Size of the events in bytes, about as the target will count it; only for a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Durable consumers with the same position on the target as in the source.
    consumers: Vec<String>,
    /// Durable consumers that cannot be mapped, each with the reason.
    not_mapped: Vec<(String, String)>,
    /// The first unreadable records, which are not copied, each with the reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<(u64, String)>,
    #[serde(skip)]
    left_out: Unreadable,
}

impl Copied {
    /// Returns the events of a page, and notes the unreadable records.
    fn events_of(&mut self, page: Vec<Stored>) -> Vec<StoredEvent> {
        let mut events = Vec::with_capacity(page.len());
        for stored in page {
            self.left_out.meet(&stored);
            match stored {
                Stored::Event(stored) => events.push(stored),
                Stored::Unreadable(record) if self.unreadable.len() < MAX_LISTED => {
                    self.unreadable.push((record.sequence, record.reason));
                }
                Stored::Unreadable(_) => {}
            }
        }
        events
    }

    /// Fails if a record or a consumer was not copied.
    fn ended(&self) -> Outcome {
        let mut left_out = Vec::new();
        if let Some(told) = self.left_out.told() {
            left_out.push(format!("not copied: {told}"));
        }
        if !self.not_mapped.is_empty() {
            let names: Vec<_> = self.not_mapped.iter().map(|(name, _)| name.as_str()).collect();
            left_out.push(format!(
                "not mapped: {} {}; --no-positions copies events only",
                if names.len() == 1 { "consumer" } else { "consumers" },
                names.join(", ")
            ));
        }
        if left_out.is_empty() { Ok(()) } else { Err(Failure::Found(left_out.join("; "))) }
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    for url in [&args.from, &args.to] {
        warn_of_credentials(url, None);
    }
    let source = app.connect_to_look_at(&args.from).await?;
    let Planned { provider: target, exists } = app.connect_to_plan(&args.to).await?;
    let filter = args.filter.as_deref();
    let tail = place::tail(&*target).await?;
    let first = place::first_missing(&source, &tail, filter).await?;
    if !tail.is_empty() {
        place::refuse_without_beginning(&source, &target, filter).await?;
    }
    let held = target.info().await?;
    let mut planned = Copied { first_sequence: first, ..Copied::default() };
    let mut before = before(&args, &*target).await?;
    let forward = Forward::new(&source, filter, first).await?;
    let plan = Plan::make(forward, &*target, &mut before, &mut planned).await?;
    if args.dry_run {
        positions(&args, &*source, &*target, &before, &mut planned).await?;
        app.out.one(&planned)?;
        plan.check_target(&*target, exists, &held, &planned).await?;
        return planned.ended();
    }
    plan.check_target(&*target, exists, &held, &planned)
        .await
        .map_err(|failure| failure.and("nothing was copied"))?;
    let target = if exists { target } else { app.connect_to(&args.to).await? };
    let mut copied = Copied { first_sequence: first, ..Copied::default() };
    let mut before = self::before(&args, &*target).await?;
    let forward = Forward::new(&source, filter, first).await?;
    let last = tail.first().map(|newest| newest.sequence);
    events::copy_events(forward, &*target, last, held.messages, &mut before, &mut copied).await?;
    positions(&args, &*source, &*target, &before, &mut copied).await?;
    app.out.one(&copied)?;
    copied.ended()
}

/// Reads the consumers of the target, if their positions are copied.
async fn before(args: &Args, target: &dyn EventProvider) -> Outcome<Before> {
    if args.no_positions { Ok(Before::default()) } else { Before::read(target).await }
}

/// Copies the positions of the consumers, or plans that in a dry run.
async fn positions(
    args: &Args,
    source: &dyn EventProvider,
    target: &dyn EventProvider,
    before: &Before,
    copied: &mut Copied,
) -> Outcome {
    if args.no_positions {
        return Ok(());
    }
    let filter = args.filter.as_deref();
    Positions { source, target, filter, before, is_dry_run: args.dry_run }.copy(copied).await
}
