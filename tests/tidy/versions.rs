//! The pages name the versions that the manifests and the sources have.

use super::{Complaints, root};

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// Returns the text between the first two quotes of the line that begins with `key`.
fn value(text: &str, key: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split('"').nth(1).unwrap_or_else(|| line.rsplit(['=', ' ']).next().unwrap()).to_owned()
}

/// Returns the section of a page below a heading.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    rest.split("\n## ").next().unwrap()
}

#[test]
fn pages_name_the_versions_in_force() {
    let manifest = read("Cargo.toml");
    let (version, rust) = (value(&manifest, "version = "), value(&manifest, "rust-version = "));
    let servers = read("scripts/fetch-nats-server");
    let (oldest_server, server) = (value(&servers, "OLDEST="), value(&servers, "VERSION="));
    let schema = read("src/provider/sqlite/schema.rs");
    let sqlite = value(&schema, "const FIRST_SAFE_SQLITE").trim_end_matches(';').replace('_', "");
    let sqlite: u32 = sqlite.parse().unwrap();
    let sqlite = format!("SQLite {}.{}.{}", sqlite / 1_000_000, sqlite / 1_000 % 1_000, sqlite % 1_000);
    let schema = value(&schema, "const NEWEST").trim_end_matches(';').to_owned();

    let [readme, upgrade, changelog] = ["README.md", "UPGRADE.md", "CHANGELOG.md"].map(read);
    let newest = changelog.lines().find_map(|line| line.strip_prefix("## ")).unwrap();
    let (of_changelog, date) = newest.split_once([',', ' ']).unwrap_or((newest, ""));
    assert_eq!(of_changelog, version, "the newest version in CHANGELOG.md is not that of Cargo.toml");
    let state = if date.contains("unreleased") { "which is not released yet" } else { "released" };

    let support = section(&readme, "Versions and support").replace('\n', " ");
    let backends = format!("nats-server {oldest_server} to {server}");
    let mut complaints = Complaints::default();
    for (path, text, words) in [
        ("README.md", &*support, format!("version {version}, {state}")),
        ("README.md", &support, format!("requires Rust {rust},")),
        ("README.md", &support, backends),
        ("README.md", &support, sqlite),
        ("README.md", &readme, format!("**Rust {rust}+")),
        ("README.md", &readme, format!("with Rust {rust} or later")),
        ("UPGRADE.md", &upgrade.replace('\n', " "), format!("0.4.0 to {version}, and")),
        ("UPGRADE.md", &upgrade, format!("Rust {rust} is required")),
        ("UPGRADE.md", section(&upgrade, "Going back"), format!("{version} has schema version {schema}")),
        ("SECURITY.md", &read("SECURITY.md"), "(README.md#versions-and-support)".to_owned()),
        (
            ".github/ISSUE_TEMPLATE/bug.yml",
            &read(".github/ISSUE_TEMPLATE/bug.yml"),
            format!("placeholder: {version},"),
        ),
        ("clippy.toml", &read("clippy.toml"), format!("msrv = \"{rust}\"")),
    ] {
        if !text.contains(&words) {
            complaints.add(path, 0, format!("does not say `{words}`"));
        }
    }
    complaints.none();
}

#[test]
fn speeds_to_plan_with_were_measured() {
    let measured = read("docs/benchmarks.md");
    for row in
        ["| measured | 20", "| machine | ", "rustc ", "| servers | nats-server ", "| libraries | tokio "]
    {
        assert!(measured.contains(row), "docs/benchmarks.md has no `{row}`");
    }
    let measured = ["SQLite file", "NATS JetStream", "Redis Streams"].map(|backend| {
        let heading =
            measured.lines().find(|line| line.starts_with("## ") && line.ends_with(backend)).unwrap();
        section(&measured, heading.trim_start_matches("## "))
    });
    let page = read("src/docs/deployment.md");
    let rows = section(&page, "Capacity").lines().filter(|line| line.starts_with("| ") && line.contains(','));
    let mut compared = 0;
    for row in rows.filter(|row| row.chars().any(|c| c.is_ascii_digit())) {
        for (cell, backend) in row.trim_matches('|').split('|').skip(1).zip(measured) {
            assert!(backend.contains(&format!("|{cell}|")), "`{row}`: {cell} is not in docs/benchmarks.md");
            compared += 1;
        }
    }
    assert_eq!(compared, 15);
}
