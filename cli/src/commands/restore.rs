//! `restore`: publishes the events of a dump, in their order, with their ids, times, types and metadata.

use a3s_event::EventProvider;

use super::copy::limits_of;
use super::import::{File, Kind, Pace, publish_file};
use super::subscribe::eprint_note;
use crate::bus::App;
use crate::event_file::end_of;
use crate::failure::{Failure, Outcome};
use crate::records::Layout;
use crate::text::{count, number};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event --url sqlite:restored.db restore backup.ndjson --resume state
  zcat orders.ndjson.gz | a3s-event restore -";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file that dump wrote, or - for stdin
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: String,
    #[command(flatten)]
    pace: Pace,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let end = if args.file == "-" { None } else { end_of(&args.file)? };
    let (url, _) = app.url()?;
    let planned = app.connect_to_plan(&url).await?.provider;
    let held = planned.info().await?.messages;
    if let (Some(end), true) = (end, args.pace.is_from_the_beginning()) {
        check_room(&*planned, held, end.records).await?;
    }
    if held > 0 && args.pace.is_from_the_beginning() {
        eprint_note(&format!(
            "the stream holds {} already: the restored events are added after them",
            count(held, "event")
        ));
    }
    let file = File { path: &args.file, layout: Layout::Ndjson, items: "events" };
    let published = publish_file(app, &file, Kind::Dump, &args.pace).await?;
    let holds = app.connect_to_look().await?.info().await?.messages;
    if holds < held + published.events {
        return Err(Failure::Other(format!(
            "the full stream has dropped events during the restore: it holds {}. Restore into a stream \
             without limits, which max_events=0, max_bytes=0 and max_age=0 in its URL make",
            count(holds, "event")
        )));
    }
    match published.unreadable.told() {
        None => Ok(()),
        Some(told) => Err(Failure::Found(format!("not restored: {told}"))),
    }
}

/// Fails if the stream would drop or refuse events of the dump.
async fn check_room(provider: &dyn EventProvider, held: u64, records: u64) -> Outcome {
    let limit = limits_of(provider).await?.and_then(|limits| limits.max_events);
    match limit.filter(|limit| held + records > *limit) {
        None => Ok(()),
        Some(limit) => Err(Failure::Other(format!(
            "the stream is too small for the dump: it holds {}, the dump has {}, and the limit is {}. Nothing was restored: \
             restore into a stream without limits, which max_events=0 and max_age=0 in its URL make",
            count(held, "event"),
            number(records),
            number(limit)
        ))),
    }
}
