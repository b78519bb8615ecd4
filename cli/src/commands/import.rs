//! `import`: the records of a file, in batches.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use a3s_event::provider::validate::{validate_event, validate_publish_options};
use a3s_event::{Event, EventError, EventProvider, PublishReceipt, PublishRequest};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use super::publish::{Fields, Target, build, options};
use super::resume::Checkpoint;
use super::subscribe::eprint_note;
use crate::bus::{App, redacted};
use crate::failure::{Failure, Outcome, SAME_ID, chain};
use crate::records::{Input, Layout, Mark, Record, Records};
use crate::template::Template;
use crate::text::count;

/// A slow input is not held back until its batch is full.
const LINGER: Duration = Duration::from_millis(100);
/// Key of the array in an object, as in GeoJSON.
const ITEMS: &str = "features";

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event import week.geojson 'events.quake.{properties.net}' --id '{id}'
  seq 1 1000 | a3s-event import - events.numbers --resume numbers.state";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file, or - for stdin: JSON of any layout, one record per event
    file: String,
    /// The subject, unless --category and --topic are given
    subject: Option<String>,
    #[command(flatten)]
    fields: Fields,
    /// The payload [default: the record]
    #[arg(long, value_name = "{PATH}")]
    payload: Option<Template>,
    /// How the records follow each other
    #[arg(long, value_enum, default_value_t)]
    layout: Layout,
    /// Key of the array, when the file is an object that holds one [default: features]
    #[arg(long)]
    items: Option<String>,
    /// Leave out the first so many records
    #[arg(long, value_name = "RECORDS", default_value_t = 0, conflicts_with = "resume")]
    skip: u64,
    /// The records are whole events, as `history --output ndjson` prints them
    #[arg(long, conflicts_with_all = ["subject", "category", "id", "payload"])]
    events: bool,
    /// Events per batch
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Remember in this file how far it came with this input, and go on there
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
}

impl Args {
    fn target(&self) -> Outcome<Target> {
        if self.events {
            return Ok(Target::OfRecord);
        }
        let mut subject = self.subject.clone().into_iter();
        let target = self.fields.target(&mut subject)?;
        match subject.next() {
            Some(_) => Err(Failure::Usage("--category and --topic are the subject; see --help".to_owned())),
            None => Ok(target),
        }
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let target = args.target()?;
    let path = args.file.clone();
    let url = redacted(&app.url()?.0);
    let mut checkpoint = args.resume.clone().map(|file| Checkpoint::load(file, &path, &url)).transpose()?;
    let mut records = Records::open(&Input {
        path: &path,
        layout: match (args.layout, &args.items) {
            // Who names the array says that there is one.
            (Layout::Auto, Some(_)) => Layout::Array,
            (layout, _) => layout,
        },
        items: args.items.as_deref().unwrap_or(ITEMS),
        beginning: checkpoint.as_ref().and_then(Checkpoint::beginning),
    })?;
    let provider = app.connect().await?;
    if let Some(checkpoint) = &mut checkpoint {
        checkpoint.begin()?;
    }
    let skip = checkpoint.as_ref().map_or(args.skip, Checkpoint::records);
    let mut published = Published::new(skip);
    let publisher = Publisher { provider: Arc::clone(&provider), target, args };
    let ended = publisher.publish_all(&mut records, checkpoint.as_mut(), &mut published).await;
    published.seconds = published.started.elapsed().as_secs_f64();
    let ended = match ended {
        Ok(()) if published.read < publisher.args.skip => Err(Failure::Input(format!(
            "{path} has {}, fewer than --skip leaves out",
            count(published.read, "record")
        ))),
        Err(failure @ Failure::Unknown { .. }) if published.stored.is_empty() => Err(failure),
        Err(failure) if published.stored.is_empty() => Err(failure.and("nothing was stored")),
        Err(failure) => Err(failure.and(&publisher.how_to_go_on(&published))),
        Ok(()) => Ok(()),
    };
    if ended.is_ok() || !published.stored.is_empty() {
        app.out.one(&published)?;
    }
    if published.duplicates > 0 {
        eprint_note(&format!(
            "{} with an id that was there already: nothing was stored for them, and what is there may differ",
            count(published.duplicates, "record")
        ));
    }
    ended
}

/// What was done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Published {
    /// Events that were stored.
    events: u64,
    /// Records whose id was there already, for which nothing was stored.
    duplicates: u64,
    /// Records that were left out, for instance because an earlier run has published them.
    skipped: u64,
    last_sequence: u64,
    seconds: f64,
    #[serde(skip)]
    started: Instant,
    /// Number of the last record that was read.
    #[serde(skip)]
    read: u64,
    /// Numbers of the records that are stored, from the first to the last in a row.
    #[serde(skip)]
    stored: Vec<(u64, u64)>,
}

