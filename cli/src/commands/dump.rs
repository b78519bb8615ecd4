//! `dump`: writes all events as NDJSON, oldest first. [`restore`](super::restore) publishes them again.

use a3s_event::HistoryQuery;

use crate::bus::App;
use crate::event_file::{End, EndLine};
use crate::failure::Outcome;
use crate::filter::Filter;
use crate::forward::Forward;
use crate::output::Output;
use crate::progress::Progress;
use crate::stored::{PAGE, Stored, Unreadable};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event dump > backup.ndjson
  a3s-event dump 'events.orders.>' | gzip > orders.ndjson.gz

The file has one line per stored event, oldest first, as history --output
ndjson prints it. The last line has the number of lines, so that restore
detects a file that was cut. A dump has no consumers; copy moves them.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let provider = app.connect_to_look().await?;
    let mut query = HistoryQuery::new(PAGE);
    query.filter = args.filter.get().map(str::to_owned);
    let mut forward = Forward::of(&provider, query).await?;
    // On a terminal, the lines of the dump show the progress.
    let progress = (!Output::is_terminal()).then(|| Progress::of_events(Some(forward.total())));
    let mut unreadable = Unreadable::default();
    let mut end = End { records: 0, last_sequence: None };
    loop {
        let mut page = forward.page().await?;
        if page.is_empty() {
            break;
        }
        app.keys.decrypt_all(&mut page);
        for stored in &page {
            unreadable.meet(stored);
            app.out.line_of_json(&stored.row())?;
        }
        end.records += page.len() as u64;
        end.last_sequence = page.last().map(Stored::sequence);
        if let Some(progress) = &progress {
            progress.set(forward.done());
        }
    }
    app.out.line_of_json(&EndLine { end })?;
    app.out.flush()?;
    unreadable.ended()
}
