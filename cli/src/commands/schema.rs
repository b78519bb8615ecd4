//! `schema check`: checks that versions of schemas are compatible, and that events follow them.

use std::path::{Path, PathBuf};

use a3s_event::schema::JsonSchemaRegistry;
use a3s_event::{Compatibility, Event, SchemaRegistry as _, SchemaRules};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use crate::bus::App;
use crate::event_file::{self, Line};
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::output::Row;
use crate::records::{Input, Layout, Records};
use crate::stored::Stored;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event schema check schemas
  a3s-event schema check schemas --mode full --all-versions
  a3s-event schema check schemas --stored 'events.orders.>'
  a3s-event history --all -o ndjson | a3s-event schema check schemas --events -

A file of the folder is a JSON Schema, and its name has type and version: order.placed.v2.json";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a folder of JSON Schemas
    #[command(after_help = EXAMPLE)]
    Check(Args),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder of the schemas: {event type}.v{version}.json each
    #[arg(value_hint = clap::ValueHint::DirPath)]
    folder: PathBuf,
    /// Changes that a version may make
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Compare a version with all earlier ones, not only with the last one
    #[arg(long)]
    all_versions: bool,
    /// Also check the stored events of this filter
    #[arg(long, value_name = "FILTER")]
    stored: Option<String>,
    /// Also check the events of a file, or of stdin for -, as `history --output ndjson` prints them
    #[arg(long, value_name = "FILE", conflicts_with = "stored", value_hint = clap::ValueHint::FilePath)]
    events: Option<String>,
    /// Report an event without a schema as a problem
    #[arg(long)]
    strict: bool,
    /// End after this many problems
    #[arg(long, short = 'n', default_value_t = 100)]
    limit: usize,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Mode {
    /// Readers of the new version can read old events
    #[default]
    Backward,
    /// Readers of the old version can read new events
    Forward,
    /// Both
    Full,
    /// Anything
    None,
}

impl From<Mode> for Compatibility {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Backward => Self::Backward,
            Mode::Forward => Self::Forward,
            Mode::Full => Self::Full,
            Mode::None => Self::None,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem {
    /// The type; absent for an unreadable record.
    event_type: Option<String>,
    version: Option<u32>,
    /// The sequence of a stored event.
    sequence: Option<u64>,
    /// The id of an event.
    id: Option<String>,
    problem: String,
}

impl Row for Problem {
    const COLUMNS: &'static [&'static str] = &["type", "version", "sequence", "event", "problem"];

    fn cells(&self) -> Vec<String> {
        let sequence = self.sequence.map(|sequence| sequence.to_string());
        vec![
            text::line(self.event_type.as_deref().unwrap_or_default()),
            self.version.map_or_else(String::new, |version| version.to_string()),
            sequence.unwrap_or_default(),
            text::line(self.id.as_deref().unwrap_or_default()),
            text::line(&self.problem),
        ]
    }
}

pub(crate) async fn run(app: &mut App, command: Command) -> Outcome {
    let Command::Check(args) = command;
    let rules = if args.strict { SchemaRules::new().strict() } else { SchemaRules::new() };
    let registry = JsonSchemaRegistry::with_rules(rules);
    let schemas = registry.load_folder(&args.folder)?;
    if schemas == 0 {
        return Err(Failure::Input(format!(
            "{}: has no schema; a file is called for instance order.placed.v1.json",
            args.folder.display()
        )));
    }
    let mut check = Check { registry, events: 0, problems: Vec::new(), limit: args.limit };
    check.versions(&args.folder, args.mode.into(), args.all_versions)?;
    if let Some(filter) = &args.stored {
        check.stored(app, filter).await?;
    }
    if let Some(file) = &args.events {
        check.file(file).await?;
    }
    app.out.rows(&check.problems)?;
    let problems = check.problems.len();
    app.out.say(&format!(
        "{} and {} checked, {}",
        text::count(schemas as u64, "schema"),
        text::count(check.events, "event"),
        text::count(problems as u64, "problem")
    ))?;
    if problems == 0 { Ok(()) } else { Err(Failure::Found("schema problems were found".to_owned())) }
}

struct Check {
    registry: JsonSchemaRegistry,
    events: u64,
    problems: Vec<Problem>,
    limit: usize,
}

impl Check {
    fn is_full(&self) -> bool {
        self.problems.len() >= self.limit
    }

    /// Compares each version with the earlier ones.
    fn versions(&mut self, folder: &Path, mode: Compatibility, with_all: bool) -> Outcome {
        for (event_type, version) in listed(folder)? {
            let checked = if with_all {
                self.registry.check_compatibility_with_all(&event_type, version, mode)
            } else {
                self.registry.check_compatibility(&event_type, version, mode)
            };
            if let Err(error) = checked {
                let problem = error.to_string();
                let (event_type, version) = (Some(event_type), Some(version));
                self.problems.push(Problem { event_type, version, sequence: None, id: None, problem });
            }
        }
        Ok(())
    }

    async fn stored(&mut self, app: &mut App, filter: &str) -> Outcome {
        let provider = app.connect_to_look().await?;
        let mut forward = Forward::new(&provider, Some(filter), 1).await?;
        loop {
            let page = forward.page().await?;
            for stored in &page {
                match stored {
                    Stored::Event(stored) => self.event(&stored.event, Some(stored.sequence)),
                    Stored::Unreadable(record) => self.unreadable(record.sequence, &record.reason),
                }
            }
            if page.is_empty() || self.is_full() {
                return Ok(());
            }
        }
    }

    async fn file(&mut self, file: &str) -> Outcome {
        let input = Input { path: file, layout: Layout::Auto, items: "events", beginning: None };
        let mut records = Records::open(&input)?;
        while let Some(record) = records.next().await {
            let record = record?;
            let sequence = record.value.get("sequence").and_then(serde_json::Value::as_u64);
            let line = event_file::read(record.value)
                .map_err(|failure| failure.before(&format!("{file}: record {}: ", record.number)))?;
            match line {
                Line::Event(event) => self.event(&event, sequence),
                Line::Unreadable { sequence, reason } => self.unreadable(sequence, &reason),
                Line::End(_) => {}
            }
            if self.is_full() {
                break;
            }
        }
        Ok(())
    }

    fn unreadable(&mut self, sequence: u64, reason: &str) {
        self.problems.push(Problem {
            event_type: None,
            version: None,
            sequence: Some(sequence),
            id: None,
            problem: format!("cannot be read as an event: {reason}"),
        });
    }

    fn event(&mut self, event: &Event, sequence: Option<u64>) {
        self.events += 1;
        if let Err(error) = self.registry.validate(event) {
            self.problems.push(Problem {
                event_type: Some(event.event_type.clone()),
                version: Some(event.version),
                sequence,
                id: Some(event.id.clone()),
                problem: error.to_string(),
            });
        }
    }
}

/// Lists the types and versions of the schemas in a loaded folder, sorted.
fn listed(folder: &Path) -> Outcome<Vec<(String, u32)>> {
    let unreadable = |error: std::io::Error| Failure::Input(format!("{}: {error}", folder.display()));
    let mut listed = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let parts = name.to_str().and_then(|name| name.strip_suffix(".json")?.rsplit_once(".v"));
        if let Some((event_type, version)) = parts
            && let Ok(version) = version.parse()
        {
            listed.push((event_type.to_owned(), version));
        }
    }
    listed.sort();
    Ok(listed)
}
