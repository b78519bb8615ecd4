//! `import`: publishes the records of a file in batches. `restore` publishes a dump in the same way.

mod published;
mod publisher;
mod resume;

use std::path::PathBuf;

use clap::ValueHint;

use self::published::Published;
pub(super) use self::publisher::Kind;
use self::publisher::Publisher;
use self::resume::Checkpoint;
use super::publish::Fields;
use super::subscribe::eprint_note;
use crate::bus::{App, redacted};
use crate::failure::{Failure, Outcome};
use crate::records::{Input, Layout, Records};
use crate::template::Template;
use crate::text::count;

/// Key of the array in an object, as in GeoJSON.
const ITEMS: &str = "features";

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event import week.geojson 'events.q.{properties.net|other}' --id '{id}'
  seq 1 1000 | a3s-event import - events.numbers --resume numbers.state

Ctrl-C ends a run after the batch under way, and names the stored records and
the way to go on. With --id, the bus stores a record once within its dedup
window: 2 minutes, unless dedup_window in the URL of a new stream sets another.
A record that is published again later is stored again, and the bus cannot
tell: repeat a run with --resume or --skip.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file, or - for stdin: JSON in any layout, one event per record
    #[arg(value_hint = ValueHint::FilePath)]
    file: String,
    /// The subject, unless --category and --topic are given
    subject: Option<String>,
    #[command(flatten)]
    fields: Fields,
    /// The payload [default: the record]
    #[arg(long, value_name = "{PATH}")]
    payload: Option<Template>,
    /// Layout of the records
    #[arg(long, value_enum, default_value_t)]
    layout: Layout,
    /// Key of the array, if the file is an object that holds one [default: features]
    #[arg(long)]
    items: Option<String>,
    /// The records are whole events, as `history --output ndjson` and `dump` print them
    #[arg(long, conflicts_with_all = ["subject", "category", "id", "payload"])]
    events: bool,
    #[command(flatten)]
    pace: Pace,
}

/// The start of a run, and its batches.
#[derive(Debug, clap::Args)]
pub(super) struct Pace {
    /// Skip the first records of the file
    #[arg(long, value_name = "RECORDS", default_value_t = 0, conflicts_with = "resume")]
    skip: u64,
    /// Events per batch
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Store the progress of the run with this input in a file, and resume from it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    resume: Option<PathBuf>,
}

impl Pace {
    /// Returns `true` if no record is skipped.
    pub(super) fn is_from_the_beginning(&self) -> bool {
        self.skip == 0 && self.resume.as_ref().is_none_or(|file| !file.exists())
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let Args { file, subject, fields, payload, layout, items, events, pace } = args;
    let kind = if events { Kind::Events } else { payloads(subject, fields, payload)? };
    let layout = match (layout, &items) {
        // An option that names the array implies one.
        (Layout::Auto, Some(_)) => Layout::Array,
        (layout, _) => layout,
    };
    let file = File { path: &file, layout, items: items.as_deref().unwrap_or(ITEMS) };
    publish_file(app, &file, kind, &pace).await.map(drop)
}

fn payloads(subject: Option<String>, fields: Fields, payload: Option<Template>) -> Outcome<Kind> {
    let mut subject = subject.into_iter();
    let target = fields.target(&mut subject)?;
    match subject.next() {
        Some(_) => Err(Failure::Usage(
            "--category and --topic replace the subject; leave one of them out".to_owned(),
        )),
        None => Ok(Kind::Payloads { target, fields: Box::new(fields), payload }),
    }
}

/// A file of records.
pub(super) struct File<'a> {
    pub(super) path: &'a str,
    pub(super) layout: Layout,
    pub(super) items: &'a str,
}

/// Publishes the records of a file and prints what was published.
pub(super) async fn publish_file(
    app: &mut App,
    file: &File<'_>,
    kind: Kind,
    pace: &Pace,
) -> Outcome<Published> {
    let path = file.path;
    let url = redacted(&app.url()?.0);
    app.keys.check_encryption()?;
    let mut checkpoint = pace.resume.clone().map(|file| Checkpoint::load(file, path, &url)).transpose()?;
    let mut records = Records::open(&Input {
        path,
        layout: file.layout,
        items: file.items,
        beginning: checkpoint.as_ref().and_then(Checkpoint::beginning),
    })?;
    let provider = app.connect().await?;
    if let Some(checkpoint) = &mut checkpoint {
        checkpoint.begin()?;
    }
    let skip = checkpoint.as_ref().map_or(pace.skip, Checkpoint::records);
    let mut published = Published::new(skip);
    let publisher = Publisher { provider: &*provider, keys: &app.keys, kind, batch: usize::from(pace.batch) };
    let ended = publisher.publish_all(&mut records, checkpoint.as_mut(), &mut published).await;
    published.stop_clock();
    let ended = match ended {
        Ok(()) => published.check_skipped(path, pace.skip),
        Err(failure @ Failure::Unknown { .. }) if published.is_empty() => Err(failure),
        Err(failure) if published.is_empty() => Err(failure.and("nothing was stored")),
        Err(failure) => Err(failure.and(&published.how_to_go_on(pace.resume.is_some(), publisher.has_ids()))),
    };
    if ended.is_ok() || !published.is_empty() {
        app.out.one(&published)?;
    }
    if published.duplicates > 0 {
        eprint_note(&format!(
            "{} with an id that the bus has: nothing was stored for them, and the stored events may differ",
            count(published.duplicates, "record")
        ));
    }
    ended.map(|()| published)
}
