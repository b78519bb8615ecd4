//! The providers of this crate use only what those of others can reach.

use std::collections::BTreeSet;

use super::{Complaints, File, paths, provider_folders, rust_files_under};

/// What a provider uses although others cannot: helpers that know nothing of events, and are a few lines on top of the
/// standard library.
const HELPERS: [(&str, &str); 4] = [
    ("deadline", "adds a span to a point in time without overflow"),
    ("poison", "opens a lock whatever happened while it was held"),
    ("private_file", "opens files that belong to one user"),
    ("tls", "reads PEM files for rustls, whose types a public function would show"),
];
/// Methods that the standard library has, too.
const COMMON: [&str; 2] = ["iter", "range"];

/// The text of a module, by its path.
fn module<'a>(files: &'a [File], path: &[String]) -> Option<&'a File> {
    let path = if path.is_empty() { "lib".to_owned() } else { path.join("/") };
    let names = [format!("src/{path}.rs"), format!("src/{path}/mod.rs")];
    files.iter().find(|file| names.contains(&file.path))
}

/// Whether code outside of this crate can write this path.
fn is_public(files: &[File], path: &[String]) -> bool {
    for (depth, name) in path.iter().enumerate() {
        let Some(file) = path.get(..depth).and_then(|path| module(files, path)) else { return false };
        let code: Vec<&str> = file.code().map(|(_, line)| line).collect();
        if code.iter().any(|line| *line == format!("pub mod {name};")) {
            continue;
        }
        return name == "*" || exports(&code.join("\n"), name);
    }
    true
}

/// Whether a module has a public item of this name, or hands one on.
fn exports(code: &str, name: &str) -> bool {
    let words = |text: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
    code.split("\npub ").skip(1).any(|item| match item.strip_prefix("use ") {
        Some(tree) => {
            let tree = tree.split(';').next().unwrap_or_default();
            words(
                tree.split_once('{')
                    .map_or_else(|| tree.rsplit("::").next().unwrap_or(tree), |(_, leaves)| leaves),
            )
        }
        None => words(item.split(['(', '<', ':', '{', '=', ';']).next().unwrap_or_default()),
    })
}

/// The files of the contract, whose types a provider holds.
fn is_contract(path: &str) -> bool {
    let is_shared = path.starts_with("src/provider/") && path.matches('/').count() == 2;
    is_shared
        || ["src/types.rs", "src/error.rs", "src/subject/", "src/provider/group/"]
            .iter()
            .any(|place| path.starts_with(place))
}

/// Names of the contract's methods that only this crate can call.
fn restricted(files: &[File]) -> BTreeSet<&str> {
    let functions = |is_meant: fn(&str) -> bool| {
        let contract = files.iter().filter(|file| is_contract(&file.path));
        let lines = contract.flat_map(|file| file.code()).map(|(_, line)| line.trim_start());
        lines
            .filter(move |line| is_meant(line))
            .filter_map(|line| line.split_once("fn ")?.1.split(['(', '<']).next())
            .collect::<BTreeSet<_>>()
    };
    let (hidden, open) =
        (functions(|line| line.starts_with("pub(")), functions(|line| !line.starts_with("pub(")));
    hidden.difference(&open).copied().filter(|name| !COMMON.contains(name)).collect()
}

fn check(files: &[File]) -> Complaints {
    let mut complaints = Complaints::default();
    let restricted = restricted(files);
    for folder in provider_folders() {
        let place = format!("src/provider/{folder}/");
        let own = files.iter().filter(|file| file.path.starts_with(&place));
        let defines = |name: &str| own.clone().any(|file| file.text.contains(&format!("fn {name}(")));
        let hidden: Vec<&str> = restricted.iter().copied().filter(|name| !defines(name)).collect();
        for file in own.clone() {
            for used in paths::from_root(file) {
                let is_own = used.path.starts_with(&["provider".to_owned(), folder.clone()]);
                let is_helper =
                    HELPERS.iter().any(|(name, _)| used.path.first().is_some_and(|first| first == name));
                if !is_own && !is_helper && !is_public(files, &used.path) {
                    complaints.add(&file.path, used.line, format!("{} is not public", used.path.join("::")));
                }
            }
            for (number, line) in file.code() {
                let is_called = |name: &&&str| {
                    [".", "::"].iter().any(|before| line.contains(&format!("{before}{name}(")))
                };
                if let Some(name) = hidden.iter().find(is_called) {
                    complaints.add(&file.path, number, format!("{name}() is not public"));
                }
            }
        }
    }
    complaints
}

#[test]
fn providers_use_only_what_others_can_reach() {
    check(&rust_files_under(&["src/"])).none();
}

#[test]
fn what_others_cannot_reach_is_found() {
    let mut files = rust_files_under(&["src/"]);
    let text = "
use crate::provider::group::{ConsumerConfig, Lease};
use crate::provider::capability::Support;
use crate::text::is_invisible;
use super::super::validate::MAX_ID_LEN;
fn f(delivery: Delivery, reason: &str) {
    delivery.term_or_ack(reason);
}";
    files.push(File { path: "src/provider/memory/extra.rs".to_owned(), text: text.to_owned() });
    let complaints: Vec<String> = check(&files).0;
    let found: Vec<&str> =
        complaints.iter().filter_map(|line| line.strip_prefix("src/provider/memory/extra.rs:")).collect();
    let expected = [
        "3: provider::capability::Support is not public",
        "4: text::is_invisible is not public",
        "7: term_or_ack() is not public",
    ];
    assert_eq!(found, expected);
}
