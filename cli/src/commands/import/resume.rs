//! The resume file of `import`: the progress of a run, its input and its bus.

use std::fs;
use std::path::PathBuf;

use a3s_event::Event;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::records::Mark;
use crate::replace::replace;

/// The progress of a run, in a file that is replaced atomically.
pub(super) struct Checkpoint {
    path: PathBuf,
    state: State,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Part of the ids of the events.
    run: String,
    /// Number of published records.
    records: u64,
    /// The input. Absent in files of earlier versions.
    input: Option<Source>,
    /// The bus that they were published to.
    bus: Option<String>,
}

/// An input, up to the last record read.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    /// The name for people: a file may move, and a pipe has no name.
    name: String,
    end: Mark,
}

impl Checkpoint {
    /// Reads the file, which may not exist yet.
    pub(super) fn load(path: PathBuf, input: &str, bus: &str) -> Outcome<Self> {
        // Settings may change between two runs.
        let bus = bus.split('?').next().unwrap_or(bus).to_owned();
        let wrong = |why: String| Failure::Input(format!("resume file {}: {why}", path.display()));
        let mut state: State = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                State { run: Event::new("", "", "", "", Value::Null).id, records: 0, input: None, bus: None }
            }
            Err(error) => return Err(wrong(error.to_string())),
        };
        if state.records > 0 && state.input.is_none() {
            return Err(wrong(format!(
                "an earlier version wrote it without the input of its {} records: use --skip {} instead to go on after \
                 them",
                state.records, state.records
            )));
        }
        if let Some(other) = state.bus.as_ref().filter(|other| **other != bus && state.records > 0) {
            return Err(wrong(format!(
                "belongs to a run to {other}, and this one is to {bus}: name another resume file for another bus"
            )));
        }
        state.bus = Some(bus);
        let end = state.input.map_or_else(Mark::default, |source| source.end);
        state.input = Some(Source { name: input.to_owned(), end });
        Ok(Self { path, state })
    }

    /// Part of the ids of the events.
    pub(super) fn run(&self) -> &str {
        &self.state.run
    }

    /// Returns the number of published records.
    pub(super) fn records(&self) -> u64 {
        self.state.records
    }

    /// Returns the number of published records at the beginning of the input, and the end of the last one.
    pub(super) fn beginning(&self) -> Option<(u64, Mark)> {
        let source = self.state.input.as_ref().filter(|_| self.state.records > 0)?;
        Some((self.state.records, source.end))
    }

    /// Writes the file: it must hold the name of the run before the first event is published.
    pub(super) fn begin(&mut self) -> Outcome {
        let written = serde_json::to_vec(&self.state).map_err(Into::into);
        let written = written.and_then(|state| replace(&self.path, &state));
        written.map_err(|error| Failure::Input(format!("resume file {}: {error}", self.path.display())))
    }

    pub(super) fn store(&mut self, records: u64, end: Mark) -> Outcome {
        self.state.records = records;
        if let Some(source) = &mut self.state.input {
            source.end = end;
        }
        self.begin()
    }
}
