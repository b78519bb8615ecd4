//! The invariants of ARCHITECTURE.md that a program can check by reading the sources.

#![allow(clippy::unwrap_used, reason = "a checkout that cannot be read fails the test, as it should")]

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/links.rs"]
mod links;
#[path = "tidy/paths.rs"]
mod paths;
#[path = "tidy/prose.rs"]
mod prose;
#[path = "tidy/reach.rs"]
mod reach;
#[path = "tidy/versions.rs"]
mod versions;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A file of the repository, its path relative to the root and with `/` on every system.
struct File {
    path: String,
    text: String,
}

impl File {
    /// The lines before the tests of the module, with their numbers. Comments are left out.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines
            .take_while(|(_, line)| !line.starts_with("mod tests {"))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What is built or made up in a run, wherever it lies.
const NOT_OURS: [&str; 4] = ["target", "proptest-regressions", "corpus", "artifacts"];

/// All text files, without what is not ours and without what is hidden other than `.ci`.
fn files() -> Vec<File> {
    let mut files = Vec::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_hidden = name.starts_with('.') && name != ".ci";
            if is_hidden || NOT_OURS.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                files.push(File { path: relative(&path), text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the walk found no sources");
    files
}

fn relative(path: &Path) -> String {
    let parts: Vec<_> = path.strip_prefix(root()).unwrap().iter().collect();
    parts.join(std::ffi::OsStr::new("/")).to_string_lossy().into_owned()
}

fn rust_files_under(folders: &[&str]) -> Vec<File> {
    let mut files = files();
    files.retain(|file| {
        file.path.ends_with(".rs") && folders.iter().any(|folder| file.path.starts_with(folder))
    });
    files
}

/// Collects what is wrong as `path:line: why`, so that one run shows all of it.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn add(&mut self, path: &str, line: usize, why: impl AsRef<str>) {
        self.0.push(format!("{path}:{line}: {}", why.as_ref()));
    }

    /// Complains about each line of code that has one of these words.
    fn forbid(&mut self, files: &[File], words: &[&str], why: &str) {
        for file in files {
            for (number, line) in file.code() {
                if let Some(word) = words.iter().find(|word| has_path(line, word)) {
                    self.add(&file.path, number, format!("`{word}`: {why}"));
                }
            }
        }
    }

    #[track_caller]
    fn none(self) {
        assert!(self.0.is_empty(), "\n{}\n", self.0.join("\n"));
    }
}

/// Whether the line has this path, not as a part of a longer identifier.
fn has_path(line: &str, path: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(path).any(|(start, _)| {
        let before = line.get(..start).and_then(|text| text.chars().next_back());
        let after = line.get(start + path.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

#[test]
fn paths_are_found_as_whole_words() {
    assert!(has_path("use tokio::sync;", "tokio"));
    assert!(has_path("use crate::bus::EventBus;", "crate::bus"));
    assert!(!has_path("let mytokio = 1;", "tokio"));
    assert!(!has_path("use crate::business;", "crate::bus"));
}

#[test]
fn the_vocabulary_performs_no_io_and_knows_no_runtime() {
    let mut files = rust_files_under(&[
        "src/types.rs",
        "src/error.rs",
        "src/subject/",
        "src/provider/group/",
        "src/cloudevents/",
    ]);
    // A test that writes a page.
    files.retain(|file| file.path != "src/provider/group/life.rs");
    let mut complaints = Complaints::default();
    complaints.forbid(
        &files,
        &["tokio", "std::fs", "std::net", "std::io", "std::process", "async fn", ".await"],
        "no I/O and no runtime here",
    );
    complaints.none();
}

#[test]
fn providers_do_not_use_the_bus() {
    let files = rust_files_under(&["src/provider/"]);
    let mut complaints = Complaints::default();
    complaints.forbid(
        &files,
        &["crate::bus", "crate::store", "crate::EventBus", "super::bus"],
        "a provider cannot reach the bus",
    );
    complaints.none();
}

#[test]
fn the_bus_names_no_concrete_provider() {
    let files = rust_files_under(&["src/bus/"]);
    let providers: Vec<String> =
        provider_folders().into_iter().map(|folder| format!("provider::{folder}")).collect();
    let mut words: Vec<&str> = providers.iter().map(String::as_str).collect();
    words.extend([
        "MemoryProvider",
        "SqliteProvider",
        "NatsProvider",
        "RedisProvider",
        "async_nats",
        "rusqlite",
    ]);
    let mut complaints = Complaints::default();
    complaints.forbid(&files, &words, "the bus knows the contract only");
    complaints.none();
}

/// The folders that hold a provider: those of `src/provider` other than what they stand on.
fn provider_folders() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("src/provider")).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let names = folders.map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    names.filter(|name| !["group", "receiver", "settings"].contains(&name.as_str())).collect()
}

#[test]
fn every_provider_folder_has_the_same_files() {
    let mut complaints = Complaints::default();
    let folders = provider_folders();
    assert!(folders.contains("memory"));
    for folder in folders {
        for name in ["mod.rs", "config.rs", "publish.rs", "fetch.rs", "docs.md"] {
            let path = format!("src/provider/{folder}/{name}");
            if !root().join(&path).is_file() {
                complaints.add(&path, 0, "is missing");
            }
        }
    }
    complaints.none();
}

#[test]
fn no_source_file_is_longer_than_700_lines() {
    let mut complaints = Complaints::default();
    for file in rust_files_under(&["src/", "testkit/src/", "cli/src/"]) {
        let lines = file.text.lines().count();
        if lines > 700 {
            complaints.add(&file.path, lines, "is longer than 700 lines: make it a folder");
        }
    }
    complaints.none();
}

/// Names of points in time, and of spans of time, as far as a name tells. Constants are found by their ends.
const INSTANTS: [&str; 10] =
    ["now", "instant", "deadline", "until", "since", "begin", "begun", "origin", "leased_at", "fetched_at"];
const SPANS: [&str; 26] = [
    "duration",
    "wait",
    "timeout",
    "delay",
    "patience",
    "interval",
    "period",
    "tolerance",
    "lease",
    "ack_wait",
    "age",
    "max_age",
    "window",
    "grace",
    "limit_of_time",
    "pause",
    "elapsed",
    "extend_after",
    "after",
    "every",
    "keep",
    "backoff",
    "drain_timeout",
    "operation_timeout",
    "route_timeout",
    "Duration",
];
const SPAN_ENDS: [&str; 6] = ["_WAIT", "_TIMEOUT", "_DEADLINE", "_DELAY", "_INTERVAL", "_PERIOD"];
/// What panics or wraps for a long span, however it is written.
const UNCHECKED: [&str; 6] = [
    "mul_f64(",
    "mul_f32(",
    "Duration::from_secs_f64(",
    "Duration::from_secs_f32(",
    "as_millis() as",
    "as_nanos() as",
];
/// How a line says that its operands cannot be large, and why.
const IS_BOUNDED: &str = "// bounded: ";

/// The last name in front of an operator, without a call: `now` in `Instant::now()`, `leased_at` in `job.leased_at`.
fn last_name(text: &str) -> &str {
    let text = text.trim_end().trim_end_matches("()").trim_end_matches('?');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.rsplit(|c| !is_word(c)).next().unwrap_or_default()
}

/// The last name of the path behind an operator: `timeout` in `self.timeout.min(x)` is none, `Duration` in `Duration::from`.
fn names_behind(text: &str) -> Vec<&str> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == '.' || c == ':';
    let path = text.trim_start_matches(['&', '*', '(']).split(|c| !is_path(c)).next().unwrap_or_default();
    path.split(['.', ':']).filter(|name| !name.is_empty()).collect()
}

/// Why a line computes with time in a way that panics for a long span.
fn unchecked_time(line: &str) -> Option<String> {
    if line.contains(IS_BOUNDED) {
        return None;
    }
    if let Some(word) = UNCHECKED.iter().find(|word| line.contains(**word) && !line.contains("try_from")) {
        return Some(format!("`{word}`"));
    }
    let is_span = |name: &str| SPANS.contains(&name) || SPAN_ENDS.iter().any(|end| name.ends_with(end));
    [" + ", " += ", " - ", " -= ", " * ", " *= "].into_iter().find_map(|operator| {
        let (before, after) = line.split_once(operator)?;
        let (left, right) = (last_name(before), names_behind(after));
        let counts = after.starts_with(|c: char| c.is_ascii_digit()) && !operator.contains('*');
        if counts {
            return None;
        }
        let is_time = match operator.trim() {
            // What is taken from a point in time may be a point in time: that is checked by the standard library.
            "-" | "-=" => right.contains(&"Duration") || SPAN_ENDS.iter().any(|end| after.contains(end)),
            "+" | "+=" => {
                INSTANTS.contains(&left) || is_span(left) || right.last().is_some_and(|name| is_span(name))
            }
            // Doubled up to a bound, it cannot run away.
            _ if after.starts_with("2).min(") || before.ends_with("(2") && after.contains(").min(") => false,
            _ => {
                is_span(left) || right.last().is_some_and(|name| is_span(name)) || right.contains(&"Duration")
            }
        };
        (is_time && !before.trim_start().starts_with("///"))
            .then(|| format!("`{left}{operator}{}`", right.join(".")))
    })
}

#[test]
fn unchecked_time_is_found_by_its_names() {
    for line in [
        "let deadline = Instant::now() + wait;",
        "let at = job.leased_at + self.runtime.extend_after;",
        "let until = now + Duration::from_secs(seconds);",
        "self.until += delay;",
        "let start = now - Duration::from_secs(5);",
        "let long = 2 * timeout;",
        "let short = delay.mul_f64(0.5);",
        "let ms = wait.as_millis() as u64;",
        "let until = begun + DEFAULT_TIMEOUT;",
    ] {
        assert!(unchecked_time(line).is_some(), "{line}");
    }
    for line in [
        "let deadline = Instant::now().after(wait);",
        "let next = newest + 1;",
        "let passed = now - begin;",
        "let text = left + right;",
        "let until = now + MOMENT; // bounded: a constant",
        "let long = timeout.saturating_mul(2);",
    ] {
        assert_eq!(unchecked_time(line), None, "{line}");
    }
}

#[test]
fn no_duration_is_added_unchecked() {
    let mut complaints = Complaints::default();
    for file in rust_files_under(&["src/"]) {
        // Test modules that are files of their own add seconds to seconds.
        if file.path.ends_with("/tests.rs") || file.path == "src/deadline.rs" {
            continue;
        }
        for (number, line) in file.code() {
            if let Some(what) = unchecked_time(line) {
                let why = "a long span overflows here; use `crate::deadline::After`, or checked or saturating arithmetic";
                complaints.add(&file.path, number, format!("{what}: {why}"));
            }
        }
    }
    complaints.none();
}

#[test]
fn nothing_is_left_to_do() {
    // Written apart, so that this file does not find itself.
    let words = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!(")];
    let mut complaints = Complaints::default();
    for file in rust_files_under(&["src/", "testkit/", "cli/", "examples/", "tests/", "benches/", "fuzz/"]) {
        for (index, line) in file.text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                complaints.add(&file.path, index + 1, format!("`{word}` is left"));
            }
        }
    }
    complaints.none();
}

#[test]
fn no_file_names_a_place_on_one_machine() {
    // Written apart, so that this file does not find itself.
    let places = [
        concat!("/ho", "me/"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
        concat!("/tm", "p/"),
    ];
    let mut complaints = Complaints::default();
    for file in files() {
        for (index, line) in file.text.lines().enumerate() {
            let is_path = |place: &str| {
                line.match_indices(place).any(|(start, _)| {
                    // A path begins here, it is not the middle of a longer one such as `target/tmp/`.
                    let before = line.get(..start).and_then(|text| text.chars().next_back());
                    before.is_none_or(|c| c.is_whitespace() || "\"'`(=:".contains(c))
                })
            };
            if let Some(place) = places.iter().find(|place| is_path(place)) {
                complaints.add(&file.path, index + 1, format!("names {place}"));
            }
        }
    }
    complaints.none();
}

#[test]
fn every_example_is_mentioned() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let pages = read("README.md") + &read("ARCHITECTURE.md");
    let mut complaints = Complaints::default();
    let examples = rust_files_under(&["examples/"]);
    assert!(!examples.is_empty());
    for file in examples {
        let name = PathBuf::from(&file.path);
        let name = name.file_stem().unwrap().to_string_lossy();
        if !pages.contains(&format!("`{name}`")) {
            complaints.add(&file.path, 1, "is mentioned neither in README.md nor in ARCHITECTURE.md");
        }
    }
    complaints.none();
}
