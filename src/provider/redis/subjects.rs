//! Subjects that have retained events.

use std::ops::ControlFlow;

use super::keys::Keys;
use super::script::{Run, subjects};
use crate::error::Result;

/// Returns the part of a filter before its first wildcard. Every subject that the filter matches begins with it.
pub(super) fn literal_of(filter: &str) -> &str {
    filter.split(['*', '>']).next().unwrap_or_default()
}

pub(super) fn has_wildcard(filter: &str) -> bool {
    literal_of(filter).len() < filter.len()
}

/// Returns true if a filter matches every subject under the prefix of the stream.
pub(super) fn is_everything(filter: &str, prefix: &str) -> bool {
    filter == ">" || filter.strip_suffix(".>") == Some(prefix)
}

/// Visits the subjects with retained events that begin with `literal`, in the order of their bytes, until `visit` breaks.
pub(super) async fn visit(
    server: &impl Run,
    keys: &Keys,
    operation: &'static str,
    literal: &str,
    mut visit: impl FnMut(String) -> ControlFlow<()>,
) -> Result<()> {
    let mut after = None;
    loop {
        let call = subjects::subjects(keys, literal, after.as_deref());
        let page = subjects::read(server.run(operation, &call).await?)?;
        if page.subjects.into_iter().try_for_each(&mut visit).is_break() || page.last.is_none() {
            return Ok(());
        }
        after = page.last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_literal_ends_before_the_first_wildcard() {
        for (filter, literal) in [
            ("events.a", "events.a"),
            ("events.*.x", "events."),
            ("events.>", "events."),
            (">", ""),
            ("*", ""),
        ] {
            assert_eq!(literal_of(filter), literal);
            assert_eq!(has_wildcard(filter), filter != literal);
        }
    }
}
