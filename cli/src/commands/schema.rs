//! `schema check`: whether versions of schemas are compatible, and whether events follow them.

use std::collections::BTreeMap;
use std::fs;

use a3s_event::{Compatibility, Event, EventSchema, MemorySchemaRegistry, SchemaRegistry};
use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::bus::App;
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::output::Row;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event schema check schemas.json
  a3s-event schema check schemas.json --stored 'events.orders.>'

schemas.json is an array of
  {\"eventType\": \"order.placed\", \"version\": 1, \"requiredFields\": [\"total\"], \"description\": \"\"}";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a file of schemas
    #[command(after_help = EXAMPLE)]
    Check(Args),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The schemas, as JSON
    file: String,
    /// What a new version may change
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Also check the stored events of this filter
    #[arg(long, value_name = "FILTER")]
    stored: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Mode {
    /// No new required fields
    #[default]
    Backward,
    /// No required field is dropped
    Forward,
    /// The same required fields
    Full,
    /// Anything
    None,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Schema {
    event_type: String,
    version: u32,
    #[serde(default)]
    required_fields: Vec<String>,
    #[serde(default)]
    description: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem {
    event_type: String,
    version: u32,
    sequence: Option<u64>,
    problem: String,
}

impl Row for Problem {
    const COLUMNS: &'static [&'static str] = &["type", "version", "sequence", "problem"];

    fn cells(&self) -> Vec<String> {
        let sequence = self.sequence.map(|sequence| sequence.to_string());
        vec![
            text::line(&self.event_type),
            self.version.to_string(),
            sequence.unwrap_or_default(),
            text::line(&self.problem),
        ]
    }
}

pub(crate) async fn run(app: &mut App, command: Command) -> Outcome {
    let Command::Check(args) = command;
    let (registry, versions) = load(&args.file)?;
    let mode = match args.mode {
        Mode::Backward => Compatibility::Backward,
        Mode::Forward => Compatibility::Forward,
        Mode::Full => Compatibility::Full,
        Mode::None => Compatibility::None,
    };
    let mut problems = Vec::new();
    for (event_type, versions) in &versions {
        for version in versions {
            if let Err(error) = registry.check_compatibility(event_type, *version, mode) {
                problems.push(problem(event_type, *version, None, &error));
            }
        }
    }
    let mut events = 0_u64;
    if let Some(filter) = &args.stored {
        let provider = app.connect().await?;
        let mut forward = Forward::new(&provider, Some(filter), 1).await?;
        loop {
            let page = forward.page().await?;
            for stored in &page {
                events += 1;
                let Event { event_type, version, .. } = &*stored.event;
                if let Err(error) = registry.validate(&stored.event) {
                    problems.push(problem(event_type, *version, Some(stored.sequence), &error));
                }
            }
            if page.is_empty() {
                break;
            }
        }
        provider.close().await?;
    }
    app.out.rows(&problems)?;
    let schemas: usize = versions.values().map(Vec::len).sum();
    app.out.say(&format!("{schemas} schemas and {events} events checked, {} problems", problems.len()))?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::Found("schema problems were found".to_owned())) }
}

type Versions = BTreeMap<String, Vec<u32>>;

fn load(file: &str) -> Outcome<(MemorySchemaRegistry, Versions)> {
    let wrong = |why: String| Failure::Input(format!("{file}: {why}"));
    let text = fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let schemas: Vec<Schema> = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let registry = MemorySchemaRegistry::new();
    let mut versions = Versions::new();
    for Schema { event_type, version, required_fields, description } in schemas {
        versions.entry(event_type.clone()).or_default().push(version);
        registry
            .register(EventSchema { event_type, version, required_fields, description })
            .map_err(|error| wrong(error.to_string()))?;
    }
    Ok((registry, versions))
}

fn problem(event_type: &str, version: u32, sequence: Option<u64>, error: &a3s_event::EventError) -> Problem {
    Problem { event_type: event_type.to_owned(), version, sequence, problem: error.to_string() }
}