impl Published {
    fn new(skipped: u64) -> Self {
        Self {
            events: 0,
            duplicates: 0,
            skipped,
            last_sequence: 0,
            seconds: 0.0,
            started: Instant::now(),
            read: 0,
            stored: Vec::new(),
        }
    }

    fn add(&mut self, number: u64, receipt: &PublishReceipt) {
        if receipt.duplicate {
            self.duplicates += 1;
        } else {
            self.events += 1;
        }
        self.last_sequence = self.last_sequence.max(receipt.sequence);
        match self.stored.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => self.stored.push((number, number)),
        }
    }

    /// The last record before the first that is not stored.
    fn last_in_a_row(&self) -> u64 {
        match self.stored.first() {
            Some((first, last)) if *first == self.skipped + 1 => *last,
            _ => self.skipped,
        }
    }

    fn stored(&self) -> String {
        let ranges = self.stored.iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first} to {last}"),
        });
        let ranges: Vec<_> = ranges.collect();
        match self.stored.as_slice() {
            [(first, last)] if first == last => format!("record {first} of the input is stored"),
            _ => format!("records {} of the input are stored", ranges.join(", ")),
        }
    }
}

/// How far a batch came.
struct Done {
    /// The last record before the first failure.
    last: Option<(u64, Mark)>,
    ended: Outcome,
}

struct Publisher {
    provider: Arc<dyn EventProvider>,
    target: Target,
    args: Args,
}

impl Publisher {
    async fn publish_all(
        &self,
        records: &mut Records,
        mut checkpoint: Option<&mut Checkpoint>,
        published: &mut Published,
    ) -> Outcome {
        let progress = progress(records.bytes);
        while let Some((mut batch, failure)) = next_batch(records, usize::from(self.args.batch)).await {
            published.read = batch.last().map_or(published.read, |record| record.number);
            batch.retain(|record| record.number > published.skipped);
            let run = checkpoint.as_ref().map(|checkpoint| checkpoint.run());
            let done = self.publish(batch, run, published).await;
            if let Some(checkpoint) = &mut checkpoint
                && let Some((last, end)) = done.last
            {
                checkpoint.store(last, end)?;
            }
            match records.bytes {
                Some(_) => progress.set_position(records.position.load(Ordering::Relaxed)),
                None => progress.set_position(published.events),
            }
            progress.set_message(format!("{} events", published.events));
            done.ended?;
            failure.map_or(Ok(()), Err)?;
        }
        progress.finish_and_clear();
        Ok(())
    }

    /// Publishes what it can make an event of, up to the first record that it cannot.
    async fn publish(&self, batch: Vec<Record>, run: Option<&str>, published: &mut Published) -> Done {
        let mut requests = Vec::with_capacity(batch.len());
        let mut ended = Ok(());
        for Record { number, value, end } in batch {
            match self.event(number, value, run) {
                Ok(event) => requests.push((number, end, event)),
                Err(failure) => {
                    ended = Err(Failure::Input(format!("record {number}: {}", failure.message())));
                    break;
                }
            }
        }
        let results = self.send(&requests, run.is_some()).await;
        for ((number, ..), result) in requests.iter().zip(&results) {
            if let Ok(receipt) = result {
                published.add(*number, receipt);
            }
        }
        let stored = results.iter().take_while(|result| result.is_ok()).count();
        if stored < requests.len() {
            ended = Err(failed(&requests, &results));
        }
        let last = stored.checked_sub(1).and_then(|last| requests.get(last));
        Done { last: last.map(|(number, end, _)| (*number, *end)), ended }
    }

