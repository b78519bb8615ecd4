//! `consumers`: lists the consumers with their lag, and resets or deletes them.

mod reset;

use a3s_event::ConsumerInfo;
use a3s_event::provider::ConsumerPosition;
use clap_complete::ArgValueCandidates;
use serde::Serialize;

use self::reset::Reset;
use crate::bus::App;
use crate::complete;
use crate::confirm::Confirmation;
use crate::consumer_name::{described, find, shown};
use crate::failure::Outcome;
use crate::moment::{self, Place};
use crate::output::Row;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event consumers
  a3s-event consumers --wide
  a3s-event consumers reset billing --to 1h --yes";

const EXAMPLE_RM: &str = "Example:\n  a3s-event consumers rm billing --yes";
const EXAMPLE_RESET: &str = "Example:
  a3s-event consumers reset billing --to first --dry-run
  a3s-event consumers reset billing --to 2018-02-07T01:26:13Z --yes";

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Also show the names under which the bus stores the consumers
    #[arg(long, short)]
    wide: bool,
    /// The same as `rm`
    #[arg(long, hide = true, value_name = "NAME")]
    remove: Option<String>,
    /// Confirmation for `--remove`
    #[arg(long, hide = true, requires = "remove")]
    yes: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Delete durable consumers and their positions, and show their last state
    #[command(after_help = EXAMPLE_RM)]
    Rm {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Move durable consumers to another position, and show the old and the new one
    #[command(after_help = EXAMPLE_RESET)]
    Reset {
        #[command(flatten)]
        which: Which,
        /// Only print what would be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        confirmation: Confirmation,
        /// The new position: first, last, a sequence, or a time of storing such as 15m
        #[arg(long, value_name = "POSITION", value_parser = position)]
        to: ConsumerPosition,
    },
}

/// Consumers by name.
#[derive(Debug, clap::Args)]
struct Which {
    /// Name of the consumer, as its program calls it or as the bus stores it. A program has one consumer per subject
    #[arg(add = ArgValueCandidates::new(complete::consumers))]
    name: String,
    /// Only the consumer with this filter
    #[arg(long)]
    filter: Option<String>,
}

/// Parses the new position of a consumer.
fn position(text: &str) -> Result<ConsumerPosition, String> {
    Ok(match text {
        "first" | "all" => ConsumerPosition::First,
        "last" | "now" | "new" => ConsumerPosition::Last,
        text => match moment::sequence_or_time(text) {
            Ok(Place::Sequence(sequence)) => ConsumerPosition::Sequence(sequence),
            Ok(Place::Time(unix_ms)) => ConsumerPosition::Time(unix_ms),
            Err(why) => return Err(format!("write first, last, a sequence or a time; as a time, it {why}")),
        },
    })
}

#[derive(Debug, Serialize)]
pub(super) struct ConsumerRow {
    /// The name under which the bus stores the consumer.
    name: String,
    /// The name that the program uses; absent if it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriber: Option<String>,
    filter: String,
    durable: bool,
    lag: u64,
    pending: u64,
    redelivered: u64,
}

impl From<&ConsumerInfo> for ConsumerRow {
    fn from(info: &ConsumerInfo) -> Self {
        let name = shown(info);
        Self {
            name: info.name.clone(),
            subscriber: Some(name).filter(|name| *name != info.name),
            filter: info.filter.clone(),
            durable: info.durable,
            lag: info.lag,
            pending: info.pending,
            redelivered: info.redelivered,
        }
    }
}

impl ConsumerRow {
    /// Returns the name for people.
    fn shown_name(&self) -> &str {
        self.subscriber.as_ref().unwrap_or(&self.name)
    }
}

impl Row for ConsumerRow {
    const COLUMNS: &'static [&'static str] =
        &["consumer", "filter", "durable", "lag", "pending", "redelivered"];

    fn cells(&self) -> Vec<String> {
        vec![
            text::line(self.shown_name()),
            text::line(&self.filter),
            if self.durable { "yes" } else { "no" }.to_owned(),
            self.lag.to_string(),
            self.pending.to_string(),
            self.redelivered.to_string(),
        ]
    }
}

/// A row with the stored name.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct WideRow(ConsumerRow);

impl Row for WideRow {
    const COLUMNS: &'static [&'static str] =
        &["consumer", "filter", "durable", "lag", "pending", "redelivered", "stored name"];
    const IS_BLOCK: bool = true;

    fn cells(&self) -> Vec<String> {
        let mut cells = self.0.cells();
        cells.push(text::line(&self.0.name));
        cells
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    match (args.command, args.remove) {
        (Some(Command::Rm { which, confirmation }), _) => remove(app, &which, &confirmation).await,
        (Some(Command::Reset { which, dry_run, confirmation, to }), _) => {
            let plan = Reset::plan(app, &which, to).await?;
            if dry_run { plan.show(app) } else { plan.run(app, &confirmation).await }
        }
        (None, Some(name)) => {
            remove(app, &Which { name, filter: None }, &Confirmation { yes: args.yes }).await
        }
        (None, None) => list(app, args.wide).await,
    }
}

async fn list(app: &mut App, wide: bool) -> Outcome {
    let provider = app.connect_to_look().await?;
    let mut rows: Vec<ConsumerRow> = provider.consumers().await?.iter().map(Into::into).collect();
    rows.sort_by_cached_key(|row| (row.cells(), row.name.clone()));
    match wide {
        true => app.out.rows(&rows.into_iter().map(WideRow).collect::<Vec<_>>()),
        false => app.out.rows(&rows),
    }
}

async fn remove(app: &mut App, which: &Which, confirmation: &Confirmation) -> Outcome {
    let provider = app.connect_to_look().await?;
    let found = find(&provider, &which.name, which.filter.as_deref()).await?;
    let of_each = |consumer: &ConsumerInfo| {
        let waiting = text::count(consumer.lag + consumer.pending, "event");
        format!("{} with {waiting} to handle", described(consumer))
    };
    let described: Vec<_> = found.iter().map(of_each).collect();
    let consumers = if found.len() == 1 { "consumer" } else { "consumers" };
    confirmation.ask(&format!("this deletes {consumers} {}, and the position", described.join(", ")))?;
    for consumer in &found {
        provider.unsubscribe(&consumer.name).await?;
    }
    app.out.rows(&found.iter().map(ConsumerRow::from).collect::<Vec<_>>())?;
    let deleted: Vec<_> = found.iter().map(self::described).collect();
    app.out.say(&format!("deleted {consumers} {}", deleted.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read() {
        assert_eq!(position("first"), Ok(ConsumerPosition::First));
        assert_eq!(position("last"), Ok(ConsumerPosition::Last));
        assert_eq!(position("17"), Ok(ConsumerPosition::Sequence(17)));
        assert_eq!(position("1517966773840"), Ok(ConsumerPosition::Time(1_517_966_773_840)));
        assert!(position("someday").unwrap_err().contains("first, last"));
    }
}
