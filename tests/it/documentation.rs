//! The pages are true as far as a program can tell: the configuration reference has every setting, every block of code is
//! compiled or run, and what is named exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use a3s_event::ProviderRegistry;

const REFERENCE: &str = include_str!("../../src/docs/configuration.md");

/// What is built with methods that return `Self` and is no setting: words of single calls, which their own pages explain.
const NO_SETTINGS: [&str; 17] = [
    "src/broker/filter.rs",
    "src/cloudevents/mod.rs",
    "src/dlq/mod.rs",
    "src/dlq/provider.rs",
    "src/error.rs",
    "src/provider/group/mod.rs",
    "src/provider/delivery.rs",
    "src/provider/query.rs",
    "src/provider/receiver.rs",
    "src/provider/registry.rs",
    "src/sink/failure.rs",
    "src/testing/checks.rs",
    "src/testing/consumer.rs",
    "src/testing/explore.rs",
    "src/trace/mod.rs",
    "src/types.rs",
    "src/types/builder.rs",
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
    #[cfg(feature = "redis")]
    assert_eq!(settings_of("redis://").await, keys("Redis"));
}

#[test]
fn every_field_of_a_config_is_in_the_reference() {
    let structs = [
        ("src/provider/memory/config.rs", "MemoryConfig"),
        ("src/provider/sqlite/config.rs", "SqliteConfig"),
        ("src/provider/nats/config.rs", "NatsConfig"),
        ("src/provider/redis/config.rs", "RedisConfig"),
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
        for line in body.lines().map(str::trim) {
            let Some(line) = line.strip_prefix("pub ").or(line.strip_prefix("pub(crate) ")) else { continue };
            let field = line.split(':').next().unwrap();
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

/// The blocks of code of a page: the words behind the fence, and the number of its line.
fn fences(page: &str) -> Vec<(usize, &str)> {
    let lines = page.lines().enumerate().map(|(index, line)| (index + 1, line.trim_start()));
    let fences = lines.filter_map(|(number, line)| Some((number, line.strip_prefix("```")?)));
    // The ends have no words, and the other half.
    fences.step_by(2).collect()
}

fn pages() -> Vec<(String, String)> {
    let folders = ["src", "cli", "testkit", "docs", "examples", "benches", "fuzz"];
    let mut paths: Vec<String> = folders
        .iter()
        .filter(|folder| root().join(folder).is_dir())
        .flat_map(|folder| files(folder, ".md"))
        .collect();
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        paths.extend(name.ends_with(".md").then_some(name));
    }
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

#[test]
fn every_block_of_code_is_compiled_or_run() {
    let sources: String = files("src", ".rs").iter().map(|path| read(path)).collect();
    let run = read("cli/tests/cli/docs.rs");
    let mut checked = 0;
    for (path, text) in pages() {
        let name = path.rsplit('/').next().unwrap();
        // From where the including file stands.
        let is_included = |source: &str, path: &str| {
            source.contains(&format!("include_str!(\"{path}\")")) || source.contains(&format!("/{path}\")"))
        };
        for (number, words) in fences(&text) {
            checked += 1;
            let place = format!("{path}:{number}");
            match words.split(',').next().unwrap() {
                "" | "rust" | "no_run" => {
                    assert!(!words.contains("ignore"), "{place} is ignored");
                    assert!(is_included(&sources, name), "{place}: no documentation includes the page");
                }
                "sh" => assert!(
                    is_included(&run, &path) || (path == "cli/README.md" && is_included(&run, "README.md")),
                    "{place}: cli/tests/cli/docs.rs does not run its commands"
                ),
                "text" | "json" | "toml" => {}
                // A test of the state machine makes it.
                "mermaid" => {}
                other => panic!("{place}: a block of {other}"),
            }
        }
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn the_guide_to_other_users_of_sqlite_shows_lines_of_programs_that_run() {
    let page = read("src/docs/choosing_a_provider.md");
    let section = page.split_once("## Beside sqlx").unwrap().1.split_once("\n## ").unwrap().0;
    let programs =
        ["diesel", "sea-orm", "sqlx"].map(|name| read(&format!("tests/neighbours/{name}/src/main.rs")));
    let mut checked = 0;
    for block in section.split("```text\n").skip(1) {
        let shown: Vec<&str> = block.split_once("```").unwrap().0.lines().map(str::trim).collect();
        let is_shown =
            |program: &String| shown.iter().all(|line| program.lines().any(|own| own.trim() == *line));
        assert!(programs.iter().any(is_shown), "no program has all of these lines: {shown:#?}");
        checked += 1;
    }
    assert_eq!(checked, programs.len());
}

#[test]
fn what_pages_name_exists() {
    let recipes = read("justfile");
    let mut checked = 0;
    for (path, text) in pages() {
        for words in quoted(&text) {
            let mut words = words.split(' ');
            let (first, second) = (words.next().unwrap(), words.next());
            let exists = match (first, second) {
                ("just", Some(recipe)) => recipes
                    .lines()
                    .any(|line| line.split([':', ' ']).next() == Some(recipe) && line.contains(':')),
                ("cargo", Some("run")) => match words.skip_while(|word| *word != "--example").nth(1) {
                    Some("NAME") | None => continue,
                    Some(example) => root().join(format!("examples/{example}.rs")).exists(),
                },
                (file, _) if file.starts_with("scripts/") => root().join(file).exists(),
                _ => continue,
            };
            assert!(exists, "{path} names `{first} {}`", second.unwrap_or_default());
            checked += 1;
        }
    }
    assert!(checked > 5, "{checked}");
}

#[test]
fn the_picture_of_the_documentation_is_that_of_the_front_page() {
    let (kind, coded) = include_str!("../../docs/watch.uri").split_once(',').unwrap();
    assert_eq!(kind, "data:image/svg+xml;base64");
    use base64::Engine as _;
    let picture = base64::engine::general_purpose::STANDARD.decode(coded).unwrap();
    assert_eq!(picture, include_bytes!("../../docs/watch.svg"));
}

/// The pages that the front page links, and what stands in their place in the documentation of the library.
#[test]
fn every_guide_is_linked_by_the_front_page() {
    let front = read("README.md");
    let library = read("src/lib.rs");
    for path in files("src", ".md") {
        let link = format!("]: {path}");
        let label = front
            .lines()
            .find(|line| line.ends_with(&link))
            .unwrap_or_else(|| panic!("{path} is not linked"));
        let label = label.split("]:").next().unwrap();
        assert!(
            library.contains(&format!("{label}]: ")),
            "{label}] leads nowhere in the documentation of the library"
        );
    }
}

#[test]
fn the_front_page_counts_the_cases_of_the_kit() {
    let cases = a3s_event_testkit::cases().len();
    assert!(
        read("README.md").contains(&format!("one kit of {cases} conformance cases")),
        "there are {cases}"
    );
}
