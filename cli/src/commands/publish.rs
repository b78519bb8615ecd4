//! `pub`: one event from the command line. Many are in [`import`](super::import).

use std::io::Read as _;

use a3s_event::json;
use a3s_event::{Event, EventProvider, PublishOptions, PublishReceipt};
use serde::Serialize;
use serde_json::Value;

use super::subscribe::eprint_note;
use crate::bus::App;
use crate::failure::{Failure, Outcome};
use crate::moment;
use crate::template::Template;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event pub events.greetings.first '{\"text\": \"hello\"}'
  echo '{\"rate\": 7.35}' | a3s-event pub --category market --topic forex -";

/// Largest payload that is read from a file or stdin.
const MAX_PAYLOAD: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The subject, unless --category and --topic are given, and the payload: JSON, @FILE, or - for stdin
    #[arg(value_name = "SUBJECT] [PAYLOAD", num_args = 0..=2)]
    positional: Vec<String>,
    /// The payload is text, not JSON
    #[arg(long)]
    text: bool,
    #[command(flatten)]
    fields: Fields,
}

/// What events have beside their payload. In `import` a {path} stands for a value of the record.
#[derive(Debug, clap::Args)]
pub(super) struct Fields {
    /// Category of the event [default: the second token of the subject]
    #[arg(long, short)]
    category: Option<String>,
    /// Topic in the category: subject and category in one
    #[arg(long, short, requires = "category")]
    topic: Option<String>,
    /// Id of the event, which the bus deduplicates [default: a new one]
    #[arg(long)]
    pub(super) id: Option<Template>,
    /// Application type of the event
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<Template>,
    /// Schema version of the type
    #[arg(long, default_value_t = 1)]
    schema_version: u32,
    /// One line for people
    #[arg(long, short)]
    summary: Option<Template>,
    /// Who produces the event
    #[arg(long, default_value = "a3s-event-cli")]
    source: Template,
    /// When it happened: RFC 3339, Unix milliseconds, or how long ago [default: now]
    #[arg(long)]
    time: Option<Template>,
    /// An entry of the metadata; can be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = entry)]
    meta: Vec<(String, Template)>,
}

impl Fields {
    /// Where the events go: the topic of a category, or the next of the positional arguments.
    pub(super) fn target(&self, positional: &mut impl Iterator<Item = String>) -> Outcome<Target> {
        let template =
            |text: &str| text.parse::<Template>().map_err(|why| Failure::Usage(format!("'{text}' {why}")));
        if let (Some(category), Some(topic)) = (&self.category, &self.topic) {
            return Ok(Target::Topic { category: template(category)?, topic: template(topic)? });
        }
        let subject = positional.next().ok_or_else(|| {
            Failure::Usage("no subject: give one, or --category and --topic; see --help".to_owned())
        })?;
        Ok(Target::Subject(template(&subject)?))
    }
}

fn entry(text: &str) -> Result<(String, Template), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.parse()?))
}

/// Where an event goes.
pub(super) enum Target {
    Subject(Template),
    Topic {
        category: Template,
        topic: Template,
    },
    /// Each event says so itself.
    OfRecord,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let mut positional = args.positional.into_iter();
    let target = args.fields.target(&mut positional)?;
    let payload = positional
        .next()
        .ok_or_else(|| Failure::Usage("no payload: give JSON, @FILE, or - for stdin".to_owned()))?;
    if positional.next().is_some() {
        return Err(Failure::Usage("there is more than one payload; see --help".to_owned()));
    }
    let record = self::payload(&payload, args.text)?;
    let provider = app.connect().await?;
    let event = build(&*provider, &target, &args.fields, record)?;
    let options = options(&*provider, &event.id, true);
    let receipt = provider
        .publish_with_receipt(&event, &options)
        .await
        .map_err(|error| Failure::publish(&error, vec![event.id.clone()]))?;
    let PublishReceipt { sequence, duplicate, .. } = receipt;
    app.out.one(&Published { sequence, id: &event.id, subject: &event.subject, duplicate })?;
    if duplicate {
        eprint_note(&format!(
            "nothing was stored: an event with this id is there already, as number {sequence}, and may differ from this one"
        ));
    }
    Ok(())
}

#[derive(Serialize)]
struct Published<'a> {
    sequence: u64,
    id: &'a str,
    subject: &'a str,
    /// Whether an earlier publish has stored an event with this id, and this one nothing.
    duplicate: bool,
}

