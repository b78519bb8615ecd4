//! The configuration reference has every setting, and no other; every environment variable is written down.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use a3s_event::ProviderRegistry;

const REFERENCE: &str = include_str!("../../src/docs/configuration.md");

/// What is built with methods that return `Self` and is no setting: words of single calls, which their own pages explain.
const NO_SETTINGS: [&str; 11] = [
    "src/broker/filter.rs",
    "src/cloudevents/mod.rs",
    "src/dlq/mod.rs",
    "src/dlq/provider.rs",
    "src/error.rs",
    "src/provider/consumer/mod.rs",
    "src/provider/delivery.rs",
    "src/provider/query.rs",
    "src/sink/failure.rs",
    "src/trace/mod.rs",
    "src/types.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files with this ending below a folder, relative to the root.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                let is_built = path.ends_with("target");
                folders.extend((!is_built).then_some(path));
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path.strip_prefix(root()).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// The words between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The keys in the first column of the table below a heading.
fn keys(heading: &str) -> BTreeSet<String> {
    let (_, section) = REFERENCE.split_once(&format!("\n## {heading}\n")).expect("a section");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let first = rows.map(|row| row.trim_start_matches('|').split('|').next().unwrap());
    first.flat_map(quoted).map(str::to_owned).collect()
}

/// The settings that a URL may have, from the error that lists them.
async fn settings_of(url: &str) -> BTreeSet<String> {
    let error = ProviderRegistry::builtin().connect(&format!("{url}?no_such_setting=1")).await;
    let error = error.err().expect("an unknown setting is refused").to_string();
    let (_, valid) = error.split_once("valid are ").unwrap_or_else(|| panic!("{error}"));
    valid.split(", ").map(str::to_owned).collect()
}

#[tokio::test]
async fn every_key_of_a_url_is_in_the_reference() {
    assert_eq!(settings_of("memory://").await, keys("Memory"));
    #[cfg(feature = "sqlite")]
    assert_eq!(settings_of("sqlite::memory:").await, keys("SQLite"));
    #[cfg(feature = "nats")]
    assert_eq!(settings_of("nats://").await, keys("NATS"));
}

#[test]
fn every_field_of_a_config_is_in_the_reference() {
    let structs = [
        ("src/provider/memory/config.rs", "MemoryConfig"),
        ("src/provider/sqlite/config.rs", "SqliteConfig"),
        ("src/provider/nats/config.rs", "NatsConfig"),
        ("src/types.rs", "PublishOptions"),
        ("src/types.rs", "SubscribeOptions"),
        ("src/types.rs", "SubscriptionFilter"),
        ("cli/src/config.rs", "Config"),
    ];
    let known: BTreeSet<&str> = quoted(REFERENCE).collect();
    for (path, name) in structs {
        let source = read(path);
        let (_, body) = source.split_once(&format!("struct {name} {{")).expect("the struct");
        let body = body.split("\n}").next().unwrap();
        let mut fields = 0;
        for line in body.lines().filter_map(|line| line.trim().strip_prefix("pub")) {
            let field = line.trim_start_matches("(crate)").trim().split(':').next().unwrap();
            assert!(known.contains(field), "{name}::{field} is not in src/docs/configuration.md");
            fields += 1;
        }
        assert!(fields >= 3, "{name} has {fields} fields");
    }
}

#[test]
fn every_setting_of_a_builder_is_in_the_reference() {
    let known: BTreeSet<&str> = quoted(REFERENCE).collect();
    let mut found = 0;
    for path in files("src", ".rs") {
        if NO_SETTINGS.contains(&path.as_str()) {
            continue;
        }
        let source = read(&path);
        for function in source.split("\n    pub fn ").skip(1) {
            // Which may take several lines.
            let signature = function.split('{').next().unwrap();
            let (name, rest) = signature.split_once('(').unwrap();
            let name = name.split('<').next().unwrap();
            let takes_itself = ["mut self", "self"].iter().any(|word| rest.trim_start().starts_with(word));
            if takes_itself && (rest.contains("-> Self") || rest.contains("-> TriggerSpec")) {
                assert!(known.contains(name), "`{name}` of {path} is not in src/docs/configuration.md");
                found += 1;
            }
        }
    }
    assert!(found > 100, "{found}");
}

#[test]
fn every_environment_variable_is_written_down() {
    let pages = REFERENCE.to_owned() + &read("CONTRIBUTING.md");
    let known: BTreeSet<&str> = quoted(&pages).collect();
    let mut found = BTreeSet::new();
    let folders = ["src", "cli", "testkit", "tests", "benches", "examples", "scripts"];
    for path in folders.iter().flat_map(|folder| files(folder, "")) {
        // Pictures are no texts.
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for start in text.match_indices("A3S_").map(|(start, _)| start) {
            let is_word = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            let name: String = text[start..].chars().take_while(|c| is_word(*c)).collect();
            let is_inside = text[..start].chars().next_back().is_some_and(is_word);
            // The name of a stream, and what tests give to their own children.
            let is_other = name == "A3S_EVENTS" || name.ends_with('_') || name.contains("_TEST_");
            if !is_inside && !is_other && name != "A3S_EVENT_NO_SUCH_KEY" {
                assert!(
                    known.contains(name.as_str()),
                    "{name} of {path} is neither in src/docs/configuration.md nor in CONTRIBUTING.md"
                );
                found.insert(name);
            }
        }
    }
    assert!(found.len() > 5, "{found:?}");
}
