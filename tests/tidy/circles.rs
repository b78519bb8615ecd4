//! The top-level modules of `src/` build on each other in one direction.

use std::collections::{BTreeMap, BTreeSet};

use super::{Complaints, File, paths, rust_files_under};

/// By module, the modules that it uses, with one place each.
type Uses = BTreeMap<String, BTreeMap<String, (String, usize)>>;

/// The module of a file; the root of the crate is none.
fn module_of(path: &str) -> Option<&str> {
    let name = path.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs");
    (name != "lib").then_some(name)
}

/// Names at the root of the crate that come from a module, such as `EventError`.
fn exports(root: &File) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for statement in root.text.split("pub use ").skip(1) {
        let statement = statement.split(';').next().unwrap_or_default();
        let Some((module, _)) = statement.split_once("::") else { continue };
        let names = statement.rsplit("::").next().unwrap_or_default();
        for name in names.trim_matches(['{', '}', '\n', ' ']).split(',') {
            exports.insert(name.trim().to_owned(), module.trim_start_matches("crate::").to_owned());
        }
    }
    exports
}

fn uses_of(files: &[File]) -> Uses {
    let exports = files.iter().find(|file| file.path == "src/lib.rs").map(exports).unwrap_or_default();
    let modules: BTreeSet<&str> = files.iter().filter_map(|file| module_of(&file.path)).collect();
    let mut uses = Uses::new();
    for file in files {
        let Some(module) = module_of(&file.path) else { continue };
        for used in paths::from_root(file) {
            let Some(first) = used.path.first() else { continue };
            let other = exports.get(first).unwrap_or(first);
            if other != module && modules.contains(other.as_str()) {
                let others = uses.entry(module.to_owned()).or_default();
                others.entry(other.clone()).or_insert((file.path.clone(), used.line));
            }
        }
    }
    uses
}

/// A way from `module` back to itself, as the modules on it.
fn circle_from(module: &str, uses: &Uses) -> Option<Vec<String>> {
    // Breadth first, so that the shortest way is told.
    let mut ways = std::collections::VecDeque::from([vec![module.to_owned()]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        let others = way.last().and_then(|last| uses.get(last));
        for other in others.into_iter().flat_map(BTreeMap::keys) {
            let way = [way.as_slice(), std::slice::from_ref(other)].concat();
            if other == module {
                return Some(way);
            }
            if seen.insert(other.clone()) {
                ways.push_back(way);
            }
        }
    }
    None
}

fn check(files: &[File]) -> Complaints {
    let uses = uses_of(files);
    let mut complaints = Complaints::default();
    for module in uses.keys() {
        if let Some(circle) = circle_from(module, &uses)
            && let [from, to, ..] = circle.as_slice()
            && let Some((path, line)) = uses.get(from).and_then(|others| others.get(to))
        {
            complaints.add(
                path,
                *line,
                format!("uses a module that needs this one: {}", circle.join(" -> ")),
            );
        }
    }
    complaints
}

/// Test modules in files of their own may use everything.
fn sources() -> Vec<File> {
    let mut files = rust_files_under(&["src/"]);
    files.retain(|file| !file.path.ends_with("tests.rs"));
    files
}

#[test]
fn no_module_needs_one_that_needs_it() {
    check(&sources()).none();
}

#[test]
fn a_circle_is_found() {
    let mut files = sources();
    let text = "use crate::EventBus;\nfn route(bus: &crate::bus::EventBus) {}".to_owned();
    files.push(File { path: "src/text.rs".to_owned(), text });
    let complaints = check(&files).0;
    assert!(complaints.iter().any(|line| line.starts_with("src/text.rs:1: ")), "{complaints:?}");
    assert!(complaints.iter().any(|line| line.contains("text -> bus -> text")), "{complaints:?}");
}
