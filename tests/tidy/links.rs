//! Links of pages lead somewhere, in a viewer of the file and in the documentation of the library.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::{Complaints, File, files, root};

/// Paths in the documentation for the links of guides, which include it before the page.
const LINKS: &str = "src/docs/links.txt";

/// Returns the label and the target of a line that defines a link.
fn definition(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix('[')?.split_once("]: ").filter(|(label, _)| !label.contains(']'))
}

fn definitions(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(definition).collect()
}

fn pages() -> Vec<File> {
    let mut files = files();
    files.retain(|file| file.path.ends_with(".md"));
    files
}

#[test]
fn relative_links_lead_somewhere() {
    let mut complaints = Complaints::default();
    for file in pages() {
        let folder = root().join(&file.path);
        let folder = folder.parent().unwrap();
        for (index, line) in file.text.lines().enumerate() {
            let inline = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            for target in inline.chain(definition(line).map(|(_, target)| target)) {
                let target = target.split('#').next().unwrap();
                let endings = [".md", ".svg", ".rs"];
                let is_file = endings.iter().any(|end| target.ends_with(end)) || target.starts_with('.');
                if is_file && !target.contains("://") && !folder.join(target).exists() {
                    complaints.add(&file.path, index + 1, format!("{target} does not exist"));
                }
            }
        }
    }
    complaints.none();
}

#[test]
fn pages_have_no_links_that_only_rustdoc_knows() {
    let mut complaints = Complaints::default();
    for file in pages() {
        for (index, line) in file.text.lines().enumerate() {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                // The first part is a path of Rust, not a scheme.
                if target.contains("::") || target.starts_with("crate") {
                    let why = format!("`{target}`: define the link at the end of the page and in {LINKS}");
                    complaints.add(&file.path, index + 1, why);
                }
            }
        }
    }
    complaints.none();
}

#[test]
fn links_of_guides_are_defined_for_both_readers() {
    let links = fs::read_to_string(root().join(LINKS)).unwrap();
    let mut unused = definitions(&links);
    let known: BTreeSet<&str> = unused.keys().copied().collect();
    let guides: Vec<File> = pages().into_iter().filter(|file| file.path.starts_with("src/")).collect();
    let mut complaints = Complaints::default();
    for file in &guides {
        let own = definitions(&file.text);
        for (label, target) in &own {
            unused.remove(label);
            if !target.contains("://") && !known.contains(label) {
                complaints.add(&file.path, 0, format!("[{label}] is not in {LINKS}"));
            }
            if file.text.matches(&format!("[{label}]")).count() < 2 {
                complaints.add(&file.path, 0, format!("[{label}] is not used"));
            }
        }
        for label in file.text.split("][").skip(1).filter_map(|rest| rest.split(']').next()) {
            // Code has brackets, too.
            let is_label = label.chars().all(|c| c.is_alphanumeric() || "_-:#`".contains(c));
            if is_label && !own.contains_key(label) {
                complaints.add(&file.path, 0, format!("[{label}] is not defined at the end of the page"));
            }
        }
    }
    for label in unused.keys() {
        complaints.add(LINKS, 0, format!("no page uses [{label}]"));
    }
    complaints.none();
}
