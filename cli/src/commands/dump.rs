//! `dump`: writes all events as NDJSON, oldest first. [`restore`](super::restore) publishes them again.

use a3s_event::HistoryQuery;

use super::subscribe::eprint_note;
use crate::bus::App;
use crate::event_file::{End, EndLine};
use crate::failure::Outcome;
use crate::filter::Filter;
use crate::forward::Forward;
use crate::keys::encrypted_with;
use crate::output::Output;
use crate::progress::Progress;
use crate::stored::{PAGE, Stored, Unreadable};
use crate::text;

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
    let (mut unreadable, mut decrypted) = (Unreadable::default(), 0);
    let mut end = End { records: 0, last_sequence: None };
    loop {
        let mut page = forward.page().await?;
        if page.is_empty() {
            break;
        }
        let encrypted = count_encrypted(&page);
        app.keys.decrypt_all(&mut page);
        decrypted += encrypted - count_encrypted(&page);
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
    if decrypted > 0 {
        let payloads = text::count(decrypted, "payload");
        eprint_note(&format!(
            "decrypted {payloads}: the dump holds them in clear. Without --key-file they stay encrypted"
        ));
    }
    unreadable.ended()
}

fn count_encrypted(page: &[Stored]) -> u64 {
    let is_encrypted = |stored: &&Stored| match stored {
        Stored::Event(stored) => encrypted_with(&stored.event.payload).is_some(),
        Stored::Unreadable(_) => false,
    };
    page.iter().filter(is_encrypted).count() as u64
}
