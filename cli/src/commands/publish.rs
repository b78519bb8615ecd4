//! `pub`: publishes one event from the command line. [`import`](super::import) publishes many.

use std::io::Read as _;

use a3s_event::json;
use a3s_event::{Event, EventProvider, PublishOptions, PublishReceipt};
use serde::Serialize;
use serde_json::Value;

use super::subscribe::eprint_note;
use crate::bus::App;
use crate::failure::{Failure, Outcome};
use crate::records;
use crate::template::{Template, TimeTemplate};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event pub events.greetings.first '{\"text\": \"hello\"}'
  echo '{\"rate\": 7.35}' | a3s-event pub --category market --topic forex -";

/// Maximum size of a payload from a file or stdin in bytes.
const MAX_PAYLOAD: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The subject (left out with --category and --topic), and the payload: JSON, @FILE, or - for stdin
    #[arg(value_name = "SUBJECT] [PAYLOAD", num_args = 0..=2)]
    positional: Vec<String>,
    /// The payload is text, not JSON
    #[arg(long)]
    text: bool,
    #[command(flatten)]
    fields: Fields,
}

/// Fields of an event beside its payload. In `import` a {path} stands for a value of the record, and {path|default} for
/// that or a default.
#[derive(Debug, clap::Args)]
pub(super) struct Fields {
    /// Category of the event [default: the second token of the subject]
    #[arg(long, short)]
    category: Option<String>,
    /// Topic in the category: subject and category in one
    #[arg(long, short, requires = "category")]
    topic: Option<String>,
    /// Id of the event; the bus stores an id once within its dedup window, 2 minutes by default [default: a new id]
    #[arg(long)]
    pub(super) id: Option<Template>,
    /// Application type of the event
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<Template>,
    /// Schema version of the type
    #[arg(long, default_value_t = 1)]
    schema_version: u32,
    /// One line of text for people
    #[arg(long, short)]
    summary: Option<Template>,
    /// Name of the producer
    #[arg(long, default_value = "a3s-event-cli")]
    source: Template,
    /// Time of the event: 2018-02-07T01:26:13Z, 2018-02-07, yesterday, '2 hours ago', 15m or Unix milliseconds [default: now]
    #[arg(long)]
    time: Option<TimeTemplate>,
    /// Metadata entry; can be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = entry)]
    meta: Vec<(String, Template)>,
}

impl Fields {
    /// Returns the target of the events: the topic of a category, or the next positional argument.
    pub(super) fn target(&self, positional: &mut impl Iterator<Item = String>) -> Outcome<Target> {
        let template =
            |text: &str| text.parse::<Template>().map_err(|why| Failure::Usage(format!("'{text}' {why}")));
        if let (Some(category), Some(topic)) = (&self.category, &self.topic) {
            return Ok(Target::Topic { category: template(category)?, topic: template(topic)? });
        }
        let subject = positional.next().ok_or_else(|| {
            Failure::Usage(
                "the subject is missing: give one, such as events.orders.placed, or --category and --topic"
                    .to_owned(),
            )
        })?;
        Ok(Target::Subject(template(&subject)?))
    }
}

fn entry(text: &str) -> Result<(String, Template), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.parse()?))
}

/// The target of an event.
pub(super) enum Target {
    Subject(Template),
    Topic { category: Template, topic: Template },
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let mut positional = args.positional.into_iter();
    let target = args.fields.target(&mut positional)?;
    let payload = positional.next().ok_or_else(|| {
        Failure::Usage("the payload is missing: give JSON, @FILE, or - for stdin".to_owned())
    })?;
    if positional.next().is_some() {
        return Err(Failure::Usage(
            "there are two payloads: --category and --topic replace the subject".to_owned(),
        ));
    }
    let record = self::payload(&payload, args.text)?;
    let provider = app.connect().await?;
    let mut event = build(&*provider, &target, &args.fields, record)?;
    app.keys.encrypt(&mut event)?;
    let options = options(&*provider, &event.id, true);
    let receipt = provider
        .publish_with_receipt(&event, &options)
        .await
        .map_err(|error| Failure::publish(&error, vec![event.id.clone()]))?;
    let PublishReceipt { sequence, duplicate, .. } = receipt;
    app.out.one(&Published { sequence, id: &event.id, subject: &event.subject, duplicate })?;
    if duplicate {
        eprint_note(&format!(
            "nothing was stored: the bus has an event with this id at sequence {sequence}, which may differ from this one"
        ));
    }
    Ok(())
}

#[derive(Serialize)]
struct Published<'a> {
    sequence: u64,
    id: &'a str,
    subject: &'a str,
    /// If true, an earlier publish has stored an event with this id, and this one stored nothing.
    duplicate: bool,
}

fn payload(given: &str, is_text: bool) -> Outcome<Value> {
    let (name, text) = match (given, given.strip_prefix('@')) {
        ("-", _) => ("stdin", read("stdin", records::stdin()?)?),
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

/// Creates the event of a record, which becomes its payload.
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
    if let Some(time) = &fields.time {
        event.timestamp = time.time(&record).map_err(input)?;
    }
    for (key, value) in &fields.meta {
        let value = value.text(&record).map_err(input)?;
        if event.metadata.insert(key.clone(), value).is_some() {
            return Err(Failure::Usage(format!("--meta {key} is given twice; give each key once")));
        }
    }
    event.payload = record;
    Ok(event)
}

/// Returns the token after the prefix.
fn category_of(provider: &dyn EventProvider, subject: &str) -> String {
    let rest = subject.strip_prefix(provider.subject_prefix()).and_then(|rest| rest.strip_prefix('.'));
    rest.unwrap_or(subject).split('.').next().unwrap_or_default().to_owned()
}

/// Requests deduplication by id if the bus supports it.
pub(super) fn options(provider: &dyn EventProvider, id: &str, dedup: bool) -> PublishOptions {
    let dedup = dedup && !provider.capabilities().dedup.is_no();
    PublishOptions { msg_id: dedup.then(|| id.to_owned()), ..PublishOptions::default() }
}
