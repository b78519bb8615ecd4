//! The draft or dialect of a schema: a keyword can have a meaning in one draft and none in another.

use serde_json::{Map, Value};

use crate::text::shorten;

/// Known drafts, oldest first. A schema without `$schema` uses the last one.
const DRAFTS: [&str; 5] = ["draft-04", "draft-06", "draft-07", "draft/2019-09", "draft/2020-12"];

/// Assertions that only some drafts know, with the first and the last such draft. In other drafts they have no effect.
const LIFETIMES: [(&str, &str, &str); 19] = [
    ("$dynamicRef", "draft/2020-12", "draft/2020-12"),
    ("$recursiveRef", "draft/2019-09", "draft/2019-09"),
    ("additionalItems", "draft-04", "draft/2019-09"),
    ("const", "draft-06", "draft/2020-12"),
    ("contains", "draft-06", "draft/2020-12"),
    ("contentEncoding", "draft-06", "draft/2020-12"),
    ("contentMediaType", "draft-06", "draft/2020-12"),
    ("dependencies", "draft-04", "draft-07"),
    ("dependentRequired", "draft/2019-09", "draft/2020-12"),
    ("dependentSchemas", "draft/2019-09", "draft/2020-12"),
    ("else", "draft-07", "draft/2020-12"),
    ("if", "draft-07", "draft/2020-12"),
    ("maxContains", "draft/2019-09", "draft/2020-12"),
    ("minContains", "draft/2019-09", "draft/2020-12"),
    ("prefixItems", "draft/2020-12", "draft/2020-12"),
    ("propertyNames", "draft-06", "draft/2020-12"),
    ("then", "draft-07", "draft/2020-12"),
    ("unevaluatedItems", "draft/2019-09", "draft/2020-12"),
    ("unevaluatedProperties", "draft/2019-09", "draft/2020-12"),
];

/// Keywords whose value is an object with names as keys and schemas as values.
const NAMED: [&str; 6] =
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];
/// Keywords whose value is data, not a schema.
const DATA: [&str; 5] = ["const", "default", "enum", "examples", "required"];

/// Returns why two schemas, each with its name, cannot be compared: they differ in draft, or one has an unknown
/// keyword.
pub(super) fn conflict(from: (&Value, &str), to: (&Value, &str)) -> Option<String> {
    let [from_draft, to_draft] = [from, to].map(|(schema, _)| draft_of(schema));
    if from_draft != to_draft {
        let (from, to) = (from.1, to.1);
        return Some(format!(
            "/: {from} is written in {from_draft} and {to} in {to_draft}: they cannot be compared"
        ));
    }
    [from, to].into_iter().find_map(|(schema, name)| {
        let keyword = meaningless(schema, &from_draft)?;
        Some(format!(
            "/: {name} has '{}', which {from_draft} does not define: they cannot be compared",
            shorten(keyword)
        ))
    })
}

/// Returns the draft, or the URI of another dialect.
fn draft_of(schema: &Value) -> String {
    let Some(uri) = schema.get("$schema").and_then(Value::as_str) else { return DRAFTS[4].to_owned() };
    let known = uri
        .trim_end_matches('#')
        .trim_end_matches("/schema")
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_start_matches("json-schema.org/");
    if DRAFTS.contains(&known) { known.to_owned() } else { shorten(uri) }
}

/// Returns an assertion that the draft does not know, if there is one.
fn meaningless<'a>(schema: &'a Value, draft: &str) -> Option<&'a str> {
    let place = |draft: &str| DRAFTS.iter().position(|other| *other == draft);
    let is_of_another = |keyword: &str| {
        let lifetime = LIFETIMES.iter().find(|(name, ..)| *name == keyword);
        lifetime.is_some_and(|(_, first, last)| {
            let own = place(draft);
            own.is_none() || own < place(first) || own > place(last)
        })
    };
    match schema {
        Value::Array(items) => items.iter().find_map(|item| meaningless(item, draft)),
        Value::Object(fields) => fields.iter().find_map(|(keyword, value)| {
            if is_of_another(keyword) {
                return Some(keyword.as_str());
            }
            if DATA.contains(&keyword.as_str()) {
                return None;
            }
            match value {
                Value::Object(named) if NAMED.contains(&keyword.as_str()) => in_values(named, draft),
                value => meaningless(value, draft),
            }
        }),
        _ => None,
    }
}

fn in_values<'a>(named: &'a Map<String, Value>, draft: &str) -> Option<&'a str> {
    named.values().find_map(|schema| meaningless(schema, draft))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_spelling_of_a_draft_is_that_draft() {
        for (schema, draft) in [
            (json!({}), "draft/2020-12"),
            (json!(true), "draft/2020-12"),
            (json!({"$schema": "https://json-schema.org/draft/2020-12/schema"}), "draft/2020-12"),
            (json!({"$schema": "http://json-schema.org/draft-07/schema#"}), "draft-07"),
            (json!({"$schema": "http://json-schema.org/draft-07/schema"}), "draft-07"),
            (json!({"$schema": "https://example.com/mine"}), "https://example.com/mine"),
        ] {
            assert_eq!(draft_of(&schema), draft);
        }
    }

    #[test]
    fn a_keyword_is_one_where_a_schema_stands_and_not_where_a_name_or_data_does() {
        for (schema, draft, found) in [
            (json!({"properties": {"const": {"const": 1}}}), "draft-04", Some("const")),
            (json!({"properties": {"const": {"enum": [{"const": 1}]}}}), "draft-04", None),
            (json!({"items": [{"not": {"if": true}}]}), "draft-06", Some("if")),
            (json!({"prefixItems": [true]}), "draft/2019-09", Some("prefixItems")),
            (json!({"prefixItems": [true]}), "draft/2020-12", None),
            (json!({"additionalItems": false}), "draft/2020-12", Some("additionalItems")),
            (json!({"default": {"if": 1}, "required": ["if"]}), "draft-04", None),
        ] {
            assert_eq!(meaningless(&schema, draft), found, "{schema}");
        }
    }
}
