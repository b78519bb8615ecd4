//! Publishes the records of an input in batches.

use std::pin::pin;
use std::time::Duration;

use a3s_event::provider::validate::{validate_event, validate_publish_options};
use a3s_event::{Event, EventError, EventProvider, PublishReceipt, PublishRequest};
use serde_json::Value;

use super::published::Published;
use super::resume::Checkpoint;
use crate::bus::asked_to_end;
use crate::commands::publish::{Fields, Target, build, options};
use crate::commands::subscribe::eprint_warning;
use crate::event_file::{self, End, Line, Order};
use crate::failure::{Failure, Outcome, SAME_ID, chain};
use crate::keys::Keys;
use crate::progress::Progress;
use crate::records::{Mark, Record, Records};
use crate::template::Template;
use crate::text::count;

/// Maximum time that a record of a slow input waits for its batch.
const LINGER: Duration = Duration::from_millis(100);

/// The kind of the records of an input.
pub(crate) enum Kind {
    /// Each becomes the payload of an event.
    Payloads { target: Target, fields: Box<Fields>, payload: Option<Template> },
    /// Whole events, in any order.
    Events,
    /// A dump: whole events, oldest first, and a last line.
    Dump,
}

/// Publishes records.
pub(crate) struct Publisher<'a> {
    pub(super) provider: &'a dyn EventProvider,
    pub(super) keys: &'a Keys,
    pub(super) kind: Kind,
    /// Events per batch.
    pub(super) batch: usize,
}

/// The progress of a batch.
struct Done {
    /// The last record before the first failure.
    last: Option<(u64, Mark)>,
    ended: Outcome,
}

/// The state of the checks of a file of events.
#[derive(Default)]
struct Seen {
    order: Order,
    is_warned: bool,
    end: Option<End>,
}