fn payload(given: &str, is_text: bool) -> Outcome<Value> {
    let (name, text) = match (given, given.strip_prefix('@')) {
        ("-", _) => ("stdin", read("stdin", std::io::stdin())?),
        (_, Some(path)) => {
            let file =
                std::fs::File::open(path).map_err(|error| Failure::Input(format!("{path}: {error}")))?;
            (path, read(path, file)?)
        }
        _ => ("payload", given.to_owned()),
    };
    if is_text {
        return Ok(Value::String(text));
    }
    json::from_slice(text.as_bytes()).map_err(|error| {
        Failure::Input(if error.is_data() {
            format!("{name}: {error}")
        } else {
            format!("{name} is not JSON: {error}; use --text to publish it as text")
        })
    })
}

fn read(name: &str, input: impl std::io::Read) -> Outcome<String> {
    let mut text = String::new();
    let read = input.take(MAX_PAYLOAD + 1).read_to_string(&mut text);
    let read = read.map_err(|error| Failure::Input(format!("{name}: {error}")))?;
    if read as u64 > MAX_PAYLOAD {
        return Err(Failure::Input(format!("{name} is larger than {MAX_PAYLOAD} bytes")));
    }
    Ok(text)
}

/// Makes the event of a record, which becomes its payload.
pub(super) fn build(
    provider: &dyn EventProvider,
    target: &Target,
    fields: &Fields,
    record: Value,
) -> Outcome<Event> {
    let input = Failure::Input;
    let text = |template: &Option<Template>| match template {
        Some(template) => template.text(&record).map_err(input),
        None => Ok(String::new()),
    };
    let (subject, category) = match target {
        Target::OfRecord => return of_record(record),
        Target::Subject(template) => {
            let subject = template.subject(&record).map_err(input)?;
            let category = match &fields.category {
                Some(category) => category.clone(),
                None => category_of(provider, &subject),
            };
            (subject, category)
        }
        Target::Topic { category, topic } => {
            let category = category.subject(&record).map_err(input)?;
            (provider.build_subject(&category, &topic.subject(&record).map_err(input)?), category)
        }
    };
    let summary = text(&fields.summary)?;
    let name = |template: &Option<Template>| match template {
        Some(template) => template.name(&record).map_err(input),
        None => Ok(String::new()),
    };
    let source = fields.source.name(&record).map_err(input)?;
    let event_type = name(&fields.event_type)?;
    let mut event =
        Event::typed(subject, category, event_type, fields.schema_version, summary, source, Value::Null);
    if fields.id.is_some() {
        event.id = name(&fields.id)?;
    }
    if fields.time.is_some() {
        let time = name(&fields.time)?;
        event.timestamp = moment::parse(&time).map_err(|why| input(format!("time '{time}' {why}")))?;
    }
    for (key, value) in &fields.meta {
        let value = value.text(&record).map_err(input)?;
        if event.metadata.insert(key.clone(), value).is_some() {
            return Err(Failure::Usage(format!("--meta {key} is given twice")));
        }
    }
    event.payload = record;
    Ok(event)
}

/// The token behind the prefix.
fn category_of(provider: &dyn EventProvider, subject: &str) -> String {
    let rest = subject.strip_prefix(provider.subject_prefix()).and_then(|rest| rest.strip_prefix('.'));
    rest.unwrap_or(subject).split('.').next().unwrap_or_default().to_owned()
}

/// A whole event, alone or in the row of a listing.
pub(super) fn of_record(mut record: Value) -> Outcome<Event> {
    if let (Some(sequence), Some(_)) = (record.get("sequence"), record.get("unreadable")) {
        return Err(Failure::Input(format!("is no event: record {sequence} of its bus cannot be read")));
    }
    let event = match record.get_mut("event") {
        Some(event) if event.is_object() => event.take(),
        _ => record,
    };
    serde_json::from_value(event).map_err(|error| Failure::Input(format!("is no event: {error}")))
}

/// Asks for deduplication by id, where the bus can do that.
pub(super) fn options(provider: &dyn EventProvider, id: &str, dedup: bool) -> PublishOptions {
    let dedup = dedup && !provider.capabilities().dedup.is_no();
    PublishOptions { msg_id: dedup.then(|| id.to_owned()), ..PublishOptions::default() }
}
