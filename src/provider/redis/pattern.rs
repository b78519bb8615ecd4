//! Subject filters as patterns of Lua, for scripts that choose records by their subject.

/// Returns the Lua pattern that finds a match in exactly the subjects that `filter` matches. It is empty for a filter
/// that matches every subject under the stream's prefix, so that scripts can skip the search.
///
/// Only a filter with a wildcard has a pattern that contains `[^.]` unescaped. Scripts rely on that to look up literal
/// filters instead of searching.
pub(super) fn lua_pattern(filter: &str, prefix: &str) -> String {
    if filter == ">" || filter.strip_suffix(".>") == Some(prefix) {
        return String::new();
    }
    let mut pattern = String::with_capacity(2 * filter.len());
    let mut separator = "^";
    for token in filter.split('.') {
        pattern.push_str(separator);
        separator = "%.";
        match token {
            "*" => pattern.push_str("[^.]+"),
            ">" => pattern.push_str("[^.].*"),
            literal => push_literal(&mut pattern, literal),
        }
    }
    pattern.push('$');
    pattern
}

/// Appends a text that stands for itself. Lua takes any punctuation after `%` literally.
fn push_literal(pattern: &mut String, literal: &str) {
    for character in literal.chars() {
        if character.is_ascii_punctuation() {
            pattern.push('%');
        }
        pattern.push(character);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::provider::redis::script::server::{Server, cases};
    use crate::subject::{subject_matches, validate_filter, validate_subject};

    #[test]
    fn a_filter_becomes_an_anchored_pattern() {
        for (filter, pattern) in [
            (">", ""),
            ("events.>", ""),
            ("events.a", "^events%.a$"),
            ("events.*.x", "^events%.[^.]+%.x$"),
            ("events.a.>", "^events%.a%.[^.].*$"),
            ("*.>", "^[^.]+%.[^.].*$"),
            ("events.a-b%[^.]", "^events%.a%-b%%%[%^%.%]$"),
        ] {
            assert_eq!(lua_pattern(filter, "events"), pattern, "{filter}");
        }
    }

    /// Tokens that can confuse a pattern: its own magic characters, and text outside of ASCII.
    fn token() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[ab]{1,2}",
            3 => "[-%^$()\\[\\]?+a]{1,4}",
            2 => "[!-)+-\\-/-=?-~]{1,3}",
            1 => "[市é场]{1,2}",
        ]
    }

    fn subject() -> impl Strategy<Value = String> {
        prop::collection::vec(token(), 1..5).prop_map(|tokens| tokens.join("."))
    }

    /// A filter for this subject, or for a similar one.
    fn filter_of(subject: &str) -> impl Strategy<Value = String> + use<> {
        let tokens: Vec<String> = subject.split('.').map(str::to_owned).collect();
        let count = tokens.len();
        let changed = prop::collection::vec(
            prop_oneof![4 => Just(None), 3 => Just(Some("*".to_owned())), 1 => token().prop_map(Some)],
            count,
        );
        (changed, 0..=count + 1, any::<bool>()).prop_map(move |(changed, length, has_rest)| {
            let mut filter: Vec<String> =
                tokens.iter().zip(changed).map(|(own, other)| other.unwrap_or_else(|| own.clone())).collect();
            filter.truncate(length.max(1));
            if length > count {
                filter.push("a".to_owned());
            }
            if has_rest {
                filter.push(">".to_owned());
            }
            filter.join(".")
        })
    }

    const CASES_PER_CALL: usize = 200;

    fn found_by_lua(server: &Server, cases: &[(String, String)]) -> Vec<bool> {
        const SEARCH: &str = "
            local found = {}
            for i = 1, #ARGV, 2 do
                found[#found + 1] = string.find(ARGV[i], ARGV[i + 1]) and 1 or 0
            end
            return found";
        let mut search = redis::cmd("EVAL");
        search.arg(SEARCH).arg(0);
        for (subject, filter) in cases {
            search.arg(subject).arg(lua_pattern(filter, "events"));
        }
        search.query(&mut server.connect()).unwrap()
    }

    #[test]
    fn lua_finds_what_the_grammar_matches() {
        let case = subject().prop_flat_map(|subject| {
            let filter = filter_of(&subject);
            (Just(subject), filter)
        });
        let drawn = prop::collection::vec(case, CASES_PER_CALL);
        for server in Server::all() {
            let mut runner =
                proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(cases(20, 500)));
            let passed = runner.run(&drawn, |cases| {
                for (subject, filter) in &cases {
                    prop_assert!(validate_subject(subject).is_ok() && validate_filter(filter).is_ok());
                }
                let found = found_by_lua(server, &cases);
                for ((subject, filter), found) in cases.iter().zip(found) {
                    prop_assert_eq!(
                        found,
                        subject_matches(subject, filter),
                        "{} against {}",
                        subject,
                        filter
                    );
                }
                Ok(())
            });
            passed.unwrap();
        }
    }
}
