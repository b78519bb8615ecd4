//! Subjects, filters, prefixes and names: the checks agree with the rules of the guide, and three ways to match agree
//! with each other.
//!
//! Input: a line with a subject, one with a prefix, then a line per filter.

use std::collections::{BTreeMap, BTreeSet};

use a3s_event::subject::{
    MAX_NAME_LEN, MAX_SUBJECT_LEN, MAX_SUBJECT_TOKENS, SubjectIndex, subject_matches, validate_category,
    validate_consumer_name, validate_filter, validate_filter_under, validate_prefix, validate_published,
    validate_subject,
};

use super::check_error;

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let subject = lines.next().unwrap_or_default();
    let prefix = lines.next().unwrap_or_default();
    let filters: Vec<&str> = lines.take(12).collect();

    let is_valid = is_published(subject);
    agree("subject", subject, is_valid, validate_subject(subject));
    let prefix_is_valid = is_published(prefix);
    agree("prefix", prefix, prefix_is_valid, validate_prefix(prefix));
    if prefix_is_valid {
        let is_under = is_valid && subject.starts_with(&format!("{prefix}."));
        agree("published subject", subject, is_under, validate_published(subject, prefix));
    }
    agree("consumer name", subject, is_name(subject), validate_consumer_name(subject));
    agree("category", subject, is_valid && !subject.contains('.'), validate_category(subject));

    for filter in &filters {
        let filter_is_valid = is_filter(filter);
        agree("filter", filter, filter_is_valid, validate_filter(filter));
        if is_valid {
            let expected = filter_is_valid && matches(&tokens(subject), &tokens(filter));
            assert_eq!(subject_matches(subject, filter), expected, "{subject:?} and {filter:?}");
        }
        if prefix_is_valid {
            let reaches = filter_is_valid && reaches(&tokens(prefix), &tokens(filter));
            agree("filter under a prefix", filter, reaches, validate_filter_under(filter, prefix));
        }
    }
    check_index(subject, is_valid, &filters);
}

fn check_index(subject: &str, is_valid: bool, filters: &[&str]) {
    let mut index = SubjectIndex::new();
    let mut expected = BTreeMap::new();
    for (number, filter) in filters.iter().enumerate() {
        match index.insert(filter, number) {
            Ok(before) => assert_eq!(before, expected.insert(*filter, number), "{filter:?}"),
            Err(error) => check_error(&error),
        }
    }
    assert_eq!(index.len(), expected.len());
    if is_valid {
        let mut found = BTreeSet::new();
        index.for_each_match(subject, |number| assert!(found.insert(*number), "{number} is found twice"));
        let matching = expected.iter().filter(|(filter, _)| subject_matches(subject, filter));
        assert_eq!(found, matching.map(|(_, number)| *number).collect(), "{subject:?} among {expected:?}");
    }
    for (filter, number) in expected {
        assert_eq!(index.get(filter), Some(&number), "{filter:?}");
        assert_eq!(index.remove(filter), Some(number), "{filter:?}");
        assert_eq!(index.get(filter), None, "{filter:?}");
    }
    assert!(index.is_empty());
}

fn agree(what: &str, text: &str, expected: bool, found: a3s_event::Result<()>) {
    assert_eq!(found.is_ok(), expected, "{what} {text:?}: {found:?}");
    if let Err(error) = found {
        check_error(&error);
    }
}

fn tokens(text: &str) -> Vec<&str> {
    text.split('.').collect()
}

/// Checks the rules that subjects and filters share.
fn is_sequence_of_tokens(text: &str) -> bool {
    let tokens = tokens(text);
    text.len() <= MAX_SUBJECT_LEN
        && tokens.len() <= MAX_SUBJECT_TOKENS
        && tokens.iter().all(|token| !token.is_empty() && !token.contains(is_unseen))
        && !["$JS", "$SYS", "_INBOX"].contains(&tokens[0])
}

fn is_published(text: &str) -> bool {
    is_sequence_of_tokens(text) && !text.contains(['*', '>'])
}

fn is_filter(text: &str) -> bool {
    let tokens = tokens(text);
    let (last, others) = tokens.split_last().expect("a text has a token");
    let is_pattern = |token: &&str| *token == "*" || !token.contains(['*', '>']);
    is_sequence_of_tokens(text) && others.iter().all(is_pattern) && (*last == ">" || is_pattern(last))
}

fn is_name(text: &str) -> bool {
    let forbidden = |c: char| is_unseen(c) || ".*>/\\".contains(c);
    !text.is_empty() && text.len() <= MAX_NAME_LEN && !text.contains(forbidden)
}

/// Returns true for white space, control characters and invisible characters.
fn is_unseen(c: char) -> bool {
    let prints_nothing =
        matches!(c as u32, 0xad | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff);
    c.is_whitespace() || c.is_control() || prints_nothing
}

fn matches(subject: &[&str], filter: &[&str]) -> bool {
    match (subject, filter) {
        ([], []) | ([_, ..], [">"]) => true,
        ([token, subject @ ..], [pattern, filter @ ..]) => {
            (*pattern == "*" || pattern == token) && matches(subject, filter)
        }
        _ => false,
    }
}

/// Returns true if the filter matches some subject below the prefix.
fn reaches(prefix: &[&str], filter: &[&str]) -> bool {
    match (prefix, filter) {
        (_, []) => false,
        (_, [">"]) | ([], _) => true,
        ([token, prefix @ ..], [pattern, filter @ ..]) => {
            (*pattern == "*" || pattern == token) && reaches(prefix, filter)
        }
    }
}
