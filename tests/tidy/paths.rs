//! The paths that code of this crate uses, read from its text.

use super::File;

/// A path from the root of the crate, for instance `["provider", "validate", "check_max_bytes"]`, and its line.
pub(crate) struct Used {
    pub(crate) line: usize,
    pub(crate) path: Vec<String>,
}

/// The paths that begin with `crate::` or `super::`, from the root. Trees of `use` are one path per leaf.
pub(crate) fn from_root(file: &File) -> Vec<Used> {
    let mut code = String::new();
    let mut starts = Vec::new();
    for (number, line) in file.code() {
        starts.push((code.len(), number));
        code.push_str(line.split(" // ").next().unwrap_or(line));
        code.push('\n');
    }
    let module = module_of(&file.path);
    let mut used = Vec::new();
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            let before = code.get(..at).and_then(|text| text.chars().next_back());
            if before.is_some_and(|c| is_word(c) || c == ':' || c == '$') {
                continue;
            }
            let line = starts.iter().rev().find(|(start, _)| *start <= at).map_or(1, |(_, number)| *number);
            let mut rest = code.get(at..).unwrap_or_default();
            let mut left = module.len();
            while let Some(parent) = rest.strip_prefix("super::") {
                (rest, left) = (parent, left.saturating_sub(1));
            }
            let mut prefix = module.get(..left).unwrap_or_default().to_vec();
            if let Some(root) = rest.strip_prefix("crate::") {
                rest = root;
                prefix.clear();
            }
            let mut paths = Vec::new();
            leaves(&mut rest, &mut prefix, &mut paths);
            used.extend(paths.into_iter().map(|path| Used { line, path }));
        }
    }
    used
}

/// The module that a file is: `["a", "b"]` for `src/a/b.rs` and `src/a/b/mod.rs`.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_owned).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reads `a::b::{c, d::e}` and leaves what stands behind it.
fn leaves(rest: &mut &str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let outer = prefix.len();
    loop {
        *rest = rest.trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            *rest = group.trim_start();
            while !rest.is_empty() && !rest.starts_with('}') {
                leaves(rest, prefix, found);
                *rest = rest.trim_start().trim_start_matches(',').trim_start();
            }
            *rest = rest.strip_prefix('}').unwrap_or(rest);
            break;
        }
        let end = rest.find(|c| !is_word(c) && c != '*').unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        *rest = behind;
        // A leaf that is called `self` is what stands before it.
        if !name.is_empty() && name != "self" {
            prefix.push(name.to_owned());
        }
        match behind.strip_prefix("::") {
            // Not the arguments of a generic type.
            Some(more) if !more.starts_with('<') => *rest = more,
            _ => {
                found.push(prefix.clone());
                if let Some(name) = behind.strip_prefix(" as ") {
                    *rest = name.trim_start_matches(is_word);
                }
                if name.is_empty() {
                    // What cannot be read is skipped, so that this ends.
                    let mut chars = rest.chars();
                    if !rest.starts_with([',', '}']) {
                        chars.next();
                    }
                    *rest = chars.as_str();
                }
                break;
            }
        }
    }
    prefix.truncate(outer);
}

#[test]
fn paths_are_read_from_uses_and_expressions() {
    let text = "
use crate::a::{B, c::{self, D as _}, e::*};
use super::super::f::G;
// use crate::comment::X;
fn h(x: crate::i::J) -> Vec<crate::k::L<u8>> { crate::m::n(x); super::o(); $crate::p() }
mod tests {
    use crate::q::R;
}";
    let file = File { path: "src/x/y.rs".to_owned(), text: text.to_owned() };
    let found: Vec<String> = from_root(&file).iter().map(|used| used.path.join("::")).collect();
    let expected = ["a::B", "a::c", "a::c::D", "a::e::*", "i::J", "k::L", "m::n", "f::G", "x::o"];
    assert_eq!(found, expected);
    assert_eq!(
        from_root(&file).iter().map(|used| used.line).collect::<Vec<_>>(),
        [2, 2, 2, 2, 5, 5, 5, 3, 5]
    );
}
