//! A trie from subject filters to values.

use std::collections::HashMap;

use super::validate_filter;
use crate::error::Result;

/// A map from filters to values that finds the values of all filters that match a subject.
///
/// The time of insertion, removal and matching depends on the numbers of tokens and matches, not on the number of
/// filters in the index.
///
/// ```
/// use a3s_event::subject::SubjectIndex;
///
/// # fn main() -> a3s_event::Result<()> {
/// let mut index = SubjectIndex::new();
/// index.insert("events.market.>", "all of market")?;
/// index.insert("events.*.forex", "forex anywhere")?;
/// index.insert("events.system.deploy", "deployments")?;
///
/// let mut found = Vec::new();
/// index.for_each_match("events.market.forex", |value| found.push(*value));
/// found.sort();
/// assert_eq!(found, ["all of market", "forex anywhere"]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SubjectIndex<V> {
    root: Node<V>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Node<V> {
    /// Children by literal token.
    literal: HashMap<Box<str>, Node<V>>,
    /// The child for `*`.
    any: Option<Box<Node<V>>>,
    /// Value of the filter that continues with `>` here.
    rest: Option<V>,
    /// Value of the filter that ends here.
    end: Option<V>,
}

impl<V> Node<V> {
    fn new() -> Self {
        Self { literal: HashMap::new(), any: None, rest: None, end: None }
    }

    fn is_empty(&self) -> bool {
        self.literal.is_empty() && self.any.is_none() && self.rest.is_none() && self.end.is_none()
    }
}

impl<V> Default for SubjectIndex<V> {
    fn default() -> Self {
        Self { root: Node::new(), len: 0 }
    }
}

impl<V> SubjectIndex<V> {
    /// Creates an empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of filters in the index.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if the index has no filter.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the value of `filter` and returns its previous value.
    ///
    /// # Errors
    ///
    /// [`EventError::InvalidSubject`](crate::EventError::InvalidSubject) if the filter breaks the grammar.
    pub fn insert(&mut self, filter: &str, value: V) -> Result<Option<V>> {
        validate_filter(filter)?;
        let mut node = &mut self.root;
        for token in filter.split('.') {
            if token == ">" {
                let before = node.rest.replace(value);
                self.len += usize::from(before.is_none());
                return Ok(before);
            }
            node = if token == "*" {
                node.any.get_or_insert_with(|| Box::new(Node::new()))
            } else {
                node.literal.entry(token.into()).or_insert_with(Node::new)
            };
        }
        let before = node.end.replace(value);
        self.len += usize::from(before.is_none());
        Ok(before)
    }

    /// Returns the value of exactly this filter.
    pub fn get(&self, filter: &str) -> Option<&V> {
        let mut node = &self.root;
        for token in filter.split('.') {
            if token == ">" {
                return node.rest.as_ref();
            }
            node = if token == "*" { node.any.as_deref()? } else { node.literal.get(token)? };
        }
        node.end.as_ref()
    }

    /// Removes exactly this filter and returns its value.
    pub fn remove(&mut self, filter: &str) -> Option<V> {
        let removed = remove_below(&mut self.root, &mut filter.split('.'))?;
        self.len -= 1;
        Some(removed)
    }

    /// Calls `visit` with the value of each filter that matches `subject`, in no particular order.
    pub fn for_each_match<'a>(&'a self, subject: &str, mut visit: impl FnMut(&'a V)) {
        visit_matches(&self.root, Some(subject), &mut visit);
    }
}

/// Removes the value of the filter, then drops the nodes that became empty.
fn remove_below<'f, V>(node: &mut Node<V>, tokens: &mut impl Iterator<Item = &'f str>) -> Option<V> {
    let Some(token) = tokens.next() else {
        return node.end.take();
    };
    if token == ">" {
        return node.rest.take();
    }
    if token == "*" {
        let child = node.any.as_deref_mut()?;
        let removed = remove_below(child, tokens);
        if child.is_empty() {
            node.any = None;
        }
        return removed;
    }
    let child = node.literal.get_mut(token)?;
    let removed = remove_below(child, tokens);
    if child.is_empty() {
        node.literal.remove(token);
    }
    removed
}

/// Visits the values that match the remaining subject `rest`, which is `None` after its last token.
fn visit_matches<'a, V>(node: &'a Node<V>, rest: Option<&str>, visit: &mut impl FnMut(&'a V)) {
    let Some(rest) = rest else {
        if let Some(value) = &node.end {
            visit(value);
        }
        return;
    };
    if let Some(value) = &node.rest {
        visit(value);
    }
    let (token, rest) = match rest.split_once('.') {
        Some((token, rest)) => (token, Some(rest)),
        None => (rest, None),
    };
    if let Some(child) = node.literal.get(token) {
        visit_matches(child, rest, visit);
    }
    if let Some(child) = &node.any {
        visit_matches(child, rest, visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::subject_matches;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn filter() -> impl Strategy<Value = String> {
        let token = prop_oneof![4 => "[abc]", 2 => Just("*".to_owned())];
        (prop::collection::vec(token, 0..5), any::<bool>()).prop_map(|(mut tokens, open)| {
            if open || tokens.is_empty() {
                tokens.push(">".to_owned());
            }
            tokens.join(".")
        })
    }

    fn subject() -> impl Strategy<Value = String> {
        prop::collection::vec("[abcd]", 1..6).prop_map(|tokens| tokens.join("."))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_index_finds_what_a_naive_matcher_finds(
            changes in prop::collection::vec((filter(), prop::bool::weighted(0.7)), 0..40),
            subjects in prop::collection::vec(subject(), 1..10),
        ) {
            let mut index = SubjectIndex::new();
            let mut naive = BTreeMap::new();
            for (number, (filter, insert)) in changes.into_iter().enumerate() {
                if insert {
                    prop_assert_eq!(index.insert(&filter, number).unwrap(), naive.insert(filter, number));
                } else {
                    prop_assert_eq!(index.remove(&filter), naive.remove(&filter));
                }
                prop_assert_eq!(index.len(), naive.len());
            }
            for subject in subjects {
                let mut found = Vec::new();
                index.for_each_match(&subject, |value| found.push(*value));
                found.sort_unstable();
                let mut expected: Vec<_> =
                    naive.iter().filter(|(filter, _)| subject_matches(&subject, filter)).map(|(_, v)| *v).collect();
                expected.sort_unstable();
                prop_assert_eq!(found, expected);
            }
            for (filter, value) in &naive {
                prop_assert_eq!(index.get(filter), Some(value));
            }
            for filter in naive.keys() {
                index.remove(filter);
            }
            prop_assert!(index.root.is_empty(), "empty nodes are dropped");
        }
    }

    #[test]
    fn a_bad_filter_is_refused() {
        let mut index = SubjectIndex::new();
        assert!(index.insert("a.>.b", 1).is_err());
        assert!(index.insert("a..b", 1).is_err());
        assert!(index.is_empty());
    }
}