    /// The event of a record. What the bus would refuse is refused here, before anything behind it is sent.
    fn event(&self, number: u64, value: Value, run: Option<&str>) -> Outcome<Event> {
        let payload = self.args.payload.as_ref().map(|path| path.value(&value)).transpose();
        let mut event = build(&*self.provider, &self.target, &self.args.fields, value)?;
        if let Some(payload) = payload.map_err(Failure::Input)? {
            event.payload = payload;
        }
        if let Some(run) = run
            && self.args.fields.id.is_none()
            && !self.args.events
        {
            // A batch that is published again after a crash has the same ids.
            event.id = format!("{run}-{number}");
        }
        validate_event(&event, self.provider.subject_prefix(), usize::MAX)?;
        validate_publish_options(&options(&*self.provider, &event.id, self.has_ids() || run.is_some()))?;
        Ok(event)
    }

    /// Whether a record that is published again has the id that it had.
    fn has_ids(&self) -> bool {
        self.args.fields.id.is_some() || self.args.events
    }

    async fn send(
        &self,
        events: &[(u64, Mark, Event)],
        resumes: bool,
    ) -> Vec<Result<PublishReceipt, EventError>> {
        let dedup = resumes || self.has_ids();
        let request = |event| PublishRequest::new(event, options(&*self.provider, &event.id, dedup));
        let requests: Vec<_> = events.iter().map(|(_, _, event)| request(event)).collect();
        self.provider.publish_batch(&requests).await
    }

    /// What is stored when a run has failed, and how the rest gets there.
    fn how_to_go_on(&self, published: &Published) -> String {
        let (stored, last) = (published.stored(), published.last_in_a_row());
        if self.args.resume.is_some() {
            return format!("{stored}; the same command goes on behind record {last}");
        }
        let is_gapless = matches!(published.stored.as_slice(), [(_, end)] if *end == last);
        match (is_gapless, self.has_ids()) {
            (true, _) => format!("{stored} and nothing behind; --skip {last} goes on there"),
            (false, true) => {
                format!("{stored}; --skip {last} goes on there, and the bus knows the others by their ids")
            }
            (false, false) => format!(
                "{stored}; --skip {last} goes on there and would store the others again, because \
                 they have no ids of the input (--id): take them out of it before"
            ),
        }
    }
}

/// The failure of a batch: the events whose outcome is unknown, else the first refusal.
fn failed(events: &[(u64, Mark, Event)], results: &[Result<PublishReceipt, EventError>]) -> Failure {
    let errors =
        || results.iter().zip(events).filter_map(|(result, event)| Some((result.as_ref().err()?, event)));
    let unknown = || errors().filter(|(error, _)| error.may_be_stored());
    if let Some((error, _)) = unknown().next() {
        let ids = unknown().map(|(_, (_, _, event))| event.id.clone()).collect();
        return Failure::Unknown { ids, reason: chain(error), retry: SAME_ID };
    }
    match errors().next() {
        Some((error, (number, ..))) => match Failure::publish(error, Vec::new()) {
            Failure::Input(text) => Failure::Input(format!("record {number}: {text}")),
            Failure::Other(text) => Failure::Other(format!("record {number}: {text}")),
            other => other,
        },
        None => Failure::Other("the bus gave no answer for part of a batch".to_owned()),
    }
}

/// The next records, and why they ended if they ended wrongly. `None` at the end of the input.
async fn next_batch(records: &mut Records, size: usize) -> Option<(Vec<Record>, Option<Failure>)> {
    let mut batch = Vec::with_capacity(size);
    match records.next().await? {
        Ok(record) => batch.push(record),
        Err(failure) => return Some((batch, Some(failure))),
    }
    while batch.len() < size {
        match tokio::time::timeout(LINGER, records.next()).await {
            Ok(Some(Ok(record))) => batch.push(record),
            Ok(Some(Err(failure))) => return Some((batch, Some(failure))),
            Ok(None) | Err(_) => break,
        }
    }
    Some((batch, None))
}

/// Progress on stderr, when it is a terminal: rate and time left of an input of so many bytes, else the rate of events.
pub(super) fn progress(total: Option<u64>) -> ProgressBar {
    let progress = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = match total {
        Some(_) => "{bar:30} {percent}%  {msg}  {binary_bytes_per_sec}  {eta} left",
        None => "{spinner} {msg}  {per_sec}",
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => progress.with_style(style),
        Err(_) => progress,
    }
}
