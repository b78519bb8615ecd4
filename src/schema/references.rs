//! Checks of the references in a JSON Schema: they stay inside the schema, and following them ends.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::text::shorten;

/// Maximum number of references and alternatives that are followed for one value. A validator follows them by
/// recursion.
const MAX_CHAIN: usize = 100;

/// Keywords whose schemas apply to the same value.
const HERE: [&str; 8] = ["allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"];
/// Keywords whose schemas apply to a part of the value, or only through a reference.
const BELOW: [&str; 14] = [
    "properties",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "unevaluatedProperties",
    "items",
    "prefixItems",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "contentSchema",
    "$defs",
    "definitions",
    "dependencies",
];
/// Keywords that hold schemas by name.
const BY_NAME: [&str; 6] =
    ["properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"];

/// Checks that every reference is a JSON pointer into the document. Also checks that no reference leads back to itself
/// for the same value, because following it would never end.
pub(super) fn check(document: &Value) -> Result<(), String> {
    let mut walk = Walk { document, chains: HashMap::new() };
    let mut seen: HashSet<*const Value> = HashSet::new();
    let mut waiting = vec![document];
    while let Some(schema) = waiting.pop() {
        if !seen.insert(schema) {
            continue;
        }
        let is_root = std::ptr::eq(schema, document);
        if !is_root && schema.get("$id").or(schema.get("id")).is_some_and(Value::is_string) {
            return Err("'$id' below the top is not supported".to_owned());
        }
        for keyword in ["$dynamicRef", "$recursiveRef"] {
            if schema.get(keyword).is_some() {
                return Err(format!("'{keyword}' is not supported"));
            }
        }
        walk.chain(schema, 0)?;
        waiting.extend(walk.target(schema)?);
        waiting.extend(subschemas(schema, &HERE).chain(subschemas(schema, &BELOW)));
    }
    Ok(())
}

struct Walk<'a> {
    document: &'a Value,
    /// Length of the chain that begins at a schema; `None` while it is being followed.
    chains: HashMap<*const Value, Option<usize>>,
}

impl<'a> Walk<'a> {
    /// Returns the target of a schema's reference, if it has one.
    fn target(&self, schema: &'a Value) -> Result<Option<&'a Value>, String> {
        let Some(reference) = schema.get("$ref").and_then(Value::as_str) else { return Ok(None) };
        let pointer = reference
            .strip_prefix('#')
            .filter(|pointer| (pointer.is_empty() || pointer.starts_with('/')) && !pointer.contains('%'));
        let pointer = pointer.ok_or_else(|| {
            format!("reference '{}' is not a JSON pointer into the schema", shorten(reference))
        })?;
        let target = self.document.pointer(pointer);
        target.map(Some).ok_or_else(|| format!("reference '{}' does not resolve", shorten(reference)))
    }

    /// Follows the schemas that apply to the same value as this one, and returns the length of the chain.
    fn chain(&mut self, schema: &'a Value, depth: usize) -> Result<usize, String> {
        let too_long = || format!("a chain of references and alternatives is longer than {MAX_CHAIN}");
        match self.chains.get(&std::ptr::from_ref(schema)) {
            Some(Some(known)) => return Ok(*known),
            Some(None) => return Err("a reference leads back to itself".to_owned()),
            None if depth > MAX_CHAIN => return Err(too_long()),
            None => {}
        }
        self.chains.insert(schema, None);
        let mut longest = 0;
        for next in self.target(schema)?.into_iter().chain(subschemas(schema, &HERE)) {
            longest = longest.max(self.chain(next, depth + 1)?);
        }
        if longest >= MAX_CHAIN {
            return Err(too_long());
        }
        self.chains.insert(schema, Some(longest + 1));
        Ok(longest + 1)
    }
}

/// Returns the schemas under these keywords.
fn subschemas<'a>(schema: &'a Value, keywords: &'static [&'static str]) -> impl Iterator<Item = &'a Value> {
    keywords.iter().flat_map(move |keyword| -> Vec<&'a Value> {
        match schema.get(*keyword) {
            Some(Value::Array(schemas)) => schemas.iter().collect(),
            Some(Value::Object(named)) if BY_NAME.contains(keyword) => named.values().collect(),
            Some(one) => vec![one],
            None => Vec::new(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_ends_is_accepted_and_what_does_not_is_refused() {
        let chain = |length: usize| {
            let one = |n: usize| (format!("d{n}"), json!({"$ref": format!("#/$defs/d{}", n + 1)}));
            let mut defs: serde_json::Map<_, _> = (0..length).map(one).collect();
            defs.insert(format!("d{length}"), json!({"type": "string"}));
            json!({"$ref": "#/$defs/d0", "$defs": defs})
        };
        for (document, refused) in [
            (json!(true), None),
            (json!({"properties": {"next": {"$ref": "#"}}, "items": {"$ref": "#"}}), None),
            (
                json!({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}),
                None,
            ),
            (
                json!({"properties": {"id": {"type": "string"}, "$ref": {"type": "string"}}, "examples": [{"id": "x", "$ref": "y"}]}),
                None,
            ),
            (json!({"elsewhere": {"type": "string"}, "$ref": "#/elsewhere"}), None),
            (chain(90), None),
            (json!({"$ref": "#"}), Some("back to itself")),
            (json!({"allOf": [{"not": {"$ref": "#"}}]}), Some("back to itself")),
            (json!({"dependentSchemas": {"a": {"$ref": "#"}}}), Some("back to itself")),
            (
                json!({"properties": {"a": {"$ref": "#/x"}}, "x": {"anyOf": [{"$ref": "#/x"}]}}),
                Some("back to itself"),
            ),
            (chain(110), Some("longer than 100")),
            (chain(50_000), Some("longer than 100")),
            (json!({"$ref": "#name"}), Some("'#name' is not a JSON pointer")),
            (json!({"items": {"$ref": "https://example.com/a"}}), Some("is not a JSON pointer")),
            (json!({"$ref": "#/%24defs/a"}), Some("is not a JSON pointer")),
            (json!({"$ref": "#/$defs/a"}), Some("does not resolve")),
            (json!({"$defs": {"a": {"$id": "urn:b"}}}), Some("'$id' below the top")),
            (json!({"items": {"$dynamicRef": "#a"}}), Some("'$dynamicRef'")),
        ] {
            match (check(&document), refused) {
                (Ok(()), None) => {}
                (Err(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{found:?}, expected {refused:?}: {document}"),
            }
        }
    }
}
