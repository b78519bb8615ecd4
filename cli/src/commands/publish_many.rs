//! `pub --many`: the records of a file, in batches.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use a3s_event::provider::PublishReceipt;
use a3s_event::{Event, EventError, EventProvider, PublishRequest};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::publish::{Args, Target, build, options};
use crate::bus::App;
use crate::failure::{Failure, Outcome, SAME_ID, chain};
use crate::records::{Record, Records};

/// A slow input is not held back until its batch is full.
const LINGER: Duration = Duration::from_millis(100);

pub(super) async fn run(app: &mut App, args: Args, target: Target) -> Outcome {
    let path = args.many.many.clone().unwrap_or_default();
    let mut records = Records::open(&path, args.many.layout, &args.many.items)?;
    let mut checkpoint = args.many.resume.clone().map(Checkpoint::load).transpose()?;
    let provider = app.connect().await?;
    let progress = progress(records.bytes);
    let started = Instant::now();
    let skip = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.records);
    let mut published = Published::default();
    let publisher = Publisher { provider: Arc::clone(&provider), target, args };
    while let Some(batch) = next_batch(&mut records, usize::from(publisher.args.many.batch)).await {
        let (mut batch, failure) = batch;
        batch.retain(|record| record.number > skip);
        let run = checkpoint.as_ref().map(|checkpoint| checkpoint.state.run.as_str());
        let done = publisher.publish(batch, run, &mut published).await;
        if let Some(checkpoint) = &mut checkpoint
            && let Some(last) = done.last
        {
            checkpoint.store(last)?;
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
    published.skipped = skip;
    published.seconds = started.elapsed().as_secs_f64();
    app.out.one(&published)
}

/// What was done.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Published {
    events: u64,
    /// Records that an earlier run has published.
    skipped: u64,
    last_sequence: u64,
    seconds: f64,
}

/// How far a batch came.
struct Done {
    /// Number of the last record before the first failure.
    last: Option<u64>,
    ended: Outcome,
}

struct Publisher {
    provider: Arc<dyn EventProvider>,
    target: Target,
    args: Args,
}

impl Publisher {
    /// Publishes what it can make an event of, up to the first record that it cannot.
    async fn publish(&self, batch: Vec<Record>, run: Option<&str>, published: &mut Published) -> Done {
        let (mut events, mut numbers) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let mut ended = Ok(());
        for Record { number, value } in batch {
            match self.event(number, value, run) {
                Ok(event) => events.push(event),
                Err(failure) => {
                    ended = Err(Failure::Input(format!("record {number}: {}", failure.message())));
                    break;
                }
            }
            numbers.push(number);
        }
        let results = self.send(&events, run.is_some()).await;
        let stored = results.iter().take_while(|result| result.is_ok()).count();
        for receipt in results.iter().flatten() {
            published.events += 1;
            published.last_sequence = published.last_sequence.max(receipt.sequence);
        }
        if stored < results.len() {
            ended = Err(failed(&numbers, &events, &results));
        }
        let last = stored.checked_sub(1).and_then(|last| numbers.get(last)).copied();
        Done { last, ended }
    }

    fn event(&self, number: u64, value: Value, run: Option<&str>) -> Outcome<Event> {
        let mut event = build(&*self.provider, &self.target, &self.args, value)?;
        if let Some(run) = run
            && self.args.fields.id.is_none()
            && !self.args.many.events
        {
            // A batch that is published again after a crash has the same ids.
            event.id = format!("{run}-{number}");
        }
        Ok(event)
    }

    async fn send(&self, events: &[Event], resumes: bool) -> Vec<Result<PublishReceipt, EventError>> {
        let dedup = resumes || self.args.fields.id.is_some() || self.args.many.events;
        let requests: Vec<_> = events
            .iter()
            .map(|event| PublishRequest::new(event, options(&*self.provider, &event.id, dedup)))
            .collect();
        self.provider.publish_batch(&requests).await
    }
}

/// The failure of a batch: the events whose outcome is unknown, else the first refusal.
fn failed(numbers: &[u64], events: &[Event], results: &[Result<PublishReceipt, EventError>]) -> Failure {
    let errors =
        || results.iter().zip(events).filter_map(|(result, event)| Some((result.as_ref().err()?, event)));
    let unknown = || errors().filter(|(error, _)| error.may_be_stored());
    if let Some((error, _)) = unknown().next() {
        let ids = unknown().map(|(_, event)| event.id.clone()).collect();
        return Failure::Unknown { ids, reason: chain(error), retry: SAME_ID };
    }
    let first =
        results.iter().zip(numbers).find_map(|(result, number)| Some((result.as_ref().err()?, number)));
    match first {
        Some((error, number)) => match Failure::publish(error, Vec::new()) {
            Failure::Input(text) => Failure::Input(format!("record {number}: {text}")),
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

/// How far a run came, in a file that is replaced as a whole.
struct Checkpoint {
    path: PathBuf,
    state: State,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Part of the ids of the events.
    run: String,
    /// Records that are published.
    records: u64,
}

impl Checkpoint {
    fn load(path: PathBuf) -> Outcome<Self> {
        let wrong = |why: String| Failure::Input(format!("resume file {}: {why}", path.display()));
        let state = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                State { run: Event::new("", "", "", "", Value::Null).id, records: 0 }
            }
            Err(error) => return Err(wrong(error.to_string())),
        };
        let records = state.records;
        let mut checkpoint = Self { path, state };
        // The name of the run has to be there before the first event of it.
        checkpoint.store(records)?;
        Ok(checkpoint)
    }

    fn store(&mut self, records: u64) -> Outcome {
        self.state.records = records;
        self.write().map_err(|error| Failure::Input(format!("resume file {}: {error}", self.path.display())))
    }

    fn write(&self) -> std::io::Result<()> {
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(&self.state)?)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }
}