impl Publisher<'_> {
    pub(super) async fn publish_all(
        &self,
        records: &mut Records,
        mut checkpoint: Option<&mut Checkpoint>,
        published: &mut Published,
    ) -> Outcome {
        let progress = Progress::of_bytes(records.bytes);
        let mut seen = Seen::default();
        let mut asked = pin!(asked_to_end());
        loop {
            // A batch under way is completed, so that its outcome is known. The next one is not begun.
            let next = tokio::select! {
                biased;
                () = &mut asked => return Err(Failure::Other("ended by a signal".to_owned())),
                next = next_batch(records, self.batch) => next,
            };
            let Some((mut batch, failure)) = next else { break };
            for record in &batch {
                self.look_at(record, &mut seen)?;
            }
            published.read = batch.last().map_or(published.read, |record| record.number);
            batch.retain(|record| record.number > published.skipped());
            let run = checkpoint.as_ref().map(|checkpoint| checkpoint.run());
            let done = self.publish(batch, run, published).await;
            if let Some(checkpoint) = &mut checkpoint
                && let Some((last, end)) = done.last
            {
                checkpoint.store(last, end)?;
            }
            progress.set(records.bytes.map_or(published.events, |_| records.read()));
            progress.say(count(published.events, "event"));
            done.ended?;
            failure.map_or(Ok(()), Err)?;
        }
        match (&self.kind, seen.end) {
            (Kind::Dump, None) => Err(Failure::Input(event_file::CUT.to_owned())),
            _ => Ok(()),
        }
    }

    /// Checks the order of a file of events, before the batch is published.
    fn look_at(&self, record: &Record, seen: &mut Seen) -> Outcome {
        let Record { number, value, .. } = record;
        if let Kind::Payloads { .. } = self.kind {
            return Ok(());
        }
        if let Some(end) = seen.end.filter(|_| matches!(self.kind, Kind::Dump)) {
            return Err(Failure::Input(format!(
                "record {number} follows the last line of the dump, which has {}: restore one dump at a time",
                count(end.records, "record")
            )));
        }
        match (seen.order.check(*number, value), &self.kind) {
            (Err(why), Kind::Dump) => {
                return Err(Failure::Input(format!(
                    "{why}; dump and history --oldest-first write such files"
                )));
            }
            (Err(why), _) if !seen.is_warned => {
                seen.is_warned = true;
                eprint_warning(&Failure::Input(format!(
                    "{why}: events are stored in the order of the file; dump and history --oldest-first write the oldest first"
                )));
            }
            _ => {}
        }
        if event_file::is_end(value) {
            let Line::End(end) = event_file::read(value.clone())? else { return Ok(()) };
            if end.records != number - 1 && matches!(self.kind, Kind::Dump) {
                return Err(Failure::Input(format!(
                    "the last line says that the dump has {}, and the file has {}: part of it is missing",
                    count(end.records, "record"),
                    number - 1
                )));
            }
            seen.end = Some(end);
        }
        Ok(())
    }

    /// Publishes the records up to the first that cannot become an event.
    async fn publish(&self, batch: Vec<Record>, run: Option<&str>, published: &mut Published) -> Done {
        let mut requests = Vec::with_capacity(batch.len());
        let mut ended = Ok(());
        for Record { number, value, end } in batch {
            match self.event(number, value, run, published) {
                Ok(Some(event)) => requests.push((number, end, event)),
                Ok(None) => {}
                Err(failure) => {
                    ended = Err(failure.before(&format!("record {number}: ")));
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

    /// Creates the event of a record. Checks the rules of the bus here, before any later record is sent.
    fn event(
        &self,
        number: u64,
        value: Value,
        run: Option<&str>,
        published: &mut Published,
    ) -> Outcome<Option<Event>> {
        let event = match &self.kind {
            Kind::Payloads { target, fields, payload } => {
                let payload = payload.as_ref().map(|path| path.value(&value)).transpose();
                let mut event = build(self.provider, target, fields, value)?;
                if let Some(payload) = payload.map_err(Failure::Input)? {
                    event.payload = payload;
                }
                if let Some(run) = run
                    && fields.id.is_none()
                {
                    // A batch that is published again after a crash has the same ids.
                    event.id = format!("{run}-{number}");
                }
                self.keys.encrypt(&mut event)?;
                event
            }
            kind => match event_file::read(value)? {
                Line::Event(mut event) => {
                    self.keys.encrypt_again(&mut event)?;
                    *event
                }
                Line::End(_) => return Ok(None),
                Line::Unreadable { sequence, .. } if matches!(kind, Kind::Dump) => {
                    published.unreadable.add(sequence);
                    return Ok(None);
                }
                Line::Unreadable { sequence, .. } => {
                    return Err(Failure::Input(format!(
                        "is not an event: sequence {sequence} of its bus could not be read"
                    )));
                }
            },
        };
        validate_event(&event, self.provider.subject_prefix(), usize::MAX)?;
        validate_publish_options(&options(self.provider, &event.id, self.has_ids() || run.is_some()))?;
        Ok(Some(event))
    }

    /// Returns `true` if publishing a record again gives it the same id.
    pub(super) fn has_ids(&self) -> bool {
        match &self.kind {
            Kind::Payloads { fields, .. } => fields.id.is_some(),
            Kind::Events | Kind::Dump => true,
        }
    }

    async fn send(
        &self,
        events: &[(u64, Mark, Event)],
        resumes: bool,
    ) -> Vec<Result<PublishReceipt, EventError>> {
        let dedup = resumes || self.has_ids();
        let request = |event| PublishRequest::new(event, options(self.provider, &event.id, dedup));
        let requests: Vec<_> = events.iter().map(|(_, _, event)| request(event)).collect();
        self.provider.publish_batch(&requests).await
    }
}

/// Returns the failure of a batch: the events with an unknown outcome, else the first refusal.
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
            failure @ (Failure::Input(_) | Failure::Other(_)) => {
                failure.before(&format!("record {number}: "))
            }
            other => other,
        },
        None => Failure::Other("the bus did not answer for part of a batch".to_owned()),
    }
}

/// Reads the next records, and the failure that ended them, if any. `None` at the end of the input.
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
